//! Many pieces of work at once, and what happens when one fails.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::transfer::TransferError;

/// What becomes of work that is under way when other work fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// It is dropped: nothing of it can be seen.
    Drop,
    /// It is waited for: a request to write that is given up may still be carried out.
    Wait,
}

/// Runs all of the work, each piece as a task of its own so that all cores are used, `limit` at a time.
/// After a failure, or when it is cancelled, nothing new is begun. Returns all failures, and whether it was cancelled.
pub(super) async fn all<T, F, Fut>(
    items: impl IntoIterator<Item = T>,
    limit: usize,
    cancel: &CancellationToken,
    on_failure: OnFailure,
    work: F,
) -> (Vec<TransferError>, bool)
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<(), TransferError>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    let mut items = items.into_iter();
    loop {
        while failures.is_empty() && running.len() < limit.max(1) && !cancel.is_cancelled() {
            let Some(item) = items.next() else { break };
            running.spawn(work(item));
        }
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                running.shutdown().await;
                return (failures, true);
            }
            ended = running.join_next() => ended,
        };
        match ended {
            None => return (failures, false),
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(err))) => {
                failures.push(err);
                if on_failure == OnFailure::Drop {
                    running.shutdown().await;
                }
            }
            Some(Err(err)) => failures.push(TransferError::Other(err.to_string())),
        }
    }
}

/// The failure to tell, of several: what somebody else has written is told together.
pub(super) fn worst(failures: Vec<TransferError>) -> Option<TransferError> {
    let mut overtaken = Vec::new();
    let mut other = None;
    for failure in failures {
        if let TransferError::Overtaken { keys, .. } = failure {
            overtaken.extend(keys);
        } else {
            other.get_or_insert(failure);
        }
    }
    if overtaken.is_empty() {
        return other;
    }
    overtaken.sort();
    Some(TransferError::Overtaken { keys: overtaken, done: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_failure_ends_what_has_not_begun() {
        let cancel = CancellationToken::new();
        let begun = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let work = |number: u32| {
            let begun = Arc::clone(&begun);
            async move {
                begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                if number == 1 { Err(TransferError::Other("one".into())) } else { Ok(()) }
            }
        };
        let (failures, cancelled) = all(0..100, 2, &cancel, OnFailure::Wait, work).await;
        assert_eq!((failures.len(), cancelled), (1, false));
        assert!(begun.load(std::sync::atomic::Ordering::SeqCst) < 10);
        cancel.cancel();
        let (failures, cancelled) = all(0..100, 2, &cancel, OnFailure::Wait, |_| async { Ok(()) }).await;
        assert!(failures.is_empty() && cancelled);
    }

    #[tokio::test]
    async fn nothing_is_begun_once_it_is_cancelled() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let begun = std::cell::Cell::new(0);
        let work = |_| {
            begun.set(begun.get() + 1);
            async { Ok(()) }
        };
        let (failures, cancelled) = all(0..100, 2, &cancel, OnFailure::Wait, work).await;
        assert!(failures.is_empty() && cancelled);
        assert_eq!(begun.get(), 0);
    }
}
