//! What is asked and told about the past of a dataset: its log, its commits, differences, verification.

use serde::Deserialize;
use serde::Serialize;

use crate::compare::Difference;
use crate::compare::VerifyReport;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::RelPath;
use crate::name::Revision;
use crate::record::ContentId;

/// What can be asked about the past of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryRequest {
    /// Its commits, newest first.
    Log {
        /// The dataset.
        dataset: DatasetName,
        /// Only so many; all of them if none is given.
        limit: Option<u64>,
    },
    /// One commit, file by file.
    Show {
        /// Which.
        revision: Revision,
    },
    /// What is staged against what is published.
    Diff {
        /// The dataset.
        dataset: DatasetName,
    },
    /// A snapshot against another.
    Compare {
        /// The earlier one.
        before: Revision,
        /// The later one.
        after: Revision,
    },
    /// Whether the cache, and the remote if asked for, hold what was committed.
    Verify {
        /// Which snapshot.
        revision: Revision,
        /// Read all of it from the remote.
        remote: bool,
        /// Files read at a time.
        workers: usize,
    },
}

/// The answer to a [`HistoryRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryReply {
    /// Of [`HistoryRequest::Log`].
    Log(Vec<CommitHeader>),
    /// Of [`HistoryRequest::Show`].
    Commit(CommitDetail),
    /// Of [`HistoryRequest::Diff`] and [`HistoryRequest::Compare`].
    Differences(Vec<Difference>),
    /// Of [`HistoryRequest::Verify`].
    Verified(VerifyReport),
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitHeader {
    /// The commit's number in the dataset's log, from 1.
    pub seq: u64,
    /// Its id.
    pub txid: String,
    /// It was given up and changed nothing: the record says that it will never be published.
    pub aborted: bool,
    /// Who wrote the record.
    pub author: String,
    /// Where.
    pub host: String,
    /// When, as RFC 3339.
    pub time: String,
    /// Why, in the author's words.
    pub message: Option<String>,
    /// Files that were not there before.
    pub new: u64,
    /// Files that took the place of another version.
    pub replaced: u64,
    /// Files that were deleted.
    pub deleted: u64,
    /// Empty directories that were published.
    pub directories: u64,
    /// Bytes of the new and replacing files.
    pub bytes: u64,
}

/// A commit, file by file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitDetail {
    /// Of this dataset.
    pub dataset: DatasetName,
    /// What the log says of it.
    #[serde(flatten)]
    pub header: CommitHeader,
    /// What it did to files, by path.
    pub files: Vec<ChangedFile>,
    /// Empty directories that it published.
    pub empty_directories: Vec<RelPath>,
}

/// What a commit did to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileChange {
    /// It was not there before.
    New,
    /// It took the place of another version.
    Replaced,
    /// It was deleted.
    Deleted,
}

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedFile {
    /// What happened to it.
    pub change: FileChange,
    /// Its path in the dataset.
    pub path: RelPath,
    /// The version that was published, or that was deleted.
    pub etag: ETag,
    /// The version whose place it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_etag: Option<ETag>,
    /// Its size in bytes; not known of what was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Its content; not known of what was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid: Option<ContentId>,
    /// When its content was last changed before it was published, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<String>,
}
