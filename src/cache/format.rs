//! The cache's files, byte for byte. Pure: bytes in, bytes out.
//!
//! All integers are little endian; all checksums are CRC32C (Castagnoli). A file's name is the
//! hexadecimal [`VersionId`], of which the first two digits are the fan-out directory:
//!
//! ```text
//! blocks/5f/03…9a.data   the object's bytes at their own offsets; holes where blocks are absent;
//!                        exactly as long as the object, so that it can stand for the object
//! blocks/5f/03…9a.map    header, then one entry for each block
//! blocks/5f/03…9a.one    an object of at most one block: header, then the object's bytes; or these
//!                        alone, and the entry of block 0 as the extended attribute "user.dsfs"
//! blocks/5f/03…9a.pin    the version is pinned (whether it is cached or not), by whom the text says
//! blocks/5f/03…9a.tmp-…  being made; renamed into place when complete
//!
//! header (64 bytes)
//!    0   8  magic: "dsfsmap\n" or "dsfsone\n"
//!    8   4  format version, 1
//!   12   4  block size in bytes
//!   16   8  object size in bytes
//!   24  32  version id
//!   56   4  .one: checksum of the object's bytes;  .map: zero
//!   60   4  checksum of bytes 0 to 59
//!
//! entry (8 bytes; that of block i is at 64 + 8 i)
//!    0   4  checksum of the block's bytes
//!    4   4  checksum of: version id, i as u64, the four bytes before this
//!           eight zero bytes: the block is absent
//! ```
//!
//! Every entry vouches for itself, so a map that is torn anywhere is a map with fewer blocks,
//! never one with wrong ones. A block whose entry is right and whose bytes are not (torn, or
//! damaged) is found by its checksum. An entry of another object, or at another place, is
//! found by its own.

use std::fmt;

use sha2::Digest;
use sha2::Sha256;

use crate::block;
use crate::block::BLOCK_BYTES;
use crate::name::ETag;
use crate::name::ObjectKey;

/// The format's version. Files of another are removed, not read.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Length of the header in bytes.
pub(crate) const HEADER_BYTES: usize = 64;
/// Length of a map entry in bytes.
pub(crate) const ENTRY_BYTES: usize = 8;

/// One version of one object of one store: what a cache file is named by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId([u8; 32]);

impl VersionId {
    /// The id of the version `etag` of `key` in the store that `store_identity` names.
    #[must_use]
    pub fn new(store_identity: &str, key: &ObjectKey, etag: &ETag) -> Self {
        let mut hash = Sha256::new();
        for text in [store_identity, key.as_str(), etag.as_str()] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// A number that tells ids apart evenly.
    pub(crate) fn spread(&self) -> usize {
        usize::from(self.0[self.0.len() - 1])
    }

    /// The id that [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a file of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A map beside a data file.
    Map,
    /// A small object, whole; with the checksum of its bytes.
    One {
        /// CRC32C of the object's bytes.
        crc: u32,
    },
}

/// The head of a map or of a small object's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which of the two.
    pub(crate) kind: Kind,
    /// Size of the object in bytes.
    pub(crate) size_bytes: u64,
    /// Whose it is.
    pub(crate) id: VersionId,
}

const MAGIC_MAP: &[u8; 8] = b"dsfsmap\n";
const MAGIC_ONE: &[u8; 8] = b"dsfsone\n";

impl Header {
    /// The header as it is written.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (magic, crc) = match self.kind {
            Kind::Map => (MAGIC_MAP, 0),
            Kind::One { crc } => (MAGIC_ONE, crc),
        };
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(magic);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[24..56].copy_from_slice(&self.id.0);
        out[56..60].copy_from_slice(&crc.to_le_bytes());
        let own = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads a header; `None` if it is damaged, foreign, or of another format version or block size.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        if u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60])
            || u32_at(bytes, 8) != FORMAT_VERSION
            || u64::from(u32_at(bytes, 12)) != BLOCK_BYTES
        {
            return None;
        }
        let kind = match &bytes[0..8] {
            magic if magic == MAGIC_MAP => Kind::Map,
            magic if magic == MAGIC_ONE => Kind::One { crc: u32_at(bytes, 56) },
            _ => return None,
        };
        let size_bytes = u64::from_le_bytes(bytes[16..24].try_into().ok()?);
        let id = VersionId(bytes[24..56].try_into().ok()?);
        Some(Self { kind, size_bytes, id })
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Length in bytes of the map of an object.
pub(crate) fn map_len(size_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + block::count(size_bytes) * ENTRY_BYTES as u64
}

/// Where in a map the entry of a block is.
pub(crate) fn entry_offset(index: u64) -> u64 {
    HEADER_BYTES as u64 + index * ENTRY_BYTES as u64
}

/// The entry of a block with this checksum, as a little-endian number; never zero in practice,
/// and harmless if it is.
pub(crate) fn entry(id: &VersionId, index: u64, crc: u32) -> u64 {
    let mut check = crc32c::crc32c(&id.0);
    check = crc32c::crc32c_append(check, &index.to_le_bytes());
    check = crc32c::crc32c_append(check, &crc.to_le_bytes());
    u64::from(check) << 32 | u64::from(crc)
}

/// The block's checksum, if the entry is present and vouches for itself.
pub(crate) fn entry_crc(id: &VersionId, index: u64, raw: u64) -> Option<u32> {
    let crc = raw as u32;
    (raw != 0 && raw == entry(id, index, crc)).then_some(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: &str) -> VersionId {
        VersionId::new("s3://b", &ObjectKey::from_listing(key), &ETag::from_server("e"))
    }

    #[test]
    fn ids_keep_their_parts_apart() {
        let new =
            |a: &str, b: &str, c: &str| VersionId::new(a, &ObjectKey::from_listing(b), &ETag::from_server(c));
        assert_ne!(new("a", "bc", "d"), new("ab", "c", "d"));
        assert_ne!(new("a", "b", "cd"), new("a", "bc", "d"));
        assert_eq!(VersionId::parse(&id("k").to_string()), Some(id("k")));
        for bad in ["", "00", "zz", &"0".repeat(63), &"A".repeat(64)] {
            assert_eq!(VersionId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_header_survives_the_round_trip_and_no_bit_flip() {
        for kind in [Kind::Map, Kind::One { crc: 77 }] {
            let header = Header { kind, size_bytes: 5_000_000_000, id: id("k") };
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Some(header));
            assert_eq!(Header::decode(&bytes[..63]), None);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::decode(&damaged), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn another_format_version_is_not_read() {
        let mut bytes = Header { kind: Kind::Map, size_bytes: 1, id: id("k") }.encode();
        bytes[8] = 2;
        let own = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&own.to_le_bytes());
        assert_eq!(Header::decode(&bytes), None);
    }

    #[test]
    fn an_entry_vouches_for_its_object_its_place_and_itself() {
        let raw = entry(&id("k"), 3, 0xDEAD_BEEF);
        assert_eq!(entry_crc(&id("k"), 3, raw), Some(0xDEAD_BEEF));
        assert_eq!(entry_crc(&id("k"), 4, raw), None);
        assert_eq!(entry_crc(&id("l"), 3, raw), None);
        assert_eq!(entry_crc(&id("k"), 3, 0), None);
        for bit in 0..64 {
            assert_eq!(entry_crc(&id("k"), 3, raw ^ (1 << bit)), None, "bit {bit}");
        }
    }
}
