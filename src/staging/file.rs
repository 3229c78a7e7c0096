//! Open staged files, and who is still writing to them.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::staging::StagedAttr;
use crate::staging::StagedState;
use crate::staging::StagingError;
use crate::staging::dataset::StagedDataset;
use crate::staging::tree;

/// Device and inode number.
pub(super) type Identity = (u64, u64);

/// What the handles of a dataset have open, by the identity that survives renames, and which
/// directories' entries are known to be durable.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    open: HashMap<Identity, OpenFile>,
    /// Directories without a change since they were last synced. May always be forgotten.
    synced: HashSet<DirPath>,
    /// Counts changes of directories, so that a sync knows whether one came in between.
    changes: u64,
}

#[derive(Debug)]
struct OpenFile {
    handles: usize,
    writers: usize,
    /// Where it is in the open tree; `None` once it was unlinked, replaced or sealed.
    path: Option<RelPath>,
}

impl OpenFiles {
    pub fn opened(&mut self, id: Identity, path: &RelPath, writer: bool) {
        let file = self.open.entry(id).or_insert(OpenFile { handles: 0, writers: 0, path: None });
        file.handles += 1;
        file.writers += usize::from(writer);
        file.path = Some(path.clone());
    }

    /// As [`Self::opened`], for a file that was open before this process's table of them.
    pub fn adopted(&mut self, id: Identity, path: Option<&RelPath>, writer: bool) {
        let file = self.open.entry(id).or_insert(OpenFile { handles: 0, writers: 0, path: path.cloned() });
        file.handles += 1;
        file.writers += usize::from(writer);
    }

    pub fn closed(&mut self, id: Identity, writer: bool) {
        let Some(file) = self.open.get_mut(&id) else { return };
        file.handles -= 1;
        file.writers -= usize::from(writer);
        if file.handles == 0 {
            self.open.remove(&id);
        }
    }

    pub fn path_of(&self, id: Identity) -> Option<&RelPath> {
        self.open.get(&id)?.path.as_ref()
    }

    /// The files of the tree that are open for writing.
    pub fn written(&self) -> Vec<RelPath> {
        let written = self.open.values().filter(|file| file.writers > 0);
        let mut paths: Vec<RelPath> = written.filter_map(|file| file.path.clone()).collect();
        paths.sort();
        paths
    }

    /// A file was renamed, or, with `None`, has no name any more.
    pub fn moved(&mut self, id: Identity, to: Option<&RelPath>) {
        if let Some(file) = self.open.get_mut(&id) {
            file.path = to.cloned();
        }
    }

    /// A directory was renamed, or, with `None`, was taken out of the tree with all that is in it.
    pub fn moved_dir(&mut self, from: &DirPath, to: Option<&DirPath>) {
        for file in self.open.values_mut() {
            let Some(path) = file.path.as_ref().filter(|path| from.contains(path)) else { continue };
            let skip = if from.is_root() { 0 } else { from.as_str().len() + 1 };
            let rest = path.as_str().get(skip..).unwrap_or_default();
            file.path = to.and_then(|to| RelPath::parse(&format!("{to}/{rest}")).ok());
        }
        self.synced.retain(|dir| dir != from && dir.as_path().is_none_or(|path| !from.contains(&path)));
        self.changes += 1;
    }

    /// The entries of a directory changed.
    pub fn changed(&mut self, dir: &DirPath) {
        self.synced.remove(dir);
        self.changes += 1;
    }

    /// Those of `dirs` that have to be synced, and the count to hand to [`Self::synced`].
    pub fn to_sync(&self, dirs: impl Iterator<Item = DirPath>) -> (Vec<DirPath>, u64) {
        (dirs.filter(|dir| !self.synced.contains(dir)).collect(), self.changes)
    }

    /// `dirs` were synced after `changes` changes.
    pub fn synced(&mut self, dirs: Vec<DirPath>, changes: u64) {
        if self.changes == changes {
            self.synced.extend(dirs);
        }
    }

    /// Another tree takes the place of this one.
    pub fn tree_replaced(&mut self) {
        self.synced.clear();
        self.changes += 1;
    }
}

/// An open staged file. While one that was opened for writing lives, its dataset cannot be frozen.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    dataset: Arc<StagedDataset>,
    id: Identity,
    state: StagedState,
    writable: bool,
}

impl StagedFile {
    /// The caller has entered it in the dataset's [`OpenFiles`].
    pub(super) fn new(
        file: File,
        dataset: Arc<StagedDataset>,
        id: Identity,
        state: StagedState,
        writable: bool,
    ) -> Self {
        Self { file, dataset, id, state, writable }
    }

    /// Whether it was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Open or sealed when it was opened.
    #[must_use]
    pub fn state(&self) -> StagedState {
        self.state
    }

    /// The dataset that it belongs to.
    #[must_use]
    pub fn dataset(&self) -> &DatasetName {
        self.dataset.name()
    }

    /// Where it is in the open tree; `None` if it is no longer there.
    #[must_use]
    pub fn path(&self) -> Option<RelPath> {
        self.dataset.path_of(self.id)
    }

    /// Its attributes now.
    ///
    /// # Errors
    /// The local disk's.
    pub fn attr(&self) -> io::Result<StagedAttr> {
        let stat = rustix::fs::fstat(&self.file)?;
        tree::attr_of(&stat, self.state).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Makes durable: the bytes, the attributes, and every directory entry from the file up to
    /// its dataset. Shadows [`File::sync_all`], which would keep the bytes and not the name.
    ///
    /// # Errors
    /// The local disk's: ENOSPC and EIO of earlier writes arrive here.
    pub fn sync_all(&self) -> Result<(), StagingError> {
        self.file.sync_all().map_err(|source| self.dataset.failed_in_file(self.id, source))?;
        self.dataset.sync_entries_of(self.id)
    }

    /// As [`Self::sync_all`], but without attributes that are not needed to find the bytes.
    ///
    /// # Errors
    /// As [`Self::sync_all`].
    pub fn sync_data(&self) -> Result<(), StagingError> {
        self.file.sync_data().map_err(|source| self.dataset.failed_in_file(self.id, source))?;
        self.dataset.sync_entries_of(self.id)
    }
}

impl Deref for StagedFile {
    type Target = File;
    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        self.dataset.closed(self.id, self.writable);
    }
}
