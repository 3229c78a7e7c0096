//! The memory budget: one fixed number of bytes for the whole daemon.
//!
//! A [`Lease`] is bytes of the budget; it lives inside the buffer that it pays for, so the
//! bytes are free again at the moment the last reader, writer or reply lets the buffer go.
//!
//! No deadlock: prefetch takes only what is free at once. A read that somebody waits for takes
//! what is free, then evicts buffers that are only kept for later, then waits for its turn in a
//! reserve that nothing else uses. A holder of the reserve waits for no further memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::read::RUN_BYTES;

/// The budget is counted in units of this many bytes.
const UNIT_BYTES: u64 = 4096;
/// Smallest budget, in bytes.
pub(crate) const MEMORY_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Largest budget, in bytes: what the semaphore can count.
const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Free buffers that are kept, so that they need not be mapped and zeroed again.
const POOL_BUFFERS_MAX: usize = 16;
/// Kept buffers looked at in one search for something to evict.
const EVICT_STEPS_MAX: usize = 256;
/// Kept buffers on the books, also when nothing presses: they may be very small.
const KEPT_MAX: usize = 65_536;

/// Something that keeps buffers that can be let go.
pub(crate) trait Keeper: Send + Sync {
    /// Lets the buffer `token` go, if it is still kept; unless `only_used` and nobody has read it
    /// yet. Returns its bytes, or `None` if it is to be kept.
    fn let_go(&self, token: u64, only_used: bool) -> Option<u64>;
}

/// Bytes of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    permit: OwnedSemaphorePermit,
    from_reserve: bool,
}

impl Lease {
    /// Takes the part for `bytes` out of this lease. Whoever asks for more than is left gets
    /// what is left.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        let units = (units(bytes) as usize).min(self.permit.num_permits());
        let permit = self.permit.split(units).expect("not more than there is");
        Self { permit, from_reserve: self.from_reserve }
    }

    /// Whether it must be given back soon: a buffer of the reserve is not kept for later.
    pub(crate) fn is_from_reserve(&self) -> bool {
        self.from_reserve
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// The budget, and the buffers that are kept in it.
pub(crate) struct Memory {
    total_bytes: u64,
    reserve_bytes: u64,
    general: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    pool: Mutex<Vec<Vec<u8>>>,
    /// Oldest first.
    kept: Mutex<VecDeque<(Weak<dyn Keeper>, u64)>>,
    /// Reads that wait for memory.
    waiting: AtomicUsize,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("total_bytes", &self.total_bytes).finish_non_exhaustive()
    }
}

impl Memory {
    /// A budget of so many bytes, of which an eighth is the reserve.
    pub(crate) fn new(total_bytes: u64) -> Arc<Self> {
        let total_bytes = total_bytes.clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
        let reserve_bytes = total_bytes / 8;
        let semaphore = |bytes| Arc::new(Semaphore::new(units(bytes) as usize));
        Arc::new(Self {
            total_bytes,
            reserve_bytes,
            general: semaphore(total_bytes - reserve_bytes),
            reserve: semaphore(reserve_bytes),
            pool: Mutex::default(),
            kept: Mutex::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The budget in bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes of the budget that are in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        let free = self.general.available_permits() + self.reserve.available_permits();
        self.total_bytes.saturating_sub(free as u64 * UNIT_BYTES)
    }

    /// Whether reads wait for memory, or prefetch would have to.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// A lease for prefetch: what is free at once, or can be made free by letting buffers go that
    /// have been read.
    pub(crate) fn try_lease(&self, bytes: u64) -> Option<Lease> {
        if self.is_short() {
            return None;
        }
        self.try_take(bytes).or_else(|| {
            self.evict(bytes, true);
            self.try_take(bytes)
        })
    }

    fn try_take(&self, bytes: u64) -> Option<Lease> {
        let permit = Arc::clone(&self.general).try_acquire_many_owned(units(bytes)).ok()?;
        Some(Lease { permit, from_reserve: false })
    }

    /// A lease for a read that somebody waits for; at most what the reserve has.
    pub(crate) async fn lease(&self, bytes: u64) -> Lease {
        let bytes = bytes.min(self.reserve_bytes);
        if let Some(lease) = self.try_take(bytes) {
            return lease;
        }
        for only_used in [true, false] {
            self.evict(bytes, only_used);
            if let Some(lease) = self.try_take(bytes) {
                return lease;
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.reserve).acquire_many_owned(units(bytes)).await;
        Lease { permit: permit.expect("the semaphore is never closed"), from_reserve: true }
    }

    /// Whether so much of the reserve is free that a buffer of it may wait for the disk, which
    /// may hang.
    pub(crate) fn reserve_is_ample(&self) -> bool {
        self.reserve.available_permits() as u64 * UNIT_BYTES >= self.reserve_bytes / 2
    }

    /// Notes a buffer that is kept for later and can be let go.
    pub(crate) fn keep(&self, keeper: Weak<dyn Keeper>, token: u64) {
        let mut kept = self.kept.lock();
        while kept.front().is_some_and(|(keeper, _)| keeper.strong_count() == 0) {
            kept.pop_front();
        }
        kept.push_back((keeper, token));
        let oldest = if kept.len() > KEPT_MAX { kept.pop_front() } else { None };
        drop(kept);
        if let Some((keeper, token)) = oldest
            && let Some(keeper) = keeper.upgrade()
        {
            keeper.let_go(token, false);
        }
    }

    /// Lets kept buffers go, oldest first, until `bytes` were let go or nothing is left.
    fn evict(&self, bytes: u64, only_used: bool) {
        let mut freed = 0;
        let mut spared = Vec::new();
        for _ in 0..EVICT_STEPS_MAX {
            if freed >= bytes {
                break;
            }
            let Some((keeper, token)) = self.kept.lock().pop_front() else { break };
            let Some(alive) = keeper.upgrade() else { continue };
            match alive.let_go(token, only_used) {
                Some(bytes) => freed += bytes,
                None => spared.push((keeper, token)),
            }
        }
        if !spared.is_empty() {
            let mut kept = self.kept.lock();
            spared.into_iter().rev().for_each(|spared| kept.push_front(spared));
        }
    }

    /// An empty buffer with room for `len` bytes.
    pub(crate) fn buffer(self: &Arc<Self>, len: usize, lease: Lease) -> Buffer {
        let pooled = if len == RUN_BYTES as usize { self.pool.lock().pop() } else { None };
        let vec = pooled.unwrap_or_else(|| Vec::with_capacity(len));
        Buffer { vec, len, memory: Arc::clone(self), lease }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A buffer that is being filled, and then shared as [`Bytes`].
#[derive(Debug)]
pub(crate) struct Buffer {
    vec: Vec<u8>,
    len: usize,
    memory: Arc<Memory>,
    lease: Lease,
}

impl Buffer {
    /// Takes from the front of `piece` what there is room for.
    pub(crate) fn fill(&mut self, piece: &mut Bytes) {
        let taken = piece.split_to(piece.len().min(self.len - self.vec.len()));
        self.vec.extend_from_slice(&taken);
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        self.vec.len() == self.len
    }

    /// Whether the buffer must not be kept for later.
    pub(crate) fn is_from_reserve(&self) -> bool {
        self.lease.is_from_reserve()
    }

    /// The content, to be shared without copying.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.vec
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len == RUN_BYTES as usize {
            let mut pool = self.memory.pool.lock();
            if pool.len() < POOL_BUFFERS_MAX {
                let mut vec = std::mem::take(&mut self.vec);
                vec.clear();
                pool.push(vec);
            }
        }
    }
}
