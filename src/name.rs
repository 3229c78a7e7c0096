//! Names: datasets, paths inside them, and the object keys that they spell.
//!
//! Everything that enters from outside (a command line, the kernel, a listing) is parsed here
//! once, into types that cannot hold a bad name; the rest of dsfs never checks again.
//!
//! Nothing is repaired, escaped or renamed: `a//b` and `a/../b` are errors, not `a/b`.
//!
//! # Keys
//!
//! With the remote prefix `datasets/`:
//!
//! ```text
//! datasets/<name>/<path>                   a file
//! datasets/<name>/<path>/                  a directory with nothing in it (zero bytes)
//! .dsfs/datasets/intents/<name>/<txid>     notice of a commit under way
//! .dsfs/datasets/log/<name>/<seq>          a commit record, ten decimal digits
//! .dsfs/datasets/snapshots/<name>/<seq>    everything that a dataset holds after that commit
//! .dsfs/datasets/scratch/<ulid>            probes of the server, removed at once
//! ```

use std::fmt;
use std::sync::Arc;

/// Longest name of one file or directory in bytes: the limit of Linux file systems.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Longest object key in bytes: the limit of S3.
pub const OBJECT_KEY_BYTES_MAX: usize = 1024;
/// Digits in the name of a commit record.
pub const SEQ_DIGITS: usize = 10;
/// Where dsfs keeps its own state in a bucket, beside the datasets and never inside one.
pub(crate) const STATE_PREFIX: &str = ".dsfs/";

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A component that no file system can hold, or that would leave its directory.
    #[error("{0:?} cannot be a file name: it is empty, '.', '..', or holds '/' or NUL")]
    BadComponent(String),
    /// A component of more than [`COMPONENT_BYTES_MAX`] bytes.
    #[error("file name of {0} bytes is longer than 255 bytes")]
    ComponentTooLong(usize),
    /// The dataset's name, the prefix and the path together exceed S3's limit.
    #[error("object key {key:?} is longer than 1024 bytes")]
    KeyTooLong {
        /// The key that would have been written.
        key: String,
    },
    /// A path in a dataset, where a whole dataset is meant.
    #[error("{path:?} is in the dataset {dataset}, and this takes a whole dataset: {dataset}")]
    NotWhole {
        /// What was given.
        path: String,
        /// The dataset that it is in.
        dataset: DatasetName,
    },
    /// Not valid as a dataset name.
    #[error("{0:?} cannot be a dataset name: one path component that does not start with '.'")]
    BadDataset(String),
    /// Not valid as a remote prefix.
    #[error(
        "{0:?} cannot be a remote prefix: it must not start with '/' or '.', or hold empty, '.' or '..' components"
    )]
    BadPrefix(String),
    /// A commit number that no commit has.
    #[error("{0:?} does not name a commit: commits are numbered from 1, in at most ten digits")]
    BadCommitNumber(String),
    /// Bytes that are not UTF-8, which S3 keys have to be.
    #[error("file name {0:?} is not UTF-8")]
    NotUtf8(String),
}

/// Checks one path component: not empty, not `.` or `..`, no `/` or NUL, at most 255 bytes.
///
/// # Errors
/// Says which of these it is.
pub fn check_component(name: &str) -> Result<(), NameError> {
    if name.len() > COMPONENT_BYTES_MAX {
        return Err(NameError::ComponentTooLong(name.len()));
    }
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(NameError::BadComponent(name.into()));
    }
    Ok(())
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

macro_rules! parsed_newtype {
    ($name:ident) => {
        deserialized_newtype!($name);
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    };
}

macro_rules! deserialized_newtype {
    ($name:ident) => {
        text_newtype!($name);
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The name of a dataset: one path component that does not start with `.`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatasetName(Arc<str>);
deserialized_newtype!(DatasetName);

/// As somebody types it: the `/` that a shell adds to a directory does not count.
impl std::str::FromStr for DatasetName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.trim_end_matches('/');
        match name.split_once('/').map(|(dataset, _)| Self::parse(dataset)) {
            Some(Ok(dataset)) => Err(NameError::NotWhole { path: name.into(), dataset }),
            Some(Err(_)) => Err(NameError::BadDataset(text.into())),
            None => Self::parse(name),
        }
    }
}

impl DatasetName {
    /// Parses a dataset name.
    ///
    /// # Errors
    /// A name that is not one valid path component, or starts with `.`.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_component(name)?;
        if name.starts_with('.') {
            return Err(NameError::BadDataset(name.into()));
        }
        Ok(Self(name.into()))
    }
}

/// A dataset, or what it held after one of its commits: `NAME` or `NAME@SEQ`.
///
/// Only digits behind the last `@` are a commit's number: `run@home` is a dataset. One whose own
/// name ends in `@` and digits is written with an `@` at the end, `a@3@`, for its newest state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    /// The dataset.
    pub dataset: DatasetName,
    /// The commit's number, from 1; `None`: the newest.
    pub seq: Option<u64>,
}

impl Revision {
    /// Parses `NAME`, `NAME@` or `NAME@SEQ`.
    ///
    /// # Errors
    /// A name that is no dataset's, or a number that is no commit's.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let Some((name, number)) = text.rsplit_once('@') else {
            return Ok(Self { dataset: DatasetName::parse(text)?, seq: None });
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self { dataset: DatasetName::parse(text)?, seq: None });
        }
        let dataset = DatasetName::parse(name)?;
        if number.is_empty() {
            return Ok(Self { dataset, seq: None });
        }
        if number.starts_with('0') || number.len() > SEQ_DIGITS {
            return Err(NameError::BadCommitNumber(text.into()));
        }
        let seq = number.parse().map_err(|_| NameError::BadCommitNumber(text.into()))?;
        Ok(Self { dataset, seq: Some(seq) })
    }
}

impl std::str::FromStr for Revision {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.trim_end_matches('/') {
            name if name.contains('/') => {
                DatasetName::from_str(name).map(|dataset| Self { dataset, seq: None })
            }
            name => Self::parse(name),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(f, "{}@{seq}", self.dataset),
            None if Self::parse(self.dataset.as_str()).is_ok_and(|plain| plain == *self) => {
                fmt::Display::fmt(&self.dataset, f)
            }
            None => write!(f, "{}@", self.dataset), // read as a commit's number without it
        }
    }
}

impl serde::Serialize for Revision {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Revision {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The path of a file or directory inside one dataset. Never empty, never absolute.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(Arc<str>);
parsed_newtype!(RelPath);

impl std::borrow::Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl RelPath {
    /// Parses a path, all components of it.
    ///
    /// # Errors
    /// An empty or absolute path, a trailing `/`, or a component that [`check_component`] refuses.
    pub fn parse(path: &str) -> Result<Self, NameError> {
        path.split('/').try_for_each(check_component)?;
        Ok(Self(path.into()))
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The directory that holds it.
    #[must_use]
    pub fn parent(&self) -> DirPath {
        DirPath(self.0.rsplit_once('/').map_or("", |(parent, _)| parent).into())
    }

    /// The components from the top.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The directories that hold it, the dataset's root first.
    pub fn ancestors(&self) -> impl Iterator<Item = DirPath> {
        let text = Arc::clone(&self.0);
        let cuts: Vec<usize> = std::iter::once(0).chain(text.match_indices('/').map(|(at, _)| at)).collect();
        cuts.into_iter().map(move |at| DirPath(text[..at].into()))
    }
}

/// A directory inside one dataset: its root, or a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DirPath(Arc<str>);
text_newtype!(DirPath);

impl DirPath {
    /// The dataset's own directory.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether this is the dataset's own directory.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of an entry of this directory.
    ///
    /// # Errors
    /// A name that [`check_component`] refuses.
    pub fn child(&self, name: &str) -> Result<RelPath, NameError> {
        check_component(name)?;
        if self.is_root() {
            Ok(RelPath(name.into()))
        } else {
            Ok(RelPath(format!("{}/{name}", self.0).into()))
        }
    }

    /// The directory as a path, unless it is the root.
    #[must_use]
    pub fn as_path(&self) -> Option<RelPath> {
        (!self.is_root()).then(|| RelPath(Arc::clone(&self.0)))
    }

    /// Whether `path` lies below this directory, at any depth.
    #[must_use]
    pub fn contains(&self, path: &RelPath) -> bool {
        self.is_root() || path.0.strip_prefix(&*self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl<'de> serde::Deserialize<'de> for DirPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self::root());
        }
        RelPath::parse(&text).map(Self::from).map_err(serde::de::Error::custom)
    }
}

impl From<RelPath> for DirPath {
    fn from(path: RelPath) -> Self {
        Self(path.0)
    }
}

/// A whole object key. Spelled by [`RemotePrefix`], or named by a server's listing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);
text_newtype!(ObjectKey);

impl ObjectKey {
    /// A key that a person named: components as a file system has them, so that nothing is written that
    /// no mount and no download could show.
    ///
    /// # Errors
    /// [`NameError::BadComponent`], [`NameError::ComponentTooLong`], [`NameError::KeyTooLong`].
    pub fn parse(key: &str) -> Result<Self, NameError> {
        key.split('/').try_for_each(check_component)?;
        bounded(key.to_owned())
    }

    /// Whether it belongs to dsfs's own state beside the datasets: intents, logs, snapshots.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.0.starts_with(STATE_PREFIX)
    }

    /// A key that a server named in a listing: any text, also what no file system can show.
    #[must_use]
    pub fn from_listing(key: &str) -> Self {
        Self(key.into())
    }
}

impl<'de> serde::Deserialize<'de> for ObjectKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_listing(&<std::borrow::Cow<'de, str>>::deserialize(deserializer)?))
    }
}

/// The common beginning of a set of keys; empty, or ending in `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPrefix(Arc<str>);
text_newtype!(KeyPrefix);

impl KeyPrefix {
    /// A prefix that a person named: a directory of keys. Empty stands for the whole bucket; a missing
    /// `/` at the end is added, so that `a` never takes `ab` along.
    ///
    /// # Errors
    /// As [`ObjectKey::parse`].
    pub fn parse(prefix: &str) -> Result<Self, NameError> {
        let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.is_empty() {
            return Ok(Self("".into()));
        }
        trimmed.split('/').try_for_each(check_component)?;
        Ok(Self(format!("{trimmed}/").into()))
    }

    /// The key of what is at `path` below this prefix.
    ///
    /// # Errors
    /// [`NameError::KeyTooLong`].
    pub fn key(&self, path: &RelPath) -> Result<ObjectKey, NameError> {
        bounded(format!("{}{path}", self.0))
    }

    /// A prefix that a server named in a listing.
    #[must_use]
    pub fn from_listing(prefix: &str) -> Self {
        Self(prefix.into())
    }

    /// The part of `key` behind this prefix.
    #[must_use]
    pub fn strip<'k>(&self, key: &'k ObjectKey) -> Option<&'k str> {
        key.0.strip_prefix(&*self.0)
    }
}

/// Where in a bucket the datasets are: empty, or ending in `/`. The one place that spells keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RemotePrefix(Arc<str>);
parsed_newtype!(RemotePrefix);

impl RemotePrefix {
    /// Parses a prefix; a missing `/` at the end is added.
    ///
    /// # Errors
    /// A leading `/`, a component that cannot be a file name, or dsfs's own `.dsfs/`.
    pub fn parse(prefix: &str) -> Result<Self, NameError> {
        let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
        if trimmed.is_empty() && prefix.is_empty() {
            return Ok(Self("".into()));
        }
        let bad = || NameError::BadPrefix(prefix.into());
        trimmed.split('/').try_for_each(check_component).map_err(|_| bad())?;
        if trimmed.starts_with('.') {
            return Err(bad());
        }
        Ok(Self(format!("{trimmed}/").into()))
    }

    /// The prefix of all datasets.
    #[must_use]
    pub fn datasets(&self) -> KeyPrefix {
        KeyPrefix(Arc::clone(&self.0))
    }

    /// The prefix of one dataset.
    #[must_use]
    pub fn dataset(&self, name: &DatasetName) -> KeyPrefix {
        KeyPrefix(format!("{}{name}/", self.0).into())
    }

    /// The prefix of a directory of a dataset.
    #[must_use]
    pub fn directory(&self, name: &DatasetName, dir: &DirPath) -> KeyPrefix {
        if dir.is_root() { self.dataset(name) } else { KeyPrefix(format!("{}{name}/{dir}/", self.0).into()) }
    }

    /// The key of a file.
    ///
    /// # Errors
    /// [`NameError::KeyTooLong`].
    pub fn key(&self, name: &DatasetName, path: &RelPath) -> Result<ObjectKey, NameError> {
        bounded(format!("{}{name}/{path}", self.0))
    }

    /// The key of the marker that stands for a directory with nothing in it.
    ///
    /// # Errors
    /// [`NameError::KeyTooLong`].
    pub fn marker_key(&self, name: &DatasetName, dir: &DirPath) -> Result<ObjectKey, NameError> {
        bounded(self.directory(name, dir).0.to_string())
    }

    /// The prefix of a dataset's intents.
    #[must_use]
    pub fn intents(&self, name: &DatasetName) -> KeyPrefix {
        KeyPrefix(format!("{STATE_PREFIX}{}intents/{name}/", self.0).into())
    }

    /// The prefix of the intents of all datasets.
    #[must_use]
    pub fn all_intents(&self) -> KeyPrefix {
        KeyPrefix(format!("{STATE_PREFIX}{}intents/", self.0).into())
    }

    /// The key of one intent.
    #[must_use]
    pub fn intent_key(&self, name: &DatasetName, txid: &str) -> ObjectKey {
        ObjectKey(format!("{STATE_PREFIX}{}intents/{name}/{txid}", self.0).into())
    }

    /// The prefix of a dataset's commit records.
    #[must_use]
    pub fn log(&self, name: &DatasetName) -> KeyPrefix {
        KeyPrefix(format!("{STATE_PREFIX}{}log/{name}/", self.0).into())
    }

    /// The key of one commit record; ten digits, so that keys sort as numbers do.
    #[must_use]
    pub fn log_key(&self, name: &DatasetName, seq: u64) -> ObjectKey {
        ObjectKey(format!("{STATE_PREFIX}{}log/{name}/{seq:0SEQ_DIGITS$}", self.0).into())
    }

    /// The key of the manifest of all that a dataset holds after commit `seq`.
    #[must_use]
    pub fn snapshot_key(&self, name: &DatasetName, seq: u64) -> ObjectKey {
        ObjectKey(format!("{STATE_PREFIX}{}snapshots/{name}/{seq:0SEQ_DIGITS$}", self.0).into())
    }

    /// The key of a scratch object, for probing what the server does.
    #[must_use]
    pub fn scratch_key(&self, id: &str) -> ObjectKey {
        ObjectKey(format!("{STATE_PREFIX}{}scratch/{id}", self.0).into())
    }
}

fn bounded(key: String) -> Result<ObjectKey, NameError> {
    if key.len() <= OBJECT_KEY_BYTES_MAX {
        Ok(ObjectKey(key.into()))
    } else {
        Err(NameError::KeyTooLong { key })
    }
}

/// The name that a server gives to one version of an object's bytes, without its quotes.
///
/// Compared, never interpreted: it is not a hash of the content.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Arc<str>);
text_newtype!(ETag);

impl ETag {
    /// Takes an ETag as a server wrote it, with or without quotes.
    #[must_use]
    pub fn from_server(text: &str) -> Self {
        Self(text.trim_matches('"').into())
    }
}

impl<'de> serde::Deserialize<'de> for ETag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_server(&<std::borrow::Cow<'de, str>>::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_dataset() {
        for path in ["", "/a", "a/", "a//b", "..", "a/../b", "a/./b", "a\0b"] {
            assert!(RelPath::parse(path).is_err(), "{path:?}");
        }
        let long = "x".repeat(256);
        assert_eq!(RelPath::parse(&long), Err(NameError::ComponentTooLong(256)));
        for path in ["a", "a/b", "frames/0 1%+\n.png", &"é".repeat(127)] {
            assert_eq!(RelPath::parse(path).map(|p| p.to_string()), Ok(path.to_string()));
        }
    }

    #[test]
    fn dataset_names_are_one_visible_component() {
        for name in ["", ".hidden", "a/b", "..", "a\0"] {
            assert!(DatasetName::parse(name).is_err(), "{name:?}");
        }
        assert!(DatasetName::parse("run 1@home").is_ok());
    }

    #[test]
    fn a_dataset_is_taken_as_a_shell_completes_it() {
        assert_eq!("run_07/".parse(), DatasetName::parse("run_07"));
        assert_eq!("run_07@3/".parse(), Revision::parse("run_07@3"));
        let refused = "run_07/part=1/".parse::<DatasetName>().unwrap_err();
        assert!(refused.to_string().ends_with("takes a whole dataset: run_07"), "{refused}");
        assert_eq!("run_07/x".parse::<Revision>().unwrap_err().to_string().matches("run_07").count(), 3);
        for text in ["/home/ann/datasets/run_07", "/", "", "./run", ".hidden/"] {
            assert!(text.parse::<DatasetName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_revision_is_a_dataset_or_one_of_its_commits() {
        let parse = |text| Revision::parse(text).map(|found| (found.dataset.to_string(), found.seq));
        assert_eq!(parse("run"), Ok(("run".into(), None)));
        assert_eq!(parse("run@7"), Ok(("run".into(), Some(7))));
        assert_eq!(parse("run@9999999999"), Ok(("run".into(), Some(9_999_999_999))));
        assert_eq!(parse("run@home"), Ok(("run@home".into(), None)), "a dataset's name may hold an @");
        assert_eq!(parse("a@3@"), Ok(("a@3".into(), None)), "what looks like a number belongs to the name");
        assert_eq!(parse("a@3@5"), Ok(("a@3".into(), Some(5))));
        for bad in ["run@0", "run@007", "run@10000000000", "run@99999999999999999999999"] {
            assert_eq!(parse(bad), Err(NameError::BadCommitNumber(bad.into())));
        }
        for bad in ["", "@3", "@", ".x@3", "a/b@3"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        for text in ["run", "run@7", "run@home", "a@3@", "a@0@", "a@@", "a@3@5"] {
            assert_eq!(Revision::parse(text).expect("valid").to_string(), text, "reads as it was written");
        }
    }

    #[test]
    fn prefixes_end_in_a_slash_and_stay_off_our_own_state() {
        let parse = |text| RemotePrefix::parse(text).map(|p| p.to_string());
        assert_eq!(parse(""), Ok(String::new()));
        assert_eq!(parse("datasets"), Ok("datasets/".into()));
        assert_eq!(parse("a/b/"), Ok("a/b/".into()));
        for bad in ["/", "/a", "a//b", "a/../b", ".dsfs/", "."] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_spelled_in_one_way() {
        let prefix = RemotePrefix::parse("datasets").expect("valid");
        let name = DatasetName::parse("run").expect("valid");
        let path = RelPath::parse("a/b").expect("valid");
        assert_eq!(prefix.key(&name, &path).expect("short").as_str(), "datasets/run/a/b");
        assert_eq!(prefix.directory(&name, &path.parent()).as_str(), "datasets/run/a/");
        assert_eq!(
            prefix.marker_key(&name, &path.clone().into()).expect("short").as_str(),
            "datasets/run/a/b/"
        );
        assert_eq!(prefix.log_key(&name, 7).as_str(), ".dsfs/datasets/log/run/0000000007");
        let long = RelPath::parse(&vec!["x".repeat(200); 6].join("/")).expect("components are short");
        assert!(matches!(prefix.key(&name, &long), Err(NameError::KeyTooLong { .. })));
    }

    #[test]
    fn ancestors_run_from_the_root_down() {
        let path = RelPath::parse("a/b/c").expect("valid");
        let dirs: Vec<String> = path.ancestors().map(|d| d.to_string()).collect();
        assert_eq!(dirs, ["", "a", "a/b"]);
        assert!(DirPath::root().contains(&path));
        assert!(DirPath::from(RelPath::parse("a").expect("valid")).contains(&path));
        assert!(!DirPath::from(RelPath::parse("a/bx").expect("valid")).contains(&path));
        assert!(!DirPath::from(path.clone()).contains(&path));
    }
}
