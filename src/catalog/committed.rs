//! Tests of datasets that have a log: large ones, and what a restart makes of them.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::catalog::Level;
use crate::catalog::ask::Extent;
use crate::log::Draft;
use crate::log::Log;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Author;
use crate::record::Changes;
use crate::record::CommitBody;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::OldVersion;
use crate::record::Outcome;
use crate::store::ObjectStore;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;

fn prefix() -> RemotePrefix {
    RemotePrefix::parse("d/").unwrap()
}

fn run() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn level(dir: &str) -> Level {
    Level::Directory(run(), if dir.is_empty() { DirPath::root() } else { path(dir).into() })
}

/// Puts files there and deletes others, the way a commit of another machine ends.
async fn commit(store: &Arc<MemoryStore>, txid: &str, files: &[String], deleted: &[&str]) {
    let mut changes = Changes::default();
    for file in files {
        let etag = store
            .overwrite_out_of_band(&prefix().key(&run(), &path(file)).unwrap(), Bytes::from_static(b"x"));
        changes.entries.push(Entry {
            path: path(file),
            size_bytes: 1,
            cid: ContentId::OF_NOTHING,
            etag,
            mtime: SystemTime::UNIX_EPOCH,
            replaced: None,
        });
    }
    for gone in deleted {
        let key = prefix().key(&run(), &path(gone)).unwrap();
        let etag = store.head(&key).await.unwrap().etag;
        store.delete_out_of_band(&key);
        changes.deleted.push(OldVersion { path: path(gone), etag });
    }
    let body = CommitBody {
        dataset: run(),
        seq: 0,
        txid: txid.into(),
        author: Author::default(),
        time: SystemTime::UNIX_EPOCH,
        message: None,
        changes,
        base: None,
        tail: Changes::default(),
    };
    let log = Log::new(Arc::clone(store) as Arc<dyn ObjectStore>, prefix(), run());
    log.append(&Draft { outcome: Outcome::Commit, body }, 0).await.unwrap();
}

async fn names(catalog: &Catalog, dir: &str) -> Vec<String> {
    let known = catalog.level(&level(dir)).await.unwrap();
    known.listing.entries.keys().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_large_dataset_is_known_from_its_log_and_listed_afterwards() {
    let store = Arc::new(MemoryStore::default());
    let files: Vec<String> = (0..1200).map(|number| format!("p{:02}/{number:04}", number % 12)).collect();
    commit(&store, "t1", &files, &[]).await;
    store.overwrite_out_of_band(&prefix().key(&run(), &path("p05/foreign")).unwrap(), Bytes::new());
    let faulty = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
    let catalog =
        Catalog::new(Arc::clone(&faulty) as Arc<dyn ObjectStore>, prefix(), Duration::from_secs(60));
    let catalog = Arc::new(catalog);
    let stop = CancellationToken::new();
    let refreshing = tokio::spawn(Arc::clone(&catalog).refresh_wanted(stop.clone()));
    tokio::task::yield_now().await;
    assert_eq!(names(&catalog, "").await.len(), 12);
    faulty.script(Operation::List, Fault::Delay(Duration::from_secs(20)));
    assert_eq!(names(&catalog, "p05").await.len(), 100, "at once, and without what others put there");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(names(&catalog, "p05").await.len(), 101, "it was listed since");
    stop.cancel();
    refreshing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_walk_of_what_was_committed_asks_for_nothing_and_is_followed_by_one_flat_listing() {
    let store = Arc::new(MemoryStore::default());
    let files: Vec<String> = (0..1200).map(|number| format!("p{:02}/{number:04}", number % 12)).collect();
    commit(&store, "t1", &files, &[]).await;
    store.overwrite_out_of_band(&prefix().key(&run(), &path("p05/foreign")).unwrap(), Bytes::new());
    let counted = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
    let shared = Arc::clone(&counted) as Arc<dyn ObjectStore>;
    let catalog = Arc::new(Catalog::new(shared, prefix(), Duration::from_secs(60)));
    let stop = CancellationToken::new();
    let refreshing = tokio::spawn(Arc::clone(&catalog).refresh_wanted(stop.clone()));
    tokio::task::yield_now().await;
    let dirs = names(&catalog, "").await;
    let before = counted.requests().len();
    for dir in &dirs {
        assert_eq!(names(&catalog, dir).await.len(), 100);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(counted.requests().len(), before, "the log knew all of it");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let listed: Vec<Operation> = counted.requests().split_off(before);
    let listings = listed.iter().filter(|operation| **operation == Operation::List).count();
    assert_eq!(listings, 2 + 1, "two pages, and the intents: {listed:?}");
    assert_eq!(names(&catalog, "p05").await.len(), 101);
    stop.cancel();
    refreshing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_snapshot_is_written_down_when_the_first_walk_is_over() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let files: Vec<String> = (0..1200).map(|number| format!("p{:02}/{number:04}", number % 12)).collect();
    commit(&store, "t1", &files, &[]).await;
    let catalog = Catalog::new(Arc::clone(&store) as Arc<dyn ObjectStore>, prefix(), Duration::from_secs(60));
    let catalog = Arc::new(catalog.with_disk(&dir.path().join("r.sqlite")));
    let stop = CancellationToken::new();
    let refreshing = tokio::spawn(Arc::clone(&catalog).refresh_wanted(stop.clone()));
    tokio::task::yield_now().await;
    let on_disk = || catalog.disk.as_ref()?.dataset(&run())?.snapshot;
    let whole = || on_disk().map(|snapshot| (snapshot.seq, snapshot.entries.len()));
    for dir in names(&catalog, "").await {
        names(&catalog, &dir).await;
    }
    assert_eq!(whole(), None, "a walk may have just begun");
    while whole().is_none() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(whole(), Some((1, 1200)));

    // Of two commits that are read before the first was written down, the newer one is.
    let catalog = Catalog::new(Arc::clone(&store) as Arc<dyn ObjectStore>, prefix(), Duration::from_secs(60));
    let other = Arc::new(catalog.with_disk(&dir.path().join("other.sqlite")));
    let following = tokio::spawn(Arc::clone(&other).refresh_wanted(stop.clone()));
    tokio::task::yield_now().await;
    names(&other, "").await;
    commit(&store, "t2", &["p00/new".into()], &["p00/0000"]).await;
    other.refresh(Some(&run())).await.unwrap();
    let on_disk = || other.disk.as_ref()?.dataset(&run())?.snapshot;
    for _ in 0..10 {
        assert_eq!(on_disk().map(|snapshot| snapshot.seq), Some(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(names(&other, "p00").await.contains(&"new".to_owned()));
    stop.cancel();
    refreshing.await.unwrap();
    following.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_flat_dataset_takes_one_page_and_its_log() {
    let store = Arc::new(MemoryStore::default());
    let files: Vec<String> = (0..2500).map(|number| format!("{number:05}")).collect();
    commit(&store, "t1", &files, &[]).await;
    let catalog = Catalog::new(Arc::clone(&store) as Arc<dyn ObjectStore>, prefix(), Duration::from_secs(60));
    let answer = catalog.list(&level(""), Extent::Quick).await.unwrap().unwrap();
    assert!(answer.provisional && answer.seq == 1);
    assert_eq!(answer.listing.entries.len(), 2500);
    let listed = catalog.list(&level(""), Extent::Whole).await.unwrap().unwrap();
    assert!(catalog.list(&level(""), Extent::OnePage).await.unwrap().is_none(), "three pages");
    assert!(!listed.provisional);
    assert_eq!(listed.listing.entries, answer.listing.entries);
}

#[tokio::test]
async fn after_a_restart_all_levels_move_to_a_new_commit_together() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let open = || {
        let catalog =
            Catalog::new(Arc::clone(&store) as Arc<dyn ObjectStore>, prefix(), Duration::from_secs(60));
        catalog.with_disk(&dir.path().join("r.sqlite"))
    };
    commit(&store, "t1", &["a/old".into(), "a/stays".into(), "b/stays".into()], &[]).await;
    let catalog = open();
    for dir in ["", "a", "b"] {
        names(&catalog, dir).await;
    }
    while catalog.disk_usage().levels < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(catalog);
    commit(&store, "t2", &["a/new".into(), "b/new".into(), "c/new".into()], &["a/old"]).await;
    let catalog = open();
    assert_eq!(names(&catalog, "a").await, ["old", "stays"], "as it was left");
    let slot = catalog.levels.slot(&level("a"));
    catalog.ask_now(&level("a"), &slot, Extent::Whole).await.unwrap();
    assert_eq!(names(&catalog, "a").await, ["new", "stays"]);
    // These were on disk only when the commit was noticed.
    assert_eq!(names(&catalog, "b").await, ["new", "stays"]);
    assert_eq!(names(&catalog, "").await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_new_mount_lists_the_datasets_and_their_tops_before_anybody_asks() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let open = |store: Arc<dyn ObjectStore>| {
        Catalog::new(store, prefix(), Duration::from_secs(60)).with_disk(&dir.path().join("r.sqlite"))
    };
    commit(&store, "t1", &["a/old".into(), "top".into()], &[]).await;
    let catalog = open(Arc::clone(&store) as Arc<dyn ObjectStore>);
    for dir in ["", "a"] {
        names(&catalog, dir).await;
    }
    while catalog.disk_usage().levels < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(catalog);
    commit(&store, "t2", &["a/new".into(), "top2".into()], &["a/old"]).await;
    let faulty = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
    let catalog = open(Arc::clone(&faulty) as Arc<dyn ObjectStore>);
    catalog.warm_up().await;
    let gone = || Fault::Before(crate::store::StoreError::unavailable("d/", "connection refused"));
    for operation in [Operation::List, Operation::Head, Operation::Get] {
        (0..10).for_each(|_| faulty.script(operation, gone()));
    }
    assert!(catalog.has_dataset(&run()).await.unwrap());
    assert_eq!(names(&catalog, "").await, ["a", "top", "top2"]);
    assert_eq!(names(&catalog, "a").await, ["new"], "levels on disk have moved with it");
}

#[tokio::test]
async fn a_new_mount_without_a_network_shows_what_was_listed_before() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let open = |store: Arc<dyn ObjectStore>| {
        Catalog::new(store, prefix(), Duration::from_secs(60)).with_disk(&dir.path().join("r.sqlite"))
    };
    commit(&store, "t1", &["top".into()], &[]).await;
    let catalog = open(Arc::clone(&store) as Arc<dyn ObjectStore>);
    names(&catalog, "").await;
    while catalog.disk_usage().levels < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(catalog);
    let faulty = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
    let gone = || Fault::Before(crate::store::StoreError::unavailable("d/", "connection refused"));
    for operation in [Operation::List, Operation::Head, Operation::Get] {
        (0..20).for_each(|_| faulty.script(operation, gone()));
    }
    let catalog = open(faulty);
    catalog.warm_up().await;
    assert_eq!(names(&catalog, "").await, ["top"]);
}

#[tokio::test]
async fn a_new_mount_knows_all_of_a_small_dataset_and_the_top_of_a_large_one() {
    for (files, is_small) in [(900, true), (1500, false)] {
        let store = Arc::new(MemoryStore::default());
        let mut paths: Vec<String> = (0..files).map(|number| format!("a/{number}")).collect();
        paths.push("deep/er/and/deeper/x".into());
        commit(&store, "t1", &paths, &[]).await;
        let foreign = prefix().key(&run(), &path("deep/er/foreign")).unwrap();
        store.overwrite_out_of_band(&foreign, Bytes::from_static(b"x"));
        let faulty = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
        let catalog = Catalog::new(Arc::clone(&faulty) as _, prefix(), Duration::from_secs(60));
        let tops = catalog.warm_up().await;
        catalog.learn_small(tops).await;
        let gone = || Fault::Before(crate::store::StoreError::unavailable("d/", "connection refused"));
        for operation in [Operation::List, Operation::Head, Operation::Get] {
            (0..10).for_each(|_| faulty.script(operation, gone()));
        }
        assert_eq!(names(&catalog, "").await, ["a", "deep"]);
        let below = catalog.level(&level("deep")).await.unwrap();
        assert_eq!(below.stale.is_none(), is_small, "{files} files: listed, or what the log has of it");
        if is_small {
            assert_eq!(names(&catalog, "a").await.len(), files);
            assert_eq!(names(&catalog, "deep/er").await, ["and", "foreign"]);
            assert_eq!(names(&catalog, "deep/er/and/deeper").await, ["x"]);
        }
    }
}

/// What a machine shows that has never seen the dataset, if `meanwhile` happens between its listing of the
/// objects and its reading of intents and log; `whole` if it lists the whole tree.
async fn shown_to_newcomer(
    store: &Arc<MemoryStore>,
    whole: bool,
    meanwhile: impl Future<Output = ()>,
) -> Vec<String> {
    let faulty = Arc::new(FaultyStore::new(Arc::clone(store) as Arc<dyn ObjectStore>));
    faulty.script(Operation::List, Fault::Delay(Duration::ZERO));
    faulty.script(Operation::List, Fault::Delay(Duration::from_secs(10)));
    let catalog = Arc::new(Catalog::new(faulty, prefix(), Duration::from_secs(60)));
    let newcomer = tokio::spawn(async move {
        if whole {
            catalog.learn_whole(&run(), 1000).await.unwrap().unwrap();
        }
        names(&catalog, "").await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    meanwhile.await;
    newcomer.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_shown_all_of_a_commit_that_ends_while_it_lists() {
    for whole in [false, true] {
        let store = Arc::new(MemoryStore::default());
        commit(&store, "t1", &["keep".into()], &[]).await;
        let first = prefix().key(&run(), &path("new1/a")).unwrap();
        store.overwrite_out_of_band(&first, Bytes::from_static(b"x"));
        let end = async { commit(&store, "t2", &["new1/a".into(), "new2/b".into()], &[]).await };
        assert_eq!(shown_to_newcomer(&store, whole, end).await, ["keep", "new1", "new2"], "whole: {whole}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_not_shown_what_a_commit_deletes_while_it_lists() {
    for whole in [false, true] {
        let store = Arc::new(MemoryStore::default());
        commit(&store, "t1", &["keep".into(), "x".into(), "y".into()], &[]).await;
        commit(&store, "t2", &[], &["x", "y"]).await;
        let last = prefix().key(&run(), &path("y")).unwrap();
        store.overwrite_out_of_band(&last, Bytes::from_static(b"x")); // not deleted yet
        let end = async { store.delete_out_of_band(&last) };
        assert_eq!(shown_to_newcomer(&store, whole, end).await, ["keep"], "whole: {whole}");
    }
}
