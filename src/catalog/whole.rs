//! A dataset's whole tree from one flat listing.
//!
//! Directory by directory, every level costs its own round trips: a walk through fifty
//! directories, or a shuffled epoch over them, waits for each. A flat listing names a thousand
//! keys a request, whatever directories they are in, and log and intents are read once. What
//! comes of it is exactly what listing each level would have given, by the same rules, in the
//! same order: objects, intents, log.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::catalog::Known;
use crate::catalog::LISTING_TRIES;
use crate::catalog::Level;
use crate::catalog::history::Reading;
use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::pages;
use crate::catalog::pages::Gather;
use crate::catalog::view;
use crate::catalog::view::History;
use crate::catalog::view::Place;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::KeyPrefix;
use crate::name::RelPath;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::StoreError;

/// All directories of a dataset, in the order in which a walk from the top meets them.
pub type Levels = Vec<(DirPath, Arc<Listing>)>;

/// A dataset as it was learnt: of which commit, and how many news had come before.
struct Learnt {
    levels: Levels,
    seq: u64,
    news: u64,
}

/// Objects of a flat listing, until there are too many.
struct Keys {
    objects: Vec<ListedObject>,
    keys_max: usize,
}

impl Gather for Keys {
    fn add_page(&mut self, _: &KeyPrefix, page: ListPage) {
        self.objects.extend(page.objects);
    }

    fn restart(&mut self) {
        self.objects.clear();
    }

    fn has_enough(&self) -> bool {
        self.objects.len() > self.keys_max
    }
}

impl Catalog {
    /// Lists a whole dataset, so that all its directories are known as if each had been asked
    /// for now. `None`, and nothing learnt, if it has more than `keys_max` keys, or if commits
    /// kept coming in between. The disk takes it in afterwards: nobody waits for that.
    ///
    /// # Errors
    /// The store's.
    pub async fn learn_whole(
        self: &Arc<Self>,
        name: &DatasetName,
        keys_max: usize,
    ) -> Result<Option<Levels>, StoreError> {
        let Some(learnt) = self.learn(name, keys_max).await? else { return Ok(None) };
        let levels = learnt.levels.clone();
        let (catalog, name) = (Arc::clone(self), name.clone());
        tokio::spawn(async move { catalog.keep_all(&name, learnt).await });
        Ok(Some(levels))
    }

    /// As [`Self::learn_whole`], and the disk has begun to take in what was learnt; whether anything was.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn learn_and_keep(
        &self,
        name: &DatasetName,
        keys_max: usize,
    ) -> Result<bool, StoreError> {
        let Some(learnt) = self.learn(name, keys_max).await? else { return Ok(false) };
        self.keep_all(name, learnt).await;
        Ok(true)
    }

    async fn keep_all(&self, name: &DatasetName, learnt: Learnt) {
        for (dir, listing) in learnt.levels {
            self.keep(&Level::Directory(name.clone(), dir), listing, learnt.seq, learnt.news).await;
        }
    }

    async fn learn(&self, name: &DatasetName, keys_max: usize) -> Result<Option<Learnt>, StoreError> {
        let mut doubtful = true;
        for _ in 0..LISTING_TRIES {
            let news = self.news.load(Ordering::Acquire);
            let mark = self.histories.mark(name);
            let Some(objects) = self.flat(name, keys_max).await? else { return Ok(None) };
            let reading = self.read_history(name, mark).await?;
            let (levels, in_doubt) = self.view_all(name, objects, &reading);
            // As for a single level: the first reading cannot tell what another tool has done from what was
            // recorded after the listing.
            if std::mem::take(&mut doubtful) && reading.since_mark.is_none() && in_doubt {
                continue;
            }
            let seq = reading.history.snapshot.seq;
            drop(reading); // others may read
            if self.install(name, &levels, news) {
                return Ok(Some(Learnt { levels, seq, news }));
            }
        }
        Ok(None)
    }

    /// All objects of a dataset; `None` if there are more than `keys_max`.
    async fn flat(
        &self,
        name: &DatasetName,
        keys_max: usize,
    ) -> Result<Option<Vec<ListedObject>>, StoreError> {
        let request = ListRequest::recursive(self.prefix.dataset(name));
        let list = |request: ListRequest| async move { self.store.list(&request).await };
        let first = list(request.clone()).await?;
        let keys = pages::rest(&request, first, list, Keys { objects: Vec::new(), keys_max }).await?;
        Ok((!keys.has_enough()).then_some(keys.objects))
    }

    /// What is shown of each directory; and whether the snapshot does not explain something of it.
    fn view_all(&self, name: &DatasetName, objects: Vec<ListedObject>, reading: &Reading) -> (Levels, bool) {
        let recent = reading.since_mark.clone().unwrap_or_default();
        let dataset = self.prefix.dataset(name);
        let foreign = if reading.history.announces_any() {
            foreign_directories(&dataset, &objects, &reading.history)
        } else {
            BTreeSet::new() // nothing is doubtful then
        };
        let mut in_doubt = false;
        let mut levels = Levels::new();
        for (dir, mut listing) in split(&dataset, objects) {
            let place = Place { prefix: &self.prefix, dataset: name, dir: &dir };
            let doubts = view::apply(&mut listing, place, &reading.history, &recent);
            for path in doubts.directories {
                if !foreign.contains(&path.clone().into()) {
                    listing.entries.remove(path.file_name());
                }
            }
            in_doubt |= doubts.unexplained;
            let prefix = self.prefix.directory(name, &dir);
            listing.withheld.extend(doubts.missing.iter().map(|path| HiddenKey::missing(&prefix, path)));
            levels.push((dir, Arc::new(listing)));
        }
        levels.sort_by(|(one, _), (other, _)| one.as_str().split('/').cmp(other.as_str().split('/')));
        (levels, in_doubt)
    }

    /// Makes the levels known, unless news came since; whether it did.
    fn install(&self, name: &DatasetName, levels: &Levels, news: u64) -> bool {
        let expires = Instant::now() + self.ttl;
        levels.iter().all(|(dir, listing)| {
            let level = Level::Directory(name.clone(), dir.clone());
            let slot = self.levels.slot(&level);
            let known = Known { listing: Arc::clone(listing), expires, stale: None };
            // News is counted before it changes any level, and changes each under the slot's lock.
            let is_current = |_: Option<&Known>| self.news.load(Ordering::Acquire) == news;
            let (before, put) = self.levels.put(&slot, known, is_current);
            if put && let Some(before) = before {
                self.tell_differences(&level, &before.listing, listing);
            }
            put
        })
    }
}

/// The directories with anything below them that no unfinished commit has put there.
fn foreign_directories(
    dataset: &KeyPrefix,
    objects: &[ListedObject],
    history: &History,
) -> BTreeSet<DirPath> {
    let paths = objects.iter().filter_map(|object| dataset.strip(&object.key));
    let foreign = paths.filter(|path| !view::is_announced(path, history));
    let mut directories = BTreeSet::new();
    for path in foreign {
        // Also the directory of a marker `dir/`, and those that lead to what cannot be shown.
        for (at, _) in path.match_indices('/') {
            if let Ok(dir) = RelPath::parse(&path[..at]) {
                directories.insert(dir.into());
            }
        }
    }
    directories
}

/// Sorts the keys of a dataset into its directories, as listing each of them would have.
fn split(dataset: &KeyPrefix, objects: Vec<ListedObject>) -> BTreeMap<DirPath, Listing> {
    let mut pages: BTreeMap<DirPath, (ListPage, BTreeSet<KeyPrefix>)> = BTreeMap::new();
    pages.entry(DirPath::root()).or_default();
    for object in objects {
        let Some(path) = dataset.strip(&object.key).map(str::to_owned) else { continue };
        let mut dir = DirPath::root();
        let mut rest = &*path;
        loop {
            let level = pages.entry(dir.clone()).or_default();
            let Some((component, below)) = rest.split_once('/') else {
                level.0.objects.push(object);
                break;
            };
            let len = dataset.as_str().len() + path.len() - below.len();
            level.1.insert(KeyPrefix::from_listing(&object.key.as_str()[..len]));
            // What cannot be shown has nothing below it either.
            let Ok(child) = dir.child(component) else { break };
            dir = child.into();
            rest = below;
        }
    }
    let listings = pages.into_iter().map(|(dir, (mut page, prefixes))| {
        page.prefixes = prefixes.into_iter().collect();
        let text = dataset.as_str();
        let prefix = if dir.is_root() { text.to_owned() } else { format!("{text}{dir}/") };
        let mut listing = Listing::default();
        listing.add_page(&KeyPrefix::from_listing(&prefix), page);
        (dir, listing)
    });
    listings.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::name::ObjectKey;
    use crate::name::RemotePrefix;
    use crate::store::ObjectStore;
    use crate::store::memory::MemoryStore;

    fn run() -> DatasetName {
        DatasetName::parse("run").unwrap()
    }

    fn dir(text: &str) -> DirPath {
        RelPath::parse(text).map_or_else(|_| DirPath::root(), DirPath::from)
    }

    fn store(keys: &[&str]) -> Arc<MemoryStore> {
        let store = Arc::new(MemoryStore::default());
        for key in keys {
            store.overwrite_out_of_band(&ObjectKey::from_listing(key), Bytes::from_static(b"x"));
        }
        store
    }

    fn catalog(store: &Arc<MemoryStore>) -> Arc<Catalog> {
        let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
        Arc::new(Catalog::new(store, RemotePrefix::parse("d/").unwrap(), Duration::from_secs(60)))
    }

    #[tokio::test(start_paused = true)]
    async fn every_directory_is_as_if_it_had_been_listed_itself() {
        let keys = [
            "d/run/",
            "d/run/a",
            "d/run/a-b/x",
            "d/run/a/one",
            "d/run/a/two/deep",
            "d/run/a//hidden",
            "d/run/b/",
            "d/run/b/../up",
            "d/run/c",
            "d/run/c/both",
            "d/runner/other",
        ];
        let store = store(&keys);
        let (whole, single) = (catalog(&store), catalog(&store));
        let levels = whole.learn_whole(&run(), 100).await.unwrap().unwrap();
        let order: Vec<&str> = levels.iter().map(|(dir, _)| dir.as_str()).collect();
        assert_eq!(order, ["", "a", "a/two", "a-b", "b", "c"]);
        for (dir, listing) in levels {
            let level = Level::Directory(run(), dir);
            let alone = single.level(&level).await.unwrap().listing;
            assert_eq!(format!("{listing:?}"), format!("{alone:?}"), "{level:?}");
            assert!(Arc::ptr_eq(&whole.fresh(&level).unwrap().listing, &listing));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dataset_that_is_too_large_is_left_alone() {
        let keys: Vec<String> = (0..2500).map(|n| format!("d/run/{n}")).collect();
        let store = store(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        let catalog = catalog(&store);
        assert!(catalog.learn_whole(&run(), 2499).await.unwrap().is_none());
        assert!(catalog.fresh(&Level::Directory(run(), DirPath::root())).is_none());
        assert_eq!(catalog.learn_whole(&run(), 2500).await.unwrap().unwrap()[0].1.entries.len(), 2500);
    }

    #[tokio::test(start_paused = true)]
    async fn directories_that_are_not_there_stay_unknown() {
        let catalog = catalog(&store(&["d/run/a/x"]));
        catalog.learn_whole(&run(), 100).await.unwrap().unwrap();
        let absent = Level::Directory(run(), dir("b"));
        assert!(catalog.fresh(&absent).is_none());
        assert!(!catalog.level(&absent).await.unwrap().listing.exists(), "its parent is known");
    }
}
