//! Opening published files: when the kernel may have the cache's file, and what `open` waits for.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio::sync::oneshot;
use tokio::time;

use super::Bare;
use super::handed_over;
use super::key;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::cache::Pages;
use crate::catalog::listing::RemoteFile;
use crate::fs::KernelCache;
use crate::fs::handover::Passed;
use crate::fs::open::Handle;
use crate::fs::open::IoMode;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::RelPath;
use crate::read::ObjectVersion;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;
use crate::tree::inode::ROOT;

const SIZE_BYTES: u64 = 1024 * 1024;

/// A kernel that takes every notice.
#[derive(Debug)]
struct Kernel;

impl KernelCache for Kernel {
    fn entry_changed(&self, _parent: Ino, _name: &str) {}
    fn drop_pages(&self, _ino: Ino, _bytes: Range<u64>) {}
    fn told(&self) -> oneshot::Receiver<()> {
        oneshot::channel().1
    }
}

impl Bare {
    /// A mount with passthrough, and in it a file that is whole in the cache and was not verified yet.
    fn with_cached_file() -> (Self, Ino, ObjectVersion) {
        let bare = Self::new();
        bare.fs.attach(Arc::new(Kernel), true);
        let body = vec![7; SIZE_BYTES as usize];
        let etag = bare.store.overwrite_out_of_band(&key("run/a"), body.clone().into());
        let version = ObjectVersion { key: key("run/a"), etag, size_bytes: SIZE_BYTES };
        let id = bare.fs.reader.version_id(&version);
        let others = BlockCache::open(CacheOptions {
            dir: bare.dir.path().join("cache"),
            limit_bytes: 1 << 30,
            reserve_bytes: 0,
            memory_bytes: 1 << 20,
        });
        others.entry(&id, SIZE_BYTES).store(0, &body, Pages::Keep).unwrap();
        let ino = bare.lookup(bare.lookup(ROOT, "run"), "a");
        (bare, ino, version)
    }

    /// Keeps the thread busy that would verify files, until what is returned is dropped.
    fn verify_nothing(&self) -> mpsc::Sender<()> {
        let (busy, over) = mpsc::channel();
        self.runtime.spawn_blocking(move || over.recv());
        busy
    }

    fn mode_of_new_open(&self, ino: Ino) -> IoMode {
        let opened = self.open(ino, libc::O_RDONLY).unwrap();
        self.fs.release(opened.fh);
        opened.mode
    }
}

#[test]
fn an_open_waits_a_moment_for_a_cached_file_to_be_verified_and_a_later_one_has_it() {
    let (bare, ino, version) = Bare::with_cached_file();
    let busy = bare.verify_nothing();
    let open = async { time::timeout(Duration::from_secs(20), bare.fs.open(ino, libc::O_RDONLY)).await };
    let opened = bare.runtime.block_on(open).expect("it does not wait for all of it").unwrap();
    assert!(matches!(opened.mode, IoMode::Cached), "it is read through us meanwhile");
    drop(busy);
    let deadline = Instant::now() + Duration::from_secs(20);
    let object = bare.fs.reader.open(version);
    while object.whole_file().is_none() {
        assert!(Instant::now() < deadline, "it is verified all the same");
        thread::sleep(Duration::from_millis(5));
    }
    bare.fs.release(opened.fh);
    assert!(matches!(bare.mode_of_new_open(ino), IoMode::Passthrough(_)));
}

#[test]
fn who_opens_what_is_read_through_us_already_waits_for_nothing() {
    let (bare, ino, version) = Bare::with_cached_file();
    let _busy = bare.verify_nothing();
    let handle = Handle::Published(ino, bare.fs.reader.open(version).handle());
    bare.fs.open.insert(handle, IoMode::Cached, None);
    let _in_runtime = bare.runtime.enter();
    let mut open = Box::pin(bare.fs.open(ino, libc::O_RDONLY));
    let Poll::Ready(opened) = open.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits for a file that it cannot be given")
    };
    assert!(matches!(opened.unwrap().mode, IoMode::Cached));
}

#[test]
fn where_the_kernel_refuses_the_file_system_of_the_cache_no_other_open_waits_for_it() {
    let (bare, ino, version) = Bare::with_cached_file();
    let object = bare.fs.reader.open(version);
    assert!(object.entry.verify());
    let refuse = |ino, errno| bare.fs.not_taken(ino, &io::Error::from_raw_os_error(errno));
    let refused = |errno| {
        let opened = bare.open(ino, libc::O_RDONLY).unwrap();
        assert!(matches!(opened.mode, IoMode::Passthrough(_)));
        refuse(ino, errno);
        assert!(matches!(bare.fs.open.mode(ino), Some(IoMode::Cached)));
        bare.fs.release(opened.fh);
    };
    let staged = |name: &str| {
        let dataset = DatasetName::parse("mine").unwrap();
        bare.fs.tree.staging().create_dataset(&dataset).unwrap();
        let dir = bare.lookup(ROOT, "mine");
        let create = bare.fs.create(dir, OsStr::new(name), 0o644, libc::O_RDWR | libc::O_CREAT);
        let (entry, opened) = bare.runtime.block_on(create).unwrap();
        assert!(matches!(opened.mode, IoMode::Passthrough(_)));
        entry.attr.ino
    };
    refused(libc::ENOMEM); // a moment's trouble
    refuse(staged("a"), libc::ELOOP); // staged files may be on another file system
    assert!(bare.fs.passes_through());
    refused(libc::ELOOP);
    assert!(!bare.fs.passes_through());
    assert!(matches!(bare.mode_of_new_open(ino), IoMode::Cached) && object.whole_file().is_some());
    staged("b");
}

#[test]
fn a_stream_that_another_program_has_opened_is_in_memory_once() {
    const RUN_BYTES: u64 = 1024 * 1024;
    for (passthrough, pages) in [(false, Pages::LetGo), (true, Pages::Keep)] {
        let (before, after) = (Bare::new(), Bare::new());
        let version =
            ObjectVersion { key: key("run/x"), etag: ETag::from_server("1"), size_bytes: 64 * RUN_BYTES };
        let handle = Handle::Published(2, before.fs.reader.open(version.clone()).handle());
        before.fs.open.insert(handle, IoMode::Cached, None);
        for item in handed_over(&before.fs) {
            after.fs.take_over(item, |_| unreachable!("no local file"), &mut Passed::default()).unwrap();
        }
        after.fs.attach(Arc::new(Kernel), passthrough);
        let object = after.fs.reader.open(version);
        assert_eq!(object.pages_of(RUN_BYTES), pages, "passthrough: {passthrough}");
        if passthrough {
            let file =
                RemoteFile { key: key("run/y"), size_bytes: 1, etag: None, modified: SystemTime::UNIX_EPOCH };
            let (run, y) = (DatasetName::parse("run").unwrap(), RelPath::parse("y").unwrap());
            let refused = after.fs.inodes.lookup(Node::Published(run, y, Arc::new(file)));
            after.fs.not_taken(refused, &io::Error::from_raw_os_error(libc::ELOOP));
            assert_eq!(object.pages_of(RUN_BYTES), Pages::LetGo, "nor will it be handed over later");
        }
        after.fs.release(1);
        assert_eq!(object.pages_of(RUN_BYTES), Pages::Keep);
    }
}
