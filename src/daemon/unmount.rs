//! Unmounting from outside: when there is no daemon any more to ask.

use std::io;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Unmounts, unless somebody is using the mount (`ResourceBusy`).
///
/// # Errors
/// The system's own, or what fusermount3 said.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    run(mountpoint, UnmountFlags::empty(), &["-u"])
}

/// Takes the mount out of sight at once; files that are open there stay usable to their users.
///
/// # Errors
/// As for [`unmount`].
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    run(mountpoint, UnmountFlags::DETACH, &["-u", "-z"])
}

/// With the system call if this user may, else with fusermount3, which may for the user's own mounts.
fn run(mountpoint: &Path, flags: UnmountFlags, arguments: &[&str]) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(err) => return Err(err.into()),
    }
    let output =
        Command::new("fusermount3").args(arguments).arg("--").arg(mountpoint).stdin(Stdio::null()).output();
    let output = output.map_err(|err| io::Error::new(err.kind(), format!("fusermount3: {err}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if words.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, words))
}
