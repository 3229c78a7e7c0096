//! Commit: publishing staged changes, all or nothing, onto plain keys.
//!
//! # The steps
//!
//! 1. **Freeze** the staged tree. What is written from now on belongs to the next commit.
//! 2. **Preflight**: one listing of the dataset, one of the intents. Anything in the way ends the
//!    commit here, naming all of it; nothing has been sent.
//! 3. **Upload** what is larger than one part, and hash it meanwhile. Nothing is visible yet.
//! 4. **Intent**: a notice in the bucket that names the keys. Whoever sees a foreign one that
//!    overlaps withdraws its own and tries again after a random pause, a bounded number of times.
//! 5. **Publish**: create every object where nothing is, the dataset's markers last. What fits into one
//!    part is read, hashed and sent now.
//! 6. **Commit point**: one object, `log/<name>/<seq>`, created where nothing is.
//! 7. **Finish**: delete what the commit deletes, withdraw the intent, hand the files to the cache.
//!
//! # Promises
//!
//! 1. Nothing is overwritten or deleted but versions that the commit names by `ETag` and that the
//!    user asked to replace or delete.
//! 2. A commit that reports a conflict has changed nothing: objects it had created are gone
//!    again, staging is as it was. Exception: versions that were replaced (`--overwrite`) and
//!    could not be put back are named ([`CommitError::NotRestored`]).
//! 3. A commit that was interrupted, by a crash at any point or an unreachable remote, stays
//!    sealed in staging until [`resume`] or [`abort`] has ended it. Both can be repeated.
//! 4. What [`commit`] has reported as committed is in the log, and stays.
//! 5. Memory for bodies is bounded by [`CommitOptions::memory_bytes`], requests by
//!    [`CommitOptions::workers`].
//!
//! # What this module does not know
//!
//! Inodes, mounts, the command line. It works with nothing mounted.

mod announce;
mod conflict;
pub(crate) mod content;
mod deletion;
mod gc;
mod journal;
mod memory;
pub(crate) mod places;
mod plan;
mod prepare;
mod publish;
mod rollback;
mod run;
pub(crate) mod send;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::NameError;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Author;
use crate::record::ContentId;
use crate::record::RECORD_BYTES_MAX;
use crate::record::RecordError;
use crate::staging::StagedDataset;
use crate::staging::StagingError;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;

pub use crate::log::Log;
use crate::log::LogError;
pub use conflict::Conflict;
pub use conflict::ConflictReason;
pub(crate) use content::Content;
pub use gc::GcOptions;
pub use gc::GcReport;
pub use gc::gc;
pub use gc::tidy;
pub use journal::JournalError;
pub use plan::AlreadyThere;
pub use plan::CommitPlan;
pub use plan::PlannedDelete;
pub use plan::PlannedFile;
pub use plan::part_bytes_for;
pub use run::abort;
pub(crate) use run::blocking;
pub use run::commit;
pub use run::plan;
pub use run::resume;

/// Default part size in bytes: large enough that a request's overhead does not show, small enough
/// that several of them fit into memory.
pub const PART_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// Default number of requests under way at once.
pub const WORKERS_DEFAULT: usize = 16;
/// Default memory for bodies, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;

/// How a commit is made.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// Replace and delete published versions, those that were seen when the change was staged.
    pub overwrite: bool,
    /// Why, in the user's words.
    pub message: Option<String>,
    /// Requests for large bodies under way at once; small ones share a place, up to eight to one.
    pub workers: usize,
    /// Go on where the server cannot be relied on to refuse overwriting.
    pub allow_unenforced: bool,
    /// Take anything that is at a file's key for a conflict, without asking whether it is the same.
    pub refuse_existing: bool,
    /// Size of the parts of large objects, in bytes; larger ones go up in parts.
    pub part_bytes: u64,
    /// Memory for bodies in bytes. A single part may be larger, for objects beyond 80 GB.
    pub memory_bytes: u64,
    /// Longest snapshot of the log that is written, in bytes before it is packed.
    pub snapshot_bytes_max: u64,
    /// Where ids and pauses come from, so that a simulation can be repeated; `None`: the system.
    pub entropy: Option<u64>,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            overwrite: false,
            message: None,
            workers: WORKERS_DEFAULT,
            allow_unenforced: false,
            refuse_existing: false,
            part_bytes: PART_BYTES_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            snapshot_bytes_max: RECORD_BYTES_MAX,
            entropy: None,
        }
    }
}

/// Takes published files over from staging, so that they need not be downloaded again.
pub trait Admit: Send + Sync {
    /// Takes the file at `path`, by renaming it, by a second name or by copy, as the content of this version.
    ///
    /// # Errors
    /// Any; the commit goes on without.
    fn admit(&self, key: &ObjectKey, etag: &ETag, size_bytes: u64, path: &Path) -> io::Result<()>;
}

/// Is told of a commit once it is in the log, while its files are still in staging: whoever shows
/// both must find the published versions before the staged files go. Must be quick.
pub trait Published: Send + Sync {
    /// This was published; it is told again if the commit's end was interrupted and is resumed.
    fn published(&self, report: &CommitReport);
}

/// What a commit is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking at what is published.
    Preflight,
    /// Sending large files.
    Upload,
    /// Making everything visible.
    Publish,
    /// Writing the record, and tidying up.
    Record,
    /// Taking back what was created.
    RollBack,
}

/// Watches a commit. Called from several threads; must be quick.
pub trait Progress: Send + Sync {
    /// A phase begins, with this many files and bytes to go (0: unknown).
    fn phase(&self, _phase: Phase, _files: u64, _bytes: u64) {}
    /// Bytes were sent.
    fn sent(&self, _bytes: u64) {}
    /// A file is through the present phase.
    fn file_done(&self) {}
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}

/// All that a commit needs.
#[derive(Clone)]
pub struct CommitContext {
    /// The remote.
    pub store: Arc<dyn ObjectStore>,
    /// Where in it the datasets are.
    pub prefix: RemotePrefix,
    /// What is staged.
    pub staging: Arc<StagedDataset>,
    /// Who takes published files over, if anybody does.
    pub cache: Option<Arc<dyn Admit>>,
    /// Who is told before published files leave staging, if anybody is.
    pub published: Option<Arc<dyn Published>>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Who commits.
    pub author: Author,
    /// How.
    pub options: CommitOptions,
    /// What the remote guarantees.
    pub guarantee: Guarantee,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
}

impl CommitContext {
    fn dataset(&self) -> &DatasetName {
        self.staging.name()
    }
}

/// A file that a commit has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedFile {
    /// Where in the dataset.
    pub path: RelPath,
    /// Its version.
    pub etag: ETag,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed, before it was published.
    pub mtime: SystemTime,
    /// Its content.
    pub cid: ContentId,
}

/// What a commit has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// The dataset.
    pub dataset: DatasetName,
    /// The commit's id.
    pub txid: String,
    /// Its place in the log; `None` if there was nothing to record: all of it was there already.
    pub seq: Option<u64>,
    /// Files published.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Which they are; those whose content was there already included.
    pub published: Vec<PublishedFile>,
    /// Files whose content was there already, among `published`.
    pub already_there: u64,
    /// Empty directories published.
    pub markers: Vec<RelPath>,
    /// Files deleted.
    pub deleted: Vec<RelPath>,
    /// What the remote guaranteed meanwhile.
    pub guarantee: Guarantee,
}

/// Why a commit did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// There is nothing to commit.
    #[error("nothing is staged")]
    NothingStaged,
    /// Files have to be closed first.
    #[error("open for writing: {}", list(paths))]
    OpenForWriting {
        /// Which.
        paths: Vec<RelPath>,
    },
    /// Something is in the way. Nothing has changed, here or in the bucket.
    #[error("nothing was published: {}", list(conflicts))]
    Conflict {
        /// All of it.
        conflicts: Vec<Conflict>,
    },
    /// The remote cannot be relied on to refuse overwriting, and that was not accepted.
    #[error("this remote does not refuse to overwrite existing objects reliably")]
    Unenforced,
    /// An earlier commit has begun and not ended: resume or abort it.
    #[error("commit {txid} was interrupted: resume it, or abort it")]
    Unfinished {
        /// Which.
        txid: String,
    },
    /// What was interrupted was its abortion, which is complete now. Staging is as it was.
    #[error("commit {txid} was being aborted, and is now")]
    Aborted {
        /// Which.
        txid: String,
    },
    /// There is no commit to be resumed or aborted.
    #[error("no commit was interrupted")]
    NothingToResume,
    /// The commit cannot be aborted any more: it is in the log.
    #[error("commit {txid} is already published (number {seq}): resume it to tidy up")]
    AlreadyCommitted {
        /// Which.
        txid: String,
        /// Its number.
        seq: u64,
    },
    /// Somebody took the commit for dead and ended it. It was rolled back; staging is as it was.
    #[error("commit {txid} was ended by {by}; nothing was published")]
    Fenced {
        /// Which.
        txid: String,
        /// Who: `user@host`.
        by: String,
    },
    /// It could not be ended now. It is kept, to be resumed or aborted.
    #[error("commit {txid} was interrupted and is kept, to be resumed or aborted: {source}")]
    Interrupted {
        /// Which.
        txid: String,
        /// Why.
        source: Box<Self>,
    },
    /// Versions were replaced before the commit failed, and the old ones are gone.
    #[error("rolled back, but for these, which were replaced before: {}; {source}", list(paths))]
    NotRestored {
        /// Which.
        paths: Vec<RelPath>,
        /// Why the commit failed.
        source: Box<Self>,
    },
    /// The remote's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local disk's answer.
    #[error(transparent)]
    Staging(StagingError),
    /// A path that makes no key.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Something in the bucket could not be read.
    #[error("{key}: {source}")]
    Record {
        /// What.
        key: ObjectKey,
        /// Why.
        source: RecordError,
    },
    /// The notice of another commit cannot be read: what it is about to publish is not known.
    #[error("{key} is the notice of another commit and cannot be read: {source}")]
    UnreadableIntent {
        /// Which.
        key: ObjectKey,
        /// Why.
        source: RecordError,
    },
    /// The local journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The log moved on each time that its end was reached.
    #[error("others commit to this dataset all the time; the record could not be written")]
    Crowded,
}

impl From<LogError> for CommitError {
    fn from(err: LogError) -> Self {
        match err {
            LogError::Store(err) => Self::Store(err),
            LogError::Record { key, source } => Self::Record { key, source },
            LogError::Crowded => Self::Crowded,
        }
    }
}

impl From<StagingError> for CommitError {
    fn from(err: StagingError) -> Self {
        match err {
            StagingError::NothingStaged => Self::NothingStaged,
            StagingError::OpenForWriting { paths } => Self::OpenForWriting { paths },
            StagingError::AlreadySealed { txid } => Self::Unfinished { txid },
            err @ (StagingError::Io { .. }
            | StagingError::Sealed { .. }
            | StagingError::Foreign { .. }
            | StagingError::Locked { .. }
            | StagingError::Damaged { .. }) => Self::Staging(err),
        }
    }
}

impl CommitError {
    /// Whether the same may succeed later without anybody doing anything about it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        if let Self::Store(err) = self { err.is_transient() } else { matches!(self, Self::Crowded) }
    }
}

const LISTED_MAX: usize = 10;

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(LISTED_MAX).map(T::to_string).collect::<Vec<_>>().join("; ");
    if items.len() > LISTED_MAX {
        text.push_str(&format!("; and {} more", items.len() - LISTED_MAX));
    }
    text
}
