//! The daemon's end of the control socket.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncBufRead;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::control::ANSWER_BYTES_MAX;
use crate::control::KEEPALIVE;
use crate::control::LINE_BYTES_MAX;
use crate::control::NOT_A_REQUEST;
use crate::control::OTHER_VERSION;
use crate::control::PROTOCOL_VERSION;
use crate::control::message::Answer;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Frame;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;

/// Connections served at a time. Most of them wait: what is done at a time the handler bounds.
pub const CONNECTIONS_MAX: usize = 256;
/// Further connections that are told at a time that there are too many; the rest waits in the kernel's queue.
const TURNED_AWAY_MAX: usize = 16;
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often progress is passed on.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of a piece of a long answer: written as a text in JSON it may become twice as long.
const PART_BYTES_MAX: usize = LINE_BYTES_MAX / 2 - 64;
/// How long answers that are being written may still take when the daemon ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Carries requests out.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Carries out one request. Dropping the future cancels it: the client has gone.
    async fn handle(&self, request: Request, progress: watch::Sender<Progress>) -> Result<Reply, Failure>;
}

/// A listening socket, whose file is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`; a socket that a dead daemon left there is replaced. Call inside a runtime.
    ///
    /// # Errors
    /// `AddrInUse` if a daemon answers there; else the file system's own.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match StdUnixStream::connect(path) {
            Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(err) => return Err(err),
        }
        Ok(Self { listener: UnixListener::bind(path)?, path: path.to_owned() })
    }

    /// Serves until `stop`; then answers under way have a moment to be written.
    pub async fn serve(self, handler: Arc<dyn Handler>, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let has_room = connections.len() < CONNECTIONS_MAX + TURNED_AWAY_MAX;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept(), if has_room => match accepted {
                    Ok((stream, _)) => {
                        let place = Arc::clone(&places).try_acquire_owned().ok();
                        let handler = place.is_some().then(|| Arc::clone(&handler));
                        connections.spawn(async move {
                            if let Err(err) = converse(stream, handler).await {
                                debug!("control connection: {err}");
                            }
                            drop(place);
                        });
                    }
                    Err(err) => {
                        warn!("control socket: {err}");
                        time::sleep(PROGRESS_INTERVAL).await; // out of file descriptors, most likely
                    }
                },
            }
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        if time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            debug!("control connections were cut off at shutdown");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {err}", self.path.display());
        }
    }
}

/// One connection: read a request, work on it, tell how it goes. Without a handler there is no place for it.
async fn converse(stream: UnixStream, handler: Option<Arc<dyn Handler>>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let own = rustix::process::getuid().as_raw();
    if peer != own && peer != 0 {
        let refusal = Failure::new(FailureKind::Failed, "this mount belongs to another user");
        return say(&mut writer, &Answer::Failed(refusal)).await;
    }
    let request = match time::timeout(REQUEST_TIMEOUT, read_request(&mut reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err(failure)) => return say(&mut writer, &Answer::Failed(failure)).await,
        Err(_) => return Ok(()),
    };
    let Some(handler) = handler else {
        // Said to who has been heard out: one that has nobody to write to takes the daemon for dead.
        let message = format!("the daemon is busy: {CONNECTIONS_MAX} commands are waiting for it");
        let busy = Failure::new(FailureKind::Failed, message).hint("try again when some of them have ended");
        return say(&mut writer, &Answer::Failed(busy)).await;
    };
    let (progress, mut seen) = watch::channel(Progress::default());
    // A task of its own, so that what it does without a pause does not keep us from saying that it goes on.
    let mut work = JoinSet::new();
    work.spawn(async move { handler.handle(request, progress).await });
    let mut ticks = time::interval(PROGRESS_INTERVAL);
    let mut last_said = time::Instant::now();
    let mut rest = [0; 1];
    let answer = loop {
        tokio::select! {
            biased;
            Some(ended) = work.join_next() => break match ended {
                Ok(result) => result.map_or_else(Answer::Failed, Answer::Done),
                Err(err) => Answer::Failed(Failure::new(FailureKind::Failed, format!("the daemon's own error: {err}"))),
            },
            _ = ticks.tick() => {
                let changed = seen.has_changed().unwrap_or(false);
                if changed || last_said.elapsed() >= KEEPALIVE {
                    let now = seen.borrow_and_update().clone();
                    say(&mut writer, &Answer::Progress(now)).await?;
                    last_said = time::Instant::now();
                }
            }
            _ = reader.read(&mut rest) => {
                // The client has gone, or has hung up and listens still: what ends all the same it is told.
                work.abort_all();
                match work.join_next().await {
                    Some(Ok(result)) => break result.map_or_else(Answer::Failed, Answer::Done),
                    Some(Err(_)) | None => return Ok(()),
                }
            }
        }
    };
    say(&mut writer, &answer).await
}

async fn say(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_string(answer)?;
    if text.len() > ANSWER_BYTES_MAX {
        let failure = Failure::new(FailureKind::Failed, "the answer is too long for the control socket");
        text = serde_json::to_string(&Answer::Failed(failure))?;
    }
    if text.len() < LINE_BYTES_MAX {
        return say_line(writer, text).await;
    }
    let mut rest = &*text;
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(rest.floor_char_boundary(PART_BYTES_MAX));
        rest = behind;
        let part = Answer::Part { text: part.to_owned(), last: rest.is_empty() };
        say_line(writer, serde_json::to_string(&part)?).await?;
    }
    Ok(())
}

async fn say_line(writer: &mut OwnedWriteHalf, mut line: String) -> io::Result<()> {
    line.push('\n');
    writer.write_all(line.as_bytes()).await
}

/// Reads and checks the one line of a client.
async fn read_request(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Request, Failure> {
    let refuse = |reason: &str| Failure::new(FailureKind::Failed, format!("{NOT_A_REQUEST}: {reason}"));
    let mut line = Vec::new();
    let bound = LINE_BYTES_MAX as u64;
    reader.take(bound).read_until(b'\n', &mut line).await.map_err(|err| refuse(&err.to_string()))?;
    if line.pop() != Some(b'\n') {
        return Err(refuse("the line is too long, or cut off"));
    }
    let frame: Frame<serde_json::Value> =
        serde_json::from_slice(&line).map_err(|err| refuse(&err.to_string()))?;
    if frame.version != PROTOCOL_VERSION {
        let message = format!(
            "{OTHER_VERSION} {PROTOCOL_VERSION} of the control protocol, this command version {}",
            frame.version
        );
        return Err(
            Failure::new(FailureKind::Failed, message).hint("umount, and mount again with the new dsfs")
        );
    }
    serde_json::from_value(frame.request).map_err(|err| refuse(&err.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client;
    use crate::control::client::CallError;
    use crate::control::client::Client;
    use crate::control::client::HangUp;
    use crate::control::message::DatasetRow;
    use crate::control::message::DiscardOutcome;
    use crate::control::message::Discarding;
    use crate::name::DatasetName;
    use std::io::Read;
    use std::io::Write;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    /// Answers a discard at once, a commit never, and reports whether it was cancelled.
    #[derive(Default)]
    struct Double {
        cancelled: Arc<AtomicBool>,
    }

    struct SetOnDrop(Arc<AtomicBool>);

    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[async_trait]
    impl Handler for Double {
        async fn handle(
            &self,
            request: Request,
            progress: watch::Sender<Progress>,
        ) -> Result<Reply, Failure> {
            match request {
                Request::Discard { dataset, .. } => {
                    Ok(Reply::Discarded(DiscardOutcome { dataset, files: 2, bytes: 3, kept: Vec::new() }))
                }
                Request::Unmount { .. } => {
                    Err(Failure::new(FailureKind::Conflict, "busy").hint("wait").details(["vim"]))
                }
                Request::List => Ok(Reply::Datasets(long_list())),
                Request::Stat => {
                    tokio::task::block_in_place(|| std::thread::sleep(KEEPALIVE + PROGRESS_INTERVAL * 2));
                    Ok(Reply::Unmounted)
                }
                Request::Status { .. }
                | Request::Upgrade
                | Request::Select { .. }
                | Request::Commit(_)
                | Request::History(_)
                | Request::Refresh { .. }
                | Request::Keep(_) => {
                    let _flag = SetOnDrop(Arc::clone(&self.cancelled));
                    progress.send_replace(Progress { files_total: 7, ..Progress::default() });
                    std::future::pending().await
                }
            }
        }
    }

    /// Longer than a line, and longer still when it is written as a text.
    fn long_list() -> Vec<DatasetRow> {
        let row = |number| {
            let name = format!("{number:06}{}", "\"é\\".repeat(60));
            DatasetRow { name: DatasetName::parse(&name).unwrap(), published: true, staged_files: number }
        };
        (0..12_000).map(row).collect()
    }

    struct Running {
        dir: tempfile::TempDir,
        stop: CancellationToken,
        cancelled: Arc<AtomicBool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Running {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let stop = CancellationToken::new();
            let double = Double::default();
            let cancelled = Arc::clone(&double.cancelled);
            let stopped = stop.clone();
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_multi_thread();
                let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    let server = Server::bind(&path).unwrap();
                    ready.send(()).unwrap();
                    server.serve(Arc::new(double), stopped).await;
                });
            });
            is_ready.recv().unwrap();
            Self { dir, stop, cancelled, thread: Some(thread) }
        }

        fn socket(&self) -> PathBuf {
            self.dir.path().join("s")
        }

        /// What the server answers to raw bytes.
        fn answer_to(&self, bytes: &[u8]) -> String {
            let mut stream = StdUnixStream::connect(self.socket()).unwrap();
            // The server may answer and hang up before it has read everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.cancel();
            self.thread.take().unwrap().join().unwrap();
            assert!(!self.socket().exists(), "the socket is removed");
        }
    }

    fn discard() -> Request {
        Request::Discard { dataset: DatasetName::parse("run").unwrap(), what: Discarding::Paths(Vec::new()) }
    }

    #[test]
    fn a_request_is_answered() {
        let server = Running::start();
        let reply = Client::connect(&server.socket()).unwrap().call(&discard(), &mut |_| {}).unwrap();
        assert!(matches!(reply, Reply::Discarded(DiscardOutcome { files: 2, .. })));
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_at_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        Server::bind(&dead).unwrap();
        // Whatever else is in the way of asking is told as it is, and nothing is removed for it.
        let err = Server::bind(&dir.path().join("x".repeat(120))).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput, "{err}");
    }

    #[test]
    fn a_failure_arrives_whole() {
        let server = Running::start();
        let client = Client::connect(&server.socket()).unwrap();
        let failure = client.call(&Request::Unmount { lazy: false }, &mut |_| {}).unwrap_err();
        let expected = Failure::new(FailureKind::Conflict, "busy").hint("wait").details(["vim"]);
        assert_eq!(failure, expected);
    }

    #[test]
    fn work_that_never_pauses_does_not_look_like_a_daemon_that_hangs() {
        let server = Running::start();
        let mut heard = 0;
        let client = Client::connect(&server.socket()).unwrap();
        client.call(&Request::Stat, &mut |_| heard += 1).unwrap();
        assert!(heard > 0);
    }

    #[test]
    fn work_that_cannot_be_dropped_any_more_is_answered_to_who_has_hung_up() {
        let server = Running::start();
        let client = Client::connect(&server.socket()).unwrap();
        let mut hang_up = Some(client.hang_up().unwrap());
        let reply = client.call(&Request::Stat, &mut |_| hang_up.take().into_iter().for_each(HangUp::now));
        assert!(matches!(reply, Ok(Reply::Unmounted)), "{reply:?}");
    }

    #[test]
    fn an_answer_that_is_longer_than_a_line_arrives_whole() {
        let server = Running::start();
        let length = serde_json::to_string(&long_list()).unwrap().len();
        assert!(length > LINE_BYTES_MAX, "{length}");
        let reply = Client::connect(&server.socket()).unwrap().call(&Request::List, &mut |_| {}).unwrap();
        assert!(reply == Reply::Datasets(long_list()));
    }

    #[test]
    fn whoever_comes_when_all_places_are_taken_is_told() {
        let server = Running::start();
        let status =
            format!("{{\"version\":{PROTOCOL_VERSION},\"request\":{{\"status\":{{\"files_of\":null}}}}}}\n");
        let connect = |_| {
            let mut stream = StdUnixStream::connect(server.socket()).unwrap();
            stream.write_all(status.as_bytes()).unwrap();
            stream
        };
        let mut waiting: Vec<StdUnixStream> = (0..CONNECTIONS_MAX).map(connect).collect();
        for stream in &mut waiting {
            let n = stream.read(&mut [0; 256]).unwrap();
            assert!(n > 0, "each of them is served");
        }
        let ask =
            || Client::connect_for(&server.socket(), KEEPALIVE * 3).unwrap().ask(&discard(), &mut |_| {});
        let busy = ask().unwrap_err();
        assert!(matches!(&busy, CallError::Refused(failure) if failure.message.contains("busy")), "{busy:?}");
        drop(waiting);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while ask().is_err() {
            assert!(std::time::Instant::now() < deadline, "their places stay taken");
        }
    }

    #[test]
    fn a_server_that_is_told_to_stop_hears_nobody_any_more() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut client = runtime.block_on(async {
                let server = Server::bind(&path).unwrap();
                let mut client = StdUnixStream::connect(&path).unwrap();
                let request = Frame { version: PROTOCOL_VERSION, request: discard() };
                let request = serde_json::to_string(&request).unwrap() + "\n";
                client.write_all(request.as_bytes()).unwrap();
                // By then the server can know that somebody is there.
                tokio::task::yield_now().await;
                let stop = CancellationToken::new();
                stop.cancel();
                server.serve(Arc::new(Double::default()), stop).await;
                client
            });
            let mut heard = String::new();
            let _ = client.read_to_string(&mut heard);
            assert_eq!(heard, "");
        }
    }

    #[test]
    fn garbage_other_versions_and_endless_lines_are_refused() {
        let server = Running::start();
        let unknown = format!("{{\"version\":{PROTOCOL_VERSION},\"request\":\"explode\"}}\n");
        for garbage in ["\n", "{}\n", "null\n", &unknown, "no end", "\u{0}\n"] {
            let text = server.answer_to(garbage.as_bytes());
            assert!(text.contains("not a request of dsfs"), "{garbage:?}: {text}");
        }
        let text = server.answer_to(b"{\"version\":99,\"request\":{\"new\":1}}\n");
        assert!(text.contains("version 99"), "{text}");
        let endless = vec![b'x'; LINE_BYTES_MAX + 10];
        let text = server.answer_to(&endless);
        assert!(text.is_empty() || text.contains("too long"), "{text}");
        // And it still serves.
        assert!(Client::connect(&server.socket()).unwrap().call(&discard(), &mut |_| {}).is_ok());
    }

    #[tokio::test]
    async fn a_request_that_fails_is_told_apart_from_one_that_is_not_understood() {
        for line in ["{\"version\":99,\"request\":{\"new\":1}}\n", "no request\n", "endless"] {
            let failure = read_request(&mut line.as_bytes()).await.unwrap_err();
            let err = client::failed(failure);
            assert!(matches!(err, CallError::NotUnderstood(_)), "{line}: {err:?}");
        }
        for message in ["a commit of run is under way", "open/base: too many open files"] {
            let err = client::failed(Failure::new(FailureKind::Failed, message));
            assert!(matches!(err, CallError::Refused(_)), "{message}: {err:?}");
        }
    }

    #[test]
    fn progress_is_passed_on_and_a_client_that_leaves_cancels() {
        let server = Running::start();
        let mut stream = StdUnixStream::connect(server.socket()).unwrap();
        let status =
            format!("{{\"version\":{PROTOCOL_VERSION},\"request\":{{\"status\":{{\"files_of\":null}}}}}}\n");
        stream.write_all(status.as_bytes()).unwrap();
        let mut buffer = [0; 256];
        let n = stream.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        assert!(text.contains("\"files_total\":7"), "{text}");
        assert!(!server.cancelled.load(Ordering::SeqCst));
        drop(stream);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !server.cancelled.load(Ordering::SeqCst) {
            assert!(std::time::Instant::now() < deadline, "not cancelled");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let server = Running::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let taken = Server::bind(&server.socket()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let left = server.dir.path().join("left");
        drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
        assert!(left.exists());
        assert!(Server::bind(&left).is_ok());
    }
}
