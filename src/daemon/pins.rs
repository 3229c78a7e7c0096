//! The file of the pins: what is to be kept local, whatever else is read.
//!
//! `pins.json` in the remote's state directory, replaced as a whole:
//! `{"version": 1, "pins": [{"dataset": "run_07", "path": "frames", "since": "2026-11-21T22:02:51Z"}]}`,
//! without `path` for a whole dataset.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::control::keep::Part;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::failure;
use crate::durable;

/// The file, in the remote's state directory.
pub const PINS_FILE: &str = "pins.json";
/// Of that file; a newer one is not touched.
const VERSION: u32 = 1;

/// One thing that is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What.
    #[serde(flatten)]
    pub part: Part,
    /// Since when, as RFC 3339.
    pub since: String,
}

/// All pins of a remote.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pins {
    version: u32,
    /// The pins.
    pub pins: Vec<Pin>,
}

impl Pins {
    /// Reads the file; none is no pins.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is of a newer version.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let damaged = |err: &dyn fmt::Display| {
            Failure::new(FailureKind::Failed, format!("cannot read {}: {err}", path.display()))
                .hint("remove that file to begin without pins")
        };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => return Err(damaged(&err)),
        };
        let pins: Self = serde_json::from_slice(&text).map_err(|err| damaged(&err))?;
        match pins.version {
            VERSION => Ok(pins),
            other => Err(damaged(&format!("it is of version {other}, from a newer dsfs"))),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let written = serde_json::to_vec_pretty(&Self { version: VERSION, pins: self.pins.clone() })
            .map_err(io::Error::from)
            .and_then(|text| durable::replace(path, &text));
        written.map_err(|err| failure::of_directory("file of the pins", path, &err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::DatasetName;
    use crate::name::RelPath;

    #[test]
    fn pins_are_what_was_written_and_a_newer_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PINS_FILE);
        assert!(Pins::read(&path).unwrap().pins.is_empty());
        let part = |path: Option<&str>| Part {
            dataset: DatasetName::parse("run_07").unwrap(),
            path: path.map(|path| RelPath::parse(path).unwrap()),
        };
        let pins: Vec<Pin> =
            [None, Some("frames")].map(|path| Pin { part: part(path), since: "then".into() }).into();
        Pins { pins: pins.clone(), ..Pins::default() }.write(&path).unwrap();
        assert_eq!(Pins::read(&path).unwrap().pins, pins);
        fs::write(&path, r#"{"version": 2, "pins": []}"#).unwrap();
        assert!(Pins::read(&path).unwrap_err().message.contains("newer"));
        fs::write(&path, "{").unwrap();
        assert!(Pins::read(&path).unwrap_err().hint.unwrap().contains("remove"));
    }
}
