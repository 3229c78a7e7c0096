//! How long after it was asked for a request may still be sent.
//!
//! Deadlines stand still while a machine sleeps. That is right for who waits, and wrong for a deletion: it
//! names a version, which on S3 is a content, and by the time the machine wakes up somebody else may have put
//! the same content there. So deletions go by the time of day too.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::name::ObjectKey;
use crate::store::StoreError;

/// How long after it was asked for, or after the look before it, a deletion is still sent.
pub(crate) const DELETE_WITHIN: Duration = Duration::from_secs(3 * 60);

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
