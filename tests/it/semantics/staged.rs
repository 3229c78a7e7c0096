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
use std::time::Duration;
use std::time::SystemTime;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
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
