//! Handles among which the memory for what is fetched ahead is divided.
//!
//! A handle counts while something is being fetched ahead for it, and for a moment after it was last
//! read with more to come: a stream that finds all that it asked for is about to ask for more. One of
//! which a header was read, and that is kept open, takes nothing from the others.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

/// A handle counts for the rest of the period in which it was read last, and for the next one. Both in
/// milliseconds.
const PERIOD_MS: u64 = 1000;
/// Not a period.
const NEVER: u64 = u64::MAX;

/// The handles of a reader that are streaming.
#[derive(Debug)]
pub(super) struct Streams {
    count: Arc<AtomicUsize>,
    since: Instant,
    recent: Mutex<Recent>,
}

/// Handles that were read in this period, and in the one before it.
#[derive(Debug, Default)]
struct Recent {
    period: u64,
    now: Vec<Arc<Streaming>>,
    before: Vec<Arc<Streaming>>,
}

/// One handle. Held by what is being fetched for it, and for a while after it was read; not by itself.
#[derive(Debug)]
pub(super) struct Streaming {
    count: Arc<AtomicUsize>,
    ended: AtomicBool,
    read_in: AtomicU64,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { count: Arc::default(), since: Instant::now(), recent: Mutex::default() }
    }

    /// How many there are now.
    pub(super) fn count(&self) -> usize {
        self.count_in(self.period())
    }

    /// One more.
    pub(super) fn begin(&self) -> Arc<Streaming> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let count = Arc::clone(&self.count);
        Arc::new(Streaming { count, ended: AtomicBool::new(false), read_in: AtomicU64::new(NEVER) })
    }

    /// A handle is read, and will be.
    pub(super) fn read(&self, handle: &Arc<Streaming>) {
        self.read_in(handle, self.period());
    }

    fn period(&self) -> u64 {
        self.since.elapsed().as_millis() as u64 / PERIOD_MS
    }

    fn count_in(&self, period: u64) -> usize {
        self.recent.lock().go_on(period);
        self.count.load(Ordering::Relaxed)
    }

    fn read_in(&self, handle: &Arc<Streaming>, period: u64) {
        if handle.read_in.swap(period, Ordering::Relaxed) != period {
            let mut recent = self.recent.lock();
            recent.go_on(period);
            recent.now.push(Arc::clone(handle));
        }
    }
}

impl Recent {
    fn go_on(&mut self, period: u64) {
        match period.saturating_sub(self.period) {
            0 => return,
            1 => self.before = std::mem::take(&mut self.now),
            _ => {
                self.now.clear();
                self.before.clear();
            }
        }
        self.period = period;
    }
}

impl Streaming {
    /// The handle is closed: it does not count any more, whoever holds this.
    pub(super) fn end(&self) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_counts_while_it_is_read_or_fetched_for_and_until_it_is_closed() {
        let streams = Streams::new();
        let (read, fetched, closed) = (streams.begin(), streams.begin(), streams.begin());
        for handle in [&read, &fetched, &closed] {
            streams.read_in(handle, 5);
            streams.read_in(handle, 5);
        }
        drop(read);
        assert_eq!(streams.count_in(5), 3);
        closed.end();
        assert_eq!(streams.count_in(6), 2);
        streams.read_in(&streams.begin(), 6);
        assert_eq!(streams.count_in(6), 3);
        assert_eq!(streams.count_in(7), 2, "idle for a period");
        assert_eq!(streams.count_in(9), 1, "on its way for so long");
        drop((fetched, closed));
        assert_eq!(streams.count_in(9), 0);
    }
}
