//! Mounts with `--allow-replace`: a staged copy takes a published file's place.

use std::fs;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use dsfs::fs::change::Changes;
use dsfs::fs::error::FsError;
use dsfs::name::DatasetName;
use dsfs::name::DirPath;
use dsfs::name::RelPath;
use dsfs::staging::BaseKind;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;
use crate::common::mount::key;

fn mount() -> TestMount {
    let mount = TestMount::with(&Setup { allow_replace: true, ..Setup::default() });
    mount.publish("run/a", "published");
    mount
}

fn base(mount: &TestMount, path: &str) -> Option<BaseKind> {
    let staged = mount.staging.dataset(&DatasetName::parse("run").unwrap())?;
    staged.base(&RelPath::parse(path).unwrap()).map(|base| base.kind)
}

/// Whatever happens in the mount, the bucket is as it was.
fn assert_untouched(mount: &TestMount) {
    let body = mount.store.snapshot().remove(&key("run/a")).unwrap();
    assert_eq!(body, "published");
}

#[test]
fn writing_copies_the_file_first() {
    let mount = mount();
    let path = mount.path("run/a");
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b" and more").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "published and more");
    assert_eq!(base(&mount, "a"), Some(BaseKind::Replace));
    assert_untouched(&mount);
}

#[test]
fn truncating_and_overwriting() {
    let mount = mount();
    let path = mount.path("run/a");
    fs::write(&path, "new").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(base(&mount, "a"), Some(BaseKind::Replace));
    assert_untouched(&mount);
}

#[test]
fn saving_as_editors_do() {
    let mount = mount();
    let path = mount.path("run/a");
    fs::write(mount.path("run/a.tmp"), "edited").unwrap();
    fs::rename(mount.path("run/a.tmp"), &path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "edited");
    assert_eq!(base(&mount, "a"), Some(BaseKind::Replace));
    assert_untouched(&mount);
}

#[test]
fn a_deleted_file_stays_away() {
    let mount = mount();
    mount.publish("run/b", "stays");
    let path = mount.path("run/a");
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    let names: Vec<_> = fs::read_dir(mount.path("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(base(&mount, "a"), Some(BaseKind::Delete));
    assert_untouched(&mount);
    fs::write(&path, "again").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "again");
    fs::remove_file(&path).unwrap();
    assert!(!path.exists(), "the published file does not come back");
    assert_eq!(base(&mount, "a"), Some(BaseKind::Delete));
}

#[test]
fn moving_copies_and_deletes() {
    let mount = mount();
    let status = std::process::Command::new("mv").arg(mount.path("run/a")).arg(mount.path("run/c")).status();
    assert!(status.unwrap().success());
    assert_eq!(fs::read_to_string(mount.path("run/c")).unwrap(), "published");
    assert!(!mount.path("run/a").exists());
    assert_untouched(&mount);
}

/// A way to empty a file.
type Truncation = fn(&TestMount, u64, &tokio::runtime::Runtime) -> Result<(), FsError>;

/// The kernel looks a name up again once, after ESTALE: what it finds then must be ready to be written to.
#[test]
fn who_writes_to_a_file_that_has_just_left_staging_finds_a_copy() {
    let run = DatasetName::parse("run").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stale = |failed: Result<(), FsError>| assert_eq!(failed.unwrap_err().errno(), libc::ESTALE);
    let ways: [Truncation; 2] = [
        |mount, ino, runtime| runtime.block_on(mount.fs.open(ino, libc::O_WRONLY | libc::O_TRUNC)).map(drop),
        |mount, ino, runtime| {
            let changes = Changes { size_bytes: Some(0), ..Changes::default() };
            runtime.block_on(mount.fs.setattr(ino, None, changes)).map(drop)
        },
    ];
    for (write, is_told) in ways.iter().flat_map(|write| [(write, false), (write, true)]) {
        let mount = mount();
        let path = mount.path("run/a");
        fs::write(&path, "staged").unwrap();
        let held = fs::File::open(&path).unwrap(); // or the kernel forgets the inode with its name
        let ino = held.metadata().unwrap().ino();
        mount.staging.dataset(&run).unwrap().discard(&DirPath::root()).unwrap();
        if is_told {
            mount.fs.unstaged(&run, [RelPath::parse("a").unwrap()].iter());
        }
        assert_eq!(base(&mount, "a"), None);
        stale(write(&mount, ino, &runtime));
        assert_eq!(base(&mount, "a"), Some(BaseKind::Replace));
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "published",
            "whoever asked has not come to truncate it"
        );
        assert_untouched(&mount);
    }
}
