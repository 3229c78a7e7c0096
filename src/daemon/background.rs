//! Going into the background, and telling the command that started it how that went.
//!
//! There is no fork: threads do not survive one. The command starts itself once more, with
//! [`BACKGROUND_FLAG`]; the new process makes a session of its own and mounts. Its stdout is a pipe on
//! which it says, in lines of JSON, what the user should know, and last either that the mount answers or
//! why there is none. If the pipe closes without either, the daemon has died, and its log says why.

use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use serde::Deserialize;
use serde::Serialize;

use crate::control::message::Failure;
use crate::control::message::FailureKind;

/// Tells the new process what it is. Not for users.
pub const BACKGROUND_FLAG: &str = "--in-background";
/// Bytes of a dead daemon's log that are shown.
const LOG_TAIL_BYTES: u64 = 2000;

/// What the daemon says on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// Something to know.
    Notice(String),
    /// The mount answers.
    Ready(Ready),
    /// There is no mount.
    Failed(Failure),
}

/// A mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// The daemon.
    pub pid: u32,
    /// The remote, for people.
    pub remote: String,
}

/// The daemon's side: to whom it reports.
#[derive(Debug)]
pub enum Reporter {
    /// To the command that waits at the other end of stdout.
    Pipe,
    /// To nobody: what is to be known is logged anyway.
    Log,
}

impl Reporter {
    /// Something to know.
    pub fn notice(&self, notice: &str) {
        tracing::info!("{notice}");
        self.say(&Line::Notice(notice.to_owned()));
    }

    /// The mount answers: the command returns, and the pipe is given up.
    ///
    /// # Errors
    /// /dev/null cannot be opened.
    pub fn ready(&self, ready: Ready) -> io::Result<()> {
        self.say(&Line::Ready(ready));
        match self {
            Self::Log => Ok(()),
            Self::Pipe => {
                let null = OpenOptions::new().write(true).open("/dev/null")?;
                Ok(rustix::stdio::dup2_stdout(&null)?)
            }
        }
    }

    /// There is no mount.
    pub fn failed(&self, failure: &Failure) {
        self.say(&Line::Failed(failure.clone()));
    }

    /// If nobody listens any more, the mount is still wanted.
    fn say(&self, line: &Line) {
        match self {
            Self::Log => {}
            Self::Pipe => {
                let mut text = serde_json::to_vec(line).unwrap_or_default();
                text.push(b'\n');
                let mut stdout = io::stdout().lock();
                let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
            }
        }
    }
}

/// Makes this process, which [`start`] has started, independent of the terminal; it leads a session of its
/// own already, unless it is `new`.
///
/// # Errors
/// That of setsid(2).
pub fn detach_from_terminal(new: bool) -> io::Result<()> {
    if new {
        rustix::process::setsid()?;
    }
    rustix::process::chdir("/")?;
    Ok(())
}

/// Starts this program once more, as a daemon, and waits until its mount answers.
///
/// # Errors
/// Why there is no mount.
pub fn start(arguments: &[OsString], log: &Path, on_notice: &mut dyn FnMut(&str)) -> Result<Ready, Failure> {
    let failed = |what: &str, err: &io::Error| Failure::new(FailureKind::Failed, format!("{what}: {err}"));
    let exe = std::env::current_exe().map_err(|err| failed("this program's file is not known", &err))?;
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(log);
    let stderr =
        open().map_err(|err| failed(&format!("the log {} cannot be opened", log.display()), &err))?;
    let said_before = stderr.metadata().map_or(0, |meta| meta.len());
    let mut child = Command::new(exe)
        .args(arguments)
        .arg(BACKGROUND_FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|err| failed("the daemon cannot be started", &err))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    match listen(BufReader::new(stdout), on_notice) {
        Some(Ok(ready)) => Ok(ready),
        Some(Err(failure)) => {
            let _ = child.wait(); // it says why as the last thing that it does
            Err(failure)
        }
        None => Err(died(child, log, said_before)),
    }
}

/// Reads what the daemon says until the last of it; `None` if it ends without an outcome.
fn listen(pipe: impl BufRead, on_notice: &mut dyn FnMut(&str)) -> Option<Result<Ready, Failure>> {
    for line in pipe.lines() {
        match serde_json::from_str(&line.ok()?).ok()? {
            Line::Notice(notice) => on_notice(&notice),
            Line::Ready(ready) => return Some(Ok(ready)),
            Line::Failed(failure) => return Some(Err(failure)),
        }
    }
    None
}

fn died(mut child: Child, log: &Path, said_before: u64) -> Failure {
    let how = child.wait().map_or_else(|err| err.to_string(), |status| status.to_string());
    let failure =
        Failure::new(FailureKind::Failed, format!("the daemon ended before the mount was there ({how})"));
    let tail = tail(log, said_before).unwrap_or_default();
    failure.details(tail.lines()).hint(format!("its log: {}", log.display()))
}

/// What was written to the log since it had `from` bytes, or the end of that.
fn tail(log: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.min(len).max(len.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(lines: &[Line], extra: &str) -> (Option<Result<Ready, Failure>>, Vec<String>) {
        let mut text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        text.push_str(extra);
        let mut notices = Vec::new();
        let outcome = listen(text.as_bytes(), &mut |notice| notices.push(notice.to_owned()));
        (outcome, notices)
    }

    #[test]
    fn the_outcome_is_the_last_thing_said() {
        let ready = Ready { mountpoint: "/m".into(), pid: 7, remote: "s3://b/".into() };
        let (outcome, notices) = hear(&[Line::Notice("made /m".into()), Line::Ready(ready.clone())], "");
        assert_eq!((outcome, notices), (Some(Ok(ready)), vec!["made /m".to_owned()]));
        let failure = Failure::new(FailureKind::Remote, "no").hint("yes");
        assert_eq!(hear(&[Line::Failed(failure.clone())], "").0, Some(Err(failure)));
    }

    #[test]
    fn a_daemon_that_dies_or_raves_has_no_outcome() {
        assert_eq!(hear(&[Line::Notice("made /m".into())], "").0, None);
        assert_eq!(hear(&[], "thread panicked\n").0, None);
    }

    #[test]
    fn only_what_is_new_in_the_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old\nnew\n").unwrap();
        assert_eq!(tail(&log, 4).unwrap(), "new\n");
        std::fs::write(&log, "x".repeat(5000)).unwrap();
        assert_eq!(tail(&log, 0).unwrap().len(), 2000);
    }
}
