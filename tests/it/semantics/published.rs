//! Published files: read like local ones, and never changed.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use std::time::SystemTime;

use dsfs::fs::open::IoMode;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::key;
use crate::common::mount::wait_until;
use crate::semantics::errno;

/// Bytes of which no two stretches are alike, so that a read from the wrong place shows.
fn patterned(len: usize) -> Vec<u8> {
    (0..len as u64 / 8 + 1)
        .flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .take(len)
        .collect()
}

#[test]
fn files_are_read_byte_for_byte_at_any_offset() {
    for passthrough in [true, false] {
        let mount = TestMount::with(&Setup { passthrough, ..Setup::default() });
        let files = [("empty", 0), ("one", 1), ("odd", 131_073), ("large", 9_000_001)];
        for (name, len) in files {
            mount.publish(&format!("run/{name}"), patterned(len));
        }
        for (name, len) in files {
            let body = patterned(len);
            let path = mount.path(&format!("run/{name}"));
            assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
            assert_eq!(fs::read(&path).unwrap(), body, "{name}");
            let file = File::open(&path).unwrap();
            for offset in [0, 1, 4095, 131_071, 131_072, 5_000_000, len.saturating_sub(10), len, len + 5] {
                let mut buffer = vec![0; 10_000];
                let count = file.read_at(&mut buffer, offset as u64).unwrap();
                let expected = body.get(offset.min(len)..(offset + 10_000).min(len)).unwrap_or_default();
                assert_eq!(&buffer[..count], expected, "{name} at {offset}");
            }
            assert_eq!(fs::read(&path).unwrap(), body, "{name} again");
        }
    }
}

#[test]
fn a_file_is_the_same_while_it_goes_over_to_the_kernel() {
    let mount = TestMount::new();
    let body = patterned(3_000_000);
    mount.publish("run/a", body.clone());
    let path = mount.path("run/a");
    // The first reads come through the daemon, later ones from the cache's file; in between the
    // pages of the first ones are dropped, while others may be reading them.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| assert!(fs::read(&path).unwrap() == body)));
        }
    });
}

#[test]
fn a_stream_is_right_where_its_pages_are_let_go_behind_it() {
    const STEP: usize = 1 << 20;
    for passthrough in [true, false] {
        let mount = TestMount::with(&Setup { passthrough, ..Setup::default() });
        let body = patterned(40 * STEP);
        mount.publish("run/large", body.clone());
        let path = mount.path("run/large");
        let file = File::open(&path).unwrap();
        let is_right = |len: usize, at: usize| {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, at as u64).unwrap();
            assert!(buffer == body[at..at + len], "{len} bytes at {at}");
        };
        for step in 0..40 {
            is_right(STEP, step * STEP);
            is_right(10_000, step * STEP / 2); // somebody goes back on the same handle
        }
        let ino = file.metadata().unwrap().ino();
        drop(file);
        // All of it was read, and so whoever opens it next has it without us, where that is permitted.
        wait_until("the file is handed over", || {
            let _open = File::open(&path).unwrap();
            let handed_over = matches!(mount.fs.open_table().mode(ino), Some(IoMode::Passthrough(_)));
            handed_over == mount.fs.passes_through()
        });
        assert!(fs::read(&path).unwrap() == body);
    }
}

#[test]
fn files_can_be_mapped() {
    let mount = TestMount::new();
    let body = patterned(3_000_000);
    mount.publish("run/a", body.clone());
    let path = mount.path("run/a");
    let script = "import mmap,sys,hashlib\n\
        f=open(sys.argv[1],'rb')\n\
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):\n \
        m=mmap.mmap(f.fileno(),0,flags=flags,prot=mmap.PROT_READ)\n \
        print(hashlib.sha256(m[:]).hexdigest())\n";
    let output = std::process::Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
    let local = mount.beside().join("copy");
    fs::write(&local, &body).unwrap();
    let expected = std::process::Command::new("sha256sum").arg(&local).output().unwrap();
    let expected = String::from_utf8_lossy(&expected.stdout).split(' ').next().unwrap().to_owned();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed.lines().collect::<Vec<_>>(), [&*expected, &*expected], "{output:?}");
}

#[test]
fn attributes_are_those_of_an_immutable_file() {
    let mount = TestMount::new();
    mount.publish("run/a", "hello");
    let meta = fs::metadata(mount.path("run/a")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
    assert_eq!((meta.len(), meta.nlink(), meta.blocks()), (5, 1, 1));
    assert_eq!(meta.uid(), rustix::process::getuid().as_raw());
    let age = SystemTime::now().duration_since(meta.modified().unwrap()).unwrap_or_default();
    assert!(age < Duration::from_secs(60), "the time of the object, {age:?} old");
}

#[test]
fn nothing_changes_a_published_file() {
    let mount = TestMount::new();
    let etag = mount.publish("run/a", "hello");
    mount.publish("run/dir/b", "x");
    let path = mount.path("run/a");
    let eperm = libc::EPERM;
    // The kernel looks at the mode first, for everybody but root.
    let for_writing = if rustix::process::getuid().is_root() { eperm } else { libc::EACCES };
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), for_writing);
    assert_eq!(errno(OpenOptions::new().append(true).open(&path)), for_writing);
    assert_eq!(errno(File::create(&path)), for_writing);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), libc::EEXIST);
    assert_eq!(errno(rustix::fs::chmod(&path, rustix::fs::Mode::RUSR).map_err(io::Error::from)), eperm);
    assert_eq!(errno(File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH)), eperm);
    assert_eq!(errno(fs::remove_file(&path)), eperm);
    assert_eq!(errno(fs::rename(&path, mount.path("run/c"))), eperm);
    assert_eq!(errno(fs::rename(mount.path("run/dir"), mount.path("run/dir2"))), eperm);
    assert_eq!(errno(fs::remove_dir(mount.path("run/dir"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(mount.path("run"))), libc::ENOTEMPTY);
    fs::write(mount.path("run/staged"), "new").unwrap();
    assert_eq!(errno(fs::rename(mount.path("run/staged"), &path)), eperm);
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(xattr(&path, "user.dsfs.etag").unwrap(), etag.as_str());
}

#[test]
fn extended_attributes_tell_the_state() {
    let mount = TestMount::new();
    mount.publish("run/a", "hello");
    fs::write(mount.path("run/b"), "new").unwrap();
    let (published, staged) = (mount.path("run/a"), mount.path("run/b"));
    assert_eq!(xattr(&published, "user.dsfs.state").unwrap(), "published");
    assert_eq!(xattr(&published, "user.dsfs.key").unwrap(), "datasets/run/a");
    assert_eq!(xattr(&staged, "user.dsfs.state").unwrap(), "staged");
    assert_eq!(xattr(&staged, "user.dsfs.key").unwrap(), "datasets/run/b");
    assert_eq!(errno(xattr(&staged, "user.dsfs.etag")), libc::ENODATA);
    assert_eq!(errno(xattr(&staged, "user.other")), libc::ENODATA);
    for name in ["system.posix_acl_access", "security.selinux", "security.capability"] {
        assert_eq!(errno(xattr(&published, name)), libc::EOPNOTSUPP, "{name}");
    }
    let set = rustix::fs::setxattr(&staged, "user.x", b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(errno(set.map_err(io::Error::from)), libc::EOPNOTSUPP);
    let mut names = vec![0_u8; 1000];
    let len = rustix::fs::listxattr(&published, &mut names).unwrap();
    let names: Vec<&[u8]> = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert!(names.contains(&&b"user.dsfs.etag"[..]), "{names:?}");
}

fn xattr(path: &std::path::Path, name: &str) -> io::Result<String> {
    let mut value = vec![0_u8; 1000];
    let len = rustix::fs::getxattr(path, name, &mut value)?;
    Ok(String::from_utf8_lossy(&value[..len]).into_owned())
}

#[test]
fn a_handle_never_mixes_two_versions() {
    let ttl = Duration::from_millis(200);
    let mount = TestMount::with(&Setup { catalog_ttl: ttl, ..Setup::default() });
    let (old, new) = (vec![b'o'; 8 << 20], vec![b'n'; 8 << 20]);
    mount.publish("run/a", old);
    let path = mount.path("run/a");
    let file = File::open(&path).unwrap();
    let mut buffer = [0; 4096];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, [b'o'; 4096]);
    mount.publish("run/a", new.clone());
    // Far from what was read: it has to be fetched, from a version that is no more.
    match file.read_exact_at(&mut buffer, 7 << 20) {
        Ok(()) => assert_eq!(buffer, [b'o'; 4096], "read ahead before the change"),
        Err(err) => assert_eq!(err.raw_os_error(), Some(libc::ESTALE)),
    }
    // Whoever opens it after the listing has expired reads the new version, whole.
    wait_until("the new version", || fs::read(&path).is_ok_and(|bytes| bytes == new));
}

#[test]
fn a_deleted_object_disappears_in_time() {
    let mount = TestMount::with(&Setup { catalog_ttl: Duration::from_millis(200), ..Setup::default() });
    mount.publish("run/a", "x");
    mount.publish("run/b", "x");
    assert!(mount.path("run/a").exists());
    mount.store.delete_out_of_band(&key("run/a"));
    wait_until("the deletion", || !mount.path("run/a").exists());
    assert!(mount.path("run/b").exists());
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let mount = TestMount::with(&Setup { read_only: true, ..Setup::default() });
    mount.publish("run/a", "hello");
    assert_eq!(fs::read(mount.path("run/a")).unwrap(), b"hello");
    assert_eq!(errno(fs::write(mount.path("run/b"), "x")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mount.path("new"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.path("run/a"))), libc::EROFS);
}

/// Files under a directory with this suffix, however deep.
fn files_with(suffix: &str, dir: &std::path::Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_with(suffix, &entry.path()),
            _ => usize::from(entry.file_name().to_string_lossy().ends_with(suffix)),
        })
        .sum()
}

#[test]
fn a_shuffled_epoch_over_several_directories_is_fetched_ahead_of_its_reader() {
    let cache = tempfile::tempdir().unwrap();
    let mount = TestMount::with(&Setup { cache_dir: Some(cache.path().to_owned()), ..Setup::default() });
    let name = |n: usize| format!("run/part={}/{n:04}.bin", n % 7);
    for n in 0..700 {
        mount.publish(&name(n), format!("file {n}"));
    }
    // 37 and 700 have no common divisor: every file once, in no order that a walk would have.
    let order = (0..700).map(|step| step * 37 % 700);
    for n in order.clone().take(60) {
        assert_eq!(fs::read(mount.path(&name(n))).unwrap(), format!("file {n}").as_bytes());
    }
    wait_until("files that nobody has opened", || files_with(".one", cache.path()) > 400);
    for n in order {
        assert_eq!(fs::read(mount.path(&name(n))).unwrap(), format!("file {n}").as_bytes());
    }
}
