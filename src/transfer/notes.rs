//! What a transfer notes down as it goes, so that the next run of the same one knows what is its own.
//!
//! ```text
//! <dir>/download-<hash>          one line a file that is complete: JSON, {path, etag, size_bytes, mtime, boot}
//! <dir>/upload-<hash>            its id, each multipart upload, and each part that has arrived: JSON
//! ```
//!
//! The hash is of everything that makes it the same transfer: the store, the keys, the directory. A
//! transfer that has ended well, or with nothing that the next run could go on with, leaves no note. A note
//! that is lost costs only that the files which were finished are in the way of the next run, and are named.
//!
//! Files are not synced one by one. Those that were finished in another run of the machine (`boot`) are
//! fetched anew: after a power loss they may have their name, size and time, and not their bytes.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::durable;
use crate::name::ETag;
use crate::name::RelPath;
use crate::record::format_mtime;
use crate::store::PartReceipt;
use crate::store::UploadId;

/// Bytes of a hash in a name, before they are written in hexadecimal.
const HASH_BYTES: usize = 12;

/// Where notes are, and which store they are about.
#[derive(Clone, Debug)]
pub struct Notes {
    /// The directory of all of them.
    pub dir: PathBuf,
    /// Names the store: keys mean nothing without it.
    pub store_identity: String,
}

impl Notes {
    fn name(&self, kind: &str, parts: &[&str]) -> PathBuf {
        let mut hasher = Sha256::new();
        for part in [self.store_identity.as_str()].iter().chain(parts) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        self.dir.join(format!("{kind}-{}", HEXLOWER.encode(&hasher.finalize()[..HASH_BYTES])))
    }

    /// The notes of an upload, those of an interrupted run among them; a new one gets `txid`.
    pub(super) fn upload(&self, what: &str, source: &Path, txid: &str) -> io::Result<(UploadLog, Begun)> {
        let (path, text, file) = self.open(self.name("upload", &[what, &source.to_string_lossy()]))?;
        let mut begun = Begun { txid: txid.to_owned(), uploads: BTreeMap::new() };
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let known: Vec<UploadLine> = lines.collect();
        let is_new = !matches!(known.first(), Some(UploadLine::Txid(_)));
        for line in known {
            match line {
                UploadLine::Txid(txid) => begun.txid = txid,
                UploadLine::Begun(upload) => {
                    begun.uploads.insert(upload.path.clone(), (upload, Vec::new()));
                }
                UploadLine::Part { path, part } => {
                    if let Some((_, parts)) = begun.uploads.get_mut(&path) {
                        parts.push(part);
                    }
                }
            }
        }
        let log = UploadLog { path, file: Mutex::new(file) };
        if is_new {
            log.add(&UploadLine::Txid(begun.txid.clone()))?;
        }
        Ok((log, begun))
    }

    /// Opens a file of notes for appending, behind what it says already.
    fn open(&self, path: PathBuf) -> io::Result<(PathBuf, String, File)> {
        durable::create_private_dirs(&self.dir)?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            Err(err) => return Err(err),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?; // a torn line is no line
        }
        Ok((path, text, file))
    }

    /// The notes of a download, those of an interrupted run among them.
    pub(super) fn download(&self, what: &str, target: &Path) -> io::Result<DownloadNotes> {
        let (path, text, file) = self.open(self.name("download", &[what, &target.to_string_lossy()]))?;
        // A torn line at the end is one file that is not known to be complete.
        let done = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let done = done.map(|line: Done| (line.path.clone(), line)).collect();
        Ok(DownloadNotes { path, file, done, boot: durable::boot_id() })
    }
}

/// What an interrupted upload has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub txid: String,
    /// The newest upload of each file, and its parts.
    pub uploads: BTreeMap<RelPath, (BegunUpload, Vec<PartReceipt>)>,
}

/// A multipart upload of one file as it was then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BegunUpload {
    pub path: RelPath,
    pub id: UploadId,
    pub part_bytes: u64,
    pub size_bytes: u64,
    pub mtime: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum UploadLine {
    Txid(String),
    Begun(BegunUpload),
    Part { path: RelPath, part: PartReceipt },
}

/// The notes of one upload.
#[derive(Debug)]
pub(super) struct UploadLog {
    path: PathBuf,
    file: Mutex<File>,
}

impl UploadLog {
    pub fn add(&self, line: &UploadLine) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.lock().write_all(&text)
    }

    /// The transfer has ended: nobody will ask.
    pub fn forget(self) {
        if let Err(err) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {err}", self.path.display());
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    path: PathBuf,
    etag: ETag,
    size_bytes: u64,
    mtime: String,
    boot: Option<String>,
}

/// The notes of one download.
#[derive(Debug)]
pub(super) struct DownloadNotes {
    path: PathBuf,
    file: File,
    done: HashMap<PathBuf, Done>,
    /// This run of the machine.
    boot: Option<String>,
}

impl DownloadNotes {
    /// Whether no earlier run has finished anything.
    pub fn is_new(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether an earlier run has put this very file there, all of it, and nobody has touched it since.
    pub fn has(&self, path: &Path, etag: Option<&ETag>) -> bool {
        let is_this_boot = |done: &Done| done.boot.is_some() && done.boot == self.boot;
        self.done.get(path).is_some_and(is_this_boot) && self.wrote(path, etag)
    }

    /// Whether an earlier run has put this very file there, and nobody has touched it since; not all of its
    /// bytes may be there if the machine was started anew.
    pub fn wrote(&self, path: &Path, etag: Option<&ETag>) -> bool {
        let Some(done) = self.done.get(path) else { return false };
        let Ok(meta) = fs::symlink_metadata(path) else { return false };
        let same_time = meta.modified().is_ok_and(|time| format_mtime(time) == done.mtime);
        Some(&done.etag) == etag && meta.len() == done.size_bytes && same_time
    }

    /// A file is complete. A note that cannot be written is missed only after a kill.
    pub fn add(&mut self, path: &Path, etag: &ETag, size_bytes: u64, modified: SystemTime) {
        let done = Done {
            path: path.to_owned(),
            etag: etag.clone(),
            size_bytes,
            mtime: format_mtime(modified),
            boot: self.boot.clone(),
        };
        let mut line = serde_json::to_vec(&done).unwrap_or_default();
        line.push(b'\n');
        if let Err(err) = self.file.write_all(&line) {
            tracing::debug!("{}: {err}", self.path.display());
        }
    }

    /// The transfer has ended: nobody will ask.
    pub fn forget(self) {
        if let Err(err) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {err}", self.path.display());
        }
    }
}
