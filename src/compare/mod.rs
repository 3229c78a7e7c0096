//! Holding content against content: what is staged against what is published, one snapshot against
//! another, and what is cached or stored against what was committed.
//!
//! Content is compared by content id wherever one is known; an `ETag` names a version and says
//! nothing of its bytes. Of objects that other tools put into a dataset no content id is known,
//! and nothing is claimed.
//!
//! # What this module does not know
//!
//! Mounts, commands. It changes nothing in the bucket; what it finds damaged in the cache it drops.

mod cached;
mod difference;
mod remote;
#[cfg(test)]
mod tests;
mod verify;

pub use difference::Difference;
pub use difference::DifferenceKind;
pub use difference::Side;
pub use difference::between;
pub use difference::staged;
pub use verify::BadFile;
pub use verify::CacheCounts;
pub use verify::Found;
pub use verify::Place;
pub use verify::Problem;
pub use verify::RemoteCounts;
pub use verify::Verify;
pub use verify::VerifyReport;

use crate::log::LogError;
use crate::staging::StagingError;
use crate::store::StoreError;

/// Watches a comparison. Called from several threads; must be quick.
pub trait Watch: Send + Sync {
    /// Something begins, with this many files and bytes to go.
    fn phase(&self, _what: &'static str, _files: u64, _bytes: u64) {}
    /// Bytes were looked at.
    fn looked_at(&self, _bytes: u64) {}
    /// A file is done.
    fn file_done(&self) {}
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The remote's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The dataset's log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The local disk's answer.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// Files hashed at a time: as many as there are processors.
fn hashers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
