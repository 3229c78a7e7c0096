//! Disks that fail: what is not known for certain counts as not cached.

use std::fs::File;

use rustix::fs::IFlags;
use tempfile::TempDir;

use crate::block::BLOCK_BYTES;
use crate::cache::files::Files;
use crate::cache::paths::Suffix;
use crate::cache::tests::fill;
use crate::cache::tests::flip;
use crate::cache::tests::id;
use crate::cache::tests::open;
use crate::cache::tests::readable;

#[test]
fn a_small_file_that_cannot_be_written_is_read() {
    let dir = TempDir::new().unwrap();
    let cache = open(dir.path());
    let whole = fill(&cache, "s", 1000);
    let file = File::open(cache.paths.of(&id("s"), Suffix::One)).unwrap();
    // As on a read-only disk, where the file system can do that to a single file.
    let flags = rustix::fs::ioctl_getflags(&file).unwrap_or(IFlags::empty());
    let is_immutable = rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).is_ok();
    let found = readable(&cache.entry(&id("s"), 1000), &whole);
    if is_immutable {
        rustix::fs::ioctl_setflags(&file, flags).unwrap();
    }
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
