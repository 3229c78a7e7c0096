//! Descriptors that stay open while the program changes.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use rustix::io::FdFlags;

/// Lets descriptors through the next exec, or not. They must be open.
#[expect(unsafe_code, reason = "descriptors that others own are named by number")]
pub(super) fn inherit(descriptors: &[RawFd], yes: bool) -> io::Result<()> {
    let flags = if yes { FdFlags::empty() } else { FdFlags::CLOEXEC };
    descriptors.iter().try_for_each(|&descriptor| {
        // SAFETY: the caller's promise that it is open; only its flags are touched.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Ok(rustix::io::fcntl_setfd(borrowed, flags)?)
    })
}

/// Takes a descriptor that the program before this one has left open, each only once.
#[expect(unsafe_code, reason = "an open descriptor that nobody in this program knows yet")]
pub(super) fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the program before this one wrote its number down for us, and nobody else is told of it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(owned.as_fd(), FdFlags::CLOEXEC)?;
    Ok(owned)
}
