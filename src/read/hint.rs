//! Prefetch across files: small objects that somebody expects to be opened next.
//!
//! Who expects it (a walk in listing order, an order seen before) is not known here; how good
//! the guesses were is. Every hint is remembered until its object is opened or the hint is old,
//! and while too few of the last hints came true, hints are only remembered and nothing is
//! fetched: guesses that become good again are noticed without costing anything.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use lru::LruCache;
use parking_lot::Mutex;

use crate::cache::VersionId;
use crate::read::OpenObject;
use crate::read::part::Claim;

/// Hints that are remembered.
const HINTS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// The last so many hints are judged; there is one bit for each.
const JUDGED: u32 = 64;
/// So many of them must have come true.
const TRUE_MIN: u32 = 16;
/// Hinted objects that were not opened yet hold at most this part of the memory budget …
pub(crate) const MEMORY_SHARE: u64 = 4;
/// … and older ones make room for new ones after this long.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// How good the guesses were. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// The last outcomes, the newest in the lowest bit.
    outcomes: u64,
    count: u32,
}

impl Record {
    fn note(&mut self, came_true: bool) {
        self.outcomes = self.outcomes << 1 | u64::from(came_true);
        self.count = (self.count + 1).min(JUDGED);
    }

    /// Whether hints are worth a fetch. In doubt they are.
    fn is_good(&self) -> bool {
        self.count < JUDGED || self.outcomes.count_ones() >= TRUE_MIN
    }
}

#[derive(Debug)]
struct Hint {
    /// Keeps the bytes in memory; absent if nothing was fetched.
    _object: Option<Arc<OpenObject>>,
    _claims: Vec<Claim>,
    bytes: u64,
    at: Instant,
    opened: bool,
}

#[derive(Debug)]
struct State {
    hints: LruCache<VersionId, Hint>,
    /// Bytes of objects that were fetched and not opened yet.
    unopened_bytes: u64,
    record: Record,
}

/// The hints of a reader.
#[derive(Debug)]
pub(crate) struct Hints {
    state: Mutex<State>,
    bytes_max: u64,
}

impl Hints {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let state = State { hints: LruCache::new(HINTS_MAX), unopened_bytes: 0, record: Record::default() };
        Self { state: Mutex::new(state), bytes_max }
    }

    /// Whether hints are fetched, or only remembered.
    pub(crate) fn are_good(&self) -> bool {
        self.state.lock().record.is_good()
    }

    /// Whether a hint is remembered.
    pub(crate) fn has(&self, id: &VersionId) -> bool {
        self.state.lock().hints.contains(id)
    }

    /// Makes room for so many bytes, by forgetting stale hints; whether there is room now.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        loop {
            let mut state = self.state.lock();
            if state.unopened_bytes + bytes <= self.bytes_max {
                return true;
            }
            let stale = state
                .hints
                .peek_lru()
                .is_some_and(|(_, hint)| hint.opened || hint.at.elapsed() >= STALE_AFTER);
            if !stale {
                return false;
            }
            let oldest = state.hints.pop_lru().map(|(_, hint)| hint);
            let forgotten = oldest.map(|hint| state.forget(hint));
            drop(state);
            drop(forgotten); // outside the lock: it may be the object's last holder
        }
    }

    /// Remembers a hint, with what was begun for it.
    pub(crate) fn add(&self, id: VersionId, object: Option<Arc<OpenObject>>, claims: Vec<Claim>, bytes: u64) {
        let hint = Hint { _object: object, _claims: claims, bytes, at: Instant::now(), opened: false };
        let mut state = self.state.lock();
        state.unopened_bytes += bytes;
        let forgotten = state.hints.push(id, hint).map(|(_, hint)| state.forget(hint));
        drop(state);
        drop(forgotten);
    }

    /// An object is opened: did somebody expect it?
    pub(crate) fn opened(&self, id: &VersionId) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(hint) = state.hints.peek_mut(id).filter(|hint| !hint.opened) {
            hint.opened = true;
            state.unopened_bytes -= hint.bytes;
            state.record.note(true);
        }
    }
}

impl State {
    fn forget(&mut self, hint: Hint) -> Hint {
        if !hint.opened {
            self.unopened_bytes -= hint.bytes;
            self.record.note(false);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_trusted_until_most_of_them_were_wrong_and_again_when_they_are_right() {
        let mut record = Record::default();
        for _ in 0..JUDGED - 1 {
            record.note(false);
            assert!(record.is_good());
        }
        record.note(false);
        assert!(!record.is_good());
        for _ in 0..TRUE_MIN {
            assert!(!record.is_good());
            record.note(true);
        }
        assert!(record.is_good());
    }
}
