//! A directory level as bytes, for the catalog on disk: JSON in one zstd frame with a checksum.
//!
//! ```text
//! {"marker": false,
//!  "files":    [[name, size in bytes, ETag or null, modified: seconds, nanoseconds], …],
//!  "dirs":     [name, …],
//!  "hidden":   [[key, reason], …],
//!  "withheld": [[key, reason], …]}
//! ```
//!
//! Keys are not in it: they are the level's own key and the name. Pure.

use std::borrow::Cow;
use std::io;
use std::io::Read;
use std::time::Duration;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;

/// zstd's fastest ordinary level: names that count up shrink well at any.
const COMPRESSION_LEVEL: i32 = 1;
/// A level that claims to be larger, unpacked, is damaged: ten million files.
const BODY_BYTES_MAX: u64 = 2 << 30;

#[derive(Serialize, Deserialize)]
struct Body<'b> {
    marker: bool,
    #[serde(borrow)]
    files: Vec<File<'b>>,
    #[serde(borrow)]
    dirs: Vec<Cow<'b, str>>,
    hidden: Vec<(String, String)>,
    withheld: Vec<(String, String)>,
}

#[derive(Serialize, Deserialize)]
struct File<'b>(#[serde(borrow)] Cow<'b, str>, u64, #[serde(borrow)] Option<Cow<'b, str>>, i64, u32);

fn unix_time(time: SystemTime) -> (i64, u32) {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            // Counted from the second before, so that the fraction is never negative.
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-whole, 0),
                nanos => (-whole - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

fn system_time(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)?
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)?
    };
    whole.checked_add(Duration::from_nanos(u64::from(nanos)))
}

fn pairs(keys: &[HiddenKey]) -> Vec<(String, String)> {
    keys.iter().map(|hidden| (hidden.key.clone(), hidden.reason.clone())).collect()
}

fn hidden(pairs: Vec<(String, String)>) -> Vec<HiddenKey> {
    pairs.into_iter().map(|(key, reason)| HiddenKey { key, reason }).collect()
}

/// The bytes of a level.
///
/// # Errors
/// Out of memory, in effect.
pub(super) fn encode(listing: &Listing) -> io::Result<Vec<u8>> {
    let mut body = Body {
        marker: listing.marker,
        files: Vec::with_capacity(listing.entries.len()),
        dirs: Vec::new(),
        hidden: pairs(&listing.hidden),
        withheld: pairs(&listing.withheld),
    };
    for (name, entry) in &listing.entries {
        match entry {
            RemoteEntry::Directory => body.dirs.push(Cow::Borrowed(name)),
            RemoteEntry::File(file) => {
                let (seconds, nanos) = unix_time(file.modified);
                let etag = file.etag.as_ref().map(|etag| Cow::Borrowed(etag.as_str()));
                body.files.push(File(Cow::Borrowed(name), file.size_bytes, etag, seconds, nanos));
            }
        }
    }
    let mut packer = zstd::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
    packer.include_checksum(true)?;
    serde_json::to_writer(&mut packer, &body)?;
    packer.finish()
}

/// The level of `prefix` that [`encode`] wrote.
///
/// # Errors
/// The bytes are damaged.
pub(super) fn decode(bytes: &[u8], prefix: &KeyPrefix) -> io::Result<Listing> {
    let mut text = Vec::new();
    zstd::Decoder::new(bytes)?.take(BODY_BYTES_MAX).read_to_end(&mut text)?;
    let body: Body<'_> = serde_json::from_slice(&text)?;
    let mut listing = Listing {
        marker: body.marker,
        hidden: hidden(body.hidden),
        withheld: hidden(body.withheld),
        ..Listing::default()
    };
    for File(name, size_bytes, etag, seconds, nanos) in body.files {
        let modified = system_time(seconds, nanos).ok_or(io::ErrorKind::InvalidData)?;
        let file = RemoteFile {
            key: ObjectKey::from_listing(&format!("{prefix}{name}")),
            size_bytes,
            etag: etag.map(|etag| ETag::from_server(&etag)),
            modified,
        };
        listing.entries.insert((&*name).into(), RemoteEntry::File(file));
    }
    listing.entries.extend(body.dirs.into_iter().map(|name| ((&*name).into(), RemoteEntry::Directory)));
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, etag: Option<&str>, modified: SystemTime) -> RemoteEntry {
        RemoteEntry::File(RemoteFile {
            key: ObjectKey::from_listing(&format!("d/run/{name}")),
            size_bytes: u64::MAX,
            etag: etag.map(ETag::from_server),
            modified,
        })
    }

    #[test]
    fn a_level_comes_back_as_it_was() {
        let epoch = SystemTime::UNIX_EPOCH;
        let mut listing = Listing { marker: true, ..Listing::default() };
        for (name, entry) in [
            ("a\n\"b\" é", file("a\n\"b\" é", Some("0-1"), epoch + Duration::new(7, 250_000_000))),
            ("old", file("old", None, epoch - Duration::new(7, 250_000_000))),
            ("whole", file("whole", None, epoch - Duration::from_secs(7))),
            ("sub", RemoteEntry::Directory),
        ] {
            listing.entries.insert(name.into(), entry);
        }
        listing.hidden.push(HiddenKey { key: "d/run//".into(), reason: "why".into() });
        let prefix = KeyPrefix::from_listing("d/run/");
        let again = decode(&encode(&listing).unwrap(), &prefix).unwrap();
        assert_eq!(again.entries, listing.entries);
        assert_eq!((again.marker, again.hidden), (true, listing.hidden));
    }

    #[test]
    fn damage_is_found() {
        let prefix = KeyPrefix::from_listing("d/run/");
        let mut bytes = encode(&Listing::default()).unwrap();
        assert!(decode(&bytes[..bytes.len() - 1], &prefix).is_err());
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(decode(&bytes, &prefix).is_err());
    }
}
