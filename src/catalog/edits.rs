//! What a commit changes, level by level: pure.
//!
//! The same edits are made to the levels in memory and to those on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::Level;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;

/// New entries of a level by name; `None` for one that goes.
pub(super) type LevelEdits = BTreeMap<Arc<str>, Option<RemoteEntry>>;

/// Changes of some levels.
#[derive(Debug, Default)]
pub(super) struct Edits {
    pub(super) levels: BTreeMap<Level, LevelEdits>,
}

impl Edits {
    /// What follows from files that came and files that went: entries for the files, and for the
    /// directories that lead to those that came. A directory that is left empty stays until it is
    /// listed again, since another tool may have something in it.
    pub(super) fn of(name: &DatasetName, files: &[(RelPath, RemoteFile)], deleted: &[RelPath]) -> Self {
        let mut edits = Self::default();
        for path in deleted {
            edits.set(name, path, None);
        }
        for (path, file) in files {
            edits.set(name, path, Some(RemoteEntry::File(file.clone())));
            let mut dir = path.parent();
            while let Some(path) = dir.as_path() {
                if !edits.set(name, &path, Some(RemoteEntry::Directory)) {
                    break; // so are the ones above it
                }
                dir = path.parent();
            }
        }
        if !files.is_empty() {
            let datasets = edits.levels.entry(Level::Datasets).or_default();
            datasets.insert(name.as_str().into(), Some(RemoteEntry::Directory));
        }
        edits
    }

    /// Whether that is new.
    fn set(&mut self, name: &DatasetName, path: &RelPath, entry: Option<RemoteEntry>) -> bool {
        let level = Level::Directory(name.clone(), path.parent());
        let changed = self.levels.entry(level).or_default();
        let is_new = changed.get(path.file_name()) != Some(&entry);
        changed.insert(path.file_name().into(), entry);
        is_new
    }
}

/// Makes edits to a level.
pub(super) fn apply(listing: &mut Listing, edits: &LevelEdits) {
    for (name, entry) in edits {
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
    fn a_file_brings_the_directories_that_lead_to_it() {
        let run = DatasetName::parse("run").unwrap();
        let edits = Edits::of(&run, &[(path("a/b/c"), file(1)), (path("a/b/d"), file(1))], &[path("a/x")]);
        let shown: Vec<(String, Vec<String>)> = edits
            .levels
            .iter()
            .map(|(level, edits)| {
                let names = edits.iter().map(|(name, entry)| match entry {
                    None => format!("-{name}"),
                    Some(RemoteEntry::Directory) => format!("{name}/"),
                    Some(RemoteEntry::File(_)) => name.to_string(),
                });
                (format!("{level}"), names.collect())
            })
            .collect();
        let expected = [
            ("the datasets", vec!["run/"]),
            ("run", vec!["a/"]),
            ("run/a", vec!["b/", "-x"]),
            ("run/a/b", vec!["c", "d"]),
        ];
        let expected: Vec<(String, Vec<String>)> = expected
            .into_iter()
            .map(|(level, names)| (level.to_owned(), names.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn listings_differ_by_name_and_version() {
        let listing = |entries: &[(&str, u64)]| Listing {
            entries: entries
                .iter()
                .map(|(name, size)| ((*name).into(), RemoteEntry::File(file(*size))))
                .collect(),
            ..Listing::default()
        };
        let (before, after) =
            (listing(&[("a", 1), ("b", 1), ("c", 1)]), listing(&[("a", 1), ("b", 2), ("d", 1)]));
        let changed: Vec<String> = changed_names(&before, &after).iter().map(ToString::to_string).collect();
        assert_eq!(changed, ["b", "c", "d"]);
    }
}
