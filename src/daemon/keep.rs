//! What is kept local on purpose: pins, prefetching, eviction by hand, and the cache as users see it.
//!
//! Pins are a file in the remote's state directory, which says what is to be kept. Which versions that
//! is at the moment is marked in the cache itself, version by version, so that no process evicts them;
//! [`Keeper::follow_pins`] brings the marks and the blocks up to date when the datasets change.

use std::collections::HashMap;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::cache::BlockCache;
use crate::cache::VersionId;
use crate::catalog::Catalog;
use crate::catalog::Level;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::units;
use crate::control::keep::CacheUsageReport;
use crate::control::keep::DatasetUsage;
use crate::control::keep::EvictOutcome;
use crate::control::keep::KeepReply;
use crate::control::keep::KeepRequest;
use crate::control::keep::LocalOutcome;
use crate::control::keep::Part;
use crate::control::keep::PinStatus;
use crate::control::keep::VerifyOutcome;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::Progress;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::pins::PINS_FILE;
use crate::daemon::pins::Pin;
use crate::daemon::pins::Pins;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::RelPath;
use crate::read::ObjectVersion;
use crate::read::ReadError;
use crate::read::Reader;
use crate::store::StoreError;

/// Files that are fetched at a time; each is fetched in several parts.
const FILES_AT_ONCE: usize = 8;
/// Bytes that are asked of the reader at a time.
const STEP_BYTES: u32 = 1024 * 1024;
/// How often it is looked whether pinned datasets have changed.
const FOLLOW_EVERY: Duration = Duration::from_secs(300);
/// How often a file that did not stay in the cache is fetched again.
const FETCH_TRIES: u32 = 2;
/// How long what was read may take to be handed to the cache, and how often that is looked at.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);
const HAND_OVER_POLL: Duration = Duration::from_millis(10);

/// A file of a part, as it is published now.
#[derive(Clone, Debug)]
struct Published {
    path: RelPath,
    file: RemoteFile,
}

/// Keeps what users want local.
#[derive(Debug)]
pub struct Keeper {
    catalog: Arc<Catalog>,
    reader: Arc<Reader>,
    cache: Arc<BlockCache>,
    cache_dir: PathBuf,
    pins_file: PathBuf,
    /// Whose the marks in the cache are.
    owner: String,
    /// Held while pins change or are followed.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

impl Keeper {
    /// For the remote whose state directory this is and whose id is `owner`.
    #[must_use]
    pub fn new(
        catalog: Arc<Catalog>,
        reader: Arc<Reader>,
        cache_dir: PathBuf,
        state_dir: &std::path::Path,
        owner: String,
    ) -> Arc<Self> {
        let cache = Arc::clone(reader.cache());
        let pins_file = state_dir.join(PINS_FILE);
        Arc::new(Self {
            catalog,
            reader,
            cache,
            cache_dir,
            pins_file,
            owner,
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Does what a command asks for.
    ///
    /// # Errors
    /// The remote's or the local disk's; what does not fit is refused with the numbers.
    pub async fn handle(
        self: &Arc<Self>,
        request: KeepRequest,
        progress: watch::Sender<Progress>,
    ) -> Result<KeepReply, Failure> {
        match request {
            KeepRequest::Pin(part) => self.pin(part, &progress).await.map(KeepReply::Local),
            KeepRequest::Unpin(part) => self.unpin(part).await.map(KeepReply::Unpinned),
            KeepRequest::Prefetch(part) => self.prefetch(&part, &progress).await.map(KeepReply::Local),
            KeepRequest::Evict(part) => self.evict(&part).await.map(KeepReply::Evicted),
            KeepRequest::Usage => self.usage().await.map(|usage| KeepReply::Usage(Box::new(usage))),
            KeepRequest::Verify => self.verify(progress).await.map(KeepReply::Verified),
            KeepRequest::Clear { pinned } => self.clear(pinned).await.map(KeepReply::Evicted),
        }
    }

    async fn pin(&self, part: Part, progress: &watch::Sender<Progress>) -> Result<LocalOutcome, Failure> {
        let _turn = self.turn.lock().await;
        let files = self.files_of(&part).await?;
        let mut pins = Pins::read(&self.pins_file)?;
        let mut all = self.wanted(&pins, true).await.map_err(|err| failure::of_store(&err))?;
        let before: u64 = all.values().map(|file| file.file.size_bytes).sum();
        all.extend(files.iter().map(|file| (self.id(&file.file), file.clone())));
        let after: u64 = all.values().map(|file| file.file.size_bytes).sum();
        let limit = self.cache.usage().limit_bytes;
        if after > limit {
            return Err(too_large(&part, &files, before, limit));
        }
        if !pins.pins.iter().any(|pin| pin.part == part) {
            pins.pins.push(Pin { part: part.clone(), since: guarantee::timestamp(SystemClock.now()) });
            pins.write(&self.pins_file)?;
        }
        self.mark(&all)?;
        self.fetch(&part, &files, progress).await
    }

    async fn unpin(&self, part: Part) -> Result<Part, Failure> {
        let _turn = self.turn.lock().await;
        let mut pins = Pins::read(&self.pins_file)?;
        let before = pins.pins.len();
        pins.pins.retain(|pin| pin.part != part);
        if pins.pins.len() == before {
            let failure = Failure::new(FailureKind::NotFound, format!("{part} is not pinned"));
            let pinned = pins.pins.iter().map(|pin| pin.part.to_string());
            return Err(failure.details(pinned).hint("`dsfs cache` lists the pins"));
        }
        pins.write(&self.pins_file)?;
        let left = self.wanted(&pins, true).await.map_err(|err| failure::of_store(&err))?;
        self.mark(&left)?;
        Ok(part)
    }

    async fn prefetch(
        &self,
        part: &Part,
        progress: &watch::Sender<Progress>,
    ) -> Result<LocalOutcome, Failure> {
        let files = self.files_of(part).await?;
        let limit = self.cache.usage().limit_bytes;
        if files.iter().map(|file| file.file.size_bytes).sum::<u64>() > limit {
            return Err(too_large(part, &files, 0, limit));
        }
        self.fetch(part, &files, progress).await
    }

    async fn evict(&self, part: &Part) -> Result<EvictOutcome, Failure> {
        let mut files = Vec::new();
        self.catalog
            .walk_known(&part.dataset, |path, file| {
                if part
                    .path
                    .as_ref()
                    .is_none_or(|of| *of == path || DirPath::from(of.clone()).contains(&path))
                {
                    files.push(self.id(file));
                }
            })
            .await;
        if files.is_empty() {
            return Err(Failure::new(FailureKind::NotFound, format!("nothing of {part} is known here")));
        }
        self.evict_all(files, false).await
    }

    async fn clear(&self, pinned: bool) -> Result<EvictOutcome, Failure> {
        let cache = Arc::clone(&self.cache);
        let versions = blocking(move || {
            cache.rescan();
            cache.versions()
        });
        let outcome = self.evict_all(versions.await?, pinned).await;
        if pinned {
            self.changed.notify_one();
        }
        outcome
    }

    async fn evict_all(&self, versions: Vec<VersionId>, pinned_too: bool) -> Result<EvictOutcome, Failure> {
        let (cache, dir) = (Arc::clone(&self.cache), self.cache_dir.clone());
        let work = move || -> io::Result<EvictOutcome> {
            let mut outcome = EvictOutcome::default();
            for id in versions {
                match cache.evict_version(&id, pinned_too)? {
                    None => outcome.pinned_files += 1,
                    Some(0) => {}
                    Some(bytes) => {
                        outcome.files += 1;
                        outcome.bytes += bytes;
                    }
                }
            }
            Ok(outcome)
        };
        blocking(work).await?.map_err(|err| failure::of_directory("cache", &dir, &err))
    }

    async fn verify(&self, progress: watch::Sender<Progress>) -> Result<VerifyOutcome, Failure> {
        let cache = Arc::clone(&self.cache);
        let work = move || {
            let versions = cache.versions();
            let mut outcome = VerifyOutcome::default();
            for id in &versions {
                let checked = cache.check(id);
                outcome.files += 1;
                outcome.bytes += checked.bytes;
                outcome.damaged_blocks += checked.damaged_blocks;
                progress.send_replace(Progress {
                    phase: "verify".to_owned(),
                    files_done: outcome.files,
                    files_total: versions.len() as u64,
                    bytes_done: outcome.bytes,
                    bytes_total: 0,
                });
                if progress.is_closed() {
                    break; // nobody wants to know any more
                }
            }
            outcome
        };
        blocking(work).await
    }

    async fn usage(&self) -> Result<CacheUsageReport, Failure> {
        let cache = Arc::clone(&self.cache);
        blocking(move || cache.rescan()).await?;
        let catalog = Arc::clone(&self.catalog);
        let (catalog_bytes, names) =
            blocking(move || (catalog.disk_usage().bytes, catalog.known_datasets())).await?;
        let pins = Pins::read(&self.pins_file)?;
        let mut statuses: Vec<PinStatus> = pins
            .pins
            .into_iter()
            .map(|Pin { part, since }| PinStatus { part, since, files: 0, bytes: 0, local_files: 0 })
            .collect();
        let mut datasets = Vec::new();
        for name in names {
            let mut usage = DatasetUsage {
                name: name.clone(),
                files: 0,
                bytes: 0,
                cached_files: 0,
                cached_bytes: 0,
                pinned_files: 0,
            };
            let count = |path: RelPath, file: &RemoteFile| {
                let id = self.id(file);
                let cached = self.cache.cached_bytes(&id);
                usage.files += 1;
                usage.bytes += file.size_bytes;
                usage.cached_files += u64::from(cached > 0);
                usage.cached_bytes += cached;
                let pins = statuses.iter_mut().filter(|pin| {
                    let of = &pin.part;
                    of.dataset == name
                        && of
                            .path
                            .as_ref()
                            .is_none_or(|of| *of == path || DirPath::from(of.clone()).contains(&path))
                });
                let mut pinned = false;
                for pin in pins {
                    pinned = true;
                    pin.files += 1;
                    pin.bytes += file.size_bytes;
                    pin.local_files += u64::from(file.size_bytes == 0 || self.is_local(file));
                }
                usage.pinned_files += u64::from(pinned);
            };
            self.catalog.walk_known(&name, count).await;
            // A name that was looked up, and is none.
            if usage.files > 0 {
                datasets.push(usage);
            }
        }
        let usage = self.cache.usage();
        Ok(CacheUsageReport {
            dir: self.cache_dir.clone(),
            used_bytes: usage.used_bytes,
            limit_bytes: usage.limit_bytes,
            pinned_bytes: usage.pinned_bytes,
            files: usage.files,
            hits: usage.hits,
            misses: usage.misses,
            bypassed: usage.bypassed,
            catalog_bytes,
            datasets,
            pins: statuses,
        })
    }

    /// Keeps what is pinned up to date, until `stop`.
    pub async fn follow_pins(self: Arc<Self>, stop: CancellationToken) {
        loop {
            // A round may fetch for hours, and goes on with the next mount.
            match stop.run_until_cancelled(self.follow_once()).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(failure)) => info!("what is pinned is not up to date yet: {failure}"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(FOLLOW_EVERY) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Has [`Self::follow_pins`] look now.
    pub fn look_now(&self) {
        self.changed.notify_one();
    }

    async fn follow_once(&self) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let pins = Pins::read(&self.pins_file)?;
        if pins.pins.is_empty() {
            return Ok(());
        }
        let wanted = self.wanted(&pins, false).await.map_err(|err| failure::of_store(&err))?;
        self.mark(&wanted)?;
        let missing: Vec<Published> = wanted
            .into_values()
            .filter(|file| file.file.size_bytes > 0 && !self.is_local(&file.file))
            .collect();
        let Some(pin) = pins.pins.first().filter(|_| !missing.is_empty()) else { return Ok(()) };
        let (progress, _) = watch::channel(Progress::default());
        let outcome = self.fetch(&pin.part, &missing, &progress).await?;
        info!("fetched {} files for pins, {} are missing", outcome.fetched_files, outcome.missing.len());
        Ok(())
    }

    /// The files of a part, which has to have some.
    async fn files_of(&self, part: &Part) -> Result<Vec<Published>, Failure> {
        let files = self.walk(part).await.map_err(|err| failure::of_store(&err))?;
        if files.is_empty() {
            let failure = Failure::new(FailureKind::NotFound, format!("nothing is published at {part}"));
            return Err(failure.hint("`dsfs list` shows the datasets"));
        }
        Ok(files)
    }

    async fn walk(&self, part: &Part) -> Result<Vec<Published>, StoreError> {
        let mut files = Vec::new();
        let dir = part.path.clone().map_or_else(DirPath::root, DirPath::from);
        self.catalog
            .walk(&part.dataset, &dir, |path, file| files.push(Published { path, file: file.clone() }))
            .await?;
        if files.is_empty()
            && let Some(path) = &part.path
        {
            files.extend(self.file_at(part, path).await?);
        }
        for file in &mut files {
            if file.file.etag.is_none() {
                file.file = self.catalog.resolve_version(&file.file).await?;
            }
        }
        Ok(files)
    }

    async fn file_at(&self, part: &Part, path: &RelPath) -> Result<Option<Published>, StoreError> {
        let level = Level::Directory(part.dataset.clone(), path.parent());
        let known = self.catalog.level(&level).await?;
        Ok(match known.listing.entries.get(path.file_name()) {
            Some(RemoteEntry::File(file)) => Some(Published { path: path.clone(), file: file.clone() }),
            Some(RemoteEntry::Directory) | None => None,
        })
    }

    /// Everything that pins want now. With `lenient`, what cannot be listed is what it was: nothing
    /// new, and nothing less.
    async fn wanted(&self, pins: &Pins, lenient: bool) -> Result<HashMap<VersionId, Published>, StoreError> {
        let mut wanted = HashMap::new();
        for pin in &pins.pins {
            match self.walk(&pin.part).await {
                Ok(files) => wanted.extend(files.into_iter().map(|file| (self.id(&file.file), file))),
                Err(err) if lenient => warn!("{}, which is pinned, cannot be listed: {err}", pin.part),
                Err(err) => return Err(err),
            }
        }
        Ok(wanted)
    }

    /// Marks exactly these versions in the cache as pinned.
    fn mark(&self, wanted: &HashMap<VersionId, Published>) -> Result<(), Failure> {
        let marked: HashSet<VersionId> = self.cache.pinned_by(&self.owner).into_iter().collect();
        let work = || -> io::Result<()> {
            for id in wanted.keys().filter(|id| !marked.contains(id)) {
                self.cache.pin(id, &self.owner)?;
            }
            for id in marked.iter().filter(|id| !wanted.contains_key(id)) {
                self.cache.unpin(id)?;
            }
            Ok(())
        };
        work().map_err(|err| failure::of_directory("cache", &self.cache_dir, &err))
    }

    /// Makes files local. Goes on where it was interrupted: what is cached is not fetched again.
    async fn fetch(
        &self,
        part: &Part,
        files: &[Published],
        progress: &watch::Sender<Progress>,
    ) -> Result<LocalOutcome, Failure> {
        let bytes = files.iter().map(|file| file.file.size_bytes).sum();
        progress.send_replace(Progress {
            phase: "fetch".to_owned(),
            files_done: 0,
            files_total: files.len() as u64,
            bytes_done: 0,
            bytes_total: bytes,
        });
        let (fetched_files, fetched_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let missing = Mutex::new(Vec::new());
        let one = |file: &Published| {
            let (file, fetched_files, fetched_bytes, missing) =
                (file.clone(), &fetched_files, &fetched_bytes, &missing);
            async move {
                let was_local = file.file.size_bytes == 0 || self.is_local(&file.file);
                if was_local {
                    progress.send_modify(|progress| progress.bytes_done += file.file.size_bytes);
                } else {
                    match self.fetch_file(&file.file, progress).await {
                        Ok(true) => {
                            fetched_files.fetch_add(1, Ordering::Relaxed);
                            fetched_bytes.fetch_add(file.file.size_bytes, Ordering::Relaxed);
                        }
                        Ok(false) => missing.lock().push(format!("{}: the cache did not keep it", file.path)),
                        Err(failure) if failure.kind == FailureKind::Remote => return Err(failure),
                        Err(failure) => missing.lock().push(format!("{}: {failure}", file.path)),
                    }
                }
                progress.send_modify(|progress| progress.files_done += 1);
                Ok(())
            }
        };
        let mut work = stream::iter(files.iter().map(one)).buffer_unordered(FILES_AT_ONCE);
        while let Some(result) = work.next().await {
            result.map_err(|failure: Failure| {
                let message = format!("{part} is not local as a whole: {}", failure.message);
                Failure { message, ..failure }.hint("the same command goes on where this one has ended")
            })?;
        }
        drop(work);
        let mut missing = missing.into_inner();
        missing.sort();
        Ok(LocalOutcome {
            files: files.len() as u64,
            bytes,
            fetched_files: fetched_files.into_inner(),
            fetched_bytes: fetched_bytes.into_inner(),
            missing,
        })
    }

    /// Reads a file from end to end, so that it is cached. Whether it is.
    async fn fetch_file(
        &self,
        file: &RemoteFile,
        progress: &watch::Sender<Progress>,
    ) -> Result<bool, Failure> {
        let Some(version) = version_of(file) else { return Ok(false) };
        for tried in 0..FETCH_TRIES {
            let handle = self.reader.open(version.clone()).handle();
            let mut at = 0;
            while at < file.size_bytes {
                let read = handle.read(at, STEP_BYTES).await.map_err(|err| of_read(&err))?;
                at += read.len() as u64;
                if tried == 0 {
                    progress.send_modify(|progress| progress.bytes_done += read.len() as u64);
                }
            }
            if self.becomes_local(file).await {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the cache has taken what was read. It is read before it is handed to the cache, so that the
    /// last blocks may still be on their way into its queue.
    async fn becomes_local(&self, file: &RemoteFile) -> bool {
        let deadline = Instant::now() + HAND_OVER_PATIENCE;
        loop {
            self.cache.drain().await;
            if self.is_local(file) {
                return true;
            }
            if !self.cache.admits() || Instant::now() >= deadline {
                return false;
            }
            time::sleep(HAND_OVER_POLL).await;
        }
    }

    fn is_local(&self, file: &RemoteFile) -> bool {
        version_of(file).is_some_and(|version| self.reader.is_cached(&version))
    }

    fn id(&self, file: &RemoteFile) -> VersionId {
        let version = version_of(file).unwrap_or_else(|| ObjectVersion {
            key: file.key.clone(),
            etag: ETag::from_server(""),
            size_bytes: file.size_bytes,
        });
        self.reader.version_id(&version)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|err| Failure::new(FailureKind::Failed, format!("the daemon is ending: {err}")))
}

fn version_of(file: &RemoteFile) -> Option<ObjectVersion> {
    Some(ObjectVersion { key: file.key.clone(), etag: file.etag.clone()?, size_bytes: file.size_bytes })
}

fn of_read(err: &ReadError) -> Failure {
    match err {
        ReadError::Changed { .. } => Failure::new(FailureKind::Conflict, err.to_string()),
        ReadError::Timeout { .. } => Failure::new(FailureKind::Remote, err.to_string()),
        ReadError::Store(err) => failure::of_store(err),
    }
}

fn too_large(part: &Part, files: &[Published], pinned: u64, limit: u64) -> Failure {
    let bytes = files.iter().map(|file| file.file.size_bytes).sum();
    let beside = match pinned {
        0 => String::new(),
        pinned => format!(" beside the {} that are pinned already", units::show_size(pinned)),
    };
    let message = format!(
        "{part} does not fit into the cache: {} in {} files{beside}, and the limit is {}",
        units::show_size(bytes),
        files.len(),
        units::show_size(limit)
    );
    Failure::new(FailureKind::Failed, message)
        .hint("mount with a larger --cache-limit, or name a part of it: NAME/PATH")
}
