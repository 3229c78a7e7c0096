//! `dsfs dataset upload`: publish a local directory as a dataset, all or nothing.

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::dataset::MARKER;
use crate::cli::dataset::SharedArgs;
use crate::cli::dataset::tell_mounts;
use crate::cli::meter::Meter;
use crate::cli::output::counted;
use crate::cli::target;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::remote;
use crate::local::LocalTree;
use crate::name::DatasetName;

/// Publish the local directory ROOT/NAME as a dataset, all or nothing
///
/// A commit, as `dsfs commit` makes it, of files that stay where they are: recorded in the dataset's log,
/// never over anything, and resumed by the same command if it was interrupted, also by a crash. If any file
/// is published already, all of those are named and nothing is changed.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs dataset upload run_07                       the directory temp/run_07
  dsfs dataset upload run_07 --root ~/recordings -m 'first take'
  dsfs dataset upload run_07 --overwrite           replace files that are published; others stay")]
pub struct UploadArgs {
    /// The dataset
    name: DatasetName,
    /// Replace published files, in the versions that are there now
    #[arg(long)]
    overwrite: bool,
    /// Why, for the commit's record
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Go on although the remote cannot refuse to overwrite what another tool writes meanwhile
    #[arg(long)]
    allow_unenforced: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    dataset: &'a DatasetName,
    txid: String,
    seq: Option<u64>,
    files: u64,
    bytes: u64,
    guarantee: String,
}

/// Runs the command.
///
/// # Errors
/// Nothing was published, and why.
pub fn run(args: &UploadArgs, shared: &SharedArgs, cx: &mut Context) -> Result<(), Failure> {
    let root = shared.local(&args.name);
    if !root.is_dir() {
        let message = format!("there is no directory {}", root.display());
        return Err(Failure::new(FailureKind::NotFound, message).hint("--root says where it is"));
    }
    let tree = LocalTree::of(&root).map_err(|err| failure::of_transfer(&err.into()))?;
    for what in &tree.left_out {
        cx.out.warn(format!("left out: {what}"));
    }
    if !tree.files.iter().any(|file| file.path.as_str() == MARKER) {
        cx.out.warn(format!("{} has no {MARKER}, which says that a dataset is complete", root.display()));
    }
    let config = target::config(cx.global.layer(), cx)?;
    let meter = Meter::new("Uploading", true, &cx.out);
    meter.watch().total(tree.files.len() as u64, tree.bytes());
    let report = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        let guarantee = session.guarantee(cx).await?;
        let mut job = shared.job(&session, &args.name, guarantee, &meter);
        job.allow_unenforced = args.allow_unenforced;
        job.upload(&root, &tree, args.overwrite, args.message.clone()).await
    });
    meter.finish(report.is_ok());
    let report = report?;
    tell_mounts(&args.name, &config);
    if args.json {
        cx.out.json(&Outcome {
            dataset: &report.dataset,
            txid: report.txid.clone(),
            seq: report.seq,
            files: report.files,
            bytes: report.bytes,
            guarantee: report.guarantee.to_string(),
        });
    } else {
        let (files, size) = (counted(report.files, "file"), units::show_size(report.bytes));
        let number = report.seq.map(|seq| format!(" as commit {seq}")).unwrap_or_default();
        cx.out.line(format!("{}: published {files} ({size}){number}", args.name));
    }
    Ok(())
}
