//! Bulk transfer: many files between a directory and a store, as fast as the line allows.
//!
//! # How much at once
//!
//! `workers` places, and each request takes one; but requests for small files share a place, up to
//! eight to one, since they wait more than they move ([`run`]). Large files are cut into pieces, so that
//! the last file does not keep seven places waiting.
//!
//! # Promises
//!
//! 1. **A file is whole and right, or not there.** Downloads go to a temporary file in the target's own
//!    directory, which is renamed when all of it has arrived and has been checked; uploads become
//!    visible with their last request.
//! 2. **Nothing is overwritten unasked**: what is in the way is found before anything is sent, all of it
//!    is named, and nothing is changed. What comes into the way later is left alone too: objects are
//!    created where nothing is (`If-None-Match: *`), files renamed to where nothing is.
//! 3. **What was downloaded is checked** against the SHA-256 that is recorded with the object, or the
//!    checksum that the server keeps, where there is either. What was uploaded was checked by the server.
//! 4. **What was interrupted goes on.** A kill or a lost network leaves pieces, and a note of which; the
//!    same transfer again takes them up if the object is still the same version. A cancelled transfer
//!    ([`TransferOptions::cancel`]), or one that failed for another reason, leaves no piece: only whole
//!    files, past which the same transfer goes on.
//! 5. Memory for bodies is bounded by [`TransferOptions::memory_bytes`], whatever is transferred.
//!
//! # What this module does not know
//!
//! The command line; datasets, whose uploads are commits.

mod cached;
mod delete;
mod download;
mod fetch;
mod landing;
mod large;
mod notes;
mod partial;
mod run;
mod upload;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::commit::CommitError;
use crate::commit::PART_BYTES_DEFAULT;
use crate::local::LocalError;
use crate::name::NameError;
use crate::name::ObjectKey;
use crate::staging::StagingError;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;

pub use cached::LocalCache;
pub use delete::DeleteReport;
pub use delete::delete;
pub use download::DownloadFile;
pub use download::DownloadReport;
pub use download::download;
pub use landing::landing;
pub use notes::Notes;
pub use upload::UploadFile;
pub use upload::UploadReport;
pub use upload::upload;
pub use upload::upload_bytes;

/// Requests at a time, unless somebody says otherwise.
pub const WORKERS_DEFAULT: usize = 8;
/// Memory for bodies in bytes, unless somebody says otherwise.
pub const MEMORY_BYTES_DEFAULT: u64 = 64 << 20;
/// How many things a message names before it only counts them.
const NAMED_MAX: usize = 20;

/// What a download is held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The checksum that the server keeps, or else the recorded SHA-256: the cheaper one comes first.
    #[default]
    Any,
    /// The recorded SHA-256, or else the server's checksum.
    Content,
}

/// How a transfer is made.
#[derive(Clone, Debug)]
pub struct TransferOptions {
    /// Requests for large bodies at a time; small ones go several to a place.
    pub workers: usize,
    /// Size of the pieces in which large files are moved, in bytes.
    pub part_bytes: u64,
    /// Memory for bodies in bytes.
    pub memory_bytes: u64,
    /// Replace what is in the way: files, and the versions of objects that the preflight has seen.
    pub overwrite: bool,
    /// What downloads are held against.
    pub verify: Verify,
    /// What the remote guarantees, which decides how carefully objects are created.
    pub guarantee: Guarantee,
    /// Ends the transfer, and takes away whatever is not whole.
    pub cancel: CancellationToken,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            workers: WORKERS_DEFAULT,
            part_bytes: PART_BYTES_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            overwrite: false,
            verify: Verify::default(),
            guarantee: Guarantee::BestEffort,
            cancel: CancellationToken::new(),
        }
    }
}

/// Watches a transfer. Called from several threads; must be quick.
pub trait Watch: Send + Sync {
    /// So much is to be moved.
    fn total(&self, _files: u64, _bytes: u64) {}
    /// So much more was moved, or was there already.
    fn moved(&self, _bytes: u64) {}
    /// A file is complete.
    fn file_done(&self) {}
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWatch;

impl Watch for NoWatch {}

/// What every transfer works with.
#[derive(Clone)]
pub struct Transfer {
    /// The remote.
    pub store: Arc<dyn ObjectStore>,
    /// How.
    pub options: TransferOptions,
    /// Who watches.
    pub watch: Arc<dyn Watch>,
    /// Where it is noted how far a transfer has come, so that it can go on after a kill; none, and the
    /// files that it has finished are in its way the next time.
    pub notes: Option<Notes>,
    /// Where downloads look for what this machine has already.
    pub cache: Option<LocalCache>,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").field("store", &self.store).field("options", &self.options).finish()
    }
}

/// Why a transfer did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Something is where this wanted to write. Nothing was transferred.
    #[error("already there: {}", named(what))]
    InTheWay {
        /// All of it: keys or paths.
        what: Vec<String>,
    },
    /// Somebody else has created or replaced these meanwhile; theirs was left alone.
    #[error("was written by somebody else meanwhile: {}", named(keys))]
    Overtaken {
        /// The keys.
        keys: Vec<ObjectKey>,
        /// How many others were uploaded, or deleted, and stay so; 0: nothing was changed.
        done: u64,
    },
    /// There is no such object, and nothing below it.
    #[error("there is nothing at {what}")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// Keys that make no file name, or two that make the same.
    #[error("cannot be files: {}", named(what))]
    Unfit {
        /// Each key and what is wrong with it.
        what: Vec<String>,
    },
    /// What arrived is not what was stored.
    #[error("{key} arrived damaged: {reason}")]
    Damaged {
        /// The object.
        key: ObjectKey,
        /// What did not fit.
        reason: String,
    },
    /// There is less room than the files need. Nothing was transferred.
    #[error("{} has room for {free_bytes} bytes, and the files need {needed_bytes}", path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// What is free, in bytes.
        free_bytes: u64,
        /// What is needed, in bytes.
        needed_bytes: u64,
    },
    /// It was cancelled.
    #[error("cancelled after {done} of {files} files")]
    Cancelled {
        /// Files that are complete.
        done: u64,
        /// Files in all.
        files: u64,
    },
    /// The remote could not be reached any more, or lets us do nothing any more; or an object was replaced
    /// or deleted, or a file made in its place, while others were downloaded. The same transfer goes on
    /// where this one has stopped.
    #[error("interrupted after {done} of {files} files: {source}")]
    Interrupted {
        /// Files that are complete.
        done: u64,
        /// Files in all.
        files: u64,
        /// What happened.
        source: Box<Self>,
    },
    /// The remote's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local disk's answer.
    #[error("{}: {source}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A local file changed while it was sent.
    #[error("{path}: {reason}")]
    Changed {
        /// The file.
        path: String,
        /// What was noticed.
        reason: String,
    },
    /// A name that makes no key.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Something that is not about one file.
    #[error("{0}")]
    Other(String),
}

impl TransferError {
    fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Whether the same transfer may succeed later, and then goes on where this one has stopped.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        if let Self::Store(err) = self {
            err.is_transient()
        } else {
            matches!(self, Self::Interrupted { .. })
        }
    }

    /// The object that is not there any more in the version that was listed: another listing helps.
    fn outdated(&self) -> Option<&ObjectKey> {
        if let Self::Store(StoreError::Changed { key } | StoreError::NotFound { key }) = self {
            return Some(key);
        }
        None
    }

    /// As the end of a transfer that had begun.
    async fn interrupted(self, transfer: &Transfer, done: u64, files: u64) -> Self {
        if self.is_transient() || self.is_locked_out(transfer).await {
            Self::Interrupted { done, files, source: Box::new(self) }
        } else {
            self
        }
    }

    /// Whether it is who asks that is refused, not what is asked for: keys that have expired on the way.
    /// Nothing is wrong with what has arrived, nor could it be tidied up.
    async fn is_locked_out(&self, transfer: &Transfer) -> bool {
        matches!(self, Self::Store(err) if err.may_be_about_access())
            && transfer.store.check_access().await.is_err()
    }
}

impl From<LocalError> for TransferError {
    fn from(err: LocalError) -> Self {
        match err {
            LocalError::Io { path, source } => Self::Io { path, source },
            LocalError::Name { path, source } => Self::Other(format!("{}: {source}", path.display())),
        }
    }
}

impl From<StagingError> for TransferError {
    fn from(err: StagingError) -> Self {
        match err {
            StagingError::Io { path, source } => Self::Io { path, source },
            StagingError::Damaged { path, reason } => {
                Self::Changed { path: path.display().to_string(), reason }
            }
            err @ (StagingError::Sealed { .. }
            | StagingError::OpenForWriting { .. }
            | StagingError::AlreadySealed { .. }
            | StagingError::NothingStaged
            | StagingError::Foreign { .. }
            | StagingError::Locked { .. }) => Self::Other(err.to_string()),
        }
    }
}

impl From<CommitError> for TransferError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a sender has these three kinds of errors")]
    fn from(err: CommitError) -> Self {
        match err {
            CommitError::Store(err) => err.into(),
            CommitError::Staging(err) => err.into(),
            other => Self::Other(other.to_string()),
        }
    }
}

fn named<T: std::fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(NAMED_MAX).map(T::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", items.len() - NAMED_MAX));
    }
    text
}
