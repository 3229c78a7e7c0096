//! A large file that comes in pieces: each has its checksum and counts once it is there, and one request
//! brings several, since every request costs the server and us more than its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::OnceCell;

use crate::name::ETag;
use crate::store::ObjectMeta;
use crate::transfer::TransferError;
use crate::transfer::download::Against;
use crate::transfer::download::DownloadFile;
use crate::transfer::fetch::Written;
use crate::transfer::partial::Partial;
use crate::transfer::partial::PieceMap;

/// One request brings so many bytes of a large file at most, unless a single piece is larger.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
/// What is left is cut so that every worker has so many requests of this size still to make: they get
/// smaller towards the end, where one that takes long would be waited for alone.
const REQUESTS_LEFT_PER_WORKER: u64 = 2;
/// Part sizes that uploaders use unless told otherwise, in MiB: boto3 and the AWS CLI, rclone, s3fs, the
/// AWS SDKs for Java and Go, s5cmd, and round ones.
const USUAL_PARTS_MIB: [u64; 9] = [8, 5, 10, 16, 50, 25, 32, 64, 20];
/// Bytes of a file that are hashed in one turn.
const HASH_TURN_BYTES: u64 = 64 << 20;
/// Bytes of a file that are hashed at a time.
const HASH_BUFFER_BYTES: usize = 256 * 1024;

/// A file that comes in pieces.
pub(super) struct Large {
    pub file: DownloadFile,
    pub meta: ObjectMeta,
    pub piece_bytes: u64,
    pub against: Against,
    /// Opened by whoever comes first.
    pub open: OnceCell<Open>,
    /// Pieces that nobody has brought yet.
    pub left: AtomicU64,
}

pub(super) struct Open {
    pub partial: Mutex<Option<Partial>>,
    pub file: fs::File,
    pub path: PathBuf,
    pub map: PieceMap,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub crcs: BTreeMap<u64, u32>,
    /// Hashes the pieces in their order; absent while somebody is at it.
    pub hasher: Option<Sha256>,
    pub hashed: u64,
}

impl Large {
    pub fn len_of(&self, index: u64) -> u64 {
        self.piece_bytes.min(self.file.size_bytes.saturating_sub(index * self.piece_bytes))
    }

    /// Where pieces are in the file.
    pub fn bytes_of(&self, pieces: &Range<u64>) -> Range<u64> {
        pieces.start * self.piece_bytes..(pieces.end * self.piece_bytes).min(self.file.size_bytes)
    }
}

/// Takes down each piece as soon as all of it was written.
pub(super) struct PieceSums<'a> {
    large: &'a Large,
    open: &'a Open,
    index: u64,
    /// Bytes of this piece that are still to come.
    left: u64,
    crc: u32,
}

impl<'a> PieceSums<'a> {
    pub fn new(large: &'a Large, open: &'a Open, index: u64) -> Self {
        Self { large, open, index, left: large.len_of(index), crc: 0 }
    }
}

impl Written for PieceSums<'_> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (these, next) = bytes.split_at(len);
            self.crc = crc32c::crc32c_append(self.crc, these);
            self.left -= these.len() as u64;
            bytes = next;
            if self.left == 0 {
                self.open.map.add(self.index, self.crc)?;
                self.open.state.lock().crcs.insert(self.index, self.crc);
                *self = Self::new(self.large, self.open, self.index + 1);
            }
        }
        Ok(())
    }
}

/// The size of the parts that an object was probably uploaded in, in bytes: the ETag of a multipart upload
/// ends with their number. Servers keep parts apart, and a request that begins within one costs them more
/// (AWS: "Use Amazon S3 byte-range fetches … aligned to part boundaries"). Nothing depends on it but speed.
pub(super) fn likely_part_bytes(etag: &ETag, size_bytes: u64) -> Option<u64> {
    let (_, count) = etag.as_str().rsplit_once('-')?;
    let count: u64 = count.parse().ok().filter(|count| *count > 1)?;
    USUAL_PARTS_MIB.into_iter().map(|mib| mib << 20).find(|bytes| size_bytes.div_ceil(*bytes) == count)
}

/// Cuts files into requests, in their order.
pub(super) fn requests(files: Vec<Arc<Large>>, workers: usize) -> Vec<(Arc<Large>, Range<u64>)> {
    let mut left_bytes: u64 = files.iter().map(|large| large.file.size_bytes).sum();
    let mut requests = Vec::new();
    for large in files {
        let count = large.file.size_bytes.div_ceil(large.piece_bytes);
        let mut at = 0;
        while at < count {
            let len = request_pieces(left_bytes, workers, large.piece_bytes).min(count - at);
            let pieces = at..at + len;
            at = pieces.end;
            let bytes = large.bytes_of(&pieces);
            left_bytes = left_bytes.saturating_sub(bytes.end - bytes.start);
            requests.push((Arc::clone(&large), pieces));
        }
    }
    requests
}

/// How many pieces the next request brings, of the bytes that are left.
fn request_pieces(left_bytes: u64, workers: usize, piece_bytes: u64) -> u64 {
    let bytes = left_bytes / (workers.max(1) as u64 * REQUESTS_LEFT_PER_WORKER);
    (bytes.min(REQUEST_BYTES_MAX) / piece_bytes).max(1)
}

/// The pieces that are not there, those that follow each other together.
pub(super) fn missing_of(pieces: &Range<u64>, is_there: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut gaps: Vec<Range<u64>> = Vec::new();
    for index in pieces.clone().filter(|index| !is_there(*index)) {
        match gaps.last_mut() {
            Some(gap) if gap.end == index => gap.end = index + 1,
            _ => gaps.push(index..index + 1),
        }
    }
    gaps
}

/// Hashes the pieces that are there and come next: they were written a moment ago, so that this reads
/// from memory. Whoever finds somebody at it leaves it to them.
pub(super) async fn hash_what_is_there(large: &Large, open: &Open) -> Result<(), TransferError> {
    loop {
        let (mut hasher, from, pieces) = {
            let mut state = open.state.lock();
            // In turns, between which this can be given up.
            let pieces = (state.hashed..).take_while(|index| state.crcs.contains_key(index)).count() as u64;
            let pieces = pieces.min((HASH_TURN_BYTES / large.piece_bytes).max(1));
            if pieces == 0 {
                return Ok(());
            }
            let Some(hasher) = state.hasher.take() else { return Ok(()) };
            (hasher, state.hashed, pieces)
        };
        let range =
            from * large.piece_bytes..((from + pieces) * large.piece_bytes).min(large.file.size_bytes);
        let hashed = crate::commit::blocking(|| hash(&open.file, range, &mut hasher));
        hashed.map_err(|source| TransferError::io(&open.path, source))?;
        {
            let mut state = open.state.lock();
            state.hasher = Some(hasher);
            state.hashed = from + pieces;
        }
        tokio::task::yield_now().await;
    }
}

fn hash(file: &fs::File, range: Range<u64>, hasher: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(HASH_BUFFER_BYTES as u64) as usize;
        let Some(buffer) = buffer.get_mut(..len) else { break };
        file.read_exact_at(buffer, at)?;
        hasher.update(&*buffer);
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn requests_are_large_while_much_is_left() {
        let pieces = |left_mib, workers| request_pieces(left_mib * MIB, workers, 8 * MIB);
        assert_eq!(pieces(2048, 8), 8);
        assert_eq!(pieces(512, 8), 4);
        assert_eq!(pieces(100, 8), 1);
        assert_eq!(pieces(0, 0), 1);
        assert_eq!(request_pieces(u64::MAX, 1, 64 * MIB), 1);
    }

    #[test]
    fn the_number_of_parts_tells_their_size_if_it_is_a_usual_one() {
        let likely = |etag: &str, mib| likely_part_bytes(&ETag::from_server(etag), mib * MIB);
        assert_eq!(likely("\"0123456789abcdef0123456789abcdef-3\"", 102), Some(50 * MIB));
        assert_eq!(likely("abc-13", 102), Some(8 * MIB));
        assert_eq!(likely("abc-21", 102), Some(5 * MIB));
        assert_eq!(likely("abc-102", 102), None, "parts of 1 MiB are below the minimum of S3");
        for not_of_parts in ["abc", "abc-", "abc-x", "abc-0", "abc-1", "1-2-three"] {
            assert_eq!(likely(not_of_parts, 102), None, "{not_of_parts}");
        }
    }

    #[test]
    fn pieces_that_are_missing_are_asked_for_together() {
        assert_eq!(missing_of(&(2..9), |index| [0, 3, 4, 8].contains(&index)), [2..3, 5..8]);
        assert!(missing_of(&(2..4), |_| true).is_empty());
        assert_eq!(missing_of(&(2..4), |_| false).len(), 1);
    }
}
