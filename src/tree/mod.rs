//! The tree that users see: the catalog and the staging area, merged into one answer per path.
//!
//! What is staged comes before what is published, since it is what the user did last; a
//! published file that was deleted here is hidden until that deletion is committed or
//! discarded, and so is a directory that was removed after all that is in it, unless something
//! else is published in it. The staging area always answers; the remote may have to be asked, so every
//! question here is a future. It is ready at its first poll if nothing has to be asked.
//!
//! **Where the remote cannot be reached and was never seen**, a dataset that has staged files
//! is answered from them alone: a recorder goes on without a network, and the commit's
//! preflight finds out what was there; directories that are staged are renamed and removed then
//! as if nothing else were in them. Any other question is the remote's error: what is
//! unreachable is never 'not there'.

pub mod inode;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::catalog::Known;
use crate::catalog::Level;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::staging::BaseKind;
use crate::staging::StagedAttr;
use crate::staging::StagedDataset;
use crate::staging::StagedKind;
use crate::staging::Staging;
use crate::staging::StagingError;
use crate::store::StoreError;

/// How long an answer stands that only the staging area gave: it changes through this mount
/// alone, which tells the kernel when it does.
pub const STAGED_TTL: Duration = Duration::from_secs(60);
/// How long an answer stands that was given without the remote, which might have said more.
const OFFLINE_TTL: Duration = Duration::from_secs(1);

/// Why the tree gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The remote's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local disk's.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// What is at a path.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Found {
    /// A directory; with the attributes of its staged side, where there is one.
    Directory(Option<StagedAttr>),
    /// A staged file.
    Staged(StagedAttr),
    /// A published file.
    Published(RemoteFile),
}

impl Found {
    /// Something staged.
    #[must_use]
    pub fn staged(attr: StagedAttr) -> Self {
        match attr.kind {
            StagedKind::Directory => Self::Directory(Some(attr)),
            StagedKind::File => Self::Staged(attr),
        }
    }
}

/// An answer, and how long it stands.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// How long it stands.
    pub ttl: Duration,
}

/// Catalog and staging area as one.
#[derive(Debug)]
pub struct Tree {
    catalog: Arc<Catalog>,
    staging: Arc<Staging>,
}

/// Entries of a directory by name.
pub type Entries = BTreeMap<Arc<str>, Found>;

impl Tree {
    /// Merges the two.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, staging: Arc<Staging>) -> Self {
        Self { catalog, staging }
    }

    /// The published side.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The staged side.
    #[must_use]
    pub fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// All datasets, published and staged.
    ///
    /// # Errors
    /// The remote's, if it was never seen and nothing is staged.
    pub async fn datasets(&self) -> Result<Answer<Entries>, TreeError> {
        let staged = self.staging.datasets();
        let known = self.catalog.level(&Level::Datasets).await;
        let (mut entries, ttl) = published_entries(known, !staged.is_empty())?;
        for name in staged {
            entries.insert(name.as_str().into(), Found::Directory(None));
        }
        Ok(Answer { value: entries, ttl })
    }

    /// Whether there is a dataset of this name, and its directory's staged attributes.
    ///
    /// # Errors
    /// The remote's, if it has to be asked and cannot.
    pub async fn dataset(&self, name: &DatasetName) -> Result<Answer<Option<Found>>, TreeError> {
        if self.staging.dataset(name).is_some() {
            return Ok(Answer { value: Some(Found::Directory(None)), ttl: STAGED_TTL });
        }
        let exists = self.catalog.has_dataset(name).await?;
        let level = Level::Directory(name.clone(), DirPath::root());
        let ttl = self
            .catalog
            .fresh(&level)
            .or_else(|| self.catalog.fresh(&Level::Datasets))
            .map_or(OFFLINE_TTL, |known| known.ttl());
        Ok(Answer { value: exists.then_some(Found::Directory(None)), ttl })
    }

    /// What is at a path of a dataset.
    ///
    /// # Errors
    /// The staging disk's; the remote's, if it has to be asked and cannot.
    pub async fn lookup(
        &self,
        name: &DatasetName,
        path: &RelPath,
    ) -> Result<Answer<Option<Found>>, TreeError> {
        let staged = self.staging.dataset(name);
        if let Some(staged) = &staged {
            if let Some(attr) = staged.lookup(path)? {
                return Ok(Answer { value: Some(Found::staged(attr)), ttl: STAGED_TTL });
            }
            if is_deleted(staged, path) {
                return Ok(Answer { value: None, ttl: STAGED_TTL });
            }
        }
        let level = Level::Directory(name.clone(), path.parent());
        let known = match self.catalog.level(&level).await {
            Ok(known) => known,
            Err(err) if staged.is_none() => return Err(err.into()),
            Err(_) => return Ok(Answer { value: None, ttl: OFFLINE_TTL }),
        };
        let value = match known.listing.entries.get(path.file_name()) {
            None => None,
            Some(RemoteEntry::Directory) if self.is_removed(name, path) => None,
            Some(RemoteEntry::Directory) => Some(Found::Directory(None)),
            Some(RemoteEntry::File(file)) => Some(Found::Published(file.clone())),
        };
        Ok(Answer { value, ttl: known.ttl() })
    }

    /// Everything in a directory of a dataset.
    ///
    /// # Errors
    /// As for [`Self::lookup`].
    pub async fn read_dir(&self, name: &DatasetName, dir: &DirPath) -> Result<Answer<Entries>, TreeError> {
        let staged = self.staging.dataset(name);
        let known = self.catalog.level(&Level::Directory(name.clone(), dir.clone())).await;
        let (mut entries, ttl) = published_entries(known, staged.is_some())?;
        if let Some(staged) = staged {
            for deleted in staged.deletions(dir) {
                entries.remove(&*deleted);
            }
            for removed in staged.removed_in(dir) {
                let is_directory = matches!(entries.get(&*removed), Some(Found::Directory(None)));
                if is_directory && dir.child(&removed).is_ok_and(|path| self.is_removed(name, &path)) {
                    entries.remove(&*removed);
                }
            }
            for (entry_name, attr) in staged.read_dir(dir)? {
                entries.insert(entry_name.into(), Found::staged(attr));
            }
        }
        Ok(Answer { value: entries, ttl })
    }

    /// Whether the published side has anything in a directory that is not deleted, or removed, here.
    ///
    /// # Errors
    /// The remote's, if it has to be asked and cannot, and the directory is not staged.
    pub async fn has_published(&self, name: &DatasetName, dir: &DirPath) -> Result<bool, TreeError> {
        match self.catalog.level(&Level::Directory(name.clone(), dir.clone())).await {
            Ok(known) => Ok(self.leaves_anything(name, dir, &known.listing)),
            // What was never seen is not changed by changing what is staged there.
            Err(err) if err.is_unreachable() && self.is_staged(name, dir)? => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether a published directory was removed after all that is in it, and nothing else is known to be
    /// published in it since. Never waits: there may be thousands of them in a directory.
    #[must_use]
    pub fn is_removed(&self, name: &DatasetName, path: &RelPath) -> bool {
        let removed = self.staging.dataset(name).is_some_and(|staged| staged.is_removed(path));
        if !removed {
            return false;
        }
        let dir = DirPath::from(path.clone());
        let known = self.catalog.last_seen(&Level::Directory(name.clone(), dir.clone()));
        !known.is_some_and(|known| self.leaves_anything(name, &dir, &known.listing))
    }

    /// Whether what is deleted and removed here leaves anything of a published directory.
    fn leaves_anything(&self, name: &DatasetName, dir: &DirPath, listing: &Listing) -> bool {
        let Some(staged) = self.staging.dataset(name) else {
            return listing.marker || !listing.entries.is_empty();
        };
        let deleted: HashSet<String> = staged.deletions(dir).into_iter().collect();
        let stays = |(entry_name, entry): (&Arc<str>, &RemoteEntry)| {
            let is_removed = || {
                let below = dir.child(entry_name);
                matches!(entry, RemoteEntry::Directory)
                    && below.is_ok_and(|path| self.is_removed(name, &path))
            };
            !deleted.contains(&**entry_name) && !is_removed()
        };
        listing.marker || listing.entries.iter().any(stays)
    }

    fn is_staged(&self, name: &DatasetName, dir: &DirPath) -> Result<bool, StagingError> {
        match (self.staging.dataset(name), dir.as_path()) {
            (None, _) => Ok(false),
            (Some(_), None) => Ok(true),
            (Some(staged), Some(path)) => Ok(staged.lookup(&path)?.is_some()),
        }
    }
}

fn is_deleted(staged: &StagedDataset, path: &RelPath) -> bool {
    staged.base(path).is_some_and(|base| base.kind == BaseKind::Delete)
}

/// The published entries; none where the remote cannot be asked but the staging area can answer.
fn published_entries(
    known: Result<Known, StoreError>,
    staged: bool,
) -> Result<(Entries, Duration), StoreError> {
    let known = match known {
        Ok(known) => known,
        Err(_) if staged => return Ok((Entries::new(), OFFLINE_TTL)),
        Err(err) => return Err(err),
    };
    let entries = known.listing.entries.iter().map(|(name, entry)| {
        let found = match entry {
            RemoteEntry::Directory => Found::Directory(None),
            RemoteEntry::File(file) => Found::Published(file.clone()),
        };
        (Arc::clone(name), found)
    });
    Ok((entries.collect(), known.ttl()))
}
