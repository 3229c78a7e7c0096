//! `dsfs umount`: through the daemon, or without it if it is dead.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use clap::Args;

use crate::cli::Context;
use crate::cli::target;
use crate::control::client::CallError;
use crate::control::client::Client;
use crate::control::client::LOOK_PATIENCE;
use crate::control::client::SILENCE_MAX;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::peer::Peer;
use crate::daemon::holders;
use crate::daemon::mountinfo;
use crate::daemon::mountinfo::Mount;
use crate::daemon::mountpoint;
use crate::fuse::Unmounter;

/// How long the daemon may take to end after its mount is gone: a little more than it gives itself.
const EXIT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often its socket is looked for, where its process cannot be waited for.
const EXIT_POLL: Duration = Duration::from_millis(20);

/// Unmount, and end the daemon
///
/// Staged files stay where they are, and are there again at the next mount.
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "unmount",
    after_help = "\
Examples:
  dsfs umount ~/datasets
  dsfs umount --lazy ~/datasets      also while something is using it
  dsfs umount --dead ~/datasets      only what a daemon that was killed has left"
)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Take it out of sight now; files that are open stay usable until they are closed, or this is said again
    #[arg(long, short = 'z')]
    lazy: bool,
    /// Only clear what a dead daemon has left there; a mount that is served stays
    #[arg(long, conflicts_with = "lazy")]
    dead: bool,
}

/// Runs the command.
///
/// # Errors
/// There is no such mount, or it is busy.
pub fn run(args: &UmountArgs, cx: &mut Context) -> Result<(), Failure> {
    // Nothing but where sockets are: a mistake in the settings must not keep anybody from unmounting.
    let directories = cx.directories()?;
    let path = mountpoint::resolve(&args.mountpoint);
    let socket = target::socket_of(&directories, &path);
    if args.dead {
        return clear_dead(&path, socket.is_some(), cx);
    }
    let Some(socket) = socket else { return directly(args, &path, cx) };
    // Who is lazy has said what to do about a daemon that hangs.
    let patience = if args.lazy { LOOK_PATIENCE } else { SILENCE_MAX };
    let Ok(client) = Client::connect_for(&socket, patience) else { return directly(args, &path, cx) };
    let daemon = client.peer().ok();
    match client.ask(&Request::Unmount { lazy: args.lazy }, &mut |_| {}) {
        Ok(_) if args.lazy && is_detached(&socket) => {
            cx.out.note(still_in_use(daemon.as_ref(), &path));
            Ok(())
        }
        Ok(_) => {
            wait_for_end(daemon.as_ref(), &socket, &path, cx);
            Ok(())
        }
        Err(err) => without_daemon(err, args, &Silent { daemon, socket, path }, cx),
    }
}

/// A daemon that cannot be asked.
struct Silent {
    daemon: Option<Peer>,
    socket: PathBuf,
    path: PathBuf,
}

/// Unmounts although the daemon does not, if it is not the one to decide.
fn without_daemon(
    err: CallError,
    args: &UmountArgs,
    Silent { daemon, socket, path }: &Silent,
    cx: &mut Context,
) -> Result<(), Failure> {
    let (at, who) = (path.display(), named(daemon.as_ref()));
    match err {
        CallError::Refused(failure) => return Err(failure),
        CallError::Silent(_) if args.lazy => {
            directly(args, path, cx)?;
            cx.out.warn(format!(
                "{at} is unmounted without {who}, which does not answer and goes on; `kill -9` ends it"
            ));
            return Ok(());
        }
        CallError::Silent(_) => {
            let failure = Failure::new(FailureKind::Failed, format!("{at} is not unmounted: {err} ({who})"));
            return Err(failure.hint(format!("`dsfs umount --lazy {at}` unmounts without it")));
        }
        CallError::NotUnderstood(_) | CallError::Garbled(_) => {}
        CallError::Lost(_) => return directly(args, path, cx), // it has ended, most likely
    }
    directly(args, path, cx)?;
    cx.out.note(format!("{at} is unmounted without {who}, which is of another version of dsfs"));
    if !args.lazy {
        wait_for_end(daemon.as_ref(), socket, path, cx);
    }
    Ok(())
}

/// Unmounts what no daemon can be asked about.
fn directly(args: &UmountArgs, path: &Path, cx: &mut Context) -> Result<(), Failure> {
    let Some(mount) = mount_at(path)? else { return Err(target::no_mount_at(path)) };
    // Detached without being looked at: that might wait for a daemon that hangs.
    if !args.lazy && mountpoint::is_stale(path) {
        return clear(&mount, cx);
    }
    Unmounter::new(path).unmount(args.lazy).map_err(|err| refused(path, &err))
}

/// Clears a mount that nobody serves any more, and leaves every other one alone.
fn clear_dead(path: &Path, is_served: bool, cx: &mut Context) -> Result<(), Failure> {
    let Some(mount) = mount_at(path)? else { return Ok(()) };
    // A daemon that listens is not asked further: if it hangs, the mount does not answer either.
    if !is_served && mountpoint::is_stale(path) {
        return clear(&mount, cx);
    }
    let at = path.display();
    Err(Failure::new(
        FailureKind::Failed,
        format!("{at} stays mounted: nothing shows that its daemon is dead"),
    )
    .hint(format!("`dsfs umount {at}` unmounts it")))
}

fn mount_at(path: &Path) -> Result<Option<Mount>, Failure> {
    let mount = mountinfo::mount_at(path).map_err(|err| {
        Failure::new(FailureKind::Failed, format!("the table of mounts cannot be read: {err}"))
    })?;
    Ok(mount.filter(Mount::is_dsfs))
}

fn clear(mount: &Mount, cx: &mut Context) -> Result<(), Failure> {
    let path = &mount.mountpoint;
    Unmounter::new(path).unmount(true).map_err(|err| refused(path, &err))?;
    cx.out.note(format!("the daemon of {} was dead already; the mount is cleared", path.display()));
    Ok(())
}

/// The daemon answers when the mount is gone. What it has to end then is quickly done, and as long as that takes it
/// has the staging area, so that its remote cannot be mounted again.
fn wait_for_end(daemon: Option<&Peer>, socket: &Path, path: &Path, cx: &mut Context) {
    let ended = match daemon {
        Some(daemon) => daemon.wait_for_end(EXIT_TIMEOUT),
        None => wait_for_no_socket(socket),
    };
    if !ended {
        cx.out.warn(format!(
            "{} is unmounted, but {} has not ended yet; until then its remote cannot be mounted",
            path.display(),
            named(daemon)
        ));
    }
}

fn still_in_use(daemon: Option<&Peer>, path: &Path) -> String {
    format!(
        "{} is still in use: {} goes on until open files are closed and commands under way have ended",
        path.display(),
        named(daemon)
    )
}

fn named(daemon: Option<&Peer>) -> String {
    daemon.map_or_else(|| "its daemon".to_owned(), |daemon| format!("process {}", daemon.pid()))
}

/// Whether the daemon goes on for files that are open. One that is ending says no, or nothing any more.
fn is_detached(socket: &Path) -> bool {
    let Ok(client) = Client::connect(socket) else { return false };
    let status = client.call(&Request::Status { files_of: None }, &mut |_| {});
    matches!(status, Ok(Reply::Status(status)) if status.detached)
}

fn wait_for_no_socket(socket: &Path) -> bool {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while socket.exists() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(EXIT_POLL);
    }
    true
}

fn refused(path: &Path, err: &io::Error) -> Failure {
    if err.kind() == io::ErrorKind::ResourceBusy {
        return busy(path);
    }
    Failure::new(FailureKind::Failed, format!("{} cannot be unmounted: {err}", path.display()))
}

fn busy(path: &Path) -> Failure {
    Failure::new(FailureKind::Failed, format!("{} is busy", path.display()))
        .details(holders::holders(path))
        .hint("close those, or --lazy")
}
