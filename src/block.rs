//! Block arithmetic: an object as a row of equal, aligned pieces.

use std::ops::Range;

/// Bytes in a block, the unit of the cache and of random reads.
///
/// 128 KiB is the kernel's own default readahead, so that one FUSE read is one block; a random
/// read of 4 KiB fetches 32 times what was asked for, which costs less than half a millisecond
/// on a gigabit line.
pub const BLOCK_BYTES: u64 = 128 * 1024;

/// The number of blocks in an object.
#[must_use]
pub fn count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

/// The block that holds the byte at `offset`.
#[must_use]
pub fn index_of(offset: u64) -> u64 {
    offset / BLOCK_BYTES
}

/// The bytes of block `index` of an object; the last block may be short.
#[must_use]
pub fn range_of(index: u64, size_bytes: u64) -> Range<u64> {
    let start = (index * BLOCK_BYTES).min(size_bytes);
    start..(start + BLOCK_BYTES).min(size_bytes)
}

/// The blocks that hold any byte of `bytes`; none for an empty range.
#[must_use]
pub fn covering(bytes: &Range<u64>) -> Range<u64> {
    if bytes.is_empty() {
        return bytes.start / BLOCK_BYTES..bytes.start / BLOCK_BYTES;
    }
    index_of(bytes.start)..index_of(bytes.end - 1) + 1
}

/// Clips a read to the object: empty at and behind its end, as read(2) has it.
#[must_use]
pub fn clip(offset: u64, len: u64, size_bytes: u64) -> Range<u64> {
    let start = offset.min(size_bytes);
    start..start.saturating_add(len).min(size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tile_the_object() {
        for size in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES] {
            let total: u64 = (0..count(size)).map(|i| range_of(i, size)).map(|r| r.end - r.start).sum();
            assert_eq!(total, size);
            assert!(range_of(count(size), size).is_empty());
        }
    }

    #[test]
    fn covering_is_exact() {
        assert!(covering(&(7..7)).is_empty());
        assert_eq!(covering(&(0..1)), 0..1);
        assert_eq!(covering(&(BLOCK_BYTES - 1..BLOCK_BYTES + 1)), 0..2);
        assert_eq!(covering(&(BLOCK_BYTES..2 * BLOCK_BYTES)), 1..2);
    }

    #[test]
    fn reads_end_with_the_object() {
        assert_eq!(clip(0, 10, 4), 0..4);
        assert_eq!(clip(4, 10, 4), 4..4);
        assert_eq!(clip(u64::MAX, u64::MAX, 4), 4..4);
    }
}
