//! Stores at which something happens to a commit.

use super::*;

/// What happens at one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trip {
    /// The request is never carried out, and whoever made it is gone.
    CrashBefore,
    /// It is carried out, and whoever made it is gone.
    CrashAfter,
    /// It is not carried out; the remote stays away from then on.
    Unreachable,
    /// It is carried out, and the answer is lost.
    LostReply,
    /// It is refused.
    Denied,
    /// It is carried out when [`TripStore::go_on`] says so.
    Pause,
}

/// A store at whose n-th request something happens.
pub(super) struct TripStore {
    inner: Arc<dyn ObjectStore>,
    at: Option<(usize, Trip)>,
    pub(super) requests: AtomicUsize,
    pub(super) log: Mutex<Vec<String>>,
    crashed: tokio::sync::Notify,
    going_on: tokio::sync::Notify,
}

impl fmt::Debug for TripStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TripStore")
    }
}

impl TripStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, at: Option<(usize, Trip)>) -> Arc<Self> {
        let (requests, log) = (AtomicUsize::new(0), Mutex::default());
        let (crashed, going_on) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        Arc::new(Self { inner, at, requests, log, crashed, going_on })
    }

    async fn trip<T>(
        &self,
        what: String,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.log.lock().push(what);
        let unavailable = || Err(StoreError::unavailable("trip", "injected"));
        match self.at {
            Some((at, Trip::Unreachable)) if number >= at => unavailable(),
            Some((at, trip)) if number == at => match trip {
                Trip::CrashBefore => {
                    self.crashed.notify_one();
                    std::future::pending().await
                }
                Trip::CrashAfter => {
                    request.await.ok();
                    self.crashed.notify_one();
                    std::future::pending().await
                }
                Trip::LostReply => {
                    request.await.ok();
                    unavailable()
                }
                Trip::Pause => {
                    self.crashed.notify_one();
                    self.going_on.notified().await;
                    request.await
                }
                Trip::Denied => Err(StoreError::Denied { key: "trip".into(), reason: "injected".into() }),
                Trip::Unreachable => unavailable(),
            },
            _ => request.await,
        }
    }

    pub(super) fn go_on(&self) {
        self.going_on.notify_one();
    }

    /// Runs a commit until it ends, or until the crash or pause: `None`.
    pub(super) async fn until_crash<T>(&self, run: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.crashed.notified() => None,
            outcome = run => Some(outcome),
        }
    }
}

#[async_trait]
impl ObjectStore for TripStore {
    fn describe(&self) -> String {
        "trip".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        self.inner.check_access().await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.trip(format!("list {}", request.prefix), self.inner.list(request)).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.trip(format!("head {key}"), self.inner.head(key)).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.trip(format!("get {key}"), self.inner.get(key, etag, range)).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.trip(format!("put {key}"), self.inner.put(key, body, expect, attributes)).await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.trip(format!("create {key}"), self.inner.create_multipart(key, attributes)).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.trip(format!("part {number} {key}"), self.inner.put_part(key, upload, number, body)).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let complete = self.inner.complete_multipart(key, upload, parts, expect);
        self.trip(format!("complete {key}"), complete).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.trip(format!("abort {key}"), self.inner.abort_multipart(key, upload)).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.trip(format!("delete {key}"), self.inner.delete(key, etag)).await
    }
}

/// A store into which somebody else puts an object just before a write.
pub(super) struct Intruder {
    pub(super) inner: Arc<MemoryStore>,
    pub(super) victim: &'static str,
    /// The write before which it happens: keys that begin with this; empty for the victim's own.
    pub(super) at: &'static str,
}

impl fmt::Debug for Intruder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intruder")
    }
}

impl Intruder {
    fn intrude(&self, wrote: &ObjectKey) {
        let victim = key(self.victim);
        let now = match self.at {
            "" => *wrote == victim && !self.inner.snapshot().contains_key(&victim),
            at => wrote.as_str().starts_with(at),
        };
        if now {
            self.inner.overwrite_out_of_band(&victim, Bytes::from_static(b"foreign"));
        }
    }
}

#[async_trait]
impl ObjectStore for Intruder {
    fn describe(&self) -> String {
        "intruder".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        self.inner.check_access().await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.inner.head(key).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.inner.get(key, etag, range).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.intrude(key);
        self.inner.put(key, body, expect, attributes).await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.inner.create_multipart(key, attributes).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.inner.put_part(key, upload, number, body).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        self.intrude(key);
        self.inner.complete_multipart(key, upload, parts, expect).await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.inner.abort_multipart(key, upload).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.inner.delete(key, etag).await
    }
}
