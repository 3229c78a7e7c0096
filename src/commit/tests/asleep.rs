//! Machines that sleep while they delete, and what others publish meanwhile.

use super::*;
use crate::commit::announce::LATE_MAX;

/// Which request of a run a certain one is.
fn position(store: &TripStore, request: &str) -> usize {
    store.log.lock().iter().position(|logged| logged == request).unwrap()
}

/// A machine whose commit of `a` and `b` died when `a` was published.
async fn interrupted(bucket: &Arc<MemoryStore>, clock: &Arc<SetClock>) -> Machine {
    let files: &[(&str, &[u8])] = &[("a", b"1"), ("b", b"2")];
    let dry = TripStore::new(Arc::new(MemoryStore::default()), None);
    commit(&Machine::new("ann").stage(files).context(dry.clone())).await.unwrap();
    let at = position(&dry, "put datasets/run/a");

    let mut machine = Machine::new("ann");
    machine.stage(files);
    let dies = TripStore::new(bucket.clone(), Some((at, Trip::CrashAfter)));
    let ctx = CommitContext { clock: clock.clone(), ..machine.context(dies.clone()) };
    assert!(dies.until_crash(commit(&ctx)).await.is_none());
    drop(ctx);
    machine.restart();
    assert!(objects(bucket).contains_key("a"));
    machine
}

/// The deletion was carried out, its answer was lost over night, and the same file is there again.
#[tokio::test(start_paused = true)]
async fn who_sleeps_over_a_deletion_spares_what_was_published_meanwhile() {
    let clock = clock();
    let dry = Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone()));
    let twin = interrupted(&dry, &clock).await;
    let counted = TripStore::new(dry, None);
    abort(&CommitContext { clock: clock.clone(), ..twin.context(counted.clone()) }).await.unwrap();
    let at = position(&counted, "delete datasets/run/a");

    let bucket = Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone()));
    let ann = interrupted(&bucket, &clock).await;
    // That request is carried out and never answered, so that it is given up in the end.
    let silent = TripStore::new(bucket.clone(), Some((at, Trip::CrashAfter)));
    let retries = RetryingStore::new(silent.clone(), RetryOptions::default()).with_clock(clock.clone());
    let ctx = CommitContext { clock: clock.clone(), ..ann.context(Arc::new(retries)) };
    let mut aborting = Box::pin(abort(&ctx));
    assert!(silent.until_crash(&mut aborting).await.is_none());
    assert!(!objects(&bucket).contains_key("a"));

    *clock.0.lock() += Duration::from_secs(8 * 60 * 60);
    let bob = Machine::new("bob");
    bob.stage(&[("a", b"1")]);
    let bobs = CommitContext { clock: clock.clone(), ..bob.context(bucket.clone()) };
    commit(&bobs).await.unwrap();
    aborting.await.unwrap();
    assert_eq!(objects(&bucket)["a"], b"1"[..], "bob's");
    assert_eq!(ann.staged(), ["a", "b"]);
}

/// What was published anew was looked up before the sleep, and the stamp has kept nobody off since.
#[tokio::test(start_paused = true)]
async fn who_sleeps_between_deletions_begins_anew() {
    let clock = clock();
    let olds: Vec<String> = (0..20).map(|number| format!("old{number:02}")).collect();
    let buckets = [(); 2].map(|()| Arc::new(MemoryStore::with_content_etags().with_clock(clock.clone())));
    let machines = [Machine::new("ann"), Machine::new("ann")];
    for (machine, bucket) in machines.iter().zip(&buckets) {
        machine.stage(&[("new", b"2")]);
        for old in &olds {
            let etag = bucket.overwrite_out_of_band(&key(old), Bytes::from_static(b"1"));
            let gone = Base { etag, size_bytes: 1, kind: BaseKind::Delete };
            machine.dataset().set_base(&path(old), &gone).unwrap();
        }
    }
    let ([twin, ann], [dry, bucket]) = (machines, buckets);
    let counted = TripStore::new(dry, None);
    commit(&overwriting(&twin, counted.clone())).await.unwrap();
    let at = position(&counted, "delete datasets/run/old00");

    let sleeps = TripStore::new(bucket.clone(), Some((at, Trip::Pause)));
    let ctx = CommitContext { clock: clock.clone(), ..overwriting(&ann, sleeps.clone()) };
    let mut committing = Box::pin(commit(&ctx));
    assert!(sleeps.until_crash(&mut committing).await.is_none());
    *clock.0.lock() += LATE_MAX * 2;
    let (shared, now) = (bucket.clone() as Arc<dyn ObjectStore>, clock.clone() as Arc<dyn Clock>);
    let report = gc(&shared, &prefix(), &name(), &Author::default(), &now, &GcOptions::default()).await;
    assert_eq!(report.unwrap().cleared.len(), 1, "deleted in ann's stead");
    let bob = Machine::new("bob");
    bob.stage(&[("old19", b"1")]);
    commit(&CommitContext { clock: clock.clone(), ..bob.context(bucket.clone()) }).await.unwrap();

    sleeps.go_on();
    match committing.await {
        Err(err @ CommitError::Interrupted { .. }) => {
            assert!(err.to_string().contains("looked at anew"), "{err}");
        }
        other => panic!("{other:?}"),
    }
    resume(&ctx).await.unwrap();
    assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["new", "old19"]);
}
