//! Levels that are listed in the background, and answers that do not wait for that.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time;
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::catalog::Known;
use crate::catalog::Level;
use crate::catalog::RETRY_AFTER_FAILURE;
use crate::catalog::ask::Extent;
use crate::catalog::edits;
use crate::catalog::levels::Slot;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::wanted::PARALLEL;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::store::StoreError;

/// How long what a process before this one has listed stands unless it is refreshed before.
const RESTORED_TTL: Duration = Duration::from_secs(5);
/// Sibling directories that are listed ahead of a walk.
const AHEAD: usize = 32;

/// What a refresh has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Levels that were listed.
    pub levels: u64,
    /// What is not what it was, as `dataset/path`.
    pub changed: Vec<String>,
}

impl Catalog {
    /// What was known to a process before this one, or to this one before it had to make room.
    pub(super) async fn restored(&self, level: &Level, slot: &Slot) -> Option<Known> {
        let disk = self.disk.as_ref()?;
        let mut looked = slot.restoring.lock().await;
        if std::mem::replace(&mut *looked, true) {
            return slot.fresh();
        }
        loop {
            let news = self.news.load(Ordering::Acquire);
            let (place, asked) = (Arc::clone(disk), level.clone());
            let with_dataset = match level {
                Level::Directory(name, _) => !self.histories.has(name),
                Level::Datasets => false,
            };
            let load = move || {
                let stored = place.load(&asked);
                let dataset = match &asked {
                    Level::Directory(name, _) if with_dataset => place.dataset(name),
                    Level::Directory(..) | Level::Datasets => None,
                };
                (stored, dataset)
            };
            let (stored, dataset) = tokio::task::spawn_blocking(load).await.ok()?;
            if let (Level::Directory(name, _), Some(dataset)) = (level, dataset) {
                self.histories.restore(name, dataset.seq, dataset.snapshot);
                self.noted_on_disk(name);
            }
            let stored = stored?;
            let age = SystemClock.now().duration_since(stored.listed).unwrap_or_default();
            let is_ours = stored.listed > *self.reliable_since.lock();
            let left = if is_ours { self.ttl.saturating_sub(age) } else { Duration::ZERO };
            let known = Known {
                listing: Arc::new(stored.listing),
                expires: Instant::now() + left.max(RESTORED_TTL.min(self.ttl)),
                stale: None,
            };
            let is_current = |there: Option<&Known>| {
                news == self.news.load(Ordering::Acquire) && !there.is_some_and(Known::is_fresh)
            };
            let (_, put) = self.levels.put(slot, known.clone(), is_current);
            if !put {
                match slot.fresh() {
                    Some(known) => return Some(known), // somebody was faster
                    None => continue,
                }
            }
            if !left.is_zero() {
                return Some(known);
            }
            let patience = std::mem::take(&mut *self.patience.lock());
            let began = Instant::now();
            let refreshed = self.refreshed_within(level, slot, patience).await;
            *self.patience.lock() = patience.saturating_sub(began.elapsed());
            return Some(refreshed.unwrap_or(known));
        }
    }

    /// Has a level listed in the background, and waits for that for a while.
    pub(super) async fn refreshed_within(
        &self,
        level: &Level,
        slot: &Slot,
        patience: Duration,
    ) -> Option<Known> {
        let asked = slot.asked.notified();
        tokio::pin!(asked);
        asked.as_mut().enable();
        self.wanted.push(level.clone());
        if patience.is_zero() || !self.wanted.is_served() || time::timeout(patience, asked).await.is_err() {
            return None;
        }
        slot.fresh()
    }

    /// A listing takes too long: what is known stands for a little longer.
    pub(super) fn postpone(&self, slot: &Slot) -> Option<Known> {
        self.levels.touch(slot, |known| {
            let until = Instant::now() + RETRY_AFTER_FAILURE;
            known.expires = known.expires.max(until);
        })
    }

    /// A level that was not listed yet, out of the dataset's snapshot: all of a large dataset is
    /// known from the few requests that its log takes. The listing follows in the background.
    pub(super) async fn provisional(&self, level: &Level, slot: &Slot) -> Option<Known> {
        let Level::Directory(name, dir) = level else { return None };
        if !self.wanted.is_served() {
            return None;
        }
        if self.of_snapshot(name, dir, &self.histories.last_snapshot(name)).is_none() {
            self.look_ahead(name, dir);
            return None;
        }
        if !self.histories.was_read_within(name, self.ttl) {
            self.read_history(name, self.histories.mark(name)).await.ok()?;
        }
        loop {
            let news = self.news.load(Ordering::Acquire);
            let snapshot = self.histories.last_snapshot(name);
            let listing = Arc::new(self.of_snapshot(name, dir, &snapshot)?);
            let known = Known { listing, expires: Instant::now() + self.ttl, stale: None };
            let is_current = |there: Option<&Known>| {
                news == self.news.load(Ordering::Acquire) && !there.is_some_and(Known::is_fresh)
            };
            let (_, put) = self.levels.put(slot, known.clone(), is_current);
            if put {
                self.wanted.push_later(level.clone());
                return Some(known);
            }
            if let Some(known) = slot.fresh() {
                return Some(known);
            }
        }
    }

    /// A level out of the newest snapshot that is known, however old.
    pub(super) fn known_by_snapshot(&self, level: &Level) -> Option<Known> {
        let Level::Directory(name, dir) = level else { return None };
        let listing = self.of_snapshot(name, dir, &self.histories.last_snapshot(name))?;
        Some(Known { listing: Arc::new(listing), expires: Instant::now(), stale: None })
    }

    /// Somebody asks for a directory that was not listed yet, and the one before it in the
    /// directory above was: a walk. The ones behind it are listed before it comes there.
    fn look_ahead(&self, name: &DatasetName, dir: &DirPath) {
        let Some(path) = dir.as_path() else { return };
        let above = path.parent();
        let Some(parent) = self.fresh(&Level::Directory(name.clone(), above.clone())) else { return };
        let entries = &parent.listing.entries;
        let is_directory = |entry: &(&Arc<str>, &RemoteEntry)| matches!(entry.1, RemoteEntry::Directory);
        let level = |name_in: &str| Some(Level::Directory(name.clone(), above.child(name_in).ok()?.into()));
        let is_known = |level: &Level| self.levels.existing(level).is_some();
        let here = path.file_name();
        let before =
            entries.range::<str, _>((Bound::Unbounded, Bound::Excluded(here))).rev().find(is_directory);
        if !before.and_then(|(before, _)| level(before)).is_some_and(|before| is_known(&before)) {
            return;
        }
        let behind = entries.range::<str, _>((Bound::Excluded(here), Bound::Unbounded));
        let behind = behind.filter(is_directory).take(AHEAD);
        for ahead in behind.filter_map(|(next, _)| level(next)).filter(|next| !is_known(next)) {
            self.levels.slot(&ahead); // known to be on its way
            self.wanted.push(ahead);
        }
    }

    /// Keeps a level on disk, in the background; waits if many others are on their way there.
    pub(super) async fn keep(&self, level: &Level, listing: Arc<Listing>, seq: u64, news: u64) {
        let Some(disk) = &self.disk else { return };
        let (disk, level, counter) = (Arc::clone(disk), level.clone(), Arc::clone(&self.news));
        let writing = Arc::clone(&self.writing).acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            let _writing = writing;
            if !listing.exists() && matches!(&level, Level::Directory(_, dir) if dir.is_root()) {
                if let Level::Directory(name, _) = &level {
                    disk.forget_dataset(name);
                }
                return;
            }
            disk.store(&level, &listing, seq, || counter.load(Ordering::Acquire) == news);
        });
    }

    /// Lists everything again that is known of a dataset, or of all.
    ///
    /// # Errors
    /// The store's: what was listed before it failed is refreshed.
    pub async fn refresh(&self, name: Option<&DatasetName>) -> Result<Refreshed, StoreError> {
        self.expire(name);
        let mut levels: Vec<Level> = self.levels.of(name);
        if !levels.contains(&Level::Datasets) {
            levels.push(Level::Datasets);
        }
        if let (Some(name), Some(disk)) = (name, &self.disk) {
            let (disk, dataset) = (Arc::clone(disk), name.clone());
            let dirs =
                tokio::task::spawn_blocking(move || disk.directories(&dataset)).await.unwrap_or_default();
            levels.extend(dirs.into_iter().map(|dir| Level::Directory(name.clone(), dir)));
        }
        levels.sort();
        levels.dedup();
        let mut refreshed = Refreshed::default();
        let each = |level: Level| async move {
            let before = self.last_known(&level).await;
            let slot = self.levels.slot(&level);
            let after = {
                let _asking = slot.asking.lock().await;
                self.ask_now(&level, &slot, Extent::Whole).await?
            };
            match &after.stale {
                Some(err) => Err((**err).clone()),
                None => Ok((level, before, after)),
            }
        };
        let mut listed = stream::iter(levels.into_iter().map(each)).buffer_unordered(PARALLEL);
        while let Some(result) = listed.next().await {
            let (level, before, after) = result?;
            refreshed.levels += 1;
            let Some(before) = before else { continue }; // nothing was known that could have changed
            let names = edits::changed_names(&before.listing, &after.listing);
            refreshed.changed.extend(names.iter().map(|name| match &level {
                Level::Datasets => name.to_string(),
                Level::Directory(dataset, dir) => match dir.as_path() {
                    None => format!("{dataset}/{name}"),
                    Some(dir) => format!("{dataset}/{dir}/{name}"),
                },
            }));
        }
        refreshed.changed.sort();
        Ok(refreshed)
    }

    /// The datasets of which anything is known. Waits for the disk.
    #[must_use]
    pub fn known_datasets(&self) -> Vec<DatasetName> {
        let mut names: BTreeSet<DatasetName> = self.disk.iter().flat_map(|disk| disk.datasets()).collect();
        names.extend(self.levels.of(None).into_iter().filter_map(|level| match level {
            Level::Datasets => None,
            Level::Directory(name, _) => Some(name),
        }));
        names.into_iter().collect()
    }

    /// All files of a dataset that are known, without asking the remote.
    pub async fn walk_known(&self, name: &DatasetName, mut found: impl FnMut(RelPath, &RemoteFile)) {
        let mut dirs: BTreeSet<DirPath> = BTreeSet::new();
        for level in self.levels.of(Some(name)) {
            if let Level::Directory(_, dir) = level {
                dirs.insert(dir);
            }
        }
        if let Some(disk) = &self.disk {
            let (disk, dataset) = (Arc::clone(disk), name.clone());
            dirs.extend(
                tokio::task::spawn_blocking(move || disk.directories(&dataset)).await.unwrap_or_default(),
            );
        }
        for dir in dirs {
            let Some(known) = self.last_known(&Level::Directory(name.clone(), dir.clone())).await else {
                continue;
            };
            for (entry_name, entry) in &known.listing.entries {
                if let (Ok(path), RemoteEntry::File(file)) = (dir.child(entry_name), entry) {
                    found(path, file);
                }
            }
        }
    }

    /// All files below a path of a dataset; each is handed to `found`.
    ///
    /// # Errors
    /// The store's, where a level is not known and cannot be listed.
    pub async fn walk(
        &self,
        name: &DatasetName,
        dir: &DirPath,
        mut found: impl FnMut(RelPath, &RemoteFile),
    ) -> Result<(), StoreError> {
        let each = |dir: &DirPath, listing: &Listing| {
            for (entry_name, entry) in &listing.entries {
                if let (Ok(path), RemoteEntry::File(file)) = (dir.child(entry_name), entry) {
                    found(path, file);
                }
            }
        };
        self.walk_levels(name, dir, each).await
    }

    /// All directories of a dataset from `dir` down, several at a time; each is handed to `found`.
    ///
    /// # Errors
    /// As for [`Self::walk`].
    pub async fn walk_levels(
        &self,
        name: &DatasetName,
        dir: &DirPath,
        mut found: impl FnMut(&DirPath, &Listing),
    ) -> Result<(), StoreError> {
        let mut waiting = vec![dir.clone()];
        while !waiting.is_empty() {
            let batch: Vec<DirPath> = waiting.drain(waiting.len().saturating_sub(PARALLEL)..).collect();
            let each = |dir: DirPath| async move {
                let level = Level::Directory(name.clone(), dir.clone());
                self.level(&level).await.map(|known| (dir, known.listing))
            };
            let mut listed = stream::iter(batch.into_iter().map(each)).buffered(PARALLEL);
            while let Some(result) = listed.next().await {
                let (dir, listing) = result?;
                found(&dir, &listing);
                let below = listing.entries.iter().filter(|(_, entry)| **entry == RemoteEntry::Directory);
                waiting.extend(below.filter_map(|(below, _)| Some(dir.child(below).ok()?.into())));
            }
        }
        Ok(())
    }
}
