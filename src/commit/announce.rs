//! Intents: telling other committers, and readers, what is about to appear.
//!
//! Two committers whose intents overlap must not both go on. Each one writes its own first and
//! looks at the others' then; since a listing shows every object that was written before it, at
//! least one of two sees the other. Whoever sees one withdraws its own, waits a random while and
//! tries again, a bounded number of times: both may yield, never neither.
//!
//! An intent is *live* while the log holds no record of its commit. The intent of an aborted one
//! may stay as a tombstone: it goes on hiding its keys from readers and blocks nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::commit::CommitError;
use crate::commit::Conflict;
use crate::commit::ConflictReason;
use crate::log::Log;
use crate::log::read_object;
use crate::name::DatasetName;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Intent;
use crate::store::Expect;
use crate::store::ListRequest;
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

/// The intents of one dataset.
#[derive(Debug)]
pub(super) struct Intents {
    pub store: Arc<dyn ObjectStore>,
    pub prefix: RemotePrefix,
    pub dataset: DatasetName,
    pub guarantee: Guarantee,
    /// Where the length of pauses comes from.
    pub jitter: Mutex<StdRng>,
}

impl Intents {
    pub fn key(&self, txid: &str) -> ObjectKey {
        self.prefix.intent_key(&self.dataset, txid)
    }

    /// Every intent that is there now.
    pub async fn all(&self) -> Result<Vec<Intent>, CommitError> {
        let request = ListRequest::recursive(self.prefix.intents(&self.dataset));
        let mut intents = Vec::new();
        for object in list_all(&*self.store, request).await?.objects {
            // One that is gone by now was withdrawn.
            if let Some(body) = read_object(&*self.store, &object.key).await? {
                let intent = Intent::decode(&body);
                intents.push(intent.map_err(|source| CommitError::Record { key: object.key, source })?);
            }
        }
        Ok(intents)
    }

    /// What stands in the way of `own`: the paths of live intents that overlap.
    pub async fn in_the_way(&self, own: &Intent, log: &Log) -> Result<Vec<Conflict>, CommitError> {
        let mut conflicts = Vec::new();
        for other in self.all().await?.into_iter().filter(|other| other.txid != own.txid) {
            let overlap = self.overlap(own, &other);
            if overlap.is_empty() || self.has_ended(&other, log).await? {
                continue;
            }
            let author = format!("{}@{}", other.author.user, other.author.host);
            conflicts.extend(overlap.into_iter().map(|path| Conflict {
                path: path.to_string(),
                reason: ConflictReason::Intent { txid: other.txid.clone(), author: author.clone() },
            }));
        }
        conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(conflicts)
    }

    fn overlap(&self, own: &Intent, other: &Intent) -> Vec<RelPath> {
        if self.guarantee == Guarantee::BestEffort {
            // Nothing but the intents keeps two records from taking one number there.
            return own.paths().cloned().collect();
        }
        own.overlap(other)
    }

    async fn has_ended(&self, intent: &Intent, log: &Log) -> Result<bool, CommitError> {
        let head = log.head().await?;
        Ok(log.find_since(&intent.txid, head, intent.time).await?.is_some())
    }

    /// Writes the intent down and makes sure that no live one overlaps.
    pub async fn announce(&self, own: &Intent, log: &Log) -> Result<(), CommitError> {
        let key = self.key(&own.txid);
        let object = own.encode().map_err(|source| CommitError::Record { key: key.clone(), source })?;
        let mut conflicts = Vec::new();
        for round in 0..TRIES {
            if round > 0 {
                let pause = self.jitter.lock().random_range(PAUSE_MIN..PAUSE_MAX);
                tokio::time::sleep(pause * round).await;
            }
            // With its name on it, a lost answer can be told from somebody else's object.
            let metadata = BTreeMap::from([(META_TXID.to_owned(), own.txid.clone())]);
            match self.store.put(&key, object.clone(), &Expect::Absent, &PutAttributes { metadata }).await {
                // Nobody else writes this key: it is ours from before, or the answer was lost.
                Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(err) => return Err(err.into()),
            }
            conflicts = self.in_the_way(own, log).await?;
            if conflicts.is_empty() {
                return Ok(());
            }
            self.withdraw(&own.txid).await?;
        }
        Err(CommitError::Conflict { conflicts })
    }

    /// Removes an intent, if it is there.
    pub async fn withdraw(&self, txid: &str) -> Result<(), StoreError> {
        let key = self.key(txid);
        match self.store.head(&key).await {
            Ok(meta) => self.store.delete(&key, &meta.etag).await,
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }
}
