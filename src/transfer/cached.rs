//! Files that this machine's block cache has already: they are copied from there.
//!
//! Only those whose content is recorded. The copy is held against that, and what does not fit is fetched,
//! and leaves the cache.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::Digest;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use crate::block;
use crate::cache::BlockCache;
use crate::cache::Entry;
use crate::cache::Lookup;
use crate::cache::VersionId;
use crate::record::ContentId;
use crate::transfer::TransferError;
use crate::transfer::download::DownloadFile;
use crate::transfer::partial::Partial;

/// Bytes that are read at once: whole blocks.
const COPY_BYTES: u64 = 8 * block::BLOCK_BYTES;

/// The block cache, as far as it is about one remote.
#[derive(Clone, Debug)]
pub struct LocalCache {
    /// The cache.
    pub cache: Arc<BlockCache>,
    /// What the remote is called in it.
    pub store_identity: String,
}

impl LocalCache {
    fn entry(&self, file: &DownloadFile) -> Option<Arc<Entry>> {
        let etag = file.etag.as_ref().filter(|_| file.content.is_some() && file.size_bytes > 0)?;
        let id = VersionId::new(&self.store_identity, &file.key, etag);
        Some(self.cache.entry(&id, file.size_bytes))
    }

    /// Whether all of a file seems to be there. Waits for the disk.
    pub(super) fn has(&self, file: &DownloadFile) -> bool {
        let Some(entry) = self.entry(file) else { return false };
        let blocks = block::count(file.size_bytes);
        entry.refresh(0..blocks);
        (0..blocks).all(|index| entry.is_present(index))
    }

    /// Copies a file, and says whether it was there and right. Waits for the disk.
    ///
    /// # Errors
    /// The disk's that is written to.
    pub(super) fn copy(
        &self,
        file: &DownloadFile,
        partial: &Partial,
        cancel: &CancellationToken,
    ) -> Result<bool, TransferError> {
        let Some(entry) = self.entry(file) else { return Ok(false) };
        let mut hasher = Sha256::new();
        let mut at = 0;
        while at < file.size_bytes {
            let range = at..(at + COPY_BYTES).min(file.size_bytes);
            let Lookup::Hit(bytes) = entry.read(&range, true) else { return Ok(false) };
            if cancel.is_cancelled() {
                return Ok(false); // whoever fetches it finds the same
            }
            let written = partial.file.write_all_at(&bytes, at);
            written.map_err(|source| TransferError::io(partial.path(), source))?;
            hasher.update(&bytes);
            at = range.end;
        }
        let is_right = file.content == Some(ContentId::from_sha256(hasher.finalize().into()));
        if !is_right {
            entry.remove_false();
        }
        Ok(is_right)
    }
}
