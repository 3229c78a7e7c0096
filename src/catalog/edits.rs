//! What a commit changes, level by level: pure.
//!
//! The same edits are made to the levels in memory and to those on disk.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::Level;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;

/// Changes of a level.
#[derive(Debug, Default)]
pub(super) struct LevelEdits {
    /// New entries by name; `None` for one that goes.
    pub(super) entries: BTreeMap<Arc<str>, Option<RemoteEntry>>,
    /// The directory's own marker came.
    pub(super) marker: bool,
}

impl LevelEdits {
    fn leaves_nothing_of(&self, listing: &Listing) -> bool {
        let goes = |name: &Arc<str>| matches!(self.entries.get(name), Some(None));
        !self.marker
            && !listing.marker
            && listing.hidden.is_empty()
            && self.entries.values().all(Option::is_none)
            && self.entries.len() >= listing.entries.len()
            && listing.entries.keys().all(goes)
    }
}

/// Changes of some levels.
#[derive(Debug, Default)]
pub(super) struct Edits {
    pub(super) levels: BTreeMap<Level, LevelEdits>,
}

impl Edits {
    /// What follows from files and directories' markers that came and files that went: entries for the
    /// files, and for the directories that lead to what came.
    pub(super) fn of(
        name: &DatasetName,
        files: &[(RelPath, RemoteFile)],
        markers: &[RelPath],
        deleted: &[RelPath],
    ) -> Self {
        let mut edits = Self::default();
        for path in deleted {
            edits.set(name, path, None);
        }
        for (path, file) in files {
            edits.set(name, path, Some(RemoteEntry::File(file.clone())));
            edits.lead_to(name, path.parent());
        }
        for marker in markers {
            let dir = DirPath::from(marker.clone());
            edits.levels.entry(Level::Directory(name.clone(), dir.clone())).or_default().marker = true;
            edits.lead_to(name, dir);
        }
        if !files.is_empty() || !markers.is_empty() {
            let datasets = edits.levels.entry(Level::Datasets).or_default();
            datasets.entries.insert(name.as_str().into(), Some(RemoteEntry::Directory));
        }
        edits
    }

    /// Directories in which this leaves nothing go too, as far as `listing_of` knows all that is in them, and
    /// so on upwards: a prefix without keys is no directory. Returns all levels above those that it does not
    /// know, since they may go too.
    pub(super) fn drop_emptied(
        &mut self,
        listing_of: impl Fn(&Level) -> Option<Arc<Listing>>,
    ) -> BTreeSet<Level> {
        let length = |level: &Level| match level {
            Level::Directory(_, dir) => dir.as_str().len(),
            Level::Datasets => 0,
        };
        let with_losses = self.levels.iter().filter(|(_, edits)| edits.entries.values().any(Option::is_none));
        let mut left: BTreeSet<(usize, Level)> =
            with_losses.map(|(level, _)| (length(level), level.clone())).collect();
        let mut unsure = BTreeSet::new();
        // The longest first, which no other can be above.
        while let Some((_, level)) = left.pop_last() {
            let Level::Directory(name, dir) = &level else { continue };
            let (Some(path), Some(edits)) = (dir.as_path(), self.levels.get(&level)) else { continue };
            let above = Level::Directory(name.clone(), path.parent());
            match listing_of(&level) {
                None => unsure.extend(path.ancestors().map(|dir| Level::Directory(name.clone(), dir))),
                Some(listing) if edits.leaves_nothing_of(&listing) && !self.brings(name, &path) => {
                    self.set(name, &path, None);
                    left.insert((length(&above), above));
                }
                Some(_) => {}
            }
        }
        unsure
    }

    /// Whether something comes at `path`: a file, where a directory was.
    fn brings(&self, name: &DatasetName, path: &RelPath) -> bool {
        let above = self.levels.get(&Level::Directory(name.clone(), path.parent()));
        above.is_some_and(|edits| matches!(edits.entries.get(path.file_name()), Some(Some(_))))
    }

    /// A directory is there, and those above it.
    fn lead_to(&mut self, name: &DatasetName, mut dir: DirPath) {
        while let Some(path) = dir.as_path() {
            if !self.set(name, &path, Some(RemoteEntry::Directory)) {
                break; // so are the ones above it
            }
            dir = path.parent();
        }
    }

    /// Whether that is new.
    fn set(&mut self, name: &DatasetName, path: &RelPath, entry: Option<RemoteEntry>) -> bool {
        let level = Level::Directory(name.clone(), path.parent());
        let changed = &mut self.levels.entry(level).or_default().entries;
        let is_new = changed.get(path.file_name()) != Some(&entry);
        changed.insert(path.file_name().into(), entry);
        is_new
    }
}

/// Makes edits to a level.
pub(super) fn apply(listing: &mut Listing, edits: &LevelEdits) {
    listing.marker |= edits.marker;
    for (name, entry) in &edits.entries {
        match entry {
            Some(entry) => {
                listing.entries.insert(Arc::clone(name), entry.clone());
            }
            None => {
                listing.entries.remove(name);
            }
        }
    }
}

/// The names in which two listings of one level differ.
pub(super) fn changed_names(before: &Listing, after: &Listing) -> Vec<Arc<str>> {
    let gone_or_other =
        before.entries.iter().filter(|(name, entry)| after.entries.get(*name) != Some(*entry));
    let new = after.entries.keys().filter(|name| !before.entries.contains_key(*name));
    gone_or_other.map(|(name, _)| name).chain(new).cloned().collect()
}

/// The paths that these names have in a level; the level of the datasets has none.
pub(super) fn paths_in(level: &Level, names: &[Arc<str>]) -> Option<(DatasetName, Vec<RelPath>)> {
    let Level::Directory(dataset, dir) = level else { return None };
    let paths = names.iter().filter_map(|name| DirPath::child(dir, name).ok()).collect();
    Some((dataset.clone(), paths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ObjectKey;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn file(size_bytes: u64) -> RemoteFile {
        RemoteFile {
            key: ObjectKey::from_listing("k"),
            size_bytes,
            etag: None,
            modified: std::time::SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_comes_brings_the_directories_that_lead_to_it() {
        let run = DatasetName::parse("run").unwrap();
        let files = [(path("a/b/c"), file(1)), (path("a/b/d"), file(1))];
        let edits = Edits::of(&run, &files, &[path("a/empty")], &[path("a/x")]);
        let shown: Vec<(String, Vec<String>)> = edits
            .levels
            .iter()
            .map(|(level, edits)| {
                let marker = edits.marker.then(|| ".".to_owned());
                let names = edits.entries.iter().map(|(name, entry)| match entry {
                    None => format!("-{name}"),
                    Some(RemoteEntry::Directory) => format!("{name}/"),
                    Some(RemoteEntry::File(_)) => name.to_string(),
                });
                (format!("{level}"), marker.into_iter().chain(names).collect())
            })
            .collect();
        let expected = [
            ("the datasets", vec!["run/"]),
            ("run", vec!["a/"]),
            ("run/a", vec!["b/", "empty/", "-x"]),
            ("run/a/b", vec!["c", "d"]),
            ("run/a/empty", vec!["."]),
        ];
        let expected: Vec<(String, Vec<String>)> = expected
            .into_iter()
            .map(|(level, names)| (level.to_owned(), names.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(shown, expected);
    }

    fn listing(entries: &[(&str, u64)]) -> Listing {
        let entry = |(name, size): &(&str, u64)| match name.strip_suffix('/') {
            Some(dir) => (dir.into(), RemoteEntry::Directory),
            None => ((*name).into(), RemoteEntry::File(file(*size))),
        };
        Listing { entries: entries.iter().map(entry).collect(), ..Listing::default() }
    }

    #[test]
    fn directories_in_which_nothing_is_left_go_with_it() {
        let run = DatasetName::parse("run").unwrap();
        let level = |dir: &str| Level::Directory(run.clone(), path(dir).into());
        let marked = Listing { marker: true, ..listing(&[("x", 1)]) };
        let hides = crate::catalog::listing::HiddenKey { key: "run/hides/..".into(), reason: String::new() };
        let hides = Listing { hidden: vec![hides], ..listing(&[("x", 1)]) };
        let known: BTreeMap<Level, Arc<Listing>> = [
            ("a", listing(&[("b/", 0), ("c/", 0)])),
            ("a/b", listing(&[("x", 1), ("y", 1)])),
            ("a/c", listing(&[("d/", 0)])),
            ("a/c/d", listing(&[("x", 1)])),
            ("half", listing(&[("x", 1), ("y", 1)])),
            ("refilled", listing(&[("x", 1)])),
            ("replaced", listing(&[("x", 1)])),
            ("marked", marked),
            ("hides", hides),
        ]
        .into_iter()
        .map(|(dir, listing)| (level(dir), Arc::new(listing)))
        .collect();
        let came = ["refilled/y", "replaced"].map(|came| (path(came), file(1)));
        let gone = [
            "a/b/x",
            "a/b/y",
            "a/c/d/x",
            "half/x",
            "refilled/x",
            "replaced/x",
            "marked/x",
            "hides/x",
            "un/known/x",
        ];
        let mut edits = Edits::of(&run, &came, &[], &gone.map(path));
        let unsure = edits.drop_emptied(|level| known.get(level).cloned());
        assert_eq!(unsure, [level("un"), Level::Directory(run.clone(), DirPath::root())].into());
        let top = &edits.levels[&Level::Directory(run, DirPath::root())];
        let changed: Vec<(&str, bool)> =
            top.entries.iter().map(|(name, entry)| (&**name, entry.is_some())).collect();
        assert_eq!(changed, [("a", false), ("refilled", true), ("replaced", true)]);
    }

    #[test]
    fn listings_differ_by_name_and_version() {
        let (before, after) =
            (listing(&[("a", 1), ("b", 1), ("c", 1)]), listing(&[("a", 1), ("b", 2), ("d", 1)]));
        let changed: Vec<String> = changed_names(&before, &after).iter().map(ToString::to_string).collect();
        assert_eq!(changed, ["b", "c", "d"]);
    }
}
