//! One body onto the disk: in batches, with its checksums, going on where a connection broke.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rand::RngExt;
use sha2::Digest;
use sha2::Sha256;

use crate::name::ETag;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::store::ByteStream;
use crate::store::ObjectStore;
use crate::transfer::TransferError;
use crate::transfer::Watch;

/// Bytes that are written at once.
const BATCH_BYTES: usize = 256 * 1024;
/// How often in a row a body may break off without having brought anything.
const TRIES: u32 = 6;
/// Bound of the pause before a body is asked for again; it doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// What a body is to be, and where it goes.
pub(super) struct Fetch<'a> {
    pub store: &'a dyn ObjectStore,
    pub key: &'a ObjectKey,
    pub etag: &'a ETag,
    pub range: Range<u64>,
    pub file: &'a File,
    /// Where the file is, for errors.
    pub path: &'a Path,
    pub watch: &'a dyn Watch,
}

/// What is told of bytes that were written, in their order.
pub(super) trait Written: Send {
    /// These were written.
    fn take(&mut self, bytes: &[u8]) -> Result<(), TransferError>;
}

/// The checksums of a whole body.
pub(super) struct Sums {
    pub crc: u32,
    sha: Option<Sha256>,
}

impl Written for Sums {
    fn take(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        if let Some(sha) = &mut self.sha {
            sha.update(bytes);
        }
        Ok(())
    }
}

impl Sums {
    pub fn new(with_sha: bool) -> Self {
        Self { crc: 0, sha: with_sha.then(Sha256::new) }
    }

    pub fn content(self) -> Option<ContentId> {
        self.sha.map(|sha| ContentId::from_sha256(sha.finalize().into()))
    }
}

impl Fetch<'_> {
    /// Writes the range to its own place in the file. `first` is the body of the whole range, if it was
    /// asked for already.
    ///
    /// # Errors
    /// The store's, once the body has broken off too often; the local disk's.
    pub async fn run(
        &self,
        first: Option<ByteStream>,
        written: &mut dyn Written,
    ) -> Result<(), TransferError> {
        let mut at = self.range.start;
        let mut failures = 0;
        let mut first = first;
        while at < self.range.end {
            let body = match first.take() {
                Some(body) => body,
                None => self.store.get(self.key, self.etag, at..self.range.end).await?,
            };
            let began = at;
            let Err(err) = self.body(body, &mut at, written).await else { continue };
            failures = if at > began { 1 } else { failures + 1 };
            if !err.is_transient() || failures >= TRIES {
                return Err(err);
            }
            let bound = PAUSE * (1 << failures.min(5));
            let pause = rand::rng().random_range(Duration::ZERO..=bound);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn body(
        &self,
        mut body: ByteStream,
        at: &mut u64,
        written: &mut dyn Written,
    ) -> Result<(), TransferError> {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut waiting = 0;
        loop {
            let piece = body.next().await;
            let ended = !matches!(piece, Some(Ok(_)));
            let outcome = match piece {
                Some(Ok(piece)) => {
                    waiting += piece.len();
                    batch.push(piece);
                    Ok(())
                }
                Some(Err(err)) => Err(err),
                None => Ok(()),
            };
            if ended || waiting >= BATCH_BYTES {
                self.write(&batch, *at, written)?;
                *at += waiting as u64;
                self.watch.moved(waiting as u64);
                batch.clear();
                waiting = 0;
            }
            if ended {
                return Ok(outcome?);
            }
        }
    }

    fn write(&self, batch: &[Bytes], at: u64, written: &mut dyn Written) -> Result<(), TransferError> {
        let failed = |source| TransferError::io(self.path, source);
        let len: usize = batch.iter().map(Bytes::len).sum();
        if at + len as u64 > self.range.end {
            return Err(failed(io::Error::other("the remote sent more than was asked for")));
        }
        // Written by the thread that received it, though that blocks: it is a copy into the page cache, and
        // to hand this thread's other work to another one costs more. The command line's runtime for
        // downloads has threads to spare.
        let mut at = at;
        for piece in batch {
            self.file.write_all_at(piece, at).map_err(failed)?;
            written.take(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
