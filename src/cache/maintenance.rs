//! Keeping the cache within its limits: the scan of the directory, and eviction.
//!
//! One thread for each cache of a process. Several processes share a directory: a lock file
//! lets one of them evict at a time, and before it does, it looks at the directory anew, since
//! its books know nothing of what others have written. Recency is shared as a time of the
//! map, or of a small object's only file (`last_use`).

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::cache::BlockCache;
use crate::cache::Entry;
use crate::cache::format::HEADER_BYTES;
use crate::cache::format::Header;
use crate::cache::format::VersionId;
use crate::cache::index::Cached;
use crate::cache::last_use::LastUse;
use crate::cache::one::Label;
use crate::cache::paths::Suffix;

/// How often the directory is looked at anew, for what other processes do.
const RESCAN_EVERY: Duration = Duration::from_secs(600);
/// How often the free room of the disk is looked at, when nobody asks, and what writes it has lost.
const TICK: Duration = Duration::from_secs(20);
/// Before an eviction the books must not be older than this.
const BOOKS_FRESH: Duration = Duration::from_secs(60);
/// Files that are being made, or half of a pair, are left alone for this long, in seconds.
const UNFINISHED_SECONDS: u64 = 600;
/// Eviction starts at this share of the limit, in percent …
const HIGH_WATER_PERCENT: u64 = 95;
/// … and goes on down to this.
const LOW_WATER_PERCENT: u64 = 90;
/// Rounds in one eviction; a version that another process has used meanwhile is passed over.
const EVICT_ROUNDS: usize = 4;
/// Unit of a file's allocated size in bytes, whatever the file system's own.
const STAT_BLOCK_BYTES: u64 = 512;

/// Starts the thread. It ends when the cache does.
pub(crate) fn start(cache: Weak<BlockCache>, wake: mpsc::Receiver<()>) {
    let thread = thread::Builder::new().name("cache-evict".into());
    if let Err(err) = thread.spawn(move || run(&cache, &wake)) {
        tracing::warn!("the block cache cannot be kept within its limits: {err}");
    }
}

fn run(cache: &Weak<BlockCache>, wake: &mpsc::Receiver<()>) {
    let mut scanned = None;
    let mut asked = Instant::now();
    loop {
        {
            let Some(cache) = cache.upgrade() else { return };
            if scanned.is_none_or(|at: Instant| at.elapsed() >= RESCAN_EVERY) {
                cache.scan();
                scanned = Some(Instant::now());
            }
            cache.keep_within_limits(&mut scanned);
            if asked.elapsed() >= TICK {
                cache.notice_losses();
                asked = Instant::now();
            }
        }
        if matches!(wake.recv_timeout(TICK), Err(mpsc::RecvTimeoutError::Disconnected)) {
            return;
        }
    }
}

impl BlockCache {
    /// Bytes that have to go so that the limit and the disk's reserve are kept.
    fn excess(&self) -> u64 {
        let limit = self.options.limit_bytes;
        let used = self.index.lock().bytes();
        let over = if used > percent(limit, HIGH_WATER_PERCENT) {
            used - percent(limit, LOW_WATER_PERCENT)
        } else {
            0
        };
        over.max(self.options.reserve_bytes.saturating_sub(self.free_bytes()))
    }

    /// What the disk has left for us, in bytes. A disk that does not say has enough.
    fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(self.paths.root())
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Whether so much is cached that somebody should look.
    pub(crate) fn is_high(&self, used: u64) -> bool {
        used > percent(self.options.limit_bytes, HIGH_WATER_PERCENT)
    }

    /// Evicts if there is a need to.
    pub(crate) fn keep_within_limits(&self, scanned: &mut Option<Instant>) {
        if self.excess() > 0 {
            self.let_deleted_go(); // their room may be all that is missing, here or to another process
            let lock = File::create(self.paths.root().join("evict.lock"));
            let Ok(lock) = lock else { return };
            if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                return; // somebody is at it
            }
            if scanned.is_none_or(|at| at.elapsed() >= BOOKS_FRESH) {
                self.scan();
                *scanned = Some(Instant::now());
            }
            for _ in 0..EVICT_ROUNDS {
                let excess = self.excess();
                if excess == 0 || !self.evict(excess) {
                    break;
                }
            }
        }
        self.low_disk.store(self.free_bytes() < self.options.reserve_bytes, Ordering::Relaxed);
    }

    /// Evicts the longest unused versions; whether there were any.
    fn evict(&self, bytes: u64) -> bool {
        let victims = {
            let open = self.open.lock();
            let in_use = |id: &VersionId| open.get(id).is_some_and(|entry| entry.strong_count() > 0);
            self.index.lock().victims(bytes, in_use)
        };
        for (id, cached) in &victims {
            if self.paths.of(id, Suffix::Pin).exists() {
                self.index.lock().set_pinned(*id, true);
                continue;
            }
            let last_use = [Suffix::Map, Suffix::One].iter().filter_map(|suffix| {
                let path = self.paths.of(id, *suffix);
                let meta = fs::metadata(&path).ok()?;
                let label = if *suffix == Suffix::One { Label::of(&path, id) } else { None };
                Some(label.map_or(LastUse::Modified, |label| label.last_use).seconds(&meta))
            });
            let last_use = last_use.max().unwrap_or(0);
            if last_use > cached.used {
                self.index.lock().touch(id, last_use);
                continue;
            }
            match self.paths.remove_version(id) {
                Ok(()) => {
                    // Who has it open goes on reading what is open, and looks anew for the rest.
                    if let Some(entry) = self.opened(id) {
                        entry.reset();
                    }
                    self.index.lock().remove(*id);
                    self.counters.evicted_files.fetch_add(1, Ordering::Relaxed);
                    self.counters.evicted_bytes.fetch_add(cached.bytes, Ordering::Relaxed);
                }
                Err(err) => {
                    self.health.failed("cached files cannot be removed", &err);
                    return false;
                }
            }
        }
        !victims.is_empty()
    }

    /// Closes files that others have deleted and this process has open for later: as long as somebody
    /// has them open, the disk does not get their room back.
    fn let_deleted_go(&self) {
        for entry in self.all_open() {
            entry.check_linked();
        }
    }

    /// Looks for writes that the kernel had taken and the disk has refused since, to files that are open.
    pub(crate) fn notice_losses(&self) {
        for entry in self.all_open() {
            entry.notice_loss();
        }
    }

    /// Without the lock, which the last holder of each takes.
    fn all_open(&self) -> Vec<Arc<Entry>> {
        self.open.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Makes the books anew from the directory, and removes what does not belong there.
    pub(crate) fn scan(&self) {
        self.let_deleted_go();
        let mut found = HashMap::new();
        let now = self.now();
        // A directory that cannot be read is an empty one: the next write says what is wrong.
        for dir in fs::read_dir(self.paths.blocks()).into_iter().flatten().flatten() {
            let name = dir.file_name();
            let path = dir.path();
            match name.to_str().filter(|name| is_fan_out(name)) {
                Some(prefix) if path.is_dir() => scan_dir(prefix, &path, now, &mut found),
                _ => remove_foreign(&path),
            }
        }
        self.index.lock().replace(found);
        self.scanned.store(true, Ordering::Release);
    }
}

fn is_fan_out(name: &str) -> bool {
    name.len() == crate::cache::paths::FAN_OUT_DIGITS
        && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// One fan-out directory.
fn scan_dir(prefix: &str, dir: &Path, now: u64, found: &mut HashMap<VersionId, Cached>) {
    /// What there is of one version.
    #[derive(Default)]
    struct Parts {
        cached: Cached,
        data: bool,
        map: bool,
        fresh: bool,
    }
    let mut parts: HashMap<VersionId, Parts> = HashMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue }; // evicted meanwhile
        let written = LastUse::Modified.seconds(&meta);
        let fresh = written.saturating_add(UNFINISHED_SECONDS) > now;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.split_once('.'));
        let Some((rest, suffix)) = name.filter(|_| meta.is_file()) else {
            remove_foreign(&path);
            continue;
        };
        let id = VersionId::parse(&format!("{prefix}{rest}"));
        let (Some(id), Some(suffix)) = (id, Suffix::parse(suffix)) else {
            if !(suffix.starts_with("tmp-") && fresh) {
                remove_foreign(&path);
            }
            continue;
        };
        let last_use = match suffix {
            Suffix::Data | Suffix::Pin => Some(LastUse::Modified),
            Suffix::Map => has_sound_header(&path, &id).then_some(LastUse::Modified),
            Suffix::One => Label::of(&path, &id).map(|label| label.last_use),
        };
        let Some(last_use) = last_use else {
            // A fresh one may be sound by now, and whoever opens a damaged one removes it.
            if !fresh {
                remove_foreign(&path);
            }
            continue;
        };
        let part = parts.entry(id).or_default();
        part.fresh |= fresh;
        part.cached.used = part.cached.used.max(last_use.seconds(&meta));
        match suffix {
            Suffix::Pin => part.cached.pinned = true,
            Suffix::Map => part.map = true,
            Suffix::Data => part.data = true,
            Suffix::One => {}
        }
        part.cached.bytes += meta.blocks() * STAT_BLOCK_BYTES;
    }
    for (id, part) in parts {
        // Half of a pair is nothing, unless the other half is being made at this moment.
        if part.data != part.map && !part.fresh {
            let suffix = if part.data { "data" } else { "map" };
            remove_foreign(&dir.join(format!("{}.{suffix}", &id.to_string()[prefix.len()..])));
            if part.cached.pinned {
                found.insert(id, Cached { bytes: 0, ..part.cached });
            }
            continue;
        }
        found.insert(id, part.cached);
    }
}

fn has_sound_header(path: &Path, id: &VersionId) -> bool {
    let mut head = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    // A file that went away meanwhile is not worth a thought; one that cannot be read is removed.
    read.is_ok() && Header::decode(&head).is_some_and(|header| header.id == *id)
}

/// Removes what is not ours from the directory that is.
fn remove_foreign(path: &Path) {
    tracing::debug!("{} does not belong in the block cache", path.display());
    let removed =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(err) = removed {
        tracing::debug!("{} stays: {err}", path.display());
    }
}

fn percent(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent + bytes % 100 * percent / 100
}
