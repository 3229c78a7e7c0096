//! Tests of what a catalog shows, keeps and asks for.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::name::ObjectKey;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;

fn put(store: &MemoryStore, key: &str) {
    store.overwrite_out_of_band(&ObjectKey::from_listing(key), Bytes::from_static(b"x"));
}

fn catalog(store: &Arc<MemoryStore>) -> Catalog {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    Catalog::new(store, RemotePrefix::parse("d/").unwrap(), Duration::from_secs(60))
}

fn names(known: &Known) -> Vec<String> {
    known.listing.entries.keys().map(|name| name.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn datasets_are_directories_with_valid_names() {
    let store = Arc::new(MemoryStore::default());
    for key in ["d/run/data.jsonl", "d/loose-file", "d/.hidden/x", "other/x", ".dsfs/d/log/run/1"] {
        put(&store, key);
    }
    let known = catalog(&store).level(&Level::Datasets).await.unwrap();
    assert_eq!(names(&known), ["run"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_its_time_and_then_asked_again() {
    let store = Arc::new(MemoryStore::default());
    put(&store, "d/run/a");
    let catalog = catalog(&store);
    let level = Level::Directory(DatasetName::parse("run").unwrap(), DirPath::root());
    assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a"]);
    put(&store, "d/run/b");
    assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a"]);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a", "b"]);
    put(&store, "d/run/c");
    catalog.expire(None);
    assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn what_we_published_is_known_without_asking() {
    let store = Arc::new(MemoryStore::default());
    put(&store, "d/run/a");
    let catalog = catalog(&store);
    let run = DatasetName::parse("run").unwrap();
    let level = Level::Directory(run.clone(), DirPath::root());
    catalog.level(&level).await.unwrap();
    let file = RemoteFile {
        key: ObjectKey::from_listing("d/run/sub/x"),
        size_bytes: 1,
        etag: Some(crate::name::ETag::from_server("e")),
        modified: std::time::SystemTime::UNIX_EPOCH,
    };
    catalog.publish(&run, &[(RelPath::parse("sub/x").unwrap(), file)], &[]);
    let known = catalog.fresh(&level).unwrap();
    assert_eq!(known.listing.entries.get("sub"), Some(&RemoteEntry::Directory));
    // The level below was never asked for: it is listed when it is.
    assert!(catalog.fresh(&Level::Directory(run, RelPath::parse("sub").unwrap().into())).is_none());
}

fn top() -> Level {
    Level::Directory(DatasetName::parse("run").unwrap(), DirPath::root())
}

/// Takes the network away.
#[derive(Debug)]
struct Gone;

fn on_disk(store: &Arc<MemoryStore>, faults: Option<Gone>, dir: &tempfile::TempDir) -> Arc<Catalog> {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    let faulty = FaultyStore::new(store);
    if faults.is_some() {
        for _ in 0..100 {
            for operation in [Operation::List, Operation::Head, Operation::Get] {
                let gone = StoreError::unavailable("d/", "connection refused");
                faulty.script(operation, Fault::Before(gone));
            }
        }
    }
    let catalog = Catalog::new(Arc::new(faulty), RemotePrefix::parse("d/").unwrap(), Duration::from_secs(60));
    Arc::new(catalog.with_disk(&dir.path().join("r.sqlite")))
}

/// Waits until a level has found its way to the disk.
async fn until_kept(catalog: &Catalog, levels: u64) {
    for _ in 0..1000 {
        if catalog.disk_usage().levels >= levels {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{levels} levels were never kept: {:?}", catalog.disk_usage());
}

#[tokio::test]
async fn what_was_listed_is_there_without_a_network_after_a_restart() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    put(&store, "d/run/a");
    put(&store, "d/run/sub/b");
    let catalog = on_disk(&store, None, &dir);
    catalog.level(&Level::Datasets).await.unwrap();
    catalog.level(&top()).await.unwrap();
    until_kept(&catalog, 2).await;
    drop(catalog);
    let offline = on_disk(&store, Some(Gone), &dir);
    assert_eq!(names(&offline.level(&top()).await.unwrap()), ["a", "sub"]);
    assert!(offline.has_dataset(&DatasetName::parse("run").unwrap()).await.unwrap());
    assert_eq!(names(&offline.level(&Level::Datasets).await.unwrap()), ["run"]);
    let below = Level::Directory(DatasetName::parse("run").unwrap(), RelPath::parse("sub").unwrap().into());
    assert!(offline.level(&below).await.is_err(), "never listed: unreachable, and not empty");
}

#[tokio::test]
async fn a_restored_level_is_refreshed_and_who_listens_is_told() {
    let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    put(&store, "d/run/a");
    let catalog = on_disk(&store, None, &dir);
    catalog.level(&top()).await.unwrap();
    until_kept(&catalog, 1).await;
    drop(catalog);
    put(&store, "d/run/b");
    let catalog = on_disk(&store, None, &dir);
    let stop = CancellationToken::new();
    let refreshing = tokio::spawn(Arc::clone(&catalog).refresh_wanted(stop.clone()));
    *catalog.patience.lock() = Duration::ZERO;
    assert_eq!(names(&catalog.level(&top()).await.unwrap()), ["a"], "at once, as it was");
    for _ in 0..1000 {
        if names(&catalog.level(&top()).await.unwrap()) == ["a", "b"] {
            stop.cancel();
            refreshing.await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never refreshed");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_its_parent_lacks_is_empty_without_asking() {
    let store = Arc::new(MemoryStore::default());
    put(&store, "d/run/a");
    let catalog = catalog(&store);
    let run = DatasetName::parse("run").unwrap();
    catalog.level(&Level::Directory(run.clone(), DirPath::root())).await.unwrap();
    put(&store, "d/run/new/x"); // by somebody else, within the time that the answer stands
    let below = Level::Directory(run, RelPath::parse("new").unwrap().into());
    assert!(!catalog.level(&below).await.unwrap().listing.exists());
    catalog.expire(None);
    assert!(catalog.level(&below).await.unwrap().listing.exists());
}
