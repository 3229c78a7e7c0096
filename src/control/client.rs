//! A command's end of the control socket.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::control::ANSWER_BYTES_MAX;
use crate::control::LINE_BYTES_MAX;
use crate::control::PROTOCOL_VERSION;
use crate::control::message::Answer;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Frame;
use crate::control::message::Progress;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::control::peer::Peer;

/// Hearing nothing for this long means that the daemon hangs: it speaks every [`super::KEEPALIVE`].
pub const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a daemon.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` mean that there is none.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The daemon's process.
    ///
    /// # Errors
    /// As [`Peer::of`].
    pub fn peer(&self) -> io::Result<Peer> {
        Peer::of(self.stream.get_ref())
    }

    /// What ends a call from another thread.
    ///
    /// # Errors
    /// There are no file descriptors left.
    pub fn hang_up(&self) -> io::Result<HangUp> {
        self.stream.get_ref().try_clone().map(HangUp)
    }

    /// Asks, passes progress on, and returns the outcome.
    ///
    /// # Errors
    /// What the daemon says; or that it says nothing, or not what was expected.
    pub fn call(self, request: &Request, on_progress: &mut dyn FnMut(&Progress)) -> Result<Reply, Failure> {
        self.call_until_end(request, on_progress)?.ok_or_else(|| lost(io::ErrorKind::UnexpectedEof.into()))
    }

    /// As [`Self::call`]; `None` if the connection ends without an outcome.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_until_end(
        mut self,
        request: &Request,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Reply>, Failure> {
        let mut line = serde_json::to_vec(&Frame { version: PROTOCOL_VERSION, request })
            .map_err(|err| lost(err.into()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(lost)?;
        let mut parts = String::new();
        loop {
            line.clear();
            let mut bounded = (&mut self.stream).take(LINE_BYTES_MAX as u64);
            bounded.read_until(b'\n', &mut line).map_err(lost)?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.pop() != Some(b'\n') {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut answer: Answer = serde_json::from_slice(&line).map_err(|err| lost(err.into()))?;
            if let Answer::Part { text, last } = answer {
                if parts.len() + text.len() > ANSWER_BYTES_MAX {
                    return Err(lost(io::ErrorKind::FileTooLarge.into()));
                }
                parts.push_str(&text);
                if !last {
                    continue;
                }
                answer = serde_json::from_str(&parts).map_err(|err| lost(err.into()))?;
            }
            match answer {
                Answer::Progress(progress) => on_progress(&progress),
                Answer::Done(reply) => return Ok(Some(reply)),
                Answer::Failed(failure) => return Err(failure),
                Answer::Part { .. } => return Err(lost(io::ErrorKind::InvalidData.into())),
            }
        }
    }
}

/// Ends a call: the daemon drops the work, and the call returns when it has.
#[derive(Debug)]
pub struct HangUp(UnixStream);

impl HangUp {
    /// Says that nobody wants an answer any more. What has ended by then is still answered.
    pub fn now(self) {
        let _ = self.0.shutdown(Shutdown::Write); // a connection that is gone already has said it
    }
}

fn lost(err: io::Error) -> Failure {
    let silent = matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    let what = if silent {
        format!("the daemon has not answered for {} seconds", SILENCE_MAX.as_secs())
    } else {
        format!("the connection to the daemon broke: {err}")
    };
    Failure::new(FailureKind::Failed, what).hint("its log says more: `dsfs status` names the file")
}
