//! Loading whole small objects into the cache, for whoever knows that they will be wanted.
//!
//! Unlike a hint ([`hint`](crate::read::hint)), what is loaded does not stay in memory: there may
//! be many more of it than memory, and it may be opened much later.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time;

use crate::block;
use crate::read::ObjectVersion;
use crate::read::OpenObject;
use crate::read::RUN_BYTES;
use crate::read::Reader;
use crate::read::part::Claim;
use crate::read::part::Outcome;
use crate::read::stats::count;

/// How long a load waits for memory that others have.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const MEMORY_POLL: Duration = Duration::from_millis(20);

/// What became of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It is in the cache, or on its way there.
    Cached,
    /// There is no room for it now: no memory, or a cache that takes nothing.
    Refused,
    /// It could not be fetched.
    Failed,
}

impl Reader {
    /// Fetches an object of at most a mebibyte into the cache, when it is its turn among the
    /// requests that nobody waits for. Dropping the future gives it up.
    pub async fn load(&self, version: &ObjectVersion) -> Loaded {
        debug_assert!(version.size_bytes <= RUN_BYTES, "one run");
        if !self.shared.cache.admits() {
            return Loaded::Refused;
        }
        let object = self.object(self.version_id(version), version.clone());
        if object.lookup_present() {
            return Loaded::Cached;
        }
        // Memory is waited for here, since a fetch that has begun would hold a place for it.
        let patience = time::Instant::now() + MEMORY_PATIENCE;
        let ahead = std::sync::Arc::clone(&self.shared.ahead).acquire_owned().await;
        let ahead = ahead.expect("the semaphore is never closed");
        let lease = loop {
            match self.shared.memory.try_lease(version.size_bytes) {
                Some(lease) => break lease,
                None if time::Instant::now() >= patience => return Loaded::Refused,
                None => time::sleep(MEMORY_POLL).await,
            }
        };
        let Some((mut outcome, claim)) = object.begin_load(lease, ahead) else { return Loaded::Cached };
        let fetched = outcome.wait_for(Option::is_some).await.is_ok_and(|done| matches!(*done, Some(Ok(_))));
        drop(claim);
        if fetched { Loaded::Cached } else { Loaded::Failed }
    }

    /// A load came true: what it fetched is opened.
    pub fn load_was_useful(&self, version: &ObjectVersion) {
        count(&self.shared.counters.of(&version.key).useful_bytes, version.size_bytes);
    }
}

/// What a load waits for.
pub(super) type Loading = (watch::Receiver<Outcome>, Claim);

impl OpenObject {
    /// All blocks of the object.
    pub(super) fn all_blocks(&self) -> std::ops::Range<u64> {
        0..block::count(self.version.size_bytes)
    }
}
