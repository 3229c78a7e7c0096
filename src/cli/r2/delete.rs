//! `dsfs r2 delete`: an object, or everything below a prefix.

use clap::Args;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::bulk;
use crate::cli::bulk::Session;
use crate::cli::bulk::WorkersArgs;
use crate::cli::meter::Meter;
use crate::cli::output::counted;
use crate::client::ClientError;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::remote;

/// Delete an object, or everything below a prefix
///
/// With '/' at its end, or with -r, KEY is a prefix: `a/b` takes `a/b` and `a/b/…` along, never `a/bc`.
/// What is not there counts as deleted. Each object goes in the version that was listed: one that somebody
/// replaces meanwhile is left alone, and named; if others were deleted, the exit code is 6. Datasets have a
/// command of their own, `dsfs dataset delete`.
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "rm",
    after_help = "\
Examples:
  dsfs r2 delete datasets/run_07/notes.txt
  dsfs r2 delete results/old/
  dsfs r2 delete -r s3://assets/results/old"
)]
pub struct DeleteArgs {
    /// The key, or the prefix
    key: String,
    /// Everything below it, too
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    workers: WorkersArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    deleted: u64,
}

/// Runs the command.
///
/// # Errors
/// An empty key or prefix; something was replaced meanwhile; the remote's.
pub fn run(args: &DeleteArgs, cx: &mut Context) -> Result<(), Failure> {
    let (config, key) = bulk::located(&args.key, cx)?;
    if key.trim_matches('/').is_empty() {
        return Err(Failure::new(FailureKind::Usage, "this would delete the whole bucket")
            .hint("name a key, or a prefix"));
    }
    let meter = Meter::new("Deleting", false, &cx.out);
    let deleted = remote::runtime()?.block_on(async {
        let session = Session::open(&config).await?;
        delete(args, &key, &session, &meter).await.map_err(|err| failed(&err, &session))
    })?;
    if args.json {
        cx.out.json(&Outcome { deleted });
    } else {
        cx.out.note(format!("{} deleted", counted(deleted, "object")));
    }
    Ok(())
}

async fn delete(args: &DeleteArgs, key: &str, session: &Session, meter: &Meter) -> Result<u64, ClientError> {
    let client = session.client(args.workers.workers, meter);
    let is_prefix = key.ends_with('/');
    let mut deleted = 0;
    let mut replaced = Vec::new();
    if args.recursive || is_prefix {
        match client.delete_prefix(key).await {
            Err(ClientError::Overtaken { keys, done }) => {
                deleted += done;
                replaced.extend(keys);
            }
            answer => deleted += answer?.deleted,
        }
    }
    if !is_prefix {
        match client.delete_object(key, true).await {
            Err(ClientError::Cancelled { done, files }) => {
                return Err(ClientError::Cancelled { done: deleted + done, files: deleted + files });
            }
            Err(ClientError::Overtaken { keys, .. }) => replaced.extend(keys),
            answer => deleted += u64::from(answer?),
        }
    }
    if replaced.is_empty() {
        Ok(deleted)
    } else {
        Err(ClientError::Overtaken { keys: replaced, done: deleted })
    }
}

fn failed(err: &ClientError, session: &Session) -> Failure {
    if matches!(err, ClientError::Overtaken { .. } | ClientError::Cancelled { .. }) {
        return failure::of_deletion(err, 0);
    }
    session.failed(err)
}
