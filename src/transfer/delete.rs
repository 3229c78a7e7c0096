//! Deleting many objects, each in the version that was listed.

use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;

use crate::commit::places::SHARES;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::StoreError;
use crate::transfer::Transfer;
use crate::transfer::TransferError;
use crate::transfer::run;
use crate::transfer::run::OnFailure;

/// What a deletion has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeleteReport {
    /// Objects that are gone.
    pub deleted: u64,
}

/// Deletes objects. One that another client has replaced meanwhile is left alone, and told.
///
/// # Errors
/// [`TransferError::Overtaken`] once all others are gone; [`TransferError::Cancelled`], the store's: then
/// it can be repeated.
pub async fn delete(
    transfer: &Transfer,
    objects: Vec<(ObjectKey, Option<ETag>)>,
) -> Result<DeleteReport, TransferError> {
    let files = objects.len() as u64;
    transfer.watch.total(files, 0);
    let replaced: Arc<Mutex<Vec<ObjectKey>>> = Arc::default();
    let limit = transfer.options.workers.max(1) * SHARES as usize;
    let done = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let work = |(key, etag): (ObjectKey, Option<ETag>)| {
        let (transfer, replaced, done) = (transfer.clone(), Arc::clone(&replaced), Arc::clone(&done));
        async move {
            match one(&transfer, &key, etag).await {
                Ok(()) => {
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    transfer.watch.file_done();
                }
                Err(StoreError::Changed { .. }) => replaced.lock().push(key),
                Err(err) => return Err(err.into()),
            }
            Ok(())
        }
        .boxed()
    };
    let (failures, cancelled) =
        run::all(objects, limit, &transfer.options.cancel, OnFailure::Wait, work).await;
    let deleted = done.load(std::sync::atomic::Ordering::Relaxed);
    if cancelled {
        return Err(TransferError::Cancelled { done: deleted, files });
    }
    if let Some(failure) = run::worst(failures) {
        return Err(failure);
    }
    let mut keys = std::mem::take(&mut *replaced.lock());
    if keys.is_empty() {
        return Ok(DeleteReport { deleted });
    }
    keys.sort();
    Err(TransferError::Overtaken { keys, done: deleted })
}

async fn one(transfer: &Transfer, key: &ObjectKey, etag: Option<ETag>) -> Result<(), StoreError> {
    let etag = match etag {
        Some(etag) => etag,
        None => match transfer.store.head(key).await {
            Ok(meta) => meta.etag,
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(err) => return Err(err),
        },
    };
    transfer.store.delete_listed(key, &etag).await
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::clock::Clock;
    use crate::store::memory::MemoryStore;
    use crate::store::rate::RateOptions;
    use crate::store::retry::RetryOptions;
    use crate::store::retry::RetryingStore;
    use crate::transfer::NoWatch;
    use crate::transfer::TransferOptions;

    /// The time of day, as it goes by in a test.
    #[derive(Debug)]
    struct Passing(Instant);

    impl Clock for Passing {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + self.0.elapsed()
        }
    }

    /// The last ones wait for longer than a deletion that was looked for may be late.
    #[tokio::test(start_paused = true)]
    async fn who_deletes_slowly_because_that_was_asked_for_is_not_late() {
        let memory = Arc::new(MemoryStore::default());
        let keys = (0..600).map(|number| ObjectKey::from_listing(&format!("x/{number}")));
        let objects = keys.map(|key| {
            let etag = memory.overwrite_out_of_band(&key, Bytes::new());
            (key, Some(etag))
        });
        let objects: Vec<_> = objects.collect();
        let rate = RateOptions { writes_per_second: Some(1.0), ..RateOptions::default() };
        let options = RetryOptions { rate, ..RetryOptions::default() };
        let store = RetryingStore::new(Arc::clone(&memory) as Arc<dyn crate::store::ObjectStore>, options);
        let transfer = Transfer {
            store: Arc::new(store.with_clock(Arc::new(Passing(Instant::now())))),
            options: TransferOptions { workers: 32, ..TransferOptions::default() },
            watch: Arc::new(NoWatch),
            notes: None,
            cache: None,
        };
        let report = delete(&transfer, objects).await.unwrap();
        assert_eq!(report.deleted, 600);
    }
}
