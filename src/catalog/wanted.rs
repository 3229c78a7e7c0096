//! Levels that are to be listed in the background.
//!
//! Somebody waits for those that are listed *soon*. Those that were answered from a snapshot are
//! listed *later*, when the walk that asks for one after the other is over: their listings would take
//! its time, and one flat listing of the dataset costs less than its directories one by one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::catalog::Known;
use crate::catalog::Level;
use crate::catalog::ask::Extent;
use crate::name::DatasetName;

/// Levels that are listed in the background at a time.
pub(super) const PARALLEL: usize = 16;
/// Levels that may wait for that; what finds no room is listed when it expires.
const WANTED_MAX: usize = 65_536;
/// A walk is over when it asked for nothing new for so long …
const QUIET: Duration = Duration::from_millis(700);
/// … and the first level that it asked for does not wait longer than this.
const LATER_MAX: Duration = Duration::from_secs(10);
/// From so many levels of a dataset on, all of it is listed.
const WHOLE_LEVELS_MIN: usize = 8;
/// Unless it has more keys than this: they are in memory together meanwhile, some 200 bytes each.
const WHOLE_KEYS_MAX: usize = 200_000;

/// Levels to be listed in the background.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    queue: Mutex<Queue>,
    added: Notify,
    served: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    /// With the time when each was wanted.
    soon: VecDeque<(Level, Instant)>,
    known: HashSet<Level>,
    later: BTreeSet<Level>,
    /// When the first one came to `later`, and when all of them are to be listed.
    later_times: Option<(Instant, Instant)>,
}

/// What is to be done next.
#[derive(Debug)]
enum Next {
    Level(Level, Instant),
    /// Levels of one dataset, which nobody waits for.
    Several(DatasetName, Vec<Level>),
}

impl Wanted {
    /// Whether somebody lists what is wanted.
    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Has a level listed soon.
    pub(super) fn push(&self, level: Level) {
        let mut queue = self.queue.lock();
        if self.is_served() && queue.soon.len() < WANTED_MAX && queue.known.insert(level.clone()) {
            queue.soon.push_back((level, Instant::now()));
            drop(queue);
            self.added.notify_one();
        }
    }

    /// Has a level listed when nobody asks for others any more.
    pub(super) fn push_later(&self, level: Level) {
        let mut queue = self.queue.lock();
        if self.is_served() && queue.later.len() < WANTED_MAX && queue.later.insert(level) {
            let now = Instant::now();
            let before = queue.later_times;
            let first = before.map_or(now, |(first, _)| first);
            queue.later_times = Some((first, (now + QUIET).min(first + LATER_MAX)));
            drop(queue);
            if before.is_none() {
                self.added.notify_one();
            }
        }
    }

    /// When the levels that have time are to be listed.
    fn later_at(&self) -> Option<Instant> {
        self.queue.lock().later_times.map(|(_, at)| at)
    }

    fn pop(&self) -> Option<Next> {
        let mut queue = self.queue.lock();
        if let Some((level, since)) = queue.soon.pop_front() {
            queue.known.remove(&level);
            return Some(Next::Level(level, since));
        }
        let times = queue.later_times.filter(|(_, at)| *at <= Instant::now())?;
        queue.later_times = None;
        let mut datasets: BTreeMap<DatasetName, Vec<Level>> = BTreeMap::new();
        for level in std::mem::take(&mut queue.later) {
            if let Level::Directory(name, _) = &level {
                datasets.entry(name.clone()).or_default().push(level);
            }
        }
        let (name, levels) = datasets.pop_first()?;
        // The others come next.
        queue.later = datasets.into_values().flatten().collect();
        queue.later_times = (!queue.later.is_empty()).then_some(times);
        Some(Next::Several(name, levels))
    }
}

impl Catalog {
    /// Lists what is wanted in the background, until `stop`.
    pub async fn refresh_wanted(self: Arc<Self>, stop: CancellationToken) {
        self.wanted.served.store(true, Ordering::Release);
        let mut tasks = JoinSet::new();
        loop {
            let added = self.wanted.added.notified();
            while tasks.len() < PARALLEL
                && let Some(next) = self.wanted.pop()
            {
                let catalog = Arc::clone(&self);
                tasks.spawn(async move {
                    match next {
                        Next::Level(level, since) => catalog.refresh_level(&level, since).await,
                        Next::Several(name, levels) => catalog.refresh_several(&name, levels).await,
                    }
                });
            }
            let later_at = self.wanted.later_at();
            let has_room = tasks.len() < PARALLEL;
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                () = added, if has_room => {}
                () = time::sleep_until(later_at.unwrap_or_else(Instant::now)), if has_room && later_at.is_some() => {}
            }
        }
        self.wanted.served.store(false, Ordering::Release);
    }

    /// Lists a level, unless that was done since it was wanted. Failures stay with the level.
    async fn refresh_level(&self, level: &Level, since: Instant) {
        let slot = self.levels.slot(level);
        let _asking = slot.asking.lock().await;
        let is_newer = |known: Known| known.stale.is_none() && known.expires > since + self.ttl;
        if slot.known().is_some_and(is_newer) {
            return;
        }
        let result = self.ask_now(level, &slot, Extent::Whole).await;
        if let Err(err) = result {
            tracing::debug!("{level} could not be listed in the background: {err}");
        }
    }

    /// Lists levels that were answered from a snapshot, if need be with everything beside them.
    async fn refresh_several(self: &Arc<Self>, name: &DatasetName, levels: Vec<Level>) {
        let mut missing: HashSet<Level> = levels.into_iter().collect();
        let files = self.histories.last_snapshot(name).entries.len();
        if missing.len() >= WHOLE_LEVELS_MIN && files <= WHOLE_KEYS_MAX {
            match self.learn_whole(name, WHOLE_KEYS_MAX).await {
                Ok(Some(listed)) => {
                    for (dir, _) in listed {
                        missing.remove(&Level::Directory(name.clone(), dir));
                    }
                }
                Ok(None) => {}
                Err(err) => tracing::debug!("{name} could not be listed in the background: {err}"),
            }
        }
        missing.into_iter().for_each(|level| self.wanted.push(level));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::RelPath;

    fn level(dataset: &str, dir: &str) -> Level {
        Level::Directory(DatasetName::parse(dataset).unwrap(), RelPath::parse(dir).unwrap().into())
    }

    fn served() -> Wanted {
        let wanted = Wanted::default();
        wanted.served.store(true, Ordering::Release);
        wanted
    }

    /// What is done next, as text.
    fn next(wanted: &Wanted) -> String {
        match wanted.pop() {
            None => "nothing".into(),
            Some(Next::Level(level, _)) => level.to_string(),
            Some(Next::Several(name, levels)) => format!("{name}: {}", levels.len()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_time_waits_for_the_end_of_a_walk() {
        let wanted = served();
        for dir in ["a", "b", "c"] {
            wanted.push_later(level("run", dir));
            time::advance(QUIET / 2).await;
        }
        wanted.push_later(level("other", "a"));
        wanted.push(level("run", "a"));
        assert_eq!(next(&wanted), "run/a", "somebody waits for this one");
        assert_eq!(next(&wanted), "nothing");
        time::advance(QUIET).await;
        assert_eq!(next(&wanted), "other: 1");
        assert_eq!(next(&wanted), "run: 3");
        assert_eq!(next(&wanted), "nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_walk_without_an_end_does_not_hold_up_the_first_of_it() {
        let wanted = served();
        let began = Instant::now();
        let mut number = 0;
        while next(&wanted) == "nothing" {
            number += 1;
            wanted.push_later(level("run", &number.to_string()));
            time::advance(QUIET / 2).await;
        }
        assert!(began.elapsed() >= LATER_MAX && began.elapsed() < LATER_MAX + QUIET);
    }
}
