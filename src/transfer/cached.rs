//! Files that this machine's block cache has already: they are copied from there.
//!
//! Only those whose content is recorded. The copy is held against that, and what does not fit is fetched,
//! and leaves the cache.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::Digest;
use sha2::Sha256;

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
/// Bytes that are copied in one turn: between two of them a copy can be given up.
const TURN_BYTES: u64 = 64 << 20;

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

    /// A copy of a file, to be made in turns.
    pub(super) fn copy(&self, file: &DownloadFile) -> Option<Copy> {
        let (entry, content) = (self.entry(file)?, file.content?);
        Some(Copy { entry, content, size_bytes: file.size_bytes, at: 0, hasher: Sha256::new() })
    }
}

/// A file that is being copied.
pub(super) struct Copy {
    entry: Arc<Entry>,
    content: ContentId,
    size_bytes: u64,
    at: u64,
    hasher: Sha256,
}

/// What a turn has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// There is more.
    Some,
    /// The whole file is there, and right.
    All,
    /// It is not, or not right.
    NotThere,
}

impl Copy {
    /// Copies some more, at most [`TURN_BYTES`]. Waits for the disk.
    ///
    /// # Errors
    /// The disk's that is written to.
    pub fn turn(&mut self, partial: &Partial) -> Result<Copied, TransferError> {
        let end = self.size_bytes.min(self.at + TURN_BYTES);
        while self.at < end {
            let range = self.at..(self.at + COPY_BYTES).min(end);
            let Lookup::Hit(bytes) = self.entry.read(&range, true) else { return Ok(Copied::NotThere) };
            let written = partial.file.write_all_at(&bytes, self.at);
            written.map_err(|source| TransferError::io(partial.path(), source))?;
            self.hasher.update(&bytes);
            self.at = range.end;
        }
        if self.at < self.size_bytes {
            return Ok(Copied::Some);
        }
        let found = ContentId::from_sha256(std::mem::take(&mut self.hasher).finalize().into());
        if found == self.content {
            return Ok(Copied::All);
        }
        self.entry.remove_false();
        Ok(Copied::NotThere)
    }
}
