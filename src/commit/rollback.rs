//! Taking back what a commit has put into the bucket, and nothing else.

use std::collections::HashMap;
use std::collections::HashSet;

use crate::commit::CommitError;
use crate::commit::announce::Deleting;
use crate::commit::journal::Progress;
use crate::commit::run::Run;
use crate::commit::send::Found;
use crate::name::DirPath;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::Intent;
use crate::record::OldVersion;
use crate::staging::Base;
use crate::staging::Contents;

impl Run<'_> {
    /// Removes every object that this commit has created, and gives up its uploads. Objects that
    /// are not its own stay, whatever is there now. Returns the versions that it has replaced,
    /// which nobody can bring back.
    pub(super) async fn take_back(
        &self,
        contents: &Contents,
        state: &Progress,
        deleting: Option<&mut Deleting>,
    ) -> Result<Vec<RelPath>, CommitError> {
        // First: from then on nothing can come of a request to complete one, where no condition holds it.
        for (path, uploads) in &state.uploads {
            let key = self.ctx.prefix.key(self.ctx.dataset(), path)?;
            for upload in uploads {
                self.ctx.store.abort_multipart(&key, &upload.id).await?;
            }
        }
        let mut not_restored = Vec::new();
        if let Some(deleting) = deleting {
            self.intents.remove(&self.sender, deleting, &self.created(contents)?).await?;
            // Whatever it stood on when it was staged, `created` leaves it: nobody can say what was there.
            let based: HashSet<&RelPath> = contents.bases.iter().map(|(path, _)| path).collect();
            let files = contents.files.iter().map(|file| &file.path);
            for path in files.filter(|path| based.contains(path)) {
                let key = self.ctx.prefix.key(self.ctx.dataset(), path)?;
                if let Found::Ours(_) = self.sender.look(&key).await? {
                    not_restored.push(path.clone());
                }
            }
        }
        Ok(not_restored)
    }

    /// The intent of a commit that is taken back, from what is sealed.
    pub(super) fn intent_of(&self, contents: &Contents) -> Intent {
        let based: HashMap<&RelPath, &Base> =
            contents.bases.iter().map(|(path, base)| (path, base)).collect();
        let files = || contents.files.iter().map(|file| &file.path);
        let replaces = files().filter_map(|path| based.get(path).map(|base| (path, base)));
        Intent {
            dataset: self.ctx.dataset().clone(),
            txid: self.txid.clone(),
            author: self.ctx.author.clone(),
            time: self.ctx.clock.now(),
            creates: files().filter(|path| !based.contains_key(path)).cloned().collect(),
            markers: contents.empty_directories.iter().filter_map(DirPath::as_path).collect(),
            replaces: replaces
                .map(|(path, base)| OldVersion { path: path.clone(), etag: base.etag.clone() })
                .collect(),
            deletes: Vec::new(),
            deleting: None,
        }
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
}
