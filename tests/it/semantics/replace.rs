//! Mounts with `--allow-replace`: a staged copy takes a published file's place.

use std::fs;
use std::fs::OpenOptions;
use std::io::Write;

use dsfs::name::DatasetName;
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
