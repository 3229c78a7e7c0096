//! Whether the cache's disk is used at the moment.
//!
//! A disk that fails (EIO, full, read-only, gone) is left alone for a while and tried again;
//! the first failure is told once, and so is the recovery. Nothing here is ever fatal: reads
//! go to the network instead.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;

/// How long a failing disk is left alone.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The state of the cache's disk.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Read without the lock on every write: almost always false.
    troubled: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    retry_at: Instant,
}

impl Health {
    /// Whether a write should be tried now.
    pub(crate) fn may_write(&self) -> bool {
        if !self.troubled.load(Ordering::Relaxed) {
            return true;
        }
        self.trouble.lock().as_ref().is_none_or(|trouble| Instant::now() >= trouble.retry_at)
    }

    /// A write failed.
    pub(crate) fn failed(&self, what: impl fmt::Display, err: &io::Error) {
        let mut trouble = self.trouble.lock();
        if trouble.is_none() {
            tracing::warn!("block cache bypassed, reads go to the network: {what}: {err}");
        }
        *trouble = Some(Trouble { reason: format!("{what}: {err}"), retry_at: Instant::now() + RETRY_AFTER });
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// A write succeeded.
    pub(crate) fn succeeded(&self) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        if self.trouble.lock().take().is_some() {
            tracing::info!("block cache in use again");
        }
        self.troubled.store(false, Ordering::Relaxed);
    }

    /// Lets the next write try at once.
    #[cfg(test)]
    pub(crate) fn retry_now(&self) {
        if let Some(trouble) = self.trouble.lock().as_mut() {
            trouble.retry_at = Instant::now();
        }
    }

    /// Why the disk is bypassed, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        self.trouble.lock().as_ref().map(|trouble| trouble.reason.clone())
    }
}
