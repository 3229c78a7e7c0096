//! Staged files: like files on a local disk.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::SystemTime;

use dsfs::name::DatasetName;
use dsfs::staging::StagingError;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::wait_until;
use crate::semantics::errno;

/// Runs the check with the kernel doing the I/O and with the daemon doing it.
fn in_both_modes(check: impl Fn(&TestMount, PathBuf)) {
    for passthrough in [true, false] {
        let mount = TestMount::with(&Setup { passthrough, ..Setup::default() });
        fs::create_dir(mount.path("run")).unwrap();
        check(&mount, mount.path("run"));
    }
}

#[test]
fn create_write_append_truncate() {
    in_both_modes(|_, run| {
        let path = run.join("a");
        fs::write(&path, "hello").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b" world").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(b"HELLO", 0).unwrap();
        file.set_len(7).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 7);
        file.set_len(9).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"HELLO w\0\0");
        File::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), libc::EEXIST);
        fs::write(&path, "x").unwrap();
        let truncated = Command::new("truncate").args(["--size", "3"]).arg(&path).status().unwrap();
        assert!(truncated.success());
        assert_eq!(fs::read(&path).unwrap(), b"x\0\0");
    });
}

#[test]
fn writes_go_back_and_leave_holes() {
    in_both_modes(|_, run| {
        let mut file = File::create_new(run.join("a")).unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(2)).unwrap();
        file.write_all(b"xx").unwrap();
        file.seek(SeekFrom::Start(5 << 30)).unwrap();
        file.write_all(b"end").unwrap();
        drop(file);
        let mut file = File::open(run.join("a")).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), (5 << 30) + 3);
        assert!(meta.blocks() < 100, "a hole takes no space");
        let mut head = [0; 12];
        file.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"01xx456789\0\0");
        file.seek(SeekFrom::End(-3)).unwrap();
        let mut tail = String::new();
        file.read_to_string(&mut tail).unwrap();
        assert_eq!(tail, "end");
    });
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    in_both_modes(|_, run| {
        let path = run.join("a");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"still").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
        file.write_all(b" here").unwrap();
        file.set_len(8).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still he");
        fs::write(&path, "another").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        assert_eq!(file.metadata().unwrap().len(), 8);
    });
}

#[test]
fn renames_over_open_files_and_of_directories() {
    in_both_modes(|_, run| {
        fs::write(run.join("old"), "old").unwrap();
        fs::write(run.join("new"), "new").unwrap();
        let mut open = File::open(run.join("old")).unwrap();
        fs::rename(run.join("new"), run.join("old")).unwrap();
        assert_eq!(fs::read(run.join("old")).unwrap(), b"new");
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old", "the handle keeps what it opened");
        fs::create_dir_all(run.join("d/e")).unwrap();
        fs::write(run.join("d/e/f"), "deep").unwrap();
        let ino = fs::metadata(run.join("d/e/f")).unwrap().ino();
        fs::rename(run.join("d"), run.join("moved")).unwrap();
        assert_eq!(fs::read(run.join("moved/e/f")).unwrap(), b"deep");
        assert_eq!(fs::metadata(run.join("moved/e/f")).unwrap().ino(), ino);
        assert!(!run.join("d").exists());
        assert_eq!(errno(fs::rename(run.join("moved"), run.join("moved/e/in"))), libc::EINVAL);
        assert_eq!(errno(fs::remove_dir(run.join("moved"))), libc::ENOTEMPTY);
        assert_eq!(errno(fs::remove_file(run.join("moved"))), libc::EISDIR);
        fs::remove_dir_all(run.join("moved")).unwrap();
    });
}

#[test]
fn a_file_renamed_while_it_is_written_keeps_its_bytes() {
    in_both_modes(|_, run| {
        let mut file = File::create(run.join("tmp")).unwrap();
        file.write_all(b"first ").unwrap();
        fs::rename(run.join("tmp"), run.join("final")).unwrap();
        file.write_all(b"second").unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read(run.join("final")).unwrap(), b"first second");
    });
}

#[test]
fn modes_and_times_are_kept() {
    in_both_modes(|_, run| {
        let path = run.join("a");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789);
        OpenOptions::new().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o755);
        assert_eq!(meta.modified().unwrap(), time);
        fs::create_dir(run.join("d")).unwrap();
        let dir = File::open(run.join("d")).unwrap();
        dir.set_modified(time).unwrap();
        assert_eq!(fs::metadata(run.join("d")).unwrap().modified().unwrap(), time);
        dir.sync_all().unwrap();
    });
}

#[test]
fn space_can_be_reserved_and_locks_exclude() {
    in_both_modes(|_, run| {
        let path = run.join("a");
        let file = File::create_new(&path).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        file.lock().unwrap();
        let other = File::open(&path).unwrap();
        assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
        file.unlock().unwrap();
        other.try_lock().unwrap();
    });
}

#[test]
fn a_shared_mapping_writes_to_the_file() {
    in_both_modes(|_, run| {
        let path = run.join("a");
        let script = "import mmap,sys\n\
            f=open(sys.argv[1],'w+b'); f.truncate(100000)\n\
            m=mmap.mmap(f.fileno(),0)\n\
            m[0:5]=b'first'; m[99995:100000]=b'final'; m.flush(); m.close(); f.close()\n\
            b=open(sys.argv[1],'rb').read(); print(len(b), b[:5], b[-5:])\n";
        let output = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000 b'first' b'final'", "{output:?}");
    });
}

#[test]
fn data_written_here_is_in_the_staging_area_as_plain_files() {
    in_both_modes(|mount, run| {
        fs::create_dir(run.join("d")).unwrap();
        fs::write(run.join("d/a"), "plain").unwrap();
        let found =
            Command::new("grep").args(["-rl", "plain"]).arg(mount.beside().join("state")).output().unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(found.trim().ends_with("d/a"), "{found:?}");
    });
}

#[test]
fn a_listing_does_not_cut_off_what_is_being_appended() {
    in_both_modes(|_, run| {
        let path = run.join("log");
        let mut log = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        log.write_all(b"first ").unwrap();
        let listing = fs::read_dir(&run).unwrap(); // opened, and not read yet
        log.write_all(b"second ").unwrap();
        for entry in listing {
            assert_eq!(entry.unwrap().metadata().unwrap().len(), 13);
        }
        log.write_all(b"third").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first second third");
    });
}

#[test]
fn what_goes_while_a_directory_is_read_does_not_come_back() {
    in_both_modes(|_, run| {
        fs::write(run.join("a"), "a").unwrap();
        fs::write(run.join("b"), "b").unwrap();
        let listing = fs::read_dir(&run).unwrap();
        fs::remove_file(run.join("a")).unwrap();
        let names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.contains(&"b".into()), "{names:?}");
        assert!(!run.join("a").exists());
        assert_eq!(errno(File::open(run.join("a"))), libc::ENOENT);
    });
}

#[test]
fn a_directory_made_anew_works_while_somebody_stands_in_the_old_one() {
    in_both_modes(|_, run| {
        let dir = run.join("out");
        fs::create_dir(&dir).unwrap();
        let _stands_in_it = File::open(&dir).unwrap();
        fs::remove_dir(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), "x").unwrap();
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"x");
    });
}

#[test]
fn what_is_mapped_for_writing_is_not_committed() {
    in_both_modes(|mount, run| {
        let script = "import mmap,sys,os\n\
            f=open(sys.argv[1],'w+b'); f.truncate(4096); m=mmap.mmap(f.fileno(),0); f.close()\n\
            print('mapped', flush=True); sys.stdin.readline(); m[0:1]=b'x'; m.close()\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(run.join("a"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 7];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let staged = mount.staging.dataset(&DatasetName::parse("run").unwrap()).unwrap();
        let refused = staged.freeze("01JD00000000000000000000TX");
        assert!(matches!(refused, Err(StagingError::OpenForWriting { .. })), "{refused:?}");
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success());
        // A file that only readers have open is no obstacle, whoever wrote it before.
        let _reader = File::open(run.join("a")).unwrap();
        let mut sealed = None;
        wait_until("the kernel to let go of the mapping", || {
            sealed = staged.freeze("01JD00000000000000000000TX").ok();
            sealed.is_some()
        });
        staged.thaw(&sealed.unwrap()).unwrap();
        assert_eq!(fs::read(run.join("a")).unwrap()[0], b'x');
    });
}

#[test]
fn what_is_being_committed_is_read_and_not_changed() {
    in_both_modes(|mount, run| {
        let path = run.join("a");
        fs::write(&path, "sealed").unwrap();
        let staged = mount.staging.dataset(&DatasetName::parse("run").unwrap()).unwrap();
        let mut sealed = None;
        // The kernel closes a file a moment after close(2) has returned.
        wait_until("the writer's handle to be closed", || {
            sealed = staged.freeze("01JD00000000000000000000TX").ok();
            sealed.is_some()
        });
        assert_eq!(fs::read(&path).unwrap(), b"sealed");
        assert_eq!(errno(OpenOptions::new().write(true).open(&path)), libc::EBUSY);
        assert_eq!(errno(fs::remove_file(&path)), libc::EBUSY);
        assert_eq!(errno(fs::rename(&path, run.join("b"))), libc::EBUSY);
        assert_eq!(errno(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))), libc::EBUSY);
        fs::write(run.join("next"), "for the next commit").unwrap();
        staged.thaw(&sealed.unwrap()).unwrap();
        fs::write(&path, "open again").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"open again");
        assert_eq!(fs::read(run.join("next")).unwrap(), b"for the next commit");
    });
}

#[test]
fn a_directory_that_was_removed_here_is_shown_when_others_publish_it() {
    let mount = TestMount::with(&Setup { catalog_ttl: Duration::from_millis(50), ..Setup::default() });
    mount.publish("run/z", "z");
    fs::create_dir(mount.path("run/d")).unwrap();
    fs::remove_dir(mount.path("run/d")).unwrap();
    mount.publish("run/d/x", "x");
    wait_until("it is listed", || {
        fs::read_dir(mount.path("run")).unwrap().any(|entry| entry.unwrap().file_name() == "d")
    });
    assert_eq!(fs::read(mount.path("run/d/x")).unwrap(), b"x");
}
