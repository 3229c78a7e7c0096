//! Making a commit visible, recording it, and tidying up behind it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::commit::CommitError;
use crate::commit::CommitReport;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::commit::Phase;
use crate::commit::PublishedFile;
use crate::commit::announce::Deleting;
use crate::commit::content::Content;
use crate::commit::deletion::Deletion;
use crate::commit::journal::Note;
use crate::commit::places::SHARES;
use crate::commit::plan::PlannedFile;
use crate::commit::plan::is_marker;
use crate::commit::prepare::Marker;
use crate::commit::prepare::Notes;
use crate::commit::prepare::Surveyed;
use crate::commit::prepare::Uploads;
use crate::commit::prepare::job_of;
use crate::commit::run::Run;
use crate::commit::run::blocking;
use crate::commit::send::Job;
use crate::commit::send::SendError;
use crate::failpoint;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::Changes;
use crate::record::CommitRecord;
use crate::record::ContentId;
use crate::record::Entry;
use crate::record::Intent;
use crate::record::OldVersion;
use crate::staging::Sealed;
use crate::store::Expect;
use crate::store::StoreError;

/// What has become of files that are published at the same time.
struct Outcome<'a> {
    written: &'a Mutex<HashMap<RelPath, ETag>>,
    failures: Mutex<Vec<CommitError>>,
}

impl Run<'_> {
    /// Makes everything visible: new files and empty directories, then replacements, then the
    /// dataset's markers. Returns the versions.
    pub(super) async fn publish(
        &self,
        sealed: &Sealed,
        surveyed: &Surveyed,
        uploads: &Uploads,
    ) -> Result<HashMap<RelPath, ETag>, CommitError> {
        let plan = &surveyed.plan;
        let waiting = |files: &'_ [PlannedFile], marker: bool| -> Vec<PlannedFile> {
            let missing = files.iter().filter(|file| !surveyed.done.contains_key(&file.path));
            missing.filter(|file| is_marker(&file.path) == marker).cloned().collect()
        };
        let files = plan.create.iter().chain(&plan.replace);
        let missing = files.filter(|file| !surveyed.done.contains_key(&file.path));
        let (files, bytes) = missing.fold((0, 0), |(files, bytes), file| {
            let is_sent = uploads.contains_key(&file.path);
            (files + 1, bytes + if is_sent { 0 } else { file.size_bytes })
        });
        self.ctx.progress.phase(Phase::Publish, files, bytes);
        let written = Mutex::new(surveyed.done.clone());
        self.publish_files(sealed, waiting(&plan.create, false), uploads, &written).await?;
        self.publish_directories(&plan.markers).await?;
        self.publish_files(sealed, waiting(&plan.replace, false), uploads, &written).await?;
        self.publish_files(sealed, waiting(&plan.create, true), uploads, &written).await?;
        self.publish_files(sealed, waiting(&plan.replace, true), uploads, &written).await?;
        Ok(written.into_inner())
    }

    /// Stops starting new ones at the first failure, and waits for those under way: a request
    /// that is given up may still be carried out.
    async fn publish_files(
        &self,
        sealed: &Sealed,
        files: Vec<PlannedFile>,
        uploads: &Uploads,
        written: &Mutex<HashMap<RelPath, ETag>>,
    ) -> Result<(), CommitError> {
        let outcome = Outcome { written, failures: Mutex::default() };
        let (large, small): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| uploads.contains_key(&file.path));
        let workers = self.sender.workers;
        tokio::join!(
            self.publish_some(sealed, large, workers, uploads, &outcome),
            self.publish_some(sealed, small, workers * SHARES as usize, uploads, &outcome),
        );
        merge_failures(outcome.failures.into_inner())
    }

    async fn publish_some(
        &self,
        sealed: &Sealed,
        files: Vec<PlannedFile>,
        limit: usize,
        uploads: &Uploads,
        outcome: &Outcome<'_>,
    ) {
        stream::iter(files)
            .for_each_concurrent(limit, |file| async move {
                if !outcome.failures.lock().is_empty() {
                    return;
                }
                match self.publish_file(sealed, &file, uploads).await {
                    Ok(etag) => {
                        self.ctx.progress.file_done();
                        outcome.written.lock().insert(file.path, etag);
                    }
                    Err(err) => outcome.failures.lock().push(err),
                }
            })
            .await;
    }

    async fn publish_file(
        &self,
        sealed: &Sealed,
        file: &PlannedFile,
        uploads: &Uploads,
    ) -> Result<ETag, CommitError> {
        self.still_ours().await?;
        let job = job_of(file);
        let content = Content::open(sealed, &file.path, file.size_bytes)?;
        let sent = match uploads.get(&file.path) {
            Some(upload) => {
                let notes = Notes { run: self, path: &file.path };
                self.sender.complete(&job, &content, upload.clone(), &notes).await
            }
            None => match self.put_file(&job, content).await {
                Ok((etag, cid)) => {
                    let path = file.path.clone();
                    self.note(Note::Hashed { path, size_bytes: file.size_bytes, cid })?;
                    Ok(etag)
                }
                Err(err) => Err(err),
            },
        };
        sent.map_err(|err| self.not_sent(&file.path, &job, err))
    }

    /// As a task of its own, so that all cores read, hash and send.
    async fn put_file(&self, job: &Job, content: Content) -> Result<(ETag, ContentId), SendError> {
        let (sender, job) = (Arc::clone(&self.sender), job.clone());
        let mut task = JoinSet::new(); // which takes the task with it when it is dropped
        task.spawn(async move { sender.put_file(&job, &content).await });
        match task.join_next().await.expect("one was spawned") {
            Ok(sent) => sent,
            Err(ended) => std::panic::resume_unwind(ended.into_panic()),
        }
    }

    fn not_sent(&self, path: &RelPath, job: &Job, err: SendError) -> CommitError {
        match err {
            SendError::Taken { found } => self.taken(path, job, found),
            SendError::Other(err) => {
                // Whatever the reason, the last word on this object has not been heard.
                self.sender.ambiguous.store(true, Ordering::Relaxed);
                err
            }
        }
    }

    pub(super) fn taken(&self, path: &RelPath, job: &Job, found: Option<ETag>) -> CommitError {
        let reason = match &job.expect {
            Expect::Absent => ConflictReason::Exists { etag: found, by: None },
            Expect::Version(expected) => ConflictReason::Changed { expected: expected.clone(), found },
        };
        CommitError::Conflict { conflicts: vec![Conflict { path: path.to_string(), reason }] }
    }

    async fn publish_directories(&self, markers: &[(RelPath, ObjectKey)]) -> Result<(), CommitError> {
        for (path, key) in markers {
            let job = Job {
                key: key.clone(),
                size_bytes: 0,
                cid: Some(ContentId::OF_NOTHING),
                modified: self.ctx.clock.now(),
                expect: Expect::Absent,
            };
            match self.sender.put(&job, Bytes::new()).await {
                Ok(_) => {}
                Err(SendError::Taken { .. }) => self.check_marker(path, key).await?,
                Err(err) => return Err(self.not_sent(path, &job, err)),
            }
        }
        Ok(())
    }

    /// Somebody has made the same directory meanwhile: that is what was wanted, if nobody takes it back.
    async fn check_marker(&self, path: &RelPath, key: &ObjectKey) -> Result<(), CommitError> {
        if self.log.newest_snapshot().await?.markers.contains(path) {
            return Ok(());
        }
        match self.unrecorded_marker(path, key).await? {
            Marker::Foreign => Ok(()),
            Marker::Leftover(conflict) => Err(CommitError::Conflict { conflicts: vec![conflict] }),
            // Gone again: somebody is at it.
            Marker::Missing => Err(StoreError::Contended { key: key.clone() }.into()),
        }
    }

    /// What goes into the record.
    pub(super) async fn changes(
        &self,
        sealed: &Sealed,
        surveyed: &Surveyed,
        written: &HashMap<RelPath, ETag>,
    ) -> Result<Changes, CommitError> {
        let plan = &surveyed.plan;
        let mut entries = Vec::with_capacity(written.len() + plan.already_there.len());
        for file in plan.create.iter().chain(&plan.replace) {
            let Some(etag) = written.get(&file.path) else { continue };
            let cid = self.cid_of(file, Some(sealed)).await?;
            let replaced = match &file.expect {
                Expect::Version(old) => Some(old.clone()),
                Expect::Absent => None,
            };
            entries.push(entry(file, cid, etag, replaced));
        }
        for there in &plan.already_there {
            let recorded = surveyed.snapshot.as_ref().and_then(|all| all.entries.get(&there.file.path));
            if recorded.is_none_or(|recorded| recorded.etag != there.etag) {
                let cid = self.cid_of(&there.file, Some(sealed)).await?;
                entries.push(entry(&there.file, cid, &there.etag, None));
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let deleted =
            plan.delete.iter().map(|gone| OldVersion { path: gone.path.clone(), etag: gone.etag.clone() });
        let markers = plan.markers.iter().map(|(path, _)| path.clone());
        Ok(Changes { entries, deleted: deleted.collect(), markers: markers.collect() })
    }

    /// After the commit point. What fails here is done by a resume; it cannot be undone.
    pub(super) async fn finish(
        &self,
        sealed: &Sealed,
        record: CommitRecord,
        already_there: u64,
    ) -> Result<CommitReport, CommitError> {
        let changes = record.body.changes;
        self.ctx.progress.phase(Phase::Record, changes.len(), 0);
        let deleted = changes.deleted.clone();
        let report = self.report(Some(record.body.seq), changes, already_there);
        self.tell(&report);
        let withdrawn = if deleted.is_empty() {
            self.intents.withdraw(&self.txid).await
        } else if let Some(deleting) = self.delete_old(record.body.seq, &deleted).await? {
            self.intents.withdraw_stamped(deleting).await.map(|_| ())
        } else {
            tracing::warn!(txid = self.txid, "deletions may be under way: the intent stays, for `dsfs gc`");
            Ok(())
        };
        if let Err(err) = withdrawn {
            // Readers look at the log behind it; `gc` removes it.
            tracing::warn!(txid = self.txid, "the intent of a published commit stays for now: {err}");
        }
        self.admit(sealed, &report);
        failpoint::reach(|| "finish:admitted".into());
        blocking(|| self.ctx.staging.finish(sealed))?;
        Ok(report)
    }

    /// Deletes what the record `seq` says is deleted, as [`Deletion::carry_out`] does.
    async fn delete_old(&self, seq: u64, deleted: &[OldVersion]) -> Result<Option<Deleting>, CommitError> {
        let intent = Intent {
            dataset: self.ctx.dataset().clone(),
            txid: self.txid.clone(),
            author: self.ctx.author.clone(),
            time: self.ctx.clock.now(),
            creates: Vec::new(),
            markers: Vec::new(),
            replaces: Vec::new(),
            deletes: deleted.to_vec(),
            deleting: None,
        };
        let progress = &*self.ctx.progress;
        let deletion = Deletion { log: &self.log, intents: &self.intents, progress };
        deletion.carry_out(&intent, seq, deleted).await
    }

    pub(super) fn tell(&self, report: &CommitReport) {
        if let Some(published) = &self.ctx.published {
            published.published(report);
        }
    }

    pub(super) fn report(&self, seq: Option<u64>, changes: Changes, already_there: u64) -> CommitReport {
        let published = changes.entries.into_iter().map(|entry| PublishedFile {
            path: entry.path,
            etag: entry.etag,
            size_bytes: entry.size_bytes,
            mtime: entry.mtime,
            cid: entry.cid,
        });
        let published: Vec<PublishedFile> = published.collect();
        CommitReport {
            dataset: self.ctx.dataset().clone(),
            txid: self.txid.clone(),
            seq,
            files: published.len() as u64,
            bytes: published.iter().map(|file| file.size_bytes).sum(),
            published,
            already_there,
            markers: changes.markers,
            deleted: changes.deleted.into_iter().map(|gone| gone.path).collect(),
            guarantee: self.ctx.guarantee,
        }
    }

    fn admit(&self, sealed: &Sealed, report: &CommitReport) {
        let Some(cache) = &self.ctx.cache else { return };
        blocking(|| {
            for file in &report.published {
                let Ok(key) = self.ctx.prefix.key(self.ctx.dataset(), &file.path) else { continue };
                let path = sealed.file_path(&file.path);
                if let Err(err) = cache.admit(&key, &file.etag, file.size_bytes, &path) {
                    tracing::debug!(%key, "not taken over by the cache: {err}");
                }
            }
        });
    }
}

fn entry(file: &PlannedFile, cid: ContentId, etag: &ETag, replaced: Option<ETag>) -> Entry {
    let PlannedFile { path, size_bytes, modified, .. } = file.clone();
    Entry { path, size_bytes, cid, etag: etag.clone(), mtime: modified, replaced }
}

/// All conflicts as one, unless something else failed too and the outcome is open.
fn merge_failures(failures: Vec<CommitError>) -> Result<(), CommitError> {
    let mut all = Vec::new();
    let mut other = None;
    for failure in failures {
        if let CommitError::Conflict { conflicts } = failure {
            all.extend(conflicts);
        } else {
            other.get_or_insert(failure);
        }
    }
    if !all.is_empty() {
        all.sort_by(|a: &Conflict, b| a.path.cmp(&b.path));
        return Err(CommitError::Conflict { conflicts: all });
    }
    other.map_or(Ok(()), Err)
}
