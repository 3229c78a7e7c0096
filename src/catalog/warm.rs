//! What is likely to be asked for first is listed when a mount begins.
//!
//! A listing is three requests, one after the other (objects, intents, log), and whoever reads
//! the first file of a new mount would wait for all of them before its GET can be sent, and again for
//! every directory on the way to it. So the datasets and the tops of the first few are listed while the
//! mount is being made ([`Catalog::warm_up`]); who comes meanwhile waits for the listing that is under
//! way. Behind that, with nobody waiting, small datasets are learnt whole ([`Catalog::learn_small`]).

use std::collections::BTreeSet;

use futures_util::StreamExt;
use futures_util::stream;

use crate::catalog::Catalog;
use crate::catalog::Level;
use crate::catalog::RemoteEntry;
use crate::catalog::ask::Extent;
use crate::name::DatasetName;
use crate::name::DirPath;

/// Datasets whose top is listed: three requests each.
const TOPS_MAX: usize = 16;
/// Keys of a dataset that is listed as a whole: fewer than a page may have, so that a second one is never
/// asked for.
const WHOLE_KEYS_MAX: usize = 999;

impl Catalog {
    /// Lists the datasets, and the tops of some of them: those that were looked into before come
    /// first. Nothing that takes more than a page (but a dataset in which a commit is under way: whether
    /// it is one yet takes all of its top), and nothing that is known already. A failure is nobody's:
    /// whoever needs the level asks again. Returns the datasets whose tops were to be listed.
    pub async fn warm_up(&self) -> BTreeSet<DatasetName> {
        let mut tops = BTreeSet::new();
        if let Some(disk) = self.disk.clone() {
            let known = tokio::task::spawn_blocking(move || disk.datasets()).await.unwrap_or_default();
            tops.extend(known.into_iter().take(TOPS_MAX));
        }
        let (_, more) = tokio::join!(self.warm_tops(&tops), async {
            self.warm(&Level::Datasets).await;
            let datasets = self.fresh(&Level::Datasets)?;
            let directories = datasets.listing.entries.iter().filter(|(_, entry)| is_directory(entry));
            let names = directories.filter_map(|(name, _)| DatasetName::parse(name).ok());
            Some(names.filter(|name| !tops.contains(name)).take(TOPS_MAX - tops.len()).collect())
        });
        let more: BTreeSet<DatasetName> = more.unwrap_or_default();
        self.warm_tops(&more).await;
        tops.union(&more).cloned().collect()
    }

    /// Lists those of the datasets whole that come in one page, so that a file deep in one of them is found
    /// at once. Whoever asks for a directory meanwhile does not wait for it: a server may take long over a
    /// page of a whole tree where it answers for one directory at once.
    pub async fn learn_small(&self, names: BTreeSet<DatasetName>) {
        let each = |name: DatasetName| async move {
            let top = Level::Directory(name.clone(), DirPath::root());
            let Some(known) = self.fresh(&top) else { return };
            let entries = &known.listing.entries;
            if entries.len() > WHOLE_KEYS_MAX || !entries.values().any(is_directory) {
                return; // there is more than a page of it, or nothing more
            }
            if let Err(err) = self.learn_and_keep(&name, WHOLE_KEYS_MAX).await {
                tracing::debug!("{name} could not be listed ahead: {err}");
            }
        };
        stream::iter(names).for_each_concurrent(TOPS_MAX, each).await;
    }

    async fn warm_tops(&self, names: &BTreeSet<DatasetName>) {
        let each =
            |name: DatasetName| async move { self.warm(&Level::Directory(name, DirPath::root())).await };
        stream::iter(names.iter().cloned()).for_each_concurrent(TOPS_MAX, each).await;
    }

    async fn warm(&self, level: &Level) {
        if let (Level::Directory(name, _), Some(disk)) = (level, &self.disk)
            && !self.histories.has(name)
        {
            let (disk, dataset) = (disk.clone(), name.clone());
            let known = tokio::task::spawn_blocking(move || disk.dataset(&dataset)).await.ok().flatten();
            if let Some(known) = known {
                self.histories.restore(name, known.seq, known.snapshot);
                self.noted_on_disk(name);
            }
        }
        let slot = self.levels.slot(level);
        let _asking = slot.asking.lock().await;
        if slot.known().is_some() {
            return;
        }
        if let Err(err) = self.list_into(level, &slot, Extent::OnePage).await {
            tracing::debug!("{level} could not be listed ahead: {err}");
        }
        slot.asked.notify_waiters();
    }
}

fn is_directory(entry: &RemoteEntry) -> bool {
    *entry == RemoteEntry::Directory
}
