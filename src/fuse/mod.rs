//! The only module that knows the `fuser` crate: decode, call [`DatasetFs`], reply.
//!
//! Each operation is one of two kinds:
//!
//! * **local** (`getattr`, `write`, `release`, …): memory or the staging disk. It runs on the
//!   FUSE thread and replies before it returns.
//! * **possibly remote** (`lookup`, `opendir`, `open`, `read`, …): a future. It is polled once
//!   on the FUSE thread; where the answer is at hand it replies there and then, so that a hit
//!   never pays for a hand-off. Otherwise it becomes a task that owns its reply, and a slow
//!   bucket never holds a FUSE thread.
//!
//! **Invariant:** no decisions. An `if` in here that is not about the protocol belongs in
//! [`crate::fs`].

mod backing;
mod gate;
mod interrupt;
mod linger;
mod reply;
mod session;
mod takeover;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::SystemTime;

use fuser::BackingId;
use fuser::BsdFileFlags;
use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::Filesystem;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::INodeNo;
use fuser::InitFlags;
use fuser::KernelConfig;
use fuser::LockOwner;
use fuser::OpenFlags;
use fuser::RenameFlags;
use fuser::ReplyAttr;
use fuser::ReplyCreate;
use fuser::ReplyData;
use fuser::ReplyDirectory;
use fuser::ReplyDirectoryPlus;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyOpen;
use fuser::ReplyStatfs;
use fuser::ReplyWrite;
use fuser::ReplyXattr;
use fuser::Request;
use fuser::TimeOrNow;
use fuser::WriteFlags;

pub use crate::fuse::session::Inherited;
pub use crate::fuse::session::MountOptions;
pub use crate::fuse::session::MountedFs;
pub use crate::fuse::session::Standstill;
pub use crate::fuse::session::Unmounter;

use crate::fs::DatasetFs;
use crate::fs::Lookup;
use crate::fs::attr::Attr;
use crate::fs::change::Changes;
use crate::fs::change::RenameMode;
use crate::fs::dir::DirLookup;
use crate::fs::error::FsError;
use crate::fs::open::Opened;
use crate::fuse::backing::Backings;
use crate::fuse::gate::Gate;
use crate::fuse::interrupt::interruptible;
use crate::fuse::linger::Linger;
use crate::fuse::reply::absent;
use crate::fuse::reply::file_attr;
use crate::fuse::reply::file_type;
use crate::fuse::reply::reply_empty;
use crate::fuse::reply::reply_entry;
use crate::fuse::reply::reply_xattr;

/// Inode numbers are never used twice, so all of them are of one generation.
const GENERATION: Generation = Generation(0);
/// Requests that the kernel may send ahead (readahead), and where it begins to hold back.
const BACKGROUND_MAX: u16 = 128;
const CONGESTION: u16 = 96;
/// The largest write and read in one request; the kernel's own limit without a sysctl.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// Entries of a directory that are looked up before anybody asks: each is an inode, here and in the
/// kernel, and `find` would make hundreds of thousands of them that nobody uses.
const FIRST_LOOKUPS_MAX: usize = 64;
/// What `stat` advises as the size of reads.
const ADVISED_READ_BYTES: u32 = 128 * 1024;

/// What dsfs asks of the kernel, one by one, since a kernel that lacks one still has the rest.
const CAPABILITIES: &[InitFlags] = &[
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Cached pages belong to an inode that is one version; they are not dropped for a new mtime.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PASSTHROUGH,
];

/// The file system as the kernel's requests find it.
#[derive(Debug)]
pub struct FuseAdapter {
    fs: Arc<DatasetFs>,
    runtime: tokio::runtime::Handle,
    backings: Arc<Backings>,
    gate: Arc<Gate>,
    linger: Arc<Linger>,
}

impl FuseAdapter {
    fn new(fs: Arc<DatasetFs>, runtime: tokio::runtime::Handle) -> Self {
        Self { fs, runtime, backings: Arc::default(), gate: Arc::default(), linger: Arc::default() }
    }

    /// Runs `work`, here and now if it need not wait; then replies.
    fn serve<T: Send + 'static>(
        &self,
        request: &Request,
        operation: &'static str,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let mut work = Box::pin(work);
        let _in_runtime = self.runtime.enter();
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => {
                reply(result.map_err(|err| log_errno(operation, &err)));
                self.linger.for_a_moment();
            }
            Poll::Pending => {
                let (tid, under_way) = (request.pid(), self.gate.begin());
                self.runtime.spawn(async move {
                    let result = interruptible(tid, work).await;
                    reply(result.map_err(|err| log_errno(operation, &err)));
                    drop(under_way);
                });
            }
        }
    }

    fn file_attr(&self, attr: &Attr) -> FileAttr {
        file_attr(&self.fs, attr)
    }
}

/// Every error passes here once, so each failed operation is logged once.
fn log_errno(operation: &'static str, err: &FsError) -> Errno {
    let errno = err.errno();
    if err.is_expected() {
        tracing::debug!(operation, errno, "{err}");
    } else {
        tracing::warn!(operation, errno, "{err}");
    }
    Errno::from_i32(errno)
}

/// What the kernel is told of an open file; `passed` if it reads and writes the file without us.
fn open_flags(opened: &Opened, passed: bool) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    // Pages stay valid across opens: published files do not change, and staged files change
    // only through this kernel. It refuses the flag (EIO) for files that it reads without us.
    if !passed {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if !opened.writable {
        flags |= FopenFlags::FOPEN_NOFLUSH; // readers have nothing to flush
    }
    flags
}

#[expect(unsafe_code, reason = "an id that the program before this one has registered")]
fn wrap_opened(reply: &ReplyOpen, id: u32) -> BackingId {
    // SAFETY: it was registered with this connection, and belongs to nobody else (`Backings`).
    unsafe { reply.wrap_backing(id) }
}

#[expect(unsafe_code, reason = "as for files that are opened")]
fn wrap_created(reply: &ReplyCreate, id: u32) -> BackingId {
    // SAFETY: as in `wrap_opened`.
    unsafe { reply.wrap_backing(id) }
}

fn time(time: TimeOrNow, fs: &DatasetFs) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => fs.now(),
    }
}

/// Runs local work that may take long (a disk that syncs) where it holds no FUSE thread up.
async fn off_thread(work: impl FnOnce() -> Result<(), FsError> + Send + 'static) -> Result<(), FsError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|err| Err(io::Error::other(err).into()))
}

impl Filesystem for FuseAdapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for &capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!("this kernel does not have {capability:?}");
            }
        }
        let limits = [
            config.set_max_write(REQUEST_BYTES_MAX).is_ok(),
            config.set_max_background(BACKGROUND_MAX).is_ok(),
            config.set_congestion_threshold(CONGESTION).is_ok(),
            // Backing files may not themselves be passed through.
            config.set_max_stack_depth(1).is_ok(),
        ];
        tracing::debug!("limits taken by the kernel: {limits:?}");
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        let answer = Arc::clone(&self.fs);
        self.serve(req, "lookup", async move { fs.lookup(parent.0, &name).await }, move |result| {
            reply_entry(&answer, reply, result);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.getattr(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &self.file_attr(&attr)),
            Err(err) => reply.error(log_errno("getattr", &err)),
        }
        self.linger.for_a_moment();
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size_bytes: size,
            accessed: atime.map(|atime| time(atime, &self.fs)),
            modified: mtime.map(|mtime| time(mtime, &self.fs)),
        };
        let fs = Arc::clone(&self.fs);
        let answer = Arc::clone(&self.fs);
        let work = async move { fs.setattr(ino.0, fh.map(|fh| fh.0), changes).await };
        self.serve(req, "setattr", work, move |result| match result {
            Ok(attr) => reply.attr(&Duration::ZERO, &file_attr(&answer, &attr)),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, _req: &Request, _ino: INodeNo, reply: ReplyData) {
        reply.error(log_errno("readlink", &FsError::Invalid("not a symbolic link")));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(log_errno("mknod", &FsError::NotPermitted("device files, pipes and sockets")));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        let answer = Arc::clone(&self.fs);
        let work = async move { fs.mkdir(parent.0, &name, mode & !umask).await };
        self.serve(req, "mkdir", work, move |result| {
            reply_entry(&answer, reply, result.map(Lookup::Entry));
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.serve(req, "unlink", async move { fs.unlink(parent.0, &name).await }, |result| {
            reply_empty(reply, result);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.serve(req, "rmdir", async move { fs.rmdir(parent.0, &name).await }, |result| {
            reply_empty(reply, result);
        });
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(log_errno("symlink", &FsError::NotPermitted("symbolic links: an object store has none")));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            flags if flags.is_empty() => RenameMode::Replace,
            _ => {
                reply.error(log_errno("rename", &FsError::Invalid("names cannot be exchanged")));
                return;
            }
        };
        let (fs, name, newname) = (Arc::clone(&self.fs), name.to_owned(), newname.to_owned());
        let work = async move { fs.rename((parent.0, &name), (newparent.0, &newname), mode).await };
        self.serve(req, "rename", work, |result| reply_empty(reply, result));
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(log_errno("link", &FsError::NotPermitted("hard links: an object has one key")));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        let (answer, backings) = (Arc::clone(&self.fs), Arc::clone(&self.backings));
        let work = async move { fs.open(ino.0, flags.0).await };
        self.serve(req, "open", work, move |result| match result {
            Err(errno) => reply.error(errno),
            Ok(opened) => {
                let fh = FileHandle(opened.fh);
                let register = |file: &_| reply.open_backing(file);
                match backings.of(&answer, ino.0, &opened, register, |id| wrap_opened(&reply, id)) {
                    Some(id) => reply.opened_passthrough(fh, open_flags(&opened, true), &id),
                    None => reply.opened(fh, open_flags(&opened, false)),
                }
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        let (answer, backings) = (Arc::clone(&self.fs), Arc::clone(&self.backings));
        let work = async move { fs.create(parent.0, &name, mode & !umask, flags).await };
        self.serve(req, "create", work, move |result| match result {
            Err(errno) => reply.error(errno),
            Ok((entry, opened)) => {
                let attr = file_attr(&answer, &entry.attr);
                let (fh, ttl) = (FileHandle(opened.fh), entry.entry_ttl.min(entry.attr_ttl));
                let register = |file: &_| reply.open_backing(file);
                match backings.of(&answer, entry.attr.ino, &opened, register, |id| wrap_created(&reply, id)) {
                    Some(id) => {
                        let flags = open_flags(&opened, true);
                        reply.created_passthrough(&ttl, &attr, GENERATION, fh, flags, &id);
                    }
                    None => reply.created(&ttl, &attr, GENERATION, fh, open_flags(&opened, false)),
                }
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.fs.try_read(fh.0, offset, size) {
            Ok(Some(bytes)) => {
                reply.data(&bytes);
                drop(bytes); // memory that others may wait for
                self.linger.for_a_moment();
            }
            Err(err) => reply.error(log_errno("read", &err)),
            Ok(None) => {
                let fs = Arc::clone(&self.fs);
                let work = async move { fs.read(fh.0, offset, size).await };
                self.serve(req, "read", work, |result| match result {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(errno),
                });
            }
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.fs.write(fh.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32), // at most `REQUEST_BYTES_MAX`
            Err(err) => reply.error(log_errno("write", &err)),
        }
        self.linger.for_a_moment();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // every write has been answered by the staging disk already
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(fh.0);
        self.backings.release(&self.fs, ino.0);
        reply.ok();
        self.linger.for_a_moment();
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.serve(req, "fsync", off_thread(move || fs.fsync(fh.0, datasync)), |result| {
            reply_empty(reply, result);
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        self.serve(req, "opendir", async move { fs.opendir(ino.0).await }, |result| match result {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.fs.snapshot(fh.0) {
            Err(err) => reply.error(log_errno("readdir", &err)),
            Ok(snapshot) => {
                for (next, entry) in snapshot.from(offset) {
                    if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &*entry.name) {
                        break; // full: the kernel goes on from there
                    }
                }
                reply.ok();
            }
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let snapshot = match self.fs.snapshot(fh.0) {
            Ok(snapshot) => snapshot,
            Err(err) => return reply.error(log_errno("readdirplus", &err)),
        };
        // The kernel begins every directory with this call, whoever reads it: most want names only. It
        // asks for more in this way once somebody has looked at an inode.
        let count = if offset == 0 { FIRST_LOOKUPS_MAX } else { usize::MAX };
        for (next, entry) in snapshot.from(offset).take(count) {
            let full = match self.fs.lookup_entry(&snapshot, entry) {
                Err(err) => return reply.error(log_errno("readdirplus", &err)),
                Ok(DirLookup::Gone) => false,
                Ok(DirLookup::Entry(found)) => {
                    let (attr, ttl) = (self.file_attr(&found.attr), found.entry_ttl.min(found.attr_ttl));
                    let full = reply.add(attr.ino, next, &*entry.name, &ttl, &attr, GENERATION);
                    if full {
                        self.fs.forget(found.attr.ino, 1); // the kernel did not get it
                    }
                    full
                }
                Ok(DirLookup::Dots) => {
                    let attr = FileAttr { ino: INodeNo(entry.ino), kind: file_type(entry.kind), ..absent() };
                    reply.add(attr.ino, next, &*entry.name, &Duration::ZERO, &attr, GENERATION)
                }
            };
            if full {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.release(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.serve(req, "fsyncdir", off_thread(move || fs.fsyncdir(ino.0)), |result| {
            reply_empty(reply, result);
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32, // a page or a few: fits
                crate::name::COMPONENT_BYTES_MAX as u32,
                space.f_frsize as u32,
            ),
            Err(err) => reply.error(log_errno("statfs", &err)),
        }
        self.gate.rest();
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(log_errno("setxattr", &FsError::NotSupported("extended attributes that users set")));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = name.to_str().ok_or(FsError::NoAttribute).and_then(|name| self.fs.getxattr(ino.0, name));
        reply_xattr(reply, size, value.map(String::into_bytes));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.fs.listxattr(ino.0));
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(log_errno("removexattr", &FsError::NotSupported("extended attributes that users set")));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = self.fs.fallocate(fh.0, offset, length, mode);
        reply_empty(reply, result.map_err(|err| log_errno("fallocate", &err)));
    }
}
