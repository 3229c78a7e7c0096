//! `dsfs discard`: throw staged changes away.

use std::cmp::Reverse;
use std::io;
use std::io::BufRead;
use std::io::IsTerminal;
use std::path::Path;

use clap::Args;

use crate::cli::Context;
use crate::cli::output::counted;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::Config;
use crate::config::units;
use crate::control::message::DiscardOutcome;
use crate::control::message::Discarding;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::message::Selection;
use crate::daemon::failure;
use crate::daemon::operations;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::staging::Holder;
use crate::staging::Staging;

/// Staged changes that a single request names: each may be as long as a path can be, and be escaped.
const ITEMS_A_REQUEST: usize = 400;

/// Throw staged changes away
///
/// Only what is staged goes; what is published stays. Asks first, unless --yes; what has changed
/// since it was asked about is kept, and named.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs discard run_07
  dsfs discard run_07 frames/0001.png notes --yes")]
pub struct DiscardArgs {
    /// The dataset
    name: DatasetName,
    /// Only these files and directories of it
    #[arg(value_name = "PATH")]
    paths: Vec<RelPath>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Nothing is staged there; the user said no, or could not be asked.
pub fn run(args: &DiscardArgs, cx: &mut Context) -> Result<(), Failure> {
    let target = target::find(&args.target, cx)?;
    let (outcome, asked) = match &target {
        Target::Daemon(socket) => (through_daemon(args, socket), Some(&**socket)),
        Target::Direct(config) => (directly(args, config), None),
    };
    let elsewhere = |failure| target::or_staged_elsewhere(failure, "discard", &args.name, asked, cx);
    let outcome = outcome.map_err(elsewhere)?;
    if args.json {
        cx.out.json(&outcome);
    } else {
        let bytes = units::show_size(outcome.bytes);
        cx.out.note(format!(
            "discarded {} of {} ({bytes})",
            counted(outcome.files, "staged file"),
            outcome.dataset
        ));
        for path in &outcome.kept {
            cx.out.note(format!("kept {path}: it was changed meanwhile"));
        }
    }
    Ok(())
}

fn directly(args: &DiscardArgs, config: &Config) -> Result<DiscardOutcome, Failure> {
    let dir = config.remote_state_dir();
    let holder = Holder { pid: std::process::id(), ..Holder::default() };
    if !dir.is_dir() {
        return Err(Failure::new(FailureKind::NotFound, format!("nothing is staged for {}", args.name)));
    }
    let staging = Staging::open(&dir, &holder).map_err(|err| failure::of_staging(&err))?;
    let discard = |what: &Discarding| operations::discard(&staging, &args.name, what);
    if args.yes {
        return discard(&Discarding::Paths(args.paths.clone()));
    }
    let shown = operations::select(&staging, &args.name, &args.paths)?;
    confirm(args, &shown)?;
    discard(&Discarding::Shown(shown))
}

fn through_daemon(args: &DiscardArgs, socket: &Path) -> Result<DiscardOutcome, Failure> {
    let discard = |what| {
        let reply = target::ask(socket, &Request::Discard { dataset: args.name.clone(), what })?;
        let Reply::Discarded(outcome) = reply else { return Err(target::unexpected(&reply)) };
        Ok(outcome)
    };
    if args.yes {
        return discard(Discarding::Paths(args.paths.clone()));
    }
    let select = Request::Select { dataset: args.name.clone(), paths: args.paths.clone() };
    let reply = target::ask(socket, &select)?;
    let Reply::Selected(shown) = reply else { return Err(target::unexpected(&reply)) };
    confirm(args, &shown)?;
    let mut all = DiscardOutcome { dataset: args.name.clone(), files: 0, bytes: 0, kept: Vec::new() };
    for part in in_parts(shown) {
        let DiscardOutcome { files, bytes, kept, .. } = discard(Discarding::Shown(part))?;
        all.files += files;
        all.bytes += bytes;
        all.kept.extend(kept);
    }
    Ok(all)
}

/// Requests are of one line, which has its limit; each file is looked at again for itself. Directories
/// come last, when they are empty.
fn in_parts(shown: Selection) -> Vec<Selection> {
    let Selection { files, deletions, directories } = shown;
    let mut parts: Vec<Selection> = files
        .chunks(ITEMS_A_REQUEST)
        .map(|files| Selection { files: files.to_vec(), ..Selection::default() })
        .collect();
    parts.extend(
        deletions
            .chunks(ITEMS_A_REQUEST)
            .map(|some| Selection { deletions: some.to_vec(), ..Selection::default() }),
    );
    let mut directories = directories;
    directories.sort_by_key(|path| Reverse(path.as_str().len()));
    parts.extend(
        directories
            .chunks(ITEMS_A_REQUEST)
            .map(|some| Selection { directories: some.to_vec(), ..Selection::default() }),
    );
    parts
}

fn confirm(args: &DiscardArgs, shown: &Selection) -> Result<(), Failure> {
    let bytes = shown.files.iter().map(|file| file.bytes).sum();
    let mut what = counted(shown.files.len() as u64, "staged file");
    if !shown.deletions.is_empty() {
        what.push_str(&format!(" and {}", counted(shown.deletions.len() as u64, "staged deletion")));
    }
    let what = format!("{what} of {} ({})", args.name, units::show_size(bytes));
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("nobody can be asked whether to discard {what}"),
        )
        .hint("--yes, if that is what you want"));
    }
    ask(&format!("discard {what}? They exist nowhere else. [y/N] "))
}

fn ask(question: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut stderr = io::stderr().lock();
    let mut answer = String::new();
    let asked =
        stderr.write_all(question.as_bytes()).and_then(|()| io::stdin().lock().read_line(&mut answer));
    match (asked, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(FailureKind::Failed, "nothing was discarded")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::LINE_BYTES_MAX;
    use crate::control::message::SelectedFile;

    #[test]
    fn what_was_shown_is_sent_in_lines_that_fit_directories_last() {
        let path = |number: usize| {
            // As long as a path can be, and every byte of it takes six.
            let text = format!("{}{number:05}", "\u{1}/".repeat(500));
            RelPath::parse(&text).unwrap()
        };
        let files = (0..1001).map(|number| SelectedFile {
            path: path(number),
            bytes: u64::MAX,
            modified: std::time::SystemTime::UNIX_EPOCH,
        });
        let shown = Selection {
            files: files.collect(),
            deletions: vec![path(2000)],
            directories: ["a", "a/b", "a/b/c"].map(|text| RelPath::parse(text).unwrap()).to_vec(),
        };
        let parts = in_parts(shown.clone());
        for part in &parts {
            let what = Discarding::Shown(part.clone());
            let request = Request::Discard { dataset: DatasetName::parse("run").unwrap(), what };
            assert!(serde_json::to_vec(&request).unwrap().len() < LINE_BYTES_MAX);
        }
        let files: Vec<SelectedFile> = parts.iter().flat_map(|part| part.files.clone()).collect();
        assert_eq!(files, shown.files);
        assert_eq!(parts[parts.len() - 2].deletions, shown.deletions);
        let last: Vec<&str> = parts[parts.len() - 1].directories.iter().map(RelPath::as_str).collect();
        assert_eq!(last, ["a/b/c", "a/b", "a"]);
    }
}
