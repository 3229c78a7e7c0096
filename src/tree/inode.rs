//! Inode numbers: what the kernel calls the things that it has looked up.
//!
//! Why this is more than a counter:
//!
//! * A file that is replaced in the bucket must become *another* inode, or the kernel would mix
//!   cached pages of two versions. So a published file's inode belongs to (path, `ETag`).
//! * A staged file keeps its inode when it is renamed, since the kernel moves its own entry.
//! * A staged file that is unlinked while open keeps its inode, without a name.
//! * Numbers are never used twice in the life of a mount.
//!
//! The table holds what the kernel holds (its *lookup count*) and forgets when the kernel does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use parking_lot::RwLock;

use crate::catalog::listing::RemoteFile;
use crate::catalog::snapshots::SnapshotId;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::any_time;

/// An inode number.
pub type Ino = u64;

/// The mount's own directory, as FUSE has it.
pub const ROOT: Ino = 1;

/// What an inode number stands for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Node {
    /// The directory of datasets.
    Root,
    /// A directory of a dataset, or the dataset itself.
    Directory(DatasetName, DirPath),
    /// A staged file, by its present name.
    Staged(DatasetName, RelPath),
    /// A staged file that has no name any more, but is still open somewhere.
    Unlinked(DatasetName),
    /// A published file: one version.
    Published(DatasetName, RelPath, Arc<RemoteFile>),
    /// A directory of a past state of a dataset, with the time of the commit that made that state.
    PastDirectory(SnapshotId, DirPath, #[serde(with = "any_time")] SystemTime),
    /// A file of a past state: one version.
    PastFile(SnapshotId, RelPath, Arc<RemoteFile>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Directory(DatasetName, DirPath),
    Staged(DatasetName, RelPath),
    Published(DatasetName, RelPath, Version),
    PastDirectory(SnapshotId, DirPath),
    PastFile(SnapshotId, RelPath),
}

/// What tells versions apart: the ETag, or, where listings have none, what they do have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Version {
    Named(ETag),
    Listed(u64, SystemTime),
}

impl Version {
    fn of(file: &RemoteFile) -> Self {
        match &file.etag {
            Some(etag) => Self::Named(etag.clone()),
            None => Self::Listed(file.size_bytes, file.modified),
        }
    }
}

impl Node {
    /// The version that it shows, if it is one.
    fn version(&self) -> Option<&RemoteFile> {
        match self {
            Self::Published(_, _, file) | Self::PastFile(_, _, file) => Some(file),
            Self::Root
            | Self::Directory(..)
            | Self::Staged(..)
            | Self::Unlinked(_)
            | Self::PastDirectory(..) => None,
        }
    }

    fn identity(&self) -> Option<Identity> {
        match self {
            Self::Root | Self::Unlinked(_) => None,
            Self::Directory(name, dir) => Some(Identity::Directory(name.clone(), dir.clone())),
            Self::Staged(name, path) => Some(Identity::Staged(name.clone(), path.clone())),
            Self::Published(name, path, file) => {
                Some(Identity::Published(name.clone(), path.clone(), Version::of(file)))
            }
            Self::PastDirectory(id, dir, _) => Some(Identity::PastDirectory(id.clone(), dir.clone())),
            Self::PastFile(id, path, _) => Some(Identity::PastFile(id.clone(), path.clone())),
        }
    }
}

/// The table. Its lock is never held while anything else is asked.
#[derive(Debug, Default)]
pub struct InodeTable {
    state: RwLock<State>,
    /// Where [`Self::next_oldest`] goes on.
    hand: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<Ino, Entry>,
    numbers: HashMap<Identity, Ino>,
    /// Where those were that have left staging, until the kernel forgets them.
    left: HashMap<Ino, RelPath>,
    last: Ino,
}

#[derive(Debug)]
struct Entry {
    node: Node,
    lookups: u64,
}

impl InodeTable {
    /// The node that a number stands for.
    #[must_use]
    pub fn get(&self, ino: Ino) -> Option<Node> {
        if ino == ROOT {
            return Some(Node::Root);
        }
        self.state.read().nodes.get(&ino).map(|entry| entry.node.clone())
    }

    /// The number of a node that the kernel knows already.
    #[must_use]
    pub fn number(&self, node: &Node) -> Option<Ino> {
        if *node == Node::Root {
            return Some(ROOT);
        }
        self.state.read().numbers.get(&node.identity()?).copied()
    }

    /// The number of a node, given to the kernel once more: its lookup count grows by one.
    pub fn lookup(&self, node: Node) -> Ino {
        let Some(identity) = node.identity() else { return ROOT };
        let mut state = self.state.write();
        if let Some(&ino) = state.numbers.get(&identity) {
            let entry = state.nodes.get_mut(&ino).expect("numbers and nodes change together");
            entry.lookups += 1;
            entry.node = node;
            return ino;
        }
        state.last = state.last.max(ROOT) + 1;
        let ino = state.last;
        state.numbers.insert(identity, ino);
        state.nodes.insert(ino, Entry { node, lookups: 1 });
        ino
    }

    /// The kernel drops `count` of its lookups.
    pub fn forget(&self, ino: Ino, count: u64) {
        let mut state = self.state.write();
        let Some(entry) = state.nodes.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups == 0 {
            let identity = entry.node.identity();
            state.nodes.remove(&ino);
            state.left.remove(&ino);
            state.release_number(identity, ino);
        }
    }

    /// A staged file or directory has a new name; whatever had that name before has none.
    pub fn rename(&self, dataset: &DatasetName, from: &RelPath, to: &RelPath) {
        let mut state = self.state.write();
        state.take_name(dataset, to);
        state.take(&Identity::Directory(dataset.clone(), to.clone().into()), dataset);
        let below = DirPath::from(from.clone());
        let moved: Vec<(Ino, Node)> = state
            .nodes
            .iter()
            .filter_map(|(ino, entry)| Some((*ino, moved(&entry.node, dataset, from, &below, to)?)))
            .collect();
        for (ino, node) in moved {
            let old = state.nodes.get(&ino).and_then(|entry| entry.node.identity());
            state.release_number(old, ino);
            if let Some(identity) = node.identity() {
                state.numbers.insert(identity, ino);
            }
            if let Some(entry) = state.nodes.get_mut(&ino) {
                entry.node = node;
            }
        }
    }

    /// A directory was removed. Whoever stands in it keeps the inode, which the kernel has marked
    /// dead; a new directory of that name must be another one.
    pub fn remove_dir(&self, dataset: &DatasetName, dir: &DirPath) {
        self.state.write().take(&Identity::Directory(dataset.clone(), dir.clone()), dataset);
    }

    /// A staged file has no name any more.
    pub fn unlink(&self, dataset: &DatasetName, path: &RelPath) {
        self.state.write().take_name(dataset, path);
    }

    /// A staged file is staged no more, since it was committed or discarded: it has no name either, but
    /// [`Self::left_from`] knows what it was.
    pub fn leave(&self, dataset: &DatasetName, path: &RelPath) {
        let mut state = self.state.write();
        if let Some(ino) = state.take_name(dataset, path) {
            state.left.insert(ino, path.clone());
        }
    }

    /// Where a file was when it left staging.
    #[must_use]
    pub fn left_from(&self, ino: Ino) -> Option<RelPath> {
        self.state.read().left.get(&ino).cloned()
    }

    /// All inodes that show this version of an object. Looks at every inode.
    #[must_use]
    pub fn of_version(&self, key: &ObjectKey, etag: &ETag) -> Vec<Ino> {
        let state = self.state.read();
        let shows = |entry: &&Entry| {
            entry.node.version().is_some_and(|file| file.key == *key && file.etag.as_ref() == Some(etag))
        };
        state.nodes.iter().filter(|(_, entry)| shows(entry)).map(|(ino, _)| *ino).collect()
    }

    /// The next inodes in the order of their numbers, from the oldest on and round again.
    #[must_use]
    pub fn next_oldest(&self, count: u64) -> Vec<(Ino, Node)> {
        let state = self.state.read();
        let from = self.hand.fetch_add(count, Ordering::Relaxed);
        if from >= state.last {
            self.hand.store(ROOT + 1, Ordering::Relaxed);
        }
        let known = |ino| Some((ino, state.nodes.get(&ino)?.node.clone()));
        (from..from + count).filter_map(known).collect()
    }

    /// Calls `each` with every inode, its lookup count, and what it stands for; returns the last number given.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn for_each<E>(&self, mut each: impl FnMut(Ino, u64, &Node) -> Result<(), E>) -> Result<Ino, E> {
        let state = self.state.read();
        state.nodes.iter().try_for_each(|(ino, entry)| each(*ino, entry.lookups, &entry.node))?;
        Ok(state.last)
    }

    /// Puts an inode back that an earlier table had.
    pub fn restore(&self, ino: Ino, lookups: u64, node: Node) {
        let mut state = self.state.write();
        if let Some(identity) = node.identity() {
            state.numbers.insert(identity, ino);
        }
        state.nodes.insert(ino, Entry { node, lookups });
        state.last = state.last.max(ino);
    }

    /// Gives no number up to this one.
    pub fn begin_behind(&self, last: Ino) {
        let mut state = self.state.write();
        state.last = state.last.max(last);
    }

    /// How many inodes the kernel knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().nodes.len()
    }

    /// Whether the kernel knows none but the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl State {
    fn take_name(&mut self, dataset: &DatasetName, path: &RelPath) -> Option<Ino> {
        self.take(&Identity::Staged(dataset.clone(), path.clone()), dataset)
    }

    /// Takes the name from the inode that has it.
    fn take(&mut self, identity: &Identity, dataset: &DatasetName) -> Option<Ino> {
        let ino = self.numbers.remove(identity)?;
        self.nodes.get_mut(&ino)?.node = Node::Unlinked(dataset.clone());
        Some(ino)
    }

    /// Removes an identity, unless it has gone to another inode meanwhile.
    fn release_number(&mut self, identity: Option<Identity>, ino: Ino) {
        if let Some(identity) = identity
            && self.numbers.get(&identity) == Some(&ino)
        {
            self.numbers.remove(&identity);
        }
    }
}

/// What a node becomes when `from` is renamed to `to`; `None` if it is not concerned.
fn moved(node: &Node, dataset: &DatasetName, from: &RelPath, below: &DirPath, to: &RelPath) -> Option<Node> {
    let new_path = |path: &RelPath| -> Option<RelPath> {
        if path == from {
            return Some(to.clone());
        }
        let rest = path.as_str().get(from.as_str().len()..).filter(|_| below.contains(path))?;
        Some(RelPath::parse(&format!("{to}{rest}")).expect("two valid paths joined"))
    };
    match node {
        Node::Staged(name, path) if name == dataset => Some(Node::Staged(name.clone(), new_path(path)?)),
        Node::Directory(name, dir) if name == dataset => {
            Some(Node::Directory(name.clone(), new_path(&dir.as_path()?)?.into()))
        }
        Node::Root
        | Node::Unlinked(_)
        | Node::Published(..)
        | Node::Staged(..)
        | Node::Directory(..)
        | Node::PastDirectory(..)
        | Node::PastFile(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> DatasetName {
        DatasetName::parse("run").unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn staged(text: &str) -> Node {
        Node::Staged(run(), path(text))
    }

    fn published(text: &str, etag: &str) -> Node {
        let file = RemoteFile {
            key: ObjectKey::from_listing(text),
            size_bytes: 1,
            etag: Some(ETag::from_server(etag)),
            modified: std::time::SystemTime::UNIX_EPOCH,
        };
        Node::Published(run(), path(text), Arc::new(file))
    }

    #[test]
    fn a_version_is_an_inode() {
        let table = InodeTable::default();
        let first = table.lookup(published("a", "1"));
        assert_eq!(table.lookup(published("a", "1")), first);
        assert_ne!(table.lookup(published("a", "2")), first);
        assert_ne!(table.lookup(staged("a")), first);
    }

    #[test]
    fn numbers_live_as_long_as_the_kernel_knows_them_and_never_again() {
        let table = InodeTable::default();
        let ino = table.lookup(staged("a"));
        table.lookup(staged("a"));
        table.forget(ino, 1);
        assert_eq!(table.get(ino), Some(staged("a")));
        table.forget(ino, 1);
        assert_eq!(table.get(ino), None);
        assert_ne!(table.lookup(staged("a")), ino);
        assert_eq!(table.get(ROOT), Some(Node::Root));
    }

    #[test]
    fn a_rename_keeps_the_inode_and_orphans_what_was_there() {
        let table = InodeTable::default();
        let a = table.lookup(staged("a"));
        let b = table.lookup(staged("b"));
        table.rename(&run(), &path("a"), &path("b"));
        assert_eq!(table.get(a), Some(staged("b")));
        assert_eq!(table.get(b), Some(Node::Unlinked(run())));
        assert_eq!(table.lookup(staged("b")), a);
        table.forget(b, 1); // the orphan goes, and does not take the new owner's name with it
        assert_eq!(table.number(&staged("b")), Some(a));
    }

    #[test]
    fn who_leaves_staging_is_remembered_as_long_as_the_kernel_knows_it() {
        let table = InodeTable::default();
        let (a, b) = (table.lookup(staged("a")), table.lookup(staged("b")));
        table.leave(&run(), &path("a"));
        table.unlink(&run(), &path("b"));
        assert_eq!((table.get(a), table.left_from(a)), (Some(Node::Unlinked(run())), Some(path("a"))));
        assert_eq!((table.get(b), table.left_from(b)), (Some(Node::Unlinked(run())), None));
        assert_ne!(table.lookup(staged("a")), a);
        table.forget(a, 1);
        assert_eq!(table.left_from(a), None);
    }

    #[test]
    fn a_directory_made_anew_is_another_one() {
        let table = InodeTable::default();
        let node = || Node::Directory(run(), path("d").into());
        let old = table.lookup(node());
        table.remove_dir(&run(), &path("d").into());
        assert_ne!(table.lookup(node()), old);
        assert_eq!(table.get(old), Some(Node::Unlinked(run())));
    }

    #[test]
    fn a_renamed_directory_takes_everything_below_it_along() {
        let table = InodeTable::default();
        let dir = table.lookup(Node::Directory(run(), path("d").into()));
        let file = table.lookup(staged("d/x"));
        let beside = table.lookup(staged("dx"));
        table.rename(&run(), &path("d"), &path("e/f"));
        assert_eq!(table.get(dir), Some(Node::Directory(run(), path("e/f").into())));
        assert_eq!(table.get(file), Some(staged("e/f/x")));
        assert_eq!(table.get(beside), Some(staged("dx")));
    }
}
