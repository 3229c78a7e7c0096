//! What commands say: data on stdout, everything else on stderr.
//!
//! Names, keys and messages come from a bucket to which others write, and a terminal obeys what may be in
//! them. Everything on stderr is escaped here; data for people by [`printable`], where it is put into words;
//! lists of names by [`Output::name`], since programs need them as they are.
//!
//! A reader that has seen enough (`dsfs list | head -1`) closes the pipe; that is not an error. Anything
//! else that goes wrong with stdout is, and is told at the end.

use std::fmt::Write as _;
use std::io;
use std::io::BufWriter;
use std::io::IsTerminal;
use std::io::Stdout;
use std::io::Write;

use serde::Serialize;

use crate::control::message::Failure;
use crate::control::message::FailureKind;

/// Where commands write.
#[derive(Debug)]
pub struct Output {
    stdout: BufWriter<Stdout>,
    error: Option<io::Error>,
    quiet: bool,
    color: bool,
}

impl Output {
    /// `quiet` leaves out what is neither data nor an error; `color` is what the user allows.
    #[must_use]
    pub fn new(quiet: bool, color: bool) -> Self {
        let color = color && io::stderr().is_terminal();
        Self { stdout: BufWriter::new(io::stdout()), error: None, quiet, color }
    }

    /// Whether there is a person at the other end of stderr.
    #[must_use]
    pub fn is_interactive(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Whether notes are wanted at all.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether stderr may be coloured.
    #[must_use]
    pub fn color(&self) -> bool {
        self.color
    }

    /// Bytes of data, as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.error.is_none()
            && let Err(err) = self.stdout.write_all(bytes)
        {
            self.error = Some(err);
        }
    }

    /// Whether data goes to a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// A line of data that is a name and nothing else: as it is for programs, without anything that a terminal
    /// would obey for people.
    pub fn name(&mut self, name: &str) {
        if self.is_terminal() { self.line(printable(name)) } else { self.line(name) }
    }

    /// Whether nobody takes data any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.error.is_some()
    }

    /// Shows at once what was written.
    pub fn flush(&mut self) {
        if self.error.is_none()
            && let Err(err) = self.stdout.flush()
        {
            self.error = Some(err);
        }
    }

    /// A line of data.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.bytes(line.as_ref().as_bytes());
        self.bytes(b"\n");
    }

    /// Data for programs: one JSON document.
    pub fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(err) => self.error = Some(err.into()),
        }
    }

    /// Rows of data, in columns.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        for line in columns(rows) {
            self.line(line);
        }
    }

    /// A note for the person at the terminal.
    pub fn note(&mut self, note: impl AsRef<str>) {
        if !self.quiet {
            self.flush();
            say(&format!("{}\n", printable_lines(note.as_ref())));
        }
    }

    /// A warning.
    pub fn warn(&mut self, warning: impl AsRef<str>) {
        self.flush();
        let warning = printable_lines(warning.as_ref());
        say(&format!("dsfs: {}: {warning}\n", self.paint("33", "warning")));
    }

    /// A failure, with what it is about and what to do.
    pub fn failure(&mut self, failure: &Failure) {
        self.flush();
        say(&self.described(failure));
    }

    fn described(&self, failure: &Failure) -> String {
        let mut text = format!("{} {}\n", self.paint("1;31", "dsfs:"), printable_lines(&failure.message));
        for detail in &failure.details {
            let _ = writeln!(text, "  {}", printable(detail));
        }
        if let Some(hint) = &failure.hint {
            let _ = writeln!(text, "{} {}", self.paint("1;36", "hint:"), printable_lines(hint));
        }
        text
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// Stdout's, unless its reader just had enough.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        // What could not be written must not be tried again when the buffer is dropped.
        let _ = self.stdout.into_parts();
        match self.error {
            Some(err) if err.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(FailureKind::Failed, format!("cannot write the output: {err}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// There is nobody left to tell if this fails.
fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// `1 file`, `2 files`.
#[must_use]
pub fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// A text from outside (a message, a path), without anything that a terminal would obey.
#[must_use]
pub fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// As [`printable`], of a text whose line breaks are ours.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Pads each column but the last to its widest cell.
fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|n| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_obeyed_by_a_terminal() {
        assert_eq!(printable("it's \"fine\", é"), "it's \"fine\", é");
        assert_eq!(printable("a\u{1b}[2J\nb\u{9b}"), "a\\u{1b}[2J\\nb\\u{9b}");
    }

    #[test]
    fn nor_is_anything_in_a_failure() {
        let failure = Failure::new(FailureKind::Conflict, "a\u{1b}]52;c;eA==\u{7}: in the way\nof two")
            .details(["p/\u{1b}[2J\nhint: none"])
            .hint("rename \u{9b}2J");
        let text = Output::new(false, false).described(&failure);
        let lines = [
            r"dsfs: a\u{1b}]52;c;eA==\u{7}: in the way",
            "of two",
            r"  p/\u{1b}[2J\nhint: none",
            r"hint: rename \u{9b}2J",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let lines = columns(&[row(&["a", "bb", "c"]), row(&["éééé", "b"]), row(&[])]);
        assert_eq!(lines, ["a     bb  c", "éééé  b", ""]);
    }
}
