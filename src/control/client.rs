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
use crate::control::peer::Peer;

/// Hearing nothing for this long means that the daemon hangs: it speaks every [`super::KEEPALIVE`].
pub const SILENCE_MAX: Duration = Duration::from_secs(20);

/// The same for who only looks how a daemon is.
pub const LOOK_PATIENCE: Duration = KEEPALIVE.saturating_mul(3);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    patience: Duration,
}

/// Why a call has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon says why.
    #[error(transparent)]
    Refused(Failure),
    /// The daemon says that it does not understand the request: it is of another version.
    #[error(transparent)]
    NotUnderstood(Failure),
    /// The daemon says nothing: it hangs, or is stopped.
    #[error("the daemon has not answered for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// The connection has ended before an outcome came. The daemon has ended, most likely.
    #[error("the connection to the daemon broke: {0}")]
    Lost(#[source] io::Error),
    /// What the daemon says is nothing of this protocol.
    #[error("the daemon is not understood: {0}")]
    Garbled(#[source] io::Error),
}

impl From<CallError> for Failure {
    fn from(err: CallError) -> Self {
        let message = err.to_string();
        match err {
            CallError::Refused(failure) | CallError::NotUnderstood(failure) => failure,
            CallError::Silent(_) | CallError::Lost(_) | CallError::Garbled(_) => {
                Failure::new(FailureKind::Failed, message)
                    .hint("its log says more: `dsfs status` names the file")
            }
        }
    }
}

impl Client {
    /// Connects to a daemon.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` mean that there is none.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::connect_for(socket, SILENCE_MAX)
    }

    /// As [`Self::connect`], to hang up when nothing has been heard for `patience`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_for(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream), patience })
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
        Ok(self.ask(request, on_progress)?)
    }

    /// As [`Self::call`], for who goes on in another way if the daemon cannot be asked.
    ///
    /// # Errors
    /// As [`Self::call`], told apart.
    pub fn ask(self, request: &Request, on_progress: &mut dyn FnMut(&Progress)) -> Result<Reply, CallError> {
        self.converse(request, on_progress)?
            .ok_or_else(|| CallError::Lost(io::ErrorKind::UnexpectedEof.into()))
    }

    /// As [`Self::call`]; `None` if the connection ends without an outcome.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_until_end(
        self,
        request: &Request,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Reply>, Failure> {
        Ok(self.converse(request, on_progress)?)
    }

    fn converse(
        mut self,
        request: &Request,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Reply>, CallError> {
        let patience = self.patience;
        let lost = |err: io::Error| {
            if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                CallError::Silent(patience)
            } else {
                CallError::Lost(err)
            }
        };
        let garbled = |err: serde_json::Error| CallError::Garbled(err.into());
        let mut line = serde_json::to_vec(&Frame { version: PROTOCOL_VERSION, request }).map_err(garbled)?;
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
            let mut answer: Answer = serde_json::from_slice(&line).map_err(garbled)?;
            if let Answer::Part { text, last } = answer {
                if parts.len() + text.len() > ANSWER_BYTES_MAX {
                    return Err(CallError::Garbled(io::ErrorKind::FileTooLarge.into()));
                }
                parts.push_str(&text);
                if !last {
                    continue;
                }
                answer = serde_json::from_str(&parts).map_err(garbled)?;
            }
            match answer {
                Answer::Progress(progress) => on_progress(&progress),
                Answer::Done(reply) => return Ok(Some(reply)),
                Answer::Failed(failure) => return Err(failed(failure)),
                Answer::Part { .. } => return Err(CallError::Garbled(io::ErrorKind::InvalidData.into())),
            }
        }
    }
}

/// Sorts what a daemon says of a request that it has not carried out.
pub(super) fn failed(failure: Failure) -> CallError {
    let is_understood = ![OTHER_VERSION, NOT_A_REQUEST].iter().any(|say| failure.message.starts_with(say));
    if is_understood { CallError::Refused(failure) } else { CallError::NotUnderstood(failure) }
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
