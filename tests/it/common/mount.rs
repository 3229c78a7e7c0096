//! A real mount of a store in memory, served by this process: what the kernel does to us, and
//! we to it, with a bucket that the test can change behind everybody's back.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use dsfs::cache::BlockCache;
use dsfs::cache::CacheOptions;
use dsfs::catalog::Catalog;
use dsfs::clock::SystemClock;
use dsfs::fs::DatasetFs;
use dsfs::fs::FsOptions;
use dsfs::fuse::MountOptions;
use dsfs::fuse::MountedFs;
use dsfs::name::ETag;
use dsfs::name::ObjectKey;
use dsfs::name::RemotePrefix;
use dsfs::read::ReadOptions;
use dsfs::read::Reader;
use dsfs::staging::Holder;
use dsfs::staging::Staging;
use dsfs::store::ObjectStore;
use dsfs::store::memory::MemoryStore;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long anything on loopback may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `done` says so; fails the test after [`DEADLINE`].
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How a test mounts.
#[derive(Clone, Debug)]
pub struct Setup {
    pub read_only: bool,
    pub allow_replace: bool,
    pub passthrough: bool,
    pub inodes_max: usize,
    pub catalog_ttl: Duration,
    pub read_timeout: Duration,
    /// Elsewhere than beside the mount.
    pub state_dir: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_replace: false,
            passthrough: true,
            inodes_max: 100_000,
            catalog_ttl: Duration::from_secs(60),
            read_timeout: Duration::from_secs(20),
            state_dir: None,
            cache_dir: None,
        }
    }
}

/// A mount that is gone when dropped.
pub struct TestMount {
    pub store: Arc<MemoryStore>,
    pub staging: Arc<Staging>,
    pub fs: Arc<DatasetFs>,
    mounted: Option<MountedFs>,
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl TestMount {
    pub fn new() -> Self {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Self {
        let store = Arc::new(MemoryStore::default());
        Self::over(Arc::clone(&store), store, setup)
    }

    /// Mounts `store`, which stands before `memory`.
    pub fn over(memory: Arc<MemoryStore>, store: Arc<dyn ObjectStore>, setup: &Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let prefix = RemotePrefix::parse("datasets/").unwrap();
        let holder = Holder { pid: std::process::id(), ..Holder::default() };
        let state_dir = setup.state_dir.clone().unwrap_or_else(|| dir.path().join("state"));
        let staging = Arc::new(Staging::open(&state_dir, &holder).unwrap());
        let catalog = Arc::new(Catalog::new(Arc::clone(&store), prefix, setup.catalog_ttl));
        let cache = BlockCache::open(CacheOptions {
            dir: setup.cache_dir.clone().unwrap_or_else(|| dir.path().join("cache")),
            limit_bytes: 1 << 30,
            reserve_bytes: 0,
            memory_bytes: 64 << 20,
        });
        let options = ReadOptions { read_timeout: setup.read_timeout, ..ReadOptions::default() };
        let reader = Reader::new(store, "memory".into(), cache, options, runtime.handle().clone());
        let options = FsOptions {
            read_only: setup.read_only,
            allow_replace: setup.allow_replace,
            passthrough: setup.passthrough,
            inodes_max: setup.inodes_max,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            state_dir,
        };
        let fs = DatasetFs::new(
            Arc::clone(&catalog),
            Arc::clone(&staging),
            reader,
            Arc::new(SystemClock),
            options,
        );
        let mountpoint = dir.path().join("mnt");
        std::fs::create_dir(&mountpoint).unwrap();
        let options =
            MountOptions { read_only: setup.read_only, allow_other: false, fs_name: "dsfs-test".into() };
        let mounted = MountedFs::mount(Arc::clone(&fs), runtime.handle().clone(), &mountpoint, &options)
            .expect("a FUSE mount, for which these tests need /dev/fuse and the right to use it");
        Self { store: memory, staging, fs, mounted: Some(mounted), runtime: Some(runtime), dir }
    }

    /// A path in the mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("mnt").join(path)
    }

    /// A directory on the local disk beside the mount.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }

    /// Puts an object into the bucket, as another client would.
    pub fn publish(&self, path: &str, body: impl Into<Bytes>) -> ETag {
        self.store.overwrite_out_of_band(&key(path), body.into())
    }
}

/// The key of a path of the mount.
pub fn key(path: &str) -> ObjectKey {
    ObjectKey::from_listing(&format!("datasets/{path}"))
}

impl Drop for TestMount {
    fn drop(&mut self) {
        let Some(mounted) = self.mounted.take() else { return };
        let unmounter = mounted.unmounter();
        if let Err(err) = unmounter.unmount(false) {
            eprintln!("still busy: {err}"); // a test that failed may hold files open
            unmounter.unmount(true).ok();
        }
        if !std::thread::panicking() {
            mounted.wait().unwrap();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
