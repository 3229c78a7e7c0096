//! The catalog on the local disk: what was known of the remote tree, for the next mount and for
//! days without a network.
//!
//! One SQLite database for each remote, in the cache directory. SQLite, because several
//! processes share it (a mount, and the commands beside it) and because a kill or a power cut
//! at any moment leaves a database that opens.
//!
//! ```text
//! datasets  name, seq, snapshot     all levels of the dataset show the tree after commit `seq`;
//!                                   that tree, as it is written in the bucket (see `record`)
//! levels    dataset, dir, listed, used, body        one row a directory level: see `stored`
//! ```
//!
//! # Promises
//!
//! 1. Never fatal. A database that is damaged or of another version is made anew. A disk that fails or
//!    is full, and a database that somebody holds, are done without, and that is said once: what was
//!    kept stays for the next process.
//! 2. Never half a commit. All levels of a dataset move to a new snapshot in one transaction;
//!    where it is not known what that changes, they are dropped.
//! 3. Bounded: beyond [`BYTES_MAX`] the levels go that were not used for longest.
//!
//! Everything here blocks on the local disk: not for FUSE threads.

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::ErrorCode;
use rusqlite::OptionalExtension;
use rusqlite::Transaction;
use rusqlite::TransactionBehavior;
use rusqlite::params;

use crate::catalog::Level;
use crate::catalog::edits;
use crate::catalog::edits::Edits;
use crate::catalog::listing::Listing;
use crate::catalog::stored;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::durable;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::KeyPrefix;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Snapshot;

/// Version of the tables and of what is in them. Databases of another are made anew.
const SCHEMA_VERSION: i64 = 1;
/// Most bytes of levels and snapshots: some thirty million files.
const BYTES_MAX: u64 = 1 << 30;
/// Beyond the limit, so much goes at once, in percent.
const SHRINK_TO_PERCENT: u64 = 90;
/// How long another process's transaction is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger snapshots are not kept here but read from the bucket again: packing one takes its memory twice.
const SNAPSHOT_ENTRIES_MAX: usize = 200_000;
/// A level's time of use is renewed when it is older than this, in seconds.
const USED_RENEW_SECONDS: i64 = 3600;

const TABLES: &str = "
CREATE TABLE datasets (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, snapshot BLOB);
CREATE TABLE levels (
    dataset TEXT NOT NULL, dir TEXT NOT NULL, listed INTEGER NOT NULL, used INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (dataset, dir)
);
CREATE INDEX levels_used ON levels (used);
";

/// A level as it was when it was listed.
#[derive(Debug)]
pub(super) struct StoredLevel {
    pub(super) listing: Listing,
    /// When that was.
    pub(super) listed: SystemTime,
}

/// A dataset's place in its log, as its levels show it.
#[derive(Debug)]
pub(super) struct StoredDataset {
    pub(super) seq: u64,
    /// The tree there, unless it is too large to be kept.
    pub(super) snapshot: Option<Snapshot>,
}

/// A step in a dataset's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'s> {
    /// What the levels have to show for the edits to be all that changes.
    pub(super) before: u64,
    /// What they show afterwards.
    pub(super) after: &'s Snapshot,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Directory levels.
    pub levels: u64,
    /// Bytes of them and of snapshots.
    pub bytes: u64,
}

/// The database, or nothing where it cannot be used.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    prefix: RemotePrefix,
    bytes_max: u64,
    connection: Mutex<Option<Connection>>,
}

impl Disk {
    /// Opens the database of a remote, or makes it. Never fails: see the promises.
    pub(super) fn open(path: &Path, prefix: RemotePrefix) -> Self {
        let made_anew = |err: DiskError| {
            if !err.is_damage() {
                return Err(err);
            }
            tracing::warn!("the catalog {} is made anew: {err}", path.display());
            remove(path);
            connect(path)
        };
        let connection = connect(path)
            .or_else(made_anew)
            .inspect_err(|err| tracing::warn!("nothing is kept of listings: {}: {err}", path.display()))
            .ok();
        Self { path: path.to_owned(), prefix, bytes_max: BYTES_MAX, connection: Mutex::new(connection) }
    }

    /// Runs `work`. A failure ends the use of the database by this process, since the levels in it
    /// may be behind those in memory; a damaged one is removed.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, DiskError>) -> Option<T> {
        let mut guard = self.connection.lock();
        let connection = guard.as_mut()?;
        match work(connection) {
            Ok(value) => Some(value),
            Err(err) => {
                tracing::warn!("nothing more is kept of listings: {}: {err}", self.path.display());
                *guard = None;
                if err.is_damage() {
                    remove(&self.path);
                }
                None
            }
        }
    }

    /// A level.
    pub(super) fn load(&self, level: &Level) -> Option<StoredLevel> {
        let (dataset, dir) = columns(level);
        let row: Option<(i64, i64, Vec<u8>)> = self.with(|connection| {
            let sql = "SELECT listed, used, body FROM levels WHERE dataset = ?1 AND dir = ?2";
            let mut select = connection.prepare_cached(sql)?;
            let row =
                select.query_row(params![dataset, dir], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
            let row = row.optional()?;
            let now = unix_seconds(SystemClock.now());
            if row.as_ref().is_some_and(|(_, used, _)| *used + USED_RENEW_SECONDS < now) {
                let sql = "UPDATE levels SET used = ?3 WHERE dataset = ?1 AND dir = ?2";
                connection.prepare_cached(sql)?.execute(params![dataset, dir, now])?;
            }
            Ok(row)
        })?;
        let (listed, _, body) = row?;
        match stored::decode(&body, &self.key_prefix(level)) {
            Ok(listing) => {
                let since = Duration::from_secs(u64::try_from(listed).unwrap_or(0));
                Some(StoredLevel { listing, listed: SystemTime::UNIX_EPOCH + since })
            }
            Err(err) => {
                tracing::warn!("{level} is damaged in the catalog, and is listed again: {err}");
                self.forget(level);
                None
            }
        }
    }

    /// A dataset's place in its log; `None` if no level of it is known.
    pub(super) fn dataset(&self, name: &DatasetName) -> Option<StoredDataset> {
        let (seq, body): (u64, Option<Vec<u8>>) = self.with(|connection| {
            let mut select =
                connection.prepare_cached("SELECT seq, snapshot FROM datasets WHERE name = ?1")?;
            Ok(select.query_row([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })??;
        let snapshot =
            body.and_then(|body| Snapshot::decode(&body).ok()).filter(|snapshot| snapshot.seq == seq);
        Some(StoredDataset { seq, snapshot: if seq == 0 { Some(Snapshot::default()) } else { snapshot } })
    }

    /// Keeps a level, listed as of commit `seq`, if `is_current` says so once nobody else can write.
    pub(super) fn store(
        &self,
        level: &Level,
        listing: &Listing,
        seq: u64,
        is_current: impl FnOnce() -> bool,
    ) {
        let (dataset, dir) = columns(level);
        let body = match stored::encode(listing) {
            Ok(body) => body,
            Err(err) => return tracing::warn!("{level} cannot be kept: {err}"),
        };
        let now = unix_seconds(SystemClock.now());
        self.with(|connection| {
            let transaction = begin(connection)?;
            let sql = "INSERT INTO datasets (name, seq) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            transaction.prepare_cached(sql)?.execute(params![dataset, seq])?;
            if !is_current() || seq_of(&transaction, dataset)? != Some(seq) {
                return Ok(()); // something newer is there
            }
            let sql = "INSERT OR REPLACE INTO levels (dataset, dir, listed, used, body) VALUES (?1, ?2, ?3, ?3, ?4)";
            transaction.prepare_cached(sql)?.execute(params![dataset, dir, now, body])?;
            transaction.commit()?;
            self.shrink(connection)
        });
    }

    /// Keeps the first snapshot that was read of a dataset, unless another process has kept another one
    /// meanwhile: its levels show that one.
    pub(super) fn note(&self, name: &DatasetName, snapshot: &Snapshot) {
        let body = encode_snapshot(name, snapshot);
        self.with(|connection| {
            let transaction = begin(connection)?;
            if seq_of(&transaction, name.as_str())?.is_none_or(|seq| seq == snapshot.seq) {
                let sql = "INSERT OR REPLACE INTO datasets (name, seq, snapshot) VALUES (?1, ?2, ?3)";
                transaction.execute(sql, params![name.as_str(), snapshot.seq, body.as_deref()])?;
            }
            transaction.commit()?;
            Ok(())
        });
    }

    /// Makes edits to all levels that are kept, in one transaction; with `step`, a dataset moves on
    /// in its log.
    pub(super) fn amend(&self, name: &DatasetName, edits: &Edits, step: Option<Step<'_>>) {
        let encode = |step: &Step<'_>| encode_snapshot(name, step.after);
        // Not under the connection's lock, where it can be helped: a large one takes a while.
        let encoded = step.as_ref().filter(|step| step.before != step.after.seq).map(encode);
        self.with(|connection| {
            let transaction = begin(connection)?;
            let seq = seq_of(&transaction, name.as_str())?;
            if let Some(step) = step {
                if seq == Some(step.after.seq) && step.before == step.after.seq {
                    return Ok(());
                }
                if seq.is_some_and(|seq| seq != step.before && seq != step.after.seq) {
                    transaction.execute("DELETE FROM levels WHERE dataset = ?1", [name.as_str()])?;
                }
                let snapshot = encoded.unwrap_or_else(|| encode(&step));
                let sql = "INSERT OR REPLACE INTO datasets (name, seq, snapshot) VALUES (?1, ?2, ?3)";
                transaction.execute(sql, params![name.as_str(), step.after.seq, snapshot.as_deref()])?;
            }
            for (level, edits) in &edits.levels {
                self.amend_level(&transaction, level, edits)?;
            }
            transaction.commit()?;
            Ok(())
        });
    }

    fn amend_level(
        &self,
        transaction: &Transaction<'_>,
        level: &Level,
        edits: &edits::LevelEdits,
    ) -> Result<(), DiskError> {
        let (dataset, dir) = columns(level);
        let sql = "SELECT body FROM levels WHERE dataset = ?1 AND dir = ?2";
        let body: Option<Vec<u8>> =
            transaction.prepare_cached(sql)?.query_row(params![dataset, dir], |row| row.get(0)).optional()?;
        let Some(body) = body else { return Ok(()) };
        let mut listing = stored::decode(&body, &self.key_prefix(level))?;
        edits::apply(&mut listing, edits);
        let sql = "UPDATE levels SET body = ?3 WHERE dataset = ?1 AND dir = ?2";
        transaction.prepare_cached(sql)?.execute(params![dataset, dir, stored::encode(&listing)?])?;
        Ok(())
    }

    /// Drops a level.
    pub(super) fn forget(&self, level: &Level) {
        let (dataset, dir) = columns(level);
        self.with(|connection| {
            connection
                .execute("DELETE FROM levels WHERE dataset = ?1 AND dir = ?2", params![dataset, dir])?;
            Ok(())
        });
    }

    /// Drops everything that is known of a dataset.
    pub(super) fn forget_dataset(&self, name: &DatasetName) {
        self.with(|connection| {
            let transaction = begin(connection)?;
            transaction.execute("DELETE FROM levels WHERE dataset = ?1", [name.as_str()])?;
            transaction.execute("DELETE FROM datasets WHERE name = ?1", [name.as_str()])?;
            transaction.commit()?;
            Ok(())
        });
    }

    /// The datasets of which anything is kept.
    pub(super) fn datasets(&self) -> Vec<DatasetName> {
        let names: Option<Vec<String>> = self.with(|connection| {
            let mut select =
                connection.prepare_cached("SELECT DISTINCT dataset FROM levels WHERE dataset <> ''")?;
            let rows = select.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        names.unwrap_or_default().iter().filter_map(|name| DatasetName::parse(name).ok()).collect()
    }

    /// The directories of a dataset that are kept.
    pub(super) fn directories(&self, name: &DatasetName) -> Vec<DirPath> {
        let dirs: Option<Vec<String>> = self.with(|connection| {
            let mut select = connection.prepare_cached("SELECT dir FROM levels WHERE dataset = ?1")?;
            let rows = select.query_map([name.as_str()], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        let dir = |text: String| match &*text {
            "" => Some(DirPath::root()),
            path => RelPath::parse(path).ok().map(DirPath::from),
        };
        dirs.unwrap_or_default().into_iter().filter_map(dir).collect()
    }

    /// How much is kept.
    pub(super) fn usage(&self) -> DiskUsage {
        self.with(|connection| usage(connection)).unwrap_or_default()
    }

    /// Drops what was not used for longest, where there is too much.
    fn shrink(&self, connection: &mut Connection) -> Result<(), DiskError> {
        let pages: u64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let free: u64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
        let page_bytes: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        if (pages - free.min(pages)) * page_bytes <= self.bytes_max {
            return Ok(());
        }
        let mut bytes = usage(connection)?.bytes;
        let transaction = begin(connection)?;
        {
            let sql = "SELECT dataset, dir, length(body) FROM levels ORDER BY used";
            let mut select = transaction.prepare(sql)?;
            let mut rows = select.query([])?;
            while bytes > self.bytes_max * SHRINK_TO_PERCENT / 100 {
                let Some(row) = rows.next()? else { break };
                let (dataset, dir, len): (String, String, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                transaction
                    .execute("DELETE FROM levels WHERE dataset = ?1 AND dir = ?2", params![dataset, dir])?;
                bytes = bytes.saturating_sub(len);
            }
        }
        let sql = "DELETE FROM datasets WHERE name NOT IN (SELECT dataset FROM levels)";
        transaction.execute(sql, [])?;
        transaction.commit()?;
        connection.execute_batch("PRAGMA incremental_vacuum")?;
        Ok(())
    }

    fn key_prefix(&self, level: &Level) -> KeyPrefix {
        match level {
            Level::Datasets => self.prefix.datasets(),
            Level::Directory(name, dir) => self.prefix.directory(name, dir),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum DiskError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("version {0} of the tables, and this dsfs has {SCHEMA_VERSION}")]
    Version(i64),
}

impl DiskError {
    /// Whether the database is of no use to the next process either.
    fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(err) => matches!(
                err.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SchemaChanged)
            ),
            Self::Io(err) => {
                matches!(
                    err.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other
                )
            }
            Self::Version(_) => true,
        }
    }
}

fn connect(path: &Path) -> Result<Connection, DiskError> {
    if let Some(dir) = path.parent() {
        durable::create_private_dirs(dir)?;
    }
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Only a new database takes the first one. Losing the last transactions with the power is no loss.
    connection.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
    )?;
    let transaction = begin(&mut connection)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        SCHEMA_VERSION => {}
        other => return Err(DiskError::Version(other)),
    }
    transaction.commit()?;
    Ok(connection)
}

/// A transaction that writes. Deferred ones cannot wait for another process when they begin to.
fn begin(connection: &mut Connection) -> Result<Transaction<'_>, rusqlite::Error> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn seq_of(transaction: &Transaction<'_>, dataset: &str) -> Result<Option<u64>, rusqlite::Error> {
    let mut select = transaction.prepare_cached("SELECT seq FROM datasets WHERE name = ?1")?;
    select.query_row([dataset], |row| row.get(0)).optional()
}

/// As it is kept; not if it is too large for that.
fn encode_snapshot(name: &DatasetName, snapshot: &Snapshot) -> Option<Bytes> {
    let is_kept = snapshot.entries.len() <= SNAPSHOT_ENTRIES_MAX && snapshot.seq > 0;
    is_kept.then(|| snapshot.encode(name).ok()).flatten()
}

fn usage(connection: &Connection) -> Result<DiskUsage, DiskError> {
    let sql = "SELECT count(*), coalesce(sum(length(body)), 0) FROM levels";
    let (levels, bodies): (u64, u64) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let sql = "SELECT coalesce(sum(length(snapshot)), 0) FROM datasets";
    let snapshots: u64 = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(DiskUsage { levels, bytes: bodies + snapshots })
}

/// Removes a database with all that belongs to it. Who has it open goes on with what has no name any more.
fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match fs::remove_file(&file) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {err}", Path::new(&file).display());
            }
            _ => {}
        }
    }
}

/// A level's key in the table. The datasets themselves are those of the dataset without a name.
fn columns(level: &Level) -> (&str, &str) {
    match level {
        Level::Datasets => ("", ""),
        Level::Directory(name, dir) => (name.as_str(), dir.as_str()),
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
