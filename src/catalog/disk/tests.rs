//! Tests of what is kept on disk.

use std::sync::Arc;

use super::*;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::record::Entry;

fn run() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn top() -> Level {
    Level::Directory(run(), DirPath::root())
}

fn below(dir: &str) -> Level {
    Level::Directory(run(), RelPath::parse(dir).unwrap().into())
}

fn file(path: &str, etag: &str) -> RemoteFile {
    RemoteFile {
        key: ObjectKey::from_listing(&format!("d/run/{path}")),
        size_bytes: 1,
        etag: Some(ETag::from_server(etag)),
        modified: SystemTime::UNIX_EPOCH,
    }
}

fn listing(names: &[&str]) -> Listing {
    let entries = names.iter().map(|name| (Arc::from(*name), RemoteEntry::File(file(name, "1"))));
    Listing { entries: entries.collect(), ..Listing::default() }
}

fn snapshot(seq: u64) -> Snapshot {
    let path = RelPath::parse("a").unwrap();
    let entry = Entry {
        path: path.clone(),
        size_bytes: 1,
        cid: ContentId::OF_NOTHING,
        etag: ETag::from_server("1"),
        mtime: SystemTime::UNIX_EPOCH,
        replaced: None,
    };
    Snapshot { seq, entries: [(path, entry)].into(), ..Snapshot::default() }
}

fn open(dir: &tempfile::TempDir) -> Disk {
    Disk::open(&dir.path().join("catalog/r.sqlite"), RemotePrefix::parse("d").unwrap())
}

fn names(disk: &Disk, level: &Level) -> Option<Vec<String>> {
    let stored = disk.load(level)?;
    Some(stored.listing.entries.keys().map(ToString::to_string).collect())
}

#[test]
fn what_was_kept_is_there_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).store(&top(), &listing(&["a", "b"]), 0, || true);
    let disk = open(&dir);
    let stored = disk.load(&top()).unwrap();
    assert_eq!(stored.listing.entries, listing(&["a", "b"]).entries);
    assert!(stored.listed.elapsed().unwrap() < Duration::from_secs(60));
    assert_eq!(disk.dataset(&run()).unwrap().seq, 0);
    assert_eq!(disk.directories(&run()), [DirPath::root()]);
    assert!(disk.load(&Level::Datasets).is_none());
    disk.store(&top(), &listing(&["c"]), 0, || false);
    assert_eq!(names(&disk, &top()).unwrap(), ["a", "b"], "it was not current any more");
}

#[test]
fn all_levels_move_on_together_or_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&dir);
    disk.amend(&run(), &Edits::default(), Some(Step { before: 0, after: &snapshot(1) }));
    disk.store(&top(), &listing(&["a"]), 1, || true);
    disk.store(&below("sub"), &listing(&["x"]), 1, || true);
    let came = RelPath::parse("sub/y").unwrap();
    let edits = Edits::of(&run(), &[(came, file("sub/y", "2"))], &[], &[RelPath::parse("a").unwrap()]);
    disk.amend(&run(), &edits, Some(Step { before: 1, after: &snapshot(2) }));
    assert_eq!(names(&disk, &top()).unwrap(), ["sub"]);
    assert_eq!(names(&disk, &below("sub")).unwrap(), ["x", "y"]);
    let known = disk.dataset(&run()).unwrap();
    assert_eq!((known.seq, known.snapshot.unwrap().entries.len()), (2, 1));
    disk.store(&top(), &listing(&["late"]), 1, || true);
    assert_eq!(names(&disk, &top()).unwrap(), ["sub"], "listed before the dataset moved on");
    // From 3 to 4: what happened between 2 and 3 is not known here.
    disk.amend(&run(), &Edits::default(), Some(Step { before: 3, after: &snapshot(4) }));
    assert!(disk.load(&top()).is_none() && disk.load(&below("sub")).is_none());
    assert_eq!(disk.dataset(&run()).unwrap().seq, 4);
}

#[test]
fn a_first_snapshot_that_comes_late_does_not_undo_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&dir);
    let kept = || disk.dataset(&run()).and_then(|dataset| dataset.snapshot).map(|snapshot| snapshot.seq);
    disk.store(&top(), &listing(&["a"]), 1, || true);
    assert_eq!(kept(), None);
    disk.note(&run(), &snapshot(1));
    assert_eq!(kept(), Some(1));
    disk.amend(&run(), &Edits::default(), Some(Step { before: 1, after: &snapshot(2) }));
    disk.note(&run(), &snapshot(1));
    assert_eq!(kept(), Some(2));
    assert_eq!(names(&disk, &top()), Some(vec!["a".to_owned()]), "no level is lost");
}

#[test]
fn two_processes_share_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(&dir), open(&dir));
    one.store(&top(), &listing(&["a"]), 0, || true);
    assert_eq!(names(&two, &top()).unwrap(), ["a"]);
    two.forget_dataset(&run());
    assert!(one.load(&top()).is_none() && one.dataset(&run()).is_none());
}

#[test]
fn a_damaged_database_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).store(&top(), &listing(&["a"]), 0, || true);
    let path = dir.path().join("catalog/r.sqlite");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let disk = open(&dir);
    assert!(disk.load(&top()).is_none());
    disk.store(&top(), &listing(&["b"]), 0, || true);
    drop(disk);
    assert_eq!(names(&open(&dir), &top()).unwrap(), ["b"]);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(open(&dir).load(&top()).is_none(), "another version's tables are not read");
}

#[test]
fn a_database_that_cannot_be_opened_now_is_there_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).store(&top(), &listing(&["a"]), 0, || true);
    // As on a full disk, the file that processes share beside the database cannot be made.
    let shared = dir.path().join("catalog/r.sqlite-shm");
    std::os::unix::fs::symlink(&shared, &shared).unwrap();
    let disk = open(&dir);
    disk.store(&top(), &listing(&["b"]), 0, || true);
    assert!(disk.load(&top()).is_none(), "it is done without");
    drop(disk);
    fs::remove_file(&shared).unwrap();
    assert_eq!(names(&open(&dir), &top()).unwrap(), ["a"]);
}

#[test]
fn a_damaged_level_is_only_that_level() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&dir);
    disk.store(&top(), &listing(&["a"]), 0, || true);
    disk.store(&below("sub"), &listing(&["b"]), 0, || true);
    disk.with(|connection| Ok(connection.execute("UPDATE levels SET body = x'00' WHERE dir = ''", [])?));
    assert!(disk.load(&top()).is_none());
    assert_eq!(names(&disk, &below("sub")).unwrap(), ["b"]);
}

#[test]
fn a_place_that_cannot_be_written_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("catalog"), "a file").unwrap();
    let disk = open(&dir);
    disk.store(&top(), &listing(&["a"]), 0, || true);
    assert!(disk.load(&top()).is_none());
    assert_eq!(disk.usage(), DiskUsage::default());
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk { bytes_max: 100_000, ..open(&dir) };
    let names: Vec<String> = (0..2000).map(|n| format!("{:x}", n * 7_919_u64 * 104_729)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for number in 0..20 {
        disk.store(&below(&format!("d{number:02}")), &listing(&names), 0, || true);
        let sql = "UPDATE levels SET used = ?1 WHERE dir = ?2";
        disk.with(|connection| Ok(connection.execute(sql, params![number, format!("d{number:02}")])?));
    }
    assert!(disk.usage().bytes <= 100_000, "{:?}", disk.usage());
    assert!(disk.load(&below("d00")).is_none());
    assert!(disk.load(&below("d19")).is_some());
}
