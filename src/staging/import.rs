//! Staging a whole file at once: it appears complete, or not at all.
//!
//! The file has no name until it is finished (`O_TMPFILE`), so that a crash leaves nothing
//! behind that could be taken for what the user wrote.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::durable;
use crate::name::RelPath;
use crate::staging::StagedKind;
use crate::staging::StagingError;
use crate::staging::base::Base;
use crate::staging::dataset::StagedDataset;
use crate::staging::tree;

/// A file on its way into the staging tree. Dropped, it never was.
#[derive(Debug)]
pub struct StagedImport {
    dataset: Arc<StagedDataset>,
    file: File,
}

impl StagedDataset {
    /// Begins to stage a whole file.
    ///
    /// # Errors
    /// The local disk's.
    pub fn begin_import(self: &Arc<Self>) -> Result<StagedImport, StagingError> {
        let failed = |source| StagingError::io(&self.dir, source);
        let _trees = self.trees.read(); // or a change that leaves nothing staged takes the directory away
        durable::create_private_dirs(&self.dir).map_err(failed)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.dir, flags, Mode::RUSR | Mode::WUSR);
        let file = file.map_err(|err| failed(err.into()))?.into();
        Ok(StagedImport { dataset: Arc::clone(self), file })
    }
}

impl Drop for StagedImport {
    fn drop(&mut self) {
        drop(self.dataset.changing()); // one that was given up may leave nothing staged
    }
}

impl StagedImport {
    /// The file, to be written to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name in the tree, durably; `base` is what it stands in for.
    ///
    /// # Errors
    /// EEXIST if something is staged there by now, [`StagingError::Sealed`], the local disk's.
    pub fn finish(
        self,
        path: &RelPath,
        mode: u32,
        modified: SystemTime,
        base: &Base,
    ) -> Result<(), StagingError> {
        let dataset = &self.dataset;
        let prepared = self.file.set_modified(modified).and_then(|()| {
            rustix::fs::fchmod(&self.file, tree::mode_for(StagedKind::File, mode))
                .map_err(io::Error::from)?;
            self.file.sync_all()
        });
        prepared.map_err(|source| dataset.failed(path, source))?;
        // One lock for both, so that no freeze comes between.
        let mut trees = dataset.trees.write();
        let failed = |source| dataset.failed(path, source);
        if trees.sealed_kind(path).map_err(failed)?.is_some() {
            return Err(StagingError::Sealed { path: path.clone() });
        }
        trees.check_parents(path).map_err(failed)?;
        dataset.open_tree(&mut trees)?;
        // The note comes first: without it, a commit would take the file for a new one.
        trees.bases.set(&dataset.base_dir(), path, base).map_err(failed)?;
        let open = dataset.open_tree(&mut trees)?;
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        dataset.in_parent(open, path, |parent, name| {
            rustix::fs::linkat(CWD, &unnamed, parent, name, AtFlags::SYMLINK_FOLLOW)
        })?;
        drop(trees);
        dataset.sync_dir(&path.parent())
    }
}
