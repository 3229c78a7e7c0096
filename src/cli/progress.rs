//! Progress of long work: a bar on a terminal, now and then a line elsewhere, nothing with `--quiet`.

use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;
use tokio::sync::watch;

use crate::cli::output::Output;
use crate::config::units;
use crate::control::message::Progress;

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// A rate is told when something has been going on for so long.
const RATE_AFTER: Duration = Duration::from_secs(1);
/// Redraws of the bar per second.
const REDRAWS_PER_SECOND: u8 = 10;

/// Shows how far something has come.
#[derive(Debug)]
pub struct Reporter {
    how: How,
}

#[derive(Debug)]
enum How {
    Silent,
    Bar(ProgressBar),
    Lines { phase: String, began: Instant, said: Option<Instant> },
}

impl Reporter {
    /// In the manner that fits `output`.
    #[must_use]
    pub fn new(output: &Output) -> Self {
        let how = if output.is_quiet() {
            How::Silent
        } else if output.is_interactive() {
            How::Bar(bar(output.color()))
        } else {
            How::Lines { phase: String::new(), began: Instant::now(), said: None }
        };
        Self { how }
    }

    /// Shows a new state.
    pub fn update(&mut self, progress: &Progress) {
        if progress.phase.is_empty() || progress.files_total + progress.bytes_total == 0 {
            return;
        }
        match &mut self.how {
            How::Silent => {}
            How::Bar(bar) => {
                if bar.prefix() != progress.phase {
                    bar.reset(); // rate and remaining time are the new phase's own
                }
                bar.set_length(progress.bytes_total);
                bar.set_position(progress.bytes_done);
                bar.set_prefix(progress.phase.clone());
                bar.set_message(files(progress));
            }
            How::Lines { phase, began, said } => {
                if *phase != progress.phase {
                    (*phase, *began, *said) = (progress.phase.clone(), Instant::now(), None);
                }
                if said.is_none_or(|said| said.elapsed() >= LINE_INTERVAL) {
                    *said = Some(Instant::now());
                    let mut output = Output::new(false, false);
                    output.note(line(progress, began.elapsed()));
                }
            }
        }
    }

    /// Shows how `work` goes on until it is done.
    pub async fn follow<T>(
        &mut self,
        mut seen: watch::Receiver<Progress>,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                Ok(()) = seen.changed() => {
                    let now = seen.borrow_and_update().clone();
                    self.update(&now);
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
        }
    }
}

fn bar(color: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND));
    let paint = if color { ".cyan" } else { "" };
    let template =
        format!("{{prefix}} [{{bar:30{paint}}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{msg}} {{eta}}");
    let style = ProgressStyle::with_template(&template).expect("a constant that is a valid template");
    bar.set_style(style.progress_chars("=> "));
    bar
}

fn files(progress: &Progress) -> String {
    format!("{}/{} files", progress.files_done, progress.files_total)
}

fn line(progress: &Progress, elapsed: Duration) -> String {
    let Progress { phase, bytes_done, bytes_total, .. } = progress;
    let (bytes, total) = (units::show_size(*bytes_done), units::show_size(*bytes_total));
    let line = format!("{phase}: {}, {bytes} of {total}", files(progress));
    let rate = *bytes_done as f64 / elapsed.as_secs_f64();
    if elapsed < RATE_AFTER || rate < 1.0 {
        return line;
    }
    let left = Duration::from_secs((bytes_total.saturating_sub(*bytes_done) as f64 / rate).ceil() as u64);
    format!("{line}, {}/s, {} left", units::show_size(rate as u64), units::show_duration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_bar_shows() {
        let progress = Progress {
            phase: "upload".into(),
            files_done: 1,
            files_total: 3,
            bytes_done: 512,
            bytes_total: 2048,
        };
        assert_eq!(line(&progress, Duration::ZERO), "upload: 1/3 files, 512 B of 2 KiB");
        let later = line(&progress, Duration::from_secs(2));
        assert_eq!(later, "upload: 1/3 files, 512 B of 2 KiB, 256 B/s, 6s left");
    }
}
