//! When a version was used last, as other processes can see it: from a time of its file.

use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_NOW;
use rustix::fs::UTIME_OMIT;

/// The time that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastUse {
    /// Of a file that the cache has made: when it was modified.
    Modified,
    /// Of one that was taken over under a second name: when its inode changed. The time of modification
    /// is still its first owner's, who may have it open.
    Changed,
}

impl LastUse {
    /// Seconds since 1970.
    pub(crate) fn seconds(self, meta: &Metadata) -> u64 {
        let seconds = match self {
            Self::Modified => meta.mtime(),
            Self::Changed => meta.ctime(),
        };
        u64::try_from(seconds).unwrap_or(0)
    }

    /// It is used now.
    pub(crate) fn renew(self, file: &File) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let last_modification = match self {
            Self::Modified => now,
            Self::Changed => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, // the inode changes by the other one
        };
        let times = Timestamps { last_access: now, last_modification };
        let _ = rustix::fs::futimens(file, &times); // on a read-only disk nothing is evicted either
    }
}
