//! `dsfs log`: the commits of a dataset.

use clap::Args;

use crate::cli::Context;
use crate::cli::history;
use crate::cli::output::printable;
use crate::cli::target::TargetArgs;
use crate::control::history::CommitHeader;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::name::DatasetName;

/// Characters of a transaction id that are shown: its time, which tells the commits of a dataset apart.
const TXID_SHOWN: usize = 10;

/// List the commits of a dataset, newest first
///
/// Each line: the commit's number, the beginning of its id, when, who and where, what it did, and why.
/// A commit that was given up and changed nothing is marked as aborted. Works with and without a mount.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs log run_07
  dsfs log run_07 -n 5
  dsfs log run_07 --json | jq -r '.[] | select(.aborted | not) | .seq'
  ls ~/datasets/run_07@3                  what it held after commit 3")]
pub struct LogArgs {
    /// The dataset
    name: DatasetName,
    /// Only the newest N
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// As JSON, with everything that the log says
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs the command.
///
/// # Errors
/// There is no such dataset; the log cannot be read.
pub fn run(args: &LogArgs, cx: &mut Context) -> Result<(), Failure> {
    let request = HistoryRequest::Log { dataset: args.name.clone(), limit: args.limit };
    let HistoryReply::Log(commits) = history::ask(&args.target, request, cx)? else {
        return Err(history::unexpected());
    };
    if args.json {
        cx.out.json(&commits);
        return Ok(());
    }
    if commits.is_empty() {
        cx.out.note(format!("{} has no commits: other tools than dsfs have put it there", args.name));
    }
    cx.out.table(&commits.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(commit: &CommitHeader) -> Vec<String> {
    vec![
        commit.seq.to_string(),
        printable(&commit.txid.chars().take(TXID_SHOWN).collect::<String>()),
        history::to_the_second(&commit.time),
        printable(&format!("{}@{}", commit.author, commit.host)),
        history::described(commit),
        printable(commit.message.as_deref().and_then(|message| message.lines().next()).unwrap_or_default()),
    ]
}
