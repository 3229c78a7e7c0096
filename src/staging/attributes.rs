//! Lengths, permission bits and times of what is staged. What is sealed keeps its own.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;

use crate::name::RelPath;
use crate::staging::StagedKind;
use crate::staging::StagedState;
use crate::staging::StagingError;
use crate::staging::dataset::StagedDataset;
use crate::staging::dataset::find;
use crate::staging::dataset::os_error;
use crate::staging::tree;
use crate::staging::tree::Tree;

impl StagedDataset {
    /// Runs a change of something in the open tree; what is sealed cannot be changed.
    fn change<T>(
        &self,
        path: &RelPath,
        change: impl FnOnce(&Tree, &Stat) -> io::Result<T>,
    ) -> Result<T, StagingError> {
        let trees = self.trees.read();
        let failed = |source| self.failed(path, source);
        match (find(&trees, path).map_err(failed)?, &trees.open) {
            (Some((stat, StagedState::Open)), Some(tree)) => change(tree, &stat).map_err(failed),
            (Some((_, StagedState::Sealed)), _) => Err(StagingError::Sealed { path: path.clone() }),
            _ => Err(failed(os_error(libc::ENOENT))),
        }
    }

    /// Makes a file longer or shorter.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EACCES, [`StagingError::Sealed`], and the local disk's others.
    pub fn set_len(&self, path: &RelPath, len: u64) -> Result<(), StagingError> {
        self.change(path, |tree, stat| {
            if tree::kind_of(stat) != Some(StagedKind::File) {
                return Err(os_error(libc::EISDIR));
            }
            Ok(rustix::fs::ftruncate(tree.file(path, OFlags::WRONLY)?, len)?)
        })
    }

    /// Sets the permission bits. The owner can always read, and enter directories: a commit has to.
    ///
    /// # Errors
    /// ENOENT, [`StagingError::Sealed`], and the local disk's others.
    pub fn set_mode(&self, path: &RelPath, mode: u32) -> Result<(), StagingError> {
        self.change(path, |tree, stat| {
            let kind = tree::kind_of(stat).ok_or_else(|| os_error(libc::ENOENT))?;
            let implicit = Mode::from_raw_mode(stat.st_mode) & Mode::SVTX;
            let parent = tree.dir(&path.parent())?;
            Ok(set_mode_at(&parent, path.file_name(), tree::mode_for(kind, mode) | implicit)?)
        })
    }

    /// Sets the times; `None` leaves one as it is.
    ///
    /// # Errors
    /// ENOENT, [`StagingError::Sealed`], and the local disk's others.
    pub fn set_times(
        &self,
        path: &RelPath,
        accessed: Option<SystemTime>,
        modified: Option<SystemTime>,
    ) -> Result<(), StagingError> {
        self.change(path, |tree, _| {
            let times = Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
            let parent = tree.dir(&path.parent())?;
            Ok(rustix::fs::utimensat(&parent, path.file_name(), &times, AtFlags::SYMLINK_NOFOLLOW)?)
        })
    }
}

/// Sets the permission bits of a name in a directory.
pub(super) fn set_mode_at(parent: &OwnedFd, name: &str, mode: Mode) -> rustix::io::Result<()> {
    // Through a descriptor, since chmod by name would follow a link.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(parent, OsStr::new(name), flags, Mode::empty())?;
    rustix::fs::fchmod(fd, mode)
}

fn timespec(time: Option<SystemTime>) -> Timespec {
    let Some(time) = time else { return Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT } };
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        },
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            let seconds: i64 = before.as_secs().try_into().unwrap_or(i64::MAX - 1);
            let nanoseconds = (1_000_000_000 - i64::from(before.subsec_nanos())) % 1_000_000_000;
            Timespec { tv_sec: -seconds - borrow, tv_nsec: nanoseconds }
        }
    }
}
