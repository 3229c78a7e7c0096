//! `dsfs r2 download`: an object, or everything below a prefix.

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
use crate::client::Found;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::remote;
use crate::name::KeyPrefix;
use crate::transfer::DownloadReport;

/// Download an object, or everything below a prefix
///
/// With '/' at its end SOURCE is a prefix; else it is the object of that key, or, if there is none, the
/// prefix. The object lands at DIR/NAME, the prefix at DIR/LAST-COMPONENT/…. If any file is there already,
/// all of those are named and nothing is downloaded. Each file is checked and appears whole; what was
/// interrupted goes on with the same command.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs r2 download datasets/run_07/                    to temp/run_07/…
  dsfs r2 download datasets/run_07/data.jsonl -o .     to ./data.jsonl
  dsfs r2 download s3://assets/datasets/run_07 -o /data -w 32 -p")]
pub struct DownloadArgs {
    /// The key, or the prefix
    source: String,
    /// The directory that it lands in
    #[arg(short, long, value_name = "DIR", default_value = "temp")]
    output: PathBuf,
    #[command(flatten)]
    workers: WorkersArgs,
    /// Show how far it has come
    #[arg(short, long)]
    progress: bool,
    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    target: PathBuf,
    #[serde(flatten)]
    report: DownloadReport,
}

/// Runs the command.
///
/// # Errors
/// Something is in the way; nothing is there; the transfer's.
pub fn run(args: &DownloadArgs, cx: &mut Context) -> Result<(), Failure> {
    let (config, source) = bulk::located(&args.source, cx)?;
    let meter = Meter::new("Downloading", args.progress, &cx.out);
    let outcome = remote::runtime_for_downloads()?.block_on(async {
        let session = Session::open(&config).await?;
        download(args, &source, &session, &meter).await
    });
    meter.finish(outcome.is_ok());
    let outcome = outcome?;
    if args.json {
        cx.out.json(&outcome);
    } else {
        let (files, size) = (counted(outcome.report.files, "file"), units::show_size(outcome.report.bytes));
        cx.out.note(format!("{files} ({size}) at {}", outcome.target.display()));
    }
    Ok(())
}

async fn download(
    args: &DownloadArgs,
    source: &str,
    session: &Session,
    meter: &Meter,
) -> Result<Outcome, Failure> {
    let client = session.client(args.workers.workers, meter);
    let failed = |err: ClientError| session.failed(&err);
    let found = session.unless_cancelled(async { client.find(source).await.map_err(failed) }).await?;
    let overwrite = args.overwrite.into();
    let (target, report) = match &found {
        Found::Object(key, meta) => {
            let target = args.output.join(last_component(key.as_str())?);
            (target.clone(), client.download_object(key, meta, &target, overwrite).await)
        }
        Found::Prefix(prefix, objects) => {
            let target = directory_of(prefix, &args.output)?;
            (target.clone(), client.download_listed(prefix, objects, &target, overwrite).await)
        }
    };
    Ok(Outcome { target, report: report.map_err(failed)? })
}

/// Where a prefix lands: the whole bucket in the directory itself.
fn directory_of(prefix: &KeyPrefix, output: &Path) -> Result<PathBuf, Failure> {
    match prefix.as_str().strip_suffix('/') {
        Some(text) => Ok(output.join(last_component(text)?)),
        None => Ok(output.to_owned()),
    }
}

/// The name that a key has as a file.
fn last_component(key: &str) -> Result<&str, Failure> {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    match crate::name::check_component(name) {
        Ok(()) => Ok(name),
        Err(err) => Err(Failure::new(FailureKind::Failed, format!("{key}: {err}"))),
    }
}
