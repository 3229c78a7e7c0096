//! Reading sealed files: their content ids, and their bytes in parts.
//!
//! Small reads happen where they are; large ones on the runtime's blocking threads, so that a
//! commit never holds a thread that others wait for.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use ring::digest;
use tokio::task::spawn_blocking;

use crate::commit::memory::Memory;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::staging::Sealed;
use crate::staging::StagedFile;
use crate::staging::StagingError;

/// Up to here reading costs less than handing the work to another thread, in bytes.
const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// Bytes hashed at a time.
const HASH_BUFFER_BYTES: usize = 256 * 1024;

fn failed(path: &RelPath, source: io::Error) -> StagingError {
    StagingError::Io { path: path.as_str().into(), source }
}

/// A file that is not expected to change, of which `size_bytes` are expected.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    file: Arc<File>,
    path: RelPath,
    size_bytes: u64,
    /// When it was last changed, if a change since then is an error.
    modified: Option<SystemTime>,
}

async fn run<T: Send + 'static>(
    bytes: u64,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if bytes <= INLINE_BYTES_MAX { work() } else { spawn_blocking(work).await.map_err(io::Error::other)? }
}

impl Content {
    /// Opens a file of a frozen tree.
    pub fn open(sealed: &Sealed, path: &RelPath, size_bytes: u64) -> Result<Self, StagingError> {
        Self::of_file(sealed.open_file(path)?, path, size_bytes)
    }

    /// An open file; `path` names it in errors.
    pub fn of_file(file: File, path: &RelPath, size_bytes: u64) -> Result<Self, StagingError> {
        let found = file.metadata().map_err(|source| failed(path, source))?;
        if found.len() != size_bytes {
            let reason = format!("it has {} bytes, and had {size_bytes} before", found.len());
            return Err(StagingError::Damaged { path: path.as_str().into(), reason });
        }
        let modified = Some(found.modified().map_err(|source| failed(path, source))?);
        Ok(Self { file: Arc::new(file), path: path.clone(), size_bytes, modified })
    }

    /// A file that is staged and not frozen: what is found in it may change.
    pub fn of_staged(file: &StagedFile, path: &RelPath, size_bytes: u64) -> Result<Self, StagingError> {
        let file = Arc::new(file.try_clone().map_err(|source| failed(path, source))?);
        Ok(Self { file, path: path.clone(), size_bytes, modified: None })
    }

    /// The content id; `progress` is told of bytes as they are read.
    pub async fn id(&self, progress: impl Fn(u64) + Send + 'static) -> Result<ContentId, StagingError> {
        let file = Arc::clone(&self.file);
        let size_bytes = self.size_bytes;
        let id = run(size_bytes, move || hash(&file, size_bytes, progress)).await;
        let id = id.map_err(|source| failed(&self.path, source))?;
        self.check_unchanged()?;
        Ok(id)
    }

    /// The bytes from `offset` on, `len` of them, for which memory is reserved.
    pub async fn bytes(&self, offset: u64, len: u64, memory: &Memory) -> Result<Bytes, StagingError> {
        self.read(offset, len, memory, |bytes| bytes).await
    }

    /// All bytes, for which memory is reserved, and their content id, read once.
    pub async fn whole(&self, memory: &Memory) -> Result<(Bytes, ContentId), StagingError> {
        let with_id = |bytes: Bytes| {
            let id = ContentId::from_sha256(sha256(&bytes));
            (bytes, id)
        };
        self.read(0, self.size_bytes, memory, with_id).await
    }

    async fn read<T: Send + 'static>(
        &self,
        offset: u64,
        len: u64,
        memory: &Memory,
        then: impl FnOnce(Bytes) -> T + Send + 'static,
    ) -> Result<T, StagingError> {
        let file = Arc::clone(&self.file);
        let bytes = usize::try_from(len).map_err(|err| failed(&self.path, io::Error::other(err)))?;
        let mut buffer = memory.buffer(bytes);
        let read = move || {
            file.read_exact_at(buffer.as_mut(), offset)?;
            Ok(then(Bytes::from_owner(buffer)))
        };
        let read = run(len, read).await.map_err(|source| failed(&self.path, source))?;
        self.check_unchanged()?;
        Ok(read)
    }

    /// Nobody changes a frozen file, but anybody can change one that is uploaded from where it is.
    fn check_unchanged(&self) -> Result<(), StagingError> {
        let Some(before) = self.modified else { return Ok(()) };
        let now = self.file.metadata().and_then(|meta| meta.modified());
        if now.map_err(|source| failed(&self.path, source))? == before {
            return Ok(());
        }
        let reason = "it was changed while it was read".to_owned();
        Err(StagingError::Damaged { path: self.path.as_str().into(), reason })
    }
}

fn digest_bytes(digest: digest::Digest) -> [u8; 32] {
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The SHA-256 of what is in memory.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest_bytes(digest::digest(&digest::SHA256, bytes))
}

fn hash(file: &File, size_bytes: u64, progress: impl Fn(u64)) -> io::Result<ContentId> {
    let mut hasher = digest::Context::new(&digest::SHA256);
    let buffer_bytes = usize::try_from(size_bytes).unwrap_or(HASH_BUFFER_BYTES).clamp(1, HASH_BUFFER_BYTES);
    let mut buffer = vec![0; buffer_bytes];
    let mut reader = io::BufReader::with_capacity(0, file).take(size_bytes);
    let mut total = 0;
    loop {
        let read = reader.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        progress(read as u64);
        total += read as u64;
    }
    let digest = digest_bytes(hasher.finish());
    if total == size_bytes {
        Ok(ContentId::from_sha256(digest))
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was hashed"))
    }
}
