//! Counters of the read path: one set for each dataset, and their sums.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::name::KeyPrefix;
use crate::name::ObjectKey;

/// Datasets that are counted by themselves; what is read of others is in the sums only.
const DATASETS_MAX: usize = 10_000;

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

/// What was read and fetched of one dataset since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DatasetStats {
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
    /// Bytes fetched ahead and then read.
    pub prefetch_useful_bytes: u64,
    /// Bytes fetched ahead, or asked for, and let go unread.
    pub prefetch_wasted_bytes: u64,
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
    fn of_dataset(&self) -> DatasetStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DatasetStats {
            served_bytes: read(&self.served_bytes),
            hits: read(&self.hits),
            misses: read(&self.misses),
            failures: read(&self.failures),
            requests: read(&self.requests),
            fetched_bytes: read(&self.fetched_bytes),
            prefetch_useful_bytes: read(&self.useful_bytes),
            prefetch_wasted_bytes: read(&self.wasted_bytes),
        }
    }

    fn add_to(&self, sum: &mut ReadStats) {
        let own = self.of_dataset();
        sum.served_bytes += own.served_bytes;
        sum.hits += own.hits;
        sum.misses += own.misses;
        sum.failures += own.failures;
        sum.requests += own.requests;
        sum.fetched_bytes += own.fetched_bytes;
        sum.broken_bodies += self.broken_bodies.load(Ordering::Relaxed);
        sum.prefetch_useful_bytes += own.prefetch_useful_bytes;
        sum.prefetch_wasted_bytes += own.prefetch_wasted_bytes;
    }
}

/// The counters of all datasets: what is directly below `prefix` is one.
#[derive(Debug)]
pub(crate) struct AllCounters {
    prefix: KeyPrefix,
    others: Arc<Counters>,
    datasets: Mutex<HashMap<Box<str>, Arc<Counters>>>,
}

impl AllCounters {
    pub(crate) fn new(prefix: KeyPrefix) -> Self {
        Self { prefix, others: Arc::default(), datasets: Mutex::default() }
    }

    /// The counters that a key belongs to.
    pub(crate) fn of(&self, key: &ObjectKey) -> Arc<Counters> {
        let Some((dataset, _)) = self.prefix.strip(key).and_then(|path| path.split_once('/')) else {
            return Arc::clone(&self.others);
        };
        let mut datasets = self.datasets.lock();
        if let Some(known) = datasets.get(dataset) {
            return Arc::clone(known);
        }
        if datasets.len() >= DATASETS_MAX {
            return Arc::clone(&self.others);
        }
        Arc::clone(datasets.entry(dataset.into()).or_default())
    }

    pub(crate) fn by_dataset(&self) -> BTreeMap<String, DatasetStats> {
        let datasets = self.datasets.lock();
        datasets.iter().map(|(name, counters)| (name.to_string(), counters.of_dataset())).collect()
    }

    pub(crate) fn sum(&self, in_flight: u64, memory_bytes: u64, memory_limit_bytes: u64) -> ReadStats {
        let mut sum = ReadStats { in_flight, memory_bytes, memory_limit_bytes, ..ReadStats::default() };
        self.others.add_to(&mut sum);
        self.datasets.lock().values().for_each(|counters| counters.add_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dataset_has_its_own_counters_and_the_sum_has_all() {
        let all = AllCounters::new(KeyPrefix::parse("d").unwrap());
        let of = |key: &str| all.of(&ObjectKey::parse(key).unwrap());
        count(&of("d/a/x").served_bytes, 1);
        count(&of("d/a/sub/y").served_bytes, 2);
        count(&of("d/b/x").served_bytes, 4);
        count(&of("elsewhere/x").served_bytes, 8);
        let served = |name: &str| all.by_dataset()[name].served_bytes;
        assert_eq!((served("a"), served("b")), (3, 4));
        assert_eq!(all.by_dataset().len(), 2);
        assert_eq!(all.sum(0, 0, 0).served_bytes, 15);
    }
}
