//! What a commit would do, decided without doing it: staged files against a listing.
//!
//! Pure. A [`Survey`] is shown every key of the dataset, page by page, and keeps only what
//! concerns the staged paths; so a dataset of millions of objects costs no memory here. What
//! cannot be decided by names and sizes (an object of the same size is there: the same content?)
//! comes out as *doubtful*, and whoever asks settles it by content id.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::time::SystemTime;

use crate::commit::conflict::Conflict;
use crate::commit::conflict::ConflictReason;
use crate::name::DatasetName;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::NameError;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::staging::Base;
use crate::staging::BaseKind;
use crate::staging::Contents;
use crate::store::Expect;
use crate::store::ListedObject;

/// Files that say at a dataset's top that it is complete: published last.
pub const MARKERS: [&str; 2] = ["data.jsonl", "meta.json"];

/// An entry of a record with an empty path and `ETag`, and a size of one digit.
const ENTRY_BYTES_LEAST: u64 = 144;

/// Something to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where in the dataset.
    pub path: RelPath,
    /// Its key.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed.
    pub modified: SystemTime,
    /// What has to be there when it is written.
    pub expect: Expect,
}

/// A published version that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedDelete {
    /// Where in the dataset.
    pub path: RelPath,
    /// Its key.
    pub key: ObjectKey,
    /// Which version.
    pub etag: ETag,
}

/// A file whose content is published already, at its own path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlreadyThere {
    /// The file.
    pub file: PlannedFile,
    /// The version that is there.
    pub etag: ETag,
}

/// What a commit does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitPlan {
    /// New files.
    pub create: Vec<PlannedFile>,
    /// New versions of published files.
    pub replace: Vec<PlannedFile>,
    /// Published files that go.
    pub delete: Vec<PlannedDelete>,
    /// Empty directories that get a marker.
    pub markers: Vec<(RelPath, ObjectKey)>,
    /// Files whose content is published already.
    pub already_there: Vec<AlreadyThere>,
    /// What stands in the way. A plan with conflicts is not carried out.
    pub conflicts: Vec<Conflict>,
}

impl CommitPlan {
    /// The bytes that have to be sent.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.create.iter().chain(&self.replace).map(|file| file.size_bytes).sum()
    }

    /// The requests that write: one per small object, its parts and two for a large one, one per
    /// deletion, and three for intent and record.
    #[must_use]
    pub fn requests(&self, part_bytes: u64) -> u64 {
        let files = self.create.iter().chain(&self.replace).map(|file| {
            if file.size_bytes <= part_bytes {
                1
            } else {
                2 + file.size_bytes.div_ceil(part_bytes_for(file.size_bytes, part_bytes))
            }
        });
        files.sum::<u64>() + (self.delete.len() + self.markers.len()) as u64 + 3
    }
}

impl CommitPlan {
    /// How long the commit's record is at least, in bytes before it is packed.
    #[must_use]
    pub fn record_bytes_least(&self) -> u64 {
        let entries = self.create.iter().chain(&self.replace);
        let entries = entries.map(|file| ENTRY_BYTES_LEAST + file.path.as_str().len() as u64);
        let deleted = self.delete.iter().map(|gone| gone.path.as_str().len() + gone.etag.as_str().len());
        let markers = self.markers.iter().map(|(path, _)| path.as_str().len());
        entries.sum::<u64>() + deleted.chain(markers).sum::<usize>() as u64
    }
}

/// The part size for an object: `part_bytes`, more where it would need over 10 000 parts. All
/// parts but the last have this size (R2 insists).
#[must_use]
pub fn part_bytes_for(size_bytes: u64, part_bytes: u64) -> u64 {
    const UNIT: u64 = 1 << 20;
    let least = size_bytes.div_ceil(crate::store::PARTS_MAX).next_multiple_of(UNIT);
    part_bytes.max(least).max(crate::store::PART_BYTES_MIN)
}

/// What is staged, waiting to be shown what is published.
#[derive(Debug)]
pub struct Survey {
    prefix: KeyPrefix,
    overwrite: bool,
    files: Vec<PlannedFile>,
    by_path: HashMap<String, usize>,
    bases: BTreeMap<RelPath, Base>,
    delete_keys: HashMap<RelPath, ObjectKey>,
    /// Empty directories, and what was seen of them.
    markers: BTreeMap<RelPath, (ObjectKey, SeenDir)>,
    /// Directories above staged files, and the empty directories.
    dirs: HashSet<String>,
    seen: HashMap<RelPath, Seen>,
    conflicts: Vec<Conflict>,
    listed_bytes_least: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeenDir {
    Nothing,
    /// Its marker, whosever it is.
    Marker,
    /// Something in it.
    Entries,
}

#[derive(Clone, Debug)]
struct Seen {
    etag: Option<ETag>,
    size_bytes: u64,
}

/// A plan but for what has to be settled by content.
#[derive(Debug)]
pub struct Draft {
    /// What is decided.
    pub plan: CommitPlan,
    /// Files at whose key there is an object that may be the same.
    pub doubtful: Vec<Doubtful>,
    /// Empty directories whose marker is there, be it published or of a commit that has not ended.
    pub markers: Vec<(RelPath, ObjectKey)>,
    /// How long a snapshot of everything that was listed is at least, in bytes before it is packed.
    pub listed_bytes_least: u64,
}

/// A file at whose key there is an object that may be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubtful {
    /// The staged file.
    pub file: PlannedFile,
    /// What the conflict is if the object is another.
    pub otherwise: ConflictReason,
}

impl Survey {
    /// Begins with what is staged.
    ///
    /// # Errors
    /// [`NameError::KeyTooLong`].
    pub fn new(
        contents: &Contents,
        prefix: &RemotePrefix,
        dataset: &DatasetName,
        overwrite: bool,
    ) -> Result<Self, NameError> {
        let bases: BTreeMap<RelPath, Base> = contents.bases.iter().cloned().collect();
        let mut survey = Self {
            prefix: prefix.dataset(dataset),
            overwrite,
            files: Vec::with_capacity(contents.files.len()),
            by_path: HashMap::new(),
            bases,
            delete_keys: HashMap::new(),
            markers: BTreeMap::new(),
            dirs: HashSet::new(),
            seen: HashMap::new(),
            conflicts: Vec::new(),
            listed_bytes_least: 0,
        };
        for file in &contents.files {
            survey.by_path.insert(file.path.to_string(), survey.files.len());
            survey.dirs.extend(file.path.ancestors().map(|dir| dir.to_string()));
            survey.files.push(PlannedFile {
                path: file.path.clone(),
                key: prefix.key(dataset, &file.path)?,
                size_bytes: file.size_bytes,
                modified: file.modified,
                expect: Expect::Absent,
            });
        }
        for dir in contents.empty_directories.iter().filter_map(DirPath::as_path) {
            survey.dirs.insert(dir.to_string());
            survey.dirs.extend(dir.ancestors().map(|above| above.to_string()));
            let key = prefix.marker_key(dataset, &dir.clone().into())?;
            survey.markers.insert(dir, (key, SeenDir::Nothing));
        }
        for (path, _) in survey.bases.iter().filter(|(_, base)| base.kind == BaseKind::Delete) {
            survey.delete_keys.insert(path.clone(), prefix.key(dataset, path)?);
        }
        Ok(survey)
    }

    /// Looks at one key of the dataset.
    pub fn see(&mut self, object: &ListedObject) {
        let Some(text) = self.prefix.strip(&object.key) else { return };
        self.listed_bytes_least += ENTRY_BYTES_LEAST + text.len() as u64;
        let Ok(path) = RelPath::parse(text) else {
            // A marker, or a key that no file system can show; both may lie below a staged file.
            self.see_parents(text);
            return;
        };
        self.see_parents(text);
        if self.dirs.contains(text) {
            self.conflicts.push(Conflict { path: text.into(), reason: ConflictReason::FileThere });
        }
        let staged = self.by_path.contains_key(text) || self.bases.contains_key(&path);
        if staged {
            self.seen.insert(path, Seen { etag: object.etag.clone(), size_bytes: object.size_bytes });
        }
    }

    /// The directories that a key implies.
    fn see_parents(&mut self, text: &str) {
        for (at, _) in text.match_indices('/') {
            let Some(dir) = text.get(..at) else { continue };
            if let Some(&index) = self.by_path.get(dir) {
                let path = self.files.get(index).map_or_else(String::new, |file| file.path.to_string());
                let conflict = Conflict { path, reason: ConflictReason::DirectoryThere };
                if self.conflicts.last() != Some(&conflict) {
                    self.conflicts.push(conflict);
                }
            }
            if let Some((_, seen)) = RelPath::parse(dir).ok().and_then(|dir| self.markers.get_mut(&dir)) {
                let is_marker = at + 1 == text.len() && *seen == SeenDir::Nothing;
                *seen = if is_marker { SeenDir::Marker } else { SeenDir::Entries };
            }
        }
    }

    /// Decides what can be decided. With `resuming`, what is there may be the commit's own, so
    /// that sizes prove nothing.
    #[must_use]
    pub fn draft(mut self, resuming: bool) -> Draft {
        let mut plan = CommitPlan { conflicts: std::mem::take(&mut self.conflicts), ..CommitPlan::default() };
        plan.conflicts.dedup();
        let mut doubtful = Vec::new();
        let blocked: HashSet<String> = plan.conflicts.iter().map(|conflict| conflict.path.clone()).collect();
        for file in std::mem::take(&mut self.files) {
            if blocked.contains(file.path.as_str()) {
                continue;
            }
            match self.place(&file) {
                Place::Free => plan.create.push(file),
                Place::Replaces(etag) => {
                    plan.replace.push(PlannedFile { expect: Expect::Version(etag), ..file });
                }
                Place::Taken { same_size, otherwise } if same_size || resuming => {
                    doubtful.push(Doubtful { file, otherwise });
                }
                Place::Taken { otherwise, .. } => {
                    plan.conflicts.push(Conflict { path: file.path.to_string(), reason: otherwise });
                }
            }
        }
        for (path, key) in &self.delete_keys {
            match self.deletion(path, key) {
                Ok(Some(delete)) => plan.delete.push(delete),
                Ok(None) => {}
                Err(reason) => plan.conflicts.push(Conflict { path: path.to_string(), reason }),
            }
        }
        plan.delete.sort_by(|a, b| a.path.cmp(&b.path));
        let mut markers = Vec::new();
        for (path, (key, seen)) in self.markers {
            match seen {
                SeenDir::Nothing => plan.markers.push((path, key)),
                SeenDir::Marker => markers.push((path, key)),
                SeenDir::Entries => {}
            }
        }
        plan.conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        Draft { plan, doubtful, markers, listed_bytes_least: self.listed_bytes_least }
    }

    fn place(&self, file: &PlannedFile) -> Place {
        let seen = self.seen.get(&file.path);
        let same_size = seen.is_some_and(|seen| seen.size_bytes == file.size_bytes);
        let found = || seen.and_then(|seen| seen.etag.clone());
        let base = self.bases.get(&file.path);
        match (base, seen) {
            (None, None) => Place::Free,
            (None, Some(_)) => {
                Place::Taken { same_size, otherwise: ConflictReason::Exists { etag: found(), by: None } }
            }
            (Some(_), Some(_)) if !self.overwrite => {
                Place::Taken { same_size, otherwise: ConflictReason::WouldReplace }
            }
            (Some(base), Some(seen)) if seen.etag.as_ref().is_none_or(|etag| *etag == base.etag) => {
                Place::Replaces(base.etag.clone())
            }
            (Some(base), _) => Place::Taken {
                same_size,
                otherwise: ConflictReason::Changed { expected: base.etag.clone(), found: found() },
            },
        }
    }

    fn deletion(&self, path: &RelPath, key: &ObjectKey) -> Result<Option<PlannedDelete>, ConflictReason> {
        let (Some(base), Some(seen)) = (self.bases.get(path), self.seen.get(path)) else { return Ok(None) };
        if self.by_path.contains_key(path.as_str()) {
            return Ok(None); // staged anew: it is replaced, not deleted
        }
        if !self.overwrite {
            return Err(ConflictReason::WouldReplace);
        }
        match &seen.etag {
            Some(etag) if *etag != base.etag => {
                Err(ConflictReason::Changed { expected: base.etag.clone(), found: Some(etag.clone()) })
            }
            _ => Ok(Some(PlannedDelete { path: path.clone(), key: key.clone(), etag: base.etag.clone() })),
        }
    }
}

enum Place {
    Free,
    Replaces(ETag),
    Taken { same_size: bool, otherwise: ConflictReason },
}

/// Whether a path is published last.
#[must_use]
pub fn is_marker(path: &RelPath) -> bool {
    MARKERS.contains(&path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::StagedEntry;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn base(etag: &str, kind: BaseKind) -> Base {
        Base { etag: ETag::from_server(etag), size_bytes: 1, kind }
    }

    /// Files as `path` or `path=size`, directories as `path/`.
    fn contents(staged: &[&str], bases: &[(&str, Base)]) -> Contents {
        let mut contents = Contents::default();
        for item in staged {
            let (name, size) = item.split_once('=').unwrap_or((item, "1"));
            match name.strip_suffix('/') {
                Some(dir) => contents.empty_directories.push(path(dir).into()),
                None => contents.files.push(StagedEntry {
                    path: path(name),
                    size_bytes: size.parse().unwrap(),
                    modified: SystemTime::UNIX_EPOCH,
                }),
            }
        }
        contents.bases = bases.iter().map(|(at, base)| (path(at), base.clone())).collect();
        contents
    }

    /// Objects as `key` or `key=size`; every etag is `e`.
    fn draft(staged: &[&str], bases: &[(&str, Base)], listed: &[&str], overwrite: bool) -> Draft {
        let prefix = RemotePrefix::parse("datasets/").unwrap();
        let dataset = DatasetName::parse("run").unwrap();
        let mut survey = Survey::new(&contents(staged, bases), &prefix, &dataset, overwrite).unwrap();
        for item in listed {
            let (name, size) = item.split_once('=').unwrap_or((item, "1"));
            survey.see(&ListedObject {
                key: ObjectKey::from_listing(&format!("datasets/run/{name}")),
                size_bytes: size.parse().unwrap(),
                etag: Some(ETag::from_server("e")),
                modified: SystemTime::UNIX_EPOCH,
            });
        }
        survey.draft(false)
    }

    fn summary(draft: &Draft) -> String {
        let plan = &draft.plan;
        let mut parts = Vec::new();
        parts.extend(plan.create.iter().map(|file| format!("+{}", file.path)));
        parts.extend(plan.replace.iter().map(|file| format!("~{}", file.path)));
        parts.extend(plan.delete.iter().map(|gone| format!("-{}", gone.path)));
        parts.extend(plan.markers.iter().map(|(dir, _)| format!("{dir}/")));
        parts.extend(draft.doubtful.iter().map(|doubt| format!("?{}", doubt.file.path)));
        parts.extend(draft.markers.iter().map(|(dir, _)| format!("?{dir}/")));
        parts.extend(plan.conflicts.iter().map(|conflict| {
            let reason = match conflict.reason {
                ConflictReason::Exists { .. } => "exists",
                ConflictReason::DirectoryThere => "directory",
                ConflictReason::FileThere => "file",
                ConflictReason::Changed { .. } => "changed",
                ConflictReason::WouldReplace => "replaces",
                ConflictReason::Leftover { .. } => "leftover",
                ConflictReason::Intent { .. } => "intent",
                ConflictReason::BeingDeleted { .. } => "deleted",
                ConflictReason::Present => "present",
            };
            format!("!{}:{reason}", conflict.path)
        }));
        parts.join(" ")
    }

    #[test]
    fn plans() {
        let table: &[(&[&str], &[&str], &str)] = &[
            (&["a", "b/c"], &[], "+a +b/c"),
            (&["a", "b/c"], &["x", "b/d", "a.txt", "b-"], "+a +b/c"),
            (&["a=1", "b=2"], &["a=1", "b=3"], "?a !b:exists"),
            (&["a"], &["a/x", "a/y"], "!a:directory"),
            (&["a"], &["a/"], "!a:directory"),
            (&["a"], &["a//x"], "!a:directory"),
            (&["a/b", "a/c"], &["a"], "+a/b +a/c !a:file"),
            (&["a/b/c", "ok"], &["a", "a/b=9"], "+a/b/c +ok !a:file !a/b:file"),
            (&["d/"], &[], "d/"),
            (&["d/"], &["d/"], "?d/"),
            (&["d/"], &["d/", "d/x"], ""),
            (&["d/"], &["d/x/y"], ""),
            (&["d/"], &["d"], "d/ !d:file"),
            (&["d/e/"], &["d/x"], "d/e/"),
            (&["z", "m=2", "a=2"], &["a", "m", "z=5"], "!a:exists !m:exists !z:exists"),
        ];
        for (staged, listed, expected) in table {
            assert_eq!(summary(&draft(staged, &[], listed, false)), *expected, "{staged:?} on {listed:?}");
        }
    }

    #[test]
    fn replacing_needs_the_flag_and_the_version_that_was_seen() {
        let seen = base("e", BaseKind::Replace);
        let older = base("d", BaseKind::Replace);
        let gone = base("e", BaseKind::Delete);
        type Case<'a> = (&'a [(&'a str, Base)], &'a [&'a str], bool, &'a str);
        let table: &[Case<'_>] = &[
            (&[("a", seen.clone())], &["a=2"], true, "~a"),
            (&[("a", seen.clone())], &["a=2"], false, "!a:replaces"),
            (&[("a", older.clone())], &["a=2"], true, "!a:changed"),
            (&[("a", seen)], &[], true, "!a:changed"),
            (&[("a", older)], &["a=1"], true, "?a"),
            (&[("g", gone.clone())], &["g"], true, "+a -g"),
            (&[("g", gone.clone())], &["g"], false, "+a !g:replaces"),
            (&[("g", gone.clone())], &[], true, "+a"),
            (&[("g", base("d", BaseKind::Delete))], &["g"], true, "+a !g:changed"),
            (&[("a", gone)], &["a=2"], true, "~a"),
        ];
        for (bases, listed, overwrite, expected) in table {
            assert_eq!(
                summary(&draft(&["a"], bases, listed, *overwrite)),
                *expected,
                "{bases:?} on {listed:?}"
            );
        }
    }

    #[test]
    fn a_record_is_no_shorter_than_was_foreseen() {
        use crate::record::Changes;
        use crate::record::ContentId;
        use crate::record::Entry;
        let plan = draft(&["a", "dir/\"quoted\"", "empty/"], &[], &[], false).plan;
        let entry = |file: &PlannedFile, etag: &str| Entry {
            path: file.path.clone(),
            size_bytes: 0,
            cid: ContentId::OF_NOTHING,
            etag: ETag::from_server(etag),
            mtime: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000),
            replaced: None,
        };
        let length = |etag| {
            let changes = Changes {
                entries: plan.create.iter().map(|file| entry(file, etag)).collect(),
                deleted: Vec::new(),
                markers: plan.markers.iter().map(|(path, _)| path.clone()).collect(),
            };
            serde_json::to_vec(&changes).unwrap().len() as u64
        };
        let least = plan.record_bytes_least();
        assert!(least <= length("") && length("") < least + 80, "{least} of {}", length(""));
        assert!(length("\"d41d8cd98f00b204e9800998ecf8427e\"") < 2 * least);
    }

    #[test]
    fn parts_are_equal_and_at_most_ten_thousand() {
        let default = 8 << 20;
        for size in [0, 1, default, default + 1, 80 << 30, 5 << 40] {
            let part = part_bytes_for(size, default);
            assert!(part >= default && size.div_ceil(part) <= 10_000, "{size}: {part}");
        }
        assert_eq!(part_bytes_for(1 << 30, 1), crate::store::PART_BYTES_MIN);
        let plan = draft(&["a=1", &format!("b={}", 20 << 20), "d/"], &[], &[], false).plan;
        assert_eq!(plan.bytes(), 1 + (20 << 20));
        assert_eq!(plan.requests(8 << 20), 1 + (2 + 3) + 1 + 3);
    }
}
