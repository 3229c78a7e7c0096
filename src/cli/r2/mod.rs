//! `dsfs r2`, also `dsfs s3`: the objects of a bucket, whatever they are.

mod delete;
mod download;
mod list;
mod upload;

use clap::Args;
use clap::Subcommand;

use crate::cli::Context;
use crate::control::message::Failure;

/// List, download, upload and delete objects of a bucket
///
/// Keys are given whole, `datasets/run_07/data.jsonl`, or as `s3://BUCKET/KEY`. Nothing is overwritten
/// unless --overwrite says so: whatever is in the way is named, all of it, before anything is sent.
#[derive(Clone, Debug, Args)]
#[command(visible_alias = "s3")]
pub struct R2Args {
    #[command(subcommand)]
    command: R2Command,
}

#[derive(Clone, Debug, Subcommand)]
enum R2Command {
    List(list::ListArgs),
    Download(download::DownloadArgs),
    Upload(upload::UploadArgs),
    Delete(delete::DeleteArgs),
}

/// Runs the command.
///
/// # Errors
/// Its subcommand's.
pub fn run(args: &R2Args, cx: &mut Context) -> Result<(), Failure> {
    match &args.command {
        R2Command::List(args) => list::run(args, cx),
        R2Command::Download(args) => download::run(args, cx),
        R2Command::Upload(args) => upload::run(args, cx),
        R2Command::Delete(args) => delete::run(args, cx),
    }
}
