//! Taking back what a commit has put into the bucket, and nothing else.

use std::collections::HashSet;

use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;

use crate::commit::CommitError;
use crate::commit::journal::Progress;
use crate::commit::run::Run;
use crate::commit::send::Found;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::staging::Contents;

impl Run<'_> {
    /// Removes every object that this commit has created, and gives up its uploads. Objects that
    /// are not its own stay, whatever is there now. Returns the versions that it has replaced,
    /// which nobody can bring back.
    pub(super) async fn take_back(
        &self,
        contents: &Contents,
        state: &Progress,
    ) -> Result<Vec<RelPath>, CommitError> {
        let mut not_restored = Vec::new();
        if state.publishing {
            self.remove_objects(self.created(contents)?).await?;
            // Whatever it stood on when it was staged, `created` leaves it: nobody can say what was there.
            let based: HashSet<&RelPath> = contents.bases.iter().map(|(path, _)| path).collect();
            let files = contents.files.iter().map(|file| &file.path);
            for path in files.filter(|path| based.contains(path)) {
                let key = self.ctx.prefix.key(self.ctx.dataset(), path)?;
                if let Found::Ours(_) = self.sender.look(&key, None).await? {
                    not_restored.push(path.clone());
                }
            }
        }
        for (path, uploads) in &state.uploads {
            let key = self.ctx.prefix.key(self.ctx.dataset(), path)?;
            for upload in uploads {
                self.ctx.store.abort_multipart(&key, &upload.id).await?;
            }
        }
        Ok(not_restored)
    }

    /// Every key at which this commit may have created something.
    fn created(&self, contents: &Contents) -> Result<Vec<ObjectKey>, CommitError> {
        let (prefix, dataset) = (&self.ctx.prefix, self.ctx.dataset());
        let based: HashSet<&RelPath> = contents.bases.iter().map(|(path, _)| path).collect();
        let mut keys = Vec::new();
        for file in &contents.files {
            if !based.contains(&file.path) {
                keys.push(prefix.key(dataset, &file.path)?);
            }
        }
        for dir in &contents.empty_directories {
            keys.push(prefix.marker_key(dataset, dir)?);
        }
        Ok(keys)
    }

    async fn remove_objects(&self, keys: Vec<ObjectKey>) -> Result<(), CommitError> {
        let failure = Mutex::new(None);
        stream::iter(keys)
            .for_each_concurrent(self.sender.workers, |key| {
                let failure = &failure;
                async move {
                    if let Err(err) = self.sender.remove_ours(&key).await {
                        failure.lock().get_or_insert(err);
                    }
                }
            })
            .await;
        failure.into_inner().map_or(Ok(()), |err| Err(err.into()))
    }
}
