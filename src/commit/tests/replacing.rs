//! Commits that replace and delete what is published.

use super::*;

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

/// A bucket with `old`, and a machine that has staged another version of it beside a new marker.
fn replacing(kind: BaseKind) -> (Arc<MemoryStore>, Machine) {
    let bucket = Arc::new(MemoryStore::default());
    let etag = bucket.overwrite_out_of_band(&key("old"), Bytes::from_static(b"1"));
    let machine = Machine::new("ann");
    machine.dataset().set_base(&path("old"), &Base { etag, size_bytes: 1, kind }).unwrap();
    machine.stage(&[("old", b"new"), ("data.jsonl", b"{}")]);
    (bucket, machine)
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
