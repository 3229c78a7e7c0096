//! What users do to the cache: pins, eviction by hand, checking, clearing.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use crate::block;
use crate::cache::BlockCache;
use crate::cache::files::Lookup;
use crate::cache::format::HEADER_BYTES;
use crate::cache::format::Header;
use crate::cache::format::VersionId;
use crate::cache::one::Label;
use crate::cache::paths::FAN_OUT_DIGITS;
use crate::cache::paths::Suffix;

/// What was found of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Bytes that were compared with their checksums.
    pub bytes: u64,
    /// Blocks that failed, and were dropped.
    pub damaged_blocks: u64,
}

impl BlockCache {
    /// Pins a version, whether anything of it is cached or not: it is never evicted, by no
    /// process, and does not count against the limit. `owner` is who wants that, for
    /// [`Self::pinned_by`]: one owner a version.
    ///
    /// # Errors
    /// The local disk's.
    pub fn pin(&self, id: &VersionId, owner: &str) -> io::Result<()> {
        let file = self.paths.create(&self.paths.of(id, Suffix::Pin), false)?;
        io::Write::write_all(&mut &file, owner.as_bytes())?;
        file.set_len(owner.len() as u64)?;
        self.index.lock().set_pinned(*id, true);
        Ok(())
    }

    /// Ends the pin of a version, whoever wanted it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn unpin(&self, id: &VersionId) -> io::Result<()> {
        self.paths.remove(&self.paths.of(id, Suffix::Pin))?;
        self.index.lock().set_pinned(*id, false);
        Ok(())
    }

    /// Whether a version is pinned.
    #[must_use]
    pub fn is_pinned(&self, id: &VersionId) -> bool {
        self.index.lock().is_pinned(id) || self.paths.of(id, Suffix::Pin).exists()
    }

    /// The versions that `owner` has pinned. Reads the whole directory: not for FUSE threads.
    #[must_use]
    pub fn pinned_by(&self, owner: &str) -> Vec<VersionId> {
        let mut pinned = Vec::new();
        self.each_file(|id, suffix, path| {
            let is_owners =
                suffix == Suffix::Pin && fs::read(path).is_ok_and(|text| text == owner.as_bytes());
            pinned.extend(is_owners.then_some(id));
        });
        pinned
    }

    /// Bytes of disk that a version takes, as far as the books say.
    #[must_use]
    pub fn cached_bytes(&self, id: &VersionId) -> u64 {
        self.index.lock().cached_bytes(id)
    }

    /// Reads the directory now, rather than in the background. Not for FUSE threads.
    pub fn rescan(&self) {
        self.scan();
    }

    /// Gives a version's room back, unless it is pinned. Returns the bytes; `None` for a pin. Who
    /// has it open goes on reading what is open.
    ///
    /// # Errors
    /// The local disk's.
    pub fn evict_version(&self, id: &VersionId, pinned_too: bool) -> io::Result<Option<u64>> {
        if !pinned_too && self.is_pinned(id) {
            return Ok(None);
        }
        let bytes = self.cached_bytes(id);
        self.paths.remove_version(id)?;
        if let Some(entry) = self.opened(id) {
            entry.reset();
        }
        self.index.lock().remove(*id);
        if bytes > 0 {
            self.counters.evicted_files.fetch_add(1, Ordering::Relaxed);
            self.counters.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(Some(bytes))
    }

    /// All versions of which something is cached. Reads the whole directory.
    #[must_use]
    pub fn versions(&self) -> Vec<VersionId> {
        let mut versions = Vec::new();
        self.each_file(|id, suffix, _| {
            versions.extend(matches!(suffix, Suffix::Map | Suffix::One).then_some(id));
        });
        versions
    }

    /// Compares every cached block of a version with its checksum, and drops those that fail.
    #[must_use]
    pub fn check(self: &std::sync::Arc<Self>, id: &VersionId) -> Checked {
        let mut checked = Checked::default();
        let Some(header) = self.map_header(id) else {
            let Some(label) = Label::of(&self.paths.of(id, Suffix::One), id) else { return checked };
            match self.entry(id, label.size_bytes).read(&(0..label.size_bytes), true) {
                Lookup::Hit(_) => checked.bytes = label.size_bytes,
                Lookup::Miss | Lookup::WouldBlock => checked.damaged_blocks = 1,
            }
            return checked;
        };
        let entry = self.entry(id, header.size_bytes);
        entry.refresh(0..block::count(header.size_bytes));
        for index in 0..block::count(header.size_bytes) {
            if entry.is_present(index) && !entry.check_block(index, &mut checked.bytes) {
                checked.damaged_blocks += 1;
            }
        }
        checked
    }

    fn map_header(&self, id: &VersionId) -> Option<Header> {
        let mut head = [0; HEADER_BYTES];
        let mut file = fs::File::open(self.paths.of(id, Suffix::Map)).ok()?;
        io::Read::read_exact(&mut file, &mut head).ok()?;
        Header::decode(&head)
    }

    /// Calls `found` for each file of the cache.
    fn each_file(&self, mut found: impl FnMut(VersionId, Suffix, &std::path::Path)) {
        for dir in fs::read_dir(self.paths.blocks()).into_iter().flatten().flatten() {
            let prefix = dir.file_name();
            let Some(prefix) = prefix.to_str().filter(|prefix| prefix.len() == FAN_OUT_DIGITS) else {
                continue;
            };
            for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                let Some((rest, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else {
                    continue;
                };
                let id = VersionId::parse(&format!("{prefix}{rest}"));
                if let (Some(id), Some(suffix)) = (id, Suffix::parse(suffix)) {
                    found(id, suffix, &file.path());
                }
            }
        }
    }
}
