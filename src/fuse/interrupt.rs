//! Letting go of callers that were told to stop.
//!
//! The kernel asks for this with FUSE_INTERRUPT, which the `fuser` crate answers itself, with
//! "not implemented": a caller that waits for the network would then ignore Ctrl-C, and even
//! SIGKILL, until the request is answered. So while a request waits, its caller's pending
//! signals are looked at; if there is one that it neither blocks nor ignores, the request is
//! answered with EINTR. What was being fetched for it goes on if somebody else wants it.

use std::future::Future;
use std::time::Duration;

use crate::fs::error::FsError;

/// Most requests are answered before anybody need look.
const FIRST_LOOK: Duration = Duration::from_millis(30);
/// Time between looks. A program may need several to be rid of all its threads, one behind the other.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// Runs `work` for the thread `tid`, but no longer than until that thread is told to stop.
///
/// # Errors
/// [`FsError::Interrupted`], or the work's own.
pub async fn interruptible<T>(
    tid: u32,
    work: impl Future<Output = Result<T, FsError>>,
) -> Result<T, FsError> {
    tokio::select! {
        biased;
        result = work => result,
        () = signalled(tid) => Err(FsError::Interrupted),
    }
}

async fn signalled(tid: u32) {
    if tid == 0 {
        return std::future::pending().await; // the kernel's own, or another PID namespace's
    }
    tokio::time::sleep(FIRST_LOOK).await;
    let path = format!("/proc/{tid}/status");
    loop {
        match std::fs::read_to_string(&path) {
            Ok(status) if must_stop(&status) => return,
            // A thread that is gone wants no answer either.
            Err(_) if is_gone(tid) => return,
            // Others' processes may be out of sight (hidepid): they wait for as long as the request does.
            Ok(_) | Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

fn is_gone(tid: u32) -> bool {
    let pid = i32::try_from(tid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Whether a thread with this `/proc/<tid>/status` has a signal waiting that will be delivered.
fn must_stop(status: &str) -> bool {
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let pending = mask("SigPnd:").unwrap_or(0) | mask("ShdPnd:").unwrap_or(0);
    pending & !mask("SigBlk:").unwrap_or(0) & !mask("SigIgn:").unwrap_or(0) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_will_be_delivered_count() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tcat\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        let (int, kill) = (1 << 1, 1 << 8);
        assert!(!must_stop(&status(0, 0, 0, 0)));
        assert!(must_stop(&status(0, int, 0, 0)));
        assert!(must_stop(&status(kill, 0, int, int)));
        assert!(!must_stop(&status(0, int, int, 0)), "blocked");
        assert!(!must_stop(&status(0, int, 0, int)), "ignored, as in the background of a script");
        assert!(!must_stop("Name:\tcat\n"));
    }

    #[tokio::test]
    async fn the_work_of_a_thread_that_is_gone_is_dropped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tid = child.id();
        child.wait().unwrap();
        let never = std::future::pending::<Result<(), FsError>>();
        assert!(matches!(interruptible(tid, never).await, Err(FsError::Interrupted)));
    }
}
