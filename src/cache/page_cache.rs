//! Writes through the page cache, in pieces for which memory is cheap.
//!
//! Since large folios, Linux allocates the pages for a write in blocks of nearly the write's size (ext4, XFS and
//! btrfs; up to 2 MiB). Blocks of up to 32 KiB come from each core's list of what was freed last
//! (`PAGE_ALLOC_COSTLY_ORDER`), then from what is left between pages in use. Larger ones are cut out of large free
//! blocks, and those are what a virtual machine has given back to its hypervisor (free page reporting,
//! `Documentation/mm/free_page_reporting.rst`), which has to map them again page by page: 2 s of CPU a GiB where
//! memory at hand costs 0.3. docs/PERFORMANCE.md has the measurements for pieces of other sizes.
//!
//! Only for the cache's files, whose new pages stay in memory while a reader waits. Where memory is at hand small
//! pieces cost a tenth to a fifth, and downloads and staged files gained nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most bytes of one write; writes end at multiples of it.
const PIECE_BYTES: usize = 32 * 1024;

/// As [`FileExt::write_all_at`].
///
/// # Errors
/// The disk's; some of the bytes may have been written then.
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = bytes.len().min(PIECE_BYTES - (at % PIECE_BYTES as u64) as usize);
        file.write_all_at(&bytes[..piece], at)?;
        bytes = &bytes[piece..];
        at += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written_where_it_belongs() {
        let piece = PIECE_BYTES;
        for at in [0, 1, piece - 1, piece, 3 * piece + 7] {
            for len in [0, 1, piece - 1, piece, piece + 1, 3 * piece + 5] {
                let file = tempfile::tempfile().unwrap();
                let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8 + 1).collect();
                write_all_at(&file, &bytes, at as u64).unwrap();
                let expected = if len == 0 { 0 } else { at + len };
                assert_eq!(file.metadata().unwrap().len(), expected as u64, "{len} bytes at {at}");
                let mut found = vec![0; len];
                file.read_exact_at(&mut found, at as u64).unwrap();
                assert_eq!(found, bytes, "{len} bytes at {at}");
            }
        }
    }

    #[test]
    fn the_disks_answer_is_told() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let err = write_all_at(&full, &[7; 3 * PIECE_BYTES], 0).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENOSPC));
        write_all_at(&full, &[], 0).unwrap();
    }
}
