//! Ending what others have left behind: dead commits, and what is visible of them.
//!
//! An intent without a record is either being worked on or dead; from outside these look the
//! same, so that only its age counts, and the user decides which age. Ending it is safe either
//! way: the `abort` record takes a place in the log, and a committer that comes back finds it
//! there before it can write its own, and takes back what it had created.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::clock::Clock;
use crate::commit::CommitContext;
use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::Log;
use crate::commit::NoProgress;
use crate::commit::Phase;
use crate::commit::Progress;
use crate::commit::announce::Intents;
use crate::commit::announce::LATE_MAX;
use crate::commit::announce::Noticed;
use crate::commit::announce::Unreadable;
use crate::commit::deletion::Deletion;
use crate::commit::send::Found;
use crate::commit::send::Sender;
use crate::failpoint;
use crate::log::Appended;
use crate::log::Draft;
use crate::name::DatasetName;
use crate::name::ObjectKey;
use crate::name::RemotePrefix;
use crate::record::Author;
use crate::record::Changes;
use crate::record::CommitBody;
use crate::record::Outcome;
use crate::record::RecordError;
use crate::store::ListRequest;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;

/// A commit that has not ended after this long is taken for dead.
pub const DEAD_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// A commit that is not asked to end others takes one for dead after this long: whoever began it has had
/// a week to go on with it.
pub const DEAD_AFTER_UNASKED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What a dead commit may still publish is waited for this long.
pub const SWEEP_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys that are looked at one by one; of more than these, a listing tells which are there at all.
const LOOKS_MAX: usize = 100;

/// What is old enough.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Age at which a commit is taken for dead.
    pub dead_after: Duration,
    /// How long ago a commit must have been ended before what it left is removed.
    pub sweep_after: Duration,
    /// End, and remove the notices of, commits whose notices cannot be read, if they are as old as
    /// `dead_after`. What such a commit has created stays, since nothing names it any more.
    pub remove_unreadable: bool,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            dead_after: DEAD_AFTER_DEFAULT,
            sweep_after: SWEEP_AFTER_DEFAULT,
            remove_unreadable: false,
            dry_run: false,
        }
    }
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Commits under way, left alone.
    pub live: Vec<String>,
    /// Commits that were taken for dead, and ended.
    pub ended: Vec<String>,
    /// Ended commits whose tombstones are not old enough yet.
    pub waiting: Vec<String>,
    /// Commits whose intents were removed, since nothing of them is left to be done.
    pub cleared: Vec<String>,
    /// Objects of ended commits that were removed.
    pub removed: Vec<ObjectKey>,
    /// Notices that cannot be read, and why: nobody can commit to the dataset beside them.
    pub unreadable: Vec<(ObjectKey, String)>,
}

/// What is done for a dataset before something is committed to it: long-dead commits are ended, and what
/// ended ones have left is removed, so that their notices do not hide what others have put there. Costs
/// one listing where there is nothing to be done. A failure is only logged: it is no reason not to commit.
pub async fn tidy(ctx: &CommitContext) {
    // On the weakest grade nothing keeps the record that ends a commit off another's place. And an
    // interrupted commit of our own is about to be ended by whoever asks for this.
    if ctx.guarantee == Guarantee::BestEffort || ctx.staging.sealed().is_some() {
        return;
    }
    ctx.progress.phase(Phase::Preflight, 0, 0);
    let options = GcOptions { dead_after: DEAD_AFTER_UNASKED, ..GcOptions::default() };
    match gc(&ctx.store, &ctx.prefix, ctx.dataset(), &ctx.author, &ctx.clock, &options).await {
        Ok(GcReport { ended, cleared, removed, .. }) => {
            if !(ended.is_empty() && cleared.is_empty()) {
                let (ended, cleared, removed) = (ended.len(), cleared.len(), removed.len());
                tracing::info!(dataset = %ctx.dataset(), ended, cleared, removed, "dead commits tidied up");
            }
        }
        Err(err) => tracing::info!(dataset = %ctx.dataset(), "dead commits were not tidied up: {err}"),
    }
}

/// Ends dead commits of a dataset and removes what ended ones left.
///
/// # Errors
/// The store's, and [`CommitError::Record`]. It can be repeated.
pub async fn gc(
    store: &Arc<dyn ObjectStore>,
    prefix: &RemotePrefix,
    dataset: &DatasetName,
    author: &Author,
    clock: &Arc<dyn Clock>,
    options: &GcOptions,
) -> Result<GcReport, CommitError> {
    let _points = failpoint::scope();
    let log = Log::new(Arc::clone(store), prefix.clone(), dataset.clone());
    let intents = Intents {
        store: Arc::clone(store),
        prefix: prefix.clone(),
        dataset: dataset.clone(),
        guarantee: Guarantee::Enforced,
        clock: Arc::clone(clock),
        jitter: Mutex::new(StdRng::seed_from_u64(0)),
    };
    let sweep = Sweep { store, prefix, log, intents, author, now: clock.now(), options };
    let mut report = GcReport::default();
    let (intents, unreadable) = sweep.intents.found().await?;
    for notice in unreadable {
        sweep.look_at_unreadable(notice, &mut report).await?;
    }
    for intent in intents {
        sweep.look_at(intent, &mut report).await?;
    }
    Ok(report)
}

struct Sweep<'a> {
    store: &'a Arc<dyn ObjectStore>,
    prefix: &'a RemotePrefix,
    log: Log,
    intents: Intents,
    author: &'a Author,
    /// When it was begun: how old things are, it does not find out anew.
    now: SystemTime,
    options: &'a GcOptions,
}

impl Sweep<'_> {
    fn is_older(&self, time: SystemTime, age: Duration) -> bool {
        self.now.duration_since(time).is_ok_and(|passed| passed >= age)
    }

    async fn look_at(&self, notice: Noticed, report: &mut GcReport) -> Result<(), CommitError> {
        let Noticed { intent, modified, .. } = &notice;
        let (txid, modified) = (intent.txid.clone(), *modified);
        let head = self.log.head().await?;
        // By the server's clock, not by that of who wrote it.
        let seems_dead = self.is_older(modified, self.options.dead_after);
        let record = match self.log.find_since(&txid, head, intent.begun()).await? {
            // That look went by the clocks of its author and of others.
            None if seems_dead => self.log.find(&txid, 1..=head).await?,
            found => found,
        };
        let Some(record) = record else {
            if seems_dead {
                return self.end(txid, head, report).await;
            }
            report.live.push(txid);
            return Ok(());
        };
        let is_gone = if intent.deleting.is_some() && !self.is_older(modified, LATE_MAX) {
            false
        } else if record.outcome == Outcome::Commit {
            self.finish(&notice, &record.body).await?
        } else if self.is_older(record.body.time, self.options.sweep_after) {
            self.remove_objects(&notice, report).await?
        } else {
            false
        };
        if is_gone {
            report.cleared.push(txid)
        } else {
            report.waiting.push(txid)
        }
        Ok(())
    }

    async fn end(&self, txid: String, head: u64, report: &mut GcReport) -> Result<(), CommitError> {
        if !self.options.dry_run && !self.end_in_the_log(txid.clone(), head).await? {
            report.live.push(txid); // it has committed just now
            return Ok(());
        }
        report.ended.push(txid);
        Ok(())
    }

    /// Writes the record that ends a commit; `false`: it has committed.
    async fn end_in_the_log(&self, txid: String, head: u64) -> Result<bool, CommitError> {
        let body = CommitBody {
            dataset: self.intents.dataset.clone(),
            seq: 0,
            txid,
            author: self.author.clone(),
            time: self.intents.clock.now(),
            message: None,
            changes: Changes::default(),
            base: None,
            tail: Changes::default(),
        };
        let draft = Draft { outcome: Outcome::Abort, body };
        Ok(matches!(self.log.append(&draft, head).await?, Appended::Recorded(_)))
    }

    /// A notice that cannot be read: its name is the commit's, so that the commit can be ended.
    async fn look_at_unreadable(&self, notice: Unreadable, report: &mut GcReport) -> Result<(), CommitError> {
        let Unreadable { key, modified, source } = notice;
        let of_newer = matches!(source, RecordError::UnknownVersion { .. });
        let is_old = self.is_older(modified, self.options.dead_after);
        let txid = key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        if of_newer || !is_old || !self.options.remove_unreadable {
            report.unreadable.push((key, source.to_string()));
            return Ok(());
        }
        if !self.options.dry_run {
            let head = self.log.head().await?;
            if self.log.find(&txid, 1..=head).await?.is_none() {
                self.end_in_the_log(txid.clone(), head).await?;
            }
            self.intents.withdraw(&txid).await?;
        }
        report.cleared.push(txid);
        Ok(())
    }

    /// Does what a commit that is in the log did not come to do any more; whether its notice is gone.
    async fn finish(&self, notice: &Noticed, record: &CommitBody) -> Result<bool, CommitError> {
        let deleted = &record.changes.deleted;
        if deleted.is_empty() || self.options.dry_run {
            return self.clear(notice).await;
        }
        let deletion = Deletion { log: &self.log, intents: &self.intents, progress: &NoProgress };
        match deletion.carry_out(&notice.intent, record.seq, deleted).await? {
            Some(deleting) => Ok(self.intents.withdraw_stamped(deleting).await?),
            None => Ok(false),
        }
    }

    /// Removes what carries the id of an ended commit; whether its notice is gone.
    async fn remove_objects(&self, notice: &Noticed, report: &mut GcReport) -> Result<bool, CommitError> {
        let intent = &notice.intent;
        let nobody: Arc<dyn Progress> = Arc::new(NoProgress);
        let options = CommitOptions::default();
        let sender = Sender::new(self.store, &intent.txid, Guarantee::Enforced, &options, &nobody);
        let mut keys = Vec::new();
        for path in &intent.creates {
            keys.push(self.prefix.key(&intent.dataset, path)?);
        }
        for path in &intent.markers {
            keys.push(self.prefix.marker_key(&intent.dataset, &path.clone().into())?);
        }
        let left = self.ours(&sender, self.listed(&intent.dataset, keys, sender.workers).await?).await?;
        if left.is_empty() || self.options.dry_run {
            report.removed.extend(left);
            return self.clear(notice).await;
        }
        let mut deleting = match self.intents.begin_deleting(intent, &self.log).await {
            Ok(deleting) => deleting,
            Err(CommitError::Conflict { .. }) => return Ok(false), // somebody publishes there just now
            Err(err) => return Err(err),
        };
        let lost_before = self.store.lost_answers();
        self.intents.remove(&sender, &mut deleting, &left).await?;
        report.removed.extend(left);
        let lost = sender.lost_deletion.load(Ordering::Relaxed) || self.store.lost_answers() > lost_before;
        if lost || deleting.unsettled {
            return Ok(false);
        }
        Ok(self.intents.withdraw_stamped(deleting).await?)
    }

    /// Those of `keys` at which something is, or may be: a large commit that was taken back, or never came
    /// to publish, has left a notice of many files of which none is there.
    async fn listed(
        &self,
        dataset: &DatasetName,
        keys: Vec<ObjectKey>,
        looks_at_once: usize,
    ) -> Result<Vec<ObjectKey>, StoreError> {
        if keys.len() <= LOOKS_MAX {
            return Ok(keys);
        }
        let named: HashSet<&ObjectKey> = keys.iter().collect();
        let mut there = Vec::new();
        let mut request = ListRequest::recursive(self.prefix.dataset(dataset));
        // Of a dataset that is larger than that, the listing takes longer than the looks would.
        for _ in 0..keys.len() / looks_at_once {
            let page = self.store.list(&request).await?;
            let listed = page.objects.into_iter().map(|object| object.key);
            there.extend(listed.filter(|key| named.contains(key)));
            match page.continuation {
                Some(next) => request.continuation = Some(next),
                None => return Ok(there),
            }
        }
        Ok(keys)
    }

    /// Those of `keys` at which there is what the commit has put there.
    async fn ours(&self, sender: &Sender, keys: Vec<ObjectKey>) -> Result<Vec<ObjectKey>, StoreError> {
        let look = async |key: ObjectKey| -> Result<Option<ObjectKey>, StoreError> {
            let found = sender.look(&key).await?;
            Ok(matches!(found, Found::Ours(_) | Found::OurClaim(_)).then_some(key))
        };
        // Boxed and collected: the compiler cannot show that a stream over borrowing closures is Send.
        let looks: Vec<_> = keys.into_iter().map(|key| look(key).boxed()).collect();
        let ours: Vec<Option<ObjectKey>> = stream::iter(looks).buffered(sender.workers).try_collect().await?;
        Ok(ours.into_iter().flatten().collect())
    }

    /// Removes a notice behind which nothing was deleted now, unless another has stamped it meanwhile.
    async fn clear(&self, notice: &Noticed) -> Result<bool, CommitError> {
        let txid = &notice.intent.txid;
        match &notice.version {
            _ if self.options.dry_run => {}
            Some(version) => return Ok(self.intents.withdraw_version(txid, version).await?),
            None => self.intents.withdraw(txid).await?,
        }
        Ok(true)
    }
}
