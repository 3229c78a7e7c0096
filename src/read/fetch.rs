//! One GET: the body into runs, the runs to those who wait and to the cache.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch;
use tokio::time;

use crate::read::OpenObject;
use crate::read::ReadError;
use crate::read::Shared;
use crate::read::memory::Buffer;
use crate::read::memory::Lease;
use crate::read::part::Outcome;
use crate::read::part::Part;
use crate::read::stats::count;
use crate::store::StoreError;

/// A body that breaks off is continued this often without a byte of progress in between.
const BREAKS_MAX: usize = 4;
/// A body that brings nothing for this share of the read timeout counts as broken off.
const STALL_DIVISOR: u32 = 4;
/// How long a fetch waits for the cache's disk before its blocks lose their place in the cache.
const DISK_PATIENCE: Duration = Duration::from_secs(2);

/// A part to be fetched.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) object: Arc<OpenObject>,
    pub(crate) part: Arc<Part>,
    /// The runs that are not there yet, in order.
    pub(crate) runs: VecDeque<(Range<u64>, watch::Sender<Outcome>)>,
    /// The memory for them; absent if somebody waits, who may also have to wait for memory.
    pub(crate) lease: Option<Lease>,
    /// The place among the requests that nobody waits for.
    pub(crate) ahead: Option<OwnedSemaphorePermit>,
}

impl Job {
    fn bytes(&self) -> u64 {
        let range = self.object.byte_range(&self.part.blocks);
        range.end - range.start
    }
}

/// Starts the parts of one read. Their memory is taken at once: a read that held the memory of
/// one part while it waits for that of another could wait for ever.
pub(super) fn start(reader: &Arc<Shared>, mut jobs: Vec<Job>) {
    if jobs.len() > 1 {
        let starter = Arc::clone(reader);
        reader.runtime.spawn(async move {
            let bytes = jobs.iter().map(Job::bytes).sum();
            let mut lease = starter.memory.lease(bytes).await;
            for mut job in jobs {
                job.lease = Some(lease.split(job.bytes()));
                starter.runtime.spawn(run(job));
            }
        });
    } else if let Some(job) = jobs.pop() {
        reader.runtime.spawn(run(job));
    }
}

async fn run(mut job: Job) {
    let cancel = job.part.cancel.clone();
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        outcome = fetch(&mut job) => Some(outcome),
    };
    job.part.finished();
    if let Some(Err(err)) = outcome {
        // First it is forgotten, then it is told: whoever asks again starts anew.
        job.object.abandon(&job.part);
        for (_, sender) in job.runs {
            sender.send_replace(Some(Err(err.clone())));
        }
    }
}

/// Why a body did not come whole.
enum Broken {
    /// Asking again cannot help, or was tried already.
    Final(StoreError),
    /// The rest may come if it is asked for.
    Body(StoreError),
    /// Nothing came for too long.
    Stalled,
}

async fn fetch(job: &mut Job) -> Result<(), ReadError> {
    let reader = Arc::clone(&job.object.reader);
    let mut lease = match job.lease.take() {
        Some(lease) => lease,
        None => reader.memory.lease(job.bytes()).await,
    };
    let _slot = reader.requests.acquire().await.expect("the semaphore is never closed");
    job.part.progressed();
    let bytes = job.object.byte_range(&job.part.blocks);
    let mut body = Body { at: bytes.start, end: bytes.end, buffer: None };
    let mut breaks = 0;
    while body.at < body.end {
        let before = body.at;
        let err = match transfer(&reader, job, &mut body, &mut lease).await {
            Ok(()) => return Ok(()),
            Err(Broken::Final(err)) => return Err(read_error(job, err)),
            Err(Broken::Body(err)) => read_error(job, err),
            Err(Broken::Stalled) => {
                ReadError::Timeout { key: job.object.version.key.clone(), after: reader.options.read_timeout }
            }
        };
        breaks = if body.at > before { 1 } else { breaks + 1 };
        if breaks >= BREAKS_MAX {
            return Err(err);
        }
        count(&job.object.counters.broken_bodies, 1);
        tracing::debug!(key = %job.object.version.key, at = body.at, "a body broke off and is continued: {err}");
    }
    Ok(())
}

fn read_error(job: &Job, err: StoreError) -> ReadError {
    match err {
        StoreError::Changed { key } | StoreError::NotFound { key } => ReadError::Changed { key },
        StoreError::Unavailable { .. }
        | StoreError::Offline { .. }
        | StoreError::Denied { .. }
        | StoreError::Rejected { .. }
        | StoreError::NoBucket { .. }
        | StoreError::AlreadyExists { .. }
        | StoreError::Contended { .. }
        | StoreError::NoSuchUpload { .. } => {
            tracing::debug!(key = %job.object.version.key, "a read failed: {err}");
            ReadError::Store(err)
        }
    }
}

/// How far a part has come.
struct Body {
    at: u64,
    end: u64,
    /// The run that is being filled.
    buffer: Option<Buffer>,
}

/// Asks for the rest of a part and takes what comes.
async fn transfer(
    reader: &Arc<Shared>,
    job: &mut Job,
    body: &mut Body,
    lease: &mut Lease,
) -> Result<(), Broken> {
    let version = &job.object.version;
    let patience = reader.options.read_timeout / STALL_DIVISOR;
    count(&job.object.counters.requests, 1);
    let answer = reader.store.get(&version.key, &version.etag, body.at..body.end);
    // The store retries by itself, so the head of the answer may take as long as a read.
    let mut stream = match time::timeout(reader.options.read_timeout, answer).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return Err(Broken::Final(err)),
        Err(_elapsed) => return Err(Broken::Stalled),
    };
    while body.at < body.end {
        let mut piece = match time::timeout(patience, stream.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(err))) if err.is_transient() => return Err(Broken::Body(err)),
            Ok(Some(Err(err))) => return Err(Broken::Final(err)),
            Ok(None) => {
                let err = StoreError::unavailable(&job.object.version.key, "the body ended too early");
                return Err(Broken::Body(err));
            }
            Err(_elapsed) => return Err(Broken::Stalled),
        };
        job.part.progressed();
        count(&job.object.counters.fetched_bytes, piece.len() as u64);
        while !piece.is_empty() && body.at < body.end {
            let before = piece.len();
            let full = fill(reader, job, body, lease, &mut piece);
            body.at += (before - piece.len()) as u64;
            if let Some(buffer) = full {
                complete(reader, job, buffer).await;
            }
        }
    }
    Ok(())
}

/// Moves bytes into the run that comes next; returns its buffer when it is full.
fn fill(
    reader: &Arc<Shared>,
    job: &Job,
    body: &mut Body,
    lease: &mut Lease,
    piece: &mut Bytes,
) -> Option<Buffer> {
    let mut buffer = match body.buffer.take() {
        Some(buffer) => buffer,
        None => {
            let (blocks, _) = job.runs.front()?;
            let range = job.object.byte_range(blocks);
            let len = range.end - range.start;
            reader.memory.buffer(len as usize, lease.split(len))
        }
    };
    buffer.fill(piece);
    if buffer.is_full() {
        return Some(buffer);
    }
    body.buffer = Some(buffer);
    None
}

/// Hands a full run to those who wait, and to the cache.
async fn complete(reader: &Arc<Shared>, job: &mut Job, buffer: Buffer) {
    let Some((blocks, sender)) = job.runs.pop_front() else { return };
    let from_reserve = buffer.is_from_reserve();
    let content = buffer.freeze();
    let to_disk = !from_reserve || reader.memory.reserve_is_ample();
    // Queued, or counted as on its way, before anybody is told: the last reader may leave, and this task end
    // with it, and the next one open what was read.
    let entry = Arc::clone(&job.object.entry);
    let pages = job.object.pages_of(content.len() as u64);
    let queued = to_disk && entry.try_store_later(blocks.start, content.clone(), pages);
    let later = to_disk && !queued;
    let later = later.then(|| entry.store_later(blocks.start, content.clone(), pages, DISK_PATIENCE));
    job.object.publish(&job.part, &blocks, &content, !from_reserve);
    sender.send_replace(Some(Ok(content)));
    drop(sender);
    if let Some(later) = later {
        // A task of its own, so that it outlives this one if that is cancelled now.
        let _ = reader.runtime.spawn(later).await;
    }
}
