//! File operations that survive power loss.
//!
//! On Linux a file's bytes and the directory entry that names it are separate promises: `fsync`
//! of the file keeps the bytes, `fsync` of the directory keeps the name. Every function here
//! that returns has kept both.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::failpoint;

/// Makes the entries of a directory durable.
///
/// # Errors
/// The directory's own.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What the kernel calls this run of the machine. What was written without a sync in another one may be
/// lost, or be there by name and size alone.
#[must_use]
pub fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Makes the entry that names `path` durable.
///
/// # Errors
/// The directory's own.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// The directory that something is renamed into, for a failpoint's name; other names than plain words
/// are drawn at random.
fn into(path: &Path) -> &str {
    let dir = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    dir.filter(|name| name.len() > 2 && name.bytes().all(|byte| byte.is_ascii_lowercase())).unwrap_or("other")
}

/// Renames, and makes the new name (and the old one's absence) durable.
///
/// # Errors
/// That of rename(2) or fsync(2).
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let point = |when| move || format!("rename:{}:{when}", into(to));
    failpoint::reach(point("before"));
    fs::rename(from, to)?;
    failpoint::reach(point("renamed"));
    sync_parent(to)?;
    if from.parent() != to.parent() {
        sync_parent(from)?;
    }
    failpoint::reach(point("after"));
    Ok(())
}

/// Writes a whole file of mode 0600 under a temporary name and renames it into place: a reader, and the
/// next start after a crash, sees the old content or the new, never a part.
///
/// # Errors
/// The local disk's; then the old content is still there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(temporary, path)
}

/// Makes a private directory (0700) and those above it that are missing, durably.
///
/// # Errors
/// The local disk's.
pub fn create_private_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_private_dirs(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_parent(path),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(err) => Err(err),
    }
}
