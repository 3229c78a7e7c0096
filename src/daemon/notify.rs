//! Talking to systemd, if it is the one who started us. Without it, all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The mount answers.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What the daemon is doing.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon is on its way out, and may take so long.
pub fn stopping(status: &str, at_most: Duration) {
    let microseconds = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// Shows signs of life, if the service asks for them, until `stop`. A runtime that hangs shows none.
pub async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = time::interval(limit / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        debug!("systemd cannot be told: {err}");
    }
}
