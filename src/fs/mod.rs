//! Every file system operation, by inode and handle.
//!
//! Everything about the mount that can be right or wrong is decided here, without the kernel
//! and without the `fuser` crate. Operations on staged files are local; the others are futures
//! that are ready at their first poll where the answer is at hand, and wait for the remote
//! where it is not. SEMANTICS.md says for users what each one promises.
//!
//! # Invariants
//!
//! 1. A published file is never written to, truncated, renamed or removed. With
//!    `allow_replace` a staged copy takes its place in the tree; the object stays as it is
//!    until `dsfs commit --overwrite`.
//! 2. A handle reads one version: its inode belongs to (path, `ETag`), and its reader pins it.
//! 3. No lock of this module is held across an `.await` or a call into the kernel.
//!
//! `dir` lists, `ahead` and `walk` guess what is opened next, `file` reads and writes, `past` shows what was committed before, `change` makes, moves and removes, `xattr` tells a
//! file's state, `open` keeps the handles, `handover` gives them to another program, `error` has the table of errnos.

mod ahead;
pub mod attr;
pub mod change;
pub mod dir;
pub mod error;
pub mod file;
pub mod handover;
pub mod open;
mod past;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod xattr;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time;

use crate::catalog::Catalog;
use crate::catalog::NewsListener;
use crate::catalog::listing::RemoteFile;
use crate::catalog::snapshots::SnapshotId;
use crate::clock::Clock;
use crate::fs::ahead::Ahead;
use crate::fs::attr::Attr;
use crate::fs::attr::AttrRules;
use crate::fs::error::FsError;
use crate::fs::open::OpenTable;
use crate::name;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::NameError;
use crate::name::RelPath;
use crate::read::Reader;
use crate::staging::StagedAttr;
use crate::staging::StagedDataset;
use crate::staging::Staging;
use crate::tree::Found;
use crate::tree::Tree;
use crate::tree::inode::Ino;
use crate::tree::inode::InodeTable;
use crate::tree::inode::Node;
use crate::tree::inode::ROOT;

/// How long the kernel may keep a published file's attributes: they belong to a version, and a
/// version does not change.
const PUBLISHED_ATTR_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long the kernel may keep other attributes; its own changes it knows at once.
const ATTR_TTL: Duration = Duration::from_secs(1);
/// How long a command waits for the kernel to take the notices of what it has changed.
const NOTICE_PATIENCE: Duration = Duration::from_secs(2);

/// Inodes that are looked at for each new one, once there are too many.
const SWEPT_FOR_EACH: u64 = 4;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// Published files may be replaced and deleted, in staging.
    pub allow_replace: bool,
    /// Whole local files may be handed to the kernel, where it permits that.
    pub passthrough: bool,
    /// Inodes of published files that the kernel may hold before it is asked to let go of the oldest: each
    /// takes room here too.
    pub inodes_max: usize,
    /// The owner of everything shown.
    pub uid: u32,
    /// The group of everything shown.
    pub gid: u32,
    /// A directory on the staging disk, whose free space `df` shows.
    pub state_dir: PathBuf,
}

/// The kernel's caches, as far as a change behind its back must be told.
pub trait KernelCache: fmt::Debug + Send + Sync {
    /// The entry of this name, or its absence, is no longer true.
    fn entry_changed(&self, parent: Ino, name: &str);
    /// The pages of these bytes of an inode are not to be kept: they may be wrong, or are there twice.
    fn drop_pages(&self, ino: Ino, bytes: Range<u64>);
    /// Ends when the kernel has been told all of the above.
    fn told(&self) -> oneshot::Receiver<()>;
}

/// An inode as it is given to the kernel: its lookup count has grown by one.
#[derive(Debug)]
pub struct Entry {
    /// Its attributes, which name it.
    pub attr: Attr,
    /// How long the name stands for it.
    pub entry_ttl: Duration,
    /// How long the attributes stand.
    pub attr_ttl: Duration,
}

/// What `lookup` answers.
#[derive(Debug)]
pub enum Lookup {
    /// It is there.
    Entry(Entry),
    /// It is not, and that may be relied on for so long.
    Absent(Duration),
}

/// The file system of one mount.
#[derive(Debug)]
pub struct DatasetFs {
    tree: Tree,
    reader: Arc<Reader>,
    inodes: InodeTable,
    open: OpenTable,
    ahead: Ahead,
    options: FsOptions,
    rules: AttrRules,
    clock: Arc<dyn Clock>,
    /// The kernel takes staged files, and as far as is known published ones: their files are the cache's, which
    /// may be on another file system.
    passes_staged: AtomicBool,
    passes_published: AtomicBool,
    kernel: OnceLock<Arc<dyn KernelCache>>,
}

/// Carries what the catalog notices to the kernel.
#[derive(Debug)]
struct Notices {
    fs: Weak<DatasetFs>,
}

impl NewsListener for Notices {
    fn changed(&self, name: &DatasetName, paths: &[RelPath]) {
        if let Some(fs) = self.fs.upgrade() {
            fs.invalidate_all(name, paths.iter());
        }
    }
}

/// Where a name is, before it is known what is there.
enum Place {
    /// A dataset of this name.
    Dataset(DatasetName),
    /// A path of a dataset.
    Path(DatasetName, RelPath),
    /// A path of a past state of a dataset.
    Past(SnapshotId, RelPath),
}

impl DatasetFs {
    /// A file system over these layers.
    #[must_use]
    pub fn new(
        catalog: Arc<Catalog>,
        staging: Arc<Staging>,
        reader: Arc<Reader>,
        clock: Arc<dyn Clock>,
        options: FsOptions,
    ) -> Arc<Self> {
        let rules = AttrRules { started: clock.now(), allow_replace: options.allow_replace };
        Arc::new(Self {
            tree: Tree::new(catalog, staging),
            reader,
            inodes: InodeTable::default(),
            open: OpenTable::default(),
            ahead: Ahead::default(),
            options,
            rules,
            clock,
            passes_staged: AtomicBool::new(false),
            passes_published: AtomicBool::new(false),
            kernel: OnceLock::new(),
        })
    }

    /// The mount's options.
    #[must_use]
    pub fn options(&self) -> &FsOptions {
        &self.options
    }

    /// The open handles.
    #[must_use]
    pub fn open_table(&self) -> &OpenTable {
        &self.open
    }

    /// The reader of published files.
    #[must_use]
    pub fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// The merged tree.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// How many inodes the kernel holds.
    #[must_use]
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Whether published files that are whole in the cache are handed to the kernel.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.passes_published.load(Ordering::Relaxed)
    }

    /// Called once by whoever has mounted it: what the kernel can do, and how to reach it.
    pub fn attach(self: &Arc<Self>, kernel: Arc<dyn KernelCache>, passthrough: bool) {
        let passes = passthrough && self.options.passthrough;
        self.passes_staged.store(passes, Ordering::Relaxed);
        self.passes_published.store(passes, Ordering::Relaxed);
        if !passes {
            self.kernel_keeps_pages();
        }
        self.tree.catalog().listen(Arc::new(Notices { fs: Arc::downgrade(self) }));
        // A second mount of the same file system does not happen; the first one stays attached.
        let _already_attached = self.kernel.set(kernel);
    }

    /// Waits until the kernel knows what has changed, so that who is told of a change sees it; not for
    /// long, since what it is not told expires by itself.
    pub async fn kernel_knows(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        if time::timeout(NOTICE_PATIENCE, kernel.told()).await.is_err() {
            tracing::debug!("the kernel takes its time over notices");
        }
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// A bad name, or the layers' own; that the name is not there is no error.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Lookup, FsError> {
        let place = match self.place(parent, name) {
            // Names that cannot be, such as `.git` among the datasets, are simply not there.
            Err(FsError::Name(NameError::BadDataset(_))) => return Ok(Lookup::Absent(ATTR_TTL)),
            place => place?,
        };
        match place {
            Place::Dataset(dataset) => {
                let answer = self.tree.dataset(&dataset).await?;
                match answer.value {
                    None => match self.past_root(&dataset).await? {
                        Some(past) => {
                            Ok(Lookup::Entry(Entry { entry_ttl: answer.ttl, ..self.past_entry(past) }))
                        }
                        None if past::may_be_past(&dataset) => Ok(Lookup::Absent(ATTR_TTL)),
                        None => Ok(Lookup::Absent(answer.ttl)),
                    },
                    Some(found) => {
                        let node = Node::Directory(dataset, DirPath::root());
                        Ok(Lookup::Entry(self.entry(node, &found, answer.ttl)))
                    }
                }
            }
            Place::Path(dataset, path) => {
                let answer = self.tree.lookup(&dataset, &path).await?;
                match answer.value {
                    None => Ok(Lookup::Absent(answer.ttl)),
                    Some(found) => {
                        if matches!(found, Found::Directory(None)) {
                            self.ahead.entered(self.tree.catalog(), &dataset);
                        }
                        Ok(Lookup::Entry(self.entry_at(&dataset, &path, &found, answer.ttl)))
                    }
                }
            }
            Place::Past(id, path) => {
                let entry = self.past_lookup(&id, &path).await?.map(|node| self.past_entry(node));
                Ok(entry.map_or(Lookup::Absent(PUBLISHED_ATTR_TTL), Lookup::Entry))
            }
        }
    }

    /// Drops `count` of the kernel's lookups of an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.inodes.forget(ino, count);
    }

    /// The attributes of an inode, and how long they stand.
    ///
    /// # Errors
    /// [`FsError::Stale`] if it is no longer there.
    pub fn getattr(&self, ino: Ino) -> Result<(Attr, Duration), FsError> {
        let attr = match self.node(ino)? {
            Node::Root => self.rules.directory(ino, None),
            Node::Directory(dataset, dir) => {
                let staged = match (self.tree.staging().dataset(&dataset), dir.as_path()) {
                    (Some(staged), Some(path)) => staged.lookup(&path)?,
                    _ => None,
                };
                self.rules.directory(ino, staged.as_ref())
            }
            Node::Staged(dataset, path) => match self.staged_attr(&dataset, &path)? {
                Some(staged) => self.rules.staged(ino, &staged),
                None => self.open_attr(ino)?,
            },
            Node::Unlinked(_) => self.open_attr(ino)?,
            Node::Published(_, _, file) => {
                return Ok((self.rules.published(ino, &file), PUBLISHED_ATTR_TTL));
            }
            Node::PastDirectory(_, _, time) => {
                return Ok((self.rules.past_directory(ino, time), PUBLISHED_ATTR_TTL));
            }
            Node::PastFile(_, _, file) => {
                return Ok((self.rules.past_file(ino, &file), PUBLISHED_ATTR_TTL));
            }
        };
        Ok((attr, ATTR_TTL))
    }

    /// Takes in a commit: what was staged is published now. The tree moves from one state to the
    /// other without asking the remote, and the kernel is told which names it has to ask about again.
    pub fn committed(
        &self,
        dataset: &DatasetName,
        published: &[(RelPath, RemoteFile)],
        markers: &[RelPath],
        deleted: &[RelPath],
    ) {
        self.tree.catalog().publish(dataset, published, markers);
        self.tree.catalog().withdraw(dataset, deleted);
        let paths = published.iter().map(|(path, _)| path).chain(markers).chain(deleted);
        self.unstaged(dataset, paths);
    }

    /// Takes in that these paths are no longer staged: committed, or discarded.
    pub fn unstaged<'p>(&self, dataset: &DatasetName, paths: impl Iterator<Item = &'p RelPath> + Clone) {
        for path in paths.clone() {
            match self.staged_attr(dataset, path) {
                // Staged anew since: that file has the name now, and keeps it.
                Ok(Some(attr)) => self.leave_if_older(dataset, path, &attr),
                // The inode belongs to the staged file, not to the name.
                Ok(None) | Err(_) => self.inodes.leave(dataset, path),
            }
        }
        self.invalidate_all(dataset, paths);
    }

    /// Takes the name from an inode that is open on another file than the one that is staged there now: its
    /// own has left staging, which it has not been told yet. Whoever opened it next would get that one.
    fn leave_if_older(&self, dataset: &DatasetName, path: &RelPath, now: &StagedAttr) {
        let Some(ino) = self.inodes.number(&Node::Staged(dataset.clone(), path.clone())) else { return };
        let opened = self.open.local_file(ino).and_then(|file| StagedAttr::of_file(&file).ok());
        if opened.is_some_and(|opened| opened.local_ino != now.local_ino) {
            self.inodes.leave(dataset, path);
        }
    }

    /// Tells the kernel that these paths, and so perhaps the directories that lead to them, are
    /// no longer what they were.
    fn invalidate_all<'p>(&self, dataset: &DatasetName, paths: impl Iterator<Item = &'p RelPath>) {
        let mut above = BTreeSet::new();
        for path in paths {
            self.invalidate(dataset, path);
            above.extend(path.ancestors().filter_map(|dir| dir.as_path()));
        }
        for dir in above.iter().rev() {
            self.invalidate(dataset, dir);
        }
        if let Some(kernel) = self.kernel.get() {
            kernel.entry_changed(ROOT, dataset.as_str());
        }
    }

    /// The cache had bytes of a version that were not its own: what memory and the kernel have taken
    /// from there is dropped, so that the next open reads anew. Handles that are open keep their file.
    pub fn forget_content(&self, dataset: &DatasetName, path: &RelPath, etag: &ETag) {
        let Ok(key) = self.tree.catalog().prefix().key(dataset, path) else { return };
        self.reader.forget(&key, etag);
        if let Some(kernel) = self.kernel.get() {
            self.inodes
                .of_version(&key, etag)
                .into_iter()
                .for_each(|ino| kernel.drop_pages(ino, 0..u64::MAX));
        }
    }

    /// Tells the kernel that a path of a dataset is no longer what it was.
    pub fn invalidate(&self, dataset: &DatasetName, path: &RelPath) {
        let Some(kernel) = self.kernel.get() else { return };
        let parent = Node::Directory(dataset.clone(), path.parent());
        if let Some(parent) = self.inodes.number(&parent) {
            kernel.entry_changed(parent, path.file_name());
        }
    }

    fn node(&self, ino: Ino) -> Result<Node, FsError> {
        self.inodes.get(ino).ok_or(FsError::Stale)
    }

    /// Where `name` in the directory `parent` is.
    fn place(&self, parent: Ino, name: &OsStr) -> Result<Place, FsError> {
        let text = name.to_str().ok_or_else(|| NameError::NotUtf8(name.to_string_lossy().into_owned()))?;
        match self.node(parent)? {
            Node::Root => Ok(Place::Dataset(DatasetName::parse(text)?)),
            Node::Directory(dataset, dir) => {
                let path = dir.child(text)?;
                self.tree.catalog().prefix().key(&dataset, &path)?; // too long to be published: say so now
                Ok(Place::Path(dataset, path))
            }
            Node::PastDirectory(id, dir, _) => Ok(Place::Past(id, dir.child(text)?)),
            Node::Staged(..) | Node::Unlinked(_) | Node::Published(..) | Node::PastFile(..) => {
                Err(FsError::NotDirectory)
            }
        }
    }

    fn path_place(&self, parent: Ino, name: &OsStr) -> Result<(DatasetName, RelPath), FsError> {
        match self.place(parent, name)? {
            Place::Dataset(_) => Err(FsError::DatasetsOnly),
            Place::Path(dataset, path) => Ok((dataset, path)),
            Place::Past(..) => Err(FsError::ReadOnly),
        }
    }

    fn entry_at(&self, dataset: &DatasetName, path: &RelPath, found: &Found, ttl: Duration) -> Entry {
        let node = match found {
            Found::Directory(_) => Node::Directory(dataset.clone(), path.clone().into()),
            Found::Staged(attr) => {
                self.leave_if_older(dataset, path, attr);
                Node::Staged(dataset.clone(), path.clone())
            }
            Found::Published(file) => Node::Published(dataset.clone(), path.clone(), Arc::new(file.clone())),
        };
        self.entry(node, found, ttl)
    }

    /// Has the kernel let go of published files that it looked up long ago, where it holds too many. Those
    /// that are open stay, and so do directories, in which somebody may stand.
    fn bound_inodes(&self) {
        let Some(kernel) = self.kernel.get().filter(|_| self.inodes.len() > self.options.inodes_max) else {
            return;
        };
        for (ino, node) in self.inodes.next_oldest(SWEPT_FOR_EACH) {
            if let Node::Published(dataset, path, _) = node
                && self.open.mode(ino).is_none()
                && let Some(parent) = self.inodes.number(&Node::Directory(dataset, path.parent()))
            {
                kernel.entry_changed(parent, path.file_name());
            }
        }
    }

    fn entry(&self, node: Node, found: &Found, entry_ttl: Duration) -> Entry {
        let ino = self.inodes.lookup(node);
        self.bound_inodes();
        let (attr, attr_ttl) = match found {
            Found::Directory(staged) => (self.rules.directory(ino, staged.as_ref()), ATTR_TTL),
            Found::Staged(staged) => (self.rules.staged(ino, staged), ATTR_TTL),
            Found::Published(file) => (self.rules.published(ino, file), PUBLISHED_ATTR_TTL),
        };
        Entry { attr, entry_ttl, attr_ttl }
    }

    fn staged_attr(&self, dataset: &DatasetName, path: &RelPath) -> Result<Option<StagedAttr>, FsError> {
        match self.tree.staging().dataset(dataset) {
            Some(staged) => Ok(staged.lookup(path)?),
            None => Ok(None),
        }
    }

    /// The attributes of a staged inode that is open but has no name: its file's own.
    fn open_attr(&self, ino: Ino) -> Result<Attr, FsError> {
        let file = self.open.local_file(ino).ok_or(FsError::Stale)?;
        let mut attr = self.rules.staged(ino, &StagedAttr::of_file(&file)?);
        attr.links = 0;
        Ok(attr)
    }

    /// The staging side of a dataset, which is there for as long as anything is staged in it.
    fn staged_dataset(&self, dataset: &DatasetName) -> Result<Arc<StagedDataset>, FsError> {
        Ok(self.tree.staging().known_dataset(dataset)?)
    }

    fn check_writable(&self) -> Result<(), FsError> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }
}

/// Checks a name as it came from the kernel, without knowing where it is.
///
/// # Errors
/// Not UTF-8, or not a valid component.
pub fn parse_component(name: &OsStr) -> Result<&str, NameError> {
    let text = name.to_str().ok_or_else(|| NameError::NotUtf8(name.to_string_lossy().into_owned()))?;
    name::check_component(text)?;
    Ok(text)
}
