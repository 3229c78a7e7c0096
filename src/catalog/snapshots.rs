//! Past states of datasets, as trees: what `<mount>/NAME@SEQ/` shows.
//!
//! A snapshot is read from two objects and never changes, so it is kept without a time limit; how
//! many files all kept snapshots may have together is bounded, and the one that was used longest
//! ago goes first. A number that no commit has yet is not remembered: it may come.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::Mutex;

use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::log::Log;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Snapshot;
use crate::store::ObjectStore;

/// Files in all kept snapshots together: some hundred megabytes.
const FILES_MAX: usize = 500_000;

/// One past state of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SnapshotId {
    /// The dataset.
    pub dataset: DatasetName,
    /// The commit that made it.
    pub seq: u64,
}

/// A past state of a dataset, directory by directory.
#[derive(Debug)]
pub struct SnapshotTree {
    /// When it was committed.
    pub time: SystemTime,
    dirs: HashMap<DirPath, Arc<Listing>>,
    entries: usize,
}

impl SnapshotTree {
    /// The tree of a snapshot. Paths whose key is too long cannot have been published, and are not in it.
    #[must_use]
    pub fn new(prefix: &RemotePrefix, dataset: &DatasetName, snapshot: &Snapshot, time: SystemTime) -> Self {
        let mut dirs: HashMap<DirPath, Listing> = HashMap::from([(DirPath::root(), Listing::default())]);
        let directories: BTreeSet<DirPath> =
            snapshot
                .entries
                .keys()
                .flat_map(RelPath::ancestors)
                .chain(snapshot.markers.iter().flat_map(|marker| {
                    marker.ancestors().chain(std::iter::once(DirPath::from(marker.clone())))
                }))
                .collect();
        for dir in directories {
            if let Some(path) = dir.as_path() {
                let parent = dirs.entry(path.parent()).or_default();
                parent.entries.insert(path.file_name().into(), RemoteEntry::Directory);
            }
            dirs.entry(dir).or_default();
        }
        for entry in snapshot.entries.values() {
            let Ok(key) = prefix.key(dataset, &entry.path) else { continue };
            let file = RemoteFile {
                key,
                size_bytes: entry.size_bytes,
                etag: Some(entry.etag.clone()),
                modified: entry.mtime,
            };
            let names = &mut dirs.entry(entry.path.parent()).or_default().entries;
            // A directory wins over a file of the same name, as everywhere.
            names.entry(entry.path.file_name().into()).or_insert(RemoteEntry::File(file));
        }
        let entries = dirs.values().map(|listing| listing.entries.len()).sum();
        let dirs = dirs.into_iter().map(|(dir, listing)| (dir, Arc::new(listing))).collect();
        Self { time, dirs, entries }
    }

    /// Everything in a directory; `None` if it is not there.
    #[must_use]
    pub fn listing(&self, dir: &DirPath) -> Option<&Arc<Listing>> {
        self.dirs.get(dir)
    }

    /// What is at a path.
    #[must_use]
    pub fn lookup(&self, path: &RelPath) -> Option<&RemoteEntry> {
        self.listing(&path.parent())?.entries.get(path.file_name())
    }
}

/// The snapshots that were looked at.
#[derive(Debug)]
pub(super) struct Snapshots {
    store: Arc<dyn ObjectStore>,
    prefix: RemotePrefix,
    kept: Mutex<LruCache<SnapshotId, Arc<SnapshotTree>>>,
    /// Held while one is read: whoever wants the same finds it kept.
    reading: tokio::sync::Mutex<()>,
}

impl Snapshots {
    pub fn new(store: Arc<dyn ObjectStore>, prefix: RemotePrefix) -> Self {
        Self {
            store,
            prefix,
            kept: Mutex::new(LruCache::unbounded()),
            reading: tokio::sync::Mutex::default(),
        }
    }

    pub fn kept(&self, id: &SnapshotId) -> Option<Arc<SnapshotTree>> {
        self.kept.lock().get(id).cloned()
    }

    /// The snapshot; `None` if there is no such commit.
    pub async fn get(&self, id: &SnapshotId) -> Result<Option<Arc<SnapshotTree>>, LogError> {
        if let Some(tree) = self.kept(id) {
            return Ok(Some(tree));
        }
        let _reading = self.reading.lock().await;
        if let Some(tree) = self.kept(id) {
            return Ok(Some(tree)); // somebody else has read it while we waited
        }
        let log = Log::new(Arc::clone(&self.store), self.prefix.clone(), id.dataset.clone());
        let Some(record) = log.record(id.seq).await? else { return Ok(None) };
        let snapshot = log.snapshot_after(&record.body).await?;
        let tree = Arc::new(SnapshotTree::new(&self.prefix, &id.dataset, &snapshot, record.body.time));
        self.keep(id.clone(), Arc::clone(&tree), FILES_MAX);
        Ok(Some(tree))
    }

    /// Keeps a tree, however large it is, and lets others go until all together have `entries_max`.
    fn keep(&self, id: SnapshotId, tree: Arc<SnapshotTree>, entries_max: usize) {
        let mut kept = self.kept.lock();
        kept.put(id, tree);
        let mut entries: usize = kept.iter().map(|(_, tree)| tree.entries).sum();
        while entries > entries_max && kept.len() > 1 {
            let Some((_, oldest)) = kept.pop_lru() else { break };
            entries -= oldest.entries;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ETag;
    use crate::record::ContentId;
    use crate::record::Entry;
    use crate::store::memory::MemoryStore;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn id(seq: u64) -> SnapshotId {
        SnapshotId { dataset: DatasetName::parse("run").unwrap(), seq }
    }

    fn tree(files: &[&str], markers: &[&str]) -> SnapshotTree {
        let entry = |text: &&str| Entry {
            path: path(text),
            size_bytes: 1,
            cid: ContentId::OF_NOTHING,
            etag: ETag::from_server("e"),
            mtime: SystemTime::UNIX_EPOCH,
            replaced: None,
        };
        let snapshot = Snapshot {
            seq: 1,
            entries: files.iter().map(|text| (path(text), entry(text))).collect(),
            markers: markers.iter().map(|text| path(text)).collect(),
        };
        let prefix = RemotePrefix::parse("d/").unwrap();
        SnapshotTree::new(&prefix, &id(1).dataset, &snapshot, SystemTime::UNIX_EPOCH)
    }

    fn names(tree: &SnapshotTree, dir: &str) -> Vec<String> {
        let dir = if dir.is_empty() { DirPath::root() } else { path(dir).into() };
        tree.listing(&dir).unwrap().entries.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_snapshot_is_a_tree() {
        let tree = tree(&["a", "b/c/d", "b/e", "b-f"], &["g/h", "b"]);
        assert_eq!(names(&tree, ""), ["a", "b", "b-f", "g"]);
        assert_eq!(names(&tree, "b"), ["c", "e"]);
        assert_eq!(names(&tree, "g/h"), [""; 0]);
        assert_eq!(tree.lookup(&path("b/c")), Some(&RemoteEntry::Directory));
        assert!(
            matches!(tree.lookup(&path("b/c/d")), Some(RemoteEntry::File(file)) if file.key.as_str() == "d/run/b/c/d")
        );
        for absent in ["x", "b/x", "a/x", "x/y"] {
            assert_eq!(tree.lookup(&path(absent)), None, "{absent}");
        }
        assert!(tree.listing(&path("a").into()).is_none());
    }

    #[test]
    fn an_empty_snapshot_is_an_empty_directory() {
        assert_eq!(names(&tree(&[], &[]), ""), [""; 0]);
    }

    #[test]
    fn a_directory_comes_before_a_file_of_the_same_name() {
        assert_eq!(tree(&["a", "a/b"], &[]).lookup(&path("a")), Some(&RemoteEntry::Directory));
    }

    #[test]
    fn those_used_last_are_kept_and_one_always_is() {
        let store: Arc<MemoryStore> = Arc::default();
        let snapshots = Snapshots::new(store, RemotePrefix::parse("d/").unwrap());
        for seq in 1..=3 {
            snapshots.keep(id(seq), Arc::new(tree(&["a", "b"], &[])), 4);
            snapshots.kept(&id(1));
        }
        let kept: Vec<bool> = (1..=3).map(|seq| snapshots.kept(&id(seq)).is_some()).collect();
        assert_eq!(kept, [true, false, true]);
        snapshots.keep(id(4), Arc::new(tree(&["a", "b", "c", "d", "e"], &[])), 4);
        assert!(snapshots.kept(&id(4)).is_some() && snapshots.kept(&id(3)).is_none());
    }
}
