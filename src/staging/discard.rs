//! Throwing staged changes away: all that is at a place, or exactly what somebody was shown.

use std::cmp::Reverse;

use rustix::fs::AtFlags;

use crate::name::DirPath;
use crate::name::RelPath;
use crate::staging::BaseKind;
use crate::staging::StagedEntry;
use crate::staging::StagedKind;
use crate::staging::StagingError;
use crate::staging::dataset::StagedDataset;
use crate::staging::seal::move_aside;
use crate::staging::seal::remove_any;
use crate::staging::tree;

/// What somebody has seen, and wants thrown away.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Files, as they were.
    pub files: Vec<StagedEntry>,
    /// Published files that were to be deleted.
    pub deletions: Vec<RelPath>,
    /// Directories that go if nothing is left in them.
    pub directories: Vec<RelPath>,
}

impl StagedDataset {
    /// Forgets what is staged at `dir` and below it, and what it would have replaced or deleted.
    ///
    /// # Errors
    /// [`StagingError::Sealed`] if a commit has it, and the local disk's.
    pub fn discard(&self, dir: &DirPath) -> Result<(), StagingError> {
        let failed = |source| StagingError::io(self.dir.join(dir.as_str()), source);
        let mut trees = self.trees.write();
        if let (Some(sealed), Some(path)) = (&trees.sealed, dir.as_path())
            && sealed.tree.stat(&path).map_err(failed)?.is_some()
        {
            return Err(StagingError::Sealed { path });
        }
        let below = |path: &RelPath| dir.contains(path) || dir.as_str() == path.as_str();
        for (path, _) in trees.bases.all().into_iter().filter(|(path, _)| below(path)) {
            trees.bases.clear(&self.open_dir().join("base"), &path).map_err(failed)?;
        }
        let top = self.open_dir().join("tree");
        let Some(tree) = trees.open.as_ref() else { return Ok(()) };
        let stat = match dir.as_path() {
            Some(path) => tree.stat(&path).map_err(failed)?,
            None => Some(
                rustix::fs::fstat(tree.dir(dir).map_err(|err| failed(err.into()))?)
                    .map_err(|err| failed(err.into()))?,
            ),
        };
        let Some(stat) = stat else { return Ok(()) };
        let done = self.dir.join("done").join(format!("discarded-{}", stat.st_ino));
        let from = if dir.is_root() { top } else { top.join(dir.as_str()) };
        move_aside(&from, &done)?;
        let mut files = self.files.lock();
        files.moved(tree::identity(&stat), None);
        files.moved_dir(dir, None);
        drop(files);
        if let Some(path) = dir.as_path() {
            tree.prune(&path.parent());
        } else {
            trees.open = None;
        }
        drop(trees);
        remove_any(&done);
        self.remove_if_empty();
        Ok(())
    }

    /// Forgets exactly what was shown: files that are as they were seen, and directories in which nothing
    /// is left. Returns the files that have changed since; they stay, and so does whatever is new.
    ///
    /// # Errors
    /// [`StagingError::AlreadySealed`]: a commit has them; and the local disk's.
    pub fn discard_shown(&self, shown: &Shown) -> Result<Vec<RelPath>, StagingError> {
        let mut trees = self.trees.write();
        if let Some(sealed) = &trees.sealed {
            return Err(StagingError::AlreadySealed { txid: sealed.sealed.txid().to_owned() });
        }
        let mut kept = Vec::new();
        for seen in &shown.files {
            let failed = |source| self.failed(&seen.path, source);
            let found = trees.open.as_ref().map(|tree| tree.stat(&seen.path)).transpose().map_err(failed)?;
            let Some(stat) = found.flatten() else { continue }; // gone by now
            let is_as_seen = tree::kind_of(&stat) == Some(StagedKind::File)
                && u64::try_from(stat.st_size).is_ok_and(|size_bytes| size_bytes == seen.size_bytes)
                && tree::modified_of(&stat) == seen.modified;
            if !is_as_seen {
                kept.push(seen.path.clone());
                continue;
            }
            trees.bases.clear(&self.base_dir(), &seen.path).map_err(failed)?;
            self.remove(&trees, &seen.path, AtFlags::empty())?;
            self.files.lock().moved(tree::identity(&stat), None);
        }
        for path in &shown.deletions {
            if trees.bases.get(path).is_some_and(|base| base.kind == BaseKind::Delete) {
                let cleared = trees.bases.clear(&self.base_dir(), path);
                cleared.map_err(|source| self.failed(path, source))?;
            }
        }
        let mut directories: Vec<&RelPath> = shown.directories.iter().collect();
        directories.sort_by_key(|path| Reverse(path.as_str().len())); // what is inside comes first
        for path in directories {
            // One in which there is something, or that is gone, stays as it is.
            if self.remove(&trees, path, AtFlags::REMOVEDIR).is_ok() {
                self.files.lock().changed(&path.clone().into());
            }
        }
        drop(trees);
        self.remove_if_empty();
        Ok(kept)
    }
}
