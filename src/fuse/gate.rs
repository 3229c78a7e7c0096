//! Bringing a session to a standstill, and going on.
//!
//! A thread that reads requests cannot be told to stop: it sleeps in read(2), and a request that it takes
//! from there has to be answered by it. So while the gate is closed, each thread that has answered a
//! `statfs` rests; whoever closes the gate sends as many of those as there are threads. When all rest, and
//! every request that went to a task has been answered too, nobody takes anything from the kernel: what
//! comes waits there, unharmed, for whoever reads next.
//!
//! Notices to the kernel stop at the gate as well: one that waits for an inode's lock could not be left.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Condvar;
use parking_lot::Mutex;

/// The gate of one session.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    resting: usize,
    under_way: usize,
}

/// Something under way, until dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    gate: Arc<Gate>,
}

impl Gate {
    /// A request that is answered later has begun.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.state.lock().under_way += 1;
        UnderWay { gate: Arc::clone(self) }
    }

    /// The same for what can wait: it begins when the gate is open.
    pub(super) fn begin_when_open(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.closed);
        state.under_way += 1;
        drop(state);
        UnderWay { gate: Arc::clone(self) }
    }

    /// Called by a thread that has answered: rests here while the gate is closed.
    pub(super) fn rest(&self) {
        let mut state = self.state.lock();
        if state.closed {
            state.resting += 1;
            self.changed.notify_all();
            self.changed.wait_while(&mut state, |state| state.closed);
            state.resting -= 1;
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }

    pub(super) fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    /// Waits until so many threads rest, and nothing else is under way. Whether that came to be in time.
    pub(super) fn wait_for_rest(&self, threads: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        let moving = |state: &mut State| state.resting < threads || state.under_way > 0;
        !self.changed.wait_while_until(&mut state, moving, deadline).timed_out()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gate.state.lock().under_way -= 1;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn it_is_still_when_all_rest_and_everything_is_answered() {
        let gate = Arc::new(Gate::default());
        gate.rest(); // open: nobody is held up
        let request = gate.begin();
        gate.close();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.rest())
            })
            .collect();
        assert!(!gate.wait_for_rest(2, SOON), "a request is not answered");
        drop(request);
        assert!(gate.wait_for_rest(2, Duration::from_secs(30)));
        assert!(!gate.wait_for_rest(3, SOON), "one thread still reads");
        gate.open();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_notice_waits_for_the_gate() {
        let gate = Arc::new(Gate::default());
        gate.close();
        let notice = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || drop(gate.begin_when_open())
        });
        assert!(gate.wait_for_rest(0, SOON), "it is not under way");
        assert!(!notice.is_finished());
        gate.open();
        notice.join().unwrap();
    }
}
