//! A cache file as memory: but for one system call (`writeback`), all `unsafe` code of the cache.
//!
//! A mapping saves the daemon a copy for every hit: the kernel copies from the page cache
//! straight into the reader's pages. The price is that a mapping can vanish under us.

#![expect(unsafe_code, reason = "mmap: Rust cannot know what other processes do to a file")]

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use memmap2::Mmap;
use memmap2::UncheckedAdvice;
use parking_lot::Mutex;

/// Bytes handed out of mappings before their pages are let go. The pages are the page cache's
/// and cost nothing, but they count as this process's memory for as long as they are mapped.
const MAPPED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The kernel maps at least so many bytes around one that is touched.
const FAULT_AROUND_BYTES: u64 = 64 * 1024;

/// All mappings of a cache, so that together they stay small.
#[derive(Debug, Default)]
pub(crate) struct Mappings {
    live: Mutex<Vec<Weak<Mmap>>>,
    handed_bytes: AtomicU64,
}

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Arc<Mmap>,
    bytes: Bytes,
}

/// Lets the bytes of a mapping keep it.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mappings {
    /// Bytes of a mapping, for the kernel.
    pub(crate) fn slice(&self, mapping: &Mapping, bytes: &Range<u64>) -> Bytes {
        let len = (bytes.end - bytes.start).max(FAULT_AROUND_BYTES);
        if self.handed_bytes.fetch_add(len, Ordering::Relaxed) + len > MAPPED_BYTES_MAX {
            self.handed_bytes.store(0, Ordering::Relaxed);
            self.let_go();
        }
        mapping.bytes.slice(bytes.start as usize..bytes.end as usize)
    }

    fn note(&self, mapping: &Mapping) {
        let mut live = self.live.lock();
        live.retain(|map| map.strong_count() > 0);
        live.push(Arc::downgrade(&mapping.map));
    }

    /// Unmaps the pages of all mappings; whoever needs one of them again maps it again.
    pub(crate) fn let_go(&self) {
        for map in self.live.lock().iter().filter_map(Weak::upgrade) {
            // SAFETY: the mapping is shared, read-only and of a file: without its page it shows the
            // same bytes again.
            let dropped = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(err) = dropped {
                tracing::debug!("pages of a mapped cache file stay mapped: {err}");
            }
        }
    }
}

/// Maps a whole file for reading. `None` if it cannot be mapped; then it is read instead.
///
/// The bytes must only be handed to the kernel (`writev` to the FUSE device), never be touched
/// by this process: should somebody truncate the file, touching them is SIGBUS, whereas the
/// kernel's own copy fails with EFAULT and the reader of that one request sees EIO.
pub(crate) fn map_for_the_kernel(file: &File, mappings: &Mappings) -> Option<Mapping> {
    // SAFETY: a shared, read-only mapping. This cache never truncates a data file, nor writes a
    // block that is marked present with other bytes than are there; it gives space back by
    // unlinking, which leaves mappings whole. Against foreign processes that do otherwise the
    // rule above holds: this process makes no reference into the mapping that it reads through,
    // and no Rust code draws conclusions from the content.
    let map = unsafe { memmap2::MmapOptions::new().map(file) }.ok()?;
    let map = Arc::new(map);
    let mapping = Mapping { bytes: Bytes::from_owner(Owner(Arc::clone(&map))), map };
    mappings.note(&mapping);
    Some(mapping)
}
