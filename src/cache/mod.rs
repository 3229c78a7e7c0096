//! The block cache on the local disk.
//!
//! Published objects never change under their ETag, so what has been read once can be kept for
//! as long as there is room: across handles, across mounts, across restarts. One sparse file
//! per object version, beside it a map of checksums; [`format`] has every byte of it.
//!
//! # Promises
//!
//! 1. No wrong byte. A block is handed out only after it was compared with its checksum by this
//!    process, or written by it; a block that fails is a miss, and is fetched again. What the kernel took and
//!    then could not write (`writeback`) is noticed before a file is handed over whole, at each close and a
//!    few times a minute; then each block of the file is compared again. So is a file that was closed within a
//!    minute of being written.
//! 2. Never fatal. A directory that is missing, full, read-only or failing is bypassed: that is
//!    said once, and tried again later. So is, silently, a file that cannot be opened or changed.
//! 3. kill -9 at any moment costs at most the blocks that were being written. Nothing is synced.
//! 4. Several processes share a directory. They never truncate or punch a file, nor give back
//!    room other than by unlinking; what is open or mapped stays valid. What another one has
//!    unlinked is closed when the directory is looked at, when room is needed, or at the next open.
//! 5. Within `limit_bytes`, longest unused first, and with `reserve_bytes` of the disk left
//!    free. Pinned versions stand outside.
//! 6. [`BlockCache::open`] does not wait for the directory to be read, however full it is.
//!
//! # What this module does not know
//!
//! Object stores and the network; who reads, and what will be read next. It loads nothing.

mod admit;
mod audit;
mod entry;
mod files;
pub(crate) mod format;
mod health;
mod index;
mod keep;
mod last_use;
mod maintenance;
mod mapping;
mod one;
mod page_cache;
mod paths;
mod queue;
#[cfg(test)]
mod tests;
mod writeback;

pub use audit::Audit;
pub use entry::Entry;
pub use files::Lookup;
pub use format::VersionId;
pub use keep::Checked;
pub use queue::Pages;

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::Mutex;

use crate::cache::files::Stamp;
use crate::cache::health::Health;
use crate::cache::index::Index;
use crate::cache::last_use::LastUse;
use crate::cache::mapping::Mappings;
use crate::cache::paths::Paths;
use crate::cache::queue::WriteQueue;
use crate::cache::writeback::Writeback;
use crate::clock::Clock;
use crate::clock::SystemClock;

/// How many versions are remembered as verified whole after they were closed.
const WHOLE_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// The free room of the disk is looked at again after this many bytes were written.
const CHECK_DISK_EVERY_BYTES: u64 = 32 * 1024 * 1024;
/// A version's time of use on disk is renewed when it is older than this, in seconds.
const USED_RENEW_SECONDS: u64 = 3600;

/// Where the cache is and how large it may be.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// The cache's own directory; made if it is missing.
    pub dir: PathBuf,
    /// Most bytes on disk, without the pinned ones.
    pub limit_bytes: u64,
    /// This much of the disk is left free.
    pub reserve_bytes: u64,
    /// The daemon's budget for data in memory; a quarter of it may wait for the disk.
    pub memory_bytes: u64,
}

/// The cache as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheUsage {
    /// Most bytes on disk, without the pinned ones.
    pub limit_bytes: u64,
    /// Bytes on disk that count against the limit.
    pub used_bytes: u64,
    /// Bytes of pinned versions.
    pub pinned_bytes: u64,
    /// Cached versions.
    pub files: u64,
    /// Whether the directory was read whole since the start: before that the sums are too low.
    pub scanned: bool,
    /// Lookups that were answered.
    pub hits: u64,
    /// Lookups that were not.
    pub misses: u64,
    /// Bytes written since the start.
    pub written_bytes: u64,
    /// Versions evicted since the start.
    pub evicted_files: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Blocks that failed their check since the start, and were dropped.
    pub damaged_blocks: u64,
    /// Times that a file was found to have lost what was written to it, on its way to the disk.
    pub lost_writes: u64,
    /// Why the disk is bypassed, if it is.
    pub bypassed: Option<String>,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    written_bytes: AtomicU64,
    evicted_files: AtomicU64,
    evicted_bytes: AtomicU64,
    damaged_blocks: AtomicU64,
    lost_writes: AtomicU64,
}

/// The cache. One for each process and directory; other processes may have the same directory.
#[derive(Debug)]
pub struct BlockCache {
    paths: Paths,
    options: CacheOptions,
    health: Health,
    index: Mutex<Index>,
    /// Entries that somebody holds.
    open: Mutex<HashMap<VersionId, Weak<Entry>>>,
    /// Versions that were verified whole and closed, with the state that their file was in.
    whole: Mutex<LruCache<VersionId, Stamp>>,
    counters: Counters,
    queue: WriteQueue,
    mappings: Mappings,
    writeback: Writeback,
    wake: mpsc::SyncSender<()>,
    /// The disk's reserve is touched: nothing is written.
    low_disk: AtomicBool,
    unchecked_bytes: AtomicU64,
    scanned: AtomicBool,
}

impl BlockCache {
    /// Opens the cache in `options.dir`. Returns at once; what is in the directory is looked up
    /// file by file from the start, and counted in the background. Never fails: a directory that
    /// cannot be used is bypassed.
    #[must_use]
    pub fn open(options: CacheOptions) -> Arc<Self> {
        let (wake, woken) = mpsc::sync_channel(1);
        let cache = Arc::new(Self {
            paths: Paths::new(&options.dir),
            health: Health::default(),
            index: Mutex::default(),
            open: Mutex::default(),
            whole: Mutex::new(LruCache::new(WHOLE_MAX)),
            counters: Counters::default(),
            queue: WriteQueue::start(options.memory_bytes),
            mappings: Mappings::default(),
            writeback: Writeback::default(),
            wake,
            low_disk: AtomicBool::new(false),
            unchecked_bytes: AtomicU64::new(0),
            scanned: AtomicBool::new(false),
            options,
        });
        if let Err(err) = cache.paths.make_blocks() {
            cache.health.failed(cache.paths.blocks().display(), &err);
        }
        maintenance::start(Arc::downgrade(&cache), woken);
        cache
    }

    /// Whether there is a cache in a directory.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        Paths::new(dir).blocks().is_dir()
    }

    /// The place of a version; no disk is touched before the entry is asked for something.
    #[must_use]
    pub fn entry(self: &Arc<Self>, id: &VersionId, size_bytes: u64) -> Arc<Entry> {
        let mut open = self.open.lock();
        if let Some(entry) = open.get(id).and_then(Weak::upgrade) {
            drop(open);
            entry.check_linked();
            return entry;
        }
        let entry = Arc::new(Entry::new(Arc::clone(self), *id, size_bytes));
        open.insert(*id, Arc::downgrade(&entry));
        entry
    }

    /// The cache as it stands.
    #[must_use]
    pub fn usage(&self) -> CacheUsage {
        let index = self.index.lock();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheUsage {
            limit_bytes: self.options.limit_bytes,
            used_bytes: index.bytes(),
            pinned_bytes: index.pinned_bytes(),
            files: index.files(),
            scanned: self.scanned.load(Ordering::Acquire),
            hits: read(&self.counters.hits),
            misses: read(&self.counters.misses),
            written_bytes: read(&self.counters.written_bytes),
            evicted_files: read(&self.counters.evicted_files),
            evicted_bytes: read(&self.counters.evicted_bytes),
            damaged_blocks: read(&self.counters.damaged_blocks),
            lost_writes: read(&self.counters.lost_writes),
            bypassed: self.health.reason(),
        }
    }

    /// Waits until all blocks that were queued before this call are on disk, or dropped.
    pub async fn drain(&self) {
        self.queue.drain().await;
    }

    /// Most bytes on disk, without the pinned ones.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.options.limit_bytes
    }

    /// Whether a block would be written now.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.health.may_write()
            && !self.low_disk.load(Ordering::Relaxed)
            && self.index.lock().bytes() < self.options.limit_bytes
    }

    /// Bytes of a version were written.
    fn added(&self, id: &VersionId, bytes: u64) {
        let used = {
            let mut index = self.index.lock();
            index.add(*id, bytes, self.now());
            index.bytes()
        };
        self.counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        let unchecked = self.unchecked_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.is_high(used) || unchecked > CHECK_DISK_EVERY_BYTES {
            self.unchecked_bytes.store(0, Ordering::Relaxed);
            self.look_after();
        }
    }

    /// Wakes the thread that evicts; it does not matter if it is awake already.
    fn look_after(&self) {
        let _ = self.wake.try_send(());
    }

    /// Files of a version were opened: it is used now. Told to other processes by a time of its map, or
    /// only file, but not at every open.
    fn used(&self, id: &VersionId, file: &File, last_use: LastUse) {
        let now = self.now();
        self.index.lock().touch(id, now);
        let is_old = |meta: fs::Metadata| last_use.seconds(&meta) + USED_RENEW_SECONDS < now;
        if file.metadata().is_ok_and(is_old) {
            last_use.renew(file);
        }
    }

    fn damaged(&self, id: &VersionId, blocks: u64) {
        tracing::debug!(%id, "{blocks} cached blocks were damaged and are dropped");
        self.counters.damaged_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// The whole file was verified: it need not be when it is opened again. Not if it was written a moment ago,
    /// and is closed before the kernel has tried to bring that to the disk: nobody would be told of a loss.
    fn remember_whole(&self, id: VersionId, data: &File) {
        let Ok(meta) = data.metadata() else { return };
        if meta.modified().is_ok_and(|written| writeback::is_over(written, SystemClock.now())) {
            self.whole.lock().put(id, Stamp::of(&meta));
        }
    }

    /// Whether this process has verified the whole file before, and nobody has written to it since.
    fn was_whole(&self, id: &VersionId, data: &File) -> bool {
        let known = self.whole.lock().get(id).copied();
        known.is_some() && data.metadata().ok().as_ref().map(Stamp::of) == known
    }

    fn opened(&self, id: &VersionId) -> Option<Arc<Entry>> {
        self.open.lock().get(id)?.upgrade()
    }

    /// An entry's last holder is gone.
    fn closed(&self, id: &VersionId) {
        let mut open = self.open.lock();
        if open.get(id).is_some_and(|entry| entry.strong_count() == 0) {
            open.remove(id);
        }
    }

    /// Seconds since 1970.
    fn now(&self) -> u64 {
        SystemClock.now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}
