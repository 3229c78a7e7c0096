//! Intents: telling other committers, and readers, what is about to appear.
//!
//! Two committers whose intents overlap must not both go on. Each one writes its own first and
//! looks at the others' then; since a listing shows every object that was written before it, at
//! least one of two sees the other. Whoever sees one withdraws its own, waits a random while and
//! tries again, a bounded number of times: both may yield, never neither.
//!
//! Of two that see each other the one with the smaller id stays and waits for the other to go; only
//! if that one has come too far already does it give up. One that is resumed with objects in place
//! never withdraws its intent, which hides them: it waits, and is rolled back if that does not help.
//!
//! An intent is *live* while the log holds no record of its commit. The intent of an aborted one
//! may stay as a tombstone: it goes on hiding its keys from readers and blocks nobody.
//!
//! # Deleting
//!
//! A request that is given up may be carried out long after. One that deletes names its version by
//! `ETag`, but on S3 that is a hash of the content: the same file, published anew meanwhile, would be
//! its victim. So whoever deletes (a roll back, `gc`, a commit that deletes) first stamps the
//! commit's intent with the time ([`Intents::begin_deleting`]), and then makes sure that nobody is
//! about to create the same; who creates yields to a stamp that is younger than [`LATE_MAX`]. The
//! stamp goes when every such request was answered.
//!
//! Two may delete for one commit, its owner and `gc`. Each writes its stamp over the version that it has
//! read, and takes back no other version than the one that it wrote: so the second knows of the first,
//! and neither takes the other's stamp away. What is left then, `gc` removes when it is old.
//!
//! A stamp that was too old for a while, as that of a machine that has slept, has kept nobody off meanwhile:
//! nothing is deleted any more on what was looked at before ([`Intents::still_deleting`]), and who deletes
//! begins anew.
//!
//! How old a stamp is, the server's clock says: it dates the objects, that with the stamp and the one
//! that was written last by who asks. So it does not matter what committers take for the time.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::clock::Clock;
use crate::commit::CommitError;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::commit::send::Announced;
use crate::commit::send::Sender;
use crate::log::Log;
use crate::log::read_listed;
use crate::log::read_version;
use crate::name::DatasetName;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Intent;
use crate::record::RecordError;
use crate::record::format_mtime;
use crate::store::DELETE_WITHIN;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::META_TXID;
use crate::store::ObjectStore;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::guarantee::Guarantee;
use crate::store::list_all;

/// How often an intent is withdrawn before the commit gives way.
const TRIES: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// After this long no request is carried out any more: servers refuse one whose signature is older
/// than [`SIGNATURE_AGE_MAX`]. The rest is for clocks that differ, and for roll backs that take a while.
pub(super) const LATE_MAX: Duration = Duration::from_secs(30 * 60);
/// How old a stamp may become before who deletes renews it.
pub(super) const STAMP_AGE_MAX: Duration = Duration::from_secs(5 * 60);
/// How old the signature of a request may become before servers refuse it.
const SIGNATURE_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// How old a stamp may be when a deletion is asked for behind it: that is looked at once more, signed and
/// carried out before the stamp is too old to keep others off.
const STAMP_AGE_LAST: Duration =
    Duration::from_secs(LATE_MAX.as_secs() - SIGNATURE_AGE_MAX.as_secs() - 2 * DELETE_WITHIN.as_secs());
const _: () = assert!(STAMP_AGE_MAX.as_secs() < STAMP_AGE_LAST.as_secs());

/// Metadata key of a stamped intent: its time. With it on, a lost answer can be told from a stamp that
/// another has written for the same commit.
const META_DELETING: &str = "dsfs-deleting";

/// The intents of one dataset.
#[derive(Debug)]
pub(super) struct Intents {
    pub store: Arc<dyn ObjectStore>,
    pub prefix: RemotePrefix,
    pub dataset: DatasetName,
    pub guarantee: Guarantee,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Where the length of pauses comes from.
    pub jitter: Mutex<StdRng>,
}

/// An intent, and when it was written, by the server's clock.
#[derive(Debug)]
pub(super) struct Noticed {
    pub intent: Intent,
    pub modified: SystemTime,
    /// Which version of it, if the listing said.
    pub version: Option<ETag>,
}

/// An object among the intents that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub key: ObjectKey,
    pub modified: SystemTime,
    pub source: RecordError,
}

/// What an announcement of deletions found.
#[derive(Debug)]
pub(super) struct Deleting {
    /// The intent as it was written.
    intent: Intent,
    /// The version that this made.
    version: ETag,
    /// When, by the clock of who deletes.
    since: SystemTime,
    /// Whether earlier requests may be on their way, whatever becomes of ours.
    pub unsettled: bool,
}

impl Intents {
    pub fn key(&self, txid: &str) -> ObjectKey {
        self.prefix.intent_key(&self.dataset, txid)
    }

    /// Every intent that is there now, and what is there and cannot be read.
    pub async fn found(&self) -> Result<(Vec<Noticed>, Vec<Unreadable>), CommitError> {
        let request = ListRequest::recursive(self.prefix.intents(&self.dataset));
        let (mut intents, mut unreadable) = (Vec::new(), Vec::new());
        for object in list_all(&*self.store, request).await?.objects {
            // One that is gone by now was withdrawn.
            let Some(body) = read_listed(&*self.store, &object).await? else { continue };
            let ListedObject { key, modified, etag: version, .. } = object;
            match Intent::decode(&body) {
                Ok(intent) => intents.push(Noticed { intent, modified, version }),
                Err(source) => unreadable.push(Unreadable { key, modified, source }),
            }
        }
        Ok((intents, unreadable))
    }

    /// Every intent that is there now; nobody can go on beside one that cannot be read.
    pub async fn all(&self) -> Result<Vec<Noticed>, CommitError> {
        let (intents, mut unreadable) = self.found().await?;
        match unreadable.pop() {
            None => Ok(intents),
            Some(Unreadable { key, source, .. }) => Err(CommitError::UnreadableIntent { key, source }),
        }
    }

    /// What stands in the way of `own`, before it is announced: the paths of live intents that overlap.
    pub async fn in_the_way(&self, own: &Intent, log: &Log) -> Result<Vec<Conflict>, CommitError> {
        self.conflicts(own, log, false).await
    }

    /// As [`Self::in_the_way`]; with `announced`, `own` was just written.
    async fn conflicts(
        &self,
        own: &Intent,
        log: &Log,
        announced: bool,
    ) -> Result<Vec<Conflict>, CommitError> {
        let (own_notice, others): (Vec<Noticed>, Vec<Noticed>) =
            self.all().await?.into_iter().partition(|notice| notice.intent.txid == own.txid);
        let written = own_notice.first().filter(|_| announced).map(|notice| notice.modified);
        let mut conflicts = Vec::new();
        for Noticed { intent: other, modified, .. } in others {
            let author = format!("{}@{}", other.author.user, other.author.host);
            let txid = other.txid.clone();
            let left = other.deleting.and_then(|_| self.still_late(modified, written));
            let shared: Vec<String> = own.overlap(&other).iter().map(RelPath::to_string).collect();
            let (overlap, reason) = if self.is_alone() && !self.has_ended(&other, log).await? {
                (named(own), ConflictReason::Intent { txid, author })
            } else if let Some(left) = left {
                let until = self.clock.now() + left;
                (shared, ConflictReason::BeingDeleted { txid, author, until })
            } else if !shared.is_empty() && !self.has_ended(&other, log).await? {
                (shared, ConflictReason::Intent { txid, author })
            } else {
                continue;
            };
            conflicts.extend(overlap.into_iter().map(|path| Conflict { path, reason: reason.clone() }));
        }
        conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(conflicts)
    }

    /// How long requests that were announced at `stamped` may still come, if they may: at `now`, both by
    /// the server's clock. Who has not written anything just now knows no better than its own clock.
    fn still_late(&self, stamped: SystemTime, now: Option<SystemTime>) -> Option<Duration> {
        let age = match now {
            Some(now) => now.duration_since(stamped).unwrap_or_default(),
            // One that is hours off is not believed here; the announcement looks again.
            None => self.clock.now().duration_since(stamped).unwrap_or_else(|ahead| ahead.duration()),
        };
        LATE_MAX.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Whether `own` has to go out of the way of those that it conflicts with, or they of it.
    fn must_yield(own: &Intent, conflicts: &[Conflict]) -> bool {
        let comes_first = |conflict: &Conflict| matches!(&conflict.reason, ConflictReason::Intent { txid, .. } if own.txid < *txid);
        !conflicts.iter().all(comes_first)
    }

    /// Whether a commit has to be the only one of its dataset: where nothing but the intents keeps two
    /// records from taking one number.
    pub fn is_alone(&self) -> bool {
        self.guarantee == Guarantee::BestEffort
    }

    /// Whether the log has a record of that commit.
    pub async fn has_ended(&self, intent: &Intent, log: &Log) -> Result<bool, CommitError> {
        let head = log.head().await?;
        Ok(log.find_since(&intent.txid, head, intent.begun()).await?.is_some())
    }

    /// Writes the intent down and makes sure that no live one overlaps. With `hides`, objects are there
    /// already that only the intent keeps from being shown: it stays then, whatever is found.
    pub async fn announce(&self, own: &Intent, log: &Log, hides: bool) -> Result<(), CommitError> {
        let mut conflicts = Vec::new();
        let mut is_there = false;
        for round in 0..TRIES {
            if round > 0 {
                self.pause(round).await;
            }
            if !is_there {
                // Never the same bytes twice: a withdrawal that comes late must not find its version.
                self.write(&Intent { time: self.clock.now(), ..own.clone() }).await?;
                is_there = true;
            }
            conflicts = self.conflicts(own, log, true).await?;
            if conflicts.is_empty() {
                return Ok(());
            }
            if !hides && Self::must_yield(own, &conflicts) {
                self.withdraw(&own.txid).await?;
                is_there = false;
            }
        }
        if is_there && !hides {
            self.withdraw(&own.txid).await?;
        }
        Err(CommitError::Conflict { conflicts })
    }

    async fn pause(&self, round: u32) {
        let pause = self.jitter.lock().random_range(PAUSE_MIN..PAUSE_MAX);
        tokio::time::sleep(pause * round).await;
    }

    /// Writes an intent, over an earlier one of the same commit.
    async fn write(&self, intent: &Intent) -> Result<(), CommitError> {
        let key = self.key(&intent.txid);
        let mut expect = Expect::Absent;
        for _ in 0..TRIES {
            if self.put(intent, &expect).await?.is_some() {
                return Ok(());
            }
            // It is ours from before, or the answer was lost.
            expect = match self.store.head(&key).await {
                Ok(meta) => Expect::Version(meta.etag),
                Err(StoreError::NotFound { .. }) => Expect::Absent,
                Err(err) => return Err(err.into()),
            };
        }
        Err(StoreError::unavailable(&key, "it changes all the time").into())
    }

    /// Writes an intent in the place of what is expected there, and tells the version; `None`: something
    /// else is there.
    async fn put(&self, intent: &Intent, expect: &Expect) -> Result<Option<ETag>, CommitError> {
        let key = self.key(&intent.txid);
        // With its name on it, a lost answer can be told from somebody else's object.
        let txid = (META_TXID, intent.txid.clone());
        let stamp = intent.deleting.map(|since| (META_DELETING, format_mtime(since)));
        let metadata = [txid].into_iter().chain(stamp).map(|(name, value)| (name.to_owned(), value));
        let attributes = PutAttributes { metadata: metadata.collect(), ..PutAttributes::default() };
        let object = intent.encode().map_err(|source| CommitError::Record { key: key.clone(), source })?;
        match (self.store.put(&key, object, expect, &attributes).await, expect) {
            (Ok(version), _) => Ok(Some(version)),
            (Err(StoreError::AlreadyExists { .. } | StoreError::Changed { .. }), _) => Ok(None),
            // A server that cannot replace an object and says so: the earlier one has to do.
            (Err(StoreError::Rejected { .. }), Expect::Version(earlier)) => Ok(Some(earlier.clone())),
            (Err(err), _) => Err(err.into()),
        }
    }

    /// Stamps a commit's intent, or `own` if it has none in the bucket. `before` is who asks' own stamp.
    async fn stamp(&self, own: &Intent, before: Option<&ETag>) -> Result<Deleting, CommitError> {
        let key = self.key(&own.txid);
        for _ in 0..TRIES {
            let (intent, expect, stamped) = match read_version(&*self.store, &key).await? {
                Some((meta, body)) => {
                    let decoded = Intent::decode(&body);
                    let there = decoded.map_err(|source| CommitError::Record { key: key.clone(), source })?;
                    let is_anothers = there.deleting.is_some() && before != Some(&meta.etag);
                    (there, Expect::Version(meta.etag), is_anothers.then_some(meta.modified))
                }
                None => (own.clone(), Expect::Absent, None),
            };
            let since = self.clock.now();
            // Never the same bytes as another's stamp: on S3 they would be the same version.
            let deleting = since + Duration::from_nanos(u64::from(intent.deleting == Some(since)));
            let intent = Intent { deleting: Some(deleting), ..intent };
            let Some(version) = self.put(&intent, &expect).await? else { continue };
            let unsettled = match stamped {
                Some(stamped) => self.still_late(stamped, self.written_at(&key).await?).is_some(),
                None => false,
            };
            return Ok(Deleting { intent, version, since, unsettled });
        }
        Err(StoreError::unavailable(&key, "it changes all the time").into())
    }

    /// Says that objects of a commit are going to be deleted, those that it names (`own`, if it has no
    /// intent in the bucket any more), and makes sure that nobody is about to create them.
    ///
    /// # Errors
    /// [`CommitError::Conflict`]: somebody is, and does not go away. Nothing may be deleted then.
    pub async fn begin_deleting(&self, own: &Intent, log: &Log) -> Result<Deleting, CommitError> {
        let deleting = self.stamp(own, None).await?;
        let mut conflicts = Vec::new();
        for round in 0..TRIES {
            if round > 0 {
                self.pause(round).await;
            }
            conflicts = self.conflicts(&deleting.intent, log, true).await?;
            // Others that delete are no danger to anybody who deletes.
            conflicts.retain(|conflict| matches!(conflict.reason, ConflictReason::Intent { .. }));
            if conflicts.is_empty() {
                return Ok(deleting);
            }
        }
        Err(CommitError::Conflict { conflicts })
    }

    /// When an object was written, by the server's clock.
    async fn written_at(&self, key: &ObjectKey) -> Result<Option<SystemTime>, StoreError> {
        match self.store.head(key).await {
            Ok(meta) => Ok(Some(meta.modified)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Renews a stamp that grows old.
    ///
    /// # Errors
    /// Also if it was too old for a while, or the new one is by now: somebody may have seen it so and be about
    /// to create what is to be deleted. That has to be announced and looked at anew.
    pub async fn still_deleting(&self, deleting: &mut Deleting) -> Result<(), CommitError> {
        let Deleting { since: before, unsettled, .. } = *deleting;
        if before + STAMP_AGE_MAX > self.clock.now() {
            return Ok(());
        }
        *deleting = self.stamp(&deleting.intent, Some(&deleting.version)).await?;
        deleting.unsettled |= unsettled;
        let now = self.clock.now();
        if before + LATE_MAX > now && deleting.since + STAMP_AGE_LAST > now {
            return Ok(());
        }
        let reason = "deleting was interrupted for so long (this machine may have slept) that others may have \
                      published the same files meanwhile; what is there has to be looked at anew";
        Err(StoreError::unavailable(self.key(&deleting.intent.txid), reason).into())
    }

    /// Removes what a commit has put at `keys`, several at once, behind a stamp that is kept young. Stops
    /// starting new ones at the first failure, and waits for those under way.
    pub async fn remove(
        &self,
        sender: &Sender,
        deleting: &mut Deleting,
        keys: &[ObjectKey],
    ) -> Result<(), CommitError> {
        let stamp = tokio::sync::Mutex::new(deleting);
        let failure = Mutex::new(None);
        stream::iter(keys)
            .for_each_concurrent(sender.workers, |key| {
                let (stamp, failure) = (&stamp, &failure);
                async move {
                    if failure.lock().is_some() {
                        return;
                    }
                    let announced = Stamped { intents: self, stamp };
                    if let Err(err) = sender.remove_announced(key, &announced).await {
                        failure.lock().get_or_insert(err);
                    }
                }
            })
            .await;
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// Takes the stamp back, whatever was asked for having been answered; another's stays.
    pub async fn deleted(&self, deleting: Deleting) -> Result<(), CommitError> {
        let Deleting { intent, version, .. } = deleting;
        self.put(&Intent { deleting: None, ..intent }, &Expect::Version(version)).await?;
        Ok(())
    }

    /// Removes a stamped intent, whatever was asked for having been answered; another's stays: `false`.
    pub async fn withdraw_stamped(&self, deleting: Deleting) -> Result<bool, StoreError> {
        self.withdraw_version(&deleting.intent.txid, &deleting.version).await
    }

    /// Removes an intent in this version; `false`: it has another.
    pub async fn withdraw_version(&self, txid: &str, version: &ETag) -> Result<bool, StoreError> {
        match self.store.delete(&self.key(txid), version).await {
            Ok(()) => Ok(true),
            Err(StoreError::Changed { .. }) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Removes an intent that nobody else has stamped, if it is there.
    pub async fn withdraw(&self, txid: &str) -> Result<(), StoreError> {
        let key = self.key(txid);
        match self.store.head(&key).await {
            Ok(meta) => self.store.delete(&key, &meta.etag).await,
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }
}

/// What several delete behind.
struct Stamped<'a, 'd> {
    intents: &'a Intents,
    stamp: &'a tokio::sync::Mutex<&'d mut Deleting>,
}

#[async_trait]
impl Announced for Stamped<'_, '_> {
    async fn still_stands(&self) -> Result<(), CommitError> {
        self.intents.still_deleting(*self.stamp.lock().await).await
    }
}

/// Everything that an intent is about.
fn named(intent: &Intent) -> Vec<String> {
    let paths: Vec<String> = intent.paths().map(RelPath::to_string).collect();
    if paths.is_empty() { vec![".".into()] } else { paths }
}
