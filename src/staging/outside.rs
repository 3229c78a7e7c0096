//! What is committed from where it is: a directory of the user's own, uploaded without a copy.
//!
//! It is frozen by writing down what is in it. Nobody can keep the user from changing a file meanwhile,
//! but it is noticed: a file whose size or time is another one than was written down is an error.
//!
//! ```text
//! <area>/lock                          one upload of a dataset at a time
//! <area>/<name>/making/…               being written down
//! <area>/<name>/sealed/<txid>/outside  JSON: the directory, its files, what they replace
//!                             journal  how far the commit has come, as for staged files
//! ```

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::durable;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::record::format_mtime;
use crate::record::parse_mtime;
use crate::staging::Base;
use crate::staging::Contents;
use crate::staging::Holder;
use crate::staging::Sealed;
use crate::staging::StagedDataset;
use crate::staging::StagedEntry;
use crate::staging::StagingError;
use crate::staging::dataset::SealedTree;
use crate::staging::lock;
use crate::staging::tree::Tree;

const FILE: &str = "outside";

/// A directory, and what of it is committed.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    root: PathBuf,
    pub contents: Contents,
}

#[derive(Serialize, Deserialize)]
struct Form {
    format: u32,
    root: PathBuf,
    files: Vec<FileForm>,
    empty_directories: Vec<RelPath>,
    bases: Vec<(RelPath, Base)>,
}

#[derive(Serialize, Deserialize)]
struct FileForm {
    path: RelPath,
    size_bytes: u64,
    mtime: String,
}

const FORMAT_VERSION: u32 = 1;

/// One dataset's upload, locked by this process until dropped.
#[derive(Debug)]
pub struct Upload {
    /// The dataset: its commit takes the directory's content.
    pub dataset: Arc<StagedDataset>,
    _lock: lock::Lock,
}

impl Upload {
    /// Opens the area of one dataset's uploads. `contents` is what a new commit takes from `root`; one that
    /// was interrupted keeps what was written down when it began.
    ///
    /// # Errors
    /// [`StagingError::Locked`] if another process is at it, and the local disk's.
    pub fn open(
        area: &Path,
        holder: &Holder,
        name: &DatasetName,
        root: &Path,
        contents: Contents,
    ) -> Result<Self, StagingError> {
        durable::create_private_dirs(area).map_err(|source| StagingError::io(area, source))?;
        let lock = lock::acquire(area, holder)?;
        let outside = Outside { root: root.to_owned(), contents };
        let dataset = StagedDataset::load_outside(name.clone(), area.join(name.as_str()), outside)?;
        Ok(Self { dataset, _lock: lock })
    }

    /// Whether a commit was interrupted that took other files than are there now, or from elsewhere.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        let (Some(sealed), Some(now)) = (self.dataset.sealed(), self.dataset.outside()) else { return false };
        let Some(before) = sealed.outside() else { return true };
        before.root != now.root
            || before.contents.files != now.contents.files
            || before.contents.empty_directories != now.contents.empty_directories
    }
}

impl Outside {
    /// What was written down for a commit; `None` if that one has a tree of its own.
    pub fn load(sealed: &Path) -> Result<Option<Arc<Self>>, StagingError> {
        let path = sealed.join(FILE);
        let damaged = |reason: String| StagingError::Damaged { path: path.clone(), reason };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StagingError::io(path, source)),
        };
        let form: Form = serde_json::from_slice(&text).map_err(|err| damaged(err.to_string()))?;
        if form.format != FORMAT_VERSION {
            return Err(damaged(format!(
                "format version {} is newer than this dsfs: update dsfs",
                form.format
            )));
        }
        let file = |file: FileForm| {
            let modified = parse_mtime(&file.mtime).ok_or_else(|| damaged(format!("{:?}", file.mtime)))?;
            Ok(StagedEntry { path: file.path, size_bytes: file.size_bytes, modified })
        };
        let contents = Contents {
            files: form.files.into_iter().map(file).collect::<Result<_, StagingError>>()?,
            empty_directories: form.empty_directories.into_iter().map(DirPath::from).collect(),
            bases: form.bases,
            foreign: Vec::new(),
        };
        Ok(Some(Arc::new(Self { root: form.root, contents })))
    }

    fn save(&self, dir: &Path) -> io::Result<()> {
        let file = |file: &StagedEntry| FileForm {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            mtime: format_mtime(file.modified),
        };
        let form = Form {
            format: FORMAT_VERSION,
            root: self.root.clone(),
            files: self.contents.files.iter().map(file).collect(),
            empty_directories: self.contents.empty_directories.iter().filter_map(DirPath::as_path).collect(),
            bases: self.contents.bases.clone(),
        };
        durable::replace(&dir.join(FILE), &serde_json::to_vec(&form)?)
    }

    /// Where a file of it is.
    pub fn path(&self, path: &RelPath) -> PathBuf {
        self.root.join(path.as_str())
    }

    /// Opens a file of it, if it is still the one that was written down.
    pub fn open_file(&self, path: &RelPath) -> Result<File, StagingError> {
        let place = self.path(path);
        let failed = |source| StagingError::io(&place, source);
        let file = File::open(&place).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let at = self.contents.files.binary_search_by(|entry| entry.path.cmp(path)).ok();
        let same = at.and_then(|at| self.contents.files.get(at)).is_some_and(|entry| {
            entry.size_bytes == meta.len() && meta.modified().is_ok_and(|time| time == entry.modified)
        });
        if same {
            return Ok(file);
        }
        let reason = "it has changed since the upload began".to_owned();
        Err(StagingError::Damaged { path: place, reason })
    }
}

impl StagedDataset {
    /// As [`StagedDataset::freeze`], of a directory that stays where it is.
    pub(super) fn freeze_outside(&self, txid: &str, outside: &Arc<Outside>) -> Result<Sealed, StagingError> {
        let failed = |source| StagingError::io(&self.dir, source);
        let mut trees = self.trees.write();
        if let Some(other) = &trees.sealed {
            return Err(StagingError::AlreadySealed { txid: other.sealed.txid().to_owned() });
        }
        if outside.contents.is_empty() {
            return Err(StagingError::NothingStaged);
        }
        let (making, dir) = (self.dir.join("making"), self.dir.join("sealed").join(txid));
        let made = durable::create_private_dirs(&making.join("tree"))
            .and_then(|()| outside.save(&making))
            .and_then(|()| durable::create_private_dirs(&self.dir.join("sealed")))
            .and_then(|()| durable::rename(&making, &dir));
        made.map_err(failed)?;
        let tree = Tree::open(&dir.join("tree")).map_err(failed)?;
        let tree = tree.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOENT)))?;
        let sealed = Sealed::new(txid, dir, Some(Arc::clone(outside)));
        trees.sealed =
            Some(SealedTree { sealed: sealed.clone(), tree, bases: crate::staging::base::Bases::default() });
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalTree;

    fn contents(root: &Path) -> Contents {
        let tree = LocalTree::of(root).unwrap();
        let files = tree.files.into_iter().map(|file| StagedEntry {
            path: file.path,
            size_bytes: file.size_bytes,
            modified: file.modified,
        });
        Contents { files: files.collect(), ..Contents::default() }
    }

    fn open(dir: &Path) -> Upload {
        let name = DatasetName::parse("run").unwrap();
        let root = dir.join("run");
        Upload::open(&dir.join("area"), &Holder::default(), &name, &root, contents(&root)).unwrap()
    }

    #[test]
    fn a_directory_is_frozen_where_it_is_and_changes_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/a"), "1").unwrap();
        fs::write(dir.path().join("run/b"), "2").unwrap();
        let path = |name| RelPath::parse(name).unwrap();
        let upload = open(dir.path());
        let sealed = upload.dataset.freeze("tx1").unwrap();
        assert_eq!(sealed.contents().unwrap().files.len(), 2);
        sealed.open_file(&path("a")).unwrap();
        fs::write(dir.path().join("run/b"), "other").unwrap();
        assert!(matches!(sealed.open_file(&path("b")), Err(StagingError::Damaged { .. })));
        assert!(matches!(upload.dataset.freeze("tx2"), Err(StagingError::AlreadySealed { .. })));
        drop(upload);

        // The next process finds what was written down, and that it is not what is there now.
        let upload = open(dir.path());
        let sealed = upload.dataset.sealed().unwrap();
        assert_eq!((sealed.txid(), sealed.contents().unwrap().files[1].size_bytes), ("tx1", 1));
        assert!(upload.is_outdated());
        upload.dataset.thaw(&sealed).unwrap();
        assert!(upload.dataset.sealed().is_none());
        let sealed = upload.dataset.freeze("tx3").unwrap();
        assert!(!upload.is_outdated());
        upload.dataset.finish(&sealed).unwrap();
        assert_eq!(fs::read(dir.path().join("run/b")).unwrap(), b"other", "the files are the user's");
        assert!(!dir.path().join("area/run").exists());
    }

    #[test]
    fn two_uploads_of_a_dataset_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let _first = open(dir.path());
        let name = DatasetName::parse("run").unwrap();
        let root = dir.path().join("run");
        let holder = Holder { pid: 7, ..Holder::default() };
        let second = Upload::open(&dir.path().join("area"), &holder, &name, &root, Contents::default());
        assert!(matches!(second, Err(StagingError::Locked { .. })));
    }
}
