//! `dsfs gc`: end commits that nobody goes on with, and remove what they left in the bucket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::output::printable;
use crate::cli::target;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::commit;
use crate::commit::GcOptions;
use crate::commit::GcReport;
use crate::config::Config;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::compose;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::name::DatasetName;
use crate::record::Author;
use crate::store::ListRequest;
use crate::store::guarantee::Guarantee;
use crate::store::list_all;

/// End commits that nobody goes on with, and remove what they left in the bucket
///
/// A commit that was announced and is not in the log is taken for dead after --older-than: it is ended in
/// the log, and whoever comes back to it finds that. What it left is removed by a run a day later.
/// Nothing that is published is touched.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs gc --dry-run
  dsfs gc run_07")]
pub struct GcArgs {
    /// The dataset; all that have unfinished commits if none is named
    name: Option<DatasetName>,
    /// How long nothing may have been heard of a commit that is taken for dead, whoever began it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = units::parse_duration)]
    older_than: Duration,
    /// Also end commits whose notices cannot be read, if those are that old
    #[arg(long)]
    remove_unreadable: bool,
    /// Say what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was done to one dataset.
#[derive(Clone, Debug, Serialize)]
struct Row {
    dataset: DatasetName,
    dry_run: bool,
    live: Vec<String>,
    ended: Vec<String>,
    waiting: Vec<String>,
    cleared: Vec<String>,
    removed: Vec<String>,
    unreadable: Vec<String>,
}

impl Row {
    fn new(dataset: DatasetName, dry_run: bool, report: GcReport) -> Self {
        let GcReport { live, ended, waiting, cleared, removed, unreadable } = report;
        let removed = removed.iter().map(ToString::to_string).collect();
        let unreadable = unreadable.into_iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
        Self { dataset, dry_run, live, ended, waiting, cleared, removed, unreadable }
    }
}

/// Runs the command.
///
/// # Errors
/// The remote cannot be used, or does not refuse to overwrite; or a dataset's unfinished commits could not
/// be looked at: what was done to the others is told before.
pub fn run(args: &GcArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = target::config(cx.global.layer(), cx)?;
    let (rows, mut failures) = remote::runtime()?.block_on(sweep(args, &config))?;
    if args.json {
        cx.out.json(&rows);
    } else {
        for row in &rows {
            show(row, cx);
        }
        if rows.is_empty() && failures.is_empty() {
            cx.out.note("no commit was left unfinished");
        }
    }
    let Some(last) = failures.pop() else { return Ok(()) };
    for failure in &failures {
        cx.out.failure(failure);
    }
    Err(last)
}

/// What was done to each dataset, and what failed.
async fn sweep(args: &GcArgs, config: &Config) -> Result<(Vec<Row>, Vec<Failure>), Failure> {
    let remote = remote::open(config).await?;
    remote.check_access(config).await?;
    let known = guarantee::known_or_probed(&remote, &config.state_dir.value).await;
    if known.map_err(|err| failure::of_store(&err))?.guarantee == Guarantee::BestEffort {
        // The record that ends a commit could take the number of one that publishes.
        let message =
            "this remote does not refuse to overwrite: a commit cannot be ended safely from outside";
        return Err(Failure::new(FailureKind::Failed, message).hint(
            "`dsfs commit NAME --abort` where it was begun; `dsfs doctor` says what the server lacks",
        ));
    }
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => with_intents(&remote).await?,
    };
    let author = Author { user: config.user.clone(), host: compose::host() };
    // However soon a commit is taken for dead: what it had sent already may appear for a day.
    let options = GcOptions {
        dead_after: args.older_than,
        dry_run: args.dry_run,
        remove_unreadable: args.remove_unreadable,
        ..GcOptions::default()
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut rows = BTreeMap::new();
    let mut failures = Vec::new();
    for name in names {
        let prefix = &remote.remote.prefix;
        let report = commit::gc(&remote.store, prefix, &name, &author, &clock, &options).await;
        match report {
            Ok(report) if report == GcReport::default() => {}
            Ok(report) => {
                rows.insert(name.clone(), Row::new(name, args.dry_run, report));
            }
            Err(err) => {
                failures.push(failure::of_commit(&err, &name));
                if err.is_transient() {
                    break; // the others would wait for the same remote
                }
            }
        }
    }
    Ok((rows.into_values().collect(), failures))
}

async fn with_intents(remote: &OpenRemote) -> Result<Vec<DatasetName>, Failure> {
    let prefix = remote.remote.prefix.all_intents();
    let listed = list_all(&*remote.store, ListRequest::one_level(prefix.clone())).await;
    let listed = listed.map_err(|err| failure::of_store(&err))?;
    let names = listed.prefixes.iter().filter_map(|below| {
        let name = below.as_str().strip_prefix(prefix.as_str())?.strip_suffix('/')?;
        DatasetName::parse(name).ok()
    });
    Ok(names.collect())
}

fn show(row: &Row, cx: &mut Context) {
    let name = printable(row.dataset.as_str());
    let would = if row.dry_run { "would be " } else { "" };
    let lines = [
        (&row.ended, format!("{would}ended; what it left goes with a later `dsfs gc`")),
        (&row.cleared, format!("{would}cleared away")),
        (&row.waiting, "is ended; too recently to remove what it left".to_owned()),
        (&row.live, "may be under way; left alone".to_owned()),
    ];
    for (txids, what) in lines {
        for txid in txids {
            cx.out.line(format!("{name}: commit {} {what}", printable(txid)));
        }
    }
    for notice in &row.unreadable {
        cx.out.warn(format!(
            "{name}: {notice}; commits to {name} wait for it: `dsfs gc {name} --remove-unreadable` ends that commit once its notice is old enough"
        ));
    }
    if !row.removed.is_empty() {
        let objects = counted(row.removed.len() as u64, "object");
        cx.out.line(format!("{name}: {objects} {would}removed"));
    }
}
