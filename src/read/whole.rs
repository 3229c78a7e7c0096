//! An open version as one file of the cache's: when the kernel may have it, and which pages it keeps.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::block;
use crate::cache::Pages;
use crate::read::OpenObject;
use crate::read::RUN_BYTES;
use crate::read::STREAM_BYTES_MIN;
use crate::read::VERIFY_SOON_BYTES_MAX;

impl OpenObject {
    /// The cache's file of this version, if it is whole and every block of it was verified by this
    /// process: for passthrough. Its length is the object's. Never for objects of one block or
    /// less.
    #[must_use]
    pub fn whole_file(&self) -> Option<Arc<File>> {
        self.entry.whole_file()
    }

    /// As [`Self::whole_file`], after verifying what is not verified yet: reads the whole file if
    /// it is complete, off this thread, for as long as there is a handle; whoever else asks meanwhile waits
    /// for the same. `None` at once if it is not complete, or if enough other files are being verified.
    /// Dropping the future ends nothing: who asks later may find it verified.
    pub async fn verified_file(self: &Arc<Self>) -> Option<Arc<File>> {
        if let Some(file) = self.entry.whole_file() {
            return Some(file);
        }
        if !self.entry.is_complete() {
            return None;
        }
        let mut verifying = self.verifying()?;
        let _ended = verifying.changed().await; // nothing is sent: it ends with its sender
        self.entry.whole_file()
    }

    /// Begins to verify the cache's file, unless somebody is at it. The sender is gone when that ends.
    fn verifying(self: &Arc<Self>) -> Option<watch::Receiver<()>> {
        let mut verifying = self.verifying.lock();
        if let Some(under_way) = verifying.as_ref().filter(|verifying| verifying.has_changed().is_ok()) {
            return Some(under_way.clone());
        }
        let large = self.version.size_bytes > VERIFY_SOON_BYTES_MAX;
        let places = if large { &self.reader.verifying_large } else { &self.reader.verifying };
        let place = Arc::clone(places).try_acquire_owned().ok()?;
        let (sender, receiver) = watch::channel(());
        *verifying = Some(receiver.clone());
        let object = Arc::clone(self);
        self.reader.runtime.spawn_blocking(move || {
            object.entry.verify_while(|| object.handles.load(Ordering::Relaxed) > 0);
            drop((place, sender));
        });
        Some(receiver)
    }

    /// As [`Self::whole_file`], after waiting for what is on its way to the disk, if nothing else is
    /// missing: at most so long.
    pub async fn settled_file(&self, patience: Duration) -> Option<Arc<File>> {
        self.entry.settle(patience).await;
        self.entry.whole_file()
    }

    /// What becomes of the pages of the cache's file.
    pub(super) fn pages(&self) -> Pages {
        let is_large = self.version.size_bytes >= STREAM_BYTES_MIN;
        let is_kept = is_large && self.kept_elsewhere.load(Ordering::Relaxed) > 0;
        if is_kept { Pages::LetGo } else { Pages::Keep }
    }

    /// What becomes of the pages of a run that is written to the cache.
    pub(crate) fn pages_of(&self, run_bytes: u64) -> Pages {
        if run_bytes == RUN_BYTES { self.pages() } else { Pages::Keep }
    }

    /// Whether all of these bytes are in the cache, and known to be right.
    pub(super) fn is_verified(&self, bytes: &Range<u64>) -> bool {
        self.entry.is_verified(block::covering(bytes))
    }
}
