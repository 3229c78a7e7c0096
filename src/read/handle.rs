//! One open file: answers reads, and watches how it is read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::time;

use crate::block;
use crate::cache::Lookup;
use crate::read::OpenObject;
use crate::read::ReadError;
use crate::read::STREAM_BYTES_MIN;
use crate::read::part::Claim;
use crate::read::part::Piece;
use crate::read::prefetch;
use crate::read::prefetch::Access;
use crate::read::prefetch::Prefetcher;
use crate::read::prefetch::StreamId;
use crate::read::stats::count;
use crate::read::streams::Streaming;
use crate::store::StoreError;

/// A longer read is answered in steps of this many bytes: FUSE asks for no more at once, and the
/// memory reserve must hold a step.
const STEP_BYTES: u64 = 1024 * 1024;
/// In steps of so many bytes a reader's way is told of that lies behind it. More than the kernel reads ahead.
const BEHIND_BYTES: u64 = 8 * 1024 * 1024;
/// So many steps back, at most: further back the cache's disk was too slow, or the reader went elsewhere.
const BEHIND_STEPS_MAX: u64 = 16;
/// Of an object that is larger than this share of the cache, what is left behind stays with whoever keeps it:
/// the cache may have to evict it before it is read again.
const BEHIND_CACHE_SHARE: u64 = 2;
/// How often a read looks again when what it waited for was taken away by others.
const ROUNDS_MAX: usize = 64;

/// One open file.
#[derive(Debug)]
pub struct ReadHandle {
    object: Arc<OpenObject>,
    /// What is read is kept by whoever has the handle.
    kept_elsewhere: AtomicBool,
    /// Steps of [`BEHIND_BYTES`] that [`ReadHandle::left_behind`] has told of.
    behind: AtomicU64,
    pattern: Mutex<Pattern>,
}

#[derive(Debug, Default)]
struct Pattern {
    prefetcher: Prefetcher,
    /// What is being fetched ahead for this handle.
    claims: Vec<(StreamId, Claim)>,
    /// Alive while this handle counts as a stream.
    streaming: Weak<Streaming>,
    /// The last prefetch was refused for want of memory or requests.
    refused: bool,
}

impl ReadHandle {
    pub(crate) fn new(object: Arc<OpenObject>) -> Self {
        let kept_elsewhere = AtomicBool::new(false);
        Self { object, kept_elsewhere, behind: AtomicU64::new(0), pattern: Mutex::default() }
    }

    /// From now on as if it had been made with [`Pages::LetGo`] (see [`OpenObject::handle_with`]).
    ///
    /// [`Pages::LetGo`]: crate::cache::Pages::LetGo
    pub fn keep_elsewhere(&self) {
        if !self.kept_elsewhere.swap(true, Ordering::Relaxed) {
            self.object.kept_elsewhere.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> &Arc<OpenObject> {
        &self.object
    }

    /// Bytes that can be had without waiting for the network, or long for the disk: of a large object whose
    /// reader keeps them, only what is in memory. Fewer than asked only at the end of the object. `None`: ask [`Self::read`].
    ///
    /// The bytes may be a mapping of the cache file. **Hand them to the kernel** (a reply to the
    /// FUSE device) and nothing else: should somebody truncate the file, the kernel's copy fails
    /// with an errno, where touching them would be SIGBUS.
    #[must_use]
    pub fn try_read(&self, offset: u64, len: u32) -> Option<Bytes> {
        let bytes = block::clip(offset, u64::from(len), self.object.version.size_bytes);
        if bytes.is_empty() {
            return Some(Bytes::new());
        }
        let hit = self.object.lookup(&bytes, true)?;
        self.served(&bytes, false);
        Some(hit)
    }

    /// Bytes from the cache or the network; fewer than asked only at the end of the object. They
    /// are never a mapping. Dropping the future gives the read up.
    ///
    /// # Errors
    /// See [`ReadError`]. The next read tries anew.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let bytes = block::clip(offset, u64::from(len), self.object.version.size_bytes);
        let result = self.read_within_deadline(&bytes).await;
        if result.is_err() {
            count(&self.object.counters.failures, 1);
        }
        result
    }

    /// Bytes of a large object that a reader who has asked for everything up to `end` has left behind
    /// since this was last called, as far as they are in the cache and will be there when they are read again:
    /// whoever keeps them besides may let go of them.
    #[must_use]
    pub fn left_behind(&self, end: u64) -> Option<Range<u64>> {
        let cache_bytes = self.object.reader.cache.limit_bytes();
        let worth = STREAM_BYTES_MIN..=cache_bytes / BEHIND_CACHE_SHARE;
        if !worth.contains(&self.object.version.size_bytes) {
            return None;
        }
        // The last step but one: the kernel asks for more than its reader has read.
        let until = (end / BEHIND_BYTES).saturating_sub(1);
        let first = self.behind.load(Ordering::Relaxed).max(until.saturating_sub(BEHIND_STEPS_MAX));
        let bytes = |step: u64| step * BEHIND_BYTES..(step + 1) * BEHIND_BYTES;
        let kept = (first..until).take_while(|step| self.object.is_verified(&bytes(*step))).count() as u64;
        if kept == 0 {
            return None;
        }
        self.behind.store(first + kept, Ordering::Relaxed);
        Some(bytes(first).start..bytes(first + kept).start)
    }

    async fn read_within_deadline(&self, bytes: &Range<u64>) -> Result<Bytes, ReadError> {
        let patience = self.object.reader.options.read_timeout;
        match time::timeout(patience, self.read_steps(bytes)).await {
            Ok(result) => result,
            Err(_elapsed) => {
                self.object.give_up_stalled(bytes);
                Err(ReadError::Timeout { key: self.object.version.key.clone(), after: patience })
            }
        }
    }

    async fn read_steps(&self, bytes: &Range<u64>) -> Result<Bytes, ReadError> {
        if bytes.end - bytes.start <= STEP_BYTES {
            return self.read_step(bytes).await;
        }
        let mut whole = BytesMut::with_capacity((bytes.end - bytes.start) as usize);
        let mut at = bytes.start;
        while at < bytes.end {
            let end = bytes.end.min((at / STEP_BYTES + 1) * STEP_BYTES);
            whole.extend_from_slice(&self.read_step(&(at..end)).await?);
            at = end;
        }
        Ok(whole.freeze())
    }

    async fn read_step(&self, bytes: &Range<u64>) -> Result<Bytes, ReadError> {
        if bytes.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(hit) = self.object.lookup(bytes, false) {
            self.served(bytes, false);
            return Ok(hit);
        }
        let access = Access { offset: bytes.start, len: bytes.end - bytes.start, waited: true };
        let demand = prefetch::demand(&access, self.object.version.size_bytes);
        let mut first_round = true;
        for _ in 0..ROUNDS_MAX {
            let pieces = self.object.gather(bytes, &demand);
            if std::mem::take(&mut first_round) {
                self.served(bytes, true); // the window is fetched in parallel with what is asked
            }
            if let Some(answer) = self.wait_for(bytes, pieces).await? {
                return Ok(answer);
            }
        }
        let key = &self.object.version.key;
        Err(ReadError::Store(StoreError::unavailable(key, "what was fetched was taken away each time")))
    }

    /// Waits for the pieces of an answer; `None` if one of them went away meanwhile.
    async fn wait_for(&self, bytes: &Range<u64>, pieces: Vec<Piece>) -> Result<Option<Bytes>, ReadError> {
        let mut found: Vec<(u64, Bytes)> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (start, content) = match piece {
                Piece::Ready(start, content) => (start, content),
                Piece::Wait { first, mut outcome, claim } => {
                    let outcome = match outcome.wait_for(Option::is_some).await {
                        Ok(outcome) => outcome.clone(),
                        Err(_cancelled) => return Ok(None),
                    };
                    drop(claim);
                    let Some(content) = outcome else { return Ok(None) };
                    (block::range_of(first, self.object.version.size_bytes).start, content?)
                }
                Piece::Disk(range) => {
                    let (entry, start) = (Arc::clone(&self.object.entry), range.start);
                    let read = self.object.reader.runtime.spawn_blocking(move || entry.read(&range, true));
                    match read.await {
                        Ok(Lookup::Hit(content)) => (start, content),
                        Ok(Lookup::Miss | Lookup::WouldBlock) | Err(_) => return Ok(None),
                    }
                }
            };
            found.push((start, content));
        }
        Ok(assemble(bytes, &found))
    }

    /// Counts a read and lets the prefetcher see it.
    fn served(&self, bytes: &Range<u64>, waited: bool) {
        let reader = &self.object.reader;
        let counters = &*self.object.counters;
        count(&counters.served_bytes, bytes.end - bytes.start);
        count(if waited { &counters.misses } else { &counters.hits }, 1);
        let mut guard = self.pattern.lock();
        let pattern = &mut *guard;
        pattern.claims.retain(|(_, claim)| !claim.is_done());
        let access = Access { offset: bytes.start, len: bytes.end - bytes.start, waited };
        let is_streaming = pattern.streaming.strong_count() > 0;
        let limits = reader.limits(std::mem::take(&mut pattern.refused), is_streaming);
        let plan = pattern.prefetcher.access(&access, self.object.version.size_bytes, &limits);
        pattern.claims.retain(|(stream, _)| !plan.abandon.contains(stream));
        let known = pattern.claims.len();
        for range in &plan.fetch {
            let (claims, refused) = self.object.fetch_ahead(range, plan.part_bytes);
            pattern.claims.extend(claims.into_iter().map(|claim| (plan.stream, claim)));
            if let Some(from) = refused {
                pattern.prefetcher.refused(plan.stream, from);
                pattern.refused = true;
                break;
            }
        }
        if !pattern.claims.is_empty() {
            let streaming = pattern.streaming.upgrade().unwrap_or_else(|| reader.streams.begin());
            pattern.claims[known..].iter().for_each(|(_, claim)| claim.is_ahead_for(&streaming));
            pattern.streaming = Arc::downgrade(&streaming);
            reader.streams.read(&streaming);
        }
    }
}

impl Drop for ReadHandle {
    fn drop(&mut self) {
        if let Some(streaming) = self.pattern.get_mut().streaming.upgrade() {
            streaming.end();
        }
        self.object.handle_closed(*self.kept_elsewhere.get_mut());
        if let Some(recent) = self.object.recent.upgrade() {
            recent.remember(&self.object);
        }
    }
}

/// Puts an answer together from pieces in order: a slice of one, or a copy of several. `None` if
/// they leave a gap.
fn assemble(bytes: &Range<u64>, pieces: &[(u64, Bytes)]) -> Option<Bytes> {
    let mut copy = BytesMut::new();
    let mut at = bytes.start;
    for (start, content) in pieces {
        let end = (start + content.len() as u64).min(bytes.end);
        if *start > at || end <= at {
            return None;
        }
        let part = content.slice((at - start) as usize..(end - start) as usize);
        if at == bytes.start && end == bytes.end {
            return Some(part);
        }
        copy.reserve((bytes.end - at) as usize);
        copy.extend_from_slice(&part);
        at = end;
    }
    (at == bytes.end).then(|| copy.freeze())
}
