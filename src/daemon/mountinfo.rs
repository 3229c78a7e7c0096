//! The kernel's table of mounts, `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

/// What dsfs's mounts are called in the table.
pub const FS_TYPE: &str = "fuse.dsfs";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device number, as `major:minor`: the same for each file of it.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// `ext4`, `fuse.dsfs`, …
    pub fs_type: String,
    /// What is mounted, in the words of the file system.
    pub source: String,
}

impl Mount {
    /// Whether it is one of dsfs's.
    #[must_use]
    pub fn is_dsfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether any FUSE file system is there.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }

    /// The device as stat(2) gives it.
    #[must_use]
    pub fn device_number(&self) -> Option<u64> {
        let (major, minor) = self.device.split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// `/proc` is not there.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount at exactly this path; the topmost, if there are several.
///
/// # Errors
/// `/proc` is not there.
pub fn mount_at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.mountpoint == path))
}

/// Parses the table. A line that is not understood is left out.
fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    // Any number of optional fields, up to a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(Mount { device, mountpoint, fs_type, source })
}

/// Undoes `\040` and its like, with which the kernel writes space, tab, newline, `\` and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /proc rw,nosuid - proc proc rw
90 22 0:52 / /home/u/my\\040data rw,nosuid,nodev,relatime shared:5 master:2 - fuse.dsfs s3://assets/datasets/ rw,user_id=0
91 22 0:53 / /mnt/a\\134b\\012c rw - fuse.rclone x rw
broken line
92 22 0:60 / /top rw - tmpfs tmpfs rw
93 22 0:61 / /top rw - fuse x rw
";

    #[test]
    fn the_table_is_read() {
        let mounts = parse(TABLE.as_bytes());
        assert_eq!(mounts.len(), 6);
        let dsfs = &mounts[2];
        assert_eq!(dsfs.mountpoint, Path::new("/home/u/my data"));
        assert!(dsfs.is_dsfs() && dsfs.is_fuse());
        assert_eq!(dsfs.source, "s3://assets/datasets/");
        assert_eq!(dsfs.device_number(), Some(rustix::fs::makedev(0, 52)));
        assert_eq!(mounts[3].mountpoint, Path::new("/mnt/a\\b\nc"));
        assert!(mounts[3].is_fuse() && !mounts[3].is_dsfs());
        assert!(!mounts[0].is_fuse());
    }

    #[test]
    fn the_topmost_mount_is_the_one_that_is_seen() {
        let topmost = parse(TABLE.as_bytes()).into_iter().rev().find(|m| m.mountpoint == Path::new("/top"));
        assert_eq!(topmost.unwrap().fs_type, "fuse");
    }

    #[test]
    fn this_machines_own_table_has_a_root() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert!(mount_at(Path::new("/no/such/place")).unwrap().is_none());
    }
}
