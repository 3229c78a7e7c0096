//! Where the cache's files are, and the few directory operations on them.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::IFlags;

use crate::cache::format::VersionId;

/// Digits of an id that name the fan-out directory: 256 of them.
pub(crate) const FAN_OUT_DIGITS: usize = 2;

/// Temporary files that this process has named so far, in whatever cache.
static TEMPORARIES: AtomicU64 = AtomicU64::new(0);

/// What a file of the cache holds; the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suffix {
    /// The object's bytes.
    Data,
    /// The block map.
    Map,
    /// A small object with its header.
    One,
    /// The version is pinned.
    Pin,
}

impl Suffix {
    fn text(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Map => "map",
            Self::One => "one",
            Self::Pin => "pin",
        }
    }

    /// The suffix that a file name ends in.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Data, Self::Map, Self::One, Self::Pin].into_iter().find(|suffix| suffix.text() == text)
    }
}

/// The cache's directory.
#[derive(Debug)]
pub(crate) struct Paths {
    root: PathBuf,
    blocks: PathBuf,
}

impl Paths {
    /// The layout below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), blocks: root.join("blocks") }
    }

    /// The cache's directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the fan-out directories. Everything in it is the cache's to remove.
    pub(crate) fn blocks(&self) -> &Path {
        &self.blocks
    }

    /// The file of a version.
    pub(crate) fn of(&self, id: &VersionId, suffix: Suffix) -> PathBuf {
        let name = id.to_string();
        let (dir, rest) = name.split_at(FAN_OUT_DIGITS);
        self.blocks.join(dir).join(format!("{rest}.{}", suffix.text()))
    }

    /// A name that no other file has, beside those of a version.
    pub(crate) fn temporary(&self, id: &VersionId) -> PathBuf {
        let serial = TEMPORARIES.fetch_add(1, Ordering::Relaxed);
        self.of(id, Suffix::Data).with_extension(format!("tmp-{}-{serial}", std::process::id()))
    }

    /// Creates a file of mode 0600 for reading and writing, with the directories above it if
    /// they are missing: also those that somebody deletes under the running daemon.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn create(&self, path: &Path, exclusive: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        if exclusive {
            options.create_new(true);
        } else {
            options.create(true).truncate(false);
        }
        match options.open(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.create_parent(path)?;
                options.open(path)
            }
            result => result,
        }
    }

    /// Makes the directory of the fan-out directories.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn make_blocks(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.blocks)?;
        if let Err(err) = spread(&self.blocks) {
            tracing::debug!("directories in {} are placed side by side: {err}", self.blocks.display());
        }
        Ok(())
    }

    fn create_parent(&self, path: &Path) -> io::Result<()> {
        self.make_blocks()?;
        let parent = path.parent().unwrap_or(&self.blocks);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)
    }

    /// Gives the file at `from` the second name `to`, with the directories above it if they are missing.
    ///
    /// # Errors
    /// The local disk's; EEXIST if there is such a name.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::hard_link(from, to) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.create_parent(to)?;
                fs::hard_link(from, to)
            }
            result => result,
        }
    }

    /// Removes a file; one that is not there counts as removed.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }

    /// Removes all of a version but its pin. The map goes first: data without a map is nothing.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn remove_version(&self, id: &VersionId) -> io::Result<()> {
        for suffix in [Suffix::One, Suffix::Map, Suffix::Data] {
            self.remove(&self.of(id, suffix))?;
        }
        Ok(())
    }
}

/// Asks the file system to place the directories in `dir` far from one another, as `chattr +T` does.
///
/// ext4 gives a new file an inode of its directory's block group, and passes by, one after the other,
/// those that were freed in the last minutes (`recently_deleted` in `fs/ext4/ialloc.c`). In a cache that
/// evicts while it fills these are thousands, and all fan-out directories would be in one group: 10 000
/// files that were created after as many had been removed took 1.3 to 6 s of the kernel's time, and
/// 0.5 s in directories that are apart.
fn spread(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    let flags = rustix::fs::ioctl_getflags(&dir)?;
    if !flags.contains(IFlags::TOPDIR) {
        rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR)?;
    }
    Ok(())
}

/// Opens a file of the cache for reading and writing; `None` if it is not there. Reading it does not
/// change its inode, where the file is ours.
///
/// # Errors
/// The local disk's.
pub(crate) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    open_with(OpenOptions::new().read(true).write(true), path)
}

/// As [`open_existing`], for reading alone: a file that is only ever replaced whole can be read where
/// nothing can be written.
///
/// # Errors
/// The local disk's.
pub(crate) fn open_to_read(path: &Path) -> io::Result<Option<File>> {
    open_with(OpenOptions::new().read(true), path)
}

fn open_with(options: &OpenOptions, path: &Path) -> io::Result<Option<File>> {
    let open = |more: i32| {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | more;
        options.clone().custom_flags(flags).open(path)
    };
    let opened = match open(libc::O_NOATIME) {
        Err(err) if err.raw_os_error() == Some(libc::EPERM) => open(0),
        opened => opened,
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ETag;
    use crate::name::ObjectKey;

    #[test]
    fn fan_out_directories_are_spread_where_the_file_system_does_that() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        let spreads = spread(&other).is_ok();
        let paths = Paths::new(&dir.path().join("cache"));
        paths.make_blocks().unwrap();
        let flags = rustix::fs::ioctl_getflags(File::open(paths.blocks()).unwrap());
        assert_eq!(flags.is_ok_and(|flags| flags.contains(IFlags::TOPDIR)), spreads);
        paths.make_blocks().unwrap();
        fs::remove_dir(paths.blocks()).unwrap();
        let id = VersionId::new("remote", &ObjectKey::from_listing("key"), &ETag::from_server("1"));
        paths.create(&paths.of(&id, Suffix::One), true).unwrap();
        assert!(paths.of(&id, Suffix::One).is_file(), "made again with all that is above it");
    }
}
