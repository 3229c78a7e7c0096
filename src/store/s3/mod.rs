//! A bucket, through the AWS SDK.
//!
//! One request of the trait is one request to the server, with these exceptions: `delete`
//! looks before it deletes (many servers ignore `If-Match` there), a range that the server
//! calls unsatisfiable is explained by a HEAD, and a HEAD's "not found" that may be a proxy's by a GET.
//!
//! # Promises
//!
//! 1. Nothing is asked twice: the SDK's retries are off, ours are a wrapper.
//! 2. A body that `get` yields is the named version's, exactly the asked range of it: the
//!    answer's own `ETag`, range and length are checked, since some servers ignore `If-Match`
//!    or `Range`. What does not fit ends in an error, never in other bytes.
//! 3. Every wait ends: connecting, waiting for an answer, and each pause inside a body.
//! 4. A deletion is not sent long after the look before it, as it would be by a machine that has
//!    slept in between: by then somebody else may have put the same content there.
//! 5. Every write carries its condition and a CRC32C that the server verifies. CRC32C and not
//!    AWS's default CRC64NVME, because R2, ministack and SeaweedFS agree on its meaning for
//!    parts (a checksum of checksums), and they do not on CRC64NVME's; and the CPU computes it.
//! 6. A proxy that answers in the server's place, with "not found" or with a page, is not believed: the
//!    request has failed as if nobody had answered, and may be asked again.
//!
//! # What this module does not know
//!
//! Datasets, caches, retries, which conditions the server really honours (`guarantee`).

mod connect;
mod credentials;
mod delete;
mod direct;
mod error;
mod get;
mod list;
mod listing;
mod presign;
mod put;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream as SdkStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use aws_sdk_s3::types::ChecksumMode;
use aws_sdk_s3::types::CompletedMultipartUpload;
use aws_sdk_s3::types::CompletedPart;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::stream;
use parking_lot::RwLock;
use tokio::sync::OnceCell;

use crate::clock::Clock;
use crate::clock::SystemClock;
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
use crate::store::StoredChecksum;
use crate::store::UploadId;
use crate::store::patience::Extra;
use crate::store::patience::Line;

pub use self::connect::CaBundle;
pub use self::connect::S3Options;
pub use self::connect::S3Proxy;
pub use self::credentials::KeySource;
pub use self::credentials::S3Credentials;
pub use self::credentials::S3Keys;
pub use self::error::is_foreign;
pub use self::error::lacks_credentials;

use self::connect::BodySignature;
use self::connect::ServerClock;
use self::direct::Direct;
use self::error::NOT_S3;
use self::error::Subject;

/// A bucket on an S3-compatible service.
pub struct S3Store {
    options: S3Options,
    /// Made when it is needed first: before that, the region may have to be asked for.
    client: RwLock<Arc<OnceCell<Client>>>,
    direct: RwLock<Option<Arc<Direct>>>,
    bucket: String,
    endpoint: Option<String>,
    request_timeout: Duration,
    line: Line,
    /// Whether bodies travel unsigned: over TLS, and within one machine, the signature of a body adds
    /// nothing but the time for its SHA-256.
    unsigned_bodies: bool,
    clock: ServerClock,
    /// Whether a part of an object has come as it was asked for: the server can do that.
    answers_ranges: AtomicBool,
    /// The time of day here.
    time: Arc<dyn Clock>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("bucket", &self.bucket).field("endpoint", &self.endpoint).finish()
    }
}

impl S3Store {
    /// Prepares a client. Nothing is sent yet; [`ObjectStore::check_access`] does.
    #[must_use]
    pub fn new(options: &S3Options) -> Self {
        let clock = ServerClock::default();
        let direct = Direct::new(options, Arc::clone(&clock.components)).map(Arc::new);
        let client = (!options.find_region).then(|| connect::client(options, &options.region, &clock));
        let exposed = options.endpoint.as_deref().is_some_and(|url| connect::is_exposed(url, &options.proxy));
        Self {
            options: options.clone(),
            client: RwLock::new(Arc::new(OnceCell::new_with(client))),
            direct: RwLock::new(direct),
            bucket: options.bucket.clone(),
            endpoint: options.endpoint.clone(),
            request_timeout: options.request_timeout,
            line: Line::default(),
            unsigned_bodies: !exposed && !matches!(options.credentials, S3Credentials::Anonymous),
            clock,
            answers_ranges: AtomicBool::new(false),
            time: Arc::new(SystemClock),
        }
    }

    /// With another clock than the system's, to tell how old a look is.
    #[must_use]
    pub fn with_clock(self, time: Arc<dyn Clock>) -> Self {
        Self { time, ..self }
    }

    /// The client, once the region is known.
    async fn client(&self) -> Result<Client, StoreError> {
        let connect = || async {
            let region = connect::find_region(&self.options).await?;
            tracing::debug!(bucket = self.bucket, region, "the bucket's region was found");
            Ok(connect::client(&self.options, &region, &self.clock))
        };
        let client = Arc::clone(&self.client.read());
        client.get_or_try_init(connect).await.cloned()
    }

    /// Requests from now on use new connections: the old ones may lead nowhere, after the machine has
    /// slept or has another address.
    pub fn reconnect(&self) {
        let Some(region) = self.client.read().get().and_then(|client| client.config().region().cloned())
        else {
            return;
        };
        let clock = self.clock.of_new_client();
        let client = connect::client(&self.options, region.as_ref(), &clock);
        *self.client.write() = Arc::new(OnceCell::new_with(Some(client)));
        *self.direct.write() = Direct::new(&self.options, clock.components).map(Arc::new);
    }

    /// Stands in for the condition of a write where servers are not to be sent any: the look before
    /// the leap. Two writers who look at the same time both leap.
    async fn look_before_write(&self, key: &ObjectKey, expect: &Expect) -> Result<(), StoreError> {
        if self.options.conditional_writes {
            return Ok(());
        }
        match (self.head(key).await, expect) {
            (Ok(_), Expect::Absent) => Err(StoreError::AlreadyExists { key: key.clone() }),
            (Ok(found), Expect::Version(etag)) if found.etag == *etag => Ok(()),
            (Ok(_) | Err(StoreError::NotFound { .. }), Expect::Version(_)) => {
                Err(StoreError::Changed { key: key.clone() })
            }
            (Err(StoreError::NotFound { .. }), Expect::Absent) => Ok(()),
            (Err(err), _) => Err(err),
        }
    }

    /// The two headers of a condition: `If-None-Match` and `If-Match`.
    fn condition(&self, expect: &Expect) -> (Option<String>, Option<String>) {
        match expect {
            _ if !self.options.conditional_writes => (None, None),
            Expect::Absent => (Some("*".into()), None),
            Expect::Version(etag) => (None, Some(quoted(etag))),
        }
    }

    /// The time at the server, to the second, if it has answered anything yet; errors count too.
    #[must_use]
    pub fn server_time(&self) -> Option<SystemTime> {
        self.clock.now()
    }

    /// Waits for an answer, for the time that a request has and what comes on top of it.
    async fn answer<T, E>(
        &self,
        subject: Subject<'_>,
        extra: Extra,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match self.line.wait(self.request_timeout, extra, request).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(err)) => Err(Failure {
                status: err.raw_response().map(|response| response.status().as_u16()),
                error: error::from_sdk(&self.bucket, subject, err),
            }),
            Err(waited) => {
                let error = StoreError::unanswered(subject.describe(&self.bucket), no_answer_within(waited));
                Err(Failure { status: None, error })
            }
        }
    }

    /// The `ETag` of something just written. A server that did not say is asked; but a yes without one may also
    /// be a proxy's, and nothing written. So what is there counts only if `may_be_it`.
    async fn written_etag(
        &self,
        key: &ObjectKey,
        etag: Option<&str>,
        may_be_it: impl FnOnce(&ObjectMeta) -> bool,
    ) -> Result<ETag, StoreError> {
        if let Some(etag) = etag {
            return Ok(ETag::from_server(etag));
        }
        let what = match self.head(key).await {
            Ok(found) if may_be_it(&found) => return Ok(found.etag),
            Ok(_) => "what is there is not what was said to be written",
            Err(StoreError::NotFound { .. }) => "it was said to be written, and is not there",
            Err(err) => return Err(err),
        };
        Err(error::foreign(key, format!("{what}: {NOT_S3}")))
    }
}

/// A request that failed: what it means, and the bare status for the few who need it.
struct Failure {
    status: Option<u16>,
    error: StoreError,
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// The upload that an answer to `CreateMultipartUpload` names although the SDK cannot read it: rclone's
/// begins with another tag than S3's.
fn upload_named_in<E>(err: &SdkError<E, HttpResponse>) -> Option<String> {
    let answer = err.raw_response().filter(|answer| answer.status().is_success())?;
    let body = std::str::from_utf8(answer.body().bytes()?).ok()?;
    let (_, named) = body.split_once("<InitiateMultipartUpload")?.1.split_once("<UploadId>")?;
    let (id, _) = named.split_once("</UploadId>")?;
    let is_plain = !id.is_empty() && !id.contains(['<', '&']);
    is_plain.then(|| id.to_owned())
}

/// What is said of a request that nobody has answered.
fn no_answer_within(waited: Duration) -> String {
    format!("no answer within {} s", (waited.as_secs_f32() * 10.0).round() / 10.0)
}

fn quoted(etag: &ETag) -> String {
    format!("\"{etag}\"")
}

fn crc32c_header(body: &[u8]) -> String {
    BASE64.encode(&crc32c::crc32c(body).to_be_bytes())
}

#[async_trait]
impl ObjectStore for S3Store {
    fn describe(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("s3://{} at {endpoint}", self.bucket),
            None => format!("s3://{}", self.bucket),
        }
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        let request = self.client().await?.list_objects_v2().bucket(&self.bucket).max_keys(1).send();
        self.answer(Subject::Bucket, Extra::Nothing, request).await?;
        Ok(())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let page = self.page(request).await?;
        let (is_truncated, next) = (page.is_truncated, page.continuation.clone());
        let mut page = page.read();
        if is_truncated {
            // A listing that goes in circles would be followed for ever.
            if next.is_none() || next == request.continuation {
                return Err(StoreError::Rejected {
                    key: request.prefix.to_string(),
                    reason: "the server says that the listing goes on, but not where".into(),
                });
            }
            page.continuation = next;
        }
        Ok(page)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let subject = Subject::Read(key);
        let request = self
            .client()
            .await?
            .head_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .checksum_mode(ChecksumMode::Enabled)
            .send();
        let output = match self.answer(subject, Extra::Nothing, request).await {
            Err(Failure { status: Some(404), error: StoreError::Unavailable { .. } }) => {
                return Err(self.explain_missing(key).await);
            }
            answer => answer?,
        };
        let etag = output.e_tag().map(ETag::from_server);
        let size_bytes = output.content_length().and_then(|len| u64::try_from(len).ok());
        let (Some(etag), Some(size_bytes)) = (etag, size_bytes) else {
            let reason = format!("the answer to HEAD has no ETag or no length: {NOT_S3}");
            return Err(error::foreign(key, reason));
        };
        let metadata = output.metadata.unwrap_or_default();
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect();
        let modified = listing::system_time(output.last_modified.as_ref());
        let checksum = output.checksum_crc32_c.as_deref().and_then(StoredChecksum::parse);
        Ok(ObjectMeta { size_bytes, etag, modified, metadata, checksum })
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        if range.is_empty() {
            return Err(StoreError::Rejected { key: key.to_string(), reason: format!("range {range:?}") });
        }
        let body = self.body(key, etag, &range).await?;
        let pieces = stream::unfold(Some(body), |body| async move { body?.next().await });
        Ok(Box::pin(pieces))
    }

    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let (meta, body) = self.whole(key, etag, size_bytes).await?;
        let pieces = stream::unfold(Some(body), |body| async move { body?.next().await });
        Ok((meta, Box::pin(pieces)))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let extra = Extra::Body(body.len());
        let sent = body.clone();
        let is_it = |found: &ObjectMeta| put::is_what_was_put(found, &sent, expect, attributes);
        self.look_before_write(key, expect).await?;
        let signature = BodySignature::of(&body, attributes.body_sha256, self.unsigned_bodies).await;
        if let Some(request) = self.direct_put(key, &body, expect, attributes, signature.signable()).await {
            let etag = self.written_directly(request, key, expect, extra).await?;
            return self.written_etag(key, etag.as_deref(), is_it).await;
        }
        let (if_none_match, if_match) = self.condition(expect);
        let mut call = self
            .client()
            .await?
            .put_object()
            .bucket(&self.bucket)
            .key(key.as_str())
            .set_if_none_match(if_none_match)
            .set_if_match(if_match)
            .checksum_crc32_c(crc32c_header(&body));
        for (name, value) in &attributes.metadata {
            call = call.metadata(name, value);
        }
        let call = call.body(SdkStream::from(body)).customize().interceptor(signature);
        let output = self.answer(Subject::Write(key, expect), extra, call.send()).await?;
        self.written_etag(key, output.e_tag(), is_it).await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let mut call = self
            .client()
            .await?
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(key.as_str())
            .checksum_algorithm(ChecksumAlgorithm::Crc32C);
        for (name, value) in &attributes.metadata {
            call = call.metadata(name, value);
        }
        let call = async {
            match call.send().await {
                Ok(output) => Ok(output.upload_id),
                Err(err) => upload_named_in(&err).map(Some).ok_or(err),
            }
        };
        match self.answer(Subject::Write(key, &Expect::Absent), Extra::Nothing, call).await? {
            Some(id) => Ok(UploadId(id)),
            None => {
                let reason = "the answer names no upload".into();
                Err(StoreError::Rejected { key: key.to_string(), reason })
            }
        }
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let extra = Extra::Body(body.len());
        let checksum = crc32c_header(&body);
        let signature = BodySignature::of(&body, None, self.unsigned_bodies).await;
        let call = self
            .client()
            .await?
            .upload_part()
            .bucket(&self.bucket)
            .key(key.as_str())
            .upload_id(&upload.0)
            .part_number(i32::try_from(number).unwrap_or(i32::MAX))
            .checksum_crc32_c(&checksum)
            .body(SdkStream::from(body))
            .customize()
            .interceptor(signature);
        let output = self.answer(Subject::Upload(key), extra, call.send()).await?;
        let Some(etag) = output.e_tag().map(ETag::from_server) else {
            let reason = format!("the answer to part {number} has no ETag: {NOT_S3}");
            return Err(error::foreign(key, reason));
        };
        Ok(PartReceipt { number, etag, checksum: Some(checksum) })
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let completed = parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
                .e_tag(quoted(&part.etag))
                .set_checksum_crc32_c(part.checksum.clone())
                .build()
        });
        let completed = CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build();
        self.look_before_write(key, expect).await?;
        let (if_none_match, if_match) = self.condition(expect);
        let call = self
            .client()
            .await?
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(key.as_str())
            .upload_id(&upload.0)
            .multipart_upload(completed)
            .set_if_none_match(if_none_match)
            .set_if_match(if_match)
            .send();
        let extra = Extra::Parts(parts.len());
        let output = self.answer(Subject::Write(key, expect), extra, call).await?;
        // That it could be read at all tells S3's answer from others.
        let is_another = |found: &ObjectMeta| *expect != Expect::Version(found.etag.clone());
        self.written_etag(key, output.e_tag(), is_another).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        let call = self
            .client()
            .await?
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(key.as_str())
            .upload_id(&upload.0)
            .send();
        match self.answer(Subject::Upload(key), Extra::Nothing, call).await {
            Ok(_) | Err(Failure { error: StoreError::NoSuchUpload { .. }, .. }) => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.delete_version(key, etag).await
    }
}
