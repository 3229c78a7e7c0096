//! One page of keys out of a directory tree, in the byte order of the keys.
//!
//! A directory sorts as its name with a `/`, which is how its keys sort: `a.txt` before `a/b`.
//! So a walk that takes each directory's entries in that order yields all keys in order, and a
//! page begins by descending to where the page before it ended.
//!
//! Reading and sorting a directory of 100 000 entries anew for each page would make a listing
//! quadratic. The sorted names of large directories are therefore kept from page to page, for
//! as long as the directory's own times say that nothing was added or removed; a directory
//! whose last change is so recent that another would not show in its times is not kept.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::KeyPrefix;
use crate::name::OBJECT_KEY_BYTES_MAX;
use crate::name::ObjectKey;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::directory::place;
use crate::store::directory::temp;

/// Directories whose names are kept from page to page.
const KEPT_MAX: usize = 8;
/// Smaller directories are not worth keeping.
const KEPT_ENTRIES_MIN: usize = 512;
/// A directory that changed less than this before it was read may change again unseen: the
/// coarsest clock of a file system that is still in use ticks every two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// Names of one directory, each directory's with a `/`, sorted.
type Names = Arc<Vec<Box<str>>>;

/// The names of large directories, kept while they are current.
#[derive(Debug)]
pub(super) struct KeptNames {
    /// [`SETTLED`], but for tests.
    pub settled: Duration,
    kept: Mutex<LruCache<(u64, u64), (i128, Names)>>,
}

impl Default for KeptNames {
    fn default() -> Self {
        let cap = NonZeroUsize::new(KEPT_MAX).expect("not zero");
        Self { settled: SETTLED, kept: Mutex::new(LruCache::new(cap)) }
    }
}

impl KeptNames {
    /// How many directories are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept.lock().len()
    }

    /// The sorted names of a directory as it is now.
    fn of(&self, dir: &OwnedFd) -> io::Result<Names> {
        let stat = rustix::fs::fstat(dir)?;
        let id = (stat.st_dev, stat.st_ino);
        let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        if let Some((at, names)) = self.kept.lock().get(&id)
            && *at == changed
        {
            return Ok(Arc::clone(names));
        }
        let names = Arc::new(read_names(dir)?);
        let now = SystemClock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let settled = now.saturating_sub(self.settled).as_nanos();
        if names.len() >= KEPT_ENTRIES_MIN && changed < i128::try_from(settled).unwrap_or(0) {
            self.kept.lock().put(id, (changed, Arc::clone(&names)));
        }
        Ok(names)
    }
}

/// Reads and sorts what of a directory can be shown: files and directories with UTF-8 names.
fn read_names(dir: &OwnedFd) -> io::Result<Vec<Box<str>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                Err(_) => continue, // gone since
            }
        }
        if kind == FileType::RegularFile {
            names.push(name.into());
        } else if kind == FileType::Directory {
            names.push(format!("{name}/").into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether the directory stands for an object: it is empty, or was made as an object.
pub(super) fn is_marker(dir: &OwnedFd) -> io::Result<bool> {
    Ok(temp::get_meta(dir)?.is_some() || read_names(dir)?.is_empty())
}

/// Lists one page.
pub(super) fn list(root: OwnedFd, kept: &KeptNames, request: &ListRequest) -> io::Result<ListPage> {
    let prefix = request.prefix.as_str();
    let base = prefix.rfind('/').map_or("", |at| &prefix[..at]);
    let dir = if base.is_empty() {
        if prefix.starts_with('/') {
            return Ok(ListPage::default());
        }
        root
    } else {
        let Some(dirs) = place::components(base) else { return Ok(ListPage::default()) };
        match place::open_dirs(root, &dirs) {
            Ok(dir) => dir,
            Err(err) if place::is_absence(&err) => return Ok(ListPage::default()),
            Err(err) => return Err(err),
        }
    };
    let key = if base.is_empty() { String::new() } else { format!("{base}/") };
    let mut walk = Walk {
        kept,
        prefix,
        one_level: request.one_level,
        after: request.continuation.as_deref().or(request.start_after.as_deref()).unwrap_or(""),
        room: usize::from(request.keys_max.max(1)),
        last: None,
        page: ListPage::default(),
    };
    walk.directory(&dir, &key)?;
    Ok(walk.page)
}

/// A page being filled.
struct Walk<'r> {
    kept: &'r KeptNames,
    prefix: &'r str,
    one_level: bool,
    after: &'r str,
    room: usize,
    last: Option<String>,
    page: ListPage,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.page.continuation.is_some()
    }

    /// Takes a place on the page for `name`; none left means that the page is full.
    fn take(&mut self, name: &str) -> bool {
        if name <= self.after {
            return false;
        }
        if self.room == 0 {
            self.page.continuation = self.last.take();
            return false;
        }
        self.room -= 1;
        self.last = Some(name.to_owned());
        true
    }

    /// All keys of a directory that the page has room for. `key` is empty or ends in `/`.
    fn directory(&mut self, dir: &OwnedFd, key: &str) -> io::Result<()> {
        // The store's own files, and trees too deep for any key.
        if key == format!("{}/{}/", place::STATE_DIR, place::LOCAL_DIR) || key.len() > OBJECT_KEY_BYTES_MAX {
            return Ok(());
        }
        let names = self.kept.of(dir)?;
        let is_object = !key.is_empty() && key.starts_with(self.prefix) && key > self.after;
        if is_object && (names.is_empty() || temp::get_meta(dir)?.is_some()) {
            self.marker(dir, key)?;
        }
        // A directory that the last page ended in sorts before that end, but has more to give.
        let behind = names.partition_point(|name| *format!("{key}{name}") <= *self.after);
        let first = behind.saturating_sub(1);
        for name in &names[first..] {
            let full = format!("{key}{name}");
            if self.is_full() {
                return Ok(());
            }
            if let Some(bare) = name.strip_suffix('/') {
                self.subdirectory(dir, bare, &full)?;
            } else if full.starts_with(self.prefix) {
                self.file(dir, name, &full)?;
            }
        }
        Ok(())
    }

    fn subdirectory(&mut self, dir: &OwnedFd, name: &str, full: &str) -> io::Result<()> {
        if self.one_level {
            let ours = [place::STATE_DIR, place::LOCAL_DIR].join("/") + "/";
            if full.starts_with(self.prefix) && full != ours && self.take(full) {
                self.page.prefixes.push(KeyPrefix::from_listing(full));
            }
            return Ok(());
        }
        let reaches = *full > *self.after || self.after.starts_with(full);
        if !reaches || !(full.starts_with(self.prefix) || self.prefix.starts_with(full)) {
            return Ok(());
        }
        match place::open_dir(dir, name) {
            Ok(sub) => self.directory(&sub, full),
            Err(err) if place::is_absence(&err) => Ok(()), // gone since
            Err(err) => Err(err),
        }
    }

    fn marker(&mut self, dir: &OwnedFd, key: &str) -> io::Result<()> {
        let stat = rustix::fs::fstat(dir.as_fd())?;
        if self.take(key) {
            self.page.objects.push(ListedObject {
                key: ObjectKey::from_listing(key),
                size_bytes: 0,
                etag: Some(place::etag_of_marker(&stat)),
                modified: place::modified(&stat),
            });
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &str, full: &str) -> io::Result<()> {
        if *full <= *self.after {
            return Ok(());
        }
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if place::is_file(&stat) => stat,
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => return Ok(()), // gone since
            Err(err) => return Err(err.into()),
        };
        if self.take(full) {
            self.page.objects.push(ListedObject {
                key: ObjectKey::from_listing(full),
                size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
                etag: Some(place::etag_of_file(&stat)),
                modified: place::modified(&stat),
            });
        }
        Ok(())
    }
}
