//! A store that says every request, for whoever asks for everything (`-vv`).
//!
//! Stands directly before the store: each attempt has a line when it ends, also when nobody waits for its
//! answer any more, with the time from the first byte sent to the head of the answer. Bodies are read later.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::level_filters::LevelFilter;
use tracing::level_filters::STATIC_MAX_LEVEL;

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

// A feature of `tracing` leaves the lowest level out of releases.
const _: () = assert!(matches!(STATIC_MAX_LEVEL, LevelFilter::TRACE), "`-vv` would say nothing");

/// Any store, with a line for each request.
#[derive(Debug)]
pub struct TracedStore {
    inner: Arc<dyn ObjectStore>,
}

/// A request that has not ended.
struct Asked<S: fmt::Display> {
    request: &'static str,
    subject: S,
    began: Instant,
    ended: bool,
}

impl<S: fmt::Display> Asked<S> {
    fn milliseconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64() * 1000.0
    }
}

impl<S: fmt::Display> Drop for Asked<S> {
    fn drop(&mut self) {
        if !self.ended {
            tracing::trace!(
                "{} {}: given up after {:.1} ms",
                self.request,
                self.subject,
                self.milliseconds()
            );
        }
    }
}

impl TracedStore {
    /// Wraps a store, if such lines are written at all.
    #[must_use]
    pub fn wrap(inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        if tracing::enabled!(tracing::Level::TRACE) { Arc::new(Self { inner }) } else { inner }
    }
}

async fn told<T>(
    request: &'static str,
    subject: impl fmt::Display,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut asked = Asked { request, subject, began: Instant::now(), ended: false };
    let result = answer.await;
    asked.ended = true;
    let (subject, milliseconds) = (&asked.subject, asked.milliseconds());
    match &result {
        Ok(_) => tracing::trace!("{request} {subject}: answered after {milliseconds:.1} ms"),
        Err(err) => tracing::trace!("{request} {subject}: failed after {milliseconds:.1} ms: {err}"),
    }
    result
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for TracedStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn lost_answers(&self) -> u64 {
        self.inner.lost_answers()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        told("LIST", "the first key", self.inner.check_access()).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let depth = if request.one_level { "one level of" } else { "all below" };
        let more = if request.continuation.is_some() { ", continued" } else { "" };
        let subject = format_args!("{depth} {}{more}", request.prefix).to_string();
        told("LIST", subject, self.inner.list(request)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        told("HEAD", key, self.inner.head(key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let subject = format!("{key}, bytes {} to {}", range.start, range.end);
        told("GET", subject, self.inner.get(key, etag, range)).await
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        told("GET", key, self.inner.get_whole(key, etag, size_bytes)).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let subject = format!("{key}, {} bytes", body.len());
        told("PUT", subject, self.inner.put(key, body, expect, attributes)).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        told("CREATE UPLOAD", key, self.inner.create_multipart(key, attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let subject = format!("{key}, part {number}, {} bytes", body.len());
        told("PUT", subject, self.inner.put_part(key, upload, number, body)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let subject = format!("{key}, {} parts", parts.len());
        told("COMPLETE UPLOAD", subject, self.inner.complete_multipart(key, upload, parts, expect)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        told("ABORT UPLOAD", key, self.inner.abort_multipart(key, upload)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        told("DELETE", key, self.inner.delete(key, etag)).await
    }

    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        told("DELETE", key, self.inner.delete_listed(key, etag)).await
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::io::Write;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::name::KeyPrefix;
    use crate::store::fault::Fault;
    use crate::store::fault::FaultyStore;
    use crate::store::fault::Operation;
    use crate::store::memory::MemoryStore;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_has_a_line_however_it_ends() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        let _here = tracing::subscriber::set_default(subscriber.with_writer(lines.clone()).finish());
        let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
        let store = TracedStore::wrap(Arc::clone(&faulty) as _);
        let key = ObjectKey::from_listing("run/a");
        let (content, plain) = (Bytes::from_static(b"abc"), PutAttributes::default());
        let etag = store.put(&key, content, &Expect::Absent, &plain).await.unwrap();
        assert!(store.get(&key, &etag, 0..2).await.is_ok());
        store.list(&ListRequest::one_level(KeyPrefix::from_listing("run/"))).await.unwrap();
        faulty.script(Operation::Head, Fault::Before(StoreError::unavailable(&key, "connection refused")));
        store.head(&key).await.unwrap_err();
        faulty.script(Operation::Head, Fault::Stall);
        let hung = tokio::time::timeout(std::time::Duration::from_secs(1), store.head(&key)).await;
        assert!(hung.is_err());
        let written = String::from_utf8(lines.0.lock().clone()).unwrap();
        for line in [
            "PUT run/a, 3 bytes: answered after ",
            "GET run/a, bytes 0 to 2: answered after ",
            "LIST one level of run/: answered after ",
            "HEAD run/a: failed after ",
            "connection refused",
            "HEAD run/a: given up after ",
        ] {
            assert!(written.contains(line), "{line} is not in:\n{written}");
        }
    }

    #[tokio::test]
    async fn nobody_pays_for_lines_that_nobody_reads() {
        let quiet = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(io::sink);
        let _here = tracing::subscriber::set_default(quiet.finish());
        let plain: Arc<dyn ObjectStore> = Arc::new(MemoryStore::default());
        assert!(Arc::ptr_eq(&plain, &TracedStore::wrap(Arc::clone(&plain))));
    }
}
