//! What to fetch before it is asked for. Pure: accesses in, ranges out; no clock, no I/O.
//!
//! A handle is read in one of few ways, and a guess that is wrong costs bandwidth that others
//! need, so each way has to show itself first:
//!
//! * **From the start.** The first read of a handle at offset 0 is taken for the beginning of
//!   a sequential read: a window is fetched in parallel with what was asked.
//! * **Sequential.** A read that continues another, twice. The window grows while the reader is
//!   the one who waits, and shrinks while memory is short. Several such streams live side by
//!   side (a file read by several threads, a column store); the kernel's requests may overtake
//!   each other within a stream that is established.
//! * **Strided**, also backward: three equal distances in a row. The places ahead are fetched,
//!   and only they.
//! * **Random**: nothing, and one block for each read.

use std::ops::Range;

use crate::block::BLOCK_BYTES;

/// Sequential streams that are followed in one handle.
pub(crate) const STREAMS_MAX: usize = 8;
/// First window of a stream, in bytes.
const WINDOW_FIRST: u64 = 1024 * 1024;
/// Up to here a window grows fourfold for each wait, from here on twofold, in bytes.
const WINDOW_STEEP: u64 = 16 * 1024 * 1024;
/// Most bytes ahead of one stream.
pub(crate) const WINDOW_MAX: u64 = 64 * 1024 * 1024;
/// Smallest and largest request of a prefetch, in bytes; between them, an eighth of the window.
const PART_MIN: u64 = 1024 * 1024;
const PART_MAX: u64 = 8 * 1024 * 1024;
/// In an established stream, a read may be this far from where it was expected, in bytes.
const JITTER: u64 = 1024 * 1024;
/// Continuations that establish a stream.
const ESTABLISHED: u32 = 2;
/// A stream that was not read for so many reads of its handle is given up.
const IDLE_ACCESSES: u64 = 64;
/// Equal distances in a row that make a stride.
const STRIDE_REPEATS: u32 = 2;
/// Places fetched ahead of a strided reader: at first, and at most.
const STRIDE_DEPTH_FIRST: u64 = 4;
const STRIDE_DEPTH_MAX: u64 = 64;
/// Objects up to this size are fetched whole by a read of their beginning, in one request.
pub(crate) const WHOLE_BYTES_MAX: u64 = 1024 * 1024;

/// Names a stream of a handle: what was fetched for it can be given up with it.
pub(crate) type StreamId = u64;

/// One read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes, not zero.
    pub(crate) len: u64,
    /// Whether the reader had to wait for the network.
    pub(crate) waited: bool,
}

/// What the memory budget allows at this moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most bytes ahead of one stream.
    pub(crate) window_max: u64,
    /// Memory is short.
    pub(crate) pressure: bool,
}

/// What to do after an access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The stream that the access belongs to.
    pub(crate) stream: StreamId,
    /// Byte ranges to fetch, in this order; they may be there already.
    pub(crate) fetch: Vec<Range<u64>>,
    /// Bytes for one request.
    pub(crate) part_bytes: u64,
    /// Streams whose fetches nobody wants any more.
    pub(crate) abandon: Vec<StreamId>,
}

/// The accesses of one handle so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefetcher {
    streams: Vec<Stream>,
    stride: Option<Stride>,
    /// The last access that continued no stream.
    last_jump: Option<u64>,
    last_distance: i64,
    repeats: u32,
    accesses: u64,
    serial: StreamId,
}

#[derive(Clone, Debug)]
struct Stream {
    id: StreamId,
    /// Where the next read is expected.
    next: u64,
    /// Fetched, or being fetched, up to here.
    issued: u64,
    window: u64,
    continued: u32,
    last_access: u64,
}

#[derive(Clone, Debug)]
struct Stride {
    id: StreamId,
    distance: i64,
    next: i64,
    /// Places ahead of `next` that were fetched.
    issued: u64,
    depth: u64,
}

/// The bytes to fetch for a read that found nothing: whole blocks, or a small object whole.
pub(crate) fn demand(access: &Access, size_bytes: u64) -> Range<u64> {
    if access.offset == 0 && size_bytes <= WHOLE_BYTES_MAX {
        return 0..size_bytes;
    }
    blocks(access.offset..access.offset + access.len, size_bytes)
}

/// The whole blocks that hold `bytes`, in bytes.
fn blocks(bytes: Range<u64>, size_bytes: u64) -> Range<u64> {
    bytes.start / BLOCK_BYTES * BLOCK_BYTES..bytes.end.next_multiple_of(BLOCK_BYTES).min(size_bytes)
}

fn part_bytes(window: u64) -> u64 {
    (window / 8).clamp(PART_MIN, PART_MAX) / BLOCK_BYTES * BLOCK_BYTES
}

impl Prefetcher {
    /// Notes an access inside an object of `size_bytes` and says what to fetch.
    pub(crate) fn access(&mut self, access: &Access, size_bytes: u64, limits: &Limits) -> Plan {
        let first = self.accesses == 0;
        self.accesses += 1;
        let mut plan = if let Some(at) = self.stream_of(access) {
            self.continue_stream(at, access, size_bytes, limits)
        } else if let Some(plan) = self.continue_stride(access, size_bytes, limits) {
            plan
        } else {
            self.begin_stream(access, first && access.offset == 0, size_bytes, limits)
        };
        self.give_up_idle(&mut plan);
        plan
    }

    /// What was planned for a stream from `from` on could not be started, and is planned anew at
    /// the next access.
    pub(crate) fn refused(&mut self, stream: StreamId, from: u64) {
        if let Some(stream) = self.streams.iter_mut().find(|known| known.id == stream) {
            stream.issued = stream.issued.min(from);
        }
        if let Some(stride) = self.stride.as_mut().filter(|known| known.id == stream) {
            stride.issued = 0;
        }
    }

    fn stream_of(&self, access: &Access) -> Option<usize> {
        let distance = |stream: &Stream| access.offset.abs_diff(stream.next);
        let fits = |stream: &&Stream| {
            let slack = if stream.continued >= ESTABLISHED { JITTER } else { 0 };
            let ahead = stream.issued.max(stream.next + slack);
            access.offset + slack >= stream.next && (access.offset < ahead || access.offset == stream.next)
        };
        let nearest = self.streams.iter().filter(fits).min_by_key(|stream| distance(stream))?.id;
        self.streams.iter().position(|stream| stream.id == nearest)
    }

    fn continue_stream(&mut self, at: usize, access: &Access, size_bytes: u64, limits: &Limits) -> Plan {
        let stream = &mut self.streams[at];
        stream.last_access = self.accesses;
        let end = access.offset + access.len;
        if end > stream.next {
            stream.next = end;
            stream.continued = stream.continued.saturating_add(1);
        }
        if stream.window == 0 && stream.continued >= ESTABLISHED {
            stream.window = WINDOW_FIRST;
        } else if limits.pressure {
            stream.window /= 2;
        } else if access.waited {
            stream.window *= if stream.window < WINDOW_STEEP { 4 } else { 2 };
        }
        stream.plan(size_bytes, limits)
    }

    fn begin_stream(&mut self, access: &Access, eager: bool, size_bytes: u64, limits: &Limits) -> Plan {
        self.serial += 1;
        let end = access.offset + access.len;
        let mut stream = Stream {
            id: self.serial,
            next: end,
            issued: end,
            window: if eager { WINDOW_FIRST } else { 0 },
            continued: if eager { ESTABLISHED } else { 0 },
            last_access: self.accesses,
        };
        let mut plan = stream.plan(size_bytes, limits);
        if self.streams.len() == STREAMS_MAX {
            let oldest = (0..STREAMS_MAX).min_by_key(|at| self.streams[*at].last_access).unwrap_or(0);
            plan.abandon.push(self.streams.swap_remove(oldest).id);
        }
        self.streams.push(stream);
        plan
    }

    /// An access that continues no stream: does it continue a stride, or make one?
    fn continue_stride(&mut self, access: &Access, size_bytes: u64, limits: &Limits) -> Option<Plan> {
        let distance = self.last_jump.map_or(0, |last| access.offset.cast_signed() - last.cast_signed());
        self.last_jump = Some(access.offset);
        self.repeats = if distance != 0 && distance == self.last_distance { self.repeats + 1 } else { 0 };
        self.last_distance = distance;
        if self.repeats < STRIDE_REPEATS {
            return None;
        }
        if self.stride.as_ref().is_none_or(|stride| stride.distance != distance) {
            self.serial += 1;
            self.stride = Some(Stride {
                id: self.serial,
                distance,
                next: access.offset.cast_signed(),
                issued: 0,
                depth: STRIDE_DEPTH_FIRST,
            });
        }
        self.stride.as_mut().map(|stride| stride.plan(access, size_bytes, limits))
    }

    fn give_up_idle(&mut self, plan: &mut Plan) {
        let accesses = self.accesses;
        self.streams.retain(|stream| {
            let idle = accesses - stream.last_access > IDLE_ACCESSES;
            if idle {
                plan.abandon.push(stream.id);
            }
            !idle
        });
    }
}

impl Stream {
    /// Brings what is fetched up to the window, in pieces that are worth a request.
    fn plan(&mut self, size_bytes: u64, limits: &Limits) -> Plan {
        if self.window > 0 {
            self.window = self.window.min(limits.window_max).max(BLOCK_BYTES);
        }
        let part = part_bytes(self.window).min(self.window);
        let mut plan = Plan { stream: self.id, part_bytes: part.max(BLOCK_BYTES), ..Plan::default() };
        if self.window == 0 {
            return plan;
        }
        let from = blocks(self.issued.max(self.next)..self.issued.max(self.next), size_bytes).end;
        // From a part's boundary to a part's boundary, so that large pieces stay aligned.
        let reach = self.next.saturating_add(self.window);
        let to = if reach >= size_bytes { size_bytes } else { reach / part.max(1) * part.max(1) };
        if from < to && (to == size_bytes || to - from >= part / 2) {
            plan.fetch.push(blocks(from..to, size_bytes));
            self.issued = to;
        }
        plan
    }
}

impl Stride {
    fn plan(&mut self, access: &Access, size_bytes: u64, limits: &Limits) -> Plan {
        let here = access.offset.cast_signed();
        self.issued = self.issued.saturating_sub(1);
        self.next = here;
        if limits.pressure {
            self.depth = (self.depth / 2).max(1);
        } else if access.waited {
            self.depth = (self.depth * 2).min(STRIDE_DEPTH_MAX);
        }
        let cost = access.len.next_multiple_of(BLOCK_BYTES);
        let depth = self.depth.min((limits.window_max / cost).max(1));
        let mut fetch: Vec<Range<u64>> = Vec::new();
        for step in self.issued + 1..=depth {
            let Some(place) =
                self.distance.checked_mul(step.cast_signed()).and_then(|by| here.checked_add(by))
            else {
                break;
            };
            let Ok(start) = u64::try_from(place) else { break };
            if start >= size_bytes {
                break;
            }
            self.issued = step;
            let place = blocks(start..start.saturating_add(access.len).min(size_bytes), size_bytes);
            match fetch.last_mut() {
                Some(last) if last.start <= place.end && place.start <= last.end => {
                    *last = last.start.min(place.start)..last.end.max(place.end);
                }
                _ => fetch.push(place),
            }
        }
        Plan { stream: self.id, fetch, part_bytes: PART_MIN, ..Plan::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * 1024;
    const GIB: u64 = 1024 * MIB;
    const LIMITS: Limits = Limits { window_max: WINDOW_MAX, pressure: false };

    /// Feeds reads of `len` at `offsets`, all of them waiting or none; the plans.
    fn feed(prefetcher: &mut Prefetcher, offsets: &[u64], len: u64, waited: bool) -> Vec<Plan> {
        let access = |offset: &u64| Access { offset: *offset, len, waited };
        offsets.iter().map(|offset| prefetcher.access(&access(offset), GIB, &LIMITS)).collect()
    }

    fn fetched(plans: &[Plan]) -> Vec<Range<u64>> {
        plans.iter().flat_map(|plan| plan.fetch.clone()).collect()
    }

    #[test]
    fn a_read_from_the_start_begins_the_window_at_once() {
        let plans = feed(&mut Prefetcher::default(), &[0], 128 * KIB, true);
        assert_eq!(fetched(&plans), vec![Range { start: 128 * KIB, end: MIB }]);
    }

    #[test]
    fn a_sequential_reader_gets_every_byte_once_and_in_order() {
        for (len, waited) in [(4 * KIB, false), (128 * KIB, true), (MIB, true), (100_000, true)] {
            let mut prefetcher = Prefetcher::default();
            let offsets: Vec<u64> = (0..(256 * MIB / len)).map(|n| n * len).collect();
            let fetched = fetched(&feed(&mut prefetcher, &offsets, len, waited));
            assert!(fetched[0].start <= len.next_multiple_of(BLOCK_BYTES));
            for pair in fetched.windows(2) {
                assert_eq!(pair[0].end, pair[1].start, "reads of {len}");
            }
            assert!(fetched.last().expect("some").end >= 256 * MIB, "reads of {len}");
        }
    }

    #[test]
    fn the_window_grows_only_while_the_reader_waits() {
        let window = |waited| {
            let mut prefetcher = Prefetcher::default();
            let offsets: Vec<u64> = (0..64).map(|n| n * MIB).collect();
            feed(&mut prefetcher, &offsets, MIB, waited);
            prefetcher.streams[0].window
        };
        assert_eq!(window(false), WINDOW_FIRST);
        assert_eq!(window(true), WINDOW_MAX);
    }

    #[test]
    fn the_window_shrinks_under_pressure_but_never_to_nothing() {
        let mut prefetcher = Prefetcher::default();
        feed(&mut prefetcher, &(0..64).map(|n| n * MIB).collect::<Vec<_>>(), MIB, true);
        let pressure = Limits { window_max: 8 * MIB, pressure: true };
        for n in 64..96 {
            prefetcher.access(&Access { offset: n * MIB, len: MIB, waited: true }, GIB, &pressure);
            assert!(prefetcher.streams[0].window <= 8 * MIB);
        }
        assert_eq!(prefetcher.streams[0].window, BLOCK_BYTES);
    }

    #[test]
    fn random_reads_fetch_nothing_ahead_and_one_block_each() {
        let mut prefetcher = Prefetcher::default();
        let mut state = 7_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let access =
                Access { offset: (state >> 20) % (GIB / 4096) * 4096 + 4096, len: 4096, waited: true };
            let access = Access { offset: access.offset.min(GIB - 4096), ..access };
            assert_eq!(prefetcher.access(&access, GIB, &LIMITS).fetch, []);
            let demand = demand(&access, GIB);
            assert_eq!(demand.end - demand.start, BLOCK_BYTES);
            assert!(demand.start <= access.offset && access.offset + access.len <= demand.end);
        }
        assert!(prefetcher.streams.len() <= STREAMS_MAX);
    }

    #[test]
    fn several_streams_in_one_handle_are_all_recognised() {
        let mut prefetcher = Prefetcher::default();
        let bases = [0, 100 * MIB, 200 * MIB, 300 * MIB];
        let offsets: Vec<u64> =
            (0..64).flat_map(|n| bases.iter().map(move |base| base + n * 128 * KIB)).collect();
        let fetched = fetched(&feed(&mut prefetcher, &offsets, 128 * KIB, true));
        for base in bases {
            let end = fetched.iter().filter(|range| range.start >= base && range.start < base + 90 * MIB);
            assert!(end.map(|range| range.end).max() >= Some(base + 8 * MIB), "stream at {base}");
        }
    }

    #[test]
    fn requests_that_overtake_each_other_stay_one_stream() {
        let mut prefetcher = Prefetcher::default();
        let mut offsets: Vec<u64> = (0..128).map(|n| n * 128 * KIB).collect();
        offsets[8..].chunks_mut(4).for_each(<[u64]>::reverse);
        feed(&mut prefetcher, &offsets, 128 * KIB, true);
        assert_eq!(prefetcher.streams.len(), 1);
    }

    #[test]
    fn a_stride_fetches_the_places_ahead_and_only_them() {
        for (stride, len) in [(10 * MIB, 4096), (3 * MIB, 256 * KIB)] {
            let mut prefetcher = Prefetcher::default();
            let offsets: Vec<u64> = (0..20).map(|n| n * stride + MIB).collect();
            let fetched = fetched(&feed(&mut prefetcher, &offsets, len, true));
            assert!(fetched.len() > 16, "stride {stride}");
            for range in &fetched {
                assert!((range.start - MIB).is_multiple_of(stride), "{range:?} is off the stride {stride}");
                assert_eq!(range.end - range.start, len.next_multiple_of(BLOCK_BYTES));
            }
            assert!(fetched.is_sorted_by(|a, b| a.end <= b.start), "each place once");
        }
    }

    #[test]
    fn a_backward_reader_is_fetched_ahead_of_backward() {
        let mut prefetcher = Prefetcher::default();
        let offsets: Vec<u64> = (0..100).rev().map(|n| n * 128 * KIB).collect();
        let fetched = fetched(&feed(&mut prefetcher, &offsets, 128 * KIB, true));
        assert!(fetched.iter().all(|range| range.end <= 98 * 128 * KIB));
        assert_eq!(fetched.last().map(|range| range.start), Some(0));
        let bytes: u64 = fetched.iter().map(|range| range.end - range.start).sum();
        assert!(bytes <= 100 * 128 * KIB, "nothing twice");
    }

    #[test]
    fn what_was_refused_is_planned_again() {
        let mut prefetcher = Prefetcher::default();
        let plan = &feed(&mut prefetcher, &[0], 128 * KIB, true)[0];
        prefetcher.refused(plan.stream, plan.fetch[0].start);
        let again = feed(&mut prefetcher, &[128 * KIB], 128 * KIB, false);
        assert_eq!(fetched(&again)[0].start, 256 * KIB);
    }

    #[test]
    fn streams_that_were_left_are_given_up() {
        let mut prefetcher = Prefetcher::default();
        let id = feed(&mut prefetcher, &[0], MIB, true)[0].stream;
        let elsewhere: Vec<u64> = (0..=IDLE_ACCESSES).map(|n| 512 * MIB + n * MIB).collect();
        let plans = feed(&mut prefetcher, &elsewhere, MIB, true);
        assert!(plans.iter().any(|plan| plan.abandon.contains(&id)));
    }

    #[test]
    fn nothing_is_fetched_behind_the_end() {
        let mut prefetcher = Prefetcher::default();
        let size = 3 * MIB + 5;
        let mut end = 0;
        for n in 0..=size / 4096 {
            let len = 4096.min(size - n * 4096);
            let plan = prefetcher.access(&Access { offset: n * 4096, len, waited: true }, size, &LIMITS);
            end = plan.fetch.iter().map(|range| range.end).max().unwrap_or(end);
            assert!(end <= size);
        }
        assert_eq!(end, size);
    }

    #[test]
    fn small_objects_come_whole_and_large_ones_by_blocks() {
        let access = |offset, len| Access { offset, len, waited: true };
        assert_eq!(demand(&access(0, 10), MIB), 0..MIB);
        assert_eq!(demand(&access(5, 10), MIB), 0..BLOCK_BYTES);
        assert_eq!(demand(&access(0, 10), MIB + 1), 0..BLOCK_BYTES);
        assert_eq!(demand(&access(MIB, 1), MIB + 1), MIB..MIB + 1);
    }
}
