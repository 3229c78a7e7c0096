//! Keeping up with a dataset's log and intents.
//!
//! Read in this order: intents, then the log. What a listing that came before both of them saw
//! of a commit is then named by an intent or completed by a record: see [`view`](crate::catalog::view).
//! With nothing new this costs two small requests.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::view::History;
use crate::log::Log;
use crate::log::LogError;
use crate::log::read_object;
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
    /// Held while the log is being read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    was_read: bool,
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
    /// What was recorded since the reading before this one.
    pub news: Changes,
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
        Mark(known.was_read.then_some(known.history.snapshot.seq))
    }

    /// The newest snapshot, if the log was read.
    pub fn snapshot(&self, name: &DatasetName) -> Option<Arc<Snapshot>> {
        let dataset = self.dataset(name);
        let known = dataset.known.lock();
        known.was_read.then(|| Arc::clone(&known.history.snapshot))
    }

    fn dataset(&self, name: &DatasetName) -> Arc<Dataset> {
        Arc::clone(self.datasets.lock().entry(name.clone()).or_default())
    }

    /// Reads intents and log. To be called when the listing is complete.
    pub async fn read(&self, name: &DatasetName, mark: Mark) -> Result<Reading, LogError> {
        let dataset = self.dataset(name);
        let _reading = dataset.reading.lock().await;
        let intents = self.intents(name, &dataset).await?;
        let log = Log::new(Arc::clone(&self.store), self.prefix.clone(), name.clone());
        let before = Arc::clone(&dataset.known.lock().history.snapshot);
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
        known.was_read = true;
        known.history = History::new(snapshot, &intents);
        Ok(Reading { history: known.history.clone(), since_mark: known.since(mark), news })
    }

    async fn intents(&self, name: &DatasetName, dataset: &Dataset) -> Result<Vec<Intent>, LogError> {
        let listed = list_all(&*self.store, ListRequest::recursive(self.prefix.intents(name))).await?.objects;
        let mut remembered = std::mem::take(&mut dataset.known.lock().intents);
        let mut current = HashMap::new();
        for object in listed {
            let version = (object.key.clone(), object.etag);
            let intent = match remembered.remove(&version) {
                Some(intent) => intent,
                None => match read_object(&*self.store, &object.key).await? {
                    Some(body) => Intent::decode(&body)
                        .map_err(|source| LogError::Record { key: object.key.clone(), source })?,
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

fn net<'c>(changes: impl Iterator<Item = &'c Changes>) -> Changes {
    changes.fold(Changes::default(), |all, next| all.then(next))
}

/// What happened between two snapshots of one dataset.
fn difference(before: &Snapshot, after: &Snapshot) -> Changes {
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
