//! `dsfs r2 upload`: a file, or a directory.

use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk;
use crate::cli::bulk::Session;
use crate::cli::bulk::WorkersArgs;
use crate::cli::meter::Meter;
use crate::cli::output::counted;
use crate::client::ClientError;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::remote;
use crate::local::LocalTree;
use crate::transfer::TransferError;
use crate::transfer::UploadReport;

/// Upload a file, or everything in a directory
///
/// A directory lands below DESTINATION; a file at DESTINATION, or, if that ends in '/', below it under its
/// own name. If any object is there already, all of those are named and nothing is uploaded; one that
/// appears meanwhile is left alone, and what had been uploaded is removed again (with --overwrite it
/// stays, and the exit code is 6). To replace a single object, delete it first.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs r2 upload results datasets/run_07/results
  dsfs r2 upload data.jsonl datasets/run_07/
  dsfs r2 upload results s3://assets/results --overwrite -p")]
pub struct UploadArgs {
    /// The file or the directory
    source: PathBuf,
    /// The key, or the prefix
    destination: String,
    #[command(flatten)]
    workers: WorkersArgs,
    /// Show how far it has come
    #[arg(short, long)]
    progress: bool,
    /// Replace objects that are there, in the version that is there now; directories only
    #[arg(long)]
    overwrite: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    target: String,
    #[serde(flatten)]
    report: UploadReport,
}

/// Runs the command.
///
/// # Errors
/// Something is in the way; the transfer's.
pub fn run(args: &UploadArgs, cx: &mut Context) -> Result<(), Failure> {
    let (config, destination) = bulk::located(&args.destination, cx)?;
    let meter = Meter::new("Uploading", args.progress, &cx.out);
    let outcome = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        upload(args, &destination, &session, &meter, cx).await
    });
    meter.finish(outcome.is_ok());
    let outcome = outcome?;
    if args.json {
        cx.out.json(&outcome);
    } else {
        let (files, size) = (counted(outcome.report.files, "file"), units::show_size(outcome.report.bytes));
        cx.out.note(format!("{files} ({size}) at {}", outcome.target));
    }
    Ok(())
}

async fn upload(
    args: &UploadArgs,
    destination: &str,
    session: &Session,
    meter: &Meter,
    cx: &mut Context,
) -> Result<Outcome, Failure> {
    let failed = |err: ClientError| session.failed(&err);
    let source = &args.source;
    let meta = std::fs::metadata(source)
        .map_err(|err| failed(TransferError::Io { path: source.clone(), source: err }))?;
    if !meta.is_dir() && args.overwrite {
        return Err(Failure::new(FailureKind::Usage, "--overwrite is for directories")
            .hint(format!("`dsfs r2 delete {}` first", args.destination)));
    }
    let guarantee = session.guarantee(cx).await?;
    let client = session.client(args.workers.workers, meter).guarantee(guarantee);
    if meta.is_dir() {
        let tree = LocalTree::of(source).map_err(|err| failed(err.into()))?;
        for what in &tree.left_out {
            cx.out.warn(format!("left out: {what}"));
        }
        let report = client.upload_tree(source, &tree, destination, args.overwrite.into()).await;
        let target = format!("{}/", destination.trim_end_matches('/'));
        return Ok(Outcome { target, report: report.map_err(failed)? });
    }
    let key = key_of(source, destination)?;
    let report = client.upload_file(source, &key).await.map_err(failed)?;
    Ok(Outcome { target: key, report })
}

/// The key of a single file.
fn key_of(source: &Path, destination: &str) -> Result<String, Failure> {
    if !destination.is_empty() && !destination.ends_with('/') {
        return Ok(destination.to_owned());
    }
    match source.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(format!("{destination}{name}")),
        None => Err(Failure::new(FailureKind::Usage, format!("{} has no name", source.display()))),
    }
}
