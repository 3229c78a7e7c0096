//! The cache against damage, other processes, full disks and its own limits.

mod histories;
mod taken_over;
mod trouble;

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Context;
use std::task::Waker;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::TempDir;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::cache::Entry;
use crate::cache::Lookup;
use crate::cache::Pages;
use crate::cache::VersionId;
use crate::cache::format::FORMAT_VERSION;
use crate::cache::paths::Suffix;
use crate::name::ETag;
use crate::name::ObjectKey;

const MIB: u64 = 1024 * 1024;

/// A kind of damage: what it is called, and what does it.
type Damage<'a> = (&'a str, &'a dyn Fn());
/// A kind of damage to one file.
type FileDamage<'a> = (&'a str, &'a dyn Fn(&Path));

fn id(name: &str) -> VersionId {
    VersionId::new("test", &ObjectKey::from_listing(name), &ETag::from_server("1"))
}

/// Bytes that tell their object and their place.
fn content(name: &str, size_bytes: u64) -> Vec<u8> {
    let seed = crc32c::crc32c(name.as_bytes());
    let words =
        (0..size_bytes.div_ceil(4) as u32).flat_map(|at| (at.wrapping_mul(0x9E37_79B9) ^ seed).to_le_bytes());
    words.take(size_bytes as usize).collect()
}

fn open_with(dir: &Path, limit_bytes: u64) -> Arc<BlockCache> {
    let memory_bytes = 64 * MIB;
    BlockCache::open(CacheOptions { dir: dir.to_owned(), limit_bytes, reserve_bytes: 0, memory_bytes })
}

fn open(dir: &Path) -> Arc<BlockCache> {
    open_with(dir, u64::MAX)
}

/// Stores blocks of an object, as the writer threads do.
fn store(entry: &Entry, whole: &[u8], blocks: std::ops::Range<u64>) {
    let size = whole.len() as u64;
    let bytes = block::range_of(blocks.start, size).start..block::range_of(blocks.end - 1, size).end;
    entry.store(blocks.start, &whole[bytes.start as usize..bytes.end as usize], Pages::Keep).unwrap();
}

/// Stores an object as if that had been long ago.
fn fill(cache: &Arc<BlockCache>, name: &str, size_bytes: u64) -> Vec<u8> {
    let entry = cache.entry(&id(name), size_bytes);
    let whole = fill_now(&entry, name);
    if let Some(file) = entry.whole_file() {
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    whole
}

fn fill_now(entry: &Entry, name: &str) -> Vec<u8> {
    let whole = content(name, entry.size_bytes());
    store(entry, &whole, 0..block::count(entry.size_bytes()));
    whole
}

fn read(entry: &Entry, bytes: std::ops::Range<u64>) -> Option<Bytes> {
    match entry.read(&bytes, true) {
        Lookup::Hit(read) => Some(read),
        Lookup::Miss => None,
        Lookup::WouldBlock => panic!("a read that may wait does not say that it would"),
    }
}

/// The blocks of an object that can be read, each of which must be right.
fn readable(entry: &Entry, whole: &[u8]) -> Vec<u64> {
    let size = whole.len() as u64;
    let mut found = Vec::new();
    for index in 0..block::count(size) {
        let bytes = block::range_of(index, size);
        if let Some(read) = read(entry, bytes.clone()) {
            assert!(read == whole[bytes.start as usize..bytes.end as usize], "block {index} is wrong");
            found.push(index);
        }
    }
    found
}

/// The cache's files with this suffix.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.extension().is_some_and(|extension| extension == suffix) {
            found.push(path);
        }
    }
    found
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn blocks_are_kept_across_restarts_and_only_those() {
    let dir = TempDir::new().unwrap();
    let whole = content("a", 10 * BLOCK_BYTES + 5);
    {
        let cache = open(dir.path());
        let entry = cache.entry(&id("a"), whole.len() as u64);
        assert_eq!(readable(&entry, &whole), Vec::<u64>::new());
        store(&entry, &whole, 2..4);
        store(&entry, &whole, 10..11);
        assert_eq!(readable(&entry, &whole), [2, 3, 10]);
        assert!(entry.whole_file().is_none(), "never a file with holes");
    }
    let cache = open(dir.path());
    let entry = cache.entry(&id("a"), whole.len() as u64);
    assert_eq!(readable(&entry, &whole), [2, 3, 10]);
    assert_eq!(
        read(&entry, 2 * BLOCK_BYTES + 7..4 * BLOCK_BYTES - 9).map(|read| read.len()),
        Some(2 * BLOCK_BYTES as usize - 16)
    );
    assert_eq!(read(&entry, BLOCK_BYTES..3 * BLOCK_BYTES), None);
    assert_eq!(readable(&cache.entry(&id("b"), whole.len() as u64), &whole), Vec::<u64>::new());
}

#[test]
fn a_file_is_whole_when_every_block_is_there_and_checked_by_this_process() {
    let dir = TempDir::new().unwrap();
    let size = 3 * MIB + 1;
    let cache = open(dir.path());
    let whole = fill(&cache, "a", size);
    let entry = cache.entry(&id("a"), size);
    assert!(entry.whole_file().is_some(), "closed and opened again in the same process");
    drop((entry, cache));

    let cache = open(dir.path());
    let entry = cache.entry(&id("a"), size);
    assert!(entry.whole_file().is_none(), "after a restart nothing was checked yet");
    assert!(entry.mapped(&(0..10), Pages::Keep).is_none());
    assert!(entry.is_complete() && entry.verify());
    let file = entry.whole_file().unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    assert!(entry.mapped(&(5..MIB), Pages::Keep).unwrap() == whole[5..MIB as usize]);
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = TempDir::new().unwrap();
    let size = 4 * BLOCK_BYTES;
    let whole = content("a", size);
    for (suffix, at, lost) in [
        ("data", 0, vec![0]),
        ("data", 2 * BLOCK_BYTES + 77, vec![2]),
        ("data", size - 1, vec![3]),
        ("map", 64, vec![0]),
        ("map", 64 + 2 * 8 + 5, vec![2]),
        ("map", 0, vec![0, 1, 2, 3]),
        ("map", 30, vec![0, 1, 2, 3]),
    ] {
        fill(&open(dir.path()), "a", size);
        flip(&files(dir.path(), suffix)[0], at, 3);
        let cache = open(dir.path());
        let entry = cache.entry(&id("a"), size);
        assert!(!entry.verify());
        let left = readable(&entry, &whole);
        let expected: Vec<u64> = (0..4).filter(|index| !lost.contains(index)).collect();
        assert_eq!(left, expected, "{suffix} at {at}");
        // What was lost is fetched and stored again, and then all is well.
        store(&entry, &whole, 0..4);
        assert_eq!(readable(&entry, &whole), [0, 1, 2, 3], "{suffix} at {at}");
        assert!(entry.verify());
        drop((entry, cache));
        assert_eq!(readable(&open(dir.path()).entry(&id("a"), size), &whole), [0, 1, 2, 3]);
    }
}

#[test]
fn a_small_object_is_sound_or_not_there() {
    let dir = TempDir::new().unwrap();
    for size in [1, 1000, BLOCK_BYTES] {
        let name = format!("s{size}");
        let whole = content(&name, size);
        let damage: [FileDamage<'_>; 6] = [
            ("content", &|path| flip(path, 64 + size / 2, 1)),
            ("header", &|path| flip(path, 20, 1)),
            ("truncated", &|path| {
                OpenOptions::new().write(true).open(path).unwrap().set_len(63 + size).unwrap()
            }),
            ("grown", &|path| OpenOptions::new().write(true).open(path).unwrap().set_len(65 + size).unwrap()),
            ("empty", &|path| OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap()),
            ("gone", &|path| fs::remove_file(path).unwrap()),
        ];
        for (what, damage) in damage {
            let cache = open(dir.path());
            fill(&cache, &name, size);
            let entry = cache.entry(&id(&name), size);
            assert_eq!(readable(&entry, &whole), [0]);
            damage(&cache.paths.of(&id(&name), Suffix::One));
            assert_eq!(readable(&entry, &whole), Vec::<u64>::new(), "{what}");
            assert!(entry.whole_file().is_none());
            store(&entry, &whole, 0..1);
            assert_eq!(readable(&entry, &whole), [0], "{what}");
        }
    }
}

#[test]
fn truncated_swapped_and_foreign_files_are_absent_blocks() {
    let dir = TempDir::new().unwrap();
    let size = 6 * BLOCK_BYTES;
    let set_len = |suffix: &str, len: u64| {
        OpenOptions::new().write(true).open(&files(dir.path(), suffix)[0]).unwrap().set_len(len).unwrap();
    };
    let swap = |suffix: &str| {
        let found = files(dir.path(), suffix);
        let aside = dir.path().join("aside");
        rustix::fs::rename(&found[0], &aside).unwrap();
        rustix::fs::rename(&found[1], &found[0]).unwrap();
        rustix::fs::rename(&aside, &found[1]).unwrap();
    };
    let damage: [Damage<'_>; 8] = [
        ("data truncated", &|| set_len("data", size / 2)),
        ("data grown", &|| set_len("data", size * 2)),
        ("data empty", &|| set_len("data", 0)),
        ("map truncated", &|| set_len("map", 64 + 11)),
        ("map empty", &|| set_len("map", 0)),
        ("data swapped", &|| swap("data")),
        ("maps swapped", &|| swap("map")),
        ("data all zeros", &|| {
            fs::write(&files(dir.path(), "data")[0], vec![0; size as usize]).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let (a, b) = {
            let cache = open(dir.path());
            (fill(&cache, "a", size), fill(&cache, "b", size))
        };
        damage();
        let cache = open(dir.path());
        for (name, whole) in [("a", &a), ("b", &b)] {
            let entry = cache.entry(&id(name), size);
            readable(&entry, whole);
            store(&entry, whole, 0..6);
            assert_eq!(readable(&entry, whole).len(), 6, "{what}");
        }
    }
}

#[test]
fn damage_under_an_open_entry_is_right_bytes_or_a_miss() {
    let dir = TempDir::new().unwrap();
    let size = 6 * BLOCK_BYTES;
    fill(&open(dir.path()), "a", size);
    let whole = content("a", size);
    let cache = open(dir.path());
    let entry = cache.entry(&id("a"), size);
    assert_eq!(read(&entry, 0..10).unwrap(), whole[..10]);
    let data = files(dir.path(), "data").remove(0);
    OpenOptions::new().write(true).open(&data).unwrap().set_len(BLOCK_BYTES).unwrap();
    assert!(
        entry.mapped(&(0..10), Pages::Keep).is_none(),
        "a file that was truncated is not mapped any more"
    );
    readable(&entry, &whole);
    assert!(entry.whole_file().is_none());
    store(&entry, &whole, 0..6);
    readable(&entry, &whole);
    fs::remove_dir_all(dir.path()).unwrap();
    readable(&entry, &whole);
    drop(entry);
    let entry = cache.entry(&id("a"), size);
    store(&entry, &whole, 0..6);
    assert_eq!(readable(&entry, &whole).len(), 6, "the directory is made again");
}

#[test]
fn the_scan_removes_what_does_not_belong_there() {
    let dir = TempDir::new().unwrap();
    {
        let cache = open(dir.path());
        fill(&cache, "a", MIB);
        fill(&cache, "s", 100);
        until("scanned", || cache.usage().scanned);
    }
    let blocks = dir.path().join("blocks");
    let map = files(dir.path(), "map").remove(0);
    // Of another format version: a header that is sound but for that.
    let mut old = fs::read(&map).unwrap();
    old[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let own = crc32c::crc32c(&old[..60]);
    old[60..64].copy_from_slice(&own.to_le_bytes());
    let hour_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let mut foreign = Vec::new();
    let rest = "0".repeat(62);
    for (name, content) in [
        ("README", &b"hello"[..]),
        ("zz/x", b"x"),
        ("00/notes.txt", b"x"),
        (&format!("00/{rest}.map"), &old),
        (&format!("00/{rest}.one"), b"dsfsone\nshort"),
        (&format!("01/{rest}.data"), b"no map"),
        (&format!("02/{rest}.tmp-1-1"), b"left over"),
    ] {
        let path = blocks.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
        foreign.push(path);
    }
    let fresh = blocks.join(format!("02/{rest}.tmp-1-2"));
    fs::write(&fresh, b"being made").unwrap();
    let cache = open(dir.path());
    until("scanned", || cache.usage().scanned);
    for path in foreign {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(fresh.exists());
    assert_eq!(cache.usage().files, 2);
    assert_eq!(readable(&cache.entry(&id("a"), MIB), &content("a", MIB)).len(), 8);
    assert_eq!(readable(&cache.entry(&id("s"), 100), &content("s", 100)), [0]);
}

#[test]
fn two_caches_in_one_directory_share_what_they_store() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    let size = 4 * MIB;
    let whole = content("a", size);
    let (a, b) = (one.entry(&id("a"), size), two.entry(&id("a"), size));
    assert_eq!(readable(&b, &whole), Vec::<u64>::new());
    store(&a, &whole, 0..8);
    store(&b, &whole, 8..16);
    a.refresh(0..32);
    b.refresh(0..32);
    assert_eq!(readable(&a, &whole), (0..16).collect::<Vec<_>>());
    assert_eq!(readable(&b, &whole), (0..16).collect::<Vec<_>>());
    // Both create, store and read at once.
    thread::scope(|scope| {
        for cache in [&one, &two, &one, &two] {
            scope.spawn(|| {
                for n in 0..40 {
                    let (name, size) = (format!("f{n}"), if n % 2 == 0 { 3 * BLOCK_BYTES } else { 999 });
                    let whole = fill(cache, &name, size);
                    let entry = cache.entry(&id(&name), size);
                    entry.refresh(0..3);
                    assert_eq!(readable(&entry, &whole).len() as u64, block::count(size));
                }
            });
        }
    });
}

#[test]
fn the_longest_unused_is_evicted_and_what_is_open_stays_readable() {
    let dir = TempDir::new().unwrap();
    let cache = open_with(dir.path(), 10 * MIB);
    until("scanned", || cache.usage().scanned);
    let whole = fill(&cache, "first", 2 * MIB);
    let entry = cache.entry(&id("first"), 2 * MIB);
    let file = entry.whole_file().unwrap();
    let mapped = entry.mapped(&(0..2 * MIB), Pages::Keep).unwrap();
    drop(entry);
    for n in 0..20 {
        fill(&cache, &format!("f{n}"), MIB);
        until("within the limit", || cache.usage().used_bytes <= 10 * MIB);
    }
    let usage = cache.usage();
    assert!(usage.evicted_files >= 8 && usage.used_bytes >= 5 * MIB, "{usage:?}");
    assert!(files(dir.path(), "data").len() <= 10);
    let mut content = vec![0; 2 * MIB as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content == whole && mapped == whole, "evicted by unlinking, never by truncating");
    assert!(cache.entry(&id("first"), 2 * MIB).whole_file().is_none());
}

#[test]
fn pinned_versions_stay_also_for_another_process() {
    let dir = TempDir::new().unwrap();
    let (pinner, cache) = (open(dir.path()), open_with(dir.path(), 6 * MIB));
    until("scanned", || cache.usage().scanned);
    pinner.pin(&id("pin"), "me").unwrap();
    fill(&cache, "pin", 2 * MIB);
    for n in 0..12 {
        fill(&cache, &format!("f{n}"), MIB);
        until("within the limit", || cache.usage().used_bytes <= 6 * MIB);
    }
    assert!(cache.entry(&id("pin"), 2 * MIB).whole_file().is_some());
    assert!(cache.is_pinned(&id("pin")) && !cache.is_pinned(&id("f0")));
    assert_eq!((cache.pinned_by("me"), cache.pinned_by("others")), (vec![id("pin")], vec![]));
    assert_eq!(cache.evict_version(&id("pin"), false).unwrap(), None);
    pinner.unpin(&id("pin")).unwrap();
    assert!(!pinner.is_pinned(&id("pin")));
}

#[test]
fn a_disk_below_its_reserve_takes_nothing_more() {
    let dir = TempDir::new().unwrap();
    let options = CacheOptions {
        dir: dir.path().to_owned(),
        limit_bytes: u64::MAX,
        reserve_bytes: u64::MAX / 2,
        memory_bytes: MIB,
    };
    let cache = BlockCache::open(options);
    until("noticed", || !cache.admits());
    assert!(cache.usage().bypassed.is_none());
}

#[test]
fn a_directory_in_trouble_is_bypassed_and_used_again_later() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("cache");
    fs::write(&root, b"a file is in the way").unwrap();
    let cache = open(&root);
    assert!(cache.usage().bypassed.is_some() && !cache.admits());
    let whole = content("a", MIB);
    let entry = cache.entry(&id("a"), MIB);
    assert_eq!(readable(&entry, &whole), Vec::<u64>::new());
    entry.written(entry.store(0, &whole, Pages::Keep));
    assert!(cache.usage().bypassed.is_some());
    fs::remove_file(&root).unwrap();
    cache.health.retry_now();
    assert!(cache.admits());
    entry.written(entry.store(0, &whole, Pages::Keep));
    assert!(cache.usage().bypassed.is_none());
    assert_eq!(readable(&entry, &whole).len(), 8);
}

#[tokio::test]
async fn queued_writes_arrive() {
    let dir = TempDir::new().unwrap();
    let cache = open(dir.path());
    let whole = content("a", 32 * MIB);
    let entry = cache.entry(&id("a"), 32 * MIB);
    for at in 0..32 {
        let piece = Bytes::copy_from_slice(&whole[(at * MIB) as usize..((at + 1) * MIB) as usize]);
        assert!(entry.store_later(at * 8, piece, Pages::Keep, Duration::from_secs(10)).await);
    }
    cache.drain().await;
    assert!(entry.whole_file().is_some());
    assert_eq!(cache.usage().written_bytes, 32 * MIB);
}

#[tokio::test]
async fn what_will_be_stored_is_on_its_way_before_anybody_stores_it() {
    let dir = TempDir::new().unwrap();
    let cache = open(dir.path());
    let whole = Bytes::from(content("a", MIB));
    let entry = cache.entry(&id("a"), MIB);
    let later = entry.store_later(0, whole, Pages::Keep, Duration::from_secs(10));
    let mut settled = Box::pin(entry.settle(Duration::from_secs(3600)));
    assert!(settled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(later.await);
    settled.await;
    assert!(entry.whole_file().is_some());
}

#[tokio::test]
async fn a_small_object_that_was_not_there_is_found_when_it_is() {
    let dir = TempDir::new().unwrap();
    let (cache, other) = (open(dir.path()), open(dir.path()));
    let entry = cache.entry(&id("a"), 100);
    assert!(!entry.is_present(0));
    assert!(entry.store_later(0, Bytes::from(content("a", 100)), Pages::Keep, Duration::from_secs(10)).await);
    assert!(entry.is_present(0), "on its way");
    cache.drain().await;
    assert!(entry.is_present(0), "on disk");
    let elsewhere = cache.entry(&id("b"), 100);
    assert!(!elsewhere.is_present(0));
    fill(&other, "b", 100);
    elsewhere.refresh(0..1);
    assert!(elsewhere.is_present(0), "another process has cached it");
}
