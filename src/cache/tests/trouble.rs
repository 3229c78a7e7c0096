//! Disks that fail, files that others delete: what is not known for certain counts as not cached.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::IFlags;
use tempfile::TempDir;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::cache::files::Files;
use crate::cache::paths::Suffix;
use crate::cache::queue::Pages;
use crate::cache::tests::MIB;
use crate::cache::tests::fill;
use crate::cache::tests::fill_now;
use crate::cache::tests::flip;
use crate::cache::tests::id;
use crate::cache::tests::open;
use crate::cache::tests::readable;
use crate::cache::tests::until;

/// Files below `dir` that this process has open, and that have no name any more.
fn deleted_and_open(dir: &Path) -> Vec<PathBuf> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let paths = open.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    paths.filter(|path| path.starts_with(dir) && path.to_string_lossy().ends_with(" (deleted)")).collect()
}

#[test]
fn a_small_file_that_cannot_be_written_is_read() {
    let dir = TempDir::new().unwrap();
    let cache = open(dir.path());
    let whole = fill(&cache, "s", 1000);
    let path = cache.paths.of(&id("s"), Suffix::One);
    let file = File::open(&path).unwrap();
    // As on a read-only disk: nobody may write to a file of this mode but root, and to an immutable one not even root.
    file.set_permissions(fs::Permissions::from_mode(0o444)).unwrap();
    let is_root = rustix::process::getuid().is_root();
    let flags = is_root.then(|| rustix::fs::ioctl_getflags(&file).unwrap());
    if let Some(flags) = flags {
        rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
    }
    let is_refused = File::options().write(true).open(&path).is_err();
    let found = readable(&cache.entry(&id("s"), 1000), &whole);
    if let Some(flags) = flags {
        rustix::fs::ioctl_setflags(&file, flags).unwrap();
    }
    assert!(is_refused);
    assert_eq!(found, [0]);
}

#[test]
fn a_damaged_block_stays_absent_where_the_map_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let size = 4 * BLOCK_BYTES;
    fill(&open(dir.path()), "a", size);
    let path = |suffix: &str| super::files(dir.path(), suffix).remove(0);
    flip(&path("data"), 2 * BLOCK_BYTES + 9, 1);
    let (data, map) = (File::open(path("data")).unwrap(), File::open(path("map")).unwrap());
    let files = Files::new(id("a"), size, data, map);
    files.load(0..4).unwrap();
    assert_eq!(files.read(&(0..size), true), Err(vec![2]));
    files.load(0..4).unwrap();
    let present: Vec<u64> = (0..4).filter(|index| files.is_present(*index)).collect();
    assert_eq!(present, [0, 1, 3], "the map on disk has it still");
}

#[test]
fn files_that_others_delete_are_not_kept_open() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (cache, other) = (open(&root), open(&root));
    until("scanned", || cache.usage().scanned && other.usage().scanned);
    let whole = fill(&cache, "a", 2 * MIB);
    let entry = cache.entry(&id("a"), 2 * MIB); // as somebody holds it who has closed the file
    assert!(entry.whole_file().is_some());
    other.evict_version(&id("a"), false).unwrap();
    cache.scan();
    assert_eq!(deleted_and_open(&root), Vec::<PathBuf>::new());
    assert_eq!(readable(&entry, &whole), Vec::<u64>::new());
}

#[test]
fn files_that_others_delete_are_closed_when_room_is_needed() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let other = open(&root);
    let (limit_bytes, reserve_bytes) = (u64::MAX, u64::MAX / 2);
    let options = CacheOptions { dir: root.clone(), limit_bytes, reserve_bytes, memory_bytes: MIB };
    let cache = BlockCache::open(options);
    until("looked at the disk", || !cache.admits());
    cache.pin(&id("a"), "me").unwrap(); // it does not evict this itself
    fill(&cache, "a", 2 * MIB);
    let entry = cache.entry(&id("a"), 2 * MIB);
    assert!(entry.whole_file().is_some());
    other.evict_version(&id("a"), true).unwrap();
    cache.keep_within_limits(&mut Some(Instant::now())); // the books are fresh: no scan
    assert_eq!(deleted_and_open(&root), Vec::<PathBuf>::new());
}

#[test]
fn after_a_failed_write_everything_is_checked_again() {
    let dir = TempDir::new().unwrap();
    let size = 4 * BLOCK_BYTES;
    let cache = open(dir.path());
    let failed = || Err(io::Error::from_raw_os_error(libc::EIO));
    let whole = fill(&cache, "a", size);
    let entry = cache.entry(&id("a"), size);
    assert!(entry.whole_file().is_some());
    flip(&super::files(dir.path(), "data")[0], BLOCK_BYTES + 9, 1);
    entry.written(failed());
    assert!(entry.whole_file().is_none() && entry.mapped(&(0..10), Pages::Keep).is_none());
    assert_eq!(readable(&entry, &whole), [0, 2, 3]);

    fill(&cache, "b", size);
    let entry = cache.entry(&id("b"), size);
    assert!(entry.whole_file().is_some(), "closed and opened again in the same process");
    entry.written(failed());
    drop(entry);
    let entry = cache.entry(&id("b"), size);
    assert!(entry.whole_file().is_none(), "nor is it remembered after a close");
    assert!(entry.verify() && entry.whole_file().is_some());
}

#[test]
fn what_was_written_and_did_not_reach_the_disk_is_checked_again() {
    let dir = TempDir::new().unwrap();
    let size = 4 * BLOCK_BYTES;
    let cache = open(dir.path());
    let whole = fill(&cache, "a", size);
    let entry = cache.entry(&id("a"), size);
    assert!(entry.whole_file().is_some());
    flip(&super::files(dir.path(), "data")[0], BLOCK_BYTES + 9, 1);
    cache.writeback.lose();
    assert!(entry.whole_file().is_none() && entry.mapped(&(0..10), Pages::Keep).is_none());
    assert_eq!((cache.usage().lost_writes, cache.usage().bypassed), (1, None), "told, and still in use");
    assert_eq!(readable(&entry, &whole), [0, 2, 3]);
    drop(entry);

    fill(&cache, "b", size);
    let entry = cache.entry(&id("b"), size);
    assert!(entry.mapped(&(0..10), Pages::Keep).is_some());
    cache.writeback.lose();
    cache.notice_losses();
    assert!(entry.mapped(&(0..10), Pages::Keep).is_none(), "noticed while it is open");
    assert!(entry.verify() && entry.whole_file().is_some());
    cache.writeback.lose();
    drop(entry);
    let entry = cache.entry(&id("b"), size);
    assert!(entry.whole_file().is_none(), "nor is it remembered after a close");
    assert!(entry.verify() && entry.whole_file().is_some());

    drop(entry);
    cache.writeback.lose();
    let entry = cache.entry(&id("b"), size);
    assert!(entry.mapped(&(0..10), Pages::Keep).is_none(), "noticed when it is opened again");
    assert!(entry.verify());
    drop(entry);
    fill_now(&cache.entry(&id("c"), size), "c");
    let entry = cache.entry(&id("c"), size);
    assert!(entry.whole_file().is_none(), "what is lost after the close is told to nobody");
    assert!(entry.verify() && entry.whole_file().is_some());
}
