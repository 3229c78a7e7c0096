//! Writes to the cache's disk, off the path of those who wait for the bytes.
//!
//! The queue is bounded in bytes. A disk that is slower than the network slows the fetching
//! down for a moment, and after that costs the blocks their place in the cache; it never makes
//! a read fail or hang.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time;

use crate::cache::entry::Entry;

/// Threads that write. All of a version goes through one of them: two would only wait for each other,
/// since the kernel writes to a file under its inode's lock.
const WRITERS: usize = 2;
/// Least room in the queue, in bytes: several of the largest pieces that are ever queued.
const QUEUE_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Most room in the queue, in bytes.
const QUEUE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The queue's room is counted in units of this many bytes.
const UNIT_BYTES: u64 = 4096;

/// Whether the kernel should keep the pages of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// As it likes: they will be read from the cache's file.
    Keep,
    /// No longer than until they are on the disk: it has the same bytes elsewhere, in the pages of a
    /// mounted file. Twice in memory is twice the memory, and new memory is what a write costs most.
    LetGo,
}

/// The queue of blocks on their way to the disk.
#[derive(Debug)]
pub(crate) struct WriteQueue {
    /// One for each writer.
    jobs: Vec<mpsc::Sender<Job>>,
    room: Arc<Semaphore>,
    units: u32,
}

#[derive(Debug)]
struct Job {
    entry: Arc<Entry>,
    first: u64,
    content: Bytes,
    pages: Pages,
    _room: OwnedSemaphorePermit,
}

impl WriteQueue {
    /// Starts the writers. `memory_bytes` is the memory budget of which the queue takes a part.
    pub(crate) fn start(memory_bytes: u64) -> Self {
        let mut jobs = Vec::with_capacity(WRITERS);
        for number in 0..WRITERS {
            let (sender, receiver) = mpsc::channel();
            let writer = thread::Builder::new().name(format!("cache-write-{number}"));
            match writer.spawn(move || write_all(&receiver)) {
                Ok(_) => jobs.push(sender),
                Err(err) => tracing::warn!("a thread that writes the block cache cannot be started: {err}"),
            }
        }
        let bytes = (memory_bytes / 4).clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX);
        let units = u32::try_from(bytes / UNIT_BYTES).expect("the largest queue has 16384 units");
        Self { jobs, room: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Queues a write, if there is room at once.
    pub(crate) fn try_push(&self, entry: Arc<Entry>, first: u64, content: Bytes, pages: Pages) -> bool {
        match Arc::clone(&self.room).try_acquire_many_owned(self.units_of(&content)) {
            Ok(room) => self.send(Job { entry, first, content, pages, _room: room }),
            Err(_full) => false,
        }
    }

    /// Queues a write, waiting for room at most `patience`; false if there was none.
    pub(crate) async fn push(
        &self,
        entry: Arc<Entry>,
        first: u64,
        content: Bytes,
        pages: Pages,
        patience: Duration,
    ) -> bool {
        let room = Arc::clone(&self.room).acquire_many_owned(self.units_of(&content));
        match time::timeout(patience, room).await {
            Ok(Ok(room)) => self.send(Job { entry, first, content, pages, _room: room }),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Whether some writer has it now.
    fn send(&self, job: Job) -> bool {
        let writers = self.jobs.len().max(1);
        self.jobs.get(job.entry.spread() % writers).is_some_and(|writer| writer.send(job).is_ok())
    }

    fn units_of(&self, content: &Bytes) -> u32 {
        (content.len() as u64).div_ceil(UNIT_BYTES).min(u64::from(self.units)) as u32
    }

    /// Waits until everything that was queued before is written.
    pub(crate) async fn drain(&self) {
        let _all = self.room.acquire_many(self.units).await;
    }
}

fn write_all(jobs: &mpsc::Receiver<Job>) {
    for job in jobs {
        let stored = job.entry.store(job.first, &job.content, job.pages);
        job.entry.written(stored);
        job.entry.settled(job.content.len() as u64);
    }
}
