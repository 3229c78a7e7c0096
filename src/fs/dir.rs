//! Listing directories.
//!
//! `opendir` takes the whole merged level once, and `readdir` pages through that snapshot by
//! position: a directory that changes while it is read is seen as it was, and no entry is
//! seen twice or missed.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::DatasetFs;
use crate::fs::Entry;
use crate::fs::attr::Kind;
use crate::fs::error::FsError;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::tree::Entries;
use crate::tree::Found;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;
use crate::tree::inode::ROOT;

/// What `readdir` says of an inode that the kernel has not looked up: that it does not know
/// the number, in the kernel's own convention.
const INO_UNKNOWN: Ino = 0xffff_ffff;

/// A directory as it was when it was opened.
#[derive(Debug)]
pub struct DirSnapshot {
    node: Node,
    ttl: Duration,
    entries: Vec<DirEntry>,
}

/// One entry.
#[derive(Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: Kind,
    /// Its number, if the kernel has it already.
    pub ino: Ino,
    /// `None` for `.` and `..`.
    found: Option<Found>,
}

impl DirSnapshot {
    /// The entries from a position on, each with the position behind it.
    pub fn from(&self, offset: u64) -> impl Iterator<Item = (u64, &DirEntry)> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.entries.len());
        (offset + 1..).zip(&self.entries[start..])
    }
}

impl DatasetFs {
    /// Opens a directory.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`], and the tree's.
    pub async fn opendir(&self, ino: Ino) -> Result<u64, FsError> {
        let node = self.node(ino)?;
        let (answer, parent) = match &node {
            Node::Root => (self.tree.datasets().await?, ROOT),
            Node::Directory(dataset, dir) => {
                (self.tree.read_dir(dataset, dir).await?, self.parent_number(dataset, dir))
            }
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) => return Err(FsError::NotDirectory),
        };
        let entries = self.dir_entries(&node, ino, parent, answer.value);
        let snapshot = Arc::new(DirSnapshot { node, ttl: answer.ttl, entries });
        let (fh, _) = self.open.insert(Handle::Directory(snapshot), IoMode::Cached, None);
        Ok(fh)
    }

    /// The snapshot of an open directory.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn snapshot(&self, fh: u64) -> Result<Arc<DirSnapshot>, FsError> {
        match &*self.open.get(fh)? {
            Handle::Directory(snapshot) => Ok(Arc::clone(snapshot)),
            Handle::Published(..) | Handle::Staged(..) => Err(FsError::BadHandle(fh)),
        }
    }

    /// Looks an entry of a snapshot up, as `readdirplus` does; `None` for `.` and `..`, which
    /// are not looked up. Whoever does not give the entry to the kernel must forget it.
    #[must_use]
    pub fn lookup_entry(&self, snapshot: &DirSnapshot, entry: &DirEntry) -> Option<Entry> {
        let found = entry.found.as_ref()?;
        match &snapshot.node {
            Node::Root => {
                let dataset = DatasetName::parse(&entry.name).ok()?;
                Some(self.entry(Node::Directory(dataset, DirPath::root()), found, snapshot.ttl))
            }
            Node::Directory(dataset, dir) => {
                let path = dir.child(&entry.name).ok()?;
                Some(self.entry_at(dataset, &path, found, snapshot.ttl))
            }
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) => None,
        }
    }

    fn dir_entries(&self, node: &Node, ino: Ino, parent: Ino, found: Entries) -> Vec<DirEntry> {
        let mut entries = Vec::with_capacity(found.len() + 2);
        for (name, ino) in [(".", ino), ("..", parent)] {
            entries.push(DirEntry { name: name.into(), kind: Kind::Directory, ino, found: None });
        }
        entries.extend(found.into_iter().map(|(name, found)| {
            let kind = match &found {
                Found::Directory(_) => Kind::Directory,
                Found::Staged(_) | Found::Published(_) => Kind::File,
            };
            let ino = self.known_number(node, &name, &found).unwrap_or(INO_UNKNOWN);
            DirEntry { name, kind, ino, found: Some(found) }
        }));
        entries
    }

    fn known_number(&self, parent: &Node, name: &str, found: &Found) -> Option<Ino> {
        let node = match parent {
            Node::Directory(dataset, dir) => {
                let path = dir.child(name).ok()?;
                match found {
                    Found::Directory(_) => Node::Directory(dataset.clone(), path.into()),
                    Found::Staged(_) => Node::Staged(dataset.clone(), path),
                    Found::Published(file) => Node::Published(dataset.clone(), path, Arc::new(file.clone())),
                }
            }
            Node::Root => Node::Directory(DatasetName::parse(name).ok()?, DirPath::root()),
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) => return None,
        };
        self.inodes.number(&node)
    }

    fn parent_number(&self, dataset: &DatasetName, dir: &DirPath) -> Ino {
        let Some(path) = dir.as_path() else { return ROOT };
        let parent = Node::Directory(dataset.clone(), path.parent());
        self.inodes.number(&parent).unwrap_or(INO_UNKNOWN)
    }
}
