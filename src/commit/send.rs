//! Putting one object where nothing is, and knowing for certain whether that happened.
//!
//! Every object of a commit carries the commit's txid as metadata, its file's time, and its SHA-256 if it went
//! up in one request. So when an answer is lost, or a repetition finds something in the way, one HEAD tells
//! whether it is ours, and of this content. An object that is not is never touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;

use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::Progress;
use crate::commit::content::Content;
use crate::commit::memory::Memory;
use crate::commit::places::Places;
use crate::commit::plan::part_bytes_for;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::record::ContentId;
use crate::record::format_mtime;
use crate::store::Expect;
use crate::store::META_MTIME;
use crate::store::META_PART_BYTES;
use crate::store::META_SHA256;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;
use crate::store::guarantee::Guarantee;

/// Metadata key of an object that keeps a key for a large one: see [`Sender::complete`].
pub(crate) const META_CLAIM: &str = "dsfs-claim";
/// How often one write is tried: its own conditions make a repetition harmless.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// What is to be written where.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub key: ObjectKey,
    pub size_bytes: u64,
    /// Its content; `None`: not known beforehand, and not recorded with it. An upload in parts has to
    /// say what it will be before its first byte is sent, so that of large files only the log knows it.
    pub cid: Option<ContentId>,
    pub modified: std::time::SystemTime,
    pub expect: Expect,
}

impl Job {
    /// Whether an object has this job's content: by that, or, where it is not recorded, by what it is a copy of.
    fn is_content_of(&self, meta: &ObjectMeta) -> bool {
        let is = |name: &str, value: &str| meta.metadata.get(name).is_some_and(|found| found == value);
        match self.cid {
            Some(cid) => is(META_SHA256, &cid.sha256_hex()),
            None => meta.size_bytes == self.size_bytes && is(META_MTIME, &format_mtime(self.modified)),
        }
    }
}

/// A multipart upload whose parts are all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uploaded {
    pub id: UploadId,
    pub parts: Vec<PartReceipt>,
}

/// Why one object could not be written.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Something that is not ours is there.
    Taken { found: Option<ETag> },
    /// Anything else.
    Other(CommitError),
}

impl From<StoreError> for SendError {
    fn from(err: StoreError) -> Self {
        Self::Other(err.into())
    }
}

impl From<crate::staging::StagingError> for SendError {
    fn from(err: crate::staging::StagingError) -> Self {
        Self::Other(err.into())
    }
}

/// What is at a key, from the commit's point of view.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Ours(ETag),
    OurClaim(ETag),
    Other(ETag),
}

/// Writes the objects of one commit.
pub(crate) struct Sender {
    store: Arc<dyn ObjectStore>,
    txid: String,
    guarantee: Guarantee,
    part_bytes: u64,
    /// How much is done at once.
    pub workers: usize,
    /// Bodies under way, over all files.
    places: Places,
    /// For bodies.
    memory: Memory,
    progress: Arc<dyn Progress>,
    /// Whether the answer to a write was lost: then that one may still be carried out, even if a
    /// repetition of it was answered.
    pub ambiguous: AtomicBool,
    /// The same of a deletion.
    pub lost_deletion: AtomicBool,
}

/// What a journal is told of a multipart upload, so that it can go on after a crash.
#[async_trait]
pub(crate) trait UploadNotes: Sync {
    async fn begun(&self, id: &UploadId, part_bytes: u64) -> Result<(), CommitError>;
    fn part(&self, part: &PartReceipt) -> Result<(), CommitError>;
}

/// What was said in the bucket before anything is deleted.
#[async_trait]
pub(crate) trait Announced: Sync {
    /// Whether it holds others off, and has since it was written; asked after each look, right before the
    /// deletion that follows from it.
    async fn still_stands(&self) -> Result<(), CommitError>;
}

/// A plain upload announces nothing.
struct Unannounced;

#[async_trait]
impl Announced for Unannounced {
    async fn still_stands(&self) -> Result<(), CommitError> {
        Ok(())
    }
}

impl Sender {
    /// For the commit `txid`.
    pub fn new(
        store: &Arc<dyn ObjectStore>,
        txid: &str,
        guarantee: Guarantee,
        options: &CommitOptions,
        progress: &Arc<dyn Progress>,
    ) -> Self {
        let workers = options.workers.max(1);
        Self {
            store: Arc::clone(store),
            txid: txid.to_owned(),
            guarantee,
            part_bytes: options.part_bytes,
            workers,
            places: Places::new(workers),
            memory: Memory::new(options.memory_bytes, options.part_bytes),
            progress: Arc::clone(progress),
            ambiguous: AtomicBool::new(false),
            lost_deletion: AtomicBool::new(false),
        }
    }

    fn attributes(&self, job: &Job) -> PutAttributes {
        let pairs = [(META_TXID, self.txid.clone()), (META_MTIME, format_mtime(job.modified))];
        let content = job.cid.map(|cid| (META_SHA256, cid.sha256_hex()));
        let pairs = pairs.into_iter().chain(content);
        let metadata = pairs.map(|(key, value)| (key.to_owned(), value)).collect();
        PutAttributes { metadata, ..PutAttributes::default() }
    }

    /// Looks at what is at a key now, whatever its content is.
    pub async fn look(&self, key: &ObjectKey) -> Result<Found, StoreError> {
        self.look_for(key, |_| true).await
    }

    /// Looks at what is at a job's key now. Ours is only what the job writes: a transfer that goes on has put
    /// earlier contents of its files there, with the same txid.
    async fn look_at(&self, job: &Job) -> Result<Found, StoreError> {
        self.look_for(&job.key, |meta| job.is_content_of(meta)).await
    }

    async fn look_for(
        &self,
        key: &ObjectKey,
        is_wanted: impl FnOnce(&ObjectMeta) -> bool + Send,
    ) -> Result<Found, StoreError> {
        match self.store.head(key).await {
            Ok(meta) => Ok(match self.whose(&meta) {
                Found::Ours(etag) if !is_wanted(&meta) => Found::Other(etag),
                found @ (Found::Nothing | Found::Ours(_) | Found::OurClaim(_) | Found::Other(_)) => found,
            }),
            Err(StoreError::NotFound { .. }) => Ok(Found::Nothing),
            Err(err) => Err(err),
        }
    }

    /// Whose an object is, whatever its content is.
    pub fn whose(&self, meta: &ObjectMeta) -> Found {
        let etag = meta.etag.clone();
        if meta.metadata.get(META_TXID) != Some(&self.txid) {
            Found::Other(etag)
        } else if meta.metadata.contains_key(META_CLAIM) {
            Found::OurClaim(etag)
        } else {
            Found::Ours(etag)
        }
    }

    /// On a server that ignores conditions: looks first. A race is seen afterwards, by [`Self::confirm`].
    async fn look_before(&self, job: &Job) -> Result<Option<ETag>, SendError> {
        if self.guarantee != Guarantee::BestEffort {
            return Ok(None);
        }
        match (self.look_at(job).await?, &job.expect) {
            (Found::Ours(etag), _) => Ok(Some(etag)),
            (Found::Nothing, Expect::Absent) | (Found::OurClaim(_), _) => Ok(None),
            (Found::Other(etag), Expect::Version(expected)) if etag == *expected => Ok(None),
            (Found::Nothing, Expect::Version(_)) => Err(SendError::Taken { found: None }),
            (Found::Other(found), _) => Err(SendError::Taken { found: Some(found) }),
        }
    }

    async fn confirm(&self, job: &Job, etag: ETag) -> Result<ETag, SendError> {
        if self.guarantee != Guarantee::BestEffort {
            return Ok(etag);
        }
        match self.look_at(job).await? {
            Found::Ours(etag) => Ok(etag),
            Found::OurClaim(found) | Found::Other(found) => Err(SendError::Taken { found: Some(found) }),
            Found::Nothing => Err(SendError::Taken { found: None }),
        }
    }

    /// After a conflict or a lost answer: `Some` if it was us, `None` if the write can be tried again.
    async fn resolve(&self, job: &Job) -> Result<Option<ETag>, SendError> {
        match (self.look_at(job).await?, &job.expect) {
            (Found::Ours(etag), _) => Ok(Some(etag)),
            (Found::Nothing, Expect::Absent) => Ok(None),
            (Found::Other(etag) | Found::OurClaim(etag), Expect::Version(expected)) if etag == *expected => {
                Ok(None)
            }
            (Found::Other(etag) | Found::OurClaim(etag), _) => Err(SendError::Taken { found: Some(etag) }),
            (Found::Nothing, Expect::Version(_)) => Err(SendError::Taken { found: None }),
        }
    }

    /// Writes a whole object with one request.
    pub async fn put(&self, job: &Job, body: Bytes) -> Result<ETag, SendError> {
        self.put_with(job, body, self.attributes(job)).await
    }

    async fn put_with(&self, job: &Job, body: Bytes, attributes: PutAttributes) -> Result<ETag, SendError> {
        if let Some(etag) = self.look_before(job).await? {
            return Ok(etag);
        }
        let mut tried = 0;
        loop {
            tried += 1;
            let err = match self.store.put(&job.key, body.clone(), &job.expect, &attributes).await {
                Ok(etag) => return self.confirm(job, etag).await,
                Err(err) => err,
            };
            if !self.is_ambiguous(&err) {
                return Err(err.into());
            }
            if let Some(etag) = self.resolve(job).await? {
                return Ok(etag);
            }
            if tried == TRIES {
                return Err(err.into());
            }
            tokio::time::sleep(PAUSE * tried).await;
        }
    }

    /// Whether a HEAD has to tell what happened.
    fn is_ambiguous(&self, err: &StoreError) -> bool {
        if matches!(err, StoreError::Unavailable { .. }) {
            self.ambiguous.store(true, Ordering::Relaxed);
        }
        matches!(err, StoreError::AlreadyExists { .. } | StoreError::Changed { .. }) || err.is_transient()
    }

    /// Writes a file that fits into one part. Its content becomes known by that.
    pub async fn put_file(&self, job: &Job, content: &Content) -> Result<(ETag, ContentId), SendError> {
        let _place = self.places.take(job.size_bytes).await;
        let _memory = self.memory.reserve(job.size_bytes).await;
        let (body, cid) = content.whole(&self.memory).await?;
        let job = Job { cid: Some(cid), ..job.clone() };
        let mut attributes = self.attributes(&job);
        attributes.body_sha256 = Some(*cid.sha256());
        let etag = self.put_with(&job, body, attributes).await?;
        self.progress.sent(job.size_bytes);
        Ok((etag, cid))
    }

    /// Sends all parts of a large file, but those that `known` says are there. Nothing becomes visible.
    pub async fn upload(
        &self,
        job: &Job,
        content: &Content,
        known: Option<(Uploaded, u64)>,
        notes: &dyn UploadNotes,
    ) -> Result<Uploaded, SendError> {
        if let Some((known, part_bytes)) = known {
            match self.upload_parts(job, content, known, part_bytes, notes).await {
                Err(SendError::Other(CommitError::Store(StoreError::NoSuchUpload { .. }))) => {}
                answer => return answer,
            }
        }
        let part_bytes = part_bytes_for(job.size_bytes, self.part_bytes);
        let mut attributes = self.attributes(job);
        attributes.metadata.insert(META_PART_BYTES.into(), part_bytes.to_string());
        let mut tried = 0;
        let id = loop {
            tried += 1;
            match self.store.create_multipart(&job.key, &attributes).await {
                Err(err) if err.is_transient() && tried < TRIES => tokio::time::sleep(PAUSE * tried).await,
                answer => break answer?,
            }
        };
        if let Err(err) = notes.begun(&id, part_bytes).await {
            // Nobody would know of it: give it up while its name is known.
            self.store.abort_multipart(&job.key, &id).await.ok();
            return Err(SendError::Other(err));
        }
        let fresh = Uploaded { id, parts: Vec::new() };
        self.upload_parts(job, content, fresh, part_bytes, notes).await
    }

    async fn upload_parts(
        &self,
        job: &Job,
        content: &Content,
        known: Uploaded,
        part_bytes: u64,
        notes: &dyn UploadNotes,
    ) -> Result<Uploaded, SendError> {
        let count = u32::try_from(job.size_bytes.div_ceil(part_bytes)).map_err(|err| {
            let reason = err.to_string();
            StoreError::Rejected { key: job.key.to_string(), reason }
        })?;
        let have: BTreeMap<u32, PartReceipt> =
            known.parts.into_iter().map(|part| (part.number, part)).collect();
        let missing: Vec<u32> = (1..=count).filter(|number| !have.contains_key(number)).collect();
        let failure = Mutex::new(None);
        let parts = Mutex::new(have);
        stream::iter(missing)
            .for_each_concurrent(self.workers, |number| {
                let (failure, parts, id) = (&failure, &parts, &known.id);
                async move {
                    if failure.lock().is_some() {
                        return;
                    }
                    match self.upload_part(job, content, id, number, part_bytes).await {
                        Ok(part) => {
                            if let Err(err) = notes.part(&part) {
                                failure.lock().get_or_insert(SendError::Other(err));
                            }
                            parts.lock().insert(number, part);
                        }
                        Err(err) => {
                            failure.lock().get_or_insert(err);
                        }
                    }
                }
            })
            .await;
        match failure.into_inner() {
            Some(err) => Err(err),
            None => Ok(Uploaded { id: known.id, parts: parts.into_inner().into_values().collect() }),
        }
    }

    async fn upload_part(
        &self,
        job: &Job,
        content: &Content,
        id: &UploadId,
        number: u32,
        part_bytes: u64,
    ) -> Result<PartReceipt, SendError> {
        let offset = u64::from(number - 1) * part_bytes;
        let len = part_bytes.min(job.size_bytes - offset);
        let _place = self.places.take(len).await;
        let _memory = self.memory.reserve(len).await;
        let body = content.bytes(offset, len, &self.memory).await?;
        let mut tried = 0;
        loop {
            tried += 1;
            match self.store.put_part(&job.key, id, number, body.clone()).await {
                Ok(part) => {
                    self.progress.sent(len);
                    return Ok(part);
                }
                Err(err) if err.is_transient() && tried < TRIES => tokio::time::sleep(PAUSE * tried).await,
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// Makes an upload an object.
    ///
    /// Where Complete does not honour its condition but Put does ([`Guarantee::SinglePut`]), the key
    /// is claimed first: a small object, created if nothing is there. From then on every other
    /// careful writer finds the key taken, and Complete replaces a version that is ours: its content
    /// is the commit's id, so that no other object has its `ETag`.
    pub async fn complete(
        &self,
        job: &Job,
        content: &Content,
        mut upload: Uploaded,
        notes: &dyn UploadNotes,
    ) -> Result<ETag, SendError> {
        let claim = match self.look_before(job).await? {
            Some(etag) => Claim::Done(etag),
            None => self.claim(job).await?,
        };
        let job = &match claim {
            Claim::Done(etag) => {
                // Under another upload, before a crash.
                self.store.abort_multipart(&job.key, &upload.id).await.ok();
                return Ok(etag);
            }
            Claim::Held(etag) => Job { expect: Expect::Version(etag), ..job.clone() },
            Claim::NotNeeded => job.clone(),
        };
        let mut tried = 0;
        loop {
            tried += 1;
            // Not every server that honours If-Match on Put does so here: look right before, at least.
            if matches!(job.expect, Expect::Version(_))
                && let Some(etag) = self.resolve(job).await?
            {
                self.store.abort_multipart(&job.key, &upload.id).await.ok();
                return Ok(etag);
            }
            let done = self.store.complete_multipart(&job.key, &upload.id, &upload.parts, &job.expect).await;
            let err = match done {
                Ok(etag) => return self.confirm(job, etag).await,
                Err(err) => err,
            };
            let gone = matches!(err, StoreError::NoSuchUpload { .. } | StoreError::Contended { .. });
            if !gone && !self.is_ambiguous(&err) {
                return Err(err.into());
            }
            if let Some(etag) = self.resolve(job).await? {
                // It may have been completed under another upload, before a crash.
                self.store.abort_multipart(&job.key, &upload.id).await.ok();
                return Ok(etag);
            }
            if tried == TRIES {
                return Err(err.into());
            }
            if gone {
                // The parts are lost with it (409 asks for this too): send them again.
                self.store.abort_multipart(&job.key, &upload.id).await.ok();
                upload = self.upload(job, content, None, notes).await?;
            } else {
                tokio::time::sleep(PAUSE * tried).await;
            }
        }
    }

    async fn claim(&self, job: &Job) -> Result<Claim, SendError> {
        if self.guarantee != Guarantee::SinglePut || job.expect != Expect::Absent {
            return Ok(Claim::NotNeeded);
        }
        match self.look_at(job).await? {
            Found::Ours(etag) => return Ok(Claim::Done(etag)),
            Found::OurClaim(etag) => return Ok(Claim::Held(etag)),
            Found::Other(found) => return Err(SendError::Taken { found: Some(found) }),
            Found::Nothing => {}
        }
        let mut attributes = self.attributes(job);
        attributes.metadata.insert(META_CLAIM.into(), "1".into());
        let body = Bytes::copy_from_slice(self.txid.as_bytes());
        match self.put_with(job, body, attributes).await {
            Ok(etag) => Ok(Claim::Held(etag)),
            // The answer to our own claim was lost, and it is there.
            Err(SendError::Taken { found }) => match self.look_at(job).await? {
                Found::OurClaim(etag) => Ok(Claim::Held(etag)),
                Found::Ours(etag) => Ok(Claim::Done(etag)),
                Found::Nothing | Found::Other(_) => Err(SendError::Taken { found }),
            },
            Err(err) => Err(err),
        }
    }

    /// Removes what an upload has put at a key; anything else stays.
    pub async fn remove_ours(&self, key: &ObjectKey) -> Result<(), CommitError> {
        self.remove_announced(key, &Unannounced).await
    }

    /// Removes what this commit has put at a key, if that is still announced after the look; anything else
    /// stays.
    pub async fn remove_announced(
        &self,
        key: &ObjectKey,
        announced: &dyn Announced,
    ) -> Result<(), CommitError> {
        let mut tried = 0;
        loop {
            tried += 1;
            let err = match self.look(key).await {
                Ok(Found::Ours(etag) | Found::OurClaim(etag)) => {
                    announced.still_stands().await?;
                    match self.store.delete(key, &etag).await {
                        Ok(()) => return Ok(()),
                        Err(err) => {
                            if matches!(err, StoreError::Unavailable { .. }) {
                                self.lost_deletion.store(true, Ordering::Relaxed);
                            }
                            err
                        }
                    }
                }
                Ok(Found::Nothing | Found::Other(_)) => return Ok(()),
                Err(err) => err,
            };
            let again = err.is_transient() || matches!(err, StoreError::Changed { .. });
            if !again || tried == TRIES {
                return Err(err.into());
            }
            tokio::time::sleep(PAUSE * tried).await;
        }
    }
}

enum Claim {
    NotNeeded,
    Held(ETag),
    Done(ETag),
}
