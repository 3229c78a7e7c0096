//! `dsfs stat`: the live counters of the mounts.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Context;
use crate::cli::output::printable;
use crate::cli::target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::stat::MountStat;
use crate::read::DatasetStats;

/// Datasets that have a row of their own; all of them are in the JSON.
const DATASETS_SHOWN: usize = 8;

/// Show what mounts have read, fetched and cached
///
/// Sums are since the mount. What the kernel reads of cached files by itself is not counted.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs stat
  dsfs stat --json | jq '.[].read.fetched_bytes'
  dsfs top")]
pub struct StatArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Nothing is mounted (there).
pub fn run(args: &StatArgs, cx: &mut Context) -> Result<(), Failure> {
    let stats = gather(&args.target, cx)?;
    if args.json {
        cx.out.json(&stats);
        return Ok(());
    }
    for stat in &stats {
        cx.out.line(stat.mountpoint.display().to_string());
        cx.out.table(&rows(stat, None));
    }
    Ok(())
}

/// The counters of the mounts that are meant: one, or all.
///
/// # Errors
/// Nothing is mounted (there), or a daemon does not answer.
pub fn gather(args: &TargetArgs, cx: &Context) -> Result<Vec<MountStat>, Failure> {
    let directories = cx.directories()?;
    let sockets: Vec<PathBuf> = match &args.at {
        Some(mountpoint) => vec![target::at(&directories, mountpoint)?],
        None => target::live_mounts(&directories, None).into_iter().map(|(socket, _)| socket).collect(),
    };
    if sockets.is_empty() {
        let failure = Failure::new(FailureKind::NotFound, "nothing is mounted");
        return Err(failure.hint("`dsfs mount` mounts a remote"));
    }
    let ask = |socket: &PathBuf| {
        let reply = target::ask(socket, &Request::Stat)?;
        let Reply::Stat(stat) = reply else { return Err(target::unexpected(&reply)) };
        Ok(*stat)
    };
    sockets.iter().map(ask).collect()
}

/// The counters as rows; with an earlier moment of the same mount, also what they were per second
/// since then.
pub fn rows(stat: &MountStat, before: Option<&MountStat>) -> Vec<Vec<String>> {
    let (read, cache) = (&stat.read, &stat.cache);
    let rate = |now: u64, then: fn(&MountStat) -> u64| -> Option<u64> {
        let before = before.filter(|before| before.uptime_ms < stat.uptime_ms)?;
        let ms = stat.uptime_ms - before.uptime_ms;
        Some(now.saturating_sub(then(before)).saturating_mul(1000) / ms)
    };
    let bytes = |what: &str, now: u64, then: fn(&MountStat) -> u64| {
        let per_second =
            rate(now, then).map_or(String::new(), |rate| format!("{}/s", units::show_size(rate)));
        row(what, &units::show_size(now), &per_second)
    };
    let number = |what: &str, now: u64, then: fn(&MountStat) -> u64| {
        let per_second = rate(now, then).map_or(String::new(), |rate| format!("{rate}/s"));
        row(what, &now.to_string(), &per_second)
    };
    let of = |used: u64, limit: u64| format!("of {}", units::show_size(limit) + &percent(used, limit));
    let mut rows = vec![
        bytes("read", read.served_bytes, |stat| stat.read.served_bytes),
        number("  answered at once", read.hits, |stat| stat.read.hits),
        number("  had to wait", read.misses, |stat| stat.read.misses),
        number("  failed", read.failures, |stat| stat.read.failures),
        bytes("fetched", read.fetched_bytes, |stat| stat.read.fetched_bytes),
        number("  requests", read.requests, |stat| stat.read.requests),
        row("  under way", &read.in_flight.to_string(), ""),
        bytes("  ahead, and read", read.prefetch_useful_bytes, |stat| stat.read.prefetch_useful_bytes),
        bytes("  ahead, in vain", read.prefetch_wasted_bytes, |stat| stat.read.prefetch_wasted_bytes),
        row("memory", &units::show_size(read.memory_bytes), &of(read.memory_bytes, read.memory_limit_bytes)),
        row("cache", &units::show_size(cache.used_bytes), &of(cache.used_bytes, cache.limit_bytes)),
        number("  hits", cache.hits, |stat| stat.cache.hits),
        number("  misses", cache.misses, |stat| stat.cache.misses),
        bytes("  written", cache.written_bytes, |stat| stat.cache.written_bytes),
        bytes("  evicted", cache.evicted_bytes, |stat| stat.cache.evicted_bytes),
        number("  damaged blocks", cache.damaged_blocks, |stat| stat.cache.damaged_blocks),
        row("open handles", &stat.open_handles.to_string(), ""),
    ];
    rows.extend(dataset_rows(stat, before));
    if let Some(reason) = &cache.bypassed {
        rows.push(row("cache not used", reason, ""));
    }
    rows
}

/// One row a dataset: what was read of it, how fast, and what had to be fetched for that. Those that are
/// read now come first.
fn dataset_rows(stat: &MountStat, before: Option<&MountStat>) -> Vec<Vec<String>> {
    let before = before.filter(|before| before.uptime_ms < stat.uptime_ms);
    let per_second = |name: &str, stats: &DatasetStats| {
        let before = before?;
        let then = before.datasets.get(name).map_or(0, |then| then.served_bytes);
        let bytes = stats.served_bytes.saturating_sub(then).saturating_mul(1000);
        Some(bytes / (stat.uptime_ms - before.uptime_ms))
    };
    let mut datasets: Vec<_> =
        stat.datasets.iter().map(|(name, stats)| (name, stats, per_second(name, stats))).collect();
    datasets.sort_by_key(|(_, stats, rate)| std::cmp::Reverse((*rate, stats.served_bytes)));
    let shown = datasets.into_iter().take(DATASETS_SHOWN).map(|(name, stats, rate)| {
        let rate = rate.map_or(String::new(), |rate| format!("{}/s, ", units::show_size(rate)));
        let fetched = format!("{rate}{} fetched", units::show_size(stats.fetched_bytes));
        row(&format!("{}/", printable(name)), &units::show_size(stats.served_bytes), &fetched)
    });
    shown.collect()
}

fn percent(used: u64, limit: u64) -> String {
    let percent = used.saturating_mul(100).checked_div(limit);
    percent.map_or_else(String::new, |percent| format!(", {percent}%"))
}

fn row(what: &str, value: &str, more: &str) -> Vec<String> {
    vec![format!("  {what}"), value.to_owned(), more.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheUsage;
    use crate::read::ReadStats;

    fn stat(uptime_ms: u64, fetched_bytes: u64) -> MountStat {
        MountStat {
            mountpoint: "/m".into(),
            uptime_ms,
            open_handles: 0,
            inodes: 0,
            passthrough: false,
            read: ReadStats { fetched_bytes, ..ReadStats::default() },
            datasets: [(
                "run".to_owned(),
                DatasetStats { served_bytes: fetched_bytes, ..DatasetStats::default() },
            )]
            .into(),
            cache: CacheUsage::default(),
        }
    }

    fn fetched(rows: &[Vec<String>]) -> &[String] {
        rows.iter().find(|row| row[0] == "  fetched").unwrap()
    }

    #[test]
    fn rates_are_between_two_moments_and_missing_without_a_first() {
        let (before, now) = (stat(1000, 1024), stat(3000, 5 * 1024));
        assert_eq!(fetched(&rows(&now, None))[2], "");
        assert_eq!(fetched(&rows(&now, Some(&before)))[2], format!("{}/s", units::show_size(2048)));
        let run = |rows: &[Vec<String>]| rows.iter().find(|row| row[0] == "  run/").unwrap()[2].clone();
        assert!(run(&rows(&now, Some(&before))).starts_with(&format!("{}/s", units::show_size(2048))));
        assert!(!run(&rows(&now, None)).contains("/s"));
        // A daemon that was started anew in between counts from zero.
        assert_eq!(fetched(&rows(&before, Some(&now)))[2], "");
    }
}
