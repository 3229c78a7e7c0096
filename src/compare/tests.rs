//! Comparisons over a store in memory: what is found, and that nothing else is.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use sha2::Digest;
use sha2::Sha256;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::cache::Pages;
use crate::cache::VersionId;
use crate::catalog::Catalog;
use crate::compare::Difference;
use crate::compare::DifferenceKind;
use crate::compare::Found;
use crate::compare::Place;
use crate::compare::Problem;
use crate::compare::Unwatched;
use crate::compare::Verify;
use crate::compare::VerifyReport;
use crate::compare::between;
use crate::compare::staged;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Author;
use crate::record::Changes;
use crate::record::CommitBody;
use crate::record::CommitRecord;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::OldVersion;
use crate::record::Outcome;
use crate::record::Snapshot;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::Holder;
use crate::staging::Staging;
use crate::store::memory::MemoryStore;

const IDENTITY: &str = "memory";

fn run() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn prefix() -> RemotePrefix {
    RemotePrefix::parse("d/").unwrap()
}

fn key(text: &str) -> ObjectKey {
    prefix().key(&run(), &path(text)).unwrap()
}

fn cid(content: &[u8]) -> ContentId {
    ContentId::from_sha256(Sha256::digest(content).into())
}

/// Bytes that differ from block to block.
fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at / 131_072) as u8).collect()
}

/// A bucket, its log, and a cache.
struct World {
    store: Arc<MemoryStore>,
    cache: Arc<BlockCache>,
    log: Vec<CommitBody>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CacheOptions {
            dir: dir.path().join("cache"),
            limit_bytes: 1 << 30,
            reserve_bytes: 0,
            memory_bytes: 16 << 20,
        };
        Self { store: Arc::default(), cache: BlockCache::open(options), log: Vec::new(), dir }
    }

    fn put(&self, at: &str, content: &[u8]) -> ETag {
        self.store.overwrite_out_of_band(&key(at), Bytes::copy_from_slice(content))
    }

    /// Puts an object and tells how it would be recorded.
    fn publish(&self, at: &str, content: &[u8]) -> Entry {
        Entry {
            path: path(at),
            size_bytes: content.len() as u64,
            cid: cid(content),
            etag: self.put(at, content),
            mtime: SystemTime::UNIX_EPOCH,
            replaced: None,
        }
    }

    fn record(&mut self, entries: Vec<Entry>, deleted: Vec<Entry>) {
        let tail = self.log.last().map(|last| last.tail.then(&last.changes)).unwrap_or_default();
        let deleted = deleted.into_iter().map(|entry| OldVersion { path: entry.path, etag: entry.etag });
        let body = CommitBody {
            dataset: run(),
            seq: self.log.len() as u64 + 1,
            txid: format!("TX{}", self.log.len()),
            author: Author::default(),
            time: SystemTime::UNIX_EPOCH,
            message: None,
            changes: Changes { entries, deleted: deleted.collect(), markers: Vec::new() },
            base: None,
            tail,
        };
        let record = CommitRecord { outcome: Outcome::Commit, body: body.clone() };
        let object = record.encode().unwrap();
        self.store.overwrite_out_of_band(&prefix().log_key(&run(), body.seq), object);
        self.log.push(body);
    }

    async fn verify(&self, seq: Option<u64>, remote: bool) -> Found {
        let verify = Verify {
            store: Arc::clone(&self.store) as _,
            prefix: prefix(),
            dataset: run(),
            seq,
            cache: Some((Arc::clone(&self.cache), IDENTITY.to_owned())),
            remote: remote.then_some(4),
            watch: Arc::new(Unwatched),
        };
        verify.run().await.unwrap()
    }

    async fn report(&self, seq: Option<u64>, remote: bool) -> VerifyReport {
        match self.verify(seq, remote).await {
            Found::Report(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Puts a whole file into the cache as the content of a version.
    fn admit(&self, entry: &Entry, content: &[u8]) {
        let file = self.dir.path().join("admitted");
        std::fs::write(&file, content).unwrap();
        self.cache.admit_file(&self.id(entry), &file, entry.size_bytes).unwrap();
        std::fs::remove_file(&file).ok(); // it may be the cache's own by now, under a second name
    }

    fn id(&self, entry: &Entry) -> VersionId {
        VersionId::new(IDENTITY, &key(entry.path.as_str()), &entry.etag)
    }

    /// The cache's file of a version.
    fn cached_file(&self, entry: &Entry, suffix: &str) -> std::path::PathBuf {
        let id = self.id(entry).to_string();
        self.dir.path().join("cache/blocks").join(&id[..2]).join(format!("{}.{suffix}", &id[2..]))
    }
}

fn flip_byte(file: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn found(report: &VerifyReport) -> Vec<(&str, Place, Problem)> {
    report.bad.iter().map(|file| (file.path.as_str(), file.place, file.problem)).collect()
}

#[test]
fn snapshots_differ_in_content_and_not_in_versions() {
    let world = World::new();
    let (a, b, c) = (world.publish("a", b"1"), world.publish("b", b"1"), world.publish("c", b"1"));
    let snapshot = |entries: &[&Entry]| Snapshot {
        entries: entries.iter().map(|entry| (entry.path.clone(), (*entry).clone())).collect(),
        ..Snapshot::default()
    };
    let (before, a2, b2, d) = (
        snapshot(&[&a, &b, &c]),
        world.publish("a", b"1"),
        world.publish("b", b"22"),
        world.publish("d", b"4"),
    );
    let differences = between(&before, &snapshot(&[&a2, &b2, &d]));
    let kinds: Vec<_> = differences.iter().map(|found| (found.path.as_str(), found.kind)).collect();
    assert_eq!(
        kinds,
        [("b", DifferenceKind::Changed), ("c", DifferenceKind::Deleted), ("d", DifferenceKind::New)]
    );
    assert_eq!(between(&before, &before), []);
}

#[tokio::test]
async fn staged_files_are_told_from_published_ones_by_content() {
    let mut world = World::new();
    let recorded = vec![
        world.publish("same", b"same"),
        world.publish("other", b"12345"),
        world.publish("longer", b"1"),
        world.publish("gone", b"gone"),
    ];
    let gone = recorded[3].clone();
    world.record(recorded, vec![]);
    world.put("foreign", b"fffff");
    world.put("dir/below", b"x");
    let staging = Staging::open(&world.dir.path().join("state"), &Holder::default()).unwrap();
    let dataset = staging.create_dataset(&run()).unwrap();
    let files = [
        ("same", "same"),
        ("other", "54321"),
        ("longer", "123"),
        ("foreign", "ggggg"),
        ("dir", "?"),
        ("new", "n"),
    ];
    for (at, content) in files {
        let file = dataset.create_file(&path(at), 0o644).unwrap();
        (&*file).write_all(content.as_bytes()).unwrap();
    }
    let base = Base { etag: gone.etag, size_bytes: 4, kind: BaseKind::Delete };
    dataset.set_base(&path("gone"), &base).unwrap();
    let stale = Base { etag: ETag::from_server("before"), size_bytes: 1, kind: BaseKind::Replace };
    dataset.set_base(&path("longer"), &stale).unwrap();
    let catalog = Catalog::new(Arc::clone(&world.store) as _, prefix(), Duration::from_secs(60));
    let differences = staged(&catalog, &*world.store, &dataset, &Unwatched).await.unwrap();
    let by_path =
        |at: &str| -> &Difference { differences.iter().find(|found| found.path == path(at)).unwrap() };
    let kinds: Vec<_> = differences.iter().map(|found| (found.path.as_str(), found.kind)).collect();
    let expected = [
        ("dir", DifferenceKind::Changed),
        ("foreign", DifferenceKind::Unknown),
        ("gone", DifferenceKind::Deleted),
        ("longer", DifferenceKind::Changed),
        ("new", DifferenceKind::New),
        ("other", DifferenceKind::Changed),
        ("same", DifferenceKind::Same),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(by_path("same").after.as_ref().unwrap().cid, Some(cid(b"same")));
    assert_eq!(by_path("dir").note.as_deref(), Some("is a directory in the bucket"));
    assert!(by_path("longer").note.as_deref().unwrap().contains("another version"));
    assert_eq!(by_path("other").note, None);
}

#[tokio::test]
async fn a_remote_that_is_as_committed_is_right() {
    let mut world = World::new();
    let large = noise(20 << 20); // several parts, the last one short
    let entries = vec![
        world.publish("large", &large),
        world.publish("empty", b""),
        world.publish("small", b"s"),
        world.publish("later", b"1"),
    ];
    let later = entries[3].clone();
    world.record(entries, vec![]);
    let replaced = Entry { replaced: Some(later.etag), ..world.publish("later", b"2") };
    world.record(vec![replaced], vec![]);
    world.put("foreign", b"12");
    let report = world.report(None, true).await;
    assert_eq!(found(&report), []);
    let remote = report.remote.unwrap();
    assert_eq!((remote.right_files, remote.right_bytes), (4, (20 << 20) + 2));
    assert_eq!((remote.foreign_files, remote.foreign_bytes, remote.superseded_files), (1, 2, 0));
    let before = world.report(Some(1), true).await;
    assert_eq!((before.seq, found(&before)), (Some(1), vec![]));
    assert_eq!(before.remote.unwrap().superseded_files, 1);
    assert_eq!(world.verify(Some(3), false).await, Found::NoSuchCommit { head: 2 });
}

#[tokio::test]
async fn whatever_is_not_as_committed_is_named() {
    let mut world = World::new();
    let mut damaged = world.publish("damaged", &noise(300_000));
    damaged.cid = cid(b"what was committed");
    let mut longer = world.publish("longer", b"12345");
    longer.size_bytes = 4;
    let mut filled = world.publish("filled", b"");
    filled.cid = cid(b"not empty");
    let entries = vec![
        damaged,
        longer,
        filled,
        world.publish("missing", b"m"),
        world.publish("overwritten", b"ours"),
        world.publish("rewritten", b"ours"),
        world.publish("right", b"r"),
    ];
    world.record(entries, vec![]);
    world.store.delete_out_of_band(&key("missing"));
    world.put("overwritten", b"xxxx");
    world.put("rewritten", b"ours");
    let report = world.report(None, true).await;
    let expected = [
        ("damaged", Place::Remote, Problem::WrongContent),
        ("filled", Place::Remote, Problem::WrongContent),
        ("longer", Place::Remote, Problem::WrongSize),
        ("missing", Place::Remote, Problem::Missing),
        ("overwritten", Place::Remote, Problem::Replaced),
        ("rewritten", Place::Remote, Problem::Replaced),
    ];
    assert_eq!(found(&report), expected);
    assert_eq!(report.remote.unwrap().right_files, 1);
    assert!(report.bad[4].detail.contains(&cid(b"xxxx").to_string()), "{}", report.bad[4].detail);
    assert!(report.bad[5].detail.contains("same content"), "{}", report.bad[5].detail);
}

#[tokio::test]
async fn a_dataset_without_a_log_has_nothing_to_be_verified() {
    let world = World::new();
    world.put("foreign", b"1");
    let report = world.report(None, true).await;
    assert_eq!((report.seq, report.files, found(&report)), (None, 0, vec![]));
    assert_eq!(report.remote.unwrap().foreign_files, 1);
}

#[tokio::test]
async fn what_is_wrong_in_the_cache_is_named_and_dropped() {
    let mut world = World::new();
    let content = noise(5 * BLOCK_BYTES as usize + 17);
    let names = ["absent", "false", "flipped", "part", "right", "small", "small-false", "small-flipped"];
    let entries: Vec<Entry> = names
        .iter()
        .map(|name| world.publish(name, if name.starts_with("small") { b"small" } else { &content }))
        .collect();
    world.record(entries.clone(), vec![]);
    let mut other = content.clone();
    other[3] ^= 1;
    for entry in &entries {
        match entry.path.as_str() {
            "absent" | "part" => {}
            "false" => world.admit(entry, &other), // damaged before the cache made its checksums
            "small" | "small-flipped" => world.admit(entry, b"small"),
            "small-false" => world.admit(entry, b"smell"),
            _ => world.admit(entry, &content),
        }
    }
    let part = world.cache.entry(&world.id(&entries[3]), content.len() as u64);
    part.store(1, &content[BLOCK_BYTES as usize..3 * BLOCK_BYTES as usize], Pages::Keep).unwrap();
    // Read once, so that it counts as verified: an audit must not believe that.
    let flipped = world.cache.entry(&world.id(&entries[2]), content.len() as u64);
    assert!(flipped.verify());
    flip_byte(&world.cached_file(&entries[2], "data"), 2 * BLOCK_BYTES + 5);
    let small = world.cached_file(&entries[7], "one");
    flip_byte(&small, std::fs::metadata(&small).unwrap().len() - 3);

    let report = world.report(None, false).await;
    let expected = [
        ("false", Place::Cache, Problem::WrongContent),
        ("flipped", Place::Cache, Problem::Damaged),
        ("small-false", Place::Cache, Problem::WrongContent),
        ("small-flipped", Place::Cache, Problem::Damaged),
    ];
    assert_eq!(found(&report), expected);
    let counts = report.cache.unwrap();
    assert_eq!((counts.whole_files, counts.partial_files, counts.absent_files), (2, 1, 1));
    assert_eq!(counts.partial_bytes, 2 * BLOCK_BYTES);

    let present =
        |entry: &Entry, block| world.cache.entry(&world.id(entry), entry.size_bytes).is_present(block);
    assert!(!present(&entries[1], 0), "a file with another content is gone whole");
    assert!(!present(&entries[2], 2) && present(&entries[2], 1), "of a damaged one the damaged block");
    assert!(
        !world.cached_file(&entries[6], "one").exists() && !world.cached_file(&entries[7], "one").exists()
    );
    let again = world.report(None, false).await;
    assert_eq!(found(&again), []);
    assert_eq!(again.cache.unwrap().absent_files, 4);
}
