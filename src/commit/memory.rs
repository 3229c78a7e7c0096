//! Memory for bodies: bounded, and used again.
//!
//! A body of about a part's size is read into a buffer that an earlier one has left. The allocator would
//! give it back to the system and ask for it anew each time, or keep it, once for each thread.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;

/// The unit in which memory is counted.
const UNIT_BYTES: u64 = 64 * 1024;

/// The memory that the bodies of one commit or transfer may take.
#[derive(Debug)]
pub(crate) struct Memory {
    units: Semaphore,
    units_total: u32,
    idle: Arc<Idle>,
}

#[derive(Debug)]
struct Idle {
    buffer_bytes: usize,
    buffers_max: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

fn units_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).max(1)
}

impl Memory {
    /// `total_bytes` in all, mostly for bodies of `part_bytes`.
    pub fn new(total_bytes: u64, part_bytes: u64) -> Self {
        let units_total = units_of(total_bytes);
        let buffers_max = usize::try_from(total_bytes / part_bytes.max(1)).unwrap_or(usize::MAX).max(1);
        let buffer_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let idle = Arc::new(Idle { buffer_bytes, buffers_max, buffers: Mutex::default() });
        Self { units: Semaphore::new(units_total as usize), units_total, idle }
    }

    /// Waits until a body may take so many bytes. One that is larger than all of the memory waits for
    /// all of it.
    pub async fn reserve(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = units_of(bytes).min(self.units_total);
        self.units.acquire_many(units).await.expect("the semaphore is never closed")
    }

    /// A buffer of `len` bytes, whatever they are.
    pub fn buffer(&self, len: usize) -> Buffer {
        let idle = &self.idle;
        if len > idle.buffer_bytes || len <= idle.buffer_bytes / 2 {
            return Buffer { bytes: vec![0; len], len, home: None };
        }
        let left = idle.buffers.lock().pop();
        let bytes = left.unwrap_or_else(|| vec![0; idle.buffer_bytes]);
        Buffer { bytes, len, home: Some(Arc::clone(idle)) }
    }
}

/// Memory of one body, which is used again when nobody looks at it any more.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Option<Arc<Idle>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut buffers = home.buffers.lock();
        if buffers.len() < home.buffers_max {
            buffers.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[tokio::test]
    async fn large_bodies_take_each_others_place() {
        let memory = Memory::new(3 * 1024 * 1024, 1024 * 1024);
        let address = |bytes: &Bytes| bytes.as_ptr() as usize;
        let mut first = memory.buffer(700_000);
        first.as_mut().fill(7);
        let first = Bytes::from_owner(first);
        let (at, slice) = (address(&first), first.slice(10..20));
        drop(first);
        let other = Bytes::from_owner(memory.buffer(1024 * 1024));
        assert_ne!(address(&other), at, "somebody still looks at a piece of the first");
        assert_eq!((slice[0], other.len()), (7, 1024 * 1024));
        drop(slice);
        assert_eq!(address(&Bytes::from_owner(memory.buffer(600_000))), at);
        let small = memory.buffer(1000);
        assert_eq!(
            (small.as_ref().len(), small.bytes.len()),
            (1000, 1000),
            "a small one takes what it needs"
        );
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let memory = Memory::new(2 * 1024 * 1024, 1024 * 1024);
        let buffers: Vec<Buffer> = (0..5).map(|_| memory.buffer(1024 * 1024)).collect();
        drop(buffers);
        assert_eq!(memory.idle.buffers.lock().len(), 2);
    }

    #[tokio::test]
    async fn a_body_waits_for_its_memory() {
        let memory = Memory::new(1024 * 1024, 1024 * 1024);
        let all = memory.reserve(u64::MAX).await;
        assert!(memory.units.try_acquire().is_err(), "larger than all of it: all of it");
        drop(all);
        let _half = memory.reserve(512 * 1024).await;
        assert!(memory.units.try_acquire_many(9).is_err() && memory.units.try_acquire_many(8).is_ok());
    }
}
