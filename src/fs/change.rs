//! Making, moving and removing what is staged.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::time::SystemTime;

use crate::fs::DatasetFs;
use crate::fs::Entry;
use crate::fs::Place;
use crate::fs::attr::Attr;
use crate::fs::error::FsError;
use crate::fs::file::gone_is_stale;
use crate::fs::open::Handle;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::NameError;
use crate::name::RelPath;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::StagedDataset;
use crate::tree::Found;
use crate::tree::STAGED_TTL;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;

/// What `setattr` is asked to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size_bytes: Option<u64>,
    /// Last read.
    pub accessed: Option<SystemTime>,
    /// Last written.
    pub modified: Option<SystemTime>,
}

/// How `rename` treats what is at the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is left alone, and the rename fails.
    NoReplace,
}

impl DatasetFs {
    /// The present time, for callers that say 'now'.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Makes a directory; at the top, a dataset.
    ///
    /// # Errors
    /// [`FsError::Exists`], and the layers' own.
    pub async fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32) -> Result<Entry, FsError> {
        self.check_writable()?;
        match self.place(parent, name)? {
            Place::Dataset(dataset) => {
                if self.tree.dataset(&dataset).await?.value.is_some() || self.is_shown_past(&dataset) {
                    return Err(FsError::Exists);
                }
                self.tree.staging().create_dataset(&dataset)?;
                let node = Node::Directory(dataset, DirPath::root());
                Ok(self.entry(node, &Found::Directory(None), STAGED_TTL))
            }
            Place::Path(dataset, path) => {
                if self.tree.lookup(&dataset, &path).await?.value.is_some() {
                    return Err(FsError::Exists);
                }
                self.tree.catalog().prefix().marker_key(&dataset, &path.clone().into())?;
                let staged = self.staged_dataset(&dataset)?;
                staged.mkdir(&path, mode & 0o7777)?;
                self.staged_entry(&staged, &dataset, &path)
            }
            Place::Past(..) => Err(FsError::ReadOnly),
        }
    }

    /// Removes a file's name.
    ///
    /// # Errors
    /// [`FsError::Published`] unless replacing is allowed.
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        let (dataset, path) = self.path_place(parent, name)?;
        match self.tree.lookup(&dataset, &path).await?.value {
            None => Err(FsError::NotFound),
            Some(Found::Directory(_)) => Err(FsError::IsDirectory),
            Some(Found::Staged(_)) => {
                let staged = self.staged_dataset(&dataset)?;
                keep_deleted(&staged, &path)?;
                staged.unlink(&path)?;
                self.inodes.unlink(&dataset, &path);
                Ok(())
            }
            Some(Found::Published(file)) => {
                if !self.options.allow_replace {
                    return Err(FsError::Published(format!("{dataset}/{path}")));
                }
                let file = self.tree.catalog().resolve_version(&file).await?;
                let etag = file.etag.ok_or(FsError::Stale)?;
                let base = Base { etag, size_bytes: file.size_bytes, kind: BaseKind::Delete };
                self.staged_dataset(&dataset)?.set_base(&path, &base)?;
                Ok(())
            }
        }
    }

    /// Removes an empty directory; at the top, a dataset that has nothing published.
    ///
    /// # Errors
    /// [`FsError::NotEmpty`], also for what is published in it.
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        self.check_writable()?;
        match self.place(parent, name)? {
            Place::Dataset(dataset) => {
                if self.tree.dataset(&dataset).await?.value.is_none() {
                    let past = self.is_shown_past(&dataset);
                    return Err(if past { FsError::ReadOnly } else { FsError::NotFound });
                }
                if self.tree.has_published(&dataset, &DirPath::root()).await? {
                    return Err(FsError::NotEmpty);
                }
                self.tree.staging().remove_dataset(&dataset)?;
                self.inodes.remove_dir(&dataset, &DirPath::root());
                Ok(())
            }
            Place::Path(dataset, path) => match self.tree.lookup(&dataset, &path).await?.value {
                None => Err(FsError::NotFound),
                Some(Found::Staged(_) | Found::Published(_)) => Err(FsError::NotDirectory),
                Some(Found::Directory(staged)) => {
                    if self.tree.has_published(&dataset, &path.clone().into()).await? {
                        return Err(FsError::NotEmpty);
                    }
                    match (staged, self.tree.staging().dataset(&dataset)) {
                        (Some(_), _) => self.staged_dataset(&dataset)?.rmdir(&path)?,
                        (None, Some(staged)) => staged.set_removed(&path)?,
                        (None, None) => {}
                    }
                    self.inodes.remove_dir(&dataset, &path.into());
                    Ok(())
                }
            },
            Place::Past(..) => Err(FsError::ReadOnly),
        }
    }

    /// Gives a staged file or directory another name in its dataset.
    ///
    /// # Errors
    /// [`FsError::CrossDataset`] where tools should copy instead; [`FsError::Published`] for
    /// what is published, on either side.
    pub async fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let (from, to) = (self.place(from.0, from.1)?, self.place(to.0, to.1)?);
        if self.is_past(&from) || self.is_past(&to) {
            return Err(FsError::ReadOnly);
        }
        let (Place::Path(dataset, from), Place::Path(to_dataset, to)) = (from, to) else {
            return Err(FsError::CrossDataset);
        };
        if dataset != to_dataset {
            return Err(FsError::CrossDataset);
        }
        let source = self.tree.lookup(&dataset, &from).await?.value.ok_or(FsError::NotFound)?;
        self.check_renamable(&dataset, &from, &source).await?;
        let target = self.tree.lookup(&dataset, &to).await?.value;
        let replaced = self.check_target(&dataset, &to, &source, target, mode).await?;
        let staged = self.staged_dataset(&dataset)?;
        if matches!(source, Found::Directory(_)) && to.as_str().len() > from.as_str().len() {
            self.check_keys_below(&staged, &from, &to)?;
        }
        // What the old name hid stays hidden, and what the new name hides is noted, before the move:
        // a crash in between shows the old state with one note too many, which does no harm.
        keep_deleted(&staged, &from)?;
        if let Some(base) = replaced {
            staged.set_base(&to, &base)?;
        }
        if matches!(source, Found::Directory(_)) {
            staged.set_removed(&from)?;
        }
        staged.rename(&from, &to, mode == RenameMode::NoReplace)?;
        self.inodes.rename(&dataset, &from, &to);
        Ok(())
    }

    /// Checks that what is staged in a directory, and itself, can still be published when it has a longer name.
    fn check_keys_below(&self, staged: &StagedDataset, from: &RelPath, to: &RelPath) -> Result<(), FsError> {
        let prefix = self.tree.catalog().prefix();
        prefix.marker_key(staged.name(), &to.clone().into())?;
        let below = staged.contents_below(from)?;
        let renamed = |path: &RelPath| -> Result<RelPath, NameError> {
            RelPath::parse(&format!("{to}{}", path.as_str().get(from.as_str().len()..).unwrap_or_default()))
        };
        for file in &below.files {
            prefix.key(staged.name(), &renamed(&file.path)?)?;
        }
        for dir in below.empty_directories.iter().filter_map(DirPath::as_path) {
            prefix.marker_key(staged.name(), &renamed(&dir)?.into())?;
        }
        Ok(())
    }

    fn is_past(&self, place: &Place) -> bool {
        match place {
            Place::Past(..) => true,
            Place::Dataset(dataset) => self.is_shown_past(dataset),
            Place::Path(..) => false,
        }
    }

    async fn check_renamable(
        &self,
        dataset: &DatasetName,
        path: &RelPath,
        found: &Found,
    ) -> Result<(), FsError> {
        let published = match found {
            Found::Staged(_) => false,
            Found::Published(_) => true,
            Found::Directory(staged) => {
                staged.is_none() || self.tree.has_published(dataset, &path.clone().into()).await?
            }
        };
        match published {
            false => Ok(()),
            true if self.options.allow_replace => Err(FsError::CrossDataset), // copied and deleted instead
            true => Err(FsError::Published(format!("{dataset}/{path}"))),
        }
    }

    /// Whether `to` may be renamed over, and what published file is hidden by it.
    async fn check_target(
        &self,
        dataset: &DatasetName,
        to: &RelPath,
        source: &Found,
        target: Option<Found>,
        mode: RenameMode,
    ) -> Result<Option<Base>, FsError> {
        let from_directory = matches!(source, Found::Directory(_));
        match target {
            None if !from_directory => self.check_no_directory(dataset, to).map(|()| None),
            None => Ok(None),
            Some(_) if mode == RenameMode::NoReplace => Err(FsError::Exists),
            Some(Found::Directory(_)) if !from_directory => Err(FsError::IsDirectory),
            Some(Found::Staged(_) | Found::Published(_)) if from_directory => Err(FsError::NotDirectory),
            Some(Found::Staged(_)) => Ok(None),
            Some(Found::Directory(_)) => {
                let published = self.tree.has_published(dataset, &to.clone().into()).await?;
                if published { Err(FsError::NotEmpty) } else { Ok(None) }
            }
            Some(Found::Published(_)) if !self.options.allow_replace => {
                Err(FsError::Published(format!("{dataset}/{to}")))
            }
            Some(Found::Published(file)) => {
                let file = self.tree.catalog().resolve_version(&file).await?;
                let etag = file.etag.ok_or(FsError::Stale)?;
                Ok(Some(Base { etag, size_bytes: file.size_bytes, kind: BaseKind::Replace }))
            }
        }
    }

    /// EISDIR where a published directory was removed here. Its keys are there until that is committed, and
    /// a commit that made a file of that name could not be told from one that damages it.
    pub(super) fn check_no_directory(&self, dataset: &DatasetName, path: &RelPath) -> Result<(), FsError> {
        if self.tree.is_removed(dataset, path) { Err(FsError::IsDirectory) } else { Ok(()) }
    }

    /// Changes attributes; what it returns is what they are now.
    ///
    /// # Errors
    /// [`FsError::Published`] for published files, [`FsError::NotPermitted`] for another owner.
    pub async fn setattr(&self, ino: Ino, fh: Option<u64>, changes: Changes) -> Result<Attr, FsError> {
        self.check_writable()?;
        if changes.uid.is_some_and(|uid| uid != self.options.uid)
            || changes.gid.is_some_and(|gid| gid != self.options.gid)
        {
            return Err(FsError::NotPermitted("all files belong to the user who mounted"));
        }
        match self.node(ino)? {
            Node::Root => {}
            Node::PastDirectory(..) | Node::PastFile(..) => return Err(FsError::ReadOnly),
            Node::Directory(dataset, dir) => {
                // A directory that exists only as a prefix of keys has no attributes to keep;
                // `cp -a` and `rsync -a` set them on every directory and must not fail.
                if let (Some(staged), Some(path)) = (self.tree.staging().dataset(&dataset), dir.as_path())
                    && staged.lookup(&path)?.is_some()
                {
                    apply(&staged, &path, &changes)?;
                }
            }
            Node::Staged(dataset, path) => {
                let staged = self.tree.staging().dataset(&dataset);
                match (changes.size_bytes, fh, &staged) {
                    (Some(size_bytes), Some(fh), _) => self.truncate_open(fh, size_bytes)?,
                    (Some(_), None, None) => return Err(self.gone(ino, &dataset, &path).await),
                    (Some(size_bytes), None, Some(staged)) => {
                        let done = staged.set_len(&path, size_bytes).map_err(|err| gone_is_stale(err, &path));
                        if matches!(done, Err(FsError::Stale)) {
                            return Err(self.gone(ino, &dataset, &path).await);
                        }
                        done?;
                    }
                    (None, ..) => {}
                }
                let staged = staged.ok_or(FsError::Stale)?;
                apply(&staged, &path, &changes)?;
            }
            Node::Unlinked(dataset) => match (changes.size_bytes, fh) {
                (Some(size_bytes), Some(fh)) => self.truncate_open(fh, size_bytes)?,
                (Some(_), None) => {
                    let Some(path) = self.inodes.left_from(ino) else { return Err(FsError::Stale) };
                    return Err(self.gone(ino, &dataset, &path).await);
                }
                (None, _) => {} // nobody will see the mode or times of a file without a name
            },
            Node::Published(dataset, path, _) => {
                self.copy_up(&dataset, &path, changes.size_bytes == Some(0)).await?;
                return Err(FsError::Stale); // the kernel looks the name up again and finds the copy
            }
        }
        Ok(self.getattr(ino)?.0)
    }

    fn truncate_open(&self, fh: u64, size_bytes: u64) -> Result<(), FsError> {
        match &*self.open.get(fh)? {
            Handle::Staged(_, file) => {
                rustix::fs::ftruncate(file.as_fd(), size_bytes).map_err(std::io::Error::from)?;
                Ok(())
            }
            Handle::Published(..) | Handle::Directory(_) => Err(FsError::BadHandle(fh)),
        }
    }
}

fn apply(staged: &StagedDataset, path: &RelPath, changes: &Changes) -> Result<(), FsError> {
    if let Some(mode) = changes.mode {
        staged.set_mode(path, mode & 0o7777)?;
    }
    if changes.accessed.is_some() || changes.modified.is_some() {
        staged.set_times(path, changes.accessed, changes.modified)?;
    }
    Ok(())
}

/// A staged file that stands in for a published one leaves its name: the published one must not
/// come back, so the note that it is replaced becomes one that it is deleted.
fn keep_deleted(staged: &StagedDataset, path: &RelPath) -> Result<(), FsError> {
    if let Some(base) = staged.base(path) {
        staged.set_base(path, &Base { kind: BaseKind::Delete, ..base })?;
    }
    Ok(())
}
