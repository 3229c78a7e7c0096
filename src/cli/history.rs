//! What the commands about a dataset's past have in common.

use tokio::sync::watch;

use crate::cli::Context;
use crate::cli::progress::Reporter;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::history::CommitHeader;
use crate::control::history::HistoryReply;
use crate::control::history::HistoryRequest;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::history::Source;
use crate::daemon::remote;

/// Has a question answered by the daemon that is meant, or, without one, by this process.
///
/// # Errors
/// Nothing fits the target; whatever the answer is an error of.
pub fn ask(target: &TargetArgs, request: HistoryRequest, cx: &Context) -> Result<HistoryReply, Failure> {
    let mut reporter = Reporter::new(&cx.out);
    let answer = match target::find(target, cx)? {
        Target::Daemon(socket) => target::connect(&socket)?
            .call(&Request::History(request), &mut |progress| reporter.update(progress))
            .and_then(|reply| {
                let Reply::History(answer) = reply else { return Err(target::unexpected(&reply)) };
                Ok(answer)
            }),
        Target::Direct(config) => remote::runtime()?.block_on(async {
            let source = Source::open(&config, &request).await?;
            let (progress, seen) = watch::channel(Progress::default());
            reporter.follow(seen, source.answer(&request, &progress)).await
        }),
    };
    reporter.finish();
    answer
}

/// The failure of an answer to another question.
#[must_use]
pub fn unexpected() -> Failure {
    Failure::new(FailureKind::Failed, "the daemon gave an answer to another question")
}

/// What a commit did, in numbers.
#[must_use]
pub fn described(commit: &CommitHeader) -> String {
    if commit.aborted {
        return "aborted".to_owned();
    }
    let counts = [(commit.new, "new"), (commit.replaced, "replaced"), (commit.deleted, "deleted")];
    let mut parts: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if commit.directories > 0 {
        let directories = if commit.directories == 1 { "directory" } else { "directories" };
        parts.push(format!("{} empty {directories}", commit.directories));
    }
    if commit.new + commit.replaced > 0 {
        parts.push(units::show_size(commit.bytes));
    }
    parts.join(", ")
}

/// A time to the second: what comes behind that helps nobody to read it.
#[must_use]
pub fn to_the_second(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(seconds, _)| format!("{seconds}Z"))
}
