//! What a program has to know to go on with a mount that another one has served.
//!
//! The kernel goes on with the inode numbers and handles that it was given: each lookup of an inode is
//! counted, each handle is of one version, a staged file may be open without a name. None of it can be
//! guessed, so all of it is written down, item by item, when nothing is under way; open local files go
//! along as descriptors, which stay open under their numbers through an exec.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::fs::DatasetFs;
use crate::fs::dir::DirSnapshot;
use crate::fs::dir::Written;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::read::ObjectVersion;
use crate::staging::StagedState;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;

/// One thing to know. Those that others refer to come first.
#[derive(Debug, Serialize, Deserialize)]
pub enum Item {
    /// An inode, and how often the kernel has looked it up.
    Inode(Ino, u64, Node),
    /// The last inode and handle numbers that were given.
    Last(Ino, u64),
    /// An inode that the kernel reads and writes without us, and its file.
    Passed(Ino, RawFd),
    /// An open published file.
    Published(u64, Ino, ObjectVersion),
    /// An open staged file.
    Staged(u64, Ino, OpenStaged),
    /// An open directory.
    Directory(u64, Box<Written>),
}

/// An open staged file.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenStaged {
    dataset: DatasetName,
    path: Option<RelPath>,
    state: StagedState,
    writable: bool,
    fd: RawFd,
}

impl Item {
    /// The descriptor that goes along.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Passed(_, fd) => Some(*fd),
            Self::Staged(_, _, staged) => Some(staged.fd),
            Self::Inode(..) | Self::Last(..) | Self::Published(..) | Self::Directory(..) => None,
        }
    }
}

/// Files that the kernel reads without us, while handles are put back.
#[derive(Debug, Default)]
pub struct Passed {
    files: HashMap<Ino, Arc<File>>,
    /// By the number that was written down: a version that is shown at several places, as at `run/x` and
    /// `run@1/x`, is several inodes over one descriptor, which has one owner.
    descriptors: HashMap<RawFd, Arc<File>>,
}

impl Passed {
    fn file(
        &mut self,
        number: RawFd,
        adopt: impl FnOnce(RawFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<File>> {
        Ok(Arc::clone(match self.descriptors.entry(number) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(new) => new.insert(Arc::new(File::from(adopt(number)?))),
        }))
    }
}

impl DatasetFs {
    /// Calls `each` with everything that the next program has to know. Nothing may be under way.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn hand_over(&self, mut each: impl FnMut(&Item) -> io::Result<()>) -> io::Result<()> {
        let last =
            self.inodes.for_each(|ino, lookups, node| each(&Item::Inode(ino, lookups, node.clone())))?;
        each(&Item::Last(last, self.open.last()))?;
        for (ino, file) in self.open.passed() {
            each(&Item::Passed(ino, file.as_raw_fd()))?;
        }
        for (fh, handle) in self.open.handles() {
            each(&match &*handle {
                Handle::Published(ino, read) => Item::Published(fh, *ino, read.object().version().clone()),
                Handle::Staged(ino, file) => {
                    let (dataset, path, state) = (file.dataset().clone(), file.path(), file.state());
                    let (writable, fd) = (file.is_writable(), file.as_raw_fd());
                    Item::Staged(fh, *ino, OpenStaged { dataset, path, state, writable, fd })
                }
                Handle::Directory(snapshot) => Item::Directory(fh, Box::new(snapshot.write())),
            })?;
        }
        Ok(())
    }

    /// Takes an item in; `adopt` is asked once for each descriptor that is named by any of them. Nothing may
    /// have been asked of this file system yet.
    ///
    /// # Errors
    /// The local disk's, and those of `adopt`.
    pub fn take_over(
        &self,
        item: Item,
        adopt: impl FnOnce(RawFd) -> io::Result<OwnedFd>,
        passed: &mut Passed,
    ) -> io::Result<()> {
        let mode =
            |ino| passed.files.get(&ino).map_or(IoMode::Cached, |file| IoMode::Passthrough(Arc::clone(file)));
        match item {
            Item::Inode(ino, lookups, node) => self.inodes.restore(ino, lookups, node),
            Item::Last(ino, fh) => {
                self.inodes.begin_behind(ino);
                self.open.begin_behind(fh);
            }
            Item::Passed(ino, number) => {
                let file = passed.file(number, adopt)?;
                passed.files.insert(ino, file);
            }
            Item::Published(fh, ino, version) => {
                // Who keeps what is read of it is known when the kernel is attached.
                let handle = self.reader.open(version).handle();
                self.open.restore(fh, Handle::Published(ino, handle), mode(ino), None);
            }
            Item::Staged(fh, ino, staged) => {
                let dataset = self.tree.staging().known_dataset(&staged.dataset).map_err(io::Error::other)?;
                let file = File::from(adopt(staged.fd)?);
                let file = dataset.adopt_file(file, staged.path.as_ref(), staged.state, staged.writable)?;
                let local = Arc::new(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
                self.open.restore(fh, Handle::Staged(ino, file), mode(ino), Some(local));
            }
            Item::Directory(fh, written) => {
                let snapshot = Arc::new(DirSnapshot::read(*written));
                self.open.restore(fh, Handle::Directory(snapshot), IoMode::Cached, None);
            }
        }
        Ok(())
    }
}
