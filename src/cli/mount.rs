//! `dsfs mount`: in the background, or with `--foreground` in this process.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Context;
use crate::config::Config;
use crate::config::Layer;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::background;
use crate::daemon::background::Ready;
use crate::daemon::background::Reporter;
use crate::daemon::failure;
use crate::daemon::lifecycle;
use crate::daemon::lifecycle::MountRequest;
use crate::daemon::mountpoint;
use crate::daemon::operations;
use crate::daemon::remote;
use crate::daemon::upgrade;
use crate::daemon::upgrade::Inheritance;
use crate::daemon::upgrade::Program;
use crate::observe;

/// The log file of a daemon in the background, in its remote's state directory.
const LOG_FILE: &str = "dsfs.log";

/// Mount the datasets of a remote as a directory
///
/// Returns when the mount answers. Everything below MOUNTPOINT can be read like any file; what is written
/// there is staged on the local disk until `dsfs commit`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs mount ~/datasets -b assets -e https://ACCOUNT.r2.cloudflarestorage.com
  dsfs mount ~/datasets --remote file:///nas/datasets/
  dsfs mount /srv/datasets --profile lab --read-only --allow-other
  dsfs mount ~/datasets --foreground         for service managers; logs to stderr")]
pub struct MountArgs {
    /// Where; made if it is missing
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    #[command(flatten)]
    pub options: MountOptions,
}

/// The flags of a mount.
#[derive(Clone, Debug, Default, Args)]
pub struct MountOptions {
    /// How much to keep in the block cache [default: 20GiB]
    #[arg(long, value_name = "SIZE")]
    cache_limit: Option<String>,
    /// How much file data may be in memory [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// How long a read waits for the remote before it fails [default: 60s]
    #[arg(long, value_name = "TIME")]
    read_timeout: Option<String>,
    /// How long a listing counts as the truth, before the remote is asked again [default: 60s]
    #[arg(long, value_name = "TIME")]
    list_ttl: Option<String>,
    /// Nothing can be written
    #[arg(long)]
    read_only: bool,
    /// Other users can read too
    #[arg(long)]
    allow_other: bool,
    /// Published files can be changed and deleted, in staging; `dsfs commit --overwrite` publishes that
    #[arg(long, conflicts_with = "read_only")]
    allow_replace: bool,
    /// Mount over a directory that has something in it
    #[arg(long)]
    nonempty: bool,
    /// Serve counters to Prometheus at this address, such as 127.0.0.1:9464
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Stay in the foreground, and log to stderr
    #[arg(short, long)]
    foreground: bool,
    /// Only say whether this program can go on with a mount that was handed over in this form.
    #[arg(long, hide = true, value_name = "FORMAT")]
    can_take_over: Option<u32>,
    /// Go on with a mount that the program before this one has served: where it has written that down.
    #[arg(long, hide = true, value_name = "DESCRIPTOR")]
    take_over: Option<i32>,
    /// This is the daemon that `dsfs mount` has started; its stdout is a pipe.
    #[arg(long = "in-background", hide = true, conflicts_with = "foreground")]
    in_background: bool,
}

impl MountOptions {
    /// The settings among the flags, on top of those of all commands.
    fn layer(&self, global: Layer) -> Layer {
        Layer {
            cache_limit: self.cache_limit.clone(),
            memory_limit: self.memory_limit.clone(),
            read_timeout: self.read_timeout.clone(),
            list_ttl: self.list_ttl.clone(),
            read_only: self.read_only.then_some(true),
            allow_other: self.allow_other.then_some(true),
            allow_replace: self.allow_replace.then_some(true),
            ..global
        }
    }
}

/// Runs the command.
///
/// # Errors
/// There is no mount, and why.
pub fn run(args: &MountArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = cx.config(args.options.layer(cx.global.layer()))?;
    if let Some(ready) = mount(&args.mountpoint, &args.options, config, cx)? {
        cx.out.note(format!("mounted {} at {}", ready.remote, ready.mountpoint.display()));
    }
    Ok(())
}

/// Mounts. In the foreground and in the daemon this returns when the mount is gone, with nothing.
///
/// # Errors
/// There is no mount, and why.
pub fn mount(
    mountpoint: &Path,
    options: &MountOptions,
    config: Config,
    cx: &mut Context,
) -> Result<Option<Ready>, Failure> {
    let mountpoint = std::path::absolute(mountpoint).map_err(|err| {
        Failure::new(FailureKind::Usage, format!("{} cannot be a mount point: {err}", mountpoint.display()))
    })?;
    if let Some(format) = options.can_take_over {
        return can_take_over(format, &config).map(|()| None);
    }
    let inheritance = options.take_over.map(Inheritance::open).transpose()?;
    let place = match &inheritance {
        Some(inherited) => inherited.mountpoint().clone(),
        None => mountpoint::resolve(&mountpoint),
    };
    let program = Program::this(&place).map_err(|err| {
        Failure::new(FailureKind::Failed, format!("this program's file is not known: {err}"))
    })?;
    let search_path = cx.env.get("PATH").unwrap_or_default().to_owned();
    let request = |config, log| MountRequest {
        config,
        mountpoint,
        nonempty: options.nonempty,
        log,
        search_path,
        metrics: options.metrics,
        program,
    };
    if options.foreground {
        cx.log_to_stderr("info");
        return lifecycle::run(&request(config, None), &Reporter::Log, inheritance).map(|()| None);
    }
    if options.in_background {
        let log = prepare_log(&config)?;
        observe::log_to_file(&log, cx.verbosity(), cx.env.get("DSFS_LOG"))
            .map_err(|err| failure::of_directory("log", &log, &err))?;
        let reporter = match inheritance {
            Some(_) => Reporter::Log, // the command that once started it has long ended
            None => Reporter::Pipe,
        };
        background::detach_from_terminal(inheritance.is_none()).map_err(|err| {
            Failure::new(FailureKind::Failed, format!("cannot go into the background: {err}"))
        })?;
        return lifecycle::run(&request(config, Some(log)), &reporter, inheritance).map(|()| None);
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    start_daemon(&arguments, &config, cx).map(Some)
}

/// Whether a mount of these settings, written down in this form, can be gone on with.
fn can_take_over(format: u32, config: &Config) -> Result<(), Failure> {
    if !upgrade::reads(format) {
        let message = format!("it does not go on with mounts of the form {format}");
        return Err(Failure::new(FailureKind::Failed, message));
    }
    remote::runtime()?.block_on(remote::open(config)).map(|_| ())
}

/// Starts a daemon with these arguments, and waits until its mount answers.
///
/// # Errors
/// There is no mount, and why.
pub fn start_daemon(arguments: &[OsString], config: &Config, cx: &mut Context) -> Result<Ready, Failure> {
    let log = prepare_log(config)?;
    let out = &mut cx.out;
    background::start(arguments, &log, &mut |notice| out.note(notice))
}

/// The log of a daemon in the background; makes the directory that it is in.
fn prepare_log(config: &Config) -> Result<PathBuf, Failure> {
    let remote = config.remote.remote();
    config.remote.check_reachable_in_principle().map_err(|err| failure::of_config(&err))?;
    let dir = config.remote_state_dir();
    operations::prepare_state_dir(&dir, &remote.to_string())
        .map_err(|err| failure::of_directory("state directory", &dir, &err))?;
    Ok(dir.join(LOG_FILE))
}
