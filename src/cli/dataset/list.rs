//! `dsfs dataset list`: names, one a line.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk::Session;
use crate::cli::dataset::MARKER;
use crate::cli::dataset::SharedArgs;
use crate::cli::target;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::operations;
use crate::daemon::remote;
use crate::name::DatasetName;

/// List datasets
///
/// The local ones: directories in --root that have a data.jsonl. With --remote the remote's, which are all
/// that have any object; with --local too, both.
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  dsfs dataset list
  dsfs dataset list --remote
  dsfs dataset list --remote --local --json"
)]
pub struct ListArgs {
    /// The remote's; with a URL, that remote's
    // In the place of the flag that all commands have, so that both spellings mean something here.
    #[arg(id = "remote", long = "remote", value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    remote: Option<String>,
    /// The local ones
    #[arg(long)]
    local: bool,
    /// The local ones, whatever else is said
    #[arg(long)]
    local_only: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: DatasetName,
    local: bool,
    remote: bool,
}

/// Runs the command.
///
/// # Errors
/// The remote cannot be listed; the local directory cannot be read.
pub fn run(args: &ListArgs, shared: &SharedArgs, cx: &mut Context) -> Result<(), Failure> {
    let wants_remote = args.remote.is_some() && !args.local_only;
    let wants_local = args.local || !wants_remote;
    let mut rows: BTreeMap<DatasetName, Row> = BTreeMap::new();
    let empty = |name: &DatasetName| Row { name: name.clone(), local: false, remote: false };
    if wants_local {
        for name in local(shared)? {
            rows.entry(name.clone()).or_insert_with(|| empty(&name)).local = true;
        }
    }
    if wants_remote {
        let config = target::config(cx.global.layer(), cx)?;
        let listed = remote::runtime()?.block_on(async {
            let session = Session::open(&config).await?;
            let listing = async {
                session.remote.check_access(&session.config).await?;
                operations::list(&*session.remote.store, &session.remote.remote.prefix, &[]).await
            };
            session.unless_cancelled(listing).await
        })?;
        for row in listed {
            rows.entry(row.name.clone()).or_insert_with(|| empty(&row.name)).remote = true;
        }
    }
    if args.json {
        cx.out.json(&rows.values().collect::<Vec<_>>());
    } else {
        rows.keys().for_each(|name| cx.out.name(name.as_str()));
    }
    Ok(())
}

fn local(shared: &SharedArgs) -> Result<Vec<DatasetName>, Failure> {
    let failed =
        |err: io::Error| Failure::new(FailureKind::Failed, format!("{}: {err}", shared.root.display()));
    let entries = match fs::read_dir(&shared.root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().and_then(|name| DatasetName::parse(name).ok());
        names.extend(name.filter(|_| entry.path().join(MARKER).is_file()));
    }
    Ok(names)
}
