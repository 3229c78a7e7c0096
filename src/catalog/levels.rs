//! The directory levels that are in memory: those used last, up to a number of entries.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::catalog::Known;
use crate::catalog::Level;
use crate::catalog::edits;
use crate::catalog::edits::LevelEdits;
use crate::name::DatasetName;

/// Entries in memory, all levels together; about 300 bytes each. A single level may be larger.
const ENTRIES_MAX: usize = 200_000;
/// What a level costs beside its entries, in entries.
const LEVEL_COST: usize = 4;

/// A level's place, shared by all who ask for it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    known: Mutex<Option<Known>>,
    /// Held while the level is being listed.
    pub(super) asking: tokio::sync::Mutex<()>,
    /// Told when a listing has ended, however.
    pub(super) asked: Notify,
    /// Held while the disk's copy is looked for; whether that was done.
    pub(super) restoring: tokio::sync::Mutex<bool>,
    cost: AtomicUsize,
}

impl Slot {
    /// What is known, however old.
    pub(super) fn known(&self) -> Option<Known> {
        self.known.lock().clone()
    }

    /// What is known, if nobody needs to ask again.
    pub(super) fn fresh(&self) -> Option<Known> {
        self.known().filter(Known::is_fresh)
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Levels {
    slots: Mutex<LruCache<Level, Arc<Slot>>>,
    cost: AtomicUsize,
}

impl Default for Levels {
    fn default() -> Self {
        Self { slots: Mutex::new(LruCache::unbounded()), cost: AtomicUsize::new(0) }
    }
}

impl Levels {
    /// The place of a level.
    pub(super) fn slot(&self, level: &Level) -> Arc<Slot> {
        Arc::clone(self.slots.lock().get_or_insert_ref(level, Arc::default))
    }

    /// The place of a level that was asked for before.
    pub(super) fn existing(&self, level: &Level) -> Option<Arc<Slot>> {
        self.slots.lock().get(level).cloned()
    }

    /// Replaces what is known, if `is_current` still says so under the slot's lock, of what is there.
    /// Returns what was known before, and whether it was replaced.
    pub(super) fn put(
        &self,
        slot: &Slot,
        known: Known,
        is_current: impl FnOnce(Option<&Known>) -> bool,
    ) -> (Option<Known>, bool) {
        let mut guard = slot.known.lock();
        if !is_current(guard.as_ref()) {
            return (guard.clone(), false);
        }
        let cost = known.listing.entries.len() + LEVEL_COST;
        let before = guard.replace(known);
        drop(guard);
        self.weigh(slot, cost);
        self.shrink();
        (before, true)
    }

    fn weigh(&self, slot: &Slot, cost: usize) {
        let before = slot.cost.swap(cost, Ordering::AcqRel);
        self.cost.fetch_add(cost, Ordering::AcqRel);
        self.cost.fetch_sub(before, Ordering::AcqRel);
    }

    /// Changes how long an answer stands, and why it does not.
    pub(super) fn touch(&self, slot: &Slot, change: impl FnOnce(&mut Known)) -> Option<Known> {
        let mut guard = slot.known.lock();
        let known = guard.as_mut()?;
        change(known);
        Some(known.clone())
    }

    /// Makes edits to a level, if it is known.
    pub(super) fn amend(&self, level: &Level, edits: &LevelEdits) {
        let Some(slot) = self.slots.lock().peek(level).cloned() else { return };
        let mut guard = slot.known.lock();
        let Some(known) = &mut *guard else { return };
        edits::apply(Arc::make_mut(&mut known.listing), edits);
        let cost = known.listing.entries.len() + LEVEL_COST;
        drop(guard);
        self.weigh(&slot, cost);
    }

    /// Makes the levels of a dataset, or all, expire now.
    pub(super) fn expire(&self, name: Option<&DatasetName>) {
        let now = Instant::now();
        for (level, slot) in self.slots.lock().iter() {
            if level.concerns(name)
                && let Some(known) = &mut *slot.known.lock()
            {
                known.expires = now;
            }
        }
    }

    /// Makes one level expire now.
    pub(super) fn expire_level(&self, level: &Level) {
        if let Some(slot) = self.existing(level) {
            self.touch(&slot, |known| known.expires = Instant::now());
        }
    }

    /// The levels of a dataset, or all, that are in memory.
    pub(super) fn of(&self, name: Option<&DatasetName>) -> Vec<Level> {
        let slots = self.slots.lock();
        let known = slots.iter().filter(|(level, slot)| level.concerns(name) && slot.known.lock().is_some());
        known.map(|(level, _)| level.clone()).collect()
    }

    /// Forgets what was not used for longest, where there is too much. Never what somebody holds.
    fn shrink(&self) {
        let mut slots = self.slots.lock();
        let mut in_use = Vec::new();
        while self.cost.load(Ordering::Acquire) > ENTRIES_MAX && slots.len() > 1 {
            let Some((level, slot)) = slots.pop_lru() else { break };
            if Arc::strong_count(&slot) > 1 {
                in_use.push((level, slot));
            } else {
                self.cost.fetch_sub(slot.cost.load(Ordering::Acquire), Ordering::AcqRel);
            }
        }
        for (level, slot) in in_use {
            slots.put(level, slot);
        }
    }

    /// Entries in memory.
    #[cfg(test)]
    fn cost(&self) -> usize {
        self.cost.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::listing::Listing;
    use crate::catalog::listing::RemoteEntry;
    use crate::name::DirPath;

    fn level(number: usize) -> Level {
        Level::Directory(DatasetName::parse(&format!("d{number}")).unwrap(), DirPath::root())
    }

    fn known(entries: usize) -> Known {
        let names = (0..entries).map(|number| (format!("{number}").into(), RemoteEntry::Directory));
        Known {
            listing: Arc::new(Listing { entries: names.collect(), ..Listing::default() }),
            expires: Instant::now() + Duration::from_secs(60),
            stale: None,
        }
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten() {
        let levels = Levels::default();
        for number in 0..8 {
            levels.put(&levels.slot(&level(number)), known(50_000), |_| true);
            levels.slot(&level(0));
        }
        assert!(levels.cost() <= ENTRIES_MAX, "{}", levels.cost());
        assert!(levels.existing(&level(0)).is_some(), "used all the time");
        assert!(levels.existing(&level(1)).is_none());
        assert!(levels.existing(&level(7)).is_some());
    }

    #[test]
    fn one_level_may_be_larger_than_all_together() {
        let levels = Levels::default();
        levels.put(&levels.slot(&level(1)), known(10), |_| true);
        let large = levels.slot(&level(2));
        levels.put(&large, known(ENTRIES_MAX + 1), |_| true);
        assert!(levels.existing(&level(1)).is_none());
        assert!(levels.existing(&level(2)).unwrap().fresh().is_some());
    }
}
