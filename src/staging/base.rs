//! What a staged file replaces, and what a staged deletion hides.
//!
//! Only on mounts that allow replacing. One small file per path, `base/<hex sha256 of path>.json`,
//! written before the change that it belongs to; in memory by directory, so that a lookup or a
//! listing costs nothing.
//!
//! Beside them, `base/<hex sha256 of path>.removed` says of a published directory that it was removed
//! after all that is in it was deleted. Nothing is published by that, a prefix without keys being no
//! directory; it only hides the directory until then. It goes with the first deletion below it that is
//! taken back.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use sha2::Digest;
use sha2::Sha256;

use crate::durable;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::RelPath;
use crate::staging::StagingError;
use crate::staging::dataset::SealedTree;
use crate::staging::dataset::StagedDataset;
use crate::staging::dataset::Trees;

/// The published version that a staged change stands on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The version that was seen; any other is a conflict, not a victim.
    pub etag: ETag,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What happens to it.
    pub kind: BaseKind,
}

/// What a commit does to a published version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseKind {
    /// The staged file takes its place.
    Replace,
    /// It is deleted.
    Delete,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct BaseFile {
    path: RelPath,
    #[serde(flatten)]
    base: Base,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct RemovedFile {
    path: RelPath,
}

const BASE: &str = "json";
const REMOVED: &str = "removed";

/// All bases of one tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Bases {
    by_dir: BTreeMap<DirPath, BTreeMap<String, Base>>,
    /// Removed directories, by the directory that they were in.
    removed: BTreeMap<DirPath, BTreeSet<String>>,
}

impl Bases {
    /// Reads the directory `dir`; a missing one is empty.
    pub fn load(dir: &Path) -> io::Result<Self> {
        let mut bases = Self::default();
        let entries = match fs::read_dir(dir) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(bases),
            answer => answer?,
        };
        for entry in entries {
            let path = entry?.path();
            let is = |extension| path.extension().is_some_and(|found| found == extension);
            if !is(BASE) && !is(REMOVED) {
                continue;
            }
            let text = match fs::read(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue, // whoever only looks may have company
                answer => answer?,
            };
            if is(BASE) {
                let file: BaseFile = serde_json::from_slice(&text)?;
                bases.insert(&file.path, file.base);
            } else {
                let file: RemovedFile = serde_json::from_slice(&text)?;
                bases.insert_removed(&file.path);
            }
        }
        Ok(bases)
    }

    fn insert(&mut self, path: &RelPath, base: Base) {
        self.by_dir.entry(path.parent()).or_default().insert(path.file_name().to_owned(), base);
    }

    fn insert_removed(&mut self, dir: &RelPath) {
        self.removed.entry(dir.parent()).or_default().insert(dir.file_name().to_owned());
    }

    pub fn get(&self, path: &RelPath) -> Option<&Base> {
        self.by_dir.get(&path.parent())?.get(path.file_name())
    }

    /// Writes one down, durably.
    pub fn set(&mut self, dir: &Path, path: &RelPath, base: &Base) -> io::Result<()> {
        durable::create_private_dirs(dir)?;
        let file = BaseFile { path: path.clone(), base: base.clone() };
        durable::replace(&file_of(dir, path, BASE), &serde_json::to_vec(&file)?)?;
        self.insert(path, base.clone());
        Ok(())
    }

    /// Forgets one, durably.
    pub fn clear(&mut self, dir: &Path, path: &RelPath) -> io::Result<()> {
        if self.get(path).is_none() {
            return Ok(());
        }
        self.clear_removed_above(dir, path)?;
        if let Some(names) = self.by_dir.get_mut(&path.parent()) {
            names.remove(path.file_name());
            if names.is_empty() {
                self.by_dir.remove(&path.parent());
            }
        }
        fs::remove_file(file_of(dir, path, BASE))?;
        durable::sync_dir(dir)
    }

    /// Whether there was something in a directory that is deleted or removed.
    pub fn has_emptied(&self, dir: &DirPath) -> bool {
        self.deletions(dir).next().is_some() || self.removed.contains_key(dir)
    }

    /// Writes down, durably, that a directory was removed.
    pub fn set_removed(&mut self, dir: &Path, removed: &RelPath) -> io::Result<()> {
        durable::create_private_dirs(dir)?;
        let file = RemovedFile { path: removed.clone() };
        durable::replace(&file_of(dir, removed, REMOVED), &serde_json::to_vec(&file)?)?;
        self.insert_removed(removed);
        Ok(())
    }

    /// Forgets that a directory was removed, durably.
    pub fn clear_removed(&mut self, dir: &Path, removed: &RelPath) -> io::Result<()> {
        let Some(names) = self.removed.get_mut(&removed.parent()) else { return Ok(()) };
        if names.remove(removed.file_name()) {
            if names.is_empty() {
                self.removed.remove(&removed.parent());
            }
            fs::remove_file(file_of(dir, removed, REMOVED))?;
            durable::sync_dir(dir)?;
        }
        Ok(())
    }

    /// Forgets, durably, that directories were removed in which `path` is.
    pub fn clear_removed_above(&mut self, dir: &Path, path: &RelPath) -> io::Result<()> {
        let mut above = path.ancestors().filter_map(|above| above.as_path());
        above.try_for_each(|above| self.clear_removed(dir, &above))
    }

    /// Whether a directory was removed.
    pub fn is_removed(&self, dir: &RelPath) -> bool {
        self.removed.get(&dir.parent()).is_some_and(|names| names.contains(dir.file_name()))
    }

    /// The names in `dir` of directories that were removed.
    pub fn removed_in<'a>(&'a self, dir: &DirPath) -> impl Iterator<Item = &'a str> {
        self.removed.get(dir).into_iter().flatten().map(String::as_str)
    }

    /// The names in `dir` that are deleted.
    pub fn deletions<'a>(&'a self, dir: &DirPath) -> impl Iterator<Item = &'a str> {
        let names = self.by_dir.get(dir).into_iter().flatten();
        names.filter(|(_, base)| base.kind == BaseKind::Delete).map(|(name, _)| name.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.by_dir.is_empty()
    }

    /// All of them, in the order of their paths.
    pub fn all(&self) -> Vec<(RelPath, Base)> {
        let mut all: Vec<(RelPath, Base)> = Vec::new();
        for (dir, names) in &self.by_dir {
            all.extend(names.iter().filter_map(|(name, base)| Some((dir.child(name).ok()?, base.clone()))));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

impl StagedDataset {
    /// The published version that the staged change at `path` stands on, if it stands on one.
    #[must_use]
    pub fn base(&self, path: &RelPath) -> Option<Base> {
        let trees = self.trees.read();
        let sealed = || trees.sealed.as_ref().and_then(|sealed| sealed.bases.get(path));
        trees.bases.get(path).or_else(sealed).cloned()
    }

    /// Remembers, durably, what a change at `path` stands on. Comes before the change itself.
    ///
    /// # Errors
    /// [`StagingError::Sealed`], and the local disk's.
    pub fn set_base(&self, path: &RelPath, base: &Base) -> Result<(), StagingError> {
        let mut trees = self.changing();
        if trees.sealed.as_ref().is_some_and(|sealed| sealed.bases.get(path).is_some()) {
            return Err(StagingError::Sealed { path: path.clone() });
        }
        self.open_tree(&mut trees)?;
        let dir = self.base_dir();
        // Whoever changes something in it has seen it: the directories above are there again.
        let set =
            trees.bases.clear_removed_above(&dir, path).and_then(|()| trees.bases.set(&dir, path, base));
        set.map_err(|source| self.failed(path, source))
    }

    /// Forgets, durably, what was remembered for `path`.
    ///
    /// # Errors
    /// The local disk's.
    pub fn clear_base(&self, path: &RelPath) -> Result<(), StagingError> {
        let mut trees = self.changing();
        trees.bases.clear(&self.base_dir(), path).map_err(|source| self.failed(path, source))
    }

    /// Remembers, durably, that a directory was removed after all that is published in it: it is hidden
    /// with what was in it. Where nothing of that was deleted here, there is nothing to remember.
    ///
    /// # Errors
    /// [`StagingError::Sealed`] if a commit has those deletions, and the local disk's.
    pub fn set_removed(&self, path: &RelPath) -> Result<(), StagingError> {
        let mut trees = self.changing();
        self.note_removed(&mut trees, path)
    }

    pub(super) fn note_removed(&self, trees: &mut Trees, path: &RelPath) -> Result<(), StagingError> {
        let dir = DirPath::from(path.clone());
        if trees.bases.has_emptied(&dir) {
            let set = trees.bases.set_removed(&self.base_dir(), path);
            return set.map_err(|source| self.failed(path, source));
        }
        let in_commit =
            |sealed: &SealedTree| sealed.bases.has_emptied(&dir) && !sealed.bases.is_removed(path);
        match trees.sealed.as_ref().is_some_and(in_commit) {
            true => Err(StagingError::Sealed { path: path.clone() }),
            false => Ok(()),
        }
    }

    /// Whether a published directory was removed after all that is in it.
    #[must_use]
    pub fn is_removed(&self, path: &RelPath) -> bool {
        let trees = self.trees.read();
        trees.bases.is_removed(path)
            || trees.sealed.as_ref().is_some_and(|sealed| sealed.bases.is_removed(path))
    }

    /// The names in a directory of directories that were removed.
    #[must_use]
    pub fn removed_in(&self, dir: &DirPath) -> Vec<String> {
        let trees = self.trees.read();
        let sealed = trees.sealed.iter().flat_map(|sealed| sealed.bases.removed_in(dir));
        trees.bases.removed_in(dir).chain(sealed).map(str::to_owned).collect()
    }

    /// The names in a directory whose published files are to be deleted.
    #[must_use]
    pub fn deletions(&self, dir: &DirPath) -> Vec<String> {
        let trees = self.trees.read();
        let sealed = trees.sealed.iter().flat_map(|sealed| sealed.bases.deletions(dir));
        trees.bases.deletions(dir).chain(sealed).map(str::to_owned).collect()
    }
}

fn file_of(dir: &Path, path: &RelPath, extension: &str) -> PathBuf {
    dir.join(format!("{}.{extension}", HEXLOWER.encode(&Sha256::digest(path.as_str()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_while_a_directory_is_read_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base { etag: ETag::from_server("e"), size_bytes: 1, kind: BaseKind::Delete };
        let path = |text| RelPath::parse(text).unwrap();
        let mut bases = Bases::default();
        bases.set(dir.path(), &path("a"), &base).unwrap();
        // Listed, and not there when it is read.
        for extension in [BASE, REMOVED] {
            std::os::unix::fs::symlink("gone", file_of(dir.path(), &path("b"), extension)).unwrap();
        }
        assert_eq!(Bases::load(dir.path()).unwrap().all(), [(path("a"), base)]);
    }
}
