//! The remote against a snapshot: every object is read whole, and hashed on its way.
//!
//! Large objects come in parts, several at a time, and are hashed in order. Memory for parts is one
//! budget for all files: a file waits for room only while it holds none, so that whoever holds some
//! goes on, and gives it back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future;
use futures_util::stream::FuturesOrdered;
use futures_util::stream::FuturesUnordered;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time;

use crate::compare::CompareError;
use crate::compare::verify::BadFile;
use crate::compare::verify::Place;
use crate::compare::verify::Problem;
use crate::compare::verify::RemoteCounts;
use crate::compare::verify::Verify;
use crate::compare::verify::extent;
use crate::compare::verify::is_superseded;
use crate::compare::verify::keyed;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::Snapshot;
use crate::store::ListRequest;
use crate::store::StoreError;
use crate::store::collect;

/// Bytes asked for at a time.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of one file under way at a time.
const PARTS_AHEAD: usize = 4;
/// Bytes of parts in memory at a time, of all files together.
const MEMORY_BYTES: u64 = 128 * 1024 * 1024;
/// Memory is counted in units of this many bytes.
const UNIT_BYTES: u64 = 4096;
/// How often a part is asked for whose body breaks off.
const PART_TRIES: u32 = 4;
/// The pause before the second try; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// Up to here hashing costs less than handing the work to another thread, in bytes.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Reads and hashes all objects of a snapshot.
pub(super) async fn verify(
    verify: &Verify,
    workers: usize,
    snapshot: &Snapshot,
    newest: &Snapshot,
    bad: &mut Vec<BadFile>,
) -> Result<RemoteCounts, CompareError> {
    let mut counts = RemoteCounts::default();
    let mut entries = keyed(verify, snapshot);
    let all = entries.len();
    entries.retain(|_, entry| !is_superseded(newest, &entry.path, &entry.etag));
    counts.superseded_files = (all - entries.len()) as u64;
    let (files, bytes) = extent(entries.values());
    verify.watch.phase("remote", files, bytes);
    let listed = list(verify, &keyed(verify, newest), &mut counts).await?;
    let reader = Reader {
        verify,
        memory: Arc::new(Semaphore::new(usize::try_from(MEMORY_BYTES / UNIT_BYTES).unwrap_or(usize::MAX))),
    };
    let mut entries = entries.into_iter();
    let mut looking = FuturesUnordered::new();
    loop {
        let free = workers.max(1) - looking.len();
        for (key, entry) in entries.by_ref().take(free) {
            let listed = listed.get(&key).copied();
            looking.push(reader.look(key, entry, listed));
        }
        let Some(verdict) = looking.next().await else { return Ok(counts) };
        match verdict? {
            Verdict::Right { bytes } => {
                counts.right_files += 1;
                counts.right_bytes += bytes;
            }
            Verdict::Bad(file) => bad.push(file),
        }
        verify.watch.file_done();
    }
}

/// The sizes of the committed objects as they are listed; counts the others.
async fn list(
    verify: &Verify,
    committed: &BTreeMap<ObjectKey, Entry>,
    counts: &mut RemoteCounts,
) -> Result<BTreeMap<ObjectKey, u64>, StoreError> {
    let mut request = ListRequest::recursive(verify.prefix.dataset(&verify.dataset));
    let mut listed = BTreeMap::new();
    loop {
        let page = verify.store.list(&request).await?;
        for object in page.objects {
            if committed.contains_key(&object.key) {
                listed.insert(object.key, object.size_bytes);
            } else if !object.key.as_str().ends_with('/') {
                counts.foreign_files += 1;
                counts.foreign_bytes += object.size_bytes;
            }
        }
        match page.continuation {
            Some(next) => request.continuation = Some(next),
            None => return Ok(listed),
        }
    }
}

enum Verdict {
    Right { bytes: u64 },
    Bad(BadFile),
}

struct Reader<'a> {
    verify: &'a Verify,
    memory: Arc<Semaphore>,
}

impl Reader<'_> {
    async fn look(&self, key: ObjectKey, entry: Entry, listed: Option<u64>) -> Result<Verdict, CompareError> {
        let size_bytes = entry.size_bytes;
        // An object that the listing shows as it should be is read; for any other, HEAD has the last word.
        let found = if listed == Some(size_bytes) && size_bytes > 0 {
            self.hash(&key, &entry.etag, size_bytes).await
        } else {
            Err(StoreError::Changed { key: key.clone() })
        };
        let (problem, detail) = match found {
            Ok(cid) if cid == entry.cid => return Ok(Verdict::Right { bytes: size_bytes }),
            Ok(cid) => (Problem::WrongContent, format!("the content is {cid}")),
            Err(err) => match self.explain(&key, &entry, &err).await? {
                None => return Ok(Verdict::Right { bytes: size_bytes }),
                Some(explained) => explained,
            },
        };
        Ok(Verdict::Bad(BadFile {
            path: entry.path,
            etag: entry.etag,
            place: Place::Remote,
            problem,
            detail,
        }))
    }

    /// What is wrong with an object that could not be read as it was committed; `None`: nothing, for an
    /// empty one. An error, if it is the remote as a whole that does not answer.
    async fn explain(
        &self,
        key: &ObjectKey,
        entry: &Entry,
        err: &StoreError,
    ) -> Result<Option<(Problem, String)>, CompareError> {
        let meta = match self.verify.store.head(key).await {
            Err(StoreError::NotFound { .. }) => {
                return Ok(Some((Problem::Missing, "is not there".to_owned())));
            }
            answer => answer?,
        };
        let sizes = format!("{} bytes instead of {}", meta.size_bytes, entry.size_bytes);
        if meta.etag != entry.etag {
            let content = if meta.size_bytes != entry.size_bytes {
                sizes
            } else {
                match self.hash(key, &meta.etag, meta.size_bytes).await {
                    Ok(cid) if cid == entry.cid => "with the same content".to_owned(),
                    Ok(cid) => format!("the content is {cid}"),
                    Err(err) => format!("and cannot be read: {err}"),
                }
            };
            return Ok(Some((Problem::Replaced, format!("written anew by another tool: {content}"))));
        }
        if meta.size_bytes != entry.size_bytes {
            return Ok(Some((Problem::WrongSize, sizes)));
        }
        if matches!(err, StoreError::Changed { .. }) {
            // Not listed, or empty: there is nothing wrong with it so far.
            let cid = self.hash(key, &meta.etag, meta.size_bytes).await;
            return Ok(match cid {
                Ok(cid) if cid == entry.cid => None,
                Ok(cid) => Some((Problem::WrongContent, format!("the content is {cid}"))),
                Err(err) => Some((Problem::Unreadable, err.to_string())),
            });
        }
        Ok(Some((Problem::Unreadable, err.to_string())))
    }

    /// The content id of a version, read whole.
    async fn hash(&self, key: &ObjectKey, etag: &ETag, size_bytes: u64) -> Result<ContentId, StoreError> {
        let starts = (0..size_bytes).step_by(usize::try_from(PART_BYTES).unwrap_or(usize::MAX));
        let mut ranges = starts.map(|start| start..(start + PART_BYTES).min(size_bytes)).peekable();
        let mut under_way = FuturesOrdered::new();
        let mut hasher = Sha256::new();
        let mut arrived: Option<Part> = None;
        loop {
            while under_way.len() < PARTS_AHEAD
                && let Some(range) = ranges.peek()
            {
                let waiting = under_way.is_empty() && arrived.is_none();
                let Some(room) = self.room(range.end - range.start, waiting).await else { break };
                under_way.push_back(self.part(key, etag, range.clone(), room));
                ranges.next();
            }
            // The next part arrives while this one is hashed.
            let hash = async {
                match arrived.take() {
                    Some(part) => self.digest(hasher, part).await,
                    None => hasher,
                }
            };
            let next;
            (hasher, next) = future::join(hash, under_way.next()).await;
            arrived = next.transpose()?;
            if arrived.is_none() && ranges.peek().is_none() {
                return Ok(ContentId::from_sha256(hasher.finalize().into()));
            }
        }
    }

    /// Room for a part: with `waiting`, as soon as there is some; else only what is free at once.
    async fn room(&self, bytes: u64, waiting: bool) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory);
        if waiting {
            memory.acquire_many_owned(units).await.ok()
        } else {
            memory.try_acquire_many_owned(units).ok()
        }
    }

    async fn part(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        range: Range<u64>,
        room: OwnedSemaphorePermit,
    ) -> Result<Part, StoreError> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut tries = 1;
        loop {
            let get = async {
                let body = self.verify.store.get(key, etag, range.clone()).await?;
                collect(body, len).await
            };
            match get.await {
                Err(err) if err.is_transient() && tries < PART_TRIES => {
                    time::sleep(PAUSE * 2_u32.pow(tries - 1)).await;
                    tries += 1;
                }
                answer => return answer.map(|bytes| Part { bytes, _room: room }),
            }
        }
    }

    async fn digest(&self, mut hasher: Sha256, part: Part) -> Sha256 {
        let watch = Arc::clone(&self.verify.watch);
        let len = part.bytes.len();
        let work = move || {
            hasher.update(&part.bytes);
            watch.looked_at(len as u64);
            hasher
        };
        if len <= INLINE_BYTES_MAX {
            return work();
        }
        spawn_blocking(work).await.unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()))
    }
}

/// A part in memory, and its share of the budget.
struct Part {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}
