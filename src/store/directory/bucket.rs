//! What the store does with the directory, in blocking calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::ObjectMeta;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::directory::listing::KeptNames;
use crate::store::directory::listing::is_marker;
use crate::store::directory::place;
use crate::store::directory::place::LOCAL_DIR;
use crate::store::directory::place::Place;
use crate::store::directory::place::STATE_DIR;
use crate::store::directory::place::store_error;
use crate::store::directory::temp;
use crate::store::directory::temp::TempFile;

/// How often a put begins anew because a delete took the empty directory away from under it.
const VANISHED_DIRS_MAX: usize = 32;
/// How long another process may hold the lock, which it does for a rename and an fsync.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often the lock is tried again meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(2);
/// Age at which a temporary file is what a crash has left.
const TEMP_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The directory, and what is known of it.
#[derive(Debug)]
pub(super) struct Bucket {
    pub path: PathBuf,
    /// The root's inode number when it was opened: a network share that is not mounted any more
    /// must not look like an empty bucket. Not its device, which changes when it is mounted anew.
    root_inode: u64,
    /// Whether extended attributes are to be tried.
    pub xattrs: bool,
    pub names: KeptNames,
}

/// The lock that those hold who check what is there and then change it.
#[derive(Debug)]
pub(super) struct Locked {
    /// Closing it is unlocking.
    _file: OwnedFd,
}

impl Bucket {
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let stat = place::open_root(&path)
            .and_then(|root| Ok(rustix::fs::fstat(root)?))
            .map_err(|err| no_bucket(&path, err))?;
        let bucket = Self { path, root_inode: stat.st_ino, xattrs: true, names: KeptNames::default() };
        bucket.sweep_temps();
        Ok(bucket)
    }

    /// The root directory, if it is still the one that was opened.
    pub(super) fn root(&self) -> Result<OwnedFd, StoreError> {
        let root = place::open_root(&self.path).map_err(|err| no_bucket(&self.path, err))?;
        let stat = rustix::fs::fstat(&root).map_err(|err| no_bucket(&self.path, err.into()))?;
        if stat.st_ino != self.root_inode {
            let reason = "another directory is there than at the start; is its file system mounted?";
            return Err(StoreError::unanswered(self.path.display(), reason));
        }
        Ok(root)
    }

    /// A directory of the store's own, made when it is first needed.
    pub(super) fn local(&self, name: &str) -> io::Result<OwnedFd> {
        place::make_dirs(place::open_root(&self.path)?, &[STATE_DIR, LOCAL_DIR, name])
    }

    pub(super) fn lock(&self, key: &str) -> Result<Locked, StoreError> {
        let dir = self.local("lock").map_err(|err| store_error(key, err))?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(dir, "lock", flags, Mode::from_raw_mode(0o666))
            .map_err(|err| store_error(key, err.into()))?;
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _file: file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
                Err(Errno::WOULDBLOCK) => {
                    return Err(StoreError::unavailable(key, "another process holds the directory's lock"));
                }
                Err(err) => return Err(store_error(key, err.into())),
            }
        }
    }

    /// Removes what crashes have left, long after anybody could still be writing it.
    fn sweep_temps(&self) {
        let swept = (|| -> io::Result<()> {
            let dir = place::open_dirs(place::open_root(&self.path)?, &[STATE_DIR, LOCAL_DIR, "tmp"])?;
            let now = SystemClock.now();
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                let age = now.duration_since(place::modified(&stat)).unwrap_or(Duration::ZERO);
                if place::is_file(&stat) && age > TEMP_AGE_MAX {
                    rustix::fs::unlinkat(&dir, entry.file_name(), AtFlags::empty())?;
                }
            }
            Ok(())
        })();
        if let Err(err) = swept
            && !place::is_absence(&err)
        {
            tracing::debug!("sweeping temporary files of {}: {err}", self.path.display());
        }
    }

    /// What is at a key, without following anything.
    fn look(&self, key: &ObjectKey) -> Result<Option<Found>, StoreError> {
        let Some(place) = Place::of(key.as_str()) else { return Ok(None) };
        let found = self.look_at(self.root()?, &place);
        match found {
            Ok(found) => Ok(found),
            Err(err) if place::is_absence(&err) => Ok(None),
            Err(err) => Err(store_error(key.as_str(), err)),
        }
    }

    fn look_at(&self, root: OwnedFd, place: &Place<'_>) -> io::Result<Option<Found>> {
        let parent = place::open_dirs(root, &place.dirs)?;
        if place.marker {
            let dir = place::open_dir(&parent, place.name)?;
            return Ok(if is_marker(&dir)? { Some(Found::Marker(dir)) } else { None });
        }
        let stat = rustix::fs::statat(&parent, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !place::is_file(&stat) {
            return Ok(None);
        }
        Ok(Some(Found::File(temp::open_file(&parent, place.name)?)))
    }

    pub(super) fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let found = self.look(key)?.ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        let meta = || -> io::Result<ObjectMeta> {
            let (stat, etag) = found.version()?;
            let size = if place::is_file(&stat) { stat.st_size } else { 0 };
            Ok(ObjectMeta {
                size_bytes: u64::try_from(size).unwrap_or(0),
                etag,
                modified: place::modified(&stat),
                metadata: self.metadata(found.fd(), &stat)?,
                checksum: None,
            })
        };
        meta().map_err(|err| store_error(key.as_str(), err))
    }

    fn metadata(&self, file: impl AsFd, stat: &Stat) -> io::Result<BTreeMap<String, String>> {
        let json = match temp::get_meta(file)? {
            Some(json) => json,
            None => match self.read_sidecar(&place::sidecar_name(stat))? {
                Some(json) => json,
                None => return Ok(BTreeMap::new()),
            },
        };
        // Somebody else's attribute of that name is not ours to complain about.
        Ok(serde_json::from_slice(&json).unwrap_or_default())
    }

    fn read_sidecar(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let root = place::open_root(&self.path)?;
        let opened = place::open_dirs(root, &[STATE_DIR, LOCAL_DIR, "meta"])
            .and_then(|dir| temp::open_file(dir, name));
        let mut file = match opened {
            Ok(file) => file,
            Err(err) if place::is_absence(&err) => return Ok(None),
            Err(err) => return Err(err),
        };
        let mut json = Vec::new();
        file.read_to_end(&mut json)?;
        Ok(Some(json))
    }

    /// Opens the version of an object that `etag` names.
    pub(super) fn open_version(&self, key: &ObjectKey, etag: &ETag) -> Result<(File, u64), StoreError> {
        let found = self.look(key)?.ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        let (stat, there) = found.version().map_err(|err| store_error(key.as_str(), err))?;
        match found {
            Found::File(file) if there == *etag => Ok((file, u64::try_from(stat.st_size).unwrap_or(0))),
            Found::Marker(dir) if there == *etag => Ok((File::from(dir), 0)),
            Found::File(_) | Found::Marker(_) => Err(StoreError::Changed { key: key.clone() }),
        }
    }

    /// A file to be filled and published.
    pub(super) fn temp(&self, key: &ObjectKey) -> Result<TempFile, StoreError> {
        self.root()?;
        self.local("tmp").and_then(TempFile::create).map_err(|err| store_error(key.as_str(), err))
    }

    /// Refuses early, before anything is written, what would be refused later.
    pub(super) fn check(&self, key: &ObjectKey, expect: &Expect) -> Result<(), StoreError> {
        let there = match self.look(key)? {
            Some(found) => Some(found.version().map_err(|err| store_error(key.as_str(), err))?.1),
            None => None,
        };
        match (expect, there) {
            (Expect::Absent, Some(_)) => Err(StoreError::AlreadyExists { key: key.clone() }),
            (Expect::Version(etag), there) if there.as_ref() != Some(etag) => {
                Err(StoreError::Changed { key: key.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Puts a filled file in its place, under its condition, durably.
    pub(super) fn publish(
        &self,
        key: &ObjectKey,
        file: TempFile,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let failed = |err| store_error(key.as_str(), err);
        let place = Place::of(key.as_str()).ok_or_else(|| nowhere(key))?;
        file.seal(&attributes.metadata, self.xattrs, || self.local("meta")).map_err(failed)?;
        match expect {
            Expect::Absent => self.publish_new(key, &place, &file)?,
            Expect::Version(_) => {
                let _locked = self.lock(key.as_str())?;
                self.check(key, expect)?;
                let before = self.look(key)?;
                let parent = place::open_dirs(self.root()?, &place.dirs).map_err(failed)?;
                file.publish_over(parent, place.name).map_err(failed)?;
                self.forget_sidecar(before.as_ref());
            }
        }
        let stat = file.stat().map_err(failed)?;
        Ok(place::etag_of_file(&stat))
    }

    fn publish_new(&self, key: &ObjectKey, place: &Place<'_>, file: &TempFile) -> Result<(), StoreError> {
        let mut vanished = 0;
        loop {
            let published = place::make_dirs(self.root()?, &place.dirs)
                .and_then(|parent| file.publish_new(parent, place.name));
            let Err(err) = published else { return Ok(()) };
            // A delete has removed the directory that it had emptied.
            if err.kind() == io::ErrorKind::NotFound && vanished < VANISHED_DIRS_MAX {
                vanished += 1;
                continue;
            }
            if err.kind() != io::ErrorKind::AlreadyExists {
                return Err(store_error(key.as_str(), err));
            }
            return Err(match self.look(key)? {
                Some(_) => StoreError::AlreadyExists { key: key.clone() },
                None => StoreError::Rejected {
                    key: key.to_string(),
                    reason: "a directory, or something else that is no file, has this name".into(),
                },
            });
        }
    }

    /// Makes a directory stand for an object.
    pub(super) fn put_marker(
        &self,
        key: &ObjectKey,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let failed = |err| store_error(key.as_str(), err);
        let place = Place::of(key.as_str()).ok_or_else(|| nowhere(key))?;
        let _locked = self.lock(key.as_str())?;
        self.check(key, expect)?;
        let path: Vec<&str> = place.dirs.iter().copied().chain([place.name]).collect();
        let dir = place::make_dirs(self.root()?, &path).map_err(failed)?;
        let json = serde_json::to_vec(&attributes.metadata).expect("a map of strings");
        // Where it cannot be marked, it is an object for as long as it is empty.
        temp::set_meta(&dir, &json).map_err(failed)?;
        let stat = rustix::fs::fstat(&dir).map_err(|err| failed(err.into()))?;
        rustix::fs::fsync(&dir).map_err(|err| failed(err.into()))?;
        Ok(place::etag_of_marker(&stat))
    }

    pub(super) fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let failed = |err| store_error(key.as_str(), err);
        let Some(place) = Place::of(key.as_str()) else { return Ok(()) };
        if self.look(key)?.is_none() {
            return Ok(());
        }
        let _locked = self.lock(key.as_str())?;
        let Some(found) = self.look(key)? else { return Ok(()) };
        let (_, there) = found.version().map_err(failed)?;
        if there != *etag {
            return Err(StoreError::Changed { key: key.clone() });
        }
        let parent = place::open_dirs(self.root()?, &place.dirs).map_err(failed)?;
        match &found {
            Found::File(_) => {
                rustix::fs::unlinkat(&parent, place.name, AtFlags::empty())
                    .map_err(|err| failed(err.into()))?;
                self.forget_sidecar(Some(&found));
            }
            Found::Marker(dir) => {
                match rustix::fs::fremovexattr(dir, temp::META_XATTR) {
                    Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(err) => return Err(failed(err.into())),
                }
                match rustix::fs::unlinkat(&parent, place.name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
                    Err(err) => return Err(failed(err.into())),
                }
            }
        }
        rustix::fs::fsync(&parent).map_err(|err| failed(err.into()))?;
        self.prune(&place.dirs);
        Ok(())
    }

    /// Removes the directories that are empty now, from the inside out: in a bucket there are none.
    /// One that was made as an object stays. Best effort, since an empty directory hurts nobody.
    fn prune(&self, dirs: &[&str]) {
        for depth in (1..=dirs.len()).rev() {
            let removed = (|| -> io::Result<()> {
                let parent = place::open_dirs(place::open_root(&self.path)?, &dirs[..depth - 1])?;
                let name = dirs[depth - 1];
                if temp::get_meta(place::open_dir(&parent, name)?)?.is_some() {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
            })();
            if removed.is_err() {
                return;
            }
        }
    }

    fn forget_sidecar(&self, found: Option<&Found>) {
        let removed = (|| -> io::Result<()> {
            let Some(Found::File(file)) = found else { return Ok(()) };
            let name = place::sidecar_name(&rustix::fs::fstat(file)?);
            let dir = place::open_dirs(place::open_root(&self.path)?, &[STATE_DIR, LOCAL_DIR, "meta"])?;
            Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
        })();
        // Most files have none.
        drop(removed);
    }
}

/// What is at a key.
#[derive(Debug)]
enum Found {
    File(File),
    /// A directory that stands for an object.
    Marker(OwnedFd),
}

impl Found {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Marker(dir) => dir.as_fd(),
        }
    }

    fn version(&self) -> io::Result<(Stat, ETag)> {
        let stat = rustix::fs::fstat(self.fd())?;
        let etag = match self {
            Self::File(_) => place::etag_of_file(&stat),
            Self::Marker(_) => place::etag_of_marker(&stat),
        };
        Ok((stat, etag))
    }
}

/// A key that this file system cannot hold, or that is ours.
pub(super) fn nowhere(key: &ObjectKey) -> StoreError {
    let reason = "a directory cannot hold a file of that name".into();
    StoreError::Rejected { key: key.to_string(), reason }
}

fn no_bucket(path: &std::path::Path, err: io::Error) -> StoreError {
    let bucket = path.display().to_string();
    if place::is_absence(&err) { StoreError::NoBucket { bucket } } else { store_error(&bucket, err) }
}
