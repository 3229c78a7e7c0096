//! The line to the remote: who watches it, and who is refused while it is down.
//!
//! Two wrappers share one [`Link`]. [`WatchedStore`] is right above the store itself and reports
//! what each attempt met. [`GatedStore`] is what a mount reads through: while the remote does
//! not answer, its requests end at once with [`StoreError::Offline`], also those that had begun.
//! Commits do not go through the gate: they have patience of their own, and their answers count.
//!
//! Somebody has to probe: see [`Link::probe_when_due`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;

use crate::clock::Clock;
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
use crate::store::circuit::Circuit;
use crate::store::circuit::Outage;

/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that comes so soon came over a line that is not full of what is being sent.
const PROMPT_MAX: Duration = Duration::from_secs(1);
/// How long [`Link::probe_when_due`] takes at most: one probe, and another one over a new connection.
pub const PROBES_TIMEOUT: Duration = Duration::from_secs(2 * PROBE_TIMEOUT.as_secs());
/// A question that has waited so long for the beginning of its answer, with no other answered
/// meanwhile, has the remote probed.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// One that has waited so long although the remote answers probes waits over a connection that leads nowhere,
/// or is a long one.
const STUCK_MIN: Duration = Duration::from_secs(10);

/// What is known of the line.
pub struct Link {
    clock: Arc<dyn Clock>,
    circuit: Mutex<Circuit>,
    waiting: Mutex<Waiting>,
    outage: watch::Sender<Option<Arc<Outage>>>,
    /// Counts how often connections were made anew.
    renewals: watch::Sender<u64>,
    /// Counts how often it was certain that those from before were gone.
    losses: watch::Sender<u64>,
    due: Notify,
}

/// Questions without an answer so far.
#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    begun: BTreeMap<u64, Instant>,
    answered: Option<Instant>,
    /// Whether stuck ones were told to ask again, and none was answered soon since: then they are long ones.
    are_long: bool,
}

impl Waiting {
    /// How long somebody has waited without any answer to anybody.
    fn silence(&self, now: Instant) -> Duration {
        let Some(oldest) = self.begun.values().next() else { return Duration::ZERO };
        let since = self.answered.map_or(*oldest, |answered| answered.max(*oldest));
        now.saturating_duration_since(since)
    }
}

/// A question that waits; forgotten when dropped.
struct Question<'l> {
    link: &'l Link,
    number: u64,
    asked: Instant,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("circuit", &self.circuit).finish_non_exhaustive()
    }
}

impl Link {
    /// A line that is up, as far as is known.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            circuit: Mutex::default(),
            waiting: Mutex::default(),
            outage: watch::Sender::new(None),
            renewals: watch::Sender::new(0),
            losses: watch::Sender::new(0),
            due: Notify::new(),
        })
    }

    /// Since when the remote does not answer, and why; `None`: it does.
    #[must_use]
    pub fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.borrow().clone()
    }

    /// Follows outages as they begin and end.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Outage>>> {
        self.outage.subscribe()
    }

    /// The machine has slept, or its network has changed: has the remote probed now.
    pub fn look_now(&self) {
        self.circuit.lock().look_now(Instant::now());
        self.due.notify_one();
    }

    /// Connections from before may lead nowhere, and new ones are made: who waits for an answer over an old
    /// one gives up, and may ask again. What changes something is left to its own timeout: a body takes minutes
    /// on a slow line, and is not begun anew for a doubt.
    pub fn renewed(&self) {
        self.renewals.send_modify(|count| *count += 1);
    }

    /// Connections from before are gone, as after the machine has slept, or its network has changed. What is
    /// being sent over them is given up too, where sending it again is safe: parts, of which nothing is visible,
    /// and objects that carry the id of their transaction, by which whoever asks again knows its own. All else is
    /// left to its own timeout: a deletion that is repeated could meet what somebody else has put there, and a
    /// completion takes minutes at the server.
    pub fn lost(&self) {
        self.losses.send_modify(|count| *count += 1);
    }

    /// The remote was asked and did not answer, by somebody who looked: it is offline from now on.
    pub fn is_down(&self, reason: &StoreError) {
        self.circuit.lock().unanswered();
        self.probe_failed(reason);
    }

    fn ask(&self) -> Question<'_> {
        let mut waiting = self.waiting.lock();
        waiting.last += 1;
        let (number, asked) = (waiting.last, Instant::now());
        waiting.begun.insert(number, asked);
        Question { link: self, number, asked }
    }

    /// What an attempt met, answer or error.
    fn met<T>(&self, result: &Result<T, StoreError>) {
        let unanswered = result.as_ref().err().is_some_and(StoreError::is_unanswered);
        if unanswered {
            self.circuit.lock().unanswered();
            self.due.notify_one();
            return;
        }
        self.waiting.lock().answered = Some(Instant::now());
        self.answered();
    }

    fn answered(&self) {
        if self.circuit.lock().answered() {
            tracing::info!("the remote answers again");
            self.outage.send_replace(None);
        }
    }

    fn probe_failed(&self, err: &StoreError) {
        let reason =
            if let StoreError::Unavailable { reason, .. } = err { reason.clone() } else { err.to_string() };
        let mut circuit = self.circuit.lock();
        let is_new = circuit.probe_failed(Instant::now(), self.clock.now(), reason);
        let outage = circuit.outage().cloned().map(Arc::new);
        drop(circuit);
        if is_new {
            tracing::warn!("the remote does not answer: {err}");
        }
        self.outage.send_replace(outage);
    }

    /// Whether somebody waits although the remote is there, and may do better to ask again.
    fn is_stuck(&self, now: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        let is_stuck = !waiting.are_long && waiting.silence(now) >= STUCK_MIN;
        waiting.are_long |= is_stuck;
        is_stuck
    }

    /// Probes `store`, if there is a reason to. To be called every second or so, and whenever
    /// [`Self::wait_until_due`] returns.
    ///
    /// Connections may lead nowhere although the remote is there, as after a change of the network. So there is
    /// a second probe, after `reconnect` has made new ones, before the remote counts as silent. If that one is
    /// answered at once, it was not the line that was full: those from before are lost. And who waits for
    /// long while probes are answered is made to ask again over a new one.
    pub async fn probe_when_due(&self, store: &dyn ObjectStore, reconnect: impl Fn()) {
        if self.waiting.lock().silence(Instant::now()) >= SILENCE_MAX {
            self.circuit.lock().unanswered();
        }
        if !self.circuit.lock().is_due(Instant::now()) {
            return;
        }
        let (mut answer, took) = probe(store).await;
        let is_doubtful = answer.as_ref().is_err_and(StoreError::is_unanswered) && self.outage().is_none();
        // An error of its own, as that of a connection that the server has closed, says nothing of others.
        let mut is_lost = is_doubtful && took >= PROBE_TIMEOUT;
        if is_doubtful {
            reconnect();
            let again;
            (answer, again) = probe(store).await;
            is_lost &= again < PROMPT_MAX;
        }
        match answer {
            Err(err) if err.is_unanswered() => self.probe_failed(&err),
            // Refused, or overloaded: an answer.
            Ok(()) | Err(_) => {
                self.answered();
                if is_lost {
                    self.lost();
                } else if !is_doubtful && self.is_stuck(Instant::now()) {
                    reconnect();
                }
            }
        }
    }

    /// Returns when a request had no answer.
    pub async fn wait_until_due(&self) {
        self.due.notified().await;
    }

    /// Waits for an answer for as long as its connection is taken for a good one.
    async fn over_this_connection<T>(
        &self,
        subject: &str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        until(&self.renewals, subject, answer).await
    }

    /// Waits for the answer to what is being sent, until its connection is certain to be gone.
    async fn unless_lost<T>(
        &self,
        subject: &str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        until(&self.losses, subject, answer).await
    }

    fn check(&self) -> Result<(), StoreError> {
        self.outage().map_or(Ok(()), |outage| Err(StoreError::offline(&outage)))
    }

    /// Runs a request for as long as the line is up.
    async fn while_up<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.check()?;
        let mut outage = self.subscribe();
        tokio::select! {
            biased;
            result = request => result,
            Ok(down) = outage.wait_for(Option::is_some) => {
                let down = down.as_ref().map_or_else(|| unreachable!("just waited for"), Arc::clone);
                Err(StoreError::offline(&down))
            }
        }
    }
}

/// A small request with a short deadline, and how long it took.
async fn probe(store: &dyn ObjectStore) -> (Result<(), StoreError>, Duration) {
    let began = Instant::now();
    let answer = time::timeout(PROBE_TIMEOUT, store.check_access()).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} seconds", PROBE_TIMEOUT.as_secs());
        Err(StoreError::unanswered(store.describe(), reason))
    });
    (answer, began.elapsed())
}

/// Waits for an answer until the count goes up.
async fn until<T>(
    count: &watch::Sender<u64>,
    subject: &str,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut count = count.subscribe();
    tokio::select! {
        biased;
        result = answer => result,
        Ok(()) = count.changed() => {
            Err(StoreError::unanswered(subject, "its connection is from before an interruption"))
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.link.waiting.lock().begun.remove(&self.number);
    }
}

/// Reports to a link what each request of a store meets.
#[derive(Debug)]
pub struct WatchedStore {
    inner: Arc<dyn ObjectStore>,
    link: Arc<Link>,
}

impl WatchedStore {
    /// Watches `inner`, one attempt at a time: below whatever asks again.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, link: Arc<Link>) -> Self {
        Self { inner, link }
    }

    fn watched(&self, key: &ObjectKey, body: ByteStream) -> ByteStream {
        let state = (body, Arc::clone(&self.link), key.clone());
        Box::pin(futures_util::stream::unfold(Some(state), |state| async {
            let (mut body, link, key) = state?;
            let piece =
                link.over_this_connection(key.as_str(), async { body.next().await.transpose() }).await;
            let piece = piece.transpose()?;
            link.met(&piece);
            let rest = piece.is_ok().then_some((body, link, key));
            Some((piece, rest))
        }))
    }

    /// A request that is answered at once by a healthy remote.
    async fn question<T>(
        &self,
        subject: &str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let question = self.link.ask();
        let result = self.reported(self.link.over_this_connection(subject, request)).await;
        if result.is_ok() && question.asked.elapsed() < STUCK_MIN {
            self.link.waiting.lock().are_long = false;
        }
        result
    }

    async fn reported<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = request.await;
        self.link.met(&result);
        result
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for WatchedStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        self.question("bucket", self.inner.check_access()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.question(request.prefix.as_str(), self.inner.list(request)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.question(key.as_str(), self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let body = self.question(key.as_str(), self.inner.get(key, etag, range)).await?;
        Ok(self.watched(key, body))
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let (meta, body) = self.question(key.as_str(), self.inner.get_whole(key, etag, size_bytes)).await?;
        Ok((meta, self.watched(key, body)))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let request = self.inner.put(key, body, expect, attributes);
        if attributes.metadata.contains_key(META_TXID) {
            return self.reported(self.link.unless_lost(key.as_str(), request)).await;
        }
        self.reported(request).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.reported(self.inner.create_multipart(key, attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let request = self.inner.put_part(key, upload, number, body);
        self.reported(self.link.unless_lost(key.as_str(), request)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.reported(self.inner.complete_multipart(key, upload, parts, expect)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.reported(self.inner.abort_multipart(key, upload)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.reported(self.inner.delete(key, etag)).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.reported(self.inner.delete_listed(key, etag)).await
    }
}

/// Any store, for as long as its remote answers.
#[derive(Debug)]
pub struct GatedStore {
    inner: Arc<dyn ObjectStore>,
    link: Arc<Link>,
}

impl GatedStore {
    /// A gate before `inner`: above whatever asks again.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, link: Arc<Link>) -> Self {
        Self { inner, link }
    }

    /// What came before the line went down is good; after that nobody waits for the rest.
    fn gated(&self, body: ByteStream) -> ByteStream {
        let link = Arc::clone(&self.link);
        Box::pin(futures_util::stream::unfold(Some((body, link)), |state| async {
            let (mut body, link) = state?;
            let piece = link.while_up(async { body.next().await.transpose() }).await;
            match piece {
                Ok(Some(piece)) => Some((Ok(piece), Some((body, link)))),
                Ok(None) => None,
                Err(err) => Some((Err(err), None)),
            }
        }))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for GatedStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        self.link.while_up(self.inner.check_access()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.link.while_up(self.inner.list(request)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.link.while_up(self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let body = self.link.while_up(self.inner.get(key, etag, range)).await?;
        Ok(self.gated(body))
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let (meta, body) = self.link.while_up(self.inner.get_whole(key, etag, size_bytes)).await?;
        Ok((meta, self.gated(body)))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.link.check()?;
        self.inner.put(key, body, expect, attributes).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.link.check()?;
        self.inner.create_multipart(key, attributes).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.link.check()?;
        self.inner.put_part(key, upload, number, body).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.link.check()?;
        self.inner.complete_multipart(key, upload, parts, expect).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.link.check()?;
        self.inner.abort_multipart(key, upload).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.link.check()?;
        self.inner.delete(key, etag).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.link.check()?;
        self.inner.delete_listed(key, etag).await
    }
}

#[cfg(test)]
mod tests;
