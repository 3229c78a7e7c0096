//! Whole local files that become the cache's: what was committed need not be fetched again.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::entry::is_small;
use crate::cache::format;
use crate::cache::format::Header;
use crate::cache::format::Kind;
use crate::cache::format::VersionId;
use crate::cache::one;
use crate::cache::paths;
use crate::cache::paths::Suffix;

impl BlockCache {
    /// Takes a whole local file over: a large one by rename, a small one by a second name, either by copy
    /// where that cannot be. The file is the object's bytes, and nobody writes to it any more. Where it is
    /// still there afterwards, whoever it belongs to removes it, in its own time.
    ///
    /// # Errors
    /// The local disk's, or `InvalidInput` if the file has another size. Then the file may still
    /// be there, and the object is not in the cache.
    pub fn admit_file(&self, id: &VersionId, path: &Path, size_bytes: u64) -> io::Result<()> {
        let file = File::open(path)?;
        if file.metadata()?.len() != size_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is not as long as the object"));
        }
        if is_small(size_bytes) {
            let mut content = vec![0; size_bytes as usize];
            file.read_exact_at(&mut content, 0)?;
            self.admit_one(id, path, &file, &content)?;
        } else {
            self.admit_large(id, path, &file, size_bytes)?;
        }
        self.index.lock().remove(*id);
        self.added(id, size_bytes);
        if let Some(entry) = self.opened(id) {
            entry.reset();
        }
        Ok(())
    }

    fn admit_large(&self, id: &VersionId, path: &Path, file: &File, size_bytes: u64) -> io::Result<()> {
        let header = Header { kind: Kind::Map, size_bytes, id: *id };
        let mut map = Vec::with_capacity(format::map_len(size_bytes) as usize);
        map.extend_from_slice(&header.encode());
        let mut block_bytes = vec![0; BLOCK_BYTES as usize];
        for index in 0..block::count(size_bytes) {
            let range = block::range_of(index, size_bytes);
            let content = &mut block_bytes[..(range.end - range.start) as usize];
            file.read_exact_at(content, range.start)?;
            map.extend_from_slice(&format::entry(id, index, crc32c::crc32c(content)).to_le_bytes());
        }
        let meta = file.metadata()?;
        if meta.mode() & one::MODE_NEEDED != one::MODE_NEEDED {
            file.set_permissions(fs::Permissions::from_mode(meta.mode() | one::MODE_NEEDED))?;
        }
        // Made before the data moves: this is what creates the directory.
        let temporary = self.paths.temporary(id);
        let mut map_file = self.paths.create(&temporary, true)?;
        let data_path = self.paths.of(id, Suffix::Data);
        let moved =
            map_file.write_all(&map).and_then(|()| self.move_file(id, path, &data_path)).and_then(|()| {
                rustix::fs::rename(&temporary, self.paths.of(id, Suffix::Map)).map_err(io::Error::from)
            });
        if let Err(err) = moved {
            let _ = self.paths.remove(&temporary); // the first error is the one to tell
            return Err(err);
        }
        if let Some(data) = paths::open_existing(&data_path)? {
            self.remember_whole(*id, &data);
        }
        Ok(())
    }

    fn move_file(&self, id: &VersionId, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::rename(from, to) {
            Err(rustix::io::Errno::XDEV) => {}
            result => return Ok(result?),
        }
        let temporary = self.paths.temporary(id);
        let mut copy = self.paths.create(&temporary, true)?;
        let copied = io::copy(&mut File::open(from)?, &mut copy)
            .and_then(|_| rustix::fs::rename(&temporary, to).map_err(io::Error::from));
        if copied.is_err() {
            let _ = self.paths.remove(&temporary); // the first error is the one to tell
        }
        copied?;
        self.paths.remove(from)
    }
}
