//! How many requests may begin in a second, and giving way to a server that asks for it.
//!
//! Two limits, one for reads and listings and one for writes and deletions. Requests are admitted
//! evenly: the next one `1 / rate` after the last, so that a burst after a pause is no burst at the
//! server. A rate that doubles (as S3 raises what a prefix can take while it is used) grows without
//! bound; one that was halved because the server said "slow down" grows back at the same pace.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio::time::sleep_until;

/// How long a halved rate takes to double again, where no doubling time is set.
const RECOVERY: Duration = Duration::from_secs(10);
/// Answers that were on the way when the rate was halved speak of the old rate.
const BACK_OFF_PAUSE: Duration = Duration::from_secs(1);
/// A rate is never cut to less than this part of itself.
const FACTOR_MIN: f64 = 1.0 / 64.0;

/// The limits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateOptions {
    /// Reads and listings in a second; `None` for no limit.
    pub reads_per_second: Option<f64>,
    /// Writes and deletions in a second; `None` for no limit.
    pub writes_per_second: Option<f64>,
    /// The time in which both double; `None` for never.
    pub doubling_time: Option<Duration>,
}

/// Which limit a request counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads and listings.
    Read,
    /// Writes and deletions.
    Write,
}

/// The state of one limit, as a function of the time.
#[derive(Clone, Copy, Debug)]
struct Lane {
    per_second: f64,
    doubling: Option<Duration>,
    began: Instant,
    /// When the next request may begin.
    next: Instant,
    /// What the rate was cut to, and when.
    cut: Option<(f64, Instant)>,
}

impl Lane {
    fn new(per_second: f64, doubling: Option<Duration>, now: Instant) -> Self {
        Self { per_second, doubling, began: now, next: now, cut: None }
    }

    /// The part of the rate that is left after a cut, as it grows back.
    fn factor(&self, now: Instant) -> f64 {
        self.cut.map_or(1.0, |(factor, at)| {
            let recovery = self.doubling.unwrap_or(RECOVERY).as_secs_f64();
            let passed = now.duration_since(at).as_secs_f64();
            (factor * (passed / recovery).exp2()).min(1.0)
        })
    }

    /// Requests in a second, now.
    fn rate(&self, now: Instant) -> f64 {
        let grown = self.doubling.map_or(1.0, |doubling| {
            (now.duration_since(self.began).as_secs_f64() / doubling.as_secs_f64()).exp2()
        });
        self.per_second * grown * self.factor(now)
    }

    /// Takes a turn; when it comes.
    fn admit(&mut self, now: Instant) -> Instant {
        let turn = self.next.max(now);
        let gap = Duration::try_from_secs_f64(1.0 / self.rate(now)).unwrap_or(Duration::MAX);
        self.next = turn.checked_add(gap).unwrap_or(turn);
        turn
    }

    fn back_off(&mut self, now: Instant) {
        if self.cut.is_some_and(|(_, at)| now.duration_since(at) < BACK_OFF_PAUSE) {
            return;
        }
        self.cut = Some(((self.factor(now) / 2.0).max(FACTOR_MIN), now));
    }
}

/// Lets requests begin at a bounded rate.
#[derive(Debug)]
pub struct RateLimiter {
    reads: Option<Mutex<Lane>>,
    writes: Option<Mutex<Lane>>,
}

impl RateLimiter {
    /// A limiter; the first request begins at once.
    #[must_use]
    pub fn new(options: &RateOptions) -> Self {
        let now = Instant::now();
        let lane =
            |rate: Option<f64>| rate.map(|rate| Mutex::new(Lane::new(rate, options.doubling_time, now)));
        Self { reads: lane(options.reads_per_second), writes: lane(options.writes_per_second) }
    }

    fn lane(&self, direction: Direction) -> Option<&Mutex<Lane>> {
        match direction {
            Direction::Read => self.reads.as_ref(),
            Direction::Write => self.writes.as_ref(),
        }
    }

    /// Waits until a request may begin.
    pub async fn admit(&self, direction: Direction) {
        if let Some(lane) = self.lane(direction) {
            let turn = lane.lock().admit(Instant::now());
            sleep_until(turn).await;
        }
    }

    /// The server asked for fewer requests: halves the rate, which then grows back.
    pub fn back_off(&self, direction: Direction) {
        if let Some(lane) = self.lane(direction) {
            lane.lock().back_off(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_begin_evenly() {
        let limiter =
            RateLimiter::new(&RateOptions { reads_per_second: Some(5.0), ..RateOptions::default() });
        let began = Instant::now();
        for _ in 0..20 {
            limiter.admit(Direction::Read).await;
            limiter.admit(Direction::Write).await; // not limited
        }
        let took = began.elapsed();
        assert!(took >= seconds(3.8) && took < seconds(3.9), "{took:?}");
    }

    #[test]
    fn a_rate_doubles() {
        let start = Instant::now();
        let lane = Lane::new(4.0, Some(seconds(10.0)), start);
        for (after, rate) in [(0.0, 4.0), (10.0, 8.0), (20.0, 16.0)] {
            assert!((lane.rate(start + seconds(after)) - rate).abs() < 1e-6);
        }
    }

    #[test]
    fn a_rate_that_was_cut_grows_back_and_no_further() {
        let start = Instant::now();
        let mut lane = Lane::new(8.0, None, start);
        lane.back_off(start);
        lane.back_off(start + seconds(0.1)); // speaks of the old rate
        for (after, rate) in [(0.0, 4.0), (10.0, 8.0), (60.0, 8.0)] {
            assert!((lane.rate(start + seconds(after)) - rate).abs() < 1e-6);
        }
        for second in 0..100 {
            lane.back_off(start + seconds(100.0 + f64::from(second) * 1.5));
        }
        let last = start + seconds(100.0 + 99.0 * 1.5);
        assert!(lane.rate(last) >= 8.0 * FACTOR_MIN);
    }
}
