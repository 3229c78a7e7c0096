//! Committers, readers, strangers and `gc` on one bucket, with faults, seeded and repeatable.
//!
//! Everything runs on one thread with time that stands still: a request takes a random while of
//! simulated time, and may fail, lose its answer, be carried out long after it was given up, or
//! end the life of whoever made it. Committers restart, and resume or abort.
//!
//! # What is checked
//!
//! 1. At any time, what a reader shows is the newest snapshot, whole, and foreign objects: nothing
//!    of a commit that is not in the log.
//! 2. What is in the log is in the bucket, in the version that the log names.
//! 3. Foreign objects keep their versions.
//! 4. In the end: every commit that was acknowledged is in the log; nothing else that a committer
//!    wrote is visible; staging holds what was not committed.
//!
//! Half of the worlds name versions by hashes of their content, and contents are few, so that the same
//! version comes and goes. Some servers ignore conditions, as their grade says. What somebody has asked
//! to replace or delete is *surrendered*: there a late request may put an old file back (never
//! remove one), which SEMANTICS.md says, and which is not taken for a fault here.
//!
//! `DSFS_SEED=n` repeats one run; `DSFS_SEEDS=n` runs that many.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::clock::Clock;
use crate::name::DirPath;
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
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::UploadId;
use crate::store::list_all;
use crate::store::memory::MemoryStore;

const SEEDS_DEFAULT: u64 = 300;
const ROUNDS: usize = 4;
/// Longest time that a request takes, and that one which was given up is carried out after.
const DELAY_MS_MAX: u64 = 40;
const LATE_MS_MAX: u64 = 3000;
/// Nothing that was given up is carried out after this; longer than who creates waits for who deletes.
const SWEEP_AFTER: Duration = Duration::from_secs(31 * 60);
const PATHS: &[&str] = &["a", "b", "c", "d/x", "d/y", "e/f/g", "data.jsonl"];

fn name() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn prefix() -> RemotePrefix {
    RemotePrefix::parse("datasets").unwrap()
}

/// What all actors share.
struct World {
    bucket: Arc<MemoryStore>,
    dice: Arc<Mutex<StdRng>>,
    start: Instant,
    foreign: Mutex<BTreeMap<ObjectKey, ETag>>,
    acknowledged: Mutex<BTreeMap<String, CommitReport>>,
    /// What somebody wanted to replace or delete, and what was to be deleted.
    surrendered: Mutex<BTreeSet<ObjectKey>>,
    grade: Guarantee,
    /// When a committer was last at work: the others take it slowly while nothing happens.
    active: Mutex<Instant>,
    aloud: bool,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Clock for World {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.start.elapsed()
    }
}

impl World {
    fn roll(&self, range: Range<u64>) -> u64 {
        self.dice.lock().random_range(range)
    }

    async fn pause(&self, range: Range<u64>) {
        let idle = self.active.lock().elapsed() > Duration::from_secs(10);
        tokio::time::sleep(Duration::from_millis(self.roll(range) * if idle { 1000 } else { 1 })).await;
    }

    fn one_in(&self, odds: u64) -> bool {
        self.roll(0..odds) == 0
    }
}

/// One actor's way to the bucket.
struct Line {
    bucket: Arc<MemoryStore>,
    dice: Arc<Mutex<StdRng>>,
    /// Told when the actor dies; an actor without it does not.
    death: Option<Arc<Notify>>,
    faults: bool,
    grade: Guarantee,
    who: String,
    /// Every request is told, for one seed at a time.
    aloud: bool,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

#[derive(Debug)]
enum Fate {
    Fine,
    /// Fails, and is not carried out.
    Fails,
    /// Is carried out, and the answer is lost.
    Lost,
    /// Is given up, and carried out later.
    Late(Duration),
    /// Its maker dies, before or after it.
    Death {
        after: bool,
    },
}

impl Line {
    /// What becomes of a request. The commit point and deletions have more than their share of bad luck.
    fn fate(&self, what: &str) -> (Duration, Fate) {
        let mut dice = self.dice.lock();
        let delay = Duration::from_millis(dice.random_range(0..DELAY_MS_MAX));
        if !self.faults {
            return (delay, Fate::Fine);
        }
        let unlucky = ["put .dsfs/datasets/log/", "delete datasets/"];
        let sides = if unlucky.iter().any(|start| what.starts_with(start)) { 40 } else { 200 };
        let fate = match dice.random_range(0..sides) {
            0..4 => Fate::Fails,
            4..7 => Fate::Lost,
            // Where no condition holds a late request, nothing is promised about it.
            7..10 if self.grade == Guarantee::BestEffort => Fate::Fails,
            7..10 if self.grade == Guarantee::SinglePut && what.starts_with("complete") => Fate::Fails,
            7..10 => Fate::Late(Duration::from_millis(dice.random_range(0..LATE_MS_MAX))),
            10..13 if self.death.is_some() => Fate::Death { after: dice.random_bool(0.5) },
            _ => Fate::Fine,
        };
        (delay, fate)
    }

    async fn send<T, F>(
        &self,
        what: String,
        request: impl FnOnce(Arc<MemoryStore>) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (delay, fate) = self.fate(&what);
        if self.aloud {
            eprintln!("{:?} {} {what}: {fate:?} after {delay:?}", Instant::now(), self.who);
        }
        let request = request(Arc::clone(&self.bucket));
        tokio::time::sleep(delay).await;
        let lost = || Err(StoreError::unavailable("simulation", "injected"));
        match fate {
            Fate::Fine => request.await,
            Fate::Fails => lost(),
            Fate::Lost => {
                request.await.ok();
                lost()
            }
            Fate::Late(by) => {
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    request.await.ok();
                });
                lost()
            }
            Fate::Death { after } => {
                if after {
                    request.await.ok();
                }
                if let Some(death) = &self.death {
                    death.notify_one();
                }
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Line {
    fn describe(&self) -> String {
        "simulation".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let what = format!("list {}", request.prefix);
        let request = request.clone();
        self.send(what, |bucket| async move { bucket.list(&request).await }).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let what = format!("head {}", key);
        let key = key.clone();
        self.send(what, |bucket| async move { bucket.head(&key).await }).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let what = format!("get {}", key);
        let (key, etag) = (key.clone(), etag.clone());
        self.send(what, |bucket| async move { bucket.get(&key, &etag, range).await }).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let what = format!("put {}", key);
        let (key, expect, attributes) = (key.clone(), expect.clone(), attributes.clone());
        let ignores = self.grade == Guarantee::BestEffort;
        self.send(what, move |bucket| async move {
            let expect = if ignores { whatever(&bucket, &key).await } else { expect };
            bucket.put(&key, body, &expect, &attributes).await
        })
        .await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let what = format!("create_multipart {}", key);
        let (key, attributes) = (key.clone(), attributes.clone());
        self.send(what, |bucket| async move { bucket.create_multipart(&key, &attributes).await }).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let what = format!("put_part {}", key);
        let (key, upload) = (key.clone(), upload.clone());
        self.send(what, |bucket| async move { bucket.put_part(&key, &upload, number, body).await }).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let what = format!("complete_multipart {}", key);
        let (key, upload, parts, expect) = (key.clone(), upload.clone(), parts.to_vec(), expect.clone());
        let ignores = self.grade != Guarantee::Enforced;
        self.send(what, move |bucket| async move {
            let expect = if ignores { whatever(&bucket, &key).await } else { expect };
            bucket.complete_multipart(&key, &upload, &parts, &expect).await
        })
        .await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        let what = format!("abort_multipart {}", key);
        let (key, upload) = (key.clone(), upload.clone());
        self.send(what, |bucket| async move { bucket.abort_multipart(&key, &upload).await }).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let what = format!("delete {}", key);
        let (key, etag) = (key.clone(), etag.clone());
        self.send(what, |bucket| async move { bucket.delete(&key, &etag).await }).await
    }
}

/// What is there now: a condition that holds, for servers that ignore conditions.
async fn whatever(bucket: &MemoryStore, key: &ObjectKey) -> Expect {
    bucket.head(key).await.map_or(Expect::Absent, |meta| Expect::Version(meta.etag))
}

struct Machine {
    world: Rc<World>,
    root: TempDir,
    staging: Option<Staging>,
    user: String,
}

impl Machine {
    fn new(world: &Rc<World>, number: usize) -> Self {
        let shm = Path::new("/dev/shm");
        let root =
            if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() };
        let staging = Some(Staging::open(root.path(), &Holder::default()).unwrap());
        Self { world: Rc::clone(world), root, staging, user: format!("user{number}") }
    }

    fn dataset(&self) -> Arc<StagedDataset> {
        self.staging.as_ref().unwrap().create_dataset(&name()).unwrap()
    }

    async fn stage(&self) {
        let dataset = self.dataset();
        for _ in 0..self.world.roll(0..3) {
            self.change(&dataset).await;
        }
        for _ in 0..self.world.roll(1..5) {
            let at = PATHS[self.world.roll(0..PATHS.len() as u64) as usize];
            let at = if self.world.one_in(2) { format!("{}/{at}", self.user) } else { at.to_owned() };
            // Over 40 bytes it goes up in parts.
            let Ok(file) = dataset.create_file(&RelPath::parse(&at).unwrap(), 0o644) else { continue };
            file.write_all_at(&self.content(), 0).unwrap();
        }
        if self.world.one_in(3) {
            let empty = format!("{}/empty{}", self.user, self.world.roll(0..3));
            dataset.mkdir(&RelPath::parse(&empty).unwrap(), 0o755).ok();
        }
    }

    /// One of a few, so that the same comes back.
    fn content(&self) -> Vec<u8> {
        let letter = b'a' + self.world.roll(0..3) as u8;
        vec![letter; [0, 7, 60, 75][self.world.roll(0..4) as usize]]
    }

    /// Stages a replacement or a deletion of something that is published.
    async fn change(&self, dataset: &Arc<StagedDataset>) {
        let at = PATHS[self.world.roll(0..PATHS.len() as u64) as usize];
        let path = RelPath::parse(at).unwrap();
        let key = prefix().key(&name(), &path).unwrap();
        let Ok(meta) = self.world.bucket.head(&key).await else { return };
        let kind = if self.world.one_in(2) { BaseKind::Replace } else { BaseKind::Delete };
        if kind == BaseKind::Replace {
            let Ok(file) = dataset.create_file(&path, 0o644) else { return };
            file.write_all_at(&self.content(), 0).unwrap();
        }
        dataset.set_base(&path, &Base { etag: meta.etag, size_bytes: meta.size_bytes, kind }).unwrap();
        self.world.surrendered.lock().insert(key);
    }

    fn context(&self, death: Option<Arc<Notify>>, faults: bool) -> CommitContext {
        let world = &self.world;
        let line = Line {
            bucket: Arc::clone(&world.bucket),
            dice: Arc::clone(&world.dice),
            death,
            faults,
            grade: world.grade,
            who: self.user.clone(),
            aloud: world.aloud,
        };
        let clock = SimClock { start: world.start };
        CommitContext {
            store: Arc::new(line),
            prefix: prefix(),
            staging: self.dataset(),
            cache: None,
            published: None,
            clock: Arc::new(clock),
            author: Author { user: self.user.clone(), host: "lab".into() },
            options: CommitOptions {
                part_bytes: 40,
                workers: 3,
                overwrite: true,
                allow_unenforced: true,
                entropy: Some(world.roll(0..u64::MAX)),
                ..CommitOptions::default()
            },
            guarantee: world.grade,
            progress: Arc::new(NoProgress),
        }
    }

    /// One attempt to end what is under way; `None`: it died.
    async fn attempt(&self, faults: bool) -> Option<Result<CommitReport, CommitError>> {
        let death = Arc::new(Notify::new());
        let ctx = self.context(faults.then(|| Arc::clone(&death)), faults);
        let run = async {
            if ctx.staging.sealed().is_none() {
                commit(&ctx).await
            } else if self.world.one_in(3) {
                match abort(&ctx).await {
                    Ok(()) => Err(CommitError::NothingToResume),
                    Err(err) => Err(err),
                }
            } else {
                resume(&ctx).await
            }
        };
        tokio::select! {
            biased;
            () = death.notified() => None,
            outcome = run => Some(outcome),
        }
    }

    async fn live(&mut self) {
        for _ in 0..ROUNDS {
            // Now and then long enough for everything that was under way to be over.
            let pause = if self.world.one_in(8) { SWEEP_AFTER } else { Duration::ZERO };
            tokio::time::sleep(pause + Duration::from_millis(self.world.roll(0..400))).await;
            if self.dataset().sealed().is_none() {
                self.stage().await;
            }
            self.once(true).await;
        }
        // The last word of each machine, on a network that works.
        for _ in 0..20 {
            if self.dataset().sealed().is_none() {
                return;
            }
            self.once(false).await;
            tokio::time::sleep(SWEEP_AFTER / 4).await; // whoever is in the way may have to end first
        }
        panic!("a commit did not end on a network that works");
    }

    async fn once(&mut self, faults: bool) {
        *self.world.active.lock() = Instant::now();
        match self.attempt(faults).await {
            None => {
                self.staging = None;
                tokio::time::sleep(Duration::from_millis(self.world.roll(0..5000))).await;
                self.staging = Some(Staging::open(self.root.path(), &Holder::default()).unwrap());
            }
            Some(Ok(report)) => {
                self.world.acknowledged.lock().insert(report.txid.clone(), report);
            }
            Some(Err(CommitError::Conflict { .. })) => {
                self.dataset().discard(&DirPath::root()).unwrap();
            }
            Some(Err(CommitError::Unenforced)) => panic!("it was allowed"),
            Some(Err(err)) => {
                if self.world.aloud {
                    eprintln!("{}: {err}", self.user);
                }
            }
        }
    }
}

#[derive(Debug)]
struct SimClock {
    start: Instant,
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.start.elapsed()
    }
}

/// Reads as a reader does, objects, then intents, then the log, and checks what it would show.
async fn read_once(world: &World) {
    let line: Arc<dyn ObjectStore> = Arc::new(Line {
        bucket: Arc::clone(&world.bucket),
        dice: Arc::clone(&world.dice),
        death: None,
        faults: false,
        grade: world.grade,
        who: "other".into(),
        aloud: false,
    });
    let mark = directly(world).head().await.unwrap();
    let listed = list_all(&*line, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    let key = |at: &RelPath| prefix().key(&name(), at).unwrap();
    let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut gone: BTreeSet<(ObjectKey, ETag)> = BTreeSet::new();
    for object in list_all(&*line, ListRequest::recursive(prefix().intents(&name()))).await.unwrap().objects {
        let Some(body) = crate::log::read_object(&*line, &object.key).await.unwrap() else { continue };
        let intent = Intent::decode(&body).unwrap();
        named.extend(intent.creates.iter().map(key));
        let dirs = intent.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap());
        named.extend(dirs);
        gone.extend(intent.deletes.iter().map(|old| (key(&old.path), old.etag.clone())));
    }
    let log = Log::new(Arc::clone(&line), prefix(), name());
    let head = log.head().await.unwrap();
    for seq in mark + 1..=head {
        let record = log.record(seq).await.unwrap().unwrap();
        gone.extend(record.body.changes.deleted.iter().map(|old| (key(&old.path), old.etag.clone())));
    }
    let tree = log.snapshot(head).await.unwrap();
    let mut recorded: BTreeSet<ObjectKey> = tree.entries.values().map(|entry| key(&entry.path)).collect();
    recorded.extend(tree.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap()));
    for object in listed.objects {
        if recorded.contains(&object.key) || named.contains(&object.key) || surrendered(world, &object.key) {
            continue;
        }
        // Shown as foreign. One that is gone by now was taken back while it was looked at.
        let Ok(meta) = world.bucket.head(&object.key).await else { continue };
        if Some(&meta.etag) == object.etag.as_ref() && !gone.contains(&(object.key.clone(), meta.etag)) {
            let txid = meta.metadata.get(META_TXID);
            assert_eq!(txid, None, "{} shows, of a commit that is not in the log", object.key);
        }
    }
    check_committed(world).await;
}

fn surrendered(world: &World, key: &ObjectKey) -> bool {
    world.surrendered.lock().contains(key)
}

/// The log, with nothing in between.
fn directly(world: &World) -> Log {
    Log::new(Arc::clone(&world.bucket) as Arc<dyn ObjectStore>, prefix(), name())
}

/// What is in the log now is in the bucket now.
async fn check_committed(world: &World) {
    let log = directly(world);
    let tree = log.snapshot(log.head().await.unwrap()).await.unwrap();
    for entry in tree.entries.values() {
        let key = prefix().key(&name(), &entry.path).unwrap();
        let meta = world.bucket.head(&key).await.unwrap_or_else(|err| panic!("committed and lost: {err}"));
        let replaced = surrendered(world, &key) && meta.metadata.contains_key(META_TXID);
        assert!(meta.etag == entry.etag || replaced, "committed and changed: {key}");
    }
}

async fn strangers(world: &World) {
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(world.roll(0..800))).await;
        let at = PATHS[world.roll(0..PATHS.len() as u64) as usize];
        let key = prefix().key(&name(), &RelPath::parse(at).unwrap()).unwrap();
        let body = Bytes::from_static(b"foreign");
        if let Ok(etag) = world.bucket.put(&key, body, &Expect::Absent, &PutAttributes::default()).await {
            world.foreign.lock().insert(key, etag);
        }
    }
}

async fn collect_garbage(world: &World, dead_after: Duration, sweep_after: Duration) -> GcReport {
    let line = Line {
        bucket: Arc::clone(&world.bucket),
        dice: Arc::clone(&world.dice),
        death: None,
        faults: false,
        grade: world.grade,
        who: "reader".into(),
        aloud: false,
    };
    let line: Arc<dyn ObjectStore> = Arc::new(line);
    let options = GcOptions { dead_after, sweep_after, ..GcOptions::default() };
    let author = Author { user: "gc".into(), host: "lab".into() };
    gc(&line, &prefix(), &name(), &author, world, &options).await.unwrap()
}

async fn run(seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let bucket =
        if dice.random_bool(0.5) { MemoryStore::with_content_etags() } else { MemoryStore::default() };
    let grade = match dice.random_range(0..6) {
        0 => Guarantee::BestEffort,
        1 | 2 => Guarantee::SinglePut,
        _ => Guarantee::Enforced,
    };
    let world = Rc::new(World {
        bucket: Arc::new(bucket),
        dice: Arc::new(Mutex::new(dice)),
        surrendered: Mutex::default(),
        grade,
        active: Mutex::new(Instant::now()),
        start: Instant::now(),
        foreign: Mutex::default(),
        acknowledged: Mutex::default(),
        aloud: setting("DSFS_SEED").is_some(),
    });
    let mut machines: Vec<Machine> = (0..3).map(|number| Machine::new(&world, number)).collect();
    let busy = futures_util::future::join_all(machines.iter_mut().map(Machine::live));
    let readers = async {
        loop {
            world.pause(0..300).await;
            read_once(&world).await;
        }
    };
    // Takes anything for dead after a random while, the living as well.
    let gc = async {
        loop {
            world.pause(500..4000).await;
            if world.grade == Guarantee::BestEffort {
                continue; // refused there, since nothing keeps its record off another's place
            }
            let dead_after = Duration::from_millis(world.roll(500..4000));
            collect_garbage(&world, dead_after, SWEEP_AFTER).await;
        }
    };
    let busy = async {
        if world.grade == Guarantee::BestEffort {
            return busy.await; // strangers have no chance against a server that holds nobody back
        }
        tokio::join!(busy, strangers(&world)).0
    };
    tokio::select! {
        biased;
        _ = busy => {}
        () = readers => {}
        () = gc => {}
    }
    tokio::time::sleep(SWEEP_AFTER).await;
    for _ in 0..if world.grade == Guarantee::BestEffort { 0 } else { 3 } {
        collect_garbage(&world, Duration::ZERO, SWEEP_AFTER).await;
        tokio::time::sleep(SWEEP_AFTER).await;
    }
    check_end(&world).await;
}

async fn check_end(world: &World) {
    read_once(world).await;
    let bucket: Arc<dyn ObjectStore> = Arc::clone(&world.bucket) as Arc<dyn ObjectStore>;
    let log = directly(world);
    let head = log.head().await.unwrap();
    let tree = log.snapshot(head).await.unwrap();
    let mut committed = BTreeMap::new();
    for seq in 1..=head {
        let record = log.record(seq).await.unwrap().unwrap();
        if record.outcome == Outcome::Commit {
            let before = committed.insert(record.body.txid.clone(), seq);
            assert_eq!(before, None, "a commit is in the log once");
        }
    }
    for report in world.acknowledged.lock().values() {
        assert!(report.seq.is_none() || committed.get(&report.txid) == report.seq.as_ref(), "{report:?}");
        for file in &report.published {
            let key = prefix().key(&name(), &file.path).unwrap();
            let entry = tree.entries.get(&file.path);
            let is_there = entry.map(|entry| &entry.etag) == Some(&file.etag);
            assert!(is_there || surrendered(world, &key), "acknowledged and not there: {key}");
        }
    }
    let foreign = world.foreign.lock().clone();
    for (key, etag) in foreign.iter().filter(|(key, _)| !surrendered(world, key)) {
        let meta = world.bucket.head(key).await.ok();
        assert_eq!(meta.map(|meta| meta.etag).as_ref(), Some(etag), "a foreign object changed: {key}");
    }
    let intents = list_all(&*bucket, ListRequest::recursive(prefix().intents(&name()))).await.unwrap();
    assert!(
        intents.objects.is_empty() || world.grade == Guarantee::BestEffort,
        "left: {:?}",
        intents.objects
    );
    let recorded: BTreeSet<ETag> = tree.entries.values().map(|entry| entry.etag.clone()).collect();
    let listed = list_all(&*bucket, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    for object in listed.objects.iter().filter(|object| !object.key.as_str().ends_with('/')) {
        let etag = object.etag.clone().unwrap();
        let known = recorded.contains(&etag) || foreign.values().any(|known| *known == etag);
        assert!(known || surrendered(world, &object.key), "{} is nobody's", object.key);
    }
}

fn simulate(seed: u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed))));
    if let Err(panic) = outcome {
        eprintln!("repeat with DSFS_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own settings")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_readers_see_whole_commits_and_nothing_is_lost() {
    if let Some(seed) = setting("DSFS_SEED") {
        return simulate(seed);
    }
    (0..setting("DSFS_SEEDS").unwrap_or(SEEDS_DEFAULT)).for_each(simulate);
}
