//! `NAME@SEQ` beside the datasets: what a dataset held after one of its commits, for reading only.
//!
//! Not listed at the top, since there is one for each commit, but there for whoever asks. A dataset
//! that has such a name itself comes first. Files are opened by the version that was committed and
//! share the cache with the live tree; where that version is gone from the bucket, what is cached of
//! it can still be read, and anything else is ESTALE. Inodes are the snapshot's own.

use std::sync::Arc;
use std::time::SystemTime;

use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::snapshots::SnapshotId;
use crate::fs::DatasetFs;
use crate::fs::Entry;
use crate::fs::PUBLISHED_ATTR_TTL;
use crate::fs::error::FsError;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::Revision;
use crate::tree::Found;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;
use crate::tree::inode::ROOT;

/// The past state that a name at the top of the mount stands for, if it can be one.
fn named(name: &DatasetName) -> Option<SnapshotId> {
    let Revision { dataset, seq } = Revision::parse(name.as_str()).ok()?;
    Some(SnapshotId { dataset, seq: seq? })
}

/// Whether a name may come to stand for a past state at any time.
pub(super) fn may_be_past(name: &DatasetName) -> bool {
    named(name).is_some()
}

/// The node of a directory of a past state.
pub(super) fn directory(id: &SnapshotId, dir: DirPath, time: SystemTime) -> Node {
    Node::PastDirectory(id.clone(), dir, time)
}

/// The node of an entry of a past directory.
pub(super) fn node(id: &SnapshotId, path: RelPath, entry: &Found, time: SystemTime) -> Node {
    match entry {
        Found::Published(file) => Node::PastFile(id.clone(), path, Arc::new(file.clone())),
        Found::Directory(_) | Found::Staged(_) => directory(id, path.into(), time),
    }
}

/// What a listing has, as the merged tree has it.
pub(super) fn found(entry: &RemoteEntry) -> Found {
    match entry {
        RemoteEntry::Directory => Found::Directory(None),
        RemoteEntry::File(file) => Found::Published(file.clone()),
    }
}

impl DatasetFs {
    /// The past state of this name; `None` if it names none, or there is no such commit.
    pub(super) async fn past_root(&self, name: &DatasetName) -> Result<Option<Node>, FsError> {
        let Some(id) = named(name) else { return Ok(None) };
        let tree = self.tree.catalog().past(&id).await?;
        Ok(tree.map(|tree| directory(&id, DirPath::root(), tree.time)))
    }

    /// Whether the kernel knows this name as that of a past state.
    pub(super) fn is_shown_past(&self, name: &DatasetName) -> bool {
        // The time is not part of what identifies it.
        let root = |id| directory(&id, DirPath::root(), SystemTime::UNIX_EPOCH);
        named(name).is_some_and(|id| self.inodes.number(&root(id)).is_some())
    }

    /// What a past state has at a path.
    pub(super) async fn past_lookup(&self, id: &SnapshotId, path: &RelPath) -> Result<Option<Node>, FsError> {
        let tree = self.tree.catalog().past(id).await?.ok_or(FsError::Stale)?;
        Ok(tree.lookup(path).map(|entry| node(id, path.clone(), &found(entry), tree.time)))
    }

    /// A directory of a past state, and its parent's number.
    pub(super) async fn past_dir(
        &self,
        id: &SnapshotId,
        dir: &DirPath,
    ) -> Result<(Arc<Listing>, Ino), FsError> {
        let tree = self.tree.catalog().past(id).await?.ok_or(FsError::Stale)?;
        let listing = tree.listing(dir).ok_or(FsError::Stale)?;
        let parent = match dir.as_path() {
            None => ROOT,
            Some(path) => {
                let parent = directory(id, path.parent(), tree.time);
                self.inodes.number(&parent).unwrap_or(super::dir::INO_UNKNOWN)
            }
        };
        Ok((Arc::clone(listing), parent))
    }

    /// A past directory or file as it is given to the kernel: neither it nor its name ever changes.
    pub(super) fn past_entry(&self, node: Node) -> Entry {
        let ino = self.inodes.lookup(node.clone());
        let attr = match &node {
            Node::PastFile(_, _, file) => self.rules.past_file(ino, file),
            Node::PastDirectory(_, _, time) => self.rules.past_directory(ino, *time),
            Node::Root | Node::Directory(..) | Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) => {
                unreachable!("made above")
            }
        };
        Entry { attr, entry_ttl: PUBLISHED_ATTR_TTL, attr_ttl: PUBLISHED_ATTR_TTL }
    }
}
