//! The store in memory: the reference that all others are tested against.
//!
//! One map, one lock. What S3 promises to be atomic is atomic here because it happens under
//! that lock, and for no cleverer reason.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::stream;
use parking_lot::Mutex;
use sha2::Digest;
use sha2::Sha256;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;

/// An object store that lives in this process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// `ETag`s are hashes of the content, so that the same content is the same version again.
    content_etags: bool,
    /// The server's own clock; `None`: the system's.
    clock: Option<Arc<dyn Clock>>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    uploads: BTreeMap<UploadId, Upload>,
    /// Counts versions and uploads, so that no two ever share a name.
    serial: u64,
}

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    meta: ObjectMeta,
}

#[derive(Debug)]
struct Upload {
    key: ObjectKey,
    attributes: PutAttributes,
    parts: BTreeMap<u32, (ETag, Bytes)>,
}

impl State {
    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn check(&self, key: &ObjectKey, expect: &Expect) -> Result<(), StoreError> {
        match (expect, self.objects.get(key)) {
            (Expect::Absent, Some(_)) => Err(StoreError::AlreadyExists { key: key.clone() }),
            (Expect::Version(etag), Some(object)) if object.meta.etag == *etag => Ok(()),
            (Expect::Version(_), _) => Err(StoreError::Changed { key: key.clone() }),
            (Expect::Absent, None) => Ok(()),
        }
    }

    /// A version's name, never used before.
    fn next_version(&mut self) -> String {
        format!("v{}", self.next_serial())
    }

    fn insert(
        &mut self,
        key: &ObjectKey,
        body: Bytes,
        version: &str,
        modified: SystemTime,
        attributes: &PutAttributes,
    ) -> ETag {
        let etag = ETag::from_server(version);
        let meta = ObjectMeta {
            size_bytes: body.len() as u64,
            etag: etag.clone(),
            modified,
            metadata: attributes.metadata.clone(),
            checksum: None,
        };
        self.objects.insert(key.clone(), Object { body, meta });
        etag
    }
}

fn hash(content: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(content)[..16])
}

impl MemoryStore {
    /// One whose `ETag`s are hashes of the content, as those of S3 are.
    #[must_use]
    pub fn with_content_etags() -> Self {
        Self { content_etags: true, ..Self::default() }
    }

    /// One whose own clock is this one.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    fn now(&self) -> SystemTime {
        self.clock.as_ref().map_or_else(|| SystemClock.now(), |clock| clock.now())
    }

    /// Writes the way that another client of the bucket would: no precondition.
    /// Not part of the trait, so that dsfs itself cannot reach it.
    pub fn overwrite_out_of_band(&self, key: &ObjectKey, body: Bytes) -> ETag {
        let mut state = self.state.lock();
        let version = if self.content_etags { hash(&body) } else { state.next_version() };
        state.insert(key, body, &version, self.now(), &PutAttributes::default())
    }

    /// Deletes the way that another client of the bucket would.
    pub fn delete_out_of_band(&self, key: &ObjectKey) {
        self.state.lock().objects.remove(key);
    }

    /// Every object's key and body, for comparing a whole bucket.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<ObjectKey, Bytes> {
        self.state.lock().objects.iter().map(|(key, object)| (key.clone(), object.body.clone())).collect()
    }

    /// The number of multipart uploads that are neither completed nor aborted.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn describe(&self) -> String {
        "memory".into()
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let state = self.state.lock();
        let mut page = ListPage::default();
        let after = request.continuation.as_deref().or(request.start_after.as_deref()).unwrap_or("");
        for (key, object) in &state.objects {
            let Some(rest) = request.prefix.strip(key) else { continue };
            // A common prefix sorts as itself, not as the keys that it stands for.
            let folded = match rest.split_once('/') {
                Some((level, _)) if request.one_level => Some(format!("{}{level}/", request.prefix)),
                _ => None,
            };
            let name = folded.as_deref().unwrap_or(key.as_str());
            if name <= after || page.prefixes.last().is_some_and(|last| last.as_str() == name) {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == usize::from(request.keys_max) {
                let last_object = page.objects.last().map_or("", |object| object.key.as_str());
                let last_prefix = page.prefixes.last().map_or("", KeyPrefix::as_str);
                page.continuation = Some(last_object.max(last_prefix).to_owned());
                break;
            }
            match folded {
                Some(prefix) => page.prefixes.push(KeyPrefix::from_listing(&prefix)),
                None => page.objects.push(ListedObject {
                    key: key.clone(),
                    size_bytes: object.meta.size_bytes,
                    etag: Some(object.meta.etag.clone()),
                    modified: object.meta.modified,
                }),
            }
        }
        Ok(page)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let state = self.state.lock();
        let object = state.objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        Ok(object.meta.clone())
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let state = self.state.lock();
        let object = state.objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
        if object.meta.etag != *etag {
            return Err(StoreError::Changed { key: key.clone() });
        }
        if range.is_empty() || range.end > object.meta.size_bytes {
            return Err(StoreError::Rejected { key: key.to_string(), reason: format!("range {range:?}") });
        }
        let body = object.body.slice(range.start as usize..range.end as usize);
        Ok(Box::pin(stream::iter([Ok(body)])))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        // Check and insert under one lock: this is the atomicity that S3 promises.
        let mut state = self.state.lock();
        state.check(key, expect)?;
        let version = if self.content_etags { hash(&body) } else { state.next_version() };
        Ok(state.insert(key, body, &version, self.now(), attributes))
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let mut state = self.state.lock();
        let id = UploadId(format!("upload-{}", state.next_serial()));
        let upload = Upload { key: key.clone(), attributes: attributes.clone(), parts: BTreeMap::new() };
        state.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let mut state = self.state.lock();
        let etag = ETag::from_server(&format!("p{}", state.next_serial()));
        let open = state.uploads.get_mut(upload).filter(|open| open.key == *key);
        let open = open.ok_or_else(|| StoreError::NoSuchUpload { key: key.clone() })?;
        open.parts.insert(number, (etag.clone(), body));
        Ok(PartReceipt { number, etag, checksum: None })
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let mut state = self.state.lock();
        let open = state.uploads.get(upload).filter(|open| open.key == *key);
        let open = open.ok_or_else(|| StoreError::NoSuchUpload { key: key.clone() })?;
        let rejected = |reason: &str| StoreError::Rejected { key: key.to_string(), reason: reason.into() };
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(rejected("the list of parts is empty or out of order"));
        }
        let mut body = BytesMut::new();
        for (at, part) in parts.iter().enumerate() {
            let (etag, bytes) = open.parts.get(&part.number).ok_or_else(|| rejected("InvalidPart"))?;
            if *etag != part.etag {
                return Err(rejected("InvalidPart"));
            }
            if at + 1 < parts.len() && (bytes.len() as u64) < crate::store::PART_BYTES_MIN {
                return Err(rejected("EntityTooSmall"));
            }
            body.extend_from_slice(bytes);
        }
        state.check(key, expect)?;
        let upload = state.uploads.remove(upload).expect("found above, under the same lock");
        let version = match self.content_etags {
            true => format!("{}-{}", hash(&body), parts.len()),
            false => state.next_version(),
        };
        Ok(state.insert(key, body.freeze(), &version, self.now(), &upload.attributes))
    }

    async fn abort_multipart(&self, _key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.state.lock().uploads.remove(upload);
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        match state.objects.get(key) {
            None => Ok(()),
            Some(object) if object.meta.etag == *etag => {
                state.objects.remove(key);
                Ok(())
            }
            Some(_) => Err(StoreError::Changed { key: key.clone() }),
        }
    }
}
