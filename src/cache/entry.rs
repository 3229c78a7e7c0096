//! One object version in the cache, whether or not anything of it is there.

use std::fs;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::files::Files;
use crate::cache::files::Lookup;
use crate::cache::format;
use crate::cache::format::HEADER_BYTES;
use crate::cache::format::Header;
use crate::cache::format::Kind;
use crate::cache::format::VersionId;
use crate::cache::last_use::LastUse;
use crate::cache::one;
use crate::cache::paths;
use crate::cache::paths::Suffix;
use crate::cache::queue::Pages;

/// Bytes read at a time when a whole file is verified.
const VERIFY_BYTES: u64 = 1024 * 1024;
/// How often the making of a pair of files is tried again when other processes interfere.
const CREATE_ATTEMPTS: usize = 4;

/// A place in the cache for one object version. Shared by all that read it in this process.
#[derive(Debug)]
pub struct Entry {
    cache: Arc<BlockCache>,
    id: VersionId,
    size_bytes: u64,
    state: Mutex<State>,
    /// A small object on its way to the disk: it is read from here meanwhile.
    queued: Mutex<Option<Bytes>>,
    /// A small object that was looked for and not found. Other processes may have cached it since:
    /// [`Entry::refresh`].
    absent: AtomicBool,
    /// Bytes of it on their way to the disk.
    unwritten: AtomicU64,
    /// Tells that there are none any more.
    all_settled: Notify,
    /// A small object whose file is there and cannot be opened, or is damaged and cannot be removed.
    /// Looking again would only find it again: it counts as not there until it was read or written.
    unusable: AtomicBool,
}

#[derive(Debug)]
enum State {
    /// Nobody has looked yet.
    Unknown,
    /// Looked: nothing there.
    Absent,
    Open(Arc<Files>),
}

impl Entry {
    pub(crate) fn new(cache: Arc<BlockCache>, id: VersionId, size_bytes: u64) -> Self {
        Self {
            cache,
            id,
            size_bytes,
            state: Mutex::new(State::Unknown),
            queued: Mutex::default(),
            absent: AtomicBool::new(false),
            unwritten: AtomicU64::new(0),
            all_settled: Notify::new(),
            unusable: AtomicBool::new(false),
        }
    }

    /// An object of at most one block has a file of another form; see [`crate::cache::format`].
    pub(super) fn is_small(&self) -> bool {
        is_small(self.size_bytes)
    }

    /// A number by which entries are spread evenly.
    pub(super) fn spread(&self) -> usize {
        self.id.spread()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn path(&self, suffix: Suffix) -> PathBuf {
        self.cache.paths.of(&self.id, suffix)
    }

    pub(super) fn report_damage(&self, blocks: u64) {
        self.cache.damaged(&self.id, blocks);
    }

    /// Whether a block is in the cache, checked or not.
    pub fn is_present(&self, index: u64) -> bool {
        if self.is_small() {
            return index == 0 && self.finds_one();
        }
        self.files().is_some_and(|files| files.is_present(index))
    }

    fn finds_one(&self) -> bool {
        let queued = self.queued.lock();
        let is_out = self.absent.load(Ordering::Relaxed) || self.unusable.load(Ordering::Relaxed);
        if queued.is_some() || is_out {
            return queued.is_some();
        }
        // Under the lock: what is written meanwhile was queued before.
        let found = self.cache.paths.of(&self.id, Suffix::One).exists();
        self.absent.store(!found, Ordering::Relaxed);
        found
    }

    /// Bytes out of a mapping, if all of them are present and verified: no copy. **Only for the
    /// kernel**: this process must not touch them (a foreign truncation would be SIGBUS). With
    /// [`Pages::LetGo`], which is that the cache's pages may well have left memory, only if they have not.
    pub fn mapped(&self, bytes: &Range<u64>, pages: Pages) -> Option<Bytes> {
        let hit = self.files()?.mapped(bytes, pages, &self.cache.mappings)?;
        self.cache.counters.hits.fetch_add(1, Ordering::Relaxed);
        Some(hit)
    }

    /// Bytes out of the cache, checked by their blocks' checksums the first time in this process.
    /// `bytes` is not empty and lies inside the object. With `wait` unset, does not wait for the
    /// disk, but for a small object's file.
    pub fn read(&self, bytes: &Range<u64>, wait: bool) -> Lookup {
        let found = if self.is_small() {
            let whole = self.read_one();
            whole.map_or(Lookup::Miss, |whole| {
                Lookup::Hit(whole.slice(bytes.start as usize..bytes.end as usize))
            })
        } else {
            self.read_blocks(bytes, wait)
        };
        let counter = match &found {
            Lookup::Hit(_) => &self.cache.counters.hits,
            Lookup::Miss => &self.cache.counters.misses,
            Lookup::WouldBlock => return found,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn read_blocks(&self, bytes: &Range<u64>, wait: bool) -> Lookup {
        let Some(files) = self.files() else { return Lookup::Miss };
        match files.read(bytes, wait) {
            Ok(found) => found,
            Err(damaged) => {
                self.cache.damaged(&self.id, damaged.len() as u64);
                if !files.is_linked() {
                    self.discard();
                }
                Lookup::Miss
            }
        }
    }

    /// Looks again for what other processes have cached of `blocks`.
    pub fn refresh(&self, blocks: Range<u64>) {
        if self.is_small() {
            self.absent.store(false, Ordering::Relaxed);
            return;
        }
        let mut state = self.state.lock();
        match &*state {
            State::Open(files) => {
                let _ = files.load(blocks); // what cannot be read is absent
            }
            State::Unknown | State::Absent => *state = self.look(),
        }
    }

    /// Writes whole blocks, from block `first` on, that come verified from the network.
    ///
    /// # Errors
    /// The local disk's. The caller reports it to the cache's health; nothing else is lost.
    pub(crate) fn store(&self, first: u64, content: &[u8], pages: Pages) -> io::Result<()> {
        let added = if self.is_small() {
            self.store_one(content)?
        } else {
            self.files_for_writing()?.store(first, content, pages)?
        };
        self.cache.added(&self.id, added);
        Ok(())
    }

    /// So many bytes are not on their way to the disk any more.
    pub(super) fn settled(&self, bytes: u64) {
        if self.unwritten.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.all_settled.notify_waiters();
        }
    }

    /// A queued write ended.
    pub(crate) fn written(&self, result: io::Result<()>) {
        {
            let mut queued = self.queued.lock();
            *queued = None;
            self.absent.store(false, Ordering::Relaxed);
        }
        match result {
            Ok(()) => {
                self.unusable.store(false, Ordering::Relaxed);
                self.cache.health.succeeded();
            }
            Err(err) => {
                self.distrust();
                self.cache.health.failed("writing failed", &err);
                self.cache.look_after(); // a full disk may have something to evict
            }
        }
    }

    /// A write failed, and perhaps not the first one: the kernel takes pages that it could not bring to
    /// the disk for clean, and what is read once they have left memory is not what was written. So every
    /// block is checked again, and the kernel is not given the file before that. Who has been given it
    /// already reads it unchecked.
    fn distrust(&self) {
        self.cache.whole.lock().pop(&self.id);
        if let State::Open(files) = &*self.state.lock() {
            files.distrust_all();
        }
    }

    /// Queues whole blocks for [`Self::store`], if there is room in the queue at once.
    pub fn try_store_later(self: &Arc<Self>, first: u64, content: Bytes, pages: Pages) -> bool {
        if !self.cache.admits() {
            return false;
        }
        let bytes = self.note_queued(&content);
        let queued = self.cache.queue.try_push(Arc::clone(self), first, content, pages);
        if !queued {
            self.note_lost(bytes);
        }
        queued
    }

    /// Content is on its way to the disk, or waits for room in the queue. Returns its length.
    fn note_queued(&self, content: &Bytes) -> u64 {
        if self.is_small() {
            *self.queued.lock() = Some(content.clone());
        }
        let bytes = content.len() as u64;
        self.unwritten.fetch_add(bytes, Ordering::AcqRel);
        bytes
    }

    fn note_lost(&self, bytes: u64) {
        *self.queued.lock() = None;
        self.settled(bytes);
    }

    /// Queues whole blocks for [`Self::store`]. Waits for room in the queue, at most `patience`;
    /// false if they were dropped. Dropped blocks are fetched again when they are needed again. They count as
    /// on their way ([`Self::settle`]) from this call on, not from the future's first poll.
    pub fn store_later(
        self: &Arc<Self>,
        first: u64,
        content: Bytes,
        pages: Pages,
        patience: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        let entry = Arc::clone(self);
        let noted = self.cache.admits().then(|| self.note_queued(&content));
        async move {
            let Some(bytes) = noted else { return false };
            let queued = entry.cache.queue.push(Arc::clone(&entry), first, content, pages, patience).await;
            if !queued {
                entry.note_lost(bytes);
            }
            queued
        }
    }

    /// The data file, if the whole object is in it and every block was verified by this process:
    /// for passthrough. Never for objects of at most one block.
    pub fn whole_file(&self) -> Option<Arc<File>> {
        if self.is_small() {
            return None;
        }
        let mut state = self.state.lock();
        let files = self.opened(&mut state)?;
        let is_sound = files.is_whole() && files.is_linked() && self.has_lost_nothing(files);
        is_sound.then(|| Arc::clone(files.data()))
    }

    /// Looks whether the kernel could not bring to the disk what was written to the file, if it is open.
    pub(crate) fn notice_loss(&self) {
        if let State::Open(files) = &*self.state.lock() {
            self.has_lost_nothing(files);
        }
    }

    /// Whether all that was written to the file is on the disk, or on its way there. If not, each block is
    /// compared with its checksum again. Under the lock of the state, since the kernel tells of a loss once.
    fn has_lost_nothing(&self, files: &Files) -> bool {
        let Err(err) = self.cache.writeback.check(files.data()) else { return true };
        self.cache.whole.lock().pop(&self.id);
        files.distrust_all();
        // Memory has what should be on the disk: compared with that, everything would be right.
        self.cache.mappings.let_go();
        if let Err(err) = rustix::fs::fadvise(&**files.data(), 0, None, rustix::fs::Advice::DontNeed) {
            tracing::debug!(id = %self.id, "pages of a cached file stay in memory: {err}");
        }
        tracing::warn!(id = %self.id, "what was written to the cache did not reach its disk, and is checked again: {err}");
        self.cache.counters.lost_writes.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Waits until all of a large object is on the disk, if what is missing of it is on its way there.
    pub async fn settle(&self, patience: Duration) {
        let _ = time::timeout(patience, async {
            loop {
                let settled = self.all_settled.notified();
                let unwritten = self.unwritten.load(Ordering::Acquire);
                let present = self.files().map_or(0, |files| files.verified_bytes());
                if unwritten == 0 || present + unwritten < self.size_bytes {
                    return;
                }
                settled.await;
            }
        })
        .await;
    }

    /// Whether every block is present, so that [`Self::verify`] is worth its time.
    pub fn is_complete(&self) -> bool {
        !self.is_small() && self.files().is_some_and(|files| files.is_complete())
    }

    /// Checks every block of a complete file that was not checked yet: reads the disk, blocking.
    /// Whether the file is whole now.
    pub fn verify(&self) -> bool {
        self.verify_while(|| true)
    }

    /// As [`Self::verify`], as long as somebody wants it.
    pub fn verify_while(&self, wanted: impl Fn() -> bool) -> bool {
        let Some(files) = self.files().filter(|files| files.is_complete()) else { return false };
        let pieces = (0..self.size_bytes).step_by(VERIFY_BYTES as usize);
        let mut pieces = pieces.map(|start| start..(start + VERIFY_BYTES).min(self.size_bytes));
        pieces.all(|piece| {
            block::covering(&piece).all(|index| files.is_verified(index))
                || wanted() && matches!(self.read_blocks(&piece, true), Lookup::Hit(_))
        }) && files.is_whole()
    }

    /// Compares a present block with its checksum, whether that was done before or not, and drops it
    /// if it fails. Counts its bytes. Blocking.
    pub(crate) fn check_block(&self, index: u64, bytes: &mut u64) -> bool {
        let range = crate::block::range_of(index, self.size_bytes);
        *bytes += range.end - range.start;
        let mut buffer = vec![0; (range.end - range.start) as usize];
        self.files().is_some_and(|files| files.recheck(index, &mut buffer).is_some())
    }

    /// Whether every one of these blocks is present and verified.
    pub fn is_verified(&self, mut blocks: Range<u64>) -> bool {
        self.files().is_some_and(|files| blocks.all(|index| files.is_verified(index)))
    }

    /// Reads and checks `bytes`, blocking, so that the next look at them finds them in memory.
    pub fn warm(&self, bytes: Range<u64>) {
        for start in bytes.clone().step_by(VERIFY_BYTES as usize) {
            if !matches!(
                self.read_blocks(&(start..(start + VERIFY_BYTES).min(bytes.end)), true),
                Lookup::Hit(_)
            ) {
                return;
            }
        }
    }

    /// Looks at the disk anew at the next use: files were renamed into place.
    pub(crate) fn reset(&self) {
        self.absent.store(false, Ordering::Relaxed);
        self.unusable.store(false, Ordering::Relaxed);
        *self.state.lock() = State::Unknown;
    }

    /// Whether what is open can still be found by others; else looks anew at the next use.
    pub(crate) fn check_linked(&self) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Open(files) if !files.is_linked()) {
            *state = State::Unknown;
        }
    }

    pub(super) fn files(&self) -> Option<Arc<Files>> {
        if self.is_small() {
            return None;
        }
        self.opened(&mut self.state.lock()).cloned()
    }

    fn opened<'s>(&self, state: &'s mut State) -> Option<&'s Arc<Files>> {
        if matches!(state, State::Unknown) {
            *state = self.look();
        }
        match state {
            State::Open(files) => Some(files),
            State::Unknown | State::Absent => None,
        }
    }

    fn look(&self) -> State {
        match self.open_existing() {
            Ok(Some(files)) => State::Open(Arc::new(files)),
            Ok(None) => State::Absent,
            Err(err) => {
                tracing::debug!(id = %self.id, "cached file cannot be opened: {err}");
                State::Absent
            }
        }
    }

    /// Opens the pair of files; a pair that does not fit together is removed.
    fn open_existing(&self) -> io::Result<Option<Files>> {
        let map_path = self.cache.paths.of(&self.id, Suffix::Map);
        let Some(map) = paths::open_existing(&map_path)? else { return Ok(None) };
        let data = paths::open_existing(&self.cache.paths.of(&self.id, Suffix::Data))?;
        let fits =
            |file: &File, len: u64| file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == len);
        let mut head = [0; HEADER_BYTES];
        let expected = Header { kind: Kind::Map, size_bytes: self.size_bytes, id: self.id };
        let sound = fits(&map, format::map_len(self.size_bytes))
            && map.read_exact_at(&mut head, 0).is_ok()
            && Header::decode(&head) == Some(expected);
        let data = data.filter(|data| sound && fits(data, self.size_bytes));
        let Some(data) = data else {
            self.cache.damaged(&self.id, 1);
            self.cache.paths.remove_version(&self.id)?;
            self.cache.index.lock().remove(self.id);
            return Ok(None);
        };
        self.cache.used(&self.id, &map, LastUse::Modified);
        let files = Files::new(self.id, self.size_bytes, data, map);
        files.load(0..u64::MAX)?;
        if self.cache.was_whole(&self.id, files.data()) && self.has_lost_nothing(&files) {
            files.trust_all();
        }
        Ok(Some(files))
    }

    fn files_for_writing(&self) -> io::Result<Arc<Files>> {
        let mut state = self.state.lock();
        if let State::Open(files) = &*state {
            return Ok(Arc::clone(files));
        }
        let files = Arc::new(self.create()?);
        *state = State::Open(Arc::clone(&files));
        Ok(files)
    }

    /// Makes the pair of files, or opens the one that another process has made meanwhile.
    fn create(&self) -> io::Result<Files> {
        let paths = &self.cache.paths;
        let data_path = paths.of(&self.id, Suffix::Data);
        for _ in 0..CREATE_ATTEMPTS {
            if let Some(files) = self.open_existing()? {
                return Ok(files);
            }
            let data = paths.create(&data_path, false)?;
            match data.metadata()?.len() {
                0 => data.set_len(self.size_bytes)?, // longer, never shorter
                len if len == self.size_bytes => {}
                _ => {
                    paths.remove(&data_path)?;
                    continue;
                }
            }
            let temporary = paths.temporary(&self.id);
            let map = paths.create(&temporary, true)?;
            let header = Header { kind: Kind::Map, size_bytes: self.size_bytes, id: self.id };
            // A link, unlike a rename, does not replace the map that another process has made.
            let linked = map
                .write_all_at(&header.encode(), 0)
                .and_then(|()| map.set_len(format::map_len(self.size_bytes)))
                .and_then(|()| fs::hard_link(&temporary, paths.of(&self.id, Suffix::Map)));
            paths.remove(&temporary)?;
            match linked {
                Ok(()) => return Ok(Files::new(self.id, self.size_bytes, data, map)),
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err),
            }
        }
        Err(io::Error::other("other processes keep replacing the cached file"))
    }

    /// The files do not fit together any more: away with them.
    pub(super) fn discard(&self) {
        let mut state = self.state.lock();
        *state = State::Absent;
        let _ = self.cache.paths.remove_version(&self.id); // if it fails, they are found damaged again
        self.cache.index.lock().remove(self.id);
    }

    /// A small object, whole; a damaged one is removed.
    pub(super) fn read_one(&self) -> Option<Bytes> {
        if let Some(content) = self.queued.lock().clone() {
            return Some(content);
        }
        let path = self.cache.paths.of(&self.id, Suffix::One);
        let file = match paths::open_to_read(&path) {
            Ok(file) => file?,
            Err(err) => {
                self.cannot_use("opened", &err);
                return None;
            }
        };
        if let Some((content, last_use)) = one::read(&file, &self.id, self.size_bytes) {
            self.unusable.store(false, Ordering::Relaxed);
            self.cache.used(&self.id, &file, last_use);
            return Some(content);
        }
        self.cache.damaged(&self.id, 1);
        match self.cache.paths.remove(&path) {
            Ok(()) => self.cache.index.lock().remove(self.id),
            Err(err) => self.cannot_use("removed, and is damaged", &err),
        }
        None
    }

    fn cannot_use(&self, what: &str, err: &io::Error) {
        tracing::debug!(id = %self.id, "a small cached file cannot be {what}: {err}");
        self.unusable.store(true, Ordering::Relaxed);
    }

    fn store_one(&self, content: &[u8]) -> io::Result<u64> {
        let is_replaced = self.unusable.load(Ordering::Relaxed);
        if !is_replaced && self.cache.paths.of(&self.id, Suffix::One).exists() {
            return Ok(0);
        }
        self.cache.write_one(&self.id, content)?;
        if is_replaced {
            self.cache.index.lock().remove(self.id); // what it was counted with before
        }
        Ok((HEADER_BYTES + content.len()) as u64)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let State::Open(files) = &*self.state.lock()
            && files.is_whole()
            && self.has_lost_nothing(files)
        {
            self.cache.remember_whole(self.id, files.data());
        }
        self.cache.closed(&self.id);
    }
}

/// Whether an object has the one-file form.
pub(crate) fn is_small(size_bytes: u64) -> bool {
    size_bytes <= BLOCK_BYTES
}
