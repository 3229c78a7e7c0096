//! One dataset's staged files: every operation of a file system, by path.
//!
//! Two trees can be there at a time: the open one, and one that is sealed, being committed.
//! Both are shown. What is sealed keeps its place: nothing can be created over it, renamed over
//! it or removed from it, so that the two never hold different things at the same path (only
//! directories can be in both), and merging them again after a commit that failed loses nothing.
//!
//! Lock order: `trees`, then `files`. Neither is held during an fsync.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ops::DerefMut;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use parking_lot::RwLock;
use parking_lot::RwLockWriteGuard;
use rustix::fs::AtFlags;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::staging::Access;
use crate::staging::StagedAttr;
use crate::staging::StagedKind;
use crate::staging::StagedState;
use crate::staging::StagingError;
use crate::staging::attributes::set_mode_at;
use crate::staging::base::Bases;
use crate::staging::file::Identity;
use crate::staging::file::OpenFiles;
use crate::staging::file::StagedFile;
use crate::staging::outside::Outside;
use crate::staging::seal::Contents;
use crate::staging::seal::Sealed;
use crate::staging::tree;
use crate::staging::tree::Tree;

/// The staged changes of one dataset.
#[derive(Debug)]
pub struct StagedDataset {
    name: DatasetName,
    pub(super) dir: PathBuf,
    pub(super) trees: RwLock<Trees>,
    pub(super) files: Mutex<OpenFiles>,
    /// A directory elsewhere, that a commit takes instead of what is staged here.
    outside: Option<Arc<Outside>>,
}

#[derive(Debug, Default)]
pub(super) struct Trees {
    pub open: Option<Tree>,
    pub bases: Bases,
    pub sealed: Option<SealedTree>,
}

#[derive(Debug)]
pub(super) struct SealedTree {
    pub sealed: Sealed,
    pub tree: Tree,
    pub bases: Bases,
}

/// See [`StagedDataset::changing`].
pub(super) struct Changing<'d> {
    trees: RwLockWriteGuard<'d, Trees>,
    dataset: &'d StagedDataset,
}

impl Deref for Changing<'_> {
    type Target = Trees;
    fn deref(&self) -> &Trees {
        &self.trees
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Trees {
        &mut self.trees
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let stays = |tree: &Tree| !tree.is_implicit().unwrap_or(false);
        if !self.trees.open.as_ref().is_some_and(stays) {
            self.dataset.remove_empty(&mut self.trees);
        }
    }
}

pub(super) fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Trees {
    /// What the sealed tree has at `path`. The caller may not change it.
    pub(super) fn sealed_kind(&self, path: &RelPath) -> io::Result<Option<StagedKind>> {
        let Some(sealed) = &self.sealed else { return Ok(None) };
        Ok(sealed.tree.stat(path)?.as_ref().and_then(tree::kind_of))
    }

    /// ENOTDIR if a directory above `path` is a sealed file.
    pub(super) fn check_parents(&self, path: &RelPath) -> io::Result<()> {
        if self.sealed.is_some() {
            for dir in path.ancestors().filter_map(|dir| dir.as_path()) {
                if self.sealed_kind(&dir)? == Some(StagedKind::File) {
                    return Err(os_error(libc::ENOTDIR));
                }
            }
        }
        Ok(())
    }
}

impl StagedDataset {
    /// Opens what is at `dir`, which may be nothing, after finishing or undoing what a crash interrupted.
    pub(super) fn load(name: DatasetName, dir: PathBuf) -> Result<Arc<Self>, StagingError> {
        let trees = crate::staging::seal::recover(&dir)?;
        Ok(Arc::new(Self { name, dir, trees: RwLock::new(trees), files: Mutex::default(), outside: None }))
    }

    /// As [`Self::load`], for committing a directory that is elsewhere.
    pub(super) fn load_outside(
        name: DatasetName,
        dir: PathBuf,
        outside: Outside,
    ) -> Result<Arc<Self>, StagingError> {
        let trees = RwLock::new(crate::staging::seal::recover(&dir)?);
        Ok(Arc::new(Self { name, dir, trees, files: Mutex::default(), outside: Some(Arc::new(outside)) }))
    }

    pub(super) fn outside(&self) -> Option<&Arc<Outside>> {
        self.outside.as_ref()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &DatasetName {
        &self.name
    }

    /// Whether anything is staged, if only the dataset itself.
    #[must_use]
    pub fn exists(&self) -> bool {
        let trees = self.trees.read();
        trees.open.is_some() || trees.sealed.is_some()
    }

    pub(super) fn open_dir(&self) -> PathBuf {
        self.dir.join("open")
    }

    pub(super) fn base_dir(&self) -> PathBuf {
        self.open_dir().join("base")
    }

    pub(super) fn failed(&self, path: &RelPath, source: io::Error) -> StagingError {
        StagingError::io(Path::new(self.name.as_str()).join(path.as_str()), source)
    }

    pub(super) fn failed_in_file(&self, id: Identity, source: io::Error) -> StagingError {
        let path = self.files.lock().path_of(id).map_or_else(|| "?".into(), RelPath::to_string);
        StagingError::io(Path::new(self.name.as_str()).join(path), source)
    }

    /// The open tree, made if it is missing.
    pub(super) fn open_tree<'t>(&self, trees: &'t mut Trees) -> Result<&'t Tree, StagingError> {
        if trees.open.is_none() {
            let top = self.open_dir().join("tree");
            let tree = Tree::make_top(&top).and_then(|()| Tree::open(&top));
            trees.open = tree.map_err(|source| StagingError::io(&top, source))?;
            self.files.lock().tree_replaced();
        }
        trees.open.as_ref().ok_or_else(|| StagingError::io(&self.dir, os_error(libc::ENOENT)))
    }

    /// The trees, to be changed. Whatever comes of it, a tree that was not made on purpose goes with the last that
    /// is in it: the dataset is not staged any more, and only what is published of it is shown.
    pub(super) fn changing(&self) -> Changing<'_> {
        Changing { trees: self.trees.write(), dataset: self }
    }

    /// What is staged at `path`, if anything is.
    ///
    /// # Errors
    /// The local disk's.
    pub fn lookup(&self, path: &RelPath) -> Result<Option<StagedAttr>, StagingError> {
        let trees = self.trees.read();
        let found = find(&trees, path).map_err(|source| self.failed(path, source))?;
        Ok(found.and_then(|(stat, state)| tree::attr_of(&stat, state)))
    }

    /// What is staged in a directory, in no particular order; nothing if it is not there.
    ///
    /// # Errors
    /// The local disk's.
    pub fn read_dir(&self, dir: &DirPath) -> Result<Vec<(String, StagedAttr)>, StagingError> {
        let trees = self.trees.read();
        let failed = |source| StagingError::io(Path::new(self.name.as_str()).join(dir.as_str()), source);
        let list = |tree: &Tree, state| -> io::Result<Vec<(String, StagedAttr)>> {
            let entries = tree.read_dir(dir)?.into_iter();
            Ok(entries.filter_map(|(name, stat)| Some((name, tree::attr_of(&stat, state)?))).collect())
        };
        let mut entries = match &trees.open {
            Some(tree) => list(tree, StagedState::Open).map_err(failed)?,
            None => Vec::new(),
        };
        if let Some(sealed) = &trees.sealed {
            let open: std::collections::HashSet<String> =
                entries.iter().map(|(name, _)| name.clone()).collect();
            let more = list(&sealed.tree, StagedState::Sealed).map_err(failed)?;
            entries.extend(more.into_iter().filter(|(name, _)| !open.contains(name)));
        }
        Ok(entries)
    }

    /// Creates a file that is not staged yet and opens it for reading and writing; directories
    /// above it that are not staged are made, to be published with what is in them only.
    ///
    /// # Errors
    /// EEXIST, ENOTDIR, ENOSPC, and the local disk's others.
    pub fn create_file(self: &Arc<Self>, path: &RelPath, mode: u32) -> Result<StagedFile, StagingError> {
        let mut trees = self.changing();
        let failed = |source| self.failed(path, source);
        if trees.sealed_kind(path).map_err(failed)?.is_some() {
            return Err(failed(os_error(libc::EEXIST)));
        }
        trees.check_parents(path).map_err(failed)?;
        let tree = self.open_tree(&mut trees)?;
        let mode = tree::mode_for(StagedKind::File, mode);
        let file = self.in_parent(tree, path, |parent, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, mode)
        })?;
        rustix::fs::fchmod(&file, mode).map_err(|err| failed(err.into()))?;
        let id = tree::identity(&rustix::fs::fstat(&file).map_err(|err| failed(err.into()))?);
        self.files.lock().opened(id, path, true);
        drop(trees);
        Ok(StagedFile::new(file.into(), Arc::clone(self), id, StagedState::Open, true))
    }

    /// Runs a change of a directory, making the directory first where it is missing.
    pub(super) fn in_parent<T>(
        &self,
        tree: &Tree,
        path: &RelPath,
        change: impl FnOnce(&OwnedFd, &str) -> rustix::io::Result<T>,
    ) -> Result<T, StagingError> {
        let dir = path.parent();
        let done = tree.make_dirs(&dir).and_then(|(fd, made)| Ok((change(&fd, path.file_name())?, made)));
        match done {
            Ok((answer, made)) => {
                let mut files = self.files.lock();
                files.changed(&dir);
                if made {
                    path.ancestors().for_each(|above| files.changed(&above));
                }
                Ok(answer)
            }
            Err(err) => {
                tree.prune(&dir);
                Err(self.failed(path, err.into()))
            }
        }
    }

    /// Opens a staged file.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EACCES (its mode does not allow writing), [`StagingError::Sealed`] for
    /// writing to what is being committed, and the local disk's others.
    pub fn open_file(
        self: &Arc<Self>,
        path: &RelPath,
        access: Access,
        truncate: bool,
    ) -> Result<StagedFile, StagingError> {
        let failed = |source| self.failed(path, source);
        let writable = access == Access::ReadWrite || truncate;
        // Held until the file is entered as open, so that a freeze sees it or comes first.
        let trees = self.trees.read();
        let (tree, stat, state) = match find(&trees, path).map_err(failed)? {
            Some((stat, StagedState::Open)) => (trees.open.as_ref(), stat, StagedState::Open),
            Some((_, StagedState::Sealed)) if writable => {
                return Err(StagingError::Sealed { path: path.clone() });
            }
            Some((stat, StagedState::Sealed)) => {
                (trees.sealed.as_ref().map(|sealed| &sealed.tree), stat, StagedState::Sealed)
            }
            None => return Err(failed(os_error(libc::ENOENT))),
        };
        let tree = tree.ok_or_else(|| failed(os_error(libc::ENOENT)))?;
        if tree::kind_of(&stat) != Some(StagedKind::File) {
            return Err(failed(os_error(libc::EISDIR)));
        }
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = if truncate { flags | OFlags::TRUNC } else { flags };
        let file = File::from(tree.file(path, flags).map_err(|err| failed(err.into()))?);
        let id = tree::identity(&stat);
        let mut files = self.files.lock();
        files.opened(id, path, writable);
        if state == StagedState::Sealed {
            files.moved(id, None); // nothing of it can change, so nothing is left to sync
        }
        drop(files);
        drop(trees);
        Ok(StagedFile::new(file, Arc::clone(self), id, state, writable))
    }

    /// Takes over a file that the program before this one had open, with what it knew of it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn adopt_file(
        self: &Arc<Self>,
        file: File,
        path: Option<&RelPath>,
        state: StagedState,
        writable: bool,
    ) -> io::Result<StagedFile> {
        let id = tree::identity(&rustix::fs::fstat(&file)?);
        self.files.lock().adopted(id, path, writable);
        Ok(StagedFile::new(file, Arc::clone(self), id, state, writable))
    }

    pub(super) fn path_of(&self, id: Identity) -> Option<RelPath> {
        self.files.lock().path_of(id).cloned()
    }

    /// Makes a directory, which is published even if it stays empty.
    ///
    /// # Errors
    /// EEXIST, ENOTDIR, ENOSPC, and the local disk's others.
    pub fn mkdir(&self, path: &RelPath, mode: u32) -> Result<(), StagingError> {
        let mut trees = self.changing();
        let failed = |source| self.failed(path, source);
        if trees.sealed_kind(path).map_err(failed)?.is_some() {
            return Err(failed(os_error(libc::EEXIST)));
        }
        trees.check_parents(path).map_err(failed)?;
        let tree = self.open_tree(&mut trees)?;
        let mode = tree::mode_for(StagedKind::Directory, mode);
        self.in_parent(tree, path, |parent, name| {
            rustix::fs::mkdirat(parent, name, mode)?;
            set_mode_at(parent, name, mode)
        })?;
        self.files.lock().changed(&path.clone().into());
        trees.bases.clear_removed(&self.base_dir(), path).map_err(failed)
    }

    /// Removes an empty directory, and remembers that if what was published in it is deleted.
    ///
    /// # Errors
    /// ENOTEMPTY, ENOTDIR, ENOENT, [`StagingError::Sealed`], and the local disk's others.
    pub fn rmdir(&self, path: &RelPath) -> Result<(), StagingError> {
        let mut trees = self.changing();
        let failed = |source| self.failed(path, source);
        match trees.sealed_kind(path).map_err(failed)? {
            Some(StagedKind::File) => return Err(failed(os_error(libc::ENOTDIR))),
            Some(StagedKind::Directory) => {
                let sealed = trees.sealed.as_ref().map(|sealed| sealed.tree.read_dir(&path.clone().into()));
                let empty = sealed.transpose().map_err(failed)?.is_none_or(|entries| entries.is_empty());
                let sealed = StagingError::Sealed { path: path.clone() };
                return Err(if empty { sealed } else { failed(os_error(libc::ENOTEMPTY)) });
            }
            None => {}
        }
        self.note_removed(&mut trees, path)?; // first, since it may be refused
        if let Err(err) = self.remove(&trees, path, AtFlags::REMOVEDIR) {
            trees.bases.clear_removed(&self.base_dir(), path).map_err(failed)?;
            return Err(err);
        }
        self.files.lock().changed(&path.clone().into());
        Ok(())
    }

    /// Removes a file; handles that have it open keep it until they are closed.
    ///
    /// # Errors
    /// ENOENT, EISDIR, [`StagingError::Sealed`], and the local disk's others.
    pub fn unlink(&self, path: &RelPath) -> Result<(), StagingError> {
        let trees = self.changing();
        let failed = |source| self.failed(path, source);
        match trees.sealed_kind(path).map_err(failed)? {
            Some(StagedKind::File) => return Err(StagingError::Sealed { path: path.clone() }),
            Some(StagedKind::Directory) => return Err(failed(os_error(libc::EISDIR))),
            None => {}
        }
        let stat = trees.open.as_ref().map(|tree| tree.stat(path)).transpose().map_err(failed)?.flatten();
        self.remove(&trees, path, AtFlags::empty())?;
        if let Some(stat) = stat {
            self.files.lock().moved(tree::identity(&stat), None);
        }
        Ok(())
    }

    pub(super) fn remove(&self, trees: &Trees, path: &RelPath, flags: AtFlags) -> Result<(), StagingError> {
        let failed = |err: Errno| self.failed(path, err.into());
        let tree = trees.open.as_ref().ok_or_else(|| failed(Errno::NOENT))?;
        let parent = tree.dir(&path.parent()).map_err(failed)?;
        rustix::fs::unlinkat(&parent, path.file_name(), flags).map_err(failed)?;
        self.files.lock().changed(&path.parent());
        tree.prune(&path.parent());
        Ok(())
    }

    /// Renames a file or a directory with all that is in it, over an existing file or an empty
    /// directory unless `no_replace`.
    ///
    /// # Errors
    /// EINVAL (into itself), EEXIST, ENOENT, ENOTEMPTY, EISDIR, ENOTDIR,
    /// [`StagingError::Sealed`], and the local disk's others.
    pub fn rename(&self, from: &RelPath, to: &RelPath, no_replace: bool) -> Result<(), StagingError> {
        let mut trees = self.changing();
        let failed = |source| self.failed(from, source);
        if DirPath::from(from.clone()).contains(to) {
            return Err(failed(os_error(libc::EINVAL)));
        }
        if trees.sealed_kind(from).map_err(failed)?.is_some() {
            return Err(StagingError::Sealed { path: from.clone() });
        }
        trees.check_parents(to).map_err(failed)?;
        let sealed_target = trees.sealed_kind(to).map_err(failed)?;
        let tree = self.open_tree(&mut trees)?;
        let stat = tree.stat(from).map_err(failed)?.ok_or_else(|| failed(os_error(libc::ENOENT)))?;
        let target = tree.stat(to).map_err(failed)?;
        if no_replace && (target.is_some() || sealed_target.is_some()) {
            return Err(failed(os_error(libc::EEXIST)));
        }
        if sealed_target.is_some() {
            return Err(StagingError::Sealed { path: to.clone() });
        }
        let source = tree.dir(&from.parent()).map_err(|err| failed(err.into()))?;
        self.in_parent(tree, to, |parent, name| {
            rustix::fs::renameat(&source, from.file_name(), parent, name)
        })?;
        self.renamed(tree, from, to, &stat, target.as_ref());
        match tree::kind_of(&stat) {
            Some(StagedKind::Directory) => {
                trees.bases.clear_removed(&self.base_dir(), to).map_err(|source| self.failed(to, source))
            }
            Some(StagedKind::File) | None => Ok(()),
        }
    }

    fn renamed(&self, tree: &Tree, from: &RelPath, to: &RelPath, stat: &Stat, target: Option<&Stat>) {
        let id = tree::identity(stat);
        let mut files = self.files.lock();
        files.changed(&from.parent());
        if tree::kind_of(stat) == Some(StagedKind::Directory) {
            files.moved_dir(&from.clone().into(), Some(&to.clone().into()));
            files.changed(&to.clone().into());
        } else if target.map(tree::identity) != Some(id) {
            if let Some(target) = target {
                files.moved(tree::identity(target), None);
            }
            files.moved(id, Some(to));
        }
        drop(files);
        if tree::is_implicit(stat) {
            // It has a name of the user's choosing now.
            if let Ok(parent) = tree.dir(&to.parent()) {
                let mode = tree::mode_for(StagedKind::Directory, stat.st_mode);
                set_mode_at(&parent, to.file_name(), mode).ok();
            }
        }
        tree.prune(&from.parent());
    }

    /// Makes a directory's entries durable, and those that lead to it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn sync_dir(&self, dir: &DirPath) -> Result<(), StagingError> {
        let above = dir.as_path();
        self.sync_dirs(above.iter().flat_map(RelPath::ancestors).chain([dir.clone()]))
    }

    pub(super) fn sync_entries_of(&self, id: Identity) -> Result<(), StagingError> {
        let path = self.files.lock().path_of(id).cloned();
        path.map_or(Ok(()), |path| self.sync_dirs(path.ancestors()))
    }

    fn sync_dirs(&self, dirs: impl Iterator<Item = DirPath>) -> Result<(), StagingError> {
        let (dirs, changes) = self.files.lock().to_sync(dirs);
        for dir in dirs.iter().rev() {
            let fd = self.trees.read().open.as_ref().map(|tree| tree.dir(dir));
            match fd {
                None | Some(Err(Errno::NOENT | Errno::NOTDIR)) => {} // only remote, or gone again
                Some(fd) => fd.and_then(rustix::fs::fsync).map_err(|err| {
                    StagingError::io(Path::new(self.name.as_str()).join(dir.as_str()), err.into())
                })?,
            }
        }
        self.files.lock().synced(dirs, changes);
        Ok(())
    }

    pub(super) fn closed(&self, id: Identity, writer: bool) {
        self.files.lock().closed(id, writer);
    }

    /// All that a commit would take, without taking it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn contents(&self) -> Result<Contents, StagingError> {
        let trees = self.trees.read();
        let walk = trees.open.as_ref().map(Tree::walk).transpose();
        let walk = walk.map_err(|source| StagingError::io(&self.dir, source))?;
        Ok(Contents::new(walk.unwrap_or_default(), trees.bases.all()))
    }

    /// What of that is in a directory or below it, without what it replaces or deletes.
    ///
    /// # Errors
    /// The local disk's.
    pub fn contents_below(&self, dir: &RelPath) -> Result<Contents, StagingError> {
        let trees = self.trees.read();
        // It may be there and not in the open tree: in a commit.
        let below = |tree: &Tree| match tree.stat(dir)? {
            Some(_) => tree.walk_below(&dir.clone().into()),
            None => Ok(tree::Walk::default()),
        };
        let walk = trees.open.as_ref().map(below).transpose().map_err(|source| self.failed(dir, source))?;
        Ok(Contents::new(walk.unwrap_or_default(), Vec::new()))
    }
}

pub(super) fn find(trees: &Trees, path: &RelPath) -> io::Result<Option<(Stat, StagedState)>> {
    if let Some(stat) = trees.open.as_ref().map(|tree| tree.stat(path)).transpose()?.flatten() {
        return Ok(Some((stat, StagedState::Open)));
    }
    let sealed = trees.sealed.as_ref().map(|sealed| sealed.tree.stat(path)).transpose()?.flatten();
    Ok(sealed.map(|stat| (stat, StagedState::Sealed)))
}
