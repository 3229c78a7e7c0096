//! Which files a program will open next: the policy of prefetching across files.
//!
//! Datasets of small files are read by walking: `cp -r`, `tar` and `find -exec` open files in
//! listing order, a `DataLoader` with workers walks several stretches of it at once, and one that
//! shuffles opens every file once, in no order. Each open alone would wait for a round trip. So
//! the opens are watched:
//!
//! * **Streams.** Opens that follow one another in listing order, with small gaps, are a
//!   stream; files ahead of it are fetched, more of them the longer it lasts.
//! * **Sweep.** Opens that follow no stream and do not repeat are an epoch in random order:
//!   every file will be wanted, so all are fetched from the first on, in the background, some
//!   for each open. It is given up when what it has fetched is opened less often than chance
//!   would have it: then the opens keep to some part that the sweep is not in.
//!
//! This module decides, and does no I/O. Positions are those of the files in listing order: of
//! one directory, or of a whole dataset as a walk from its top meets them.

use std::ops::Range;

/// Opens in order before a stream is believed.
const CREDIBLE_RUN: u32 = 2;
/// How far from a stream's next position an open may be and still belong to it: workers that
/// share a stream overtake one another.
const GAP_MAX: usize = 16;
/// Streams that are followed at a time.
const STREAMS_MAX: usize = 16;
const WINDOW_MIN: usize = 8;
/// Files that are fetched ahead of a stream at most.
const WINDOW_MAX: usize = 128;
/// Opens out of order, all different, before a sweep begins.
const CREDIBLE_SCATTER: usize = 8;
/// Files that a sweep may fetch for each open, at first …
const SWEEP_STEP_FIRST: usize = 32;
/// … and after so many opens …
const SWEEP_WARM: usize = 32;
/// … this many.
const SWEEP_STEP: usize = 64;
/// A sweep is judged when chance alone would have given so many hits.
const JUDGED_HITS: f64 = 8.0;

/// Watches opens.
#[derive(Debug)]
pub struct WalkDetector {
    /// Which files were opened.
    seen: Vec<bool>,
    seen_count: usize,
    /// Which files were asked for ahead, and by what.
    fetched: Vec<Option<By>>,
    streams: Vec<Stream>,
    clock: u64,
    scattered: usize,
    sweep: Sweep,
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

#[derive(Debug, Default)]
struct Sweep {
    next: usize,
    fetched: usize,
    /// Fetched, and not opened yet.
    unopened: usize,
    hits: u32,
    /// Hits that a blind guess would have had.
    expected_hits: f64,
    given_up: bool,
}

impl WalkDetector {
    /// For so many files.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            seen: vec![false; len],
            seen_count: 0,
            fetched: vec![None; len],
            streams: Vec::new(),
            clock: 0,
            scattered: 0,
            sweep: Sweep::default(),
        }
    }

    /// The file at `position` is opened: which ones to fetch now, in this order.
    pub fn opened(&mut self, position: usize) -> Vec<usize> {
        let unseen = self.seen.len() - self.seen_count;
        let Some(seen) = self.seen.get_mut(position) else { return Vec::new() };
        if std::mem::replace(seen, true) {
            return Vec::new(); // it is cached: nothing can be learnt or gained
        }
        self.seen_count += 1;
        self.clock += 1;
        let stream = self.stream_at(position);
        if stream.is_none() {
            self.scattered += 1;
            self.sweep.judge(self.was_swept(position), unseen);
        }
        if self.was_swept(position) {
            self.sweep.unopened -= 1;
        }
        let wanted = stream.unwrap_or(0..0);
        let fresh: Vec<usize> = wanted.filter(|&at| self.is_new(at)).collect();
        for &at in &fresh {
            self.fetched[at] = Some(By::Stream);
        }
        fresh
    }

    /// Whether the file at a position was fetched by a sweep.
    #[must_use]
    pub fn was_swept(&self, position: usize) -> bool {
        self.fetched.get(position) == Some(&Some(By::Sweep))
    }

    /// The file that a sweep fetches next; `None` if there is none, or until more are opened.
    pub fn sweep_next(&mut self) -> Option<usize> {
        while !self.sweep.given_up && self.sweep.fetched < sweep_allowance(self.scattered) {
            let at = self.sweep.next;
            if at >= self.seen.len() {
                return None;
            }
            self.sweep.next += 1;
            if self.is_new(at) {
                self.fetched[at] = Some(By::Sweep);
                self.sweep.fetched += 1;
                self.sweep.unopened += 1;
                return Some(at);
            }
        }
        None
    }

    fn is_new(&self, at: usize) -> bool {
        !self.seen[at] && self.fetched[at].is_none()
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
}

/// Files that a sweep may have fetched after so many scattered opens.
fn sweep_allowance(scattered: usize) -> usize {
    let first = scattered.min(SWEEP_WARM).saturating_sub(CREDIBLE_SCATTER - 1);
    first * SWEEP_STEP_FIRST + scattered.saturating_sub(SWEEP_WARM) * SWEEP_STEP
}

impl Sweep {
    /// A file is opened for the first time, one of `unseen`.
    fn judge(&mut self, hit: bool, unseen: usize) {
        self.hits += u32::from(hit);
        self.expected_hits += self.unopened as f64 / unseen.max(1) as f64;
        if self.expected_hits >= JUDGED_HITS && f64::from(self.hits) * 2.0 < self.expected_hits {
            self.given_up = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens files in this order; a sweep gets as far as it may each time. How many of them had
    /// been fetched ahead, and how many fetches there were.
    fn run(len: usize, order: impl IntoIterator<Item = usize>) -> (usize, usize) {
        let mut detector = WalkDetector::new(len);
        let mut fetched = vec![false; len];
        let (mut hits, mut fetches) = (0, 0);
        for position in order {
            hits += usize::from(fetched[position]);
            let mut ahead = detector.opened(position);
            ahead.extend(std::iter::from_fn(|| detector.sweep_next()));
            for at in ahead {
                assert!(!fetched[at], "{at} was fetched before");
                fetched[at] = true;
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
        assert!(hits >= 9700, "{hits}");
        assert!(fetches <= 10_000);
    }

    #[test]
    fn a_sweep_that_is_of_no_use_stops() {
        // Random files of the last tenth only: what is fetched from the start is never opened.
        let order: Vec<usize> = shuffled(10_000).into_iter().filter(|&at| at >= 9000).collect();
        let (_, fetches) = run(10_000, order);
        assert!(fetches <= 4000, "{fetches}");
    }

    #[test]
    fn a_sweep_fetches_a_bounded_number_for_each_open() {
        for opens in [7, 8, 32, 100] {
            let (_, fetches) = run(1_000_000, shuffled(1_000_000).into_iter().take(opens));
            assert!(fetches <= opens * SWEEP_STEP, "{fetches} after {opens}");
            assert_eq!(fetches > 0, opens >= CREDIBLE_SCATTER);
        }
    }

    #[test]
    fn a_sample_of_all_files_is_swept_and_a_second_epoch_costs_nothing() {
        let sample = shuffled(10_000).into_iter().take(5000);
        let (hits, _) = run(10_000, sample.clone().chain(sample));
        assert!(hits >= 4500 + 5000, "{hits}");
    }

    #[test]
    fn positions_that_are_not_there_are_ignored() {
        assert!(WalkDetector::new(0).opened(0).is_empty());
        assert!(WalkDetector::new(3).opened(7).is_empty());
    }
}
