//! Open files: handles, and the one I/O mode of each open inode.
//!
//! The kernel refuses (EIO) to open an inode in one mode while it is open in another, and
//! refuses passthrough to two different files. So the mode is chosen by whoever opens an inode
//! first, under the table's lock, and stays until the last one has closed it. A release that
//! the kernel sends late only makes this more careful.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use parking_lot::RwLock;

use crate::fs::dir::DirSnapshot;
use crate::fs::error::FsError;
use crate::read::ReadHandle;
use crate::staging::StagedFile;
use crate::tree::inode::Ino;

/// How the kernel reads and writes an open inode.
#[derive(Clone, Debug)]
pub enum IoMode {
    /// Through us, and through the kernel's page cache.
    Cached,
    /// Straight from and to this local file, without us.
    Passthrough(Arc<File>),
}

/// What `open` answers.
#[derive(Debug)]
pub struct Opened {
    /// The handle's number.
    pub fh: u64,
    /// The inode's mode.
    pub mode: IoMode,
    /// Open for writing.
    pub writable: bool,
}

/// An open file or directory.
#[derive(Debug)]
pub enum Handle {
    /// A published file, with the state of its reader.
    Published(Ino, ReadHandle),
    /// A staged file.
    Staged(Ino, StagedFile),
    /// A directory, as it was when it was opened.
    Directory(Arc<DirSnapshot>),
}

impl Handle {
    fn ino(&self) -> Option<Ino> {
        match self {
            Self::Published(ino, _) | Self::Staged(ino, _) => Some(*ino),
            Self::Directory(_) => None,
        }
    }
}

#[derive(Debug)]
struct OpenInode {
    handles: u64,
    mode: IoMode,
    /// A staged inode's file: answers for it when it has no name any more.
    local: Option<Arc<File>>,
}

/// All handles of a mount.
#[derive(Debug, Default)]
pub struct OpenTable {
    last: AtomicU64,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    inodes: Mutex<HashMap<Ino, OpenInode>>,
}

impl OpenTable {
    /// Adds a handle. If nobody has the inode open yet, `mode` becomes its mode.
    pub fn insert(&self, handle: Handle, mode: IoMode, local: Option<Arc<File>>) -> (u64, IoMode) {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut chosen = mode;
        if let Some(ino) = handle.ino() {
            let mut inodes = self.inodes.lock();
            let fresh = OpenInode { handles: 0, mode: chosen, local };
            let open = inodes.entry(ino).or_insert(fresh);
            open.handles += 1;
            chosen = open.mode.clone();
        }
        self.handles.write().insert(fh, Arc::new(handle));
        (fh, chosen)
    }

    /// The handle of a number.
    ///
    /// # Errors
    /// [`FsError::BadHandle`].
    pub fn get(&self, fh: u64) -> Result<Arc<Handle>, FsError> {
        self.handles.read().get(&fh).cloned().ok_or(FsError::BadHandle(fh))
    }

    /// Closes a handle. If it was the last of its inode, returns it, and the inode's mode.
    pub fn remove(&self, fh: u64) -> Option<(Arc<Handle>, IoMode)> {
        let handle = self.handles.write().remove(&fh)?;
        let ino = handle.ino()?;
        let mut inodes = self.inodes.lock();
        let open = inodes.get_mut(&ino)?;
        open.handles -= 1;
        if open.handles > 0 {
            return None;
        }
        let last = inodes.remove(&ino)?;
        Some((handle, last.mode))
    }

    /// The mode of an open inode.
    #[must_use]
    pub fn mode(&self, ino: Ino) -> Option<IoMode> {
        self.inodes.lock().get(&ino).map(|open| open.mode.clone())
    }

    /// Gives up passthrough for an inode that the kernel did not take.
    pub fn fall_back(&self, ino: Ino) {
        if let Some(open) = self.inodes.lock().get_mut(&ino) {
            open.mode = IoMode::Cached;
        }
    }

    /// The local file of an open staged inode.
    #[must_use]
    pub fn local_file(&self, ino: Ino) -> Option<Arc<File>> {
        self.inodes.lock().get(&ino).and_then(|open| open.local.clone())
    }

    /// All handles, by number.
    pub(super) fn handles(&self) -> Vec<(u64, Arc<Handle>)> {
        self.handles.read().iter().map(|(fh, handle)| (*fh, Arc::clone(handle))).collect()
    }

    /// The files that the kernel reads and writes without us, by inode.
    pub(super) fn passed(&self) -> Vec<(Ino, Arc<File>)> {
        let inodes = self.inodes.lock();
        let passed = inodes.iter().filter_map(|(ino, open)| match &open.mode {
            IoMode::Passthrough(file) => Some((*ino, Arc::clone(file))),
            IoMode::Cached => None,
        });
        passed.collect()
    }

    /// The last number that was given.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Puts a handle back that an earlier table had.
    pub(super) fn restore(&self, fh: u64, handle: Handle, mode: IoMode, local: Option<Arc<File>>) {
        if let Some(ino) = handle.ino() {
            let fresh = OpenInode { handles: 0, mode, local };
            self.inodes.lock().entry(ino).or_insert(fresh).handles += 1;
        }
        self.handles.write().insert(fh, Arc::new(handle));
    }

    /// Gives no number up to this one.
    pub(super) fn begin_behind(&self, last: u64) {
        self.last.fetch_max(last, Ordering::Relaxed);
    }

    /// How many files and directories are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.read().len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::DatasetName;
    use crate::name::RelPath;
    use crate::staging::Holder;
    use crate::staging::Staging;

    /// A handle of a staged file; each call makes another file.
    fn staged(ino: Ino, dir: &tempfile::TempDir) -> Handle {
        let holder = Holder { pid: std::process::id(), ..Holder::default() };
        let dir = tempfile::tempdir_in(dir).unwrap();
        let staging = Staging::open(dir.path(), &holder).unwrap();
        let dataset = staging.create_dataset(&DatasetName::parse("run").unwrap()).unwrap();
        Handle::Staged(ino, dataset.create_file(&RelPath::parse("a").unwrap(), 0o644).unwrap())
    }

    #[test]
    fn the_first_open_chooses_the_mode_and_the_last_close_forgets_it() {
        let (table, dir) = (OpenTable::default(), tempfile::tempdir().unwrap());
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (first, mode) = table.insert(staged(7, &dir), IoMode::Cached, None);
        assert!(matches!(mode, IoMode::Cached));
        let (second, mode) = table.insert(staged(7, &dir), IoMode::Passthrough(Arc::clone(&file)), None);
        assert!(matches!(mode, IoMode::Cached), "sticky while open");
        table.remove(first);
        assert!(table.mode(7).is_some());
        table.remove(second);
        assert!(table.mode(7).is_none());
        let (_, mode) = table.insert(staged(7, &dir), IoMode::Passthrough(file), None);
        assert!(matches!(mode, IoMode::Passthrough(_)));
    }

    #[test]
    fn a_closed_handle_is_a_bad_handle() {
        let (table, dir) = (OpenTable::default(), tempfile::tempdir().unwrap());
        let (fh, _) = table.insert(staged(7, &dir), IoMode::Cached, None);
        assert!(table.get(fh).is_ok());
        table.remove(fh);
        assert!(matches!(table.get(fh), Err(FsError::BadHandle(bad)) if bad == fh));
        table.remove(fh);
    }
}
