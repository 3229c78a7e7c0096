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
    transfer.store.delete(key, &etag).await
}
