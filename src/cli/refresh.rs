//! `dsfs refresh`: ask the remote again, now.

use std::thread;
use std::time::Duration;

use clap::Args;

use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::RefreshOutcome;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::name::DatasetName;

/// Changed paths that are shown; `--json` shows more.
const CHANGED_SHOWN_MAX: usize = 50;
/// Between two looks, unless the user says otherwise.
const WATCH_DEFAULT: Duration = Duration::from_secs(5);

/// Ask the remote again, rather than when the listings expire
///
/// All directories that are known are listed again, and what the kernel has cached of those that changed is
/// dropped. Needs a mount.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs refresh run_07
  dsfs refresh --watch                             every 5 seconds, until Ctrl-C
  dsfs refresh run_07 --watch=1s")]
pub struct RefreshArgs {
    /// Only this dataset
    name: Option<DatasetName>,
    /// Again and again, and show what changes
    #[arg(long, value_name = "EVERY", num_args = 0..=1, require_equals = true, default_missing_value = "5s")]
    watch: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs the command.
///
/// # Errors
/// There is no mount; the remote does not answer.
pub fn run(args: &RefreshArgs, cx: &mut Context) -> Result<(), Failure> {
    let every = match &args.watch {
        None => None,
        Some(text) => Some(units::parse_duration(text).map_err(|err| {
            Failure::new(FailureKind::Usage, format!("--watch: {err}")).hint("--watch=5s, --watch=1m")
        })?),
    };
    let socket = match target::find(&args.target, cx)? {
        Target::Daemon(socket) => socket,
        Target::Direct(config) => return Err(target::not_mounted(&config)),
    };
    loop {
        let request = Request::Refresh { dataset: args.name.clone() };
        let reply = target::ask(&socket, &request)?;
        let Reply::Refreshed(outcome) = reply else { return Err(target::unexpected(&reply)) };
        if args.json {
            cx.out.json(&outcome);
        } else if every.is_none() || outcome.changed_count > 0 {
            show(&outcome, cx);
        }
        cx.out.flush();
        match every {
            None => return Ok(()),
            Some(every) => thread::sleep(if every.is_zero() { WATCH_DEFAULT } else { every }),
        }
    }
}

fn show(outcome: &RefreshOutcome, cx: &mut Context) {
    for path in outcome.changed.iter().take(CHANGED_SHOWN_MAX) {
        cx.out.line(path.escape_debug().to_string());
    }
    let more = outcome.changed_count.saturating_sub(CHANGED_SHOWN_MAX as u64);
    if more > 0 {
        cx.out.line(format!("and {more} more"));
    }
    let directories = match outcome.directories {
        1 => "1 directory".to_owned(),
        many => format!("{many} directories"),
    };
    cx.out.note(format!("listed {directories}: {}", counted(outcome.changed_count, "change")));
}
