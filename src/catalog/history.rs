//! Keeping up with a dataset's log and intents.
//!
//! Read in this order: intents, then the log. What a listing that came before both of them saw
//! of a commit is then named by an intent or completed by a record: see [`view`](crate::catalog::view).
//! With nothing new this costs two small requests, however many listings end at the same time:
//! a reading serves all of them that it began after.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::catalog::view::History;
use crate::log::Log;
use crate::log::LogError;
use crate::log::read_listed;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RemotePrefix;
use crate::record::Changes;
use crate::record::Intent;
use crate::record::Snapshot;
use crate::store::ListRequest;
use crate::store::ObjectStore;
use crate::store::list_all;

/// Records that are read one by one; behind more of them, the newest snapshot is read instead.
const CATCH_UP_MAX: u64 = 16;
/// Records that are remembered, for listings that began before them.
const REMEMBERED_MAX: usize = 64;

/// What is known of the logs of all datasets.
#[derive(Debug)]
pub(super) struct Histories {
    store: Arc<dyn ObjectStore>,
    prefix: RemotePrefix,
    datasets: Mutex<HashMap<DatasetName, Arc<Dataset>>>,
}

#[derive(Debug, Default)]
struct Dataset {
    known: Mutex<Known>,
    /// Held while the log is being read, and until what is new in it was taken in.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// Counts readings when they begin.
    begun: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    /// The last reading in this process: its number, and when it began.
    read: Option<(u64, Instant)>,
    /// The commit of which the catalog on disk has all levels, until the first reading.
    restored: Option<u64>,
    /// The snapshot that all known levels show: that of the last reading, once its news were taken in.
    shown: Arc<Snapshot>,
    history: History,
    /// Newest last.
    records: VecDeque<(u64, Changes)>,
    /// Intents do not change once they are written: each is read once.
    intents: HashMap<(ObjectKey, Option<ETag>), Intent>,
}

/// What a reading brought.
#[derive(Debug)]
pub(super) struct Reading {
    pub history: History,
    /// What was recorded since the given mark; `None` if that is too long ago to tell.
    pub since_mark: Option<Changes>,
    /// The commit that was the newest in the reading before this one.
    pub before: u64,
    /// What was recorded since then. `None`: there was no reading before, all of it is new, and nobody
    /// has relied on anything yet.
    pub news: Option<Changes>,
    /// Keeps other readings off until the news were taken in.
    pub _turn: OwnedMutexGuard<()>,
}

/// A point in a dataset's log: what was known when a listing began; `None`: nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(Option<u64>);

impl Mark {
    /// Whether the log was read before, or known to be empty.
    pub fn is_beginning(self) -> bool {
        self.0.is_none_or(|seq| seq == 0)
    }
}

impl Histories {
    pub fn new(store: Arc<dyn ObjectStore>, prefix: RemotePrefix) -> Self {
        Self { store, prefix, datasets: Mutex::default() }
    }

    /// To be taken before a listing begins.
    pub fn mark(&self, name: &DatasetName) -> Mark {
        let dataset = self.dataset(name);
        let known = dataset.known.lock();
        Mark(known.read.map(|_| known.history.snapshot.seq))
    }

    /// Whether anything is known of a dataset's log, read or restored.
    pub fn has(&self, name: &DatasetName) -> bool {
        let dataset = self.dataset(name);
        let known = dataset.known.lock();
        known.read.is_some() || known.restored.is_some()
    }

    /// Takes over what a process before this one has read: all levels on disk show commit `seq`.
    pub fn restore(&self, name: &DatasetName, seq: u64, snapshot: Option<Snapshot>) {
        let dataset = self.dataset(name);
        let mut known = dataset.known.lock();
        if known.read.is_none() && known.restored.is_none() {
            known.restored = Some(seq);
            known.shown = Arc::new(snapshot.unwrap_or_default());
            known.history = History::new(Arc::clone(&known.shown), &[]);
        }
    }

    /// From now on, levels show the tree after this reading.
    pub fn show(&self, name: &DatasetName, reading: &Reading) {
        self.dataset(name).known.lock().shown = Arc::clone(&reading.history.snapshot);
    }

    /// Whether the log was read less than `age` ago.
    pub fn was_read_within(&self, name: &DatasetName, age: Duration) -> bool {
        self.dataset(name).known.lock().read.is_some_and(|(_, at)| at.elapsed() < age)
    }

    /// The snapshot that is shown, however old.
    pub fn last_snapshot(&self, name: &DatasetName) -> Arc<Snapshot> {
        Arc::clone(&self.dataset(name).known.lock().shown)
    }

    /// Waits until nobody reads a dataset's log, and keeps others off; with the snapshot that is shown then.
    pub fn turn(
        &self,
        name: &DatasetName,
    ) -> impl Future<Output = (OwnedMutexGuard<()>, Arc<Snapshot>)> + use<> {
        let dataset = self.dataset(name);
        async move {
            let turn = Arc::clone(&dataset.reading).lock_owned().await;
            let shown = Arc::clone(&dataset.known.lock().shown);
            (turn, shown)
        }
    }

    fn dataset(&self, name: &DatasetName) -> Arc<Dataset> {
        Arc::clone(self.datasets.lock().entry(name.clone()).or_default())
    }

    /// Reads intents and log. To be called when the listing is complete.
    pub async fn read(&self, name: &DatasetName, mark: Mark) -> Result<Reading, LogError> {
        let dataset = self.dataset(name);
        let begun_before = dataset.begun.load(Ordering::Acquire);
        let _turn = Arc::clone(&dataset.reading).lock_owned().await;
        {
            let known = dataset.known.lock();
            if known.read.is_some_and(|(number, _)| number > begun_before) {
                // It began after we came, and so after our listing.
                let (history, since_mark) = (known.history.clone(), known.since(mark));
                let before = history.snapshot.seq;
                return Ok(Reading { history, since_mark, before, news: Some(Changes::default()), _turn });
            }
        }
        let number = dataset.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let began = Instant::now();
        let intents = self.intents(name, &dataset).await?;
        let log = Log::new(Arc::clone(&self.store), self.prefix.clone(), name.clone());
        let is_first = {
            let known = dataset.known.lock();
            known.read.is_none() && known.restored.is_none()
        };
        if is_first {
            let snapshot = Arc::new(log.newest_snapshot().await?);
            let mut known = dataset.known.lock();
            known.read = Some((number, began));
            known.history = History::new(snapshot, &intents);
            let (history, since_mark) = (known.history.clone(), known.since(mark));
            return Ok(Reading { history, since_mark, before: 0, news: None, _turn });
        }
        let before = self.known_tree(&log, &dataset).await?;
        let head = log.head_from(before.seq).await?;
        let mut records = Vec::new();
        let mut snapshot = before.clone();
        if head > before.seq + CATCH_UP_MAX {
            snapshot = Arc::new(log.snapshot(head).await?);
        } else {
            for seq in before.seq + 1..=head {
                let record = log.record(seq).await?.ok_or_else(|| log.lost(seq))?;
                Arc::make_mut(&mut snapshot).advance(&record.body);
                records.push((seq, record.body.changes));
            }
        }
        let news = match head > before.seq + CATCH_UP_MAX {
            true => difference(&before, &snapshot),
            false => net(records.iter().map(|(_, changes)| changes)),
        };
        let mut known = dataset.known.lock();
        if head > before.seq + CATCH_UP_MAX {
            known.records.clear();
        }
        known.records.extend(records);
        let surplus = known.records.len().saturating_sub(REMEMBERED_MAX);
        known.records.drain(..surplus);
        known.read = Some((number, began));
        known.restored = None;
        known.history = History::new(snapshot, &intents);
        let (history, since_mark) = (known.history.clone(), known.since(mark));
        Ok(Reading { history, since_mark, before: before.seq, news: Some(news), _turn })
    }

    /// The tree of the reading before this one, or the one that the levels on disk show.
    async fn known_tree(&self, log: &Log, dataset: &Dataset) -> Result<Arc<Snapshot>, LogError> {
        let (restored, snapshot) = {
            let known = dataset.known.lock();
            (known.restored, Arc::clone(&known.history.snapshot))
        };
        match restored {
            None | Some(0) => Ok(snapshot),
            // A log that was removed since, with the bucket perhaps, begins anew.
            Some(seq) if !log.has(seq).await? => Ok(Arc::default()),
            Some(seq) if snapshot.seq == seq => Ok(snapshot),
            Some(seq) => Ok(Arc::new(log.snapshot(seq).await?)),
        }
    }

    async fn intents(&self, name: &DatasetName, dataset: &Dataset) -> Result<Vec<Intent>, LogError> {
        let listed = list_all(&*self.store, ListRequest::recursive(self.prefix.intents(name))).await?.objects;
        let mut remembered = std::mem::take(&mut dataset.known.lock().intents);
        let mut current = HashMap::new();
        for object in listed {
            let version = (object.key.clone(), object.etag.clone());
            let intent = match remembered.remove(&version) {
                Some(intent) => intent,
                None => match read_listed(&*self.store, &object).await? {
                    Some(body) => Intent::decode(&body)
                        .map_err(|source| LogError::Record { key: object.key, source })?,
                    None => continue, // withdrawn meanwhile; if it was committed, the log says so
                },
            };
            current.insert(version, intent);
        }
        let intents = current.values().cloned().collect();
        dataset.known.lock().intents = current;
        Ok(intents)
    }
}

impl Known {
    fn since(&self, mark: Mark) -> Option<Changes> {
        let mark = mark.0?;
        if mark == self.history.snapshot.seq {
            return Some(Changes::default());
        }
        let oldest = self.records.front()?.0;
        let later = self.records.iter().filter(|(seq, _)| *seq > mark).map(|(_, changes)| changes);
        (oldest <= mark + 1).then(|| net(later))
    }
}

fn net<'c>(mut changes: impl Iterator<Item = &'c Changes>) -> Changes {
    let Some(first) = changes.next() else { return Changes::default() };
    changes.fold(first.clone(), |all, next| all.then(next))
}

/// What happened between two snapshots of one dataset.
pub(super) fn difference(before: &Snapshot, after: &Snapshot) -> Changes {
    let entries = after
        .entries
        .values()
        .filter(|entry| before.entries.get(&entry.path).is_none_or(|old| old.etag != entry.etag));
    let deleted = before.entries.values().filter(|old| !after.entries.contains_key(&old.path));
    Changes {
        entries: entries.cloned().collect(),
        deleted: deleted
            .map(|old| crate::record::OldVersion { path: old.path.clone(), etag: old.etag.clone() })
            .collect(),
        markers: after.markers.difference(&before.markers).cloned().collect(),
    }
}
