//! `dsfs dataset`: whole datasets between a local directory and the remote, without a mount.

mod delete;
mod download;
mod list;
mod upload;

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::bulk::WorkersArgs;
use crate::cli::meter::Meter;
use crate::cli::target;
use crate::config::Config;
use crate::control::message::Failure;
use crate::control::message::Request;
use crate::daemon::dataset::DatasetJob;
use crate::name::DatasetName;
use crate::store::guarantee::Guarantee;

/// What says that a dataset is complete.
const MARKER: &str = "data.jsonl";

/// List, upload, download and delete whole datasets
///
/// The local ones are the directories in --root. An upload is a commit: all of it appears, or nothing, and
/// nothing is overwritten unless --overwrite says so. Flags can stand before and after the subcommand.
#[derive(Clone, Debug, Args)]
pub struct DatasetArgs {
    #[command(subcommand)]
    command: DatasetCommand,
    #[command(flatten)]
    shared: SharedArgs,
}

/// Flags of all subcommands.
#[derive(Clone, Debug, Args)]
struct SharedArgs {
    /// The directory of the local datasets
    #[arg(long, value_name = "DIR", default_value = "temp", global = true)]
    root: PathBuf,
    #[command(flatten)]
    workers: WorkersArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum DatasetCommand {
    List(list::ListArgs),
    Upload(upload::UploadArgs),
    Download(download::DownloadArgs),
    Delete(delete::DeleteArgs),
}

/// Runs the command.
///
/// # Errors
/// Its subcommand's.
pub fn run(args: &DatasetArgs, cx: &mut Context) -> Result<(), Failure> {
    match &args.command {
        DatasetCommand::List(own) => list::run(own, &args.shared, cx),
        DatasetCommand::Upload(own) => upload::run(own, &args.shared, cx),
        DatasetCommand::Download(own) => download::run(own, &args.shared, cx),
        DatasetCommand::Delete(own) => delete::run(own, &args.shared, cx),
    }
}

/// Has this user's mounts of the remote ask again about a dataset, so that they show the change now. A
/// mount that does not answer finds out by itself.
fn tell_mounts(name: &DatasetName, config: &Config) {
    let remote_id = config.remote.remote().id();
    for (socket, status) in target::live_mounts(&config.directories, None) {
        if status.remote_id == remote_id {
            let _told = target::ask(&socket, &Request::Refresh { dataset: Some(name.clone()) });
        }
    }
}

impl SharedArgs {
    /// The local directory of a dataset.
    fn local(&self, name: &DatasetName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn job<'a>(
        &self,
        session: &'a Session,
        name: &'a DatasetName,
        guarantee: Guarantee,
        meter: &Meter,
    ) -> DatasetJob<'a> {
        DatasetJob {
            config: &session.config,
            remote: &session.remote,
            name,
            workers: usize::from(self.workers.workers),
            guarantee,
            allow_unenforced: false,
            cancel: session.cancel.clone(),
            progress: meter.progress(),
        }
    }
}
