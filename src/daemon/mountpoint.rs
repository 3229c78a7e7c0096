//! Whether a mount can be made where the user wants it, before anything is started.
//!
//! Each way in which it cannot is a sentence and a hint; the kernel's own answer would be EINVAL.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;
use tracing::info;

use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::mountinfo;
use crate::fuse::Unmounter;

/// A directory that a mount can be made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mountpoint {
    /// Absolute, without symbolic links: as the kernel's table will have it.
    pub path: PathBuf,
    /// It was made for this mount.
    pub created: bool,
}

/// Checks a mount point, and mends what is harmless: a stale dead mount is cleared, a missing directory
/// is made if the one above it is there.
///
/// # Errors
/// A sentence and a hint.
pub fn prepare(given: &Path, nonempty: bool) -> Result<Mountpoint, Failure> {
    let given = std::path::absolute(given)
        .map_err(|err| failed(format!("{} cannot be a mount point: {err}", given.display())))?;
    clear_stale(&given)?;
    let created = match fs::metadata(&given) {
        Ok(meta) if meta.is_dir() => false,
        Ok(_) => return Err(usage(format!("{} is not a directory", given.display()))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => create(&given)?,
        Err(err) => return Err(failed(format!("{} cannot be used: {err}", given.display()))),
    };
    let path = fs::canonicalize(&given)
        .map_err(|err| failed(format!("{} cannot be used: {err}", given.display())))?;
    refuse_mounted(&path)?;
    if !nonempty && !created {
        refuse_nonempty(&path)?;
    }
    Ok(Mountpoint { path, created })
}

/// The path of a mount point, absolute and without symbolic links as far as that can be told: also when
/// the mount is dead, and its own directory answers nothing.
#[must_use]
pub fn resolve(given: &Path) -> PathBuf {
    let absolute = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
    let absolute: PathBuf = absolute.components().collect();
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    if let Ok(Some(_)) = mountinfo::mount_at(&absolute) {
        return absolute;
    }
    let below = fs::canonicalize(parent).map_or_else(|_| absolute.clone(), |parent| parent.join(name));
    if let Ok(Some(_)) = mountinfo::mount_at(&below) {
        return below; // whoever is asked for more may be a daemon that hangs
    }
    fs::canonicalize(&absolute).unwrap_or(below)
}

/// Whether what is mounted at `path` has no daemon any more: each access fails with ENOTCONN.
#[must_use]
pub fn is_stale(path: &Path) -> bool {
    // By statfs, which the kernel never answers from its cache, as it does stat for a second.
    matches!(rustix::fs::statvfs(path), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Checks what every FUSE mount needs of the machine.
///
/// # Errors
/// A sentence and a hint.
pub fn check_fuse(search_path: &str, is_root: bool) -> Result<(), Failure> {
    check_device()?;
    if !is_root && find_program("fusermount3", search_path).is_none() {
        return Err(failed("fusermount3 is not installed; without it only root can mount")
            .hint("`sudo apt-get install fuse3`"));
    }
    Ok(())
}

/// Checks that /dev/fuse is there and may be opened.
///
/// # Errors
/// A sentence and a hint.
pub fn check_device() -> Result<(), Failure> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(failed("/dev/fuse does not exist")
            .hint("`modprobe fuse`; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN")),
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("/dev/fuse cannot be opened by this user")
                .hint("`sudo chmod 666 /dev/fuse`, which is what distributions have"))
        }
        Err(err) => Err(failed(format!("/dev/fuse cannot be opened: {err}"))),
    }
}

/// A program's path, found as a shell would.
#[must_use]
pub fn find_program(name: &str, search_path: &str) -> Option<PathBuf> {
    search_path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Failed, message)
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Usage, message)
}

/// Clears a mount whose daemon has died.
fn clear_stale(path: &Path) -> Result<(), Failure> {
    if !is_stale(path) {
        return Ok(());
    }
    let path = resolve(path);
    // A mount of another program may only be reconnecting; it is not ours to end.
    if !mountinfo::mount_at(&path).ok().flatten().is_some_and(|mount| mount.is_dsfs()) {
        return Err(failed(format!(
            "{} is a mount of another program, which does not answer",
            path.display()
        ))
        .hint(format!("end it with its own program, or `fusermount3 -u -z {}`", path.display())));
    }
    Unmounter::new(&path).unmount(true).map_err(|err| {
        failed(format!("a dead mount at {} cannot be cleared: {err}", path.display()))
            .hint(format!("`fusermount3 -u -z {}`", path.display()))
    })?;
    info!("cleared the mount that a dead daemon left at {}", path.display());
    Ok(())
}

fn create(path: &Path) -> Result<bool, Failure> {
    let parent = path.parent().unwrap_or(path);
    if !parent.is_dir() {
        return Err(Failure::new(FailureKind::NotFound, format!("{} does not exist", parent.display()))
            .hint(format!("`mkdir -p {}`", path.display())));
    }
    fs::create_dir(path)
        .map_err(|err| failed(format!("the mount point {} cannot be made: {err}", path.display())))?;
    Ok(true)
}

fn refuse_mounted(path: &Path) -> Result<(), Failure> {
    let mount = mountinfo::mount_at(path).map_err(|err| {
        failed(format!("the table of mounts cannot be read: {err}")).hint("is /proc mounted?")
    })?;
    match mount {
        Some(mount) if mount.is_dsfs() => {
            Err(failed(format!("{} is mounted already: {}", path.display(), mount.source))
                .hint(format!("`dsfs status`, or `dsfs umount {}` first", path.display())))
        }
        Some(mount) if mount.is_fuse() => {
            Err(failed(format!("something else is mounted at {}: {}", path.display(), mount.fs_type))
                .hint(format!("`fusermount3 -u {}` first, or take another directory", path.display())))
        }
        Some(_) | None => Ok(()),
    }
}

fn refuse_nonempty(path: &Path) -> Result<(), Failure> {
    let mut entries = fs::read_dir(path)
        .map_err(|err| failed(format!("the mount point {} cannot be read: {err}", path.display())))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(usage(format!(
            "the mount point {} is not empty; a mount would hide what is in it",
            path.display()
        ))
        .hint("take an empty directory, or --nonempty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_made_if_the_one_above_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let made = prepare(&base.join("new"), false).unwrap();
        assert_eq!(made, Mountpoint { path: base.join("new"), created: true });
        let again = prepare(&base.join("new"), false).unwrap();
        assert!(!again.created);
        let failure = prepare(&base.join("a/b"), false).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(failure.hint.unwrap().contains("mkdir -p"));
    }

    #[test]
    fn files_and_full_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let not_a_directory = prepare(&dir.path().join("file"), false).unwrap_err();
        assert!(not_a_directory.message.contains("not a directory"));
        let full = prepare(dir.path(), false).unwrap_err();
        assert!(full.message.contains("not empty"));
        assert!(prepare(dir.path(), true).is_ok());
    }

    #[test]
    fn links_on_the_way_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        assert_eq!(prepare(&base.join("link"), false).unwrap().path, base.join("real"));
        assert_eq!(resolve(&base.join("link")), base.join("real"));
        assert_eq!(resolve(&base.join("link/gone")), base.join("real/gone"));
    }
}
