//! Counters of the read path.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// What was read and fetched since the start, and what is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReadStats {
    /// Bytes handed to readers.
    pub served_bytes: u64,
    /// Reads answered at once.
    pub hits: u64,
    /// Reads that had to wait.
    pub misses: u64,
    /// Reads that failed.
    pub failures: u64,
    /// GETs sent.
    pub requests: u64,
    /// Bytes that came from the network.
    pub fetched_bytes: u64,
    /// Bodies that broke off and were continued.
    pub broken_bodies: u64,
    /// Bytes fetched ahead and then read.
    pub prefetch_useful_bytes: u64,
    /// Bytes fetched ahead, or asked for, and let go unread.
    pub prefetch_wasted_bytes: u64,
    /// GETs under way.
    pub in_flight: u64,
    /// Bytes of the memory budget in use.
    pub memory_bytes: u64,
    /// The memory budget in bytes.
    pub memory_limit_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) served_bytes: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) fetched_bytes: AtomicU64,
    pub(crate) broken_bodies: AtomicU64,
    pub(crate) useful_bytes: AtomicU64,
    pub(crate) wasted_bytes: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self, in_flight: u64, memory_bytes: u64, memory_limit_bytes: u64) -> ReadStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReadStats {
            served_bytes: read(&self.served_bytes),
            hits: read(&self.hits),
            misses: read(&self.misses),
            failures: read(&self.failures),
            requests: read(&self.requests),
            fetched_bytes: read(&self.fetched_bytes),
            broken_bodies: read(&self.broken_bodies),
            prefetch_useful_bytes: read(&self.useful_bytes),
            prefetch_wasted_bytes: read(&self.wasted_bytes),
            in_flight,
            memory_bytes,
            memory_limit_bytes,
        }
    }
}
