//! Directories, names, and what is refused.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::RenameFlags;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::wait_until;
use crate::semantics::errno;

fn names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn datasets_and_directories_are_listed() {
    let mount = TestMount::new();
    mount.publish("run/data.jsonl", "{}");
    mount.publish("run/frames/0.png", "x");
    mount.publish("run/empty/", "");
    mount.publish("val/data.jsonl", "{}");
    mount.publish("loose", "not a dataset");
    assert_eq!(names(&mount.path("")), set(["run", "val"]));
    assert_eq!(names(&mount.path("run")), set(["data.jsonl", "frames", "empty"]));
    assert_eq!(names(&mount.path("run/empty")), set([]));
    fs::create_dir(mount.path("new")).unwrap();
    fs::write(mount.path("run/frames/1.png"), "y").unwrap();
    assert_eq!(names(&mount.path("")), set(["new", "run", "val"]));
    assert_eq!(names(&mount.path("run/frames")), set(["0.png", "1.png"]));
}

#[test]
fn names_are_kept_to_the_letter() {
    let mount = TestMount::new();
    let long = "x".repeat(255);
    let odd = ["with space", "ünïcödé", "100%", "a+b", "new\nline", "tab\t", "quote'\"", &long, "-dash", "*"];
    fs::create_dir(mount.path("run")).unwrap();
    for name in odd {
        mount.publish(&format!("pub/{name}"), name.to_owned());
    }
    for name in odd {
        fs::write(mount.path("run").join(name), name).unwrap();
        assert_eq!(fs::read_to_string(mount.path("run").join(name)).unwrap(), name);
        assert_eq!(fs::read_to_string(mount.path("pub").join(name)).unwrap(), name);
    }
    assert_eq!(names(&mount.path("run")), set(odd));
    assert_eq!(names(&mount.path("pub")), set(odd));
}

#[test]
fn names_that_cannot_be_keys_are_refused_and_leave_nothing() {
    let mount = TestMount::new();
    fs::create_dir(mount.path("run")).unwrap();
    let not_utf8 = mount.path("run").join(OsStr::from_bytes(b"bad\xff"));
    assert_eq!(errno(fs::write(&not_utf8, "x")), libc::EILSEQ);
    assert_eq!(errno(fs::create_dir(&not_utf8)), libc::EILSEQ);
    assert_eq!(errno(fs::write(mount.path("run").join("x".repeat(256)), "x")), libc::ENAMETOOLONG);
    // Five directories of 200 letters are fine for a file system and too long for a key.
    let mut deep = mount.path("run");
    let deepest = (0..6).find_map(|_| {
        deep = deep.join("d".repeat(200));
        fs::create_dir(&deep).err()
    });
    assert_eq!(deepest.and_then(|err| err.raw_os_error()), Some(libc::ENAMETOOLONG));
    let staged = mount.staging.dataset(&dsfs::name::DatasetName::parse("run").unwrap()).unwrap();
    assert!(staged.contents().unwrap().files.is_empty());
}

#[test]
fn keys_that_cannot_be_shown_are_left_out() {
    let mount = TestMount::new();
    for path in ["run/ok", "run//double", "run/../up", "run/both", "run/both/below"] {
        mount.publish(path, "x");
    }
    assert_eq!(names(&mount.path("run")), set(["ok", "both"]));
    assert!(mount.path("run/both").is_dir(), "a directory wins over an object of the same name");
}

#[test]
fn ten_thousand_files_in_one_directory() {
    let mount = TestMount::new();
    for i in 0..10_000 {
        mount.publish(&format!("run/f{i:05}"), "x");
    }
    let listed = names(&mount.path("run"));
    assert_eq!(listed.len(), 10_000);
    assert!(listed.contains("f09999"));
    fs::create_dir(mount.path("new")).unwrap();
    for i in 0..10_000 {
        fs::write(mount.path("new").join(format!("f{i:05}")), "").unwrap();
    }
    assert_eq!(names(&mount.path("new")), listed);
    let total: u64 =
        fs::read_dir(mount.path("run")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(total, 10_000);
}

#[test]
fn the_kernel_lets_go_of_what_was_looked_up_long_ago() {
    let setup = Setup { inodes_max: 100, ..Setup::default() };
    let mount = TestMount::with(&setup);
    let name = |n: usize| format!("run/{n:03}");
    (0..600).for_each(|n| drop(mount.publish(&name(n), name(n))));
    let first = File::open(mount.path(&name(0))).unwrap();
    (0..600).for_each(|n| assert_eq!(fs::metadata(mount.path(&name(n))).unwrap().len(), 7));
    wait_until("most are forgotten", || {
        fs::metadata(mount.path(&name(0))).unwrap();
        mount.fs.inode_count() <= 200
    });
    let same = fs::metadata(mount.path(&name(0))).unwrap().ino();
    assert_eq!(first.metadata().unwrap().ino(), same, "what is open stays");
    for n in [0, 1, 300, 599] {
        assert_eq!(fs::read_to_string(mount.path(&name(n))).unwrap(), name(n));
    }
}

#[test]
fn the_top_of_the_mount_holds_datasets_only() {
    let mount = TestMount::new();
    mount.publish("run/a", "x");
    assert_eq!(errno(fs::write(mount.path("file"), "x")), libc::EPERM);
    assert_eq!(errno(fs::create_dir(mount.path("run"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(mount.path(".hidden"))), libc::EINVAL);
    assert_eq!(errno(fs::metadata(mount.path(".git"))), libc::ENOENT);
    fs::create_dir(mount.path("new")).unwrap();
    assert_eq!(errno(fs::rename(mount.path("new"), mount.path("newer"))), libc::EXDEV);
    fs::write(mount.path("new/a"), "x").unwrap();
    assert_eq!(errno(fs::rename(mount.path("new/a"), mount.path("run/b"))), libc::EXDEV);
    assert_eq!(errno(fs::remove_dir(mount.path("new"))), libc::ENOTEMPTY);
    fs::remove_file(mount.path("new/a")).unwrap();
    fs::remove_dir(mount.path("new")).unwrap();
    assert_eq!(names(&mount.path("")), set(["run"]));
}

#[test]
fn links_and_devices_are_refused() {
    let mount = TestMount::new();
    fs::create_dir(mount.path("run")).unwrap();
    fs::write(mount.path("run/a"), "x").unwrap();
    assert_eq!(errno(symlink("a", mount.path("run/link"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(mount.path("run/a"), mount.path("run/b"))), libc::EPERM);
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        mount.path("run/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    assert_eq!(errno(fifo.map_err(io::Error::from)), libc::EPERM);
    assert_eq!(errno(fs::read_link(mount.path("run/a"))), libc::EINVAL);
}

#[test]
fn owners_stay_as_they_are() {
    let mount = TestMount::new();
    fs::create_dir(mount.path("run")).unwrap();
    let path = mount.path("run/a");
    fs::write(&path, "x").unwrap();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
    assert_eq!(errno(std::os::unix::fs::chown(&path, Some(uid + 1), None)), libc::EPERM);
}

#[test]
fn renames_have_the_kernels_flags() {
    let mount = TestMount::new();
    fs::create_dir(mount.path("run")).unwrap();
    let (a, b) = (mount.path("run/a"), mount.path("run/b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    let rename = |flags| {
        rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).map_err(io::Error::from)
    };
    assert_eq!(errno(rename(RenameFlags::NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(rename(RenameFlags::EXCHANGE)), libc::EINVAL);
    rename(RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"a");
    assert!(!a.exists());
}

#[test]
fn df_shows_the_staging_disk() {
    let mount = TestMount::new();
    let shown = rustix::fs::statvfs(mount.path("")).unwrap();
    let disk = rustix::fs::statvfs(mount.beside()).unwrap();
    assert_eq!(shown.f_blocks * shown.f_frsize, disk.f_blocks * disk.f_frsize);
    assert_eq!(shown.f_namemax, 255);
    assert!(shown.f_bavail > 0);
}
