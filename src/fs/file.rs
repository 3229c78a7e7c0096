//! Opening, reading and writing files.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time;

use crate::cache::Pages;
use crate::catalog::Level;
use crate::catalog::listing::RemoteFile;
use crate::fs::DatasetFs;
use crate::fs::Entry;
use crate::fs::ahead::Open;
use crate::fs::ahead::Shown;
use crate::fs::error::FsError;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::fs::open::Opened;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::read::ObjectVersion;
use crate::read::OpenObject;
use crate::read::ReadHandle;
use crate::read::STREAM_BYTES_MIN;
use crate::read::VERIFY_SOON_BYTES_MAX;
use crate::staging::Access;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::StagedDataset;
use crate::staging::StagedFile;
use crate::staging::StagingError;
use crate::tree::Found;
use crate::tree::STAGED_TTL;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;

/// Smallest published file that is worth handing to the kernel whole: below, a passthrough
/// open costs more than it saves.
const PASSTHROUGH_BYTES_MIN: u64 = 64 * 1024;
/// How long `open` waits for the last bytes of a large file that has just been read, on their way to the
/// cache's disk: handed over whole it is read several times as fast.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);
/// How long `open` waits for a cached file to be verified. It goes on behind that, while the file is open, so
/// that a later open has it.
const VERIFY_PATIENCE: Duration = Duration::from_millis(100);
/// Bytes copied at a time when a published file is staged for replacement.
const COPY_UP_BYTES: u32 = 1024 * 1024;

impl DatasetFs {
    /// Opens a file with the flags of open(2).
    ///
    /// # Errors
    /// [`FsError::Published`] for writing to a published file. [`FsError::Stale`] asks the kernel to
    /// look the name up again: after a published file was staged for replacement.
    pub async fn open(&self, ino: Ino, flags: i32) -> Result<Opened, FsError> {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = flags & libc::O_TRUNC != 0;
        match self.node(ino)? {
            Node::Root | Node::Directory(..) | Node::PastDirectory(..) => Err(FsError::IsDirectory),
            Node::Unlinked(dataset) => match self.inodes.left_from(ino) {
                Some(path) if writable || truncate => Err(self.gone(ino, &dataset, &path).await),
                Some(_) | None => Err(FsError::Stale),
            },
            Node::Staged(dataset, path) => {
                if writable || truncate {
                    self.check_writable()?;
                }
                let access = if writable { Access::ReadWrite } else { Access::Read };
                let opened = match self.tree.staging().dataset(&dataset) {
                    Some(staged) => {
                        staged.open_file(&path, access, truncate).map_err(|err| gone_is_stale(err, &path))
                    }
                    None => Err(FsError::Stale),
                };
                match opened {
                    Err(FsError::Stale) if writable || truncate => Err(self.gone(ino, &dataset, &path).await),
                    opened => self.opened_staged(ino, opened?, writable),
                }
            }
            Node::Published(dataset, path, _) if writable || truncate => {
                self.check_writable()?;
                self.copy_up(&dataset, &path, truncate).await?;
                Err(FsError::Stale)
            }
            Node::Published(dataset, path, file) => {
                let file = self.tree.catalog().resolve_version(&file).await?;
                let size_bytes = file.size_bytes;
                let opened = self.opened_published(ino, file).await?;
                let level = Level::Directory(dataset.clone(), path.parent());
                self.ahead.opened(&Open {
                    catalog: self.tree.catalog(),
                    reader: &self.reader,
                    whose: Shown::Now(dataset),
                    path: &path,
                    size_bytes,
                    listing: &|| Some(self.tree.catalog().fresh(&level)?.listing),
                });
                Ok(opened)
            }
            Node::PastFile(..) if writable || truncate => Err(FsError::ReadOnly),
            Node::PastFile(id, path, file) => {
                let opened = self.opened_published(ino, (*file).clone()).await?;
                let tree = self.tree.catalog().past_kept(&id);
                self.ahead.opened(&Open {
                    catalog: self.tree.catalog(),
                    reader: &self.reader,
                    whose: Shown::Past(id),
                    path: &path,
                    size_bytes: file.size_bytes,
                    listing: &|| tree.as_ref()?.listing(&path.parent()).cloned(),
                });
                Ok(opened)
            }
        }
    }

    /// Creates a file in a directory and opens it.
    ///
    /// # Errors
    /// [`FsError::Exists`] with `O_EXCL`, [`FsError::DatasetsOnly`] at the top.
    pub async fn create(
        &self,
        parent: Ino,
        name: &std::ffi::OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened), FsError> {
        self.check_writable()?;
        let (dataset, path) = self.path_place(parent, name)?;
        match self.tree.lookup(&dataset, &path).await?.value {
            None => self.check_no_directory(&dataset, &path)?,
            Some(Found::Directory(_)) => return Err(FsError::IsDirectory),
            Some(_) if flags & libc::O_EXCL != 0 => return Err(FsError::Exists),
            Some(Found::Staged(_)) => return self.open_existing(&dataset, &path, flags),
            Some(Found::Published(_)) => {
                self.copy_up(&dataset, &path, flags & libc::O_TRUNC != 0).await?;
                return self.open_existing(&dataset, &path, flags);
            }
        }
        let staged = self.staged_dataset(&dataset)?;
        let file = staged.create_file(&path, mode & 0o7777)?;
        let entry = self.staged_entry(&staged, &dataset, &path)?;
        self.with_handle(entry, file, true)
    }

    fn open_existing(
        &self,
        dataset: &DatasetName,
        path: &RelPath,
        flags: i32,
    ) -> Result<(Entry, Opened), FsError> {
        let staged = self.staged_dataset(dataset)?;
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        let file = staged.open_file(path, access, flags & libc::O_TRUNC != 0)?;
        let entry = self.staged_entry(&staged, dataset, path)?;
        self.with_handle(entry, file, writable)
    }

    fn with_handle(
        &self,
        entry: Entry,
        file: StagedFile,
        writable: bool,
    ) -> Result<(Entry, Opened), FsError> {
        match self.opened_staged(entry.attr.ino, file, writable) {
            Ok(opened) => Ok((entry, opened)),
            Err(err) => {
                self.inodes.forget(entry.attr.ino, 1); // the kernel does not get it
                Err(err)
            }
        }
    }

    pub(super) fn staged_entry(
        &self,
        staged: &StagedDataset,
        dataset: &DatasetName,
        path: &RelPath,
    ) -> Result<Entry, FsError> {
        let attr = staged.lookup(path)?.ok_or(FsError::NotFound)?;
        let found = match attr.kind {
            crate::staging::StagedKind::File => Found::Staged(attr),
            crate::staging::StagedKind::Directory => Found::Directory(Some(attr)),
        };
        Ok(self.entry_at(dataset, path, &found, STAGED_TTL))
    }

    fn opened_staged(&self, ino: Ino, file: StagedFile, writable: bool) -> Result<Opened, FsError> {
        // Opened anew, for reading only: a descriptor of ours that could write would look like a writer
        // to a commit. The kernel opens the file by itself for those who write.
        let local = Arc::new(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
        let mode =
            if self.passes_staged() { IoMode::Passthrough(Arc::clone(&local)) } else { IoMode::Cached };
        let (fh, mode) = self.open.insert(Handle::Staged(ino, file), mode, Some(local));
        Ok(Opened { fh, mode, writable })
    }

    async fn opened_published(&self, ino: Ino, file: RemoteFile) -> Result<Opened, FsError> {
        let etag = file.etag.ok_or(FsError::Stale)?;
        let size_bytes = file.size_bytes;
        let object = self.reader.open(ObjectVersion { key: file.key, etag, size_bytes });
        // Without passthrough the kernel keeps what is read here, and nobody reads the cache's file soon.
        let pages = if self.passes_through() { Pages::Keep } else { Pages::LetGo };
        let handle = object.handle_with(pages);
        let whole = self.file_to_hand_over(ino, &object).await;
        let mode = whole.map_or(IoMode::Cached, IoMode::Passthrough);
        let (fh, mode) = self.open.insert(Handle::Published(ino, handle), mode, None);
        Ok(Opened { fh, mode, writable: false })
    }

    /// The cache's file of an object that is being opened, if the kernel may have it, or may soon.
    async fn file_to_hand_over(&self, ino: Ino, object: &Arc<OpenObject>) -> Option<Arc<File>> {
        let size_bytes = object.version().size_bytes;
        // An inode that is open stays in its mode: there is nothing to wait for.
        let is_read_through_us = || matches!(self.open.mode(ino), Some(IoMode::Cached));
        if !self.passes_through() || size_bytes < PASSTHROUGH_BYTES_MIN || is_read_through_us() {
            return None;
        }
        let mut whole = object.whole_file();
        if whole.is_none() && size_bytes >= STREAM_BYTES_MIN {
            whole = object.settled_file(SETTLE_PATIENCE).await; // somebody has just read all of it
        }
        if whole.is_none() && size_bytes <= VERIFY_SOON_BYTES_MAX {
            // At once `None` if it is not all there.
            whole = time::timeout(VERIFY_PATIENCE, object.verified_file()).await.ok().flatten();
        } else if whole.is_none() {
            let object = Arc::clone(object);
            tokio::spawn(async move { object.verified_file().await }); // for the next open
        }
        whole
    }

    fn passes_staged(&self) -> bool {
        self.passes_staged.load(Ordering::Relaxed)
    }

    /// The kernel gets no published files whole: it keeps what is read of those that are open, also those that
    /// the program before this one had opened.
    pub(super) fn kernel_keeps_pages(&self) {
        for (_, handle) in self.open.handles() {
            if let Handle::Published(_, read) = &*handle {
                read.keep_elsewhere();
            }
        }
    }

    /// The kernel does not take the file of an inode that is being opened: the inode is read and written
    /// through us. Where it refuses the cache's file system, no other published file is prepared for it.
    pub fn not_taken(&self, ino: Ino, err: &io::Error) {
        tracing::debug!("inode {ino} is read through the daemon: {err}");
        let is_published = matches!(self.inodes.get(ino), Some(Node::Published(..) | Node::PastFile(..)));
        let is_for_good = matches!(err.raw_os_error(), Some(libc::ELOOP | libc::EINVAL | libc::EOPNOTSUPP));
        if is_published && is_for_good && self.passes_published.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "the kernel does not read cached files by itself ({err}), so they are read through the daemon: \
                 a --cache-dir on a plain local file system (ext4, XFS, btrfs) is faster"
            );
            self.kernel_keeps_pages();
        }
        self.open.fall_back(ino);
    }

    /// Reads what is at hand; `None` if the remote has to be waited for: then [`Self::read`].
    ///
    /// # Errors
    /// [`FsError::BadHandle`], or the local disk's.
    pub fn try_read(&self, fh: u64, offset: u64, len: u32) -> Result<Option<Bytes>, FsError> {
        match &*self.open.get(fh)? {
            Handle::Published(ino, read) => {
                let hit = read.try_read(offset, len);
                if hit.is_some() {
                    self.leave_behind(*ino, read, offset, len);
                }
                Ok(hit)
            }
            Handle::Staged(_, file) => Ok(Some(read_local(file, offset, len)?)),
            Handle::Directory(_) => Err(FsError::BadHandle(fh)),
        }
    }

    /// Reads at most `len` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// The read's.
    pub async fn read(&self, fh: u64, offset: u64, len: u32) -> Result<Bytes, FsError> {
        let handle = self.open.get(fh)?;
        match &*handle {
            Handle::Published(ino, read) => {
                let bytes = read.read(offset, len).await?;
                self.leave_behind(*ino, read, offset, len);
                Ok(bytes)
            }
            Handle::Staged(_, file) => Ok(read_local(file, offset, len)?),
            Handle::Directory(_) => Err(FsError::BadHandle(fh)),
        }
    }

    /// A file that is read through us now and handed over whole later would have its pages twice: what a
    /// reader has left behind is let go at once. Memory that is used again costs less than new memory.
    fn leave_behind(&self, ino: Ino, read: &ReadHandle, offset: u64, len: u32) {
        if self.passes_through()
            && let Some(behind) = read.left_behind(offset + u64::from(len))
            && let Some(kernel) = self.kernel.get()
        {
            kernel.drop_pages(ino, behind);
        }
    }

    /// Writes all of `data` to a staged file.
    ///
    /// # Errors
    /// The staging disk's own: a full disk is ENOSPC to whoever wrote.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<(), FsError> {
        match &*self.open.get(fh)? {
            Handle::Staged(_, file) => Ok(file.write_all_at(data, offset)?),
            Handle::Published(..) | Handle::Directory(_) => Err(FsError::BadHandle(fh)),
        }
    }

    /// Makes a staged file durable, and with it the entries that name it.
    ///
    /// # Errors
    /// The staging disk's.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<(), FsError> {
        let handle = self.open.get(fh)?;
        let Handle::Staged(_, file) = &*handle else { return Ok(()) };
        let synced = if data_only { file.sync_data() } else { file.sync_all() };
        Ok(synced?)
    }

    /// Makes the staged entries of a directory durable.
    ///
    /// # Errors
    /// The staging disk's.
    pub fn fsyncdir(&self, ino: Ino) -> Result<(), FsError> {
        if let Node::Directory(dataset, dir) = self.node(ino)?
            && let Some(staged) = self.tree.staging().dataset(&dataset)
        {
            staged.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Reserves or gives back space of a staged file, as fallocate(2).
    ///
    /// # Errors
    /// The staging disk's.
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<(), FsError> {
        match &*self.open.get(fh)? {
            Handle::Staged(_, file) => {
                let flags = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
                rustix::fs::fallocate(file.as_fd(), flags, offset, len).map_err(io::Error::from)?;
                Ok(())
            }
            Handle::Published(..) | Handle::Directory(_) => Err(FsError::BadHandle(fh)),
        }
    }

    /// The space of the staging disk: what can still be written here.
    ///
    /// # Errors
    /// The disk's.
    pub fn statfs(&self) -> Result<rustix::fs::StatVfs, FsError> {
        Ok(rustix::fs::statvfs(&self.options.state_dir).map_err(io::Error::from)?)
    }

    /// Closes a handle. A file that was read through us and will be handed over whole from now on has
    /// its pages twice, here and in the cache's file: they are let go now, and not while the next
    /// opener waits.
    pub fn release(&self, fh: u64) {
        let Some((handle, IoMode::Cached)) = self.open.remove(fh) else { return };
        if let Handle::Published(ino, read) = &*handle
            && self.passes_through()
            && read.object().version().size_bytes >= PASSTHROUGH_BYTES_MIN
            && read.object().whole_file().is_some()
            && let Some(kernel) = self.kernel.get()
        {
            kernel.drop_pages(*ino, 0..u64::MAX);
        }
    }

    /// What is said to whoever wants to write to an inode whose file has left staging, committed just now.
    /// The kernel looks the name up again, but once only: what it finds then has to be a copy already. It is
    /// a whole one, since who asks may never come to truncate it.
    pub(super) async fn gone(&self, ino: Ino, dataset: &DatasetName, path: &RelPath) -> FsError {
        if !self.options.allow_replace {
            return FsError::Stale;
        }
        if matches!(self.inodes.get(ino), Some(Node::Staged(..))) {
            self.inodes.leave(dataset, path); // not told yet; the copy's is another inode
        }
        self.copy_up(dataset, path, false).await.err().unwrap_or(FsError::Stale)
    }

    /// Stages a copy of a published file, which takes its place in the tree: a whole copy, or an empty
    /// file if it is about to be truncated anyway.
    pub(super) async fn copy_up(
        &self,
        dataset: &DatasetName,
        path: &RelPath,
        empty: bool,
    ) -> Result<(), FsError> {
        if !self.options.allow_replace {
            return Err(FsError::Published(format!("{dataset}/{path}")));
        }
        let Some(Found::Published(file)) = self.tree.lookup(dataset, path).await?.value else {
            return Ok(());
        };
        let file = self.tree.catalog().resolve_version(&file).await?;
        let etag = file.etag.clone().ok_or(FsError::Stale)?;
        let base = Base { etag: etag.clone(), size_bytes: file.size_bytes, kind: BaseKind::Replace };
        let import = self.staged_dataset(dataset)?.begin_import()?;
        if !empty {
            let object = ObjectVersion { key: file.key.clone(), etag, size_bytes: file.size_bytes };
            let read = self.reader.open(object).handle();
            let mut offset = 0;
            while offset < file.size_bytes {
                let bytes = read.read(offset, COPY_UP_BYTES).await?;
                import.file().write_all_at(&bytes, offset)?;
                offset += bytes.len() as u64;
            }
        }
        match import.finish(path, 0o644, file.modified, &base) {
            Err(err) if err.errno() == libc::EEXIST => {} // another opener has staged its copy first
            finished => finished?,
        }
        self.invalidate(dataset, path);
        Ok(())
    }
}

pub(super) fn gone_is_stale(err: StagingError, path: &RelPath) -> FsError {
    if err.errno() == libc::ENOENT {
        tracing::debug!("{path} is staged no more: the kernel looks it up again");
        return FsError::Stale;
    }
    FsError::Staging(err)
}

/// Reads from a local file without clearing the buffer first; fewer bytes only at its end.
fn read_local(file: &File, offset: u64, len: u32) -> io::Result<Bytes> {
    let len = len as usize;
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    buffer.truncate(len); // the allocator may have given more than was asked for
    Ok(buffer.into())
}
