//! How long a request is waited for, and how long after it was asked for it may still be sent.
//!
//! # Waiting
//!
//! A request has its timeout, for a server that is silent. What takes long without anybody being silent comes on
//! top ([`Extra`]): a body on a slow line, and the making of one object out of many parts. The line is the same for
//! all uploads ([`Line`]): of those under way at the same time each is waited for as if it had its share of
//! [`UPLOAD_RATE_MIN`] only, or all of them would be given up together shortly before they are through.
//!
//! # Deletions
//!
//! Deadlines stand still while a machine sleeps. That is right for who waits, and wrong for a deletion: it
//! names a version, which on S3 is a content, and by the time the machine wakes up somebody else may have put
//! the same content there. So deletions go by the time of day too.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::name::ObjectKey;
use crate::store::StoreError;

/// How long after it was asked for, or after the look before it, a deletion is still sent.
pub(crate) const DELETE_WITHIN: Duration = Duration::from_secs(3 * 60);

/// The slowest line that uploads are waited for, all together, in bytes per second.
const UPLOAD_RATE_MIN: u64 = 64 * 1024;
/// How long a store may take over each part of an upload that it makes one object: AWS takes
/// minutes for large ones, and a directory has to copy them.
const COMPLETE_PER_PART: Duration = Duration::from_secs(5);

/// What a request is waited for beside its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extra {
    /// Nothing.
    Nothing,
    /// A body of so many bytes to be sent.
    Body(usize),
    /// So many parts to be made one object.
    Parts(usize),
}

/// The line that uploads share.
#[derive(Debug)]
pub(super) struct Line {
    /// How many are under way.
    uploads: watch::Sender<u32>,
}

/// An upload under way, until it is dropped.
struct Counted<'l>(&'l Line);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.uploads.send_modify(|uploads| *uploads -= 1);
    }
}

impl Default for Line {
    fn default() -> Self {
        Self { uploads: watch::Sender::new(0) }
    }
}

impl Line {
    /// Waits for a request that may be silent for `silence`.
    ///
    /// # Errors
    /// It was not answered: how long it was waited for.
    pub async fn wait<T>(
        &self,
        silence: Duration,
        extra: Extra,
        request: impl Future<Output = T>,
    ) -> Result<T, Duration> {
        let limit = match extra {
            Extra::Nothing => silence,
            Extra::Body(len) => return self.wait_for_upload(silence, len, request).await,
            Extra::Parts(parts) => {
                silence + COMPLETE_PER_PART.saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX))
            }
        };
        timeout(limit, request).await.map_err(|_elapsed| limit)
    }

    /// As [`Self::wait`]. The time that `len` bytes take passes the slower the more uploads share the line; how
    /// many those are changes meanwhile.
    async fn wait_for_upload<T>(
        &self,
        mut silence: Duration,
        len: usize,
        request: impl Future<Output = T>,
    ) -> Result<T, Duration> {
        self.uploads.send_modify(|uploads| *uploads += 1);
        let _counted = Counted(self);
        let mut uploads = self.uploads.subscribe();
        let began = Instant::now();
        // What it would take alone.
        let mut left = Duration::from_millis(len as u64 * 1000 / UPLOAD_RATE_MIN);
        let mut request = pin!(request);
        loop {
            let sharing = (*uploads.borrow_and_update()).max(1);
            let since = Instant::now();
            let share = left * sharing;
            tokio::select! {
                biased;
                result = &mut request => return Ok(result),
                Ok(()) = uploads.changed() => {}
                () = sleep_until(since + share + silence) => return Err(began.elapsed()),
            }
            let passed = since.elapsed();
            left = left.saturating_sub(passed / sharing);
            silence = silence.saturating_sub(passed.saturating_sub(share));
        }
    }
}

/// When a deletion was asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    clock: Arc<dyn Clock>,
    at: SystemTime,
}

impl Asked {
    pub fn now(clock: &Arc<dyn Clock>) -> Self {
        Self { clock: Arc::clone(clock), at: clock.now() }
    }

    /// Whether that is too long ago for it to be sent.
    pub fn is_stale(&self) -> bool {
        self.clock.now().duration_since(self.at).is_ok_and(|age| age >= DELETE_WITHIN)
    }

    /// To be called right before it is sent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: it is too late, and nothing is sent.
    pub fn check(&self, key: &ObjectKey) -> Result<(), StoreError> {
        if self.is_stale() {
            let seconds = DELETE_WITHIN.as_secs();
            let reason = format!(
                "the deletion was asked for more than {seconds} s ago (this machine may have slept); \
                 what is there has to be looked at again"
            );
            return Err(StoreError::unavailable(key, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);
    const PART: usize = 8 << 20;

    fn seconds(waited: Result<(), Duration>) -> u64 {
        waited.unwrap_err().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_that_share_a_line_are_waited_for_as_long_as_it_takes_them() {
        let line = Line::default();
        let alone = line.wait(SILENCE, Extra::Body(PART), pending()).await;
        assert_eq!(seconds(alone), 30 + 128);
        let together = (0..8).map(|_| line.wait(SILENCE, Extra::Body(PART), pending()));
        for waited in join_all(together).await {
            assert_eq!(seconds(waited), 30 + 8 * 128);
        }
        assert_eq!(*line.uploads.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_and_goes_counts_for_as_long_as_it_is_there() {
        let line = Line::default();
        let other = async {
            sleep(Duration::from_secs(28)).await;
            line.wait(SILENCE, Extra::Body(PART), sleep(Duration::from_secs(100))).await
        };
        let (waited, done) = tokio::join!(line.wait(SILENCE, Extra::Body(PART), pending()), other);
        assert_eq!((seconds(waited), done), (30 + 128 + 100 / 2, Ok(())));

        // Of those whose own time has passed, nobody is waited for longer because others come.
        let others = async {
            sleep(Duration::from_secs(5)).await;
            for _ in 0..100 {
                line.wait(SILENCE, Extra::Body(0), sleep(Duration::from_secs(1))).await.unwrap();
            }
        };
        let (waited, ()) = tokio::join!(line.wait(SILENCE, Extra::Body(0), pending()), others);
        assert_eq!(seconds(waited), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn what_sends_no_body_is_waited_for_by_itself() {
        let line = Line::default();
        let (_upload, head, completion) = tokio::join!(
            line.wait(SILENCE, Extra::Body(PART), pending::<()>()),
            line.wait(SILENCE, Extra::Nothing, pending()),
            line.wait(SILENCE, Extra::Parts(10), pending()),
        );
        assert_eq!((seconds(head), seconds(completion)), (30, 30 + 50));
    }
}
