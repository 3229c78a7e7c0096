//! Waiting awake for the next request.
//!
//! Whoever goes through files that are at hand asks again some microseconds after each answer. A thread that
//! sleeps in read(2) by then has to be woken, and its core with it: in a virtual machine that takes several times
//! as long as the answer. So a thread that has answered looks for the next request for a moment before it sleeps.
//!
//! It is to cost nobody anything: one thread does so at a time, it gives its core to whoever can use it, and where
//! nothing comes in time, fewer and fewer answers are followed by a look.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;

/// How long a thread stays awake: the time for which Linux's own idle loop polls in a virtual machine where it is
/// let (`guest_halt_poll_ns`). A program that has to be woken for its answer, and reads a file of some KiB, asks
/// again within it.
const MOMENT: Duration = Duration::from_micros(200);
/// Answers without a look after one in vain; twice as many after each further one …
const SKIPPED_FIRST: u32 = 16;
/// … up to so many.
const SKIPPED_MAX: u32 = 1024;
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What the threads of a session know of when requests come.
#[derive(Debug, Default)]
pub(super) struct Linger {
    /// The connection to the kernel. Requests wait for all of its descriptors together.
    device: OnceLock<Weak<OwnedFd>>,
    somebody_looks: AtomicBool,
    /// Answers that are not followed by a look.
    skipped: AtomicU32,
    /// How many were skipped the last time.
    skipped_before: AtomicU32,
}

/// What a moment brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// A request, or the connection's end.
    Request,
    Nothing,
    /// It was not waited for.
    Skipped,
}

impl Linger {
    /// Where requests come from. Whoever has it decides how long it is open.
    pub(super) fn attach(&self, device: &Arc<OwnedFd>) {
        let _attached_before = self.device.set(Arc::downgrade(device));
    }

    /// Called by a thread that has answered: returns when the next request is there, or soon.
    pub(super) fn for_a_moment(&self) {
        self.moment();
    }

    fn moment(&self) -> Moment {
        if self.skip_one() {
            return Moment::Skipped;
        }
        let Some(device) = self.device.get().and_then(Weak::upgrade) else { return Moment::Skipped };
        if self.somebody_looks.swap(true, Ordering::Acquire) {
            return Moment::Skipped;
        }
        let came = comes(&device);
        self.somebody_looks.store(false, Ordering::Release);
        if came {
            self.skipped_before.store(0, Ordering::Relaxed);
            return Moment::Request;
        }
        let before = self.skipped_before.load(Ordering::Relaxed);
        let skipped = (2 * before).clamp(SKIPPED_FIRST, SKIPPED_MAX);
        self.skipped_before.store(skipped, Ordering::Relaxed);
        self.skipped.store(skipped, Ordering::Relaxed);
        Moment::Nothing
    }

    fn skip_one(&self) -> bool {
        let one_less = |skipped: u32| skipped.checked_sub(1);
        self.skipped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

/// Whether there is something to read within [`MOMENT`].
fn comes(device: &OwnedFd) -> bool {
    let until = Instant::now() + MOMENT;
    loop {
        let mut fds = [PollFd::new(device, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&NOW)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
        if Instant::now() >= until {
            return false;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn skipped(linger: &Linger) -> u32 {
        let mut skipped = 0;
        while linger.moment() == Moment::Skipped {
            skipped += 1;
        }
        skipped
    }

    #[test]
    fn a_request_that_is_there_is_taken_at_once_each_time() {
        let (mut kernel, device) = UnixStream::pair().unwrap();
        let device = Arc::new(OwnedFd::from(device));
        let linger = Linger::default();
        assert_eq!(linger.moment(), Moment::Skipped, "not attached");
        linger.attach(&device);
        kernel.write_all(&[7]).unwrap();
        for _ in 0..3 {
            assert_eq!(linger.moment(), Moment::Request);
        }
        drop(device);
        assert_eq!(linger.moment(), Moment::Skipped, "the connection is closed");
    }

    #[test]
    fn where_nothing_comes_it_is_waited_for_less_often_until_something_does() {
        let (mut kernel, device) = UnixStream::pair().unwrap();
        let mut reader = device.try_clone().unwrap();
        let device = Arc::new(OwnedFd::from(device));
        let linger = Linger::default();
        linger.attach(&device);
        assert_eq!(linger.moment(), Moment::Nothing);
        let times: Vec<u32> = (0..8).map(|_| skipped(&linger)).collect();
        assert_eq!(times, [16, 32, 64, 128, 256, 512, 1024, 1024]);
        kernel.write_all(&[7]).unwrap();
        assert_eq!(skipped(&linger), 1024);
        assert_eq!(linger.moment(), Moment::Request);
        reader.read_exact(&mut [0]).unwrap();
        assert_eq!(linger.moment(), Moment::Nothing);
        assert_eq!(skipped(&linger), 16, "it began anew");
    }

    #[test]
    fn one_thread_is_awake_at_a_time() {
        let (mut kernel, device) = UnixStream::pair().unwrap();
        kernel.write_all(&[7]).unwrap();
        let device = Arc::new(OwnedFd::from(device));
        let linger = Linger::default();
        linger.attach(&device);
        linger.somebody_looks.store(true, Ordering::Relaxed);
        assert_eq!(linger.moment(), Moment::Skipped);
        linger.somebody_looks.store(false, Ordering::Relaxed);
        assert_eq!(linger.moment(), Moment::Request);
    }
}
