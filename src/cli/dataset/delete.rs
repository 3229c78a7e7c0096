//! `dsfs dataset delete`: a dataset off the remote, in one commit.

use std::fs;
use std::io;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::dataset::SharedArgs;
use crate::cli::dataset::tell_mounts;
use crate::cli::meter::Meter;
use crate::cli::output::counted;
use crate::cli::target;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::remote;
use crate::name::DatasetName;

/// Delete a dataset from the remote
///
/// One commit in the dataset's log: every mount sees all of it go, or nothing. Objects that somebody replaces
/// meanwhile stay. Asks nobody, and does nothing without --yes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs dataset delete run_07 --yes
  dsfs dataset delete run_07 --yes --local         the local directory ROOT/run_07, too")]
pub struct DeleteArgs {
    /// The dataset
    name: DatasetName,
    /// Yes, it is to be deleted
    #[arg(short, long)]
    yes: bool,
    /// Delete the local directory ROOT/NAME, too
    #[arg(long)]
    local: bool,
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
    deleted: u64,
    local: bool,
}

/// Runs the command.
///
/// # Errors
/// `--yes` is missing; there is no such dataset, here or there; what a commit can meet with.
pub fn run(args: &DeleteArgs, shared: &SharedArgs, cx: &mut Context) -> Result<(), Failure> {
    let name = &args.name;
    if !args.yes {
        let message = format!("{name} was not deleted: nothing brings it back");
        return Err(Failure::new(FailureKind::Usage, message).hint("--yes, if that is what you want"));
    }
    let config = target::config(cx.global.layer(), cx)?;
    let meter = Meter::new("Deleting", false, &cx.out);
    let deleted = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        let guarantee = session.guarantee(cx).await?;
        let mut job = shared.job(&session, name, guarantee, &meter);
        job.allow_unenforced = args.allow_unenforced;
        job.delete().await
    });
    let had_local = match &deleted {
        Ok(_) => args.local && remove_local(shared, name)?,
        // What is only here can still be deleted here.
        Err(failure) if failure.kind == FailureKind::NotFound => args.local && remove_local(shared, name)?,
        Err(_) => false,
    };
    let deleted = match deleted {
        Err(failure) if failure.kind == FailureKind::NotFound && had_local => 0,
        answer => answer?,
    };
    tell_mounts(name, &config);
    if args.json {
        cx.out.json(&Outcome { dataset: name, deleted, local: had_local });
    } else {
        let here = if had_local { ", and the local directory" } else { "" };
        cx.out.line(format!("{name}: deleted {}{here}", counted(deleted, "file")));
    }
    Ok(())
}

/// Whether there was one. A symbolic link goes, and what it leads to stays.
fn remove_local(shared: &SharedArgs, name: &DatasetName) -> Result<bool, Failure> {
    let path = shared.local(name);
    let removed = match fs::symlink_metadata(&path) {
        Err(err) => Err(err),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
    };
    match removed {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(Failure::new(FailureKind::Failed, format!("{}: {err}", path.display()))),
    }
}
