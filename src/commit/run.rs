//! One commit from beginning to end, and the ways in which it may end otherwise.
//!
//! [`commit`] and [`resume`] run the same steps; each step finds out what of it is done already,
//! from the journal and from the bucket. Which way a failure goes depends on how far it came:
//!
//! | failure | before anything was sent | after |
//! | --- | --- | --- |
//! | conflict, refusal | thaw | take back, thaw |
//! | remote unreachable, or it lets us do nothing any more | thaw | keep sealed: resume or abort later |
//! | process gone | sealed: resume or abort later | the same |
//!
//! Requests whose answers were lost may still be carried out, long after they were given up. A
//! commit that is ended while there may be such requests is ended in the log as well (an `abort`
//! record), and its intent stays as a tombstone that hides whatever may still appear.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;
use std::time::SystemTime;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::Semaphore;
use ulid::Ulid;

use crate::commit::CommitContext;
use crate::commit::CommitError;
use crate::commit::CommitReport;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::commit::Log;
use crate::commit::Phase;
use crate::commit::announce::Deleting;
use crate::commit::announce::Intents;
use crate::commit::journal::Journal;
use crate::commit::journal::Note;
use crate::commit::journal::Progress;
use crate::commit::plan::CommitPlan;
use crate::commit::prepare::Surveyed;
use crate::commit::send::Sender;
use crate::failpoint;
use crate::log::Appended;
use crate::log::Draft;
use crate::name::ETag;
use crate::name::RelPath;
use crate::record::Changes;
use crate::record::CommitBody;
use crate::record::CommitRecord;
use crate::record::Intent;
use crate::record::OldVersion;
use crate::record::Outcome;
use crate::record::RECORD_BYTES_MAX;
use crate::record::RecordError;
use crate::staging::Contents;
use crate::staging::Sealed;
use crate::staging::StagingError;
use crate::store::Expect;
use crate::store::guarantee::Guarantee;

/// Records that are looked through for the author of what is in the way.
const RECORDS_ASKED_MAX: u64 = 16;

/// After this long without a look at the log a commit may have been taken for dead, by `gc` if it was asked to.
const UNSEEN_MAX: Duration = Duration::from_secs(60 * 60);
/// How much longer an entry may be than the least that it takes; an `ETag` of S3 makes it no two times that.
const MARGIN_OF_LEAST: u64 = 4;

/// One commit under way.
pub(super) struct Run<'c> {
    pub ctx: &'c CommitContext,
    pub txid: String,
    pub sender: Arc<Sender>,
    pub log: Log,
    pub intents: Intents,
    /// What the user asked for when the commit was begun, which a resume keeps.
    pub overwrite: bool,
    message: Option<String>,
    journal: Option<Mutex<Journal>>,
    /// Turns for hashing, which takes a core.
    pub hashing: Semaphore,
    /// What the journal says.
    pub state: Mutex<Progress>,
    /// What the store had lost of answers when this began: `ObjectStore::lost_answers`.
    lost_before: u64,
    /// Whether anything was sent, that has to be taken back.
    sent: AtomicBool,
    /// When the log was last asked whether this has been ended, by our clock.
    looked: tokio::sync::Mutex<SystemTime>,
}

/// What a commit would do. Nothing is frozen, sent or changed.
///
/// # Errors
/// As for [`commit`], but never a conflict: those are in the plan.
pub async fn plan(ctx: &CommitContext) -> Result<CommitPlan, CommitError> {
    blocking(|| ctx.staging.finish_thaw())?;
    let sealed = ctx.staging.sealed();
    let contents = match &sealed {
        Some(sealed) => contents_of(sealed)?,
        None => ctx.staging.contents()?,
    };
    if contents.is_empty() {
        return Err(CommitError::NothingStaged);
    }
    let txid = sealed.as_ref().map_or_else(|| new_txid(ctx), |sealed| sealed.txid().to_owned());
    let run = Run::new(ctx, txid);
    let surveyed = run.survey(&contents, sealed.as_ref()).await?;
    run.check_record(&surveyed).await?;
    let mut plan = surveyed.plan;
    let intent = run.intent(&plan);
    plan.conflicts.extend(run.intents.in_the_way(&intent, &run.log).await?);
    run.name_owners(&mut plan.conflicts).await;
    Ok(plan)
}

/// Publishes everything that is staged, all or nothing.
///
/// # Errors
/// [`CommitError::Conflict`]: nothing has changed. [`CommitError::Interrupted`]: it is kept, to be
/// resumed or aborted. The others say for themselves.
pub async fn commit(ctx: &CommitContext) -> Result<CommitReport, CommitError> {
    let _points = failpoint::scope();
    if ctx.guarantee == Guarantee::BestEffort && !ctx.options.allow_unenforced {
        return Err(CommitError::Unenforced);
    }
    blocking(|| ctx.staging.finish_thaw())?;
    if let Some(sealed) = ctx.staging.sealed() {
        return Err(CommitError::Unfinished { txid: sealed.txid().to_owned() });
    }
    let txid = new_txid(ctx);
    let sealed = blocking(|| ctx.staging.freeze(&txid))?;
    let mut run = Run::new(ctx, txid);
    match run.open_journal(&sealed, false) {
        Ok(()) => run.drive(&sealed).await,
        Err(err) => Err(run.thaw(&sealed).err().unwrap_or(err)),
    }
}

/// Goes on with a commit that was interrupted, wherever that was.
///
/// # Errors
/// As for [`commit`], and [`CommitError::NothingToResume`]; [`CommitError::Aborted`] if what was
/// interrupted was its abortion, which is complete then.
pub async fn resume(ctx: &CommitContext) -> Result<CommitReport, CommitError> {
    let _points = failpoint::scope();
    let sealed = ctx.staging.sealed().ok_or(CommitError::NothingToResume)?;
    if blocking(|| ctx.staging.finish_thaw())? {
        return Err(CommitError::Aborted { txid: sealed.txid().to_owned() });
    }
    let mut run = Run::new(ctx, sealed.txid().to_owned());
    run.open_journal(&sealed, false)?;
    // Requests of the process that is gone may still be on their way.
    run.sender.ambiguous.store(true, Ordering::Relaxed);
    let aborting = run.state.lock().aborting;
    if aborting && run.committed().await?.is_none() {
        run.roll_back(&sealed).await?;
        return Err(CommitError::Aborted { txid: run.txid });
    }
    run.drive(&sealed).await
}

/// Takes back a commit that was interrupted: staging is as it was before, and so is the bucket.
///
/// # Errors
/// [`CommitError::NothingToResume`], [`CommitError::AlreadyCommitted`],
/// [`CommitError::NotRestored`], and the store's: then it can be repeated.
pub async fn abort(ctx: &CommitContext) -> Result<(), CommitError> {
    let _points = failpoint::scope();
    let sealed = ctx.staging.sealed().ok_or(CommitError::NothingToResume)?;
    if blocking(|| ctx.staging.finish_thaw())? {
        return Ok(()); // nothing else of it was left to be done
    }
    let mut run = Run::new(ctx, sealed.txid().to_owned());
    run.open_journal(&sealed, true)?;
    run.sender.ambiguous.store(true, Ordering::Relaxed);
    if let Some(seq) = run.committed().await? {
        return Err(CommitError::AlreadyCommitted { txid: run.txid, seq });
    }
    run.note(Note::Aborting)?;
    run.roll_back(&sealed).await
}

/// What is sealed. A seal whose directory is gone is not an empty one: it would be taken for a
/// commit that has nothing to publish and nothing to take back.
fn contents_of(sealed: &Sealed) -> Result<Contents, CommitError> {
    let contents = sealed.contents()?;
    let journal = sealed.journal_path();
    if let Some(dir) = journal.parent().filter(|dir| !dir.is_dir()) {
        let reason = "the sealed files are gone".to_owned();
        return Err(StagingError::Damaged { path: dir.to_owned(), reason }.into());
    }
    Ok(contents)
}

fn new_txid(ctx: &CommitContext) -> String {
    Ulid::from_datetime_with_source(ctx.clock.now(), &mut entropy(ctx)).to_string()
}

fn entropy(ctx: &CommitContext) -> StdRng {
    ctx.options.entropy.map_or_else(|| StdRng::seed_from_u64(rand::random()), StdRng::seed_from_u64)
}

/// Runs what waits for the local disk without holding up others on this runtime.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    if has_other_threads() { tokio::task::block_in_place(work) } else { work() }
}

fn has_other_threads() -> bool {
    Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread)
}

impl<'c> Run<'c> {
    fn new(ctx: &'c CommitContext, txid: String) -> Self {
        let log = Log::new(Arc::clone(&ctx.store), ctx.prefix.clone(), ctx.dataset().clone())
            .with_snapshot_bytes_max(ctx.options.snapshot_bytes_max);
        let intents = Intents {
            store: Arc::clone(&ctx.store),
            prefix: ctx.prefix.clone(),
            dataset: ctx.dataset().clone(),
            guarantee: ctx.guarantee,
            clock: Arc::clone(&ctx.clock),
            jitter: Mutex::new(entropy(ctx)),
        };
        let sender = Arc::new(Sender::new(&ctx.store, &txid, ctx.guarantee, &ctx.options, &ctx.progress));
        Self {
            ctx,
            txid,
            sender,
            log,
            intents,
            overwrite: ctx.options.overwrite,
            message: ctx.options.message.clone(),
            journal: None,
            hashing: Semaphore::new(available_parallelism().map_or(1, NonZero::get)),
            state: Mutex::default(),
            lost_before: ctx.store.lost_answers(),
            sent: AtomicBool::new(false),
            looked: tokio::sync::Mutex::new(ctx.clock.now()),
        }
    }

    /// Opens the journal, and takes over what it says.
    fn open_journal(&mut self, sealed: &Sealed, damaged: bool) -> Result<(), CommitError> {
        let begun =
            Note::begun(self.txid.clone(), self.ctx.options.overwrite, self.ctx.options.message.clone());
        let (journal, state) = blocking(|| Journal::open(&sealed.journal_path(), begun, damaged))?;
        self.overwrite = state.overwrite;
        self.message.clone_from(&state.message);
        self.sent = AtomicBool::new(state.intent_head.is_some() || !state.uploads.is_empty());
        self.journal = Some(Mutex::new(journal));
        self.state = Mutex::new(state);
        Ok(())
    }

    /// Writes down what is about to happen, or what has happened.
    pub(super) fn note(&self, note: Note) -> Result<(), CommitError> {
        if let Some(journal) = &self.journal {
            let pending = journal.lock().append(&note)?;
            if pending.is_decisive() { blocking(|| pending.sync()) } else { pending.sync() }?;
        }
        Ok(self.state.lock().take(note)?)
    }

    /// As [`Self::note`], for those who work at several things at once: the others go on meanwhile.
    pub(super) async fn note_aside(&self, note: Note) -> Result<(), CommitError> {
        if let Some(journal) = &self.journal {
            let pending = journal.lock().append(&note)?;
            if pending.is_decisive() && has_other_threads() {
                let synced = tokio::task::spawn_blocking(|| pending.sync()).await;
                synced.map_err(|err| StagingError::Io {
                    path: self.txid.as_str().into(),
                    source: io::Error::other(err),
                })??;
            } else {
                pending.sync()?;
            }
        }
        Ok(self.state.lock().take(note)?)
    }

    async fn drive(&self, sealed: &Sealed) -> Result<CommitReport, CommitError> {
        match self.steps(sealed).await {
            Ok(report) => Ok(report),
            Err(mut err) => {
                if let CommitError::Conflict { conflicts } = &mut err {
                    self.name_owners(conflicts).await;
                }
                Err(self.fail(sealed, err).await)
            }
        }
    }

    async fn steps(&self, sealed: &Sealed) -> Result<CommitReport, CommitError> {
        if let Some(record) = self.ended().await? {
            if record.outcome == Outcome::Abort {
                return Err(self.fenced(&record));
            }
            self.state.lock().committed = Some(record.body.seq);
            self.note(Note::Committed { seq: record.body.seq })?;
            return self.finish(sealed, record, 0).await;
        }
        self.ctx.progress.phase(Phase::Preflight, 0, 0);
        let surveyed = self.survey(&contents_of(sealed)?, Some(sealed)).await?;
        self.check_record(&surveyed).await?;
        let intent = self.intent(&surveyed.plan);
        let mut conflicts = surveyed.plan.conflicts.clone();
        conflicts.extend(self.intents.in_the_way(&intent, &self.log).await?);
        if !conflicts.is_empty() {
            return Err(CommitError::Conflict { conflicts });
        }
        let head = self.announced_at().await?;
        self.sent.store(true, Ordering::Relaxed);
        let uploads = self.prepare(sealed, &surveyed).await?;
        self.note(Note::Intent { head })?;
        let hides = self.state.lock().publishing;
        self.intents.announce(&intent, &self.log, hides).await?;
        self.still_as_seen(&surveyed.plan).await?;
        self.note(Note::Publishing)?;
        let written = self.publish(sealed, &surveyed, &uploads).await?;
        let changes = self.changes(sealed, &surveyed, &written).await?;
        let already_there = surveyed.plan.already_there.len() as u64;
        if changes.is_empty() {
            // All of it was published and recorded before.
            self.intents.withdraw(&self.txid).await?;
            let report = self.report(None, changes, already_there);
            self.tell(&report);
            blocking(|| self.ctx.staging.finish(sealed))?;
            return Ok(report);
        }
        // From here on the record may appear: then the commit has succeeded, whatever is done now.
        self.sender.ambiguous.store(true, Ordering::Relaxed);
        match self.log.append(&self.draft(Outcome::Commit, changes), head).await? {
            Appended::Recorded(record) => {
                // Known before the journal has it: if that fails, nothing may be taken back.
                self.state.lock().committed = Some(record.body.seq);
                self.note(Note::Committed { seq: record.body.seq })?;
                self.finish(sealed, record, already_there).await
            }
            Appended::Contradicted(record) => Err(self.fenced(&record)),
        }
    }

    /// Whether there can be a record of this that can be read again: what is too long is refused before
    /// anything is sent.
    async fn check_record(&self, surveyed: &Surveyed) -> Result<(), CommitError> {
        // What may be too long takes reading all of the log's newest snapshot to find out.
        if surveyed.listed_bytes_least > self.ctx.options.snapshot_bytes_max / MARGIN_OF_LEAST {
            self.log.check_room().await?;
        }
        if surveyed.plan.record_bytes_least() <= RECORD_BYTES_MAX {
            return Ok(());
        }
        let key = self.ctx.prefix.log_key(self.ctx.dataset(), self.state.lock().intent_head.unwrap_or(0) + 1);
        Err(CommitError::Record { key, source: RecordError::TooLong { limit_bytes: RECORD_BYTES_MAX } })
    }

    /// Where the log ended before the commit was first announced: its record comes behind that.
    async fn announced_at(&self) -> Result<u64, CommitError> {
        let known = self.state.lock().intent_head;
        match known {
            Some(head) => Ok(head),
            None => Ok(self.log.head().await?),
        }
    }

    /// The record that has ended this commit, if there is one.
    async fn ended(&self) -> Result<Option<CommitRecord>, CommitError> {
        let announced = self.state.lock().intent_head;
        let Some(head) = announced else { return Ok(None) };
        let newest = self.log.head_from(head).await?;
        Ok(self.log.find(&self.txid, head + 1..=newest).await?)
    }

    /// Whether this may go on to publish. Who was asleep meanwhile may find its commit ended and its notice
    /// swept away: nothing would hide what it publishes. Others that publish wait while this asks.
    pub(super) async fn still_ours(&self) -> Result<(), CommitError> {
        let mut looked = self.looked.lock().await;
        let now = self.ctx.clock.now();
        if now.duration_since(*looked).is_ok_and(|unseen| unseen < UNSEEN_MAX) {
            return Ok(());
        }
        if let Some(record) = self.ended().await?
            && record.outcome == Outcome::Abort
        {
            return Err(self.fenced(&record));
        }
        *looked = now;
        Ok(())
    }

    /// The number under which the log has this commit, if it has it.
    async fn committed(&self) -> Result<Option<u64>, CommitError> {
        let record = self.ended().await?.filter(|record| record.outcome == Outcome::Commit);
        Ok(record.map(|record| record.body.seq))
    }

    fn fenced(&self, record: &CommitRecord) -> CommitError {
        let by = format!("{}@{}", record.body.author.user, record.body.author.host);
        CommitError::Fenced { txid: self.txid.clone(), by }
    }

    fn intent(&self, plan: &CommitPlan) -> Intent {
        let old = |path: &RelPath, etag: &ETag| OldVersion { path: path.clone(), etag: etag.clone() };
        let replaces = plan.replace.iter().filter_map(|file| match &file.expect {
            Expect::Version(etag) => Some(old(&file.path, etag)),
            Expect::Absent => None,
        });
        Intent {
            dataset: self.ctx.dataset().clone(),
            txid: self.txid.clone(),
            author: self.ctx.author.clone(),
            time: self.ctx.clock.now(),
            creates: plan.create.iter().map(|file| file.path.clone()).collect(),
            markers: plan.markers.iter().map(|(path, _)| path.clone()).collect(),
            replaces: replaces.collect(),
            deletes: plan.delete.iter().map(|gone| old(&gone.path, &gone.etag)).collect(),
            deleting: None,
        }
    }

    fn draft(&self, outcome: Outcome, changes: Changes) -> Draft {
        let body = CommitBody {
            dataset: self.ctx.dataset().clone(),
            seq: 0,
            txid: self.txid.clone(),
            author: self.ctx.author.clone(),
            time: self.ctx.clock.now(),
            message: self.message.clone(),
            changes,
            base: None,
            tail: Changes::default(),
        };
        Draft { outcome, body }
    }

    fn thaw(&self, sealed: &Sealed) -> Result<(), CommitError> {
        Ok(blocking(|| self.ctx.staging.thaw(sealed))?)
    }

    /// Decides what becomes of a commit that failed, and does it.
    async fn fail(&self, sealed: &Sealed, error: CommitError) -> CommitError {
        let interrupted = |source: CommitError| CommitError::Interrupted {
            txid: self.txid.clone(),
            source: Box::new(source),
        };
        let committed = self.state.lock().committed.is_some();
        let sent = self.sent.load(Ordering::Relaxed);
        if committed || (sent && (error.is_transient() || self.is_locked_out(&error).await)) {
            return interrupted(error);
        }
        if !sent {
            return self.thaw(sealed).err().unwrap_or(error);
        }
        if let Err(err) = self.note(Note::Aborting) {
            return interrupted(err);
        }
        self.ctx.progress.phase(Phase::RollBack, 0, 0);
        match self.roll_back(sealed).await {
            Ok(()) => error,
            Err(CommitError::NotRestored { paths, .. }) => {
                CommitError::NotRestored { paths, source: Box::new(error) }
            }
            Err(err @ CommitError::Interrupted { .. }) => err,
            Err(err) => interrupted(err),
        }
    }

    /// Whether it is who asks that is refused, not what is asked for. Nothing can be taken back then, and
    /// nothing is wrong with the commit.
    async fn is_locked_out(&self, error: &CommitError) -> bool {
        matches!(error, CommitError::Store(err) if err.may_be_about_access())
            && self.ctx.store.check_access().await.is_err()
    }

    /// Ends the commit in the log if it may still have effects, takes back what it created, and
    /// thaws.
    async fn roll_back(&self, sealed: &Sealed) -> Result<(), CommitError> {
        let state = self.state.lock().clone();
        let lost = self.ctx.store.lost_answers() > self.lost_before;
        let ambiguous = lost || self.sender.ambiguous.load(Ordering::Relaxed);
        let contents = contents_of(sealed)?;
        let lost_before = self.ctx.store.lost_answers();
        let end_behind = state.intent_head.filter(|_| ambiguous);
        let mut deleting = None;
        if self.intents.is_alone() {
            // The record of the end may take the number of another commit's, unless that one waits for this.
            if state.publishing {
                deleting = Some(self.begin_taking_back(&contents).await?);
            } else if end_behind.is_some() {
                let announced = self.intents.announce(&self.intent_of(&contents), &self.log, false).await;
                announced.map_err(|err| self.others_come_first(err))?;
            }
        }
        if let Some(head) = end_behind {
            self.end_in_the_log(head).await?;
        }
        if state.publishing && deleting.is_none() {
            deleting = Some(self.begin_taking_back(&contents).await?);
        }
        let not_restored = self.take_back(&contents, &state, deleting.as_mut()).await?;
        let lost =
            self.ctx.store.lost_answers() > lost_before || self.sender.lost_deletion.load(Ordering::Relaxed);
        match deleting {
            // The stamped intent stays, as that of a commit that has ended.
            Some(deleting) if lost || deleting.unsettled => {
                if !ambiguous {
                    self.end_in_the_log(state.intent_head.unwrap_or(0)).await?;
                }
            }
            // Something may still appear that has to be hidden.
            Some(deleting) if ambiguous => self.intents.deleted(deleting).await?,
            // Every request was answered: nothing can appear any more, nor go.
            Some(deleting) => {
                self.intents.withdraw_stamped(deleting).await?;
            }
            None => self.intents.withdraw(&self.txid).await?,
        }
        self.thaw(sealed)?;
        if not_restored.is_empty() {
            return Ok(());
        }
        let source = Box::new(CommitError::Aborted { txid: self.txid.clone() });
        Err(CommitError::NotRestored { paths: not_restored, source })
    }

    /// Says whose the files are that are in the way, as far as the newest records tell. A failure only
    /// leaves it unsaid.
    async fn name_owners(&self, conflicts: &mut [Conflict]) {
        let mut unnamed: HashMap<String, &mut Conflict> = conflicts
            .iter_mut()
            .filter(|conflict| matches!(conflict.reason, ConflictReason::Exists { by: None, .. }))
            .map(|conflict| (conflict.path.clone(), conflict))
            .collect();
        let head = if unnamed.is_empty() { 0 } else { self.log.head().await.unwrap_or(0) };
        for seq in (head.saturating_sub(RECORDS_ASKED_MAX) + 1..=head).rev() {
            let Ok(Some(CommitRecord { body, .. })) = self.log.record(seq).await else { return };
            for entry in &body.changes.entries {
                let Some(conflict) = unnamed.remove(entry.path.as_str()) else { continue };
                if let ConflictReason::Exists { etag, by } = &mut conflict.reason
                    && etag.as_ref().is_none_or(|etag| *etag == entry.etag)
                {
                    *by = Some(format!("{}@{} (commit {seq})", body.author.user, body.author.host));
                }
            }
            if unnamed.is_empty() {
                return;
            }
        }
    }

    /// Writes the record that ends this commit, behind `head`.
    async fn end_in_the_log(&self, head: u64) -> Result<(), CommitError> {
        let draft = self.draft(Outcome::Abort, Changes::default());
        match self.log.append(&draft, head).await? {
            Appended::Recorded(_) => Ok(()),
            Appended::Contradicted(record) => {
                Err(CommitError::AlreadyCommitted { txid: self.txid.clone(), seq: record.body.seq })
            }
        }
    }

    async fn begin_taking_back(&self, contents: &Contents) -> Result<Deleting, CommitError> {
        let begun = self.intents.begin_deleting(&self.intent_of(contents), &self.log).await;
        begun.map_err(|err| self.others_come_first(err))
    }

    /// Another commit is about to create the same files: it has to end before this can be taken back.
    fn others_come_first(&self, err: CommitError) -> CommitError {
        if matches!(err, CommitError::Conflict { .. }) {
            return CommitError::Interrupted { txid: self.txid.clone(), source: Box::new(err) };
        }
        err
    }
}
