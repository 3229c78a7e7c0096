//! What commands do to a staging area: the same work in a daemon and without one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::control::message::DatasetRow;
use crate::control::message::DiscardOutcome;
use crate::control::message::Discarding;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::RefreshOutcome;
use crate::control::message::SelectedFile;
use crate::control::message::Selection;
use crate::control::message::StagedDataset;
use crate::control::message::StagedFile;
use crate::daemon::failure;
use crate::durable;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::staging::BaseKind;
use crate::staging::Contents;
use crate::staging::DatasetSummary;
use crate::staging::Shown;
use crate::staging::StagedEntry;
use crate::staging::Staging;
use crate::store::ListRequest;
use crate::store::ObjectStore;
use crate::store::list_all;

/// Changed paths that a refresh names.
const CHANGED_SHOWN_MAX: usize = 10_000;
/// Names the remote, in its state directory, to people who find that.
const REMOTE_FILE: &str = "remote.json";

/// The content of [`REMOTE_FILE`].
#[derive(Serialize, Deserialize)]
struct RemoteFile {
    remote: String,
}

/// Makes a remote's state directory, and writes its remote's name into it.
///
/// # Errors
/// The local disk's.
pub fn prepare_state_dir(dir: &Path, remote: &str) -> io::Result<()> {
    durable::create_private_dirs(dir)?;
    if remote_of(dir).as_deref() == Some(remote) {
        return Ok(());
    }
    durable::replace(&dir.join(REMOTE_FILE), &serde_json::to_vec(&RemoteFile { remote: remote.to_owned() })?)
}

/// The remote of a state directory, for people.
#[must_use]
pub fn remote_of(dir: &Path) -> Option<String> {
    let file: RemoteFile = serde_json::from_slice(&fs::read(dir.join(REMOTE_FILE)).ok()?).ok()?;
    Some(file.remote)
}

/// What is staged in a state directory, whoever works on it.
///
/// # Errors
/// The local disk's.
pub fn inspect(dir: &Path) -> Result<Vec<StagedDataset>, Failure> {
    let summaries = Staging::inspect(dir).map_err(|err| failure::of_staging(&err))?;
    let anything = |dataset: &StagedDataset| {
        dataset.files + dataset.sealed_files + dataset.deletions + dataset.empty_directories > 0
            || !dataset.foreign.is_empty()
    };
    Ok(summaries.into_iter().map(shown).filter(anything).collect())
}

fn shown(summary: DatasetSummary) -> StagedDataset {
    let sealed = summary.sealed;
    StagedDataset {
        name: summary.name,
        files: summary.files,
        bytes: summary.bytes,
        empty_directories: summary.empty_directories,
        sealed_files: sealed.as_ref().map_or(0, |sealed| sealed.files),
        sealed_bytes: sealed.map_or(0, |sealed| sealed.bytes),
        deletions: summary.deletions,
        foreign: summary.foreign,
        entries: Vec::new(),
    }
}

/// The datasets of a remote, and those that are staged.
///
/// # Errors
/// The remote cannot be listed.
pub async fn list(
    store: &dyn ObjectStore,
    prefix: &RemotePrefix,
    staged: &[StagedDataset],
) -> Result<Vec<DatasetRow>, Failure> {
    let datasets = prefix.datasets();
    let listed = list_all(store, ListRequest::one_level(datasets.clone())).await;
    let listed = listed.map_err(|err| failure::of_store(&err))?;
    let mut rows: BTreeMap<DatasetName, DatasetRow> = BTreeMap::new();
    // A key that is no dataset's (a file beside them, a name that starts with a dot) is not shown.
    let names = listed.prefixes.iter().filter_map(|prefix| {
        let name = prefix.as_str().strip_prefix(datasets.as_str())?.strip_suffix('/')?;
        DatasetName::parse(name).ok()
    });
    for name in names {
        rows.insert(name.clone(), DatasetRow { name, published: true, staged_files: 0 });
    }
    for dataset in staged {
        let row = DatasetRow { name: dataset.name.clone(), published: false, staged_files: 0 };
        let row = rows.entry(dataset.name.clone()).or_insert(row);
        row.staged_files = dataset.files + dataset.sealed_files;
    }
    Ok(rows.into_values().collect())
}

/// Asks the remote again about a dataset, or about all that is known.
///
/// # Errors
/// The remote's.
pub async fn refresh(catalog: &Catalog, name: Option<&DatasetName>) -> Result<RefreshOutcome, Failure> {
    let refreshed = catalog.refresh(name).await.map_err(|err| failure::of_store(&err))?;
    let changed_count = refreshed.changed.len() as u64;
    let changed = refreshed.changed.into_iter().take(CHANGED_SHOWN_MAX).collect();
    Ok(RefreshOutcome { directories: refreshed.levels, changed, changed_count })
}

/// A dataset's staged files, those of an unfinished commit among them.
///
/// # Errors
/// The local disk's.
pub fn staged_files(staging: &Staging, name: &DatasetName) -> Result<Vec<StagedFile>, Failure> {
    let Some(dataset) = staging.dataset(name) else { return Ok(Vec::new()) };
    let of = |contents: Contents| {
        let file = |entry: StagedEntry| StagedFile { path: entry.path, bytes: entry.size_bytes };
        contents.files.into_iter().map(file).collect::<Vec<_>>()
    };
    let mut files = of(dataset.contents().map_err(|err| failure::of_staging(&err))?);
    if let Some(sealed) = dataset.sealed() {
        files.extend(of(sealed.contents().map_err(|err| failure::of_staging(&err))?));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// What would be thrown away: what of the dataset is staged at `paths` or below them; all for none.
///
/// # Errors
/// Nothing is staged for the dataset, or not at one of the paths.
pub fn select(staging: &Staging, name: &DatasetName, paths: &[RelPath]) -> Result<Selection, Failure> {
    let not_found =
        |what: String| Failure::new(FailureKind::NotFound, what).hint("`dsfs status` shows what is staged");
    let Some(dataset) = staging.dataset(name) else {
        return Err(not_found(format!("nothing is staged for {name}")));
    };
    for path in paths {
        let is_staged = dataset.lookup(path).map_err(|err| failure::of_staging(&err))?.is_some();
        if !is_staged && dataset.base(path).is_none() {
            return Err(not_found(format!("{path} is not staged in {name}")));
        }
    }
    let mut all = vec![dataset.contents().map_err(|err| failure::of_staging(&err))?];
    if let Some(sealed) = dataset.sealed() {
        all.push(sealed.contents().map_err(|err| failure::of_staging(&err))?);
    }
    let chosen = |at: &RelPath| {
        let below = |path: &RelPath| path == at || DirPath::from(path.clone()).contains(at);
        paths.is_empty() || paths.iter().any(below)
    };
    let (mut selection, mut directories) = (Selection::default(), BTreeSet::new());
    for Contents { files, empty_directories, bases, .. } in all {
        let empty: Vec<RelPath> = empty_directories.iter().filter_map(DirPath::as_path).collect();
        let above = files.iter().map(|file| &file.path).chain(&empty).flat_map(RelPath::ancestors);
        directories.extend(above.filter_map(|dir| dir.as_path()).chain(empty.clone()).filter(chosen));
        let deleted = bases.into_iter().filter(|(path, base)| base.kind == BaseKind::Delete && chosen(path));
        selection.deletions.extend(deleted.map(|(path, _)| path));
        let files = files.into_iter().filter(|file| chosen(&file.path));
        selection.files.extend(files.map(|StagedEntry { path, size_bytes: bytes, modified }| SelectedFile {
            path,
            bytes,
            modified,
        }));
    }
    selection.files.sort_by(|a, b| a.path.cmp(&b.path));
    selection.directories = directories.into_iter().collect();
    Ok(selection)
}

/// Throws staged files away.
///
/// # Errors
/// As [`select`], and the local disk's; or a commit has them.
pub fn discard(staging: &Staging, name: &DatasetName, what: &Discarding) -> Result<DiscardOutcome, Failure> {
    if staging.dataset(name).is_some_and(|dataset| dataset.sealed().is_some()) {
        let message = format!("an interrupted commit has the staged files of {name}; nothing was discarded");
        return Err(Failure::new(FailureKind::Partial, message)
            .hint(format!("`dsfs commit {name} --abort` takes it back first; `--resume` finishes it")));
    }
    let dataset = staging.dataset(name);
    let (chosen, kept) = match what {
        Discarding::Shown(shown) => {
            let kept = dataset.map_or(Ok(Vec::new()), |dataset| dataset.discard_shown(&as_shown(shown)));
            (shown.clone(), kept.map_err(|err| failure::of_staging(&err))?)
        }
        Discarding::Paths(paths) => {
            let chosen = select(staging, name, paths)?;
            let dirs = match paths.as_slice() {
                [] => vec![DirPath::root()],
                paths => paths.iter().cloned().map(DirPath::from).collect(),
            };
            for (dataset, dir) in
                dataset.iter().flat_map(|dataset| dirs.iter().map(move |dir| (dataset, dir)))
            {
                dataset.discard(dir).map_err(|err| failure::of_staging(&err))?;
            }
            (chosen, Vec::new())
        }
    };
    let gone: Vec<&SelectedFile> = chosen.files.iter().filter(|file| !kept.contains(&file.path)).collect();
    let bytes = gone.iter().map(|file| file.bytes).sum();
    Ok(DiscardOutcome { dataset: name.clone(), files: gone.len() as u64, bytes, kept })
}

fn as_shown(selection: &Selection) -> Shown {
    let files = selection.files.iter().cloned().map(|SelectedFile { path, bytes, modified }| StagedEntry {
        path,
        size_bytes: bytes,
        modified,
    });
    Shown {
        files: files.collect(),
        deletions: selection.deletions.clone(),
        directories: selection.directories.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ETag;
    use crate::staging::Access;
    use crate::staging::Base;
    use crate::staging::Holder;
    use std::io::Write;

    fn name() -> DatasetName {
        DatasetName::parse("run").unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn at(paths: &[&str]) -> Discarding {
        Discarding::Paths(paths.iter().map(|text| path(text)).collect())
    }

    fn staged(dir: &Path, paths: &[&str]) -> Staging {
        let staging = Staging::open(dir, &Holder::default()).unwrap();
        let dataset = staging.create_dataset(&name()).unwrap();
        for text in paths {
            let file = dataset.create_file(&path(text), 0o644).unwrap();
            (&*file).write_all(b"12345").unwrap();
        }
        staging
    }

    #[test]
    fn what_is_discarded_is_what_was_named() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path(), &["a/1", "a/2", "ab", "c"]);
        let outcome = discard(&staging, &name(), &at(&["a"])).unwrap();
        assert_eq!((outcome.files, outcome.bytes), (2, 10));
        let left: Vec<String> =
            staged_files(&staging, &name()).unwrap().iter().map(|file| file.path.to_string()).collect();
        assert_eq!(left, ["ab", "c"]);
        assert_eq!(discard(&staging, &name(), &at(&["x"])).unwrap_err().kind, FailureKind::NotFound);
        assert_eq!(discard(&staging, &name(), &at(&[])).unwrap().files, 2);
        assert_eq!(discard(&staging, &name(), &at(&[])).unwrap_err().kind, FailureKind::NotFound);
        assert!(inspect(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn what_was_shown_is_discarded_and_nothing_that_came_since() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path(), &["a/b/1", "a/2", "a/3", "c"]);
        let dataset = staging.dataset(&name()).unwrap();
        dataset.mkdir(&path("a/made"), 0o755).unwrap();
        let deletion = Base { etag: ETag::from_server("e"), size_bytes: 1, kind: BaseKind::Delete };
        dataset.set_base(&path("a/gone"), &deletion).unwrap();
        let shown = select(&staging, &name(), &[path("a")]).unwrap();
        let list = |paths: &[RelPath]| paths.iter().map(RelPath::to_string).collect::<Vec<_>>();
        assert_eq!(list(&shown.directories), ["a", "a/b", "a/made"]);
        assert_eq!((list(&shown.deletions), shown.files.len()), (vec!["a/gone".to_owned()], 3));
        // One is written to, one comes anew, one goes, while somebody thinks about the answer.
        let file = dataset.open_file(&path("a/2"), Access::ReadWrite, false).unwrap();
        (&*file).write_all(b"678901").unwrap();
        dataset.create_file(&path("a/made/new"), 0o644).unwrap();
        dataset.unlink(&path("a/3")).unwrap();
        let outcome = discard(&staging, &name(), &Discarding::Shown(shown)).unwrap();
        assert_eq!(list(&outcome.kept), ["a/2"]);
        let left: Vec<String> =
            staged_files(&staging, &name()).unwrap().iter().map(|file| file.path.to_string()).collect();
        assert_eq!(left, ["a/2", "a/made/new", "c"]);
        assert!(dataset.base(&path("a/gone")).is_none());
        assert!(dataset.lookup(&path("a/b")).unwrap().is_none());
        let rest = select(&staging, &name(), &[]).unwrap();
        drop(file);
        assert_eq!(discard(&staging, &name(), &Discarding::Shown(rest)).unwrap().files, 3);
        assert!(inspect(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn what_a_commit_has_sealed_is_not_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let staging = staged(dir.path(), &["a"]);
        let dataset = staging.dataset(&name()).unwrap();
        let sealed = dataset.freeze("tx").unwrap();
        let refused = discard(&staging, &name(), &at(&[])).unwrap_err();
        assert!(refused.hint.unwrap().contains("dsfs commit run --abort"));
        assert_eq!(staged_files(&staging, &name()).unwrap().len(), 1);
        dataset.thaw(&sealed).unwrap();
        assert_eq!(discard(&staging, &name(), &at(&[])).unwrap().files, 1);
    }

    #[test]
    fn a_state_directory_knows_its_remote() {
        let dir = tempfile::tempdir().unwrap();
        let area = dir.path().join("area");
        assert_eq!(remote_of(&area), None);
        prepare_state_dir(&area, "s3://b/ at http://h").unwrap();
        prepare_state_dir(&area, "s3://b/ at http://h").unwrap();
        assert_eq!(remote_of(&area).as_deref(), Some("s3://b/ at http://h"));
    }
}
