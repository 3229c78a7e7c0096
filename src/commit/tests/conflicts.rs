//! What is in the way of a commit, before it and midway.

use super::*;

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

#[tokio::test(start_paused = true)]
async fn what_a_failed_commit_left_is_not_taken_for_published() {
    let total = requests_of(FILES, Guarantee::Enforced).await;
    let (bucket, _dead) = crashed(total - 7, Trip::CrashAfter, Guarantee::Enforced).await.unwrap();
    let bob = Machine::new("bob");
    bob.stage(&[("nothing", b"")]);
    let ctx = bob.context(bucket.clone());
    match commit(&ctx).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert!(matches!(conflicts[0].reason, ConflictReason::Intent { .. }), "{conflicts:?}");
        }
        other => panic!("{other:?}"),
    }
    // Nor without its intent: the log is what says that it was published.
    for (key, _) in state(&bucket, "intents") {
        bucket.delete_out_of_band(&key);
    }
    match commit(&ctx).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert!(matches!(conflicts[0].reason, ConflictReason::Leftover { .. }), "{conflicts:?}");
        }
        other => panic!("{other:?}"),
    }
    // What another tool has put there, and says so, is nobody's to take back.
    let there = bucket.head(&key("nothing")).await.unwrap();
    bucket.delete(&key("nothing"), &there.etag).await.unwrap();
    let metadata = BTreeMap::from([(META_SHA256.to_owned(), ContentId::OF_NOTHING.sha256_hex())]);
    let attributes = PutAttributes { metadata, ..PutAttributes::default() };
    bucket.put(&key("nothing"), Bytes::new(), &Expect::Absent, &attributes).await.unwrap();
    assert_eq!(commit(&ctx).await.unwrap().already_there, 1);
}

/// The place of a request in a commit that meets nobody.
async fn place_of(request: &str, files: &[(&str, &[u8])]) -> usize {
    let machine = Machine::new("ann");
    machine.stage(files);
    let store = TripStore::new(bucket_with_foreign(), None);
    commit(&machine.context(store.clone())).await.unwrap();
    let made = store.log.lock().clone();
    made.iter().position(|made| made == request).unwrap()
}

async fn put_marker(bucket: &MemoryStore, txid: Option<&str>) {
    let metadata = txid.map(|txid| (META_TXID.to_owned(), txid.to_owned())).into_iter().collect();
    let attributes = PutAttributes { metadata, ..PutAttributes::default() };
    bucket.put(&key("empty/"), Bytes::new(), &Expect::Absent, &attributes).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_empty_directory_of_a_commit_that_has_not_ended_is_not_taken_for_published() {
    let at = place_of("put datasets/run/empty/", FILES).await;
    let (bucket, _dead) = crashed(at, Trip::CrashAfter, Guarantee::Enforced).await.unwrap();
    assert!(objects(&bucket).contains_key("empty/"));
    let bob = Machine::new("bob");
    bob.stage(&[("empty/", b"")]);
    let ctx = bob.context(bucket.clone());
    let reason = async || match commit(&ctx).await {
        Err(CommitError::Conflict { conflicts }) => {
            assert_eq!((conflicts.len(), conflicts[0].path.as_str()), (1, "empty"));
            conflicts[0].reason.clone()
        }
        other => panic!("{other:?}"),
    };
    assert!(matches!(reason().await, ConflictReason::Intent { .. }));
    for (key, _) in state(&bucket, "intents") {
        bucket.delete_out_of_band(&key);
    }
    assert!(matches!(reason().await, ConflictReason::Leftover { .. }));

    // That of another tool is nobody's to take back.
    bucket.delete_out_of_band(&key("empty/"));
    put_marker(&bucket, None).await;
    let report = commit(&ctx).await.unwrap();
    assert_eq!((report.seq, report.markers.len()), (None, 0));
    // Nor is one that was published.
    bucket.delete_out_of_band(&key("empty/"));
    for (seq, markers) in [(Some(1), 1), (None, 0)] {
        bob.stage(&[("empty/", b"")]);
        let report = commit(&ctx).await.unwrap();
        assert_eq!((report.seq, report.markers.len()), (seq, markers));
    }
}

/// A remote may keep nothing of a directory but its name.
#[tokio::test(start_paused = true)]
async fn a_resumed_commit_has_its_empty_directory_also_where_nothing_says_whose_it_is() {
    let at = place_of("put datasets/run/empty/", FILES).await;
    let (bucket, ann) = crashed(at, Trip::CrashAfter, Guarantee::Enforced).await.unwrap();
    bucket.delete_out_of_band(&key("empty/"));
    put_marker(&bucket, None).await;
    let report = resume(&ann.context(bucket.clone())).await.unwrap();
    assert_eq!((report.seq, report.markers.len()), (Some(1), 1));
    let snapshot = log(&bucket).newest_snapshot().await.unwrap();
    assert_eq!(snapshot.markers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_directory_that_appears_midway_counts_if_nobody_takes_it_back() {
    let files: &[(&str, &[u8])] = &[("a", b"1"), ("empty/", b"")];
    let at = place_of("put datasets/run/empty/", files).await;
    for txid in [None, Some("01LATE")] {
        let bucket = Arc::new(MemoryStore::default());
        let bob = Machine::new("bob");
        bob.stage(files);
        let store = TripStore::new(bucket.clone(), Some((at, Trip::Pause)));
        let ctx = bob.context(store.clone());
        let mut under_way = Box::pin(commit(&ctx));
        assert!(store.until_crash(&mut under_way).await.is_none());
        put_marker(&bucket, txid).await;
        store.go_on();
        match (txid, under_way.await) {
            (None, Ok(report)) => assert_eq!((report.seq, report.markers.len()), (Some(1), 1)),
            (Some(late), Err(CommitError::Conflict { conflicts })) => {
                let leftover = ConflictReason::Leftover { txid: late.into() };
                assert_eq!(conflicts, [Conflict { path: "empty".into(), reason: leftover }]);
                assert_eq!(objects(&bucket).into_keys().collect::<Vec<_>>(), ["empty/"]);
                assert_eq!(bob.staged(), ["a"]);
            }
            (_, other) => panic!("{other:?}"),
        }
    }
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
