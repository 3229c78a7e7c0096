//! Fetching the files that will be opened next: [`walk`](crate::fs::walk) decides, this finds out
//! which files its positions mean and hands them to the reader.
//!
//! Positions are those of a directory, until the dataset's whole tree is known: then those of
//! all its files, so that a walk goes on from one directory to the next, and a shuffled epoch is
//! seen as one whatever directories it jumps between. The tree is learnt in the background when
//! somebody enters a dataset of moderate size, or goes through the files of several directories.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lru::LruCache;
use parking_lot::Mutex;

use crate::block::BLOCK_BYTES;
use crate::catalog::Catalog;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::snapshots::SnapshotId;
use crate::catalog::whole::Levels;
use crate::fs::walk::WalkDetector;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::read::Loaded;
use crate::read::ObjectVersion;
use crate::read::Reader;

/// Directories that are watched at a time.
const DIRECTORIES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Datasets that are watched at a time.
const DATASETS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Larger files are read for longer than it takes to ask for them: the prefetch within the file
/// serves them.
const SMALL_BYTES_MAX: u64 = 8 * BLOCK_BYTES;
/// Files that are handed to the reader for one open, at most.
const HINTS_AT_ONCE: usize = 128;
/// Opens in a directory before its listing is looked at.
const OPENS_MIN: u32 = 2;
/// The tree of a dataset with no more keys is learnt when somebody enters it: 20 requests.
const KEYS_ON_ENTRY: usize = 20_000;
/// … and one with no more keys when somebody reads files in several directories.
const KEYS_ON_WALK: usize = 200_000;
/// These are several directories.
const DIRECTORIES_OF_WALK: usize = 3;
/// A tree that was learnt, or could not be, is not asked for again for this long.
const LEARN_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Files that a sweep fetches at a time.
const SWEEP_REQUESTS: usize = 48;
/// A sweep rests when nothing was opened for so long.
const SWEEP_IDLE: Duration = Duration::from_secs(3);
/// What a sweep may fetch is at most this part of the cache: larger datasets would drive out
/// their own files before they are opened.
const SWEEP_CACHE_SHARE: u64 = 2;

/// What is watched.
#[derive(Debug)]
pub(super) struct Ahead {
    directories: Mutex<LruCache<(Shown, DirPath), Watched>>,
    datasets: Mutex<LruCache<DatasetName, Arc<Mutex<Tree>>>>,
}

/// Whose directories they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shown {
    /// A dataset's, as it is.
    Now(DatasetName),
    /// A dataset's, as it was.
    Past(SnapshotId),
}

#[derive(Debug)]
enum Watched {
    Counting(u32),
    Walking(Arc<Mutex<Walk>>),
}

/// What is known of a dataset's tree.
#[derive(Debug, Default)]
struct Tree {
    /// Directories in which files were opened.
    visited: HashSet<DirPath>,
    learning: bool,
    /// When it was last asked for, and up to how many keys; no bound if it was learnt.
    learnt: Option<(Instant, usize)>,
    walk: Option<Arc<Mutex<Walk>>>,
}

/// The files that positions refer to, and what is made of the opens.
#[derive(Debug)]
struct Walk {
    levels: Levels,
    /// For each directory, its place in `levels` and its files' positions.
    directories: HashMap<DirPath, (usize, std::ops::Range<usize>)>,
    /// Small files: the directory's place in `levels`, and the name.
    files: Vec<(usize, Arc<str>)>,
    bytes: u64,
    detector: WalkDetector,
    /// Positions that are to be fetched and were not handed to the reader yet.
    waiting: VecDeque<usize>,
    last_open: Instant,
    sweeping: bool,
}

/// An open, and those who can do something about the next one.
pub(super) struct Open<'a> {
    pub(super) catalog: &'a Arc<Catalog>,
    pub(super) reader: &'a Arc<Reader>,
    pub(super) whose: Shown,
    pub(super) path: &'a RelPath,
    pub(super) size_bytes: u64,
    /// The directory that the file is in, if it is known.
    pub(super) listing: &'a dyn Fn() -> Option<Arc<Listing>>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            directories: Mutex::new(LruCache::new(DIRECTORIES_MAX)),
            datasets: Mutex::new(LruCache::new(DATASETS_MAX)),
        }
    }
}

impl Ahead {
    /// Somebody looks into a directory of a dataset, and will want to know what is below it.
    pub fn entered(&self, catalog: &Arc<Catalog>, dataset: &DatasetName) {
        learn(&self.tree(dataset), catalog, dataset, KEYS_ON_ENTRY);
    }

    /// A file is opened: fetches what is likely to be opened next.
    pub fn opened(&self, open: &Open<'_>) {
        if open.size_bytes > SMALL_BYTES_MAX || open.size_bytes == 0 {
            return;
        }
        if let Shown::Now(dataset) = &open.whose
            && self.opened_in_tree(dataset, open)
        {
            return;
        }
        self.opened_in_directory(open);
    }

    /// Whether the dataset's whole tree is known and has the file.
    fn opened_in_tree(&self, dataset: &DatasetName, open: &Open<'_>) -> bool {
        let tree = self.tree(dataset);
        let (walk, visited) = {
            let mut tree = tree.lock();
            if tree.walk.is_none() && tree.visited.len() < DIRECTORIES_OF_WALK {
                tree.visited.insert(open.path.parent());
            }
            (tree.walk.clone(), tree.visited.len())
        };
        if let Some(walk) = walk {
            let position = walk.lock().position(open.path);
            if let Some(position) = position {
                Walk::opened(&walk, position, open.reader);
                return true;
            }
            learn(&tree, open.catalog, dataset, KEYS_ON_WALK);
        } else if visited >= DIRECTORIES_OF_WALK {
            learn(&tree, open.catalog, dataset, KEYS_ON_WALK);
        }
        false
    }

    fn tree(&self, dataset: &DatasetName) -> Arc<Mutex<Tree>> {
        Arc::clone(self.datasets.lock().get_or_insert(dataset.clone(), Arc::default))
    }

    fn opened_in_directory(&self, open: &Open<'_>) {
        let dir = open.path.parent();
        let walk = {
            let mut directories = self.directories.lock();
            let key = (open.whose.clone(), dir.clone());
            let watched = directories.get_or_insert_mut(key, || Watched::Counting(0));
            if let Watched::Counting(opens) = watched {
                *opens += 1;
                if *opens < OPENS_MIN {
                    return;
                }
            }
            let Some(listing) = (open.listing)() else { return };
            let is_current = |walk: &Arc<Mutex<Walk>>| Arc::ptr_eq(&walk.lock().levels[0].1, &listing);
            match watched {
                Watched::Walking(walk) if is_current(walk) => Arc::clone(walk),
                Watched::Walking(_) | Watched::Counting(_) => {
                    let walk = Arc::new(Mutex::new(Walk::new(vec![(dir, listing)])));
                    *watched = Watched::Walking(Arc::clone(&walk));
                    walk
                }
            }
        };
        let position = walk.lock().position(open.path);
        if let Some(position) = position {
            Walk::opened(&walk, position, open.reader);
        }
    }
}

/// Learns a dataset's tree in the background, if it is not known, or is old, and has no more
/// keys than that.
fn learn(tree: &Arc<Mutex<Tree>>, catalog: &Arc<Catalog>, dataset: &DatasetName, keys_max: usize) {
    {
        let mut tree = tree.lock();
        let tried =
            tree.learnt.is_some_and(|(at, keys)| at.elapsed() < LEARN_AGAIN_AFTER && keys >= keys_max);
        if tree.learning || tried {
            return;
        }
        tree.learning = true;
    }
    let (tree, catalog, dataset) = (Arc::clone(tree), Arc::clone(catalog), dataset.clone());
    tokio::spawn(async move {
        let levels = catalog.learn_whole(&dataset, keys_max).await;
        let mut tree = tree.lock();
        tree.learning = false;
        tree.learnt = Some((Instant::now(), keys_max));
        match levels {
            Ok(Some(levels)) => {
                tree.learnt = Some((Instant::now(), usize::MAX));
                let new = Walk::new(levels);
                match &tree.walk {
                    // What was learnt of the opens stands; the versions may be others.
                    Some(walk) if walk.lock().files == new.files => walk.lock().levels = new.levels,
                    Some(_) | None => tree.walk = Some(Arc::new(Mutex::new(new))),
                }
            }
            Ok(None) => tracing::debug!(%dataset, "has more than {keys_max} keys: listed by directory"),
            Err(err) => tracing::debug!(%dataset, "could not be listed as a whole: {err}"),
        }
    });
}

impl Walk {
    fn new(levels: Levels) -> Self {
        let mut files = Vec::new();
        let mut directories = HashMap::new();
        let mut bytes = 0;
        for (place, (dir, listing)) in levels.iter().enumerate() {
            let first = files.len();
            for (name, entry) in &listing.entries {
                if let Some(file) = small_file(entry) {
                    files.push((place, Arc::clone(name)));
                    bytes += file.size_bytes;
                }
            }
            directories.insert(dir.clone(), (place, first..files.len()));
        }
        Self {
            detector: WalkDetector::new(files.len()),
            levels,
            directories,
            files,
            bytes,
            waiting: VecDeque::new(),
            last_open: Instant::now(),
            sweeping: false,
        }
    }

    fn position(&self, path: &RelPath) -> Option<usize> {
        let (_, range) = self.directories.get(&path.parent())?;
        let names = &self.files[range.clone()];
        let found = names.binary_search_by(|(_, name)| (**name).cmp(path.file_name())).ok()?;
        Some(range.start + found)
    }

    fn version(&self, at: usize) -> Option<ObjectVersion> {
        let (place, name) = &self.files[at];
        let file = small_file(self.levels[*place].1.entries.get(&**name)?)?;
        Some(ObjectVersion { key: file.key.clone(), etag: file.etag.clone()?, size_bytes: file.size_bytes })
    }

    fn opened(walk: &Arc<Mutex<Self>>, position: usize, reader: &Arc<Reader>) {
        let mut this = walk.lock();
        this.last_open = Instant::now();
        if this.detector.was_swept(position)
            && let Some(version) = this.version(position)
        {
            reader.load_was_useful(&version);
        }
        let ahead = this.detector.opened(position);
        this.waiting.extend(ahead);
        this.waiting.retain(|&at| at != position);
        this.hint(reader);
        if !this.sweeping && this.bytes <= reader.cache().limit_bytes() / SWEEP_CACHE_SHARE {
            let Some(first) = this.sweep_next() else { return };
            this.sweeping = true;
            drop(this);
            tokio::spawn(sweep(Arc::clone(walk), Arc::clone(reader), first));
        }
    }

    /// Hands what is waiting to the reader; what it has no room for now waits for the next open.
    fn hint(&mut self, reader: &Reader) {
        let next: Vec<usize> = self.waiting.iter().copied().take(HINTS_AT_ONCE).collect();
        let versions: Vec<ObjectVersion> = next.iter().filter_map(|&at| self.version(at)).collect();
        if versions.is_empty() {
            return;
        }
        let taken = reader.hint_next(&versions);
        self.waiting.drain(..taken.min(self.waiting.len()));
    }

    fn sweep_next(&mut self) -> Option<ObjectVersion> {
        loop {
            let at = self.detector.sweep_next()?;
            if let Some(version) = self.version(at) {
                return Some(version);
            }
        }
    }
}

/// Fetches what the walk allows, for as long as files are opened.
async fn sweep(walk: Arc<Mutex<Walk>>, reader: Arc<Reader>, first: ObjectVersion) {
    let load = |version: ObjectVersion| {
        let reader = Arc::clone(&reader);
        async move { reader.load(&version).await }
    };
    let mut loads: FuturesUnordered<_> = std::iter::once(load(first)).collect();
    let mut refused = false;
    loop {
        {
            let mut walk = walk.lock();
            let idle = walk.last_open.elapsed() > SWEEP_IDLE;
            while !refused && !idle && loads.len() < SWEEP_REQUESTS {
                let Some(version) = walk.sweep_next() else { break };
                loads.push(load(version));
            }
            if loads.is_empty() {
                walk.sweeping = false; // the next open goes on
                return;
            }
        }
        refused |= loads.next().await == Some(Loaded::Refused);
    }
}

fn small_file(entry: &RemoteEntry) -> Option<&RemoteFile> {
    match entry {
        RemoteEntry::File(file) if file.size_bytes <= SMALL_BYTES_MAX && file.size_bytes > 0 => Some(file),
        RemoteEntry::File(_) | RemoteEntry::Directory => None,
    }
}
