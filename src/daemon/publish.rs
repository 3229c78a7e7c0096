//! A commit as a command asks for it: what was interrupted first, then what is staged; with a mount, the
//! view of it moves on when the commit has.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::cache::BlockCache;
use crate::cache::VersionId;
use crate::catalog::Catalog;
use crate::catalog::listing::RemoteFile;
use crate::clock::SystemClock;
use crate::commit;
use crate::commit::Admit;
use crate::commit::CommitContext;
use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::CommitPlan;
use crate::commit::CommitReport;
use crate::commit::Phase;
use crate::commit::Published;
use crate::control::message::CommitOutcome;
use crate::control::message::CommitRequest;
use crate::control::message::DiscardOutcome;
use crate::control::message::Discarding;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::control::message::Unfinished;
use crate::daemon::compose::Workspace;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::fs::DatasetFs;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;

/// Commits, resumes or aborts.
///
/// # Errors
/// What [`failure::of_commit`] makes of the commit's own.
pub async fn commit(
    workspace: &Workspace,
    request: &CommitRequest,
    progress: watch::Sender<Progress>,
    fs: Option<&DatasetFs>,
) -> Result<CommitOutcome, Failure> {
    let name = &request.dataset;
    // A plan changes nothing; everything else has the dataset to itself.
    let _turn = if request.dry_run { None } else { Some(workspace.turns.take(name)?) };
    let context = context(workspace, request, progress, fs).await?;
    let failed = |err: CommitError| failure::of_commit(&err, name);
    if request.dry_run {
        return commit::plan(&context).await.map_err(failed).and_then(|plan| of_plan(name, plan));
    }
    let was_interrupted = context.staging.sealed().is_some();
    if request.unfinished == Unfinished::Resume && !was_interrupted {
        commit::tidy(&context).await;
    }
    match request.unfinished {
        Unfinished::Abort => {
            commit::abort(&context).await.map_err(failed)?;
            Ok(CommitOutcome { aborted: true, ..nothing(name) })
        }
        Unfinished::ResumeOnly => {
            let report = commit::resume(&context).await.map_err(failed)?;
            Ok(published(workspace, fs, &report))
        }
        Unfinished::Resume if was_interrupted => {
            let resumed = match commit::resume(&context).await {
                Ok(report) => Some(published(workspace, fs, &report)),
                Err(CommitError::Aborted { .. }) => None, // staging is as it was: commit that
                Err(err) => return Err(failed(err)),
            };
            match (commit::commit(&context).await, resumed) {
                (Ok(report), None) => Ok(published(workspace, fs, &report)),
                (Ok(report), Some(first)) => Ok(together(first, published(workspace, fs, &report))),
                (Err(CommitError::NothingStaged), Some(first)) => Ok(first),
                (Err(err), _) => Err(failed(err)),
            }
        }
        Unfinished::Resume => {
            let report = commit::commit(&context).await.map_err(failed)?;
            Ok(published(workspace, fs, &report))
        }
    }
}

async fn context(
    workspace: &Workspace,
    request: &CommitRequest,
    progress: watch::Sender<Progress>,
    fs: Option<&DatasetFs>,
) -> Result<CommitContext, Failure> {
    let name = &request.dataset;
    let nothing_staged = || failure::of_commit(&CommitError::NothingStaged, name);
    let staging = workspace.staging.dataset(name).ok_or_else(nothing_staged)?;
    let guarantee = workspace.probed_guarantee().await?.guarantee;
    let defaults = CommitOptions::default();
    let options = CommitOptions {
        overwrite: request.overwrite,
        message: request.message.clone(),
        workers: request.workers.unwrap_or(defaults.workers),
        allow_unenforced: request.allow_unenforced,
        ..defaults
    };
    let cache = Arc::clone(&workspace.cache);
    let identity = workspace.remote.remote.store_identity();
    let prefix = workspace.remote.remote.prefix.clone();
    let published = fs.map(|fs| -> Arc<dyn Published> {
        Arc::new(CatalogUpdate { catalog: Arc::clone(fs.tree().catalog()), prefix: prefix.clone() })
    });
    Ok(CommitContext {
        store: Arc::clone(&workspace.remote.store),
        prefix,
        staging,
        cache: Some(Arc::new(CacheAdmission { cache, identity })),
        published,
        clock: Arc::new(SystemClock),
        author: workspace.author.clone(),
        options,
        guarantee,
        progress: Arc::new(Meter { progress }),
    })
}

/// Moves the mount's view on, and says what was done.
fn published(workspace: &Workspace, fs: Option<&DatasetFs>, report: &CommitReport) -> CommitOutcome {
    if let Some(fs) = fs {
        let files = remote_files(&workspace.remote.remote.prefix, report);
        fs.committed(&report.dataset, &files, &report.markers, &report.deleted);
    }
    CommitOutcome {
        txid: Some(report.txid.clone()),
        seq: report.seq,
        files: report.files,
        bytes: report.bytes,
        deleted: report.deleted.len() as u64,
        already_there: report.already_there,
        guarantee: Some(report.guarantee.to_string()),
        ..nothing(&report.dataset)
    }
}

fn remote_files(prefix: &RemotePrefix, report: &CommitReport) -> Vec<(RelPath, RemoteFile)> {
    let file = |file: &commit::PublishedFile| {
        let key = prefix.key(&report.dataset, &file.path).ok()?;
        let etag = Some(file.etag.clone());
        let remote = RemoteFile { key, size_bytes: file.size_bytes, etag, modified: file.mtime };
        Some((file.path.clone(), remote))
    };
    report.published.iter().filter_map(file).collect()
}

/// Lets the mount find the published versions before the staged files go.
struct CatalogUpdate {
    catalog: Arc<Catalog>,
    prefix: RemotePrefix,
}

impl Published for CatalogUpdate {
    fn published(&self, report: &CommitReport) {
        self.catalog.publish(&report.dataset, &remote_files(&self.prefix, report), &report.markers);
        self.catalog.withdraw(&report.dataset, &report.deleted);
        if report.already_there > 0 {
            self.catalog.expire(Some(&report.dataset)); // there is more than the report names
        }
    }
}

fn of_plan(name: &DatasetName, plan: CommitPlan) -> Result<CommitOutcome, Failure> {
    if !plan.conflicts.is_empty() {
        return Err(failure::of_commit(&CommitError::Conflict { conflicts: plan.conflicts }, name));
    }
    let bytes = plan.bytes();
    let paths: Vec<RelPath> = plan.create.into_iter().chain(plan.replace).map(|file| file.path).collect();
    Ok(CommitOutcome {
        dry_run: true,
        files: paths.len() as u64,
        bytes,
        deleted: plan.delete.len() as u64,
        already_there: plan.already_there.len() as u64,
        paths,
        ..nothing(name)
    })
}

/// An outcome in which nothing has happened yet.
fn nothing(name: &DatasetName) -> CommitOutcome {
    CommitOutcome {
        dataset: name.clone(),
        dry_run: false,
        txid: None,
        seq: None,
        files: 0,
        bytes: 0,
        deleted: 0,
        already_there: 0,
        paths: Vec::new(),
        guarantee: None,
        aborted: false,
    }
}

/// An interrupted commit and the one after it, as one outcome.
fn together(first: CommitOutcome, second: CommitOutcome) -> CommitOutcome {
    CommitOutcome {
        files: first.files + second.files,
        bytes: first.bytes + second.bytes,
        deleted: first.deleted + second.deleted,
        already_there: first.already_there + second.already_there,
        ..second
    }
}

/// Hands published files to the block cache.
struct CacheAdmission {
    cache: Arc<BlockCache>,
    identity: String,
}

impl Admit for CacheAdmission {
    fn admit(&self, key: &ObjectKey, etag: &ETag, size_bytes: u64, path: &Path) -> io::Result<()> {
        self.cache.admit_file(&VersionId::new(&self.identity, key, etag), path, size_bytes)
    }
}

/// Passes a commit's progress on to whoever asked for it.
struct Meter {
    progress: watch::Sender<Progress>,
}

impl commit::Progress for Meter {
    fn phase(&self, phase: Phase, files: u64, bytes: u64) {
        let phase = match phase {
            Phase::Preflight => "look",
            Phase::Upload => "upload",
            Phase::Publish => "publish",
            Phase::Record => "record",
            Phase::RollBack => "roll back",
        };
        self.progress.send_replace(Progress {
            phase: phase.to_owned(),
            files_total: files,
            bytes_total: bytes,
            ..Progress::default()
        });
    }

    fn sent(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.bytes_done += bytes);
    }

    fn file_done(&self) {
        self.progress.send_modify(|progress| progress.files_done += 1);
    }
}

/// What a discard needs beside the staging area: the mount forgets the files too.
///
/// # Errors
/// As [`crate::daemon::operations::discard`].
pub fn discard(
    workspace: &Workspace,
    fs: &DatasetFs,
    name: &DatasetName,
    what: &Discarding,
) -> Result<DiscardOutcome, Failure> {
    let _turn = workspace.turns.take(name)?;
    let (chosen, paths) = match what {
        Discarding::Paths(paths) => (&operations::select(&workspace.staging, name, paths)?, paths.as_slice()),
        Discarding::Shown(shown) => (shown, [].as_slice()),
    };
    let outcome = operations::discard(&workspace.staging, name, what)?;
    let files = chosen.files.iter().map(|file| &file.path).filter(|path| !outcome.kept.contains(path));
    fs.unstaged(name, files.chain(&chosen.deletions).chain(&chosen.directories).chain(paths));
    Ok(outcome)
}

/// The kind of a commit's failure, for [`failure::of_commit`].
pub(super) fn kind_of(err: &CommitError) -> FailureKind {
    match err {
        CommitError::NothingStaged | CommitError::NothingToResume => FailureKind::NotFound,
        CommitError::Conflict { .. } | CommitError::Fenced { .. } => FailureKind::Conflict,
        CommitError::Unfinished { .. }
        | CommitError::Interrupted { .. }
        | CommitError::AlreadyCommitted { .. } => FailureKind::Partial,
        CommitError::Store(err) => failure::kind_of(err),
        CommitError::OpenForWriting { .. }
        | CommitError::Unenforced
        | CommitError::Aborted { .. }
        | CommitError::NotRestored { .. }
        | CommitError::Staging(_)
        | CommitError::Name(_)
        | CommitError::Record { .. }
        | CommitError::UnreadableIntent { .. }
        | CommitError::Journal(_)
        | CommitError::Crowded => FailureKind::Failed,
    }
}
