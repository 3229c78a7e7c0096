//! The process at the other end of a connection.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::process::PidfdFlags;

/// A process that can be waited for, though it is no child of ours; its number is used by no other one meanwhile.
#[derive(Debug)]
pub struct Peer {
    pid: Pid,
    process: OwnedFd,
}

impl Peer {
    /// Who listens at the other end.
    ///
    /// # Errors
    /// The process has ended, or is out of sight; kernels before 5.3 cannot say.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let pid = rustix::net::sockopt::socket_peercred(stream)?.pid;
        Ok(Self { pid, process: rustix::process::pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until it has ended, but no longer than `patience`. Whether it has.
    #[must_use]
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&self.process, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(ready) => return ready > 0,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn whoever_listens_is_known_and_can_be_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let peer = Peer::of(&UnixStream::connect(dir.path().join("s")).unwrap()).unwrap();
        assert_eq!(peer.pid().unsigned_abs(), std::process::id());
        assert!(!peer.wait_for_end(Duration::ZERO), "this process goes on");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert!(Peer { pid, process }.wait_for_end(Duration::from_secs(30)));
        child.wait().unwrap();
    }
}
