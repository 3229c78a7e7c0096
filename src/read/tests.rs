//! The read path against the store in memory, with faults.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::name::ETag;
use crate::name::ObjectKey;
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
struct World {
    store: Arc<FaultyStore>,
    cache: Arc<BlockCache>,
    reader: Arc<Reader>,
    dir: TempDir,
}

impl World {
    fn new(options: ReadOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(FaultyStore {
            inner: Arc::default(),
            faults: Mutex::default(),
            gets: Mutex::default(),
            bytes: AtomicU64::new(0),
        });
        let cache = BlockCache::open(CacheOptions {
            dir: dir.path().to_owned(),
            limit_bytes: u64::MAX,
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

    fn put(&self, key: &str, size_bytes: u64) -> (ObjectVersion, Bytes) {
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
            assert_eq!(read_all(&world, &version, step).await.unwrap(), body, "{size} by {step}");
        }
        assert_eq!(world.store.bytes.load(Ordering::Relaxed), size, "each byte is fetched once");
        world.cache.drain().await;
        world = world.restart();
        assert_eq!(read_all(&world, &version, 128 * 1024).await.unwrap(), body, "{size} after a restart");
        assert_eq!(world.gets(), 0, "{size} is in the cache");
        let whole = world.reader.open(version).verified_file().await;
        assert_eq!(whole.is_some(), size > BLOCK_BYTES);
    }
}
