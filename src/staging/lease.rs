//! Whether anybody can still write to a file.
//!
//! Handles are counted, but a shared writable mapping may outlive its handle, and with passthrough the
//! kernel tells nobody of it. The kernel itself knows: it grants a read lease only on a file that
//! no descriptor and no mapping can write to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Whether `file`, which was opened for reading, is open or mapped for writing anywhere. File systems
/// without leases (some network file systems) cannot tell, and are taken to say no.
pub(super) fn has_writer(file: &File) -> bool {
    match set(file, libc::F_RDLCK) {
        Ok(()) => {
            // Given back at once: it was only asked for.
            set(file, libc::F_UNLCK).is_err()
        }
        Err(err) => err.raw_os_error() == Some(libc::EAGAIN),
    }
}

#[expect(unsafe_code, reason = "no safe wrapper has F_SETLEASE")]
fn set(file: &File, lease: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_SETLEASE takes an integer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_mapping_outlives_its_handle_and_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!has_writer(&reader));
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(has_writer(&reader));
        drop(writer);
        assert!(!has_writer(&reader));
    }
}
