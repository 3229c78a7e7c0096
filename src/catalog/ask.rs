//! Asking the remote for a level, and holding the answer against the dataset's log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time;

use crate::catalog::Catalog;
use crate::catalog::Level;
use crate::catalog::disk::Step;
use crate::catalog::edits::Edits;
use crate::catalog::history::Mark;
use crate::catalog::history::Reading;
use crate::catalog::history::difference;
use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::pages;
use crate::catalog::view;
use crate::catalog::view::History;
use crate::catalog::view::Place;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::record::Changes;
use crate::record::Snapshot;
use crate::store::ListRequest;
use crate::store::StoreError;
use crate::store::list_all;

/// From so many files on, a snapshot answers for levels that were not listed yet: fewer come with
/// one request anyway.
const SNAPSHOT_ENTRIES_MIN: usize = 1000;
/// When a large snapshot is written to the disk, after it was read: packing it takes a core for as long as
/// a walk of it does, and most often such a walk has just begun.
const NOTE_LARGE_AFTER: Duration = Duration::from_secs(3);

/// How much may be asked for one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All that it takes.
    Whole,
    /// A large directory may be answered from its snapshot alone.
    Quick,
    /// One page of the listing, and what it is held against: nobody waits for this level.
    OnePage,
}

/// A level as the remote has it now.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) listing: Listing,
    /// The commit that it shows.
    pub(super) seq: u64,
    /// It is of the snapshot alone: the level is still to be listed.
    pub(super) provisional: bool,
}

impl Catalog {
    /// Asks the remote. `None` if the level is longer than `extent` allows.
    pub(super) async fn list(&self, level: &Level, extent: Extent) -> Result<Option<Answer>, StoreError> {
        match level {
            Level::Datasets => {
                let listing = self.list_datasets(extent).await?;
                Ok(listing.map(|listing| Answer { listing, seq: 0, provisional: false }))
            }
            Level::Directory(name, dir) => self.list_directory(name, dir, extent).await,
        }
    }

    async fn list_datasets(&self, extent: Extent) -> Result<Option<Listing>, StoreError> {
        let prefix = self.prefix.datasets();
        let list = |request: ListRequest| async move { self.store.list(&request).await };
        let request = ListRequest::one_level(prefix);
        let first = list(request.clone()).await?;
        if extent == Extent::OnePage && first.continuation.is_some() {
            return Ok(None);
        }
        let mut listing = pages::rest(&request, first, list, Listing::default()).await?;
        // Only directories with a dataset's name are datasets; our own state is not.
        listing
            .entries
            .retain(|name, entry| *entry == RemoteEntry::Directory && DatasetName::parse(name).is_ok());
        // A dataset that somebody is making for the first time appears when it is committed.
        let intents = self.prefix.all_intents();
        for below in list_all(&*self.store, ListRequest::one_level(intents.clone())).await?.prefixes {
            let name = below.as_str().strip_prefix(intents.as_str()).and_then(|name| name.strip_suffix('/'));
            let Some(name) = name.filter(|name| listing.entries.contains_key(*name)) else { continue };
            let Ok(dataset) = DatasetName::parse(name) else { continue };
            let top = Level::Directory(dataset, DirPath::root());
            if !Box::pin(self.level(&top)).await?.listing.exists() {
                listing.entries.remove(name);
            }
        }
        Ok(Some(listing))
    }

    /// One directory, as of one snapshot.
    async fn list_directory(
        &self,
        name: &DatasetName,
        dir: &DirPath,
        extent: Extent,
    ) -> Result<Option<Answer>, StoreError> {
        let place = Place { prefix: &self.prefix, dataset: name, dir };
        let prefix = self.prefix.directory(name, dir);
        let request = ListRequest::one_level(prefix.clone());
        let list = |request: ListRequest| async move { self.store.list(&request).await };
        let mut first = true;
        loop {
            let mark = self.histories.mark(name);
            let page = list(request.clone()).await?;
            if extent == Extent::OnePage && page.continuation.is_some() {
                return Ok(None);
            }
            if extent == Extent::Quick && first && page.continuation.is_some() {
                // Hundreds of requests, or the few that the log takes.
                let reading = self.read_history(name, mark).await?;
                let snapshot = &reading.history.snapshot;
                if let Some(listing) = self.of_snapshot(name, dir, snapshot) {
                    return Ok(Some(Answer { listing, seq: snapshot.seq, provisional: true }));
                }
            }
            let mut listing = pages::rest(&request, page, list, Listing::default()).await?;
            if !listing.exists() && mark.is_beginning() {
                // Nothing there, and no log that says otherwise.
                return Ok(Some(Answer { listing, seq: 0, provisional: false }));
            }
            let reading = self.read_history(name, mark).await?;
            let recent = reading.since_mark.clone().unwrap_or_default();
            let doubts = view::apply(&mut listing, place, &reading.history, &recent);
            // The first time, nothing tells what another tool has done from what was recorded after the
            // listing. The second time does.
            if std::mem::take(&mut first) && reading.since_mark.is_none() && doubts.unexplained {
                continue;
            }
            let seq = reading.history.snapshot.seq;
            let history = reading.history.clone();
            drop(reading); // others may read
            for path in doubts.directories {
                if !self.has_foreign(name, &path, &history).await? {
                    listing.entries.remove(path.file_name());
                }
            }
            listing.withheld.extend(doubts.missing.iter().map(|path| HiddenKey::missing(&prefix, path)));
            return Ok(Some(Answer { listing, seq, provisional: false }));
        }
    }

    /// Reads a dataset's log and takes in what is new.
    pub(super) async fn read_history(&self, name: &DatasetName, mark: Mark) -> Result<Reading, StoreError> {
        let reading = self.histories.read(name, mark).await.map_err(LogError::into_store_error)?;
        self.take_news(name, &reading).await;
        Ok(reading)
    }

    /// A level out of a snapshot, if that is worth it.
    pub(super) fn of_snapshot(
        &self,
        name: &DatasetName,
        dir: &DirPath,
        snapshot: &Snapshot,
    ) -> Option<Listing> {
        if snapshot.entries.len() < SNAPSHOT_ENTRIES_MIN {
            return None;
        }
        let listing = view::of_snapshot(Place { prefix: &self.prefix, dataset: name, dir }, snapshot);
        listing.exists().then_some(listing)
    }

    /// Whether there is anything below a directory that no unfinished commit has put there.
    async fn has_foreign(
        &self,
        name: &DatasetName,
        dir: &RelPath,
        history: &History,
    ) -> Result<bool, StoreError> {
        let dataset = self.prefix.dataset(name);
        let mut request = ListRequest::recursive(self.prefix.directory(name, &dir.clone().into()));
        loop {
            let page = self.store.list(&request).await?;
            let mut paths = page.objects.iter().filter_map(|object| dataset.strip(&object.key));
            if paths.any(|path| !view::is_announced(path, history)) {
                return Ok(true);
            }
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => return Ok(false),
            }
        }
    }

    /// Moves every level of a dataset that is known, in memory and on disk, to the snapshot that
    /// was just read.
    async fn take_news(&self, name: &DatasetName, reading: &Reading) {
        let snapshot = &reading.history.snapshot;
        let is_first = reading.news.is_none();
        // Most often nobody has relied on less then.
        if is_first && !self.knows_part_of(name) {
            self.histories.show(name, reading);
            return self.note_on_disk(name, reading);
        }
        let all = if is_first { difference(&Snapshot::default(), snapshot) } else { Changes::default() };
        let news = reading.news.as_ref().unwrap_or(&all);
        let key_of = |path: &RelPath| self.prefix.key(name, path).ok();
        let files: Vec<(RelPath, RemoteFile)> = news
            .entries
            .iter()
            .filter_map(|entry| {
                let file = RemoteFile {
                    key: key_of(&entry.path)?,
                    size_bytes: entry.size_bytes,
                    etag: Some(entry.etag.clone()),
                    modified: entry.mtime,
                };
                Some((entry.path.clone(), file))
            })
            .collect();
        let deleted: Vec<RelPath> = news.deleted.iter().map(|gone| gone.path.clone()).collect();
        let edits = Edits::of(name, &files, &news.markers, &deleted);
        let (before, after) = (reading.before, Arc::clone(snapshot));
        let edits = self.begin_edits(edits);
        let edits = match &self.disk {
            None => edits,
            Some(_) if before == after.seq && edits.levels.is_empty() && self.is_on_disk(name) => edits,
            Some(disk) => {
                let (disk, dataset) = (Arc::clone(disk), name.clone());
                let work = move || {
                    disk.amend(&dataset, &edits, Some(Step { before, after: &after }));
                    edits
                };
                self.noted_on_disk(name);
                tokio::task::spawn_blocking(work).await.unwrap_or_default()
            }
        };
        // A level that is made of the old snapshot from here on finds that there were news.
        self.histories.show(name, reading);
        self.amend_memory(&edits);
        if let Some(listener) = self.listener.get()
            && !news.is_empty()
            && !is_first
        {
            let came = files.into_iter().map(|(path, _)| path).chain(news.markers.iter().cloned());
            let paths: HashSet<RelPath> = came.chain(deleted).collect();
            listener.changed(name, &paths.into_iter().collect::<Vec<_>>());
        }
    }

    /// Has the snapshot of a first reading written down, if it is still the newest then. No level that is
    /// known is another for it, so that nobody has to wait for that.
    fn note_on_disk(&self, name: &DatasetName, reading: &Reading) {
        let Some(disk) = self.disk.clone() else { return };
        let (dataset, snapshot) = (name.clone(), &reading.history.snapshot);
        let is_large = self.wanted.is_served() && snapshot.entries.len() >= SNAPSHOT_ENTRIES_MIN;
        let (delay, seq) = (if is_large { NOTE_LARGE_AFTER } else { Duration::ZERO }, snapshot.seq);
        let turn = self.histories.turn(name);
        self.noted_on_disk(name);
        tokio::spawn(async move {
            time::sleep(delay).await;
            let (turn, after) = turn.await;
            if after.seq != seq {
                return; // who has read that has written it down
            }
            let work = move || {
                disk.note(&dataset, &after);
                drop(turn);
            };
            tokio::task::spawn_blocking(work);
        });
    }
}
