//! Log lines: to a terminal, to the journal, or to a file that cannot grow without bound.
//!
//! A daemon in the background has nobody to talk to, so it writes into a file in the state directory:
//! at most [`LOG_BYTES_MAX`] in it and as many in the one before it.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::DefaultFields;
use tracing_subscriber::fmt::format::Format;

use crate::durable;

/// A log file is put aside at this size, in bytes.
pub const LOG_BYTES_MAX: u64 = 8 << 20;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbosity {
    /// `-v` once or more.
    pub verbose: u8,
    /// `--quiet`.
    pub quiet: bool,
}

impl Verbosity {
    /// The filter, in tracing's language, that `DSFS_LOG` can replace. `usual` is the level of dsfs's own
    /// lines if nothing was asked for. `fuser` warns of every operation that we leave to the kernel.
    fn directives(self, usual: &str) -> String {
        match (self.quiet, self.verbose) {
            (true, _) => "error".to_owned(),
            (false, 0) => format!("warn,fuser=error,dsfs={usual}"),
            (false, 1) => "warn,fuser=error,dsfs=debug".to_owned(),
            (false, _) => "info,dsfs=trace".to_owned(),
        }
    }
}

/// Starts logging to stderr. `usual` is the level without `-v`: `warn` for commands, `info` for a daemon.
pub fn log_to_stderr(verbosity: Verbosity, usual: &str, filter: Option<&str>, color: bool) {
    let builder = builder(verbosity, usual, filter).with_ansi(color && io::stderr().is_terminal());
    // A second call, as tests make, changes nothing.
    let _ = builder.with_writer(io::stderr).try_init();
}

/// Starts logging to a file.
///
/// # Errors
/// The file cannot be opened.
pub fn log_to_file(path: &Path, verbosity: Verbosity, filter: Option<&str>) -> io::Result<()> {
    let log = BoundedLog::open(path, LOG_BYTES_MAX)?;
    let _ = builder(verbosity, "info", filter).with_ansi(false).with_writer(log).try_init();
    Ok(())
}

/// What all logs have in common. A line that cannot be written, to a pipe that nobody reads any more or
/// to a full disk, is lost, and nothing else: tracing would say so on stderr, and panic where that cannot
/// be written either.
fn builder(
    verbosity: Verbosity,
    usual: &str,
    filter: Option<&str>,
) -> SubscriberBuilder<DefaultFields, Format, EnvFilter> {
    let filter = EnvFilter::new(filter.map_or_else(|| verbosity.directives(usual), str::to_owned));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).log_internal_errors(false)
}

/// A file that is put aside as `NAME.1` when it has grown to its limit.
struct BoundedLog {
    path: PathBuf,
    limit_bytes: u64,
    current: Mutex<Current>,
}

struct Current {
    file: File,
    bytes: u64,
}

impl BoundedLog {
    fn open(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), limit_bytes, current: Mutex::new(Current::open(path)?) })
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut current = self.current.lock();
        if current.bytes + line.len() as u64 > self.limit_bytes {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            durable::rename(&self.path, Path::new(&aside))?;
            *current = Current::open(&self.path)?;
        }
        current.file.write_all(line)?;
        current.bytes += line.len() as u64;
        Ok(())
    }
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

/// One line on its way into the log.
struct Line<'a>(&'a BoundedLog);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BoundedLog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_log_file_does_not_grow_beyond_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = BoundedLog::open(&path, 100).unwrap();
        for n in 0..30 {
            log.write(format!("line number {n:02}\n").as_bytes()).unwrap();
        }
        let now = fs::read_to_string(&path).unwrap();
        let before = fs::read_to_string(dir.path().join("log.1")).unwrap();
        assert!(now.len() <= 100 && before.len() <= 100);
        assert!(now.ends_with("line number 29\n"));
        assert!(BoundedLog::open(&path, 100).unwrap().current.lock().bytes > 0, "goes on where it was");
    }

    #[test]
    fn verbosity_becomes_a_filter() {
        let directives = |verbose, quiet| Verbosity { verbose, quiet }.directives("info");
        assert_eq!(directives(0, false), "warn,fuser=error,dsfs=info");
        assert_eq!(directives(1, false), "warn,fuser=error,dsfs=debug");
        assert_eq!(directives(9, false), "info,dsfs=trace");
        assert_eq!(directives(2, true), "error");
    }
}
