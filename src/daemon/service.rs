//! What the daemon of a mount answers to commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tracing::warn;

use crate::control::keep::KeepRequest;
use crate::control::message::CacheStatus;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::Offline;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::server::Handler;
use crate::control::stat::MountStat;
use crate::daemon::commands::Commands;
use crate::daemon::compose::Workspace;
use crate::daemon::guarantee;
use crate::daemon::history::Source;
use crate::daemon::keep::Keeper;
use crate::daemon::operations;
use crate::daemon::publish;
use crate::daemon::upgrade::Upgrade;
use crate::fs::DatasetFs;
use crate::name::DatasetName;

/// Why no command begins when the mount is gone.
pub const ENDING: &str = "the daemon is ending";

/// A request to unmount, on its way to who owns the mount.
#[derive(Debug)]
pub struct UnmountRequest {
    /// Also if files are open.
    pub lazy: bool,
    /// Whether it was done.
    pub done: oneshot::Sender<Result<(), Failure>>,
}

/// The parts of a running mount that commands ask about.
#[derive(Debug)]
pub struct Service {
    /// The remote and its local side.
    pub workspace: Arc<Workspace>,
    /// The file system.
    pub fs: Arc<DatasetFs>,
    /// What is kept local on purpose.
    pub keeper: Arc<Keeper>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Since when, as RFC 3339.
    pub mounted: String,
    /// When this program took it over from another one, as RFC 3339.
    pub upgraded: Option<String>,
    /// What changes the program.
    pub upgrade: Upgrade,
    /// The commands under way.
    pub commands: Commands,
    /// The log file, unless stderr is the log.
    pub log: Option<PathBuf>,
    /// When it was mounted.
    pub started: Instant,
    /// To who owns the mount.
    pub unmount: mpsc::Sender<UnmountRequest>,
    /// The mount is out of sight, and files that are open in it are still served.
    pub detached: AtomicBool,
}

#[async_trait]
impl Handler for Service {
    async fn handle(&self, request: Request, progress: watch::Sender<Progress>) -> Result<Reply, Failure> {
        let under_way = what_is_asked(&request).map(|what| self.commands.begin(what)).transpose()?;
        let _turn = match &under_way {
            Some(_) => Some(self.commands.turn().await),
            None => None,
        };
        match request {
            Request::Status { files_of } => {
                self.status(files_of.as_ref()).map(|status| Reply::Status(Box::new(status)))
            }
            Request::Stat => Ok(Reply::Stat(Box::new(self.stat()))),
            Request::List => {
                let remote = &self.workspace.remote;
                let staged = operations::inspect(&self.workspace.remote_state_dir)?;
                operations::list(&*remote.store, &remote.remote.prefix, &staged).await.map(Reply::Datasets)
            }
            Request::Commit(request) => {
                let outcome = publish::commit(&self.workspace, &request, progress, Some(&self.fs)).await;
                self.fs.kernel_knows().await;
                outcome.map(Reply::Committed)
            }
            Request::Select { dataset, paths } => {
                operations::select(&self.workspace.staging, &dataset, &paths).map(Reply::Selected)
            }
            Request::Discard { dataset, what } => {
                let outcome = publish::discard(&self.workspace, &self.fs, &dataset, &what);
                self.fs.kernel_knows().await;
                outcome.map(Reply::Discarded)
            }
            Request::History(request) => {
                Source::of(&self.workspace, &self.fs).answer(&request, &progress).await.map(Reply::History)
            }
            Request::Refresh { dataset } => {
                let outcome = operations::refresh(self.fs.tree().catalog(), dataset.as_ref()).await;
                self.keeper.look_now();
                self.fs.kernel_knows().await;
                outcome.map(Reply::Refreshed)
            }
            Request::Keep(request) => self.keeper.handle(request, progress).await.map(Reply::Kept),
            Request::Upgrade if self.is_detached() => {
                let message =
                    format!("{} is detached: there is nothing to go on with", self.mountpoint.display());
                Err(Failure::new(FailureKind::Failed, message))
            }
            Request::Upgrade => {
                let or_else = "nothing has changed; try again when it has ended";
                let _closed = self.commands.close("the daemon is being upgraded", or_else)?;
                Err(self
                    .upgrade
                    .run(&self.fs, &self.workspace.staging, &self.mountpoint, &self.mounted)
                    .await)
            }
            Request::Unmount { lazy: true } => {
                let _under_way = self.commands.begin_unmount()?;
                self.unmount(true).await.map(|()| Reply::Unmounted)
            }
            Request::Unmount { lazy: false } => {
                let or_else =
                    "wait until it has ended, or stop it with Ctrl-C; with --lazy, the daemon waits for it";
                let _closed = self.commands.close("the mount is being unmounted", or_else)?;
                self.unmount(false).await.map(|()| Reply::Unmounted)
            }
        }
    }
}

/// What an upgrade or an unmount would cut off, if it is of any length.
fn what_is_asked(request: &Request) -> Option<String> {
    match request {
        Request::Status { .. }
        | Request::Stat
        | Request::Select { .. }
        | Request::Upgrade
        | Request::Unmount { .. } => None,
        Request::Commit(request) => Some(format!("a commit of {}", request.dataset)),
        Request::Discard { dataset, .. } => Some(format!("a discard of {dataset}")),
        Request::Keep(KeepRequest::Pin(part) | KeepRequest::Prefetch(part)) => {
            Some(format!("a fetch of {part}"))
        }
        Request::List | Request::History(_) | Request::Refresh { .. } | Request::Keep(_) => {
            Some("a command".to_owned())
        }
    }
}

impl Service {
    /// Has the mount unmounted by who owns it.
    async fn unmount(&self, lazy: bool) -> Result<(), Failure> {
        let (done, outcome) = oneshot::channel();
        let ending = || Failure::new(FailureKind::Failed, "the daemon is ending already");
        self.unmount.send(UnmountRequest { lazy, done }).await.map_err(|_| ending())?;
        outcome.await.map_err(|_| ending())?
    }

    /// Says to whoever asks that the mount is out of sight, and that files which are open in it are still served.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::Relaxed);
        if let Err(err) = self.workspace.staging.mark_detached() {
            warn!("the lock of the staging area does not say that the mount is detached: {err}");
        }
    }

    /// Nothing is served any more, and nothing new begins: the daemon is ending.
    pub fn end(&self) {
        self.commands.shut(ENDING);
        self.detached.store(false, Ordering::Relaxed);
    }

    /// Whether files that are open in a mount that is out of sight are still served.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    /// The live counters.
    #[must_use]
    pub fn stat(&self) -> MountStat {
        MountStat {
            mountpoint: self.mountpoint.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            open_handles: self.fs.open_table().len() as u64,
            inodes: self.fs.inode_count() as u64,
            passthrough: self.fs.passes_through(),
            read: self.fs.reader().stats(),
            datasets: self.fs.reader().stats_by_dataset(),
            cache: self.workspace.cache.usage(),
        }
    }

    fn status(&self, files_of: Option<&DatasetName>) -> Result<MountStatus, Failure> {
        let usage = self.workspace.cache.usage();
        let mut staged = operations::inspect(&self.workspace.remote_state_dir)?;
        if let Some(dataset) = staged.iter_mut().find(|dataset| Some(&dataset.name) == files_of) {
            dataset.entries = operations::staged_files(&self.workspace.staging, &dataset.name)?;
        }
        Ok(MountStatus {
            mountpoint: self.mountpoint.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mounted: self.mounted.clone(),
            upgraded: self.upgraded.clone(),
            remote: self.workspace.remote.remote.to_string(),
            remote_id: self.workspace.remote.remote.id(),
            choice: Some(self.workspace.choice.clone()),
            guarantee: self.workspace.guarantee().map(|known| known.describe()),
            offline: self.workspace.remote.link.outage().map(|outage| Offline {
                since: guarantee::timestamp(outage.since),
                reason: outage.reason.clone(),
            }),
            read_only: self.fs.options().read_only,
            detached: self.is_detached(),
            cache: CacheStatus {
                dir: self.workspace.cache_dir.clone(),
                used_bytes: usage.used_bytes,
                limit_bytes: usage.limit_bytes,
                files: usage.files,
                hits: usage.hits,
                misses: usage.misses,
                bypassed: usage.bypassed,
            },
            staged,
            log: self.log.clone(),
        })
    }
}
