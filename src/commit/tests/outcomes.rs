//! What a commit that meets nobody publishes, records and hands over.

use super::*;
use crate::log::Draft;
use crate::record::Changes;
use crate::record::CommitBody;
use crate::record::Entry;

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

fn draft(outcome: Outcome, at: &str, files: usize) -> Draft {
    let entry = |number| Entry {
        path: path(&format!("{at}{number}")),
        size_bytes: 1,
        cid: ContentId::OF_NOTHING,
        etag: ETag::from_server("1"),
        mtime: SystemTime::UNIX_EPOCH,
        replaced: None,
    };
    let body = CommitBody {
        dataset: name(),
        seq: 0,
        txid: at.into(),
        author: Author::default(),
        time: SystemTime::UNIX_EPOCH,
        message: None,
        changes: Changes { entries: (0..files).map(entry).collect(), ..Changes::default() },
        base: None,
        tail: Changes::default(),
    };
    Draft { outcome, body }
}

/// A log to which no commit can be added any more: the snapshot that the next one needs is too long.
#[tokio::test(start_paused = true)]
async fn a_full_log_takes_no_commit_before_anything_is_sent_and_ends_what_is_under_way() {
    let bucket = Arc::new(MemoryStore::default());
    for (seq, at) in ["a", "b"].into_iter().enumerate() {
        log(&bucket).append(&draft(Outcome::Commit, at, 600), seq as u64).await.unwrap();
        for number in 0..600 {
            bucket.overwrite_out_of_band(&key(&format!("{at}{number}")), Bytes::from_static(b"1"));
        }
    }
    let whole = log(&bucket).snapshot(2).await.unwrap();
    let machine = Machine::new("ann");
    machine.stage(FILES);
    let store = TripStore::new(bucket.clone(), None);
    let mut ctx = machine.context(store.clone());
    ctx.options.snapshot_bytes_max = 1200 * 100;
    assert!(whole.encode_within(&name(), ctx.options.snapshot_bytes_max).is_err());
    let before = bucket.snapshot();
    for refused in [plan(&ctx).await.unwrap_err(), commit(&ctx).await.unwrap_err()] {
        let is_full = matches!(refused, CommitError::Record { source: RecordError::Full { .. }, .. });
        assert!(is_full, "{refused}");
    }
    assert!(bucket.snapshot() == before && machine.staged().len() == 4);
    assert!(store.log.lock().iter().all(|request| !request.starts_with("put")), "{:?}", store.log.lock());

    // One that came that far before: it can be ended, and nothing that is published is lost by that.
    let full = log(&bucket).with_snapshot_bytes_max(ctx.options.snapshot_bytes_max);
    assert!(full.append(&draft(Outcome::Commit, "c", 1), 2).await.is_err());
    assert_eq!(log(&bucket).head().await.unwrap(), 2);
    full.append(&draft(Outcome::Abort, "c", 0), 2).await.unwrap();
    let after = full.snapshot(3).await.unwrap();
    assert_eq!((after.entries, state(&bucket, "snapshots").len()), (whole.entries, 1));
    full.check_room().await.unwrap_err();

    ctx.options.snapshot_bytes_max *= 2;
    assert_eq!(commit(&ctx).await.unwrap().seq, Some(4));
    assert_eq!(log(&bucket).snapshot(4).await.unwrap().entries.len(), 1204);
}
