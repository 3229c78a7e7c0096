//! How much is sent at once: places for requests, which small ones share.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

/// Small requests that share the place of a large one.
pub(crate) const SHARES: u32 = 8;
/// A request of so many bytes takes one share, one of [`SHARES`] times as many a whole place.
const SHARE_BYTES: u64 = 64 * 1024;

/// The places of a commit or a transfer.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    shares: Arc<Semaphore>,
}

impl Places {
    pub fn new(workers: usize) -> Self {
        Self { shares: Arc::new(Semaphore::new(workers.max(1) * SHARES as usize)) }
    }

    /// Waits for room for a request that moves so many bytes.
    pub async fn take(&self, bytes: u64) -> OwnedSemaphorePermit {
        let shares = Arc::clone(&self.shares);
        shares.acquire_many_owned(shares_of(bytes)).await.expect("the semaphore is never closed")
    }
}

fn shares_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(SHARE_BYTES)).unwrap_or(SHARES).clamp(1, SHARES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_share_a_place() {
        assert_eq!([0, 1, 64 << 10, (64 << 10) + 1, 512 << 10, 8 << 20].map(shares_of), [1, 1, 1, 2, 8, 8]);
    }
}
