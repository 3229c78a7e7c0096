//! The life of one mount, from the checks before it to the last file closed after it.
//!
//! Up: local checks, the staging lock, the remote, the mount, a stat of it through the kernel; only then
//! it is ready. Down: `daemon::ending`.
//!
//! A mount that another program has served is gone on with: `daemon::upgrade`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::Place;
use crate::control;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::server::Server;
use crate::daemon::background::Ready;
use crate::daemon::background::Reporter;
use crate::daemon::commands::Commands;
use crate::daemon::compose;
use crate::daemon::compose::Workspace;
use crate::daemon::ending;
use crate::daemon::ending::DRAIN_TIMEOUT;
use crate::daemon::ending::Running;
use crate::daemon::ending::SessionEnd;
use crate::daemon::ending::Signals;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::keep::Keeper;
use crate::daemon::metrics;
use crate::daemon::mountpoint;
use crate::daemon::mountpoint::Mountpoint;
use crate::daemon::notify;
use crate::daemon::process;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::daemon::service::Service;
use crate::daemon::upgrade::Inheritance;
use crate::daemon::upgrade::Program;
use crate::daemon::upgrade::Upgrade;
use crate::fuse::MountedFs;
use crate::staging::Holder;
use crate::store::s3::is_foreign;

/// How long the remote is waited for where it is known from before.
const KNOWN_PATIENCE: Duration = Duration::from_millis(500);
/// How long a mount waits for the first listings before it appears.
const WARM_PATIENCE: Duration = Duration::from_millis(300);
/// When what the remote enforces is found out, if that is not known: with some 180 requests, and whoever
/// has mounted looks at something first.
const LEARN_AFTER: Duration = Duration::from_secs(3);
/// How long a new mount may take to answer its first stat.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to unmount that may wait.
const UNMOUNTS_MAX: usize = 4;

/// What is to be mounted, and where.
#[derive(Debug)]
pub struct MountRequest {
    /// All settings.
    pub config: Config,
    /// The mount point as the user gave it.
    pub mountpoint: PathBuf,
    /// Mount over a directory that has something in it.
    pub nonempty: bool,
    /// The log file, unless stderr is the log.
    pub log: Option<PathBuf>,
    /// Where programs are looked for.
    pub search_path: String,
    /// Where Prometheus may ask.
    pub metrics: Option<SocketAddr>,
    /// How this program was started.
    pub program: Program,
}

/// Mounts, or goes on with a mount; serves, and returns when the mount is gone.
///
/// # Errors
/// The mount could not be made, or its session broke.
pub fn run(
    request: &MountRequest,
    reporter: &Reporter,
    inheritance: Option<Inheritance>,
) -> Result<(), Failure> {
    process::raise_open_files();
    let result = remote::runtime().and_then(|runtime| {
        let result = runtime.block_on(live(request, reporter, runtime.handle(), inheritance));
        runtime.shutdown_timeout(DRAIN_TIMEOUT);
        result
    });
    if let Err(failure) = &result {
        reporter.failed(failure);
    }
    result
}

async fn live(
    request: &MountRequest,
    reporter: &Reporter,
    runtime: &Handle,
    inheritance: Option<Inheritance>,
) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let running = match inheritance {
        None => start(request, reporter, runtime, signals).await?,
        Some(inherited) => {
            let mountpoint = Mountpoint { path: inherited.mountpoint().clone(), created: false };
            start_at(&mountpoint, request, reporter, runtime, signals, Some(inherited)).await?
        }
    };
    ending::serve(running).await
}

async fn start(
    request: &MountRequest,
    reporter: &Reporter,
    runtime: &Handle,
    signals: Signals,
) -> Result<Running, Failure> {
    mountpoint::check_fuse(&request.search_path, rustix::process::geteuid().is_root())?;
    let mountpoint = mountpoint::prepare(&request.mountpoint, request.nonempty)?;
    let result = start_at(&mountpoint, request, reporter, runtime, signals, None).await;
    if result.is_err() && mountpoint.created {
        let _ = fs::remove_dir(&mountpoint.path); // if something is in it by now, it stays
    }
    result
}

async fn start_at(
    mountpoint: &Mountpoint,
    request: &MountRequest,
    reporter: &Reporter,
    runtime: &Handle,
    signals: Signals,
    inheritance: Option<Inheritance>,
) -> Result<Running, Failure> {
    let config = &request.config;
    let path = mountpoint.path.clone();
    let metrics = match request.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let (workspace, socket) = open_workspace(config, &path, inheritance.as_ref()).await?;
    let workspace = Arc::new(workspace);
    let catalog = compose::catalog(config, &workspace.remote);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (warming, stopped) = (Arc::clone(&catalog), stop.clone());
    let (done, warmed) = oneshot::channel();
    // A directory is as quick to list as the disk that it is on, and a page of its whole tree takes
    // reading all of that.
    let has_pages = matches!(workspace.remote.remote.place, Place::S3 { .. });
    tasks.spawn(async move {
        let warm_up = async {
            let tops = warming.warm_up().await;
            let _nobody_waits = done.send(());
            if has_pages {
                warming.learn_small(tops).await;
            }
        };
        stopped.run_until_cancelled(warm_up).await.unwrap_or_default();
    });
    match &inheritance {
        None => {
            check_access(config, &workspace.remote, &catalog, reporter).await?;
            // Whoever reads at once would wait for the same requests.
            let _late = time::timeout(WARM_PATIENCE, warmed).await;
        }
        Some(_) => workspace.remote.link.look_now(), // the mount's users wait
    }
    let now = guarantee::timestamp(SystemClock.now());
    let (mounted_at, upgraded_at) = match &inheritance {
        None => (now, None),
        Some(inherited) => (inherited.mounted().to_owned(), Some(now)),
    };
    let server = Server::bind(&socket).map_err(|err| failure::of_socket(&err, &socket, &path))?;
    let (fs, mounted) =
        compose::mount(config, &workspace, Arc::clone(&catalog), &path, runtime, inheritance)?;
    let unmounter = mounted.unmounter();
    if let Err(failure) = wait_for_answer(&path, &mounted).await {
        let _ = unmounter.unmount(true);
        return Err(failure);
    }
    let (unmount, unmounts) = mpsc::channel(UNMOUNTS_MAX);
    let keeper = Keeper::new(
        Arc::clone(&catalog),
        Arc::clone(fs.reader()),
        workspace.cache_dir.clone(),
        &workspace.remote_state_dir,
        workspace.remote.remote.id(),
    );
    let service = Service {
        workspace: Arc::clone(&workspace),
        fs,
        keeper: Arc::clone(&keeper),
        mountpoint: path.clone(),
        mounted: mounted_at,
        upgraded: upgraded_at,
        upgrade: Upgrade { program: request.program.clone(), standstill: mounted.standstill() },
        commands: Commands::default(),
        log: request.log.clone(),
        started: Instant::now(),
        unmount,
        detached: AtomicBool::new(false),
    };
    let service = Arc::new(service);
    if let Some(listener) = metrics {
        tasks.spawn(metrics::serve(listener, Arc::clone(&service), stop.clone()));
    }
    tasks.spawn(server.serve(Arc::<Service>::clone(&service), stop.clone()));
    let writable = !config.read_only.value;
    spawn_background(&mut tasks, &workspace, &catalog, &keeper, writable, &stop);
    announce(mountpoint, &workspace.remote, reporter);
    let session = SessionEnd::watch(mounted);
    Ok(Running { unmounter, mountpoint: path, service, session, unmounts, tasks, stop, signals })
}

/// Says that the mount answers, to everybody who waits for that.
fn announce(mountpoint: &Mountpoint, remote: &OpenRemote, reporter: &Reporter) {
    let (path, name) = (&mountpoint.path, remote.remote.to_string());
    if mountpoint.created {
        reporter.notice(&format!("made the directory {}", path.display()));
    }
    info!("mounted {name} at {}", path.display());
    let ready = Ready { mountpoint: path.clone(), pid: std::process::id(), remote: name.clone() };
    if let Err(err) = reporter.ready(ready) {
        warn!("stdout cannot be given up: {err}");
    }
    notify::ready(&format!("{name} at {}", path.display()));
}

/// What goes on until `stop`, whoever asks for anything. A mount that nobody can write to writes nothing to the
/// bucket either, as a probe does.
fn spawn_background(
    tasks: &mut JoinSet<()>,
    workspace: &Arc<Workspace>,
    catalog: &Arc<Catalog>,
    keeper: &Arc<Keeper>,
    writable: bool,
    stop: &CancellationToken,
) {
    tasks.spawn(notify::watchdog(stop.clone()));
    if writable {
        tasks.spawn(learn_guarantee(Arc::clone(workspace), stop.clone()));
    }
    tasks.spawn(Arc::clone(catalog).refresh_wanted(stop.clone()));
    let remote = workspace.remote.clone();
    tasks.spawn(watch_link(remote, Arc::clone(catalog), Arc::clone(keeper), stop.clone()));
    tasks.spawn(Arc::clone(keeper).follow_pins(stop.clone()));
}

/// Locks the staging area and asks the remote for the first time; names the control socket.
async fn open_workspace(
    config: &Config,
    mountpoint: &Path,
    inheritance: Option<&Inheritance>,
) -> Result<(Workspace, PathBuf), Failure> {
    let uid = rustix::process::getuid().as_raw();
    let runtime_dir = config.directories.prepare_runtime(uid).map_err(|err| {
        Failure::new(FailureKind::Failed, format!("no place for the control socket: {err}"))
    })?;
    let socket = control::socket_path(&runtime_dir, mountpoint);
    let remote = remote::open(config).await?;
    if let Some(inherited) = inheritance {
        let lock = inherited.lock().map_err(|err| {
            Failure::new(FailureKind::Failed, format!("the lock of the staging area was not kept: {err}"))
        })?;
        return Ok((Workspace::adopt(config, remote, lock)?, socket));
    }
    let holder = Holder {
        pid: std::process::id(),
        socket: Some(socket.clone()),
        mountpoint: Some(mountpoint.to_owned()),
        detached: false,
    };
    let workspace = Workspace::open(config, remote, &holder)?;
    Ok((workspace, socket))
}

/// Asks the remote for the first time. One that does not answer is mounted all the same, with what is
/// known of it: that is said. One that refuses is a wrong setting; so is an endpoint that is no S3 server, unless
/// it was one before.
async fn check_access(
    config: &Config,
    remote: &OpenRemote,
    catalog: &Arc<Catalog>,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let known = {
        let catalog = Arc::clone(catalog);
        let levels = tokio::task::spawn_blocking(move || catalog.disk_usage().levels).await;
        levels.unwrap_or(0)
    };
    let patience = if known > 0 { KNOWN_PATIENCE } else { Duration::MAX };
    let tried = time::timeout(patience, remote.try_access()).await;
    let err = match tried {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(err)) if err.is_unanswered() && (known > 0 || !is_foreign(&err)) => err,
        Ok(Err(err)) => return Err(failure::of_access(&err, config)),
        Err(_) => {
            remote.link.look_now();
            reporter.notice(&format!(
                "{} is slow to answer; what is known of it is shown meanwhile",
                remote.remote
            ));
            return Ok(());
        }
    };
    remote.link.is_down(&err);
    let failure = failure::of_access(&err, config);
    let then = match known {
        0 => "nothing is known of it yet: the mount is empty until it answers",
        _ => "mounted with what is known of it: what is cached can be read, and files can be staged",
    };
    reporter.notice(&format!("{failure}\n{then}"));
    if known == 0
        && let Some(hint) = failure.hint
    {
        reporter.notice(&format!("hint: {hint}"));
    }
    Ok(())
}

/// Watches the line to the remote; when it is up again, everything is asked anew.
async fn watch_link(remote: OpenRemote, catalog: Arc<Catalog>, keeper: Arc<Keeper>, stop: CancellationToken) {
    let on_return = || {
        catalog.expire(None);
        keeper.look_now();
    };
    // Also in the middle of a probe, which a silent remote holds up.
    stop.run_until_cancelled(remote.keep_watch(on_return, stop.clone())).await.unwrap_or_default();
}

/// The first stat goes through the kernel, to our own FUSE threads and back.
async fn wait_for_answer(path: &Path, mounted: &MountedFs) -> Result<(), Failure> {
    let stat = {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || fs::metadata(path))
    };
    let failed = |why: String| {
        Failure::new(FailureKind::Failed, format!("the mount at {} does not answer: {why}", path.display()))
    };
    match time::timeout(ANSWER_TIMEOUT, stat).await {
        Ok(Ok(Ok(_))) => {}
        Ok(Ok(Err(err))) => return Err(failed(err.to_string())),
        Ok(Err(err)) => return Err(failed(err.to_string())),
        Err(_) => return Err(failed(format!("no answer within {} seconds", ANSWER_TIMEOUT.as_secs()))),
    }
    if let Err(err) = mounted.raise_read_ahead() {
        tracing::debug!("the kernel's readahead stays as it is: {err}");
    }
    Ok(())
}

/// Finds out in the background what the remote enforces, so that `status` and the first commit know.
async fn learn_guarantee(workspace: Arc<Workspace>, stop: CancellationToken) {
    if workspace.guarantee().is_some() {
        return;
    }
    tokio::select! {
        () = stop.cancelled() => return,
        () = time::sleep(LEARN_AFTER) => {}
    }
    tokio::select! {
        () = stop.cancelled() => {}
        result = workspace.probed_guarantee() => match result {
            Ok(known) => info!("the remote's guarantee is {}", known.describe()),
            // Most likely a key that may only read; a commit will say so again.
            Err(failure) => info!("what the remote enforces is not known: {failure}"),
        },
    }
}
