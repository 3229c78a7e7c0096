//! `dsfs diff`: what is different between staged and published, or between two commits.

use clap::Args;

use crate::cli::Context;
use crate::cli::history;
use crate::cli::output::counted;
use crate::cli::output::printable;
use crate::cli::target::TargetArgs;
use crate::compare::Difference;
use crate::compare::DifferenceKind;
use crate::compare::Side;
use crate::config::units;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::name::Revision;

/// Show what is staged against what is published, or one commit's state against another's
///
/// NAME alone: each staged file against the published one: A is new, M has another content, = has the
/// same content, D is staged to be deleted, ? is as long as the published one, whose content id is not
/// known. With a mount this asks the remote only for what the mount does not know. NAME@SEQ: what has
/// changed since that commit; with a second NAME@SEQ, until that one. The exit code is 0 whether
/// there are differences or not.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs diff run_07                        staged against published
  dsfs diff run_07@3                      what has changed since commit 3
  dsfs diff run_07@3 run_07@5             and from commit 3 to commit 5
  dsfs diff run_07 --json | jq -r '.[] | select(.kind == \"changed\") | .path'")]
pub struct DiffArgs {
    /// The dataset; or the commit to begin with
    #[arg(value_name = "NAME[@SEQ]")]
    before: Revision,
    /// The commit to end with
    #[arg(value_name = "NAME[@SEQ]")]
    after: Option<Revision>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

impl DiffArgs {
    fn request(&self) -> HistoryRequest {
        let before = self.before.clone();
        match &self.after {
            Some(after) => HistoryRequest::Compare { before, after: after.clone() },
            None if before.seq.is_none() => HistoryRequest::Diff { dataset: before.dataset },
            None => {
                let after = Revision { dataset: before.dataset.clone(), seq: None };
                HistoryRequest::Compare { before, after }
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// There is no such dataset or commit; the remote has to be asked and cannot.
pub fn run(args: &DiffArgs, cx: &mut Context) -> Result<(), Failure> {
    let HistoryReply::Differences(differences) = history::ask(&args.target, args.request(), cx)? else {
        return Err(history::unexpected());
    };
    if args.json {
        cx.out.json(&differences);
        return Ok(());
    }
    cx.out.table(&differences.iter().map(row).collect::<Vec<_>>());
    cx.out.note(summary(&differences));
    Ok(())
}

fn row(difference: &Difference) -> Vec<String> {
    let letter = match difference.kind {
        DifferenceKind::New => "A",
        DifferenceKind::Same => "=",
        DifferenceKind::Changed => "M",
        DifferenceKind::Deleted => "D",
        DifferenceKind::Unknown => "?",
    };
    let size = |side: &Side| units::show_size(side.size_bytes);
    let sizes = match (&difference.before, &difference.after) {
        (Some(before), Some(after)) if before.size_bytes != after.size_bytes => {
            format!("{} -> {}", size(before), size(after))
        }
        (_, Some(side)) | (Some(side), None) => size(side),
        (None, None) => "-".to_owned(),
    };
    let note = difference.note.as_deref().map(|note| format!("({note})")).unwrap_or_default();
    vec![letter.to_owned(), sizes, printable(difference.path.as_str()), note]
}

fn summary(differences: &[Difference]) -> String {
    let kinds = [
        (DifferenceKind::New, "new"),
        (DifferenceKind::Changed, "changed"),
        (DifferenceKind::Deleted, "deleted"),
        (DifferenceKind::Same, "with the same content"),
        (DifferenceKind::Unknown, "of unknown content"),
    ];
    let count = |kind| differences.iter().filter(|difference| difference.kind == kind).count() as u64;
    let parts: Vec<String> = kinds
        .into_iter()
        .filter(|(kind, _)| count(*kind) > 0)
        .map(|(kind, what)| format!("{} {what}", counted(count(kind), "file")))
        .collect();
    if parts.is_empty() { "no differences".to_owned() } else { parts.join(", ") }
}
