//! What a store's conditions are worth, found out by trying.
//!
//! Many servers answer 200 to `If-None-Match: *` and overwrite; some check first and write
//! later, so that two writers win. Documentation does not tell, and a server may change. So a
//! remote is probed once, with scratch objects beside the commit log that are removed again.
//!
//! A sequential probe cannot see a race, so there is one: many creators of one key at the same
//! moment. It can only find a racy server guilty, never innocent; what is graded
//! [`Guarantee::Enforced`] has passed, which for a server that races rarely is luck.

use std::fmt;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::name::RemotePrefix;
use crate::store::Expect;
use crate::store::ListRequest;
use crate::store::META_MTIME;
use crate::store::META_SHA256;
use crate::store::META_TXID;
use crate::store::ObjectStore;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::collect;
use crate::store::list_all;

/// Creators of one key at the same time.
const RACERS: usize = 16;
/// Rounds of the race between completions, which servers lose less often.
const COMPLETE_ROUNDS: usize = 3;
/// Racing completions in each round: each is an upload of its own.
const COMPLETERS: usize = 8;

/// What holds against writers that are not dsfs. Better grades sort later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// Conditions are ignored or racy: looking before and after is all that can be done.
    BestEffort,
    /// `PutObject` honours its condition, `CompleteMultipartUpload` does not.
    SinglePut,
    /// Both honour their condition, alone and raced.
    Enforced,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BestEffort => "best-effort",
            Self::SinglePut => "single-put",
            Self::Enforced => "enforced",
        })
    }
}

/// One thing that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// A put onto an existing key with `If-None-Match: *` changes nothing.
    PutExisting,
    /// Of many creators at once exactly one wins, and it is its bytes that are there.
    PutRace,
    /// A put with a stale `If-Match` changes nothing.
    ReplaceStale,
    /// Completing an upload onto an existing key changes nothing.
    CompleteExisting,
    /// The same for a key that appeared while the upload was open.
    CompleteAppeared,
    /// Of several completions at once exactly one wins.
    CompleteRace,
    /// A get of a stale version is refused.
    GetStale,
    /// A delete of a stale version changes nothing.
    DeleteStale,
    /// A listing right after a put shows it.
    ListAfterWrite,
}

impl Check {
    /// The check in words that follow "ok" or "failed".
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::PutExisting => "PutObject with If-None-Match leaves an existing object alone",
            Self::PutRace => "of racing PutObjects with If-None-Match one wins",
            Self::ReplaceStale => "PutObject with a stale If-Match changes nothing",
            Self::CompleteExisting => {
                "CompleteMultipartUpload with If-None-Match leaves an existing object alone"
            }
            Self::CompleteAppeared => "and one that appeared during the upload",
            Self::CompleteRace => "of racing CompleteMultipartUploads one wins",
            Self::GetStale => "GetObject of a replaced version is refused",
            Self::DeleteStale => "DeleteObject of a replaced version is refused",
            Self::ListAfterWrite => "a listing shows what was just written",
        }
    }
}

/// How one check came out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckOutcome {
    /// What was tried.
    pub check: Check,
    /// Whether the store did right.
    pub passed: bool,
    /// What was seen, if it did not.
    pub detail: Option<String>,
}

/// What a probe found; kept with its date by whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProbeReport {
    /// The grade that follows.
    pub guarantee: Guarantee,
    /// Every check, in the order in which they were made.
    pub checks: Vec<CheckOutcome>,
}

impl ProbeReport {
    fn of(checks: Vec<CheckOutcome>) -> Self {
        Self { guarantee: grade(&checks), checks }
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CheckOutcome> {
        self.checks.iter().filter(|outcome| !outcome.passed)
    }
}

/// What follows from the checks. Reads and deletes are compared by dsfs itself, so that they
/// do not lower the grade; a listing that misses a write does, since intents rest on it.
fn grade(checks: &[CheckOutcome]) -> Guarantee {
    let all = |wanted: &[Check]| {
        wanted.iter().all(|check| checks.iter().any(|outcome| outcome.check == *check && outcome.passed))
    };
    if !all(&[Check::PutExisting, Check::PutRace, Check::ReplaceStale, Check::ListAfterWrite]) {
        Guarantee::BestEffort
    } else if !all(&[Check::CompleteExisting, Check::CompleteAppeared, Check::CompleteRace]) {
        Guarantee::SinglePut
    } else {
        Guarantee::Enforced
    }
}

/// Tries out what a store does with conditions.
///
/// # Errors
/// [`StoreError::Denied`], [`StoreError::Unavailable`] and the like: nothing is known then.
/// [`StoreError::Rejected`] for a store that loses metadata: nothing can be committed to it.
/// Scratch objects are removed in any case, as far as the store lets us.
pub async fn probe(store: &dyn ObjectStore, prefix: &RemotePrefix) -> Result<ProbeReport, StoreError> {
    let probe = Probe { store, prefix, id: format!("probe-{:016x}", rand::random::<u64>()) };
    let report = probe.run().await;
    probe.clean_up().await;
    report
}

struct Probe<'p> {
    store: &'p dyn ObjectStore,
    prefix: &'p RemotePrefix,
    id: String,
}

/// What a write that should have been refused came to.
type Verdict = Result<Option<String>, StoreError>;

/// A race is not run where one writer alone has shown what follows: a server that looks at no condition
/// is not made for several writers of one key either, and may fail over them.
fn untried() -> Verdict {
    Ok(Some("not tried, since a single write failed already".into()))
}

fn is_refusal(err: &StoreError) -> bool {
    matches!(
        err,
        StoreError::AlreadyExists { .. } | StoreError::Changed { .. } | StoreError::Contended { .. }
    )
}

impl Probe<'_> {
    fn key(&self, name: &str) -> ObjectKey {
        self.prefix.scratch_key(&format!("{}/{name}", self.id))
    }

    async fn run(&self) -> Result<ProbeReport, StoreError> {
        self.keeps_metadata().await?;
        let mut checks = Vec::new();
        let mut note = |check, verdict: Verdict| -> Result<(), StoreError> {
            let detail = match verdict {
                // It does not know what was asked of it: no more than a failed check.
                Err(StoreError::Rejected { reason, .. }) => Some(reason),
                verdict => verdict?,
            };
            checks.push(CheckOutcome { check, passed: detail.is_none(), detail });
            Ok(())
        };
        let put_existing = self.put_existing().await;
        let is_put_settled = !matches!(put_existing, Ok(None));
        note(Check::PutExisting, put_existing)?;
        note(Check::ReplaceStale, self.replace_stale().await)?;
        note(Check::PutRace, if is_put_settled { untried() } else { self.put_race().await })?;
        let existing = self.complete_onto("complete-existing", true).await;
        let appeared = self.complete_onto("complete-appeared", false).await;
        let is_complete_settled = !matches!((&existing, &appeared), (Ok(None), Ok(None)));
        note(Check::CompleteExisting, existing)?;
        note(Check::CompleteAppeared, appeared)?;
        note(Check::CompleteRace, if is_complete_settled { untried() } else { self.complete_race().await })?;
        note(Check::GetStale, self.get_stale().await)?;
        note(Check::DeleteStale, self.delete_stale().await)?;
        note(Check::ListAfterWrite, self.list_after_write().await)?;
        Ok(ProbeReport::of(checks))
    }

    async fn put(&self, name: &str, body: &str, expect: &Expect) -> Result<ETag, StoreError> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.store.put(&self.key(name), body, expect, &PutAttributes::default()).await
    }

    /// Creates an object that nobody else can have made: its name is drawn at random.
    async fn create(&self, name: &str) -> Result<ETag, StoreError> {
        self.put(name, "first", &Expect::Absent).await
    }

    async fn body_at(&self, name: &str) -> Result<Bytes, StoreError> {
        let meta = self.store.head(&self.key(name)).await?;
        let body = self.store.get(&self.key(name), &meta.etag, 0..meta.size_bytes).await?;
        collect(body, meta.size_bytes as usize).await
    }

    /// Judges a write that had to be refused.
    fn refused(attempt: Result<ETag, StoreError>) -> Verdict {
        match attempt {
            Ok(_) => Ok(Some("it was carried out".into())),
            Err(err) if is_refusal(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn put_existing(&self) -> Verdict {
        self.create("put-existing").await?;
        Self::refused(self.put("put-existing", "second", &Expect::Absent).await)
    }

    async fn replace_stale(&self) -> Verdict {
        let stale = self.create("replace").await?;
        match self.put("replace", "second, longer", &Expect::Version(stale.clone())).await {
            Err(StoreError::Rejected { .. }) => return Ok(None), // it cannot replace, and says so
            replaced => replaced?,
        };
        Self::refused(self.put("replace", "third", &Expect::Version(stale)).await)
    }

    async fn put_race(&self) -> Verdict {
        let bodies: Vec<String> = (0..RACERS).map(|racer| format!("racer {racer}")).collect();
        let puts = bodies.iter().map(|body| self.put("race", body, &Expect::Absent));
        let results = join_all(puts).await;
        let mut winners = Vec::new();
        for (racer, result) in results.into_iter().enumerate() {
            match result {
                Ok(_) => winners.push(racer),
                Err(err) if is_refusal(&err) => {}
                Err(err) => return Err(err),
            }
        }
        let [winner] = winners.as_slice() else {
            return Ok(Some(format!("{} of {RACERS} creators were told that they had won", winners.len())));
        };
        let there = self.body_at("race").await?;
        Ok((there != bodies[*winner]).then(|| "the bytes there are not the winner's".into()))
    }

    /// Uploads one part, and completes it.
    async fn upload(&self, name: &str, between: Option<&str>) -> Result<ETag, StoreError> {
        let key = self.key(name);
        let upload = self.store.create_multipart(&key, &self.attributes()).await?;
        let completed = async {
            let part = self.store.put_part(&key, &upload, 1, Bytes::from_static(b"upload")).await?;
            if let Some(body) = between {
                self.put(name, body, &Expect::Absent).await?;
            }
            self.store.complete_multipart(&key, &upload, &[part], &Expect::Absent).await
        };
        let completed = completed.await;
        if completed.is_err() {
            self.store.abort_multipart(&key, &upload).await?;
        }
        completed
    }

    async fn complete_onto(&self, name: &str, exists_before: bool) -> Verdict {
        if exists_before {
            self.create(name).await?;
        }
        let between = (!exists_before).then_some("appeared");
        Self::refused(self.upload(name, between).await)
    }

    async fn complete_race(&self) -> Verdict {
        for round in 0..COMPLETE_ROUNDS {
            let name = format!("complete-race-{round}");
            let key = self.key(&name);
            let mut ready = Vec::new();
            for _ in 0..COMPLETERS {
                let upload = self.store.create_multipart(&key, &PutAttributes::default()).await?;
                let part = self.store.put_part(&key, &upload, 1, Bytes::from_static(b"upload")).await?;
                ready.push((upload, [part]));
            }
            let completions = ready
                .iter()
                .map(|(upload, parts)| self.store.complete_multipart(&key, upload, parts, &Expect::Absent));
            let results = join_all(completions).await;
            let winners = results.iter().filter(|result| result.is_ok()).count();
            for ((upload, _), result) in ready.iter().zip(&results) {
                match result {
                    Ok(_) => {}
                    // Garage drops older uploads of a key when a newer one is completed.
                    Err(StoreError::NoSuchUpload { .. } | StoreError::Rejected { .. }) => {}
                    Err(err) if is_refusal(err) => self.store.abort_multipart(&key, upload).await?,
                    Err(err) => return Err(err.clone()),
                }
            }
            if winners != 1 {
                return Ok(Some(format!(
                    "{winners} of {COMPLETERS} completions were told that they had won"
                )));
            }
        }
        Ok(None)
    }

    async fn get_stale(&self) -> Verdict {
        let stale = self.create("get").await?;
        self.put("get", "second", &Expect::Version(stale.clone())).await?;
        match self.store.get(&self.key("get"), &stale, 0..5).await {
            Ok(_) => Ok(Some("it was answered".into())),
            Err(err) if is_refusal(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn delete_stale(&self) -> Verdict {
        let stale = self.create("delete").await?;
        self.put("delete", "second, longer", &Expect::Version(stale.clone())).await?;
        match self.store.delete(&self.key("delete"), &stale).await {
            Ok(()) => Ok(Some("it was carried out".into())),
            Err(err) if is_refusal(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn scratch(&self) -> Result<Vec<ObjectKey>, StoreError> {
        let prefix = KeyPrefix::from_listing(self.key("").as_str());
        let page = list_all(self.store, ListRequest::recursive(prefix)).await?;
        Ok(page.objects.into_iter().map(|object| object.key).collect())
    }

    async fn list_after_write(&self) -> Verdict {
        self.create("list").await?;
        let listed = self.scratch().await?.contains(&self.key("list"));
        Ok((!listed).then(|| "it did not".into()))
    }

    /// What dsfs writes beside an object's bytes.
    fn attributes(&self) -> PutAttributes {
        let values =
            [(META_TXID, self.id.clone()), (META_SHA256, "0".repeat(64)), (META_MTIME, "1.5".into())];
        PutAttributes {
            metadata: values.map(|(name, value)| (name.to_owned(), value)).into(),
            ..PutAttributes::default()
        }
    }

    /// Whose an object is, when the answer to a write was lost, is told by its metadata alone: where that
    /// is lost, a commit could neither go on nor take back what it has written.
    async fn keeps_metadata(&self) -> Result<(), StoreError> {
        let body = Bytes::from_static(b"first");
        self.store.put(&self.key("metadata"), body, &Expect::Absent, &self.attributes()).await?;
        self.expect_metadata("metadata", "PutObject").await?;
        self.upload("metadata-upload", None).await?;
        self.expect_metadata("metadata-upload", "CreateMultipartUpload").await
    }

    async fn expect_metadata(&self, name: &str, request: &str) -> Result<(), StoreError> {
        let key = self.key(name);
        let there = self.store.head(&key).await?.metadata;
        let sent = self.attributes().metadata;
        let is_lost = |name: &&String| there.get(*name) != sent.get(*name);
        let lost: Vec<&str> = sent.keys().filter(is_lost).map(String::as_str).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let lost = lost.join(", ");
        let reason = format!(
            "the server loses the metadata of a {request} ({lost}), by which dsfs knows its own objects: it cannot commit here"
        );
        Err(StoreError::Rejected { key: key.to_string(), reason })
    }

    /// Removes what is left. A failure is only logged: the verdict stands, and the keys say what they are.
    async fn clean_up(&self) {
        let removed = async {
            for key in self.scratch().await? {
                let meta = self.store.head(&key).await?;
                self.store.delete(&key, &meta.etag).await?;
            }
            Ok::<(), StoreError>(())
        };
        if let Err(err) = removed.await {
            tracing::warn!("scratch objects of the probe {} are left behind: {err}", self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn outcomes(failed: &[Check]) -> Vec<CheckOutcome> {
        let all = [
            Check::PutExisting,
            Check::PutRace,
            Check::ReplaceStale,
            Check::CompleteExisting,
            Check::CompleteAppeared,
            Check::CompleteRace,
            Check::GetStale,
            Check::DeleteStale,
            Check::ListAfterWrite,
        ];
        all.map(|check| CheckOutcome { check, passed: !failed.contains(&check), detail: None }).to_vec()
    }

    #[test]
    fn the_grade_follows_from_the_checks() {
        assert_eq!(grade(&outcomes(&[])), Guarantee::Enforced);
        for check in [Check::PutExisting, Check::PutRace, Check::ReplaceStale, Check::ListAfterWrite] {
            assert_eq!(grade(&outcomes(&[check])), Guarantee::BestEffort, "{check:?}");
        }
        for check in [Check::CompleteExisting, Check::CompleteAppeared, Check::CompleteRace] {
            assert_eq!(grade(&outcomes(&[check])), Guarantee::SinglePut, "{check:?}");
        }
        assert_eq!(grade(&outcomes(&[Check::GetStale, Check::DeleteStale])), Guarantee::Enforced);
        assert_eq!(grade(&[]), Guarantee::BestEffort, "what was not tried is not known");
        assert!(Guarantee::BestEffort < Guarantee::SinglePut && Guarantee::SinglePut < Guarantee::Enforced);
    }

    #[tokio::test]
    async fn the_model_is_enforced_and_left_clean() {
        let store = MemoryStore::default();
        let prefix = RemotePrefix::parse("datasets").unwrap();
        let report = probe(&store, &prefix).await.unwrap();
        assert_eq!(report.guarantee, Guarantee::Enforced, "{report:?}");
        assert_eq!(report.failures().count(), 0);
        assert!(store.snapshot().is_empty());
        assert_eq!(store.open_uploads(), 0);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<ProbeReport>(&json).unwrap(), report);
        assert!(json.contains("\"enforced\""), "{json}");
    }
}
