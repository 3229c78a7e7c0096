//! `dsfs dataset download`: a dataset as a local directory.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::dataset::MARKER;
use crate::cli::dataset::SharedArgs;
use crate::cli::meter::Meter;
use crate::cli::output::counted;
use crate::cli::target;
use crate::config::units;
use crate::control::message::Failure;
use crate::daemon::compose;
use crate::daemon::remote;
use crate::name::DatasetName;
use crate::store::guarantee::Guarantee;
use crate::transfer::DownloadReport;
use crate::transfer::Transfer;
use crate::transfer::TransferOptions;

/// Download a dataset to the local directory ROOT/NAME
///
/// Each file is compared with its recorded content, and appears whole. What the cache of this machine has
/// already is copied from there. If any file is there already, all of those are named and nothing is
/// downloaded. What was interrupted goes on with the same command.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs dataset download run_07                     to the directory temp/run_07
  dsfs dataset download run_07 --root ~/data -w 32")]
pub struct DownloadArgs {
    /// The dataset
    name: DatasetName,
    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    dataset: &'a DatasetName,
    target: PathBuf,
    #[serde(flatten)]
    report: DownloadReport,
}

/// Runs the command.
///
/// # Errors
/// Something is in the way; there is no such dataset; the transfer's.
pub fn run(args: &DownloadArgs, shared: &SharedArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = target::config(cx.global.layer(), cx)?;
    let target = shared.local(&args.name);
    let meter = Meter::new("Downloading", true, &cx.out);
    let report = remote::runtime_for_downloads()?.block_on(async {
        let session = Session::open(&config).await?;
        let transfer = Transfer {
            store: Arc::clone(&session.remote.store),
            options: TransferOptions {
                workers: usize::from(shared.workers.workers),
                overwrite: args.overwrite,
                cancel: session.cancel.clone(),
                ..TransferOptions::default()
            },
            watch: meter.watch(),
            notes: Some(session.notes()),
            cache: compose::local_cache(&session.config, &session.remote),
        };
        // A download writes nothing: what the remote enforces does not matter.
        shared.job(&session, &args.name, Guarantee::Enforced, &meter).download(&target, transfer).await
    });
    meter.finish(report.is_ok());
    let report = report?;
    if !target.join(MARKER).is_file() {
        cx.out.warn(format!("{} has no {MARKER}: the dataset may not be complete", target.display()));
    }
    if args.json {
        cx.out.json(&Outcome { dataset: &args.name, target, report });
    } else {
        let (files, size) = (counted(report.files, "file"), units::show_size(report.bytes));
        let cached = match report.from_cache {
            0 => String::new(),
            count => format!(", {} of it out of the cache", counted(count, "file")),
        };
        cx.out.note(format!("{}: {files} ({size}) at {}{cached}", args.name, target.display()));
    }
    Ok(())
}
