//! `dsfs verify`: does the cache, and does the remote, hold what was committed?

use std::collections::BTreeSet;

use clap::Args;

use crate::cli::Context;
use crate::cli::history;
use crate::cli::output::counted;
use crate::cli::output::printable;
use crate::cli::target::TargetArgs;
use crate::commit::WORKERS_DEFAULT;
use crate::compare::BadFile;
use crate::compare::Place;
use crate::compare::Problem;
use crate::compare::VerifyReport;
use crate::config::units;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::name::RelPath;
use crate::name::Revision;

/// Verify that the cache, and with --remote the bucket, hold what was committed
///
/// Every file that is cached whole is read from the disk and compared with its content id; of files that
/// are cached in part, every block with its checksum. What is wrong is dropped from the cache, and the
/// next reader fetches it again. --remote reads every object of the snapshot from the bucket and compares
/// its SHA-256; the remote may be named by it as everywhere. Each path that is not what was committed is named, and then the exit code is 1. Objects
/// that other tools have put there have no content id: they are counted, and nothing is claimed of them.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs verify run_07                      what is cached of it
  dsfs verify run_07 --remote             and all of it in the bucket
  dsfs verify run_07 --remote s3://lab/datasets/ -e https://minio.lab:9000 -w 4
  dsfs verify run_07@3 --remote --json | jq -r '.bad[].path'")]
pub struct VerifyArgs {
    /// The dataset, or what it held after one of its commits
    #[arg(value_name = "NAME[@SEQ]")]
    revision: Revision,
    /// Read all of it from the remote too; with a URL, from that one
    // The same id as the flag of all commands, whose place it takes: that one sees the URL all the same.
    #[arg(long, id = "remote", value_name = "URL", num_args = 0..=1)]
    remote: Option<Option<String>>,
    /// Files read at a time
    #[arg(short, long, value_name = "N", default_value_t = WORKERS_DEFAULT as u16, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs the command.
///
/// # Errors
/// There is no such dataset or commit; the remote cannot be reached; something is not what was committed.
pub fn run(args: &VerifyArgs, cx: &mut Context) -> Result<(), Failure> {
    let request = HistoryRequest::Verify {
        revision: args.revision.clone(),
        remote: args.remote.is_some(),
        workers: usize::from(args.workers),
    };
    let HistoryReply::Verified(report) = history::ask(&args.target, request, cx)? else {
        return Err(history::unexpected());
    };
    if args.json {
        cx.out.json(&report);
    } else {
        show(&report, cx);
    }
    verdict(&report)
}

fn show(report: &VerifyReport, cx: &mut Context) {
    let name = printable(report.dataset.as_str());
    let held = sized(report.files, report.bytes);
    match report.seq {
        Some(seq) => cx.out.line(format!("{name}@{seq}: {held}")),
        None => cx.out.line(format!("{name}: no commits, so there are no content ids to verify against")),
    }
    let mut rows = Vec::new();
    let mut row = |place: &str, what: String| rows.push(vec![format!("  {place}"), what]);
    if let Some(cache) = &report.cache {
        row("cache", format!("{} whole and right", sized(cache.whole_files, cache.whole_bytes)));
        if cache.partial_files > 0 {
            let partial = sized(cache.partial_files, cache.partial_bytes);
            row("", format!("{partial} in part: the blocks fit their checksums"));
        }
        if cache.absent_files > 0 {
            row("", format!("{} not cached", counted(cache.absent_files, "file")));
        }
    }
    if let Some(remote) = &report.remote {
        row("remote", format!("{} right", sized(remote.right_files, remote.right_bytes)));
        if remote.superseded_files > 0 {
            let superseded = counted(remote.superseded_files, "file");
            row("", format!("{superseded} replaced or deleted by later commits: not there any more"));
        }
        if remote.foreign_files > 0 {
            let foreign = sized(remote.foreign_files, remote.foreign_bytes);
            row("", format!("{foreign} of other tools: without a content id, nothing is claimed of them"));
        }
    }
    cx.out.table(&rows);
    cx.out.table(&report.bad.iter().map(bad_row).collect::<Vec<_>>());
}

fn sized(files: u64, bytes: u64) -> String {
    format!("{} ({})", counted(files, "file"), units::show_size(bytes))
}

fn bad_row(file: &BadFile) -> Vec<String> {
    let place = match file.place {
        Place::Cache => "cache",
        Place::Remote => "remote",
    };
    let problem = match file.problem {
        Problem::Missing => "missing",
        Problem::WrongSize => "wrong size",
        Problem::WrongContent => "wrong content",
        Problem::Replaced => "replaced",
        Problem::Damaged => "damaged",
        Problem::Unreadable => "unreadable",
    };
    let path = printable(file.path.as_str());
    vec![
        "BAD".to_owned(),
        place.to_owned(),
        problem.to_owned(),
        path,
        format!("({})", printable(&file.detail)),
    ]
}

/// What is wrong decides the exit code, whatever was printed.
fn verdict(report: &VerifyReport) -> Result<(), Failure> {
    if report.bad.is_empty() {
        return Ok(());
    }
    let paths: BTreeSet<&RelPath> = report.bad.iter().map(|file| &file.path).collect();
    let bad = counted(paths.len() as u64, "file");
    let message = format!("{}: {bad} not as committed", report.dataset);
    let failure = Failure::new(FailureKind::Failed, message);
    let in_remote = report.bad.iter().any(|file| file.place == Place::Remote);
    Err(if in_remote {
        failure.hint(format!(
            "`dsfs show {}` has the ETag and content id of each file; a copy elsewhere, or the bucket's own versions, may have the bytes",
            report.dataset
        ))
    } else {
        failure.hint("what was wrong is dropped from the cache: the next reader fetches it again")
    })
}
