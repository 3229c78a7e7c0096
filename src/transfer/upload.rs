//! From local files into a store: each object is created where nothing is.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use ulid::Ulid;

use crate::commit;
use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::blocking;
use crate::commit::content::Content;
use crate::commit::content::sha256;
use crate::commit::places::Places;
use crate::commit::places::SHARES;
use crate::commit::send::Found;
use crate::commit::send::Job;
use crate::commit::send::SendError;
use crate::commit::send::Sender;
use crate::commit::send::UploadNotes;
use crate::commit::send::Uploaded;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::record::format_mtime;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::META_MTIME;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::PartReceipt;
use crate::store::StoreError;
use crate::store::UPLOAD_TXID_PREFIX;
use crate::store::UploadId;
use crate::transfer::Transfer;
use crate::transfer::TransferError;
use crate::transfer::Watch;
use crate::transfer::notes::Begun;
use crate::transfer::notes::BegunUpload;
use crate::transfer::notes::UploadLine;
use crate::transfer::notes::UploadLog;
use crate::transfer::run;
use crate::transfer::run::OnFailure;

/// One local file and the object that it becomes.
#[derive(Clone, Debug)]
pub struct UploadFile {
    /// The file.
    pub source: PathBuf,
    /// Its name below the prefix.
    pub path: RelPath,
    /// The object.
    pub key: ObjectKey,
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed.
    pub modified: SystemTime,
}

/// What an upload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UploadReport {
    /// Files that are there now, those of an interrupted run included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that an interrupted run had finished.
    pub done_before: u64,
    /// Files that took the place of another version.
    pub replaced: u64,
}

/// Uploads files to their keys, all of them below `prefix`, which is listed once. `source` names where
/// they come from, so that an interrupted run is recognised.
///
/// # Errors
/// Before anything is sent: [`TransferError::InTheWay`]. [`TransferError::Overtaken`]: what this upload
/// had created is gone again, unless it overwrites: what it had replaced cannot come back. Otherwise the
/// files that are complete stay.
pub async fn upload(
    transfer: &Transfer,
    prefix: &KeyPrefix,
    source: &Path,
    files: Vec<UploadFile>,
) -> Result<UploadReport, TransferError> {
    let source = std::path::absolute(source).map_err(|err| TransferError::io(source, err))?;
    let new_txid = format!("{UPLOAD_TXID_PREFIX}{}", Ulid::from_parts(millis(), rand::random()));
    let mut begun = Begun { txid: new_txid.clone(), uploads: BTreeMap::new() };
    let mut log = None;
    if let Some(notes) = &transfer.notes {
        let opened = notes.upload(prefix.as_str(), &source, &new_txid);
        let (opened, found) = opened.map_err(|err| TransferError::io(&notes.dir, err))?;
        (log, begun) = (Some(opened), found);
    }
    let interrupted = begun.txid != new_txid;
    let count = files.len() as u64;
    let planned = tokio::select! {
        planned = preflight(transfer, prefix, files, interrupted.then_some(&begun)) => planned,
        () = transfer.options.cancel.cancelled() => Err(TransferError::Cancelled { done: 0, files: count }),
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(err) => {
            if let Some(log) = log.filter(|_| !interrupted) {
                log.forget();
            }
            return Err(err);
        }
    };
    let report = planned.report.clone();
    transfer.watch.total(report.files, report.bytes);
    let missing_bytes: u64 = planned.missing.iter().map(|(file, _)| file.size_bytes).sum();
    transfer.watch.moved(report.bytes - missing_bytes);
    let begun_of = |file: &UploadFile| Some(begun.uploads.get(&file.path)?.0.id.clone());
    let open = planned.missing.iter().filter_map(|(file, _)| Some((file.key.clone(), begun_of(file)?)));
    let open = open.collect();
    let job = Arc::new(Run {
        sender: sender(transfer, &begun.txid),
        transfer: transfer.clone(),
        places: Places::new(transfer.options.workers),
        log,
        begun: Mutex::new(begun.uploads),
        open: Mutex::new(open),
        created: Mutex::new(planned.created),
        done: AtomicU64::new(report.done_before),
        files: report.files,
    });
    let outcome = match job.run(planned.missing).await {
        Ok(()) => Ok(()),
        Err(err) => Err(err.interrupted(transfer, job.done.load(Ordering::Relaxed), report.files).await),
    };
    let done = job.tidy(outcome.as_ref().err()).await;
    if let Err(TransferError::Overtaken { keys, .. }) = outcome {
        return Err(TransferError::Overtaken { keys, done });
    }
    outcome.map(|()| report)
}

/// Creates one object; with `overwrite` it takes the place of the version that is there.
///
/// # Errors
/// [`TransferError::InTheWay`], [`TransferError::Overtaken`], the store's.
pub async fn upload_bytes(transfer: &Transfer, key: &ObjectKey, body: Bytes) -> Result<ETag, TransferError> {
    let expect = match (transfer.store.head(key).await, transfer.options.overwrite) {
        (Err(StoreError::NotFound { .. }), _) => Expect::Absent,
        (Ok(meta), true) => Expect::Version(meta.etag),
        (Ok(_), false) => return Err(TransferError::InTheWay { what: vec![key.to_string()] }),
        (Err(err), _) => return Err(err.into()),
    };
    let txid = format!("{UPLOAD_TXID_PREFIX}{}", Ulid::from_parts(millis(), rand::random()));
    let cid = Some(ContentId::from_sha256(sha256(&body)));
    let size_bytes = body.len() as u64;
    let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis());
    let job = Job { key: key.clone(), size_bytes, cid, modified, expect };
    let sent = sender(transfer, &txid).put(&job, body).await;
    sent.map_err(|err| of_sending(key, err))
}

fn millis() -> u64 {
    use crate::clock::Clock;
    let now = crate::clock::SystemClock.now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

fn sender(transfer: &Transfer, txid: &str) -> Sender {
    let options = CommitOptions {
        workers: transfer.options.workers,
        part_bytes: transfer.options.part_bytes,
        memory_bytes: transfer.options.memory_bytes,
        ..CommitOptions::default()
    };
    let progress: Arc<dyn commit::Progress> = Arc::new(Sent(Arc::clone(&transfer.watch)));
    Sender::new(&transfer.store, txid, transfer.options.guarantee, &options, &progress)
}

/// Passes on what a sender says.
struct Sent(Arc<dyn Watch>);

impl commit::Progress for Sent {
    fn sent(&self, bytes: u64) {
        self.0.moved(bytes);
    }
}

fn of_sending(key: &ObjectKey, err: SendError) -> TransferError {
    match err {
        SendError::Taken { .. } => TransferError::Overtaken { keys: vec![key.clone()], done: 0 },
        SendError::Other(err) => err.into(),
    }
}

struct Planned {
    missing: Vec<(UploadFile, Expect)>,
    report: UploadReport,
    /// What an interrupted run has created.
    created: Vec<ObjectKey>,
}

async fn preflight(
    transfer: &Transfer,
    prefix: &KeyPrefix,
    files: Vec<UploadFile>,
    interrupted: Option<&Begun>,
) -> Result<Planned, TransferError> {
    let there = listed(transfer, prefix, &files).await?;
    let bytes = files.iter().map(|file| file.size_bytes).sum();
    let report = UploadReport { files: files.len() as u64, bytes, ..UploadReport::default() };
    let mut planned = Planned { missing: Vec::new(), report, created: Vec::new() };
    let mut in_the_way = Vec::new();
    for file in files {
        let Some(etag) = there.get(&file.key) else {
            planned.missing.push((file, Expect::Absent));
            continue;
        };
        let needs_look = interrupted.is_some() || (transfer.options.overwrite && etag.is_none());
        let meta = if needs_look { look(transfer, &file.key).await? } else { None };
        let ours = interrupted.zip(meta.as_ref()).map(|(begun, meta)| whose(meta, &begun.txid, &file));
        match (ours, etag.clone().or(meta.map(|meta| meta.etag))) {
            (Some(Whose::Done), _) => {
                planned.report.done_before += 1;
                planned.created.push(file.key);
            }
            (Some(Whose::Claim), _) => planned.missing.push((file, Expect::Absent)),
            (_, Some(etag)) if transfer.options.overwrite => {
                planned.report.replaced += 1;
                planned.missing.push((file, Expect::Version(etag)));
            }
            _ => in_the_way.push(file.key.to_string()),
        }
    }
    if in_the_way.is_empty() { Ok(planned) } else { Err(TransferError::InTheWay { what: in_the_way }) }
}

/// The wanted keys that exist: by one listing, or, of a single one, by asking for it.
async fn listed(
    transfer: &Transfer,
    prefix: &KeyPrefix,
    files: &[UploadFile],
) -> Result<HashMap<ObjectKey, Option<ETag>>, TransferError> {
    if let [file] = files {
        let found = look(transfer, &file.key).await?;
        return Ok(found.into_iter().map(|meta| (file.key.clone(), Some(meta.etag))).collect());
    }
    let wanted: std::collections::HashSet<&ObjectKey> = files.iter().map(|file| &file.key).collect();
    let mut there = HashMap::new();
    let mut request = ListRequest::recursive(prefix.clone());
    loop {
        let page = transfer.store.list(&request).await?;
        let wanted = page.objects.into_iter().filter(|object| wanted.contains(&object.key));
        there.extend(wanted.map(|object| (object.key, object.etag)));
        match page.continuation {
            Some(next) => request.continuation = Some(next),
            None => return Ok(there),
        }
    }
}

async fn look(transfer: &Transfer, key: &ObjectKey) -> Result<Option<ObjectMeta>, TransferError> {
    match transfer.store.head(key).await {
        Ok(meta) => Ok(Some(meta)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

enum Whose {
    /// The interrupted run has finished it, and the file is as it was then.
    Done,
    /// The interrupted run keeps the key with it.
    Claim,
    Other,
}

fn whose(meta: &ObjectMeta, txid: &str, file: &UploadFile) -> Whose {
    let is = |name: &str, value: &str| meta.metadata.get(name).is_some_and(|found| found == value);
    if !is(META_TXID, txid) {
        Whose::Other
    } else if meta.metadata.contains_key(commit::send::META_CLAIM) {
        Whose::Claim
    } else if meta.size_bytes == file.size_bytes && is(META_MTIME, &format_mtime(file.modified)) {
        Whose::Done
    } else {
        Whose::Other
    }
}

struct Run {
    sender: Sender,
    transfer: Transfer,
    places: Places,
    log: Option<UploadLog>,
    /// What an interrupted run has begun.
    begun: Mutex<BTreeMap<RelPath, (BegunUpload, Vec<PartReceipt>)>>,
    /// Multipart uploads under way, those of an interrupted run among them.
    open: Mutex<HashMap<ObjectKey, UploadId>>,
    /// Objects that were created, where nothing was.
    created: Mutex<Vec<ObjectKey>>,
    done: AtomicU64,
    files: u64,
}

/// Writes down how far one file has come.
struct FileNotes<'a> {
    run: &'a Run,
    file: &'a UploadFile,
}

impl FileNotes<'_> {
    fn add(&self, line: &UploadLine) {
        if let Some(log) = &self.run.log
            && let Err(err) = log.add(line)
        {
            tracing::warn!("an interruption would cost more than it should: {err}");
        }
    }
}

#[async_trait]
impl UploadNotes for FileNotes<'_> {
    async fn begun(&self, id: &UploadId, part_bytes: u64) -> Result<(), CommitError> {
        self.run.open.lock().insert(self.file.key.clone(), id.clone());
        self.add(&UploadLine::Begun(BegunUpload {
            path: self.file.path.clone(),
            id: id.clone(),
            part_bytes,
            size_bytes: self.file.size_bytes,
            mtime: format_mtime(self.file.modified),
        }));
        Ok(())
    }

    fn part(&self, part: &PartReceipt) -> Result<(), CommitError> {
        self.add(&UploadLine::Part { path: self.file.path.clone(), part: part.clone() });
        Ok(())
    }
}

impl Run {
    async fn run(self: &Arc<Self>, files: Vec<(UploadFile, Expect)>) -> Result<(), TransferError> {
        let options = &self.transfer.options;
        let (large, small): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(file, _)| file.size_bytes > options.part_bytes);
        // The large ones first: small ones fill the gaps at the end.
        let work = large.into_iter().chain(small);
        let limit = options.workers.max(1) * SHARES as usize;
        let (failures, cancelled) =
            run::all(work, limit, &options.cancel, OnFailure::Wait, |(file, expect)| {
                let run = Arc::clone(self);
                async move { run.file(&file, expect).await }
            })
            .await;
        if cancelled {
            let done = self.done.load(Ordering::Relaxed);
            return Err(TransferError::Cancelled { done, files: self.files });
        }
        run::worst(failures).map_or(Ok(()), Err)
    }

    async fn file(&self, file: &UploadFile, expect: Expect) -> Result<(), TransferError> {
        let _place = self.places.take(file.size_bytes).await;
        let opened =
            blocking(|| File::open(&file.source)).map_err(|err| TransferError::io(&file.source, err))?;
        let found = opened.metadata().and_then(|meta| meta.modified());
        if found.map_err(|err| TransferError::io(&file.source, err))? != file.modified {
            // Parts that an interrupted run has sent may be of what it was, and the rest would be of what it is.
            let reason = "it was changed since the upload began".to_owned();
            return Err(TransferError::Changed { path: file.path.to_string(), reason });
        }
        let content = Content::of_file(opened, &file.path, file.size_bytes)?;
        let is_new = expect == Expect::Absent;
        let UploadFile { key, size_bytes, modified, .. } = file.clone();
        let job = Job { key, size_bytes, cid: None, modified, expect };
        let sent = if file.size_bytes > self.transfer.options.part_bytes {
            self.large(file, &job, &content).await
        } else {
            self.sender.put_file(&job, &content).await.map(|(etag, _)| etag)
        };
        sent.map_err(|err| of_sending(&file.key, err))?;
        self.open.lock().remove(&file.key);
        if is_new {
            self.created.lock().push(file.key.clone());
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        self.transfer.watch.file_done();
        Ok(())
    }

    async fn large(&self, file: &UploadFile, job: &Job, content: &Content) -> Result<ETag, SendError> {
        let notes = FileNotes { run: self, file };
        let known = self.begun.lock().remove(&file.path);
        let unchanged = |(upload, _): &(BegunUpload, _)| {
            upload.size_bytes == file.size_bytes && upload.mtime == format_mtime(file.modified)
        };
        let known = match known {
            Some(known) if unchanged(&known) => {
                let (upload, parts) = known;
                let there: u64 = parts.iter().map(|part| upload.bytes_of(part.number)).sum();
                self.transfer.watch.moved(there);
                Some((Uploaded { id: upload.id, parts }, upload.part_bytes))
            }
            Some((stale, _)) => {
                self.transfer.store.abort_multipart(&file.key, &stale.id).await?;
                None
            }
            None => None,
        };
        let uploaded = self.sender.upload(job, content, known, &notes).await?;
        self.sender.complete(job, content, uploaded, &notes).await
    }

    /// Takes away what nobody will go on with. Returns how many files stay.
    async fn tidy(self: Arc<Self>, failure: Option<&TransferError>) -> u64 {
        if failure.is_some_and(TransferError::is_transient) {
            return self.done.load(Ordering::Relaxed); // the next run goes on with all of it
        }
        let open: Vec<(ObjectKey, UploadId)> = self.open.lock().drain().collect();
        for (key, id) in open {
            if let Err(err) = self.transfer.store.abort_multipart(&key, &id).await {
                tracing::warn!(%key, "an upload stays open: {err}");
            }
            self.remove_claim(&key).await;
        }
        if let Some(TransferError::Overtaken { .. }) = failure
            && !self.transfer.options.overwrite
        {
            let created = std::mem::take(&mut *self.created.lock());
            let mut stay = 0;
            for key in created {
                if let Err(err) = self.sender.remove_ours(&key).await {
                    tracing::warn!(%key, "stays, although the upload has failed: {err}");
                    stay += 1;
                }
            }
            self.done.store(stay, Ordering::Relaxed);
        }
        let done = self.done.load(Ordering::Relaxed);
        let goes_on = failure.is_some() && done > 0;
        if !goes_on && let Some(log) = Arc::into_inner(self).and_then(|run| run.log) {
            log.forget();
        }
        done
    }

    /// Where a key was claimed for a large object that does not come.
    async fn remove_claim(&self, key: &ObjectKey) {
        if let Ok(Found::OurClaim(etag)) = self.sender.look(key).await
            && let Err(err) = self.transfer.store.delete(key, &etag).await
        {
            tracing::warn!(%key, "an empty object stays: {err}");
        }
    }
}

impl BegunUpload {
    fn bytes_of(&self, number: u32) -> u64 {
        let start = u64::from(number.saturating_sub(1)) * self.part_bytes;
        self.part_bytes.min(self.size_bytes.saturating_sub(start))
    }
}
