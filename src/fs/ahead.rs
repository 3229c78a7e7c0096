//! Fetching the files that will be opened next: [`walk`](crate::fs::walk) decides, this finds out
//! which files its positions mean and hands them to the reader.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::block::BLOCK_BYTES;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::catalog::snapshots::SnapshotId;
use crate::fs::walk::WalkDetector;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::read::ObjectVersion;
use crate::read::Reader;

/// Directories that are watched at a time.
const DIRECTORIES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Larger files are read for longer than it takes to ask for them: the prefetch within the file
/// serves them.
const SMALL_BYTES_MAX: u64 = 8 * BLOCK_BYTES;
/// Files that are handed to the reader for one open, at most.
const HINTS_AT_ONCE: usize = 128;
/// Opens in a directory before its listing is looked at.
const OPENS_MIN: u32 = 2;

/// What is watched.
#[derive(Debug)]
pub(super) struct Ahead {
    directories: Mutex<LruCache<(Shown, DirPath), Watched>>,
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
    Walking(Walk),
}

#[derive(Debug)]
struct Walk {
    /// The listing that positions refer to.
    listing: Arc<Listing>,
    /// Small files in listing order.
    files: Vec<Arc<str>>,
    detector: WalkDetector,
    /// Positions that are to be fetched and were not handed to the reader yet.
    waiting: VecDeque<usize>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { directories: Mutex::new(LruCache::new(DIRECTORIES_MAX)) }
    }
}

impl Ahead {
    /// A small file is opened: fetches what is likely to be opened next, of what `listing` says is
    /// beside it.
    pub fn opened(
        &self,
        reader: &Reader,
        whose: &Shown,
        path: &RelPath,
        size_bytes: u64,
        listing: impl FnOnce() -> Option<Arc<Listing>>,
    ) {
        if size_bytes > SMALL_BYTES_MAX {
            return;
        }
        let dir = path.parent();
        let mut directories = self.directories.lock();
        let watched = directories.get_or_insert_mut((whose.clone(), dir), || Watched::Counting(0));
        if let Watched::Counting(opens) = watched {
            *opens += 1;
            if *opens < OPENS_MIN {
                return;
            }
        }
        let Some(listing) = listing() else { return };
        if !matches!(watched, Watched::Walking(walk) if Arc::ptr_eq(&walk.listing, &listing)) {
            *watched = Watched::Walking(Walk::new(listing));
        }
        let Watched::Walking(walk) = watched else { return };
        let Ok(position) = walk.files.binary_search_by(|name| (**name).cmp(path.file_name())) else { return };
        walk.opened(position, reader);
    }
}

impl Walk {
    fn new(listing: Arc<Listing>) -> Self {
        let small = listing.entries.iter().filter(|(_, entry)| small_file(entry).is_some());
        let files: Vec<Arc<str>> = small.map(|(name, _)| Arc::clone(name)).collect();
        let detector = WalkDetector::new(files.len());
        Self { listing, files, detector, waiting: VecDeque::new() }
    }

    fn opened(&mut self, position: usize, reader: &Reader) {
        self.waiting.extend(self.detector.opened(position));
        self.waiting.retain(|&at| at != position);
        let next: Vec<usize> = self.waiting.iter().copied().take(HINTS_AT_ONCE).collect();
        let versions: Vec<ObjectVersion> = next.iter().filter_map(|&at| self.version(at)).collect();
        if versions.is_empty() {
            return;
        }
        // What the reader has no room for now stays waiting for the next open.
        let taken = reader.hint_next(&versions);
        self.waiting.drain(..taken.min(self.waiting.len()));
    }

    fn version(&self, at: usize) -> Option<ObjectVersion> {
        let file = small_file(self.listing.entries.get(&*self.files[at])?)?;
        Some(ObjectVersion { key: file.key.clone(), etag: file.etag.clone()?, size_bytes: file.size_bytes })
    }
}

fn small_file(entry: &RemoteEntry) -> Option<&RemoteFile> {
    match entry {
        RemoteEntry::File(file) if file.size_bytes <= SMALL_BYTES_MAX && file.size_bytes > 0 => Some(file),
        RemoteEntry::File(_) | RemoteEntry::Directory => None,
    }
}
