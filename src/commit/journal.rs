//! The commit journal: how far this machine has come with one commit.
//!
//! Beside the frozen tree, append-only, one record per note:
//!
//! ```text
//! record = length of payload u32 | CRC-32C of payload u32 | payload      (little endian)
//! payload = JSON, {"note": …, …}; the first one is {"note": "begun", "format": 1, …}
//! ```
//!
//! # Promises
//!
//! 1. When [`Pending::sync`] returns, a *decisive* note survives power loss (the file and its
//!    directory entry). The others (hashes, parts) cost only work when they are lost, and survive the
//!    death of the process from the moment that [`Journal::append`] returns: none of them waits for the
//!    disk, nor for another one that does.
//! 2. `intent`, `publishing` and `aborting` come before what they announce; `upload`, `part` and
//!    `committed` follow it, since there the bucket is the truth.
//! 3. Replay accepts a torn end, which is cut off, and refuses any other damage.
//!
//! # What this module does not know
//!
//! Object stores. It works with the bucket unplugged.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::durable;
use crate::failpoint;
use crate::name::ETag;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::store::PartReceipt;
use crate::store::UploadId;

const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 8;

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The local disk's answer.
    #[error("the commit journal {path}: {source}")]
    Io {
        /// The journal.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Damage that no crash of ours explains.
    #[error("the commit journal {path} is damaged at byte {offset}: the commit can be aborted, not resumed")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// Written by a newer dsfs.
    #[error("the commit journal has format version {found}, newer than this dsfs understands: update dsfs")]
    UnknownVersion {
        /// The version that was found.
        found: u32,
    },
}

/// What can be noted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub(super) enum Note {
    Begun { format: u32, txid: String, overwrite: bool, message: Option<String> },
    Hashed { path: RelPath, size_bytes: u64, cid: ContentId },
    Upload { path: RelPath, id: UploadId, part_bytes: u64 },
    Part { path: RelPath, number: u32, etag: ETag, checksum: Option<String> },
    Intent { head: u64 },
    Publishing,
    Committed { seq: u64 },
    Aborting,
}

impl Note {
    /// The first one: what the user asked for.
    pub fn begun(txid: String, overwrite: bool, message: Option<String>) -> Self {
        Self::Begun { format: FORMAT_VERSION, txid, overwrite, message }
    }

    /// For a failpoint's name.
    fn name(&self) -> &'static str {
        match self {
            Self::Begun { .. } => "begun",
            Self::Hashed { .. } => "hashed",
            Self::Upload { .. } => "upload",
            Self::Part { .. } => "part",
            Self::Intent { .. } => "intent",
            Self::Publishing => "publishing",
            Self::Committed { .. } => "committed",
            Self::Aborting => "aborting",
        }
    }

    /// Whether it is synced to the disk.
    fn is_decisive(&self) -> bool {
        match self {
            Self::Hashed { .. } | Self::Part { .. } => false,
            Self::Begun { .. }
            | Self::Upload { .. }
            | Self::Intent { .. }
            | Self::Publishing
            | Self::Committed { .. }
            | Self::Aborting => true,
        }
    }
}

/// A multipart upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BegunUpload {
    pub id: UploadId,
    pub part_bytes: u64,
    pub parts: BTreeMap<u32, PartReceipt>,
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub overwrite: bool,
    pub message: Option<String>,
    pub hashes: HashMap<RelPath, (u64, ContentId)>,
    /// Every upload of a path, the newest last: the others are to be aborted.
    pub uploads: BTreeMap<RelPath, Vec<BegunUpload>>,
    /// Where the log ended when the intent was announced.
    pub intent_head: Option<u64>,
    pub publishing: bool,
    pub committed: Option<u64>,
    pub aborting: bool,
}

impl Progress {
    /// Takes one note in.
    pub fn take(&mut self, note: Note) -> Result<(), JournalError> {
        match note {
            Note::Begun { format, .. } if format != FORMAT_VERSION => {
                return Err(JournalError::UnknownVersion { found: format });
            }
            Note::Begun { overwrite, message, .. } => {
                self.overwrite = overwrite;
                self.message = message;
            }
            Note::Hashed { path, size_bytes, cid } => {
                self.hashes.insert(path, (size_bytes, cid));
            }
            Note::Upload { path, id, part_bytes } => {
                let upload = BegunUpload { id, part_bytes, parts: BTreeMap::new() };
                self.uploads.entry(path).or_default().push(upload);
            }
            Note::Part { path, number, etag, checksum } => {
                if let Some(upload) = self.uploads.get_mut(&path).and_then(|uploads| uploads.last_mut()) {
                    upload.parts.insert(number, PartReceipt { number, etag, checksum });
                }
            }
            Note::Intent { head } => self.intent_head = Some(head),
            Note::Publishing => self.publishing = true,
            Note::Committed { seq } => self.committed = Some(seq),
            Note::Aborting => self.aborting = true,
        }
        Ok(())
    }
}

/// The journal of one commit, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<File>,
    path: PathBuf,
}

/// A note that is written, and may have to be made durable: without the journal, so that others can be
/// written meanwhile.
#[must_use = "a decisive note survives power loss only when this was synced"]
pub(super) struct Pending {
    file: Option<Arc<File>>,
    path: PathBuf,
    name: &'static str,
}

impl Pending {
    /// Whether there is a disk to wait for.
    pub fn is_decisive(&self) -> bool {
        self.file.is_some()
    }

    /// Waits for the disk, if the note is decisive.
    pub fn sync(self) -> Result<(), JournalError> {
        if let Some(file) = self.file {
            failpoint::reach(|| format!("journal:{}:written", self.name));
            file.sync_data().map_err(|source| JournalError::Io { path: self.path, source })?;
        }
        failpoint::reach(|| format!("journal:{}:after", self.name));
        Ok(())
    }
}

impl Journal {
    /// Opens the journal at `path` and replays it; a new one begins with `begun`. With `lenient`,
    /// for aborting, a damaged one is taken for one that might have said anything.
    pub fn open(path: &Path, begun: Note, lenient: bool) -> Result<(Self, Progress), JournalError> {
        let failed = |source| JournalError::Io { path: path.to_path_buf(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut progress = Progress::default();
        let mut offset = 0;
        while offset < bytes.len() {
            let rest = bytes.get(offset..).unwrap_or_default();
            match read_record(rest) {
                Read1::Note(note, len) => {
                    progress.take(note)?;
                    offset += len;
                }
                Read1::Torn => break,
                Read1::Damaged if lenient => {
                    progress.publishing = true;
                    progress.intent_head.get_or_insert(0);
                    break;
                }
                Read1::Damaged => {
                    return Err(JournalError::Damaged { path: path.to_path_buf(), offset: offset as u64 });
                }
            }
        }
        if offset < bytes.len() {
            file.set_len(offset as u64).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(offset as u64)).map_err(failed)?;
        let mut journal = Self { file: Arc::new(file), path: path.to_path_buf() };
        if offset == 0 {
            journal.append(&begun)?.sync()?;
            progress.take(begun)?;
            durable::sync_parent(path).map_err(failed)?;
        }
        Ok((journal, progress))
    }

    /// Writes a note down.
    pub fn append(&mut self, note: &Note) -> Result<Pending, JournalError> {
        let failed = |source| JournalError::Io { path: self.path.clone(), source };
        let payload = serde_json::to_vec(note).map_err(|err| failed(err.into()))?;
        let len = u32::try_from(payload.len()).map_err(|err| failed(io::Error::other(err)))?;
        let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        record.extend_from_slice(&payload);
        let point = |when| move || format!("journal:{}:{when}", note.name());
        let half = record.len() / 2;
        failpoint::reach(point("before"));
        failpoint::reach_after(point("torn"), || {
            let _torn = (&*self.file).write_all(record.get(..half).unwrap_or_default());
        });
        let end = self.file.metadata().map_err(failed)?.len();
        if let Err(source) = (&*self.file).write_all(&record) {
            // Half a record (of a full disk) would make whatever is written behind it unreadable.
            let undone = self.file.set_len(end).and_then(|()| (&*self.file).seek(SeekFrom::Start(end)));
            if let Err(err) = undone {
                tracing::warn!("{} ends in half a record: {err}", self.path.display());
            }
            return Err(failed(source));
        }
        let file = note.is_decisive().then(|| Arc::clone(&self.file));
        Ok(Pending { file, path: self.path.clone(), name: note.name() })
    }
}

enum Read1 {
    Note(Note, usize),
    /// The end of a journal whose writer was stopped.
    Torn,
    Damaged,
}

/// The first record of `bytes`, which are not empty.
fn read_record(bytes: &[u8]) -> Read1 {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Read1::Torn };
    let [a, b, c, d, e, f, g, h] = *header;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let crc = u32::from_le_bytes([e, f, g, h]);
    if let Some(payload) = rest.get(..len)
        && crc32c::crc32c(payload) == crc
        && len > 0
    {
        return match serde_json::from_slice(payload) {
            Ok(note) => Read1::Note(note, HEADER_BYTES + len),
            Err(_) => Read1::Damaged,
        };
    }
    if is_torn(len, crc, rest) { Read1::Torn } else { Read1::Damaged }
}

/// Fewest zero bytes in a row that are taken for space that was never written: more than a header can have.
const UNWRITTEN_MIN: usize = 2 * HEADER_BYTES;

/// Whether `rest` is what came of a payload whose writer was stopped. Nothing checks the length itself, and a
/// damaged one must not take the records behind it along.
fn is_torn(len: usize, crc: u32, rest: &[u8]) -> bool {
    // Behind it there may be space that the file system had already given to the file.
    let end = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let written = rest.get(..end).unwrap_or_default();
    // A record that was being written is the last one. JSON has no zero byte, and the length of another record has
    // one or two; more in a row are space that was given to the file and not written.
    let zeros = written.split(|byte| *byte != 0).map(<[u8]>::len).filter(|run| *run > 0);
    let is_last = written.len() <= len && zeros.min().is_none_or(|run| run >= UNWRITTEN_MIN);
    // One that is all there has lost nothing but its length.
    is_last && (written.is_empty() || crc32c::crc32c(written) != crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> Vec<Note> {
        let path = RelPath::parse("a/b").unwrap();
        let cid = ContentId::from_sha256([1; 32]);
        let part = |number| Note::Part {
            path: path.clone(),
            number,
            etag: ETag::from_server("p"),
            checksum: Some("c".into()),
        };
        vec![
            Note::Hashed { path: path.clone(), size_bytes: 5, cid },
            Note::Upload { path: path.clone(), id: UploadId("u1".into()), part_bytes: 7 },
            part(1),
            Note::Upload { path: path.clone(), id: UploadId("u2".into()), part_bytes: 8 },
            part(2),
            Note::Intent { head: 3 },
            Note::Publishing,
            Note::Committed { seq: 4 },
            Note::Aborting,
        ]
    }

    /// Thousands of fsyncs, whose effect is not what is looked at.
    fn in_memory() -> tempfile::TempDir {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
    }

    fn begun() -> Note {
        Note::begun("tx".into(), true, Some("why".into()))
    }

    fn open(path: &Path) -> Result<(Journal, Progress), JournalError> {
        Journal::open(path, begun(), false)
    }

    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("journal");
        let (mut journal, progress) = open(&path).unwrap();
        assert_eq!(progress, expected(0));
        notes().iter().for_each(|note| journal.append(note).unwrap().sync().unwrap());
        path
    }

    fn expected(count: usize) -> Progress {
        let mut progress = Progress { overwrite: true, message: Some("why".into()), ..Progress::default() };
        notes().into_iter().take(count).for_each(|note| progress.take(note).unwrap());
        progress
    }

    #[test]
    fn what_was_noted_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let (_, progress) = open(&path).unwrap();
        assert_eq!(progress, expected(usize::MAX));
        let upload = &progress.uploads[&RelPath::parse("a/b").unwrap()];
        assert_eq!((upload.len(), upload[0].parts.len(), upload[1].parts.len()), (2, 1, 1));
    }

    /// Cut at every byte: exactly the records that are whole remain, and the next one is appended
    /// behind them.
    #[test]
    fn a_torn_end_is_cut_off() {
        let dir = in_memory();
        let path = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let mut ends = vec![0];
        while ends[ends.len() - 1] < whole.len() {
            let at = ends[ends.len() - 1];
            let Read1::Note(_, len) = read_record(&whole[at..]) else { panic!() };
            ends.push(at + len);
        }
        for cut in 0..whole.len() {
            for tail in [&[][..], &[0; 20][..]] {
                std::fs::write(&path, [&whole[..cut], tail].concat()).unwrap();
                let (mut journal, progress) = open(&path).unwrap();
                let records = ends.iter().filter(|end| **end <= cut).count() - 1;
                assert_eq!(progress, expected(records.saturating_sub(1)), "cut at {cut}");
                journal.append(&Note::Aborting).unwrap().sync().unwrap();
                let (_, progress) = open(&path).unwrap();
                assert!(progress.aborting);
            }
        }
        // The end reached the disk, and what is before it did not.
        let last = ends[ends.len() - 2];
        let mut torn = whole.clone();
        torn[last + HEADER_BYTES..][..UNWRITTEN_MIN].fill(0);
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(open(&path).unwrap().1, expected(ends.len() - 3));
    }

    #[test]
    fn any_other_damage_is_refused_and_can_still_be_aborted() {
        let dir = in_memory();
        let path = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let mut starts = vec![0];
        loop {
            let start = starts[starts.len() - 1];
            let Read1::Note(_, len) = read_record(&whole[start..]) else { panic!() };
            if start + len == whole.len() {
                break;
            }
            starts.push(start + len);
        }
        // Checksum and payload of the last record may be torn; its length may not.
        let last = starts[starts.len() - 1];
        for (at, bit) in (0..last + 4).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            let start = starts.iter().rfind(|start| **start <= at).unwrap();
            match open(&path) {
                Err(JournalError::Damaged { offset, .. }) => assert_eq!(offset, *start as u64),
                other => panic!("{at} {bit}: {other:?}"),
            }
            assert_eq!(std::fs::read(&path).unwrap(), damaged, "left as it was found");
        }
        let (_, progress) = Journal::open(&path, begun(), true).unwrap();
        assert!(progress.publishing && progress.intent_head.is_some());
    }

    #[test]
    fn a_newer_journal_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = open(&path).unwrap();
        let newer = Note::Begun { format: 2, txid: "tx".into(), overwrite: false, message: None };
        journal.append(&newer).unwrap().sync().unwrap();
        assert!(matches!(open(&path), Err(JournalError::UnknownVersion { found: 2 })));
    }
}
