//! Promises of the module, one by one.

mod datasets;

use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::name::DirPath;
use crate::name::ETag;

use super::*;

fn name() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn dir(text: &str) -> DirPath {
    if text.is_empty() { DirPath::root() } else { path(text).into() }
}

struct Area {
    root: TempDir,
    staging: Option<Staging>,
}

impl Area {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let staging = Some(Staging::open(root.path(), &Holder::default()).unwrap());
        Self { root, staging }
    }

    fn dataset(&self) -> Arc<StagedDataset> {
        self.staging.as_ref().unwrap().create_dataset(&name()).unwrap()
    }

    /// What a restart of the process does.
    fn reopen(&mut self) -> Arc<StagedDataset> {
        self.staging = None;
        self.staging = Some(Staging::open(self.root.path(), &Holder::default()).unwrap());
        self.dataset()
    }

    fn on_disk(&self, place: &str) -> PathBuf {
        self.root.path().join("datasets/run").join(place)
    }
}

fn write(dataset: &Arc<StagedDataset>, at: &str, content: &str) {
    dataset.create_file(&path(at), 0o644).unwrap().write_all_at(content.as_bytes(), 0).unwrap();
}

fn read(dataset: &Arc<StagedDataset>, at: &str) -> String {
    let mut text = String::new();
    (&*dataset.open_file(&path(at), Access::Read, false).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn names(dataset: &StagedDataset, at: &str) -> Vec<String> {
    let mut names: Vec<String> =
        dataset.read_dir(&dir(at)).unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

fn paths(contents: &Contents) -> Vec<&str> {
    contents.files.iter().map(|file| file.path.as_str()).collect()
}

fn errno<T: std::fmt::Debug>(result: Result<T, StagingError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn a_file_is_there_as_it_was_written() {
    let area = Area::new();
    let dataset = area.dataset();
    let file = dataset.create_file(&path("a/b/data"), 0o755).unwrap();
    file.write_all_at(b"hello", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(errno(dataset.create_file(&path("a/b/data"), 0o644)), libc::EEXIST);
    let attr = dataset.lookup(&path("a/b/data")).unwrap().unwrap();
    assert_eq!((attr.kind, attr.size_bytes, attr.mode), (StagedKind::File, 5, 0o755));
    assert_eq!(file.attr().unwrap(), attr);
    let time = SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_001);
    dataset.set_times(&path("a/b/data"), None, Some(time)).unwrap();
    dataset.set_mode(&path("a/b/data"), 0).unwrap();
    dataset.set_len(&path("a/b/data"), 4).ok();
    let attr = dataset.lookup(&path("a/b/data")).unwrap().unwrap();
    assert_eq!(attr.mode, 0o400, "a commit has to read it");
    dataset.set_mode(&path("a/b/data"), 0o644).unwrap();
    dataset.set_len(&path("a/b/data"), 3).unwrap();
    dataset.set_times(&path("a/b/data"), None, Some(time)).unwrap();
    let attr = dataset.lookup(&path("a/b/data")).unwrap().unwrap();
    assert_eq!((attr.size_bytes, attr.modified), (3, time));
    assert_eq!(names(&dataset, ""), ["a"]);
    assert_eq!(names(&dataset, "a/b"), ["data"]);
    assert!(names(&dataset, "nowhere").is_empty());
    assert!(dataset.lookup(&path("a/b/data/x")).unwrap().is_none());
    assert_eq!(errno(dataset.create_file(&path("a/b/data/x"), 0o644)), libc::ENOTDIR);
    assert_eq!(errno(dataset.open_file(&path("a"), Access::Read, false)), libc::EISDIR);
    drop(dataset.open_file(&path("a/b/data"), Access::ReadWrite, true).unwrap());
    assert_eq!(read(&dataset, "a/b/data"), "");
}

#[test]
fn names_are_kept_byte_for_byte() {
    let mut area = Area::new();
    let dataset = area.dataset();
    let odd = ["a b", "%2F+", "new\nline", "é", "e\u{301}", "...", "-rf", "\\", &"x".repeat(255)];
    for name in odd {
        write(&dataset, name, name);
    }
    drop(dataset);
    let dataset = area.reopen();
    let mut expected: Vec<String> = odd.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(names(&dataset, ""), expected);
    assert_eq!(read(&dataset, "new\nline"), "new\nline");
}

#[test]
fn renames_answer_as_the_kernel_does() {
    let area = Area::new();
    let dataset = area.dataset();
    let rename = |from: &str, to: &str| dataset.rename(&path(from), &path(to), false);
    write(&dataset, "a/one", "1");
    write(&dataset, "two", "2");
    dataset.mkdir(&path("empty"), 0o755).unwrap();
    assert_eq!(errno(rename("nowhere", "x")), libc::ENOENT);
    assert_eq!(errno(rename("a", "a/b/c")), libc::EINVAL);
    assert_eq!(names(&dataset, "a"), ["one"], "nothing was made on the way");
    assert_eq!(errno(rename("empty", "a")), libc::ENOTEMPTY);
    assert_eq!(errno(rename("two", "a")), libc::EISDIR);
    assert_eq!(errno(rename("a", "two")), libc::ENOTDIR);
    assert_eq!(errno(dataset.rename(&path("two"), &path("a/one"), true)), libc::EEXIST);
    rename("two", "two").unwrap();
    rename("two", "a/one").unwrap();
    assert_eq!(read(&dataset, "a/one"), "2");
    rename("a", "empty").unwrap();
    assert_eq!(names(&dataset, ""), ["empty"]);
    rename("empty/one", "far/away/one").unwrap();
    assert_eq!(names(&dataset, "far/away"), ["one"]);
    assert_eq!(names(&dataset, ""), ["empty", "far"], "it had been made on purpose, or got its name so");
    assert_eq!(errno(dataset.rmdir(&path("far"))), libc::ENOTEMPTY);
    assert_eq!(errno(dataset.unlink(&path("far"))), libc::EISDIR);
    assert_eq!(errno(dataset.rmdir(&path("far/away/one"))), libc::ENOTDIR);
    assert_eq!(errno(dataset.mkdir(&path("far"), 0o755)), libc::EEXIST);
}

#[test]
fn unlinked_files_live_on_in_their_handles() {
    let area = Area::new();
    let dataset = area.dataset();
    let file = dataset.create_file(&path("f"), 0o644).unwrap();
    dataset.unlink(&path("f")).unwrap();
    file.write_all_at(b"still here", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.attr().unwrap().size_bytes, 10);
    write(&dataset, "f", "another");
    dataset.freeze("tx").unwrap();
    assert_eq!(errno(dataset.unlink(&path("f"))), libc::EBUSY);
}

#[test]
fn implicit_directories_go_with_their_last_file() {
    let area = Area::new();
    let dataset = area.dataset();
    write(&dataset, "a/b/f", "");
    dataset.mkdir(&path("kept"), 0o755).unwrap();
    write(&dataset, "kept/deep/f", "");
    dataset.rename(&path("a/b/f"), &path("a/g"), false).unwrap();
    assert_eq!(names(&dataset, "a"), ["g"]);
    dataset.unlink(&path("a/g")).unwrap();
    dataset.unlink(&path("kept/deep/f")).unwrap();
    assert_eq!(names(&dataset, ""), ["kept"]);
    let contents = dataset.contents().unwrap();
    assert_eq!(contents.empty_directories, [dir("kept")]);
    assert!(contents.files.is_empty());
    write(&dataset, "file", "");
    assert_eq!(errno(dataset.create_file(&path("file/x/y"), 0o644)), libc::ENOTDIR);
}

#[test]
fn freezing_waits_for_writers_whatever_their_name_is_now() {
    let area = Area::new();
    let dataset = area.dataset();
    write(&dataset, "closed", "");
    let first = dataset.create_file(&path("a/first"), 0o644).unwrap();
    let again = dataset.open_file(&path("a/first"), Access::ReadWrite, false).unwrap();
    let reader = dataset.open_file(&path("closed"), Access::Read, false).unwrap();
    dataset.rename(&path("a"), &path("b"), false).unwrap();
    dataset.rename(&path("b/first"), &path("b/second"), false).unwrap();
    for writer in [first, again] {
        match dataset.freeze("tx") {
            Err(StagingError::OpenForWriting { paths }) => assert_eq!(paths, [path("b/second")]),
            other => panic!("{other:?}"),
        }
        drop(writer);
    }
    let sealed = dataset.freeze("tx").unwrap();
    reader.sync_all().unwrap();
    assert_eq!(paths(&sealed.contents().unwrap()), ["b/second", "closed"]);
    assert!(matches!(dataset.freeze("ty"), Err(StagingError::AlreadySealed { .. })));
}

#[test]
fn a_replaced_file_does_not_hold_a_commit_up() {
    let area = Area::new();
    let dataset = area.dataset();
    let old = dataset.create_file(&path("f"), 0o644).unwrap();
    write(&dataset, "new", "new");
    dataset.rename(&path("new"), &path("f"), false).unwrap();
    dataset.freeze("tx").unwrap();
    drop(old);
    assert_eq!(read(&dataset, "f"), "new");
}

#[test]
fn sealed_files_cannot_be_changed_and_new_ones_join_them() {
    let area = Area::new();
    let dataset = area.dataset();
    write(&dataset, "d/f", "sealed");
    dataset.mkdir(&path("empty"), 0o755).unwrap();
    let sealed = dataset.freeze("tx").unwrap();
    let f = path("d/f");
    for result in [
        dataset.open_file(&f, Access::ReadWrite, false).map(drop),
        dataset.open_file(&f, Access::Read, true).map(drop),
        dataset.unlink(&f),
        dataset.rename(&f, &path("g"), false),
        dataset.rename(&path("d"), &path("g"), false),
        dataset.set_len(&f, 0),
        dataset.set_mode(&f, 0o600),
        dataset.set_times(&f, None, Some(SystemTime::UNIX_EPOCH)),
        dataset.rmdir(&path("empty")),
        dataset.discard(&dir("d")),
    ] {
        assert!(matches!(result, Err(StagingError::Sealed { .. })), "{result:?}");
    }
    assert_eq!(errno(dataset.create_file(&f, 0o644)), libc::EEXIST);
    assert_eq!(errno(dataset.mkdir(&f, 0o755)), libc::EEXIST);
    assert_eq!(errno(dataset.create_file(&path("d/f/below"), 0o644)), libc::ENOTDIR);
    assert_eq!(errno(dataset.rmdir(&path("d"))), libc::ENOTEMPTY);
    write(&dataset, "d/new", "new");
    let over = dataset.rename(&path("d/new"), &f, false);
    assert!(matches!(over, Err(StagingError::Sealed { .. })), "{over:?}");
    assert_eq!(names(&dataset, "d"), ["f", "new"]);
    assert_eq!(dataset.lookup(&f).unwrap().unwrap().state, StagedState::Sealed);
    assert_eq!(read(&dataset, "d/f"), "sealed");
    let mut text = String::new();
    sealed.open_file(&f).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "sealed");
}

#[test]
fn thawing_merges_and_loses_nothing() {
    let mut area = Area::new();
    let dataset = area.dataset();
    let base = |kind| Base { etag: ETag::from_server("e"), size_bytes: 1, kind };
    write(&dataset, "d/old", "old");
    write(&dataset, "top", "top");
    dataset.mkdir(&path("purpose"), 0o755).unwrap();
    dataset.set_base(&path("top"), &base(BaseKind::Replace)).unwrap();
    let sealed = dataset.freeze("tx").unwrap();
    write(&dataset, "d/new", "new");
    write(&dataset, "purpose/x", "x");
    dataset.set_base(&path("d/gone"), &base(BaseKind::Delete)).unwrap();
    dataset.thaw(&sealed).unwrap();
    dataset.thaw(&sealed).unwrap();
    dataset.unlink(&path("purpose/x")).unwrap();
    for dataset in [dataset, area.reopen()] {
        let contents = dataset.contents().unwrap();
        assert_eq!(paths(&contents), ["d/new", "d/old", "top"]);
        assert_eq!(contents.empty_directories, [dir("purpose")]);
        assert_eq!(contents.bases.len(), 2);
        assert_eq!(dataset.deletions(&dir("d")), ["gone"]);
        assert_eq!(dataset.base(&path("top")), Some(base(BaseKind::Replace)));
        assert!(dataset.sealed().is_none());
        assert!(!area.on_disk("thawing/tx").exists());
        drop(dataset.open_file(&path("d/old"), Access::ReadWrite, false).unwrap());
    }
}

#[test]
fn finishing_leaves_nothing_behind() {
    let area = Area::new();
    let dataset = area.dataset();
    write(&dataset, "d/f", "");
    let sealed = dataset.freeze("tx").unwrap();
    dataset.finish(&sealed).unwrap();
    dataset.finish(&sealed).unwrap();
    assert!(!dataset.exists());
    assert!(!area.on_disk("").exists());
    assert!(area.staging.as_ref().unwrap().datasets().is_empty());
    write(&dataset, "again", "");
    assert_eq!(area.staging.as_ref().unwrap().datasets(), [name()]);
    let sealed = dataset.freeze("ty").unwrap();
    write(&dataset, "later", "");
    dataset.finish(&sealed).unwrap();
    assert_eq!(names(&dataset, ""), ["later"]);
}

/// Every state that a crash can leave on the disk, made by hand: the deciding renames are atomic,
/// so these are all there are.
#[test]
#[expect(clippy::disallowed_methods, reason = "makes what a crash would leave")]
fn a_crash_anywhere_is_finished_or_undone_at_the_next_open() {
    let mut area = Area::new();
    let dataset = area.dataset();
    write(&dataset, "d/one", "1");
    write(&dataset, "d/two", "2");
    // Freeze: `sealed` was made, the rename has not happened.
    fs::create_dir(area.on_disk("sealed")).unwrap();
    let dataset = {
        drop(dataset);
        area.reopen()
    };
    assert!(dataset.sealed().is_none());
    let sealed = dataset.freeze("tx").unwrap();
    fs::write(sealed.journal_path(), "journal").unwrap();
    write(&dataset, "d/three", "3");
    // Frozen, and nothing more.
    let dataset = {
        drop(dataset);
        area.reopen()
    };
    assert_eq!(dataset.sealed().unwrap().txid(), "tx");
    assert_eq!(names(&dataset, "d"), ["one", "three", "two"]);
    // Thaw: decided, and one file moved back.
    fs::create_dir(area.on_disk("thawing")).unwrap();
    fs::rename(area.on_disk("sealed/tx"), area.on_disk("thawing/tx")).unwrap();
    fs::rename(area.on_disk("thawing/tx/tree/d/one"), area.on_disk("open/tree/d/one")).unwrap();
    let dataset = {
        drop(dataset);
        area.reopen()
    };
    assert!(dataset.sealed().is_none());
    assert_eq!(paths(&dataset.contents().unwrap()), ["d/one", "d/three", "d/two"]);
    assert!(!area.on_disk("thawing/tx").exists());
    // Thaw: everything moved, the directory not removed.
    fs::create_dir_all(area.on_disk("thawing/tx/tree")).unwrap();
    let dataset = {
        drop(dataset);
        area.reopen()
    };
    assert!(!area.on_disk("thawing/tx").exists());
    // Finish: decided, half of it removed.
    dataset.freeze("ty").unwrap();
    fs::create_dir_all(area.on_disk("done")).unwrap();
    fs::rename(area.on_disk("sealed/ty"), area.on_disk("done/ty")).unwrap();
    fs::remove_file(area.on_disk("done/ty/tree/d/one")).unwrap();
    drop(dataset);
    area.staging = None;
    let staging = Staging::open(area.root.path(), &Holder::default()).unwrap();
    assert!(!area.on_disk("done/ty").exists());
    assert!(staging.datasets().is_empty());
}

#[test]
fn many_finished_files_go_while_nobody_waits() {
    let mut area = Area::new();
    let dataset = area.dataset();
    for number in 0..100 {
        write(&dataset, &format!("d/{number:03}"), "x");
    }
    let sealed = dataset.freeze("tx").unwrap();
    dataset.finish(&sealed).unwrap();
    assert!(dataset.sealed().is_none() && !dataset.exists());
    assert!(area.staging.as_ref().unwrap().datasets().is_empty());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while area.on_disk("done/tx").exists() {
        assert!(std::time::Instant::now() < deadline, "they are still there");
        std::thread::yield_now();
    }
    // Not all of it was removed when the process ended.
    fs::create_dir_all(area.on_disk("done/ty")).unwrap();
    (0..100).for_each(|number| fs::write(area.on_disk(&format!("done/ty/{number}")), b"x").unwrap());
    drop(dataset);
    let dataset = area.reopen();
    assert!(dataset.contents().unwrap().is_empty());
    while area.on_disk("done/ty").exists() {
        assert!(std::time::Instant::now() < deadline, "they are still there");
        std::thread::yield_now();
    }
}

#[test]
fn two_processes_cannot_share_a_staging_area() {
    let root = tempfile::tempdir().unwrap();
    let holder = Holder { pid: 42, socket: Some("/run/s".into()), ..Holder::default() };
    assert_eq!(Staging::holder(root.path()).unwrap(), None);
    let first = Staging::open(root.path(), &holder).unwrap();
    match Staging::open(root.path(), &Holder::default()) {
        Err(StagingError::Locked { holder: named }) => assert_eq!(named, holder),
        other => panic!("{other:?}"),
    }
    assert_eq!(Staging::holder(root.path()).unwrap(), Some(holder.clone()));
    first.mark_detached().unwrap();
    assert_eq!(Staging::holder(root.path()).unwrap(), Some(Holder { detached: true, ..holder }));
    drop(first);
    assert_eq!(Staging::holder(root.path()).unwrap(), None);
    Staging::open(root.path(), &Holder::default()).unwrap();
}

#[test]
fn nothing_follows_a_symbolic_link() {
    let area = Area::new();
    let dataset = area.dataset();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    write(&dataset, "real/file", "");
    symlink(outside.path(), area.on_disk("open/tree/link")).unwrap();
    symlink(outside.path().join("secret"), area.on_disk("open/tree/real/alias")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        area.on_disk("open/tree/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    for at in ["link", "link/secret", "real/alias", "pipe"] {
        assert!(dataset.lookup(&path(at)).unwrap().is_none(), "{at}");
        assert!(dataset.open_file(&path(at), Access::ReadWrite, true).is_err(), "{at}");
        assert!(dataset.create_file(&path(at), 0o644).is_err(), "{at}");
        assert!(dataset.set_mode(&path(at), 0o777).is_err(), "{at}");
    }
    assert!(dataset.create_file(&path("link/new"), 0o644).is_err());
    assert!(dataset.rename(&path("real/file"), &path("link/file"), false).is_err());
    assert_eq!(names(&dataset, ""), ["real"]);
    match dataset.freeze("tx") {
        Err(StagingError::Foreign { mut paths }) => {
            paths.sort();
            assert_eq!(paths, ["link", "pipe", "real/alias"]);
        }
        other => panic!("{other:?}"),
    }
    let summary = Staging::inspect(area.root.path()).unwrap();
    assert_eq!((summary[0].files, summary[0].foreign.len()), (1, 3));
    dataset.discard(&DirPath::root()).unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
}

#[test]
fn discarding_forgets_a_part_or_all() {
    let area = Area::new();
    let dataset = area.dataset();
    for at in ["a/one", "a/b/two", "c"] {
        write(&dataset, at, at);
    }
    let base = Base { etag: ETag::from_server("e"), size_bytes: 1, kind: BaseKind::Delete };
    dataset.set_base(&path("a/b/gone"), &base).unwrap();
    let writer = dataset.open_file(&path("a/b/two"), Access::ReadWrite, false).unwrap();
    dataset.discard(&dir("a/b")).unwrap();
    writer.sync_all().unwrap();
    assert_eq!(paths(&dataset.contents().unwrap()), ["a/one", "c"]);
    assert!(dataset.deletions(&dir("a/b")).is_empty());
    dataset.discard(&dir("c")).unwrap();
    dataset.discard(&dir("nowhere")).unwrap();
    assert_eq!(paths(&dataset.contents().unwrap()), ["a/one"]);
    dataset.discard(&DirPath::root()).unwrap();
    assert!(!dataset.exists());
    assert!(!area.on_disk("").exists());
}

#[test]
fn a_full_disk_is_enospc() {
    let area = Area::new();
    let dataset = area.dataset();
    let err = dataset.failed(&path("f"), io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!(err.errno(), libc::ENOSPC);
    assert_eq!(err.to_string(), "run/f: No space left on device (os error 28)");
}

#[test]
fn ten_thousand_files_and_deep_trees_are_fast() {
    let area = Area::new();
    let dataset = area.dataset();
    let started = Instant::now();
    let deep = vec!["d"; 200].join("/");
    write(&dataset, &format!("{deep}/f"), "");
    for i in 0..10_000 {
        drop(dataset.create_file(&path(&format!("frames/{i:05}.png")), 0o644).unwrap());
    }
    for i in 0..10_000 {
        assert!(dataset.lookup(&path(&format!("frames/{i:05}.png"))).unwrap().is_some());
    }
    assert_eq!(dataset.read_dir(&dir("frames")).unwrap().len(), 10_000);
    assert_eq!(dataset.contents().unwrap().files.len(), 10_001);
    for i in 0..10_000 {
        dataset.unlink(&path(&format!("frames/{i:05}.png"))).unwrap();
    }
    // Far below what one scan per operation would take, far above what a busy machine needs.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// Not a test of its own: the process that the next test kills. Its working directory is the
/// staging area; it prints the number of each file that is safe.
#[test]
#[ignore = "run by acknowledged_files_survive_kill_9"]
fn writer_to_be_killed() {
    let staging = Staging::open(Path::new("."), &Holder::default()).unwrap();
    let dataset = staging.create_dataset(&name()).unwrap();
    let mut out = fs::OpenOptions::new().append(true).open("acknowledged").unwrap();
    for i in 0..100_000 {
        let file = dataset.create_file(&path(&format!("d{}/{i}", i % 7)), 0o644).unwrap();
        file.write_all_at(&vec![b'x'; 1000 + i % 100], 0).unwrap();
        file.sync_all().unwrap();
        out.write_all(format!("{i}\n").as_bytes()).unwrap();
    }
}

#[test]
fn acknowledged_files_survive_kill_9() {
    let root = tempfile::tempdir().unwrap();
    let acknowledged = root.path().join("acknowledged");
    fs::write(&acknowledged, "").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "staging::tests::writer_to_be_killed", "--ignored"])
        .current_dir(root.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&acknowledged).unwrap().lines().count() < 50 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let staging = Staging::open(root.path(), &Holder::default()).unwrap();
    let dataset = staging.dataset(&name()).unwrap();
    let count = fs::read_to_string(&acknowledged).unwrap().lines().count();
    assert!(count >= 50);
    for i in 0..count {
        let attr = dataset.lookup(&path(&format!("d{}/{i}", i % 7))).unwrap().unwrap();
        assert_eq!(attr.size_bytes, 1000 + (i % 100) as u64);
    }
    dataset.freeze("tx").unwrap();
}
