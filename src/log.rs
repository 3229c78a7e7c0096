//! A dataset's log in the bucket: reading it, and appending to it.
//!
//! Records are numbered from 1 without gaps, and each is created where nothing is: whoever
//! creates number N+1 has seen N. The end is found by listing, or, from a number that is known
//! to exist, by asking for the ones behind it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;

use crate::name::DatasetName;
use crate::name::ObjectKey;
use crate::name::RemotePrefix;
use crate::name::SEQ_DIGITS;
use crate::record::BaseSnapshot;
use crate::record::CommitBody;
use crate::record::CommitRecord;
use crate::record::Footing;
use crate::record::Outcome;
use crate::record::RECORD_BYTES_MAX;
use crate::record::RecordError;
use crate::record::Snapshot;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::collect;

/// How often an object is read anew that changed between two requests.
const READ_TRIES: u32 = 3;
/// How wrong two committers' clocks may be against each other, before a record is overlooked.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the end of the log may move away before a writer gives up.
const APPEND_TRIES: u32 = 64;

/// Why a log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The remote's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something in the bucket could not be read.
    #[error("{key}: {source}")]
    Record {
        /// Which object.
        key: ObjectKey,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Others kept writing records before ours.
    #[error("too many others write to the dataset's log at once")]
    Crowded,
}

impl LogError {
    /// As an answer of the store, for those who only read.
    #[must_use]
    pub fn into_store_error(self) -> StoreError {
        match self {
            Self::Store(err) => err,
            Self::Record { ref key, .. } => {
                StoreError::Rejected { key: key.to_string(), reason: self.to_string() }
            }
            Self::Crowded => StoreError::unavailable("the log", self),
        }
    }
}

/// The log of one dataset.
#[derive(Clone, Debug)]
pub struct Log {
    store: Arc<dyn ObjectStore>,
    prefix: RemotePrefix,
    dataset: DatasetName,
    /// Longest snapshot that is written, in bytes before it is packed.
    snapshot_bytes_max: u64,
}

/// A record as its author wants it, before its number is known.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub outcome: Outcome,
    pub body: CommitBody,
}

/// What became of an attempt to end a commit in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The record is there, with this number; it may have been there before.
    Recorded(CommitRecord),
    /// Another record ended the same commit the other way.
    Contradicted(CommitRecord),
}

/// As [`read_object`], of an object that was just listed: one request, where the listing tells versions.
pub(crate) async fn read_listed(
    store: &dyn ObjectStore,
    object: &ListedObject,
) -> Result<Option<Bytes>, StoreError> {
    let size_bytes = object.size_bytes;
    if let Some(etag) = object.etag.as_ref().filter(|_| (1..=RECORD_BYTES_MAX).contains(&size_bytes)) {
        let whole = async {
            let body = store.get(&object.key, etag, 0..size_bytes).await?;
            collect(body, usize::try_from(size_bytes).unwrap_or(0)).await
        };
        match whole.await {
            Err(StoreError::Changed { .. } | StoreError::NotFound { .. }) => {}
            answer => return answer.map(Some),
        }
    }
    read_object(store, &object.key).await
}

/// The whole content of a small object; `None` if there is none.
pub(crate) async fn read_object(
    store: &dyn ObjectStore,
    key: &ObjectKey,
) -> Result<Option<Bytes>, StoreError> {
    Ok(read_version(store, key).await?.map(|(_, content)| content))
}

/// As [`read_object`], with what a HEAD says of that version.
pub(crate) async fn read_version(
    store: &dyn ObjectStore,
    key: &ObjectKey,
) -> Result<Option<(ObjectMeta, Bytes)>, StoreError> {
    let mut tried = 0;
    loop {
        tried += 1;
        let meta = match store.head(key).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            answer => answer?,
        };
        if meta.size_bytes > RECORD_BYTES_MAX {
            let reason = format!("{} bytes are more than a record of dsfs ever has", meta.size_bytes);
            return Err(StoreError::Rejected { key: key.to_string(), reason });
        }
        if meta.size_bytes == 0 {
            return Ok(Some((meta, Bytes::new())));
        }
        let whole = async {
            let body = store.get(key, &meta.etag, 0..meta.size_bytes).await?;
            collect(body, usize::try_from(meta.size_bytes).unwrap_or(0)).await
        };
        match whole.await {
            Err(StoreError::Changed { .. } | StoreError::NotFound { .. }) if tried < READ_TRIES => {}
            Err(StoreError::NotFound { .. }) => return Ok(None),
            answer => return answer.map(|content| Some((meta, content))),
        }
    }
}

impl Log {
    /// The log of `dataset`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: RemotePrefix, dataset: DatasetName) -> Self {
        Self { store, prefix, dataset, snapshot_bytes_max: RECORD_BYTES_MAX }
    }

    /// One that writes no snapshots that are longer than this, in bytes before they are packed.
    pub(crate) fn with_snapshot_bytes_max(self, snapshot_bytes_max: u64) -> Self {
        Self { snapshot_bytes_max, ..self }
    }

    /// The number of the newest record, 0 if there is none.
    ///
    /// # Errors
    /// The store's.
    pub async fn head(&self) -> Result<u64, StoreError> {
        Ok(self.newest().await?.0)
    }

    /// The number of the newest record, 0 if there is none; and the record as it was listed, if it
    /// was. One request for a log of no more records than a listing has on a page.
    async fn newest(&self) -> Result<(u64, Option<ListedObject>), StoreError> {
        let prefix = self.prefix.log(&self.dataset);
        let page = self.store.list(&ListRequest::one_level(prefix.clone())).await?;
        let is_all = page.continuation.is_none();
        let numbered = page.objects.into_iter().filter_map(|object| {
            let seq = number(prefix.strip(&object.key)?)?;
            Some((seq, object))
        });
        let Some((seq, object)) = numbered.max_by_key(|(seq, _)| *seq) else { return Ok((0, None)) };
        if is_all { Ok((seq, Some(object))) } else { Ok((self.head_from(seq).await?, None)) }
    }

    /// The tree after the newest record, in as few requests as that takes without knowing anything.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn newest_snapshot(&self) -> Result<Snapshot, LogError> {
        let (seq, listed) = self.newest().await?;
        let Some(listed) = listed else { return self.snapshot(seq).await };
        let object = read_listed(&*self.store, &listed).await?.ok_or_else(|| self.lost(seq))?;
        let record = CommitRecord::decode(&object);
        let record = record.map_err(|source| LogError::Record { key: listed.key, source })?;
        self.snapshot_after(&record.body).await
    }

    /// The number of the newest record, if `known` is the number of one (or 0): one request if
    /// none has come since.
    ///
    /// # Errors
    /// The store's.
    pub async fn head_from(&self, known: u64) -> Result<u64, StoreError> {
        let (mut there, mut step) = (known, 1);
        while self.exists(there + step).await? {
            there += step;
            step *= 2;
        }
        // Between `there` and `there + step`, which is not there, the numbers have one end.
        let mut missing = there + step;
        while there + 1 < missing {
            let middle = there + (missing - there) / 2;
            if self.exists(middle).await? { there = middle } else { missing = middle }
        }
        Ok(there)
    }

    /// Whether there is a record of this number.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn has(&self, seq: u64) -> Result<bool, StoreError> {
        self.exists(seq).await
    }

    /// For a record that was there and is gone: nobody deletes records.
    pub(crate) fn lost(&self, seq: u64) -> LogError {
        StoreError::NotFound { key: self.prefix.log_key(&self.dataset, seq) }.into()
    }

    async fn exists(&self, seq: u64) -> Result<bool, StoreError> {
        match self.store.head(&self.prefix.log_key(&self.dataset, seq)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// One record; `None` if there is none of that number.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn record(&self, seq: u64) -> Result<Option<CommitRecord>, LogError> {
        if seq == 0 {
            return Ok(None);
        }
        let key = self.prefix.log_key(&self.dataset, seq);
        let Some(object) = read_object(&*self.store, &key).await? else { return Ok(None) };
        let record = CommitRecord::decode(&object);
        record.map(Some).map_err(|source| LogError::Record { key, source })
    }

    /// A record whose number is not behind the end of the log.
    async fn existing(&self, seq: u64) -> Result<CommitRecord, LogError> {
        self.record(seq).await?.ok_or_else(|| self.lost(seq))
    }

    /// The tree after record `seq`, from two objects.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn snapshot(&self, seq: u64) -> Result<Snapshot, LogError> {
        match self.record(seq).await? {
            Some(record) => self.snapshot_after(&record.body).await,
            None if seq == 0 => Ok(Snapshot::default()),
            None => Err(self.lost(seq)),
        }
    }

    /// The tree after a record that has been read already.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn snapshot_after(&self, record: &CommitBody) -> Result<Snapshot, LogError> {
        let Some(base) = record.base else { return Ok(Snapshot::default().after(record)) };
        let key = self.prefix.snapshot_key(&self.dataset, base.seq);
        let object = read_object(&*self.store, &key).await?;
        let object = object.ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        let base = Snapshot::decode(&object).map_err(|source| LogError::Record { key, source })?;
        Ok(base.after(record))
    }

    /// The record that ended commit `txid`, among `range`, newest first.
    pub(crate) async fn find(
        &self,
        txid: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<CommitRecord>, LogError> {
        for seq in range.rev() {
            let record = self.existing(seq).await?;
            if record.body.txid == txid {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// As [`Self::find`] from `head` down, but gives up at records that were written long before `time`.
    pub(crate) async fn find_since(
        &self,
        txid: &str,
        head: u64,
        time: SystemTime,
    ) -> Result<Option<CommitRecord>, LogError> {
        for seq in (1..=head).rev() {
            let record = self.existing(seq).await?;
            if record.body.txid == txid {
                return Ok(Some(record));
            }
            if record.body.time + CLOCK_SKEW_MAX < time {
                break;
            }
        }
        Ok(None)
    }

    /// Writes a record at the end of the log, unless one behind `seen` has ended the same commit.
    pub(crate) async fn append(&self, draft: &Draft, seen: u64) -> Result<Appended, LogError> {
        let mut known = seen;
        for _ in 0..APPEND_TRIES {
            let head = self.head_from(known).await?;
            if let Some(record) = self.find(&draft.body.txid, known + 1..=head).await? {
                return Ok(verdict(draft.outcome, record));
            }
            known = head;
            let body = self.numbered(draft, head).await?;
            let record = CommitRecord { outcome: draft.outcome, body };
            let key = self.prefix.log_key(&self.dataset, head + 1);
            let nothing = PutAttributes::default();
            let object = record.encode().map_err(|source| LogError::Record { key: key.clone(), source })?;
            match self.store.put(&key, object, &Expect::Absent, &nothing).await {
                Ok(_) => return Ok(Appended::Recorded(record)),
                // Another record took the number, or ours did and the answer was lost: the next
                // round reads it.
                Err(StoreError::AlreadyExists { .. } | StoreError::Contended { .. }) => {}
                Err(err) if err.is_transient() => match self.record(head + 1).await? {
                    Some(found) if found.body.txid == draft.body.txid => {
                        return Ok(verdict(draft.outcome, found));
                    }
                    Some(_) => {}
                    None => return Err(err.into()),
                },
                Err(err) => return Err(err.into()),
            }
        }
        Err(LogError::Crowded)
    }

    /// Whether a commit's record can follow the newest one: not if that takes a snapshot that is too long.
    pub(crate) async fn check_room(&self) -> Result<(), LogError> {
        let last = match self.head().await? {
            0 => return Ok(()),
            seq => self.existing(seq).await?.body,
        };
        if Footing::after(Some(&last)).snapshot_due {
            self.pack(&self.snapshot_after(&last).await?)?;
        }
        Ok(())
    }

    fn pack(&self, snapshot: &Snapshot) -> Result<Bytes, LogError> {
        snapshot.encode_within(&self.dataset, self.snapshot_bytes_max).map_err(|err| {
            let key = self.prefix.snapshot_key(&self.dataset, snapshot.seq);
            let source = if let RecordError::TooLong { limit_bytes } = err {
                RecordError::Full { limit_bytes }
            } else {
                err
            };
            LogError::Record { key, source }
        })
    }

    /// The record for the place behind `head`; writes the snapshot that it needs, if it needs one.
    async fn numbered(&self, draft: &Draft, head: u64) -> Result<CommitBody, LogError> {
        let last = match head {
            0 => None,
            seq => Some(self.existing(seq).await?.body),
        };
        let mut footing = match draft.outcome {
            Outcome::Commit => Footing::after(last.as_ref()),
            Outcome::Abort => Footing::keeping_base(last.as_ref()),
        };
        if let (true, Some(last)) = (footing.snapshot_due, &last) {
            let snapshot = self.snapshot_after(last).await?;
            let key = self.prefix.snapshot_key(&self.dataset, last.seq);
            let object = self.pack(&snapshot)?;
            match self.store.put(&key, object, &Expect::Absent, &PutAttributes::default()).await {
                Ok(_) | Err(StoreError::AlreadyExists { .. }) => {} // the same, whoever wrote it
                Err(err) if err.is_transient() => match self.store.head(&key).await {
                    Ok(_) => {} // only the answer was lost
                    Err(_) => return Err(err.into()),
                },
                Err(err) => return Err(err.into()),
            }
            footing.base = Some(BaseSnapshot { seq: last.seq, entries: snapshot.entries.len() as u64 });
        }
        let Footing { base, tail, .. } = footing;
        Ok(CommitBody { seq: head + 1, base, tail, ..draft.body.clone() })
    }
}

/// The number that a record's name says: ten digits, anything else is not a record.
fn number(name: &str) -> Option<u64> {
    let is_record = name.len() == SEQ_DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    is_record.then(|| name.parse().ok()).flatten()
}

fn verdict(wanted: Outcome, found: CommitRecord) -> Appended {
    if found.outcome == wanted { Appended::Recorded(found) } else { Appended::Contradicted(found) }
}
