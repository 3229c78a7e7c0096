//! Asking again: attempts, pauses, deadlines, and what a lost answer means.
//!
//! A wrapper like any other store, so that nothing above it knows that a request was made twice.
//!
//! # Promises
//!
//! 1. Bounded: at most [`RetryOptions::attempts_max`] attempts, none begun after
//!    [`RetryOptions::deadline`], at most [`RetryOptions::requests_max`] at the same time. One that
//!    was begun has its time. The pause before attempt *n* is drawn from `0..min(base · 2ⁿ, max)` (full jitter). A deletion
//!    is not begun long after it was asked for by the time of day either: a machine that wakes
//!    up does not know whose the version is by then.
//! 2. **A lost answer never becomes a wrong answer.** A write that failed ambiguously may have
//!    been carried out; then its repetition finds our own object in the way and is told
//!    "already exists". So after an ambiguous failure a conflict is believed only after a
//!    HEAD: an object of our size that carries all our metadata, the transaction's id included,
//!    is ours, and the write has succeeded. Anything else is the conflict that it claims to be.
//! 3. Nothing is guessed. A write without a transaction id, or the completion of an upload
//!    that another process began, cannot be told from somebody else's; after an ambiguous
//!    failure its conflict is reported as [`StoreError::Unavailable`], "may have been written".
//!
//! An upload whose creation got no answer is left behind, empty and invisible, since nobody
//! knows its name; servers give such uploads up after some days.
//!
//! Retries of a `get` end where its body begins; who reads the body asks for the rest.
//!
//! # What this module does not know
//!
//! HTTP. What is worth asking again is [`StoreError::is_transient`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lru::LruCache;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout_at;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;
use crate::store::patience::Asked;
use crate::store::patience::Extra;
use crate::store::patience::Line;
use crate::store::rate::Direction;
use crate::store::rate::RateLimiter;
use crate::store::rate::RateOptions;

/// Uploads whose attributes are remembered; one that is forgotten is not resolved, only reported.
const UPLOADS_REMEMBERED_MAX: usize = 4096;

/// How often, how long and how many at once.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryOptions {
    /// Attempts in all, the first included.
    pub attempts_max: u32,
    /// Bound of the first pause; it doubles from there.
    pub backoff_base: Duration,
    /// Bound of every pause.
    pub backoff_max: Duration,
    /// How long one attempt may take; what a body needs on a very slow line, with all others
    /// that are sent at the same time, or an upload to be completed, comes on top.
    pub attempt_timeout: Duration,
    /// How long attempts are begun, pauses included; likewise.
    pub deadline: Duration,
    /// Requests under way at once. A `get` counts until its body is read or dropped.
    pub requests_max: usize,
    /// Requests begun in a second.
    pub rate: RateOptions,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            attempts_max: 6,
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(60),
            requests_max: 32,
            rate: RateOptions::default(),
        }
    }
}

/// What a lost answer of an upload is resolved with.
#[derive(Clone, Debug)]
struct OpenUpload {
    attributes: PutAttributes,
    /// Bytes of each part sent, by its number.
    parts: BTreeMap<u32, u64>,
}

/// Any store, asked again where that helps.
pub struct RetryingStore {
    inner: Arc<dyn ObjectStore>,
    options: RetryOptions,
    requests: Arc<Semaphore>,
    rate: RateLimiter,
    line: Line,
    uploads: Mutex<LruCache<UploadId, OpenUpload>>,
    /// The time of day.
    clock: Arc<dyn Clock>,
    /// Writes that were asked again although they may have been carried out.
    lost_answers: AtomicU64,
}

impl fmt::Debug for RetryingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryingStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// How a request with retries ended.
struct Outcome<T> {
    result: Result<T, StoreError>,
    /// Whether an attempt failed in a way that may have had its effect.
    ambiguous: bool,
}

/// What a write put there, for recognising it again.
struct OurWrite<'a> {
    attributes: Option<&'a PutAttributes>,
    size_bytes: Option<u64>,
}

impl OurWrite<'_> {
    fn is(&self, found: &ObjectMeta) -> bool {
        let (Some(attributes), Some(size_bytes)) = (self.attributes, self.size_bytes) else { return false };
        let same = |(name, value)| found.metadata.get(name) == Some(value);
        found.size_bytes == size_bytes && attributes.metadata.iter().all(same)
    }

    /// Whether there is anything that only our write has.
    fn can_be_told(&self) -> bool {
        self.size_bytes.is_some()
            && self.attributes.is_some_and(|attributes| attributes.metadata.contains_key(META_TXID))
    }
}

impl RetryingStore {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, options: RetryOptions) -> Self {
        let requests = Arc::new(Semaphore::new(options.requests_max.max(1)));
        let remembered = std::num::NonZeroUsize::new(UPLOADS_REMEMBERED_MAX).expect("not zero");
        let uploads = Mutex::new(LruCache::new(remembered));
        let rate = RateLimiter::new(&options.rate);
        Self {
            inner,
            options,
            requests,
            rate,
            line: Line::default(),
            uploads,
            clock: Arc::new(SystemClock),
            lost_answers: AtomicU64::new(0),
        }
    }

    /// With another clock than the system's.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let requests = Arc::clone(&self.requests);
        requests.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The pause after `failures` failed attempts.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.options.backoff_base.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let bound = doubled.min(self.options.backoff_max);
        rand::rng().random_range(Duration::ZERO..=bound)
    }

    /// Runs attempts until one succeeds, fails for good, or there is no time left.
    ///
    /// The permit goes along with the result, for those who go on using the connection.
    async fn attempts<T, F>(
        &self,
        direction: Direction,
        subject: &str,
        extra: Extra,
        again: impl Fn(&StoreError) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Outcome<(T, OwnedSemaphorePermit)>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        // The wait for a first turn is the user's wish, not the server's delay.
        self.rate.admit(direction).await;
        let mut deadline = Instant::now() + self.options.deadline;
        let mut ambiguous = false;
        let mut failures = 0;
        loop {
            let Ok(permit) = timeout_at(deadline, self.permit()).await else {
                let result = Err(StoreError::unavailable(subject, "too many requests are waiting"));
                return Outcome { result, ambiguous };
            };
            let began = Instant::now();
            let err = match self.line.wait(self.options.attempt_timeout, extra, attempt()).await {
                Ok(Ok(value)) => return Outcome { result: Ok((value, permit)), ambiguous },
                Ok(Err(err)) => err,
                Err(_waited) => StoreError::unanswered(subject, "no answer in time"),
            };
            drop(permit); // nobody waits for a request that is itself only waiting
            // What its body took beside that leaves as much time for another attempt as before.
            deadline += began.elapsed().saturating_sub(self.options.attempt_timeout);
            if err.asks_to_slow_down() {
                self.rate.back_off(direction);
            }
            ambiguous |= matches!(err, StoreError::Unavailable { .. });
            if !again(&err) {
                return Outcome { result: Err(err), ambiguous };
            }
            failures += 1;
            let pause = self.pause(failures);
            if failures >= self.options.attempts_max || Instant::now() + pause >= deadline {
                return Outcome { result: Err(err), ambiguous };
            }
            tracing::debug!(subject, failures, ?pause, "asking again: {err}");
            sleep(pause).await;
            self.rate.admit(direction).await;
        }
    }

    /// For requests whose repetition cannot be taken for a conflict.
    async fn plain<T, F>(
        &self,
        direction: Direction,
        subject: &str,
        extra: Extra,
        attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let outcome = self.attempts(direction, subject, extra, StoreError::is_transient, attempt).await;
        outcome.result.map(|(value, _permit)| value)
    }

    /// Decides what a conflict after an ambiguous failure was: promises 2 and 3.
    async fn resolve(
        &self,
        key: &ObjectKey,
        conflict: StoreError,
        ours: &OurWrite<'_>,
    ) -> Result<ETag, StoreError> {
        let found = match self.head(key).await {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Err(conflict),
            Err(err) => {
                let reason = format!("an answer was lost, and asking what is there failed: {err}");
                return Err(StoreError::Unavailable {
                    key: key.to_string(),
                    reason,
                    throttled: err.asks_to_slow_down(),
                    source: Some(Arc::new(err)),
                });
            }
        };
        if !ours.can_be_told() {
            let reason = "an answer was lost, and nothing tells whether the object there is ours";
            return Err(StoreError::unavailable(key, reason));
        }
        if ours.is(&found) {
            tracing::debug!(%key, "an answer was lost; the object there is ours");
            return Ok(found.etag);
        }
        Err(conflict)
    }

    /// Deletes a version that was asked for at this time, or else is as soon as its first turn has come.
    async fn delete_since(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        asked: OnceLock<Asked>,
    ) -> Result<(), StoreError> {
        let attempt = || async {
            asked.get_or_init(|| Asked::now(&self.clock)).check(key)?;
            self.inner.delete(key, etag).await
        };
        let again = |err: &StoreError| err.is_transient() && !asked.get().is_some_and(Asked::is_stale);
        let outcome = self.attempts(Direction::Write, key.as_str(), Extra::Nothing, again, attempt).await;
        if outcome.ambiguous {
            self.lost_answers.fetch_add(1, Ordering::Relaxed);
        }
        outcome.result.map(|((), _permit)| ())
    }

    async fn finish_write(
        &self,
        key: &ObjectKey,
        outcome: Outcome<(ETag, OwnedSemaphorePermit)>,
        ours: &OurWrite<'_>,
    ) -> Result<ETag, StoreError> {
        if outcome.ambiguous {
            self.lost_answers.fetch_add(1, Ordering::Relaxed);
        }
        match outcome.result {
            Ok((etag, _permit)) => Ok(etag),
            Err(
                err @ (StoreError::AlreadyExists { .. }
                | StoreError::Changed { .. }
                | StoreError::Contended { .. }
                | StoreError::NoSuchUpload { .. }),
            ) if outcome.ambiguous => self.resolve(key, err, ours).await,
            Err(err) => Err(err),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for RetryingStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.lost_answers.load(Ordering::Relaxed) + self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        self.plain(Direction::Read, "bucket", Extra::Nothing, || self.inner.check_access()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.plain(Direction::Read, request.prefix.as_str(), Extra::Nothing, || self.inner.list(request))
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.plain(Direction::Read, key.as_str(), Extra::Nothing, || self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let attempt = || self.inner.get(key, etag, range.clone());
        let (body, permit) = self
            .attempts(Direction::Read, key.as_str(), Extra::Nothing, StoreError::is_transient, attempt)
            .await
            .result?;
        // The request is under way until its body is read or dropped.
        let body = body.map(move |piece| {
            let _held = &permit;
            piece
        });
        Ok(Box::pin(body))
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let attempt = || self.inner.get_whole(key, etag, size_bytes);
        let ((meta, body), permit) = self
            .attempts(Direction::Read, key.as_str(), Extra::Nothing, StoreError::is_transient, attempt)
            .await
            .result?;
        let body = body.map(move |piece| {
            let _held = &permit;
            piece
        });
        Ok((meta, Box::pin(body)))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let attempt = || self.inner.put(key, body.clone(), expect, attributes);
        let outcome = self
            .attempts(
                Direction::Write,
                key.as_str(),
                Extra::Body(body.len()),
                StoreError::is_transient,
                attempt,
            )
            .await;
        let ours = OurWrite { attributes: Some(attributes), size_bytes: Some(body.len() as u64) };
        self.finish_write(key, outcome, &ours).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let upload = self
            .plain(Direction::Write, key.as_str(), Extra::Nothing, || {
                self.inner.create_multipart(key, attributes)
            })
            .await?;
        let open = OpenUpload { attributes: attributes.clone(), parts: BTreeMap::new() };
        self.uploads.lock().put(upload.clone(), open);
        Ok(upload)
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let attempt = || self.inner.put_part(key, upload, number, body.clone());
        let receipt = self.plain(Direction::Write, key.as_str(), Extra::Body(body.len()), attempt).await?;
        if let Some(open) = self.uploads.lock().get_mut(upload) {
            open.parts.insert(number, body.len() as u64);
        }
        Ok(receipt)
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let attempt = || self.inner.complete_multipart(key, upload, parts, expect);
        // Two writers met: S3 has given the upload up, so asking for it again is of no use.
        let again = |err: &StoreError| matches!(err, StoreError::Unavailable { .. });
        let outcome =
            self.attempts(Direction::Write, key.as_str(), Extra::Parts(parts.len()), again, attempt).await;
        let open = self.uploads.lock().get(upload).cloned();
        let size_of = |open: &OpenUpload| parts.iter().map(|part| open.parts.get(&part.number)).sum();
        let ours = OurWrite {
            attributes: open.as_ref().map(|open| &open.attributes),
            size_bytes: open.as_ref().and_then(size_of),
        };
        let etag = self.finish_write(key, outcome, &ours).await?;
        self.uploads.lock().pop(upload);
        Ok(etag)
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.plain(Direction::Write, key.as_str(), Extra::Nothing, || {
            self.inner.abort_multipart(key, upload)
        })
        .await?;
        self.uploads.lock().pop(upload);
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.delete_since(key, etag, Asked::now(&self.clock).into()).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.delete_since(key, etag, OnceLock::new()).await
    }
}

#[cfg(test)]
mod tests;
