//! Commits over the store in memory: outcomes, conflicts, faults, and crashes at every request.

mod asleep;
mod committers;
mod conflicts;
mod crashes;
mod late;
mod outcomes;
mod replacing;
mod stores;

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

use self::stores::Intruder;
use self::stores::Trip;
use self::stores::TripStore;
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

/// A clock that is set by hand.
#[derive(Debug)]
struct SetClock(Mutex<SystemTime>);

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

fn clock() -> Arc<SetClock> {
    Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))))
}

fn overwriting(machine: &Machine, store: Arc<dyn ObjectStore>) -> CommitContext {
    let mut ctx = machine.context(store);
    ctx.options.overwrite = true;
    ctx
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

fn bucket_with_foreign() -> Arc<MemoryStore> {
    with_foreign(MemoryStore::default())
}

fn with_foreign(bucket: MemoryStore) -> Arc<MemoryStore> {
    let bucket = Arc::new(bucket);
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
