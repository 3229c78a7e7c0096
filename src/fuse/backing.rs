//! Files that the kernel reads and writes without us.
//!
//! An open inode has at most one backing id, whoever opens it: the kernel refuses two. So ids
//! are made under one lock, and kept from an inode's first open to its last release. The kernel knows them
//! by number, across programs too: [`Backings::numbers`] and [`Backings::adopt`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::fs::DatasetFs;
use crate::fs::open::IoMode;
use crate::fs::open::Opened;
use crate::tree::inode::Ino;

/// The kernel's FUSE_DEV_IOC_BACKING_CLOSE.
const BACKING_CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);

/// The backing ids of the open inodes.
#[derive(Debug, Default)]
pub(super) struct Backings {
    ids: Mutex<HashMap<Ino, Backing>>,
}

#[derive(Debug)]
enum Backing {
    Ours(Arc<BackingId>),
    /// Registered, and nobody's until the inode is opened once more.
    Number(u32, Arc<OwnedFd>),
}

impl Backings {
    /// The id for an inode that was opened for passthrough; `None` if it goes through us. If
    /// the kernel refuses the file, the inode falls back to going through us.
    pub(super) fn of(
        &self,
        fs: &DatasetFs,
        ino: Ino,
        opened: &Opened,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
        wrap: impl FnOnce(u32) -> BackingId,
    ) -> Option<Arc<BackingId>> {
        if matches!(opened.mode, IoMode::Cached) {
            return None;
        }
        let mut ids = self.ids.lock();
        match ids.get(&ino) {
            Some(Backing::Ours(id)) => return Some(Arc::clone(id)),
            Some(Backing::Number(number, _)) => {
                let id = Arc::new(wrap(*number));
                ids.insert(ino, Backing::Ours(Arc::clone(&id)));
                return Some(id);
            }
            None => {}
        }
        // Asked again under the lock: another open may have fallen back meanwhile.
        let IoMode::Passthrough(file) = fs.open_table().mode(ino)? else { return None };
        match register(&file) {
            Ok(id) => {
                let id = Arc::new(id);
                ids.insert(ino, Backing::Ours(Arc::clone(&id)));
                Some(id)
            }
            Err(err) => {
                fs.not_taken(ino, &err);
                None
            }
        }
    }

    /// Drops the id of an inode that nobody has open any more.
    pub(super) fn release(&self, fs: &DatasetFs, ino: Ino) {
        let mut ids = self.ids.lock();
        if fs.open_table().mode(ino).is_none()
            && let Some(Backing::Number(number, device)) = ids.remove(&ino)
            && let Err(err) = close(&device, number)
        {
            tracing::debug!("the kernel keeps the file of inode {ino} open: {err}");
        }
    }

    /// The numbers of all ids, by inode. They stay registered from now on until the inode is released here,
    /// or in the program that adopts them.
    pub(super) fn numbers(&self, device: &Arc<OwnedFd>) -> Vec<(Ino, u32)> {
        let mut ids = self.ids.lock();
        let numbers = std::mem::take(&mut *ids).into_iter().filter_map(|(ino, backing)| match backing {
            Backing::Number(number, _) => Some((ino, number)),
            Backing::Ours(id) => Some((ino, Arc::into_inner(id)?.into_raw())), // no reply is under way
        });
        let numbers: Vec<(Ino, u32)> = numbers.collect();
        ids.extend(numbers.iter().map(|(ino, number)| (*ino, Backing::Number(*number, Arc::clone(device)))));
        numbers
    }

    /// Takes in what the program before this one had registered.
    pub(super) fn adopt(&self, numbers: &[(Ino, u32)], device: &Arc<OwnedFd>) {
        let numbered = |(ino, number): &(Ino, u32)| (*ino, Backing::Number(*number, Arc::clone(device)));
        self.ids.lock().extend(numbers.iter().map(numbered));
    }
}

#[expect(unsafe_code, reason = "an ioctl of /dev/fuse, which no safe wrapper knows")]
fn close(device: &OwnedFd, number: u32) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads a number of 32 bits, and nothing of ours.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<BACKING_CLOSE, u32>::new(number)) }
}
