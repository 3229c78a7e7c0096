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
use crate::control::client::Client;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::peer::Peer;
use crate::daemon::holders;
use crate::daemon::mountinfo;
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
  dsfs umount --lazy ~/datasets      also while something is using it"
)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Take it out of sight now; files that are open stay usable until they are closed, or this is said again
    #[arg(long, short = 'z')]
    lazy: bool,
}

/// Runs the command.
///
/// # Errors
/// There is no such mount, or it is busy.
pub fn run(args: &UmountArgs, cx: &mut Context) -> Result<(), Failure> {
    // Nothing but where sockets are: a mistake in the settings must not keep anybody from unmounting.
    let directories = cx.directories()?;
    let path = mountpoint::resolve(&args.mountpoint);
    if let Some(socket) = target::socket_of(&directories, &path)
        && let Ok(client) = Client::connect(&socket)
    {
        let daemon = client.peer().ok();
        client.call(&Request::Unmount { lazy: args.lazy }, &mut |_| {})?;
        if args.lazy && is_detached(&socket) {
            cx.out.note(still_in_use(daemon.as_ref(), &path));
        } else {
            wait_for_end(daemon.as_ref(), &socket, &path, cx);
        }
        return Ok(());
    }
    let mount = mountinfo::mount_at(&path).map_err(|err| {
        Failure::new(FailureKind::Failed, format!("the table of mounts cannot be read: {err}"))
    })?;
    let Some(mount) = mount.filter(mountinfo::Mount::is_dsfs) else { return Err(target::no_mount_at(&path)) };
    if mountpoint::is_stale(&path) {
        Unmounter::new(&path).unmount(true).map_err(|err| refused(&path, &err))?;
        cx.out.note(format!(
            "the daemon of {} was dead already; the mount is cleared",
            mount.mountpoint.display()
        ));
        return Ok(());
    }
    let result =
        if args.lazy { Unmounter::new(&path).unmount(true) } else { Unmounter::new(&path).unmount(false) };
    result.map_err(|err| refused(&path, &err))
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

/// Whether the daemon goes on for files that are open. One that is ending does not say.
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
