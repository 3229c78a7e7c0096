//! An S3 server in this process: the `s3s` traits over a map under one lock, exact where S3 is
//! exact, and wrong on command.
//!
//! [`Bucket`] is the server that S3 documents; its switches are the ways in which real servers
//! depart from that. [`Double`] serves it over HTTP and adds what networks do: errors before
//! anything happened, answers that are lost afterwards, silence, bodies that break off.
//!
//! It runs on a thread and runtime of its own, so that tests of every kind, and the real
//! binary, can use it as an endpoint.

mod bucket;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
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
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use s3s::S3ErrorCode;
use s3s::auth::SimpleAuth;
use s3s::dto::StreamingBlob;
use s3s::service::S3Service;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::bucket::BUCKET;
use self::bucket::Bucket;
pub use self::bucket::Switches;

pub const ACCESS_KEY: &str = "testkey1";
pub const SECRET_KEY: &str = "testsecret1";
/// What S3 says in every answer, by which it can be told from a proxy's.
pub const REQUEST_ID: &str = "x-amz-request-id";

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum HttpFault {
    /// This status and code are answered; nothing else happens.
    Status(u16, &'static str),
    /// The request is carried out, then the connection is closed without an answer.
    LostReply,
    /// The request is carried out, and there is no answer, ever.
    LostInSilence,
    /// The connection is closed; nothing else happens.
    Reset,
    /// There is no answer, ever; nothing else happens.
    Stall,
    /// Nothing happens before [`Double::let_go`]; then the request is answered as it should be.
    Hold,
    /// The body breaks off after so many bytes.
    Truncate(usize),
    /// The body stops after so many bytes, and the connection stays open.
    StallBody(usize),
    /// Status 200 with this error in the body; nothing else happens.
    OkWithError(&'static str),
    /// A proxy answers in the server's place, with this status, this `ETag` and a page; nothing else happens.
    Page(u16, Option<&'static str>),
    /// The same, with status 200 and nothing else.
    BareYes,
    /// The header of this name is left out of the answer.
    DropHeader(&'static str),
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub operation: Option<Operation>,
    pub key: String,
    pub query: String,
    pub headers: BTreeMap<String, String>,
}

impl Recorded {
    /// The part's number, of an `UploadPart`.
    pub fn part(&self) -> Option<u32> {
        self.query.split('&').find_map(|pair| pair.strip_prefix("partNumber="))?.parse().ok()
    }
}

/// What the HTTP side knows.
#[derive(Debug, Default)]
struct Wire {
    script: Mutex<VecDeque<(Operation, HttpFault)>>,
    /// Which requests, in the order in which they come, have which fault.
    spell: Mutex<Option<(Range<usize>, HttpFault)>>,
    requests: Mutex<Vec<Recorded>>,
    connections: AtomicU32,
    /// Cancelled when held requests are let go.
    held: CancellationToken,
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

    /// Lets these requests go wrong, whatever they are, counted from 0 since the start or
    /// [`Self::forget_requests`].
    pub fn spell(&self, which: Range<usize>, fault: HttpFault) {
        *self.wire.spell.lock() = Some((which, fault));
    }

    /// All requests are answered as they should be again.
    pub fn end_spell(&self) {
        *self.wire.spell.lock() = None;
    }

    /// Lets go of the requests that are held, and holds none any more.
    pub fn let_go(&self) {
        self.wire.held.cancel();
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
        self.bucket.put_out_of_band(key, body)
    }

    /// An object's bytes and metadata.
    pub fn make_older(&self, start: &str, by: Duration) {
        self.bucket.make_older(start, by);
    }

    pub fn object(&self, key: &str) -> Option<(Bytes, BTreeMap<String, String>)> {
        self.bucket.object(key)
    }

    pub fn keys(&self) -> Vec<String> {
        self.bucket.keys()
    }

    /// Gives all uploads up, as servers do with old ones.
    pub fn forget_uploads(&self) {
        self.bucket.forget_uploads();
    }

    /// Uploads that are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.bucket.open_uploads()
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
    let answer = answer.header(REQUEST_ID, "scripted");
    answer.body(s3s::Body::from(body)).expect("a valid answer")
}

fn page(status: u16, etag: Option<&str>) -> Response<s3s::Body> {
    let text = if status == 404 { "404 page not found\n" } else { "<html><body>Hello</body></html>\n" };
    let mut answer = Response::builder().status(status).header("content-type", "text/html");
    if let Some(etag) = etag {
        answer = answer.header("etag", etag);
    }
    answer.body(s3s::Body::from(text.to_owned())).expect("a valid answer")
}

/// Reads all of a request: who is answered in the middle of a body may see a closed connection instead.
async fn heard_out(request: Request<Incoming>) {
    let mut body = s3s::Body::from(request.into_body());
    while body.next().await.is_some() {}
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
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let nth = {
        let mut requests = wire.requests.lock();
        requests.push(Recorded { operation, key, query, headers });
        requests.len()
    };
    let scripted = {
        let mut script = wire.script.lock();
        let at = script.iter().position(|(wanted, _)| Some(*wanted) == operation);
        at.and_then(|at| script.remove(at)).map(|(_, fault)| fault)
    };
    let spell = wire.spell.lock().clone().filter(|(which, _)| which.contains(&(nth - 1)));
    let fault = scripted.or(spell.map(|(_, fault)| fault));
    let nth = nth as u32;
    let every = switches.slow_down_every.load(Ordering::SeqCst);
    if fault.is_none() && every > 0 && nth.is_multiple_of(every) {
        return Ok(error_answer(503, S3ErrorCode::SlowDown.as_str()));
    }
    let every = switches.reset_every.load(Ordering::SeqCst);
    if fault.is_none() && every > 0 && nth.is_multiple_of(every) {
        return Err(hang_up());
    }
    match &fault {
        Some(HttpFault::Status(status, code)) => {
            heard_out(request).await;
            return Ok(error_answer(*status, code));
        }
        Some(HttpFault::OkWithError(code)) => {
            heard_out(request).await;
            return Ok(error_answer(200, code));
        }
        Some(HttpFault::Page(status, etag)) => {
            heard_out(request).await;
            return Ok(page(*status, *etag));
        }
        Some(HttpFault::BareYes) => {
            heard_out(request).await;
            return Ok(Response::new(s3s::Body::empty()));
        }
        Some(HttpFault::Reset) => return Err(hang_up()),
        Some(HttpFault::Stall) => return std::future::pending().await,
        Some(HttpFault::Hold) => wire.held.cancelled().await,
        _ => {}
    }
    let answered = hyper::service::Service::call(&service, request).await;
    let mut answered = answered.map_err(|_| hang_up())?;
    answered.headers_mut().insert(REQUEST_ID, HeaderValue::from(nth));
    match fault {
        Some(HttpFault::LostReply) => Err(hang_up()),
        Some(HttpFault::LostInSilence) => std::future::pending().await,
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
