//! How far a transfer has come: a bar on a terminal, `Uploading: 5/10 bytes (50%)` elsewhere, five times
//! a second, each over the last one, and a new line at the end.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cli::output::Output;
use crate::cli::progress::Reporter;
use crate::commit;
use crate::control::message::Progress;
use crate::transfer::Watch;

/// How often it is told.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is counted.
#[derive(Debug)]
struct Counts {
    what: &'static str,
    files_total: AtomicU64,
    bytes_total: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn line(&self) -> String {
        let (total, bytes) = (self.bytes_total.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        // What is sent again after a failure is not more than there is.
        let bytes = bytes.min(total);
        let percent = if total == 0 { 100 } else { u128::from(bytes) * 100 / u128::from(total) };
        format!("{}: {bytes}/{total} bytes ({percent}%)", self.what)
    }

    fn progress(&self) -> Progress {
        Progress {
            phase: self.what.to_owned(),
            files_done: self.files.load(Ordering::Relaxed),
            files_total: self.files_total.load(Ordering::Relaxed),
            bytes_done: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
        }
    }
}

impl Watch for Counts {
    fn total(&self, files: u64, bytes: u64) {
        self.files_total.store(files, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }

    fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn file_done(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }
}

/// A commit is watched through the same counts: what it sends is what counts.
impl commit::Progress for Counts {
    fn sent(&self, bytes: u64) {
        self.moved(bytes);
    }
}

/// Tells how far a transfer has come, until it is finished.
#[derive(Debug)]
pub struct Meter {
    counts: Arc<Counts>,
    teller: Option<(mpsc::Sender<bool>, JoinHandle<()>)>,
}

impl Meter {
    /// Counts, and tells if it is `wanted` and nobody has asked for quiet; `what` is what is done.
    #[must_use]
    pub fn new(what: &'static str, wanted: bool, output: &Output) -> Self {
        let counts = Arc::new(Counts {
            what,
            files_total: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let teller = (wanted && !output.is_quiet()).then(|| {
            let (end, ended) = mpsc::channel();
            let bar = output.is_interactive().then(|| Reporter::new(output));
            let shown = Arc::clone(&counts);
            (end, std::thread::spawn(move || tell(&shown, &ended, bar)))
        });
        Self { counts, teller }
    }

    /// For a transfer.
    #[must_use]
    pub fn watch(&self) -> Arc<dyn Watch> {
        Arc::clone(&self.counts) as Arc<dyn Watch>
    }

    /// For a commit.
    #[must_use]
    pub fn progress(&self) -> Arc<dyn commit::Progress> {
        Arc::clone(&self.counts) as Arc<dyn commit::Progress>
    }

    /// The last word: all of it, if it was `done`.
    pub fn finish(mut self, done: bool) {
        if done {
            self.counts.bytes.store(self.counts.bytes_total.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.end(done);
    }

    fn end(&mut self, done: bool) {
        if let Some((end, teller)) = self.teller.take() {
            let _ = end.send(done);
            let _ = teller.join(); // it cannot fail, and nothing would depend on it
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end(false);
    }
}

fn tell(counts: &Counts, ended: &mpsc::Receiver<bool>, mut bar: Option<Reporter>) {
    let mut said = false;
    loop {
        let done = match ended.recv_timeout(INTERVAL) {
            Ok(done) => Some(done),
            Err(RecvTimeoutError::Disconnected) => Some(false),
            Err(RecvTimeoutError::Timeout) => None,
        };
        if let Some(bar) = &mut bar {
            bar.update(&counts.progress());
        }
        // Before anything is known there is nothing to say; a transfer of nothing has an end, too.
        let known = counts.files_total.load(Ordering::Relaxed) > 0 || done == Some(true);
        if known && (bar.is_none() || done == Some(true)) {
            if let Some(bar) = &mut bar {
                bar.finish();
            }
            let _ = io::stderr().lock().write_all(format!("\r{}", counts.line()).as_bytes());
            said = true;
        }
        if done.is_some() {
            if let Some(mut bar) = bar {
                bar.finish();
            }
            if said {
                let _ = io::stderr().lock().write_all(b"\n");
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_one_that_scripts_know() {
        let meter = Meter::new("Uploading", false, &Output::new(true, false));
        assert_eq!(meter.counts.line(), "Uploading: 0/0 bytes (100%)");
        meter.watch().total(2, 200);
        meter.watch().moved(51);
        assert_eq!(meter.counts.line(), "Uploading: 51/200 bytes (25%)");
        meter.progress().sent(1000);
        assert_eq!(meter.counts.line(), "Uploading: 200/200 bytes (100%)");
    }
}
