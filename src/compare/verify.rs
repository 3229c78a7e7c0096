//! Verification: is what the cache and the remote hold what was committed?

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::cache::BlockCache;
use crate::compare::CompareError;
use crate::compare::Watch;
use crate::compare::cached;
use crate::compare::remote;
use crate::log::Log;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Entry;
use crate::record::Snapshot;
use crate::store::ObjectStore;

/// Where something is that is not what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the block cache on this machine.
    Cache,
    /// In the bucket.
    Remote,
}

/// In what way something is not what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is longer or shorter.
    WrongSize,
    /// Its bytes are others.
    WrongContent,
    /// Another tool has written it anew: it has another `ETag`.
    Replaced,
    /// Blocks of it do not fit their checksums.
    Damaged,
    /// The store fails to give its bytes, while it gives others.
    Unreadable,
}

/// A file that is not what was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadFile {
    /// Its path in the dataset.
    pub path: RelPath,
    /// Its version, as it was committed.
    pub etag: ETag,
    /// Where.
    pub place: Place,
    /// In what way.
    pub problem: Problem,
    /// More about it, as a clause.
    pub detail: String,
}

/// What was found in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCounts {
    /// Files that are cached whole and have the content that was committed.
    pub whole_files: u64,
    /// Their bytes.
    pub whole_bytes: u64,
    /// Files of which blocks are cached: these fit their checksums, the file's content id cannot be told.
    pub partial_files: u64,
    /// Bytes of those blocks.
    pub partial_bytes: u64,
    /// Files of which nothing is cached.
    pub absent_files: u64,
}

/// What was found in the remote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteCounts {
    /// Objects that have the content that was committed.
    pub right_files: u64,
    /// Their bytes.
    pub right_bytes: u64,
    /// Files of an older snapshot that a later commit has replaced or deleted: not there, as it should be.
    pub superseded_files: u64,
    /// Objects that other tools have put there: without a content id there is nothing to hold them against.
    pub foreign_files: u64,
    /// Their bytes.
    pub foreign_bytes: u64,
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The dataset.
    pub dataset: DatasetName,
    /// After this commit; `None`: there is none.
    pub seq: Option<u64>,
    /// Files that it held then.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was found in the cache, if there is one.
    pub cache: Option<CacheCounts>,
    /// What was found in the remote, if it was asked.
    pub remote: Option<RemoteCounts>,
    /// All that is not what was committed, by path.
    pub bad: Vec<BadFile>,
}

/// What is verified, and with what.
pub struct Verify {
    /// The remote.
    pub store: Arc<dyn ObjectStore>,
    /// Where in it the datasets are.
    pub prefix: RemotePrefix,
    /// The dataset.
    pub dataset: DatasetName,
    /// The commit after which it is looked at; `None`: the newest.
    pub seq: Option<u64>,
    /// The block cache and the store's name in it.
    pub cache: Option<(Arc<BlockCache>, String)>,
    /// Whether to read all of it from the remote; and requests at a time.
    pub remote: Option<usize>,
    /// Who watches.
    pub watch: Arc<dyn Watch>,
}

/// Whether there is something to verify against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is.
    Report(VerifyReport),
    /// The dataset has no such commit; the newest is this one, 0: it has none at all.
    NoSuchCommit {
        /// The newest.
        head: u64,
    },
}

impl Verify {
    /// Verifies.
    ///
    /// # Errors
    /// The remote's, or its log cannot be read. What is wrong with a file is no error.
    pub async fn run(&self) -> Result<Found, CompareError> {
        let log = Log::new(Arc::clone(&self.store), self.prefix.clone(), self.dataset.clone());
        let head = log.head().await?;
        let seq = match self.seq {
            Some(seq) if seq > head => return Ok(Found::NoSuchCommit { head }),
            Some(seq) => seq,
            None => head,
        };
        let snapshot = Arc::new(log.snapshot(seq).await?);
        let newest = if seq == head { Arc::clone(&snapshot) } else { Arc::new(log.snapshot(head).await?) };
        let mut report = VerifyReport {
            dataset: self.dataset.clone(),
            seq: (seq > 0).then_some(seq),
            files: snapshot.entries.len() as u64,
            bytes: snapshot.entries.values().map(|entry| entry.size_bytes).sum(),
            cache: None,
            remote: None,
            bad: Vec::new(),
        };
        if let Some((cache, identity)) = &self.cache {
            report.cache = Some(cached::verify(self, cache, identity, &snapshot, &mut report.bad).await);
        }
        if let Some(workers) = self.remote {
            report.remote = Some(remote::verify(self, workers, &snapshot, &newest, &mut report.bad).await?);
        }
        report.bad.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Found::Report(report))
    }
}

/// Whether a commit after the snapshot has replaced or deleted this version of a path.
pub(super) fn is_superseded(newest: &Snapshot, path: &RelPath, etag: &ETag) -> bool {
    newest.entries.get(path).is_none_or(|entry| entry.etag != *etag)
}

/// Files and bytes of what is to be looked at.
pub(super) fn extent<'e>(entries: impl Iterator<Item = &'e Entry>) -> (u64, u64) {
    entries.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size_bytes))
}

/// The entries of a snapshot with the keys that they have in the bucket. A path whose key is too long
/// cannot have been published.
pub(super) fn keyed(verify: &Verify, snapshot: &Snapshot) -> BTreeMap<ObjectKey, Entry> {
    let key = |entry: &Entry| verify.prefix.key(&verify.dataset, &entry.path).ok();
    snapshot.entries.values().filter_map(|entry| Some((key(entry)?, entry.clone()))).collect()
}
