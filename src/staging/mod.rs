//! Staging: local changes, safe on this machine's disk, not published yet.
//!
//! Plain files in a plain directory tree, one per dataset, mirroring the dataset's own paths:
//! the tree is the journal, its owner can look at it, and recovery is a walk over directories.
//!
//! ```text
//! <state>/<remote-id>/lock              who works on it: one process at a time
//! <state>/<remote-id>/datasets/<name>/  see `seal`
//! ```
//!
//! # Promises
//!
//! 1. **fsync means fsync**: when [`StagedFile::sync_all`] returns, the bytes and every
//!    directory entry from the file up to its dataset survive power loss.
//! 2. What a write has put into a file survives `kill -9`: nothing is buffered in this process.
//! 3. A full disk is ENOSPC: the kernel's own error is kept as the source of ours.
//! 4. Names are kept byte for byte.
//! 5. What is sealed is not changed, by any operation, until its commit has ended.
//! 6. A dataset is frozen only when none of its files is open for writing, whatever they were
//!    renamed to meanwhile; a refusal names them.
//! 7. Freeze, thaw and finish are decided by one rename each. After a crash at any point the next
//!    open finds the state before or the state after, never between, and no file is lost.
//! 8. Two processes never work on one staging area; the second one is told who the first is.
//! 9. Nothing here follows a symbolic link, whoever put it there.
//! 10. A directory, or a dataset, that exists only because a file was put below it goes with its last
//!     file; one that was made on purpose stays, and is published empty if it is.
//! 11. When nothing is staged any more, nothing is left on the disk.
//!
//! # What this module does not know
//!
//! The network, inodes, FUSE; whether a path exists in the bucket.

mod attributes;
mod base;
mod dataset;
mod discard;
mod file;
mod import;
mod lease;
mod lock;
mod outside;
mod seal;
mod tree;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::durable;
use crate::name::DatasetName;
use crate::name::RelPath;
use crate::record::any_time;

pub use base::Base;
pub use base::BaseKind;
pub use dataset::StagedDataset;
pub use discard::Shown;
pub use file::StagedFile;
pub use import::StagedImport;
pub use lock::Holder;
pub use outside::Upload;
pub use seal::Contents;
pub use seal::Sealed;
pub use seal::StagedEntry;

/// Why a staging operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The local file system's own answer, ENOENT and ENOSPC among them.
    #[error("{path}: {source}")]
    Io {
        /// The dataset and the path in it, or a path of the staging area.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is being committed, and cannot be changed until that has ended.
    #[error("{path} is being committed")]
    Sealed {
        /// The path in the dataset.
        path: RelPath,
    },
    /// A commit has to wait until these are closed.
    #[error("open for writing: {}", list(paths))]
    OpenForWriting {
        /// Their paths in the dataset.
        paths: Vec<RelPath>,
    },
    /// A commit of this dataset has begun and not ended.
    #[error("commit {txid} has begun and not ended")]
    AlreadySealed {
        /// Which one.
        txid: String,
    },
    /// There is nothing to commit.
    #[error("nothing is staged")]
    NothingStaged,
    /// Things that dsfs did not put there and cannot publish.
    #[error("cannot be committed (links, devices, or names that are not UTF-8): {}", list(paths))]
    Foreign {
        /// Where they are in the dataset.
        paths: Vec<String>,
    },
    /// Another process works on this staging area.
    #[error("the staging area is in use by process {}", holder.pid)]
    Locked {
        /// Which one, and how to reach it.
        holder: Holder,
    },
    /// A state that no crash of ours leaves behind.
    #[error("the staging area is damaged at {path}: {reason}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong there.
        reason: String,
    },
}

impl StagingError {
    fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// The error number for a system call that failed because of this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Sealed { .. } | Self::OpenForWriting { .. } | Self::AlreadySealed { .. } => libc::EBUSY,
            Self::NothingStaged => libc::ENOENT,
            Self::Locked { .. } => libc::EAGAIN,
            Self::Foreign { .. } | Self::Damaged { .. } => libc::EIO,
        }
    }
}

const LISTED_MAX: usize = 10;

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(LISTED_MAX).map(T::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > LISTED_MAX {
        text.push_str(&format!(" and {} more", items.len() - LISTED_MAX));
    }
    text
}

/// File or directory: nothing else is ever staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StagedKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// Whether it can still be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StagedState {
    /// It can.
    Open,
    /// It is being committed.
    Sealed,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// The attributes of something staged.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StagedAttr {
    /// File or directory.
    pub kind: StagedKind,
    /// Open or sealed.
    pub state: StagedState,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Blocks of 512 bytes that it takes on the disk.
    pub blocks: u64,
    /// Permission bits.
    pub mode: u32,
    /// When its content was last changed.
    #[serde(with = "any_time")]
    pub modified: SystemTime,
    /// When it was last changed in any way.
    #[serde(with = "any_time")]
    pub changed: SystemTime,
    /// When it was last read, as far as the local file system keeps count.
    #[serde(with = "any_time")]
    pub accessed: SystemTime,
    /// The local file's inode number: it stays the same through every rename.
    pub local_ino: u64,
}

impl StagedAttr {
    /// The attributes of an open file of the staging tree, which may have no name any more.
    ///
    /// # Errors
    /// The local disk's.
    pub fn of_file(file: &std::fs::File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        tree::attr_of(&stat, StagedState::Open).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }
}

/// What is staged for one dataset, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSummary {
    /// Its name.
    pub name: DatasetName,
    /// Files that the next commit takes.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Empty directories that it takes.
    pub empty_directories: u64,
    /// Published files that it deletes.
    pub deletions: u64,
    /// A commit that has begun and not ended.
    pub sealed: Option<SealedSummary>,
    /// What is there and cannot be committed.
    pub foreign: Vec<String>,
}

/// A commit that has begun and not ended, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSummary {
    /// Its transaction id.
    pub txid: String,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One remote's staging area, locked by this process until dropped.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    /// Every dataset that was ever staged in this process's life: one name is always one object.
    datasets: Mutex<BTreeMap<DatasetName, Arc<StagedDataset>>>,
    lock: lock::Lock,
}

impl Staging {
    /// Opens a staging area, made if it is missing, and finishes or undoes what a crash interrupted.
    ///
    /// # Errors
    /// [`StagingError::Locked`] if another process has it, and the local disk's.
    pub fn open(dir: &Path, holder: &Holder) -> Result<Self, StagingError> {
        let root = datasets_dir(dir);
        durable::create_private_dirs(&root).map_err(|source| StagingError::io(&root, source))?;
        Self::locked(dir, lock::acquire(dir, holder)?)
    }

    /// Goes on with a staging area that the program before this one, in this process, had opened, with its
    /// lock: the file that [`Self::lock_file`] returned there.
    ///
    /// # Errors
    /// The local disk's.
    pub fn adopt(dir: &Path, lock: std::fs::File) -> Result<Self, StagingError> {
        Self::locked(dir, lock::Lock::adopted(lock))
    }

    /// The file that holds the lock.
    #[must_use]
    pub fn lock_file(&self) -> &std::fs::File {
        self.lock.file()
    }

    /// Tells whoever asks for the lock that the mount of who has it is out of sight.
    ///
    /// # Errors
    /// The local disk's.
    pub fn mark_detached(&self) -> io::Result<()> {
        self.lock.mark_detached()
    }

    fn locked(dir: &Path, lock: lock::Lock) -> Result<Self, StagingError> {
        let root = datasets_dir(dir);
        let mut datasets = BTreeMap::new();
        for name in names_in(&root)? {
            let dataset = StagedDataset::load(name.clone(), root.join(name.as_str()))?;
            datasets.insert(name, dataset);
        }
        Ok(Self { dir: dir.to_path_buf(), datasets: Mutex::new(datasets), lock })
    }

    /// Who works on a staging area, if anybody does.
    ///
    /// # Errors
    /// The local disk's.
    pub fn holder(dir: &Path) -> io::Result<Option<Holder>> {
        lock::holder(dir)
    }

    /// Looks at a staging area without the lock: what is told may be changing while it is told.
    ///
    /// # Errors
    /// The local disk's.
    pub fn inspect(dir: &Path) -> Result<Vec<DatasetSummary>, StagingError> {
        let root = datasets_dir(dir);
        names_in(&root)?.into_iter().map(|name| summary(&root.join(name.as_str()), name)).collect()
    }

    /// The datasets that have anything staged.
    pub fn datasets(&self) -> Vec<DatasetName> {
        // Asked without the map's lock: a dataset that is being frozen must not hold the others up.
        let all: Vec<Arc<StagedDataset>> = self.datasets.lock().values().cloned().collect();
        all.iter().filter(|dataset| dataset.exists()).map(|dataset| dataset.name().clone()).collect()
    }

    /// One dataset, if anything is staged for it.
    pub fn dataset(&self, name: &DatasetName) -> Option<Arc<StagedDataset>> {
        let dataset = self.datasets.lock().get(name).cloned();
        dataset.filter(|dataset| dataset.exists())
    }

    /// One dataset, whether anything is staged for it or not: to stage something in it, after which it is
    /// staged for as long as there is anything; and for files that are open without a name.
    ///
    /// # Errors
    /// The local disk's.
    pub fn known_dataset(&self, name: &DatasetName) -> Result<Arc<StagedDataset>, StagingError> {
        let mut datasets = self.datasets.lock();
        if let Some(dataset) = datasets.get(name) {
            return Ok(Arc::clone(dataset));
        }
        let dataset = StagedDataset::load(name.clone(), datasets_dir(&self.dir).join(name.as_str()))?;
        datasets.insert(name.clone(), Arc::clone(&dataset));
        Ok(dataset)
    }

    /// One dataset, staged from now on if it was not, also with nothing in it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn create_dataset(&self, name: &DatasetName) -> Result<Arc<StagedDataset>, StagingError> {
        let mut datasets = self.datasets.lock();
        let dataset = match datasets.get(name) {
            Some(dataset) => Arc::clone(dataset),
            None => StagedDataset::load(name.clone(), datasets_dir(&self.dir).join(name.as_str()))?,
        };
        datasets.insert(name.clone(), Arc::clone(&dataset));
        drop(datasets);
        let mut trees = dataset.trees.write();
        if trees.sealed.is_none() {
            let tree = dataset.open_tree(&mut trees)?;
            tree.make_explicit().map_err(|source| StagingError::io(&dataset.dir, source))?;
        }
        drop(trees);
        Ok(dataset)
    }

    /// Forgets a dataset that has nothing staged in it.
    ///
    /// # Errors
    /// ENOTEMPTY, ENOENT.
    pub fn remove_dataset(&self, name: &DatasetName) -> Result<(), StagingError> {
        let failed = |code| StagingError::io(name.as_str(), io::Error::from_raw_os_error(code));
        let dataset = self.dataset(name).ok_or_else(|| failed(libc::ENOENT))?;
        if dataset.remove_if_empty() { Ok(()) } else { Err(failed(libc::ENOTEMPTY)) }
    }
}

fn datasets_dir(dir: &Path) -> PathBuf {
    dir.join("datasets")
}

/// The datasets that have a directory. Others' files and bad names are left alone.
fn names_in(root: &Path) -> Result<Vec<DatasetName>, StagingError> {
    let failed = |source| StagingError::io(root, source);
    let mut names = Vec::new();
    let entries = match fs::read_dir(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(names),
        answer => answer.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let name = entry.file_name().to_str().and_then(|name| DatasetName::parse(name).ok());
        names.extend(name.filter(|_| is_dir));
    }
    names.sort();
    Ok(names)
}

fn summary(dir: &Path, name: DatasetName) -> Result<DatasetSummary, StagingError> {
    let failed = |source| StagingError::io(dir, source);
    let tree = tree::Tree::open(&dir.join("open").join("tree")).map_err(failed)?;
    let walk = tree.as_ref().map(tree::Tree::walk).transpose().map_err(failed)?.unwrap_or_default();
    let bases = base::Bases::load(&dir.join("open").join("base")).map_err(failed)?;
    let open = Contents::new(walk, bases.all());
    let sealed = match seal::sealed_in(dir)? {
        Some(sealed) => {
            let contents = sealed.contents()?;
            let (files, bytes) = (contents.files.len() as u64, bytes_of(&contents));
            Some(SealedSummary { txid: sealed.txid().to_owned(), files, bytes })
        }
        None => None,
    };
    Ok(DatasetSummary {
        name,
        files: open.files.len() as u64,
        bytes: bytes_of(&open),
        empty_directories: open.empty_directories.len() as u64,
        deletions: open.bases.iter().filter(|(_, base)| base.kind == BaseKind::Delete).count() as u64,
        sealed,
        foreign: open.foreign,
    })
}

fn bytes_of(contents: &Contents) -> u64 {
    contents.files.iter().map(|file| file.size_bytes).sum()
}
