//! The file of a small object, in one of two forms.
//!
//! *Headed*, as the cache writes it: a header, then the object's bytes. *Bare*, as it takes a local file
//! over: the file itself under a second name, its bytes alone, and the entry of its only block (see
//! [`crate::cache::format`]) in an extended attribute. That costs a fifth of writing the bytes again, and
//! no room; whoever had the file open sees no change of it.
//!
//! Both are checked whole each time they are read, so it does not matter for what is handed out whether
//! somebody can still write to a file that was taken over.

use std::fs::File;
use std::io;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;

use crate::cache::BlockCache;
use crate::cache::format;
use crate::cache::format::ENTRY_BYTES;
use crate::cache::format::HEADER_BYTES;
use crate::cache::format::Header;
use crate::cache::format::Kind;
use crate::cache::format::VersionId;
use crate::cache::last_use::LastUse;
use crate::cache::paths::Suffix;

/// The extended attribute of a bare file. Short, as it has to fit into the inode.
pub(crate) const ENTRY_ATTRIBUTE: &str = "user.dsfs";
/// The cache opens its files for reading and writing.
pub(crate) const MODE_NEEDED: u32 = 0o600;

/// What a small object's file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Size of the object in bytes.
    pub(crate) size_bytes: u64,
    /// Which of the file's times says when it was used last.
    pub(crate) last_use: LastUse,
}

impl Label {
    /// That of the file at `path`; `None` if it is not one of this version. The object's bytes are not
    /// looked at.
    pub(crate) fn of(path: &Path, id: &VersionId) -> Option<Self> {
        let mut file = File::open(path).ok()?;
        if bare_crc(&file, id).is_some() {
            let size_bytes = file.metadata().ok()?.len();
            return Some(Self { size_bytes, last_use: LastUse::Changed });
        }
        let mut head = [0; HEADER_BYTES];
        file.read_exact(&mut head).ok()?;
        let header = Header::decode(&head).filter(|header| header.id == *id)?;
        let is_one = matches!(header.kind, Kind::One { .. });
        is_one.then_some(Self { size_bytes: header.size_bytes, last_use: LastUse::Modified })
    }
}

/// The object's bytes, if they are what the file says that they are.
pub(crate) fn read(file: &File, id: &VersionId, size_bytes: u64) -> Option<(Bytes, LastUse)> {
    let headed_bytes = HEADER_BYTES + usize::try_from(size_bytes).ok()?;
    let mut content = Vec::with_capacity(headed_bytes + 1); // one more, to notice a file that is too long
    (&mut &*file).take(headed_bytes as u64 + 1).read_to_end(&mut content).ok()?;
    if content.len() as u64 == size_bytes {
        let is_sound = bare_crc(file, id)? == crc32c::crc32c(&content);
        return is_sound.then(|| (Bytes::from(content), LastUse::Changed));
    }
    let body = content.get(HEADER_BYTES..)?;
    let expected = Header { kind: Kind::One { crc: crc32c::crc32c(body) }, size_bytes, id: *id };
    let is_sound = content.len() == headed_bytes && Header::decode(&content) == Some(expected);
    is_sound.then(|| (Bytes::from(content).slice(HEADER_BYTES..), LastUse::Modified))
}

/// The checksum that a bare file has of its bytes.
fn bare_crc(file: &File, id: &VersionId) -> Option<u32> {
    let mut raw = [0; ENTRY_BYTES];
    let len = rustix::fs::fgetxattr(file, ENTRY_ATTRIBUTE, &mut raw[..]).ok()?;
    if len == ENTRY_BYTES { format::entry_crc(id, 0, u64::from_le_bytes(raw)) } else { None }
}

impl BlockCache {
    /// Writes the file of a small object under a temporary name and renames it into place.
    pub(crate) fn write_one(&self, id: &VersionId, content: &[u8]) -> io::Result<()> {
        let kind = Kind::One { crc: crc32c::crc32c(content) };
        let header = Header { kind, size_bytes: content.len() as u64, id: *id };
        let temporary = self.paths.temporary(id);
        let mut file = self.paths.create(&temporary, true)?;
        let written = write_both(&mut file, &header.encode(), content).and_then(|()| {
            rustix::fs::rename(&temporary, self.paths.of(id, Suffix::One)).map_err(io::Error::from)
        });
        if written.is_err() {
            let _ = self.paths.remove(&temporary); // the first error is the one to tell
        }
        written
    }

    /// Takes over the local file at `path`, open as `file`, that has this `content`.
    pub(crate) fn admit_one(
        &self,
        id: &VersionId,
        path: &Path,
        file: &File,
        content: &[u8],
    ) -> io::Result<()> {
        // On another device, without extended attributes, and where the version has a file already.
        self.link_one(id, path, file, content).or_else(|_| self.write_one(id, content))
    }

    fn link_one(&self, id: &VersionId, path: &Path, file: &File, content: &[u8]) -> io::Result<()> {
        if file.metadata()?.mode() & MODE_NEEDED != MODE_NEEDED {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let entry = format::entry(id, 0, crc32c::crc32c(content)).to_le_bytes();
        rustix::fs::fsetxattr(file, ENTRY_ATTRIBUTE, &entry, rustix::fs::XattrFlags::empty())?;
        self.paths.link(path, &self.paths.of(id, Suffix::One))
    }
}

/// Writes a head and what follows it, in one system call if the disk takes it at once.
fn write_both(file: &mut File, head: &[u8], content: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(head), IoSlice::new(content)])?;
    file.write_all(head.get(written..).unwrap_or_default())?;
    file.write_all(content.get(written.saturating_sub(head.len())..).unwrap_or_default())
}
