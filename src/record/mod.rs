//! What dsfs keeps in a bucket beside the datasets: intents, commit records, snapshots.
//!
//! Pure types and their encoding. Each object is **one zstd frame that holds one JSON object in
//! UTF-8**, so that `zstd -d | jq` reads it. Every object begins with the same two members:
//!
//! ```text
//! "format": 1              a reader refuses what it does not know, with a sentence
//! "kind":   "intent" | "commit" | "abort" | "snapshot"
//! ```
//!
//! The members of each kind, besides `dataset` (its name) in all of them:
//!
//! ```text
//! intent    txid, author, host, time
//!           creates   [path]              keys that this commit is about to create: readers hide them
//!           markers   [path]              directories for which it is about to create `<path>/`
//!           replaces  [{path, etag}]      versions that it is about to replace
//!           deletes   [{path, etag}]      versions that it deletes once its record is written
//!           deleting  time (may be missing): since then requests that delete what the commit has
//!                     created, or what it deletes, may be on their way
//! commit    seq, txid, author, host, time, message (may be missing)
//!           changes   {entries, deleted, markers}   what this commit did
//!           base      {seq, entries}  a snapshot and the number of files in it; null: nothing at all
//!           tail      {entries, deleted, markers}   what all commits between `base` and this one did, net
//! abort     as commit, with txid that of the commit it ends, and empty changes
//! snapshot  seq, entries, markers         everything that the dataset holds after commit `seq`
//!
//! entry     path, size_bytes, cid, etag, mtime; replaced (the ETag it took the place of) if it did
//! deleted   path, etag
//! ```
//!
//! * `txid` is a ULID; `seq` counts from 1, without gaps; `time` is RFC 3339 in UTC.
//! * `mtime` is text, seconds since 1970 with nine decimals: `"1763763000.250000000"`.
//! * `cid` is a CIDv1 of the file's SHA-256: `b`, then in lower-case base32 without padding the
//!   bytes `01 55 12 20` and the 32 bytes of the digest.
//!
//! # The tree after commit N in two requests
//!
//! Record N names a snapshot and carries what happened between that and itself: the tree is
//! `base`, then `tail`, then `changes`. Before a commit's record whose tail would grow beyond
//! [`tail_entries_max`], the snapshot of the record before it is written and becomes its base;
//! so a tail stays small against its snapshot, and nobody has to read thousands of records. An
//! abort's record keeps the base, however long its tail: a commit can be ended where no snapshot
//! can be written any more.

mod content_id;
mod time;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ulid::Ulid;

use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::RelPath;

pub use content_id::ContentId;
pub use time::any_time;
pub use time::format_mtime;
use time::mtime;
pub use time::parse_mtime;
use time::rfc3339;

/// The format version that this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Largest record that is read or written, unpacked, in bytes: some five million files.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;
/// zstd's own default: fast, and most of a record is hashes, which do not shrink.
const COMPRESSION_LEVEL: i32 = 3;
/// A tail may always be this long before a new snapshot is written.
const TAIL_ENTRIES_MIN: u64 = 512;
/// And this part of its snapshot's length.
const TAIL_FRACTION: u64 = 16;

/// Longest tail, in entries, on a snapshot of `base_entries` files.
#[must_use]
pub fn tail_entries_max(base_entries: u64) -> u64 {
    TAIL_ENTRIES_MIN.max(base_entries / TAIL_FRACTION)
}

/// Why an object in the bucket could not be read as a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer dsfs.
    #[error("format version {found} is newer than this dsfs understands ({FORMAT_VERSION}): update dsfs")]
    UnknownVersion {
        /// The version that was found.
        found: u32,
    },
    /// Another kind of object than the one expected.
    #[error("this is a record of kind {found:?}")]
    UnknownKind {
        /// The kind that was found.
        found: String,
    },
    /// More than [`RECORD_BYTES_MAX`], read or about to be written.
    #[error(
        "is longer than {limit_bytes} bytes, the most that dsfs reads and writes (about five million files)"
    )]
    TooLong {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The snapshot that a commit's record would build on is more than that: no commit can follow.
    #[error(
        "would be longer than {limit_bytes} bytes: the dataset has as many files as dsfs can keep a log of \
         (about five million)"
    )]
    Full {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// Not zstd.
    #[error("cannot be unpacked: {0}")]
    Packing(#[source] std::io::Error),
    /// Not the JSON that it should be.
    #[error("cannot be read: {0}")]
    Json(#[source] serde_json::Error),
}

/// Who commits, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The user's name.
    #[serde(rename = "author")]
    pub user: String,
    /// The machine's name.
    pub host: String,
}

/// One published file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is in the dataset.
    pub path: RelPath,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its content.
    pub cid: ContentId,
    /// The version that was published.
    pub etag: ETag,
    /// When its content was last changed, before it was published.
    #[serde(with = "mtime")]
    pub mtime: SystemTime,
    /// The version whose place it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<ETag>,
}

/// A version that was, or is to be, deleted or replaced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OldVersion {
    /// Where it was in the dataset.
    pub path: RelPath,
    /// Which version it was.
    pub etag: ETag,
}

/// What one commit did, or several of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Files that came, or came anew.
    pub entries: Vec<Entry>,
    /// Files that went.
    pub deleted: Vec<OldVersion>,
    /// Directories that came with nothing in them.
    pub markers: Vec<RelPath>,
}

impl Changes {
    /// The number of changes.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.entries.len() + self.deleted.len() + self.markers.len()) as u64
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These changes and then `later` ones, as one: what came and went again is not in it.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        let mut entries: BTreeMap<&RelPath, &Entry> = self.entries.iter().map(|e| (&e.path, e)).collect();
        let mut deleted: BTreeMap<&RelPath, &OldVersion> =
            self.deleted.iter().map(|d| (&d.path, d)).collect();
        for gone in &later.deleted {
            entries.remove(&gone.path);
            deleted.insert(&gone.path, gone);
        }
        for entry in &later.entries {
            deleted.remove(&entry.path);
            entries.insert(&entry.path, entry);
        }
        let markers: BTreeSet<&RelPath> = self.markers.iter().chain(&later.markers).collect();
        Self {
            entries: entries.into_values().cloned().collect(),
            deleted: deleted.into_values().cloned().collect(),
            markers: markers.into_iter().cloned().collect(),
        }
    }
}

/// The notice of a commit under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The dataset.
    pub dataset: DatasetName,
    /// The commit.
    pub txid: String,
    /// Whose it is.
    #[serde(flatten)]
    pub author: Author,
    /// When it was written.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// Files that it is about to create.
    pub creates: Vec<RelPath>,
    /// Empty directories that it is about to create.
    pub markers: Vec<RelPath>,
    /// Versions that it is about to replace.
    pub replaces: Vec<OldVersion>,
    /// Versions that it deletes once its record is written.
    pub deletes: Vec<OldVersion>,
    /// Since when requests that delete may be on their way.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub deleting: Option<SystemTime>,
}

impl Intent {
    /// When the commit was begun, by the clock of whoever did: its record, if there is one, came later.
    /// The notice itself may be younger than the record, since one who comes back late writes it anew.
    #[must_use]
    pub fn begun(&self) -> SystemTime {
        self.txid.parse::<Ulid>().map_or(self.time, |txid| self.time.min(txid.datetime()))
    }

    /// Every path that it names.
    pub fn paths(&self) -> impl Iterator<Item = &RelPath> {
        let old = self.replaces.iter().chain(&self.deletes).map(|version| &version.path);
        self.creates.iter().chain(&self.markers).chain(old)
    }

    /// The paths that both name, or that are a file in one and a directory in the other.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Vec<RelPath> {
        let theirs: BTreeSet<&str> = other.paths().map(RelPath::as_str).collect();
        let below_theirs = |path: &RelPath| path.ancestors().any(|dir| theirs.contains(dir.as_str()));
        let above_theirs = |path: &RelPath| {
            let below = format!("{path}/");
            theirs.range(below.as_str()..).next().is_some_and(|next| next.starts_with(&below))
        };
        let meets =
            |path: &&RelPath| theirs.contains(path.as_str()) || below_theirs(path) || above_theirs(path);
        let mut overlap: Vec<RelPath> = self.paths().filter(meets).cloned().collect();
        overlap.sort();
        overlap.dedup();
        overlap
    }
}

/// What a commit record says of its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is published.
    Commit,
    /// It is ended, and must not publish anything any more.
    Abort,
}

/// The snapshot that a record builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseSnapshot {
    /// The commit after which it was taken.
    pub seq: u64,
    /// The number of files in it.
    pub entries: u64,
}

/// One commit, or the end of one that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// Which of both.
    pub outcome: Outcome,
    /// What is said of it.
    pub body: CommitBody,
}

/// What a commit record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitBody {
    /// The dataset.
    pub dataset: DatasetName,
    /// Its place in the log, from 1.
    pub seq: u64,
    /// The commit that it publishes or ends.
    pub txid: String,
    /// Who wrote the record.
    #[serde(flatten)]
    pub author: Author,
    /// When.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// Why, in the author's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the commit did.
    pub changes: Changes,
    /// The snapshot below; `None`: nothing at all.
    pub base: Option<BaseSnapshot>,
    /// What happened between that and this commit.
    pub tail: Changes,
}

/// Everything that a dataset holds after a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit; 0 before the first.
    pub seq: u64,
    /// The files.
    pub entries: BTreeMap<RelPath, Entry>,
    /// Directories that were published with nothing in them.
    pub markers: BTreeSet<RelPath>,
}

impl Snapshot {
    /// Moves on by one record: the next one.
    pub fn advance(&mut self, record: &CommitBody) {
        self.take(&record.changes);
        self.seq = record.seq;
    }

    fn take(&mut self, changes: &Changes) {
        for gone in &changes.deleted {
            self.entries.remove(&gone.path);
        }
        self.entries.extend(changes.entries.iter().map(|entry| (entry.path.clone(), entry.clone())));
        self.markers.extend(changes.markers.iter().cloned());
    }

    /// The state after `record`, whose base this is.
    #[must_use]
    pub fn after(mut self, record: &CommitBody) -> Self {
        self.take(&record.tail);
        self.advance(record);
        self
    }
}

/// What the record after another one builds on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// Its base.
    pub base: Option<BaseSnapshot>,
    /// Its tail.
    pub tail: Changes,
    /// Whether the snapshot of the record before has to be written first: it is the base.
    pub snapshot_due: bool,
}

impl Footing {
    /// For the record after `head`; `None`: for the first one. The base's number of entries is
    /// filled in by whoever writes a snapshot that is due.
    #[must_use]
    pub fn after(head: Option<&CommitBody>) -> Self {
        let on_same = Self::keeping_base(head);
        match head {
            Some(head) if on_same.tail.len() > tail_entries_max(head.base.map_or(0, |base| base.entries)) => {
                let base = Some(BaseSnapshot { seq: head.seq, entries: 0 });
                Self { base, tail: Changes::default(), snapshot_due: true }
            }
            _ => on_same,
        }
    }

    /// As [`Self::after`], but no snapshot is due, however long the tail becomes.
    #[must_use]
    pub fn keeping_base(head: Option<&CommitBody>) -> Self {
        let Some(head) = head else { return Self::default() };
        Self { base: head.base, tail: head.tail.then(&head.changes), snapshot_due: false }
    }
}

#[derive(Serialize)]
struct Out<'a, T> {
    format: u32,
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Peek {
    format: u32,
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct SnapshotBody {
    dataset: DatasetName,
    seq: u64,
    entries: Vec<Entry>,
    markers: Vec<RelPath>,
}

/// One limit for writers and readers: what was written can be read.
fn check_len(json: &[u8], limit_bytes: u64) -> Result<(), RecordError> {
    if json.len() as u64 > limit_bytes { Err(RecordError::TooLong { limit_bytes }) } else { Ok(()) }
}

fn pack<T: Serialize>(kind: &str, body: &T, limit_bytes: u64) -> Result<Bytes, RecordError> {
    let json = serde_json::to_vec(&Out { format: FORMAT_VERSION, kind, body });
    let json = json.expect("no map with other keys than text, no failing serializer");
    check_len(&json, limit_bytes)?;
    Ok(zstd::encode_all(&json[..], COMPRESSION_LEVEL).map_err(RecordError::Packing)?.into())
}

fn unpack<T: DeserializeOwned>(
    object: &[u8],
    kinds: &[&str],
    limit_bytes: u64,
) -> Result<(String, T), RecordError> {
    let mut json = Vec::new();
    let decoder = zstd::Decoder::new(object).map_err(RecordError::Packing)?;
    decoder.take(limit_bytes + 1).read_to_end(&mut json).map_err(RecordError::Packing)?;
    check_len(&json, limit_bytes)?;
    let peek: Peek = serde_json::from_slice(&json).map_err(RecordError::Json)?;
    if peek.format != FORMAT_VERSION {
        return Err(RecordError::UnknownVersion { found: peek.format });
    }
    if !kinds.contains(&&*peek.kind) {
        return Err(RecordError::UnknownKind { found: peek.kind });
    }
    Ok((peek.kind, serde_json::from_slice(&json).map_err(RecordError::Json)?))
}

impl Intent {
    /// The object's content.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn encode(&self) -> Result<Bytes, RecordError> {
        pack("intent", self, RECORD_BYTES_MAX)
    }

    /// Reads an object's content.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn decode(object: &[u8]) -> Result<Self, RecordError> {
        unpack(object, &["intent"], RECORD_BYTES_MAX).map(|(_, intent)| intent)
    }
}

impl CommitRecord {
    /// The object's content.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn encode(&self) -> Result<Bytes, RecordError> {
        let kind = match self.outcome {
            Outcome::Commit => "commit",
            Outcome::Abort => "abort",
        };
        pack(kind, &self.body, RECORD_BYTES_MAX)
    }

    /// Reads an object's content.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn decode(object: &[u8]) -> Result<Self, RecordError> {
        let (kind, body) = unpack(object, &["commit", "abort"], RECORD_BYTES_MAX)?;
        let outcome = if kind == "commit" { Outcome::Commit } else { Outcome::Abort };
        Ok(Self { outcome, body })
    }
}

impl Snapshot {
    /// The object's content: the same bytes for the same snapshot, whoever writes it.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn encode(&self, dataset: &DatasetName) -> Result<Bytes, RecordError> {
        self.encode_within(dataset, RECORD_BYTES_MAX)
    }

    /// As [`Self::encode`], of at most `limit_bytes` before it is packed.
    ///
    /// # Errors
    /// [`RecordError::TooLong`].
    pub fn encode_within(&self, dataset: &DatasetName, limit_bytes: u64) -> Result<Bytes, RecordError> {
        let entries = self.entries.values().cloned().collect();
        let markers = self.markers.iter().cloned().collect();
        let body = SnapshotBody { dataset: dataset.clone(), seq: self.seq, entries, markers };
        pack("snapshot", &body, limit_bytes)
    }

    /// Reads an object's content.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn decode(object: &[u8]) -> Result<Self, RecordError> {
        let (_, body): (_, SnapshotBody) = unpack(object, &["snapshot"], RECORD_BYTES_MAX)?;
        let entries = body.entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        Ok(Self { seq: body.seq, entries, markers: body.markers.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn entry(at: &str) -> Entry {
        Entry {
            path: path(at),
            size_bytes: 5,
            cid: ContentId::from_sha256([7; 32]),
            etag: ETag::from_server("\"e\""),
            mtime: SystemTime::UNIX_EPOCH + Duration::new(1_763_763_000, 250_000_000),
            replaced: None,
        }
    }

    fn old(at: &str) -> OldVersion {
        OldVersion { path: path(at), etag: ETag::from_server("old") }
    }

    fn intent(creates: &[&str]) -> Intent {
        Intent {
            dataset: DatasetName::parse("run").unwrap(),
            txid: "tx".into(),
            author: Author { user: "ann".into(), host: "lab".into() },
            time: SystemTime::UNIX_EPOCH,
            creates: creates.iter().map(|at| path(at)).collect(),
            markers: Vec::new(),
            replaces: vec![old("r")],
            deletes: Vec::new(),
            deleting: None,
        }
    }

    fn body(seq: u64, changes: Changes, footing: Footing) -> CommitBody {
        CommitBody {
            dataset: DatasetName::parse("run").unwrap(),
            seq,
            txid: format!("tx{seq}"),
            author: Author::default(),
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            message: Some("first".into()),
            changes,
            base: footing.base,
            tail: footing.tail,
        }
    }

    fn json_of(object: &[u8]) -> serde_json::Value {
        serde_json::from_slice(&zstd::decode_all(object).unwrap()).unwrap()
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let record = CommitRecord {
            outcome: Outcome::Commit,
            body: body(
                1,
                Changes { entries: vec![entry("a/b")], deleted: vec![old("c")], markers: vec![path("d")] },
                Footing::default(),
            ),
        };
        let expected = serde_json::json!({
            "format": 1, "kind": "commit", "dataset": "run", "seq": 1, "txid": "tx1",
            "author": "", "host": "", "time": "1970-01-01T00:00:01.5Z", "message": "first",
            "changes": {
                "entries": [{
                    "path": "a/b", "size_bytes": 5, "etag": "e", "mtime": "1763763000.250000000",
                    "cid": "bafkreiahaqdqoaqhaqdqoaqhaqdqoaqhaqdqoaqhaqdqoaqhaqdqoaqhaqa",
                }],
                "deleted": [{"path": "c", "etag": "old"}],
                "markers": ["d"],
            },
            "base": null,
            "tail": {"entries": [], "deleted": [], "markers": []},
        });
        let mut found = json_of(&record.encode().unwrap());
        let cid = found["changes"]["entries"][0]["cid"].take();
        assert_eq!(cid, ContentId::from_sha256([7; 32]).to_string());
        let mut expected = expected;
        expected["changes"]["entries"][0]["cid"].take();
        assert_eq!(found, expected);
        assert_eq!(CommitRecord::decode(&record.encode().unwrap()).unwrap(), record);
        let abort = CommitRecord { outcome: Outcome::Abort, ..record };
        assert_eq!(CommitRecord::decode(&abort.encode().unwrap()).unwrap(), abort);
        let expected = serde_json::json!({
            "format": 1, "kind": "intent", "dataset": "run", "txid": "tx", "author": "ann", "host": "lab",
            "time": "1970-01-01T00:00:00Z", "creates": ["a"], "markers": [],
            "replaces": [{"path": "r", "etag": "old"}], "deletes": [],
        });
        assert_eq!(json_of(&intent(&["a"]).encode().unwrap()), expected);
        assert_eq!(Intent::decode(&intent(&["a"]).encode().unwrap()).unwrap(), intent(&["a"]));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_sentence() {
        let pack_json = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        let newer = pack_json(r#"{"format": 2, "kind": "commit", "whatever": []}"#);
        let sentence = CommitRecord::decode(&newer).unwrap_err().to_string();
        assert_eq!(sentence, "format version 2 is newer than this dsfs understands (1): update dsfs");
        let intent = intent(&["a"]).encode().unwrap();
        assert!(matches!(CommitRecord::decode(&intent), Err(RecordError::UnknownKind { .. })));
        assert!(matches!(Intent::decode(b"not zstd"), Err(RecordError::Packing(_))));
        assert!(matches!(Intent::decode(&intent[..intent.len() - 4]), Err(RecordError::Packing(_))));
        assert!(matches!(Intent::decode(&pack_json("{}")), Err(RecordError::Json(_))));
        let escape =
            r#"{"format":1,"kind":"snapshot","dataset":"run","seq":1,"entries":[],"markers":["../x"]}"#;
        assert!(matches!(Snapshot::decode(&pack_json(escape)), Err(RecordError::Json(_))));
    }

    #[test]
    fn what_is_too_long_to_be_read_is_not_written() {
        let intent = intent(&["a"]);
        let len = json_of(&intent.encode().unwrap()).to_string().len() as u64;
        let object = pack("intent", &intent, len).unwrap();
        assert!(unpack::<Intent>(&object, &["intent"], len).is_ok());
        let refused = pack("intent", &intent, len - 1).unwrap_err();
        assert!(
            matches!(refused, RecordError::TooLong { limit_bytes } if limit_bytes == len - 1),
            "{refused}"
        );
        let refused = unpack::<Intent>(&object, &["intent"], len - 1).unwrap_err();
        assert!(matches!(refused, RecordError::TooLong { .. }), "{refused}");
    }

    #[test]
    fn intents_overlap_where_names_meet_or_a_file_would_be_a_directory() {
        let overlap = |ours: &[&str], theirs: &[&str]| {
            let mut theirs = intent(theirs);
            theirs.replaces.clear();
            intent(ours).overlap(&theirs).iter().map(RelPath::to_string).collect::<Vec<_>>()
        };
        assert!(overlap(&["a", "b/c"], &["b/d", "bb", "a-b"]).is_empty());
        assert_eq!(overlap(&["a", "b"], &["b"]), ["b"]);
        assert_eq!(overlap(&["b"], &["b/c/d"]), ["b"]);
        assert_eq!(overlap(&["b/c/d"], &["b"]), ["b/c/d"]);
        assert_eq!(overlap(&[], &["r"]), ["r"]);
    }

    /// However many commits there were, a tree is one snapshot and one record.
    #[test]
    fn thousands_of_commits_are_known_from_two_objects() {
        let mut snapshots: BTreeMap<u64, Snapshot> = BTreeMap::new();
        let mut head: Option<CommitBody> = None;
        let mut truth: BTreeMap<RelPath, Entry> = BTreeMap::new();
        let tree = |head: &CommitBody, snapshots: &BTreeMap<u64, Snapshot>| {
            let base = head.base.map_or_else(Snapshot::default, |base| snapshots[&base.seq].clone());
            base.after(head)
        };
        for seq in 1..=3000 {
            let mut footing = Footing::after(head.as_ref());
            if footing.snapshot_due {
                let snapshot = tree(head.as_ref().unwrap(), &snapshots);
                footing.base = Some(BaseSnapshot { seq: seq - 1, entries: snapshot.entries.len() as u64 });
                let object = snapshot.encode(&DatasetName::parse("run").unwrap()).unwrap();
                snapshots.insert(seq - 1, Snapshot::decode(&object).unwrap());
            }
            let added = entry(&format!("f{}", seq % 1700));
            let gone = old(&format!("f{}", (seq * 7) % 1700));
            truth.remove(&gone.path);
            truth.insert(added.path.clone(), added.clone());
            let changes = Changes { entries: vec![added], deleted: vec![gone], markers: Vec::new() };
            head = Some(body(seq, changes, footing));
            let head = head.as_ref().unwrap();
            assert!(head.tail.len() <= tail_entries_max(head.base.map_or(0, |base| base.entries)));
        }
        assert_eq!(tree(head.as_ref().unwrap(), &snapshots).entries, truth);
        assert!(snapshots.len() <= 12, "{} snapshots", snapshots.len());
    }
}
