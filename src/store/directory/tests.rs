use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::name::KeyPrefix;
use crate::store::META_TXID;
use crate::store::PART_BYTES_MIN;
use crate::store::collect;
use crate::store::list_all;

fn key(text: &str) -> ObjectKey {
    ObjectKey::from_listing(text)
}

fn new_store() -> (TempDir, DirectoryStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    (dir, store)
}

async fn create(store: &DirectoryStore, name: &str, body: &str) -> Result<ETag, StoreError> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    store.put(&key(name), body, &Expect::Absent, &PutAttributes::default()).await
}

async fn all_keys(store: &DirectoryStore, keys_max: u16) -> Vec<String> {
    let request = ListRequest { keys_max, ..ListRequest::recursive(KeyPrefix::from_listing("")) };
    let page = list_all(store, request).await.unwrap();
    page.objects.iter().map(|object| object.key.to_string()).collect()
}

fn with_txid(txid: &str) -> PutAttributes {
    PutAttributes {
        metadata: BTreeMap::from([(META_TXID.to_owned(), txid.to_owned())]),
        ..PutAttributes::default()
    }
}

#[tokio::test]
async fn objects_are_plain_files_and_plain_files_are_objects() {
    let (dir, store) = new_store();
    create(&store, "datasets/run/a.txt", "ours").await.unwrap();
    assert_eq!(fs::read(dir.path().join("datasets/run/a.txt")).unwrap(), b"ours");
    fs::write(dir.path().join("datasets/run/b.txt"), "theirs").unwrap();
    let meta = store.head(&key("datasets/run/b.txt")).await.unwrap();
    assert_eq!(meta.size_bytes, 6);
    let body = store.get(&key("datasets/run/b.txt"), &meta.etag, 0..6).await.unwrap();
    assert_eq!(collect(body, 6).await.unwrap(), "theirs");
    assert_eq!(all_keys(&store, 1000).await, ["datasets/run/a.txt", "datasets/run/b.txt"]);
}

#[tokio::test]
async fn a_missing_directory_is_no_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let missing = DirectoryStore::open(&dir.path().join("nas"));
    assert!(matches!(missing, Err(StoreError::NoBucket { .. })));
}

#[tokio::test]
async fn a_share_that_is_not_mounted_any_more_is_unavailable_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("nas");
    fs::create_dir(&root).unwrap();
    let store = DirectoryStore::open(&root).unwrap();
    create(&store, "a", "1").await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "stands for an unmount")]
    fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    let gone = store.check_access().await;
    assert!(matches!(gone, Err(StoreError::NoBucket { .. })), "{gone:?}");
    fs::create_dir(&root).unwrap();
    let err = store.list(&ListRequest::recursive(KeyPrefix::from_listing(""))).await.unwrap_err();
    assert!(matches!(&err, StoreError::Unavailable { .. }) && err.to_string().contains("mounted"), "{err}");
    assert!(store.head(&key("a")).await.is_err_and(|err| err.is_transient()));
    assert!(create(&store, "b", "1").await.is_err_and(|err| err.is_transient()));
}

#[tokio::test]
async fn any_foreign_change_is_another_version() {
    let (dir, store) = new_store();
    let etag = create(&store, "a", "12345678").await.unwrap();
    assert_eq!(store.head(&key("a")).await.unwrap().etag, etag);
    let path = dir.path().join("a");
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    // Written in place, at the same length, with the old mtime put back: only ctime tells.
    fs::write(&path, "ABCDEFGH").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
    assert_ne!(store.head(&key("a")).await.unwrap().etag, etag);
    let stale = store.get(&key("a"), &etag, 0..8).await;
    assert!(matches!(stale.err(), Some(StoreError::Changed { .. })));
    let stale = store.delete(&key("a"), &etag).await;
    assert!(matches!(stale, Err(StoreError::Changed { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"ABCDEFGH");
}

#[tokio::test]
async fn versions_of_one_length_in_quick_succession_differ() {
    let (_dir, store) = new_store();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..50 {
        let etag = create(&store, "a", &format!("{round:04}")).await.unwrap();
        assert!(seen.insert(etag.clone()), "{etag} came twice");
        store.delete(&key("a"), &etag).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_changes_while_it_is_read_ends_in_an_error() {
    let (dir, store) = new_store();
    let size = 3 * PIECE_BYTES;
    let body = Bytes::from(vec![1; size as usize]);
    let etag = store.put(&key("a"), body, &Expect::Absent, &PutAttributes::default()).await.unwrap();
    let mut body = store.get(&key("a"), &etag, 0..size).await.unwrap();
    assert!(futures_util::StreamExt::next(&mut body).await.unwrap().is_ok());
    fs::write(dir.path().join("a"), vec![2; size as usize]).unwrap();
    let rest = collect(body, 1).await;
    assert!(matches!(rest, Err(StoreError::Changed { .. })), "{rest:?}");
}

#[tokio::test]
async fn links_and_specials_are_walls() {
    let (dir, store) = new_store();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    symlink(outside.path(), dir.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file-link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    create(&store, "real", "1").await.unwrap();
    assert_eq!(all_keys(&store, 1000).await, ["real"]);
    for name in ["link/secret", "file-link", "pipe", "../secret", "link/"] {
        assert!(matches!(store.head(&key(name)).await, Err(StoreError::NotFound { .. })), "{name}");
    }
    for name in ["link/new", "link", "../new", "a/../../new", ".dsfs/.local/tmp/x"] {
        let refused = create(&store, name, "1").await;
        assert!(matches!(refused, Err(StoreError::Rejected { .. })), "{name}: {refused:?}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn metadata_is_kept_with_and_without_extended_attributes() {
    for xattrs in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut bucket = Bucket::open(dir.path().to_owned()).unwrap();
        bucket.xattrs = xattrs;
        let store = DirectoryStore { bucket: Arc::new(bucket) };
        let name = key("a/b");
        let etag = store.put(&name, Bytes::new(), &Expect::Absent, &with_txid("1")).await.unwrap();
        assert_eq!(store.head(&name).await.unwrap().metadata, with_txid("1").metadata);
        let expect = Expect::Version(etag);
        let etag = store.put(&name, Bytes::new(), &expect, &with_txid("2")).await.unwrap();
        assert_eq!(store.head(&name).await.unwrap().metadata, with_txid("2").metadata);
        let sidecars = dir.path().join(".dsfs/.local/meta");
        assert_eq!(fs::read_dir(&sidecars).map_or(0, Iterator::count), usize::from(!xattrs));
        // A file that somebody else puts there does not inherit it.
        fs::remove_file(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b"), "").unwrap();
        assert!(store.head(&name).await.unwrap().metadata.is_empty());
        assert_ne!(store.head(&name).await.unwrap().etag, etag);
    }
}

#[tokio::test]
async fn directories_are_markers_while_they_are_empty_or_if_they_were_made_as_such() {
    let (dir, store) = new_store();
    fs::create_dir_all(dir.path().join("foreign/empty")).unwrap();
    let made = create(&store, "made/", "").await.unwrap();
    assert_eq!(all_keys(&store, 1000).await, ["foreign/empty/", "made/"]);
    let inside = create(&store, "foreign/empty/x", "1").await.unwrap();
    create(&store, "made/x", "1").await.unwrap();
    assert_eq!(all_keys(&store, 1000).await, ["foreign/empty/x", "made/", "made/x"]);
    assert!(matches!(create(&store, "made/", "").await, Err(StoreError::AlreadyExists { .. })));
    store.delete(&key("foreign/empty/x"), &inside).await.unwrap();
    assert!(!dir.path().join("foreign").exists(), "emptied directories go");
    let x = store.head(&key("made/x")).await.unwrap().etag;
    store.delete(&key("made/x"), &x).await.unwrap();
    assert_eq!(all_keys(&store, 1000).await, ["made/"], "a made directory stays");
    store.delete(&key("made/"), &made).await.unwrap();
    assert!(!dir.path().join("made").exists());
    assert!(matches!(create(&store, "z/", "bytes").await, Err(StoreError::Rejected { .. })));
}

#[tokio::test]
async fn a_file_and_a_directory_of_one_name_exclude_each_other() {
    let (_dir, store) = new_store();
    create(&store, "a", "1").await.unwrap();
    assert!(matches!(create(&store, "a/b", "1").await, Err(StoreError::Rejected { .. })));
    create(&store, "d/e", "1").await.unwrap();
    assert!(matches!(create(&store, "d", "1").await, Err(StoreError::Rejected { .. })));
}

#[tokio::test]
async fn pages_tile_the_listing_at_any_size() {
    let (_dir, store) = new_store();
    let names = ["a", "a.txt", "a0/x", "b/c/d", "b/c/e", "b/c.d", "b/c0", "b0", "z/"];
    for name in names {
        create(&store, name, "").await.unwrap();
    }
    create(&store, ".dsfs/datasets/log/run/0000000001", "").await.unwrap();
    let mut sorted: Vec<String> = names.iter().map(ToString::to_string).collect();
    sorted.push(".dsfs/datasets/log/run/0000000001".into());
    sorted.sort();
    for keys_max in [1, 2, 3, 4, 1000] {
        assert_eq!(all_keys(&store, keys_max).await, sorted, "pages of {keys_max}");
        let request = ListRequest { keys_max, ..ListRequest::one_level(KeyPrefix::from_listing("b/")) };
        let page = list_all(&store, request).await.unwrap();
        let objects: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
        assert_eq!((objects, page.prefixes.len()), (vec!["b/c.d", "b/c0"], 1), "pages of {keys_max}");
    }
}

#[tokio::test]
async fn a_large_directory_is_read_once_for_all_its_pages() {
    let dir = tempfile::tempdir().unwrap();
    let mut bucket = Bucket::open(dir.path().to_owned()).unwrap();
    bucket.names.settled = Duration::ZERO;
    let store = DirectoryStore { bucket: Arc::new(bucket) };
    fs::create_dir(dir.path().join("big")).unwrap();
    for number in 0..5_000 {
        fs::write(dir.path().join(format!("big/{number:06}")), "").unwrap();
    }
    let keys = all_keys(&store, 100).await;
    assert_eq!(keys.len(), 5_000);
    assert!(keys.is_sorted());
    assert_eq!(store.bucket.names.len(), 1, "only the large directory is kept");
    // A name that comes while the pages go by is seen, as S3 has it.
    let request = ListRequest { keys_max: 100, ..ListRequest::recursive(KeyPrefix::from_listing("big/")) };
    let first = store.list(&request).await.unwrap();
    create(&store, "big/000150-new", "").await.unwrap();
    let second = store.list(&ListRequest { continuation: first.continuation, ..request }).await.unwrap();
    assert!(second.objects.iter().any(|object| object.key.as_str() == "big/000150-new"));
}

#[tokio::test]
async fn puts_survive_the_deletion_of_the_directory_around_them() {
    let (_dir, store) = new_store();
    let racers = (0..8).map(|racer| {
        let store = store.clone();
        async move {
            for round in 0..50 {
                let name = format!("d/e/{racer}-{round}");
                let etag = create(&store, &name, "1").await.unwrap();
                store.delete(&key(&name), &etag).await.unwrap();
            }
        }
    });
    join_all(racers.map(tokio::spawn)).await.into_iter().for_each(|done| done.unwrap());
    assert_eq!(all_keys(&store, 1000).await, [""; 0]);
}

#[tokio::test]
async fn uploads_are_invisible_resumable_and_gone_afterwards() {
    let (dir, store) = new_store();
    let name = key("datasets/run/big");
    let upload = store.create_multipart(&name, &with_txid("1")).await.unwrap();
    let part = Bytes::from(vec![7; PART_BYTES_MIN as usize]);
    let first = store.put_part(&name, &upload, 1, part.clone()).await.unwrap();
    // Another process goes on.
    let store = DirectoryStore::open(dir.path()).unwrap();
    let stale = store.put_part(&name, &upload, 2, Bytes::from_static(b"old")).await.unwrap();
    let second = store.put_part(&name, &upload, 2, Bytes::from_static(b"tail")).await.unwrap();
    assert_eq!(all_keys(&store, 1000).await, [""; 0]);
    let wrong = [first.clone(), stale];
    let refused = store.complete_multipart(&name, &upload, &wrong, &Expect::Absent).await;
    assert!(matches!(refused, Err(StoreError::Rejected { .. })), "{refused:?}");
    let etag = store.complete_multipart(&name, &upload, &[first, second], &Expect::Absent).await.unwrap();
    let meta = store.head(&name).await.unwrap();
    assert_eq!((meta.size_bytes, &meta.etag), (PART_BYTES_MIN + 4, &etag));
    assert_eq!(meta.metadata, with_txid("1").metadata);
    let tail = store.get(&name, &etag, PART_BYTES_MIN - 1..PART_BYTES_MIN + 4).await.unwrap();
    assert_eq!(collect(tail, 5).await.unwrap(), b"\x07tail"[..]);
    let again = store.complete_multipart(&name, &upload, &[], &Expect::Absent).await;
    assert!(matches!(again, Err(StoreError::NoSuchUpload { .. })), "{again:?}");
    store.abort_multipart(&name, &upload).await.unwrap();
    for left in ["tmp", "uploads"] {
        assert_eq!(fs::read_dir(dir.path().join(".dsfs/.local").join(left)).unwrap().count(), 0, "{left}");
    }
    let foreign = UploadId("../../../datasets".into());
    store.abort_multipart(&name, &foreign).await.unwrap();
    assert!(dir.path().join("datasets/run/big").exists());
}

#[tokio::test]
async fn link_creates_as_rename_does_where_rename_cannot() {
    let (dir, store) = new_store();
    let root = || store.bucket.root().unwrap();
    let filled = || {
        let file = store.bucket.temp(&key("a")).unwrap();
        file.seal(&BTreeMap::new(), true, || unreachable!("there is no metadata")).unwrap();
        file
    };
    let first = filled();
    first.link_new(root(), "a").unwrap();
    let etag = place::etag_of_file(&first.stat().unwrap());
    assert_eq!(store.head(&key("a")).await.unwrap().etag, etag);
    assert_eq!(filled().link_new(root(), "a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    drop(first);
    assert_eq!(store.head(&key("a")).await.unwrap().etag, etag, "dropping it takes nothing away");
    assert_eq!(fs::read_dir(dir.path().join(".dsfs/.local/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_crash_left_is_swept_after_a_day_and_not_before() {
    let (dir, store) = new_store();
    create(&store, "a", "1").await.unwrap();
    let tmp = dir.path().join(".dsfs/.local/tmp");
    for (name, age) in [("old", Duration::from_secs(25 * 3600)), ("new", Duration::from_secs(3600))] {
        let file = fs::File::create(tmp.join(name)).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - age).unwrap();
    }
    DirectoryStore::open(dir.path()).unwrap();
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["new"]);
}

#[tokio::test]
async fn replacing_races_have_one_winner_each() {
    let (_dir, store) = new_store();
    let mut etag = create(&store, "a", "0").await.unwrap();
    for _ in 0..10 {
        let racers = (0..8).map(|racer| {
            let (store, expect) = (store.clone(), Expect::Version(etag.clone()));
            tokio::spawn(async move {
                let body = Bytes::from(racer.to_string());
                store.put(&key("a"), body, &expect, &PutAttributes::default()).await
            })
        });
        let results = join_all(racers).await.into_iter().map(|done| done.unwrap());
        let (winners, losers): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        assert_eq!(winners.len(), 1);
        assert!(losers.iter().all(|lost| matches!(lost, Err(StoreError::Changed { .. }))), "{losers:?}");
        etag = winners.into_iter().next().unwrap().unwrap();
        assert_eq!(store.head(&key("a")).await.unwrap().etag, etag);
    }
}
