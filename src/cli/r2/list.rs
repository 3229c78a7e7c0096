//! `dsfs r2 list`: keys, one a line.

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk;
use crate::cli::bulk::Session;
use crate::client::Client;
use crate::control::message::Failure;
use crate::daemon::guarantee;
use crate::daemon::remote;
use crate::name::ETag;
use crate::name::ObjectKey;

/// List objects
///
/// Every key that begins with PREFIX, one a line, as it is (on a terminal without control characters). With --flat one level only: objects, and what
/// is deeper as prefixes that end in '/'.
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  dsfs r2 list
  dsfs r2 list datasets/ --flat
  dsfs r2 list s3://assets/datasets/run_07/ --json | jq '.objects[].size'"
)]
pub struct ListArgs {
    /// What the keys begin with; all keys without it
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// One level only
    #[arg(long)]
    flat: bool,
    /// As JSON, with sizes, times and ETags
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    objects: Vec<Row>,
    prefixes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    key: ObjectKey,
    size: u64,
    last_modified: String,
    etag: Option<ETag>,
}

/// Runs the command.
///
/// # Errors
/// The remote cannot be listed.
pub fn run(args: &ListArgs, cx: &mut Context) -> Result<(), Failure> {
    let (config, prefix) = bulk::located(&args.prefix, cx)?;
    let listing = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        let client = Client::new(session.remote.store.clone());
        let listing = async { client.list(&prefix, !args.flat).await.map_err(|err| session.failed(&err)) };
        session.unless_cancelled(listing).await
    })?;
    if args.json {
        let objects = listing.objects.into_iter().map(|object| Row {
            key: object.key,
            size: object.size_bytes,
            last_modified: guarantee::timestamp(object.modified),
            etag: object.etag,
        });
        cx.out.json(&Answer { objects: objects.collect(), prefixes: listing.prefixes });
        return Ok(());
    }
    let mut lines = listing.prefixes;
    lines.extend(listing.objects.iter().map(|object| object.key.to_string()));
    lines.sort();
    for line in lines {
        cx.out.name(&line);
    }
    Ok(())
}
