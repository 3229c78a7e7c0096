//! Going on with a session that another program has begun.
//!
//! The kernel says FUSE_INIT once, when a file system is mounted, and the `fuser` crate makes no session
//! without it. So it is given one by ourselves, over a socket; then the device takes the socket's place, under
//! the same descriptor.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use fuser::Config;
use fuser::InitFlags;
use fuser::Session;
use rustix::io::DupFlags;
use rustix::net::AddressFamily;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use crate::fuse::CAPABILITIES;
use crate::fuse::FuseAdapter;
use crate::fuse::REQUEST_BYTES_MAX;

/// FUSE_INIT, as the protocol numbers it.
const INIT: u32 = 26;
/// A version of the protocol that the crate speaks. The one that was agreed upon at the beginning stands.
const VERSION: [u32; 2] = [7, 40];
/// Bytes of a request's header, and of FUSE_INIT's own part.
const HEADER_BYTES: u32 = 40;
const INIT_BYTES: u32 = 64;

/// A session on a device whose session has been begun.
pub(super) fn session(
    adapter: FuseAdapter,
    device: &OwnedFd,
    config: &Config,
) -> io::Result<Session<FuseAdapter>> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&ours, &init_request(), SendFlags::empty())?;
    let session = Session::from_fd(adapter, theirs, config.acl, config.clone())?;
    replace(session.as_fd(), device)?;
    Ok(session)
}

/// Lets a descriptor that somebody else owns stand for `by`.
#[expect(unsafe_code, reason = "dup3 over a descriptor that the session owns, and goes on owning")]
pub(super) fn replace(descriptor: BorrowedFd<'_>, by: &OwnedFd) -> io::Result<()> {
    // SAFETY: it is open, it is not closed here, and stays open under its number throughout.
    let mut owned = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(descriptor.as_raw_fd()) });
    Ok(rustix::io::dup3(by, &mut owned, DupFlags::CLOEXEC)?)
}

/// What the kernel would say, with everything on offer that we ask for.
fn init_request() -> Vec<u8> {
    let wanted = CAPABILITIES.iter().fold(InitFlags::FUSE_INIT_EXT, |all, flag| all | *flag).bits();
    let mut request = Vec::with_capacity((HEADER_BYTES + INIT_BYTES) as usize);
    for word in [HEADER_BYTES + INIT_BYTES, INIT] {
        request.extend(word.to_ne_bytes());
    }
    request.resize(HEADER_BYTES as usize, 0); // nobody's: no caller, no inode
    let readahead = REQUEST_BYTES_MAX;
    for word in [VERSION[0], VERSION[1], readahead, wanted as u32, (wanted >> 32) as u32] {
        request.extend(word.to_ne_bytes());
    }
    request.resize((HEADER_BYTES + INIT_BYTES) as usize, 0);
    request
}
