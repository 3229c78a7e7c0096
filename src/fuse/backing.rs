//! Files that the kernel reads and writes without us.
//!
//! An open inode has at most one backing id, whoever opens it: the kernel refuses two. So ids
//! are made under one lock, and kept from an inode's first open to its last release.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::fs::DatasetFs;
use crate::fs::open::IoMode;
use crate::fs::open::Opened;
use crate::tree::inode::Ino;

/// The backing ids of the open inodes.
#[derive(Debug, Default)]
pub(super) struct Backings {
    ids: Mutex<HashMap<Ino, Arc<BackingId>>>,
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
    ) -> Option<Arc<BackingId>> {
        if matches!(opened.mode, IoMode::Cached) {
            return None;
        }
        let mut ids = self.ids.lock();
        if let Some(id) = ids.get(&ino) {
            return Some(Arc::clone(id));
        }
        // Asked again under the lock: another open may have fallen back meanwhile.
        let IoMode::Passthrough(file) = fs.open_table().mode(ino)? else { return None };
        match register(&file) {
            Ok(id) => {
                let id = Arc::new(id);
                ids.insert(ino, Arc::clone(&id));
                Some(id)
            }
            Err(err) => {
                tracing::debug!("inode {ino} is read through the daemon: {err}");
                fs.open_table().fall_back(ino);
                None
            }
        }
    }

    /// Drops the id of an inode that nobody has open any more.
    pub(super) fn release(&self, fs: &DatasetFs, ino: Ino) {
        let mut ids = self.ids.lock();
        if fs.open_table().mode(ino).is_none() {
            ids.remove(&ino);
        }
    }
}
