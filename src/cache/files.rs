//! The open pair of files of one cached version: data and map.
//!
//! Many threads read and one of the writer threads writes, without a lock: an entry of the map
//! is one atomic number in memory, set after the block's bytes are in the data file.

use std::fs::File;
use std::fs::Metadata;
use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::cache::format;
use crate::cache::format::ENTRY_BYTES;
use crate::cache::format::VersionId;
use crate::cache::mapping;
use crate::cache::mapping::Mapping;
use crate::cache::mapping::Mappings;
use crate::cache::page_cache;
use crate::cache::queue::Pages;

/// Linux's RWF_DONTCACHE (6.14; ext4, XFS and btrfs know it): the written pages are let go as soon as they are
/// on the disk, which is begun at once.
const DONTCACHE: rustix::io::ReadWriteFlags = rustix::io::ReadWriteFlags::from_bits_retain(0x80);

/// In memory, in place of a block's entry: the map on disk has one that is wrong, and cannot be changed.
/// No block has an entry like this in practice, and one that has is fetched again.
const UNUSABLE: u64 = u64::MAX;

/// What a look into the cache found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The bytes, checked.
    Hit(Bytes),
    /// They are there, but the disk has to be waited for.
    WouldBlock,
    /// They are not there, or were damaged and are not there any more.
    Miss,
}

/// Tells one state of a data file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// The state that a file is in.
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), changed: (meta.ctime(), meta.ctime_nsec()) }
    }
}

/// Data and map of one version, open.
#[derive(Debug)]
pub(crate) struct Files {
    id: VersionId,
    size_bytes: u64,
    data: Arc<File>,
    map: File,
    /// The map's entries; zero for an absent block, or [`UNUSABLE`].
    entries: Box<[AtomicU64]>,
    /// One bit for each block whose bytes this process has compared with its checksum, or written and not let go.
    verified: Box<[AtomicU64]>,
    verified_count: AtomicU64,
    mapping: OnceLock<Option<Mapping>>,
}

impl Files {
    /// Takes two open files over. `data` is as long as the object.
    pub(crate) fn new(id: VersionId, size_bytes: u64, data: File, map: File) -> Self {
        let blocks = block::count(size_bytes);
        let zeros = |count: u64| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            id,
            size_bytes,
            data: Arc::new(data),
            map,
            entries: zeros(blocks),
            verified: zeros(blocks.div_ceil(64)),
            verified_count: AtomicU64::new(0),
            mapping: OnceLock::new(),
        }
    }

    /// Reads the map's entries for `blocks`, where this process knows of none yet: another
    /// process may have added some.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn load(&self, blocks: Range<u64>) -> io::Result<()> {
        let blocks = blocks.start..blocks.end.min(self.entries.len() as u64);
        if blocks.is_empty() {
            return Ok(());
        }
        let mut raw = vec![0; (blocks.end - blocks.start) as usize * ENTRY_BYTES];
        self.map.read_exact_at(&mut raw, format::entry_offset(blocks.start))?;
        for (index, raw) in blocks.zip(raw.chunks_exact(ENTRY_BYTES)) {
            let raw = u64::from_le_bytes(raw.try_into().expect("chunks of eight"));
            if format::entry_crc(&self.id, index, raw).is_some() {
                let slot = &self.entries[index as usize];
                let _ = slot.compare_exchange(0, raw, Ordering::Release, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Whether a block is in the file, checked or not.
    pub(crate) fn is_present(&self, index: u64) -> bool {
        let is_present = |raw: &AtomicU64| !matches!(raw.load(Ordering::Acquire), 0 | UNUSABLE);
        self.entries.get(index as usize).is_some_and(is_present)
    }

    /// Whether this process knows a block's bytes to be right.
    pub(crate) fn is_verified(&self, index: u64) -> bool {
        let Some(bits) = self.verified.get(index as usize / 64) else { return false };
        bits.load(Ordering::Acquire) & (1 << (index % 64)) != 0
    }

    fn set_verified(&self, index: u64) {
        let bit = 1 << (index % 64);
        if self.verified[index as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.verified_count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn unset_verified(&self, index: u64) {
        let bit = 1 << (index % 64);
        if self.verified[index as usize / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.verified_count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Marks everything verified, if everything is present: the caller knows that it is.
    pub(crate) fn trust_all(&self) {
        let blocks = self.entries.len() as u64;
        if (0..blocks).all(|index| self.is_present(index)) {
            (0..blocks).for_each(|index| self.set_verified(index));
        }
    }

    /// What was verified before is not any more: each block is compared with its checksum again when it
    /// is read.
    pub(crate) fn distrust_all(&self) {
        for bits in &self.verified {
            let were_set = bits.swap(0, Ordering::AcqRel).count_ones();
            self.verified_count.fetch_sub(u64::from(were_set), Ordering::AcqRel);
        }
    }

    /// Whether every block is present and verified.
    pub(crate) fn is_whole(&self) -> bool {
        self.verified_count.load(Ordering::Acquire) == self.entries.len() as u64
    }

    /// About how many bytes are present and verified: whole blocks.
    pub(crate) fn verified_bytes(&self) -> u64 {
        self.verified_count.load(Ordering::Acquire) * BLOCK_BYTES
    }

    /// Whether every block is present, verified or not.
    pub(crate) fn is_complete(&self) -> bool {
        (0..self.entries.len() as u64).all(|index| self.is_present(index))
    }

    /// The data file.
    pub(crate) fn data(&self) -> &Arc<File> {
        &self.data
    }

    /// Whether the data file still has its length and its name. Without its name it still can be
    /// read, but nobody will find it again.
    pub(crate) fn is_linked(&self) -> bool {
        self.data.metadata().is_ok_and(|meta| meta.nlink() > 0 && meta.len() == self.size_bytes)
    }

    /// Whether the data file has the object's length.
    fn is_full_length(&self) -> bool {
        self.data.metadata().is_ok_and(|meta| meta.len() == self.size_bytes)
    }

    /// Verified bytes out of a mapping; see [`mapping::map_for_the_kernel`] for what may be done
    /// with them. With [`Pages::LetGo`] only what seems to be in memory: elsewhere the disk would be waited
    /// for by whoever hands the bytes to the kernel.
    pub(crate) fn mapped(&self, bytes: &Range<u64>, pages: Pages, mappings: &Mappings) -> Option<Bytes> {
        if !block::covering(bytes).all(|index| self.is_verified(index)) || !self.is_full_length() {
            return None;
        }
        if pages == Pages::LetGo && !self.is_in_memory(bytes) {
            return None;
        }
        let mapping = self.mapping.get_or_init(|| mapping::map_for_the_kernel(&self.data, mappings));
        Some(mappings.slice(mapping.as_ref()?, bytes))
    }

    /// Whether the page cache has both ends of `bytes`. What is between them was read and let go with them;
    /// asking for all of it costs a tenth of a read from memory.
    fn is_in_memory(&self, bytes: &Range<u64>) -> bool {
        [bytes.start, bytes.end - 1].into_iter().all(|at| {
            let mut byte = [0];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            let read = rustix::io::preadv2(&*self.data, &mut [IoSliceMut::new(&mut byte)], at, flags);
            // A file system that cannot tell (overlayfs) is taken at its best: the mapping is all it has.
            matches!(read, Ok(1) | Err(rustix::io::Errno::OPNOTSUPP))
        })
    }

    /// Bytes read from the data file. Blocks that nobody has checked yet are read whole and
    /// checked. With `wait` unset only what the page cache holds is read.
    ///
    /// # Errors
    /// The blocks that turned out to be damaged; they are absent from now on.
    pub(crate) fn read(&self, bytes: &Range<u64>, wait: bool) -> Result<Lookup, Vec<u64>> {
        let blocks = block::covering(bytes);
        if !blocks.clone().all(|index| self.is_present(index)) {
            return Ok(Lookup::Miss);
        }
        if blocks.clone().all(|index| self.is_verified(index)) {
            return match self.read_at(bytes, wait) {
                Ok(Some(read)) => Ok(Lookup::Hit(read.into())),
                Ok(None) => Ok(Lookup::WouldBlock),
                Err(err) => Err(self.unreadable(blocks, &err)),
            };
        }
        let start = block::range_of(blocks.start, self.size_bytes).start;
        let end = block::range_of(blocks.end - 1, self.size_bytes).end;
        let read = match self.read_at(&(start..end), wait) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(Lookup::WouldBlock),
            Err(err) => return Err(self.unreadable(blocks, &err)),
        };
        let damaged = self.compare(blocks, &read);
        if !damaged.is_empty() {
            return Err(damaged);
        }
        let within = (bytes.start - start) as usize..(bytes.end - start) as usize;
        Ok(Lookup::Hit(Bytes::from(read).slice(within)))
    }

    /// Compares blocks that were read with their checksums. Returns those that are damaged; they are absent
    /// from now on.
    fn compare(&self, blocks: Range<u64>, read: &[u8]) -> Vec<u64> {
        let mut damaged = Vec::new();
        for (index, content) in blocks.zip(read.chunks(BLOCK_BYTES as usize)) {
            // Also a block that is verified by now: it may have been damaged when it was read, and repaired since.
            let raw = self.entries[index as usize].load(Ordering::Acquire);
            if format::entry_crc(&self.id, index, raw) == Some(crc32c::crc32c(content)) {
                self.set_verified(index);
            } else {
                self.forget(index);
                damaged.push(index);
            }
        }
        damaged
    }

    /// A block as it is on the disk now, whatever was known of it; `None` if it is damaged, and
    /// then it is absent from now on.
    pub(crate) fn recheck<'b>(&self, index: u64, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let range = block::range_of(index, self.size_bytes);
        let content = &mut buffer[..(range.end - range.start) as usize];
        let raw = self.entries[index as usize].load(Ordering::Acquire);
        match self.data.read_exact_at(content, range.start) {
            Err(err) => {
                self.unreadable(index..index + 1, &err);
                None
            }
            Ok(()) if format::entry_crc(&self.id, index, raw) == Some(crc32c::crc32c(content)) => {
                Some(content)
            }
            Ok(()) => {
                self.forget(index);
                None
            }
        }
    }

    /// Exactly these bytes, or `None` if they are not in memory and `wait` is unset.
    fn read_at(&self, bytes: &Range<u64>, wait: bool) -> io::Result<Option<Vec<u8>>> {
        let len = (bytes.end - bytes.start) as usize;
        if !wait {
            let mut buffer = vec![0; len];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            let mut slices = [IoSliceMut::new(&mut buffer)];
            return match rustix::io::preadv2(&*self.data, &mut slices, bytes.start, flags) {
                Ok(read) if read == len => Ok(Some(buffer)),
                // Less is in memory than was asked for, or the file system does not tell.
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP) => Ok(None),
                Err(err) => Err(err.into()),
            };
        }
        let mut buffer: Vec<u8> = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = bytes.start + buffer.len() as u64;
            // The capacity may exceed what was asked for, and so may the read.
            match rustix::io::pread(&*self.data, rustix::buffer::spare_capacity(&mut buffer), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
        buffer.truncate(len);
        Ok(Some(buffer))
    }

    fn unreadable(&self, blocks: Range<u64>, err: &io::Error) -> Vec<u64> {
        tracing::debug!(id = %self.id, "cached blocks {blocks:?} cannot be read: {err}");
        blocks.clone().for_each(|index| self.forget(index));
        blocks.collect()
    }

    /// Makes a block absent, here and for other processes.
    fn forget(&self, index: u64) {
        let entry = &self.entries[index as usize];
        entry.store(UNUSABLE, Ordering::Release);
        self.unset_verified(index);
        // A map that cannot be written (a disk that fails is often read-only then) keeps its entry,
        // and whoever looks for what others have cached would find the block there again, and again
        // damaged, and never ask the network.
        if self.map.write_all_at(&[0; ENTRY_BYTES], format::entry_offset(index)).is_ok() {
            let _ = entry.compare_exchange(UNUSABLE, 0, Ordering::Release, Ordering::Relaxed);
        }
    }

    fn write(&self, content: &[u8], at: u64, pages: Pages) -> io::Result<()> {
        let written = match pages {
            Pages::Keep => 0,
            // What a kernel or a file system cannot do it says at once. Any other error is the next line's to tell.
            Pages::LetGo => {
                rustix::io::pwritev2(&*self.data, &[IoSlice::new(content)], at, DONTCACHE).unwrap_or(0)
            }
        };
        page_cache::write_all_at(&self.data, &content[written..], at + written as u64)
    }

    /// Writes whole blocks from `first` on: the bytes, then the entries. Returns the bytes that
    /// were not there before.
    ///
    /// # Errors
    /// The local disk's; then no block counts as present that was not before.
    pub(crate) fn store(&self, first: u64, content: &[u8], pages: Pages) -> io::Result<u64> {
        let blocks = first..first + block::count(content.len() as u64);
        if blocks.clone().all(|index| self.is_present(index)) {
            return Ok(0);
        }
        self.write(content, first * BLOCK_BYTES, pages)?;
        let mut raw = Vec::with_capacity((blocks.end - first) as usize * ENTRY_BYTES);
        let mut added = 0;
        for (index, bytes) in blocks.clone().zip(content.chunks(BLOCK_BYTES as usize)) {
            let entry = format::entry(&self.id, index, crc32c::crc32c(bytes));
            raw.extend_from_slice(&entry.to_le_bytes());
            if self.entries[index as usize].swap(entry, Ordering::AcqRel) == 0 {
                added += bytes.len() as u64;
            }
            match pages {
                Pages::Keep => self.set_verified(index),
                // It leaves memory at once, whether the disk has taken it or not: who reads it first compares it.
                Pages::LetGo => self.unset_verified(index),
            }
        }
        self.map.write_all_at(&raw, format::entry_offset(first))?;
        Ok(added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ETag;
    use crate::name::ObjectKey;

    fn files(blocks: u64) -> Files {
        let (data, map) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        data.set_len(blocks * BLOCK_BYTES).unwrap();
        map.set_len(format::map_len(blocks * BLOCK_BYTES)).unwrap();
        let id = VersionId::new("test", &ObjectKey::from_listing("k"), &ETag::from_server("e"));
        Files::new(id, blocks * BLOCK_BYTES, data, map)
    }

    #[test]
    fn what_was_read_before_its_block_was_repaired_is_damaged() {
        let files = files(2);
        let (damaged, sound) = (vec![0; BLOCK_BYTES as usize], vec![7; BLOCK_BYTES as usize]);
        files.store(0, &sound, Pages::Keep).unwrap(); // while somebody had the damaged block in his hands
        assert!(files.is_verified(0));
        assert_eq!(files.compare(0..1, &damaged), [0]);
        assert!(!files.is_present(0), "it is fetched again, which costs a request and no wrong byte");
    }

    #[test]
    fn pages_that_are_let_go_are_written_all_the_same() {
        let files = files(16);
        let content: Vec<u8> = (0..16 * BLOCK_BYTES).map(|at| (at >> 3) as u8).collect();
        assert_eq!(files.store(0, &content, Pages::LetGo).unwrap(), content.len() as u64);
        let Ok(Lookup::Hit(read)) = files.read(&(0..content.len() as u64), true) else { panic!("a hit") };
        assert!(read == content);
    }

    #[test]
    fn what_left_memory_and_never_reached_the_disk_is_found_damaged() {
        let files = files(4);
        let content = vec![7; 4 * BLOCK_BYTES as usize];
        files.store(0, &content, Pages::LetGo).unwrap();
        assert!(!files.is_verified(0) && !files.is_whole());
        // What is read of pages that the kernel could not write.
        files.data.write_all_at(&[0; BLOCK_BYTES as usize], 2 * BLOCK_BYTES).unwrap();
        assert!(files.mapped(&(0..BLOCK_BYTES), Pages::Keep, &Mappings::default()).is_none());
        assert_eq!(files.read(&(0..4 * BLOCK_BYTES), true), Err(vec![2]));
        files.store(0, &content, Pages::LetGo).unwrap();
        assert!(!files.is_verified(0), "it was written once more, and may be lost once more");
        assert!(matches!(files.read(&(0..4 * BLOCK_BYTES), true), Ok(Lookup::Hit(_))));
        assert!(files.is_whole(), "compared once, it is known");
    }
}
