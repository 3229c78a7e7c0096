//! Which files a program will open next: the policy of prefetching across files.
//!
//! Datasets of small files are read by walking: `cp -r`, `tar` and `find -exec` open files in
//! listing order, a `DataLoader` with workers walks several stretches of it at once, and one that
//! shuffles opens every file once, in no order. Each open alone would wait for a round trip. So
//! the opens of each directory are watched:
//!
//! * **Streams.** Opens that follow one another in listing order, with small gaps, are a
//!   stream; files ahead of it are fetched, more of them the longer it lasts.
//! * **Sweep.** Opens that follow no stream and do not repeat are an epoch in random order:
//!   the directory is fetched from its start, some files for each open, since every file will
//!   be wanted. It stops by itself when what it fetched is not what is opened.
//!
//! This module decides, and does no I/O. Positions are those of the directory's listing.

use std::ops::Range;

/// Opens in order before a stream is believed.
const CREDIBLE_RUN: u32 = 2;
/// How far from a stream's next position an open may be and still belong to it: workers that
/// share a stream overtake one another.
const GAP_MAX: usize = 16;
/// Streams that are followed at a time in one directory.
const STREAMS_MAX: usize = 16;
const WINDOW_MIN: usize = 8;
/// Files that are fetched ahead of a stream at most.
const WINDOW_MAX: usize = 128;
/// Opens out of order, all different, before a sweep begins.
const CREDIBLE_SCATTER: u32 = 8;
/// Files that a sweep fetches for each open.
const SWEEP_STEP: usize = 16;
/// After so many opens, a sweep has to have been of use.
const SWEEP_TRIAL: u32 = 64;

/// Watches the opens of one directory.
#[derive(Debug)]
pub struct WalkDetector {
    /// Which files were opened.
    seen: Vec<bool>,
    /// Which files were asked for ahead, and by what.
    fetched: Vec<Option<By>>,
    streams: Vec<Stream>,
    clock: u64,
    scattered: u32,
    sweep: Option<Sweep>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Stream,
    Sweep,
}

#[derive(Debug)]
struct Stream {
    next: usize,
    run: u32,
    window: usize,
    ahead_to: usize,
    used: u64,
}

#[derive(Debug)]
struct Sweep {
    next: usize,
    opens: u32,
    hits: u32,
    /// Opens that would be hits if the sweep did no better than chance, in thousandths.
    expected_milli: u64,
    fetched: usize,
    given_up: bool,
}

impl WalkDetector {
    /// For a directory of `len` files.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            seen: vec![false; len],
            fetched: vec![None; len],
            streams: Vec::new(),
            clock: 0,
            scattered: 0,
            sweep: None,
        }
    }

    /// The file at `position` is opened: which ones to fetch now, in this order.
    pub fn opened(&mut self, position: usize) -> Vec<usize> {
        let Some(seen) = self.seen.get_mut(position) else { return Vec::new() };
        let repeated = std::mem::replace(seen, true);
        if repeated {
            return Vec::new(); // it is cached: nothing can be learnt or gained
        }
        self.clock += 1;
        let (wanted, by) = match self.stream_at(position) {
            Some(ahead) => (ahead, By::Stream),
            None => (self.scattered_open(position), By::Sweep),
        };
        let fresh: Vec<usize> = wanted.filter(|&at| !self.seen[at] && self.fetched[at].is_none()).collect();
        for &at in &fresh {
            self.fetched[at] = Some(by);
        }
        fresh
    }

    /// Follows the stream that the position belongs to; begins one if it belongs to none.
    fn stream_at(&mut self, position: usize) -> Option<Range<usize>> {
        let (len, clock) = (self.seen.len(), self.clock);
        let near = |stream: &&mut Stream| position.abs_diff(stream.next) <= GAP_MAX;
        if let Some(stream) = self.streams.iter_mut().find(near) {
            stream.used = clock;
            stream.run += 1;
            stream.next = stream.next.max(position + 1);
            if stream.run < CREDIBLE_RUN {
                return Some(0..0);
            }
            let start = stream.ahead_to.max(stream.next);
            // Half a window is left when the next batch is asked for: batches, not single files.
            if stream.ahead_to > stream.next + stream.window / 2 {
                return Some(0..0);
            }
            stream.ahead_to = (stream.next + stream.window).min(len);
            stream.window = (stream.window * 2).min(WINDOW_MAX);
            return Some(start.min(stream.ahead_to)..stream.ahead_to);
        }
        if self.streams.len() == STREAMS_MAX {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.used);
            if let Some((at, _)) = oldest {
                self.streams.swap_remove(at);
            }
        }
        self.streams.push(Stream {
            next: position + 1,
            run: 0,
            window: WINDOW_MIN,
            ahead_to: 0,
            used: clock,
        });
        None
    }

    fn scattered_open(&mut self, position: usize) -> Range<usize> {
        let len = self.seen.len();
        self.scattered += 1;
        if self.scattered < CREDIBLE_SCATTER {
            return 0..0;
        }
        let hit = self.fetched[position] == Some(By::Sweep);
        let sweep = self.sweep.get_or_insert(Sweep {
            next: 0,
            opens: 0,
            hits: 0,
            expected_milli: 0,
            fetched: 0,
            given_up: false,
        });
        sweep.opens += 1;
        sweep.hits += u32::from(hit);
        sweep.expected_milli += 1000 * sweep.fetched as u64 / len.max(1) as u64;
        if sweep.opens > SWEEP_TRIAL && u64::from(sweep.hits) * 2000 < sweep.expected_milli {
            sweep.given_up = true; // less than half of what even a blind guess would give
        }
        if sweep.given_up {
            return 0..0;
        }
        let start = sweep.next;
        sweep.next = (start + SWEEP_STEP).min(len);
        sweep.fetched += sweep.next - start;
        start..sweep.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens files in this order; how many of them had been fetched ahead, and how many fetches
    /// there were.
    fn run(len: usize, order: impl IntoIterator<Item = usize>) -> (usize, usize) {
        let mut detector = WalkDetector::new(len);
        let mut fetched = vec![false; len];
        let (mut hits, mut fetches) = (0, 0);
        for position in order {
            hits += usize::from(fetched[position]);
            for ahead in detector.opened(position) {
                assert!(!fetched[ahead], "{ahead} was fetched before");
                fetched[ahead] = true;
                fetches += 1;
            }
        }
        (hits, fetches)
    }

    fn shuffled(len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        let mut seed = 42_u64;
        for i in (1..len).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            order.swap(i, (seed >> 33) as usize % (i + 1));
        }
        order
    }

    #[test]
    fn a_walk_in_order_waits_for_the_first_files_only() {
        let (hits, fetches) = run(1000, 0..1000);
        assert!(hits >= 997, "{hits}");
        assert!(fetches <= 1000);
    }

    #[test]
    fn a_few_files_are_not_a_walk() {
        assert_eq!(run(1000, [0, 1]).1, 0);
        assert_eq!(run(1000, [5, 500, 900]).1, 0);
    }

    #[test]
    fn a_walk_that_stops_has_fetched_a_bounded_number_in_vain() {
        let (_, fetches) = run(100_000, 0..10);
        assert!(fetches <= 10 + WINDOW_MAX, "{fetches}");
    }

    #[test]
    fn several_workers_walk_their_own_stretches() {
        let order = (0..125).flat_map(|step| (0..8).map(move |worker| worker * 125 + step));
        let (hits, _) = run(1000, order);
        assert!(hits >= 1000 - 8 * 4, "{hits}");
    }

    #[test]
    fn workers_that_share_a_stream_overtake_one_another() {
        let order = (0..125).flat_map(|step| [3, 0, 7, 1, 6, 2, 5, 4].map(move |at| step * 8 + at));
        let (hits, _) = run(1000, order);
        assert!(hits >= 980, "{hits}");
    }

    #[test]
    fn an_epoch_in_random_order_is_swept() {
        let (hits, fetches) = run(10_000, shuffled(10_000));
        assert!(hits >= 9000, "{hits}");
        assert!(fetches <= 10_000);
    }

    #[test]
    fn a_sweep_that_is_of_no_use_stops() {
        // Random files of the last tenth only: what is fetched from the start is never opened.
        let order: Vec<usize> = shuffled(10_000).into_iter().filter(|&at| at >= 9000).collect();
        let (_, fetches) = run(10_000, order);
        assert!(fetches <= 3000, "{fetches}");
    }

    #[test]
    fn positions_that_are_not_there_are_ignored() {
        assert!(WalkDetector::new(0).opened(0).is_empty());
        assert!(WalkDetector::new(3).opened(7).is_empty());
    }
}
