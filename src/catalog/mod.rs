//! What is known of the remote tree.
//!
//! Directory levels are listed when somebody asks for them and kept for a time ([`Catalog::new`],
//! `ttl`). Three rules:
//!
//! 1. **Unreachable is never 'deleted'.** If a level cannot be listed again, the last answer
//!    stays and is marked stale; an error reaches the caller only where nothing was ever known.
//! 2. **One listing for many askers.** Whoever asks while a level is being listed waits for it.
//! 3. **What this machine published is known without asking** ([`Catalog::publish`]).
//!
//! 4. **Half a commit is never shown.** What is listed is held against the dataset's log and
//!    intents, read after it (`view`), and all levels of a dataset move to a new snapshot together.
//!
//! Not known here: what is staged, inodes, the kernel.

mod history;
pub mod listing;
pub mod view;
mod whole;

pub use whole::WholeDataset;
pub use whole::WholeFile;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::catalog::history::Histories;
use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::view::History;
use crate::catalog::view::Place;
use crate::log::LogError;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::KeyPrefix;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Changes;
use crate::store::ListRequest;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::list_all;

/// How long a stale answer stands before the remote is asked again, after a failure.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How often a level is listed again because commits came in between.
const LISTING_TRIES: u32 = 4;

/// A directory level.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The level of the datasets themselves.
    Datasets,
    /// A directory of a dataset.
    Directory(DatasetName, DirPath),
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

/// Told of what others have published, when it is noticed.
pub trait NewsListener: fmt::Debug + Send + Sync {
    /// These paths of a dataset are not what they were.
    fn changed(&self, name: &DatasetName, paths: &[RelPath]);
}

/// The remote tree, as far as it is known.
#[derive(Debug)]
pub struct Catalog {
    histories: Histories,
    /// Counts what was taken in beside listings, so that an older listing does not undo it.
    news: AtomicU64,
    listener: OnceLock<Arc<dyn NewsListener>>,
    store: Arc<dyn ObjectStore>,
    prefix: RemotePrefix,
    ttl: Duration,
    slots: Mutex<HashMap<Level, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    known: Mutex<Option<Known>>,
    /// Held while the level is being listed.
    asking: tokio::sync::Mutex<()>,
}

impl Catalog {
    /// A catalog that knows nothing yet and keeps each answer for `ttl`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: RemotePrefix, ttl: Duration) -> Self {
        let histories = Histories::new(Arc::clone(&store), prefix.clone());
        Self {
            store,
            prefix,
            ttl,
            slots: Mutex::default(),
            histories,
            news: AtomicU64::new(0),
            listener: OnceLock::new(),
        }
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
        self.last_known(level).filter(Known::is_fresh)
    }

    /// The level, listed if it has to be.
    ///
    /// # Errors
    /// The store's, where nothing is known from before.
    pub async fn level(&self, level: &Level) -> Result<Known, StoreError> {
        if let Some(known) = self.absent_by_parent(level) {
            return Ok(known);
        }
        let slot = Arc::clone(self.slots.lock().entry(level.clone()).or_default());
        if let Some(known) = fresh_in(&slot) {
            return Ok(known);
        }
        let _asking = slot.asking.lock().await;
        if let Some(known) = fresh_in(&slot) {
            return Ok(known); // somebody else asked while we waited
        }
        let mut tries = 0;
        let (answer, mut known) = loop {
            tries += 1;
            let news = self.news.load(Ordering::Acquire);
            let answer = self.list(level).await;
            let known = slot.known.lock();
            // News that came while the listing was under way has changed the level that it replaces.
            if news == self.news.load(Ordering::Acquire) || tries == LISTING_TRIES || answer.is_err() {
                break (answer, known);
            }
        };
        let now = Instant::now();
        match (answer, &*known) {
            (Ok(listing), _) => {
                let new = Known { listing: Arc::new(listing), expires: now + self.ttl, stale: None };
                Ok(known.insert(new).clone())
            }
            (Err(err), Some(before)) => {
                tracing::warn!("{level:?} could not be listed again, showing what was known: {err}");
                let stale = Known {
                    listing: Arc::clone(&before.listing),
                    expires: now + RETRY_AFTER_FAILURE,
                    stale: Some(Arc::new(err)),
                };
                Ok(known.insert(stale).clone())
            }
            (Err(err), None) => Err(err),
        }
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
            Err(err) => match self.last_known(&Level::Datasets) {
                Some(known) => Ok(known.listing.entries.contains_key(name.as_str())),
                None => Err(err),
            },
        }
    }

    fn last_known(&self, level: &Level) -> Option<Known> {
        let slot = self.slots.lock().get(level).cloned()?;
        slot.known.lock().clone()
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

    /// Takes in what this machine has published, without asking the remote.
    pub fn publish(&self, name: &DatasetName, files: &[(RelPath, RemoteFile)]) {
        self.news.fetch_add(1, Ordering::AcqRel);
        for (path, file) in files {
            let mut child: (DirPath, String, RemoteEntry) =
                (path.parent(), path.file_name().to_owned(), RemoteEntry::File(file.clone()));
            loop {
                let (dir, entry_name, entry) = child;
                self.amend(&Level::Directory(name.clone(), dir.clone()), |listing| {
                    listing.entries.insert(entry_name.into(), entry);
                });
                let Some(dir) = dir.as_path() else { break };
                child = (dir.parent(), dir.file_name().to_owned(), RemoteEntry::Directory);
            }
        }
        if !files.is_empty() {
            self.amend(&Level::Datasets, |listing| {
                listing.entries.insert(name.as_str().into(), RemoteEntry::Directory);
            });
        }
    }

    /// Takes in what this machine has deleted, without asking the remote.
    pub fn withdraw(&self, name: &DatasetName, paths: &[RelPath]) {
        self.news.fetch_add(1, Ordering::AcqRel);
        for path in paths {
            self.amend(&Level::Directory(name.clone(), path.parent()), |listing| {
                listing.entries.remove(path.file_name());
            });
        }
    }

    /// Makes the next question about a dataset (or about anything) go to the remote.
    pub fn expire(&self, name: Option<&DatasetName>) {
        let now = Instant::now();
        for (level, slot) in self.slots.lock().iter() {
            let concerned = match (level, name) {
                (_, None) | (Level::Datasets, _) => true,
                (Level::Directory(dataset, _), Some(name)) => dataset == name,
            };
            if concerned && let Some(known) = &mut *slot.known.lock() {
                known.expires = now;
            }
        }
    }

    /// Changes a level that is known; one that is not will be listed when it is asked for.
    fn amend(&self, level: &Level, change: impl FnOnce(&mut Listing)) {
        let Some(slot) = self.slots.lock().get(level).cloned() else { return };
        if let Some(known) = &mut *slot.known.lock() {
            change(Arc::make_mut(&mut known.listing));
        }
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

    async fn list(&self, level: &Level) -> Result<Listing, StoreError> {
        match level {
            Level::Datasets => self.list_datasets().await,
            Level::Directory(name, dir) => self.list_directory(name, dir).await,
        }
    }

    async fn list_objects(&self, prefix: &KeyPrefix) -> Result<Listing, StoreError> {
        let mut request = ListRequest::one_level(prefix.clone());
        let mut listing = Listing::default();
        loop {
            let page = self.store.list(&request).await?;
            request.continuation = page.continuation.clone();
            listing.add_page(prefix, page);
            if request.continuation.is_none() {
                return Ok(listing);
            }
        }
    }

    async fn list_datasets(&self) -> Result<Listing, StoreError> {
        let mut listing = self.list_objects(&self.prefix.datasets()).await?;
        // Only directories with a dataset's name are datasets; our own state is not.
        listing
            .entries
            .retain(|name, entry| *entry == RemoteEntry::Directory && DatasetName::parse(name).is_ok());
        // A dataset that somebody is making for the first time appears when it is committed.
        let intents = self.prefix.all_intents();
        for below in list_all(&*self.store, ListRequest::one_level(intents.clone())).await?.prefixes {
            let name = below.as_str().strip_prefix(intents.as_str()).and_then(|name| name.strip_suffix('/'));
            let Some(name) = name.filter(|name| listing.entries.contains_key(*name)) else { continue };
            let Ok(dataset) = DatasetName::parse(name) else { continue };
            let top = Level::Directory(dataset, DirPath::root());
            if !Box::pin(self.level(&top)).await?.listing.exists() {
                listing.entries.remove(name);
            }
        }
        Ok(listing)
    }

    /// One directory, as of one snapshot.
    async fn list_directory(&self, name: &DatasetName, dir: &DirPath) -> Result<Listing, StoreError> {
        let place = Place { prefix: &self.prefix, dataset: name, dir };
        let prefix = self.prefix.directory(name, dir);
        let mut first = true;
        loop {
            let mark = self.histories.mark(name);
            let mut listing = self.list_objects(&prefix).await?;
            if !listing.exists() && mark.is_beginning() {
                return Ok(listing); // nothing there, and no log that says otherwise
            }
            let reading = self.histories.read(name, mark).await.map_err(LogError::into_store_error)?;
            self.take_news(name, &reading.news);
            let recent = reading.since_mark.clone().unwrap_or_default();
            let doubts = view::apply(&mut listing, place, &reading.history, &recent);
            // The first time, nothing tells a file that was deleted by another tool from one whose
            // record came after the listing. The second time does.
            if std::mem::take(&mut first) && reading.since_mark.is_none() && !doubts.missing.is_empty() {
                continue;
            }
            for path in doubts.directories {
                if !self.has_foreign(name, &path, &reading.history).await? {
                    listing.entries.remove(path.file_name());
                }
            }
            listing.withheld.extend(doubts.missing.iter().map(|path| HiddenKey {
                key: format!("{prefix}{}", path.file_name()),
                reason: "committed, and deleted since by another tool".into(),
            }));
            return Ok(listing);
        }
    }

    /// Whether there is anything below a directory that no unfinished commit has put there.
    async fn has_foreign(
        &self,
        name: &DatasetName,
        dir: &RelPath,
        history: &History,
    ) -> Result<bool, StoreError> {
        let dataset = self.prefix.dataset(name);
        let mut request = ListRequest::recursive(self.prefix.directory(name, &dir.clone().into()));
        loop {
            let page = self.store.list(&request).await?;
            let mut paths = page.objects.iter().filter_map(|object| dataset.strip(&object.key));
            if paths.any(|path| !view::is_announced(path, history)) {
                return Ok(true);
            }
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => return Ok(false),
            }
        }
    }

    /// Moves every level of a dataset that is known to the snapshot that was just read.
    fn take_news(&self, name: &DatasetName, news: &Changes) {
        if news.is_empty() {
            return;
        }
        let files: BTreeMap<RelPath, RemoteFile> = news
            .entries
            .iter()
            .filter_map(|entry| {
                let file = RemoteFile {
                    key: self.prefix.key(name, &entry.path).ok()?,
                    size_bytes: entry.size_bytes,
                    etag: Some(entry.etag.clone()),
                    modified: entry.mtime,
                };
                Some((entry.path.clone(), file))
            })
            .collect();
        let deleted: Vec<RelPath> = news.deleted.iter().map(|gone| gone.path.clone()).collect();
        self.withdraw(name, &deleted);
        self.publish(name, &files.clone().into_iter().collect::<Vec<_>>());
        if let Some(listener) = self.listener.get() {
            let paths: Vec<RelPath> = files.into_keys().chain(deleted).collect();
            listener.changed(name, &paths);
        }
    }
}

fn fresh_in(slot: &Slot) -> Option<Known> {
    slot.known.lock().clone().filter(Known::is_fresh)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::ObjectKey;
    use crate::store::memory::MemoryStore;

    fn put(store: &MemoryStore, key: &str) {
        store.overwrite_out_of_band(&ObjectKey::from_listing(key), Bytes::from_static(b"x"));
    }

    fn catalog(store: &Arc<MemoryStore>) -> Catalog {
        let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
        Catalog::new(store, RemotePrefix::parse("d/").unwrap(), Duration::from_secs(60))
    }

    fn names(known: &Known) -> Vec<String> {
        known.listing.entries.keys().map(|name| name.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn datasets_are_directories_with_valid_names() {
        let store = Arc::new(MemoryStore::default());
        for key in ["d/run/data.jsonl", "d/loose-file", "d/.hidden/x", "other/x", ".dsfs/d/log/run/1"] {
            put(&store, key);
        }
        let known = catalog(&store).level(&Level::Datasets).await.unwrap();
        assert_eq!(names(&known), ["run"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_time_and_then_asked_again() {
        let store = Arc::new(MemoryStore::default());
        put(&store, "d/run/a");
        let catalog = catalog(&store);
        let level = Level::Directory(DatasetName::parse("run").unwrap(), DirPath::root());
        assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a"]);
        put(&store, "d/run/b");
        assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a"]);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a", "b"]);
        put(&store, "d/run/c");
        catalog.expire(None);
        assert_eq!(names(&catalog.level(&level).await.unwrap()), ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_published_is_known_without_asking() {
        let store = Arc::new(MemoryStore::default());
        put(&store, "d/run/a");
        let catalog = catalog(&store);
        let run = DatasetName::parse("run").unwrap();
        let level = Level::Directory(run.clone(), DirPath::root());
        catalog.level(&level).await.unwrap();
        let file = RemoteFile {
            key: ObjectKey::from_listing("d/run/sub/x"),
            size_bytes: 1,
            etag: Some(crate::name::ETag::from_server("e")),
            modified: std::time::SystemTime::UNIX_EPOCH,
        };
        catalog.publish(&run, &[(RelPath::parse("sub/x").unwrap(), file)]);
        let known = catalog.fresh(&level).unwrap();
        assert_eq!(known.listing.entries.get("sub"), Some(&RemoteEntry::Directory));
        // The level below was never asked for: it is listed when it is.
        assert!(catalog.fresh(&Level::Directory(run, RelPath::parse("sub").unwrap().into())).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_its_parent_lacks_is_empty_without_asking() {
        let store = Arc::new(MemoryStore::default());
        put(&store, "d/run/a");
        let catalog = catalog(&store);
        let run = DatasetName::parse("run").unwrap();
        catalog.level(&Level::Directory(run.clone(), DirPath::root())).await.unwrap();
        put(&store, "d/run/new/x"); // by somebody else, within the time that the answer stands
        let below = Level::Directory(run, RelPath::parse("new").unwrap().into());
        assert!(!catalog.level(&below).await.unwrap().listing.exists());
        catalog.expire(None);
        assert!(catalog.level(&below).await.unwrap().listing.exists());
    }
}
