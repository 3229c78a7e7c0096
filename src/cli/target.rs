//! Which remote a command means, and who works on it.
//!
//! For all commands in this order: what the command line names, a remote or a mount (`--at`); the mount that the
//! user stands in; the remote that environment or configuration file name; the only mount there is.
//!
//! A remote that is mounted is worked on by its daemon ([`find`]), but for commands that need no more of a mount than
//! to know its remote ([`config`]).

use std::path::Path;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Context;
use crate::cli::mounts;
use crate::cli::mounts::Mounts;
use crate::config::Config;
use crate::config::ConfigError;
use crate::config::Directories;
use crate::config::Environment;
use crate::config::Layer;
use crate::config::Origin;
use crate::config::Place;
use crate::config::RemoteSettings;
use crate::config::Selection;
use crate::control;
use crate::control::client::Client;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::RemoteChoice;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::failure;
use crate::daemon::mountinfo;
use crate::daemon::mountinfo::Mount;
use crate::daemon::mountpoint;
use crate::name::DatasetName;
use crate::staging::Staging;

/// The flag by which a mount is chosen.
#[derive(Clone, Debug, Default, Args)]
pub struct TargetArgs {
    /// The mount at this directory, if there are several
    ///
    /// Without this, and without flags that name a remote, it is the mount that the command is run in, else the
    /// remote that environment or config.toml name, else the only mount; for `stat` and `top` all mounts.
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
    if let Some(mountpoint) = &args.at {
        let socket = at(&config.directories, mountpoint)?;
        if cx.global.names_remote() {
            let status = status_of(&socket)?;
            check_same_remote(&status, &config)?;
        }
        return Ok(Target::Daemon(socket));
    }
    if cx.global.names_remote() {
        return of_remote(config);
    }
    if let Some(socket) = meant(&config, "--at MOUNTPOINT says which")? {
        return Ok(Target::Daemon(socket));
    }
    config.remote.check_reachable_in_principle().map_err(|err| failure::of_config(&err))?;
    of_remote(config)
}

/// The settings for a command that works on a remote by itself, mounted or not. `flags` are those of the command
/// line, to which it may have added a bucket. If a mount decides which remote that is, the user is told.
///
/// # Errors
/// What is wrong with the settings; too many mounts fit, or one that does not say which remote it has.
pub fn config(flags: Layer, cx: &mut Context) -> Result<Config, Failure> {
    let is_named = cx.global.names_remote() || flags.bucket.is_some();
    let config = cx.config(flags.clone())?;
    if is_named {
        return Ok(config);
    }
    let which = "--remote, -b, -e or --profile says which; so does running this in one of them";
    let Some(socket) = meant(&config, which)? else { return Ok(config) };
    let mount = status_of(&socket)?;
    if mount.remote_id == config.remote.remote().id() {
        return Ok(config);
    }
    let (remote, mountpoint) = (&mount.remote, mount.mountpoint.display());
    let Some(choice) = mount.choice else {
        let message = format!(
            "the mount at {mountpoint} is of {remote}, and its dsfs is too old to say by which settings"
        );
        return Err(Failure::new(FailureKind::Usage, message)
            .hint("--remote, -b, -e or --profile says which is meant"));
    };
    let origin = named_by(&config.remote);
    let instead = match origin {
        Origin::Default => String::new(),
        origin @ (Origin::Flag(_) | Origin::Environment(_) | Origin::File { .. }) => {
            format!(", and not on {}, which {origin} names", config.remote.remote())
        }
    };
    cx.out.note(format!("working on {remote}, which is mounted at {mountpoint}{instead}"));
    chosen(choice, flags, &cx.env).map_err(|err| failure::of_config(&err))
}

/// The settings of a mount, as far as keys and client go. A file or a profile that this shell names is not the mount's.
fn chosen(choice: RemoteChoice, flags: Layer, env: &Environment) -> Result<Config, ConfigError> {
    let selection = Selection { file: choice.config, profile: choice.profile, is_final: true };
    Config::load(choice.remote.name_in(flags), selection, env)
}

/// The mount that is meant where the command line names nothing; none if that is the remote of the settings.
/// `which` is what to do if there are several.
fn meant(config: &Config, which: &str) -> Result<Option<PathBuf>, Failure> {
    if let Some(mount) = innermost().filter(Mount::is_dsfs) {
        let socket = socket_of(&config.directories, &mount.mountpoint);
        if socket.is_none() {
            check_foreign_mount(&mount, config)?;
        }
        return Ok(socket);
    }
    if *named_by(&config.remote) != Origin::Default {
        return Ok(None);
    }
    // One that cannot be asked is a mount all the same: without it, another one would be the only one.
    let Mounts { mut live, mut mute } = mounts::all(&config.directories, None);
    match (live.len(), mute.len()) {
        (0, 0) => Ok(None),
        (1, 0) => Ok(Some(live.remove(0).0)),
        (0, 1) => Err(mute.remove(0).failure()),
        _ => Err(Failure::new(FailureKind::Usage, "there are several mounts")
            .details(shown(&live).chain(mute.iter().map(|mute| mute.failure().message)))
            .hint(which)),
    }
}

/// `--at` and flags that name a remote have to mean the same one.
fn check_same_remote(mount: &MountStatus, config: &Config) -> Result<(), Failure> {
    let remote = config.remote.remote();
    if mount.remote_id == remote.id() {
        return Ok(());
    }
    let message =
        format!("{} is a mount of {}, and the flags name {remote}", mount.mountpoint.display(), mount.remote);
    Err(Failure::new(FailureKind::Usage, message).hint("give only one of them"))
}

/// Whoever stands in a mount whose daemon cannot be asked, a dead one or another user's, does not mean another remote.
/// What the table of mounts says of a bucket leaves its server out, and every server may have a bucket of that name.
fn check_foreign_mount(mount: &Mount, config: &Config) -> Result<(), Failure> {
    let remote = config.remote.remote();
    if matches!(remote.place, Place::Directory(_)) && mount.source == remote.fs_name() {
        return Ok(());
    }
    let message = format!(
        "this directory is in a mount of {}, whose daemon does not answer, and nothing shows that the settings name that remote",
        mount.source
    );
    Err(Failure::new(FailureKind::Usage, message)
        .hint("--remote, -b, -e or --profile says which remote is meant; or run this elsewhere"))
}

/// The daemon of the mount at this directory, as the user has written it.
///
/// # Errors
/// There is none.
pub fn at(directories: &Directories, mountpoint: &Path) -> Result<PathBuf, Failure> {
    let mountpoint = mountpoint::resolve(mountpoint);
    socket_of(directories, &mountpoint).ok_or_else(|| no_mount_at(&mountpoint))
}

/// Names the mounts that have something staged for this dataset, where a command has found nothing there: the remote
/// that was meant may have been another one. `command` is what to say to them, `asked` who has been asked already.
#[must_use]
pub fn or_staged_elsewhere(
    failure: Failure,
    command: &str,
    name: &DatasetName,
    asked: Option<&Path>,
    cx: &Context,
) -> Failure {
    if failure.kind != FailureKind::NotFound {
        return failure;
    }
    let Ok(directories) = cx.directories() else { return failure };
    let mounts = live_mounts(&directories, None);
    let others = mounts.iter().filter(|(socket, _)| Some(socket.as_path()) != asked);
    let ways: Vec<String> = others
        .filter(|(_, status)| status.staged.iter().any(|dataset| dataset.name == *name))
        .map(|(_, status)| {
            let at = status.mountpoint.display();
            format!("{name} is staged at {at}: `dsfs {command} {name} --at {at}`")
        })
        .collect();
    if ways.is_empty() { failure } else { failure.hint(ways.join("; ")) }
}

/// The failure of a command that needs a mount, where the remote that is meant has none.
#[must_use]
pub fn not_mounted(config: &Config) -> Failure {
    let mounts = live_mounts(&config.directories, None);
    if mounts.is_empty() {
        return Failure::new(FailureKind::NotFound, "there is no mount")
            .hint("without one, everything is asked anew each time");
    }
    let by = match named_by(&config.remote) {
        Origin::Default => String::new(),
        origin @ (Origin::Flag(_) | Origin::Environment(_) | Origin::File { .. }) => format!(" ({origin})"),
    };
    Failure::new(FailureKind::NotFound, format!("{} is not mounted{by}", config.remote.remote()))
        .details(shown(&mounts))
        .hint("--at MOUNTPOINT, if another one is meant")
}

/// Mounts, one a line.
fn shown(mounts: &[(PathBuf, MountStatus)]) -> impl Iterator<Item = String> {
    mounts.iter().map(|(_, status)| format!("{}  {}", status.mountpoint.display(), status.remote))
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
    mounts::all(directories, files_of).live
}

/// Asks a daemon.
///
/// # Errors
/// It does not answer, or it failed.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, Failure> {
    connect(socket)?.call(request, &mut |_| {})
}

fn status_of(socket: &Path) -> Result<MountStatus, Failure> {
    let reply = ask(socket, &Request::Status { files_of: None })?;
    let Reply::Status(status) = reply else { return Err(unexpected(&reply)) };
    Ok(*status)
}

/// Connects to a daemon.
///
/// # Errors
/// It does not answer.
pub fn connect(socket: &Path) -> Result<Client, Failure> {
    Client::connect(socket)
        .map_err(|err| Failure::new(FailureKind::Failed, format!("the daemon does not answer: {err}")))
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

/// The mount, of whatever file system, that the working directory is in.
fn innermost() -> Option<Mount> {
    let here = std::env::current_dir().ok()?;
    let around = mountinfo::mounts().ok()?.into_iter().filter(|mount| here.starts_with(&mount.mountpoint));
    around.max_by_key(|mount| mount.mountpoint.as_os_str().len())
}

/// Who has said which remote; [`Origin::Default`] if nobody has.
fn named_by(remote: &RemoteSettings) -> &Origin {
    match remote {
        RemoteSettings::Directory { path, .. } => &path.origin,
        RemoteSettings::S3(s3) if s3.bucket.origin == Origin::Default => &s3.endpoint.origin,
        RemoteSettings::S3(s3) => &s3.bucket.origin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Credentials;
    use crate::durable;

    #[test]
    fn a_bucket_of_the_same_name_at_another_server_is_not_meant() {
        let mount = |source: &str| Mount {
            device: "0:52".to_owned(),
            mountpoint: "/srv/datasets".into(),
            fs_type: mountinfo::FS_TYPE.to_owned(),
            source: source.to_owned(),
        };
        let settings = |name, value| {
            let env = Environment::from_pairs(&[("HOME", "/nonexistent"), (name, value)]);
            Config::load(Layer::default(), Selection::default(), &env).unwrap()
        };
        let bucket = settings("R2_ENDPOINT", "https://one.example");
        let source = bucket.remote.remote().fs_name();
        assert_eq!(source, "s3://assets/datasets/");
        let refused = check_foreign_mount(&mount(&source), &bucket).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Usage);
        let directory = settings("DSFS_REMOTE", "file:///nas/datasets/");
        let source = directory.remote.remote().fs_name();
        assert_eq!(check_foreign_mount(&mount(&source), &directory), Ok(()));
        assert!(check_foreign_mount(&mount("file:///nas/other/"), &directory).is_err());
    }

    #[test]
    fn what_a_shell_chooses_is_not_the_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            durable::replace(&dir.path().join(name), text.as_bytes()).unwrap();
            dir.path().join(name).to_str().unwrap().to_owned()
        };
        let keys = |id: &str| format!("access-key-id = '{id}'\nsecret-access-key = 's'\n");
        let of_lab = format!("[profile.lab]\nretries = 7\n{}", keys("lab"));
        let of_mount = write("config.toml", &format!("bucket = 'assets'\n{}{of_lab}", keys("top")));
        let of_shell = write("shell.toml", &format!("{}{of_lab}", keys("shell")));
        let home = dir.path().to_str().unwrap();
        let env = [("HOME", home), ("DSFS_CONFIG", of_shell.as_str()), ("DSFS_PROFILE", "lab")];
        let env = Environment::from_pairs(&env);
        let choice = |config: Option<&str>, profile: Option<&str>| {
            let settings = Config::load(Layer::default(), Selection::default(), &env).unwrap();
            let choice = RemoteChoice {
                remote: settings.remote.remote(),
                config: config.map(PathBuf::from),
                profile: profile.map(str::to_owned),
            };
            let RemoteSettings::S3(s3) = chosen(choice, Layer::default(), &env).unwrap().remote else {
                panic!("is a bucket")
            };
            let keys = s3.credentials.value;
            let id =
                if let Credentials::Keys { access_key_id, .. } = keys { Some(access_key_id) } else { None };
            (id, s3.client.retries.value)
        };
        let usual = choice(None, None);
        assert_eq!(usual.0, None, "a mount without a file has no keys of one");
        assert_eq!(choice(Some(&of_mount), None), (Some("top".to_owned()), usual.1));
        assert_eq!(choice(Some(&of_mount), Some("lab")), (Some("lab".to_owned()), 7));
    }
}
