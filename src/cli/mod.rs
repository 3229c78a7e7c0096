//! The command line: one file per command, each with its flags, their help, and one function.
//!
//! Commands return a [`Failure`], which is printed here, once, and becomes the exit code by one table
//! ([`exit`]). Data goes to stdout, everything else to stderr ([`output`]).

mod args;
mod bulk;
mod cache;
mod client;
mod commit;
mod completions;
mod config;
mod dataset;
mod demo;
mod diff;
mod discard;
mod doctor;
pub mod exit;
mod gc;
mod history;
mod keep;
mod list;
mod local;
mod log;
mod meter;
mod mount;
mod mounts;
pub mod output;
mod progress;
mod r2;
mod refresh;
mod show;
mod stat;
mod status;
mod target;
mod top;
mod umount;
mod upgrade;
mod url;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

use crate::cli::args::GlobalArgs;
use crate::cli::output::Output;
use crate::config::Config;
use crate::config::Directories;
use crate::config::Environment;
use crate::config::Layer;
use crate::control::message::Failure;
use crate::daemon::failure;
use crate::daemon::process;
use crate::failpoint;
use crate::observe;
use crate::observe::Verbosity;

/// Datasets in an S3-compatible bucket, as a directory
///
/// `dsfs mount` makes the datasets of a bucket a directory that every tool can read. What is written there
/// is staged on the local disk; `dsfs commit` publishes it, all or nothing, and never overwrites.
#[derive(Clone, Debug, Parser)]
#[command(name = "dsfs", version, max_term_width = 100, after_help = exit::TABLE, after_long_help = LONG_AFTER)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const LONG_AFTER: &str = "\
Examples:
  dsfs demo                                        something to look at, without a server
  dsfs mount ~/datasets -b assets -e https://ACCOUNT.r2.cloudflarestorage.com
  dsfs mount ~/datasets --remote file:///nas/datasets/
  cp -r run_07 ~/datasets/ && dsfs status && dsfs commit run_07
  dsfs umount ~/datasets

Keys come from R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, their AWS_ counterparts, the configuration file,
or wherever AWS's own tools find theirs. `dsfs config` shows which.

Exit codes:
  0  done
  1  failed
  2  the command line or the configuration is wrong
  3  conflict: something is there already; nothing was changed
  4  not found
  5  the remote cannot be reached, or refuses
  6  work was left that the next run goes on with
  130  ended by Ctrl-C; nothing half is left, except of `commit`, which goes on where it was,
       and of `r2 delete`, which says how much is gone";

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Upgrade(upgrade::UpgradeArgs),
    Status(status::StatusArgs),
    Stat(stat::StatArgs),
    Top(top::TopArgs),
    List(list::ListArgs),
    Log(log::LogArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
    Verify(verify::VerifyArgs),
    Commit(commit::CommitArgs),
    Discard(discard::DiscardArgs),
    Refresh(refresh::RefreshArgs),
    Pin(keep::PinArgs),
    Unpin(keep::UnpinArgs),
    Prefetch(keep::PrefetchArgs),
    Evict(keep::EvictArgs),
    Cache(cache::CacheArgs),
    Dataset(dataset::DatasetArgs),
    R2(r2::R2Args),
    Url(url::UrlArgs),
    Gc(gc::GcArgs),
    Demo(demo::DemoArgs),
    Doctor(doctor::DoctorArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Names(completions::NamesArgs),
    Man(completions::ManArgs),
}

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// The flags that all commands have.
    pub global: GlobalArgs,
    /// The environment at the start.
    pub env: Environment,
    /// Where to write.
    pub out: Output,
}

impl Context {
    /// The settings in force, with `flags` on top.
    ///
    /// # Errors
    /// What the user got wrong.
    pub fn config(&self, flags: Layer) -> Result<Config, Failure> {
        Config::load(flags, self.global.selection(), &self.env).map_err(|err| failure::of_config(&err))
    }

    /// The base directories.
    ///
    /// # Errors
    /// They are not known.
    pub fn directories(&self) -> Result<Directories, Failure> {
        let uid = rustix::process::getuid().as_raw();
        Directories::find(&self.env, uid).map_err(|err| failure::of_config(&err))
    }

    /// How much is to be said.
    #[must_use]
    pub fn verbosity(&self) -> Verbosity {
        Verbosity { verbose: self.global.verbose, quiet: self.global.quiet }
    }

    /// Starts logging to stderr; `usual` is the level without `-v`.
    pub fn log_to_stderr(&self, usual: &str) {
        observe::log_to_stderr(self.verbosity(), usual, self.env.get("DSFS_LOG"), self.out.color());
    }
}

/// Runs `dsfs` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    process::arrange_memory();
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version are data, and go to stdout; a closed pipe is no error.
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::from(exit::DONE) };
        }
    };
    let env = Environment::of_process();
    failpoint::arm(env.absolute_path("DSFS_FAILPOINTS"));
    let color = env.get("NO_COLOR").is_none();
    let out = Output::new(cli.global.quiet, color);
    let mut cx = Context { global: cli.global, env, out };
    let mut result = dispatch(&cli.command, &mut cx);
    if let Err(failure) = &result {
        cx.out.failure(failure);
    }
    let written = cx.out.finish();
    if let Err(failure) = &written {
        Output::new(false, color).failure(failure);
    }
    result = result.and(written);
    result.map_or_else(|failure| exit::exit_code(failure.kind), |()| ExitCode::from(exit::DONE))
}

fn dispatch(command: &Command, cx: &mut Context) -> Result<(), Failure> {
    // A mount knows by itself where its lines go, and also writes some that nobody has asked for.
    let asked_for = cx.global.verbose > 0 || cx.env.get("DSFS_LOG").is_some();
    if asked_for && !matches!(command, Command::Mount(_)) {
        cx.log_to_stderr("warn");
    }
    match command {
        Command::Mount(args) => mount::run(args, cx),
        Command::Umount(args) => umount::run(args, cx),
        Command::Upgrade(args) => upgrade::run(args, cx),
        Command::Status(args) => status::run(args, cx),
        Command::Stat(args) => stat::run(args, cx),
        Command::Top(args) => top::run(args, cx),
        Command::List(args) => list::run(args, cx),
        Command::Log(args) => log::run(args, cx),
        Command::Show(args) => show::run(args, cx),
        Command::Diff(args) => diff::run(args, cx),
        Command::Verify(args) => verify::run(args, cx),
        Command::Commit(args) => commit::run(args, cx),
        Command::Demo(args) => demo::run(args, cx),
        Command::Discard(args) => discard::run(args, cx),
        Command::Refresh(args) => refresh::run(args, cx),
        Command::Pin(args) => keep::pin(args, cx),
        Command::Unpin(args) => keep::unpin(args, cx),
        Command::Prefetch(args) => keep::prefetch(args, cx),
        Command::Evict(args) => keep::evict(args, cx),
        Command::Cache(args) => cache::run(args, cx),
        Command::Dataset(args) => dataset::run(args, cx),
        Command::R2(args) => r2::run(args, cx),
        Command::Url(args) => url::run(args, cx),
        Command::Gc(args) => gc::run(args, cx),
        Command::Doctor(args) => doctor::run(args, cx),
        Command::Config(args) => config::run(args, cx),
        Command::Completions(args) => {
            completions::run(args, cx);
            Ok(())
        }
        Command::Names(args) => {
            completions::run_names(args, cx);
            Ok(())
        }
        Command::Man(args) => completions::run_man(args, cx),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn both_help_texts_have_the_exit_codes() {
        assert!(LONG_AFTER.ends_with(exit::TABLE));
    }
}
