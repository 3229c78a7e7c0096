//! What is different: staged files against published ones, and a snapshot against another.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::catalog::Level;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::commit::Content;
use crate::compare::CompareError;
use crate::compare::Watch;
use crate::compare::hashers;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::Snapshot;
use crate::staging::Access;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::StagedDataset;
use crate::staging::StagedEntry;
use crate::store::META_SHA256;
use crate::store::ObjectStore;

/// What distinguishes two states of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// It is only in the later one.
    New,
    /// It is in both, with the same content.
    Same,
    /// It is in both, with another content.
    Changed,
    /// It is only in the earlier one.
    Deleted,
    /// It is in both, as long in one as in the other, and one content id is not known.
    Unknown,
}

/// One state of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its content, where that is known.
    pub cid: Option<ContentId>,
    /// Its version, if it is published.
    pub etag: Option<ETag>,
}

/// Two states of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What distinguishes them.
    pub kind: DifferenceKind,
    /// The path in the dataset.
    pub path: RelPath,
    /// The earlier, or published, state.
    pub before: Option<Side>,
    /// The later, or staged, state.
    pub after: Option<Side>,
    /// What a commit would stumble over, as a clause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What is different in `after`; files that are the same are left out.
#[must_use]
pub fn between(before: &Snapshot, after: &Snapshot) -> Vec<Difference> {
    let paths: BTreeSet<&RelPath> = before.entries.keys().chain(after.entries.keys()).collect();
    let difference = |path: &RelPath| {
        let (old, new) = (before.entries.get(path), after.entries.get(path));
        let kind = match (old, new) {
            (Some(old), Some(new)) if old.cid == new.cid => return None,
            (Some(_), Some(_)) => DifferenceKind::Changed,
            (None, _) => DifferenceKind::New,
            (Some(_), None) => DifferenceKind::Deleted,
        };
        let (before, after) = (old.map(side), new.map(side));
        Some(Difference { kind, path: path.clone(), before, after, note: None })
    };
    paths.into_iter().filter_map(difference).collect()
}

fn side(entry: &Entry) -> Side {
    Side { size_bytes: entry.size_bytes, cid: Some(entry.cid), etag: Some(entry.etag.clone()) }
}

/// What is staged for a dataset, file by file, against what the catalog knows to be published. The
/// remote is asked only for directories that the catalog does not know, and for the content ids of
/// foreign objects that are as long as the staged file.
///
/// # Errors
/// The local disk's; the remote's, where a directory has to be listed and cannot.
pub async fn staged(
    catalog: &Catalog,
    store: &dyn ObjectStore,
    dataset: &Arc<StagedDataset>,
    watch: &dyn Watch,
) -> Result<Vec<Difference>, CompareError> {
    let mut files = dataset.contents()?;
    if let Some(sealed) = dataset.sealed() {
        let sealed = sealed.contents()?;
        let open: BTreeSet<&RelPath> = files.files.iter().map(|file| &file.path).collect();
        let below: Vec<StagedEntry> =
            sealed.files.into_iter().filter(|file| !open.contains(&file.path)).collect();
        files.files.extend(below);
        files.bases.extend(sealed.bases);
    }
    let bases: BTreeMap<RelPath, Base> = files.bases.into_iter().collect();
    let mut published = Published { catalog, dataset, levels: BTreeMap::new() };
    let mut pairs = Vec::with_capacity(files.files.len());
    for file in files.files {
        pairs.push((published.at(&file.path).await?, file));
    }
    let mut deleted = Vec::new();
    let staged_paths: BTreeSet<&RelPath> = pairs.iter().map(|(_, file)| &file.path).collect();
    for (path, base) in bases.iter().filter(|(_, base)| base.kind == BaseKind::Delete) {
        if !staged_paths.contains(path) {
            deleted.push((path.clone(), base.clone(), published.at(path).await?));
        }
    }
    let snapshot = catalog.snapshot(dataset.name());
    let compared = Comparison { store, dataset, snapshot: &snapshot, bases: &bases, watch };
    let bytes = pairs.iter().filter(|(there, file)| is_hashed(there.as_ref(), file));
    watch.phase("compare", pairs.len() as u64, bytes.map(|(_, file)| file.size_bytes).sum());
    let (mut pairs, mut comparing, mut all) = (pairs.into_iter(), FuturesUnordered::new(), Vec::new());
    loop {
        let free = hashers() - comparing.len();
        comparing.extend(pairs.by_ref().take(free).map(|(there, file)| compared.file(there, file)));
        let Some(difference) = comparing.next().await else { break };
        all.push(difference?);
    }
    all.extend(deleted.into_iter().map(|(path, base, there)| deletion(path, &base, there.as_ref())));
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

/// Published entries by path, each directory asked for once.
struct Published<'a> {
    catalog: &'a Catalog,
    dataset: &'a StagedDataset,
    levels: BTreeMap<DirPath, crate::catalog::Known>,
}

impl Published<'_> {
    async fn at(&mut self, path: &RelPath) -> Result<Option<RemoteEntry>, CompareError> {
        let dir = path.parent();
        if !self.levels.contains_key(&dir) {
            let level = Level::Directory(self.dataset.name().clone(), dir.clone());
            self.levels.insert(dir.clone(), self.catalog.level(&level).await?);
        }
        Ok(self.levels[&dir].listing.entries.get(path.file_name()).cloned())
    }
}

/// Whether a staged file has to be read: something as long as it is published there.
fn is_hashed(there: Option<&RemoteEntry>, file: &StagedEntry) -> bool {
    matches!(there, Some(RemoteEntry::File(there)) if there.size_bytes == file.size_bytes)
}

struct Comparison<'a> {
    store: &'a dyn ObjectStore,
    dataset: &'a Arc<StagedDataset>,
    snapshot: &'a Snapshot,
    bases: &'a BTreeMap<RelPath, Base>,
    watch: &'a dyn Watch,
}

impl Comparison<'_> {
    async fn file(&self, there: Option<RemoteEntry>, file: StagedEntry) -> Result<Difference, CompareError> {
        let path = file.path.clone();
        let hashed = is_hashed(there.as_ref(), &file);
        let replaced = self.bases.get(&path).map(|base| &base.etag);
        let mut after = Side { size_bytes: file.size_bytes, cid: None, etag: None };
        let (kind, before, note) = match there {
            None => {
                let note = replaced.map(|_| "what it replaces was deleted since it was staged".to_owned());
                (DifferenceKind::New, None, note)
            }
            Some(RemoteEntry::Directory) => {
                (DifferenceKind::Changed, None, Some("is a directory in the bucket".to_owned()))
            }
            Some(RemoteEntry::File(published)) => {
                let cid = if hashed { self.published_cid(&path, &published).await } else { None };
                if cid.is_some() {
                    after.cid = Some(self.hash(&file).await?);
                }
                let kind = match (after.cid, cid) {
                    (Some(ours), Some(theirs)) if ours == theirs => DifferenceKind::Same,
                    (None, None) if hashed => DifferenceKind::Unknown,
                    _ => DifferenceKind::Changed,
                };
                let another = replaced.is_some() && replaced != published.etag.as_ref();
                let note = (another && kind != DifferenceKind::Same)
                    .then(|| "another version is published than the one that it replaces".to_owned());
                let before = Side { size_bytes: published.size_bytes, cid, etag: published.etag };
                (kind, Some(before), note)
            }
        };
        self.watch.file_done();
        Ok(Difference { kind, path, before, after: Some(after), note })
    }

    /// The content id of a published version: from the log, or from what dsfs left beside the object.
    async fn published_cid(&self, path: &RelPath, file: &RemoteFile) -> Option<ContentId> {
        let recorded =
            self.snapshot.entries.get(path).filter(|entry| file.etag.as_ref() == Some(&entry.etag));
        if let Some(entry) = recorded {
            return Some(entry.cid);
        }
        let meta = self.store.head(&file.key).await.ok()?; // unreachable is as good as unknown
        let is_this = file.etag.as_ref().is_none_or(|etag| *etag == meta.etag);
        meta.metadata.get(META_SHA256).filter(|_| is_this).and_then(|hex| ContentId::from_sha256_hex(hex))
    }

    async fn hash(&self, file: &StagedEntry) -> Result<ContentId, CompareError> {
        let opened = self.dataset.open_file(&file.path, Access::Read, false)?;
        let content = Content::of_staged(&opened, &file.path, file.size_bytes)?;
        let cid = content.id(|_| {}).await?;
        self.watch.looked_at(file.size_bytes);
        Ok(cid)
    }
}

fn deletion(path: RelPath, base: &Base, there: Option<&RemoteEntry>) -> Difference {
    let (before, note) = match there {
        Some(RemoteEntry::File(file)) => {
            let another = file.etag.as_ref().is_some_and(|etag| *etag != base.etag);
            let side = Side { size_bytes: file.size_bytes, cid: None, etag: file.etag.clone() };
            (
                Some(side),
                another.then(|| "another version is published than the one that was deleted".to_owned()),
            )
        }
        Some(RemoteEntry::Directory) | None => (None, Some("is not published any more".to_owned())),
    };
    Difference { kind: DifferenceKind::Deleted, path, before, after: None, note }
}
