//! What stands in the way of a commit, path by path, in words for people.

use std::fmt;
use std::time::SystemTime;

use crate::name::ETag;

/// Why a path cannot be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConflictReason {
    /// Another content is published there.
    Exists {
        /// Which version, if the listing says.
        etag: Option<ETag>,
        /// Whose it is, if the newest records say: `user@host (commit 7)`.
        by: Option<String>,
    },
    /// Something is published there, and nobody has asked what.
    Present,
    /// It is a file here and a directory there.
    DirectoryThere,
    /// A directory above it is a file there.
    FileThere,
    /// It replaces or deletes a version that is not there any more.
    Changed {
        /// The version that was seen when it was staged.
        expected: ETag,
        /// What is there now.
        found: Option<ETag>,
    },
    /// It replaces or deletes what is published, which has to be asked for (`--overwrite`).
    WouldReplace,
    /// It was written by a commit that is not in the log: one that is under way, or that failed.
    /// What that one left may be removed at any time, so that even the same content does not count.
    Leftover {
        /// That commit.
        txid: String,
    },
    /// Another commit that is under way names it too.
    Intent {
        /// That commit.
        txid: String,
        /// Whose it is: `user@host`.
        author: String,
    },
    /// A commit that was given up, or that deletes it, may still have requests on their way that
    /// would delete what is put there now.
    BeingDeleted {
        /// That commit.
        txid: String,
        /// Whose it is: `user@host`.
        author: String,
        /// Until when, as far as is known.
        until: SystemTime,
    },
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists { by: None, .. } => f.write_str("is published already, with another content"),
            Self::Exists { by: Some(by), .. } => {
                write!(f, "is published already, with another content, by {by}")
            }
            Self::Present => f.write_str("is published already"),
            Self::DirectoryThere => f.write_str("is a directory in the bucket"),
            Self::FileThere => f.write_str("is a file in the bucket, where a directory is needed"),
            Self::Changed { found: Some(_), .. } => f.write_str("was replaced since it was staged"),
            Self::Changed { found: None, .. } => f.write_str("was deleted since it was staged"),
            Self::WouldReplace => f.write_str("replaces or deletes what is published"),
            Self::Leftover { txid } => {
                write!(
                    f,
                    "is there, but of commit {txid}, which is not completed: who began it can resume or abort it, \
                     and `dsfs gc` ends it if it is announced still; else delete the object by hand"
                )
            }
            Self::Intent { txid, author } => write!(f, "is being published by {author} (commit {txid})"),
            Self::BeingDeleted { txid, author, until } => {
                let until = jiff::Timestamp::try_from(*until)
                    .map_or_else(|_| "later".into(), |time| format!("{time:.0}"));
                write!(
                    f,
                    "may still be deleted by late requests of {author} (commit {txid}, which was interrupted \
                     while it took back or deleted files): try again after {until}"
                )
            }
        }
    }
}

/// A path that cannot be published, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The path in the dataset.
    pub path: String,
    /// Why.
    pub reason: ConflictReason,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.reason)
    }
}
