//! Other machines' commits, as a mount sees them: whole, or not at all.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use std::time::SystemTime;

use dsfs::name::DatasetName;
use dsfs::name::RelPath;
use dsfs::name::RemotePrefix;
use dsfs::record::Author;
use dsfs::record::Changes;
use dsfs::record::CommitBody;
use dsfs::record::CommitRecord;
use dsfs::record::ContentId;
use dsfs::record::Entry;
use dsfs::record::Intent;
use dsfs::record::Outcome;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::key;
use crate::common::mount::wait_until;

const TXID: &str = "01JD00000000000000000000TX";

fn run() -> DatasetName {
    DatasetName::parse("run").unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn author() -> Author {
    Author { user: "ada".into(), host: "lab".into() }
}

/// Announces that these files are about to be created in `run`.
fn announce(mount: &TestMount, creates: &[&str]) {
    let intent = Intent {
        dataset: run(),
        txid: TXID.into(),
        author: author(),
        time: SystemTime::now(),
        creates: creates.iter().map(|text| path(text)).collect(),
        markers: vec![],
        replaces: vec![],
        deletes: vec![],
        deleting: None,
    };
    mount.store.overwrite_out_of_band(&intent_key(), intent.encode().unwrap());
}

fn intent_key() -> dsfs::name::ObjectKey {
    RemotePrefix::parse("datasets/").unwrap().intent_key(&run(), TXID)
}

/// Records the commit of these files, with their versions.
fn record(mount: &TestMount, files: Vec<(&str, dsfs::name::ETag)>) {
    let entries = files.into_iter().map(|(text, etag)| Entry {
        path: path(text),
        size_bytes: 1,
        cid: ContentId::OF_NOTHING,
        etag,
        mtime: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        replaced: None,
    });
    let changes = Changes { entries: entries.collect(), ..Changes::default() };
    let body = CommitBody {
        dataset: run(),
        seq: 1,
        txid: TXID.into(),
        author: author(),
        time: SystemTime::now(),
        message: None,
        changes,
        base: None,
        tail: Changes::default(),
    };
    let record = CommitRecord { outcome: Outcome::Commit, body };
    let key = RemotePrefix::parse("datasets/").unwrap().log_key(&run(), 1);
    mount.store.overwrite_out_of_band(&key, record.encode().unwrap());
}

fn names(mount: &TestMount, dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(mount.path(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn quick() -> Setup {
    Setup { catalog_ttl: Duration::from_millis(100), ..Setup::default() }
}

#[test]
fn half_a_commit_is_invisible_and_then_all_of_it_is_there() {
    let mount = TestMount::with(&quick());
    mount.publish("run/foreign", "f");
    announce(&mount, &["a", "new/b", "data.jsonl"]);
    let a = mount.publish("run/a", "1");
    let b = mount.publish("run/new/b", "2");
    assert_eq!(names(&mount, "run"), set(["foreign"]));
    assert!(!mount.path("run/a").exists());
    assert!(!mount.path("run/new").exists());
    let marker = mount.publish("run/data.jsonl", "3");
    record(&mount, vec![("a", a), ("new/b", b), ("data.jsonl", marker)]);
    wait_until("the commit", || mount.path("run/data.jsonl").exists());
    assert_eq!(names(&mount, "run"), set(["a", "data.jsonl", "foreign", "new"]));
    assert_eq!(fs::read(mount.path("run/new/b")).unwrap(), b"2");
    let time = fs::metadata(mount.path("run/a")).unwrap().modified().unwrap();
    assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000), "the file's own time");
}

#[test]
fn a_dataset_appears_with_its_first_commit() {
    let mount = TestMount::with(&quick());
    announce(&mount, &["a"]);
    let a = mount.publish("run/a", "1");
    assert_eq!(names(&mount, ""), set([]));
    assert!(!mount.path("run").exists());
    record(&mount, vec![("a", a)]);
    mount.store.delete_out_of_band(&intent_key());
    wait_until("the dataset", || mount.path("run/a").exists());
    assert_eq!(names(&mount, ""), set(["run"]));
}

#[test]
fn foreign_files_in_a_directory_that_a_commit_makes_are_shown() {
    let mount = TestMount::with(&quick());
    announce(&mount, &["new/b"]);
    mount.publish("run/new/b", "2");
    mount.publish("run/new/foreign", "f");
    assert_eq!(names(&mount, "run"), set(["new"]));
    assert_eq!(names(&mount, "run/new"), set(["foreign"]));
}

#[test]
fn what_another_tool_deletes_after_the_commit_is_gone() {
    let mount = TestMount::with(&quick());
    let (a, b) = (mount.publish("run/a", "1"), mount.publish("run/b", "2"));
    record(&mount, vec![("a", a), ("b", b)]);
    assert_eq!(names(&mount, "run"), set(["a", "b"]));
    mount.store.delete_out_of_band(&key("run/a"));
    wait_until("the deletion", || names(&mount, "run") == set(["b"]));
    // The same for a mount that sees the dataset for the first time after the deletion.
    let late = TestMount::over(mount.store.clone(), mount.store.clone(), &quick());
    assert_eq!(names(&late, "run"), set(["b"]));
}

#[test]
fn a_record_of_a_newer_format_is_refused_and_not_guessed_at() {
    let mount = TestMount::with(&quick());
    mount.publish("run/a", "1");
    let log = RemotePrefix::parse("datasets/").unwrap().log_key(&run(), 1);
    let future = zstd::encode_all(&br#"{"format": 99, "kind": "commit"}"#[..], 0).unwrap();
    mount.store.overwrite_out_of_band(&log, future.into());
    let refused = fs::read_dir(mount.path("run")).and_then(|mut entries| entries.next().transpose());
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO));
}
