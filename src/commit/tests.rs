//! Commits over the store in memory: outcomes, conflicts, faults, and crashes at every request.

mod late;

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
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;

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
            published: None,
            clock: Arc::new(SystemClock),
            author: Author { user: self.user.clone(), host: "lab".into() },
            // Anything over 1000 bytes goes up in parts: of the least size, but in parts.
            options: CommitOptions {
                part_bytes: 1000,
                workers: 4,
                allow_unenforced: true,
                ..CommitOptions::default()
            },
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

/// The versions of everything that is there.
async fn versions(store: &MemoryStore) -> BTreeMap<ObjectKey, ETag> {
    let mut versions = BTreeMap::new();
    for key in store.snapshot().into_keys() {
        let etag = store.head(&key).await.unwrap().etag;
        versions.insert(key, etag);
    }
    versions
}

fn conflicts(result: Result<CommitReport, CommitError>) -> Vec<String> {
    match result {
        Err(CommitError::Conflict { conflicts }) => {
            conflicts.into_iter().map(|conflict| conflict.path).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_names_everything_and_sends_nothing() {
    let bucket = Arc::new(MemoryStore::default());
    for taken in ["frames/1.png", "frames/big.bin/x", "nothing"] {
        bucket.overwrite_out_of_band(&key(taken), Bytes::from_static(b"foreign"));
    }
    let before = versions(&bucket).await;
    let machine = Machine::new("ann");
    let staged = machine.stage(FILES).staged();
    let store = TripStore::new(bucket.clone(), None);
    let ctx = machine.context(store.clone());
    assert_eq!(conflicts(commit(&ctx).await), ["frames/1.png", "frames/big.bin", "nothing"]);
    assert_eq!(versions(&bucket).await, before);
    let writes = store.log.lock().iter().filter(|request| !request.starts_with("list")).count();
    assert_eq!(writes, 0, "{:?}", store.log.lock());
    assert_eq!(machine.staged(), staged);
    let planned = plan(&ctx).await.unwrap();
    assert_eq!(planned.conflicts.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_there_already_is_not_a_conflict() {
    let bucket = Arc::new(MemoryStore::default());
    let machine = Machine::new("ann");
    machine.stage(&FILES[..3]);
    commit(&machine.context(bucket.clone())).await.unwrap();
    let before = versions(&bucket).await;
    // The same again, and nothing else: there is nothing to be recorded.
    machine.stage(&FILES[..3]);
    let report = commit(&machine.context(bucket.clone())).await.unwrap();
    assert_eq!((report.seq, report.files, report.already_there), (None, 0, 3));
    assert_eq!(versions(&bucket).await, before);
    // Beside something new.
    machine.stage(&[("frames/1.png", b"one"), ("new", b"n")]);
    let report = commit(&machine.context(bucket.clone())).await.unwrap();
    assert_eq!((report.seq, report.files, report.already_there), (Some(2), 1, 1));
    // Of the same size, but another.
    machine.stage(&[("frames/1.png", b"two")]);
    assert_eq!(conflicts(commit(&machine.context(bucket)).await), ["frames/1.png"]);
}

/// A store into which somebody else puts an object just before a write.
struct Intruder {
    inner: Arc<MemoryStore>,
    victim: &'static str,
    /// The write before which it happens: keys that begin with this; empty for the victim's own.
    at: &'static str,
}

impl fmt::Debug for Intruder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intruder")
    }
}

impl Intruder {
    fn intrude(&self, wrote: &ObjectKey) {
        let victim = key(self.victim);
        let now = match self.at {
            "" => *wrote == victim && !self.inner.snapshot().contains_key(&victim),
            at => wrote.as_str().starts_with(at),
        };
        if now {
            self.inner.overwrite_out_of_band(&victim, Bytes::from_static(b"foreign"));
        }
    }
}

#[async_trait]
impl ObjectStore for Intruder {
    fn describe(&self) -> String {
        "intruder".into()
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
        self.inner.get(key, etag, range).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.intrude(key);
        self.inner.put(key, body, expect, attributes).await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.inner.create_multipart(key, attributes).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.inner.put_part(key, upload, number, body).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.intrude(key);
        self.inner.complete_multipart(key, upload, parts, expect).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.inner.abort_multipart(key, upload).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.inner.delete(key, etag).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_midway_takes_back_what_is_ours_and_nothing_else() {
    for victim in ["frames/1.png", "frames/big.bin", "nothing", "data.jsonl"] {
        for guarantee in [Guarantee::Enforced, Guarantee::SinglePut] {
            let bucket = Arc::new(MemoryStore::default());
            let foreign = bucket.overwrite_out_of_band(&key("other"), Bytes::from_static(b"foreign"));
            let machine = Machine::new("ann");
            let staged = machine.stage(FILES).staged();
            let store = Arc::new(Intruder { inner: bucket.clone(), victim, at: "" });
            let ctx = CommitContext { guarantee, ..machine.context(store) };
            assert_eq!(conflicts(commit(&ctx).await), [victim]);
            let left: Vec<String> = objects(&bucket).into_keys().collect();
            let mut expected = ["other", victim];
            expected.sort_unstable();
            assert_eq!(left, expected, "{guarantee:?}");
            assert_eq!(bucket.head(&key("other")).await.unwrap().etag, foreign);
            assert_eq!(objects(&bucket)[victim], b"foreign"[..]);
            assert_eq!(bucket.open_uploads(), 0, "{victim} {guarantee:?}");
            assert!(state(&bucket, "intents").is_empty() && state(&bucket, "log").is_empty());
            assert_eq!(machine.staged(), staged);
        }
    }
}

/// Requests of a commit that meets no fault.
async fn requests_of(files: &[(&str, &[u8])], guarantee: Guarantee) -> usize {
    let machine = Machine::new("ann");
    machine.stage(files);
    let store = TripStore::new(Arc::new(MemoryStore::default()), None);
    let ctx = CommitContext { guarantee, ..machine.context(store.clone()) };
    commit(&ctx).await.unwrap();
    store.requests.load(Ordering::Relaxed)
}

async fn expect_published(bucket: &Arc<MemoryStore>, lost_uploads: usize, what: &str) {
    let mut expected: BTreeMap<String, Bytes> =
        FILES.iter().map(|(at, content)| ((*at).to_owned(), Bytes::from_static(content))).collect();
    expected.insert("other".into(), Bytes::from_static(b"foreign"));
    assert_eq!(objects(bucket), expected, "{what}");
    assert_eq!(bucket.open_uploads(), lost_uploads, "{what}");
    assert!(state(bucket, "intents").is_empty(), "{what}");
    let head = log(bucket).head().await.unwrap();
    let tree = log(bucket).snapshot(head).await.unwrap();
    assert_eq!((head, tree.entries.len(), tree.markers.len()), (1, 4, 1), "{what}");
    for entry in tree.entries.values() {
        let meta = bucket.head(&key(entry.path.as_str())).await.unwrap();
        assert_eq!(meta.etag, entry.etag, "{what}");
    }
}

fn bucket_with_foreign() -> Arc<MemoryStore> {
    let bucket = Arc::new(MemoryStore::default());
    bucket.overwrite_out_of_band(&key("other"), Bytes::from_static(b"foreign"));
    bucket
}

/// What stands for dsfs after a crash at request `at`: half a commit, and a restarted machine.
async fn crashed(at: usize, trip: Trip, guarantee: Guarantee) -> Option<(Arc<MemoryStore>, Machine)> {
    let bucket = bucket_with_foreign();
    let mut machine = Machine::new("ann");
    machine.stage(FILES);
    let store = TripStore::new(bucket.clone(), Some((at, trip)));
    let ctx = CommitContext { guarantee, ..machine.context(store.clone()) };
    let outcome = store.until_crash(commit(&ctx)).await;
    drop(ctx);
    match outcome {
        Some(Ok(_)) => return None, // it was over before that
        Some(Err(CommitError::Interrupted { .. })) | None => {}
        Some(Err(err)) => {
            assert!(trip == Trip::Unreachable || trip == Trip::LostReply, "{at} {trip:?}: {err}");
            assert_eq!(objects(&bucket).len(), 1, "{at} {trip:?}: {err}");
            assert_eq!(machine.staged().len(), 4, "{at} {trip:?}: {err}");
            return None;
        }
    }
    machine.restart();
    Some((bucket, machine))
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_at_any_request_a_resume_completes_the_commit() {
    for guarantee in [Guarantee::Enforced, Guarantee::SinglePut, Guarantee::BestEffort] {
        let total = requests_of(FILES, guarantee).await;
        for at in 0..total {
            for trip in [Trip::CrashBefore, Trip::CrashAfter, Trip::Unreachable, Trip::LostReply] {
                let Some((bucket, machine)) = crashed(at, trip, guarantee).await else { continue };
                let what = format!("request {at}, {trip:?}, {guarantee:?}");
                let ctx = CommitContext { guarantee, ..machine.context(bucket.clone()) };
                assert!(matches!(commit(&ctx).await, Err(CommitError::Unfinished { .. })));
                let report = resume(&ctx).await.unwrap_or_else(|err| panic!("{what}: {err}"));
                assert_eq!(report.seq, Some(1), "{what}");
                expect_published(&bucket, lost_uploads(trip, at, guarantee).await, &what).await;
                assert!(machine.staged().is_empty(), "{what}");
                assert!(matches!(resume(&ctx).await, Err(CommitError::NothingToResume)));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_at_any_request_an_abort_leaves_everything_as_it_was() {
    for guarantee in [Guarantee::Enforced, Guarantee::SinglePut] {
        let total = requests_of(FILES, guarantee).await;
        for at in 0..total {
            for trip in [Trip::CrashBefore, Trip::CrashAfter, Trip::Unreachable] {
                let Some((bucket, machine)) = crashed(at, trip, guarantee).await else { continue };
                let what = format!("request {at}, {trip:?}, {guarantee:?}");
                let ctx = CommitContext { guarantee, ..machine.context(bucket.clone()) };
                match abort(&ctx).await {
                    Ok(()) => {
                        assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"], "{what}");
                        assert_eq!(bucket.open_uploads(), lost_uploads(trip, at, guarantee).await, "{what}");
                        assert_eq!(machine.staged().len(), 4, "{what}");
                        // And then it can be committed after all.
                        commit(&ctx).await.unwrap_or_else(|err| panic!("{what}: {err}"));
                    }
                    Err(CommitError::AlreadyCommitted { seq: 1, .. }) => {
                        resume(&ctx).await.unwrap_or_else(|err| panic!("{what}: {err}"));
                        expect_published(&bucket, lost_uploads(trip, at, guarantee).await, &what).await;
                    }
                    Err(err) => panic!("{what}: {err}"),
                }
                assert_eq!(objects(&bucket).len(), 6, "{what}");
            }
        }
    }
}

/// An upload whose very name was lost with the answer cannot be given up by anybody.
async fn lost_uploads(trip: Trip, at: usize, guarantee: Guarantee) -> usize {
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let store = TripStore::new(bucket_with_foreign(), None);
    commit(&CommitContext { guarantee, ..machine.context(store.clone()) }).await.unwrap();
    let created = store.log.lock().get(at).is_some_and(|what| what.starts_with("create"));
    usize::from(created && matches!(trip, Trip::CrashAfter | Trip::LostReply))
}

/// Aborting, too, can be interrupted at every request, and is completed by either of both.
#[tokio::test(start_paused = true)]
async fn an_abort_that_is_interrupted_can_be_repeated() {
    let total = requests_of(FILES, Guarantee::Enforced).await;
    for again in 0..20 {
        let Some((bucket, mut machine)) = crashed(total - 4, Trip::CrashBefore, Guarantee::Enforced).await
        else {
            panic!("the commit was over");
        };
        let store = TripStore::new(bucket.clone(), Some((again, Trip::CrashBefore)));
        let ctx = machine.context(store.clone());
        let done = store.until_crash(abort(&ctx)).await;
        drop(ctx);
        machine.restart();
        let ctx = machine.context(bucket.clone());
        if done.is_none() && again % 2 == 0 {
            abort(&ctx).await.unwrap();
        } else if done.is_none() {
            match resume(&ctx).await {
                Err(CommitError::Aborted { .. }) => {}
                Ok(report) => {
                    assert_eq!(report.seq, Some(1)); // it had not begun to abort
                    continue;
                }
                Err(err) => panic!("{err}"),
            }
        }
        assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"]);
        assert_eq!(machine.staged().len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_midway_takes_everything_back() {
    let total = requests_of(FILES, Guarantee::Enforced).await;
    for at in 0..total {
        let bucket = bucket_with_foreign();
        let machine = Machine::new("ann");
        machine.stage(FILES);
        let store = TripStore::new(bucket.clone(), Some((at, Trip::Denied)));
        match commit(&machine.context(store)).await {
            Err(CommitError::Interrupted { .. }) | Ok(_) => {
                // Behind the commit point it only goes forward.
                assert_eq!(log(&bucket).head().await.unwrap(), 1, "request {at}");
            }
            Err(_) => {
                assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"], "request {at}");
                assert_eq!(bucket.open_uploads(), 0, "request {at}");
                assert_eq!(machine.staged().len(), 4, "request {at}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_committers_of_different_files_take_successive_numbers() {
    let bucket = Arc::new(MemoryStore::default());
    let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
    ann.stage(&[("a/1", b"1"), ("a/2", &BIG)]);
    bob.stage(&[("b/1", b"1"), ("a/3", b"3")]);
    let (ann_ctx, bob_ctx) = (ann.context(bucket.clone()), bob.context(bucket.clone()));
    let (first, second) = tokio::join!(commit(&ann_ctx), commit(&bob_ctx));
    let mut numbers = [first.unwrap().seq, second.unwrap().seq];
    numbers.sort();
    assert_eq!(numbers, [Some(1), Some(2)]);
    let tree = log(&bucket).snapshot(2).await.unwrap();
    assert_eq!(tree.entries.len(), 4);
    assert!(state(&bucket, "intents").is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_overlapping_committers_at_most_one_wins_and_the_other_changes_nothing() {
    for round in 0..20 {
        let bucket = Arc::new(MemoryStore::default());
        let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
        ann.stage(&[("a", b"ann"), ("shared", b"ann")]);
        bob.stage(&[("b", b"bob"), ("shared", b"bob"), ("data.jsonl", b"{}")]);
        let slow = TripStore::new(bucket.clone(), None);
        let (ann_ctx, bob_ctx) = (ann.context(slow), bob.context(bucket.clone()));
        let late = async {
            tokio::time::sleep(Duration::from_millis(round * 3)).await;
            commit(&bob_ctx).await
        };
        let (first, second) = tokio::join!(commit(&ann_ctx), late);
        let published = objects(&bucket);
        match (first, second) {
            (Ok(_), Err(CommitError::Conflict { conflicts })) => {
                assert_eq!(published.keys().collect::<Vec<_>>(), ["a", "shared"]);
                assert_eq!(conflicts[0].path, "shared");
                assert_eq!(bob.staged().len(), 3);
            }
            (Err(CommitError::Conflict { conflicts }), Ok(_)) => {
                assert_eq!(published.keys().collect::<Vec<_>>(), ["b", "data.jsonl", "shared"]);
                assert_eq!(conflicts[0].path, "shared");
                assert_eq!(ann.staged().len(), 2);
            }
            (Err(CommitError::Conflict { .. }), Err(CommitError::Conflict { .. })) => {
                assert!(published.is_empty());
            }
            other => panic!("{other:?}"),
        }
        assert!(state(&bucket, "intents").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn replacing_and_deleting_take_the_version_that_was_seen() {
    let bucket = Arc::new(MemoryStore::default());
    let machine = Machine::new("ann");
    machine.stage(&[("old", b"1"), ("gone", b"2"), ("kept", b"3")]);
    let report = commit(&machine.context(bucket.clone())).await.unwrap();
    let etag = |at: &str| report.published.iter().find(|file| file.path.as_str() == at).unwrap().etag.clone();
    let stage_changes = |content: &[u8]| {
        let dataset = machine.dataset();
        let base = |at: &str, kind| Base { etag: etag(at), size_bytes: 1, kind };
        dataset.set_base(&path("old"), &base("old", BaseKind::Replace)).unwrap();
        dataset.set_base(&path("gone"), &base("gone", BaseKind::Delete)).unwrap();
        machine.stage(&[("old", content)]);
    };
    stage_changes(b"new");
    let mut ctx = machine.context(bucket.clone());
    assert_eq!(conflicts(commit(&ctx).await), ["gone", "old"]);
    ctx.options.overwrite = true;
    let report = commit(&ctx).await.unwrap();
    assert_eq!((report.seq, report.files, report.deleted.len()), (Some(2), 1, 1));
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["kept", "old"]);
    let record = log(&bucket).record(2).await.unwrap().unwrap().body;
    assert_eq!(record.changes.entries[0].replaced, Some(etag("old")));
    assert_eq!(record.changes.deleted[0].etag, etag("gone"));
    // A third version is a conflict, not a victim.
    machine.dataset().discard(&crate::name::DirPath::root()).unwrap();
    stage_changes(b"third");
    let before = versions(&bucket).await;
    let ctx = CommitContext { staging: machine.dataset(), ..ctx };
    assert_eq!(conflicts(commit(&ctx).await), ["old"]);
    assert_eq!(versions(&bucket).await, before);
}

#[tokio::test(start_paused = true)]
async fn a_remote_that_promises_nothing_needs_consent() {
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let mut ctx = machine.context(Arc::new(MemoryStore::default()));
    ctx.guarantee = Guarantee::BestEffort;
    ctx.options.allow_unenforced = false;
    assert!(matches!(commit(&ctx).await, Err(CommitError::Unenforced)));
    assert_eq!(machine.staged().len(), 4);
    ctx.options.allow_unenforced = true;
    assert_eq!(commit(&ctx).await.unwrap().seq, Some(1));
}

/// A clock that is set by hand.
#[derive(Debug)]
struct SetClock(Mutex<SystemTime>);

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_commit_is_ended_by_others_and_cannot_come_back() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let clock = Arc::new(SetClock(Mutex::new(start)));
    let day = Duration::from_secs(24 * 60 * 60);
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let bucket = bucket_with_foreign();
    let mut machine = Machine::new("ann");
    machine.stage(FILES);
    // It is taken for dead while it publishes: the answer to its last marker never comes.
    let store = TripStore::new(bucket.clone(), Some((total - 7, Trip::CrashAfter)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    assert!(objects(&bucket).len() > 2 && log(&bucket).head().await.unwrap() == 0);
    let shared: Arc<dyn ObjectStore> = bucket.clone();
    let bob = Author { user: "bob".into(), host: "desk".into() };
    let collect = || {
        let (shared, bob, clock) = (shared.clone(), bob.clone(), clock.clone());
        async move { gc(&shared, &prefix(), &name(), &bob, &*clock, &GcOptions::default()).await.unwrap() }
    };
    assert_eq!(collect().await.live.len(), 1, "it may still be at work");
    *clock.0.lock() += day;
    assert_eq!(collect().await.ended.len(), 1);
    assert_eq!(collect().await.waiting.len(), 1, "and its intent goes on hiding its files");
    assert_eq!(state(&bucket, "intents").len(), 1);
    // The one that was taken for dead comes back, and finds the log ahead of it.
    machine.restart();
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(bucket.clone()) };
    match resume(&ctx).await {
        Err(CommitError::Fenced { by, .. }) => assert_eq!(by, "bob@desk"),
        other => panic!("{other:?}"),
    }
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"]);
    assert_eq!(machine.staged().len(), 4);
    *clock.0.lock() += day;
    assert_eq!(collect().await.cleared.len(), 1);
    assert!(state(&bucket, "intents").is_empty());
    assert_eq!(commit(&ctx).await.unwrap().seq, Some(2));
}

#[tokio::test(start_paused = true)]
async fn gc_sweeps_what_a_dead_commit_left() {
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))));
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let bucket = bucket_with_foreign();
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let store = TripStore::new(bucket.clone(), Some((total - 7, Trip::CrashAfter)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    let left = objects(&bucket).len() - 1;
    assert!(left > 0);
    let shared: Arc<dyn ObjectStore> = bucket.clone();
    let mut reports = Vec::new();
    for _ in 0..3 {
        *clock.0.lock() += Duration::from_secs(24 * 60 * 60);
        let options = GcOptions::default();
        let report = gc(&shared, &prefix(), &name(), &Author::default(), &*clock, &options).await.unwrap();
        reports.push(report);
    }
    assert_eq!((reports[0].ended.len(), reports[1].removed.len(), reports[1].cleared.len()), (1, left, 1));
    assert_eq!(reports[2], GcReport::default());
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn both_committers_may_yield_but_never_neither() {
    let bucket: Arc<dyn ObjectStore> = Arc::new(MemoryStore::default());
    let intents = Intents {
        store: bucket.clone(),
        prefix: prefix(),
        dataset: name(),
        guarantee: Guarantee::Enforced,
        clock: Arc::new(SystemClock),
        jitter: Mutex::new(rand::SeedableRng::seed_from_u64(0)),
    };
    let intent = |txid: &str, creates: &[&str]| Intent {
        dataset: name(),
        txid: txid.into(),
        author: Author { user: txid.into(), host: "lab".into() },
        time: SystemTime::UNIX_EPOCH,
        creates: creates.iter().map(|at| path(at)).collect(),
        markers: Vec::new(),
        replaces: Vec::new(),
        deletes: Vec::new(),
        deleting: None,
    };
    let log = Log::new(bucket.clone(), prefix(), name());
    intents.announce(&intent("A", &["x/y"]), &log).await.unwrap();
    intents.announce(&intent("B", &["z"]), &log).await.unwrap();
    match intents.announce(&intent("C", &["x"]), &log).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert_eq!(conflicts.len(), 1);
            assert_eq!(conflicts[0].to_string(), "x is being published by A@lab (commit A)");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(intents.all().await.unwrap().len(), 2, "the third one has withdrawn");
    intents.withdraw("A").await.unwrap();
    intents.announce(&intent("C", &["x"]), &log).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_file_is_sent_once_whatever_happens() {
    let parts = 3;
    let content: Vec<u8> = (0..(parts * (5 << 20) - 17)).map(|i: u32| (i % 251) as u8).collect();
    let bucket = bucket_with_foreign();
    let mut machine = Machine::new("ann");
    machine.stage(&[("big", &content)]);
    let sent = |store: &TripStore| store.log.lock().iter().filter(|what| what.starts_with("part")).count();
    // Crash at the second part, then at the record.
    let first = TripStore::new(bucket.clone(), Some((5, Trip::CrashBefore)));
    let mut ctx = machine.context(first.clone());
    ctx.options.workers = 1;
    assert!(first.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    machine.restart();
    let planned = plan(&machine.context(bucket.clone())).await.unwrap();
    assert_eq!(planned.create.len(), 1);
    let second = TripStore::new(bucket.clone(), None);
    let mut ctx = machine.context(second.clone());
    ctx.options.workers = 1;
    resume(&ctx).await.unwrap();
    assert_eq!((sent(&first), sent(&second)), (2, 2), "{:?} {:?}", first.log.lock(), second.log.lock());
    assert_eq!(objects(&bucket)["big"], content);
}

#[tokio::test(start_paused = true)]
async fn published_files_are_handed_to_the_cache() {
    #[derive(Default)]
    struct Shelf(Mutex<Vec<(String, u64, Vec<u8>)>>);
    impl Admit for Shelf {
        fn admit(&self, key: &ObjectKey, _: &ETag, size_bytes: u64, path: &Path) -> io::Result<()> {
            let content = fs::read(path)?;
            fs::remove_file(path)?;
            self.0.lock().push((key.to_string(), size_bytes, content));
            if key.as_str().ends_with("data.jsonl") { Err(io::Error::other("full")) } else { Ok(()) }
        }
    }
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let shelf = Arc::new(Shelf::default());
    let ctx =
        CommitContext { cache: Some(shelf.clone()), ..machine.context(Arc::new(MemoryStore::default())) };
    commit(&ctx).await.unwrap();
    assert_eq!(shelf.0.lock().len(), 4);
    assert_eq!(shelf.0.lock()[1], ("datasets/run/frames/1.png".into(), 3, b"one".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_commit_left_is_not_taken_for_published() {
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let (bucket, _dead) = crashed(total - 7, Trip::CrashAfter, Guarantee::Enforced).await.unwrap();
    let bob = Machine::new("bob");
    bob.stage(&[("nothing", b"")]);
    let ctx = bob.context(bucket.clone());
    match commit(&ctx).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert!(matches!(conflicts[0].reason, ConflictReason::Leftover { .. }), "{conflicts:?}");
        }
        other => panic!("{other:?}"),
    }
    // Nor without its intent: the log is what says that it was published.
    for (key, _) in state(&bucket, "intents") {
        bucket.delete_out_of_band(&key);
    }
    assert_eq!(conflicts(commit(&ctx).await), ["nothing"]);
    // What another tool has put there, and says so, is nobody's to take back.
    let there = bucket.head(&key("nothing")).await.unwrap();
    bucket.delete(&key("nothing"), &there.etag).await.unwrap();
    let metadata = BTreeMap::from([(META_SHA256.to_owned(), ContentId::OF_NOTHING.sha256_hex())]);
    let attributes = PutAttributes { metadata, ..PutAttributes::default() };
    bucket.put(&key("nothing"), Bytes::new(), &Expect::Absent, &attributes).await.unwrap();
    assert_eq!(commit(&ctx).await.unwrap().already_there, 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_shows_the_files_is_told_before_they_leave_staging() {
    struct Shown {
        staging: Arc<StagedDataset>,
        told: Mutex<Vec<(Option<u64>, usize, bool)>>,
    }
    impl Published for Shown {
        fn published(&self, report: &CommitReport) {
            let sealed = self.staging.sealed().unwrap();
            let there = FILES[..4].iter().all(|(at, _)| sealed.file_path(&path(at)).exists());
            self.told.lock().push((report.seq, report.published.len(), there));
        }
    }
    struct Taker;
    impl Admit for Taker {
        fn admit(&self, _: &ObjectKey, _: &ETag, _: u64, path: &Path) -> io::Result<()> {
            fs::remove_file(path)
        }
    }
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let shown = Arc::new(Shown { staging: machine.dataset(), told: Mutex::default() });
    let ctx = machine.context(Arc::new(MemoryStore::default()));
    commit(&CommitContext { cache: Some(Arc::new(Taker)), published: Some(shown.clone()), ..ctx })
        .await
        .unwrap();
    assert_eq!(*shown.told.lock(), [(Some(1), 4, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_seal_without_its_directory_is_not_an_empty_commit() {
    let (bucket, machine) = crashed(12, Trip::CrashBefore, Guarantee::Enforced).await.unwrap();
    let before = objects(&bucket);
    let sealed = machine.dataset().sealed().unwrap();
    let journal = fs::read(sealed.journal_path()).unwrap();
    let dir = sealed.journal_path().parent().unwrap().to_owned();
    fs::remove_dir_all(&dir).unwrap();
    let ctx = machine.context(bucket.clone());
    assert!(resume(&ctx).await.is_err());
    assert!(abort(&ctx).await.is_err());
    assert_eq!((objects(&bucket), journal.is_empty()), (before, false));
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_there_already_is_looked_at_again_after_the_announcement() {
    for victim in ["gone", "kept"] {
        let bucket = Arc::new(MemoryStore::default());
        let machine = Machine::new("ann");
        machine.stage(&[("gone", b"2"), ("kept", b"3")]);
        let report = commit(&machine.context(bucket.clone())).await.unwrap();
        let gone = report.published.iter().find(|file| file.path.as_str() == "gone").unwrap();
        let base = Base { etag: gone.etag.clone(), size_bytes: 1, kind: BaseKind::Delete };
        machine.dataset().set_base(&path("gone"), &base).unwrap();
        machine.stage(&[("kept", b"3"), ("new", b"n")]);
        let meddler = Arc::new(Intruder { inner: bucket.clone(), victim, at: ".dsfs/datasets/intents/" });
        let mut ctx = machine.context(meddler);
        ctx.options.overwrite = true;
        assert_eq!(conflicts(commit(&ctx).await), [victim]);
        assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["gone", "kept"]);
        assert_eq!(objects(&bucket)[victim], b"foreign"[..]);
        assert!(state(&bucket, "intents").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_replacement_looks_before_it_completes() {
    let bucket = Arc::new(MemoryStore::default());
    let etag = bucket.overwrite_out_of_band(&key("big"), Bytes::from_static(b"old"));
    let machine = Machine::new("ann");
    let base = Base { etag, size_bytes: 3, kind: BaseKind::Replace };
    machine.dataset().set_base(&path("big"), &base).unwrap();
    machine.stage(&[("big", &BIG)]);
    let store = TripStore::new(bucket.clone(), None);
    let mut ctx = machine.context(store.clone());
    ctx.options.overwrite = true;
    commit(&ctx).await.unwrap();
    let requests = store.log.lock().clone();
    let complete = requests.iter().position(|request| request == "complete datasets/run/big").unwrap();
    assert_eq!(requests[complete - 1], "head datasets/run/big");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_after_a_lost_answer_ends_the_commit_in_the_log() {
    for lost in [false, true] {
        let bucket = Arc::new(MemoryStore::default());
        let machine = Machine::new("ann");
        machine.stage(&[("a", b"1"), ("data.jsonl", b"{}")]);
        let meddler = Arc::new(Intruder { inner: bucket.clone(), victim: "data.jsonl", at: "" });
        let faulty = Arc::new(FaultyStore::new(meddler));
        if lost {
            faulty.script(Operation::Put, Fault::LostReply); // the intent's
        }
        let store = Arc::new(RetryingStore::new(faulty, RetryOptions::default()));
        assert_eq!(conflicts(commit(&machine.context(store)).await), ["data.jsonl"]);
        assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["data.jsonl"]);
        // What the retries have hidden may still appear: the tombstone hides it.
        assert_eq!(state(&bucket, "intents").len(), usize::from(lost));
        let head = log(&bucket).head().await.unwrap();
        assert_eq!(head, u64::from(lost));
        if let Some(record) = log(&bucket).record(head).await.unwrap() {
            assert_eq!(record.outcome, Outcome::Abort);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_counts_nothing_but_records_and_misses_none_silently() {
    let bucket = Arc::new(MemoryStore::default());
    let machine = Machine::new("ann");
    for content in ["1", "2"] {
        machine.stage(&[(content, content.as_bytes())]);
        commit(&machine.context(bucket.clone())).await.unwrap();
    }
    for odd in ["99", "00000000099", "0000000099.bak", "+000000099"] {
        let key = ObjectKey::from_listing(&format!(".dsfs/datasets/log/run/{odd}"));
        bucket.overwrite_out_of_band(&key, Bytes::from_static(b"odd"));
    }
    assert_eq!(log(&bucket).head().await.unwrap(), 2);
    bucket.delete_out_of_band(&prefix().log_key(&name(), 1));
    assert!(matches!(log(&bucket).find("nobody", 1..=2).await, Err(LogError::Store(_))));
    assert!(matches!(
        log(&bucket).find_since("nobody", 2, SystemTime::UNIX_EPOCH).await,
        Err(LogError::Store(StoreError::NotFound { .. }))
    ));
}

/// A bucket with `old`, and a machine that has staged another version of it beside a new marker.
fn replacing(kind: BaseKind) -> (Arc<MemoryStore>, Machine) {
    let bucket = Arc::new(MemoryStore::default());
    let etag = bucket.overwrite_out_of_band(&key("old"), Bytes::from_static(b"1"));
    let machine = Machine::new("ann");
    machine.dataset().set_base(&path("old"), &Base { etag, size_bytes: 1, kind }).unwrap();
    machine.stage(&[("old", b"new"), ("data.jsonl", b"{}")]);
    (bucket, machine)
}

fn overwriting(machine: &Machine, store: Arc<dyn ObjectStore>) -> CommitContext {
    let mut ctx = machine.context(store);
    ctx.options.overwrite = true;
    ctx
}

#[tokio::test(start_paused = true)]
async fn whatever_was_replaced_is_named_when_it_cannot_be_brought_back() {
    for kind in [BaseKind::Replace, BaseKind::Delete] {
        let (bucket, machine) = replacing(kind);
        let store = Arc::new(Intruder { inner: bucket.clone(), victim: "data.jsonl", at: "" });
        match commit(&overwriting(&machine, store)).await {
            Err(CommitError::NotRestored { paths, .. }) => assert_eq!(paths, [path("old")]),
            other => panic!("{other:?}"),
        }
        assert_eq!(objects(&bucket)["old"], b"new"[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_whose_old_version_is_gone_is_a_conflict_for_a_resume_too() {
    let (bucket, machine) = replacing(BaseKind::Replace);
    let watched = TripStore::new(bucket.clone(), None);
    commit(&overwriting(&machine, watched.clone())).await.unwrap();
    let at = watched.log.lock().iter().position(|request| request == "put datasets/run/old").unwrap();

    let (bucket, mut machine) = replacing(BaseKind::Replace);
    let store = TripStore::new(bucket.clone(), Some((at, Trip::CrashBefore)));
    let ctx = overwriting(&machine, store.clone());
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    machine.restart();
    bucket.delete_out_of_band(&key("old"));
    assert_eq!(conflicts(resume(&overwriting(&machine, bucket.clone())).await), ["old"]);
    assert!(objects(&bucket).is_empty());
    assert_eq!(machine.staged().len(), 2);
}
