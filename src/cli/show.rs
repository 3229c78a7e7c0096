//! `dsfs show`: one commit, file by file.

use clap::Args;

use crate::cli::Context;
use crate::cli::history;
use crate::cli::output::printable;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::history::ChangedFile;
use crate::control::history::CommitDetail;
use crate::control::history::FileChange;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::name::Revision;

/// Show one commit of a dataset, file by file
///
/// NAME is the newest commit, NAME@SEQ an older one by its number in `dsfs log`. Each file with what
/// happened to it (A added, R replaced, D deleted), size, modification time, content id and path; ETags
/// are in --json. A dataset whose own name ends in @ and digits is written with an @ at the end: a@3@.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs show run_07
  dsfs show run_07@3
  dsfs show run_07@3 --json | jq -r '.files[] | [.cid, .path] | @tsv'")]
pub struct ShowArgs {
    /// The dataset, or one of its commits: NAME or NAME@SEQ
    #[arg(value_name = "NAME[@SEQ]")]
    revision: Revision,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs the command.
///
/// # Errors
/// There is no such dataset or commit; the log cannot be read.
pub fn run(args: &ShowArgs, cx: &mut Context) -> Result<(), Failure> {
    let request = HistoryRequest::Show { revision: args.revision.clone() };
    let HistoryReply::Commit(commit) = history::ask(&args.target, request, cx)? else {
        return Err(history::unexpected());
    };
    if args.json {
        cx.out.json(&commit);
    } else {
        show(&commit, cx);
    }
    Ok(())
}

fn show(commit: &CommitDetail, cx: &mut Context) {
    let header = &commit.header;
    cx.out.line(format!("commit {} of {}", header.seq, printable(commit.dataset.as_str())));
    let mut rows = vec![
        ("id", printable(&header.txid)),
        ("author", printable(&format!("{}@{}", header.author, header.host))),
        ("time", header.time.clone()),
        ("changes", history::described(header)),
    ];
    let message = header.message.as_deref().unwrap_or_default().lines().map(printable);
    rows.extend(message.enumerate().map(|(n, line)| (if n == 0 { "message" } else { "" }, line)));
    cx.out.table(&rows.into_iter().map(|(name, value)| vec![format!("  {name}"), value]).collect::<Vec<_>>());
    let files = commit.files.iter().map(row);
    let directories = commit.empty_directories.iter().map(|path| {
        vec!["A".into(), "-".into(), "-".into(), "-".into(), format!("{}/", printable(path.as_str()))]
    });
    cx.out.table(&files.chain(directories).collect::<Vec<_>>());
}

fn row(file: &ChangedFile) -> Vec<String> {
    let letter = match file.change {
        FileChange::New => "A",
        FileChange::Replaced => "R",
        FileChange::Deleted => "D",
    };
    let unknown = || "-".to_owned();
    vec![
        letter.to_owned(),
        file.size_bytes.map_or_else(unknown, units::show_size),
        file.mtime.as_deref().map_or_else(unknown, history::to_the_second),
        file.cid.map_or_else(unknown, |cid| cid.to_string()),
        printable(file.path.as_str()),
    ]
}
