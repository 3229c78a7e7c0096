//! A whole dataset at once, for downloading it: one listing of everything instead of one a directory.
//!
//! Held against log and intents by the same rules as a directory level ([`view`](crate::catalog::view)),
//! so that half of a commit is never downloaded.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::RemoteFile;
use crate::catalog::view;
use crate::catalog::view::Shown;
use crate::name::DatasetName;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::record::Entry;
use crate::store::ListRequest;
use crate::store::StoreError;
use crate::store::list_all;

/// A file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentsFile {
    /// The object.
    pub file: RemoteFile,
    /// Its content, if a commit has recorded this version.
    pub content: Option<ContentId>,
}

/// All of a dataset.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The files.
    pub files: BTreeMap<RelPath, ContentsFile>,
    /// Directories that have a marker.
    pub directories: BTreeSet<RelPath>,
    /// Keys that no file system can show.
    pub hidden: Vec<HiddenKey>,
    /// What belongs to a commit that has not ended, or is being deleted.
    pub withheld: Vec<HiddenKey>,
}

impl Catalog {
    /// Everything that a dataset shows now, as the store has it; nothing is kept.
    ///
    /// # Errors
    /// The store's.
    pub async fn contents(&self, name: &DatasetName) -> Result<Contents, StoreError> {
        // Known before the listing begins, so that what is recorded meanwhile can be told.
        drop(self.read_history(name, self.histories.mark(name)).await?);
        let mark = self.histories.mark(name);
        let prefix = self.prefix.dataset(name);
        let listed = list_all(&*self.store, ListRequest::recursive(prefix.clone())).await?.objects;
        let reading = self.read_history(name, mark).await?;
        let recent = reading.since_mark.clone().unwrap_or_default();
        let fresh: BTreeSet<&RelPath> = recent.entries.iter().map(|entry| &entry.path).collect();
        let mut whole = Contents::default();
        let hide = |key: &ObjectKey, reason: String| HiddenKey { key: key.to_string(), reason };
        for object in listed {
            let Some(text) = prefix.strip(&object.key).filter(|text| !text.is_empty()) else { continue };
            let (text, is_marker) = text.strip_suffix('/').map_or((text, false), |text| (text, true));
            let path = match RelPath::parse(text) {
                Ok(path) => path,
                Err(err) => {
                    whole.hidden.push(hide(&object.key, err.to_string()));
                    continue;
                }
            };
            if is_marker {
                whole.directories.insert(path);
                continue;
            }
            let file = RemoteFile {
                key: object.key,
                size_bytes: object.size_bytes,
                etag: object.etag,
                modified: object.modified,
            };
            match view::shown(&file, &path, &reading.history, &recent, &fresh) {
                Shown::AsListed => {
                    whole.files.insert(path, ContentsFile { file, content: None });
                }
                Shown::AsRecorded(entry) => {
                    whole.files.insert(path, as_recorded(file.key, entry));
                }
                Shown::Hidden(reason) => whole.withheld.push(hide(&file.key, reason)),
            }
        }
        for entry in &recent.entries {
            if let Ok(key) = self.prefix.key(name, &entry.path) {
                whole.files.entry(entry.path.clone()).or_insert_with(|| as_recorded(key, entry));
            }
        }
        whole.hide_files_that_are_directories();
        Ok(whole)
    }
}

impl Contents {
    /// A directory wins over an object of the same name, as in a mount.
    fn hide_files_that_are_directories(&mut self) {
        let above = |path: &RelPath| path.ancestors().filter_map(|dir| dir.as_path()).collect::<Vec<_>>();
        let mut directories: BTreeSet<RelPath> = self.files.keys().flat_map(above).collect();
        directories.extend(self.directories.iter().cloned());
        directories.extend(self.directories.iter().flat_map(above));
        for path in &directories {
            if let Some(file) = self.files.remove(path) {
                let reason = "it is a file and a directory".to_owned();
                self.hidden.push(HiddenKey { key: file.file.key.to_string(), reason });
            }
        }
    }
}

fn as_recorded(key: ObjectKey, entry: &Entry) -> ContentsFile {
    let file = RemoteFile {
        key,
        size_bytes: entry.size_bytes,
        etag: Some(entry.etag.clone()),
        modified: entry.mtime,
    };
    ContentsFile { file, content: Some(entry.cid) }
}
