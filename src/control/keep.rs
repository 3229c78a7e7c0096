//! What is said about what is kept on the local disk: pins, prefetching, eviction, the cache itself.

use serde::Deserialize;
use serde::Serialize;

use crate::name::DatasetName;
use crate::name::RelPath;

/// A dataset, or a file or directory of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// The dataset.
    pub dataset: DatasetName,
    /// What of it; all, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RelPath>,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            None => write!(f, "{}", self.dataset),
            Some(path) => write!(f, "{}/{path}", self.dataset),
        }
    }
}

impl std::str::FromStr for Part {
    type Err = crate::name::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim_end_matches('/').split_once('/') {
            None => Ok(Self { dataset: text.trim_end_matches('/').parse()?, path: None }),
            Some((dataset, path)) => Ok(Self { dataset: dataset.parse()?, path: Some(path.parse()?) }),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepRequest {
    /// Keep it local, whole and up to date, from now on.
    Pin(Part),
    /// Do not any more; what is cached stays until its room is needed.
    Unpin(Part),
    /// Make it local now.
    Prefetch(Part),
    /// Give its room back.
    Evict(Part),
    /// What is local.
    Usage,
    /// Check every cached block.
    Verify,
    /// Give all room back.
    Clear {
        /// Of what is pinned too; pins stay, and are fetched again.
        pinned: bool,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepReply {
    /// Of [`KeepRequest::Pin`] and [`KeepRequest::Prefetch`].
    Local(LocalOutcome),
    /// Of [`KeepRequest::Unpin`].
    Unpinned(Part),
    /// Of [`KeepRequest::Evict`] and [`KeepRequest::Clear`].
    Evicted(EvictOutcome),
    /// Of [`KeepRequest::Usage`].
    Usage(Box<CacheUsageReport>),
    /// Of [`KeepRequest::Verify`].
    Verified(VerifyOutcome),
}

/// What is local now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalOutcome {
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that had to be fetched.
    pub fetched_files: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Files that were replaced or deleted while they were fetched, or could not be kept.
    pub missing: Vec<String>,
}

/// What was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictOutcome {
    /// Versions that are not local any more.
    pub files: u64,
    /// Bytes of disk that are free again.
    pub bytes: u64,
    /// Files that stayed, since they are pinned.
    pub pinned_files: u64,
}

/// How the cache's blocks were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOutcome {
    /// Versions that were looked at.
    pub files: u64,
    /// Bytes that were read and compared.
    pub bytes: u64,
    /// Blocks that were damaged; they are dropped, and fetched again when they are needed.
    pub damaged_blocks: u64,
}

/// What is local, dataset by dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheUsageReport {
    /// Where the cache is.
    pub dir: std::path::PathBuf,
    /// Bytes on disk that count against the limit.
    pub used_bytes: u64,
    /// Most bytes on disk, without the pinned ones.
    pub limit_bytes: u64,
    /// Bytes of pinned versions.
    pub pinned_bytes: u64,
    /// Cached versions.
    pub files: u64,
    /// Blocks answered since the mount.
    pub hits: u64,
    /// Blocks that had to be fetched since the mount.
    pub misses: u64,
    /// Why the disk is not used, if it is not.
    pub bypassed: Option<String>,
    /// Bytes of the catalog on disk.
    pub catalog_bytes: u64,
    /// Datasets of which something is known.
    pub datasets: Vec<DatasetUsage>,
    /// What is pinned.
    pub pins: Vec<PinStatus>,
}

/// How much of a dataset is local, as far as its directories are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetUsage {
    /// The dataset.
    pub name: DatasetName,
    /// Files that are known.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them of which something is cached.
    pub cached_files: u64,
    /// Bytes of disk that they take.
    pub cached_bytes: u64,
    /// Those that are pinned.
    pub pinned_files: u64,
}

/// A pin, and how much of it is local.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// What is pinned.
    #[serde(flatten)]
    pub part: Part,
    /// Since when, as RFC 3339.
    pub since: String,
    /// Its files, as far as they are known.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that are local, whole.
    pub local_files: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_dataset_or_a_path_in_one() {
        let part = |text: &str| text.parse::<Part>().map(|part| part.to_string());
        assert_eq!(part("run").unwrap(), "run");
        assert_eq!(part("run/").unwrap(), "run");
        assert_eq!(part("run/a/b").unwrap(), "run/a/b");
        assert_eq!(part("run/a/").unwrap(), "run/a");
        for bad in ["", "/", ".x", "run//a", "run/../x"] {
            assert!(part(bad).is_err(), "{bad:?}");
        }
    }
}
