//! One directory tree on the local disk, reached by paths that never leave it.
//!
//! Every path is resolved below an open directory and without following symbolic links
//! (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`; component by component where the
//! kernel or a sandbox has no `openat2`): whatever somebody puts into the staging area by hand
//! cannot lead dsfs out of it.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::durable;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::check_component;
use crate::staging::StagedAttr;
use crate::staging::StagedKind;
use crate::staging::StagedState;

/// A directory that was made only because a file was put below it. The flag lives in the
/// directory's own mode (the sticky bit, which means nothing in a private tree), so that it
/// survives whatever the directory survives.
const IMPLICIT: Mode = Mode::SVTX;
/// What dsfs itself needs on its directories and files, whatever the user asked for.
const DIRECTORY_MODE_MIN: Mode = Mode::RWXU;
const FILE_MODE_MIN: Mode = Mode::RUSR;
const PERMISSIONS: u32 = 0o777;
/// Deepest tree that is walked: twice what fits into a key of 1024 bytes.
const DEPTH_MAX: usize = 1024;

/// The open top directory of a tree.
#[derive(Debug)]
pub(super) struct Tree {
    top: OwnedFd,
}

/// A name in a directory, and what it names.
pub(super) type Entry = (String, Stat);

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Files, in the order of their paths.
    pub files: Vec<(RelPath, Stat)>,
    /// Directories with nothing in them that were made on purpose.
    pub empty_directories: Vec<DirPath>,
    /// Symbolic links, devices, names that are not valid: not ours.
    pub foreign: Vec<String>,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY);

impl Tree {
    /// Opens the tree whose top directory is `path`; `None` if there is none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(top) => Ok(Some(Self { top })),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// Makes the top directory of a tree, durably, if it is missing: as one that goes when nothing is left in it.
    pub fn make_top(path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), durable::create_private_dirs)?;
        match rustix::fs::mkdir(path, Mode::RWXU | IMPLICIT) {
            Ok(()) => durable::sync_parent(path),
            Err(Errno::EXIST) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether the tree goes when nothing is left in it.
    pub fn is_implicit(&self) -> io::Result<bool> {
        Ok(is_implicit(&rustix::fs::fstat(&self.top)?))
    }

    /// The tree was made on purpose, and stays.
    pub fn make_explicit(&self) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.top, Mode::RWXU)?)
    }

    /// Makes everything in the tree durable: one system call, however many files there are.
    pub fn sync_everything(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.top)?)
    }

    fn resolve(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if path.is_empty() { "." } else { path };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.top, path, flags, mode, how) {
            Err(Errno::NOSYS | Errno::PERM) => self.resolve_stepwise(path, flags, mode),
            answer => answer,
        }
    }

    fn resolve_stepwise(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let Some((parent, name)) = path.rsplit_once('/') else {
            return rustix::fs::openat(&self.top, path, flags, mode);
        };
        let step = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut components = parent.split('/');
        let first = components.next().unwrap_or(".");
        let mut dir = rustix::fs::openat(&self.top, first, step, Mode::empty())?;
        for component in components {
            dir = rustix::fs::openat(&dir, component, step, Mode::empty())?;
        }
        rustix::fs::openat(&dir, name, flags, mode)
    }

    /// Opens a directory of the tree.
    pub fn dir(&self, dir: &DirPath) -> rustix::io::Result<OwnedFd> {
        self.resolve(dir.as_str(), DIRECTORY, Mode::empty())
    }

    /// Opens a regular file, for reading or for both.
    pub fn file(&self, path: &RelPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path.as_str(), flags | OFlags::NONBLOCK, Mode::empty())
    }

    /// What is at `path`; `None` if there is nothing, or nothing of ours.
    pub fn stat(&self, path: &RelPath) -> io::Result<Option<Stat>> {
        let answer = if path.as_str().contains('/') {
            self.resolve(path.as_str(), OFlags::PATH, Mode::empty()).and_then(|fd| rustix::fs::fstat(&fd))
        } else {
            rustix::fs::statat(&self.top, path.as_str(), AtFlags::SYMLINK_NOFOLLOW)
        };
        match answer {
            Ok(stat) => Ok(kind_of(&stat).map(|_| stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// The directory `dir`, made with those above it where they are missing; and whether any was.
    pub fn make_dirs(&self, dir: &DirPath) -> rustix::io::Result<(OwnedFd, bool)> {
        match self.dir(dir) {
            Err(Errno::NOENT) => {}
            answer => return answer.map(|fd| (fd, false)),
        }
        let mut fd = self.dir(&DirPath::root())?;
        for component in dir.as_str().split('/') {
            match rustix::fs::mkdirat(&fd, component, Mode::from_raw_mode(0o755) | IMPLICIT) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(err) => return Err(err),
            }
            let step = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fd = rustix::fs::openat(&fd, component, step, Mode::empty())?;
        }
        Ok((fd, true))
    }

    /// Removes `dir` and those above it, as long as they are empty and were not made on purpose.
    pub fn prune(&self, dir: &DirPath) {
        let mut next = dir.as_path();
        while let Some(path) = next {
            let implicit = self.stat(&path).ok().flatten().is_some_and(|stat| is_implicit(&stat));
            let removed = implicit
                && self.dir(&path.parent()).is_ok_and(|parent| {
                    rustix::fs::unlinkat(&parent, path.file_name(), AtFlags::REMOVEDIR).is_ok()
                });
            next = if removed { path.parent().as_path() } else { None };
        }
    }

    /// The entries of a directory that are ours; none if it is not there.
    pub fn read_dir(&self, dir: &DirPath) -> io::Result<Vec<Entry>> {
        match self.dir(dir) {
            Ok(fd) => read_entries(fd).map(|(entries, _)| entries),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Vec::new()),
            Err(err) => Err(err.into()),
        }
    }

    /// Looks at everything.
    pub fn walk(&self) -> io::Result<Walk> {
        self.walk_below(&DirPath::root())
    }

    /// Looks at everything in a directory and below it.
    pub fn walk_below(&self, dir: &DirPath) -> io::Result<Walk> {
        let mut walk = Walk::default();
        self.walk_dir(dir, false, 0, &mut walk)?;
        walk.files.sort_by(|a, b| a.0.cmp(&b.0));
        walk.empty_directories.sort();
        Ok(walk)
    }

    fn walk_dir(&self, dir: &DirPath, explicit: bool, depth: usize, walk: &mut Walk) -> io::Result<()> {
        if depth > DEPTH_MAX {
            walk.foreign.push(format!("{dir}/"));
            return Ok(());
        }
        let fd = match self.dir(dir) {
            Err(Errno::NOENT) => return Ok(()), // removed meanwhile: a walk may have company
            answer => answer?,
        };
        let (entries, foreign) = read_entries(fd)?;
        if entries.is_empty() && foreign.is_empty() && explicit {
            walk.empty_directories.push(dir.clone());
        }
        let place = |name: &str| if dir.is_root() { name.to_owned() } else { format!("{dir}/{name}") };
        walk.foreign.extend(foreign.iter().map(|name| place(name)));
        for (name, stat) in entries {
            let Ok(path) = dir.child(&name) else { continue };
            if kind_of(&stat) == Some(StagedKind::Directory) {
                self.walk_dir(&path.into(), !is_implicit(&stat), depth + 1, walk)?;
            } else {
                walk.files.push((path, stat));
            }
        }
        Ok(())
    }
}

/// The entries of a directory, and the names in it that are not ours.
fn read_entries(fd: OwnedFd) -> io::Result<(Vec<Entry>, Vec<String>)> {
    let mut entries = Vec::new();
    let mut foreign = Vec::new();
    for entry in Dir::read_from(fd.as_fd())? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue, // unlinked meanwhile
            answer => answer?,
        };
        match valid_name(entry.file_name()).filter(|_| kind_of(&stat).is_some()) {
            Some(name) => entries.push((name.to_owned(), stat)),
            None => foreign.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    Ok((entries, foreign))
}

fn valid_name(name: &CStr) -> Option<&str> {
    name.to_str().ok().filter(|name| check_component(name).is_ok())
}

/// File or directory; `None` for what is never staged.
pub(super) fn kind_of(stat: &Stat) -> Option<StagedKind> {
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type.is_file() {
        Some(StagedKind::File)
    } else if file_type.is_dir() {
        Some(StagedKind::Directory)
    } else {
        None
    }
}

/// Whether a directory was made only because a file was put below it.
pub(super) fn is_implicit(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).contains(IMPLICIT)
}

/// The mode that a staged file or directory gets for the one that was asked for.
pub(super) fn mode_for(kind: StagedKind, mode: u32) -> Mode {
    let least = match kind {
        StagedKind::File => FILE_MODE_MIN,
        StagedKind::Directory => DIRECTORY_MODE_MIN,
    };
    Mode::from_raw_mode(mode & PERMISSIONS) | least
}

/// A file's identity on this machine: it keeps it through every rename.
pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// The attributes that `stat` holds.
pub(super) fn attr_of(stat: &Stat, state: StagedState) -> Option<StagedAttr> {
    Some(StagedAttr {
        kind: kind_of(stat)?,
        state,
        size_bytes: stat.st_size.try_into().unwrap_or(0),
        blocks: stat.st_blocks.try_into().unwrap_or(0),
        mode: stat.st_mode & PERMISSIONS,
        modified: time_of(stat.st_mtime, stat.st_mtime_nsec),
        changed: time_of(stat.st_ctime, stat.st_ctime_nsec),
        accessed: time_of(stat.st_atime, stat.st_atime_nsec),
        local_ino: stat.st_ino,
    })
}

/// The time of last change of content.
pub(super) fn modified_of(stat: &Stat) -> SystemTime {
    time_of(stat.st_mtime, stat.st_mtime_nsec)
}

fn time_of(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    start
        .and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds)))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
