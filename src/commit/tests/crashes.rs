//! A commit that ends at any request, and what resuming or aborting it makes of that.

use super::*;

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

/// What is said not to be there may be what is asked for, or what was asked: another server under its name.
#[tokio::test(start_paused = true)]
async fn what_is_not_found_is_taken_back_only_if_the_bucket_is_there() {
    let no_bucket = || StoreError::NoBucket { bucket: "s3://assets".into() };
    let big = key("frames/big.bin");
    for failure in
        [StoreError::NoSuchUpload { key: big.clone() }, StoreError::NotFound { key: big }, no_bucket()]
    {
        let bucket = bucket_with_foreign();
        let machine = Machine::new("ann");
        machine.stage(FILES);
        let faulty = Arc::new(FaultyStore::new(bucket.clone()));
        faulty.script(Operation::PutPart, Fault::Before(failure.clone()));
        faulty.script(Operation::CheckAccess, Fault::Before(no_bucket()));
        let outcome = commit(&machine.context(faulty.clone())).await;
        assert!(matches!(outcome, Err(CommitError::Interrupted { .. })), "{failure}: {outcome:?}");
        assert_eq!(bucket.open_uploads(), 1, "{failure}");
        resume(&machine.context(bucket.clone())).await.unwrap();
        expect_published(&bucket, 0, &failure.to_string()).await;

        let bucket = bucket_with_foreign();
        let machine = Machine::new("ann");
        machine.stage(FILES);
        let faulty = Arc::new(FaultyStore::new(bucket.clone()));
        faulty.script(Operation::PutPart, Fault::Before(failure.clone()));
        let outcome = commit(&machine.context(faulty)).await;
        assert!(matches!(outcome, Err(CommitError::Store(_))), "{failure}: {outcome:?}");
        assert_eq!((bucket.open_uploads(), machine.staged().len()), (0, 4), "{failure}");
    }
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

/// Half of the files are back and half are not: neither half is a commit.
#[tokio::test(start_paused = true)]
async fn a_thaw_that_failed_on_its_way_is_completed_by_whatever_comes_next() {
    for next in ["commit", "resume", "abort", "plan"] {
        let bucket = bucket_with_foreign();
        let machine = Machine::new("ann");
        let staged = machine.stage(FILES).staged();
        let dataset = machine.dataset();
        let sealed = dataset.freeze("01TX").unwrap();
        let obstacle = machine.root.path().join("datasets/run/open/tree/nothing");
        fs::create_dir_all(obstacle.parent().unwrap()).unwrap();
        fs::write(&obstacle, "in the way").unwrap();
        dataset.thaw(&sealed).unwrap_err();
        fs::remove_file(&obstacle).unwrap();
        let ctx = machine.context(bucket.clone());
        match next {
            "resume" => assert!(matches!(resume(&ctx).await, Err(CommitError::Aborted { .. }))),
            "abort" => abort(&ctx).await.unwrap(),
            "plan" => assert_eq!(plan(&ctx).await.unwrap().create.len(), 4),
            _ => {}
        }
        if next != "commit" {
            assert_eq!(machine.staged(), staged, "{next}");
        }
        assert_eq!(commit(&ctx).await.unwrap().files, 4, "{next}");
        expect_published(&bucket, 0, next).await;
    }
}
