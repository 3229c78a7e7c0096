//! Where in the directory a key lives, and getting there without leaving it.
//!
//! Every step of the way is opened with `O_NOFOLLOW`, component by component, each relative to
//! the one before: a key cannot name anything outside, and a symbolic link that somebody put
//! there is a wall, not a door.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::name::ETag;
use crate::name::check_component;
use crate::store::StoreError;

/// The directory of dsfs's own state; remote prefixes cannot begin with it.
pub(super) const STATE_DIR: &str = ".dsfs";
/// Inside it, what is this store's own and not an object: no remote prefix starts with `.`, so
/// that no key of dsfs is spelled like this.
pub(super) const LOCAL_DIR: &str = ".local";

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'k> {
    /// The directories from the root.
    pub dirs: Vec<&'k str>,
    /// The last component.
    pub name: &'k str,
    /// Whether the key ends in `/`: it names a directory.
    pub marker: bool,
}

impl<'k> Place<'k> {
    /// Where a key lives; nowhere, if no file system can hold it or it is ours.
    pub(super) fn of(key: &'k str) -> Option<Self> {
        let (path, marker) = match key.strip_suffix('/') {
            Some(path) => (path, true),
            None => (key, false),
        };
        let mut dirs = components(path)?;
        let name = dirs.pop()?;
        let is_ours = match dirs.as_slice() {
            [STATE_DIR] => name == LOCAL_DIR,
            [STATE_DIR, second, ..] => *second == LOCAL_DIR,
            _ => false,
        };
        (!is_ours).then_some(Self { dirs, name, marker })
    }
}

/// The components of a path, if a file system can hold them all.
pub(super) fn components(path: &str) -> Option<Vec<&str>> {
    path.split('/').map(|name| check_component(name).ok().map(|()| name)).collect()
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory by its path; the only place where links are followed, since it is the
/// user who says where the bucket is.
pub(super) fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Opens one directory inside another.
pub(super) fn open_dir(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a directory some levels below another.
pub(super) fn open_dirs(root: OwnedFd, dirs: &[&str]) -> io::Result<OwnedFd> {
    dirs.iter().try_fold(root, |parent, name| open_dir(&parent, name))
}

/// The same, making what is missing, durably.
pub(super) fn make_dirs(root: OwnedFd, dirs: &[&str]) -> io::Result<OwnedFd> {
    dirs.iter().try_fold(root, |parent, name| {
        match rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o777)) {
            Ok(()) => rustix::fs::fsync(&parent)?,
            Err(Errno::EXIST) => {}
            Err(err) => return Err(err.into()),
        }
        open_dir(&parent, name)
    })
}

/// Whether an error says that there is nothing of that kind there.
pub(super) fn is_absence(err: &io::Error) -> bool {
    let absent = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(|errno| errno.raw_os_error());
    err.raw_os_error().is_some_and(|errno| absent.contains(&errno))
}

/// Whether this is a regular file.
pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The version of a file's bytes, without reading them.
///
/// A replaced file has another inode, a rewritten one another mtime, and one whose mtime was
/// set back another ctime. The inode number alone may come again, so every file that this
/// store writes is given an mtime of its own, to the nanosecond.
pub(super) fn etag_of_file(stat: &Stat) -> ETag {
    let mtime = nanos(stat.st_mtime, stat.st_mtime_nsec);
    let ctime = nanos(stat.st_ctime, stat.st_ctime_nsec);
    ETag::from_server(&format!("{:x}-{mtime:x}-{ctime:x}-{:x}", stat.st_ino, stat.st_size))
}

/// The version of a directory's marker: it has no bytes that could change.
pub(super) fn etag_of_marker(stat: &Stat) -> ETag {
    ETag::from_server(&format!("d{:x}", stat.st_ino))
}

/// The name under which the metadata of a file is kept where there are no xattrs: like the
/// `ETag`, but known before the file is put in its place (which changes its ctime).
pub(super) fn sidecar_name(stat: &Stat) -> String {
    format!("{:x}-{:x}", stat.st_ino, nanos(stat.st_mtime, stat.st_mtime_nsec))
}

fn nanos(secs: impl Into<i64>, nanos: impl TryInto<i64>) -> i128 {
    i128::from(secs.into()) * 1_000_000_000 + i128::from(nanos.try_into().unwrap_or(0))
}

/// When a file was last written.
pub(super) fn modified(stat: &Stat) -> SystemTime {
    let nanos = nanos(stat.st_mtime, stat.st_mtime_nsec);
    let since = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}

/// Sorts what the file system says by what the caller does next.
pub(super) fn store_error(key: &str, err: io::Error) -> StoreError {
    let key = key.to_owned();
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    match errno {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            StoreError::Denied { key, reason: err.to_string() }
        }
        Some(
            Errno::NOSPC
            | Errno::DQUOT
            | Errno::FBIG
            | Errno::NAMETOOLONG
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::LOOP
            | Errno::INVAL
            | Errno::MLINK,
        ) => StoreError::Rejected { key, reason: err.to_string() },
        Some(_) | None => StoreError::Unavailable {
            key,
            reason: err.to_string(),
            throttled: false,
            source: Some(Arc::new(err)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_leave_the_directory_live_nowhere() {
        for key in ["", "/", "/a", "a//b", "..", "../a", "a/../b", "a/.", "a\0b", "a//", "//"] {
            assert_eq!(Place::of(key), None, "{key:?}");
        }
        let long = "x".repeat(256);
        assert_eq!(Place::of(&long), None);
    }

    #[test]
    fn the_stores_own_files_are_no_objects_but_dsfs_state_is() {
        for key in [".dsfs/.local", ".dsfs/.local/", ".dsfs/.local/tmp/x", ".dsfs/.local/lock"] {
            assert_eq!(Place::of(key), None, "{key:?}");
        }
        for key in [".dsfs/tmp/intents/run/1", ".dsfs/datasets/log/run/0000000001", ".dsfs/lock/x"] {
            assert!(Place::of(key).is_some(), "{key:?}");
        }
        let place = Place::of("a/b/").expect("valid");
        assert_eq!(place, Place { dirs: vec!["a"], name: "b", marker: true });
    }
}
