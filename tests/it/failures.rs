//! What goes wrong under a mount, and what its users are told.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use dsfs::fs::open::IoMode;
use dsfs::store::ObjectStore;
use dsfs::store::StoreError;
use dsfs::store::fault::Fault;
use dsfs::store::fault::FaultyStore;
use dsfs::store::fault::Operation;
use dsfs::store::memory::MemoryStore;

use crate::common::home::Home;
use crate::common::mount::DEADLINE;
use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::key;
use crate::common::mount::wait_until;

/// A mount of a store that fails as the test says.
fn faulty(setup: &Setup) -> (TestMount, Arc<FaultyStore>) {
    let memory = Arc::new(MemoryStore::default());
    memory.overwrite_out_of_band(&key("run/a"), vec![b'a'; 300_000].into());
    let faults = Arc::new(FaultyStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>));
    (TestMount::over(memory, Arc::clone(&faults) as Arc<dyn ObjectStore>, setup), faults)
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("this has to fail").raw_os_error()
}

#[test]
fn a_read_that_fails_is_an_error_and_the_next_one_works() {
    let (mount, faults) = faulty(&Setup { read_timeout: Duration::from_secs(2), ..Setup::default() });
    let path = mount.path("run/a");
    let file = File::open(&path).unwrap();
    for _ in 0..20 {
        faults.script(Operation::Get, Fault::Before(StoreError::unavailable("a", "connection refused")));
    }
    let mut byte = [0];
    let failed = errno(file.read_exact_at(&mut byte, 0));
    assert!(matches!(failed, Some(libc::EIO | libc::ETIMEDOUT)), "{failed:?}");
    wait_until("the server to be back", || fs::read(&path).is_ok_and(|bytes| bytes == vec![b'a'; 300_000]));
}

#[test]
fn a_server_that_never_answers_ends_in_a_timeout() {
    let (mount, faults) = faulty(&Setup { read_timeout: Duration::from_secs(1), ..Setup::default() });
    let path = mount.path("run/a");
    let file = File::open(&path).unwrap();
    for _ in 0..4 {
        faults.script(Operation::Get, Fault::Stall);
    }
    let mut byte = [0];
    assert_eq!(errno(file.read_exact_at(&mut byte, 0)), Some(libc::ETIMEDOUT));
    wait_until("the server to answer", || fs::read(&path).is_ok());
}

#[test]
fn access_denied_is_said_so() {
    let (mount, faults) = faulty(&Setup::default());
    let denied = StoreError::Denied { key: "run".into(), reason: "AccessDenied".into() };
    faults.script(Operation::List, Fault::Before(denied));
    assert_eq!(
        errno(fs::read_dir(mount.path("run")).and_then(|mut dir| dir.next().transpose())),
        Some(libc::EACCES)
    );
    assert!(mount.path("run/a").exists(), "asked again, it is there");
}

#[test]
fn what_was_listed_stays_when_the_remote_is_gone() {
    let (mount, faults) = faulty(&Setup { catalog_ttl: Duration::from_millis(100), ..Setup::default() });
    mount.publish("run/below/b", "b");
    assert!(mount.path("run/a").exists());
    fs::create_dir(mount.path("new")).unwrap();
    fs::write(mount.path("run/staged"), "").unwrap();
    for _ in 0..100 {
        faults.script(Operation::List, Fault::Before(StoreError::unavailable("x", "no route to host")));
        faults.script(Operation::Head, Fault::Before(StoreError::unavailable("x", "no route to host")));
    }
    std::thread::sleep(Duration::from_millis(150)); // past the listing's lifetime: not a wait for anything
    assert!(mount.path("run/a").exists(), "unreachable is not deleted");
    // Recording goes on, in a dataset that is staged here already.
    fs::create_dir(mount.path("new/frames")).unwrap();
    fs::write(mount.path("new/frames/0.bin"), "data").unwrap();
    assert_eq!(fs::read(mount.path("new/frames/0.bin")).unwrap(), b"data");
    fs::rename(mount.path("new/frames"), mount.path("new/final")).unwrap();
    fs::create_dir(mount.path("new/empty")).unwrap();
    fs::rename(mount.path("new/final"), mount.path("new/empty")).unwrap();
    fs::remove_dir_all(mount.path("new/empty")).unwrap();
    assert_eq!(fs::read_dir(mount.path("new")).unwrap().count(), 0);
    let refused = errno(fs::remove_dir(mount.path("run/below")));
    assert_eq!(refused, Some(libc::EIO), "what may have something published in it stays");
}

/// A process that waits for a file that does not come.
fn stuck_reader(mount: &TestMount, faults: &FaultyStore) -> Child {
    for _ in 0..200 {
        faults.script(Operation::Get, Fault::Stall);
    }
    let child =
        Command::new("cat").arg(mount.path("run/a")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.unwrap();
    wait_until("the reader to wait", || faults.requests().contains(&Operation::Get));
    child
}

/// How long a stuck process lives on after a signal.
fn time_to_die(child: &mut Child, signal: &str) -> Duration {
    let sent = Instant::now();
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    while child.try_wait().unwrap().is_none() {
        assert!(sent.elapsed() < DEADLINE, "{signal} did not end it");
        std::thread::sleep(Duration::from_millis(2));
    }
    sent.elapsed()
}

#[test]
fn signals_end_readers_that_wait_for_the_remote() {
    for signal in ["-INT", "-TERM", "-KILL"] {
        let (mount, faults) = faulty(&Setup::default());
        let mut child = stuck_reader(&mount, &faults);
        let took = time_to_die(&mut child, signal);
        // The read's own timeout is 20 s: whatever is well below it was the signal.
        assert!(took < Duration::from_secs(5), "{signal} took {took:?}");
    }
}

/// Unmounts a small disk. A task of the daemon's that was on its way may hold a file for a moment longer.
fn unmount_disk(path: &Path) {
    wait_until("the disk to be let go", || Command::new("umount").arg(path).status().unwrap().success());
}

/// Writes where a file was removed that had filled the disk. The kernel tells a FUSE file system of a handle's
/// end after `close` has returned, and until then the removed file has its blocks.
fn write_once_there_is_room(path: &Path) {
    wait_until("the removed file's blocks", || match fs::write(path, "fits again") {
        Err(err) if err.raw_os_error() == Some(libc::ENOSPC) => false,
        written => written.map(|()| true).unwrap(),
    });
    assert_eq!(fs::read(path).unwrap(), b"fits again");
}

#[test]
fn a_full_staging_disk_is_told_to_the_writer() {
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "this test mounts a small disk, which takes root");
    for passthrough in [false, true] {
        let setup = Setup { passthrough, state_dir: Some(disk.path().join("state")), ..Setup::default() };
        let mount = TestMount::with(&setup);
        fs::create_dir_all(mount.path("run")).unwrap();
        let mut file = File::create(mount.path("run/big")).unwrap();
        let written = (0..100).try_for_each(|_| file.write_all(&[7; 100_000]));
        assert_eq!(errno(written), Some(libc::ENOSPC));
        drop(file);
        let len = fs::metadata(mount.path("run/big")).unwrap().len();
        assert!(len > 1_000_000, "what was written before is kept: {len}");
        fs::remove_file(mount.path("run/big")).unwrap();
        write_once_there_is_room(&mount.path("run/small"));
        fs::remove_file(mount.path("run/small")).unwrap();
    }
    unmount_disk(disk.path());
}

#[test]
fn a_daemon_whose_log_finds_no_room_goes_on() {
    let home = Home::new();
    let disk = home.path(".local/state");
    fs::create_dir_all(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "none"])
        .arg(&disk)
        .status();
    assert!(mounted.unwrap().success(), "this test mounts a small disk, which takes root");
    let mnt = home.mount();
    fs::create_dir(mnt.join("run")).unwrap();
    let mut big = File::create(mnt.join("run/big")).unwrap();
    let written = (0..100).try_for_each(|_| big.write_all(&[7; 100_000]));
    assert_eq!(errno(written), Some(libc::ENOSPC));
    drop(big);
    // Each is a line in the log, of which soon not even the last block has room.
    let refused = (0..1000).filter_map(|n| File::create(mnt.join(format!("run/{n}"))).err());
    let refused: Vec<_> = refused.map(|err| err.raw_os_error()).collect();
    assert!(refused.len() > 500, "{} were refused", refused.len());
    assert_eq!(refused.iter().find(|errno| **errno != Some(libc::ENOSPC)), None, "for another reason");
    fs::remove_file(mnt.join("run/big")).unwrap();
    fs::remove_file(mnt.join("run/0")).unwrap();
    write_once_there_is_room(&mnt.join("run/small"));
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);
    unmount_disk(&disk);
}

#[test]
fn a_cache_that_the_kernel_does_not_read_is_read_through_the_daemon() {
    let disk = tempfile::tempdir().unwrap();
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| disk.path().join(name).display().to_string());
    for dir in [&lower, &upper, &work, &merged] {
        fs::create_dir(dir).unwrap();
    }
    let dirs = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mounted = Command::new("mount").args(["-t", "overlay", "-o", &dirs, "none", &merged]).status();
    assert!(mounted.unwrap().success(), "this test mounts an overlay, which takes root");
    {
        let setup = Setup { cache_dir: Some(Path::new(&merged).join("cache")), ..Setup::default() };
        let mount = TestMount::with(&setup);
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        mount.publish("run/a", body.clone());
        assert!(mount.fs.passes_through());
        wait_until("the kernel to be given a cached file", || {
            assert!(fs::read(mount.path("run/a")).unwrap() == body);
            !mount.fs.passes_through()
        });
        assert!(fs::read(mount.path("run/a")).unwrap() == body);
        fs::create_dir(mount.path("mine")).unwrap();
        let staged = File::create(mount.path("mine/a")).unwrap();
        let mode = mount.fs.open_table().mode(staged.metadata().unwrap().ino());
        assert!(matches!(mode, Some(IoMode::Passthrough(_))), "staged files are elsewhere");
    }
    unmount_disk(Path::new(&merged));
}

#[test]
fn a_full_cache_disk_is_passed_by() {
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "this test mounts a small disk, which takes root");
    {
        let setup = Setup { cache_dir: Some(disk.path().join("cache")), ..Setup::default() };
        let mount = TestMount::with(&setup);
        let body: Vec<u8> = (0..20_000_000_u32).map(|i| (i / 7) as u8).collect();
        mount.publish("run/big", body.clone());
        assert_eq!(fs::read(mount.path("run/big")).unwrap(), body);
        assert_eq!(fs::read(mount.path("run/big")).unwrap(), body);
    }
    unmount_disk(disk.path());
}
