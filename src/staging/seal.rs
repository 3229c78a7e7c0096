//! Freezing a dataset for a commit, and what may become of it.
//!
//! ```text
//! <dataset>/open/tree/…           what is being staged now; made when it is needed
//! <dataset>/open/base/…           what it replaces or deletes
//! <dataset>/sealed/<txid>/tree/…  frozen: read, never changed
//!                         base/…
//!                         journal how far its commit has come (the commit's own)
//! <dataset>/thawing/<txid>/…      on its way back into open/
//! <dataset>/done/<txid>/…         published or discarded: on its way out
//! ```
//!
//! Each transition is decided by one rename, which is atomic, followed by an fsync of both
//! directories. What comes after the rename can be done again at any time, and is, when the
//! staging area is opened after a crash:
//!
//! | transition | before the decision | the deciding rename | after it, and again after a crash |
//! | --- | --- | --- | --- |
//! | freeze | syncfs: every byte and name is durable | `open` to `sealed/<txid>` | nothing |
//! | thaw | - | `sealed/<txid>` to `thawing/<txid>` | move each entry back, fsync, remove `thawing/<txid>` |
//! | finish | - | `sealed/<txid>` to `done/<txid>` | remove `done/<txid>` (many files in the background), then all that is empty |

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::fs::OFlags;

use crate::durable;
use crate::failpoint;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::check_component;
use crate::staging::StagedKind;
use crate::staging::StagingError;
use crate::staging::base::Base;
use crate::staging::base::Bases;
use crate::staging::dataset::SealedTree;
use crate::staging::dataset::StagedDataset;
use crate::staging::dataset::Trees;
use crate::staging::lease;
use crate::staging::outside::Outside;
use crate::staging::tree;
use crate::staging::tree::Tree;
use crate::staging::tree::Walk;

/// So many files are removed while somebody waits.
const REMOVED_AT_ONCE_MAX: usize = 64;

/// A staged file, as a commit sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedEntry {
    /// Where it is in the dataset.
    pub path: RelPath,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed.
    pub modified: SystemTime,
}

/// All that one commit takes.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The files, in the order of their paths.
    pub files: Vec<StagedEntry>,
    /// Directories made on purpose, with nothing in them.
    pub empty_directories: Vec<DirPath>,
    /// What the files replace, and what is to be deleted, in the order of the paths.
    pub bases: Vec<(RelPath, Base)>,
    /// What was found in the tree and cannot be committed: links, devices, bad names.
    pub foreign: Vec<String>,
}

impl Contents {
    pub(super) fn new(walk: Walk, bases: Vec<(RelPath, Base)>) -> Self {
        let files = walk.files.into_iter().map(|(path, stat)| StagedEntry {
            path,
            size_bytes: stat.st_size.try_into().unwrap_or(0),
            modified: tree::modified_of(&stat),
        });
        let files = files.collect();
        Self { files, empty_directories: walk.empty_directories, bases, foreign: walk.foreign }
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.empty_directories.is_empty() && self.bases.is_empty()
    }
}

/// A frozen tree: what one commit publishes.
#[derive(Clone, Debug)]
pub struct Sealed {
    txid: String,
    dir: PathBuf,
    /// Where the files are, if they are not in it.
    outside: Option<Arc<Outside>>,
}

impl Sealed {
    pub(super) fn new(txid: &str, dir: PathBuf, outside: Option<Arc<Outside>>) -> Self {
        Self { txid: txid.to_owned(), dir, outside }
    }

    pub(super) fn outside(&self) -> Option<&Outside> {
        self.outside.as_deref()
    }

    /// The commit that it is frozen for.
    #[must_use]
    pub fn txid(&self) -> &str {
        &self.txid
    }

    /// Where that commit keeps its journal.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Where a file of it is on the local disk: for taking it over once it is published.
    #[must_use]
    pub fn file_path(&self, path: &RelPath) -> PathBuf {
        if let Some(outside) = &self.outside {
            return outside.path(path);
        }
        self.dir.join("tree").join(path.as_str())
    }

    /// All that is in it.
    ///
    /// # Errors
    /// The local disk's.
    pub fn contents(&self) -> Result<Contents, StagingError> {
        if let Some(outside) = &self.outside {
            return Ok(outside.contents.clone());
        }
        let failed = |source| StagingError::io(&self.dir, source);
        let tree = Tree::open(&self.dir.join("tree")).map_err(failed)?;
        let walk = tree.as_ref().map(Tree::walk).transpose().map_err(failed)?;
        let bases = Bases::load(&self.dir.join("base")).map_err(failed)?;
        Ok(Contents::new(walk.unwrap_or_default(), bases.all()))
    }

    /// Opens a file of it for reading.
    ///
    /// # Errors
    /// ENOENT, and the local disk's others.
    pub fn open_file(&self, path: &RelPath) -> Result<File, StagingError> {
        if let Some(outside) = &self.outside {
            return outside.open_file(path);
        }
        let failed = |source| StagingError::io(self.file_path(path), source);
        let tree = Tree::open(&self.dir.join("tree")).map_err(failed)?;
        let tree = tree.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOENT)))?;
        Ok(tree.file(path, OFlags::RDONLY).map_err(|err| failed(err.into()))?.into())
    }
}

impl StagedDataset {
    /// Takes all that is staged out of reach of writers. What is staged from now on belongs to
    /// the next commit. When this returns, everything frozen survives power loss.
    ///
    /// # Errors
    /// [`StagingError::OpenForWriting`], [`StagingError::AlreadySealed`],
    /// [`StagingError::Foreign`], [`StagingError::NothingStaged`], and the local disk's: then
    /// nothing has changed.
    pub fn freeze(&self, txid: &str) -> Result<Sealed, StagingError> {
        let failed = |source| StagingError::io(&self.dir, source);
        check_component(txid).map_err(|err| failed(io::Error::new(io::ErrorKind::InvalidInput, err)))?;
        if let Some(outside) = self.outside() {
            return self.freeze_outside(txid, outside);
        }
        // The bulk of the bytes goes to disk while others still work; the rest follows below.
        if let Some(top) = Tree::open(&self.open_dir().join("tree")).map_err(failed)? {
            top.sync_everything().map_err(failed)?;
        }
        let mut trees = self.trees.write();
        if let Some(other) = &trees.sealed {
            return Err(StagingError::AlreadySealed { txid: other.sealed.txid.clone() });
        }
        let paths = self.files.lock().written();
        if !paths.is_empty() {
            return Err(StagingError::OpenForWriting { paths });
        }
        let tree = trees.open.as_ref().ok_or(StagingError::NothingStaged)?;
        let contents = Contents::new(tree.walk().map_err(failed)?, trees.bases.all());
        if !contents.foreign.is_empty() {
            return Err(StagingError::Foreign { paths: contents.foreign });
        }
        if contents.is_empty() {
            return Err(StagingError::NothingStaged);
        }
        let mapped = contents.files.iter().filter(|file| {
            // One that cannot be opened will fail the commit with its own error, when it is read.
            tree.file(&file.path, OFlags::RDONLY).is_ok_and(|fd| lease::has_writer(&fd.into()))
        });
        let paths: Vec<RelPath> = mapped.map(|file| file.path.clone()).collect();
        if !paths.is_empty() {
            return Err(StagingError::OpenForWriting { paths });
        }
        tree.sync_everything().map_err(failed)?;
        failpoint::reach(|| "freeze:synced".into());
        let dir = self.dir.join("sealed").join(txid);
        durable::create_private_dirs(&self.dir.join("sealed")).map_err(failed)?;
        durable::rename(&self.open_dir(), &dir).map_err(failed)?;
        let sealed = Sealed::new(txid, dir, None);
        if let Some(tree) = trees.open.take() {
            let bases = std::mem::take(&mut trees.bases);
            trees.sealed = Some(SealedTree { sealed: sealed.clone(), tree, bases });
        }
        let mut files = self.files.lock();
        files.moved_dir(&DirPath::root(), None);
        files.tree_replaced();
        Ok(sealed)
    }

    /// What is frozen: after a crash, what is to be resumed or aborted.
    #[must_use]
    pub fn sealed(&self) -> Option<Sealed> {
        self.trees.read().sealed.as_ref().map(|sealed| sealed.sealed.clone())
    }

    /// Gives up a commit: what was frozen is staged again, beside what was staged meanwhile.
    ///
    /// # Errors
    /// The local disk's. Then [`Self::finish_thaw`] goes on with it, or the next opening of the staging area.
    pub fn thaw(&self, sealed: &Sealed) -> Result<(), StagingError> {
        let mut trees = self.trees.write();
        let Some(own) = trees.sealed.as_mut().filter(|own| own.sealed.txid == sealed.txid) else {
            return Ok(()); // done before
        };
        if own.sealed.outside.is_some() {
            drop(trees);
            return self.finish(sealed); // its files are where they always were
        }
        let thawing = self.dir.join("thawing").join(&sealed.txid);
        if own.sealed.dir != thawing {
            move_aside(&own.sealed.dir, &thawing)?;
            own.sealed.dir.clone_from(&thawing);
        }
        self.open_tree(&mut trees)?;
        merge_back(&thawing, &self.open_dir())?;
        *trees = load_trees(&self.dir)?;
        self.files.lock().tree_replaced();
        Ok(())
    }

    /// Goes on with a thaw that has failed on its way, if there is one: what is left of the frozen tree
    /// is no commit any more. Returns whether there was.
    ///
    /// # Errors
    /// As [`Self::thaw`].
    pub fn finish_thaw(&self) -> Result<bool, StagingError> {
        let thawing = self.dir.join("thawing");
        match self.sealed().filter(|sealed| sealed.dir.starts_with(&thawing)) {
            Some(sealed) => self.thaw(&sealed).map(|()| true),
            None => Ok(false),
        }
    }

    /// Ends a commit that has been published: what was frozen is removed, and the dataset's
    /// directory with it if nothing else is staged.
    ///
    /// # Errors
    /// The local disk's, if it could not be decided. What cannot be removed afterwards is
    /// removed when the staging area is opened again.
    pub fn finish(&self, sealed: &Sealed) -> Result<(), StagingError> {
        let done = self.dir.join("done").join(&sealed.txid);
        {
            let mut trees = self.trees.write();
            let Some(own) = trees.sealed.as_ref().filter(|own| own.sealed.txid == sealed.txid) else {
                return Ok(()); // done before
            };
            move_aside(&own.sealed.dir, &done)?;
            trees.sealed = None;
        }
        remove_done(done);
        failpoint::reach(|| "finish:removed".into());
        self.remove_if_empty();
        failpoint::reach(|| "finish:done".into());
        Ok(())
    }

    /// Removes the dataset's directory if nothing is staged in it.
    pub(super) fn remove_if_empty(&self) -> bool {
        self.remove_empty(&mut self.trees.write())
    }

    pub(super) fn remove_empty(&self, trees: &mut Trees) -> bool {
        if trees.sealed.is_some() || !trees.bases.is_empty() {
            return false;
        }
        let open = self.open_dir();
        match fs::remove_dir(open.join("tree")) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return false, // something is in it
            Ok(()) | Err(_) => {}
        }
        let beside = ["sealed", "thawing", "done", "making"].map(|place| self.dir.join(place));
        for place in [&open.join("base"), &open].into_iter().chain(&beside).chain([&self.dir]) {
            fs::remove_dir(place).ok(); // one that is not empty, or not there, stays as it is
        }
        trees.open = None;
        trees.bases = Bases::default();
        self.files.lock().tree_replaced();
        durable::sync_parent(&self.dir).ok();
        true
    }
}

/// The deciding rename.
pub(super) fn move_aside(from: &Path, to: &Path) -> Result<(), StagingError> {
    let made = to.parent().map_or(Ok(()), durable::create_private_dirs);
    made.and_then(|()| durable::rename(from, to)).map_err(|source| StagingError::io(from, source))
}

/// Removes what nobody needs any more. Many files are left to a thread, since whoever has committed
/// waits, and some file systems take milliseconds for each; what it does not come to is removed when the
/// staging area is opened again.
fn remove_done(done: PathBuf) {
    if holds_more_than(&done, REMOVED_AT_ONCE_MAX) {
        let all = done.clone();
        let remove = move || drop(fs::remove_dir_all(&all));
        if thread::Builder::new().name("dsfs-remove".into()).spawn(remove).is_ok() {
            return;
        }
    }
    fs::remove_dir_all(&done).ok();
}

/// Whether there are more than `max` names below a directory, as far as it can be read.
fn holds_more_than(dir: &Path, max: usize) -> bool {
    let mut waiting = vec![dir.to_owned()];
    let mut found = 0;
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found += 1;
            if found > max {
                return true;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    false
}

pub(super) fn remove_any(path: &Path) {
    if fs::remove_file(path).is_err() {
        fs::remove_dir_all(path).ok();
    }
}

/// Finishes or undoes what a crash interrupted, and opens what is left.
pub(super) fn recover(dir: &Path) -> Result<Trees, StagingError> {
    let _points = failpoint::scope();
    for thawing in entries(&dir.join("thawing"))? {
        let open = dir.join("open");
        Tree::make_top(&open.join("tree")).map_err(|source| StagingError::io(&open, source))?;
        merge_back(&thawing, &open)?;
    }
    for done in entries(&dir.join("done"))? {
        if done.is_dir() { remove_done(done) } else { remove_any(&done) }
    }
    load_trees(dir)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, StagingError> {
    let failed = |source| StagingError::io(dir, source);
    match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        answer => {
            let entries = answer.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()));
            entries.collect::<io::Result<_>>().map_err(failed)
        }
    }
}

fn load_trees(dir: &Path) -> Result<Trees, StagingError> {
    let failed = |source| StagingError::io(dir, source);
    let open = Tree::open(&dir.join("open").join("tree")).map_err(failed)?;
    let bases = Bases::load(&dir.join("open").join("base")).map_err(failed)?;
    let sealed = sealed_in(dir)?;
    let sealed = sealed.map(|sealed| {
        let tree = Tree::open(&sealed.dir.join("tree")).map_err(failed)?;
        let tree = tree.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOENT)))?;
        let bases = Bases::load(&sealed.dir.join("base")).map_err(failed)?;
        Ok(SealedTree { sealed, tree, bases })
    });
    Ok(Trees { open, bases, sealed: sealed.transpose()? })
}

/// The one frozen tree of a dataset, if it has one.
pub(super) fn sealed_in(dir: &Path) -> Result<Option<Sealed>, StagingError> {
    let mut found = entries(&dir.join("sealed"))?.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(dir), None) => {
            let txid = dir.file_name().map(|name| name.to_string_lossy().into_owned());
            let outside = Outside::load(&dir)?;
            Ok(Some(Sealed { txid: txid.unwrap_or_default(), dir, outside }))
        }
        (Some(_), Some(second)) => Err(StagingError::Damaged {
            path: second,
            reason: "two commits are sealed where there can be one".into(),
        }),
    }
}

/// Moves everything from `thawing` into `open`, where it meets nothing but directories.
fn merge_back(thawing: &Path, open: &Path) -> Result<(), StagingError> {
    let failed = |source| StagingError::io(thawing, source);
    let from = Tree::open(&thawing.join("tree")).map_err(failed)?;
    let to = Tree::open(&open.join("tree")).map_err(failed)?;
    if let (Some(from), Some(to)) = (&from, &to) {
        if !from.is_implicit().map_err(failed)? {
            to.make_explicit().map_err(failed)?;
        }
        merge_dir(from, to, &DirPath::root(), thawing)?;
    }
    for base in entries(&thawing.join("base"))? {
        let name = base.file_name().unwrap_or_default();
        durable::create_private_dirs(&open.join("base")).map_err(failed)?;
        durable::rename(&base, &open.join("base").join(name)).map_err(failed)?;
    }
    failpoint::reach(|| "thaw:merged".into());
    // Only what is known to be ours or empty: anything else stays where it can be found.
    fs::remove_file(thawing.join("journal")).ok();
    for place in [thawing.join("tree"), thawing.join("base"), thawing.to_path_buf()] {
        fs::remove_dir(place).ok();
    }
    failpoint::reach(|| "thaw:removed".into());
    thawing.parent().map_or(Ok(()), durable::sync_dir).map_err(failed)
}

fn merge_dir(from: &Tree, to: &Tree, dir: &DirPath, thawing: &Path) -> Result<(), StagingError> {
    let failed = |source| StagingError::io(thawing.join("tree").join(dir.as_str()), source);
    let source = from.dir(dir).map_err(|err| failed(err.into()))?;
    let target = to.dir(dir).map_err(|err| failed(err.into()))?;
    for (name, stat) in from.read_dir(dir).map_err(failed)? {
        let Ok(path) = dir.child(&name) else { continue };
        let there = to.stat(&path).map_err(failed)?;
        let is_dir = |stat| tree::kind_of(stat) == Some(StagedKind::Directory);
        match there {
            None => {
                failpoint::reach(|| "thaw:entry:before".into());
                rustix::fs::renameat(&source, &*name, &target, &*name).map_err(|err| failed(err.into()))?;
                failpoint::reach(|| "thaw:entry:after".into());
            }
            Some(there) if is_dir(&stat) && is_dir(&there) => {
                merge_dir(from, to, &path.clone().into(), thawing)?;
                if tree::is_implicit(&there) && !tree::is_implicit(&stat) {
                    let made_on_purpose = tree::mode_for(StagedKind::Directory, stat.st_mode);
                    let both = to.dir(&path.into()).and_then(|fd| rustix::fs::fchmod(fd, made_on_purpose));
                    both.map_err(|err| failed(err.into()))?;
                }
                rustix::fs::unlinkat(&source, &*name, AtFlags::REMOVEDIR)
                    .map_err(|err| failed(err.into()))?;
            }
            Some(_) => {
                let reason = "it is both in a commit that failed and staged anew".into();
                return Err(StagingError::Damaged { path: thawing.join("tree").join(path.as_str()), reason });
            }
        }
    }
    rustix::fs::fsync(&target).and_then(|()| rustix::fs::fsync(&source)).map_err(|err| failed(err.into()))
}
