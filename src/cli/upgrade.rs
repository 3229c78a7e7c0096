//! `dsfs upgrade`: the installed program goes on with a mount.

use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use clap::Args;

use crate::cli::Context;
use crate::cli::mounts;
use crate::cli::mounts::Mounts;
use crate::cli::target;
use crate::control::client::Client;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::mountpoint;

/// How long the next program may take until it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked.
const ANSWER_POLL: Duration = Duration::from_millis(20);

/// Change the program of a mount without unmounting
///
/// The program that is installed where the daemon was started from goes on with the mount: files stay open,
/// staged files stay staged, the process keeps its number. Meanwhile whoever uses the mount waits, for well under a
/// second. If the installed program cannot, or a command is under way, nothing changes, and that is said.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  sudo install dsfs /usr/local/bin/ && dsfs upgrade
  dsfs upgrade ~/datasets")]
pub struct UpgradeArgs {
    /// Which mount; all of this user's, if none is named
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// There is no mount, or its program cannot be changed.
pub fn run(args: &UpgradeArgs, cx: &mut Context) -> Result<(), Failure> {
    let directories = cx.directories()?;
    let path = args.mountpoint.as_deref().map(mountpoint::resolve);
    let Mounts { live: mut mounts, mut mute } = mounts::all(&directories, None);
    mounts.retain(|(_, status)| {
        !status.detached && path.as_ref().is_none_or(|path| status.mountpoint == *path)
    });
    mute.retain(|mute| path.is_none() || mute.mountpoint == path);
    if mounts.is_empty() && mute.is_empty() {
        return Err(match path {
            Some(path) => target::no_mount_at(&path),
            None => Failure::new(FailureKind::NotFound, "there is no dsfs mount of this user"),
        });
    }
    for (socket, before) in mounts {
        if let Some(reply) = target::connect(&socket)?.call_until_end(&Request::Upgrade, &mut |_| {})? {
            return Err(target::unexpected(&reply));
        }
        let after = wait_for_next(&socket, &before)?;
        cx.out.note(format!(
            "{} goes on with dsfs {} (it was {})",
            after.mountpoint.display(),
            after.version,
            before.version
        ));
    }
    mute.first().map_or(Ok(()), |mute| Err(mute.failure()))
}

/// Waits until the next program answers.
fn wait_for_next(socket: &Path, before: &MountStatus) -> Result<MountStatus, Failure> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let asked = Client::connect(socket).ok();
        let status = asked.map(|client| client.call(&Request::Status { files_of: None }, &mut |_| {}));
        if let Some(Ok(Reply::Status(after))) = status
            && after.upgraded.is_some()
        {
            return Ok(*after);
        }
        if Instant::now() >= deadline {
            let message = format!("{} does not answer since the upgrade", before.mountpoint.display());
            let failure = Failure::new(FailureKind::Failed, message);
            return Err(match &before.log {
                Some(log) => failure.hint(format!("its log: {}", log.display())),
                None => failure,
            });
        }
        thread::sleep(ANSWER_POLL);
    }
}
