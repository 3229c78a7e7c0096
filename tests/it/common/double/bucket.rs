//! One bucket behind the `s3s` traits, exact where S3 is exact; its switches are the ways in which
//! real servers depart from that.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use bytes::BytesMut;
use data_encoding::BASE64;
use data_encoding::HEXLOWER;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use s3s::S3;
use s3s::S3Request;
use s3s::S3Response;
use s3s::S3Result;
use s3s::dto;
use s3s::dto::StreamingBlob;
use s3s::s3_error;
use sha2::Digest;
use sha2::Sha256;

pub const BUCKET: &str = "assets";
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

/// Ways in which servers depart from S3.
#[derive(Debug, Default)]
pub struct Switches {
    /// Conditions on `PutObject` are ignored (Garage, rclone).
    pub ignore_put_conditions: AtomicBool,
    /// Conditions on `CompleteMultipartUpload` are ignored.
    pub ignore_complete_conditions: AtomicBool,
    /// `If-Match` on `GetObject` is ignored (s3s-fs, rclone).
    pub ignore_get_conditions: AtomicBool,
    /// `If-Match` on `DeleteObject` is ignored.
    pub ignore_delete_conditions: AtomicBool,
    /// The metadata of objects that are put, or uploaded, is lost.
    pub lose_put_metadata: AtomicBool,
    pub lose_upload_metadata: AtomicBool,
    /// `CompleteMultipartUpload` answers with another `ETag` than the object has.
    pub misname_completed: AtomicBool,
    /// Listings say "url" and encode nothing (s3s-fs).
    pub claim_encoding: AtomicBool,
    /// `Range` is ignored: the whole object, status 200.
    pub ignore_range: AtomicBool,
    /// Every n-th request is answered with 503 SlowDown; 0 is never.
    pub slow_down_every: AtomicU32,
    /// Every n-th request ends in a connection that is closed without an answer; 0 is never.
    pub reset_every: AtomicU32,
}

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    etag: String,
    modified: SystemTime,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Upload {
    key: String,
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<i32, (String, Bytes)>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    uploads_made: u64,
}

/// One bucket, as S3 documents it.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    state: Arc<Mutex<State>>,
    pub switches: Arc<Switches>,
}

fn etag_of(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body)[..16])
}

async fn read_body(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut whole = BytesMut::new();
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| s3_error!(IncompleteBody))?;
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

fn check_crc(sent: Option<&String>, body: &[u8]) -> S3Result<()> {
    let right = BASE64.encode(&crc32c::crc32c(body).to_be_bytes());
    match sent {
        Some(sent) if *sent != right => Err(s3_error!(BadDigest, "CRC32C is {right}")),
        _ => Ok(()),
    }
}

fn check_condition(
    there: Option<&Object>,
    if_none_match: Option<&dto::ETagCondition>,
    if_match: Option<&dto::ETagCondition>,
) -> S3Result<()> {
    let failed = || Err(s3_error!(PreconditionFailed, "At least one of the conditions did not hold"));
    if let Some(condition) = if_none_match {
        match (condition, there) {
            (dto::ETagCondition::Any, Some(_)) => return failed(),
            (dto::ETagCondition::ETag(etag), Some(object)) if etag.value() == object.etag => return failed(),
            _ => {}
        }
    }
    match (if_match, there) {
        (Some(_), None) => Err(s3_error!(NoSuchKey)),
        (Some(dto::ETagCondition::ETag(etag)), Some(object)) if etag.value() != object.etag => failed(),
        _ => Ok(()),
    }
}

impl Bucket {
    fn check_bucket(name: &str) -> S3Result<()> {
        if name == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn insert(state: &mut State, key: &str, body: Bytes, etag: String, metadata: BTreeMap<String, String>) {
        #[expect(clippy::disallowed_methods, reason = "the server's own clock")]
        let modified = SystemTime::now();
        state.objects.insert(key.to_owned(), Object { body, etag, modified, metadata });
    }

    pub fn put_out_of_band(&self, key: &str, body: &[u8]) -> String {
        let etag = etag_of(body);
        let body = Bytes::copy_from_slice(body);
        Self::insert(&mut self.state.lock(), key, body, etag.clone(), BTreeMap::new());
        etag
    }

    /// Objects whose keys begin so were written that much earlier.
    pub fn make_older(&self, start: &str, by: Duration) {
        let mut state = self.state.lock();
        let all = state.objects.iter_mut().filter(|(key, _)| key.starts_with(start));
        all.for_each(|(_, object)| object.modified -= by);
    }

    pub fn object(&self, key: &str) -> Option<(Bytes, BTreeMap<String, String>)> {
        let state = self.state.lock();
        state.objects.get(key).map(|object| (object.body.clone(), object.metadata.clone()))
    }

    pub fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    pub fn forget_uploads(&self) {
        self.state.lock().uploads.clear();
    }

    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }
}

/// What AWS leaves alone in a listing's keys; a space becomes `+`.
const LEFT_ALONE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'*');

fn url_encode(key: &str) -> String {
    utf8_percent_encode(key, LEFT_ALONE).to_string().replace("%20", "+")
}

type Reply<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn list_objects_v2(
        &self,
        req: S3Request<dto::ListObjectsV2Input>,
    ) -> Reply<dto::ListObjectsV2Output> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
        let room = usize::try_from(input.max_keys.unwrap_or(1000).clamp(0, 1000)).unwrap_or(0);
        let claims = input.encoding_type.as_ref().is_some_and(|kind| kind.as_str() == "url");
        let encodes = claims && !self.switches.claim_encoding.load(Ordering::SeqCst);
        let spell = |key: &str| if encodes { url_encode(key) } else { key.to_owned() };
        let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
        let (mut last, mut next): (String, Option<String>) = (String::new(), None);
        let state = self.state.lock();
        for (key, object) in
            state.objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix))
        {
            let rest = &key[prefix.len()..];
            let fold = input.delimiter.as_deref().and_then(|delimiter| {
                rest.find(delimiter).map(|at| key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            let name = fold.as_ref().unwrap_or(key);
            if *name <= after || *name == last {
                continue;
            }
            if contents.len() + prefixes.len() == room {
                next = Some(last.clone());
                break;
            }
            last.clone_from(name);
            match fold {
                Some(prefix) => prefixes.push(dto::CommonPrefix { prefix: Some(spell(&prefix)) }),
                None => contents.push(dto::Object {
                    key: Some(spell(key)),
                    size: Some(object.body.len() as i64),
                    e_tag: Some(dto::ETag::Strong(object.etag.clone())),
                    last_modified: Some(object.modified.into()),
                    ..Default::default()
                }),
            }
        }
        Ok(S3Response::new(dto::ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: Some((contents.len() + prefixes.len()) as i32),
            max_keys: input.max_keys,
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<dto::HeadObjectInput>) -> Reply<dto::HeadObjectOutput> {
        Self::check_bucket(&req.input.bucket)?;
        let state = self.state.lock();
        let object = state.objects.get(&req.input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok(S3Response::new(dto::HeadObjectOutput {
            content_length: Some(object.body.len() as i64),
            e_tag: Some(dto::ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            metadata: Some(object.metadata.clone().into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<dto::GetObjectInput>) -> Reply<dto::GetObjectOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let object =
            self.state.lock().objects.get(&input.key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        if !self.switches.ignore_get_conditions.load(Ordering::SeqCst) {
            check_condition(Some(&object), input.if_none_match.as_ref(), input.if_match.as_ref())?;
        }
        let size = object.body.len() as u64;
        let asked = input.range.filter(|_| !self.switches.ignore_range.load(Ordering::SeqCst));
        let range = match &asked {
            Some(range) => range.check(size).map_err(|_| s3_error!(InvalidRange))?,
            None => 0..size,
        };
        let body = object.body.slice(range.start as usize..range.end as usize);
        let content_range = asked.map(|_| format!("bytes {}-{}/{size}", range.start, range.end - 1));
        // In pieces, so that a body can break off in its middle.
        let pieces: Vec<io::Result<Bytes>> =
            body.chunks(64 * 1024).map(|piece| Ok(body.slice_ref(piece))).collect();
        Ok(S3Response::new(dto::GetObjectOutput {
            content_length: Some(body.len() as i64),
            content_range,
            body: Some(StreamingBlob::wrap(stream::iter(pieces))),
            e_tag: Some(dto::ETag::Strong(object.etag)),
            last_modified: Some(object.modified.into()),
            metadata: Some(object.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn put_object(&self, req: S3Request<dto::PutObjectInput>) -> Reply<dto::PutObjectOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let body = read_body(input.body).await?;
        check_crc(input.checksum_crc32c.as_ref(), &body)?;
        let etag = etag_of(&body);
        // From here on under one lock: this is the atomicity that S3 promises.
        let mut state = self.state.lock();
        if !self.switches.ignore_put_conditions.load(Ordering::SeqCst) {
            let there = state.objects.get(&input.key);
            check_condition(there, input.if_none_match.as_ref(), input.if_match.as_ref())?;
        }
        let mut metadata: BTreeMap<_, _> = input.metadata.unwrap_or_default().into_iter().collect();
        if self.switches.lose_put_metadata.load(Ordering::SeqCst) {
            metadata.clear();
        }
        Self::insert(&mut state, &input.key, body, etag.clone(), metadata);
        Ok(S3Response::new(dto::PutObjectOutput {
            e_tag: Some(dto::ETag::Strong(etag)),
            checksum_crc32c: input.checksum_crc32c,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<dto::CreateMultipartUploadInput>,
    ) -> Reply<dto::CreateMultipartUploadOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let mut state = self.state.lock();
        state.uploads_made += 1;
        let id = format!("upload-{}", state.uploads_made);
        let mut metadata: BTreeMap<_, _> = input.metadata.unwrap_or_default().into_iter().collect();
        if self.switches.lose_upload_metadata.load(Ordering::SeqCst) {
            metadata.clear();
        }
        state.uploads.insert(id.clone(), Upload { key: input.key.clone(), metadata, parts: BTreeMap::new() });
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<dto::UploadPartInput>) -> Reply<dto::UploadPartOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let body = read_body(input.body).await?;
        check_crc(input.checksum_crc32c.as_ref(), &body)?;
        let etag = etag_of(&body);
        let mut state = self.state.lock();
        let upload = state.uploads.get_mut(&input.upload_id).filter(|upload| upload.key == input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, (etag.clone(), body));
        Ok(S3Response::new(dto::UploadPartOutput {
            e_tag: Some(dto::ETag::Strong(etag)),
            checksum_crc32c: input.checksum_crc32c,
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> Reply<dto::CompleteMultipartUploadOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let mut state = self.state.lock();
        let upload = state.uploads.get(&input.upload_id).filter(|upload| upload.key == input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let parts = input.multipart_upload.and_then(|parts| parts.parts).unwrap_or_default();
        if parts.is_empty() {
            return Err(s3_error!(MalformedXML));
        }
        let (mut body, mut etags) = (BytesMut::new(), String::new());
        for (at, part) in parts.iter().enumerate() {
            let number = part.part_number.unwrap_or_default();
            let (etag, bytes) = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref().is_none_or(|sent| sent.value() != etag) {
                return Err(s3_error!(InvalidPart));
            }
            if at > 0 && parts[at - 1].part_number >= part.part_number {
                return Err(s3_error!(InvalidPartOrder));
            }
            if at + 1 < parts.len() && bytes.len() < PART_BYTES_MIN {
                return Err(s3_error!(EntityTooSmall));
            }
            body.extend_from_slice(bytes);
            etags.push_str(etag);
        }
        if !self.switches.ignore_complete_conditions.load(Ordering::SeqCst) {
            let there = state.objects.get(&input.key);
            check_condition(there, input.if_none_match.as_ref(), input.if_match.as_ref())?;
        }
        let etag = format!("{}-{}", etag_of(etags.as_bytes()), parts.len());
        let upload = state.uploads.remove(&input.upload_id).expect("found above");
        Self::insert(&mut state, &input.key, body.freeze(), etag.clone(), upload.metadata);
        let misnamed = self.switches.misname_completed.load(Ordering::SeqCst);
        let etag = if misnamed { format!("of-{etag}") } else { etag };
        Ok(S3Response::new(dto::CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(dto::ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<dto::AbortMultipartUploadInput>,
    ) -> Reply<dto::AbortMultipartUploadOutput> {
        Self::check_bucket(&req.input.bucket)?;
        let removed = self.state.lock().uploads.remove(&req.input.upload_id);
        removed.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
    }

    async fn delete_object(&self, req: S3Request<dto::DeleteObjectInput>) -> Reply<dto::DeleteObjectOutput> {
        let input = req.input;
        Self::check_bucket(&input.bucket)?;
        let mut state = self.state.lock();
        if !self.switches.ignore_delete_conditions.load(Ordering::SeqCst)
            && let Some(object) = state.objects.get(&input.key)
        {
            check_condition(Some(object), None, input.if_match.as_ref())?;
        }
        state.objects.remove(&input.key);
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<dto::HeadBucketInput>) -> Reply<dto::HeadBucketOutput> {
        Self::check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(dto::HeadBucketOutput::default()))
    }
}
