//! Deleting what a commit that is in the log says is deleted: by the commit itself, or by `gc`.

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::commit::CommitError;
use crate::commit::Progress;
use crate::commit::announce::Deleting;
use crate::commit::announce::Intents;
use crate::log::Log;
use crate::name::RelPath;
use crate::record::Intent;
use crate::record::OldVersion;
use crate::store::StoreError;

/// What it takes to delete.
pub(super) struct Deletion<'a> {
    pub log: &'a Log,
    pub intents: &'a Intents,
    pub progress: &'a dyn Progress,
}

/// Deletions under way at once.
const AT_ONCE: usize = 16;

impl Deletion<'_> {
    /// Deletes the versions that record `seq` names, but for paths that later records have published
    /// anew: a version is named by its `ETag`, which the same content has again. Another version at
    /// the same key stays. Returns what was announced, to be withdrawn, if nothing is left to be done and
    /// every request was answered; if not, the intent has to stay.
    pub async fn carry_out(
        &self,
        intent: &Intent,
        seq: u64,
        deleted: &[OldVersion],
    ) -> Result<Option<Deleting>, CommitError> {
        let store = &self.intents.store;
        let mut deleting = match self.intents.begin_deleting(intent, self.log).await {
            Ok(deleting) => deleting,
            // Somebody publishes there at this moment; the record hides the old version meanwhile.
            Err(CommitError::Conflict { .. }) => return Ok(None),
            Err(err) => return Err(err),
        };
        let lost_before = store.lost_answers();
        let anew = self.published_after(seq).await?;
        let gone: Vec<&OldVersion> = deleted.iter().filter(|gone| !anew.contains(&gone.path)).collect();
        for batch in gone.chunks(AT_ONCE) {
            self.intents.still_deleting(&mut deleting).await?;
            // All are waited for, also when one fails: a request that nobody waits for may come late.
            let answers = join_all(batch.iter().map(|gone| self.delete(gone))).await;
            answers.into_iter().collect::<Result<(), _>>()?;
        }
        let is_settled = !deleting.unsettled && store.lost_answers() == lost_before;
        Ok(is_settled.then_some(deleting))
    }

    async fn delete(&self, gone: &OldVersion) -> Result<(), CommitError> {
        let key = self.intents.prefix.key(&self.intents.dataset, &gone.path)?;
        match self.intents.store.delete(&key, &gone.etag).await {
            Ok(()) | Err(StoreError::Changed { .. }) => {
                self.progress.file_done();
                Ok(())
            }
            Err(err) => Err(err.into()),
        }
    }

    async fn published_after(&self, seq: u64) -> Result<HashSet<RelPath>, CommitError> {
        let mut paths = HashSet::new();
        for later in seq + 1..=self.log.head_from(seq).await? {
            let record = self.log.record(later).await?.ok_or_else(|| self.log.lost(later))?;
            paths.extend(record.body.changes.entries.into_iter().map(|entry| entry.path));
        }
        Ok(paths)
    }
}
