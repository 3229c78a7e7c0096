//! One open version: what of it is in memory, what is on its way, and who waits for it.
//!
//! The runs of an object never overlap. A run is *pending* from the moment that somebody wants
//! it, so that the next one who does finds it; it is *ready* when its bytes are complete. It
//! disappears when it fails, when nobody wants it any more, or when memory is needed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch;

use crate::block;
use crate::cache::Entry;
use crate::cache::Lookup;
use crate::cache::Pages;
use crate::cache::VersionId;
use crate::read::ObjectVersion;
use crate::read::RUN_BLOCKS;
use crate::read::ReadHandle;
use crate::read::Recent;
use crate::read::Shared;
use crate::read::fetch;
use crate::read::fetch::Job;
use crate::read::load::Loading;
use crate::read::memory::Keeper;
use crate::read::memory::Lease;
use crate::read::part::Claim;
use crate::read::part::Outcome;
use crate::read::part::Part;
use crate::read::part::Piece;
use crate::read::stats::Counters;
use crate::read::stats::count;

/// One version of one object, shared by all its handles.
#[derive(Debug)]
pub struct OpenObject {
    me: Weak<Self>,
    pub(super) reader: Arc<Shared>,
    pub(super) recent: Weak<Recent>,
    pub(crate) version: ObjectVersion,
    /// Its dataset's.
    pub(super) counters: Arc<Counters>,
    id: VersionId,
    pub(crate) entry: Arc<Entry>,
    pub(super) handles: AtomicUsize,
    /// Of these, handles whose bytes the kernel keeps, in the pages of a mounted file.
    pub(super) kept_elsewhere: AtomicUsize,
    /// Somebody verifies the cache's file, as long as there is a sender.
    pub(super) verifying: Mutex<Option<watch::Receiver<()>>>,
    /// By first block.
    runs: Mutex<BTreeMap<u64, Run>>,
}

#[derive(Debug)]
struct Run {
    /// The block behind the last.
    end: u64,
    state: RunState,
    /// Fetched before anybody asked.
    ahead: bool,
    /// Somebody has asked.
    used: bool,
}

#[derive(Debug)]
enum RunState {
    Pending { part: Arc<Part>, outcome: watch::Receiver<Outcome> },
    Ready(Bytes),
}

/// A place in an object where nothing is known of blocks.
enum Slot {
    Run(u64),
    Disk,
    Missing,
}

impl OpenObject {
    pub(super) fn new(
        reader: Arc<Shared>,
        recent: Weak<Recent>,
        version: ObjectVersion,
        id: VersionId,
        entry: Arc<Entry>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            counters: reader.counters.of(&version.key),
            reader,
            recent,
            version,
            id,
            entry,
            handles: AtomicUsize::new(0),
            kept_elsewhere: AtomicUsize::new(0),
            verifying: Mutex::default(),
            runs: Mutex::default(),
        })
    }

    /// A new handle, with an access pattern of its own.
    #[must_use]
    pub fn handle(self: &Arc<Self>) -> ReadHandle {
        self.handle_with(Pages::Keep)
    }

    /// A new handle. With [`Pages::LetGo`], whoever has it keeps what is read: of a large object nothing
    /// stays in memory for the cache's file besides.
    #[must_use]
    pub fn handle_with(self: &Arc<Self>, pages: Pages) -> ReadHandle {
        self.handles.fetch_add(1, Ordering::Relaxed);
        let handle = ReadHandle::new(Arc::clone(self));
        if pages == Pages::LetGo {
            handle.keep_elsewhere();
        }
        handle
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> &ObjectVersion {
        &self.version
    }

    pub(crate) fn id(&self) -> &VersionId {
        &self.id
    }

    /// A handle was closed. After the last one, what was fetched ahead and not read only takes
    /// room from others; it is on the disk, or on its way there.
    pub(crate) fn handle_closed(&self, was_kept_elsewhere: bool) {
        if was_kept_elsewhere {
            self.kept_elsewhere.fetch_sub(1, Ordering::Relaxed);
        }
        if self.handles.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let mut unread = Vec::new();
        self.runs.lock().retain(|_, run| match &run.state {
            RunState::Ready(content) if run.ahead && !run.used => {
                unread.push(content.clone());
                false
            }
            RunState::Ready(_) | RunState::Pending { .. } => true,
        });
        count(&self.counters.wasted_bytes, unread.iter().map(|content| content.len() as u64).sum());
    }

    /// Whether everything is in the cache already.
    pub(crate) fn lookup_present(&self) -> bool {
        (0..block::count(self.version.size_bytes)).all(|index| self.entry.is_present(index))
    }

    fn strong(&self) -> Arc<Self> {
        self.me.upgrade().expect("called through an Arc")
    }

    pub(crate) fn byte_range(&self, blocks: &Range<u64>) -> Range<u64> {
        if blocks.is_empty() {
            return 0..0;
        }
        block::range_of(blocks.start, self.version.size_bytes).start
            ..block::range_of(blocks.end - 1, self.version.size_bytes).end
    }

    /// Bytes that can be had without waiting. With `mapped`, they may be a mapping of the cache
    /// file, which only the kernel may touch.
    pub(crate) fn lookup(&self, bytes: &Range<u64>, mapped: bool) -> Option<Bytes> {
        if let Some(hit) = self.ready(bytes) {
            return Some(hit);
        }
        if mapped && let Some(hit) = self.entry.mapped(bytes, self.pages()) {
            return Some(hit);
        }
        if block::count(self.version.size_bytes) == 1 {
            let Lookup::Hit(whole) = self.entry.read(&(0..self.version.size_bytes), false) else {
                return None;
            };
            self.keep_small(&whole);
            return Some(whole.slice(bytes.start as usize..bytes.end as usize));
        }
        match self.entry.read(bytes, false) {
            Lookup::Hit(hit) => Some(hit),
            Lookup::WouldBlock | Lookup::Miss => None,
        }
    }

    /// Bytes out of the ready runs: a slice of one, or a copy of several.
    fn ready(&self, bytes: &Range<u64>) -> Option<Bytes> {
        let mut runs = self.runs.lock();
        let mut copy: Vec<u8> = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let (first, run) = runs.range_mut(..=block::index_of(at)).next_back()?;
            let start = block::range_of(*first, self.version.size_bytes).start;
            let RunState::Ready(content) = &run.state else { return None };
            let content = content.get((at - start) as usize..).filter(|rest| !rest.is_empty())?;
            let end = bytes.end.min(at + content.len() as u64);
            let content = &content[..(end - at) as usize];
            if !std::mem::replace(&mut run.used, true) && run.ahead {
                let RunState::Ready(whole) = &run.state else { return None };
                count(&self.counters.useful_bytes, whole.len() as u64);
            }
            let RunState::Ready(whole) = &run.state else { return None };
            if at == bytes.start && end == bytes.end {
                return Some(whole.slice_ref(content));
            }
            copy.reserve((bytes.end - at) as usize);
            copy.extend_from_slice(content);
            at = end;
        }
        Some(copy.into())
    }

    /// Keeps a small object that was read from the disk, if there is room: the next read of it is
    /// near.
    fn keep_small(&self, whole: &Bytes) {
        let Some(lease) = self.reader.memory.try_lease(whole.len() as u64) else { return };
        let content = Bytes::from_owner(Leased { content: whole.clone(), _lease: lease });
        let run = Run { end: 1, state: RunState::Ready(content), ahead: false, used: true };
        let mut runs = self.runs.lock();
        if runs.is_empty() {
            runs.insert(0, run);
            drop(runs);
            self.note_kept(0);
        }
    }

    fn note_kept(&self, first: u64) {
        let me: Weak<dyn Keeper> = Weak::clone(&self.me) as Weak<dyn Keeper>;
        self.reader.memory.keep(me, first);
    }

    /// What is at a block, and how far that reaches.
    fn slot_at(&self, runs: &BTreeMap<u64, Run>, index: u64, end: u64) -> (Slot, u64) {
        if let Some((first, run)) = runs.range(..=index).next_back()
            && run.end > index
        {
            return (Slot::Run(*first), run.end.min(end));
        }
        let next_run = runs.range(index..end).next().map_or(end, |(first, _)| *first);
        let present = self.entry.is_present(index);
        let reach = (index + 1..next_run).find(|other| self.entry.is_present(*other) != present);
        (if present { Slot::Disk } else { Slot::Missing }, reach.unwrap_or(next_run))
    }

    /// Where the pieces of `bytes` are or will come from; starts fetching what is missing of
    /// `demand`, which holds `bytes` and is whole blocks.
    pub(crate) fn gather(&self, bytes: &Range<u64>, demand: &Range<u64>) -> Vec<Piece> {
        let wanted = block::covering(bytes);
        let demand = block::covering(demand);
        if !demand.clone().all(|index| self.entry.is_present(index)) {
            self.entry.refresh(demand.clone());
        }
        let mut pieces = Vec::new();
        let mut jobs = Vec::new();
        let mut runs = self.runs.lock();
        let mut at = demand.start;
        while at < demand.end {
            let (slot, end) = self.slot_at(&runs, at, demand.end);
            match slot {
                Slot::Run(first) => pieces.extend(self.piece_of(&mut runs, first, &wanted)),
                Slot::Disk => {
                    let disk = self.byte_range(&(at..end));
                    let disk = disk.start.max(bytes.start)..disk.end.min(bytes.end);
                    if !disk.is_empty() {
                        pieces.push(Piece::Disk(disk));
                    }
                }
                Slot::Missing => {
                    let job = self.begin(&mut runs, at..end, &wanted, false);
                    let mut first = at;
                    while first < end {
                        let next = runs[&first].end;
                        pieces.extend(self.piece_of(&mut runs, first, &wanted));
                        first = next;
                    }
                    jobs.push(job);
                }
            }
            at = end;
        }
        drop(runs);
        fetch::start(&self.reader, jobs);
        pieces
    }

    /// A run as a piece of an answer, if any of it is wanted.
    fn piece_of(&self, runs: &mut BTreeMap<u64, Run>, first: u64, wanted: &Range<u64>) -> Option<Piece> {
        let run = runs.get_mut(&first)?;
        if first >= wanted.end || run.end <= wanted.start {
            return None;
        }
        if !std::mem::replace(&mut run.used, true) && run.ahead {
            let bytes = self.byte_range(&(first..run.end));
            count(&self.counters.useful_bytes, bytes.end - bytes.start);
        }
        Some(match &run.state {
            RunState::Ready(content) => {
                Piece::Ready(block::range_of(first, self.version.size_bytes).start, content.clone())
            }
            RunState::Pending { part, outcome } => {
                let claim = Claim::new(self.strong(), part);
                Piece::Wait { first, outcome: outcome.clone(), claim }
            }
        })
    }

    /// Makes the runs of a new part pending. Runs end where `wanted` ends, so that what is asked
    /// for does not wait for what is not.
    fn begin(
        &self,
        runs: &mut BTreeMap<u64, Run>,
        blocks: Range<u64>,
        wanted: &Range<u64>,
        ahead: bool,
    ) -> Job {
        let part = Arc::new(Part::new(blocks.clone()));
        let mut senders = Vec::new();
        let mut first = blocks.start;
        while first < blocks.end {
            let aligned = (first / RUN_BLOCKS + 1) * RUN_BLOCKS;
            let cut = if first < wanted.end { wanted.end } else { u64::MAX };
            let end = aligned.min(cut).min(blocks.end);
            let (sender, outcome) = watch::channel(None);
            let state = RunState::Pending { part: Arc::clone(&part), outcome };
            runs.insert(first, Run { end, state, ahead: ahead || first >= wanted.end, used: false });
            senders.push((first..end, sender));
            first = end;
        }
        Job { object: self.strong(), part, runs: senders.into(), lease: None, ahead: None }
    }

    /// Begins to fetch `bytes` before they are asked for, in requests of `part_bytes`; what is
    /// under way already is claimed. Also returns where memory or requests ran out, if they did.
    pub(crate) fn fetch_ahead(&self, bytes: &Range<u64>, part_bytes: u64) -> (Vec<Claim>, Option<u64>) {
        let wanted = block::covering(bytes);
        let part_blocks = (part_bytes / block::BLOCK_BYTES).max(1);
        let mut claims: Vec<Claim> = Vec::new();
        let mut jobs = Vec::new();
        let mut refused = None;
        let mut at = wanted.start;
        while at < wanted.end {
            let (slot, end) = self.slot_at(&self.runs.lock(), at, wanted.end.min(at + part_blocks));
            match slot {
                Slot::Run(first) => claims.extend(self.claim_pending(first)),
                Slot::Disk => self.warm(at..end),
                Slot::Missing => {
                    let range = self.byte_range(&(at..end));
                    // Outside the lock: making room may have to let runs of this object go.
                    let Some((lease, ahead)) = self.room_ahead(range.end - range.start) else {
                        refused = Some(range.start);
                        break;
                    };
                    let mut runs = self.runs.lock();
                    let (slot, still) = self.slot_at(&runs, at, end);
                    if !matches!(slot, Slot::Missing) || still != end {
                        continue; // somebody else has begun: look again
                    }
                    let mut job = self.begin(&mut runs, at..end, &(at..at), true);
                    claims.push(Claim::new(self.strong(), &job.part));
                    (job.lease, job.ahead) = (Some(lease), Some(ahead));
                    jobs.push(job);
                    drop(runs);
                    at = end;
                    continue;
                }
            }
            at = end;
        }
        for job in jobs {
            fetch::start(&self.reader, vec![job]);
        }
        (claims, refused)
    }

    /// Begins to fetch a whole object of one run; `None` if it is there or on its way already.
    pub(super) fn begin_load(&self, lease: Lease, ahead: OwnedSemaphorePermit) -> Option<Loading> {
        let all = self.all_blocks();
        let mut runs = self.runs.lock();
        let (slot, end) = self.slot_at(&runs, all.start, all.end);
        if !matches!(slot, Slot::Missing) || end != all.end {
            return None;
        }
        // Not as something fetched ahead: it is not lost when it leaves memory unread.
        let mut job = self.begin(&mut runs, all.clone(), &all, false);
        let claim = Claim::new(self.strong(), &job.part);
        (job.lease, job.ahead) = (Some(lease), Some(ahead));
        let RunState::Pending { outcome, .. } = &runs.get(&all.start)?.state else { return None };
        let outcome = outcome.clone();
        drop(runs);
        fetch::start(&self.reader, vec![job]);
        Some((outcome, claim))
    }

    fn room_ahead(&self, bytes: u64) -> Option<(Lease, OwnedSemaphorePermit)> {
        if bytes > block::BLOCK_BYTES && self.reader.ahead.available_permits() <= self.reader.spared {
            return None;
        }
        let ahead = Arc::clone(&self.reader.ahead).try_acquire_owned().ok()?;
        Some((self.reader.memory.try_lease(bytes)?, ahead))
    }

    fn claim_pending(&self, first: u64) -> Option<Claim> {
        let runs = self.runs.lock();
        let RunState::Pending { part, .. } = &runs.get(&first)?.state else { return None };
        Some(Claim::new(self.strong(), part))
    }

    /// Reads and checks cached blocks before they are asked for, on another thread.
    fn warm(&self, blocks: Range<u64>) {
        if self.entry.is_verified(blocks.clone()) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.reader.warming).try_acquire_owned() else { return };
        let bytes = self.byte_range(&blocks);
        let entry = Arc::clone(&self.entry);
        self.reader.runtime.spawn_blocking(move || {
            entry.warm(bytes);
            drop(permit);
        });
    }

    /// A run's bytes are there. Returns false if nobody wants them any more.
    pub(crate) fn publish(&self, part: &Arc<Part>, run: &Range<u64>, content: &Bytes, keep: bool) -> bool {
        let mut runs = self.runs.lock();
        let Some(known) = runs.get_mut(&run.start).filter(|known| known.is_of(part)) else { return false };
        if !keep {
            runs.remove(&run.start);
            return true;
        }
        known.state = RunState::Ready(content.clone());
        drop(runs);
        self.note_kept(run.start);
        true
    }

    /// A part ended before its bytes were there.
    pub(crate) fn abandon(&self, part: &Arc<Part>) {
        self.remove_pending(&mut self.runs.lock(), part);
    }

    /// A claim on a part is dropped: the last one takes the part along.
    pub(super) fn unclaim(&self, part: &Arc<Part>) {
        let mut runs = self.runs.lock();
        if part.unclaimed() && !part.is_done() {
            part.cancel.cancel();
            self.remove_pending(&mut runs, part);
        }
    }

    fn remove_pending(&self, runs: &mut BTreeMap<u64, Run>, part: &Arc<Part>) {
        let mut first = part.blocks.start;
        // Where a run of this part is gone, one of another part may begin, and reach beyond this part's end.
        while first < part.blocks.end
            && let Some((at, run)) = runs.range(first..part.blocks.end).next()
        {
            let (at, end) = (*at, run.end);
            if run.is_of(part) {
                if run.ahead && !run.used {
                    let bytes = self.byte_range(&(at..end));
                    count(&self.counters.wasted_bytes, bytes.end - bytes.start);
                }
                runs.remove(&at);
            }
            first = end;
        }
    }

    /// A read of `bytes` has waited too long: parts that are stuck are given up, so that the next
    /// read asks the store anew. Others who wait for them ask anew now.
    pub(crate) fn give_up_stalled(&self, bytes: &Range<u64>) {
        let patience = self.reader.options.read_timeout / 2;
        let mut runs = self.runs.lock();
        let blocks = block::covering(bytes);
        let stalled: Vec<Arc<Part>> = runs
            .range(..blocks.end)
            .filter(|(_, run)| run.end > blocks.start)
            .filter_map(|(_, run)| match &run.state {
                RunState::Pending { part, .. } if part.is_stuck(patience) => Some(Arc::clone(part)),
                RunState::Pending { .. } | RunState::Ready(_) => None,
            })
            .collect();
        for part in stalled {
            part.cancel.cancel();
            self.remove_pending(&mut runs, &part);
        }
    }
}

impl Run {
    fn is_of(&self, part: &Arc<Part>) -> bool {
        matches!(&self.state, RunState::Pending { part: own, .. } if Arc::ptr_eq(own, part))
    }
}

impl Keeper for OpenObject {
    fn let_go(&self, token: u64, only_used: bool) -> Option<u64> {
        let mut runs = self.runs.lock();
        let Some(Run { state: RunState::Ready(content), used, ahead, .. }) = runs.get(&token) else {
            return Some(0); // gone already
        };
        if only_used && !used {
            return None;
        }
        let bytes = content.len() as u64;
        if *ahead && !used {
            count(&self.counters.wasted_bytes, bytes);
        }
        let run = runs.remove(&token);
        drop(runs);
        drop(run);
        Some(bytes)
    }
}

impl Drop for OpenObject {
    fn drop(&mut self) {
        for run in self.runs.get_mut().values() {
            if let RunState::Ready(content) = &run.state
                && run.ahead
                && !run.used
            {
                count(&self.counters.wasted_bytes, content.len() as u64);
            }
        }
        self.reader.closed(&self.id);
    }
}

/// Bytes that are paid for from the budget.
struct Leased {
    content: Bytes,
    _lease: Lease,
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::ReadOptions;
    use crate::read::tests::World;

    /// The runs of a part that is over may be gone before its claims are, and others be where they were.
    #[tokio::test]
    async fn the_end_of_a_part_leaves_the_runs_of_others_alone() {
        let world = World::new(ReadOptions::default());
        let (version, _) = world.put("k", 64 * block::BLOCK_BYTES);
        let object = world.reader.open(version);
        let state = RunState::Ready(Bytes::from_static(b"x"));
        object.runs.lock().insert(10, Run { end: 16, state, ahead: false, used: true });
        object.abandon(&Arc::new(Part::new(10..11)));
        object.abandon(&Arc::new(Part::new(8..12)));
        assert!(object.runs.lock().contains_key(&10));
    }
}
