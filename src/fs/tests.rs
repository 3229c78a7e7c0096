//! The file system without a kernel: what it decides by itself, over a store in memory.

mod opening;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;

use super::*;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::clock::SystemClock;
use crate::fs::handover::Item;
use crate::fs::handover::Passed;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::fs::open::Opened;
use crate::name::ObjectKey;
use crate::name::RemotePrefix;
use crate::read::ObjectVersion;
use crate::read::ReadOptions;
use crate::staging::Holder;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;

/// A file system that nobody has mounted; what is published can be replaced.
struct Bare {
    fs: Arc<DatasetFs>,
    store: Arc<MemoryStore>,
    /// Before the store.
    faults: Arc<FaultyStore>,
    runtime: Runtime,
    dir: TempDir,
}

impl Bare {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        // One thread for what blocks, which a test can keep busy.
        let runtime = Builder::new_multi_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(FaultyStore::new(Arc::clone(&store) as Arc<dyn ObjectStore>));
        let as_store = || Arc::clone(&faults) as Arc<dyn ObjectStore>;
        let prefix = RemotePrefix::parse("datasets/").unwrap();
        let catalog = Catalog::new(as_store(), prefix, Duration::from_secs(60));
        let cache = BlockCache::open(CacheOptions {
            dir: dir.path().join("cache"),
            limit_bytes: 1 << 30,
            reserve_bytes: 0,
            memory_bytes: 1 << 20,
        });
        let handle = runtime.handle().clone();
        let reader = Reader::new(as_store(), "memory".into(), cache, ReadOptions::default(), handle);
        let state_dir = dir.path().join("state");
        let staging = Staging::open(&state_dir, &Holder::default()).unwrap();
        let options = FsOptions {
            read_only: false,
            allow_replace: true,
            passthrough: true,
            inodes_max: 1000,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            state_dir,
        };
        let clock = Arc::new(SystemClock);
        let fs = DatasetFs::new(Arc::new(catalog), Arc::new(staging), reader, clock, options);
        Self { fs, store, faults, runtime, dir }
    }
}

impl Bare {
    /// The number of a name that is there.
    fn lookup(&self, parent: Ino, name: &str) -> Ino {
        match self.runtime.block_on(self.fs.lookup(parent, OsStr::new(name))).unwrap() {
            Lookup::Entry(entry) => entry.attr.ino,
            Lookup::Absent(_) => panic!("{name} is not there"),
        }
    }

    fn open(&self, ino: Ino, flags: i32) -> Result<Opened, FsError> {
        self.runtime.block_on(self.fs.open(ino, flags))
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::from_listing(&format!("datasets/{text}"))
}

/// What another program would read of what is handed over.
fn handed_over(fs: &DatasetFs) -> Vec<Item> {
    let mut written = Vec::new();
    fs.hand_over(|item| {
        written.push(serde_json::to_vec(item)?);
        Ok(())
    })
    .unwrap();
    written.iter().map(|item| serde_json::from_slice(item).unwrap()).collect()
}

#[test]
fn a_file_that_two_inodes_are_read_from_is_taken_over_once() {
    let (before, after) = (Bare::new(), Bare::new());
    let file = Arc::new(tempfile::tempfile().unwrap());
    let etag = ETag::from_server("1");
    let object = before.fs.reader.open(ObjectVersion { key: key("run/x"), etag, size_bytes: 1 });
    let open = |ino| {
        let mode = IoMode::Passthrough(Arc::clone(&file));
        before.fs.open.insert(Handle::Published(ino, object.handle()), mode, None).0
    };
    let (as_it_is, as_it_was) = (open(2), open(3));
    let mut asked = Vec::new();
    let mut adopt = |number: RawFd| -> io::Result<OwnedFd> {
        asked.push(number);
        Ok(file.try_clone()?.into())
    };
    let mut passed = Passed::default();
    for item in handed_over(&before.fs) {
        after.fs.take_over(item, &mut adopt, &mut passed).unwrap();
    }
    assert_eq!(asked, [file.as_raw_fd()]);
    drop(passed);
    let file_of = |ino| match after.fs.open.mode(ino) {
        Some(IoMode::Passthrough(file)) => Some(file),
        Some(IoMode::Cached) | None => None,
    };
    let (one, other): (Arc<File>, Arc<File>) = (file_of(2).unwrap(), file_of(3).unwrap());
    assert!(Arc::ptr_eq(&one, &other), "whoever closes last closes it");
    drop((one, other));
    after.fs.release(as_it_is);
    assert!(file_of(2).is_none());
    file_of(3).unwrap().metadata().unwrap();
    after.fs.release(as_it_was);
}

#[test]
fn what_is_from_before_1970_is_handed_over() {
    let bare = Bare::new();
    let modified = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    let name = DatasetName::parse("run").unwrap();
    let path = RelPath::parse("a").unwrap();
    let file = RemoteFile { key: key("run/a"), size_bytes: 1, etag: None, modified };
    bare.fs.inodes.lookup(Node::Published(name.clone(), path.clone(), Arc::new(file)));
    let staged = bare.fs.tree.staging().create_dataset(&name).unwrap();
    drop(staged.create_file(&path, 0o644).unwrap());
    staged.set_times(&path, Some(modified), Some(modified)).unwrap();
    let dir = bare.fs.inodes.lookup(Node::Directory(name, DirPath::root()));
    bare.runtime.block_on(bare.fs.opendir(dir)).unwrap();
    let after = Bare::new();
    for item in handed_over(&bare.fs) {
        after.fs.take_over(item, |_| unreachable!("no local file is open"), &mut Passed::default()).unwrap();
    }
    for (ino, _, node) in inodes(&bare.fs) {
        assert_eq!(after.fs.inodes.get(ino), Some(node));
    }
}

fn inodes(fs: &DatasetFs) -> Vec<(Ino, u64, Node)> {
    let mut all = Vec::new();
    let each = |ino, lookups, node: &Node| -> io::Result<()> {
        all.push((ino, lookups, node.clone()));
        Ok(())
    };
    fs.inodes.for_each(each).unwrap();
    all
}

/// A commit ends in staging before the file system is told; meanwhile a program writes to the file again.
#[test]
fn who_stages_a_file_anew_just_after_its_commit_keeps_its_name() {
    let bare = Bare::new();
    let (run, a) = (DatasetName::parse("run").unwrap(), RelPath::parse("a").unwrap());
    let staging = bare.fs.tree.staging();
    let staged = staging.create_dataset(&run).unwrap();
    staged.create_file(&a, 0o644).unwrap().write_all_at(b"1", 0).unwrap();
    let parent = bare.fs.inodes.lookup(Node::Directory(run.clone(), DirPath::root()));
    let committed_ino = bare.lookup(parent, "a");
    let held = bare.open(committed_ino, libc::O_RDONLY).unwrap();
    let sealed = staged.freeze("tx").unwrap();
    let etag = Some(bare.store.overwrite_out_of_band(&key("run/a"), "1".into()));
    let modified = SystemTime::UNIX_EPOCH;
    let published = [(a.clone(), RemoteFile { key: key("run/a"), size_bytes: 1, etag, modified })];
    bare.fs.tree.catalog().publish(&run, &published, &[]);
    staged.finish(&sealed).unwrap();
    // The kernel may ask for the name anew, or have the inode still.
    let by_name = bare.lookup(parent, "a");
    assert!(matches!(bare.open(by_name, libc::O_RDWR), Err(FsError::Stale)));
    let ino = bare.lookup(parent, "a");
    assert_ne!(ino, committed_ino, "that one is open on the file that was committed");
    let opened = bare.open(ino, libc::O_RDWR).unwrap();
    bare.fs.write(opened.fh, 0, b"2").unwrap();
    bare.fs.committed(&run, &published, &[], &[]);
    assert_eq!(bare.fs.inodes.get(ino), Some(Node::Staged(run.clone(), a.clone())));
    assert_eq!(bare.lookup(parent, "a"), ino);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let changes = change::Changes { modified: Some(time), ..change::Changes::default() };
    let attr = bare.runtime.block_on(bare.fs.setattr(ino, Some(opened.fh), changes)).unwrap();
    assert_eq!((attr.modified, attr.links), (time, 1));
    assert_eq!(staged.lookup(&a).unwrap().unwrap().modified, time);
    bare.fs.release(held.fh);
}

#[test]
fn who_opens_a_file_by_its_old_inode_just_after_its_commit_keeps_the_new_one() {
    let bare = Bare::new();
    let (run, a) = (DatasetName::parse("run").unwrap(), RelPath::parse("a").unwrap());
    let staged = bare.fs.tree.staging().create_dataset(&run).unwrap();
    drop(staged.create_file(&a, 0o644).unwrap());
    let parent = bare.fs.inodes.lookup(Node::Directory(run.clone(), DirPath::root()));
    let committed_ino = bare.lookup(parent, "a");
    let sealed = staged.freeze("tx").unwrap();
    let etag = Some(bare.store.overwrite_out_of_band(&key("run/a"), "".into()));
    let file = RemoteFile { key: key("run/a"), size_bytes: 0, etag, modified: SystemTime::UNIX_EPOCH };
    let published = [(a.clone(), file)];
    bare.fs.tree.catalog().publish(&run, &published, &[]);
    staged.finish(&sealed).unwrap();
    assert!(matches!(bare.open(committed_ino, libc::O_RDWR), Err(FsError::Stale)));
    let ino = bare.lookup(parent, "a");
    let opened = bare.open(ino, libc::O_RDWR).unwrap();
    bare.fs.committed(&run, &published, &[], &[]);
    assert_eq!(bare.fs.inodes.get(ino), Some(Node::Staged(run, a)));
    assert_eq!(bare.fs.getattr(ino).unwrap().0.links, 1);
    bare.fs.release(opened.fh);
}

/// A path of so many bytes below `top`.
fn long_path(top: &str, bytes: usize) -> RelPath {
    let mut text = top.to_owned();
    while text.len() < bytes {
        let next = (bytes - text.len() - 1).min(200);
        text = format!(
            "{text}/{}",
            "x".repeat(if bytes - text.len() - 1 - next == 1 { next - 1 } else { next })
        );
    }
    RelPath::parse(&text).unwrap()
}

#[test]
fn a_key_that_cannot_be_published_is_refused_at_once() {
    const KEY_BYTES_MAX: usize = 1024;
    let bare = Bare::new();
    let run = DatasetName::parse("run").unwrap();
    let staged = bare.fs.tree.staging().create_dataset(&run).unwrap();
    let room = KEY_BYTES_MAX - "datasets/run/".len();
    let too_long = |result: Result<(), FsError>| {
        assert!(matches!(result, Err(FsError::Name(NameError::KeyTooLong { .. }))), "{result:?}");
    };

    // A directory is published with a slash behind its name.
    let dir = long_path("dir", room);
    staged.mkdir(&dir.parent().as_path().unwrap(), 0o755).unwrap();
    let parent = bare.fs.inodes.lookup(Node::Directory(run.clone(), dir.parent()));
    let mkdir = |name: &str| bare.runtime.block_on(bare.fs.mkdir(parent, OsStr::new(name), 0o755)).map(drop);
    too_long(mkdir(dir.file_name()));
    mkdir(&dir.file_name()[1..]).unwrap();

    let top = bare.fs.inodes.lookup(Node::Directory(run.clone(), DirPath::root()));
    let rename = |from: &str, to: &str| {
        let (from, to) = ((top, OsStr::new(from)), (top, OsStr::new(to)));
        bare.runtime.block_on(bare.fs.rename(from, to, change::RenameMode::Replace))
    };
    too_long(rename("dir", "long"));
    rename("dir", "own").unwrap();
    drop(staged.create_file(&long_path("a", room - 1), 0o644).unwrap());
    too_long(rename("a", "aaa"));
    rename("a", "aa").unwrap();
    rename("aa", "c").unwrap();
    assert_eq!(staged.contents().unwrap().files.len(), 1);
}

#[test]
fn staged_directories_are_moved_and_removed_where_the_remote_was_never_seen() {
    let bare = Bare::new();
    bare.store.overwrite_out_of_band(&key("run/below/b"), "b".into());
    let (run, fresh) = (DatasetName::parse("run").unwrap(), DatasetName::parse("fresh").unwrap());
    let path = |text: &str| RelPath::parse(text).unwrap();
    let published = bare.lookup(ROOT, "run");
    bare.runtime.block_on(bare.fs.tree.read_dir(&run, &DirPath::root())).unwrap();
    bare.fs.tree.staging().create_dataset(&run).unwrap();
    let staged = bare.fs.tree.staging().create_dataset(&fresh).unwrap();
    staged.mkdir(&path("tmp"), 0o755).unwrap();
    staged.mkdir(&path("final"), 0o755).unwrap();
    drop(staged.create_file(&path("tmp/0"), 0o644).unwrap());
    for _ in 0..100 {
        bare.faults.script(Operation::List, Fault::Before(StoreError::unanswered("x", "no route to host")));
    }
    let top = bare.fs.inodes.lookup(Node::Directory(fresh, DirPath::root()));
    let (from, to) = ((top, OsStr::new("tmp")), (top, OsStr::new("final")));
    bare.runtime.block_on(bare.fs.rename(from, to, change::RenameMode::Replace)).unwrap();
    let dir = bare.lookup(top, "final");
    bare.runtime.block_on(bare.fs.unlink(dir, OsStr::new("0"))).unwrap();
    let rmdir = |parent, name| bare.runtime.block_on(bare.fs.rmdir(parent, OsStr::new(name)));
    rmdir(top, "final").unwrap();
    rmdir(ROOT, "fresh").unwrap();
    let refused = rmdir(published, "below");
    assert!(matches!(refused, Err(FsError::Store(_))), "it may have anything in it: {refused:?}");
}

#[test]
fn published_directories_go_after_all_that_is_in_them() {
    let bare = Bare::new();
    for text in ["run/d/sub/x", "run/d/y", "run/z"] {
        bare.store.overwrite_out_of_band(&key(text), "1".into());
    }
    let run = DatasetName::parse("run").unwrap();
    let path = |text: &str| RelPath::parse(text).unwrap();
    let remove = |parent, name| bare.runtime.block_on(bare.fs.unlink(parent, OsStr::new(name)));
    let rmdir = |parent, name| bare.runtime.block_on(bare.fs.rmdir(parent, OsStr::new(name)));
    let mkdir = |parent, name| bare.runtime.block_on(bare.fs.mkdir(parent, OsStr::new(name), 0o755));
    let names = |dir: &str| -> Vec<String> {
        let dir = if dir.is_empty() { DirPath::root() } else { path(dir).into() };
        let entries = bare.runtime.block_on(bare.fs.tree.read_dir(&run, &dir)).unwrap().value;
        entries.keys().map(ToString::to_string).collect()
    };
    let staged = || bare.fs.tree.staging().dataset(&run).unwrap();
    let top = bare.lookup(ROOT, "run");
    let d = bare.lookup(top, "d");
    let sub = bare.lookup(d, "sub");
    assert!(matches!(rmdir(d, "sub"), Err(FsError::NotEmpty)));
    remove(sub, "x").unwrap();
    assert_eq!(names("d"), ["sub", "y"], "emptied, not removed");
    assert!(matches!(rmdir(top, "d"), Err(FsError::NotEmpty)));
    let opened = bare.runtime.block_on(bare.fs.opendir(d)).unwrap();
    rmdir(d, "sub").unwrap();
    let before = bare.fs.snapshot(opened).unwrap();
    let (_, entry) = before.from(0).find(|(_, entry)| &*entry.name == "sub").unwrap();
    assert!(matches!(bare.fs.lookup_entry(&before, entry).unwrap(), dir::DirLookup::Gone));
    assert_eq!(names("d"), ["y"]);
    assert!(matches!(rmdir(d, "sub"), Err(FsError::NotFound)));
    remove(d, "y").unwrap();
    rmdir(top, "d").unwrap();
    assert_eq!(names(""), ["z"]);
    let absent = bare.runtime.block_on(bare.fs.lookup(top, OsStr::new("d"))).unwrap();
    assert!(matches!(absent, Lookup::Absent(_)));

    // Made again, it is another one, without what was in it.
    mkdir(top, "d").unwrap();
    assert_eq!((names(""), names("d")), (vec!["d".into(), "z".into()], vec![]));
    rmdir(top, "d").unwrap();
    assert_eq!(names(""), ["z"]);
    mkdir(top, "e").unwrap();
    let rename = ((top, OsStr::new("e")), (top, OsStr::new("d")));
    bare.runtime.block_on(bare.fs.rename(rename.0, rename.1, change::RenameMode::Replace)).unwrap();
    assert_eq!(names(""), ["d", "z"]);
    bare.runtime.block_on(bare.fs.rename(rename.1, rename.0, change::RenameMode::Replace)).unwrap();
    assert_eq!(names(""), ["e", "z"], "renamed, it takes nothing published along and leaves nothing");
    rmdir(top, "e").unwrap();

    // Where its keys are there is no place for a file.
    let file = bare.runtime.block_on(bare.fs.create(top, OsStr::new("d"), 0o644, libc::O_RDWR));
    assert!(matches!(file, Err(FsError::IsDirectory)));

    // What is published there by others is there, once it is seen.
    bare.store.overwrite_out_of_band(&key("run/d/sub/other"), "2".into());
    bare.fs.tree.catalog().expire(Some(&run));
    assert_eq!(names("d/sub"), ["other"]);
    assert_eq!((names(""), names("d")), (vec!["d".into(), "z".into()], vec!["sub".into()]));
    let opened = bare.runtime.block_on(bare.fs.opendir(top)).unwrap();
    let shown = bare.fs.snapshot(opened).unwrap();
    let (_, entry) = shown.from(0).find(|(_, entry)| &*entry.name == "d").unwrap();
    assert!(matches!(bare.fs.lookup_entry(&shown, entry).unwrap(), dir::DirLookup::Entry(_)));
    let (d, sub) = (bare.lookup(top, "d"), bare.lookup(bare.lookup(top, "d"), "sub"));
    remove(sub, "other").unwrap();
    assert_eq!((names(""), names("d")), (vec!["d".into(), "z".into()], vec!["sub".into()]), "emptied again");
    staged().clear_base(&path("d/sub/other")).unwrap();
    bare.store.delete_out_of_band(&key("run/d/sub/other"));
    bare.fs.tree.catalog().expire(Some(&run));
    assert_eq!(names("d/sub"), [""; 0]);
    rmdir(d, "sub").unwrap();
    rmdir(top, "d").unwrap();
    assert_eq!(names(""), ["z"]);

    // A commit has the deletions; what is frozen hides as before.
    let contents = staged().contents().unwrap();
    let deleted: Vec<RelPath> = contents.bases.into_iter().map(|(path, _)| path).collect();
    assert_eq!(deleted, [path("d/sub/x"), path("d/y")]);
    assert!(contents.files.is_empty() && contents.empty_directories.is_empty());
    let sealed = staged().freeze("01").unwrap();
    assert_eq!(names(""), ["z"]);
    mkdir(top, "d").unwrap();
    rmdir(top, "d").unwrap();
    assert_eq!(names(""), ["z"], "removed before, so that the commit hides it");
    staged().thaw(&sealed).unwrap();
    assert_eq!(names(""), ["z"]);
    let sealed = staged().freeze("02").unwrap();
    for text in ["run/d/sub/x", "run/d/y"] {
        bare.store.delete_out_of_band(&key(text));
    }
    bare.fs.committed(&run, &[], &[], &deleted);
    staged().finish(&sealed).unwrap();
    assert_eq!(names(""), ["z"], "and stays away, though nothing was listed since");
    assert!(bare.fs.tree.staging().dataset(&run).is_none());
}

#[test]
fn removed_directories_come_back_with_what_is_not_deleted_any_more() {
    let bare = Bare::new();
    for text in ["run/d/sub/x", "run/d/y"] {
        bare.store.overwrite_out_of_band(&key(text), "1".into());
    }
    let run = DatasetName::parse("run").unwrap();
    let path = |text: &str| RelPath::parse(text).unwrap();
    let remove = |parent, name| bare.runtime.block_on(bare.fs.unlink(parent, OsStr::new(name)));
    let rmdir = |parent, name| bare.runtime.block_on(bare.fs.rmdir(parent, OsStr::new(name)));
    let top = bare.lookup(ROOT, "run");
    let d = bare.lookup(top, "d");
    let sub = bare.lookup(d, "sub");
    remove(sub, "x").unwrap();
    rmdir(d, "sub").unwrap();
    remove(d, "y").unwrap();
    rmdir(top, "d").unwrap();

    // As the next program finds it.
    let again = || Staging::adopt(&bare.fs.options.state_dir, tempfile::tempfile().unwrap()).unwrap();
    assert!(again().dataset(&run).unwrap().is_removed(&path("d/sub")));
    let staged = bare.fs.tree.staging().dataset(&run).unwrap();
    staged.clear_base(&path("d/sub/x")).unwrap();
    let d = bare.lookup(top, "d");
    let sub = bare.lookup(d, "sub");
    bare.lookup(sub, "x");
    remove(sub, "x").unwrap();
    assert_eq!(bare.lookup(d, "sub"), sub, "emptied again, not removed");
    staged.discard(&DirPath::root()).unwrap();
    assert!(!staged.is_removed(&path("d")) && !staged.exists());
    assert!(again().dataset(&run).is_none(), "nothing is left on the disk");
}
