//! A store whose requests are failpoints: a write before it is sent and after it was answered, a
//! read once, since it changes nothing.
//!
//! Stands between the store and its retries, in debug builds only: see [`crate::failpoint`].

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::failpoint;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::STATE_PREFIX;
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

/// Any store, with points.
#[derive(Debug)]
pub struct FailpointStore {
    inner: Arc<dyn ObjectStore>,
}

/// Which kind of object a key, or the beginning of one, names.
fn kind(key: &str) -> &'static str {
    let Some(below) = key.strip_prefix(STATE_PREFIX) else { return "data" };
    ["intents", "log", "snapshots", "scratch"]
        .into_iter()
        .find(|kind| below.split('/').any(|segment| segment == *kind))
        .unwrap_or("state")
}

impl FailpointStore {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }

    async fn read<T>(&self, what: &str, key: &str, request: impl Future<Output = T>) -> T {
        failpoint::reach(|| format!("store:{what}:{}", kind(key)));
        request.await
    }

    async fn write<T>(&self, what: &str, key: &str, request: impl Future<Output = T>) -> T {
        failpoint::reach(|| format!("store:{what}:{}:before", kind(key)));
        let answer = request.await;
        failpoint::reach(|| format!("store:{what}:{}:after", kind(key)));
        answer
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for FailpointStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        self.inner.check_access().await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.read("list", request.prefix.as_str(), self.inner.list(request)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.read("head", key.as_str(), self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        self.read("get", key.as_str(), self.inner.get(key, etag, range)).await
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        self.read("get", key.as_str(), self.inner.get_whole(key, etag, size_bytes)).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        self.write("put", key.as_str(), self.inner.put(key, body, expect, attributes)).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.write("create-multipart", key.as_str(), self.inner.create_multipart(key, attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        self.write("put-part", key.as_str(), self.inner.put_part(key, upload, number, body)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let request = self.inner.complete_multipart(key, upload, parts, expect);
        self.write("complete-multipart", key.as_str(), request).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.write("abort-multipart", key.as_str(), self.inner.abort_multipart(key, upload)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.write("delete", key.as_str(), self.inner.delete(key, etag)).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.write("delete", key.as_str(), self.inner.delete_listed(key, etag)).await
    }
}
