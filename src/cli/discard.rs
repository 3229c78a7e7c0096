//! `dsfs discard`: throw staged changes away.

use std::io;
use std::io::BufRead;
use std::io::IsTerminal;
use std::path::Path;

use clap::Args;

use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::message::DiscardOutcome;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::staging::Holder;
use crate::staging::Staging;

/// Throw staged changes away
///
/// Only what is staged goes; what is published stays. Asks first, unless --yes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs discard run_07
  dsfs discard run_07 frames/0001.png notes --yes")]
pub struct DiscardArgs {
    /// The dataset
    name: DatasetName,
    /// Only these files and directories of it
    #[arg(value_name = "PATH")]
    paths: Vec<RelPath>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Nothing is staged there; the user said no, or could not be asked.
pub fn run(args: &DiscardArgs, cx: &mut Context) -> Result<(), Failure> {
    let outcome = match target::find(&args.target, cx)? {
        Target::Daemon(socket) => through_daemon(args, &socket)?,
        Target::Direct(config) => {
            let dir = config.remote_state_dir();
            let holder = Holder { pid: std::process::id(), ..Holder::default() };
            let nothing =
                || Failure::new(FailureKind::NotFound, format!("nothing is staged for {}", args.name));
            if !dir.is_dir() {
                return Err(nothing());
            }
            let staging = Staging::open(&dir, &holder).map_err(|err| failure::of_staging(&err))?;
            let chosen = operations::select(&staging, &args.name, &args.paths)?;
            confirm(args, chosen.len() as u64, chosen.iter().map(|file| file.bytes).sum())?;
            operations::discard(&staging, &args.name, &args.paths)?
        }
    };
    if args.json {
        cx.out.json(&outcome);
    } else {
        let bytes = units::show_size(outcome.bytes);
        cx.out.note(format!(
            "discarded {} of {} ({bytes})",
            counted(outcome.files, "staged file"),
            outcome.dataset
        ));
    }
    Ok(())
}

fn through_daemon(args: &DiscardArgs, socket: &Path) -> Result<DiscardOutcome, Failure> {
    let reply = target::ask(socket, &Request::Status { files_of: Some(args.name.clone()) })?;
    let Reply::Status(status) = reply else { return Err(target::unexpected(&reply)) };
    if let Some(dataset) = status.staged.iter().find(|dataset| dataset.name == args.name) {
        let chosen = dataset.entries.iter().filter(|file| {
            let below = |path: &RelPath| crate::name::DirPath::from(path.clone()).contains(&file.path);
            args.paths.is_empty() || args.paths.iter().any(|path| *path == file.path || below(path))
        });
        let (files, bytes) = chosen.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.bytes));
        confirm(args, files, bytes)?;
    }
    let reply =
        target::ask(socket, &Request::Discard { dataset: args.name.clone(), paths: args.paths.clone() })?;
    let Reply::Discarded(outcome) = reply else { return Err(target::unexpected(&reply)) };
    Ok(outcome)
}

fn confirm(args: &DiscardArgs, files: u64, bytes: u64) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let what = format!("{} of {} ({})", counted(files, "staged file"), args.name, units::show_size(bytes));
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("nobody can be asked whether to discard {what}"),
        )
        .hint("--yes, if that is what you want"));
    }
    ask(&format!("discard {what}? They exist nowhere else. [y/N] "))
}

fn ask(question: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut stderr = io::stderr().lock();
    let mut answer = String::new();
    let asked =
        stderr.write_all(question.as_bytes()).and_then(|()| io::stdin().lock().read_line(&mut answer));
    match (asked, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(FailureKind::Failed, "nothing was discarded")),
    }
}
