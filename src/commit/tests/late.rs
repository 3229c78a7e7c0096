//! Requests that are carried out long after they were given up, and notices that cannot be read.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::commit::announce::LATE_MAX;
use crate::commit::announce::STAMP_AGE_MAX;
use crate::store::collect;

/// A store in which somebody else's marker appears just before ours, once, and which gives up the first
/// deletion of a data object, and carries it out when it is told to.
#[derive(Debug)]
struct LateDeletion {
    inner: Arc<MemoryStore>,
    held: Mutex<Option<(ObjectKey, ETag)>>,
    intrudes: AtomicBool,
    armed: AtomicBool,
    /// Nobody sees the stamps of those who delete.
    hides_stamps: AtomicBool,
}

impl LateDeletion {
    fn new(clock: Arc<SetClock>) -> Arc<Self> {
        let inner = Arc::new(MemoryStore::with_content_etags().with_clock(clock));
        let yes = || AtomicBool::new(true);
        let hides_stamps = AtomicBool::new(false);
        Arc::new(Self { inner, held: Mutex::default(), intrudes: yes(), armed: yes(), hides_stamps })
    }

    async fn carry_out(&self) {
        let (key, etag) = self.held.lock().take().expect("a deletion was given up");
        self.inner.delete(&key, &etag).await.ok();
    }
}

#[async_trait]
impl ObjectStore for LateDeletion {
    fn describe(&self) -> String {
        "late".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.inner.head(key).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let body = self.inner.get(key, etag, range.clone()).await?;
        let is_notice = key.as_str().starts_with(prefix().intents(&name()).as_str());
        if !is_notice || !self.hides_stamps.load(Ordering::Relaxed) {
            return Ok(body);
        }
        let whole = collect(body, usize::try_from(range.end).unwrap()).await?;
        let unstamped = Intent { deleting: None, ..Intent::decode(&whole).unwrap() };
        Ok(Box::pin(futures_util::stream::iter([Ok(unstamped.encode().unwrap())])))
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        if key.as_str().ends_with("data.jsonl") && self.intrudes.swap(false, Ordering::Relaxed) {
            self.inner.overwrite_out_of_band(key, Bytes::from_static(b"foreign"));
        }
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
        self.inner.complete_multipart(key, upload, parts, expect).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.inner.abort_multipart(key, upload).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        if key.as_str().starts_with("datasets/") && self.armed.swap(false, Ordering::Relaxed) {
            *self.held.lock() = Some((key.clone(), etag.clone()));
            return Err(StoreError::unavailable(key, "injected: given up"));
        }
        self.inner.delete(key, etag).await
    }
}

fn intents(bucket: &Arc<MemoryStore>, clock: &Arc<SetClock>) -> Intents {
    Intents {
        store: bucket.clone(),
        prefix: prefix(),
        dataset: name(),
        guarantee: Guarantee::Enforced,
        clock: clock.clone(),
        jitter: Mutex::new(rand::SeedableRng::seed_from_u64(0)),
    }
}

/// A late deletion names the content, and the same content is there again: so it must not be there
/// again before the deletion can no longer come.
#[tokio::test(start_paused = true)]
async fn what_was_taken_back_is_not_published_anew_while_a_deletion_may_come_late() {
    let clock = clock();
    let store = LateDeletion::new(clock.clone());
    let machine = Machine::new("ann");
    machine.stage(&[("a", b"1"), ("b", b"2"), ("data.jsonl", b"{}")]);
    let context =
        |store: Arc<dyn ObjectStore>| CommitContext { clock: clock.clone(), ..machine.context(store) };
    assert_eq!(conflicts(commit(&context(store.clone())).await), ["data.jsonl"]);
    store.inner.delete_out_of_band(&key("data.jsonl"));
    assert!(objects(&store.inner).is_empty(), "{:?}", objects(&store.inner).keys());

    let bob = Machine::new("bob");
    bob.stage(&[("other", b"1")]);
    let elsewhere = CommitContext { clock: clock.clone(), ..bob.context(store.clone()) };
    commit(&elsewhere).await.expect("what nobody deletes can be published");
    let refused = commit(&context(store.clone())).await;
    match &refused {
        Err(CommitError::Conflict { conflicts }) => {
            let text = conflicts[0].to_string();
            assert!(
                text.contains("ann@lab") && text.contains("try again after 2023-11-14T22:43:20Z"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
    *clock.0.lock() += LATE_MAX;
    store.carry_out().await;
    commit(&context(store.clone())).await.unwrap();
    assert_eq!(objects(&store.inner).len(), 4);
}

/// What the stamps are for: who does not see them publishes anew, and loses it.
#[tokio::test(start_paused = true)]
async fn whoever_yields_to_no_stamp_loses_what_it_publishes() {
    let clock = clock();
    let store = LateDeletion::new(clock.clone());
    let machine = Machine::new("ann");
    machine.stage(&[("a", b"1"), ("b", b"2"), ("data.jsonl", b"{}")]);
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    assert_eq!(conflicts(commit(&ctx).await), ["data.jsonl"]);
    store.inner.delete_out_of_band(&key("data.jsonl"));
    store.hides_stamps.store(true, Ordering::Relaxed);
    let report = commit(&ctx).await.unwrap();
    assert_eq!((report.seq, objects(&store.inner).len()), (Some(2), 3));
    store.carry_out().await;
    assert_eq!(objects(&store.inner).len(), 2, "committed and lost");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_done_again_spares_what_was_published_anew() {
    let clock = clock();
    let bucket = Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone()));
    let etag = bucket.overwrite_out_of_band(&key("old"), Bytes::from_static(b"1"));
    let mut ann = Machine::new("ann");
    ann.stage(&[("new", b"2")]);
    let gone = Base { etag, size_bytes: 1, kind: BaseKind::Delete };
    ann.dataset().set_base(&path("old"), &gone).unwrap();
    // Everything is done but for the withdrawal of its intent and the end in staging.
    let watched = TripStore::new(bucket.clone(), None);
    let plan = |machine: &Machine, store: Arc<dyn ObjectStore>| CommitContext {
        clock: clock.clone(),
        ..overwriting(machine, store)
    };
    let dry = Arc::new(MemoryStore::with_content_etags());
    dry.overwrite_out_of_band(&key("old"), Bytes::from_static(b"1"));
    let twin = Machine::new("ann");
    twin.stage(&[("new", b"2")]);
    twin.dataset().set_base(&path("old"), &gone).unwrap();
    let counted = TripStore::new(dry, None);
    commit(&plan(&twin, counted.clone())).await.unwrap();
    let at = counted.log.lock().iter().position(|request| request == "delete datasets/run/old").unwrap();
    drop(watched);
    let dies = TripStore::new(bucket.clone(), Some((at, Trip::CrashAfter)));
    let ctx = plan(&ann, dies.clone());
    assert!(dies.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    ann.restart();
    assert!(!objects(&bucket).contains_key("old"));

    let bob = Machine::new("bob");
    bob.stage(&[("old", b"1")]);
    let ctx = plan(&bob, bucket.clone());
    assert_eq!(conflicts(commit(&ctx).await), ["old"], "not while it may still be deleted");
    *clock.0.lock() += LATE_MAX;
    commit(&ctx).await.unwrap();
    resume(&plan(&ann, bucket.clone())).await.unwrap();
    assert_eq!(objects(&bucket)["old"], b"1"[..], "of a later commit");
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_cannot_be_read_is_named_and_gc_gets_past_it_when_asked_to() {
    let bucket = Arc::new(MemoryStore::default());
    let notice = prefix().intent_key(&name(), "01BROKEN");
    bucket.overwrite_out_of_band(&notice, Bytes::from_static(b"not zstd"));
    let machine = Machine::new("ann");
    machine.stage(&[("a", b"1")]);
    let ctx = machine.context(bucket.clone());
    match commit(&ctx).await {
        Err(err @ CommitError::UnreadableIntent { .. }) => {
            assert!(
                err.to_string().contains("intents/run/01BROKEN is the notice of another commit"),
                "{err}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.staged(), ["a"]);
    let shared: Arc<dyn ObjectStore> = bucket.clone();
    let collect = |options: GcOptions| {
        let shared = shared.clone();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        async move { gc(&shared, &prefix(), &name(), &Author::default(), &clock, &options).await.unwrap() }
    };
    let report = collect(GcOptions::default()).await;
    assert_eq!(report.unreadable[0].0, notice);
    let young = GcOptions { remove_unreadable: true, ..GcOptions::default() };
    assert_eq!(collect(young.clone()).await.unreadable.len(), 1, "not before it is old");
    let report = collect(GcOptions { dead_after: Duration::ZERO, ..young.clone() }).await;
    assert_eq!(report.cleared, ["01BROKEN"]);
    let record = log(&bucket).record(1).await.unwrap().unwrap();
    assert_eq!(
        (record.outcome, record.body.txid.as_str()),
        (Outcome::Abort, "01BROKEN"),
        "whose it was cannot go on"
    );
    assert_eq!(commit(&ctx).await.unwrap().seq, Some(2));

    let newer = zstd::encode_all(&br#"{"format": 99, "kind": "intent"}"#[..], 0).unwrap();
    bucket.overwrite_out_of_band(&notice, newer.into());
    let report = collect(GcOptions { dead_after: Duration::ZERO, ..young }).await;
    assert!(report.unreadable[0].1.contains("update dsfs"), "a newer dsfs may be at work: {report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_names_whose_the_published_file_is() {
    let bucket = Arc::new(MemoryStore::default());
    let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
    ann.stage(&[("a", b"ann's")]);
    bob.stage(&[("a", b"bob")]);
    commit(&ann.context(bucket.clone())).await.unwrap();
    match commit(&bob.context(bucket.clone())).await {
        Err(CommitError::Conflict { conflicts }) => {
            let text = conflicts[0].to_string();
            assert_eq!(text, "a is published already, with another content, by ann@lab (commit 1)");
        }
        other => panic!("{other:?}"),
    }
}

/// A machine's clock, some hours off.
#[derive(Debug)]
struct WrongClock {
    right: Arc<SetClock>,
    hours: i64,
}

impl Clock for WrongClock {
    fn now(&self) -> SystemTime {
        let off = Duration::from_secs(self.hours.unsigned_abs() * 60 * 60);
        if self.hours < 0 { self.right.now() - off } else { self.right.now() + off }
    }
}

/// Whose clock is how wrong makes no difference: the server's counts.
#[tokio::test(start_paused = true)]
async fn deletions_that_may_come_late_are_waited_for_by_the_servers_clock() {
    for (ann_hours, bob_hours) in [(0, 0), (-5, 0), (5, 0), (0, -5), (0, 5), (-5, 5), (5, -5)] {
        let what = format!("{ann_hours} and {bob_hours} hours");
        let right = clock();
        let store = LateDeletion::new(right.clone());
        let context = |machine: &Machine, hours| CommitContext {
            clock: Arc::new(WrongClock { right: right.clone(), hours }),
            ..machine.context(store.clone())
        };
        let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
        for machine in [&ann, &bob] {
            machine.stage(&[("a", b"1"), ("data.jsonl", b"{}")]);
        }
        assert_eq!(conflicts(commit(&context(&ann, ann_hours)).await), ["data.jsonl"], "{what}");
        store.inner.delete_out_of_band(&key("data.jsonl"));
        let ctx = context(&bob, bob_hours);
        assert_eq!(conflicts(commit(&ctx).await), ["a", "data.jsonl"], "{what}");
        assert_eq!(bob.staged().len(), 2, "{what}");
        *right.0.lock() += LATE_MAX;
        store.carry_out().await;
        commit(&ctx).await.unwrap_or_else(|err| panic!("{what}: {err}"));
        assert_eq!(objects(&store.inner).len(), 2, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn committers_whose_clocks_are_hours_apart_see_each_other() {
    let right = clock();
    let bucket = Arc::new(MemoryStore::default().with_clock(right.clone()));
    let context = |machine: &Machine, hours| CommitContext {
        clock: Arc::new(WrongClock { right: right.clone(), hours }),
        ..machine.context(bucket.clone())
    };
    let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
    for (round, hours) in [(-5, 5), (5, -5), (-20, 20)].into_iter().enumerate() {
        let own = format!("{round}/ann");
        ann.stage(&[(&own, b"1")]);
        bob.stage(&[(&format!("{round}/bob"), b"2"), (&format!("{round}/both"), b"bob")]);
        let (ann_ctx, bob_ctx) = (context(&ann, hours.0), context(&bob, hours.1));
        let (first, second) = tokio::join!(commit(&ann_ctx), commit(&bob_ctx));
        let mut numbers = [first.unwrap().seq, second.unwrap().seq];
        numbers.sort();
        let before = 2 * round as u64;
        assert_eq!(numbers, [Some(before + 1), Some(before + 2)], "{hours:?}");
        ann.stage(&[(&format!("{round}/both"), b"ann")]);
        assert_eq!(conflicts(commit(&ann_ctx).await), [format!("{round}/both")], "{hours:?}");
        ann.dataset().discard(&crate::name::DirPath::root()).unwrap();
        let author = Author::default();
        let store: Arc<dyn ObjectStore> = bucket.clone();
        let clock: Arc<dyn Clock> = Arc::new(WrongClock { right: right.clone(), hours: hours.1 });
        let report = gc(&store, &prefix(), &name(), &author, &clock, &GcOptions::default()).await.unwrap();
        assert_eq!(report, GcReport::default(), "{hours:?}");
    }
    assert_eq!(log(&bucket).snapshot(6).await.unwrap().entries.len(), 9);
}

/// Its notice was left behind, and its record is by a clock that is days ahead of all later ones.
#[tokio::test(start_paused = true)]
async fn gc_does_not_end_a_commit_that_is_in_the_log_whatever_the_clocks_say() {
    let right = clock();
    let bucket = Arc::new(MemoryStore::default().with_clock(right.clone()));
    let context = |machine: &Machine, hours| CommitContext {
        clock: Arc::new(WrongClock { right: right.clone(), hours }),
        ..machine.context(bucket.clone())
    };
    let (ann, bob) = (Machine::new("ann"), Machine::new("bob"));
    ann.stage(&[("a", b"1")]);
    let report = commit(&context(&ann, 24 * 7)).await.unwrap();
    let record = log(&bucket).record(1).await.unwrap().unwrap();
    let left = Intent {
        dataset: name(),
        txid: report.txid.clone(),
        author: record.body.author.clone(),
        time: record.body.time,
        creates: vec![path("a")],
        markers: Vec::new(),
        replaces: Vec::new(),
        deletes: Vec::new(),
        deleting: None,
    };
    let notice = prefix().intent_key(&name(), &report.txid);
    bucket.overwrite_out_of_band(&notice, left.encode().unwrap());
    for file in ["b", "c"] {
        bob.stage(&[(file, b"2")]);
        commit(&context(&bob, 0)).await.unwrap();
    }
    let store: Arc<dyn ObjectStore> = bucket.clone();
    let clock: Arc<dyn Clock> = right.clone();
    for _ in 0..4 {
        *right.0.lock() += Duration::from_secs(2 * 24 * 60 * 60);
        gc(&store, &prefix(), &name(), &Author::default(), &clock, &GcOptions::default()).await.unwrap();
    }
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(log(&bucket).head().await.unwrap(), 3, "nothing was ended");
}

/// Whoever sleeps over its own end finds no notice that hides what it would publish.
#[tokio::test(start_paused = true)]
async fn who_was_asleep_while_it_published_asks_whether_it_was_ended() {
    let clock = clock();
    let bucket = Arc::new(MemoryStore::default().with_clock(clock.clone()));
    let machine = Machine::new("ann");
    let files: &[(&str, &[u8])] = &[("a", b"1"), ("data.jsonl", b"{}")];
    machine.stage(files);
    let (twin, counted) = (Machine::new("ann"), TripStore::new(Arc::new(MemoryStore::default()), None));
    commit(&twin.stage(files).context(counted.clone())).await.unwrap();
    let at = counted.log.lock().iter().position(|request| request == "put datasets/run/a").unwrap();
    let store = TripStore::new(bucket.clone(), Some((at, Trip::Pause)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(store.clone()) };
    let mut asleep = Box::pin(commit(&ctx));
    assert!(store.until_crash(&mut asleep).await.is_none());
    let (shared, now) = (bucket.clone() as Arc<dyn ObjectStore>, clock.clone() as Arc<dyn Clock>);
    for _ in 0..2 {
        *clock.0.lock() += Duration::from_secs(24 * 60 * 60);
        gc(&shared, &prefix(), &name(), &Author::default(), &now, &GcOptions::default()).await.unwrap();
    }
    assert!(state(&bucket, "intents").is_empty());
    let before = store.log.lock().len();
    store.go_on();
    assert!(matches!(asleep.await, Err(CommitError::Fenced { .. })));
    let puts = store.log.lock()[before..].iter().filter(|r| r.starts_with("put datasets/run/")).count();
    assert_eq!(puts, 0, "{:?}", &store.log.lock()[before..]);
    assert_eq!((objects(&bucket).len(), machine.staged().len()), (0, 2));
}

/// The owner of a commit that deletes, and `gc`, which had read its notice before it was stamped: who
/// is done first leaves the stamp of the other.
#[tokio::test(start_paused = true)]
async fn of_two_who_delete_the_first_one_to_end_leaves_the_others_stamp() {
    let clock = clock();
    let bucket = Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone()));
    let dry = Arc::new(MemoryStore::with_content_etags());
    let (ann, twin) = (Machine::new("ann"), Machine::new("ann"));
    for (machine, bucket) in [(&ann, &bucket), (&twin, &dry)] {
        let etag = bucket.overwrite_out_of_band(&key("old"), Bytes::from_static(b"1"));
        machine.stage(&[("new", b"2")]);
        let gone = Base { etag, size_bytes: 1, kind: BaseKind::Delete };
        machine.dataset().set_base(&path("old"), &gone).unwrap();
    }
    let counted = TripStore::new(dry, None);
    commit(&overwriting(&twin, counted.clone())).await.unwrap();
    let at = counted.log.lock().iter().position(|request| request == "delete datasets/run/old").unwrap();

    let own = TripStore::new(bucket.clone(), Some((at, Trip::Pause)));
    let ctx = CommitContext { clock: clock.clone(), ..overwriting(&ann, own.clone()) };
    let mut committing = Box::pin(commit(&ctx));
    assert!(own.until_crash(&mut committing).await.is_none());
    let intent = Intent::decode(&state(&bucket, "intents")[0].1).unwrap();
    let intents = intents(&bucket, &clock);
    let deleting = intents.begin_deleting(&intent, &log(&bucket)).await.unwrap();
    assert!(deleting.unsettled, "the owner's stamp was seen");
    own.go_on();
    committing.await.unwrap();

    let left = state(&bucket, "intents").pop().expect("it is not the owner's to take away");
    assert!(Intent::decode(&left.1).unwrap().deleting.is_some());
    let bob = Machine::new("bob");
    bob.stage(&[("old", b"1")]);
    let ctx = CommitContext { clock: clock.clone(), ..bob.context(bucket.clone()) };
    match commit(&ctx).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert!(matches!(conflicts[0].reason, ConflictReason::BeingDeleted { .. }), "{conflicts:?}");
        }
        other => panic!("{other:?}"),
    }
    *clock.0.lock() += LATE_MAX;
    let (shared, now) = (bucket.clone() as Arc<dyn ObjectStore>, clock.clone() as Arc<dyn Clock>);
    let report = gc(&shared, &prefix(), &name(), &Author::default(), &now, &GcOptions::default()).await;
    assert_eq!(report.unwrap().cleared, [intent.txid]);
    commit(&ctx).await.unwrap();
    assert_eq!(objects(&bucket)["old"], b"1"[..]);
}

/// Whoever of two is done first.
#[tokio::test(start_paused = true)]
async fn a_stamp_is_renewed_over_anothers_and_taken_back_by_nobody_else() {
    let clock = clock();
    let bucket = Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone()));
    let log = log(&bucket);
    let intents = intents(&bucket, &clock);
    let own = Intent {
        dataset: name(),
        txid: "A".into(),
        author: Author::default(),
        time: clock.now(),
        creates: vec![path("a")],
        markers: Vec::new(),
        replaces: Vec::new(),
        deletes: Vec::new(),
        deleting: None,
    };
    let is_stamped = |bucket: &MemoryStore| {
        let notice = state(bucket, "intents").pop()?;
        Intent::decode(&notice.1).unwrap().deleting
    };
    let mut first = intents.begin_deleting(&own, &log).await.unwrap();
    let second = intents.begin_deleting(&own, &log).await.unwrap();
    assert_eq!((first.unsettled, second.unsettled), (false, true));
    let stamped = is_stamped(&bucket);
    intents.still_deleting(&mut first).await.unwrap();
    assert_eq!(is_stamped(&bucket), stamped, "it is young");
    *clock.0.lock() += STAMP_AGE_MAX;
    intents.still_deleting(&mut first).await.unwrap();
    assert!(is_stamped(&bucket) > stamped && first.unsettled);
    intents.deleted(second).await.unwrap();
    assert!(is_stamped(&bucket) > stamped);
    *clock.0.lock() += STAMP_AGE_MAX;
    intents.still_deleting(&mut first).await.unwrap();
    intents.deleted(first).await.unwrap();
    assert_eq!((is_stamped(&bucket), state(&bucket, "intents").len()), (None, 1));

    let (first, second) = (
        intents.begin_deleting(&own, &log).await.unwrap(),
        intents.begin_deleting(&own, &log).await.unwrap(),
    );
    assert!(!intents.withdraw_stamped(first).await.unwrap());
    assert!(intents.withdraw_stamped(second).await.unwrap() && state(&bucket, "intents").is_empty());
}
