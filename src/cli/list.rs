//! `dsfs list`: the datasets, published and staged.

use clap::Args;

use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::Config;
use crate::control::message::DatasetRow;
use crate::control::message::Failure;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::operations;
use crate::daemon::remote;

/// List the datasets of the remote, and those that are staged
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  dsfs list
  dsfs list --json | jq -r '.[] | select(.published) | .name'"
)]
pub struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs the command.
///
/// # Errors
/// The remote cannot be listed.
pub fn run(args: &ListArgs, cx: &mut Context) -> Result<(), Failure> {
    let rows = rows(&args.target, cx)?;
    if args.json {
        cx.out.json(&rows);
        return Ok(());
    }
    let cells = |row: &DatasetRow| {
        let note = match (row.published, row.staged_files) {
            (true, 0) => String::new(),
            (true, staged) => format!("{} staged", counted(staged, "file")),
            (false, staged) => format!("not published, {} staged", counted(staged, "file")),
        };
        vec![row.name.as_str().escape_debug().to_string(), note]
    };
    cx.out.table(&rows.iter().map(cells).collect::<Vec<_>>());
    Ok(())
}

/// The datasets of the remote that a command with these flags means.
///
/// # Errors
/// The remote cannot be listed.
pub fn rows(target: &TargetArgs, cx: &Context) -> Result<Vec<DatasetRow>, Failure> {
    match target::find(target, cx)? {
        Target::Daemon(socket) => {
            let reply = target::ask(&socket, &Request::List)?;
            let Reply::Datasets(rows) = reply else { return Err(target::unexpected(&reply)) };
            Ok(rows)
        }
        Target::Direct(config) => remote::runtime()?.block_on(of_remote(&config)),
    }
}

async fn of_remote(config: &Config) -> Result<Vec<DatasetRow>, Failure> {
    let remote = remote::open(config).await?;
    remote.check_access(config).await?;
    let staged = operations::inspect(&config.remote_state_dir())?;
    operations::list(&*remote.store, &remote.remote.prefix, &staged).await
}
