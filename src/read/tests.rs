//! The read path against the store in memory, with faults.

mod disk;
mod whole;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::read::Loaded;
use crate::read::ObjectVersion;
use crate::read::ReadError;
use crate::read::ReadOptions;
use crate::read::Reader;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;
use crate::store::memory::MemoryStore;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;

const MIB: u64 = 1024 * 1024;

/// What happens to the next gets.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// Each body ends after so many bytes, with an error or silently.
    cut_after: Option<(usize, bool)>,
    /// So many gets are treated in this way; the others are sound.
    remaining: u64,
    /// The body hangs after the cut instead of ending.
    hang: bool,
    /// The head of the answer comes so late.
    delay: Duration,
    /// The body comes in pieces of this many bytes.
    piece_bytes: Option<usize>,
}

/// Counts gets, and spoils some.
struct FaultyStore {
    inner: Arc<MemoryStore>,
    faults: Mutex<Faults>,
    gets: Mutex<Vec<Range<u64>>>,
    bytes: AtomicU64,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    fn describe(&self) -> String {
        "faulty".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        self.inner.check_access().await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.inner.head(key).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.gets.lock().push(range.clone());
        self.bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        let faults = {
            let mut faults = self.faults.lock();
            let now = *faults;
            faults.remaining = faults.remaining.saturating_sub(1);
            now
        };
        tokio::time::sleep(faults.delay).await;
        let mut body = crate::store::collect(
            self.inner.get(key, etag, range.clone()).await?,
            (range.end - range.start) as usize,
        )
        .await?;
        let mut end: Vec<Result<Bytes, StoreError>> = Vec::new();
        let mut hang = false;
        if let Some((after, with_error)) = faults.cut_after.filter(|_| faults.remaining > 0) {
            body.truncate(after);
            hang = faults.hang;
            if with_error {
                end.push(Err(StoreError::unavailable(key, "connection reset")));
            }
        }
        let piece = faults.piece_bytes.unwrap_or(usize::MAX).min(body.len().max(1));
        let pieces: Vec<Result<Bytes, StoreError>> =
            body.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(end).collect();
        let pieces = stream::iter(pieces);
        Ok(if hang { Box::pin(pieces.chain(stream::pending())) } else { Box::pin(pieces) })
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.inner.put(key, body, expect, attributes).await
    }
    async fn create_multipart(&self, key: &ObjectKey, a: &PutAttributes) -> Result<UploadId, StoreError> {
        self.inner.create_multipart(key, a).await
    }
    async fn put_part(
        &self,
        k: &ObjectKey,
        u: &UploadId,
        n: u32,
        b: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.inner.put_part(k, u, n, b).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.inner.complete_multipart(key, upload, parts, expect).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.inner.abort_multipart(key, upload).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.inner.delete(key, etag).await
    }
}

/// A store, a cache in a directory of its own, and a reader.
pub(super) struct World {
    store: Arc<FaultyStore>,
    cache: Arc<BlockCache>,
    pub(super) reader: Arc<Reader>,
    dir: TempDir,
}

impl World {
    pub(super) fn new(options: ReadOptions) -> Self {
        Self::with_cache_limit(options, u64::MAX)
    }

    fn with_cache_limit(options: ReadOptions, limit_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(FaultyStore {
            inner: Arc::default(),
            faults: Mutex::default(),
            gets: Mutex::default(),
            bytes: AtomicU64::new(0),
        });
        let cache = BlockCache::open(CacheOptions {
            dir: dir.path().to_owned(),
            limit_bytes,
            reserve_bytes: 0,
            memory_bytes: options.memory_bytes,
        });
        let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as Arc<dyn ObjectStore>;
        let reader = Reader::new(shared, "test".into(), Arc::clone(&cache), options, Handle::current());
        Self { store, cache, reader, dir }
    }

    /// The same store and directory after a restart of the daemon.
    fn restart(self) -> Self {
        let options = self.reader.shared.options.clone();
        let Self { store, cache, reader, dir } = self;
        drop((cache, reader));
        let cache = BlockCache::open(CacheOptions {
            dir: dir.path().to_owned(),
            limit_bytes: u64::MAX,
            reserve_bytes: 0,
            memory_bytes: options.memory_bytes,
        });
        let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as Arc<dyn ObjectStore>;
        let reader = Reader::new(shared, "test".into(), Arc::clone(&cache), options, Handle::current());
        store.gets.lock().clear();
        Self { store, cache, reader, dir }
    }

    pub(super) fn put(&self, key: &str, size_bytes: u64) -> (ObjectVersion, Bytes) {
        let seed = size_bytes ^ key.len() as u64;
        let body: Bytes = (0..size_bytes).map(|at| (at.wrapping_mul(31) ^ (at >> 9) ^ seed) as u8).collect();
        let key = ObjectKey::from_listing(key);
        let etag = self.store.inner.overwrite_out_of_band(&key, body.clone());
        (ObjectVersion { key, etag, size_bytes }, body)
    }

    fn gets(&self) -> usize {
        self.store.gets.lock().len()
    }

    fn faults(&self, faults: Faults) {
        *self.store.faults.lock() = faults;
    }
}

fn quick() -> ReadOptions {
    ReadOptions { read_timeout: Duration::from_millis(400), ..ReadOptions::default() }
}

async fn read_all(world: &World, version: &ObjectVersion, step: u32) -> Result<Vec<u8>, ReadError> {
    let handle = world.reader.open(version.clone()).handle();
    let mut all = Vec::new();
    loop {
        let offset = all.len() as u64;
        let piece = match handle.try_read(offset, step) {
            Some(piece) => piece,
            None => handle.read(offset, step).await?,
        };
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_and_step_reads_right_cold_warm_and_after_a_restart() {
    for size in [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB, MIB + 1, 9 * MIB + 77] {
        let mut world = World::new(ReadOptions::default());
        let (version, body) = world.put("k", size);
        for step in [1_000_000, 128 * 1024, 100_003] {
            assert!(read_all(&world, &version, step).await.unwrap() == body, "{size} by {step}");
        }
        assert_eq!(world.store.bytes.load(Ordering::Relaxed), size, "each byte is fetched once");
        world.cache.drain().await;
        world = world.restart();
        assert!(read_all(&world, &version, 128 * 1024).await.unwrap() == body, "{size} after a restart");
        assert_eq!(world.gets(), 0, "{size} is in the cache");
        let handle = world.reader.open(version).handle();
        let whole = handle.object().verified_file().await;
        assert_eq!(whole.is_some(), size > BLOCK_BYTES);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_fetched_once_for_all_who_wait() {
    let world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 40 * BLOCK_BYTES);
    world.faults(Faults { delay: Duration::from_millis(30), ..Faults::default() });
    let object = world.reader.open(version);
    let reads = (0..50).map(|n| {
        let handle = object.handle();
        async move { handle.read(20 * BLOCK_BYTES + n, 4096).await }
    });
    for (n, read) in join_all(reads).await.into_iter().enumerate() {
        let at = 20 * BLOCK_BYTES as usize + n;
        assert_eq!(read.unwrap(), body[at..at + 4096]);
    }
    assert_eq!(*world.store.gets.lock(), vec![Range { start: 20 * BLOCK_BYTES, end: 21 * BLOCK_BYTES }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_reads_fetch_exactly_the_blocks_they_touch() {
    let world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 16 * MIB);
    let handle = world.reader.open(version).handle();
    let mut blocks = std::collections::BTreeSet::new();
    let mut state = 3_u64;
    for _ in 0..200 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (state >> 16) % (16 * MIB / 4096) * 4096;
        let read = handle.read(offset, 4096).await.unwrap();
        assert_eq!(read, body[offset as usize..offset as usize + 4096]);
        blocks.insert(offset / BLOCK_BYTES);
    }
    assert_eq!(world.store.bytes.load(Ordering::Relaxed), blocks.len() as u64 * BLOCK_BYTES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_comes_before_the_window() {
    let world = World::new(ReadOptions::default());
    let (version, _) = world.put("k", 16 * MIB);
    let handle = world.reader.open(version).handle();
    handle.read(0, 4096).await.unwrap();
    let gets = world.store.gets.lock().clone();
    assert!(gets.contains(&(0..BLOCK_BYTES)), "{gets:?}");
    assert!(gets.iter().map(|get| get.end - get.start).sum::<u64>() <= MIB, "{gets:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_in_the_middle_is_changed_and_never_mixed() {
    // A small budget: the window must not reach the end before the object is replaced.
    let world = World::new(ReadOptions { memory_bytes: 16 * MIB, ..ReadOptions::default() });
    let (version, body) = world.put("k", 32 * MIB);
    let handle = world.reader.open(version.clone()).handle();
    let mut at = 0;
    let err = loop {
        match handle.read(at, 128 * 1024).await {
            Ok(read) => assert_eq!(read, body[at as usize..at as usize + read.len()]),
            Err(err) => break err,
        }
        at += BLOCK_BYTES;
        if at == 4 * MIB {
            world.store.inner.overwrite_out_of_band(&version.key, Bytes::from(vec![9; 32 * MIB as usize]));
        }
        assert!(at < 32 * MIB, "the whole object was fetched before it was replaced");
    };
    assert!(matches!(err, ReadError::Changed { .. }), "{err}");
    world.store.inner.delete_out_of_band(&version.key);
    let err = handle.read(31 * MIB, 10).await.unwrap_err();
    assert!(matches!(err, ReadError::Changed { .. }), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_is_continued_where_it_broke() {
    for with_error in [true, false] {
        let world = World::new(ReadOptions::default());
        let (version, body) = world.put("k", MIB);
        world.faults(Faults {
            cut_after: Some((300_000, with_error)),
            remaining: 2,
            piece_bytes: Some(70_001),
            ..Faults::default()
        });
        assert!(read_all(&world, &version, 1 << 20).await.unwrap() == body);
        assert_eq!(*world.store.gets.lock(), [0..MIB, 300_000..MIB, 600_000..MIB]);
        assert_eq!(world.reader.stats().broken_bodies, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_for_ever_is_an_error_and_the_next_read_tries_anew() {
    let world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 100_000);
    world.faults(Faults { cut_after: Some((0, true)), remaining: u64::MAX, ..Faults::default() });
    let handle = world.reader.open(version.clone()).handle();
    let err = handle.read(0, 100).await.unwrap_err();
    assert!(matches!(err, ReadError::Store(StoreError::Unavailable { .. })), "{err}");
    assert!(world.gets() <= 8, "bounded");
    world.faults(Faults::default());
    assert_eq!(handle.read(0, 100).await.unwrap(), body[..100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_is_a_timeout_for_all_who_wait_and_the_next_read_recovers() {
    for cut in [0, 10] {
        let world = World::new(quick());
        let (version, body) = world.put("k", 8 * MIB);
        world.faults(Faults {
            cut_after: Some((cut, false)),
            remaining: u64::MAX,
            hang: true,
            ..Faults::default()
        });
        let object = world.reader.open(version);
        let reads = (0..10).map(|_| {
            let handle = object.handle();
            async move { handle.read(0, 100_000).await }
        });
        let started = std::time::Instant::now();
        for read in join_all(reads).await {
            let read = read.map(|bytes| bytes.len());
            assert!(matches!(read, Err(ReadError::Timeout { .. })), "{read:?}");
        }
        assert!(started.elapsed() < Duration::from_secs(3));
        world.faults(Faults::default());
        assert_eq!(object.handle().read(0, 100_000).await.unwrap(), body[..100_000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_handle_stops_its_prefetch_and_a_dropped_read_its_fetch() {
    let world = World::new(ReadOptions::default());
    let (version, _) = world.put("k", 16 * MIB);
    let object = world.reader.open(version);
    let handle = object.handle();
    handle.read(0, 4096).await.unwrap();
    world.faults(Faults { delay: Duration::from_secs(30), ..Faults::default() });
    for at in 1..40 {
        // Waits at most for what is on its way already; the rest hangs.
        let _ = tokio::time::timeout(Duration::from_millis(5), handle.read(at * BLOCK_BYTES, 4096)).await;
    }
    assert!(world.reader.stats().in_flight > 0);
    drop(handle);
    until("all requests have ended", || world.reader.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_readers_under_a_small_budget_all_get_on() {
    let options = ReadOptions { memory_bytes: 16 * MIB, requests_max: 16, ..ReadOptions::default() };
    let world = Arc::new(World::new(options));
    let objects: Vec<_> = (0..20).map(|n| world.put(&"k".repeat(n + 1), 6 * MIB + n as u64)).collect();
    world.faults(Faults { delay: Duration::from_millis(2), piece_bytes: Some(50_000), ..Faults::default() });
    let readers = objects.into_iter().map(|(version, body)| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { assert!(read_all(&world, &version, 1 << 20).await.unwrap() == body) })
    });
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    let stats = world.reader.stats();
    assert!(stats.memory_bytes <= stats.memory_limit_bytes, "{stats:?}");
    world.cache.drain().await;
    assert!(world.store.bytes.load(Ordering::Relaxed) <= 20 * 7 * MIB * 5 / 4, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_ahead_leaves_a_place_at_the_store() {
    const REQUESTS_MAX: usize = 32;
    let options = ReadOptions { requests_max: REQUESTS_MAX, ..ReadOptions::default() };
    let world = World::new(options.clone());
    let limits = RetryOptions { requests_max: REQUESTS_MAX, ..RetryOptions::default() };
    let store = Arc::clone(&world.store) as Arc<dyn ObjectStore>;
    let limited = Arc::new(RetryingStore::new(store, limits));
    let cache = Arc::clone(&world.cache);
    let reader = Reader::new(limited, "test".into(), cache, options, Handle::current());
    world.faults(Faults { delay: Duration::from_secs(60), ..Faults::default() });
    let load = |n: usize| {
        let (version, _) = world.put(&"k".repeat(n + 1), 4096);
        let reader = Arc::clone(&reader);
        tokio::spawn(async move { reader.load(&version).await });
    };
    (0..REQUESTS_MAX - 3).for_each(load);
    until("three places are left", || world.gets() == REQUESTS_MAX - 3).await;
    let (large, _) = world.put("large", 2 * MIB);
    let (claims, refused) = reader.open(large).fetch_ahead(&(0..2 * MIB), MIB);
    assert!(claims.is_empty() && refused == Some(0), "what takes long leaves more of them");
    (REQUESTS_MAX - 3..3 * REQUESTS_MAX).for_each(load);
    until("as much is fetched ahead as may be", || world.gets() == REQUESTS_MAX - 1).await;
    world.faults(Faults::default());
    let (version, body) = world.put("wanted", 4096);
    let read = reader.open(version).handle();
    let read = tokio::time::timeout(Duration::from_secs(20), read.read(0, 4096)).await;
    assert_eq!(read.expect("nobody stands in line before it").unwrap(), body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_readers_of_twenty_files_get_on_equally() {
    const FILE_BYTES: u64 = 8 * MIB;
    let options = ReadOptions { memory_bytes: 64 * MIB, ..ReadOptions::default() };
    let world = Arc::new(World::new(options));
    let objects: Vec<_> = (0..20).map(|n| world.put(&"k".repeat(n + 1), FILE_BYTES)).collect();
    world.faults(Faults { delay: Duration::from_millis(5), ..Faults::default() });
    let progress: Arc<Vec<AtomicU64>> = Arc::new((0..20).map(|_| AtomicU64::new(0)).collect());
    let start = Arc::new(tokio::sync::Barrier::new(20));
    let readers = objects.into_iter().enumerate().map(|(n, (version, body))| {
        let (world, progress, start) = (Arc::clone(&world), Arc::clone(&progress), Arc::clone(&start));
        tokio::spawn(async move {
            let handle = world.reader.open(version).handle();
            start.wait().await;
            let mut at = 0;
            while at < FILE_BYTES {
                let read = handle.read(at, 128 * 1024).await.unwrap();
                assert!(read[..] == body[at as usize..at as usize + read.len()], "file {n} at {at}");
                at += read.len() as u64;
                progress[n].store(at, Ordering::Relaxed);
            }
            // How far the others are at the end of this one.
            progress.iter().map(|others| others.load(Ordering::Relaxed)).min().unwrap()
        })
    });
    let behind = join_all(readers).await.into_iter().map(|reader| reader.unwrap()).min().unwrap();
    assert!(behind >= FILE_BYTES / 3, "the slowest had {behind} bytes when the fastest was done");
    let stats = world.reader.stats();
    assert!(stats.memory_bytes <= stats.memory_limit_bytes, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_are_open_and_idle_take_nothing_from_a_stream() {
    let world = World::new(ReadOptions::default());
    let opened: Vec<_> = (0..200)
        .map(|n| world.reader.open(world.put(&"k".repeat(n + 1), BLOCK_BYTES + 1).0).handle())
        .collect();
    world.faults(Faults { delay: Duration::from_millis(20), ..Faults::default() });
    join_all(opened.iter().map(|handle| handle.read(0, 4096))).await;
    until("they are idle", || world.reader.shared.streams.count() == 0).await;
    let stream = world.reader.open(world.put("stream", 24 * MIB).0).handle();
    let mut at_once = 0;
    for at in (0..24 * MIB).step_by(BLOCK_BYTES as usize) {
        stream.read(at, BLOCK_BYTES as u32).await.unwrap();
        at_once = at_once.max(world.reader.stats().in_flight);
    }
    assert!(at_once >= 4, "{at_once} requests at a time");
    drop(opened);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_is_on_the_disk_and_not_in_memory() {
    let world = World::new(quick());
    let objects: Vec<_> = (0..50).map(|n| world.put(&format!("small{n}"), 10_000 + n)).collect();
    for (version, _) in &objects {
        assert_eq!(world.reader.load(version).await, Loaded::Cached);
    }
    // At once: also what is still queued for the disk is found.
    for (version, body) in &objects {
        assert!(read_all(&world, version, 1 << 20).await.unwrap() == *body);
    }
    assert_eq!(world.gets(), 50, "each once");
    world.cache.drain().await;
    let world = world.restart();
    for (version, body) in &objects {
        assert_eq!(world.reader.load(version).await, Loaded::Cached);
        assert!(read_all(&world, version, 1 << 20).await.unwrap() == *body);
    }
    assert_eq!(world.gets(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_without_a_cache_is_refused_and_one_that_fails_says_so() {
    let world = World::new(quick());
    let (version, _) = world.put("small", 10_000);
    let gone = ObjectVersion { key: ObjectKey::from_listing("gone"), ..version.clone() };
    assert_eq!(world.reader.load(&gone).await, Loaded::Failed);
    std::fs::remove_dir_all(world.dir.path()).unwrap();
    std::fs::write(world.dir.path(), "not a directory").unwrap();
    assert_eq!(world.reader.load(&version).await, Loaded::Cached, "queued; nobody knows yet");
    world.cache.drain().await;
    assert_eq!(world.reader.load(&version).await, Loaded::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hinted_files_are_there_when_they_are_opened() {
    let world = World::new(ReadOptions::default());
    let files: Vec<_> = (0..200).map(|n| world.put(&"k".repeat(n + 1), 4000 + n as u64)).collect();
    world.faults(Faults { delay: Duration::from_millis(5), ..Faults::default() });
    let versions: Vec<_> = files.iter().map(|(version, _)| version.clone()).collect();
    let mut hinted = 0;
    for (n, (version, body)) in files.iter().enumerate() {
        hinted = hinted.max(n);
        hinted += world.reader.hint_next(&versions[hinted..]);
        assert!(read_all(&world, version, 1 << 20).await.unwrap() == *body);
    }
    assert_eq!(world.gets(), 200, "each is fetched once");
    let stats = world.reader.stats();
    assert!(stats.prefetch_useful_bytes > stats.fetched_bytes / 2, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_do_not_come_true_are_not_fetched_any_more() {
    let world = World::new(ReadOptions::default());
    let (version, _) = world.put("k", 100);
    // Each hint displaces an older one that nobody has opened.
    for n in 0..5000 {
        let key = ObjectKey::from_listing(&format!("k{n}"));
        until("there is room", || {
            world.reader.hint_next(&[ObjectVersion { key: key.clone(), ..version.clone() }]) == 1
        })
        .await;
    }
    let gets = world.gets();
    assert!(gets < 3000, "{gets} of 5000 useless hints were fetched");
}

/// All files below a directory.
fn files_in(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found
}

/// Waits until something is so, within a deadline.
async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(std::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
