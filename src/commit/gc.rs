//! Ending what others have left behind: dead commits, and what is visible of them.
//!
//! An intent without a record is either being worked on or dead; from outside these look the
//! same, so that only its age counts, and the user decides which age. Ending it is safe either
//! way: the `abort` record takes a place in the log, and a committer that comes back finds it
//! there before it can write its own, and takes back what it had created.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::clock::Clock;
use crate::commit::CommitError;
use crate::commit::CommitOptions;
use crate::commit::Log;
use crate::commit::NoProgress;
use crate::commit::Progress;
use crate::commit::announce::Intents;
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
use crate::record::Intent;
use crate::record::OldVersion;
use crate::record::Outcome;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;

/// A commit that has not ended after this long is taken for dead.
pub const DEAD_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// What a dead commit may still publish is waited for this long.
pub const SWEEP_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// What is old enough.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Age at which a commit is taken for dead.
    pub dead_after: Duration,
    /// How long ago a commit must have been ended before what it left is removed.
    pub sweep_after: Duration,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dead_after: DEAD_AFTER_DEFAULT, sweep_after: SWEEP_AFTER_DEFAULT, dry_run: false }
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
    clock: &dyn Clock,
    options: &GcOptions,
) -> Result<GcReport, CommitError> {
    let _points = failpoint::scope();
    let log = Log::new(Arc::clone(store), prefix.clone(), dataset.clone());
    let intents = Intents {
        store: Arc::clone(store),
        prefix: prefix.clone(),
        dataset: dataset.clone(),
        guarantee: Guarantee::Enforced,
        jitter: Mutex::new(StdRng::seed_from_u64(0)), // nothing is announced here
    };
    let sweep = Sweep { store, prefix, log, intents, author, now: clock.now(), options };
    let mut report = GcReport::default();
    for intent in sweep.intents.all().await? {
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
    now: SystemTime,
    options: &'a GcOptions,
}

impl Sweep<'_> {
    fn is_older(&self, time: SystemTime, age: Duration) -> bool {
        self.now.duration_since(time).is_ok_and(|passed| passed >= age)
    }

    async fn look_at(&self, intent: Intent, report: &mut GcReport) -> Result<(), CommitError> {
        let head = self.log.head().await?;
        match self.log.find_since(&intent.txid, head, intent.time).await? {
            Some(record) if record.outcome == Outcome::Commit => {
                self.finish(&intent.dataset, &record.body.changes.deleted).await?;
                self.clear(intent, report).await
            }
            Some(record) if self.is_older(record.body.time, self.options.sweep_after) => {
                self.remove_objects(&intent, report).await?;
                self.clear(intent, report).await
            }
            Some(_) => {
                report.waiting.push(intent.txid);
                Ok(())
            }
            None if self.is_older(intent.time, self.options.dead_after) => {
                self.end(intent, head, report).await
            }
            None => {
                report.live.push(intent.txid);
                Ok(())
            }
        }
    }

    async fn end(&self, intent: Intent, head: u64, report: &mut GcReport) -> Result<(), CommitError> {
        if !self.options.dry_run {
            let body = CommitBody {
                dataset: intent.dataset,
                seq: 0,
                txid: intent.txid.clone(),
                author: self.author.clone(),
                time: self.now,
                message: None,
                changes: Changes::default(),
                base: None,
                tail: Changes::default(),
            };
            let draft = Draft { outcome: Outcome::Abort, body };
            if let Appended::Contradicted(_) = self.log.append(&draft, head).await? {
                report.live.push(intent.txid); // it was not dead, and has committed just now
                return Ok(());
            }
        }
        report.ended.push(intent.txid);
        Ok(())
    }

    /// Does what a commit that is in the log did not come to do any more.
    async fn finish(&self, dataset: &DatasetName, deleted: &[OldVersion]) -> Result<(), CommitError> {
        for gone in deleted.iter().filter(|_| !self.options.dry_run) {
            match self.store.delete(&self.prefix.key(dataset, &gone.path)?, &gone.etag).await {
                Ok(()) | Err(StoreError::Changed { .. }) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    /// Removes what carries the id of an ended commit.
    async fn remove_objects(&self, intent: &Intent, report: &mut GcReport) -> Result<(), CommitError> {
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
        for key in keys {
            if let Found::Ours(_) | Found::OurClaim(_) = sender.look(&key, None).await? {
                if !self.options.dry_run {
                    sender.remove_ours(&key).await?;
                }
                report.removed.push(key);
            }
        }
        Ok(())
    }

    async fn clear(&self, intent: Intent, report: &mut GcReport) -> Result<(), CommitError> {
        if !self.options.dry_run {
            self.intents.withdraw(&intent.txid).await?;
        }
        report.cleared.push(intent.txid);
        Ok(())
    }
}
