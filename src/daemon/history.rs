//! A dataset's past, as commands ask about it: the same work in a daemon and without one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use tokio::sync::watch;

use crate::cache::BlockCache;
use crate::catalog::Catalog;
use crate::compare;
use crate::compare::CompareError;
use crate::compare::Difference;
use crate::compare::Found;
use crate::compare::Place;
use crate::compare::Verify;
use crate::compare::VerifyReport;
use crate::compare::Watch;
use crate::config::Config;
use crate::control::history::ChangedFile;
use crate::control::history::CommitDetail;
use crate::control::history::CommitHeader;
use crate::control::history::FileChange;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::daemon::compose;
use crate::daemon::compose::Workspace;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::fs::DatasetFs;
use crate::log::Log;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::Revision;
use crate::record::CommitRecord;
use crate::record::Outcome;
use crate::record::Snapshot;
use crate::staging::Holder;
use crate::staging::Staging;
use crate::store::ListRequest;
use crate::store::StoreError;

/// Records read at a time. Each may be large, and only its numbers are kept.
const RECORDS_AT_ONCE: usize = 8;
/// Fewer records are there before anybody could read how far they are.
const RECORDS_WORTH_PROGRESS: u64 = 500;

/// What there is to look into.
#[derive(Debug)]
pub struct Source {
    remote: OpenRemote,
    /// The remote's own part of the state directory, which may not exist.
    state_dir: PathBuf,
    catalog: Arc<Catalog>,
    /// Where it is needed.
    staging: Option<Arc<Staging>>,
    /// Where it is needed.
    cache: Option<Arc<BlockCache>>,
    /// The mount, if there is one.
    fs: Option<Arc<DatasetFs>>,
}

impl Source {
    /// What a daemon works with.
    #[must_use]
    pub fn of(workspace: &Workspace, fs: &Arc<DatasetFs>) -> Self {
        Self {
            remote: workspace.remote.clone(),
            state_dir: workspace.remote_state_dir.clone(),
            catalog: Arc::clone(fs.tree().catalog()),
            staging: Some(Arc::clone(&workspace.staging)),
            cache: Some(Arc::clone(&workspace.cache)),
            fs: Some(Arc::clone(fs)),
        }
    }

    /// What it takes to answer `request` without a daemon.
    ///
    /// # Errors
    /// The remote cannot be used; another process works on the staging area.
    pub async fn open(config: &Config, request: &HistoryRequest) -> Result<Self, Failure> {
        let remote = remote::open(config).await?;
        remote.check_access(config).await?;
        let state_dir = config.remote_state_dir();
        let (mut staging, mut cache) = (None, None);
        match request {
            HistoryRequest::Diff { .. } if state_dir.is_dir() => {
                let holder = Holder { pid: std::process::id(), ..Holder::default() };
                let opened = Staging::open(&state_dir, &holder).map_err(|err| failure::of_staging(&err))?;
                staging = Some(Arc::new(opened));
            }
            HistoryRequest::Verify { .. } => cache = Some(compose::open_cache_of_mounts(config)),
            HistoryRequest::Log { .. }
            | HistoryRequest::Show { .. }
            | HistoryRequest::Diff { .. }
            | HistoryRequest::Compare { .. } => {}
        }
        let (store, prefix) = (Arc::clone(&remote.store), remote.remote.prefix.clone());
        let catalog = Arc::new(Catalog::new(store, prefix, config.list_ttl.value));
        Ok(Self { remote, state_dir, catalog, staging, cache, fs: None })
    }

    /// Answers one question.
    ///
    /// # Errors
    /// There is no such dataset or commit; the remote's.
    pub async fn answer(
        &self,
        request: &HistoryRequest,
        progress: &watch::Sender<Progress>,
    ) -> Result<HistoryReply, Failure> {
        match request {
            HistoryRequest::Log { dataset, limit } => {
                self.commits(dataset, *limit, progress).await.map(HistoryReply::Log)
            }
            HistoryRequest::Show { revision } => {
                let record = self.record(revision).await?;
                Ok(HistoryReply::Commit(detail(&revision.dataset, record)))
            }
            HistoryRequest::Diff { dataset } => {
                self.diff(dataset, progress).await.map(HistoryReply::Differences)
            }
            HistoryRequest::Compare { before, after } => {
                let (before, after) = (self.snapshot(before).await?, self.snapshot(after).await?);
                Ok(HistoryReply::Differences(compare::between(&before, &after)))
            }
            HistoryRequest::Verify { revision, remote, workers } => {
                let remote = remote.then_some(*workers);
                self.verify(revision, remote, progress).await.map(HistoryReply::Verified)
            }
        }
    }

    fn log(&self, dataset: &DatasetName) -> Log {
        Log::new(Arc::clone(&self.remote.store), self.remote.remote.prefix.clone(), dataset.clone())
    }

    async fn commits(
        &self,
        dataset: &DatasetName,
        limit: Option<u64>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Vec<CommitHeader>, Failure> {
        let log = self.log(dataset);
        let head = log.head().await.map_err(|err| failure::of_store(&err))?;
        if head == 0 {
            self.check_exists(dataset).await?;
            return Ok(Vec::new());
        }
        let oldest = limit.map_or(1, |limit| head.saturating_sub(limit) + 1);
        let count = head + 1 - oldest;
        if count >= RECORDS_WORTH_PROGRESS {
            progress.send_replace(Progress {
                phase: "read".into(),
                files_total: count,
                ..Progress::default()
            });
        }
        let header = async |seq| {
            let record = log.record(seq).await.and_then(|record| record.ok_or_else(|| log.lost(seq)));
            progress.send_modify(|progress| progress.files_done += 1);
            record.map(|record| header(&record)).map_err(|err| of_log(&err, dataset))
        };
        stream::iter((oldest..=head).rev()).map(header).buffered(RECORDS_AT_ONCE).try_collect().await
    }

    async fn snapshot(&self, revision: &Revision) -> Result<Snapshot, Failure> {
        let record = self.record(revision).await?;
        let snapshot = self.log(&revision.dataset).snapshot_after(&record.body).await;
        snapshot.map_err(|err| of_log(&err, &revision.dataset))
    }

    async fn diff(
        &self,
        dataset: &DatasetName,
        progress: &watch::Sender<Progress>,
    ) -> Result<Vec<Difference>, Failure> {
        let Some(staged) = self.staging.as_ref().and_then(|staging| staging.dataset(dataset)) else {
            self.check_exists(dataset).await?;
            return Ok(Vec::new()); // published, and nothing of it is staged: no difference
        };
        let meter = Meter { progress: progress.clone() };
        let compared = compare::staged(&self.catalog, &*self.remote.store, &staged, &meter).await;
        compared.map_err(|err| of_compare(&err, dataset))
    }

    async fn verify(
        &self,
        revision: &Revision,
        remote: Option<usize>,
        progress: &watch::Sender<Progress>,
    ) -> Result<VerifyReport, Failure> {
        let Revision { dataset, seq } = revision;
        let identity = self.remote.remote.store_identity();
        let verify = Verify {
            store: Arc::clone(&self.remote.store),
            prefix: self.remote.remote.prefix.clone(),
            dataset: dataset.clone(),
            seq: *seq,
            cache: self.cache.as_ref().map(|cache| (Arc::clone(cache), identity)),
            remote,
            watch: Arc::new(Meter { progress: progress.clone() }),
        };
        let report = match verify.run().await.map_err(|err| of_compare(&err, dataset))? {
            Found::Report(report) => report,
            Found::NoSuchCommit { head } => {
                self.check_exists(dataset).await?;
                return Err(if head == 0 { without_log(dataset) } else { no_commit(revision, head) });
            }
        };
        if report.seq.is_none() {
            self.check_exists(dataset).await?;
        }
        if let Some(fs) = &self.fs {
            for file in report.bad.iter().filter(|file| file.place == Place::Cache) {
                fs.forget_content(dataset, &file.path, &file.etag);
            }
        }
        Ok(report)
    }

    /// The record that a revision names.
    async fn record(&self, revision: &Revision) -> Result<CommitRecord, Failure> {
        let Revision { dataset, seq } = revision;
        let log = self.log(dataset);
        let failed = |err: LogError| of_log(&err, dataset);
        if let Some(seq) = seq
            && let Some(record) = log.record(*seq).await.map_err(failed)?
        {
            return Ok(record);
        }
        let head = log.head().await.map_err(|err| failure::of_store(&err))?;
        if head == 0 {
            self.check_exists(dataset).await?;
            return Err(without_log(dataset));
        }
        match seq {
            Some(seq) if *seq > head => Err(no_commit(revision, head)),
            Some(seq) => Err(of_log(&log.lost(*seq), dataset)),
            None => {
                let record = log.record(head).await.map_err(failed)?;
                record.ok_or_else(|| of_log(&log.lost(head), dataset))
            }
        }
    }

    /// Tells a dataset that was never committed to from one that is not there.
    async fn check_exists(&self, dataset: &DatasetName) -> Result<(), Failure> {
        let prefix = self.remote.remote.prefix.dataset(dataset);
        let request = ListRequest { keys_max: 1, ..ListRequest::recursive(prefix) };
        let page = self.remote.store.list(&request).await.map_err(|err| failure::of_store(&err))?;
        if !page.objects.is_empty() || page.continuation.is_some() {
            return Ok(());
        }
        let staged = operations::inspect(&self.state_dir)?;
        if staged.iter().any(|staged| staged.name == *dataset) {
            let message = format!("{dataset} is staged, and nothing of it was ever published");
            return Err(Failure::new(FailureKind::NotFound, message)
                .hint(format!("`dsfs commit {dataset}` publishes it")));
        }
        let message = format!("there is no dataset {dataset} at {}", self.remote.remote);
        Err(Failure::new(FailureKind::NotFound, message).hint("`dsfs list` shows those that are there"))
    }
}

fn no_commit(revision: &Revision, head: u64) -> Failure {
    let dataset = &revision.dataset;
    let message = format!("there is no {revision}: the newest commit of {dataset} is {head}");
    Failure::new(FailureKind::NotFound, message).hint(format!("`dsfs log {dataset}` lists them"))
}

fn without_log(dataset: &DatasetName) -> Failure {
    let message = format!("{dataset} has no commits: other tools than dsfs have put it there");
    Failure::new(FailureKind::NotFound, message)
}

/// A record that is missing is not something that the user asked for in vain: the log is damaged.
fn of_log(err: &LogError, dataset: &DatasetName) -> Failure {
    match err {
        LogError::Store(StoreError::NotFound { key }) => {
            Failure::new(FailureKind::Failed, format!("the log of {dataset} is damaged: {key} is missing"))
                .hint("dsfs never deletes it: another tool did")
        }
        LogError::Store(err) => failure::of_store(err),
        LogError::Record { .. } | LogError::Crowded => {
            Failure::new(FailureKind::Failed, format!("the log of {dataset} cannot be read: {err}"))
        }
    }
}

fn of_compare(err: &CompareError, dataset: &DatasetName) -> Failure {
    match err {
        CompareError::Store(err) => failure::of_store(err),
        CompareError::Log(err) => of_log(err, dataset),
        CompareError::Staging(err) => failure::of_staging(err),
    }
}

/// Passes on how far a comparison has come.
struct Meter {
    progress: watch::Sender<Progress>,
}

impl Watch for Meter {
    fn phase(&self, what: &'static str, files: u64, bytes: u64) {
        self.progress.send_replace(Progress {
            phase: what.to_owned(),
            files_total: files,
            bytes_total: bytes,
            ..Progress::default()
        });
    }

    fn looked_at(&self, bytes: u64) {
        // What has to be read a second time is not shown as more than there is.
        let add = |progress: &mut Progress| {
            progress.bytes_done = progress.bytes_total.min(progress.bytes_done + bytes);
        };
        self.progress.send_modify(add);
    }

    fn file_done(&self) {
        self.progress.send_modify(|progress| progress.files_done += 1);
    }
}

/// A time as RFC 3339 in UTC.
fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "unknown".to_owned(), |time| time.to_string())
}

fn header(record: &CommitRecord) -> CommitHeader {
    let body = &record.body;
    let changes = &body.changes;
    let replaced = changes.entries.iter().filter(|entry| entry.replaced.is_some()).count() as u64;
    CommitHeader {
        seq: body.seq,
        txid: body.txid.clone(),
        aborted: record.outcome == Outcome::Abort,
        author: body.author.user.clone(),
        host: body.author.host.clone(),
        time: rfc3339(body.time),
        message: body.message.clone(),
        new: changes.entries.len() as u64 - replaced,
        replaced,
        deleted: changes.deleted.len() as u64,
        directories: changes.markers.len() as u64,
        bytes: changes.entries.iter().map(|entry| entry.size_bytes).sum(),
    }
}

fn detail(dataset: &DatasetName, record: CommitRecord) -> CommitDetail {
    let header = header(&record);
    let changes = record.body.changes;
    let written = changes.entries.into_iter().map(|entry| ChangedFile {
        change: if entry.replaced.is_some() { FileChange::Replaced } else { FileChange::New },
        path: entry.path,
        etag: entry.etag,
        replaced_etag: entry.replaced,
        size_bytes: Some(entry.size_bytes),
        cid: Some(entry.cid),
        mtime: Some(rfc3339(entry.mtime)),
    });
    let deleted = changes.deleted.into_iter().map(|gone| ChangedFile {
        change: FileChange::Deleted,
        path: gone.path,
        etag: gone.etag,
        replaced_etag: None,
        size_bytes: None,
        cid: None,
        mtime: None,
    });
    let mut files: Vec<ChangedFile> = written.chain(deleted).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    CommitDetail { dataset: dataset.clone(), header, files, empty_directories: changes.markers }
}
