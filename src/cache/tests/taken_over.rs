//! Local files that become the cache's.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::XattrFlags;
use tempfile::TempDir;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::cache::format;
use crate::cache::one::ENTRY_ATTRIBUTE;
use crate::cache::paths::Suffix;
use crate::cache::tests::FileDamage;
use crate::cache::tests::MIB;
use crate::cache::tests::content;
use crate::cache::tests::fill;
use crate::cache::tests::flip;
use crate::cache::tests::id;
use crate::cache::tests::open;
use crate::cache::tests::open_with;
use crate::cache::tests::readable;
use crate::cache::tests::store;
use crate::cache::tests::until;
use crate::clock::Clock;
use crate::clock::SystemClock;

const LONG_AGO: Duration = Duration::from_secs(86_400);

/// Whether files in `dir` can have attributes of the user's; if they cannot, files are copied.
fn has_attributes(dir: &Path) -> bool {
    let probe = dir.join("probe");
    fs::write(&probe, b"").unwrap();
    rustix::fs::setxattr(&probe, ENTRY_ATTRIBUTE, b"1", XattrFlags::empty()).is_ok()
}

/// A file as staging leaves it, last modified a day ago.
fn staged(dir: &Path, whole: &[u8]) -> std::path::PathBuf {
    let path = dir.join("staged");
    fs::write(&path, whole).unwrap();
    File::open(&path).unwrap().set_modified(SystemClock.now() - LONG_AGO).unwrap();
    path
}

#[test]
fn a_local_file_is_taken_over_and_not_copied() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir.path().join("cache"));
    let linked = has_attributes(dir.path());
    for size in [0, 5, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * MIB + 7] {
        let name = format!("n{size}");
        let whole = content(&name, size);
        let path = staged(dir.path(), &whole);
        let before = fs::metadata(&path).unwrap();
        assert!(cache.admit_file(&id(&name), &path, size + 1).is_err());
        let entry = cache.entry(&id(&name), size);
        assert_eq!(readable(&entry, &whole), Vec::<u64>::new());
        cache.admit_file(&id(&name), &path, size).unwrap();
        let is_small = size <= BLOCK_BYTES;
        let suffix = if is_small { Suffix::One } else { Suffix::Data };
        let after = fs::metadata(cache.paths.of(&id(&name), suffix)).unwrap();
        assert_eq!(path.exists(), is_small, "a small one has two names, or is copied");
        assert_eq!(after.ino() == before.ino(), linked || !is_small);
        assert!(
            after.ino() != before.ino() || after.mtime() == before.mtime(),
            "who has it open sees no change"
        );
        assert_eq!(readable(&entry, &whole).len() as u64, block::count(size));
        assert_eq!(entry.whole_file().is_some(), size > BLOCK_BYTES);
        assert_eq!(cache.check(&id(&name)).bytes, size);
        drop(entry);
        let other = open(&dir.path().join("cache"));
        assert_eq!(readable(&other.entry(&id(&name), size), &whole).len() as u64, block::count(size));
        // A resumed commit does it again, over what is there.
        let path = staged(dir.path(), &whole);
        cache.admit_file(&id(&name), &path, size).unwrap();
        assert_eq!(readable(&cache.entry(&id(&name), size), &whole).len() as u64, block::count(size));
        fs::remove_file(&path).ok();
        assert_eq!(readable(&cache.entry(&id(&name), size), &whole).len() as u64, block::count(size));
    }
}

#[test]
fn a_file_taken_over_is_sound_or_not_there() {
    let dir = TempDir::new().unwrap();
    let size = 1000;
    let attribute = |path: &Path, id: &str, index: u64, crc: u32| {
        let entry = format::entry(&super::id(id), index, crc).to_le_bytes();
        rustix::fs::setxattr(path, ENTRY_ATTRIBUTE, &entry, XattrFlags::empty()).unwrap();
    };
    let whole = content("a", size);
    let crc = crc32c::crc32c(&whole);
    let set_len = |path: &Path, len| OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
    let damage: [FileDamage<'_>; 9] = [
        ("content", &|path| flip(path, 700, 3)),
        ("truncated", &|path| set_len(path, size - 1)),
        ("grown", &|path| set_len(path, size + 1)),
        ("as long as one with a header", &|path| set_len(path, size + 64)),
        ("no entry", &|path| rustix::fs::removexattr(path, ENTRY_ATTRIBUTE).unwrap()),
        ("half an entry", &|path| {
            rustix::fs::setxattr(path, ENTRY_ATTRIBUTE, &[0; 4], XattrFlags::empty()).unwrap();
        }),
        ("another version's entry", &|path| attribute(path, "b", 0, crc)),
        ("another block's entry", &|path| attribute(path, "a", 1, crc)),
        ("another checksum", &|path| attribute(path, "a", 0, crc ^ 1)),
    ];
    assert!(has_attributes(dir.path()), "a file system with extended attributes is needed: set TMPDIR");
    for (what, damage) in damage {
        let cache = open(&dir.path().join("cache"));
        let path = staged(dir.path(), &whole);
        cache.evict_version(&id("a"), true).unwrap();
        cache.admit_file(&id("a"), &path, size).unwrap();
        let entry = cache.entry(&id("a"), size);
        assert_eq!(readable(&entry, &whole), [0]);
        damage(&cache.paths.of(&id("a"), Suffix::One));
        assert_eq!(readable(&entry, &whole), Vec::<u64>::new(), "{what}");
        store(&entry, &whole, 0..1);
        assert_eq!(readable(&entry, &whole), [0], "{what}");
    }
}

#[test]
fn an_old_file_that_was_taken_over_was_used_just_now() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("cache");
    let old = SystemClock.now() - LONG_AGO / 2;
    {
        let cache = open(&root);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            fill(&cache, name, BLOCK_BYTES);
            File::open(cache.paths.of(&id(name), Suffix::One)).unwrap().set_modified(old).unwrap();
        }
        let path = staged(dir.path(), &content("new", BLOCK_BYTES));
        cache.admit_file(&id("new"), &path, BLOCK_BYTES).unwrap();
        fs::remove_file(&path).unwrap();
    }
    let cache = open_with(&root, 6 * (BLOCK_BYTES + 4096));
    until("evicted", || cache.usage().evicted_files > 2);
    assert_eq!(cache.check(&id("new")).bytes, BLOCK_BYTES);
}

#[test]
fn what_nobody_may_write_is_taken_over_too() {
    let dir = TempDir::new().unwrap();
    let cache = open(&dir.path().join("cache"));
    for size in [5, BLOCK_BYTES + 1] {
        let name = format!("n{size}");
        let path = staged(dir.path(), &content(&name, size));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        cache.admit_file(&id(&name), &path, size).unwrap();
        let suffix = if size == 5 { Suffix::One } else { Suffix::Data };
        let mode = fs::metadata(cache.paths.of(&id(&name), suffix)).unwrap().mode();
        assert_eq!(mode & 0o600, 0o600, "the cache opens its files for reading and writing");
    }
}
