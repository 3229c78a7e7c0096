//! A file on its way into the bucket: written, made durable, then put in its place at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::Stat;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::store::directory::place;

/// The extended attribute that holds an object's metadata, as JSON.
pub(super) const META_XATTR: &str = "user.dsfs.meta";
/// Longest metadata that is read back, in bytes; S3's own limit is 2 KiB.
const META_BYTES_MAX: usize = 64 * 1024;

/// A file without its name yet; removed when dropped, unless it was given one.
#[derive(Debug)]
pub(super) struct TempFile {
    dir: OwnedFd,
    name: String,
    pub file: File,
}

/// A name that nobody else has.
pub(super) fn random_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // Gone already if it was renamed. What a crash leaves here is swept by a later start.
        let _absent = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

impl TempFile {
    /// Makes an empty file in the directory for such files.
    pub(super) fn create(dir: OwnedFd) -> io::Result<Self> {
        let name = random_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(0o666))?);
        Ok(Self { dir, name, file })
    }

    /// Gives the file its metadata and a time of its own, and makes it durable. Metadata goes
    /// into `sidecars` where the file system has no extended attributes.
    pub(super) fn seal(
        &self,
        metadata: &BTreeMap<String, String>,
        xattrs: bool,
        sidecars: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        let now = SystemClock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let time = Timespec {
            tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: now.subsec_nanos().into(),
        };
        rustix::fs::futimens(&self.file, &Timestamps { last_access: time, last_modification: time })?;
        if !metadata.is_empty() {
            let json = serde_json::to_vec(metadata)?;
            if !(xattrs && set_meta(&self.file, &json)?) {
                let stat = rustix::fs::fstat(&self.file)?;
                let sidecars = sidecars()?;
                write_file(&sidecars, &place::sidecar_name(&stat), &json)?;
                rustix::fs::fsync(&sidecars)?;
            }
        }
        self.file.sync_all()
    }

    /// Gives the file its name, if that is free: `EEXIST` otherwise. Atomic.
    pub(super) fn publish_new(&self, parent: impl AsFd, name: &str) -> io::Result<()> {
        let parent = parent.as_fd();
        match rustix::fs::renameat_with(&self.dir, &self.name, parent, name, RenameFlags::NOREPLACE) {
            // What network file systems say.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return self.link_new(parent, name),
            done => done?,
        }
        Ok(rustix::fs::fsync(parent)?)
    }

    /// The same in two steps, of which the first decides: for a moment the file has two names.
    pub(super) fn link_new(&self, parent: impl AsFd, name: &str) -> io::Result<()> {
        let parent = parent.as_fd();
        rustix::fs::linkat(&self.dir, &self.name, parent, name, AtFlags::empty())?;
        rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty())?;
        Ok(rustix::fs::fsync(parent)?)
    }

    /// Gives the file a name that another file has. The caller holds the lock.
    pub(super) fn publish_over(&self, parent: impl AsFd, name: &str) -> io::Result<()> {
        let parent = parent.as_fd();
        rustix::fs::renameat(&self.dir, &self.name, parent, name)?;
        Ok(rustix::fs::fsync(parent)?)
    }

    /// What the file is now.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.file)?)
    }
}

/// Writes the attribute; says so if this file system cannot hold it.
pub(super) fn set_meta(file: impl AsFd, json: &[u8]) -> io::Result<bool> {
    match rustix::fs::fsetxattr(file, META_XATTR, json, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// Reads the attribute; `None` where there is none.
pub(super) fn get_meta(file: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut json = Vec::with_capacity(META_BYTES_MAX);
    match rustix::fs::fgetxattr(file, META_XATTR, rustix::buffer::spare_capacity(&mut json)) {
        Ok(_) => Ok(Some(json)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Writes a small file of ours, which nobody else names, durably but for its name.
pub(super) fn write_file(dir: impl AsFd, name: &str, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o666))?);
    io::Write::write_all(&mut file, content)?;
    file.sync_all()
}

/// Opens a regular file for reading, whatever else may be there under that name.
pub(super) fn open_file(parent: impl AsFd, name: &str) -> io::Result<File> {
    // NONBLOCK: a pipe that somebody put there must not make us wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?))
}
