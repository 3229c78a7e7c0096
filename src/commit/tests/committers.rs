//! Several committers of one dataset, and those that are taken for dead.

use super::*;
use crate::commit::announce::STAMP_AGE_MAX;
use crate::log::Draft;
use crate::record::Changes;
use crate::record::CommitBody;

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

/// Ann pauses at one request, Bob at another; Ann goes on to the end, and then Bob.
#[tokio::test(start_paused = true)]
async fn who_loses_is_told_to_whom_at_every_moment() {
    let requests = requests_of(&[("a", b"1"), ("b", b"2")], Guarantee::Enforced).await;
    let mut told = BTreeMap::new();
    for (ann_at, bob_at) in (0..requests).flat_map(|at| (0..requests).map(move |other| (at, other))) {
        let bucket = Arc::new(MemoryStore::default());
        let both = [("ann", "longer", ann_at), ("bob", "long", bob_at)];
        let [(ann, ann_store), (bob, bob_store)] = both.map(|(user, other, at)| {
            let machine = Machine::new(user);
            machine.stage(&[("a", user.as_bytes()), ("b", other.as_bytes())]);
            (machine, TripStore::new(bucket.clone(), Some((at, Trip::Pause))))
        });
        let (ann_ctx, bob_ctx) = (ann.context(ann_store.clone()), bob.context(bob_store.clone()));
        let (mut first, mut second) = (Box::pin(commit(&ann_ctx)), Box::pin(commit(&bob_ctx)));
        let mut ann_said = ann_store.until_crash(&mut first).await;
        let mut bob_said = bob_store.until_crash(&mut second).await;
        ann_store.go_on();
        bob_store.go_on();
        if ann_said.is_none() {
            ann_said = Some(first.await);
        }
        if bob_said.is_none() {
            bob_said = Some(second.await);
        }
        for (said, other) in [(ann_said.unwrap(), "bob@lab"), (bob_said.unwrap(), "ann@lab")] {
            let Err(err) = said else { continue };
            let CommitError::Conflict { conflicts } = err else { panic!("{ann_at} {bob_at}: {err:?}") };
            for conflict in conflicts {
                let reason = &conflict.reason;
                let kind = if matches!(reason, ConflictReason::Exists { by: Some(by), .. } if by.starts_with(other))
                {
                    "published"
                } else if matches!(reason, ConflictReason::Intent { author, .. } if author == other) {
                    "under way"
                } else {
                    panic!("{ann_at} {bob_at}: {reason:?}");
                };
                *told.entry(kind).or_insert(0) += 1;
            }
        }
        assert!(state(&bucket, "intents").is_empty(), "{ann_at} {bob_at}");
    }
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), ["published", "under way"], "{told:?}");
}

/// A server that heeds no condition of a put.
fn heedless(bucket: &Arc<MemoryStore>) -> Arc<FaultyStore> {
    let store = FaultyStore::new(bucket.clone());
    (0..100).for_each(|_| store.script(Operation::Put, Fault::IgnoreCondition));
    Arc::new(store)
}

fn best_effort(machine: &Machine, store: Arc<dyn ObjectStore>) -> CommitContext {
    CommitContext { guarantee: Guarantee::BestEffort, ..machine.context(store) }
}

/// Ann's commit, dead without a notice in the bucket: it died just before it wrote one, or, with everything
/// published before (`there`), just after it withdrew it.
async fn dead_without_notice(there: bool, at: Option<usize>) -> (Arc<MemoryStore>, Machine, usize) {
    let bucket = Arc::new(MemoryStore::default());
    let mut ann = Machine::new("ann");
    if there {
        commit(&best_effort(ann.stage(&[("a", b"1")]), bucket.clone())).await.unwrap();
    }
    ann.stage(&[("a", b"1")]);
    let (request, trip) = match there {
        false => ("put .dsfs/datasets/intents/", Trip::CrashBefore),
        true => ("delete .dsfs/datasets/intents/", Trip::CrashAfter),
    };
    let store = TripStore::new(bucket.clone(), at.map(|at| (at, trip)));
    let ended = store.until_crash(commit(&best_effort(&ann, store.clone()))).await;
    assert_eq!(ended.is_some(), at.is_none());
    let found = store.log.lock().iter().position(|done| done.starts_with(request)).unwrap();
    ann.restart();
    (bucket, ann, found)
}

/// More requests than an abort makes.
const NEVER: usize = 1000;

/// Where nothing but notices keeps two records from taking one number: Bob's commit pauses at one request,
/// Ann's abort at another; Bob goes on to the end, and then Ann.
#[tokio::test(start_paused = true)]
async fn an_abort_takes_no_commits_number_where_conditions_are_ignored() {
    let requests = requests_of(&[("b", b"2")], Guarantee::BestEffort).await;
    for there in [false, true] {
        let dies_at = dead_without_notice(there, None).await.2;
        let mut seen = [0; 3];
        for (ann_at, bob_at) in
            (0..20).chain([NEVER]).flat_map(|at| (0..requests).map(move |other| (at, other)))
        {
            let what = format!("{there} {ann_at} {bob_at}");
            let (bucket, ann, _) = dead_without_notice(there, Some(dies_at)).await;
            let bob = Machine::new("bob");
            bob.stage(&[("b", b"2")]);
            let server = heedless(&bucket);
            let [ann_store, bob_store] =
                [ann_at, bob_at].map(|at| TripStore::new(server.clone(), Some((at, Trip::Pause))));
            let (ann_ctx, bob_ctx) =
                (best_effort(&ann, ann_store.clone()), best_effort(&bob, bob_store.clone()));
            let (mut aborting, mut committing) = (Box::pin(abort(&ann_ctx)), Box::pin(commit(&bob_ctx)));
            let mut bob_said = bob_store.until_crash(&mut committing).await;
            let mut ann_said = ann_store.until_crash(&mut aborting).await;
            bob_store.go_on();
            if bob_said.is_none() {
                bob_said = Some(committing.await);
            }
            ann_store.go_on();
            if ann_said.is_none() {
                ann_said = Some(aborting.await);
            }
            match ann_said.unwrap() {
                Ok(()) => seen[0] += 1,
                // It waits until Bob is done.
                Err(CommitError::Interrupted { .. }) => {
                    seen[1] += 1;
                    abort(&best_effort(&ann, server.clone()))
                        .await
                        .unwrap_or_else(|err| panic!("{what}: {err}"));
                }
                Err(err) => panic!("{what}: {err}"),
            }
            match bob_said.unwrap() {
                Ok(report) => {
                    let record = log(&bucket).record(report.seq.unwrap()).await.unwrap().unwrap();
                    assert_eq!((record.body.txid, record.outcome), (report.txid, Outcome::Commit), "{what}");
                }
                Err(CommitError::Conflict { .. }) => seen[2] += 1,
                Err(err) => panic!("{what}: {err}"),
            }
            assert_eq!(ann.staged(), ["a"], "{what}");
        }
        assert!(seen.iter().all(|times| *times > 0), "{there}: {seen:?}");
    }
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
    intents.announce(&intent("A", &["x/y"]), &log, false).await.unwrap();
    intents.announce(&intent("B", &["z"]), &log, false).await.unwrap();
    match intents.announce(&intent("C", &["x"]), &log, false).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert_eq!(conflicts.len(), 1);
            assert_eq!(conflicts[0].to_string(), "x is being published by A@lab (commit A)");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(intents.all().await.unwrap().len(), 2, "the third one has withdrawn");
    // With objects in place it may not: nothing else hides them.
    assert!(intents.announce(&intent("C", &["x"]), &log, true).await.is_err());
    assert_eq!(intents.all().await.unwrap().len(), 3);
    intents.withdraw("A").await.unwrap();
    intents.announce(&intent("C", &["x"]), &log, false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_commit_is_ended_by_others_and_cannot_come_back() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let clock = Arc::new(SetClock(Mutex::new(start)));
    let day = Duration::from_secs(24 * 60 * 60);
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let bucket = with_foreign(MemoryStore::default().with_clock(clock.clone()));
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
        let (shared, bob, clock) = (shared.clone(), bob.clone(), clock.clone() as Arc<dyn Clock>);
        async move { gc(&shared, &prefix(), &name(), &bob, &clock, &GcOptions::default()).await.unwrap() }
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
    let bucket = with_foreign(MemoryStore::default().with_clock(clock.clone()));
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
        let now = clock.clone() as Arc<dyn Clock>;
        let report = gc(&shared, &prefix(), &name(), &Author::default(), &now, &options).await.unwrap();
        reports.push(report);
    }
    assert_eq!((reports[0].ended.len(), reports[1].removed.len(), reports[1].cleared.len()), (1, left, 1));
    assert_eq!(reports[2], GcReport::default());
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"]);
}

/// A clock that moves on with each look at it.
#[derive(Debug)]
struct Hurrying {
    now: Mutex<SystemTime>,
    step: Duration,
}

impl Clock for Hurrying {
    fn now(&self) -> SystemTime {
        let mut now = self.now.lock();
        *now += self.step;
        *now
    }
}

#[tokio::test(start_paused = true)]
async fn gc_renews_the_stamp_behind_which_it_deletes() {
    let day = Duration::from_secs(24 * 60 * 60);
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))));
    let bucket = Arc::new(MemoryStore::default().with_clock(clock.clone()));
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let store = TripStore::new(bucket.clone(), Some((total - 7, Trip::CrashAfter)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    let slow = TripStore::new(bucket.clone(), None);
    for step in [Duration::ZERO, STAMP_AGE_MAX + Duration::from_secs(60)] {
        *clock.0.lock() += day;
        let hurrying: Arc<dyn Clock> = Arc::new(Hurrying { now: Mutex::new(clock.now()), step });
        let shared: Arc<dyn ObjectStore> = slow.clone();
        let options = GcOptions::default();
        gc(&shared, &prefix(), &name(), &Author::default(), &hurrying, &options).await.unwrap();
    }
    assert!(objects(&bucket).is_empty());
    let log = slow.log.lock();
    let of_kind = |start: &str| log.iter().filter(|request| request.starts_with(start)).count();
    let (deleted, stamped) = (of_kind("delete datasets/run/"), of_kind("put .dsfs/datasets/intents/run/"));
    assert!(deleted > 2 && stamped >= deleted, "{stamped} stamps, {deleted} deletions");
}

/// An ended commit of files `f0`, `f1` and so on, and what it has left of them, in a bucket with others' files.
async fn tombstone(clock: &Arc<SetClock>, named: usize, left: usize, others: usize) -> Arc<MemoryStore> {
    let bucket = Arc::new(MemoryStore::default().with_clock(clock.clone()));
    let txid = "01DEAD";
    let path_of = |number: usize| path(&format!("f{number}"));
    let intent = Intent {
        dataset: name(),
        txid: txid.into(),
        author: Author::default(),
        time: clock.now(),
        creates: (0..named).map(path_of).collect(),
        markers: Vec::new(),
        replaces: Vec::new(),
        deletes: Vec::new(),
        deleting: None,
    };
    bucket.overwrite_out_of_band(&prefix().intent_key(&name(), txid), intent.encode().unwrap());
    let metadata = BTreeMap::from([(META_TXID.to_owned(), txid.to_owned())]);
    let attributes = PutAttributes { metadata, ..PutAttributes::default() };
    for number in 0..left {
        let key = prefix().key(&name(), &path_of(number)).unwrap();
        bucket.put(&key, Bytes::from_static(b"1"), &Expect::Absent, &attributes).await.unwrap();
    }
    for number in 0..others {
        bucket.overwrite_out_of_band(&key(&format!("other{number}")), Bytes::from_static(b"2"));
    }
    let body = CommitBody {
        dataset: name(),
        seq: 0,
        txid: txid.into(),
        author: Author::default(),
        time: clock.now(),
        message: None,
        changes: Changes::default(),
        base: None,
        tail: Changes::default(),
    };
    log(&bucket).append(&Draft { outcome: Outcome::Abort, body }, 0).await.unwrap();
    *clock.0.lock() += Duration::from_secs(2 * 24 * 60 * 60);
    bucket
}

/// The requests that each kind takes, by the beginning of what they are.
fn requests(store: &TripStore, start: &str) -> usize {
    store.log.lock().iter().filter(|request| request.starts_with(start)).count()
}

#[tokio::test(start_paused = true)]
async fn what_a_large_commit_has_left_is_found_by_listing() {
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))));
    let collect = |bucket: Arc<MemoryStore>| {
        let clock: Arc<dyn Clock> = clock.clone();
        async move {
            let store = TripStore::new(bucket, None);
            let shared: Arc<dyn ObjectStore> = store.clone();
            let options = GcOptions::default();
            let report = gc(&shared, &prefix(), &name(), &Author::default(), &clock, &options).await.unwrap();
            assert_eq!(report.cleared.len(), 1, "{report:?}");
            (report.removed.len(), store)
        }
    };
    let bucket = tombstone(&clock, 5000, 0, 1500).await;
    let (removed, store) = collect(bucket).await;
    let all = store.requests.load(Ordering::Relaxed);
    assert!(removed == 0 && all < 20, "{all} requests: {:?}", store.log.lock());

    let bucket = tombstone(&clock, 5000, 200, 1500).await;
    let (removed, store) = collect(bucket.clone()).await;
    assert_eq!(
        (removed, requests(&store, "delete datasets/run/f"), objects(&bucket).len()),
        (200, 200, 1500)
    );
    assert!(requests(&store, "head datasets/run/") <= 400, "{:?}", store.log.lock());

    // Nothing but looks where those are few, and where the dataset is large against what is looked for.
    for (named, others, pages) in [(100, 0, 0), (160, 20_000, 10)] {
        let bucket = tombstone(&clock, named, 50, others).await;
        let (removed, store) = collect(bucket.clone()).await;
        assert_eq!((removed, objects(&bucket).len()), (50, others));
        assert_eq!(requests(&store, "list datasets/run/"), pages);
        assert_eq!(requests(&store, "head datasets/run/"), named + 50);
    }
}

/// Nobody has to know of `gc`: a tombstone hides what others have put at its keys meanwhile.
#[tokio::test(start_paused = true)]
async fn who_commits_tidies_up_behind_the_long_dead() {
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))));
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let bucket = with_foreign(MemoryStore::default().with_clock(clock.clone()));
    let mut machine = Machine::new("ann");
    machine.stage(FILES);
    let store = TripStore::new(bucket.clone(), Some((total - 7, Trip::CrashAfter)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    machine.restart();
    let bob = Machine::new("bob");
    let ctx = CommitContext { clock: clock.clone(), ..bob.context(bucket.clone()) };
    let day = Duration::from_secs(24 * 60 * 60);
    *clock.0.lock() += day * 6;
    tidy(&ctx).await;
    assert_eq!(log(&bucket).head().await.unwrap(), 0, "whoever began it may still go on with it");
    *clock.0.lock() += day;
    let own = CommitContext { clock: clock.clone(), ..machine.context(bucket.clone()) };
    tidy(&own).await;
    tidy(&CommitContext { guarantee: Guarantee::BestEffort, ..ctx.clone() }).await;
    assert_eq!(log(&bucket).head().await.unwrap(), 0, "not one's own, and not where it is not safe");
    tidy(&ctx).await;
    assert_eq!((log(&bucket).head().await.unwrap(), state(&bucket, "intents").len()), (1, 1));
    *clock.0.lock() += day;
    tidy(&ctx).await;
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["other"]);
    assert!(state(&bucket, "intents").is_empty());
    // Who began it after all finds it ended, with everything still staged; however late that is.
    bob.stage(&[("x", b"bob")]);
    commit(&ctx).await.unwrap();
    *clock.0.lock() += day * 3;
    assert!(matches!(resume(&own).await, Err(CommitError::Fenced { .. })));
    assert_eq!((machine.staged().len(), state(&bucket, "intents").len()), (4, 1));
    // The notice that this leaves is younger than the record that ended the commit.
    assert_eq!(commit(&own).await.unwrap().seq, Some(3));
    *clock.0.lock() += day * 2;
    tidy(&ctx).await;
    assert!(state(&bucket, "intents").is_empty());
    assert_eq!(objects(&bucket).len(), 2 + FILES.len());
}

/// Here not even the commit's id tells how far back its record may be.
#[tokio::test(start_paused = true)]
async fn gc_clears_away_an_ended_commit_whose_clock_was_days_ahead() {
    let day = Duration::from_secs(24 * 60 * 60);
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))));
    let bucket = Arc::new(MemoryStore::default().with_clock(clock.clone()));
    let ahead = Arc::new(SetClock(Mutex::new(clock.now() + day * 30)));
    let ann = Machine::new("ann");
    ann.stage(FILES);
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let store = TripStore::new(bucket.clone(), Some((total - 7, Trip::CrashAfter)));
    let ctx = CommitContext { clock: ahead, ..ann.context(store.clone()) };
    assert!(store.until_crash(commit(&ctx)).await.is_none());
    let bob = Machine::new("bob");
    let ctx = CommitContext { clock: clock.clone(), ..bob.context(bucket.clone()) };
    *clock.0.lock() += day * 7;
    tidy(&ctx).await;
    assert_eq!(log(&bucket).head().await.unwrap(), 1);
    bob.stage(&[("x", b"bob")]);
    commit(&ctx).await.unwrap();
    *clock.0.lock() += day * 8;
    tidy(&ctx).await;
    assert!(state(&bucket, "intents").is_empty());
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["x"]);
}
