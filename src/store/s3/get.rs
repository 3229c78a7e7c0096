//! Reading ranges: two ways to ask, one way to check the answer.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream as SdkStream;
use aws_sdk_s3::types::ChecksumMode;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use bytes::Bytes;
use tokio::time::timeout;

use super::Failure;
use super::S3Store;
use super::direct;
use super::direct::Draft;
use super::error;
use super::error::Answer;
use super::error::NOT_S3;
use super::error::Subject;
use super::error::chain;
use super::quoted;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::StoredChecksum;
use crate::store::patience::Extra;

impl S3Store {
    /// The body of `range` of the version `etag`, its head checked.
    pub(super) async fn body(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
    ) -> Result<Body, StoreError> {
        let stream = match self.direct_request(key, etag, range).await {
            Some(request) => self.get_directly(request, key, etag, range).await?,
            None => self.get_through_sdk(key, etag, range).await?,
        };
        let left = range.end - range.start;
        Ok(Body { stream, key: key.clone(), left, silence: self.request_timeout })
    }

    /// A GET past the SDK; `None` where only the SDK can send it.
    async fn direct_request(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
    ) -> Option<HttpConnectorFuture> {
        let direct = self.direct.read().clone()?;
        let range = format!("bytes={}-{}", range.start, range.end - 1);
        let headers = vec![("range", range), ("if-match", quoted(etag))];
        let signed_body = SignableBody::Bytes(&[]);
        direct
            .request(Draft {
                method: "GET",
                path: key.as_str(),
                query: &[],
                headers,
                body: Bytes::new(),
                signed_body,
            })
            .await
    }

    async fn get_through_sdk(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
    ) -> Result<SdkStream, StoreError> {
        let request = self
            .client()
            .await?
            .get_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .if_match(quoted(etag))
            .range(format!("bytes={}-{}", range.start, range.end - 1))
            .send();
        let reply = match self.answer(Subject::Read(key), Extra::Nothing, request).await {
            Err(Failure { status: Some(416), .. }) => {
                return Err(self.explain_bad_range(key, etag, range).await);
            }
            reply => reply?,
        };
        self.check_reply(key, etag, range, &ReplyHead::of(&reply))?;
        Ok(reply.body)
    }

    /// A whole object with its metadata. The SDK checks the body against the checksum that is asked for.
    pub(super) async fn whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, Body), StoreError> {
        let request = self
            .client()
            .await?
            .get_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .if_match(quoted(etag))
            .checksum_mode(ChecksumMode::Enabled)
            .send();
        let mut reply = self.answer(Subject::Read(key), Extra::Nothing, request).await?;
        self.check_reply(key, etag, &(0..size_bytes), &ReplyHead::of(&reply))?;
        let metadata = reply.metadata.take().unwrap_or_default();
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect();
        let meta = ObjectMeta {
            size_bytes,
            etag: etag.clone(),
            modified: super::listing::system_time(reply.last_modified.as_ref()),
            metadata,
            checksum: reply.checksum_crc32_c.as_deref().and_then(StoredChecksum::parse),
        };
        let silence = self.request_timeout;
        Ok((meta, Body { stream: reply.body, key: key.clone(), left: size_bytes, silence }))
    }

    async fn get_directly(
        &self,
        request: impl Future<Output = Result<HttpResponse, ConnectorError>>,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
    ) -> Result<SdkStream, StoreError> {
        let reply = match timeout(self.request_timeout, request).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(err)) => return Err(StoreError::unanswered(key, chain(&err))),
            Err(_) => {
                let reason = format!("no answer within {} s", self.request_timeout.as_secs_f32());
                return Err(StoreError::unanswered(key, reason));
            }
        };
        self.clock.note(reply.headers().get("date"));
        let status = reply.status();
        if status.as_u16() == 416 {
            return Err(self.explain_bad_range(key, etag, range).await);
        }
        if !status.is_success() {
            let region = reply.headers().get("x-amz-bucket-region").map(str::to_owned);
            let names_request = error::names_request(reply.headers());
            let body = timeout(self.request_timeout, direct::short_body(reply.into_body())).await;
            let body = body.unwrap_or_default(); // the status alone says enough
            let (code, message) = direct::error_document(&body);
            let (status, region) = (status.as_u16(), region.as_deref());
            let answer = Answer { status, code, message, region, names_request };
            return Err(error::classify(&self.bucket, Subject::Read(key), &answer));
        }
        let headers = reply.headers();
        let head = ReplyHead {
            etag: headers.get("etag"),
            content_range: headers.get("content-range"),
            content_length: headers.get("content-length").and_then(|len| len.parse().ok()),
        };
        self.check_reply(key, etag, range, &head)?;
        Ok(SdkStream::new(reply.into_body()))
    }

    /// Checks that an answer's head promises exactly `range` of the version `etag`.
    fn check_reply(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: &Range<u64>,
        reply: &ReplyHead<'_>,
    ) -> Result<(), StoreError> {
        let Some(found) = reply.etag.map(ETag::from_server) else {
            // Of no version at all, so that it does not say that the object is another one now.
            return Err(error::foreign(key, format!("an answer without ETag: {NOT_S3}")));
        };
        if found != *etag {
            return Err(StoreError::Changed { key: key.clone() });
        }
        if reply.promises(range) {
            if reply.content_range.is_some() {
                self.answers_ranges.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        let reason = format!(
            "asked for bytes {range:?}, the answer has {:?} of length {:?}",
            reply.content_range.unwrap_or("no range"),
            reply.content_length,
        );
        if reply.ends_before(range) {
            return Err(StoreError::Rejected { key: key.to_string(), reason });
        }
        // A server that does otherwise has not said this, and may be there again.
        if self.answers_ranges.load(Ordering::Relaxed) {
            return Err(error::foreign(key, format!("{reason}: {NOT_S3}")));
        }
        let reason = format!("{reason}; this server, or a proxy in front of it, does not answer for ranges");
        Err(StoreError::Rejected { key: key.to_string(), reason })
    }

    /// What a HEAD's bare "not found" means: the answer to a GET has words, which tell S3's from a proxy's.
    pub(super) async fn explain_missing(&self, key: &ObjectKey) -> StoreError {
        let client = match self.client().await {
            Ok(client) => client,
            Err(err) => return err,
        };
        let request = client.get_object().bucket(&self.bucket).key(key.as_str()).range("bytes=0-0").send();
        match self.answer(Subject::Read(key), Extra::Nothing, request).await {
            // An empty object has no first byte.
            Ok(_) | Err(Failure { status: Some(416), .. }) => {
                error::foreign(key, format!("HEAD: HTTP 404; {NOT_S3}"))
            }
            Err(failure) => failure.error,
        }
    }

    /// Why a range that lies inside the pinned version was refused: most likely the object is
    /// another one now, and the server did not look at `If-Match`.
    async fn explain_bad_range(&self, key: &ObjectKey, etag: &ETag, range: &Range<u64>) -> StoreError {
        match self.head(key).await {
            Ok(meta) if meta.etag == *etag => {
                StoreError::Rejected { key: key.to_string(), reason: format!("range {range:?}") }
            }
            Ok(_) => StoreError::Changed { key: key.clone() },
            Err(err) => err,
        }
    }
}

/// What an answer to a GET says of its body.
struct ReplyHead<'a> {
    etag: Option<&'a str>,
    content_range: Option<&'a str>,
    content_length: Option<u64>,
}

impl<'a> ReplyHead<'a> {
    fn of(reply: &'a GetObjectOutput) -> Self {
        Self {
            etag: reply.e_tag(),
            content_range: reply.content_range(),
            content_length: reply.content_length().and_then(|len| u64::try_from(len).ok()),
        }
    }

    /// Whether the object is shorter than what was asked for: then servers send what there is.
    fn ends_before(&self, range: &Range<u64>) -> bool {
        let Some((bounds, total)) = self.content_range.and_then(|text| text.split_once('/')) else {
            return false;
        };
        let total = total.parse::<u64>().unwrap_or(u64::MAX);
        total < range.end && bounds == format!("bytes {}-{}", range.start, total.saturating_sub(1))
    }

    /// Whether the body is these bytes of the object.
    fn promises(&self, range: &Range<u64>) -> bool {
        let is_range = match self.content_range {
            // `bytes 0-9/100`; some servers send it with status 200, which is as clear.
            Some(text) => {
                let bounds = text.strip_prefix("bytes ").and_then(|text| text.split('/').next());
                bounds == Some(&format!("{}-{}", range.start, range.end - 1))
            }
            // The whole object: right only if the whole object was asked for.
            None => range.start == 0,
        };
        is_range && self.content_length == Some(range.end - range.start)
    }
}

/// What is left of a body that is being read.
pub(super) struct Body {
    stream: SdkStream,
    key: ObjectKey,
    left: u64,
    silence: Duration,
}

impl Body {
    /// The next piece, and the rest; `None` at the proper end. After an error there is nothing.
    pub(super) async fn next(mut self) -> Option<(Result<Bytes, StoreError>, Option<Self>)> {
        let piece = match timeout(self.silence, self.stream.next()).await {
            Ok(piece) => piece,
            Err(_) => {
                let reason = format!("the body stalled for {} s", self.silence.as_secs_f32());
                return Some((Err(StoreError::unanswered(&self.key, reason)), None));
            }
        };
        let err = match piece {
            Some(Ok(bytes)) if bytes.len() as u64 <= self.left => {
                self.left -= bytes.len() as u64;
                return Some((Ok(bytes), Some(self)));
            }
            None if self.left == 0 => return None,
            Some(Ok(_)) => StoreError::unavailable(&self.key, "the body is longer than was announced"),
            None => {
                let reason = format!("the body ended {} bytes early", self.left);
                StoreError::unavailable(&self.key, reason)
            }
            Some(Err(err)) => StoreError::unanswered(&self.key, format!("reading the body: {}", chain(&err))),
        };
        Some((Err(err), None))
    }
}
