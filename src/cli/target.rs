//! Which mount, or which staging area, a command means.
//!
//! In this order: the remote that the flags name; the mount that `--at` names; the mount that the user
//! stands in; the remote that environment or configuration file name; the only mount there is.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Context;
use crate::config::Config;
use crate::config::Directories;
use crate::config::Origin;
use crate::config::RemoteSettings;
use crate::control;
use crate::control::client::Client;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::failure;
use crate::daemon::mountinfo;
use crate::daemon::mountpoint;
use crate::name::DatasetName;
use crate::staging::Staging;

/// The flag by which a mount is chosen.
#[derive(Clone, Debug, Default, Args)]
pub struct TargetArgs {
    /// The mount at this directory, if there are several
    #[arg(long, value_name = "MOUNTPOINT")]
    pub at: Option<PathBuf>,
}

/// Who does the work.
#[derive(Debug)]
pub enum Target {
    /// The daemon that listens at this socket.
    Daemon(PathBuf),
    /// This process, with the staging area of this remote.
    Direct(Box<Config>),
}

/// Finds out which is meant.
///
/// # Errors
/// Nothing fits, or too much does.
pub fn find(args: &TargetArgs, cx: &Context) -> Result<Target, Failure> {
    let config = cx.config(cx.global.layer())?;
    if cx.global.names_remote() {
        return of_remote(config);
    }
    if let Some(at) = &args.at {
        let mountpoint = mountpoint::resolve(at);
        return socket_of(&config.directories, &mountpoint)
            .map(Target::Daemon)
            .ok_or_else(|| no_mount_at(&mountpoint));
    }
    if let Some(socket) = surrounding(&config.directories) {
        return Ok(Target::Daemon(socket));
    }
    if is_named(&config.remote) {
        return of_remote(config);
    }
    let mut mounts = live_mounts(&config.directories, None);
    match mounts.len() {
        0 => {
            config.remote.check_reachable_in_principle().map_err(|err| failure::of_config(&err))?;
            of_remote(config)
        }
        1 => Ok(Target::Daemon(mounts.remove(0).0)),
        _ => Err(Failure::new(FailureKind::Usage, "there are several mounts")
            .details(
                mounts
                    .iter()
                    .map(|(_, status)| format!("{}  {}", status.mountpoint.display(), status.remote)),
            )
            .hint("--at MOUNTPOINT says which")),
    }
}

/// The failure of naming a mount point where there is no mount of this user.
#[must_use]
pub fn no_mount_at(mountpoint: &Path) -> Failure {
    Failure::new(
        FailureKind::NotFound,
        format!("there is no dsfs mount of this user at {}", mountpoint.display()),
    )
    .hint("`dsfs status` lists the mounts")
}

/// The socket of the daemon of a mount point, if one listens.
#[must_use]
pub fn socket_of(directories: &Directories, mountpoint: &Path) -> Option<PathBuf> {
    let candidates = directories.runtime.iter().map(|dir| control::socket_path(dir, mountpoint));
    candidates.into_iter().find(|socket| Client::connect(socket).is_ok())
}

/// All daemons of this user that answer, and what they say; with a dataset's staged files.
#[must_use]
pub fn live_mounts(directories: &Directories, files_of: Option<&DatasetName>) -> Vec<(PathBuf, MountStatus)> {
    let request = Request::Status { files_of: files_of.cloned() };
    let files = directories.runtime.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let sockets =
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|ext| ext == "sock"));
    let mut mounts: Vec<(PathBuf, MountStatus)> = sockets
        .filter_map(|socket| match Client::connect(&socket).ok()?.call(&request, &mut |_| {}) {
            Ok(Reply::Status(status)) => Some((socket, *status)),
            Ok(_) | Err(_) => None,
        })
        .collect();
    mounts.sort_by(|a, b| a.1.mountpoint.cmp(&b.1.mountpoint));
    mounts.dedup_by(|a, b| a.1.pid == b.1.pid);
    mounts
}

/// Asks a daemon.
///
/// # Errors
/// It does not answer, or it failed.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, Failure> {
    let client = Client::connect(socket)
        .map_err(|err| Failure::new(FailureKind::Failed, format!("the daemon does not answer: {err}")))?;
    client.call(request, &mut |_| {})
}

/// The failure of a daemon that answers another question.
#[must_use]
pub fn unexpected(reply: &Reply) -> Failure {
    Failure::new(FailureKind::Failed, format!("the daemon gave an answer to another question: {reply:?}"))
}

/// Whoever holds the staging area of this remote does the work; nobody: this process.
fn of_remote(config: Config) -> Result<Target, Failure> {
    let dir = config.remote_state_dir();
    let holder = Staging::holder(&dir).map_err(|err| failure::of_directory("staging area", &dir, &err))?;
    match holder {
        None => Ok(Target::Direct(Box::new(config))),
        Some(holder) => match holder.socket {
            Some(socket) => Ok(Target::Daemon(socket)),
            None => Err(failure::of_holder(&holder)),
        },
    }
}

/// The daemon of the mount that the working directory is in.
fn surrounding(directories: &Directories) -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let mounts = mountinfo::mounts().ok()?;
    let around = mounts.iter().filter(|mount| here.starts_with(&mount.mountpoint));
    let innermost = around.max_by_key(|mount| mount.mountpoint.as_os_str().len())?;
    innermost.is_dsfs().then(|| socket_of(directories, &innermost.mountpoint)).flatten()
}

/// Whether anybody said which remote, rather than nobody.
fn is_named(remote: &RemoteSettings) -> bool {
    match remote {
        RemoteSettings::Directory { .. } => true,
        RemoteSettings::S3(s3) => {
            s3.bucket.origin != Origin::Default || s3.endpoint.origin != Origin::Default
        }
    }
}
