//! `dsfs commit`: publish what is staged, all or nothing.

use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::Context;
use crate::cli::bulk;
use crate::cli::output::counted;
use crate::cli::progress::Reporter;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::Config;
use crate::config::units;
use crate::control::client::CallError;
use crate::control::message::CommitOutcome;
use crate::control::message::CommitRequest;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::message::Unfinished;
use crate::daemon::compose::Workspace;
use crate::daemon::failure;
use crate::daemon::publish;
use crate::daemon::remote;
use crate::name::DatasetName;
use crate::staging::Holder;

/// How long a daemon may take to drop a commit after Ctrl-C.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// Publish a dataset's staged changes, all or nothing
///
/// Never overwrites: if anything is where a staged file would go, all of it is named, nothing is changed,
/// and the exit code is 3. What was interrupted, by Ctrl-C too, is finished first, or undone by --abort. Works
/// with and without a mount.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs commit run_07 -m 'second calibration'
  dsfs commit run_07 --dry-run
  dsfs commit run_07 --abort              undo a commit that was interrupted
  dsfs commit run_07 --overwrite          publish replacements too (see `dsfs mount --allow-replace`)")]
pub struct CommitArgs {
    /// The dataset
    name: DatasetName,
    /// Say what would be published, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Replace and delete published files, where that is staged
    #[arg(long)]
    overwrite: bool,
    /// Why, for the commit's record
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Go on although the remote cannot refuse to overwrite what another tool writes meanwhile
    #[arg(long)]
    allow_unenforced: bool,
    /// Only finish a commit that was interrupted
    #[arg(long, conflicts_with_all = ["abort", "dry_run"])]
    resume: bool,
    /// Undo a commit that was interrupted; what was staged is staged again
    #[arg(long, conflicts_with = "dry_run")]
    abort: bool,
    /// Large bodies sent at a time; of small files eight times as many
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

impl CommitArgs {
    fn request(&self) -> CommitRequest {
        let unfinished = match (self.resume, self.abort) {
            (true, _) => Unfinished::ResumeOnly,
            (_, true) => Unfinished::Abort,
            (false, false) => Unfinished::Resume,
        };
        CommitRequest {
            dataset: self.name.clone(),
            dry_run: self.dry_run,
            overwrite: self.overwrite,
            message: self.message.clone(),
            allow_unenforced: self.allow_unenforced,
            unfinished,
            workers: self.workers.map(usize::from),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Nothing was published, and why.
pub fn run(args: &CommitArgs, cx: &mut Context) -> Result<(), Failure> {
    let request = args.request();
    let mut reporter = Reporter::new(&cx.out);
    let target = target::find(&args.target, cx)?;
    let asked = match &target {
        Target::Daemon(socket) => Some(socket.clone()),
        Target::Direct(_) => None,
    };
    let runtime = remote::runtime()?;
    let result = runtime.block_on(async {
        let cancel = CancellationToken::new();
        bulk::watch_signals(cancel.clone())?;
        match target {
            Target::Daemon(socket) => by_daemon(&socket, request, &mut reporter, &cancel).await,
            Target::Direct(config) => tokio::select! {
                result = directly(&config, &request, &mut reporter) => result,
                () = cancel.cancelled() => Err(interrupted(&request)),
            },
        }
    });
    // What was interrupted may be hashing a large file, or wait for a directory that does not answer: it ends with
    // the process.
    runtime.shutdown_background();
    reporter.finish();
    let elsewhere =
        |failure| target::or_staged_elsewhere(failure, "commit", &args.name, asked.as_deref(), cx);
    let outcome = result.map_err(elsewhere)?;
    if args.json {
        cx.out.json(&outcome);
    } else {
        show(&outcome, cx);
    }
    Ok(())
}

/// Has the daemon of a mount commit. It drops what it does when it is hung up on; when this returns, it has, so that
/// the next command finds the dataset free, unless the daemon hangs.
async fn by_daemon(
    socket: &Path,
    request: CommitRequest,
    reporter: &mut Reporter,
    cancel: &CancellationToken,
) -> Result<CommitOutcome, Failure> {
    let client = target::connect(socket)?;
    let hang_up = client.hang_up().map_err(|err| {
        Failure::new(FailureKind::Failed, format!("the connection to the daemon cannot be watched: {err}"))
    })?;
    let (progress, seen) = watch::channel(Progress::default());
    let (answer, mut answered) = oneshot::channel();
    let asked = Request::Commit(request.clone());
    // Not one of the runtime's threads, which would be waited for at the end.
    thread::spawn(move || {
        let said = client.ask(&asked, &mut |now| {
            progress.send_replace(now.clone());
        });
        let _ = answer.send(said); // nobody waits for a daemon that hangs
    });
    let work = async {
        tokio::select! {
            answer = &mut answered => return answer.ok(),
            () = cancel.cancelled() => hang_up.now(),
        }
        tokio::time::timeout(HANG_UP_TIMEOUT, answered).await.ok()?.ok()
    };
    match reporter.follow(seen, work).await {
        Some(Ok(Reply::Committed(outcome))) => Ok(outcome),
        Some(Ok(reply)) => Err(target::unexpected(&reply)),
        Some(Err(err)) if !cancel.is_cancelled() => Err(unanswered(&request, err)),
        Some(Err(_)) | None => Err(interrupted(&request)),
    }
}

/// The failure of a commit that the daemon has refused, or whose outcome it has not told: because it was unmounted or
/// ended meanwhile, most likely.
fn unanswered(request: &CommitRequest, err: CallError) -> Failure {
    match err {
        CallError::Silent(_) | CallError::Lost(_) if !request.dry_run => {
            let name = &request.dataset;
            let message = format!("{name}: cut off before the commit had ended: {err}");
            Failure::new(FailureKind::Partial, message).hint(failure::resume(name))
        }
        CallError::Refused(_)
        | CallError::NotUnderstood(_)
        | CallError::Silent(_)
        | CallError::Lost(_)
        | CallError::Garbled(_) => err.into(),
    }
}

/// The failure of a commit that was dropped where it was, like one whose process was killed.
fn interrupted(request: &CommitRequest) -> Failure {
    let name = &request.dataset;
    if request.dry_run {
        return Failure::new(FailureKind::Cancelled, format!("{name}: cancelled; nothing was changed"));
    }
    Failure::new(FailureKind::Cancelled, format!("{name}: interrupted before the commit had ended"))
        .hint(failure::resume(name))
}

/// Commits in this process. The staging area is locked meanwhile, so that no mount can begin.
async fn directly(
    config: &Config,
    request: &CommitRequest,
    reporter: &mut Reporter,
) -> Result<CommitOutcome, Failure> {
    let remote = remote::open(config).await?;
    remote.watch_line();
    let holder = Holder { pid: std::process::id(), ..Holder::default() };
    let workspace = Workspace::open(config, remote, &holder)?;
    let (progress, seen) = watch::channel(Progress::default());
    reporter.follow(seen, publish::commit(&workspace, request, progress, None)).await
}

fn show(outcome: &CommitOutcome, cx: &mut Context) {
    let name = &outcome.dataset;
    let (files, size) = (counted(outcome.files, "file"), units::show_size(outcome.bytes));
    if outcome.aborted {
        cx.out.line(format!("{name}: the interrupted commit is undone; its files are staged again"));
        return;
    }
    let mut also = String::new();
    if outcome.already_there > 0 {
        also.push_str(&format!(", {} there already with the same content", outcome.already_there));
    }
    if outcome.deleted > 0 {
        also.push_str(&format!(", {} deleted", outcome.deleted));
    }
    if outcome.dry_run {
        for path in &outcome.paths {
            cx.out.line(path.as_str().escape_debug().to_string());
        }
        cx.out.note(format!(
            "{name}: would publish {} files ({size}){also}; nothing was changed",
            outcome.files
        ));
        return;
    }
    let number = outcome.seq.map(|seq| format!(" as commit {seq}")).unwrap_or_default();
    cx.out.line(format!("{name}: published {files} ({size}){number}{also}"));
    if outcome.guarantee.as_deref().is_some_and(|guarantee| guarantee != "enforced") {
        let grade = outcome.guarantee.as_deref().unwrap_or_default();
        cx.out.warn(format!(
            "this remote's guarantee is {grade}: it cannot always refuse to overwrite what other tools write at the same time"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_commit_whose_daemon_is_lost_can_be_gone_on_with() {
        let mut request = CommitRequest {
            dataset: DatasetName::parse("run").expect("a name"),
            dry_run: false,
            overwrite: false,
            message: None,
            allow_unenforced: false,
            unfinished: Unfinished::Resume,
            workers: None,
        };
        let lost = || CallError::Lost(io::ErrorKind::UnexpectedEof.into());
        let failure = unanswered(&request, lost());
        assert_eq!(failure.kind, FailureKind::Partial);
        assert!(failure.message.starts_with("run: "), "{failure}");
        assert_eq!(failure.hint, Some(failure::resume(&request.dataset)));
        let said = Failure::new(FailureKind::Conflict, "no");
        assert_eq!(unanswered(&request, CallError::Refused(said.clone())), said);
        request.dry_run = true;
        assert_eq!(unanswered(&request, lost()).kind, FailureKind::Failed, "nothing was begun");
    }
}
