//! One request of an open version: who wants what it fetches, and whether it gets anywhere.
//!
//! A part knows nothing of the runs that it becomes, which are the object's
//! ([`crate::read::object`]). How many claims there are on it changes under the lock of those runs only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::read::ReadError;
use crate::read::object::OpenObject;
use crate::read::streams::Streaming;

/// What a pending run becomes; `None` while it is pending.
pub(crate) type Outcome = Option<Result<Bytes, ReadError>>;

/// One GET. Cancelled when the last claim on it is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) blocks: Range<u64>,
    pub(crate) cancel: CancellationToken,
    claims: AtomicUsize,
    done: AtomicBool,
    /// When the last bytes came.
    progress: Mutex<Instant>,
    /// Handles for which it is fetched ahead; none once it is done.
    streams: Mutex<Vec<Arc<Streaming>>>,
}

impl Part {
    pub(super) fn new(blocks: Range<u64>) -> Self {
        Self {
            blocks,
            cancel: CancellationToken::new(),
            claims: AtomicUsize::new(0),
            done: AtomicBool::new(false),
            progress: Mutex::new(Instant::now()),
            streams: Mutex::default(),
        }
    }

    pub(crate) fn progressed(&self) {
        *self.progress.lock() = Instant::now();
    }

    /// Whether nothing has come for so long.
    pub(super) fn is_stuck(&self, patience: Duration) -> bool {
        self.progress.lock().elapsed() >= patience
    }

    pub(crate) fn finished(&self) {
        let mut streams = self.streams.lock();
        self.done.store(true, Ordering::Release);
        streams.clear();
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Takes one claim off; whether it was the last.
    pub(super) fn unclaimed(&self) -> bool {
        self.claims.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Keeps a part from being cancelled.
#[derive(Debug)]
pub(crate) struct Claim {
    object: Arc<OpenObject>,
    part: Arc<Part>,
}

impl Claim {
    /// Whoever makes one holds the lock of the object's runs, or is the first to know of the part.
    pub(super) fn new(object: Arc<OpenObject>, part: &Arc<Part>) -> Self {
        part.claims.fetch_add(1, Ordering::Relaxed);
        Self { object, part: Arc::clone(part) }
    }

    /// Whether there is nothing left to claim.
    pub(crate) fn is_done(&self) -> bool {
        self.part.is_done()
    }

    /// Its part is fetched ahead for this handle: until that is done, the handle counts.
    pub(super) fn is_ahead_for(&self, handle: &Arc<Streaming>) {
        let mut streams = self.part.streams.lock();
        if !self.part.is_done() {
            streams.push(Arc::clone(handle));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.object.unclaim(&self.part);
    }
}

/// A piece of an answer.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes from this offset of the object on.
    Ready(u64, Bytes),
    /// Blocks from the first on are being fetched.
    Wait { first: u64, outcome: watch::Receiver<Outcome>, claim: Claim },
    /// Bytes that are in the cache file.
    Disk(Range<u64>),
}
