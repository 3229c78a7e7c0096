//! An HTTP server that records what it is asked and answers what a test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::Uri;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The head of a request as it came in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Status, headers and body of an answer.
pub struct Answer(pub u16, pub Vec<(&'static str, String)>, pub String);

impl Answer {
    pub fn ok(body: impl Into<String>) -> Self {
        Self(200, Vec::new(), body.into())
    }

    /// What S3 answers to a listing of nothing.
    pub fn empty_listing() -> Self {
        let body = "<?xml version=\"1.0\"?><ListBucketResult><Name>assets</Name><IsTruncated>false</IsTruncated></ListBucketResult>";
        Self(200, vec![("content-type", "application/xml".into())], body.into())
    }
}

/// The server, gone when dropped.
pub struct Recorder {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server thread does not panic");
        }
    }
}

impl Recorder {
    pub fn start(respond: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let serving = serve(listener, Arc::clone(&asked), Arc::new(respond));
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
        Self { address, asked, stop: Some(stop), thread: Some(thread) }
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

type Respond = dyn Fn(&Asked) -> Answer + Send + Sync;

async fn serve(listener: std::net::TcpListener, asked: Arc<Mutex<Vec<Asked>>>, respond: Arc<Respond>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (asked, respond) = (Arc::clone(&asked), Arc::clone(&respond));
        let handler = service_fn(move |request: Request<Incoming>| {
            let head = Asked {
                method: request.method().clone(),
                uri: request.uri().clone(),
                headers: request.headers().clone(),
            };
            asked.lock().push(head.clone());
            let Answer(status, headers, body) = respond(&head);
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(name, value);
            }
            let body = s3s::Body::from(Bytes::from(body));
            let answer = answer.body(body).expect("a valid answer");
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), handler);
            let _ended = connection.await;
        });
    }
}
