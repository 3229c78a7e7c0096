//! `NAME@SEQ`: what a dataset held after one of its commits.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
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
use dsfs::record::OldVersion;
use dsfs::record::Outcome;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::key;
use crate::common::mount::wait_until;
use crate::semantics::errno;

const MTIME: u64 = 1_000_000_000;
const COMMITTED: u64 = 1_500_000_000;

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Commits to the dataset `run` as another machine would.
#[derive(Default)]
struct Committer {
    seq: u64,
    all: Changes,
}

impl Committer {
    fn commit(&mut self, mount: &TestMount, files: &[(&str, &str)], deleted: &[&str], markers: &[&str]) {
        let entry = |(text, body): &(&str, &str)| Entry {
            path: path(text),
            size_bytes: body.len() as u64,
            cid: ContentId::OF_NOTHING,
            etag: mount.publish(&format!("run/{text}"), (*body).to_owned()),
            mtime: at(MTIME),
            replaced: None,
        };
        let gone = |text: &&str| {
            mount.store.delete_out_of_band(&key(&format!("run/{text}")));
            let old = self.all.entries.iter().find(|entry| entry.path.as_str() == *text).unwrap();
            OldVersion { path: path(text), etag: old.etag.clone() }
        };
        let changes = Changes {
            entries: files.iter().map(entry).collect(),
            deleted: deleted.iter().map(gone).collect(),
            markers: markers.iter().map(|text| path(text)).collect(),
        };
        for marker in markers {
            mount.publish(&format!("run/{marker}/"), "");
        }
        self.seq += 1;
        let body = CommitBody {
            dataset: DatasetName::parse("run").unwrap(),
            seq: self.seq,
            txid: format!("TX{}", self.seq),
            author: Author::default(),
            time: at(COMMITTED),
            message: None,
            changes: changes.clone(),
            base: None,
            tail: self.all.clone(),
        };
        self.all = self.all.then(&changes);
        let record = CommitRecord { outcome: Outcome::Commit, body };
        let log = RemotePrefix::parse("datasets/").unwrap().log_key(&record.body.dataset, self.seq);
        mount.store.overwrite_out_of_band(&log, record.encode().unwrap());
    }
}

fn names(mount: &TestMount, dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(mount.path(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn xattr(mount: &TestMount, file: &str, name: &str) -> String {
    let (path, mut value) = (mount.path(file), vec![0; 256]);
    let name = CString::new(name).unwrap();
    let len = rustix::fs::getxattr(&path, &name, &mut value).unwrap();
    String::from_utf8(value[..len].to_vec()).unwrap()
}

/// Two commits: the second replaces `a`, deletes `dir/b` and adds `c`.
fn two_commits(setup: &Setup) -> TestMount {
    let mount = TestMount::with(setup);
    let mut author = Committer::default();
    let first = [("a", "one"), ("dir/b", "bb"), ("dir/same", "same")];
    author.commit(&mount, &first, &[], &["empty"]);
    assert_eq!(fs::read(mount.path("run/a")).unwrap(), b"one", "and so it is cached");
    author.commit(&mount, &[("a", "two!"), ("c", "ccc")], &["dir/b"], &[]);
    mount
}

#[test]
fn a_past_state_is_shown_as_it_was() {
    let mount = two_commits(&Setup::default());
    assert_eq!(names(&mount, ""), set(["run"]), "past states are not listed");
    assert_eq!(names(&mount, "run@1"), set(["a", "dir", "empty"]));
    assert_eq!(names(&mount, "run@1/dir"), set(["b", "same"]));
    assert_eq!(names(&mount, "run@1/empty"), set([]));
    assert_eq!(names(&mount, "run@2"), set(["a", "c", "dir", "empty"]));
    assert_eq!(names(&mount, "run@2/dir"), set(["same"]));
    assert_eq!(fs::read(mount.path("run@2/a")).unwrap(), b"two!");
    assert_eq!(fs::read(mount.path("run@1/dir/same")).unwrap(), b"same");
    let file = fs::metadata(mount.path("run@1/a")).unwrap();
    assert_eq!((file.permissions().mode() & 0o7777, file.len()), (0o444, 3));
    assert_eq!(file.modified().unwrap(), at(MTIME));
    for dir in ["run@1", "run@1/dir"] {
        let dir = fs::metadata(mount.path(dir)).unwrap();
        assert_eq!(dir.permissions().mode() & 0o7777, 0o555);
        assert_eq!(dir.modified().unwrap(), at(COMMITTED));
    }
    assert!(!mount.path("run@1/c").exists() && !mount.path("run@1/a/x").exists());
    let attribute = |name| xattr(&mount, "run@1/dir/same", name);
    assert_eq!((attribute("user.dsfs.state"), attribute("user.dsfs.seq")), ("past".into(), "1".into()));
    assert_eq!(attribute("user.dsfs.key"), "datasets/run/dir/same");
}

#[test]
fn a_version_that_is_gone_is_read_from_the_cache_or_not_at_all() {
    let mount = two_commits(&Setup::default());
    assert_eq!(fs::read(mount.path("run@1/a")).unwrap(), b"one", "it was read before it was replaced");
    assert_eq!(errno(fs::read(mount.path("run@1/dir/b"))), libc::ESTALE, "deleted, and never read");
    assert_eq!(fs::read(mount.path("run@2/a")).unwrap(), b"two!");
    mount.publish("run/c", "xxx"); // by another tool
    assert_eq!(errno(fs::read(mount.path("run@2/c"))), libc::ESTALE);
}

#[test]
fn a_past_state_has_its_own_inodes() {
    let mount = two_commits(&Setup::default());
    let ino = |file: &str| fs::metadata(mount.path(file)).unwrap().ino();
    let all = BTreeSet::from([ino("run"), ino("run@1"), ino("run@2")]);
    let files = BTreeSet::from([ino("run/dir/same"), ino("run@1/dir/same"), ino("run@2/dir/same")]);
    assert_eq!((all.len(), files.len()), (3, 3));
    assert_eq!(ino("run@1/dir"), ino("run@1/dir/../dir"));
}

#[test]
fn nothing_can_be_changed_in_the_past() {
    let mount = two_commits(&Setup { allow_replace: true, ..Setup::default() });
    fs::create_dir(mount.path("draft")).unwrap();
    fs::write(mount.path("draft/x"), "x").unwrap();
    let file = mount.path("run@2/a");
    // Without privileges the kernel looks at the mode before it asks us.
    let root = rustix::process::geteuid().is_root();
    let denied = if root { libc::EROFS } else { libc::EACCES };
    assert_eq!(errno(OpenOptions::new().write(true).open(&file)), denied);
    assert_eq!(errno(OpenOptions::new().append(true).open(&file)), denied);
    assert_eq!(errno(fs::write(mount.path("run@2/new"), "x")), denied);
    assert_eq!(errno(fs::create_dir(mount.path("run@2/new"))), denied);
    assert_eq!(errno(fs::remove_file(&file)), denied);
    assert_eq!(errno(fs::remove_dir(mount.path("run@2/dir"))), denied);
    assert_eq!(errno(fs::rename(&file, mount.path("run@2/z"))), denied);
    assert_eq!(errno(fs::rename(&file, mount.path("draft/a"))), denied);
    assert_eq!(errno(fs::rename(mount.path("draft/x"), mount.path("run@2/x"))), denied);
    assert_eq!(errno(fs::set_permissions(&file, fs::Permissions::from_mode(0o600))), libc::EROFS);
    assert_eq!(errno(fs::remove_dir(mount.path("run@2"))), libc::EROFS);
    assert_eq!(errno(fs::rename(mount.path("run@2"), mount.path("other"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mount.path("run@2"))), libc::EEXIST);
    assert_eq!(fs::read(&file).unwrap(), b"two!");
}

#[test]
fn only_commits_that_are_there_have_a_past_state() {
    let mount = two_commits(&Setup::default());
    for name in ["run@3", "run@0", "run@01", "run@", "run@x", "other@1", "run@99999999999"] {
        assert_eq!(errno(fs::metadata(mount.path(name))), libc::ENOENT, "{name}");
    }
    let mut author = Committer { seq: 2, all: Changes::default() };
    author.commit(&mount, &[("z", "z")], &[], &[]);
    wait_until("the third commit", || mount.path("run@3/z").exists());
}

#[test]
fn a_dataset_of_that_name_comes_first() {
    let mount = two_commits(&Setup::default());
    mount.publish("run@1/of-the-dataset", "x");
    assert_eq!(names(&mount, "run@1"), set(["of-the-dataset"]));
    assert_eq!(names(&mount, ""), set(["run", "run@1"]));
    fs::create_dir(mount.path("new@7")).unwrap();
    fs::write(mount.path("new@7/x"), "staged").unwrap();
    assert_eq!(fs::read(mount.path("new@7/x")).unwrap(), b"staged");
}

#[test]
fn everyday_tools_compare_and_copy_past_states() {
    let mount = two_commits(&Setup { catalog_ttl: Duration::from_millis(100), ..Setup::default() });
    wait_until("the second commit", || mount.path("run/c").exists());
    let diff =
        |a: &str, b: &str| Command::new("diff").arg("-r").arg(mount.path(a)).arg(mount.path(b)).output();
    let same = diff("run", "run@2").unwrap();
    assert!(same.status.success(), "{same:?}");
    fs::write(mount.path("run/staged"), "s").unwrap();
    let out = diff("run", "run@2").unwrap().stdout;
    assert!(String::from_utf8_lossy(&out).contains("Only in"), "{out:?}");
    let copy = mount.beside().join("copy");
    let cp = Command::new("cp").arg("-rp").arg(mount.path("run@2")).arg(&copy).output().unwrap();
    assert!(cp.status.success(), "{cp:?}");
    assert_eq!(fs::read(copy.join("a")).unwrap(), b"two!");
    assert_eq!(fs::metadata(copy.join("a")).unwrap().modified().unwrap(), at(MTIME));
    // What was committed before is put back by copying it into the dataset of today.
    let restored = fs::copy(mount.path("run@1/a"), mount.path("run/a-as-it-was")).unwrap();
    assert_eq!(restored, 3);
}

#[test]
fn a_damaged_log_is_an_error_and_not_an_absence() {
    let mount = two_commits(&Setup::default());
    let log = RemotePrefix::parse("datasets/").unwrap().log_key(&DatasetName::parse("run").unwrap(), 2);
    mount.store.overwrite_out_of_band(&log, "not a record".into());
    assert_eq!(errno(fs::metadata(mount.path("run@2"))), libc::EIO);
    assert!(mount.path("run@1/a").exists());
}
