//! `dsfs cache`: what is on the local disk, and what can be done about it.

use clap::Args;
use clap::Subcommand;

use crate::cli::Context;
use crate::cli::local;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::keep::CacheUsageReport;
use crate::control::keep::DatasetUsage;
use crate::control::keep::KeepReply;
use crate::control::keep::KeepRequest;
use crate::control::keep::PinStatus;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;

/// Show what is local: by dataset, and what is pinned
///
/// As far as directories are known: a dataset that nobody has looked at is not listed for this.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs cache
  dsfs cache verify
  dsfs cache clear --pinned")]
pub struct CacheArgs {
    #[command(subcommand)]
    command: Option<CacheCommand>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum CacheCommand {
    /// Compare every cached block with its checksum, and drop those that are damaged
    ///
    /// Exit code 1 if there were any: they are fetched again when they are needed.
    Verify,
    /// Give back the room that cached blocks take
    Clear {
        /// Of what is pinned too; pins stay, and a mount fetches them again
        #[arg(long)]
        pinned: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// The local disk's; damaged blocks were found.
pub fn run(args: &CacheArgs, cx: &mut Context) -> Result<(), Failure> {
    let request = match args.command {
        None => KeepRequest::Usage,
        Some(CacheCommand::Verify) => KeepRequest::Verify,
        Some(CacheCommand::Clear { pinned }) => KeepRequest::Clear { pinned },
    };
    let reply = local::keep(&args.target, request, cx)?;
    if args.json {
        cx.out.json(&reply);
    }
    match reply {
        KeepReply::Usage(usage) => {
            if !args.json {
                show(&usage, cx);
            }
            Ok(())
        }
        KeepReply::Evicted(outcome) => {
            if !args.json {
                let (files, bytes) = (counted(outcome.files, "file"), units::show_size(outcome.bytes));
                cx.out.line(format!("gave back {bytes} of {files}"));
                if outcome.pinned_files > 0 {
                    let pinned = counted(outcome.pinned_files, "file");
                    cx.out.note(format!("{pinned} stayed, which are pinned; --pinned clears them too"));
                }
            }
            Ok(())
        }
        KeepReply::Verified(outcome) => {
            if !args.json {
                let (files, bytes) = (counted(outcome.files, "file"), units::show_size(outcome.bytes));
                let damaged = counted(outcome.damaged_blocks, "damaged block");
                cx.out.line(format!("checked {bytes} of {files}: {damaged}"));
            }
            match outcome.damaged_blocks {
                0 => Ok(()),
                _ => {
                    Err(Failure::new(FailureKind::Failed, "the cache had damaged blocks; they were dropped")
                        .hint("they are fetched again when they are needed; look after that disk"))
                }
            }
        }
        reply @ (KeepReply::Local(_) | KeepReply::Unpinned(_)) => {
            Err(target::unexpected(&Reply::Kept(reply)))
        }
    }
}

fn show(usage: &CacheUsageReport, cx: &mut Context) {
    let rate = match usage.hits + usage.misses {
        0 => String::new(),
        all => format!(", {} % of {} blocks were hits", usage.hits * 100 / all, all),
    };
    cx.out.line(format!(
        "{}: {} of {} in {}, and {} pinned{rate}",
        usage.dir.display(),
        units::show_size(usage.used_bytes),
        units::show_size(usage.limit_bytes),
        counted(usage.files, "file"),
        units::show_size(usage.pinned_bytes)
    ));
    if let Some(reason) = &usage.bypassed {
        cx.out.warn(format!("the cache is not used: {reason}"));
    }
    if !usage.datasets.is_empty() {
        let mut rows = vec![["DATASET", "LOCAL", "OF", "FILES", "PINNED"].map(str::to_owned).to_vec()];
        rows.extend(usage.datasets.iter().map(dataset_row));
        cx.out.table(&rows);
    }
    for pin in &usage.pins {
        cx.out.line(pin_line(pin));
    }
}

fn dataset_row(dataset: &DatasetUsage) -> Vec<String> {
    vec![
        dataset.name.as_str().escape_debug().to_string(),
        units::show_size(dataset.cached_bytes),
        units::show_size(dataset.bytes),
        format!("{} of {}", dataset.cached_files, dataset.files),
        if dataset.pinned_files > 0 { dataset.pinned_files.to_string() } else { String::new() },
    ]
}

fn pin_line(pin: &PinStatus) -> String {
    let state = if pin.files == 0 {
        "nothing of it is known yet".to_owned()
    } else if pin.local_files == pin.files {
        format!("all of its {} local, {}", counted(pin.files, "file"), units::show_size(pin.bytes))
    } else {
        format!("{} of {} local", pin.local_files, counted(pin.files, "file"))
    };
    format!("pinned {} since {}: {state}", pin.part, pin.since)
}
