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
use crate::control::message::Request;
use crate::daemon::holders;
use crate::daemon::mountinfo;
use crate::daemon::mountpoint;
use crate::fuse::Unmounter;

/// How long the daemon may take to end after its mount is gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked for.
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
    /// Take it out of sight now; files that are open stay usable until they are closed
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
        client.call(&Request::Unmount { lazy: args.lazy }, &mut |_| {})?;
        wait_for_end(&socket);
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

/// The daemon answers when the mount is gone; what it still has to close is quickly done.
fn wait_for_end(socket: &Path) {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while socket.exists() && Instant::now() < deadline {
        thread::sleep(EXIT_POLL);
    }
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
