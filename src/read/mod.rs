//! Reading published objects: cache, network, and what is fetched before it is asked for.
//!
//! ```text
//! Reader       one for each mount: store, cache, memory budget, limits
//! OpenObject   one version of one object, shared by its handles: the runs in memory and on
//!              their way (single-flight), the place in the cache
//! ReadHandle   one open file: the access pattern, and what was fetched ahead for it
//! ```
//!
//! A *run* is up to a mebibyte of an object in one buffer: the step in which a body becomes
//! readable, the piece that is written to the cache file at once, and what a reply is sliced
//! from without copying. A *part* is one ranged GET: one run or several in a row.
//!
//! # Promises
//!
//! 1. Every byte belongs to the version that was opened; every GET names its ETag. Another
//!    version at the server is [`ReadError::Changed`], never a mixture.
//! 2. A block is fetched once for any number of readers that wait for it.
//! 3. A read ends within `read_timeout`. A failure is told to those who wait and remembered by
//!    nobody: the next read tries anew.
//! 4. What nobody wants any more (a closed handle, a stream that was left, an interrupted read)
//!    is not fetched further, unless somebody else waits for it.
//! 5. Memory for data stays within one budget, whatever the number of handles. A budget that is
//!    used up slows prefetch down and fails no read.
//! 6. The cache is optional: without it everything is right, only slower.
//!
//! # What this module does not know
//!
//! Paths, inodes, FUSE, errno; what is listed or staged.

mod fetch;
mod handle;
mod hint;
mod load;
mod memory;
mod object;
mod part;
mod prefetch;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod whole;

pub use handle::ReadHandle;
pub use load::Loaded;
pub use object::OpenObject;
pub use stats::DatasetStats;
pub use stats::ReadStats;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::VersionId;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::read::hint::Hints;
use crate::read::memory::Memory;
use crate::read::prefetch::Limits;
use crate::read::stats::AllCounters;
use crate::read::streams::Streams;
use crate::store::ObjectStore;
use crate::store::StoreError;

/// Most bytes of a run; see the module's header.
pub(crate) const RUN_BYTES: u64 = 1024 * 1024;
/// Blocks in the longest run.
pub(crate) const RUN_BLOCKS: u64 = RUN_BYTES / BLOCK_BYTES;
/// This share of the requests is for readers that wait, and not for prefetch. Requests for small
/// objects leave but one: they are over soon, and whoever waits comes next.
const DEMAND_SHARE: usize = 8;
/// Fewest requests at a time.
const REQUESTS_MIN: usize = 4;
/// Smallest object whose readers are taken for streams: what they have read is kept in memory once, in
/// the pages of the mounted file or in those of the cache's, and not in both.
pub(crate) const STREAM_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Largest cached file that is verified while somebody waits; it takes a few hundredths of a second, where
/// the disk is fast.
pub(crate) const VERIFY_SOON_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Files that are verified at a time while somebody waits. Each takes a thread.
const VERIFYING_MAX: usize = 8;
/// Larger files that are verified at a time.
const VERIFYING_LARGE_MAX: usize = 2;
/// Pieces of cached files that are read and checked ahead of readers at a time.
const WARMING_MAX: usize = 4;

/// Closed objects of at most one block that are remembered, with what of them is in memory.
const RECENT_SMALL_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Closed larger objects that are remembered: each holds two file descriptors.
const RECENT_LARGE_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// One version of one object: what a file is when it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectVersion {
    /// The object.
    pub key: ObjectKey,
    /// Its version.
    pub etag: ETag,
    /// That version's size in bytes.
    pub size_bytes: u64,
}

/// Limits of a [`Reader`].
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Bytes of data in memory, at most: fetched, being fetched, or on their way to the cache.
    pub memory_bytes: u64,
    /// A read ends after this long, at the latest.
    pub read_timeout: Duration,
    /// GETs at a time, at most. No more than the store sends at a time, or those that nobody waits for
    /// stand in line there before the others.
    pub requests_max: usize,
    /// Where the datasets are: what is directly below is counted by itself.
    pub datasets: KeyPrefix,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 256 * 1024 * 1024,
            read_timeout: Duration::from_secs(60),
            requests_max: 64,
            datasets: KeyPrefix::from_listing(""),
        }
    }
}

/// Why a read failed, sorted by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The object was replaced or deleted since it was opened: open it again.
    #[error("{key} was replaced or deleted after it was opened")]
    Changed {
        /// The object.
        key: ObjectKey,
    },
    /// The store did not answer in time: try again later.
    #[error("no data of {key} within {seconds} s", seconds = after.as_secs_f32())]
    Timeout {
        /// The object.
        key: ObjectKey,
        /// How long was waited.
        after: Duration,
    },
    /// The store refused, or failed for longer than it was asked again.
    #[error(transparent)]
    Store(StoreError),
}

/// Reads the objects of one store through one cache.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    recent: Arc<Recent>,
    hints: Hints,
}

/// Closed a moment ago, and likely to be opened again. Their memory can be taken at any time.
#[derive(Debug)]
struct Recent {
    small: Mutex<LruCache<VersionId, Arc<OpenObject>>>,
    large: Mutex<LruCache<VersionId, Arc<OpenObject>>>,
}

/// What all objects of a reader share; objects keep it alive, and it keeps no object.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn ObjectStore>,
    identity: String,
    cache: Arc<BlockCache>,
    options: ReadOptions,
    runtime: Handle,
    memory: Arc<Memory>,
    /// GETs at a time.
    requests: Arc<Semaphore>,
    /// Of these, GETs that nobody waits for yet.
    ahead: Arc<Semaphore>,
    /// How many of `ahead` those for more than a block leave free.
    spared: usize,
    warming: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
    verifying_large: Arc<Semaphore>,
    open: Mutex<HashMap<VersionId, Weak<OpenObject>>>,
    /// Handles that share the memory for what is fetched ahead.
    streams: Streams,
    counters: AllCounters,
}

impl Reader {
    /// A reader of `store`, which the cache knows as `store_identity`. Network tasks run on
    /// `runtime`, whichever thread asks.
    #[must_use]
    pub fn new(
        store: Arc<dyn ObjectStore>,
        store_identity: String,
        cache: Arc<BlockCache>,
        options: ReadOptions,
        runtime: Handle,
    ) -> Arc<Self> {
        let requests = options.requests_max.max(REQUESTS_MIN);
        let shared = Shared {
            store,
            identity: store_identity,
            cache,
            memory: Memory::new(options.memory_bytes),
            counters: AllCounters::new(options.datasets.clone()),
            options,
            runtime,
            requests: Arc::new(Semaphore::new(requests)),
            ahead: Arc::new(Semaphore::new(requests - 1)),
            spared: (requests / DEMAND_SHARE).saturating_sub(1),
            warming: Arc::new(Semaphore::new(WARMING_MAX)),
            verifying: Arc::new(Semaphore::new(VERIFYING_MAX)),
            verifying_large: Arc::new(Semaphore::new(VERIFYING_LARGE_MAX)),
            open: Mutex::default(),
            streams: Streams::new(),
        };
        let recent = Recent {
            small: Mutex::new(LruCache::new(RECENT_SMALL_MAX)),
            large: Mutex::new(LruCache::new(RECENT_LARGE_MAX)),
        };
        let hints = Hints::new(shared.memory.total_bytes() / hint::MEMORY_SHARE);
        Arc::new(Self { shared: Arc::new(shared), recent: Arc::new(recent), hints })
    }

    /// Opens a version, without asking anybody whether it exists. All openers share one object
    /// for as long as one of them holds it.
    #[must_use]
    pub fn open(&self, version: ObjectVersion) -> Arc<OpenObject> {
        let id = self.version_id(&version);
        self.hints.opened(&id);
        self.object(id, version)
    }

    fn object(&self, id: VersionId, version: ObjectVersion) -> Arc<OpenObject> {
        let mut open = self.shared.open.lock();
        if let Some(object) = open.get(&id).and_then(Weak::upgrade) {
            drop(open);
            object.entry.check_linked();
            return object;
        }
        let entry = self.shared.cache.entry(&id, version.size_bytes);
        let recent = Arc::downgrade(&self.recent);
        let object = OpenObject::new(Arc::clone(&self.shared), recent, version, id, entry);
        open.insert(id, Arc::downgrade(&object));
        object
    }

    /// Fetches small objects that are expected to be opened next, in this order, while memory and
    /// requests allow it; larger and cached ones are passed over. Returns how many of them were
    /// dealt with: the caller may hint at the rest later. Hints that do not come true stop being
    /// fetched by themselves.
    pub fn hint_next(&self, versions: &[ObjectVersion]) -> usize {
        for (done, version) in versions.iter().enumerate() {
            let id = self.version_id(version);
            let size_bytes = version.size_bytes;
            if size_bytes == 0 || size_bytes > prefetch::WHOLE_BYTES_MAX || self.hints.has(&id) {
                continue;
            }
            if !self.hints.are_good() {
                self.hints.add(id, None, Vec::new(), 0);
                continue;
            }
            if !self.hints.make_room(size_bytes) {
                return done;
            }
            let object = self.object(id, version.clone());
            if object.lookup_present() {
                continue;
            }
            let (claims, refused) = object.fetch_ahead(&(0..size_bytes), size_bytes);
            if refused.is_some() {
                return done;
            }
            self.hints.add(id, Some(object), claims, size_bytes);
        }
        versions.len()
    }

    /// Forgets what is in memory of a version: its next opener begins anew, and asks cache and store.
    pub fn forget(&self, key: &ObjectKey, etag: &ETag) {
        let id = VersionId::new(&self.shared.identity, key, etag);
        let forgotten = [self.recent.small.lock().pop(&id), self.recent.large.lock().pop(&id)];
        let open = self.shared.open.lock().remove(&id);
        drop((forgotten, open)); // outside the locks: they may be the last holders
    }

    /// Whether every block of a version is in the cache.
    #[must_use]
    pub fn is_cached(&self, version: &ObjectVersion) -> bool {
        let entry = self.shared.cache.entry(&self.version_id(version), version.size_bytes);
        let blocks = crate::block::count(version.size_bytes);
        entry.refresh(0..blocks);
        (0..blocks).all(|index| entry.is_present(index))
    }

    /// The id under which the cache knows a version.
    #[must_use]
    pub fn version_id(&self, version: &ObjectVersion) -> VersionId {
        VersionId::new(&self.shared.identity, &version.key, &version.etag)
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.shared.cache
    }

    /// What was read and fetched of each dataset.
    #[must_use]
    pub fn stats_by_dataset(&self) -> BTreeMap<String, DatasetStats> {
        self.shared.counters.by_dataset()
    }

    /// What was read and fetched so far, and what is under way.
    #[must_use]
    pub fn stats(&self) -> ReadStats {
        let shared = &*self.shared;
        let in_flight = shared.options.requests_max.max(REQUESTS_MIN) - shared.requests.available_permits();
        shared.counters.sum(in_flight as u64, shared.memory.used_bytes(), shared.memory.total_bytes())
    }
}

impl Recent {
    /// A handle was closed: the object is remembered for a while.
    fn remember(&self, object: &Arc<OpenObject>) {
        let small = object.version.size_bytes <= BLOCK_BYTES;
        let recent = if small { &self.small } else { &self.large };
        let forgotten = recent.lock().push(*object.id(), Arc::clone(object));
        drop(forgotten); // outside the lock: it may be the last holder
    }
}

impl Shared {
    /// What one handle may have ahead of it now, beside the others that are streaming.
    fn limits(&self, refused: bool, is_streaming: bool) -> Limits {
        let handles = (self.streams.count() + usize::from(!is_streaming)).max(1) as u64;
        let window_max = (self.memory.total_bytes() / 2 / handles).clamp(RUN_BYTES, prefetch::WINDOW_MAX);
        Limits { window_max, pressure: refused || self.memory.is_short() }
    }

    /// An object's last holder is gone.
    fn closed(&self, id: &VersionId) {
        let mut open = self.open.lock();
        if open.get(id).is_some_and(|object| object.strong_count() == 0) {
            open.remove(id);
        }
    }
}
