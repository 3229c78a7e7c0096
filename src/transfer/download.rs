//! From a store into a directory.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::OnceCell;

use crate::commit::blocking;
use crate::commit::places::Places;
use crate::commit::places::SHARES;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::record::parse_mtime;
use crate::store::META_MTIME;
use crate::store::META_PART_BYTES;
use crate::store::META_SHA256;
use crate::store::ObjectMeta;
use crate::store::StoredChecksum;
use crate::transfer::Transfer;
use crate::transfer::TransferError;
use crate::transfer::Verify;
use crate::transfer::cached::Copied;
use crate::transfer::fetch::Fetch;
use crate::transfer::fetch::Sums;
use crate::transfer::large::Large;
use crate::transfer::large::Open;
use crate::transfer::large::PieceSums;
use crate::transfer::large::State;
use crate::transfer::large::hash_what_is_there;
use crate::transfer::large::likely_part_bytes;
use crate::transfer::large::missing_of;
use crate::transfer::large::requests;
use crate::transfer::notes::DownloadNotes;
use crate::transfer::partial;
use crate::transfer::partial::Partial;
use crate::transfer::run;
use crate::transfer::run::OnFailure;

/// Pieces are never larger than this, in bytes: each is fetched anew if it was not complete.
const PIECE_BYTES_MAX: u64 = 64 << 20;
/// S3's limit: an object that claims to be of more parts does not tell how it was uploaded.
const PARTS_MAX: u64 = 10_000;
/// Large files that are asked about at once.
const LOOKS_AT_ONCE: usize = 32;
/// One object and the file that it becomes.
#[derive(Clone, Debug)]
pub struct DownloadFile {
    /// The object.
    pub key: ObjectKey,
    /// Its version; none if the listing does not say.
    pub etag: Option<ETag>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The file's time of modification, unless the object says otherwise.
    pub modified: SystemTime,
    /// Its content, if somebody has recorded that.
    pub content: Option<ContentId>,
    /// The file.
    pub target: PathBuf,
}

/// What a download has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DownloadReport {
    /// Files that are there now, those of an interrupted run included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that an interrupted run had finished.
    pub done_before: u64,
    /// Files whose SHA-256 was compared.
    pub checked_by_content: u64,
    /// Files whose checksum at the server was compared.
    pub checked_by_checksum: u64,
    /// Files of which nothing is recorded that could be compared.
    pub unchecked: u64,
    /// Files that this machine's block cache had: they are among those whose SHA-256 was compared.
    pub from_cache: u64,
}

/// Downloads files, and makes directories. `what` names the whole of it, so that an interrupted run is
/// recognised; `root` is where all of it lies.
///
/// # Errors
/// Before anything is complete: [`TransferError::InTheWay`], [`TransferError::NoRoom`]. Later: what
/// happened to the first file that failed; the ones that are complete stay, and the same download goes on
/// behind them.
pub async fn download(
    transfer: &Transfer,
    what: &str,
    root: &Path,
    files: Vec<DownloadFile>,
    directories: &[PathBuf],
) -> Result<DownloadReport, TransferError> {
    let root = std::path::absolute(root).map_err(|source| TransferError::io(root, source))?;
    let notes = transfer.notes.as_ref().map(|notes| notes.download(what, &root)).transpose();
    let notes = notes.map_err(|source| TransferError::io(&root, source))?;
    let mut report = DownloadReport { files: files.len() as u64, ..DownloadReport::default() };
    report.bytes = files.iter().map(|file| file.size_bytes).sum();
    let (missing, above) = match preflight(transfer, &root, files, directories, notes.as_ref()) {
        Ok(found) => found,
        Err(err) => {
            if let Some(notes) = notes.filter(DownloadNotes::is_new) {
                notes.forget();
            }
            return Err(err);
        }
    };
    transfer.watch.total(report.files, report.bytes);
    let missing_bytes: u64 = missing.iter().map(|file| file.size_bytes).sum();
    report.done_before = report.files - missing.len() as u64;
    transfer.watch.moved(report.bytes - missing_bytes);
    let made = match make_directories(&root, above) {
        Ok(made) => made,
        Err(err) => {
            if let Some(notes) = notes.filter(DownloadNotes::is_new) {
                notes.forget();
            }
            return Err(err);
        }
    };
    let job = Arc::new(Job {
        transfer: transfer.clone(),
        places: Places::new(transfer.options.workers),
        notes: Mutex::new(notes),
        done: AtomicU64::new(report.done_before),
        by_content: AtomicU64::new(0),
        by_checksum: AtomicU64::new(0),
        unchecked: AtomicU64::new(0),
        from_cache: AtomicU64::new(0),
    });
    // With the keys of those that come in pieces.
    let targets: Vec<(PathBuf, Option<ObjectKey>)> = missing
        .iter()
        .map(|file| {
            let is_large = file.size_bytes > transfer.options.part_bytes;
            (file.target.clone(), is_large.then(|| file.key.clone()))
        })
        .collect();
    let outcome = job.run(missing).await;
    let done = job.done.load(Ordering::Relaxed);
    let outdated = outcome.as_ref().err().filter(|_| done > 0).and_then(TransferError::outdated).cloned();
    let outcome = match outcome {
        Ok(()) => Ok(()),
        // The next run finds it as it will be listed then, or not at all, and goes on with the others. A file
        // that was made in the way of one is not in the way of these, either.
        Err(err) if outdated.is_some() || (done > 0 && matches!(err, TransferError::InTheWay { .. })) => {
            Err(TransferError::Interrupted { done, files: report.files, source: Box::new(err) })
        }
        Err(err) => Err(err.interrupted(transfer, done, report.files).await),
    };
    let transient = outcome.as_ref().is_err_and(TransferError::is_transient);
    if outcome.is_err() {
        // Pieces of large files are what the next run goes on with, if there is to be one.
        let is_useful = |key| transient && outdated.as_ref() != Some(key);
        let useless = targets.iter().filter(|(_, key)| !key.as_ref().is_some_and(is_useful));
        useless.for_each(|(target, _)| partial::discard(target));
        // Only those that have nothing in them can be removed; the deepest come last.
        made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
    }
    // Files that are complete must not be in the way of the next run, whatever has ended this one.
    let goes_on = transient || (outcome.is_err() && done > 0);
    if !goes_on && let Some(notes) = job.notes.lock().take() {
        notes.forget();
    }
    outcome?;
    report.checked_by_content = job.by_content.load(Ordering::Relaxed);
    report.checked_by_checksum = job.by_checksum.load(Ordering::Relaxed);
    report.unchecked = job.unchecked.load(Ordering::Relaxed);
    report.from_cache = job.from_cache.load(Ordering::Relaxed);
    Ok(report)
}

/// Everything that is in the way, before anything is sent. Returns what is to be fetched, and the
/// directories that it needs.
fn preflight(
    transfer: &Transfer,
    root: &Path,
    files: Vec<DownloadFile>,
    directories: &[PathBuf],
    notes: Option<&DownloadNotes>,
) -> Result<(Vec<DownloadFile>, BTreeSet<PathBuf>), TransferError> {
    let mut in_the_way = Vec::new();
    let mut missing = Vec::new();
    let mut above = BTreeSet::from([root.to_owned()]);
    above.extend(directories.iter().cloned());
    above.extend(files.iter().filter_map(|file| file.target.parent()).map(Path::to_owned));
    for dir in &above {
        match first_existing(dir) {
            Some((_, true)) | None => {}
            Some((file, false)) => in_the_way.push(format!("{} (not a directory)", file.display())),
        }
    }
    for file in files {
        let there = fs::symlink_metadata(&file.target);
        match there {
            Err(_) => missing.push(file),
            Ok(meta) if meta.is_dir() => {
                in_the_way.push(format!("{} (a directory)", file.target.display()));
            }
            Ok(_) if notes.is_some_and(|notes| notes.has(&file.target, file.etag.as_ref())) => {}
            Ok(_) if transfer.options.overwrite => missing.push(file),
            // Ours, of before the machine was started anew.
            Ok(_) if notes.is_some_and(|notes| notes.wrote(&file.target, file.etag.as_ref())) => {
                missing.push(file)
            }
            Ok(_) => in_the_way.push(file.target.display().to_string()),
        }
    }
    if !in_the_way.is_empty() {
        in_the_way.sort();
        in_the_way.dedup();
        return Err(TransferError::InTheWay { what: in_the_way });
    }
    let needed_bytes = missing.iter().map(|file| file.size_bytes).sum();
    if let Some((dir, true)) = first_existing(root)
        && let Ok(disk) = rustix::fs::statvfs(&dir)
    {
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free_bytes < needed_bytes {
            return Err(TransferError::NoRoom { path: root.to_owned(), free_bytes, needed_bytes });
        }
    }
    Ok((missing, above))
}

/// The innermost part of a path that exists, and whether it is a directory.
fn first_existing(path: &Path) -> Option<(PathBuf, bool)> {
    path.ancestors().find_map(|above| Some((above.to_owned(), fs::metadata(above).ok()?.is_dir())))
}

/// Makes what is missing, and says which that was, the outermost first.
fn make_directories(root: &Path, needed: BTreeSet<PathBuf>) -> Result<Vec<PathBuf>, TransferError> {
    let mut made = Vec::new();
    for dir in needed {
        let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.is_dir()).collect();
        for above in missing.into_iter().rev() {
            match fs::create_dir(above) {
                Ok(()) => made.push(above.to_owned()),
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists && above.is_dir() => {}
                Err(source) => {
                    made.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
                    return Err(TransferError::io(root.join(above), source));
                }
            }
        }
    }
    Ok(made)
}

struct Job {
    transfer: Transfer,
    places: Places,
    notes: Mutex<Option<DownloadNotes>>,
    done: AtomicU64,
    by_content: AtomicU64,
    by_checksum: AtomicU64,
    unchecked: AtomicU64,
    from_cache: AtomicU64,
}

/// What one task does.
enum Work {
    /// The block cache has it.
    Cached(DownloadFile),
    Whole(DownloadFile),
    /// Some of its pieces, with one request.
    Pieces(Arc<Large>, Range<u64>),
}

/// What a file is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    Content(ContentId),
    Checksum(StoredChecksum),
    Nothing,
}

impl Job {
    async fn run(self: &Arc<Self>, files: Vec<DownloadFile>) -> Result<(), TransferError> {
        let options = &self.transfer.options;
        let count = self.done.load(Ordering::Relaxed) + files.len() as u64;
        let (cached, files): (Vec<_>, Vec<_>) = blocking(|| {
            let cache = self.transfer.cache.as_ref();
            files.into_iter().partition(|file| cache.is_some_and(|cache| cache.has(file)))
        });
        let (large, small): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| file.size_bytes > options.part_bytes);
        // Boxed and collected: the compiler cannot show that a stream over borrowing closures is Send.
        let looks: Vec<_> = large.into_iter().map(|file| self.look(file).boxed()).collect();
        let looking = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect::<Vec<_>>();
        let large = tokio::select! {
            () = options.cancel.cancelled() => Vec::new(), // told below
            large = looking => large?,
        };
        // The large ones first: small ones fill the gaps at the end.
        let pieces = requests(large, options.workers);
        let pieces = pieces.into_iter().map(|(large, pieces)| Work::Pieces(large, pieces));
        let work =
            pieces.chain(cached.into_iter().map(Work::Cached)).chain(small.into_iter().map(Work::Whole));
        let limit = options.workers.max(1) * SHARES as usize;
        let (failures, cancelled) = run::all(work, limit, &options.cancel, OnFailure::Drop, |work| {
            let job = Arc::clone(self);
            async move {
                match work {
                    Work::Cached(file) => job.cached(file).await,
                    Work::Whole(file) => job.whole(file).await,
                    Work::Pieces(large, pieces) => job.pieces(&large, pieces).await,
                }
            }
        })
        .await;
        if cancelled {
            return Err(TransferError::Cancelled { done: self.done.load(Ordering::Relaxed), files: count });
        }
        run::worst(failures).map_or(Ok(()), Err)
    }

    /// What is known of a large object, and the pieces that it is fetched in.
    async fn look(&self, file: DownloadFile) -> Result<Arc<Large>, TransferError> {
        let meta = self.transfer.store.head(&file.key).await?;
        check_version(&file, &meta)?;
        // In the parts that it was uploaded in, their checksums add up to the server's.
        let parts = meta.metadata.get(META_PART_BYTES).and_then(|text| text.parse().ok());
        let part_bytes =
            parts.filter(|bytes: &u64| *bytes > 0 && file.size_bytes.div_ceil(*bytes) <= PARTS_MAX);
        let piece_bytes = part_bytes.filter(|bytes| *bytes <= PIECE_BYTES_MAX);
        let piece_bytes = piece_bytes
            .or_else(|| likely_part_bytes(&meta.etag, file.size_bytes))
            .unwrap_or(self.transfer.options.part_bytes);
        let pieces = file.size_bytes.div_ceil(piece_bytes);
        let checksum = meta.checksum.filter(|checksum| match checksum {
            StoredChecksum::Whole(_) => true,
            StoredChecksum::OfParts { parts, .. } => {
                part_bytes == Some(piece_bytes) && u64::from(*parts) == pieces
            }
        });
        let against = self.against(file.content.or_else(|| recorded(&meta)), checksum);
        let left = AtomicU64::new(pieces);
        Ok(Arc::new(Large { file, meta, piece_bytes, against, open: OnceCell::new(), left }))
    }

    fn against(&self, content: Option<ContentId>, checksum: Option<StoredChecksum>) -> Against {
        let content = content.map(Against::Content);
        let checksum = checksum.map(Against::Checksum);
        let first = match self.transfer.options.verify {
            Verify::Any => checksum.or(content),
            Verify::Content => content.or(checksum),
        };
        first.unwrap_or(Against::Nothing)
    }

    /// A file that the block cache has; fetched, if it turns out that it has not.
    async fn cached(&self, file: DownloadFile) -> Result<(), TransferError> {
        let place = self.places.take(file.size_bytes).await;
        if let (Some(partial), Some(etag)) = (self.copy(&file).await?, &file.etag) {
            self.by_content.fetch_add(1, Ordering::Relaxed);
            self.from_cache.fetch_add(1, Ordering::Relaxed);
            self.transfer.watch.moved(file.size_bytes);
            return self.finish(&file, etag, None, partial);
        }
        drop(place); // whoever fetches takes his own
        if file.size_bytes <= self.transfer.options.part_bytes {
            return self.whole(file).await;
        }
        let large = self.look(file).await?;
        let pieces = large.file.size_bytes.div_ceil(large.piece_bytes);
        self.pieces(&large, 0..pieces).await
    }

    /// A copy of what the block cache has, if that is all of it and right.
    async fn copy(&self, file: &DownloadFile) -> Result<Option<Partial>, TransferError> {
        let Some(mut copy) = self.transfer.cache.as_ref().and_then(|cache| cache.copy(file)) else {
            return Ok(None);
        };
        let partial = Partial::open(&file.target)?;
        partial.clear()?;
        loop {
            match blocking(|| copy.turn(&partial)) {
                Ok(Copied::Some) => tokio::task::yield_now().await, // this may be given up here
                Ok(Copied::All) => return Ok(Some(partial)),
                Ok(Copied::NotThere) => return Ok(None),
                Err(err) => {
                    partial.discard();
                    return Err(err);
                }
            }
        }
    }

    /// A file that comes with one request.
    async fn whole(&self, file: DownloadFile) -> Result<(), TransferError> {
        let _place = self.places.take(file.size_bytes).await;
        let store = &*self.transfer.store;
        let etag = match &file.etag {
            Some(etag) => etag.clone(),
            None => store.head(&file.key).await?.etag,
        };
        let (meta, body) = store.get_whole(&file.key, &etag, file.size_bytes).await?;
        // One request brings the bytes in one piece: the checksums of several parts cannot be told apart.
        let one = |checksum: &StoredChecksum| !matches!(checksum, StoredChecksum::OfParts { parts: 2.., .. });
        let against = self.against(file.content.or_else(|| recorded(&meta)), meta.checksum.filter(one));
        let partial = Partial::open(&file.target)?;
        partial.clear()?;
        let fetch = Fetch {
            store,
            key: &file.key,
            etag: &etag,
            range: 0..file.size_bytes,
            file: &partial.file,
            path: partial.path(),
            watch: &*self.transfer.watch,
        };
        let mut sums = Sums::new(matches!(against, Against::Content(_)));
        let fetched = fetch.run((file.size_bytes > 0).then_some(body), &mut sums).await;
        let crc = sums.crc;
        let checked = fetched.and_then(|()| {
            let crcs = BTreeMap::from([(0, crc)]);
            self.check(&file.key, against, || sums.content(), &crcs, file.size_bytes, file.size_bytes)
        });
        if let Err(err) = checked {
            partial.discard();
            return Err(err);
        }
        self.finish(&file, &meta.etag, recorded_mtime(&meta), partial)
    }

    /// Pieces of a large file.
    async fn pieces(&self, large: &Arc<Large>, pieces: Range<u64>) -> Result<(), TransferError> {
        let bytes = large.bytes_of(&pieces);
        let _place = self.places.take(bytes.end - bytes.start).await;
        let open = large.open.get_or_try_init(|| async { self.open(large) }).await?;
        let missing = {
            let state = open.state.lock();
            missing_of(&pieces, |index| state.crcs.contains_key(&index))
        };
        let there = pieces.clone().filter(|index| !missing.iter().any(|gap| gap.contains(index)));
        self.transfer.watch.moved(there.map(|index| large.len_of(index)).sum());
        for gap in missing {
            let fetch = Fetch {
                store: &*self.transfer.store,
                key: &large.file.key,
                etag: &large.meta.etag,
                range: large.bytes_of(&gap),
                file: &open.file,
                path: &open.path,
                watch: &*self.transfer.watch,
            };
            fetch.run(None, &mut PieceSums::new(large, open, gap.start)).await?;
        }
        hash_what_is_there(large, open).await?;
        let count = pieces.end - pieces.start;
        if large.left.fetch_sub(count, Ordering::AcqRel) > count {
            return Ok(());
        }
        self.finish_large(large, open).await
    }

    fn open(&self, large: &Large) -> Result<Open, TransferError> {
        let mut partial = Partial::open(&large.file.target)?;
        let (map, crcs) =
            partial.map(&large.file.key, &large.meta.etag, large.file.size_bytes, large.piece_bytes)?;
        let path = partial.path().to_owned();
        let file = partial.file.try_clone().map_err(|source| TransferError::io(&path, source))?;
        let hasher = matches!(large.against, Against::Content(_)).then(Sha256::new);
        let state = Mutex::new(State { crcs, hasher, hashed: 0 });
        Ok(Open { partial: Mutex::new(Some(partial)), file, path, map, state })
    }

    async fn finish_large(&self, large: &Large, open: &Open) -> Result<(), TransferError> {
        hash_what_is_there(large, open).await?;
        let (hasher, crcs) = {
            let mut state = open.state.lock();
            (state.hasher.take(), std::mem::take(&mut state.crcs))
        };
        let content = || hasher.map(|hasher| ContentId::from_sha256(hasher.finalize().into()));
        let Some(partial) = open.partial.lock().take() else { return Ok(()) };
        let (key, size_bytes) = (&large.file.key, large.file.size_bytes);
        if let Err(err) = self.check(key, large.against, content, &crcs, large.piece_bytes, size_bytes) {
            partial.discard();
            return Err(err);
        }
        self.finish(&large.file, &large.meta.etag, recorded_mtime(&large.meta), partial)
    }

    fn check(
        &self,
        key: &ObjectKey,
        against: Against,
        content: impl FnOnce() -> Option<ContentId>,
        crcs: &BTreeMap<u64, u32>,
        piece_bytes: u64,
        size_bytes: u64,
    ) -> Result<(), TransferError> {
        let damaged = |reason: String| Err(TransferError::Damaged { key: key.clone(), reason });
        match against {
            Against::Content(expected) => {
                if content() != Some(expected) {
                    return damaged(format!("its SHA-256 is not {}", expected.sha256_hex()));
                }
                self.by_content.fetch_add(1, Ordering::Relaxed);
            }
            Against::Checksum(expected) => {
                let found = combined(expected, crcs, piece_bytes, size_bytes);
                if found != expected {
                    return damaged(format!("its checksum is {found:x?}, the server has {expected:x?}"));
                }
                self.by_checksum.fetch_add(1, Ordering::Relaxed);
            }
            Against::Nothing => {
                self.unchecked.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn finish(
        &self,
        file: &DownloadFile,
        etag: &ETag,
        mtime: Option<SystemTime>,
        partial: Partial,
    ) -> Result<(), TransferError> {
        let is_ours = self.notes.lock().as_ref().is_some_and(|notes| notes.wrote(&file.target, Some(etag)));
        let overwrite = self.transfer.options.overwrite || is_ours;
        let modified = partial.finish(overwrite, mtime.unwrap_or(file.modified))?;
        if let Some(notes) = &mut *self.notes.lock() {
            notes.add(&file.target, etag, file.size_bytes, modified);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        self.transfer.watch.file_done();
        Ok(())
    }
}

fn recorded(meta: &ObjectMeta) -> Option<ContentId> {
    meta.metadata.get(META_SHA256).and_then(|hex| ContentId::from_sha256_hex(hex))
}

fn recorded_mtime(meta: &ObjectMeta) -> Option<SystemTime> {
    meta.metadata.get(META_MTIME).and_then(|text| parse_mtime(text))
}

fn check_version(file: &DownloadFile, meta: &ObjectMeta) -> Result<(), TransferError> {
    let same = file.etag.as_ref().is_none_or(|etag| *etag == meta.etag);
    if same && meta.size_bytes == file.size_bytes {
        return Ok(());
    }
    Err(crate::store::StoreError::Changed { key: file.key.clone() }.into())
}

/// The checksum of the whole, from those of its pieces, in the form of `like`.
fn combined(
    like: StoredChecksum,
    crcs: &BTreeMap<u64, u32>,
    piece_bytes: u64,
    size_bytes: u64,
) -> StoredChecksum {
    match like {
        // A whole object that was uploaded as the only part of an upload.
        StoredChecksum::OfParts { .. } => {
            let bytes: Vec<u8> = crcs.values().flat_map(|crc| crc.to_be_bytes()).collect();
            let parts = u32::try_from(crcs.len()).unwrap_or(u32::MAX);
            StoredChecksum::OfParts { crc: crc32c::crc32c(&bytes), parts }
        }
        StoredChecksum::Whole(_) => {
            let crc = crcs.iter().fold(0, |all, (index, crc)| {
                let len = piece_bytes.min(size_bytes.saturating_sub(index * piece_bytes));
                crc32c::crc32c_combine(all, *crc, usize::try_from(len).unwrap_or(usize::MAX))
            });
            StoredChecksum::Whole(crc)
        }
    }
}
