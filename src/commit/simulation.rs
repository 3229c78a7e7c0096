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
/// Nothing that was given up is carried out after this.
const SWEEP_AFTER: Duration = Duration::from_secs(600);
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
    /// What becomes of a request. The commit point has more than its share of bad luck.
    fn fate(&self, what: &str) -> (Duration, Fate) {
        let mut dice = self.dice.lock();
        let delay = Duration::from_millis(dice.random_range(0..DELAY_MS_MAX));
        if !self.faults {
            return (delay, Fate::Fine);
        }
        let sides = if what.starts_with("put .dsfs/datasets/log/") { 40 } else { 200 };
        let fate = match dice.random_range(0..sides) {
            0..4 => Fate::Fails,
            4..7 => Fate::Lost,
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
        self.send(what, |bucket| async move { bucket.put(&key, body, &expect, &attributes).await }).await
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
        self.send(
            what,
            |bucket| async move { bucket.complete_multipart(&key, &upload, &parts, &expect).await },
        )
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

    fn stage(&self) {
        let dataset = self.dataset();
        for _ in 0..self.world.roll(1..5) {
            let at = PATHS[self.world.roll(0..PATHS.len() as u64) as usize];
            let at = if self.world.one_in(2) { format!("{}/{at}", self.user) } else { at.to_owned() };
            // Over 40 bytes it goes up in parts.
            let len = self.world.roll(0..80);
            let Ok(file) = dataset.create_file(&RelPath::parse(&at).unwrap(), 0o644) else { continue };
            let content = format!("{}{:1$}", self.user, len as usize);
            file.write_all_at(content.as_bytes(), 0).unwrap();
        }
        if self.world.one_in(3) {
            let empty = format!("{}/empty{}", self.user, self.world.roll(0..3));
            dataset.mkdir(&RelPath::parse(&empty).unwrap(), 0o755).ok();
        }
    }

    fn context(&self, death: Option<Arc<Notify>>, faults: bool) -> CommitContext {
        let world = &self.world;
        let line = Line {
            bucket: Arc::clone(&world.bucket),
            dice: Arc::clone(&world.dice),
            death,
            faults,
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
                entropy: Some(world.roll(0..u64::MAX)),
                ..CommitOptions::default()
            },
            guarantee: if world.one_in(2) { Guarantee::Enforced } else { Guarantee::SinglePut },
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
            tokio::time::sleep(Duration::from_millis(self.world.roll(0..400))).await;
            if self.dataset().sealed().is_none() {
                self.stage();
            }
            self.once(true).await;
        }
        // The last word of each machine, on a network that works.
        for _ in 0..20 {
            if self.dataset().sealed().is_none() {
                return;
            }
            self.once(false).await;
        }
        panic!("a commit did not end on a network that works");
    }

    async fn once(&mut self, faults: bool) {
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
            Some(Err(CommitError::NotRestored { .. } | CommitError::Unenforced)) => {
                panic!("nothing is replaced here");
            }
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
        who: "other".into(),
        aloud: false,
    });
    let listed = list_all(&*line, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
    for object in list_all(&*line, ListRequest::recursive(prefix().intents(&name()))).await.unwrap().objects {
        let Some(body) = crate::log::read_object(&*line, &object.key).await.unwrap() else { continue };
        let intent = Intent::decode(&body).unwrap();
        named.extend(intent.creates.iter().map(|at| prefix().key(&name(), at).unwrap()));
        let dirs = intent.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap());
        named.extend(dirs);
    }
    let log = Log::new(Arc::clone(&line), prefix(), name());
    let head = log.head().await.unwrap();
    let tree = log.snapshot(head).await.unwrap();
    let mut recorded: BTreeSet<ObjectKey> = BTreeSet::new();
    for entry in tree.entries.values() {
        let key = prefix().key(&name(), &entry.path).unwrap();
        let meta = world.bucket.head(&key).await.unwrap_or_else(|err| panic!("committed and lost: {err}"));
        assert_eq!(meta.etag, entry.etag, "committed and changed: {key}");
        recorded.insert(key);
    }
    recorded.extend(tree.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap()));
    for object in listed.objects {
        if recorded.contains(&object.key) || named.contains(&object.key) {
            continue;
        }
        // Shown as foreign. One that is gone by now was taken back while it was looked at.
        let Ok(meta) = world.bucket.head(&object.key).await else { continue };
        if Some(&meta.etag) == object.etag.as_ref() {
            let txid = meta.metadata.get(META_TXID);
            assert_eq!(txid, None, "{} shows, of a commit that is not in the log", object.key);
        }
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
        who: "reader".into(),
        aloud: false,
    };
    let line: Arc<dyn ObjectStore> = Arc::new(line);
    let options = GcOptions { dead_after, sweep_after, dry_run: false };
    let author = Author { user: "gc".into(), host: "lab".into() };
    gc(&line, &prefix(), &name(), &author, world, &options).await.unwrap()
}

async fn run(seed: u64) {
    let world = Rc::new(World {
        bucket: Arc::new(MemoryStore::default()),
        dice: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        start: Instant::now(),
        foreign: Mutex::default(),
        acknowledged: Mutex::default(),
        aloud: setting("DSFS_SEED").is_some(),
    });
    let mut machines: Vec<Machine> = (0..3).map(|number| Machine::new(&world, number)).collect();
    let busy = futures_util::future::join_all(machines.iter_mut().map(Machine::live));
    let readers = async {
        loop {
            tokio::time::sleep(Duration::from_millis(world.roll(0..300))).await;
            read_once(&world).await;
        }
    };
    // Takes anything for dead after a random while, the living as well.
    let gc = async {
        loop {
            let pause = Duration::from_millis(world.roll(500..4000));
            tokio::time::sleep(pause).await;
            collect_garbage(&world, pause, SWEEP_AFTER).await;
        }
    };
    let busy = async { tokio::join!(busy, strangers(&world)) };
    tokio::select! {
        biased;
        _ = busy => {}
        () = readers => {}
        () = gc => {}
    }
    tokio::time::sleep(SWEEP_AFTER).await;
    for _ in 0..2 {
        collect_garbage(&world, Duration::ZERO, SWEEP_AFTER).await;
        tokio::time::sleep(SWEEP_AFTER).await;
    }
    check_end(&world).await;
}

async fn check_end(world: &World) {
    read_once(world).await;
    let bucket: Arc<dyn ObjectStore> = Arc::clone(&world.bucket) as Arc<dyn ObjectStore>;
    let log = Log::new(Arc::clone(&bucket), prefix(), name());
    let tree = log.snapshot(log.head().await.unwrap()).await.unwrap();
    for report in world.acknowledged.lock().values() {
        for file in &report.published {
            let entry = tree.entries.get(&file.path);
            assert_eq!(entry.map(|entry| &entry.etag), Some(&file.etag), "acknowledged and not there");
        }
    }
    let foreign = world.foreign.lock().clone();
    for (key, etag) in &foreign {
        let meta = world.bucket.head(key).await.ok();
        assert_eq!(meta.map(|meta| meta.etag).as_ref(), Some(etag), "a foreign object changed: {key}");
    }
    let intents = list_all(&*bucket, ListRequest::recursive(prefix().intents(&name()))).await.unwrap();
    assert!(intents.objects.is_empty(), "left behind: {:?}", intents.objects);
    let recorded: BTreeSet<ETag> = tree.entries.values().map(|entry| entry.etag.clone()).collect();
    let listed = list_all(&*bucket, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    for object in listed.objects.iter().filter(|object| !object.key.as_str().ends_with('/')) {
        let etag = object.etag.clone().unwrap();
        let known = recorded.contains(&etag) || foreign.values().any(|known| *known == etag);
        assert!(known, "{} is nobody's", object.key);
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
