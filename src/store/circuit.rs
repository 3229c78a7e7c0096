//! Whether the remote answers: a circuit breaker as a state machine. Pure; times are handed in.
//!
//! ```text
//!            a request had no answer          the probes had none either
//!   Online ───────────────────────► Suspected ────────────────────────► Offline
//!     ▲            any answer, to whomever │                               │ ▲ │
//!     └────────────────────────────────────┴───────────────────────────────┘ └─┘ probe again
//! ```
//!
//! One silent request condemns nothing: the probe decides, which is small and has a short
//! deadline of its own, and a second one over a new connection. While offline, requests fail at once instead of each waiting for its
//! own timeout, and probes go on, ever more seldom.

use std::time::Duration;
use std::time::SystemTime;

use tokio::time::Instant;

/// Pause before the second probe; it doubles with each one that fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two probes.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Since when the remote does not answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When that was noticed.
    pub since: SystemTime,
    /// What the last probe met.
    pub reason: String,
}

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Circuit {
    /// The remote answers, as far as is known.
    #[default]
    Online,
    /// A request had no answer; requests go on until a probe has told.
    Suspected,
    /// The remote does not answer: requests fail at once.
    Offline {
        /// Since when, and why.
        outage: Outage,
        /// When to probe again.
        probe_at: Instant,
        /// How long to wait after that.
        pause: Duration,
    },
}

impl Circuit {
    /// Why requests are refused, if they are.
    #[must_use]
    pub fn outage(&self) -> Option<&Outage> {
        match self {
            Self::Offline { outage, .. } => Some(outage),
            Self::Online | Self::Suspected => None,
        }
    }

    /// A request had no answer.
    pub fn unanswered(&mut self) {
        if *self == Self::Online {
            *self = Self::Suspected;
        }
    }

    /// The remote has answered, whatever it said. Returns whether that ended an outage.
    pub fn answered(&mut self) -> bool {
        let was_offline = self.outage().is_some();
        *self = Self::Online;
        was_offline
    }

    /// Whether a probe is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        match self {
            Self::Online => false,
            Self::Suspected => true,
            Self::Offline { probe_at, .. } => now >= *probe_at,
        }
    }

    /// A probe had no answer. Returns whether that began an outage.
    pub fn probe_failed(&mut self, now: Instant, time: SystemTime, reason: String) -> bool {
        let before = std::mem::take(self);
        let (since, pause, is_new) = match before {
            Self::Offline { outage, pause, .. } => (outage.since, (pause * 2).min(PAUSE_MAX), false),
            Self::Online | Self::Suspected => (time, PAUSE_MIN, true),
        };
        *self = Self::Offline { outage: Outage { since, reason }, probe_at: now + pause, pause };
        is_new
    }

    /// The machine has slept, or something else has changed: probe now.
    pub fn look_now(&mut self, now: Instant) {
        match self {
            Self::Online => *self = Self::Suspected,
            Self::Suspected => {}
            Self::Offline { probe_at, pause, .. } => {
                *probe_at = now;
                *pause = PAUSE_MIN;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(circuit: &mut Circuit, now: Instant) -> bool {
        circuit.probe_failed(now, SystemTime::UNIX_EPOCH, "refused".into())
    }

    #[test]
    fn one_silent_request_condemns_nothing() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        assert!(!circuit.is_due(now));
        circuit.unanswered();
        assert!(circuit.is_due(now) && circuit.outage().is_none());
        assert!(!circuit.answered(), "there was no outage");
        assert_eq!(circuit, Circuit::Online);
    }

    #[test]
    fn a_probe_without_an_answer_does_and_an_answer_ends_it() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        circuit.unanswered();
        assert!(failed(&mut circuit, now));
        assert_eq!(circuit.outage().unwrap().reason, "refused");
        circuit.unanswered();
        assert!(circuit.outage().is_some(), "still the same outage");
        assert!(circuit.answered());
        assert!(circuit.outage().is_none());
    }

    #[test]
    fn probes_go_on_ever_more_seldom_and_the_outage_keeps_its_beginning() {
        let mut circuit = Circuit::default();
        let mut now = Instant::now();
        circuit.unanswered();
        failed(&mut circuit, now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let mut pause = Duration::ZERO;
            while !circuit.is_due(now + pause) {
                pause += Duration::from_secs(1);
            }
            pauses.push(pause.as_secs());
            now += pause;
            let later = SystemTime::UNIX_EPOCH + Duration::from_secs(99);
            assert!(!circuit.probe_failed(now, later, "still".into()));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);
        assert_eq!(circuit.outage().unwrap().since, SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn after_sleep_the_remote_is_asked_at_once() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        circuit.look_now(now);
        assert!(circuit.is_due(now) && circuit.outage().is_none());
        failed(&mut circuit, now);
        failed(&mut circuit, now);
        assert!(!circuit.is_due(now));
        circuit.look_now(now);
        assert!(circuit.is_due(now));
    }
}
