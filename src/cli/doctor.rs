//! `dsfs doctor`: looks at everything a mount needs, and says how to mend what is not right.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::cli::Context;
use crate::cli::config::describe_credentials;
use crate::cli::output::counted;
use crate::cli::target;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::CACHE_RESERVE_BYTES;
use crate::config::Config;
use crate::config::RemoteSettings;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::mountpoint;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::store::guarantee::Guarantee;

/// S3 refuses requests whose time is off by more than 15 minutes; half of that is worth a word.
const CLOCK_SKEW_WARN: Duration = Duration::from_secs(60);
/// See [`CLOCK_SKEW_WARN`].
const CLOCK_SKEW_FAIL: Duration = Duration::from_secs(15 * 60);
/// Less room than this on the staging disk is worth a word, in bytes.
const STAGING_ROOM_BYTES: u64 = 5 << 30;

/// The check of what the remote enforces.
const GUARANTEE: &str = "guarantee";

/// Check what a mount needs, and say how to mend what is wrong
///
/// Probes what the remote enforces, with scratch objects that are removed again. Exit code 1 if anything
/// fails.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs doctor
  dsfs doctor run_07                               keys of a dataset that cannot be shown, and why
  dsfs doctor --profile lab --json")]
pub struct DoctorArgs {
    /// Look at this dataset instead: which of its keys no file system can show, or its log hides
    name: Option<DatasetName>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    found: String,
    mend: Option<String>,
}

impl Check {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, verdict, found: found.into(), mend: None }
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    fn of_failure(check: &'static str, failure: &Failure) -> Self {
        let found = Self::new(check, Verdict::Fail, failure.message.clone());
        Self { mend: failure.hint.clone(), ..found }
    }
}

/// Runs the command.
///
/// # Errors
/// Something failed.
pub fn run(args: &DoctorArgs, cx: &mut Context) -> Result<(), Failure> {
    let config = target::config(cx.global.layer(), cx)?;
    if let Some(name) = &args.name {
        return of_dataset(name, &config, args.json, cx);
    }
    let mut checks = of_machine(cx, &config);
    checks.extend(remote::runtime()?.block_on(of_remote(&config)));
    checks.push(disk_space("cache disk", &config.cache_dir.value, CACHE_RESERVE_BYTES));
    checks.push(disk_space("staging disk", &config.state_dir.value, STAGING_ROOM_BYTES));
    if args.json {
        cx.out.json(&checks);
    } else {
        show(&checks, cx);
    }
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    match failed {
        0 => Ok(()),
        1 => Err(Failure::new(FailureKind::Failed, "1 check failed")),
        _ => Err(Failure::new(FailureKind::Failed, format!("{failed} checks failed"))),
    }
}

/// The keys of a dataset that a mount does not show.
#[derive(Debug, Default, Serialize)]
struct NotShown {
    /// Files that are shown.
    shown_files: u64,
    /// Keys that no file system can show.
    hidden: Vec<Key>,
    /// Keys that belong to a commit that has not ended, and files that are missing.
    withheld: Vec<Key>,
}

/// A key, and why it is not shown.
#[derive(Debug, Serialize)]
struct Key {
    key: String,
    reason: String,
}

fn of_dataset(name: &DatasetName, config: &Config, json: bool, cx: &mut Context) -> Result<(), Failure> {
    let work = async {
        let remote = remote::open(config).await?;
        let prefix = remote.remote.prefix.clone();
        let catalog = Catalog::new(Arc::clone(&remote.store), prefix, config.list_ttl.value);
        let mut found = NotShown::default();
        let keys = |hidden: &[HiddenKey]| -> Vec<Key> {
            hidden
                .iter()
                .map(|hidden| Key { key: hidden.key.clone(), reason: hidden.reason.clone() })
                .collect()
        };
        let each = |_: &DirPath, listing: &Listing| {
            let files = listing.entries.values().filter(|entry| matches!(entry, RemoteEntry::File(_)));
            found.shown_files += files.count() as u64;
            found.hidden.extend(keys(&listing.hidden));
            found.withheld.extend(keys(&listing.withheld));
        };
        let walked = catalog.walk_levels(name, &DirPath::root(), each).await;
        walked.map_err(|err| failure::of_access(&err, config))?;
        Ok::<_, Failure>(found)
    };
    let found = remote::runtime()?.block_on(work)?;
    if found.shown_files == 0 && found.hidden.is_empty() && found.withheld.is_empty() {
        return Err(Failure::new(FailureKind::NotFound, format!("nothing is published in {name}"))
            .hint("`dsfs list` shows the datasets"));
    }
    if json {
        cx.out.json(&found);
        return Ok(());
    }
    for (what, keys) in [("cannot be shown", &found.hidden), ("not shown", &found.withheld)] {
        for key in keys {
            cx.out.line(format!("{what}: {}: {}", key.key.escape_debug(), key.reason));
        }
    }
    cx.out.note(format!(
        "{name}: {} shown, {} cannot be, {} withheld",
        counted(found.shown_files, "file"),
        counted(found.hidden.len() as u64, "key"),
        counted(found.withheld.len() as u64, "key")
    ));
    Ok(())
}

fn show(checks: &[Check], cx: &mut Context) {
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        cx.out.line(format!("{verdict}  {:<width$}  {}", check.check, check.found));
        if let Some(mend) = &check.mend {
            cx.out.line(format!("      {:<width$}  -> {mend}", ""));
        }
    }
}

fn of_machine(cx: &Context, config: &Config) -> Vec<Check> {
    let is_root = rustix::process::geteuid().is_root();
    let search_path = cx.env.get("PATH").unwrap_or_default();
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let in_kernel = file_systems.lines().any(|line| line.split_whitespace().last() == Some("fuse"));
    let kernel = if in_kernel {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Check::new("FUSE in the kernel", Verdict::Ok, format!("Linux {release}"))
    } else {
        Check::new("FUSE in the kernel", Verdict::Fail, "the kernel has no FUSE").mend("`sudo modprobe fuse`")
    };
    let device = match mountpoint::check_device() {
        Ok(()) => Check::new("/dev/fuse", Verdict::Ok, "can be opened"),
        Err(failure) => Check::of_failure("/dev/fuse", &failure),
    };
    let helper = match mountpoint::find_program("fusermount3", search_path) {
        Some(path) => Check::new("fusermount3", Verdict::Ok, path.display().to_string()),
        None if is_root => Check::new("fusermount3", Verdict::Warn, "is not installed; root can do without")
            .mend("`apt-get install fuse3`"),
        None => {
            Check::new("fusermount3", Verdict::Fail, "is not installed").mend("`sudo apt-get install fuse3`")
        }
    };
    vec![kernel, device, helper, allow_other(config, is_root)]
}

fn allow_other(config: &Config, is_root: bool) -> Check {
    const NAME: &str = "user_allow_other";
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let set = conf.lines().any(|line| line.trim() == NAME);
    match (set || is_root, config.allow_other.value) {
        (true, _) if is_root => Check::new(NAME, Verdict::Ok, "not needed by root"),
        (true, _) => Check::new(NAME, Verdict::Ok, "set in /etc/fuse.conf"),
        (false, false) => Check::new(NAME, Verdict::Ok, "not set, and not needed without --allow-other"),
        (false, true) => Check::new(NAME, Verdict::Fail, "not set, and --allow-other needs it")
            .mend("add the line `user_allow_other` to /etc/fuse.conf"),
    }
}

async fn of_remote(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    if let RemoteSettings::S3(s3) = &config.remote {
        checks.push(Check::new("credentials", Verdict::Ok, describe_credentials(&s3.credentials)));
    }
    let remote = match remote::open(config).await {
        Ok(remote) => remote,
        Err(failure) => {
            checks.push(Check::of_failure("remote", &failure));
            return checks;
        }
    };
    let access = remote.check_access(config).await;
    let reached = access.is_ok() || remote.server_time().is_some();
    if let RemoteSettings::S3(s3) = &config.remote {
        let endpoint = s3.endpoint.value.clone().unwrap_or_else(|| "AWS".to_owned());
        checks.push(match (&access, reached) {
            (_, true) => Check::new("endpoint", Verdict::Ok, format!("{endpoint} answers")),
            (Err(failure), false) => Check::of_failure("endpoint", failure),
            (Ok(()), false) => Check::new("endpoint", Verdict::Ok, endpoint),
        });
    }
    match access {
        Ok(()) => checks.push(Check::new("bucket", Verdict::Ok, format!("{} can be listed", remote.remote))),
        Err(failure) if reached || !matches!(config.remote, RemoteSettings::S3(_)) => {
            checks.push(Check::of_failure("bucket", &failure));
        }
        Err(_) => {}
    }
    checks.extend(clock(&remote));
    if checks.iter().all(|check| check.verdict != Verdict::Fail) {
        checks.push(enforced(&remote, config).await);
    }
    checks
}

fn clock(remote: &OpenRemote) -> Option<Check> {
    let here = SystemClock.now();
    let there = remote.server_time()?;
    let skew = here.duration_since(there).or_else(|_| there.duration_since(here)).unwrap_or_default();
    Some(judge_skew(skew))
}

fn judge_skew(skew: Duration) -> Check {
    let found = format!("{} s off the server's", skew.as_secs());
    let verdict = if skew >= CLOCK_SKEW_FAIL {
        Verdict::Fail
    } else if skew >= CLOCK_SKEW_WARN {
        Verdict::Warn
    } else {
        return Check::new("clock", Verdict::Ok, found);
    };
    Check::new("clock", verdict, found)
        .mend("`timedatectl set-ntp true`; requests more than 15 minutes off are refused")
}

/// Probes anew, whatever is remembered.
async fn enforced(remote: &OpenRemote, config: &Config) -> Check {
    match guarantee::probe(remote, &config.state_dir.value).await {
        Ok((known, report)) => {
            let failed: Vec<&str> = report.failures().map(|outcome| outcome.check.describe()).collect();
            judge_guarantee(known.guarantee, &failed.join(", "))
        }
        Err(err) => Check::new(GUARANTEE, Verdict::Warn, format!("cannot be probed: {err}"))
            .mend("the key may read but not write; mount with --read-only"),
    }
}

/// `failed` is what the server did not do, if anything: also at the best grade, which asks for writes only.
fn judge_guarantee(guarantee: Guarantee, failed: &str) -> Check {
    match guarantee {
        Guarantee::Enforced => {
            let mut found = "enforced: the server itself refuses to overwrite".to_owned();
            if !failed.is_empty() {
                found.push_str(&format!("; failed, so that dsfs looks by itself: {failed}"));
            }
            Check::new(GUARANTEE, Verdict::Ok, found)
        }
        Guarantee::SinglePut => {
            Check::new(GUARANTEE, Verdict::Warn, format!("single-put: not for large files; failed: {failed}"))
                .mend("dsfs committers still exclude each other; other tools could overwrite a large file")
        }
        Guarantee::BestEffort => {
            Check::new(GUARANTEE, Verdict::Warn, format!("best-effort; failed: {failed}"))
                .mend("the server enforces nothing: commits need --allow-unenforced")
        }
    }
}

fn disk_space(name: &'static str, dir: &Path, wanted_bytes: u64) -> Check {
    // The directory may not be there yet; the disk is that of the nearest one that is.
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let found = format!("{} free at {}", units::show_size(free), dir.display());
            if free >= wanted_bytes {
                Check::new(name, Verdict::Ok, found)
            } else {
                Check::new(name, Verdict::Warn, found)
                    .mend("make room, or choose another disk in the settings")
            }
        }
        Err(err) => Check::new(name, Verdict::Fail, format!("{}: {err}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_in_time() {
        assert_eq!(judge_skew(Duration::from_secs(3)).verdict, Verdict::Ok);
        assert_eq!(judge_skew(Duration::from_secs(90)).verdict, Verdict::Warn);
        assert_eq!(judge_skew(Duration::from_secs(3600)).verdict, Verdict::Fail);
    }

    #[test]
    fn what_a_server_ignores_is_told_at_every_grade() {
        let all_well = judge_guarantee(Guarantee::Enforced, "");
        assert_eq!(all_well.found, "enforced: the server itself refuses to overwrite");
        for grade in [Guarantee::Enforced, Guarantee::SinglePut, Guarantee::BestEffort] {
            let check = judge_guarantee(grade, "DeleteObject of a replaced version is refused");
            assert!(check.found.contains("DeleteObject"), "{check:?}");
        }
    }

    #[test]
    fn disks_are_judged_also_where_the_directory_is_still_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(disk_space("cache disk", &dir.path().join("not/yet"), 1).verdict, Verdict::Ok);
        assert_eq!(disk_space("cache disk", dir.path(), u64::MAX).verdict, Verdict::Warn);
    }
}
