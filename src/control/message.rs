//! What is said over the control socket, and the form in which every command's outcome is reported,
//! with a daemon or without.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

use crate::config::Remote;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::keep::KeepReply;
use crate::control::keep::KeepRequest;
use crate::control::stat::MountStat;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::record::any_time;

/// The one line of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame<T> {
    /// [`super::PROTOCOL_VERSION`] of who sent it.
    pub version: u32,
    /// What is asked for.
    pub request: T,
}

/// What a daemon can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What is mounted, cached and staged.
    Status {
        /// With the staged files of this dataset.
        files_of: Option<DatasetName>,
    },
    /// The live counters.
    Stat,
    /// The datasets, published and staged.
    List,
    /// Publish a dataset's staged changes.
    Commit(CommitRequest),
    /// What is staged there, to be shown before it is thrown away.
    Select {
        /// Of this dataset.
        dataset: DatasetName,
        /// Only these files and directories; all of the dataset's if empty.
        paths: Vec<RelPath>,
    },
    /// Throw staged changes away.
    Discard {
        /// Of this dataset.
        dataset: DatasetName,
        /// What.
        what: Discarding,
    },
    /// Look into a dataset's past.
    History(HistoryRequest),
    /// Ask the remote again about a dataset, or about all.
    Refresh {
        /// The dataset.
        dataset: Option<DatasetName>,
    },
    /// What is kept on the local disk.
    Keep(KeepRequest),
    /// Let the program that is installed now go on with the mount. There is no answer if that succeeds:
    /// the connection ends.
    Upgrade,
    /// Unmount and end.
    Unmount {
        /// Detach at once, also if files are open.
        lazy: bool,
    },
}

/// What a commit is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRequest {
    /// Of this dataset.
    pub dataset: DatasetName,
    /// Look, and send nothing.
    pub dry_run: bool,
    /// Publish replacements and deletions of published files too.
    pub overwrite: bool,
    /// For the commit's record.
    pub message: Option<String>,
    /// Go on with a store that cannot enforce create-if-absent.
    pub allow_unenforced: bool,
    /// What to do about an earlier commit that did not end.
    pub unfinished: Unfinished,
    /// Requests for large bodies under way at once; small ones share a place, up to eight to one.
    pub workers: Option<usize>,
}

/// What to do about an earlier commit of the dataset that did not end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unfinished {
    /// Finish it, then commit what was staged since.
    #[default]
    Resume,
    /// Finish it, and nothing else.
    ResumeOnly,
    /// Roll it back, and nothing else.
    Abort,
}

/// How far the work has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub phase: String,
    /// Files done.
    pub files_done: u64,
    /// Files in all.
    pub files_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// One line of a daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Done(Reply),
    /// It failed.
    Failed(Failure),
    /// A piece of an answer that is too long for a line.
    Part {
        /// The piece.
        text: String,
        /// The answer is complete with it.
        last: bool,
    },
}

/// The outcome of a request that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Of [`Request::Status`].
    Status(Box<MountStatus>),
    /// Of [`Request::Stat`].
    Stat(Box<MountStat>),
    /// Of [`Request::List`].
    Datasets(Vec<DatasetRow>),
    /// Of [`Request::Commit`].
    Committed(CommitOutcome),
    /// Of [`Request::Select`].
    Selected(Selection),
    /// Of [`Request::Discard`].
    Discarded(DiscardOutcome),
    /// Of [`Request::History`].
    History(HistoryReply),
    /// Of [`Request::Refresh`].
    Refreshed(RefreshOutcome),
    /// Of [`Request::Keep`].
    Kept(KeepReply),
    /// Of [`Request::Unmount`].
    Unmounted,
}

/// A mount, as `dsfs status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its daemon.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// When it was mounted, as RFC 3339.
    pub mounted: String,
    /// When the program was last changed without unmounting, as RFC 3339.
    #[serde(default)]
    pub upgraded: Option<String>,
    /// The remote, for people.
    pub remote: String,
    /// The remote's id: the name of its directory in the state directory.
    pub remote_id: String,
    /// The same for commands that work on the remote by themselves; `None` of a daemon that does not say.
    #[serde(default)]
    pub choice: Option<RemoteChoice>,
    /// How far the remote enforces that nothing is overwritten, and since when this is known.
    pub guarantee: Option<String>,
    /// The remote does not answer.
    #[serde(default)]
    pub offline: Option<Offline>,
    /// Nothing can be written.
    pub read_only: bool,
    /// It is out of sight, and files that are open in it are still served.
    #[serde(default)]
    pub detached: bool,
    /// The block cache.
    pub cache: CacheStatus,
    /// What is staged.
    pub staged: Vec<StagedDataset>,
    /// The log file, unless the daemon logs to stderr.
    pub log: Option<PathBuf>,
}

/// The settings by which a mount's remote, and keys for it, are found again; without any secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteChoice {
    /// The remote.
    pub remote: Remote,
    /// The configuration file that the mount has read, if there was one.
    pub config: Option<PathBuf>,
    /// The profile in force.
    pub profile: Option<String>,
}

/// A remote that does not answer, as `dsfs status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offline {
    /// Since when, as RFC 3339.
    pub since: String,
    /// What was met.
    pub reason: String,
}

/// The block cache, as `dsfs status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Where it is.
    pub dir: PathBuf,
    /// Bytes in it.
    pub used_bytes: u64,
    /// Bytes that may be in it.
    pub limit_bytes: u64,
    /// Object versions in it.
    pub files: u64,
    /// Blocks answered from it, since the mount.
    pub hits: u64,
    /// Blocks that had to be fetched, since the mount.
    pub misses: u64,
    /// Why it is not being used, if it is not.
    pub bypassed: Option<String>,
}

/// One dataset's staged changes, as `dsfs status` shows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagedDataset {
    /// Its name.
    pub name: DatasetName,
    /// Staged files.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Staged directories with nothing in them.
    pub empty_directories: u64,
    /// Files of a commit that has not ended; not among the others.
    pub sealed_files: u64,
    /// Their size in bytes.
    pub sealed_bytes: u64,
    /// Published files that are staged to be deleted.
    pub deletions: u64,
    /// Things found in the staging area that dsfs did not put there.
    pub foreign: Vec<String>,
    /// Each staged file, if they were asked for.
    pub entries: Vec<StagedFile>,
}

/// One staged file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagedFile {
    /// Its path in the dataset.
    pub path: RelPath,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A dataset, as `dsfs list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRow {
    /// Its name.
    pub name: DatasetName,
    /// The remote has it.
    pub published: bool,
    /// Files staged for it.
    pub staged_files: u64,
}

/// What a commit did, or with `dry_run` would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitOutcome {
    /// Of this dataset.
    pub dataset: DatasetName,
    /// Nothing was sent: this is what a commit would do.
    pub dry_run: bool,
    /// The commit's id; none if there was nothing to commit.
    pub txid: Option<String>,
    /// Its number in the dataset's log.
    pub seq: Option<u64>,
    /// Files published.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files deleted.
    pub deleted: u64,
    /// Files that the remote already had, with the same content.
    pub already_there: u64,
    /// The files, for a dry run.
    pub paths: Vec<RelPath>,
    /// How far the remote enforced that nothing was overwritten.
    pub guarantee: Option<String>,
    /// It rolled an earlier commit back.
    pub aborted: bool,
}

/// What is thrown away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discarding {
    /// Whatever is staged at these paths and below them; all of the dataset's if there are none.
    Paths(Vec<RelPath>),
    /// What was shown, as it was shown: nothing that has changed or come since.
    Shown(Selection),
}

/// Staged changes, as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The files.
    pub files: Vec<SelectedFile>,
    /// Published files that are to be deleted.
    pub deletions: Vec<RelPath>,
    /// The directories at the paths that were asked for, and below.
    pub directories: Vec<RelPath>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectedFile {
    /// Its path in the dataset.
    pub path: RelPath,
    /// Its size in bytes.
    pub bytes: u64,
    /// When its content was last changed.
    #[serde(with = "any_time")]
    pub modified: SystemTime,
}

/// What a discard did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardOutcome {
    /// Of this dataset.
    pub dataset: DatasetName,
    /// Staged files that are gone.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that have changed since they were shown, and were kept.
    pub kept: Vec<RelPath>,
}

/// What a refresh has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshOutcome {
    /// Directories that were listed.
    pub directories: u64,
    /// What is not what it was, as `dataset/path`; not all, if there is very much.
    pub changed: Vec<String>,
    /// How much that is.
    pub changed_count: u64,
}

/// The kind of a failure, which decides a command's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// None of the others.
    Failed,
    /// The request itself is wrong.
    Usage,
    /// Something else is where this wanted to write; nothing was changed.
    Conflict,
    /// What was asked for does not exist.
    NotFound,
    /// The remote cannot be reached, or refuses.
    Remote,
    /// Work was left that the next run goes on with.
    Partial,
    /// The user has ended it with a signal.
    Cancelled,
}

/// Why something failed, as it is shown to the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides the exit code.
    pub kind: FailureKind,
    /// What happened, to what: one sentence, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The things it is about, one a line: conflicting paths, processes that hold a mount.
    #[serde(default)]
    pub details: Vec<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, details: Vec::new() }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the things that it is about.
    #[must_use]
    pub fn details(mut self, details: impl IntoIterator<Item = impl ToString>) -> Self {
        self.details = details.into_iter().map(|detail| detail.to_string()).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_file_from_before_1970_can_be_shown_and_thrown_away() {
        let modified = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
        let file = SelectedFile { path: RelPath::parse("a").unwrap(), bytes: 1, modified };
        let shown = Discarding::Shown(Selection { files: vec![file], ..Selection::default() });
        let request = Request::Discard { dataset: DatasetName::parse("run").unwrap(), what: shown };
        let told = serde_json::to_value(&request).unwrap();
        assert_eq!(serde_json::from_value::<Request>(told).unwrap(), request);
    }
}
