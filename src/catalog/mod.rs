//! What is known of the remote tree.
//!
//! Directory levels are listed when somebody asks for them and kept for a time ([`Catalog::new`],
//! `ttl`): those used last in memory, all of them on disk, where there is one
//! ([`Catalog::with_disk`]). The rules:
//!
//! 1. **Unreachable is never 'deleted'.** If a level cannot be listed again, the last answer
//!    stays and is marked stale, also across restarts; an error reaches the caller only where
//!    nothing was ever known.
//! 2. **One listing for many askers.** Whoever asks while a level is being listed waits for it,
//!    but not for long where an older answer is known: the listing goes on in the background
//!    ([`Catalog::refresh_wanted`]), and whoever listens is told what has changed.
//! 3. **What this machine published is known without asking** ([`Catalog::publish`]).
//! 4. **Half a commit is never shown.** What is listed is held against the dataset's log and
//!    intents, read after it (`view`), and all levels of a dataset, in memory and on disk, move to
//!    a new snapshot together.
//!
//! Not known here: what is staged, inodes, the kernel.

mod ask;
#[cfg(test)]
mod committed;
mod contents;
mod disk;
mod edits;
mod history;
mod levels;
pub mod listing;
mod pages;
mod refresh;
pub mod snapshots;
mod stored;
#[cfg(test)]
mod tests;
pub mod view;
mod wanted;
mod warm;
pub mod whole;

pub use crate::catalog::contents::Contents;
pub use crate::catalog::contents::ContentsFile;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use crate::catalog::disk::DiskUsage;
pub use crate::catalog::refresh::Refreshed;

use crate::catalog::ask::Extent;
use crate::catalog::disk::Disk;
use crate::catalog::edits::Edits;
use crate::catalog::history::Histories;
use crate::catalog::levels::Levels;
use crate::catalog::levels::Slot;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::snapshots::SnapshotId;
use crate::catalog::snapshots::SnapshotTree;
use crate::catalog::snapshots::Snapshots;
use crate::catalog::wanted::Wanted;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Snapshot;
use crate::store::ObjectStore;
use crate::store::StoreError;

/// How long a stale answer stands before the remote is asked again, after a failure.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How often a level is listed again because commits came in between.
const LISTING_TRIES: u32 = 4;

/// How long a listing is waited for where an older one is known.
const STALE_PATIENCE: Duration = Duration::from_secs(3);
/// The same for what a process before this one has listed: all levels together, so that the
/// first look after a mount shows the truth if that is near, and comes at once if it is far.
const RESTORED_PATIENCE: Duration = Duration::from_millis(500);

/// Levels on their way to the disk.
const WRITES_MAX: usize = 4;

/// A directory level.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The level of the datasets themselves.
    Datasets,
    /// A directory of a dataset.
    Directory(DatasetName, DirPath),
}

impl Level {
    /// Whether it changes when a dataset does; for none: when anything does.
    fn concerns(&self, name: Option<&DatasetName>) -> bool {
        match (self, name) {
            (_, None) | (Self::Datasets, _) => true,
            (Self::Directory(dataset, _), Some(name)) => dataset == name,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datasets => f.write_str("the datasets"),
            Self::Directory(name, dir) if dir.is_root() => write!(f, "{name}"),
            Self::Directory(name, dir) => write!(f, "{name}/{dir}"),
        }
    }
}

/// An answer, and how long it may be relied on.
#[derive(Clone, Debug)]
pub struct Known {
    /// The level.
    pub listing: Arc<Listing>,
    /// Until then nobody needs to ask again.
    pub expires: Instant,
    /// The last attempt to ask again failed, with this; the listing is what was known before.
    pub stale: Option<Arc<StoreError>>,
}

impl Known {
    /// The time left until it has to be asked again.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.expires
    }
}

/// Told of what others have changed, when it is noticed.
pub trait NewsListener: fmt::Debug + Send + Sync {
    /// These paths of a dataset are not what they were; without any, whether there is such a dataset.
    fn changed(&self, name: &DatasetName, paths: &[RelPath]);
}

/// The remote tree, as far as it is known.
#[derive(Debug)]
pub struct Catalog {
    histories: Histories,
    past: Snapshots,
    /// Counts what was taken in beside listings, so that an older listing does not undo it.
    news: Arc<AtomicU64>,
    listener: OnceLock<Arc<dyn NewsListener>>,
    store: Arc<dyn ObjectStore>,
    prefix: RemotePrefix,
    ttl: Duration,
    levels: Levels,
    disk: Option<Arc<Disk>>,
    /// Datasets whose place in their log is on disk as it is in `histories`.
    on_disk: Mutex<HashSet<DatasetName>>,
    /// What was listed before is not relied on: the start of this process, or when it was expired.
    reliable_since: Mutex<SystemTime>,
    /// What is left of [`RESTORED_PATIENCE`].
    patience: Mutex<Duration>,
    wanted: Wanted,
    /// Bounds the levels that are on their way to the disk.
    writing: Arc<Semaphore>,
}

impl Catalog {
    /// A catalog that knows nothing yet and keeps each answer for `ttl`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: RemotePrefix, ttl: Duration) -> Self {
        let histories = Histories::new(Arc::clone(&store), prefix.clone());
        let past = Snapshots::new(Arc::clone(&store), prefix.clone());
        Self {
            store,
            prefix,
            ttl,
            levels: Levels::default(),
            histories,
            past,
            news: Arc::default(),
            listener: OnceLock::new(),
            disk: None,
            on_disk: Mutex::default(),
            reliable_since: Mutex::new(SystemClock.now()),
            patience: Mutex::new(RESTORED_PATIENCE),
            wanted: Wanted::default(),
            writing: Arc::new(Semaphore::new(WRITES_MAX)),
        }
    }

    /// The newest snapshot of a dataset that is known; empty if there is none.
    #[must_use]
    pub fn snapshot(&self, name: &DatasetName) -> Arc<Snapshot> {
        self.histories.last_snapshot(name)
    }

    /// What a dataset held after one of its commits; `None` if there is no such commit. Asked of the
    /// remote the first time, in a few small requests.
    ///
    /// # Errors
    /// The store's; or the log is damaged.
    pub async fn past(&self, id: &SnapshotId) -> Result<Option<Arc<SnapshotTree>>, StoreError> {
        self.past.get(id).await.map_err(|err| match err {
            LogError::Store(StoreError::NotFound { key }) => {
                let reason = "it is missing, and the dataset's log names it".to_owned();
                StoreError::Rejected { key: key.to_string(), reason }
            }
            other @ (LogError::Store(_) | LogError::Record { .. } | LogError::Crowded) => {
                other.into_store_error()
            }
        })
    }

    /// A past state that was looked at, and is still in memory: never waits.
    #[must_use]
    pub fn past_kept(&self, id: &SnapshotId) -> Option<Arc<SnapshotTree>> {
        self.past.kept(id)
    }

    /// With a database at `path`, which is this remote's alone: what was known to the processes
    /// before this one, and to those beside it. One that cannot be used is done without.
    #[must_use]
    pub fn with_disk(self, path: &Path) -> Self {
        let disk = Disk::open(path, self.prefix.clone());
        Self { disk: Some(Arc::new(disk)), ..self }
    }

    /// How much is kept on disk. Waits for the disk.
    #[must_use]
    pub fn disk_usage(&self) -> DiskUsage {
        self.disk.as_ref().map(|disk| disk.usage()).unwrap_or_default()
    }

    /// Names who is told of other machines' commits. Once; a second one is not heard.
    pub fn listen(&self, listener: Arc<dyn NewsListener>) {
        if self.listener.set(listener).is_err() {
            tracing::debug!("somebody listens to the catalog already");
        }
    }

    /// Where the datasets are in the bucket.
    #[must_use]
    pub fn prefix(&self) -> &RemotePrefix {
        &self.prefix
    }

    /// The level as last seen, if that is recent enough: never waits.
    #[must_use]
    pub fn fresh(&self, level: &Level) -> Option<Known> {
        self.levels.existing(level)?.fresh()
    }

    /// The level as last seen, however long ago; what is not recent is listed when nobody waits for others. Never
    /// waits.
    #[must_use]
    pub fn last_seen(&self, level: &Level) -> Option<Known> {
        let known = self.levels.existing(level).and_then(|slot| slot.known());
        if !known.as_ref().is_some_and(Known::is_fresh) {
            self.wanted.push_later(level.clone());
        }
        known
    }

    /// The level, listed if it has to be.
    ///
    /// # Errors
    /// The store's, where nothing is known from before.
    pub async fn level(&self, level: &Level) -> Result<Known, StoreError> {
        if let Some(known) = self.absent_by_parent(level) {
            return Ok(known);
        }
        let slot = self.levels.slot(level);
        if let Some(known) = slot.fresh() {
            return Ok(known);
        }
        if slot.known().is_none() {
            if let Some(known) = self.restored(level, &slot).await {
                return Ok(known);
            }
            if let Some(known) = self.provisional(level, &slot).await {
                return Ok(known);
            }
            let extent = if self.wanted.is_served() { Extent::Quick } else { Extent::Whole };
            return self.ask(level, &slot, extent).await;
        }
        if self.wanted.is_served() {
            let refreshed = self.refreshed_within(level, &slot, STALE_PATIENCE).await;
            if let Some(known) = refreshed.or_else(|| self.postpone(&slot)) {
                return Ok(known);
            }
        }
        self.ask(level, &slot, Extent::Whole).await
    }

    /// Lists a level, unless somebody did while we waited to begin.
    async fn ask(&self, level: &Level, slot: &Slot, extent: Extent) -> Result<Known, StoreError> {
        let _asking = slot.asking.lock().await;
        match slot.fresh() {
            Some(known) => Ok(known),
            None => self.ask_now(level, slot, extent).await,
        }
    }

    /// Lists a level. The caller has its turn.
    async fn ask_now(&self, level: &Level, slot: &Slot, extent: Extent) -> Result<Known, StoreError> {
        let result = match self.list_into(level, slot, extent).await {
            Ok(Some(known)) => Ok(known),
            Ok(None) => unreachable!("only a level that nobody waits for is given up"),
            Err(err) => self.failed(level, slot, err),
        };
        slot.asked.notify_waiters();
        result
    }

    /// Lists a level and keeps what comes of it; `None` if it is longer than `extent` allows.
    async fn list_into(
        &self,
        level: &Level,
        slot: &Slot,
        extent: Extent,
    ) -> Result<Option<Known>, StoreError> {
        for tries in 1.. {
            let news = self.news.load(Ordering::Acquire);
            let Some(answer) = self.list(level, extent).await? else { break };
            // News that came while the listing was under way has changed the level that it replaces.
            let is_current =
                |_: Option<&Known>| news == self.news.load(Ordering::Acquire) || tries == LISTING_TRIES;
            let listing = Arc::new(answer.listing);
            let known =
                Known { listing: Arc::clone(&listing), expires: Instant::now() + self.ttl, stale: None };
            let (before, put) = self.levels.put(slot, known.clone(), is_current);
            if !put {
                continue;
            }
            if let Some(before) = before {
                self.tell_differences(level, &before.listing, &listing);
            }
            if answer.provisional {
                self.wanted.push_later(level.clone());
            } else {
                self.keep(level, listing, answer.seq, news).await;
            }
            return Ok(Some(known));
        }
        Ok(None)
    }

    fn failed(&self, level: &Level, slot: &Slot, err: StoreError) -> Result<Known, StoreError> {
        if let Some(known) = self.known_by_snapshot(level) {
            self.levels.put(slot, known, |there| there.is_none());
        }
        let err = Arc::new(err);
        let known = self.levels.touch(slot, |known| {
            if known.stale.is_none() {
                tracing::warn!("{level} could not be listed again, showing what was known: {err}");
            }
            known.expires = Instant::now() + RETRY_AFTER_FAILURE;
            known.stale = Some(Arc::clone(&err));
        });
        known.ok_or_else(|| (*err).clone())
    }

    /// Whether the remote has a dataset of this name. Asks for the dataset's own level rather
    /// than for all datasets, since whoever asks will want that next.
    ///
    /// # Errors
    /// The store's.
    pub async fn has_dataset(&self, name: &DatasetName) -> Result<bool, StoreError> {
        if let Some(known) = self.fresh(&Level::Datasets) {
            return Ok(known.listing.entries.contains_key(name.as_str()));
        }
        let level = Level::Directory(name.clone(), DirPath::root());
        match self.level(&level).await {
            Ok(known) => Ok(known.listing.exists()),
            // The datasets were listed once: what was known then is better than nothing.
            Err(err) => match self.last_known(&Level::Datasets).await {
                Some(known) => Ok(known.listing.entries.contains_key(name.as_str())),
                None => Err(err),
            },
        }
    }

    /// A level as it was last seen, by this process or one before it.
    async fn last_known(&self, level: &Level) -> Option<Known> {
        let slot = self.levels.slot(level);
        match slot.known() {
            Some(known) => Some(known),
            None => self.restored(level, &slot).await,
        }
    }

    /// The file with its version: as listed, or by HEAD where listings do not say.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if it has gone, and the store's others.
    pub async fn resolve_version(&self, file: &RemoteFile) -> Result<RemoteFile, StoreError> {
        if file.etag.is_some() {
            return Ok(file.clone());
        }
        let meta = self.store.head(&file.key).await?;
        Ok(RemoteFile { etag: Some(meta.etag), size_bytes: meta.size_bytes, ..file.clone() })
    }

    /// Takes in files, and directories' markers, that this machine has published, without asking the
    /// remote. Waits for the disk.
    pub fn publish(&self, name: &DatasetName, files: &[(RelPath, RemoteFile)], markers: &[RelPath]) {
        self.take_own(name, Edits::of(name, files, markers, &[]));
    }

    /// Takes in what this machine has deleted, without asking the remote. Waits for the disk.
    pub fn withdraw(&self, name: &DatasetName, paths: &[RelPath]) {
        self.take_own(name, Edits::of(name, &[], &[], paths));
    }

    fn take_own(&self, name: &DatasetName, edits: Edits) {
        if edits.levels.is_empty() {
            return;
        }
        let edits = self.begin_edits(edits);
        if let Some(disk) = &self.disk {
            disk.amend(name, &edits, None);
        }
        self.amend_memory(&edits);
    }

    /// From here on, a listing that has begun is an old one. Edits go to the disk first: who reads a
    /// level from there meanwhile is either too late, or early enough to be amended in memory.
    fn begin_edits(&self, mut edits: Edits) -> Edits {
        // One that is not known may be empty now: whoever looks next has the levels above it listed.
        for unknown in edits.drop_emptied(|level| Some(self.fresh(level)?.listing)) {
            self.levels.expire_level(&unknown);
        }
        if !edits.levels.is_empty() {
            self.news.fetch_add(1, Ordering::AcqRel);
        }
        edits
    }

    fn amend_memory(&self, edits: &Edits) {
        if !edits.levels.is_empty() {
            self.news.fetch_add(1, Ordering::AcqRel);
        }
        for (level, edits) in &edits.levels {
            self.levels.amend(level, edits);
        }
    }

    /// Makes the next question about a dataset (or about anything) go to the remote.
    pub fn expire(&self, name: Option<&DatasetName>) {
        *self.reliable_since.lock() = SystemClock.now();
        self.levels.expire(name);
    }

    /// An empty answer for a directory that the level above it, freshly listed, does not have:
    /// copying a tree of new directories into the mount asks the remote nothing.
    fn absent_by_parent(&self, level: &Level) -> Option<Known> {
        let Level::Directory(name, dir) = level else { return None };
        let (parent, child) = match dir.as_path() {
            Some(path) => (Level::Directory(name.clone(), path.parent()), path.file_name().to_owned()),
            None => (Level::Datasets, name.to_string()),
        };
        let parent = self.fresh(&parent)?;
        let exists = matches!(parent.listing.entries.get(&*child), Some(RemoteEntry::Directory));
        (!exists).then(|| Known { listing: Arc::default(), ..parent })
    }

    /// Tells whoever listens in which names two listings differ.
    fn tell_differences(&self, level: &Level, before: &Listing, after: &Listing) {
        let Some(listener) = self.listener.get() else { return };
        let names = edits::changed_names(before, after);
        match edits::paths_in(level, &names) {
            Some((dataset, paths)) if !paths.is_empty() => listener.changed(&dataset, &paths),
            Some(_) => {}
            None => {
                let datasets = names.iter().filter_map(|name| DatasetName::parse(name).ok());
                datasets.for_each(|dataset| listener.changed(&dataset, &[]));
            }
        }
    }

    /// Whether any level is in memory that a commit to this dataset would change.
    fn knows_part_of(&self, name: &DatasetName) -> bool {
        self.levels.of(Some(name)).iter().any(|level| match level {
            Level::Directory(..) => true,
            Level::Datasets => {
                self.fresh(level).is_none_or(|known| !known.listing.entries.contains_key(name.as_str()))
            }
        })
    }

    fn is_on_disk(&self, name: &DatasetName) -> bool {
        self.on_disk.lock().contains(name)
    }

    fn noted_on_disk(&self, name: &DatasetName) {
        self.on_disk.lock().insert(name.clone());
    }
}
