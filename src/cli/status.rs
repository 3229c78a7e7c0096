//! `dsfs status`: the mounts, and what is staged.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::mounts;
use crate::cli::mounts::Mounts;
use crate::cli::mounts::Mute;
use crate::cli::output::counted;
use crate::cli::output::printable;
use crate::config::Config;
use crate::config::units;
use crate::control::message::CacheStatus;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::Offline;
use crate::control::message::StagedDataset;
use crate::daemon::operations;
use crate::name::DatasetName;
use crate::staging::Holder;
use crate::staging::Staging;

/// Paths of staged files shown for one dataset; `--json` shows all.
const PATHS_SHOWN_MAX: usize = 50;

/// Show mounts, and what is staged
///
/// With a NAME: that dataset's staged files. Works with and without a mount.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs status
  dsfs status run_07
  dsfs status --json | jq '.mounts[].mountpoint'")]
pub struct StatusArgs {
    /// Only this dataset, file by file
    name: Option<DatasetName>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Status {
    mounts: Vec<MountStatus>,
    /// Mounts whose daemons cannot be asked.
    unanswered: Vec<Unanswered>,
    /// Staging areas that no daemon works on.
    unmounted: Vec<Unmounted>,
}

/// A mount whose daemon cannot be asked.
#[derive(Debug, Serialize)]
struct Unanswered {
    #[serde(flatten)]
    daemon: Mute,
    /// Of the remote whose staging area it has, as far as that is known.
    staged: Vec<StagedDataset>,
}

/// A staging area without a mount.
#[derive(Debug, Serialize)]
struct Unmounted {
    remote: String,
    dir: PathBuf,
    staged: Vec<StagedDataset>,
}

/// Runs the command.
///
/// # Errors
/// The dataset has nothing staged; the state directory cannot be read.
pub fn run(args: &StatusArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = cx.config(cx.global.layer())?;
    let mut status = gather(&config, args.name.as_ref())?;
    if let Some(name) = &args.name {
        let keep = |staged: &mut Vec<StagedDataset>| staged.retain(|dataset| dataset.name == *name);
        status.mounts.iter_mut().for_each(|mount| keep(&mut mount.staged));
        status.unanswered.iter_mut().for_each(|mount| keep(&mut mount.staged));
        status.unmounted.iter_mut().for_each(|area| keep(&mut area.staged));
        status.mounts.retain(|mount| !mount.staged.is_empty());
        status.unanswered.retain(|mount| !mount.staged.is_empty());
        status.unmounted.retain(|area| !area.staged.is_empty());
        if status.mounts.is_empty() && status.unanswered.is_empty() && status.unmounted.is_empty() {
            return Err(Failure::new(FailureKind::NotFound, format!("nothing is staged for {name}")));
        }
    }
    if args.json {
        cx.out.json(&status);
    } else {
        show(&status, args.name.is_some(), cx);
    }
    Ok(())
}

fn gather(config: &Config, files_of: Option<&DatasetName>) -> Result<Status, Failure> {
    let Mounts { live, mute } = mounts::all(&config.directories, files_of);
    let mounts: Vec<MountStatus> = live.into_iter().map(|(_, status)| status).collect();
    let mut unanswered: Vec<Unanswered> =
        mute.into_iter().map(|daemon| Unanswered { daemon, staged: Vec::new() }).collect();
    let mut unmounted = Vec::new();
    let areas = fs::read_dir(&config.state_dir.value).into_iter().flatten().flatten();
    for dir in areas.map(|area| area.path()).filter(|dir| dir.join("datasets").is_dir()) {
        let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if mounts.iter().any(|mount| mount.remote_id == id) {
            continue;
        }
        let mut staged = operations::inspect(&dir)?;
        if !unanswered.is_empty()
            && let Ok(Some(Holder { socket: Some(socket), .. })) = Staging::holder(&dir)
            && let Some(mount) = unanswered.iter_mut().find(|mount| mount.daemon.socket == socket)
        {
            mount.staged = staged;
            continue;
        }
        if let Some(dataset) = staged.iter_mut().find(|dataset| Some(&dataset.name) == files_of)
            && let Ok(staging) = Staging::open(&dir, &Holder { pid: std::process::id(), ..Holder::default() })
        {
            dataset.entries = operations::staged_files(&staging, &dataset.name)?;
        }
        if !staged.is_empty() {
            let remote = operations::remote_of(&dir).unwrap_or(id);
            unmounted.push(Unmounted { remote, dir, staged });
        }
    }
    unmounted.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(Status { mounts, unanswered, unmounted })
}

fn show(status: &Status, files: bool, cx: &mut Context) {
    if status.mounts.is_empty() && status.unanswered.is_empty() && status.unmounted.is_empty() {
        cx.out.line("nothing is mounted, and nothing is staged");
    }
    for mount in &status.mounts {
        let upgraded = mount.upgraded.as_ref().map(|at| format!(", upgraded {at}")).unwrap_or_default();
        let read_only = if mount.read_only { ", read-only" } else { "" };
        let detached =
            if mount.detached { ", detached: only files that are still open are served" } else { "" };
        cx.out.line(format!(
            "{} (pid {}, since {}{upgraded}{read_only}{detached})",
            mount.mountpoint.display(),
            mount.pid,
            mount.mounted
        ));
        let mut rows = vec![
            row("remote", mount.remote.clone()),
            row("connection", connection(mount.offline.as_ref())),
            row("guarantee", mount.guarantee.clone().unwrap_or_else(|| "not known yet".to_owned())),
            row("cache", cache(&mount.cache)),
        ];
        rows.extend(mount.log.iter().map(|log| row("log", log.display().to_string())));
        cx.out.table(&rows);
        show_staged(&mount.staged, files, cx);
    }
    for mount in &status.unanswered {
        let failure = mount.daemon.failure();
        cx.out.line(failure.message);
        failure.hint.iter().for_each(|hint| cx.out.line(format!("  {hint}")));
        show_staged(&mount.staged, files, cx);
    }
    for area in &status.unmounted {
        cx.out.line(format!("not mounted: {}", area.remote));
        show_staged(&area.staged, files, cx);
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![format!("  {name}"), value]
}

fn connection(offline: Option<&Offline>) -> String {
    match offline {
        None => "online".to_owned(),
        Some(Offline { since, reason }) => format!("OFFLINE since {since}: {reason}"),
    }
}

fn cache(cache: &CacheStatus) -> String {
    let used = format!("{} of {}", units::show_size(cache.used_bytes), units::show_size(cache.limit_bytes));
    match &cache.bypassed {
        Some(reason) => format!("not used: {reason} ({})", cache.dir.display()),
        None => format!(
            "{used} in {} files, {} hits, {} misses ({})",
            cache.files,
            cache.hits,
            cache.misses,
            cache.dir.display()
        ),
    }
}

fn show_staged(staged: &[StagedDataset], files: bool, cx: &mut Context) {
    if staged.is_empty() {
        cx.out.line("  nothing is staged");
        return;
    }
    let rows: Vec<Vec<String>> = staged
        .iter()
        .map(|dataset| {
            let name = printable(dataset.name.as_str());
            vec![format!("  staged  {name}"), counted(dataset.files, "file"), described(dataset)]
        })
        .collect();
    cx.out.table(&rows);
    for dataset in staged {
        if files {
            let shown = dataset.entries.iter().take(PATHS_SHOWN_MAX);
            let rows: Vec<Vec<String>> = shown
                .map(|file| {
                    vec![format!("    {}", file.path.as_str().escape_debug()), units::show_size(file.bytes)]
                })
                .collect();
            cx.out.table(&rows);
            if let Some(more) = dataset.entries.len().checked_sub(PATHS_SHOWN_MAX).filter(|more| *more > 0) {
                cx.out.line(format!("    and {more} more"));
            }
        }
        for foreign in &dataset.foreign {
            cx.out.warn(format!(
                "{}: {foreign} cannot be published: it is no plain file or directory",
                dataset.name
            ));
        }
    }
}

fn described(dataset: &StagedDataset) -> String {
    let mut text = units::show_size(dataset.bytes);
    if dataset.deletions > 0 {
        text.push_str(&format!(", {}", counted(dataset.deletions, "deletion")));
    }
    if dataset.sealed_files > 0 {
        text.push_str(&format!(", {} in a commit that has not ended", counted(dataset.sealed_files, "file")));
    }
    text
}
