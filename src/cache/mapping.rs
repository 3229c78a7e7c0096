//! A cache file as memory: the only module of the cache with `unsafe` in it.
//!
//! A mapping saves the daemon a copy for every hit: the kernel copies from the page cache
//! straight into the reader's pages. The price is that a mapping can vanish under us.

#![expect(unsafe_code, reason = "mmap: Rust cannot know what other processes do to a file")]

use std::fs::File;

use bytes::Bytes;

/// Maps a whole file for reading. `None` if it cannot be mapped; then it is read instead.
///
/// The bytes must only be handed to the kernel (`writev` to the FUSE device), never be touched
/// by this process: should somebody truncate the file, touching them is SIGBUS, whereas the
/// kernel's own copy fails with EFAULT and the reader of that one request sees EIO.
pub(crate) fn map_for_the_kernel(file: &File) -> Option<Bytes> {
    // SAFETY: a shared, read-only mapping. This cache never truncates a data file, nor writes a
    // block that is marked present with other bytes than are there; it gives space back by
    // unlinking, which leaves mappings whole. Against foreign processes that do otherwise the
    // rule above holds: this process makes no reference into the mapping that it reads through,
    // and no Rust code draws conclusions from the content.
    let map = unsafe { memmap2::MmapOptions::new().map(file) }.ok()?;
    Some(Bytes::from_owner(map))
}
