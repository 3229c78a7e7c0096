//! The object store seam: one trait, and everything that implements it.
//!
//! [`ObjectStore`] mirrors S3's requests one to one: no cursors, no caching, and no retries
//! hidden in an implementation. Limits, retries and faults are *wrappers* that implement the
//! same trait, so that any stack of them can stand where a plain store does.
//!
//! The trait is made so that the mistakes dsfs exists to prevent cannot be written down:
//!
//! * **There is no unconditional put.** Every write names what it expects to find
//!   ([`Expect`]): nothing, or one version by its `ETag`.
//! * **Every get names an `ETag`.** A read that mixes two versions cannot be expressed.
//!
//! [`memory`] is small enough to be obviously right, which makes it the specification: every
//! other implementation must pass the same `contract` suite.

pub mod memory;
pub mod s3;
pub mod directory;
pub mod circuit;
pub mod link;
pub mod retry;
pub mod fault;
#[cfg(debug_assertions)]
pub mod failpoint;
pub mod guarantee;
mod patience;
pub mod rate;
pub mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::Stream;
use futures_util::StreamExt;

use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;

pub(crate) use self::patience::DELETE_WITHIN;

/// Metadata key of the transaction that wrote an object: how a lost reply is told from a conflict.
pub const META_TXID: &str = "dsfs-txid";
/// What the ids of plain uploads begin with: those are not commits, and no log names them.
pub const UPLOAD_TXID_PREFIX: &str = "upload-";
/// Metadata key of an object's SHA-256, 64 lower-case hexadecimal digits; of objects that went up in one
/// request.
pub const META_SHA256: &str = "dsfs-sha256";
/// Metadata key of a file's modification time: seconds with a fraction, rclone's convention.
pub const META_MTIME: &str = "mtime";

/// Metadata key of the size in bytes of an object's parts but the last: what a checksum of parts needs.
pub const META_PART_BYTES: &str = "dsfs-part-bytes";

/// Smallest part of a multipart upload but the last, in bytes: S3's rule.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Most parts in a multipart upload: S3's rule.
pub const PARTS_MAX: u64 = 10_000;

/// The body of a get, in the pieces in which it arrived.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// An object store, as far as dsfs needs one.
///
/// Cancelling: dropping a returned future abandons the request; a write may or may not have
/// been carried out.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync + 'static {
    /// Names the store to a person, without secrets: `s3://assets at https://…`.
    fn describe(&self) -> String;

    /// Shows that the store can be reached and the bucket be listed: what a mount checks first.
    ///
    /// # Errors
    /// [`StoreError::NoBucket`], [`StoreError::Denied`], [`StoreError::Unavailable`].
    async fn check_access(&self) -> Result<(), StoreError>;

    /// One page of a listing, in the byte order of the keys; but some servers (SeaweedFS) list
    /// directory by directory, `b/1` before `b.d/1`, so rely on it only within one directory.
    ///
    /// # Errors
    /// As [`Self::check_access`]. A prefix without keys is an empty page, not an error.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// Size, `ETag`, time and metadata of an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError>;

    /// The bytes of `range`, which is not empty and lies inside the object, from the version
    /// named by `etag`. The stream yields exactly that many bytes, or ends in an error.
    ///
    /// # Errors
    /// [`StoreError::Changed`] if the object is another version now, [`StoreError::NotFound`].
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError>;

    /// The whole object in the version named by `etag`, of `size_bytes`, and what a HEAD would say of
    /// it: one request where the store can.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn get_whole(
        &self,
        key: &ObjectKey,
        etag: &ETag,
        size_bytes: u64,
    ) -> Result<(ObjectMeta, ByteStream), StoreError> {
        head_and_get(self, key, etag, size_bytes).await
    }

    /// Writes a whole object, if what is there is what `expect` says.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], [`StoreError::Changed`]: nothing was written.
    /// [`StoreError::Contended`]: nothing was written, ask again. [`StoreError::Unavailable`]:
    /// it may have been written.
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError>;

    /// Begins a multipart upload. Nothing is visible before [`Self::complete_multipart`].
    ///
    /// # Errors
    /// As for [`Self::put`], but never a conflict.
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError>;

    /// Uploads part `number` (from 1); the same number again replaces it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`] if the upload was completed or aborted.
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError>;

    /// Makes the parts one object, if what is there is what `expect` says. After a conflict
    /// the upload is still open, and the caller aborts it.
    ///
    /// # Errors
    /// As for [`Self::put`], and [`StoreError::NoSuchUpload`]; after [`StoreError::Contended`]
    /// the upload has to be made anew.
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError>;

    /// Gives a multipart upload up; one that is unknown counts as given up.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Denied`].
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError>;

    /// Deletes the version named by `etag`. An object that is not there counts as deleted.
    ///
    /// Stores that cannot check the condition atomically compare first: see `Guarantee`.
    ///
    /// # Errors
    /// [`StoreError::Changed`]: another version is there, and was left alone. [`StoreError::Unavailable`], also if
    /// so much time has passed since it was asked for that somebody else may have put the same there.
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError>;

    /// As [`Self::delete`], of a version that is to go whoever has put it there, as one that a listing named some
    /// time ago: the wait for its turn, which can be hours at a low rate, does not make it late.
    ///
    /// # Errors
    /// As [`Self::delete`].
    async fn delete_listed(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        self.delete(key, etag).await
    }

    /// Writes and deletions whose answer was lost and that were asked again, since the store was made: each of
    /// them may still be carried out late, although its repetition was answered.
    fn lost_answers(&self) -> u64 {
        0
    }
}

/// What a write expects to find at its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: `If-None-Match: *`.
    Absent,
    /// This version: `If-Match`.
    Version(ETag),
}

/// What is stored beside an object's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutAttributes {
    /// `x-amz-meta-*`: lower-case ASCII keys, ASCII values.
    pub metadata: BTreeMap<String, String>,
    /// The SHA-256 of the body, from whoever knows it: a store that signs bodies need not compute it
    /// again. It is not kept.
    pub body_sha256: Option<[u8; 32]>,
}

/// One request for a page of keys.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: KeyPrefix,
    /// Fold keys with a further `/` into [`ListPage::prefixes`].
    pub one_level: bool,
    /// Where the page before this one ended.
    pub continuation: Option<String>,
    /// Only keys behind this one, which need not exist. Some servers do not know this and begin at
    /// the first key all the same.
    pub start_after: Option<String>,
    /// At most this many keys and prefixes; the server may give fewer. S3's limit is 1000.
    pub keys_max: u16,
}

impl ListRequest {
    /// The first page of all keys below a prefix.
    #[must_use]
    pub fn recursive(prefix: KeyPrefix) -> Self {
        Self { prefix, one_level: false, continuation: None, start_after: None, keys_max: 1000 }
    }

    /// The first page of one directory level.
    #[must_use]
    pub fn one_level(prefix: KeyPrefix) -> Self {
        Self { one_level: true, ..Self::recursive(prefix) }
    }
}

/// One page of keys.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The objects.
    pub objects: Vec<ListedObject>,
    /// With [`ListRequest::one_level`]: the next level's prefixes, ending in `/`.
    pub prefixes: Vec<KeyPrefix>,
    /// Where the next page begins; `None` on the last.
    pub continuation: Option<String>,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its version; absent from the listings of some servers.
    pub etag: Option<ETag>,
    /// When it was last written.
    pub modified: SystemTime,
}

/// An object as HEAD shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its version.
    pub etag: ETag,
    /// When it was last written.
    pub modified: SystemTime,
    /// `x-amz-meta-*`, keys in lower case.
    pub metadata: BTreeMap<String, String>,
    /// The checksum that the server keeps of it, if it keeps one that dsfs knows and tells it.
    pub checksum: Option<StoredChecksum>,
}

/// The CRC32C that a server keeps of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredChecksum {
    /// Of its bytes.
    Whole(u32),
    /// Of the CRC32Cs of its parts, four bytes each, most significant first.
    OfParts {
        /// The checksum of the checksums.
        crc: u32,
        /// How many parts it has.
        parts: u32,
    },
}

impl StoredChecksum {
    /// Reads `x-amz-checksum-crc32c`: base64, with `-N` behind it for an object of N parts.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (base64, parts) = match text.split_once('-') {
            Some((base64, parts)) => (base64, Some(parts.parse().ok()?)),
            None => (text, None),
        };
        let bytes = data_encoding::BASE64.decode(base64.as_bytes()).ok()?;
        let crc = u32::from_be_bytes(bytes.try_into().ok()?);
        Some(parts.map_or(Self::Whole(crc), |parts| Self::OfParts { crc, parts }))
    }
}

/// The name of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct UploadId(pub String);

/// What the server gave for one part; needed again to complete the upload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartReceipt {
    /// From 1.
    pub number: u32,
    /// The part's `ETag`.
    pub etag: ETag,
    /// The checksum that was sent along, as S3 writes it (base64), if one was.
    pub checksum: Option<String>,
}

/// Why a request failed, sorted by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("no object at {key}")]
    NotFound {
        /// What was asked for.
        key: ObjectKey,
    },
    /// There is no such bucket (or directory, for `file://`).
    #[error("{bucket} does not exist")]
    NoBucket {
        /// The bucket or directory.
        bucket: String,
    },
    /// A create found an object; nothing was changed.
    #[error("object {key} already exists")]
    AlreadyExists {
        /// The key that is taken.
        key: ObjectKey,
    },
    /// The object is another version than the one named, or is gone; nothing was changed.
    #[error("object {key} is no longer the version that was expected")]
    Changed {
        /// The object.
        key: ObjectKey,
    },
    /// Two writers met (409 `ConditionalRequestConflict`); nothing was changed. Ask again.
    #[error("another writer is at {key} at this moment")]
    Contended {
        /// The object.
        key: ObjectKey,
    },
    /// The multipart upload was completed or aborted before, by somebody.
    #[error("the multipart upload of {key} does not exist any more")]
    NoSuchUpload {
        /// The object that it would have become.
        key: ObjectKey,
    },
    /// Credentials are missing, wrong, expired, or do not allow this.
    #[error("access to {key} was denied: {reason}")]
    Denied {
        /// The object, or the bucket.
        key: String,
        /// The server's own words.
        reason: String,
    },
    /// The server refuses this request and would refuse it again.
    #[error("the server refused the request for {key}: {reason}")]
    Rejected {
        /// The object, or the bucket.
        key: String,
        /// The server's own words.
        reason: String,
    },
    /// The remote does not answer, and is not asked before it does again: nothing was sent.
    #[error("the remote has not answered since {}: {reason}", clock_time(*since))]
    Offline {
        /// When that was noticed.
        since: SystemTime,
        /// What the last probe met.
        reason: String,
    },
    /// Worth asking again: throttling, a timeout, 5xx, a broken connection. A write may have
    /// been carried out.
    #[error("object store unavailable for {key}: {reason}")]
    Unavailable {
        /// The object, or the bucket.
        key: String,
        /// What happened, with its causes.
        reason: String,
        /// Whether the server said that it has too many requests.
        throttled: bool,
        /// The cause, where nothing came from the server at all; its own words have none.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
}

impl StoreError {
    /// An [`StoreError::Unavailable`] without a further cause.
    pub fn unavailable(key: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Unavailable { key: key.to_string(), reason: reason.to_string(), throttled: false, source: None }
    }

    /// An [`StoreError::Unavailable`] because nothing came from the server in time.
    pub fn unanswered(key: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::not_from_the_server(key, reason, std::io::Error::from(std::io::ErrorKind::TimedOut))
    }

    /// An [`StoreError::Unavailable`] because nothing came from the server, for this `cause`.
    pub(crate) fn not_from_the_server(
        key: impl fmt::Display,
        reason: impl fmt::Display,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable {
            key: key.to_string(),
            reason: reason.to_string(),
            throttled: false,
            source: Some(Arc::new(cause)),
        }
    }

    /// Whether nothing came from the server: it, or the line to it, is down.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unavailable { source: Some(_), .. })
    }

    /// Whether the remote could not be asked, as opposed to having refused.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.is_transient() || matches!(self, Self::Offline { .. })
    }

    pub(crate) fn offline(outage: &circuit::Outage) -> Self {
        Self::Offline { since: outage.since, reason: outage.reason.clone() }
    }

    /// Whether the same request may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Contended { .. })
    }

    /// Whether this may be said to who asks, whatever it is that is asked for: credentials that have
    /// expired, a wrong clock, another server where the bucket was. The answer to a HEAD has no words for
    /// it, a bare 400 or 404. [`ObjectStore::check_access`] tells.
    #[must_use]
    pub fn may_be_about_access(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. }
                | Self::Rejected { .. }
                | Self::NotFound { .. }
                | Self::NoBucket { .. }
                | Self::NoSuchUpload { .. }
        )
    }

    /// Whether the server has more requests than it can take.
    #[must_use]
    pub fn asks_to_slow_down(&self) -> bool {
        matches!(self, Self::Unavailable { throttled: true, .. })
    }
}

/// A time of day as a message has it: in UTC, to the second.
fn clock_time(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%F %T UTC").to_string(),
        Err(_) => "an unknown time".to_owned(),
    }
}

/// [`ObjectStore::get_whole`] for stores that have no one request for it.
pub(crate) async fn head_and_get<S: ObjectStore + ?Sized>(
    store: &S,
    key: &ObjectKey,
    etag: &ETag,
    size_bytes: u64,
) -> Result<(ObjectMeta, ByteStream), StoreError> {
    let meta = store.head(key).await?;
    if meta.etag != *etag || meta.size_bytes != size_bytes {
        return Err(StoreError::Changed { key: key.clone() });
    }
    let body: ByteStream = match size_bytes {
        0 => Box::pin(futures_util::stream::empty()),
        _ => store.get(key, etag, 0..size_bytes).await?,
    };
    Ok((meta, body))
}

/// Collects a body of known length.
///
/// # Errors
/// The stream's own.
pub async fn collect(mut body: ByteStream, len: usize) -> Result<Bytes, StoreError> {
    let Some(first) = body.next().await else { return Ok(Bytes::new()) };
    let first = first?;
    if first.len() >= len {
        return Ok(first); // one piece: no copy
    }
    let mut whole = BytesMut::with_capacity(len);
    whole.extend_from_slice(&first);
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.freeze())
}

/// All pages of a listing, for prefixes that are known to be small.
///
/// # Errors
/// The first page's that fails.
pub async fn list_all(store: &dyn ObjectStore, mut request: ListRequest) -> Result<ListPage, StoreError> {
    let mut all = ListPage::default();
    loop {
        let page = store.list(&request).await?;
        all.objects.extend(page.objects);
        all.prefixes.extend(page.prefixes);
        match page.continuation {
            Some(next) => request.continuation = Some(next),
            None => return Ok(all),
        }
    }
}
