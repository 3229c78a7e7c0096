//! What the commands that move files have in common: where, with whom, and until when.

use clap::Args;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_util::sync::CancellationToken;

use crate::cli::Context;
use crate::cli::exit;
use crate::cli::meter::Meter;
use crate::cli::target;
use crate::client::Client;
use crate::client::ClientError;
use crate::config::Config;
use crate::config::Layer;
use crate::config::remote::RemoteUrl;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::remote;
use crate::daemon::remote::OpenRemote;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;
use crate::transfer;
use crate::transfer::Notes;

/// Where it is noted how far transfers have come, in the state directory.
const NOTES_DIR: &str = "transfers";

/// How many requests at a time.
#[derive(Clone, Debug, Args)]
pub struct WorkersArgs {
    /// Requests for large bodies at a time; for small files eight times as many
    #[arg(short, long, value_name = "N", global = true, default_value_t = transfer::WORKERS_DEFAULT as u16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
}

/// A remote that is being worked with, until Ctrl-C.
pub struct Session {
    /// The settings.
    pub config: Config,
    /// The remote.
    pub remote: OpenRemote,
    /// Cancelled by Ctrl-C.
    pub cancel: CancellationToken,
}

/// A key or prefix as the user wrote it, `s3://bucket/…` or not: the settings that this means, and the key.
///
/// # Errors
/// It names another bucket than the flags; nothing says which remote is meant.
pub fn located(text: &str, cx: &mut Context) -> Result<(Config, String), Failure> {
    let layer = cx.global.layer();
    if !text.starts_with("s3://") {
        return Ok((target::config(layer, cx)?, text.to_owned()));
    }
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let rest = text.trim_start_matches("s3://");
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    RemoteUrl::parse(&format!("s3://{bucket}")).map_err(usage)?;
    let other = layer.bucket.as_deref().is_some_and(|named| named != bucket) || layer.remote.is_some();
    if other {
        return Err(usage(format!("{text} and the flags name two buckets")).hint("give only one of them"));
    }
    let layer = Layer { bucket: Some(bucket.to_owned()), ..layer };
    Ok((target::config(layer, cx)?, key.to_owned()))
}

impl Session {
    /// Prepares the remote. Nothing is sent yet.
    ///
    /// # Errors
    /// The settings do not make a remote.
    pub async fn open(config: &Config) -> Result<Self, Failure> {
        let remote = remote::open(config).await?;
        remote.watch_line();
        let cancel = CancellationToken::new();
        watch_signals(cancel.clone())?;
        Ok(Self { config: config.clone(), remote, cancel })
    }

    /// A client of the remote, watched by `meter`.
    #[must_use]
    pub fn client(&self, workers: u16, meter: &Meter) -> Client {
        Client::new(self.remote.store.clone())
            .workers(usize::from(workers))
            .cancel(self.cancel.clone())
            .watch(meter.watch())
            .notes(self.notes())
    }

    /// Where it is noted how far transfers of this remote have come.
    #[must_use]
    pub fn notes(&self) -> Notes {
        Notes {
            dir: self.config.state_dir.value.join(NOTES_DIR),
            store_identity: self.remote.remote.store_identity(),
        }
    }

    /// Waits for what changes nothing, or for Ctrl-C.
    ///
    /// # Errors
    /// Its own, or that it was cancelled.
    pub async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let cancelled = || Failure::new(FailureKind::Cancelled, "cancelled; nothing was changed");
        tokio::select! {
            outcome = work => outcome,
            () = self.cancel.cancelled() => Err(cancelled()),
        }
    }

    /// What the remote enforces; if that is not everything, the user is told.
    ///
    /// # Errors
    /// It is not known, and cannot be probed.
    pub async fn guarantee(&self, cx: &mut Context) -> Result<Guarantee, Failure> {
        let known = async {
            let known = guarantee::known_or_probed(&self.remote, &self.config.state_dir.value).await;
            known.map_err(|err| self.failed(&err.into()))
        };
        let guarantee = self.unless_cancelled(known).await?.guarantee;
        if guarantee == Guarantee::BestEffort {
            cx.out.warn("this server does not refuse to overwrite: what other tools write at the same moment may be lost");
        }
        Ok(guarantee)
    }

    /// What the user is told of a failure; of a remote that cannot be used at all, which setting to look at.
    #[must_use]
    pub fn failed(&self, err: &ClientError) -> Failure {
        if let ClientError::Store(
            err @ (StoreError::NoBucket { .. } | StoreError::Denied { .. } | StoreError::Unavailable { .. }),
        ) = err
        {
            return failure::of_access(err, &self.config);
        }
        failure::of_transfer(err)
    }
}

/// The first Ctrl-C, or `kill`, lets the work end in order; the second one ends it. To be called in a runtime.
///
/// # Errors
/// The system does not let signals be watched.
pub fn watch_signals(cancel: CancellationToken) -> Result<(), Failure> {
    let failed = |err| Failure::new(FailureKind::Failed, format!("signals cannot be watched: {err}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
        interrupt.recv().await;
        std::process::exit(i32::from(exit::CANCELLED));
    });
    Ok(())
}
