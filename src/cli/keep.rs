//! `dsfs pin`, `unpin`, `prefetch` and `evict`: what is kept on the local disk on purpose.

use clap::Args;

use crate::cli::Context;
use crate::cli::local;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::keep::KeepReply;
use crate::control::keep::KeepRequest;
use crate::control::keep::LocalOutcome;
use crate::control::keep::Part;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;

/// Missing files that are named; `--json` names all.
const MISSING_SHOWN_MAX: usize = 20;

/// Keep a dataset, or part of one, on the local disk from now on
///
/// Fetches what is missing, and what changes later. What is pinned is never evicted and can be read without
/// a network. Refused if all that is pinned would be more than the cache limit. Interrupted, the same
/// command goes on where it was.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs pin run_07
  dsfs pin run_07/train
  dsfs cache                                       what is pinned, and how much of it is local")]
pub struct PinArgs {
    #[command(flatten)]
    common: PartArgs,
}

/// Do not keep it any longer
///
/// What is cached stays until its room is needed; `dsfs evict` gives it back at once.
#[derive(Clone, Debug, Args)]
pub struct UnpinArgs {
    #[command(flatten)]
    common: PartArgs,
}

/// Fetch a dataset, or part of one, into the cache now
///
/// Interrupted, the same command goes on where it was. What is fetched may be evicted later, unless it is
/// pinned.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs prefetch run_07/train && python train.py")]
pub struct PrefetchArgs {
    #[command(flatten)]
    common: PartArgs,
}

/// Give back the room that a dataset, or part of one, takes in the cache
///
/// Nothing is deleted: it is fetched again when it is read. What is pinned stays.
#[derive(Clone, Debug, Args)]
pub struct EvictArgs {
    #[command(flatten)]
    common: PartArgs,
}

/// What all of them take.
#[derive(Clone, Debug, Args)]
struct PartArgs {
    /// A dataset, or a file or directory of one
    #[arg(value_name = "NAME[/PATH]")]
    part: Part,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

impl PartArgs {
    fn run(&self, request: fn(Part) -> KeepRequest, cx: &mut Context) -> Result<Option<KeepReply>, Failure> {
        let reply = local::keep(&self.target, request(self.part.clone()), cx)?;
        if self.json {
            cx.out.json(&reply);
            return Ok(None);
        }
        Ok(Some(reply))
    }

    /// Fetches what is missing; `what` it is then. Files that could not be had fail with and without `--json`.
    fn make_local(
        &self,
        request: fn(Part) -> KeepRequest,
        what: &str,
        cx: &mut Context,
    ) -> Result<(), Failure> {
        let reply = local::keep(&self.target, request(self.part.clone()), cx)?;
        if self.json {
            cx.out.json(&reply);
        }
        let KeepReply::Local(outcome) = &reply else { return of_other(Some(reply)) };
        if !self.json {
            show_local(&self.part, what, outcome, cx);
        }
        all_local(&self.part, outcome)
    }
}

/// Runs `dsfs pin`.
///
/// # Errors
/// It does not fit, or cannot be fetched.
pub fn pin(args: &PinArgs, cx: &mut Context) -> Result<(), Failure> {
    args.common.make_local(KeepRequest::Pin, "pinned", cx)
}

/// Runs `dsfs prefetch`.
///
/// # Errors
/// It does not fit, or cannot be fetched.
pub fn prefetch(args: &PrefetchArgs, cx: &mut Context) -> Result<(), Failure> {
    args.common.make_local(KeepRequest::Prefetch, "local", cx)
}

/// Runs `dsfs unpin`.
///
/// # Errors
/// It is not pinned.
pub fn unpin(args: &UnpinArgs, cx: &mut Context) -> Result<(), Failure> {
    match args.common.run(KeepRequest::Unpin, cx)? {
        Some(KeepReply::Unpinned(part)) => {
            cx.out.line(format!("{part}: not pinned any more"));
            Ok(())
        }
        other => of_other(other),
    }
}

/// Runs `dsfs evict`.
///
/// # Errors
/// Nothing of it is known.
pub fn evict(args: &EvictArgs, cx: &mut Context) -> Result<(), Failure> {
    match args.common.run(KeepRequest::Evict, cx)? {
        Some(KeepReply::Evicted(outcome)) => {
            let part = &args.common.part;
            let (files, bytes) = (counted(outcome.files, "file"), units::show_size(outcome.bytes));
            cx.out.line(format!("{part}: gave back {bytes} of {files}"));
            if outcome.pinned_files > 0 {
                let pinned = counted(outcome.pinned_files, "file");
                cx.out.note(format!("{pinned} stayed: pinned (`dsfs cache` lists the pins)"));
            }
            Ok(())
        }
        other => of_other(other),
    }
}

fn show_local(part: &Part, what: &str, outcome: &LocalOutcome, cx: &mut Context) {
    let (files, bytes) = (counted(outcome.files, "file"), units::show_size(outcome.bytes));
    let fetched = match outcome.fetched_files {
        0 => "all of it was local already".to_owned(),
        fetched => {
            format!("fetched {} ({})", counted(fetched, "file"), units::show_size(outcome.fetched_bytes))
        }
    };
    cx.out.line(format!("{part}: {what}, {bytes} in {files}; {fetched}"));
}

fn all_local(part: &Part, outcome: &LocalOutcome) -> Result<(), Failure> {
    if outcome.missing.is_empty() {
        return Ok(());
    }
    let message = format!("{} of {part} could not be kept", counted(outcome.missing.len() as u64, "file"));
    Err(Failure::new(FailureKind::Partial, message)
        .details(outcome.missing.iter().take(MISSING_SHOWN_MAX))
        .hint("the same command tries again; `dsfs status` says whether the cache is used"))
}

/// After `--json`; or the daemon speaks of something else.
fn of_other(reply: Option<KeepReply>) -> Result<(), Failure> {
    reply.map_or(Ok(()), |reply| Err(target::unexpected(&Reply::Kept(reply))))
}
