//! Before anything is visible: what is in the way, and the parts of what is large.

use std::collections::HashMap;
use std::collections::HashSet;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;

use crate::commit::CommitError;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::commit::Phase;
use crate::commit::announce::Noticed;
use crate::commit::content::Content;
use crate::commit::journal::Note;
use crate::commit::plan::AlreadyThere;
use crate::commit::plan::CommitPlan;
use crate::commit::plan::Doubtful;
use crate::commit::plan::Draft;
use crate::commit::plan::PlannedFile;
use crate::commit::plan::Survey;
use crate::commit::run::Run;
use crate::commit::send::Found;
use crate::commit::send::Job;
use crate::commit::send::SendError;
use crate::commit::send::UploadNotes;
use crate::commit::send::Uploaded;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::ContentId;
use crate::record::Snapshot;
use crate::staging::Access;
use crate::staging::Contents;
use crate::staging::Sealed;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::META_SHA256;
use crate::store::META_TXID;
use crate::store::ObjectMeta;
use crate::store::PartReceipt;
use crate::store::StoreError;
use crate::store::UPLOAD_TXID_PREFIX;
use crate::store::UploadId;

/// What the preflight found out.
#[derive(Debug, Default)]
pub(super) struct Surveyed {
    pub plan: CommitPlan,
    /// Files of the plan that this very commit has published before it was interrupted.
    pub done: HashMap<RelPath, ETag>,
    /// The newest snapshot, if it had to be looked at.
    pub snapshot: Option<Snapshot>,
    /// How long a snapshot of all that is published is at least, in bytes before it is packed.
    pub listed_bytes_least: u64,
}

/// The large files, of which only the last request is missing.
pub(super) type Uploads = HashMap<RelPath, Uploaded>;

/// How often the survey is repeated because other commits ended meanwhile.
const LOOKS_MORE: usize = 4;

enum Verdict {
    Write(PlannedFile),
    Done(PlannedFile, ETag),
    AlreadyThere(AlreadyThere),
    Conflict(Conflict),
}

/// A directory's marker that is in no commit.
pub(super) enum Marker {
    /// There is none, or it is this very commit's: it is to be written.
    Missing,
    /// It is another tool's, and stays.
    Foreign,
    /// It may be taken back at any time.
    Leftover(Conflict),
}

impl Run<'_> {
    /// Staged files against what is published.
    pub(super) async fn survey(
        &self,
        contents: &Contents,
        sealed: Option<&Sealed>,
    ) -> Result<Surveyed, CommitError> {
        let mut surveyed = self.look(contents, sealed).await?;
        for _ in 0..LOOKS_MORE {
            // Commits that were under way when the log was read may have ended since.
            if !self.name_those_under_way(&mut surveyed).await? {
                break;
            }
            surveyed = self.look(contents, sealed).await?;
        }
        Ok(surveyed)
    }

    /// Says of what is there and not in the log whether a commit that is under way has put it there.
    /// True: the log has grown since it was read, so that nothing can be said of leftovers.
    async fn name_those_under_way(&self, surveyed: &mut Surveyed) -> Result<bool, CommitError> {
        let conflicts = &mut surveyed.plan.conflicts;
        let is_leftover = |conflict: &Conflict| matches!(conflict.reason, ConflictReason::Leftover { .. });
        let is_unnamed =
            |conflict: &Conflict| matches!(conflict.reason, ConflictReason::Exists { by: None, .. });
        if !conflicts.iter().any(|conflict| is_leftover(conflict) || is_unnamed(conflict)) {
            return Ok(false);
        }
        // In this order: a commit is recorded before its intent goes.
        let (intents, _) = self.intents.found().await?;
        let mut live = Vec::with_capacity(intents.len());
        for Noticed { intent, .. } in intents {
            if intent.txid != self.txid && !self.intents.has_ended(&intent, &self.log).await? {
                live.push(intent);
            }
        }
        let seen = surveyed.snapshot.as_ref().map_or(0, |snapshot| snapshot.seq);
        if conflicts.iter().any(is_leftover) && self.log.head_from(seen).await? > seen {
            return Ok(true);
        }
        for intent in live {
            let author = format!("{}@{}", intent.author.user, intent.author.host);
            let paths: HashSet<&str> = intent.paths().map(RelPath::as_str).collect();
            for conflict in &mut *conflicts {
                let left_it =
                    matches!(&conflict.reason, ConflictReason::Leftover { txid } if *txid == intent.txid);
                if left_it || (is_unnamed(conflict) && paths.contains(conflict.path.as_str())) {
                    let (txid, author) = (intent.txid.clone(), author.clone());
                    conflict.reason = ConflictReason::Intent { txid, author };
                }
            }
        }
        Ok(false)
    }

    /// Staged files against the listing; what is doubtful is settled by content.
    async fn look(&self, contents: &Contents, sealed: Option<&Sealed>) -> Result<Surveyed, CommitError> {
        let ctx = self.ctx;
        let mut survey = Survey::new(contents, &ctx.prefix, ctx.dataset(), self.overwrite)?;
        let mut request = ListRequest::recursive(ctx.prefix.dataset(ctx.dataset()));
        loop {
            let page = ctx.store.list(&request).await?;
            page.objects.iter().for_each(|object| survey.see(object));
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => break,
            }
        }
        let mut draft = survey.draft(self.state.lock().publishing);
        let resuming = self.state.lock().publishing;
        if ctx.options.refuse_existing && !resuming {
            refuse_existing(&mut draft);
        }
        let listed_bytes_least = draft.listed_bytes_least;
        let mut surveyed = Surveyed { plan: draft.plan, listed_bytes_least, ..Surveyed::default() };
        if draft.doubtful.is_empty() && draft.markers.is_empty() {
            return Ok(surveyed);
        }
        let snapshot = self.log.newest_snapshot().await?;
        let markers = draft.markers.drain(..).filter(|(path, _)| !snapshot.markers.contains(path));
        let looking: Vec<_> = markers.map(|marker| self.settle_marker(marker).boxed()).collect();
        let markers: Vec<_> = stream::iter(looking).buffered(self.sender.workers).try_collect().await?;
        for (marker, found) in markers {
            match found {
                Marker::Missing => surveyed.plan.markers.push(marker),
                // It may be its own all the same, where a remote keeps nothing but the name of a directory.
                Marker::Foreign if resuming => surveyed.plan.markers.push(marker),
                Marker::Foreign => {}
                Marker::Leftover(conflict) => surveyed.plan.conflicts.push(conflict),
            }
        }
        surveyed.plan.markers.sort();
        let settling: Vec<_> =
            draft.doubtful.drain(..).map(|doubt| self.settle(doubt, sealed, &snapshot).boxed()).collect();
        let verdicts: Vec<Verdict> =
            stream::iter(settling).buffered(self.sender.workers).try_collect().await?;
        for verdict in verdicts {
            surveyed.take(verdict);
        }
        surveyed.plan.create.sort_by(|a, b| a.path.cmp(&b.path));
        surveyed.plan.replace.sort_by(|a, b| a.path.cmp(&b.path));
        surveyed.plan.conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        surveyed.snapshot = Some(snapshot);
        Ok(surveyed)
    }

    /// Whether what is at a file's key is its own content, ours from before, or in the way.
    async fn settle(
        &self,
        doubt: Doubtful,
        sealed: Option<&Sealed>,
        snapshot: &Snapshot,
    ) -> Result<Verdict, CommitError> {
        let Doubtful { file, otherwise } = doubt;
        let meta = match self.ctx.store.head(&file.key).await {
            Ok(meta) => meta,
            Err(StoreError::NotFound { .. }) => {
                let ConflictReason::Changed { expected, .. } = otherwise else {
                    return Ok(Verdict::Write(file));
                };
                // The version that it stands on is gone: that is not what the user has agreed to replace.
                let reason = ConflictReason::Changed { expected, found: None };
                return Ok(Verdict::Conflict(Conflict { path: file.path.to_string(), reason }));
            }
            Err(err) => return Err(err.into()),
        };
        let found = self.sender.whose(&meta);
        if matches!(found, Found::Ours(_) | Found::OurClaim(_)) {
            let file = if let ConflictReason::Changed { expected, .. } = otherwise {
                PlannedFile { expect: Expect::Version(expected), ..file }
            } else {
                file
            };
            let done = matches!(found, Found::Ours(_));
            return Ok(if done { Verdict::Done(file, meta.etag) } else { Verdict::Write(file) });
        }
        let published = meta.metadata.get(META_SHA256).and_then(|hex| ContentId::from_sha256_hex(hex));
        let recorded = snapshot.entries.get(&file.path).filter(|entry| entry.etag == meta.etag);
        if let (None, Some(conflict)) = (recorded, leftover(&file.path, &meta)) {
            return Ok(Verdict::Conflict(conflict));
        }
        let known = recorded.map(|entry| entry.cid).or(published);
        let same = match known.filter(|_| meta.size_bytes == file.size_bytes) {
            Some(there) => self.cid_of(&file, sealed).await? == there,
            None => false,
        };
        if same {
            return Ok(Verdict::AlreadyThere(AlreadyThere { file, etag: meta.etag }));
        }
        Ok(Verdict::Conflict(Conflict { path: file.path.to_string(), reason: otherwise }))
    }

    async fn settle_marker(
        &self,
        (path, key): (RelPath, ObjectKey),
    ) -> Result<((RelPath, ObjectKey), Marker), CommitError> {
        let found = self.unrecorded_marker(&path, &key).await?;
        Ok(((path, key), found))
    }

    /// What is at the key of a directory's marker that is in no commit.
    pub(super) async fn unrecorded_marker(
        &self,
        path: &RelPath,
        key: &ObjectKey,
    ) -> Result<Marker, CommitError> {
        let meta = match self.ctx.store.head(key).await {
            Ok(meta) => meta,
            Err(StoreError::NotFound { .. }) => return Ok(Marker::Missing),
            Err(err) => return Err(err.into()),
        };
        Ok(match self.sender.whose(&meta) {
            Found::Ours(_) | Found::OurClaim(_) => Marker::Missing,
            Found::Nothing | Found::Other(_) => {
                leftover(path, &meta).map_or(Marker::Foreign, Marker::Leftover)
            }
        })
    }

    /// Whether what the plan relies on, but does not write, is as it was seen: what it deletes, and
    /// what is there already. From the announcement on no other commit touches it.
    pub(super) async fn still_as_seen(&self, plan: &CommitPlan) -> Result<(), CommitError> {
        let deleted = plan.delete.iter().map(|gone| (&gone.path, &gone.key, &gone.etag));
        let there = plan.already_there.iter().map(|there| (&there.file.path, &there.file.key, &there.etag));
        let looks: Vec<_> =
            deleted.chain(there).map(|(path, key, etag)| self.changed(path, key, etag).boxed()).collect();
        let changed: Vec<Option<Conflict>> =
            stream::iter(looks).buffered(self.sender.workers).try_collect().await?;
        let conflicts: Vec<Conflict> = changed.into_iter().flatten().collect();
        if conflicts.is_empty() { Ok(()) } else { Err(CommitError::Conflict { conflicts }) }
    }

    async fn changed(
        &self,
        path: &RelPath,
        key: &ObjectKey,
        expected: &ETag,
    ) -> Result<Option<Conflict>, CommitError> {
        let found = match self.ctx.store.head(key).await {
            Ok(meta) if meta.etag == *expected => return Ok(None),
            Ok(meta) => Some(meta.etag),
            Err(StoreError::NotFound { .. }) => None,
            Err(err) => return Err(err.into()),
        };
        let reason = ConflictReason::Changed { expected: expected.clone(), found };
        Ok(Some(Conflict { path: path.to_string(), reason }))
    }

    pub(super) async fn cid_of(
        &self,
        file: &PlannedFile,
        sealed: Option<&Sealed>,
    ) -> Result<ContentId, CommitError> {
        let known = self.state.lock().hashes.get(&file.path).copied();
        if let Some((_, cid)) = known.filter(|(size_bytes, _)| *size_bytes == file.size_bytes) {
            return Ok(cid);
        }
        let content = match sealed {
            Some(sealed) => Content::open(sealed, &file.path, file.size_bytes)?,
            None => {
                let open = self.ctx.staging.open_file(&file.path, Access::Read, false)?;
                Content::of_staged(&open, &file.path, file.size_bytes)?
            }
        };
        let _turn = self.hashing.acquire().await.expect("the semaphore is never closed");
        let cid = content.id(|_| ()).await?;
        self.note(Note::Hashed { path: file.path.clone(), size_bytes: file.size_bytes, cid })?;
        Ok(cid)
    }

    /// Sends what is larger than one part, and hashes it meanwhile: its content id is for the log.
    pub(super) async fn prepare(&self, sealed: &Sealed, surveyed: &Surveyed) -> Result<Uploads, CommitError> {
        let plan = &surveyed.plan;
        let files = plan.create.iter().chain(&plan.replace);
        let large: Vec<&PlannedFile> =
            files.filter(|file| file.size_bytes > self.ctx.options.part_bytes).collect();
        let (done, missing): (Vec<_>, Vec<_>) =
            large.into_iter().partition(|file| surveyed.done.contains_key(&file.path));
        let bytes = missing.iter().map(|file| file.size_bytes).sum();
        self.ctx.progress.phase(Phase::Upload, missing.len() as u64, bytes);
        // Boxed and collected: the compiler cannot show that a stream over borrowing closures is Send.
        let hashing: Vec<_> = done.into_iter().map(|file| self.cid_of(file, Some(sealed)).boxed()).collect();
        let sending: Vec<_> = missing.into_iter().map(|file| self.upload(sealed, file).boxed()).collect();
        let workers = self.sender.workers;
        let hashed = stream::iter(hashing).buffer_unordered(workers).try_collect::<Vec<_>>();
        let uploads = stream::iter(sending).buffer_unordered(workers).try_collect();
        Ok(futures_util::try_join!(hashed, uploads)?.1)
    }

    async fn upload(&self, sealed: &Sealed, file: &PlannedFile) -> Result<(RelPath, Uploaded), CommitError> {
        let PlannedFile { path, size_bytes, .. } = file;
        let content = Content::open(sealed, path, *size_bytes)?;
        let known = self.state.lock().uploads.get(path).and_then(|uploads| uploads.last()).map(|upload| {
            let parts = upload.parts.values().cloned().collect();
            (Uploaded { id: upload.id.clone(), parts }, upload.part_bytes)
        });
        let job = job_of(file);
        let notes = Notes { run: self, path };
        let send = async {
            let sent = self.sender.upload(&job, &content, known, &notes).await;
            sent.map_err(|err| match err {
                SendError::Other(err) => err,
                SendError::Taken { found } => self.taken(path, &job, found),
            })
        };
        let (_, uploaded) = futures_util::try_join!(self.cid_of(file, Some(sealed)), send)?;
        self.ctx.progress.file_done();
        Ok((path.clone(), uploaded))
    }
}

/// An object that is in no commit, but of one: that is under way, or given up, and it may be taken back at any
/// time.
fn leftover(path: &RelPath, meta: &ObjectMeta) -> Option<Conflict> {
    let txid = meta.metadata.get(META_TXID).filter(|txid| !txid.starts_with(UPLOAD_TXID_PREFIX))?;
    let reason = ConflictReason::Leftover { txid: txid.clone() };
    Some(Conflict { path: path.to_string(), reason })
}

/// The request, or requests, for a file whose content is not known yet.
pub(super) fn job_of(file: &PlannedFile) -> Job {
    let PlannedFile { key, size_bytes, modified, expect, .. } = file.clone();
    Job { key, size_bytes, cid: None, modified, expect }
}

/// Whatever is there is in the way, be it the same.
fn refuse_existing(draft: &mut Draft) {
    let doubtful = draft.doubtful.drain(..).map(|doubt| doubt.file.path.to_string());
    let there = doubtful.map(|path| Conflict { path, reason: ConflictReason::Present });
    draft.plan.conflicts.extend(there);
    for conflict in &mut draft.plan.conflicts {
        if matches!(conflict.reason, ConflictReason::Exists { .. }) {
            conflict.reason = ConflictReason::Present;
        }
    }
    draft.plan.conflicts.sort_by(|a, b| a.path.cmp(&b.path));
}

impl Surveyed {
    fn take(&mut self, verdict: Verdict) {
        let file = match verdict {
            Verdict::Write(file) => file,
            Verdict::Done(file, etag) => {
                self.done.insert(file.path.clone(), etag);
                file
            }
            Verdict::AlreadyThere(there) => return self.plan.already_there.push(there),
            Verdict::Conflict(conflict) => return self.plan.conflicts.push(conflict),
        };
        match file.expect {
            Expect::Absent => self.plan.create.push(file),
            Expect::Version(_) => self.plan.replace.push(file),
        }
    }
}

/// Writes down how far one file's upload has come.
pub(super) struct Notes<'a, 'c> {
    pub run: &'a Run<'c>,
    pub path: &'a RelPath,
}

#[async_trait]
impl UploadNotes for Notes<'_, '_> {
    async fn begun(&self, id: &UploadId, part_bytes: u64) -> Result<(), CommitError> {
        // Parts of other files are answered meanwhile, and have to be noted.
        self.run.note_aside(Note::Upload { path: self.path.clone(), id: id.clone(), part_bytes }).await
    }

    fn part(&self, part: &PartReceipt) -> Result<(), CommitError> {
        let PartReceipt { number, etag, checksum } = part.clone();
        self.run.note(Note::Part { path: self.path.clone(), number, etag, checksum })
    }
}
