//! What a reader shows of a dataset: its newest snapshot, and foreign objects.
//!
//! A listing alone would show half a commit while its objects appear one by one. So what is
//! listed is held against the dataset's log and its intents, both read *after* the listing, the
//! intents first: whatever the listing saw of a commit is then either named by an intent, and
//! hidden, or completed by a record, and shown whole. The rules, for an object `o` at a path:
//!
//! | the newest snapshot has | and | shown |
//! | --- | --- | --- |
//! | this version | | `o`, with the time that the record gives |
//! | another version | an intent replaces it, or the record came after the listing | the snapshot's |
//! | another version | otherwise: another tool has overwritten it | `o` |
//! | nothing | an intent creates it | nothing |
//! | nothing | an intent or a new record deletes this version | nothing |
//! | nothing | otherwise: another tool has put it there | `o` |
//!
//! A file of the snapshot that the listing lacks is shown if its record came after the listing
//! began, and otherwise left out and named: another tool has deleted it.
//!
//! Pure: what is to be asked of the store is asked by the caller.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::catalog::listing::HiddenKey;
use crate::catalog::listing::Listing;
use crate::catalog::listing::RemoteEntry;
use crate::catalog::listing::RemoteFile;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::record::Changes;
use crate::record::Entry;
use crate::record::Intent;
use crate::record::Snapshot;

/// What the log and the intents say, read after a listing.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The newest snapshot.
    pub snapshot: Arc<Snapshot>,
    announced: Arc<Announced>,
}

/// What all intents together say, those of aborted commits among them, by path.
#[derive(Debug, Default)]
struct Announced {
    /// Files that are being created, and by which commit.
    creates: BTreeMap<RelPath, String>,
    /// Directories for which a marker is being created.
    markers: BTreeSet<RelPath>,
    replaces: BTreeSet<RelPath>,
    deletes: BTreeSet<(RelPath, ETag)>,
}

impl History {
    /// The history that a snapshot and the intents beside it make.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, intents: &[Intent]) -> Self {
        let mut announced = Announced::default();
        for intent in intents {
            let (user, host) = (&intent.author.user, &intent.author.host);
            let commit = format!("{} by {user}@{host}", intent.txid);
            announced.creates.extend(intent.creates.iter().map(|path| (path.clone(), commit.clone())));
            announced.markers.extend(intent.markers.iter().cloned());
            announced.replaces.extend(intent.replaces.iter().map(|version| version.path.clone()));
            let deletes = intent.deletes.iter().map(|version| (version.path.clone(), version.etag.clone()));
            announced.deletes.extend(deletes);
        }
        Self { snapshot, announced: Arc::new(announced) }
    }

    /// Whether any intent creates anything: only then a directory can be doubtful.
    #[must_use]
    pub fn announces_any(&self) -> bool {
        !self.announced.creates.is_empty() || !self.announced.markers.is_empty()
    }

    fn is_deleting(&self, path: &RelPath, etag: Option<&ETag>) -> bool {
        match etag {
            Some(etag) => self.announced.deletes.contains(&(path.clone(), etag.clone())),
            None => self.announced.deletes.iter().any(|(deleted, _)| deleted == path),
        }
    }
}

/// What is left to be found out after [`apply`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Directories in which an intent creates something and the snapshot has nothing: they are
    /// shown only if there is a foreign object below.
    pub directories: Vec<RelPath>,
    /// Files of the snapshot that the listing lacks.
    pub missing: Vec<RelPath>,
    /// The listing differs from the snapshot in a way that only another tool explains, or a commit of which
    /// nobody knows yet that it came after the listing: a file or a directory is missing, a file is another
    /// version, or one that the snapshot does not have.
    pub unexplained: bool,
}

/// Where a directory is in the bucket.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The remote's prefix.
    pub prefix: &'a RemotePrefix,
    /// The dataset.
    pub dataset: &'a DatasetName,
    /// The directory.
    pub dir: &'a DirPath,
}

/// Holds a directory's listing against the history; `recent` is what was recorded since the
/// listing began.
pub fn apply(listing: &mut Listing, place: Place<'_>, history: &History, recent: &Changes) -> Doubts {
    let mut doubts = Doubts::default();
    let fresh: BTreeSet<&RelPath> = recent.entries.iter().map(|entry| &entry.path).collect();
    let names: Vec<Arc<str>> = listing.entries.keys().cloned().collect();
    for name in names {
        let Ok(path) = place.dir.child(&name) else { continue };
        match listing.entries.get_mut(&name) {
            Some(RemoteEntry::File(file)) => {
                let shown = shown(file, &path, history, recent, &fresh);
                match shown {
                    // Where nothing was ever committed, everything is another tool's.
                    Shown::AsListed => doubts.unexplained |= history.snapshot.seq > 0,
                    Shown::AsRecorded(entry) => {
                        *file = remote_file(place, entry).unwrap_or_else(|| file.clone())
                    }
                    Shown::Hidden(reason) => {
                        let key = file.key.to_string();
                        listing.withheld.push(HiddenKey { key, reason });
                        listing.entries.remove(&name);
                    }
                }
            }
            Some(RemoteEntry::Directory) if is_doubtful(&path, history) => doubts.directories.push(path),
            Some(RemoteEntry::Directory) | None => {}
        }
    }
    if let Some(dir) = place.dir.as_path()
        && !history.snapshot.markers.contains(&dir)
        && history.announced.markers.contains(&dir)
    {
        listing.marker = false;
    }
    complete(listing, place, recent);
    for child in children(&history.snapshot, place.dir) {
        match child {
            Child::File(path) if !listing.entries.contains_key(path.file_name()) => {
                doubts.missing.push(path.clone());
            }
            Child::Directory(name) => doubts.unexplained |= !listing.entries.contains_key(name),
            Child::File(_) => {}
        }
    }
    doubts.unexplained |= !doubts.missing.is_empty();
    let start = if place.dir.is_root() { String::new() } else { format!("{}/", place.dir) };
    let markers = history.snapshot.markers.range::<str, _>((Bound::Included(&*start), Bound::Unbounded));
    let mut names = markers.map_while(|marker| below(place.dir, marker)).map(|(name, _)| name);
    doubts.unexplained |= names.any(|name| !listing.entries.contains_key(name));
    doubts
}

pub(super) enum Shown<'h> {
    AsListed,
    AsRecorded(&'h Entry),
    Hidden(String),
}

pub(super) fn shown<'h>(
    file: &RemoteFile,
    path: &RelPath,
    history: &'h History,
    recent: &Changes,
    fresh: &BTreeSet<&RelPath>,
) -> Shown<'h> {
    match history.snapshot.entries.get(path) {
        Some(entry) if file.etag.as_ref().is_none_or(|etag| *etag == entry.etag) => Shown::AsRecorded(entry),
        Some(entry) if fresh.contains(path) => Shown::AsRecorded(entry),
        Some(entry) if history.announced.replaces.contains(path) => Shown::AsRecorded(entry),
        Some(_) => Shown::AsListed,
        None => hidden_by(file.etag.as_ref(), path, history, recent).map_or(Shown::AsListed, Shown::Hidden),
    }
}

/// Why a file that the snapshot does not have is not shown; `None`: it is foreign, and shown.
fn hidden_by(etag: Option<&ETag>, path: &RelPath, history: &History, recent: &Changes) -> Option<String> {
    let is_old = |version: &crate::record::OldVersion| {
        version.path == *path && etag.is_none_or(|etag| *etag == version.etag)
    };
    if let Some(commit) = history.announced.creates.get(path) {
        return Some(format!("part of commit {commit}, which is not complete"));
    }
    if recent.deleted.iter().any(is_old) || history.is_deleting(path, etag) {
        return Some("deleted by a commit".into());
    }
    None
}

/// Adds what was recorded since the listing began and the listing does not show yet.
fn complete(listing: &mut Listing, place: Place<'_>, recent: &Changes) {
    for entry in &recent.entries {
        let Some((name, rest)) = below(place.dir, &entry.path) else { continue };
        if rest {
            listing.entries.entry(name.into()).or_insert(RemoteEntry::Directory);
        } else if !listing.entries.contains_key(name)
            && let Some(file) = remote_file(place, entry)
        {
            listing.entries.insert(name.into(), RemoteEntry::File(file));
        }
    }
    for marker in &recent.markers {
        if let Some((name, _)) = below(place.dir, marker) {
            listing.entries.entry(name.into()).or_insert(RemoteEntry::Directory);
        }
    }
}

/// The entry of `dir` that leads to `path`, and whether the path goes on below it.
fn below<'p>(dir: &DirPath, path: &'p RelPath) -> Option<(&'p str, bool)> {
    if !dir.contains(path) {
        return None;
    }
    let start = if dir.is_root() { 0 } else { dir.as_str().len() + 1 };
    let rest = &path.as_str()[start..];
    Some(rest.split_once('/').map_or((rest, false), |(name, _)| (name, true)))
}

fn is_doubtful(dir: &RelPath, history: &History) -> bool {
    let start = format!("{dir}/");
    let bounds = (Bound::Included(&*start), Bound::Unbounded);
    let first_file = history.announced.creates.range::<str, _>(bounds).next().map(|(path, _)| path);
    let first_marker = history.announced.markers.range::<str, _>(bounds).next();
    let below = |path: Option<&RelPath>| path.is_some_and(|path| path.as_str().starts_with(&start));
    let announced = below(first_file) || below(first_marker) || history.announced.markers.contains(dir);
    announced && !holds(&history.snapshot, dir)
}

/// Whether a snapshot has anything in a directory.
#[must_use]
pub fn holds(snapshot: &Snapshot, dir: &RelPath) -> bool {
    let start = format!("{dir}/");
    let first = snapshot.entries.range::<str, _>((Bound::Included(&*start), Bound::Unbounded)).next();
    first.is_some_and(|(path, _)| path.as_str().starts_with(&start))
        || snapshot.markers.iter().any(|marker| marker == dir || marker.as_str().starts_with(&start))
}

/// Whether a key below a doubtful directory belongs to a commit that is not complete.
#[must_use]
pub fn is_announced(path: &str, history: &History) -> bool {
    let (file, marker) = (path, path.strip_suffix('/'));
    history.announced.creates.contains_key(file)
        || marker.is_some_and(|dir| history.announced.markers.contains(dir))
}

/// What a snapshot's files make of a directory.
enum Child<'s> {
    File(&'s RelPath),
    /// By its name in the directory.
    Directory(&'s str),
}

/// What a snapshot's files make of a directory, directly in it. Whole subdirectories are stepped over.
fn children<'s>(snapshot: &'s Snapshot, dir: &DirPath) -> impl Iterator<Item = Child<'s>> {
    let start = if dir.is_root() { String::new() } else { format!("{dir}/") };
    let mut from = start.clone();
    std::iter::from_fn(move || {
        let range = (Bound::Included(&*from), Bound::Unbounded);
        let (path, _) = snapshot.entries.range::<str, _>(range).next()?;
        let rest = path.as_str().strip_prefix(&start)?;
        match rest.split_once('/') {
            Some((sub, _)) => {
                from = format!("{start}{sub}0"); // '0' follows '/'
                Some(Child::Directory(sub))
            }
            None => {
                from = format!("{path}\0");
                Some(Child::File(path))
            }
        }
    })
}

/// A directory as a snapshot alone has it: nothing of other tools, and nothing of unfinished commits.
#[must_use]
pub fn of_snapshot(place: Place<'_>, snapshot: &Snapshot) -> Listing {
    let mut listing = Listing::default();
    for child in children(snapshot, place.dir) {
        match child {
            Child::Directory(name) => {
                listing.entries.insert(name.into(), RemoteEntry::Directory);
            }
            Child::File(path) => {
                if let Some(file) = snapshot.entries.get(path).and_then(|entry| remote_file(place, entry)) {
                    listing.entries.insert(path.file_name().into(), RemoteEntry::File(file));
                }
            }
        }
    }
    for marker in &snapshot.markers {
        if let Some((name, _)) = below(place.dir, marker) {
            listing.entries.insert(name.into(), RemoteEntry::Directory);
        }
        listing.marker |= place.dir.as_path().is_some_and(|dir| dir == *marker);
    }
    listing
}

fn remote_file(place: Place<'_>, entry: &Entry) -> Option<RemoteFile> {
    Some(RemoteFile {
        key: place.prefix.key(place.dataset, &entry.path).ok()?,
        size_bytes: entry.size_bytes,
        etag: Some(entry.etag.clone()),
        modified: entry.mtime,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::SystemTime;

    use super::*;
    use crate::name::ObjectKey;
    use crate::record::Author;
    use crate::record::ContentId;
    use crate::record::OldVersion;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn entry(text: &str, etag: &str) -> Entry {
        Entry {
            path: path(text),
            size_bytes: 1,
            cid: ContentId::OF_NOTHING,
            etag: ETag::from_server(etag),
            mtime: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
            replaced: None,
        }
    }

    fn old(text: &str, etag: &str) -> OldVersion {
        OldVersion { path: path(text), etag: ETag::from_server(etag) }
    }

    fn intent() -> Intent {
        Intent {
            dataset: DatasetName::parse("run").unwrap(),
            txid: "T".into(),
            author: Author::default(),
            time: SystemTime::UNIX_EPOCH,
            creates: vec![],
            markers: vec![],
            replaces: vec![],
            deletes: vec![],
            deleting: None,
        }
    }

    fn listing(files: &[(&str, &str)], directories: &[&str]) -> Listing {
        let mut listing = Listing::default();
        for (name, etag) in files {
            let file = RemoteFile {
                key: ObjectKey::from_listing(&format!("d/run/{name}")),
                size_bytes: 2,
                etag: Some(ETag::from_server(etag)),
                modified: SystemTime::UNIX_EPOCH,
            };
            listing.entries.insert((*name).into(), RemoteEntry::File(file));
        }
        for name in directories {
            listing.entries.insert((*name).into(), RemoteEntry::Directory);
        }
        listing
    }

    fn history(entries: Vec<Entry>, intents: Vec<Intent>) -> History {
        let entries = entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        let snapshot = Snapshot { seq: 1, entries, ..Snapshot::default() };
        History::new(Arc::new(snapshot), &intents)
    }

    /// What is shown of the top directory: names with versions, directories with a slash.
    fn show(listing: &mut Listing, history: &History, recent: &Changes) -> (Vec<String>, Doubts) {
        let (prefix, dataset) = (RemotePrefix::parse("d").unwrap(), DatasetName::parse("run").unwrap());
        let place = Place { prefix: &prefix, dataset: &dataset, dir: &DirPath::root() };
        let doubts = apply(listing, place, history, recent);
        let shown = listing.entries.iter().map(|(name, entry)| match entry {
            RemoteEntry::Directory => format!("{name}/"),
            RemoteEntry::File(file) => format!("{name}={}", file.etag.as_ref().unwrap()),
        });
        (shown.collect(), doubts)
    }

    #[test]
    fn without_a_log_everything_is_foreign_and_shown() {
        let mut listing = listing(&[("a", "1")], &["d"]);
        let (shown, doubts) = show(&mut listing, &History::default(), &Changes::default());
        assert_eq!(shown, ["a=1", "d/"]);
        assert_eq!(doubts, Doubts::default());
    }

    #[test]
    fn half_a_commit_is_hidden() {
        let intent = Intent { creates: vec![path("a"), path("b")], ..intent() };
        let mut listing = listing(&[("a", "1"), ("foreign", "2")], &[]);
        let (shown, _) = show(&mut listing, &history(vec![], vec![intent]), &Changes::default());
        assert_eq!(shown, ["foreign=2"]);
        assert_eq!(listing.withheld.len(), 1);
    }

    #[test]
    fn a_commit_that_ended_while_listing_is_shown_whole() {
        let (a, b, deep) = (entry("a", "1"), entry("b", "2"), entry("d/e", "3"));
        let recent = Changes { entries: vec![a.clone(), b.clone(), deep.clone()], ..Changes::default() };
        let mut listing = listing(&[("a", "1")], &[]);
        let (shown, doubts) = show(&mut listing, &history(vec![a, b, deep], vec![]), &recent);
        assert_eq!(shown, ["a=1", "b=2", "d/"]);
        assert!(doubts.missing.is_empty());
    }

    #[test]
    fn committed_files_have_their_own_time() {
        let mut listing = listing(&[("a", "1")], &[]);
        show(&mut listing, &history(vec![entry("a", "1")], vec![]), &Changes::default());
        let Some(RemoteEntry::File(file)) = listing.entries.get("a") else { panic!("a is a file") };
        assert_eq!(file.modified, SystemTime::UNIX_EPOCH + Duration::from_secs(7));
    }

    #[test]
    fn a_replacement_shows_when_it_is_committed() {
        let intent = Intent { replaces: vec![old("a", "1")], ..intent() };
        let mut during = listing(&[("a", "2")], &[]);
        let before = history(vec![entry("a", "1")], vec![intent]);
        assert_eq!(show(&mut during, &before, &Changes::default()).0, ["a=1"]);
        let mut after = listing(&[("a", "1")], &[]);
        let recent = Changes { entries: vec![entry("a", "2")], ..Changes::default() };
        assert_eq!(show(&mut after, &history(vec![entry("a", "2")], vec![]), &recent).0, ["a=2"]);
        let mut foreign = listing(&[("a", "9")], &[]);
        let quiet = history(vec![entry("a", "1")], vec![]);
        assert_eq!(show(&mut foreign, &quiet, &Changes::default()).0, ["a=9"]);
    }

    #[test]
    fn a_deletion_shows_when_it_is_committed() {
        let intent = Intent { deletes: vec![old("a", "1")], ..intent() };
        let mut before = listing(&[("a", "1")], &[]);
        let live = history(vec![entry("a", "1")], vec![intent.clone()]);
        assert_eq!(show(&mut before, &live, &Changes::default()).0, ["a=1"]);
        let mut recorded = listing(&[("a", "1")], &[]);
        assert!(show(&mut recorded, &history(vec![], vec![intent]), &Changes::default()).0.is_empty());
        let recent = Changes { deleted: vec![old("a", "1")], ..Changes::default() };
        let mut late = listing(&[("a", "1")], &[]);
        assert!(show(&mut late, &history(vec![], vec![]), &recent).0.is_empty());
        let mut again = listing(&[("a", "2")], &[]);
        assert_eq!(show(&mut again, &history(vec![], vec![]), &recent).0, ["a=2"], "another version");
    }

    #[test]
    fn a_directory_that_a_commit_is_making_is_doubtful() {
        let intent = Intent { creates: vec![path("new/a"), path("old/b")], ..intent() };
        let mut listing = listing(&[], &["new", "old", "other"]);
        let (_, doubts) =
            show(&mut listing, &history(vec![entry("old/a", "1")], vec![intent]), &Changes::default());
        assert_eq!(doubts.directories, [path("new")]);
    }

    #[test]
    fn a_snapshot_alone_makes_its_directories() {
        let mut history = history(vec![entry("a", "1"), entry("d/e/f", "2"), entry("d-x", "3")], vec![]);
        Arc::make_mut(&mut history.snapshot).markers.insert(path("d/empty"));
        let (prefix, dataset) = (RemotePrefix::parse("d").unwrap(), DatasetName::parse("run").unwrap());
        let names = |dir: DirPath| {
            let place = Place { prefix: &prefix, dataset: &dataset, dir: &dir };
            let listing = of_snapshot(place, &history.snapshot);
            (listing.entries.keys().map(ToString::to_string).collect::<Vec<_>>(), listing.marker)
        };
        assert_eq!(names(DirPath::root()), (vec!["a".into(), "d".into(), "d-x".into()], false));
        assert_eq!(names(path("d").into()), (vec!["e".into(), "empty".into()], false));
        assert_eq!(names(path("d/empty").into()), (vec![], true));
        assert_eq!(names(path("none").into()), (vec![], false));
    }

    #[test]
    fn what_no_known_commit_explains_is_told() {
        let mut history = history(vec![entry("a", "1"), entry("d/x", "1")], vec![]);
        Arc::make_mut(&mut history.snapshot).markers.insert(path("d/empty"));
        let unexplained = |history: &History, mut listing: Listing| {
            show(&mut listing, history, &Changes::default()).1.unexplained
        };
        assert!(!unexplained(&history, listing(&[("a", "1")], &["d", "other"])));
        assert!(unexplained(&history, listing(&[("a", "9")], &["d"])), "another version");
        let more = listing(&[("a", "1"), ("b", "1")], &["d"]);
        assert!(unexplained(&history, more), "deleted since, or another tool's");
        assert!(unexplained(&history, listing(&[("a", "1")], &[])), "a directory that was made since");
        assert!(unexplained(&history, listing(&[], &["d"])), "a file that was made since");
        Arc::make_mut(&mut history.snapshot).markers.insert(path("empty"));
        assert!(
            unexplained(&history, listing(&[("a", "1")], &["d"])),
            "an empty directory that was made since"
        );
    }

    #[test]
    fn files_that_another_tool_deleted_are_missed() {
        let snapshot = vec![entry("a", "1"), entry("b", "1"), entry("d/x", "1"), entry("d-e", "1")];
        let mut listing = listing(&[("a", "1")], &["d"]);
        let (shown, doubts) = show(&mut listing, &history(snapshot, vec![]), &Changes::default());
        assert_eq!(shown, ["a=1", "d/"]);
        assert_eq!(doubts.missing, [path("b"), path("d-e")]);
    }
}
