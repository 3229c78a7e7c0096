//! `dsfs list`: the datasets, published and staged.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::target;
use crate::cli::target::TargetArgs;
use crate::config::Config;
use crate::control::message::Failure;
use crate::control::message::StagedDataset;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::daemon::remote;
use crate::name::DatasetName;
use crate::name::RemotePrefix;
use crate::store::ListRequest;
use crate::store::ObjectStore;
use crate::store::list_all;

/// List the datasets of the remote, and those that are staged
#[derive(Clone, Debug, Args)]
#[command(visible_alias = "ls", after_help = "\
Examples:
  dsfs list
  dsfs list --json | jq -r '.[] | select(.published) | .name'")]
pub struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// One dataset.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    name: DatasetName,
    published: bool,
    staged_files: u64,
}
