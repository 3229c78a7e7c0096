//! Commits over the store in memory: outcomes, conflicts, faults, and crashes at every request.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::clock::SystemClock;
use crate::commit::announce::Intents;
use crate::record::Intent;
use crate::record::Outcome;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::Holder;
use crate::staging::Staging;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::META_MTIME;
use crate::store::META_SHA256;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::UploadId;
use crate::store::memory::MemoryStore;

fn name() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn prefix() -> RemotePrefix {
    RemotePrefix::parse("datasets").unwrap()
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::from_listing(&format!("datasets/run/{text}"))
}

/// What happens at one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trip {
    /// The request is never carried out, and whoever made it is gone.
    CrashBefore,
    /// It is carried out, and whoever made it is gone.
    CrashAfter,
    /// It is not carried out; the remote stays away from then on.
    Unreachable,
    /// It is carried out, and the answer is lost.
    LostReply,
    /// It is refused.
    Denied,
}

/// A store at whose n-th request something happens.
struct TripStore {
    inner: Arc<dyn ObjectStore>,
    at: Option<(usize, Trip)>,
    requests: AtomicUsize,
    log: Mutex<Vec<String>>,
    crashed: tokio::sync::Notify,
}

impl fmt::Debug for TripStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TripStore")
    }
}

impl TripStore {
    fn new(inner: Arc<dyn ObjectStore>, at: Option<(usize, Trip)>) -> Arc<Self> {
        let (requests, log) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { inner, at, requests, log, crashed: tokio::sync::Notify::new() })
    }

    async fn trip<T>(
        &self,
        what: String,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.log.lock().push(what);
        let unavailable = || Err(StoreError::unavailable("trip", "injected"));
        match self.at {
            Some((at, Trip::Unreachable)) if number >= at => unavailable(),
            Some((at, trip)) if number == at => match trip {
                Trip::CrashBefore => {
                    self.crashed.notify_one();
                    std::future::pending().await
                }
                Trip::CrashAfter => {
                    request.await.ok();
                    self.crashed.notify_one();
                    std::future::pending().await
                }
                Trip::LostReply => {
                    request.await.ok();
                    unavailable()
                }
                Trip::Denied => Err(StoreError::Denied { key: "trip".into(), reason: "injected".into() }),
                Trip::Unreachable => unavailable(),
            },
            _ => request.await,
        }
    }

    /// Runs a commit until it ends, or until the crash: `None`.
    async fn until_crash<T>(&self, run: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.crashed.notified() => None,
            outcome = run => Some(outcome),
        }
    }
}

#[async_trait]
impl ObjectStore for TripStore {
    fn describe(&self) -> String {
        "trip".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        self.inner.check_access().await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.trip(format!("list {}", request.prefix), self.inner.list(request)).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.trip(format!("head {key}"), self.inner.head(key)).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.trip(format!("get {key}"), self.inner.get(key, etag, range)).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.trip(format!("put {key}"), self.inner.put(key, body, expect, attributes)).await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.trip(format!("create {key}"), self.inner.create_multipart(key, attributes)).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.trip(format!("part {number} {key}"), self.inner.put_part(key, upload, number, body)).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let complete = self.inner.complete_multipart(key, upload, parts, expect);
        self.trip(format!("complete {key}"), complete).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.trip(format!("abort {key}"), self.inner.abort_multipart(key, upload)).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.trip(format!("delete {key}"), self.inner.delete(key, etag)).await
    }
}

/// A machine with a staging area; several may share one bucket.
struct Machine {
    root: TempDir,
    staging: Option<Staging>,
    user: String,
}

impl Machine {
    fn new(user: &str) -> Self {
        let root = match fs::metadata("/dev/shm") {
            Ok(_) => tempfile::tempdir_in("/dev/shm").unwrap(),
            Err(_) => tempfile::tempdir().unwrap(),
        };
        let staging = Some(Staging::open(root.path(), &Holder::default()).unwrap());
        Self { root, staging, user: user.into() }
    }

    fn dataset(&self) -> Arc<StagedDataset> {
        self.staging.as_ref().unwrap().create_dataset(&name()).unwrap()
    }

    fn restart(&mut self) {
        self.staging = None;
        self.staging = Some(Staging::open(self.root.path(), &Holder::default()).unwrap());
    }

    fn stage(&self, files: &[(&str, &[u8])]) -> &Self {
        for (at, content) in files {
            match at.strip_suffix('/') {
                Some(dir) => self.dataset().mkdir(&path(dir), 0o755).unwrap(),
                None => {
                    let file = self.dataset().create_file(&path(at), 0o644).unwrap();
                    file.write_all_at(content, 0).unwrap();
                }
            }
        }
        self
    }

    fn context(&self, store: Arc<dyn ObjectStore>) -> CommitContext {
        CommitContext {
            store,
            prefix: prefix(),
            staging: self.dataset(),
            cache: None,
            clock: Arc::new(SystemClock),
            author: Author { user: self.user.clone(), host: "lab".into() },
            // Anything over 1000 bytes goes up in parts: of the least size, but in parts.
            options: CommitOptions { part_bytes: 1000, workers: 4, ..CommitOptions::default() },
            guarantee: Guarantee::Enforced,
            progress: Arc::new(NoProgress),
        }
    }

    fn staged(&self) -> Vec<String> {
        let contents = self.dataset().contents().unwrap();
        contents.files.iter().map(|file| file.path.to_string()).collect()
    }
}

/// The datasets' own objects, without dsfs's state.
fn objects(store: &MemoryStore) -> BTreeMap<String, Bytes> {
    let all = store.snapshot().into_iter();
    let own =
        all.filter_map(|(key, body)| Some((key.as_str().strip_prefix("datasets/run/")?.to_owned(), body)));
    own.collect()
}

/// Objects of dsfs's own state of one kind: `intents`, `log`, `snapshots`.
fn state(store: &MemoryStore, kind: &str) -> Vec<(ObjectKey, Bytes)> {
    let start = format!(".dsfs/datasets/{kind}/run/");
    store.snapshot().into_iter().filter(|(key, _)| key.as_str().starts_with(&start)).collect()
}

fn log(store: &Arc<MemoryStore>) -> Log {
    Log::new(Arc::clone(store) as Arc<dyn ObjectStore>, prefix(), name())
}

const BIG: [u8; 2500] = [7; 2500];
const FILES: &[(&str, &[u8])] = &[
    ("data.jsonl", b"{}"),
    ("frames/1.png", b"one"),
    ("frames/big.bin", &BIG),
    ("nothing", b""),
    ("empty/", b""),
];

#[tokio::test]
async fn a_commit_publishes_everything_and_leaves_nothing_behind() {
    let bucket = Arc::new(MemoryStore::default());
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let mtime = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    machine.dataset().set_times(&path("nothing"), None, Some(mtime)).unwrap();
    let store = TripStore::new(bucket.clone(), None);
    let mut ctx = machine.context(store.clone());
    ctx.options.message = Some("first".into());
    let planned = plan(&ctx).await.unwrap();
    assert_eq!((planned.create.len(), planned.markers.len(), planned.conflicts.len()), (4, 1, 0));
    let report = commit(&ctx).await.unwrap();
    assert_eq!((report.seq, report.files, report.bytes), (Some(1), 4, 2505));
    let published = objects(&bucket);
    let keys: Vec<&str> = published.keys().map(String::as_str).collect();
    assert_eq!(keys, ["data.jsonl", "empty/", "frames/1.png", "frames/big.bin", "nothing"]);
    assert_eq!(published["frames/big.bin"], BIG[..]);
    let meta = bucket.head(&key("nothing")).await.unwrap();
    assert_eq!(meta.metadata[META_TXID], report.txid);
    assert_eq!(meta.metadata[META_SHA256], ContentId::OF_NOTHING.sha256_hex());
    assert_eq!(meta.metadata[META_MTIME], "1700000000.000000005");
    let big = bucket.head(&key("frames/big.bin")).await.unwrap();
    assert_eq!(big.metadata[META_TXID], report.txid);
    assert!(state(&bucket, "intents").is_empty());
    assert_eq!(bucket.open_uploads(), 0);
    assert!(!machine.dataset().contents().unwrap().foreign.iter().any(|_| true));
    assert!(machine.staged().is_empty());
    let record = log(&bucket).record(1).await.unwrap().unwrap();
    assert_eq!(record.outcome, Outcome::Commit);
    assert_eq!(record.body.message.as_deref(), Some("first"));
    assert_eq!(record.body.changes.entries.len(), 4);
    for entry in &record.body.changes.entries {
        let meta = bucket.head(&key(entry.path.as_str())).await.unwrap();
        assert_eq!(meta.etag, entry.etag);
    }
    let nothing = &record.body.changes.entries[3];
    assert_eq!((nothing.mtime, nothing.cid), (mtime, ContentId::OF_NOTHING));
    // The marker of the dataset came last; the record after it.
    let requests = store.log.lock().clone();
    let at = |what: &str| requests.iter().rposition(|request| request == what).unwrap();
    let last = at("put datasets/run/data.jsonl");
    assert!(last > at("put datasets/run/frames/1.png") && last > at("complete datasets/run/frames/big.bin"));
    assert!(last < at("put .dsfs/datasets/log/run/0000000001"));
    assert!(matches!(commit(&ctx).await, Err(CommitError::NothingStaged)));
}
