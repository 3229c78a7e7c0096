//! A file that is being downloaded: under a temporary name in the directory of its target, and, if it
//! comes in pieces, with a map beside it that says which are there.
//!
//! ```text
//! .dsfs-part-<hash of the name>        the bytes, as long as the file will be
//! .dsfs-part-<hash of the name>.map    {"format":1, key, etag, size_bytes, piece_bytes, boot}
//!                                      0 1a2b3c4d          piece 0 is there, with this CRC32C
//!                                      …
//! ```
//!
//! Nothing here is synced: the map counts only in the run of the machine (`boot`) in which it was
//! written, since in that one the page cache is what was written. After a power loss the file is fetched
//! anew. Whoever writes holds a lock on the file, so that two downloads never share it.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::FlockOperation;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::durable;
use crate::local::TEMPORARY_PREFIX;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::transfer::TransferError;

const FORMAT_VERSION: u32 = 1;
/// Bytes of the hash in a temporary name, before they are written in hexadecimal.
const HASH_BYTES: usize = 8;
/// How often a temporary file may be taken away under our hands before that is an error.
const OPEN_TRIES: u32 = 8;

/// A file on its way.
#[derive(Debug)]
pub(super) struct Partial {
    pub file: File,
    path: PathBuf,
    target: PathBuf,
    /// Whether the file has a map beside it.
    mapped: bool,
}

/// Which pieces of a file are there.
#[derive(Debug)]
pub(super) struct PieceMap {
    file: Mutex<File>,
    path: PathBuf,
}

/// What a map is about; another version, or other pieces, and it means nothing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    format: u32,
    key: String,
    etag: ETag,
    size_bytes: u64,
    piece_bytes: u64,
    /// None, and the map is never relied on.
    boot: Option<String>,
}

fn temporary_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default();
    let hash = Sha256::digest(name.as_encoded_bytes());
    target.with_file_name(format!("{TEMPORARY_PREFIX}{}", HEXLOWER.encode(&hash[..HASH_BYTES])))
}

impl Partial {
    /// Opens the temporary file for `target`, made if it is missing, and locks it.
    pub fn open(target: &Path) -> Result<Self, TransferError> {
        let path = temporary_of(target);
        let failed = |source| TransferError::io(&path, source);
        for _ in 0..OPEN_TRIES {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o666);
            let file = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let what = format!("another dsfs is downloading {}", target.display());
                    return Err(TransferError::Other(what));
                }
                Err(err) => return Err(failed(err.into())),
            }
            // Between open and lock it may have been renamed to its target, which is not ours to write to.
            let ours = file.metadata().map_err(failed)?;
            let named = fs::symlink_metadata(&path);
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Self { file, path, target: target.to_owned(), mapped: false });
            }
        }
        Err(failed(io::Error::other("somebody keeps taking the temporary file away")))
    }

    /// Where the bytes are for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Empties it: whatever an earlier run has left is of no use.
    pub fn clear(&self) -> Result<(), TransferError> {
        let map = map_of(&self.path);
        match fs::remove_file(&map) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(TransferError::io(map, source));
            }
            Ok(()) | Err(_) => {}
        }
        self.file.set_len(0).map_err(|source| TransferError::io(&self.path, source))
    }

    /// The map of its pieces, and those that are there already; room is made for the whole file.
    pub fn map(
        &mut self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
        piece_bytes: u64,
    ) -> Result<(PieceMap, BTreeMap<u64, u32>), TransferError> {
        let boot = durable::boot_id();
        let (key, etag) = (key.to_string(), etag.clone());
        let about = About { format: FORMAT_VERSION, key, etag, size_bytes, piece_bytes, boot };
        let path = map_of(&self.path);
        let failed = |source| TransferError::io(&path, source);
        let whole = self.file.metadata().is_ok_and(|meta| meta.len() == size_bytes);
        let there = if whole { read_map(&path, &about) } else { None };
        self.mapped = true;
        if there.is_none() {
            self.clear()?;
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o666).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&path).map_err(failed)?;
        let there = match there {
            Some(there) => {
                file.write_all(b"\n").map_err(failed)?; // behind a line that may have been torn
                there
            }
            None => {
                self.reserve(size_bytes)?;
                let mut line = serde_json::to_vec(&about).map_err(|err| failed(err.into()))?;
                line.push(b'\n');
                file.set_len(0).and_then(|()| file.write_all(&line)).map_err(failed)?;
                BTreeMap::new()
            }
        };
        Ok((PieceMap { file: Mutex::new(file), path }, there))
    }

    /// Takes the room that the file will need, so that a full disk is noticed before anything is fetched.
    fn reserve(&self, size_bytes: u64) -> Result<(), TransferError> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size_bytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.file.set_len(size_bytes).map_err(|source| TransferError::io(&self.path, source))
            }
            Err(err) => Err(TransferError::io(&self.target, err.into())),
        }
    }

    /// Gives the file its name. With `overwrite` it takes the place of whatever file has that now.
    /// Returns the time of modification that it has then.
    pub fn finish(self, overwrite: bool, modified: SystemTime) -> Result<SystemTime, TransferError> {
        let failed = |source| TransferError::io(&self.target, source);
        self.file.set_modified(modified).map_err(failed)?;
        let modified = self.file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, flags) {
            // File systems without the flag have at least this.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::link(&self.path, &self.target).and_then(|()| rustix::fs::unlink(&self.path))
            }
            answer => answer,
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let what = vec![self.target.display().to_string()];
                self.discard();
                return Err(TransferError::InTheWay { what });
            }
            Err(err) => return Err(failed(err.into())),
        }
        if self.mapped {
            fs::remove_file(map_of(&self.path)).map_err(failed)?;
        }
        Ok(modified)
    }

    /// Takes it away. What cannot be removed is written over by the next download.
    pub fn discard(&self) {
        remove(&self.path);
    }
}

/// Takes away what a download of `target` may have left, unless another one is at it.
pub(super) fn discard(target: &Path) {
    let path = temporary_of(target);
    let Ok(file) = File::open(&path) else { return };
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove(&path);
    }
}

fn remove(path: &Path) {
    for path in [&map_of(path), path] {
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} stays: {err}", path.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn map_of(path: &Path) -> PathBuf {
    path.with_extension("map")
}

fn read_map(path: &Path, about: &About) -> Option<BTreeMap<u64, u32>> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let is_ours = serde_json::from_str::<About>(lines.next()?).ok()? == *about && about.boot.is_some();
    is_ours.then_some(())?;
    let piece = |line: &str| {
        let (index, crc) = line.split_once(' ')?;
        // Eight digits: a torn line is no line.
        (crc.len() == 8).then_some(())?;
        Some((index.parse().ok()?, u32::from_str_radix(crc, 16).ok()?))
    };
    Some(lines.filter_map(piece).collect())
}

impl PieceMap {
    /// A piece is there.
    pub fn add(&self, index: u64, crc: u32) -> Result<(), TransferError> {
        let line = format!("{index} {crc:08x}\n");
        let written = self.file.lock().write_all(line.as_bytes());
        written.map_err(|source| TransferError::io(&self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn key() -> ObjectKey {
        ObjectKey::from_listing("a/b")
    }

    #[test]
    fn pieces_are_remembered_for_the_same_version_only() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let etag = ETag::from_server("v1");
        let mut partial = Partial::open(&target).unwrap();
        let (map, there) = partial.map(&key(), &etag, 10, 4).unwrap();
        assert!(there.is_empty());
        map.add(1, 0xabc).unwrap();
        map.file.lock().write_all(b"2 00").unwrap(); // killed while it wrote
        drop((map, partial));

        let mut partial = Partial::open(&target).unwrap();
        let (map, there) = partial.map(&key(), &etag, 10, 4).unwrap();
        assert_eq!(there, BTreeMap::from([(1, 0xabc)]));
        map.add(0, 7).unwrap();
        drop((map, partial));
        let mut partial = Partial::open(&target).unwrap();
        assert_eq!(partial.map(&key(), &etag, 10, 4).unwrap().1.len(), 2);
        drop(partial);

        let mut partial = Partial::open(&target).unwrap();
        let (_, there) = partial.map(&key(), &ETag::from_server("v2"), 10, 4).unwrap();
        assert!(there.is_empty(), "another version has other bytes");
        assert_eq!(partial.file.metadata().unwrap().len(), 10);
        drop(partial);

        // It comes in one piece this time.
        let partial = Partial::open(&target).unwrap();
        partial.clear().unwrap();
        partial.finish(false, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no map is left");
    }

    #[test]
    fn a_file_appears_whole_and_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let write = || {
            let partial = Partial::open(&target).unwrap();
            partial.file.write_all_at(b"new", 0).unwrap();
            partial
        };
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        write().finish(false, time).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().modified().unwrap(), time);
        fs::write(&target, "theirs").unwrap();
        assert!(matches!(write().finish(false, time), Err(TransferError::InTheWay { .. })));
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        write().finish(true, time).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn two_downloads_of_one_file_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let first = Partial::open(&target).unwrap();
        let second = Partial::open(&target).unwrap_err();
        assert!(second.to_string().contains("another dsfs"), "{second}");
        drop(first);
        Partial::open(&target).unwrap().discard();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
