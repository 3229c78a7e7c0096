//! A dataset's past, as commands ask about it: the same work in a daemon and without one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use tokio::sync::watch;

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
use crate::daemon::compose::Workspace;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::log::Log;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::Revision;
use crate::record::CommitRecord;
use crate::record::Outcome;
use crate::store::ListRequest;
use crate::store::StoreError;

/// Records read at a time. Each may be large, and only its numbers are kept.
const RECORDS_AT_ONCE: usize = 8;

/// What there is to look into.
#[derive(Debug)]
pub struct Source {
    /// The remote and its store.
    pub remote: OpenRemote,
    /// The remote's own part of the state directory, which may not exist.
    pub state_dir: PathBuf,
}

impl Source {
    /// What a daemon works with.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Self {
        Self { remote: workspace.remote.clone(), state_dir: workspace.remote_state_dir.clone() }
    }

    /// The remote of these settings, for a command that works without a daemon.
    ///
    /// # Errors
    /// It cannot be used.
    pub async fn open(config: &Config) -> Result<Self, Failure> {
        let remote = remote::open(config).await?;
        remote.check_access(config).await?;
        Ok(Self { remote, state_dir: config.remote_state_dir() })
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
            HistoryRequest::Show { revision } => self.show(revision).await.map(HistoryReply::Commit),
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
        progress.send_replace(Progress { phase: "read".into(), files_total: count, ..Progress::default() });
        let header = async |seq| {
            let record = log.record(seq).await.and_then(|record| record.ok_or_else(|| log.lost(seq)));
            progress.send_modify(|progress| progress.files_done += 1);
            record.map(|record| header(&record)).map_err(|err| of_log(&err, dataset))
        };
        stream::iter((oldest..=head).rev()).map(header).buffered(RECORDS_AT_ONCE).try_collect().await
    }

    async fn show(&self, revision: &Revision) -> Result<CommitDetail, Failure> {
        Ok(detail(&revision.dataset, self.record(revision).await?))
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
            Some(seq) if *seq > head => {
                let message = format!("{dataset} has no commit {seq}: the newest is {head}");
                Err(Failure::new(FailureKind::NotFound, message).hint(format!("`dsfs log {dataset}`")))
            }
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
