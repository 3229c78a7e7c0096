//! What the kernel has taken, and then could not bring to the disk.
//!
//! A write succeeds as soon as the page cache has it. If the disk refuses it later (the image of a virtual
//! machine or a thin volume that is full, a bad sector), the kernel takes the pages for clean all the same, and
//! once they have left memory, zeros are read in their place. It tells who asks, and each open file once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

/// Behind the end of any file. The kernel tells of the whole file, whatever range it is asked about, but
/// waits for the pages of that range if they are being written: here are none.
const BEHIND_ALL_BYTES: i64 = i64::MAX - 1;
/// After so long the kernel has tried to write a page, or is about to: it does so after 30 s
/// (`vm.dirty_expire_centisecs`) and looks every 5.
const TRIED_AFTER: Duration = Duration::from_secs(60);

/// Asks the kernel for what was lost.
#[derive(Debug, Default)]
pub(crate) struct Writeback {
    #[cfg(test)]
    lost: AtomicBool,
}

impl Writeback {
    /// Whether all that was written to a file since it was opened, by whomever, has reached the disk, or may
    /// do so still. Waits for nothing. A file system below which there is another one (overlayfs) knows of no loss.
    ///
    /// # Errors
    /// Why something was lost; the next time that is not told again.
    pub(crate) fn check(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        if self.lost.swap(false, Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        ask(file)
    }

    /// Tells of a loss at the next look.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

/// Whether what was written at a time has been brought to the disk by now, or was lost.
pub(crate) fn is_over(written: SystemTime, now: SystemTime) -> bool {
    now.duration_since(written).is_ok_and(|age| age >= TRIED_AFTER)
}

#[expect(unsafe_code, reason = "no safe wrapper has sync_file_range(2)")]
fn ask(file: &File) -> io::Result<()> {
    let wait_before = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the rest are integers.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), BEHIND_ALL_BYTES, 1, wait_before) } == 0 {
        return Ok(());
    }
    let err = io::Error::last_os_error();
    // Where it cannot be asked (a sandbox, a file system that has no such thing), it tells nothing.
    let is_unasked =
        matches!(err.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::ESPIPE));
    if is_unasked { Ok(()) } else { Err(err) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_of_which_nothing_was_lost_is_sound() {
        let mut file = tempfile::tempfile().unwrap();
        ask(&file).unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        ask(&file).unwrap();
        file.sync_all().unwrap();
        ask(&file).unwrap();
    }
}
