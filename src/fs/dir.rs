//! Listing directories.
//!
//! `opendir` takes the whole merged level once, and `readdir` pages through that snapshot by
//! position: a directory that changes while it is read is seen as it was, and no entry is
//! seen twice or missed.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::fs::DatasetFs;
use crate::fs::Entry;
use crate::fs::PUBLISHED_ATTR_TTL;
use crate::fs::attr::Kind;
use crate::fs::error::FsError;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::fs::past;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::staging::BaseKind;
use crate::tree::Answer;
use crate::tree::Entries;
use crate::tree::Found;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;
use crate::tree::inode::ROOT;

/// What `readdir` says of an inode that the kernel has not looked up: that it does not know
/// the number, in the kernel's own convention.
pub(super) const INO_UNKNOWN: Ino = 0xffff_ffff;

/// A directory as it was when it was opened.
#[derive(Debug)]
pub struct DirSnapshot {
    node: Node,
    expires: Instant,
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

/// What `readdirplus` is told of an entry.
#[derive(Debug)]
pub enum DirLookup {
    /// It was looked up.
    Entry(Entry),
    /// `.` or `..`, which are not looked up.
    Dots,
    /// It has gone since the directory was opened.
    Gone,
}

/// A [`DirSnapshot`] as it is handed to another program.
pub(super) type Written = (Node, Duration, Vec<(Arc<str>, Kind, Ino, Option<Found>)>);

impl DirSnapshot {
    pub(super) fn write(&self) -> Written {
        let left = self.expires.saturating_duration_since(Instant::now());
        let entry = |entry: &DirEntry| (Arc::clone(&entry.name), entry.kind, entry.ino, entry.found.clone());
        (self.node.clone(), left, self.entries.iter().map(entry).collect())
    }

    pub(super) fn read((node, left, entries): Written) -> Self {
        let entries = entries.into_iter().map(|(name, kind, ino, found)| DirEntry { name, kind, ino, found });
        Self { node, expires: Instant::now() + left, entries: entries.collect() }
    }

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
            Node::PastDirectory(id, dir, _) => {
                let (listing, parent) = self.past_dir(id, dir).await?;
                let entries =
                    listing.entries.iter().map(|(name, entry)| (Arc::clone(name), past::found(entry)));
                (Answer { value: entries.collect(), ttl: PUBLISHED_ATTR_TTL }, parent)
            }
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) | Node::PastFile(..) => {
                return Err(FsError::NotDirectory);
            }
        };
        let entries = self.dir_entries(&node, ino, parent, answer.value);
        let snapshot = Arc::new(DirSnapshot { node, expires: Instant::now() + answer.ttl, entries });
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

    /// Looks an entry of a snapshot up, as `readdirplus` does. Whoever does not give it to the kernel must forget it.
    ///
    /// What is staged is asked for again: the kernel believes these attributes, and a size from
    /// when the directory was opened would cut off what has been appended since.
    ///
    /// # Errors
    /// The staging disk's.
    pub fn lookup_entry(&self, snapshot: &DirSnapshot, entry: &DirEntry) -> Result<DirLookup, FsError> {
        let Some(found) = &entry.found else { return Ok(DirLookup::Dots) };
        let ttl = snapshot.expires.saturating_duration_since(Instant::now());
        match &snapshot.node {
            Node::Root => {
                let dataset = DatasetName::parse(&entry.name)?;
                Ok(DirLookup::Entry(self.entry(Node::Directory(dataset, DirPath::root()), found, ttl)))
            }
            Node::Directory(dataset, dir) => {
                let path = dir.child(&entry.name)?;
                let now = self.found_now(dataset, &path, found)?;
                Ok(now.map_or(DirLookup::Gone, |now| {
                    DirLookup::Entry(self.entry_at(dataset, &path, &now, ttl))
                }))
            }
            Node::PastDirectory(id, dir, time) => {
                let node = past::node(id, dir.child(&entry.name)?, found, *time);
                Ok(DirLookup::Entry(self.past_entry(node)))
            }
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) | Node::PastFile(..) => {
                Err(FsError::NotDirectory)
            }
        }
    }

    /// What a snapshot's entry has become, as far as this machine has changed it; `None`: it is gone.
    fn found_now(
        &self,
        dataset: &DatasetName,
        path: &RelPath,
        found: &Found,
    ) -> Result<Option<Found>, FsError> {
        let Some(staged) = self.tree.staging().dataset(dataset) else {
            let published = matches!(found, Found::Published(_) | Found::Directory(None));
            return Ok(published.then(|| found.clone()));
        };
        if let Some(attr) = staged.lookup(path)? {
            return Ok(Some(Found::staged(attr)));
        }
        let is_there = match found {
            Found::Published(_) => !staged.base(path).is_some_and(|base| base.kind == BaseKind::Delete),
            Found::Directory(None) => !self.tree.is_removed(dataset, path),
            Found::Directory(Some(_)) | Found::Staged(_) => false,
        };
        Ok(is_there.then(|| found.clone()))
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
            Node::PastDirectory(id, dir, time) => past::node(id, dir.child(name).ok()?, found, *time),
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) | Node::PastFile(..) => return None,
        };
        self.inodes.number(&node)
    }

    fn parent_number(&self, dataset: &DatasetName, dir: &DirPath) -> Ino {
        let Some(path) = dir.as_path() else { return ROOT };
        let parent = Node::Directory(dataset.clone(), path.parent());
        self.inodes.number(&parent).unwrap_or(INO_UNKNOWN)
    }
}
