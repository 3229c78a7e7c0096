//! How a mount ends: the session, then the control socket, background work, the runtime.
//!
//! Each wait has an end, but for one that was asked for; staged files need none of them to be safe.
//!
//! `umount --lazy` detaches the mount: files that are open in it are served until the last one is closed, and
//! commands under way end, however long that takes, or until a signal or a second `umount --lazy`. Meanwhile
//! commands are answered, and the staging area stays locked.
//!
//! A signal unmounts. If the mount is busy then, its users are named and have [`BUSY_GRACE`]; after that,
//! or at a second signal, it is detached, and they can go on with the files that they have open as long
//! as this process waits for them: [`DETACHED_GRACE`].
//!
//! A session that ends although the mount is there was broken, which is a failure: whoever has started the
//! daemon may start it again. Somebody else's unmount is none.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::holders;
use crate::daemon::mountinfo;
use crate::daemon::mountpoint;
use crate::daemon::notify;
use crate::daemon::service::ENDING;
use crate::daemon::service::Service;
use crate::daemon::service::UnmountRequest;
use crate::fuse::MountedFs;
use crate::fuse::Unmounter;

/// How long the users of a busy mount have after a signal.
pub const BUSY_GRACE: Duration = Duration::from_secs(10);
/// How long a mount may be busy with nobody who could be named: processes that have just been killed.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How often unmounting is tried meanwhile.
const BUSY_LOOK: Duration = Duration::from_millis(50);
/// How often unmounting is tried while its users have time to leave.
const BUSY_POLL: Duration = Duration::from_millis(250);
/// How long files that are open in a mount that a signal has detached are still served.
pub const DETACHED_GRACE: Duration = Duration::from_secs(5);
/// How long background work may take to end.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount that answers, and all that belongs to it.
pub(super) struct Running {
    pub unmounter: Unmounter,
    pub mountpoint: PathBuf,
    pub service: Arc<Service>,
    pub session: SessionEnd,
    pub unmounts: mpsc::Receiver<UnmountRequest>,
    pub tasks: JoinSet<()>,
    pub stop: CancellationToken,
    pub signals: Signals,
}

/// The end of the FUSE session, which may be waited for more than once.
pub(super) struct SessionEnd(watch::Receiver<Option<Result<(), String>>>);

impl SessionEnd {
    /// Waits for the session on a thread of its own: it ends when the kernel says so.
    pub(super) fn watch(mounted: MountedFs) -> Self {
        let (tell, ended) = watch::channel(None);
        // If no thread can be started, the sender is dropped, which reads as an end.
        let spawned = thread::Builder::new().name("dsfs-session".into()).spawn(move || {
            tell.send_replace(Some(mounted.wait().map_err(|err| err.to_string())));
        });
        if let Err(err) = spawned {
            warn!("the FUSE session cannot be watched: {err}");
        }
        Self(ended)
    }

    /// Waits for it. What broke the session, if that was no unmount.
    async fn wait(&mut self) -> Result<(), String> {
        match self.0.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ok(())),
            Err(_) => Err("nobody watches it".to_owned()),
        }
    }
}

/// Runs until the session has ended, then takes the rest down.
///
/// # Errors
/// The session broke: nobody has unmounted it.
pub(super) async fn serve(mut running: Running) -> Result<(), Failure> {
    let outcome = serve_session(&mut running).await;
    running.stop.cancel();
    let tasks = &mut running.tasks;
    let drained = async { while tasks.join_next().await.is_some() {} };
    if time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        warn!("background work was cut off");
    }
    outcome
}

async fn serve_session(running: &mut Running) -> Result<(), Failure> {
    loop {
        tokio::select! {
            ended = running.session.wait() => {
                if running.service.is_detached() {
                    info!("the last file of {} is closed", running.mountpoint.display());
                    finish_commands(running).await;
                    return Ok(());
                }
                let outcome = how_it_ended(ended, &running.mountpoint);
                if outcome.is_ok() {
                    info!("unmounted {}", running.mountpoint.display());
                } else if is_mounted(&running.mountpoint)
                    && let Err(err) = unmount_once(&running.unmounter, false).await
                {
                    warn!("what is left of the mount is cleared by the next one: {err}");
                }
                return outcome;
            }
            Some(request) = running.unmounts.recv() => {
                if unmount_on_request(running, request).await {
                    return Ok(());
                }
            }
            name = running.signals.next() => {
                if running.service.is_detached() {
                    info!("{name}: files that are still open in {} are given up", running.mountpoint.display());
                    return Ok(());
                }
                info!("{name}: unmounting {}", running.mountpoint.display());
                let at_most = BUSY_GRACE + DETACHED_GRACE + DRAIN_TIMEOUT;
                notify::stopping(&format!("unmounting {}", running.mountpoint.display()), at_most);
                let lazy = unmount_at_signal(running).await;
                finish_session(running, lazy).await;
                return Ok(());
            }
        }
    }
}

/// Unmounts because a command asks for it. Whether there is nothing left to serve.
async fn unmount_on_request(running: &mut Running, request: UnmountRequest) -> bool {
    let UnmountRequest { lazy, done } = request;
    let (at, again) = (running.mountpoint.display().to_string(), running.service.is_detached());
    let result = if !again && is_mounted(&running.mountpoint) {
        unmount(&running.unmounter, &running.mountpoint, lazy).await
    } else if lazy {
        Ok(()) // of what was detached before, by us or by somebody else
    } else {
        Err(Failure::new(FailureKind::Failed, format!("{at} is detached already, and files are open in it"))
            .hint("close them, or give them up with --lazy"))
    };
    let unmounted = result.is_ok();
    let in_use =
        unmounted && lazy && !again && time::timeout(LAST_BREATH, out_of_use(running)).await.is_err();
    if in_use {
        info!("{at} is detached; open files are served until they are closed, and commands under way end");
        notify::status("detached; open files are served until they are closed, and commands under way end");
        running.service.detach();
    }
    if unmounted && !in_use {
        // Before that is told: whoever hears it looks whether files are still served.
        running.service.end();
    }
    let _ = done.send(result); // the command may have given up
    if unmounted && !again && !in_use {
        finish_session(running, false).await;
    }
    unmounted && !in_use
}

/// Waits until nobody uses a mount any more that is out of sight.
async fn out_of_use(running: &mut Running) {
    // What broke a session that nobody can reach has no consequence.
    let _ended = running.session.wait().await;
    running.service.commands.idle().await;
}

/// Waits for commands under way, or until they are to be cut off.
async fn finish_commands(running: &mut Running) {
    let service = Arc::clone(&running.service);
    let mut ended = std::pin::pin!(service.commands.end(ENDING));
    loop {
        tokio::select! {
            () = &mut ended => return,
            Some(request) = running.unmounts.recv() => {
                if unmount_on_request(running, request).await {
                    return;
                }
            }
            name = running.signals.next() => {
                info!("{name}: commands under way are cut off");
                return;
            }
        }
    }
}

/// What it means that a session has ended which we have not unmounted.
fn how_it_ended(ended: Result<(), String>, mountpoint: &Path) -> Result<(), Failure> {
    let why = match ended {
        Err(why) => why,
        // Nobody serves it any more, so this is answered at once.
        Ok(()) if is_mounted(mountpoint) && mountpoint::is_stale(mountpoint) => {
            "the kernel has cut the connection".to_owned()
        }
        Ok(()) => return Ok(()),
    };
    let message = format!("the FUSE session of {} broke: {why}", mountpoint.display());
    Err(Failure::new(FailureKind::Failed, message).hint("what is staged is safe: mount again"))
}

/// Whether a mount of ours is in the kernel's table, though another one may be over it.
fn is_mounted(mountpoint: &Path) -> bool {
    let ours = |mount: &mountinfo::Mount| mount.mountpoint == mountpoint && mount.is_dsfs();
    mountinfo::mounts().map_or(true, |mounts| mounts.iter().any(ours))
}

/// Unmounts, without waiting for anybody who could be named.
async fn unmount(unmounter: &Unmounter, mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let deadline = time::Instant::now() + LAST_BREATH;
    loop {
        let err = match unmount_once(unmounter, lazy).await {
            Ok(()) => return Ok(()),
            Err(err) => err,
        };
        if err.kind() != io::ErrorKind::ResourceBusy {
            let message = format!("{} cannot be unmounted: {err}", mountpoint.display());
            return Err(Failure::new(FailureKind::Failed, message));
        }
        let holders = holders::holders(mountpoint);
        if !holders.is_empty() || time::Instant::now() >= deadline {
            return Err(Failure::new(FailureKind::Failed, format!("{} is busy", mountpoint.display()))
                .details(holders)
                .hint("close those, or --lazy"));
        }
        time::sleep(BUSY_LOOK).await;
    }
}

/// Not on the runtime's own threads: the kernel may have to wait for one of our replies.
async fn unmount_once(unmounter: &Unmounter, lazy: bool) -> io::Result<()> {
    let unmounter = unmounter.clone();
    let result = tokio::task::spawn_blocking(move || unmounter.unmount(lazy)).await;
    result.unwrap_or_else(|err| Err(io::Error::other(err)))
}

/// Unmounts because of a signal, which has to succeed in bounded time. Tells whether it had to detach.
async fn unmount_at_signal(running: &mut Running) -> bool {
    let deadline = time::Instant::now() + BUSY_GRACE;
    let mut named = false;
    loop {
        let Err(failure) = unmount(&running.unmounter, &running.mountpoint, false).await else {
            return false;
        };
        if !named {
            named = true;
            warn!("{failure}");
            failure.details.iter().for_each(|holder| warn!("  {holder}"));
            notify::status(&format!("{failure}: {}", failure.details.join(", ")));
        }
        if time::Instant::now() >= deadline {
            break;
        }
        tokio::select! {
            _ = running.session.wait() => return false,
            () = time::sleep(BUSY_POLL) => {}
            name = running.signals.next() => {
                info!("{name} once more: detaching {}", running.mountpoint.display());
                break;
            }
        }
    }
    if let Err(failure) = unmount(&running.unmounter, &running.mountpoint, true).await {
        warn!("{failure}");
    }
    true
}

/// Waits for the session after its mount is gone; after a lazy unmount only for so long.
async fn finish_session(running: &mut Running, lazy: bool) {
    let grace = if lazy { DETACHED_GRACE } else { DRAIN_TIMEOUT };
    match time::timeout(grace, running.session.wait()).await {
        Ok(Ok(())) => info!("unmounted {}", running.mountpoint.display()),
        Ok(Err(err)) => warn!("unmounted {}, and its session broke: {err}", running.mountpoint.display()),
        Err(_) => warn!("files are still open in {}, which is detached", running.mountpoint.display()),
    }
}

/// The signals that end a mount.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Receives them from now on.
    ///
    /// # Errors
    /// The system does not let signals be received.
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|err| {
                Failure::new(FailureKind::Failed, format!("no signals can be received: {err}"))
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_nobody_has_unmounted_has_failed() {
        let at = Path::new("/no/such/place");
        assert_eq!(how_it_ended(Ok(()), at), Ok(()), "somebody else has unmounted it");
        let failure = how_it_ended(Err("a FUSE thread panicked".to_owned()), at).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Failed);
        assert!(
            failure.message.contains("/no/such/place") && failure.message.contains("panicked"),
            "{failure}"
        );
    }
}
