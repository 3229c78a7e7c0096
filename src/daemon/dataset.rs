//! Whole datasets between this machine and a remote, without a mount.
//!
//! An upload is a commit like any other, of files that stay where they are ([`staging::Upload`]): intents,
//! record, journal. A deletion is one, too, that deletes every file: mounts see the dataset go at once. A
//! download is taken from the view that a mount has, so that half a commit is never downloaded, and is held
//! against the recorded content ids. It passes the block cache by: the downloaded file is itself the local
//! copy, and writing each byte a second time would only make it slower.
//!
//! [`staging::Upload`]: crate::staging::Upload

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::clock::SystemClock;
use crate::commit;
use crate::commit::CommitContext;
use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::CommitReport;
use crate::config::Config;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::compose;
use crate::daemon::failure;
use crate::daemon::remote::OpenRemote;
use crate::local::LocalTree;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::Author;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::Contents;
use crate::staging::Holder;
use crate::staging::StagedEntry;
use crate::staging::Upload;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;
use crate::store::list_all;
use crate::transfer;
use crate::transfer::DownloadFile;
use crate::transfer::DownloadReport;
use crate::transfer::Transfer;
use crate::transfer::TransferError;
use crate::transfer::Verify;

/// Small files that share the place of a large body, as in a transfer.
const SMALL_PER_PLACE: usize = 8;

/// One dataset, and what works on it.
pub struct DatasetJob<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The remote.
    pub remote: &'a OpenRemote,
    /// The dataset.
    pub name: &'a DatasetName,
    /// Requests for large bodies at a time.
    pub workers: usize,
    /// What the remote enforces.
    pub guarantee: Guarantee,
    /// Go on although the remote does not enforce anything.
    pub allow_unenforced: bool,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Watches it.
    pub progress: Arc<dyn commit::Progress>,
}

impl DatasetJob<'_> {
    /// Publishes what is in the directory `root`, all of it or nothing. With `overwrite`, files that are
    /// published take the place of the versions that are there now; others stay.
    ///
    /// # Errors
    /// A conflict, of which all is named; what a commit can meet with.
    pub async fn upload(
        &self,
        root: &Path,
        tree: &LocalTree,
        overwrite: bool,
        message: Option<String>,
    ) -> Result<CommitReport, Failure> {
        let entry = |file: &crate::local::LocalFile| StagedEntry {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            modified: file.modified,
        };
        let bases = if overwrite { self.replaced(tree).await? } else { Vec::new() };
        let contents = Contents {
            files: tree.files.iter().map(entry).collect(),
            empty_directories: tree.empty_directories.clone(),
            bases,
            foreign: Vec::new(),
        };
        self.commit(root, contents, overwrite, message).await
    }

    /// The published versions that files of `tree` would take the place of.
    async fn replaced(&self, tree: &LocalTree) -> Result<Vec<(RelPath, Base)>, Failure> {
        let prefix = self.remote.remote.prefix.dataset(self.name);
        let mut bases = Vec::new();
        for object in self.listed().await? {
            let path = prefix.strip(&object.key).and_then(|text| RelPath::parse(text).ok());
            let Some(path) = path else { continue };
            if tree.files.binary_search_by(|file| file.path.cmp(&path)).is_ok() {
                let etag = self.version(&object).await?;
                bases.push((path, Base { etag, size_bytes: object.size_bytes, kind: BaseKind::Replace }));
            }
        }
        bases.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(bases)
    }

    async fn listed(&self) -> Result<Vec<ListedObject>, Failure> {
        let request = ListRequest::recursive(self.remote.remote.prefix.dataset(self.name));
        let listed = tokio::select! {
            listed = list_all(&*self.remote.store, request) => listed,
            () = self.cancel.cancelled() => return Err(self.cancelled()),
        };
        Ok(listed.map_err(|err| self.unusable(&err))?.objects)
    }

    async fn version(&self, object: &ListedObject) -> Result<ETag, Failure> {
        match &object.etag {
            Some(etag) => Ok(etag.clone()),
            None => Ok(self.remote.store.head(&object.key).await.map_err(|err| self.unusable(&err))?.etag),
        }
    }

    fn unusable(&self, err: &StoreError) -> Failure {
        failure::of_access(err, self.config)
    }

    /// Deletes all that is published of the dataset. Returns the number of files.
    ///
    /// # Errors
    /// There is none; somebody is writing to it; what a commit can meet with.
    pub async fn delete(&self) -> Result<u64, Failure> {
        let prefix = self.remote.remote.prefix.dataset(self.name);
        let mut bases = Vec::new();
        let mut others = Vec::new();
        for object in self.listed().await? {
            let etag = self.version(&object).await?;
            match prefix.strip(&object.key).map(RelPath::parse) {
                Some(Ok(path)) => {
                    let base = Base { etag, size_bytes: object.size_bytes, kind: BaseKind::Delete };
                    bases.push((path, base));
                }
                // Markers of directories, and keys that no file system can show.
                _ => others.push((object.key, Some(etag))),
            }
        }
        if bases.is_empty() && others.is_empty() {
            let message = format!("there is no dataset {} in {}", self.name, self.remote.remote);
            return Err(Failure::new(FailureKind::NotFound, message));
        }
        bases.sort_by(|a: &(RelPath, Base), b| a.0.cmp(&b.0));
        let files = bases.len() as u64;
        if files > 0 {
            let contents = Contents { bases, ..Contents::default() };
            self.commit(&self.area(), contents, true, Some("deleted".to_owned())).await?;
        }
        self.delete_others(others, files).await?;
        Ok(files)
    }

    /// Deletes what is no file, after the files.
    async fn delete_others(
        &self,
        objects: Vec<(ObjectKey, Option<ETag>)>,
        files: u64,
    ) -> Result<(), Failure> {
        let transfer = Transfer {
            store: Arc::clone(&self.remote.store),
            options: transfer::TransferOptions {
                cancel: self.cancel.clone(),
                ..transfer::TransferOptions::default()
            },
            watch: Arc::new(transfer::NoWatch),
            notes: None,
            cache: None,
        };
        transfer::delete(&transfer, objects).await.map_err(|err| failure::of_deletion(&err, files))?;
        Ok(())
    }

    /// Where uploads of this dataset keep what they have to remember.
    fn area(&self) -> PathBuf {
        self.config.remote_state_dir().join("uploads").join(self.name.as_str())
    }

    /// One commit of files that are elsewhere; one that was interrupted first.
    async fn commit(
        &self,
        root: &Path,
        contents: Contents,
        overwrite: bool,
        message: Option<String>,
    ) -> Result<CommitReport, Failure> {
        let holder = Holder { pid: std::process::id(), ..Holder::default() };
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let upload = Upload::open(&self.area(), &holder, self.name, &root, contents);
        let upload = upload.map_err(|err| failure::of_staging(&err))?;
        let ctx = self.context(&upload, overwrite, message);
        let failed = |err: CommitError| self.failed(&err);
        let outcome = tokio::select! {
            outcome = run(&ctx, &upload) => outcome,
            () = self.cancel.cancelled() => return self.undo(&ctx).await,
        };
        outcome.map_err(failed)
    }

    fn context(&self, upload: &Upload, overwrite: bool, message: Option<String>) -> CommitContext {
        let defaults = CommitOptions::default();
        let options = CommitOptions {
            overwrite,
            message,
            workers: self.workers * SMALL_PER_PLACE,
            memory_bytes: defaults.part_bytes * self.workers as u64,
            allow_unenforced: self.allow_unenforced,
            refuse_existing: true,
            ..defaults
        };
        CommitContext {
            store: Arc::clone(&self.remote.store),
            prefix: self.remote.remote.prefix.clone(),
            staging: Arc::clone(&upload.dataset),
            cache: None,
            published: None,
            clock: Arc::new(SystemClock),
            author: Author { user: self.config.user.clone(), host: compose::host() },
            options,
            guarantee: self.guarantee,
            progress: Arc::clone(&self.progress),
        }
    }

    fn cancelled(&self) -> Failure {
        Failure::new(FailureKind::Cancelled, format!("{}: cancelled; nothing was changed", self.name))
    }

    /// After Ctrl-C: takes back what was sent, unless it is published by now.
    async fn undo(&self, ctx: &CommitContext) -> Result<CommitReport, Failure> {
        let cancelled =
            || Failure::new(FailureKind::Cancelled, format!("{}: cancelled; nothing was changed", self.name));
        match commit::abort(ctx).await {
            Ok(()) | Err(CommitError::NothingToResume) => Err(cancelled()),
            Err(CommitError::AlreadyCommitted { .. }) => {
                commit::resume(ctx).await.map_err(|err| self.failed(&err))
            }
            Err(err) => Err(self.failed(&err)),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are told as any commit's")]
    fn failed(&self, err: &CommitError) -> Failure {
        let name = self.name;
        let goes_on = "the same command goes on with it";
        match err {
            CommitError::Conflict { conflicts } => {
                let message = format!("{name}: in the way; nothing was changed");
                Failure::new(FailureKind::Conflict, message)
                    .details(conflicts)
                    .hint("--overwrite, where that is meant; or another name")
            }
            CommitError::Unfinished { .. }
            | CommitError::Interrupted { .. }
            | CommitError::AlreadyCommitted { .. } => failure::of_commit(err, name).hint(goes_on),
            CommitError::Store(err) => self.unusable(err),
            err => failure::of_commit(err, name),
        }
    }

    /// Downloads the dataset to the directory `target`.
    ///
    /// # Errors
    /// There is none; files are in the way, of which all are named; what a transfer can meet with.
    pub async fn download(&self, target: &Path, mut transfer: Transfer) -> Result<DownloadReport, Failure> {
        let catalog =
            Catalog::new(Arc::clone(&self.remote.store), self.remote.remote.prefix.clone(), Duration::ZERO);
        let whole = tokio::select! {
            whole = catalog.contents(self.name) => whole.map_err(|err| self.unusable(&err))?,
            () = self.cancel.cancelled() => return Err(self.cancelled()),
        };
        if !whole.hidden.is_empty() {
            let what = whole.hidden.into_iter().map(|hidden| format!("{} ({})", hidden.key, hidden.reason));
            return Err(failure::of_transfer(&TransferError::Unfit { what: what.collect() }));
        }
        if whole.files.is_empty() && whole.directories.is_empty() {
            let message = format!("there is no dataset {} in {}", self.name, self.remote.remote);
            return Err(Failure::new(FailureKind::NotFound, message).hint("`dsfs dataset list --remote`"));
        }
        let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        let files = whole.files.iter().map(|(path, whole)| DownloadFile {
            key: whole.file.key.clone(),
            etag: whole.file.etag.clone(),
            size_bytes: whole.file.size_bytes,
            modified: whole.file.modified,
            content: whole.content,
            target: target.join(path.as_str()),
        });
        let directories: Vec<PathBuf> =
            whole.directories.iter().map(|path| target.join(path.as_str())).collect();
        transfer.options.verify = Verify::Content;
        let prefix = self.remote.remote.prefix.dataset(self.name);
        let report =
            transfer::download(&transfer, prefix.as_str(), &target, files.collect(), &directories).await;
        report.map_err(|err| {
            if let TransferError::Store(err) = &err { self.unusable(err) } else { failure::of_transfer(&err) }
        })
    }
}

/// Goes on with what was interrupted, if it is still what is wanted; else takes it back and begins anew.
async fn run(ctx: &CommitContext, upload: &Upload) -> Result<CommitReport, CommitError> {
    if ctx.staging.sealed().is_none() {
        return commit::commit(ctx).await;
    }
    let ended = if upload.is_outdated() {
        commit::abort(ctx).await.map(|()| None)
    } else {
        commit::resume(ctx).await.map(Some)
    };
    match ended {
        Ok(Some(report)) => return Ok(report),
        Ok(None) | Err(CommitError::Aborted { .. }) => {}
        // It was published, and only not tidied up: what is there now comes on top.
        Err(CommitError::AlreadyCommitted { .. }) => {
            commit::resume(ctx).await?;
        }
        Err(err) => return Err(err),
    }
    commit::commit(ctx).await
}
