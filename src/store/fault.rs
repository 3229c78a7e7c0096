//! A store that fails on command: what networks and servers do, for tests and the simulation.
//!
//! Faults are scripted ([`FaultyStore::script`], first in, first out, for the next request of a
//! kind) or drawn from a seed ([`FaultyStore::seeded`]), so that a run can be repeated.
//!
//! Part of the library and not of the tests, since the failpoints of the real binary and the
//! simulation of commits use it.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;

/// The requests of [`ObjectStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`ObjectStore::check_access`].
    CheckAccess,
    /// [`ObjectStore::list`].
    List,
    /// [`ObjectStore::head`].
    Head,
    /// [`ObjectStore::get`].
    Get,
    /// [`ObjectStore::put`].
    Put,
    /// [`ObjectStore::create_multipart`].
    CreateMultipart,
    /// [`ObjectStore::put_part`].
    PutPart,
    /// [`ObjectStore::complete_multipart`].
    CompleteMultipart,
    /// [`ObjectStore::abort_multipart`].
    AbortMultipart,
    /// [`ObjectStore::delete`].
    Delete,
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails before anything happened.
    Before(StoreError),
    /// It is carried out, and the answer is lost.
    LostReply,
    /// It is carried out later.
    Delay(Duration),
    /// It is never answered, and not carried out.
    Stall,
    /// A get's body breaks off after this many bytes.
    Truncate(u64),
    /// A write's condition is ignored, as some servers do: whatever is there is replaced.
    IgnoreCondition,
}

/// Odds of each fault for every request, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    /// [`Fault::Before`], with [`StoreError::Unavailable`].
    pub before: u32,
    /// [`Fault::LostReply`].
    pub lost_reply: u32,
    /// [`Fault::Delay`], of up to [`Odds::delay_max`].
    pub delay: u32,
    /// The longest delay.
    pub delay_max: Duration,
}

/// Any store, with faults.
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Mutex<Plan>,
}

struct Plan {
    script: VecDeque<(Operation, Fault)>,
    seeded: Option<(StdRng, Odds)>,
    requests: Vec<Operation>,
}

/// Requests that [`FaultyStore::requests`] keeps; a simulation makes more than it looks at.
const REQUESTS_KEPT_MAX: usize = 100_000;

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyStore {
    /// Wraps a store; without a script it is that store.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        let plan = Plan { script: VecDeque::new(), seeded: None, requests: Vec::new() };
        Self { inner, plan: Mutex::new(plan) }
    }

    /// Wraps a store that fails at random, the same way for the same seed and requests.
    #[must_use]
    pub fn seeded(inner: Arc<dyn ObjectStore>, seed: u64, odds: Odds) -> Self {
        let store = Self::new(inner);
        store.plan.lock().seeded = Some((StdRng::seed_from_u64(seed), odds));
        store
    }

    /// Lets the next request of this kind go wrong; further calls queue up behind it.
    pub fn script(&self, operation: Operation, fault: Fault) {
        self.plan.lock().script.push_back((operation, fault));
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Operation> {
        self.plan.lock().requests.clone()
    }

    fn draw(&self, operation: Operation) -> Option<Fault> {
        let mut plan = self.plan.lock();
        if plan.requests.len() < REQUESTS_KEPT_MAX {
            plan.requests.push(operation);
        }
        if let Some(at) = plan.script.iter().position(|(wanted, _)| *wanted == operation) {
            return plan.script.remove(at).map(|(_, fault)| fault);
        }
        let (rng, odds) = plan.seeded.as_mut()?;
        let roll = rng.random_range(0..1000);
        if roll < odds.before {
            Some(Fault::Before(StoreError::unavailable("simulation", "injected before")))
        } else if roll < odds.before + odds.lost_reply {
            Some(Fault::LostReply)
        } else if roll < odds.before + odds.lost_reply + odds.delay {
            Some(Fault::Delay(rng.random_range(Duration::ZERO..=odds.delay_max)))
        } else {
            None
        }
    }

    /// Runs one request with its fault, if it has one that is not about bodies or conditions.
    async fn run<T>(
        &self,
        fault: Option<&Fault>,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match fault {
            Some(Fault::Before(err)) => Err(err.clone()),
            Some(Fault::LostReply) => {
                // An error is an answer as well, and is lost as well.
                let _lost = request.await;
                Err(StoreError::unavailable("fault", "injected: the answer was lost"))
            }
            Some(Fault::Delay(delay)) => {
                sleep(*delay).await;
                request.await
            }
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Truncate(_) | Fault::IgnoreCondition) | None => request.await,
        }
    }

    /// Makes an unconditional write out of the next conditional one.
    async fn clear_the_way(&self, fault: Option<&Fault>, key: &ObjectKey, expect: &Expect) -> Expect {
        if !matches!(fault, Some(Fault::IgnoreCondition)) {
            return expect.clone();
        }
        match self.inner.head(key).await {
            Ok(found) => Expect::Version(found.etag),
            Err(_) => Expect::Absent,
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for FaultyStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        let fault = self.draw(Operation::CheckAccess);
        self.run(fault.as_ref(), self.inner.check_access()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let fault = self.draw(Operation::List);
        self.run(fault.as_ref(), self.inner.list(request)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let fault = self.draw(Operation::Head);
        self.run(fault.as_ref(), self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let fault = self.draw(Operation::Get);
        let body = self.run(fault.as_ref(), self.inner.get(key, etag, range)).await?;
        let Some(Fault::Truncate(bytes)) = fault else { return Ok(body) };
        let key = key.clone();
        let cut = stream::unfold((body, Some(bytes)), move |(mut body, left)| {
            let key = key.clone();
            async move {
                let left = left?;
                if left == 0 {
                    let err = StoreError::unavailable(&key, "injected: the body broke off");
                    return Some((Err(err), (body, None)));
                }
                match body.next().await? {
                    Ok(mut piece) => {
                        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                        let left = left - piece.len() as u64;
                        Some((Ok(piece), (body, Some(left))))
                    }
                    Err(err) => Some((Err(err), (body, None))),
                }
            }
        });
        Ok(Box::pin(cut))
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        crate::store::head_and_get(self, key, etag, size_bytes).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let fault = self.draw(Operation::Put);
        let expect = self.clear_the_way(fault.as_ref(), key, expect).await;
        self.run(fault.as_ref(), self.inner.put(key, body, &expect, attributes)).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let fault = self.draw(Operation::CreateMultipart);
        self.run(fault.as_ref(), self.inner.create_multipart(key, attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let fault = self.draw(Operation::PutPart);
        self.run(fault.as_ref(), self.inner.put_part(key, upload, number, body)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let fault = self.draw(Operation::CompleteMultipart);
        let expect = self.clear_the_way(fault.as_ref(), key, expect).await;
        self.run(fault.as_ref(), self.inner.complete_multipart(key, upload, parts, &expect)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        let fault = self.draw(Operation::AbortMultipart);
        self.run(fault.as_ref(), self.inner.abort_multipart(key, upload)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let fault = self.draw(Operation::Delete);
        self.run(fault.as_ref(), self.inner.delete(key, etag)).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let fault = self.draw(Operation::Delete);
        self.run(fault.as_ref(), self.inner.delete_listed(key, etag)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::collect;
    use crate::store::memory::MemoryStore;

    fn key() -> ObjectKey {
        ObjectKey::from_listing("a")
    }

    fn setup() -> (Arc<MemoryStore>, FaultyStore) {
        let memory = Arc::new(MemoryStore::default());
        (Arc::clone(&memory), FaultyStore::new(memory))
    }

    async fn put(store: &FaultyStore, body: &'static str) -> Result<ETag, StoreError> {
        let body = Bytes::from_static(body.as_bytes());
        store.put(&key(), body, &Expect::Absent, &PutAttributes::default()).await
    }

    #[tokio::test]
    async fn a_script_is_for_the_next_request_of_its_kind() {
        let (memory, store) = setup();
        store.script(Operation::Put, Fault::LostReply);
        assert!(matches!(store.head(&key()).await, Err(StoreError::NotFound { .. })));
        assert!(put(&store, "1").await.is_err_and(|err| err.is_transient()));
        assert!(memory.head(&key()).await.is_ok(), "it was carried out");
        assert!(matches!(put(&store, "2").await, Err(StoreError::AlreadyExists { .. })));
        store.script(Operation::Put, Fault::IgnoreCondition);
        put(&store, "3").await.unwrap();
        assert_eq!(memory.snapshot()[&key()], "3");
    }

    #[tokio::test]
    async fn a_truncated_body_ends_in_an_error_after_its_bytes() {
        let (memory, store) = setup();
        let etag = memory.overwrite_out_of_band(&key(), Bytes::from_static(b"0123456789"));
        for cut in [0, 4] {
            store.script(Operation::Get, Fault::Truncate(cut));
            let body: Vec<_> = store.get(&key(), &etag, 0..10).await.unwrap().collect().await;
            let (last, pieces) = body.split_last().unwrap();
            assert!(last.is_err());
            assert_eq!(pieces.iter().flatten().map(|piece| piece.len() as u64).sum::<u64>(), cut);
        }
        assert_eq!(collect(store.get(&key(), &etag, 0..10).await.unwrap(), 10).await.unwrap().len(), 10);
    }

    #[tokio::test]
    async fn a_seed_repeats_itself() {
        let odds = Odds { before: 300, lost_reply: 300, delay: 0, delay_max: Duration::ZERO };
        let mut runs = Vec::new();
        for seed in [1, 1, 2] {
            let store = FaultyStore::seeded(Arc::new(MemoryStore::default()), seed, odds);
            let mut outcomes = Vec::new();
            for _ in 0..64 {
                outcomes.push(store.check_access().await.is_ok());
            }
            runs.push(outcomes);
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }
}
