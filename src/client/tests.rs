//! Transfers between directories and the memory store.

mod changed;

use super::*;

use std::collections::BTreeMap;
use std::ops::Range;

use async_trait::async_trait;
use tempfile::TempDir;

use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::META_SHA256;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::UploadId;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;
use crate::transfer::TransferError;

/// Smallest part that stores take, so that large files need not be very large.
const PART: usize = 5 << 20;

struct Setup {
    memory: Arc<MemoryStore>,
    faulty: Arc<FaultyStore>,
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        let memory = Arc::new(MemoryStore::default());
        let faulty = Arc::new(FaultyStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>));
        Self { memory, faulty, dir: tempfile::tempdir().unwrap() }
    }

    fn client(&self) -> Client {
        let options = TransferOptions { workers: 2, part_bytes: PART as u64, ..TransferOptions::default() };
        let notes = Notes { dir: self.path("notes"), store_identity: "test".into() };
        let store = Arc::clone(&self.faulty) as Arc<dyn ObjectStore>;
        Client::new(store).options(options).notes(notes).guarantee(Guarantee::Enforced)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, body: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }

    fn object(&self, key: &str) -> Option<Bytes> {
        self.memory.snapshot().remove(&ObjectKey::from_listing(key))
    }

    fn put(&self, key: &str, body: &[u8]) -> ETag {
        self.memory.overwrite_out_of_band(&ObjectKey::from_listing(key), Bytes::copy_from_slice(body))
    }

    /// All that is below a directory, with the content of files.
    fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        fn walk(top: &Path, at: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                let name = entry.path().strip_prefix(top).unwrap().to_str().unwrap().to_owned();
                if entry.path().is_dir() {
                    walk(top, &entry.path(), found);
                } else {
                    found.insert(name, fs::read(entry.path()).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.path(dir), &self.path(dir), &mut found);
        found
    }

    fn notes(&self) -> usize {
        fs::read_dir(self.path("notes")).map_or(0, Iterator::count)
    }
}

/// Bytes that differ everywhere.
fn body(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

fn unavailable() -> Fault {
    Fault::Before(StoreError::unavailable("test", "no line"))
}

#[tokio::test]
async fn what_goes_up_comes_down() {
    let setup = Setup::new();
    let large = body(2 * PART + 17, 1);
    setup.write("up/large", &large);
    setup.write("up/a/small", b"small");
    setup.write("up/a/empty", b"");
    let client = setup.client();
    let report = client.upload_directory(&setup.path("up"), "x/y", Overwrite::No).await.unwrap();
    assert_eq!((report.files, report.bytes), (3, large.len() as u64 + 5));
    assert_eq!(setup.object("x/y/large").unwrap(), large);
    assert_eq!(setup.memory.open_uploads(), 0);

    let report = client.download_directory("x/y/", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!(report.files, 3);
    // The large one's content was not known when its upload began, and this store keeps no checksums.
    assert_eq!((report.checked_by_content, report.unchecked), (2, 1));
    assert_eq!(setup.files("down"), setup.files("up"));
    let time = |name: &str| fs::metadata(setup.path(name)).unwrap().modified().unwrap();
    assert_eq!(time("down/a/small"), time("up/a/small"));
    assert_eq!(setup.notes(), 0);
}

#[tokio::test]
async fn whatever_is_in_the_way_is_named_before_anything_is_sent() {
    let setup = Setup::new();
    for name in ["up/1", "up/2", "up/d/3"] {
        setup.write(name, b"mine");
    }
    setup.put("x/1", b"theirs");
    setup.put("x/d/3", b"theirs");
    let client = setup.client();
    let refused = client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
    let TransferError::InTheWay { what } = refused else { panic!("{refused}") };
    assert_eq!(what, ["x/1", "x/d/3"]);
    assert_eq!(setup.faulty.requests(), [Operation::List], "one listing, and nothing else");

    setup.write("down/d", b"a file where a directory is needed");
    setup.write("down/1", b"here");
    let refused = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    let TransferError::InTheWay { what } = refused else { panic!("{refused}") };
    assert_eq!(what.len(), 2, "{what:?}");
    assert!(what.iter().any(|what| what.ends_with("down/d (not a directory)")), "{what:?}");
    assert_eq!(setup.files("down").len(), 2);
    assert_eq!(setup.notes(), 0, "nothing was begun");
}

#[tokio::test]
async fn overwriting_replaces_what_the_preflight_saw() {
    let setup = Setup::new();
    setup.write("up/1", b"new");
    setup.put("x/1", b"old");
    setup.put("x/other", b"stays");
    let client = setup.client();
    let report = client.upload_directory(&setup.path("up"), "x", Overwrite::Yes).await.unwrap();
    assert_eq!((report.files, report.replaced), (1, 1));
    assert_eq!(setup.object("x/1").unwrap(), "new");
    assert_eq!(setup.object("x/other").unwrap(), "stays");
    setup.write("down/1", b"old");
    client.download_directory("x", &setup.path("down"), Overwrite::Yes).await.unwrap();
    assert_eq!(fs::read(setup.path("down/1")).unwrap(), b"new");
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_stopped() {
    let setup = Setup::new();
    let large = body(4 * PART, 2);
    setup.put("x/large", &large);
    setup.put("x/small", b"small");
    let client = setup.client().workers(1);
    // Two requests arrive, of two pieces and of one; then there is no line for the last piece, and the
    // small file.
    let arrives = || Fault::Delay(std::time::Duration::ZERO);
    for fault in [arrives(), arrives(), unavailable(), unavailable()] {
        setup.faulty.script(Operation::Get, fault);
    }
    let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Interrupted { .. }), "{err}");
    assert!(!setup.path("down/large").exists());
    assert_eq!(setup.files("down").keys().filter(|name| name.starts_with(".dsfs-part-")).count(), 2);

    let before = gets(&setup);
    client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!(gets(&setup) - before, 2, "one piece, and the small file");
    assert_eq!(fs::read(setup.path("down/large")).unwrap(), large);
    assert_eq!(setup.files("down").len(), 2, "nothing else is left");
    assert_eq!(setup.notes(), 0);
}

/// After a power loss, a file may have its name, size and time, and not its bytes.
#[tokio::test]
async fn what_was_finished_before_the_machine_was_started_anew_is_fetched_anew() {
    let setup = Setup::new();
    for number in 0..40 {
        setup.put(&format!("x/{number:02}"), b"content");
    }
    let client = setup.client();
    // Some files arrive; then the machine is started anew.
    let interrupted = async || {
        for _ in 0..11 {
            setup.faulty.script(Operation::Get, Fault::Delay(std::time::Duration::ZERO));
        }
        setup.faulty.script(Operation::Get, unavailable());
        client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
        let notes = fs::read_dir(setup.path("notes")).unwrap().next().unwrap().unwrap().path();
        let noted = fs::read_to_string(&notes).unwrap();
        fs::write(&notes, noted.replace(&crate::durable::boot_id().unwrap(), "before")).unwrap();
        setup.path("down").join(setup.files("down").keys().next().unwrap())
    };
    let done = interrupted().await;
    let time = fs::metadata(&done).unwrap().modified().unwrap();
    fs::write(&done, [0; 7]).unwrap();
    fs::File::options().write(true).open(&done).unwrap().set_modified(time).unwrap();
    let report = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!((report.files, report.done_before), (40, 0));
    assert!(setup.files("down").values().all(|body| body == b"content"));

    // What somebody has changed since is theirs.
    fs::remove_dir_all(setup.path("down")).unwrap();
    let done = interrupted().await;
    fs::write(&done, "changed").unwrap();
    let refused = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(refused, TransferError::InTheWay { .. }), "{refused}");
    assert_eq!(fs::read(&done).unwrap(), b"changed");
}

#[tokio::test]
async fn a_piece_counts_as_soon_as_it_is_there() {
    let setup = Setup::new();
    let large = body(4 * PART, 2);
    let client = broken_off(&setup, &large).await;
    let map = setup.files("down").into_keys().find(|name| name.ends_with(".map")).unwrap();
    let map = fs::read_to_string(setup.path("down").join(map)).unwrap();
    let pieces: Vec<&str> = map.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(pieces, ["0"]);

    let before = gets(&setup);
    client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!(gets(&setup) - before, 3, "the second piece, and two requests for the last two");
    assert_eq!(fs::read(setup.path("down/large")).unwrap(), large);
}

/// A download of `x/large` that has its first piece.
async fn broken_off(setup: &Setup, large: &[u8]) -> Client {
    setup.put("x/large", large);
    let client = setup.client().workers(1);
    // The first request is for two pieces, and breaks off in the second one.
    setup.faulty.script(Operation::Get, Fault::Truncate(PART as u64 + 1000));
    for _ in 0..3 {
        setup.faulty.script(Operation::Get, unavailable());
    }
    client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    client
}

fn gets(setup: &Setup) -> usize {
    setup.faulty.requests().iter().filter(|operation| **operation == Operation::Get).count()
}

#[tokio::test]
async fn files_of_an_interrupted_download_are_not_in_the_way_of_the_next() {
    let setup = Setup::new();
    for number in 0..40 {
        setup.put(&format!("x/{number:02}"), &[number; 100]);
    }
    setup.faulty.script(Operation::Get, Fault::Delay(std::time::Duration::ZERO));
    let cut = Fault::Delay(std::time::Duration::ZERO);
    for _ in 0..10 {
        setup.faulty.script(Operation::Get, cut.clone());
    }
    setup.faulty.script(Operation::Get, unavailable());
    let client = setup.client();
    let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Interrupted { .. }), "{err}");
    let finished: Vec<String> = setup.files("down").into_keys().collect();
    assert!(!finished.is_empty());
    let report = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!((report.files, report.done_before), (40, finished.len() as u64));
    assert_eq!(setup.files("down").len(), 40);
    let refused = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(refused, TransferError::InTheWay { what } if what.len() == 40));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_asked_for_from_there() {
    let setup = Setup::new();
    let large = body(2 * PART, 3);
    setup.put("x/large", &large);
    setup.put("x/small", &large[..1000]);
    for bytes in [100_000, 1, 0, 77] {
        setup.faulty.script(Operation::Get, Fault::Truncate(bytes));
    }
    setup.client().download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!(fs::read(setup.path("down/large")).unwrap(), large);
    assert_eq!(fs::read(setup.path("down/small")).unwrap(), large[..1000]);
}

#[tokio::test]
async fn what_arrives_damaged_is_not_kept() {
    let setup = Setup::new();
    let wrong = [(META_SHA256.to_owned(), "0".repeat(64))];
    let attributes = PutAttributes { metadata: wrong.into_iter().collect(), ..PutAttributes::default() };
    let key = ObjectKey::from_listing("x/small");
    setup.memory.put(&key, Bytes::from_static(b"body"), &Expect::Absent, &attributes).await.unwrap();
    let large = ObjectKey::from_listing("x/large");
    let large_body = Bytes::from(body(PART + 1, 4));
    setup.memory.put(&large, large_body, &Expect::Absent, &attributes).await.unwrap();
    let client = setup.client();
    for name in ["x/small", "x/large"] {
        let err = client.download_file(name, &setup.path("down/f"), Overwrite::No).await.unwrap_err();
        assert!(matches!(&err, TransferError::Damaged { key, .. } if key.as_str() == name), "{err}");
    }
    assert!(!setup.path("down").exists(), "not even the directory");
}

#[tokio::test]
async fn a_version_that_is_replaced_meanwhile_is_never_mixed() {
    let setup = Setup::new();
    setup.put("x/f", &body(100, 5));
    let client = setup.client();
    let meta = client.head("x/f").await.unwrap().unwrap();
    setup.put("x/f", &body(100, 6));
    let key = ObjectKey::from_listing("x/f");
    let err = client.download_object(&key, &meta, &setup.path("f"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Store(StoreError::Changed { .. })), "{err}");
    assert!(!setup.path("f").exists());
}

#[tokio::test]
async fn keys_that_cannot_be_files_are_refused() {
    let setup = Setup::new();
    for key in ["x/../etc/passwd", "x//y", "x/a", "x/a/b", "x/ok", "x/dir/"] {
        setup.put(key, b"");
    }
    let client = setup.client();
    let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    let TransferError::Unfit { what } = err else { panic!("{err}") };
    assert_eq!(what.len(), 3, "{what:?}");
    assert!(!setup.path("down").exists());
    for key in ["x/../etc/passwd", "x//y", "x/a"] {
        setup.memory.delete_out_of_band(&ObjectKey::from_listing(key));
    }
    client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert!(setup.path("down/dir").is_dir(), "a marker is an empty directory");
}

#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_stopped() {
    let setup = Setup::new();
    let large = body(4 * PART, 7);
    setup.write("up/large", &large);
    setup.write("up/small", b"small");
    let client = setup.client().workers(1);
    setup.faulty.script(Operation::PutPart, Fault::Delay(std::time::Duration::ZERO));
    for _ in 0..4 {
        setup.faulty.script(Operation::PutPart, unavailable());
    }
    let err = client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Interrupted { .. }), "{err}");
    assert_eq!(setup.object("x/large"), None);
    assert_eq!((setup.memory.open_uploads(), setup.notes()), (1, 1), "kept for the next run");

    let parts = |setup: &Setup| {
        setup.faulty.requests().iter().filter(|operation| **operation == Operation::PutPart).count()
    };
    let before = parts(&setup);
    client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap();
    assert_eq!(parts(&setup) - before, 3, "one of four parts was there");
    assert_eq!(setup.object("x/large").unwrap(), large);
    assert_eq!((setup.memory.open_uploads(), setup.notes()), (0, 0));
}

#[tokio::test]
async fn a_file_that_changed_since_is_uploaded_anew() {
    let setup = Setup::new();
    setup.write("up/large", &body(2 * PART, 8));
    let client = setup.client().workers(1);
    setup.faulty.script(Operation::PutPart, Fault::Delay(std::time::Duration::ZERO));
    for _ in 0..4 {
        setup.faulty.script(Operation::PutPart, unavailable());
    }
    client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
    let other = body(2 * PART, 9);
    setup.write("up/large", &other);
    let file = fs::File::options().write(true).open(setup.path("up/large")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap();
    assert_eq!(setup.object("x/large").unwrap(), other);
    assert_eq!(setup.memory.open_uploads(), 0, "the stale upload is given up");
}

/// A stranger who writes a key right before we do.
#[derive(Debug)]
struct Stranger {
    memory: Arc<MemoryStore>,
    key: ObjectKey,
}

impl Stranger {
    fn write(&self, key: &ObjectKey) {
        if *key == self.key && !self.memory.snapshot().contains_key(key) {
            self.memory.overwrite_out_of_band(key, Bytes::from_static(b"theirs"));
        }
    }
}

#[async_trait]
impl ObjectStore for Stranger {
    fn describe(&self) -> String {
        "stranger".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.memory.list(request).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.memory.head(key).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.memory.get(key, etag, range).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.write(key);
        self.memory.put(key, body, expect, attributes).await
    }
    async fn create_multipart(&self, key: &ObjectKey, with: &PutAttributes) -> Result<UploadId, StoreError> {
        self.memory.create_multipart(key, with).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.memory.put_part(key, upload, number, body).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.write(key);
        self.memory.complete_multipart(key, upload, parts, expect).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.memory.abort_multipart(key, upload).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.memory.delete(key, etag).await
    }
}

#[tokio::test]
async fn a_key_that_appears_meanwhile_is_left_alone_and_ours_go() {
    for name in ["small", "large"] {
        let setup = Setup::new();
        setup.write("up/large", &body(2 * PART, 10));
        for number in 0..20 {
            setup.write(&format!("up/{number}"), b"mine");
        }
        setup.write("up/small", b"mine");
        let key = ObjectKey::from_listing(&format!("x/{name}"));
        let stranger = Stranger { memory: Arc::clone(&setup.memory), key: key.clone() };
        let options = TransferOptions { part_bytes: PART as u64, ..TransferOptions::default() };
        let client = Client::new(Arc::new(stranger)).options(options).guarantee(Guarantee::Enforced);
        let err = client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
        assert!(
            matches!(&err, TransferError::Overtaken { keys, done: 0 } if *keys == [key.clone()]),
            "{err}"
        );
        let left = setup.memory.snapshot();
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [(key, Bytes::from_static(b"theirs"))]);
        assert_eq!(setup.memory.open_uploads(), 0);
    }
}

/// What it replaced is gone: to take it back would leave less than there was.
#[tokio::test]
async fn what_has_replaced_others_stays_when_a_key_appears_meanwhile() {
    let setup = Setup::new();
    // One after the other, in this order.
    for (name, seed) in [("1", 17), ("2", 18), ("3", 19)] {
        setup.write(&format!("up/{name}"), &body(600 << 10, seed));
    }
    setup.put("x/1", b"old");
    let key = ObjectKey::from_listing("x/3");
    let stranger = Stranger { memory: Arc::clone(&setup.memory), key: key.clone() };
    let client = Client::new(Arc::new(stranger)).workers(1).guarantee(Guarantee::Enforced);
    let err = client.upload_directory(&setup.path("up"), "x", Overwrite::Yes).await.unwrap_err();
    assert!(matches!(&err, TransferError::Overtaken { keys, done: 2 } if *keys == [key]), "{err}");
    assert_eq!(setup.object("x/1").unwrap(), body(600 << 10, 17));
    assert_eq!(setup.object("x/2").unwrap(), body(600 << 10, 18));
    assert_eq!(setup.object("x/3").unwrap(), "theirs");
}

#[tokio::test]
async fn a_cancelled_transfer_leaves_nothing_half() {
    let setup = Setup::new();
    setup.write("up/large", &body(2 * PART, 11));
    setup.put("y/large", &body(2 * PART, 12));
    let cancel = CancellationToken::new();
    let client = setup.client().cancel(cancel.clone());
    // The first part arrives, the second one never does.
    setup.faulty.script(Operation::PutPart, Fault::Delay(std::time::Duration::ZERO));
    setup.faulty.script(Operation::PutPart, Fault::Stall);
    setup.faulty.script(Operation::Get, Fault::Stall);
    let when_under_way = async {
        while gets(&setup) == 0 || setup.memory.open_uploads() == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (up, down) = (setup.path("up"), setup.path("down"));
    let (up, down, ()) = tokio::join!(
        client.upload_directory(&up, "x", Overwrite::No),
        client.download_directory("y", &down, Overwrite::No),
        when_under_way,
    );
    assert!(matches!(up.unwrap_err(), TransferError::Cancelled { done: 0, files: 1 }));
    assert!(matches!(down.unwrap_err(), TransferError::Cancelled { done: 0, files: 1 }));
    assert_eq!(setup.memory.open_uploads(), 0);
    assert!(!setup.path("down").exists());
    assert_eq!(setup.notes(), 0);
}

#[tokio::test]
async fn deleting_takes_what_was_listed_and_nothing_beside_it() {
    let setup = Setup::new();
    for key in ["p/a", "p/a/1", "p/a/2", "p/ab", ".dsfs/datasets/log/x/0000000001"] {
        setup.put(key, b"");
    }
    let client = setup.client();
    assert_eq!(client.delete_prefix("p/a").await.unwrap().deleted, 2);
    assert!(client.exists("p/a").await.unwrap() && client.exists("p/ab").await.unwrap());
    assert!(client.delete_object("p/a", false).await.unwrap());
    assert!(!client.delete_object("p/a", true).await.unwrap());
    assert!(matches!(client.delete_object("p/a", false).await, Err(TransferError::NotFound { .. })));
    assert!(client.delete_prefix("").await.is_err() && client.delete_prefix("/").await.is_err());
    assert!(client.delete_prefix(".dsfs").await.is_err(), "the log is not an object like others");
    assert_eq!(setup.memory.snapshot().len(), 2);
}

#[tokio::test]
async fn a_cancelled_deletion_ends_while_it_looks_and_deletes_nothing() {
    let setup = Setup::new();
    for number in 0..100 {
        setup.put(&format!("p/{number}"), b"");
    }
    let cancel = CancellationToken::new();
    let client = setup.client().cancel(cancel.clone());
    setup.faulty.script(Operation::List, Fault::Stall);
    setup.faulty.script(Operation::Head, Fault::Stall);
    cancel.cancel();
    let deletions = async { (client.delete_prefix("p").await, client.delete_object("p/1", true).await) };
    let (prefix, object) = tokio::time::timeout(std::time::Duration::from_secs(10), deletions).await.unwrap();
    assert!(matches!(prefix.unwrap_err(), TransferError::Cancelled { done: 0, files: 0 }));
    assert!(matches!(object.unwrap_err(), TransferError::Cancelled { done: 0, files: 1 }));
    assert_eq!(setup.memory.snapshot().len(), 100);
}

#[test]
fn checksums_of_pieces_make_the_servers() {
    use crate::store::StoredChecksum;
    assert_eq!(StoredChecksum::parse("AAAAAQ=="), Some(StoredChecksum::Whole(1)));
    assert_eq!(StoredChecksum::parse("AAAAAQ==-3"), Some(StoredChecksum::OfParts { crc: 1, parts: 3 }));
    for bad in ["", "AAAA", "AAAAAQ==-", "AAAAAQ==-x", "!"] {
        assert_eq!(StoredChecksum::parse(bad), None, "{bad:?}");
    }
    assert!(KeyPrefix::parse("a//b").is_err() && KeyPrefix::parse("../a").is_err());
}
