//! An S3 server in this process: the `s3s` traits over a map under one lock, exact where S3 is
//! exact, and wrong on command.
//!
//! [`Bucket`] is the server that S3 documents; its switches are the ways in which real servers
//! depart from that. [`Double`] serves it over HTTP and adds what networks do: errors before
//! anything happened, answers that are lost afterwards, silence, bodies that break off.
//!
//! It runs on a thread and runtime of its own, so that tests of every kind, and the real
//! binary, can use it as an endpoint.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::SystemTime;

use bytes::Bytes;
use bytes::BytesMut;
use data_encoding::BASE64;
use data_encoding::HEXLOWER;
use dsfs::store::fault::Operation;
use dsfs::store::s3::S3Credentials;
use dsfs::store::s3::S3Options;
use dsfs::store::s3::S3Store;
use futures_util::StreamExt;
use futures_util::stream;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_decode_str;
use percent_encoding::utf8_percent_encode;
use s3s::S3;
use s3s::S3ErrorCode;
use s3s::S3Request;
use s3s::S3Response;
use s3s::S3Result;
use s3s::auth::SimpleAuth;
use s3s::dto;
use s3s::dto::StreamingBlob;
use s3s::s3_error;
use s3s::service::S3Service;
use s3s::service::S3ServiceBuilder;
use sha2::Digest;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub const BUCKET: &str = "assets";
pub const ACCESS_KEY: &str = "testkey1";
pub const SECRET_KEY: &str = "testsecret1";
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum HttpFault {
    /// This status and code are answered; nothing else happens.
    Status(u16, &'static str),
    /// The request is carried out, then the connection is closed without an answer.
    LostReply,
    /// The connection is closed; nothing else happens.
    Reset,
    /// There is no answer, ever; nothing else happens.
    Stall,
    /// The body breaks off after so many bytes.
    Truncate(usize),
    /// The body stops after so many bytes, and the connection stays open.
    StallBody(usize),
    /// Status 200 with this error in the body; nothing else happens.
    OkWithError(&'static str),
    /// The header of this name is left out of the answer.
    DropHeader(&'static str),
}

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
    /// Listings say "url" and encode nothing (s3s-fs).
    pub claim_encoding: AtomicBool,
    /// `Range` is ignored: the whole object, status 200.
    pub ignore_range: AtomicBool,
    /// Every n-th request is answered with 503 SlowDown; 0 is never.
    pub slow_down_every: AtomicU32,
    /// Every n-th request ends in a connection that is closed without an answer; 0 is never.
    pub reset_every: AtomicU32,
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub operation: Option<Operation>,
    pub key: String,
    pub query: String,
}

impl Recorded {
    /// The part's number, of an `UploadPart`.
    pub fn part(&self) -> Option<u32> {
        self.query.split('&').find_map(|pair| pair.strip_prefix("partNumber="))?.parse().ok()
    }
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
    switches: Arc<Switches>,
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

/// What the HTTP side knows.
#[derive(Debug, Default)]
struct Wire {
    script: Mutex<VecDeque<(Operation, HttpFault)>>,
    requests: Mutex<Vec<Recorded>>,
    connections: AtomicU32,
}

/// The server, gone when dropped.
pub struct Double {
    address: SocketAddr,
    bucket: Bucket,
    wire: Arc<Wire>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Double {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server thread does not panic");
        }
    }
}

impl Double {
    /// Starts a server with an empty bucket.
    pub fn start() -> Self {
        let bucket = Bucket::default();
        let wire = Arc::new(Wire::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let mut service = S3ServiceBuilder::new(bucket.clone());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let serving = serve(listener, service.build(), Arc::clone(&wire), Arc::clone(&bucket.switches));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, bucket, wire, stop: Some(stop), thread: Some(thread) }
    }

    /// `http://127.0.0.1:…`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options that reach it.
    pub fn options(&self) -> S3Options {
        let credentials = S3Credentials::keys(ACCESS_KEY, SECRET_KEY);
        S3Options::new(BUCKET, Some(&self.endpoint()), "us-east-1", credentials)
    }

    /// A client of it.
    pub async fn store(&self) -> S3Store {
        S3Store::new(&self.options())
    }

    pub fn switches(&self) -> &Switches {
        &self.bucket.switches
    }

    /// Lets the next request of this kind go wrong; further calls queue up behind it.
    pub fn script(&self, operation: Operation, fault: HttpFault) {
        self.wire.script.lock().push_back((operation, fault));
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.wire.requests.lock().clone()
    }

    /// How many requests of a kind there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.wire.requests.lock().iter().filter(|request| request.operation == Some(operation)).count()
    }

    pub fn forget_requests(&self) {
        self.wire.requests.lock().clear();
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u32 {
        self.wire.connections.load(Ordering::SeqCst)
    }

    /// Writes the way that another client would: no condition. Returns the `ETag`.
    pub fn put_out_of_band(&self, key: &str, body: &[u8]) -> String {
        let etag = etag_of(body);
        let mut state = self.bucket.state.lock();
        Bucket::insert(&mut state, key, Bytes::copy_from_slice(body), etag.clone(), BTreeMap::new());
        etag
    }

    /// An object's bytes and metadata.
    pub fn object(&self, key: &str) -> Option<(Bytes, BTreeMap<String, String>)> {
        let state = self.bucket.state.lock();
        state.objects.get(key).map(|object| (object.body.clone(), object.metadata.clone()))
    }

    pub fn keys(&self) -> Vec<String> {
        self.bucket.state.lock().objects.keys().cloned().collect()
    }

    /// Uploads that are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.bucket.state.lock().uploads.len()
    }
}

async fn serve(
    listener: std::net::TcpListener,
    service: S3Service,
    wire: Arc<Wire>,
    switches: Arc<Switches>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        socket.set_nodelay(true).expect("a socket");
        wire.connections.fetch_add(1, Ordering::SeqCst);
        let (service, wire, switches) = (service.clone(), Arc::clone(&wire), Arc::clone(&switches));
        let handler = service_fn(move |request| {
            answer(service.clone(), Arc::clone(&wire), Arc::clone(&switches), request)
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(true)
                .serve_connection(TokioIo::new(socket), handler);
            // A scripted fault ends the connection with an error: that is its purpose.
            let _ended = connection.await;
        });
    }
}

fn operation_of(method: &Method, has_key: bool, query: &str) -> Option<Operation> {
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    Some(match (method.as_str(), has_key) {
        ("GET", false) => Operation::List,
        ("HEAD", true) => Operation::Head,
        ("GET", true) => Operation::Get,
        ("PUT", true) if has("partNumber") => Operation::PutPart,
        ("PUT", true) => Operation::Put,
        ("POST", true) if has("uploads") => Operation::CreateMultipart,
        ("POST", true) if has("uploadId") => Operation::CompleteMultipart,
        ("DELETE", true) if has("uploadId") => Operation::AbortMultipart,
        ("DELETE", true) => Operation::Delete,
        _ => return None,
    })
}

fn error_answer(status: u16, code: &str) -> Response<s3s::Body> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>scripted: {code}</Message></Error>"
    );
    let answer = Response::builder().status(status).header("content-type", "application/xml");
    answer.body(s3s::Body::from(body)).expect("a valid answer")
}

/// The connection is closed when the service fails.
fn hang_up() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

async fn answer(
    service: S3Service,
    wire: Arc<Wire>,
    switches: Arc<Switches>,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, io::Error> {
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let operation = operation_of(request.method(), !key.is_empty(), &query);
    let nth = {
        let mut requests = wire.requests.lock();
        requests.push(Recorded { operation, key, query });
        requests.len() as u32
    };
    let fault = {
        let mut script = wire.script.lock();
        let at = script.iter().position(|(wanted, _)| Some(*wanted) == operation);
        at.and_then(|at| script.remove(at)).map(|(_, fault)| fault)
    };
    let every = switches.slow_down_every.load(Ordering::SeqCst);
    if fault.is_none() && every > 0 && nth.is_multiple_of(every) {
        return Ok(error_answer(503, S3ErrorCode::SlowDown.as_str()));
    }
    let every = switches.reset_every.load(Ordering::SeqCst);
    if fault.is_none() && every > 0 && nth.is_multiple_of(every) {
        return Err(hang_up());
    }
    match &fault {
        Some(HttpFault::Status(status, code)) => return Ok(error_answer(*status, code)),
        Some(HttpFault::OkWithError(code)) => return Ok(error_answer(200, code)),
        Some(HttpFault::Reset) => return Err(hang_up()),
        Some(HttpFault::Stall) => return std::future::pending().await,
        _ => {}
    }
    let answered = hyper::service::Service::call(&service, request).await;
    let mut answered = answered.map_err(|_| hang_up())?;
    match fault {
        Some(HttpFault::LostReply) => Err(hang_up()),
        Some(HttpFault::Truncate(bytes)) => Ok(answered.map(|body| cut(body, bytes, true))),
        Some(HttpFault::StallBody(bytes)) => Ok(answered.map(|body| cut(body, bytes, false))),
        Some(HttpFault::DropHeader(name)) => {
            answered.headers_mut().remove(name);
            Ok(answered)
        }
        _ => Ok(answered),
    }
}

/// The first bytes of a body, then a broken connection or silence.
fn cut(body: s3s::Body, bytes: usize, breaks: bool) -> s3s::Body {
    let pieces = stream::unfold((body, bytes), move |(mut body, left)| async move {
        if left == 0 {
            if !breaks {
                std::future::pending::<Infallible>().await;
            }
            // What was sent has to leave the house before the door is shut.
            tokio::task::yield_now().await;
            return Some((Err(hang_up()), (body, 0)));
        }
        let mut piece = body.next().await?.ok()?;
        piece.truncate(left);
        let left = left - piece.len();
        Some((Ok(piece), (body, left)))
    });
    s3s::Body::from(StreamingBlob::wrap(pieces))
}
