//! Work on catalog and cache, by the daemon of a mount or, without one, by this process.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::cli::Context;
use crate::cli::progress::Reporter;
use crate::cli::target;
use crate::cli::target::Target;
use crate::cli::target::TargetArgs;
use crate::config::Config;
use crate::control::client::Client;
use crate::control::keep::KeepReply;
use crate::control::keep::KeepRequest;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::compose;
use crate::daemon::compose::Workspace;
use crate::daemon::keep::Keeper;
use crate::daemon::remote;
use crate::staging::Holder;

/// Does what is asked for, and shows how far it has come.
///
/// # Errors
/// The work's own.
pub fn keep(target: &TargetArgs, request: KeepRequest, cx: &Context) -> Result<KeepReply, Failure> {
    let mut reporter = Reporter::new(&cx.out);
    let result = match target::find(target, cx)? {
        Target::Daemon(socket) => {
            let client = Client::connect(&socket).map_err(|err| {
                Failure::new(FailureKind::Failed, format!("the daemon does not answer: {err}"))
            })?;
            client.call(&Request::Keep(request), &mut |progress| reporter.update(progress)).and_then(
                |reply| {
                    let Reply::Kept(reply) = reply else { return Err(target::unexpected(&reply)) };
                    Ok(reply)
                },
            )
        }
        Target::Direct(config) => {
            let runtime = remote::runtime()?;
            let work = async {
                let keeper = keeper(&config, runtime.handle()).await?;
                let (progress, seen) = watch::channel(Progress::default());
                reported(keeper.handle(request, progress), seen, &mut reporter).await
            };
            runtime.block_on(work)
        }
    };
    reporter.finish();
    result
}

/// What a mount has, without one.
async fn keeper(config: &Config, runtime: &tokio::runtime::Handle) -> Result<Arc<Keeper>, Failure> {
    let remote = remote::open(config).await?;
    let holder = Holder { pid: std::process::id(), ..Holder::default() };
    let workspace = Workspace::open(config, remote, &holder)?;
    let catalog = compose::catalog(config, &workspace.remote);
    let reader = compose::reader(config, &workspace, runtime);
    let owner = workspace.remote.remote.id();
    Ok(Keeper::new(catalog, reader, workspace.cache_dir.clone(), &workspace.remote_state_dir, owner))
}

/// Runs `work` and shows its progress.
async fn reported<T>(
    work: impl Future<Output = T>,
    mut seen: watch::Receiver<Progress>,
    reporter: &mut Reporter,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            Ok(()) = seen.changed() => {
                let now = seen.borrow_and_update().clone();
                reporter.update(&now);
            }
        }
    }
}
