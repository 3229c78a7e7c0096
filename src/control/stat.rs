//! The live counters of a mount: what `dsfs stat`, `dsfs top` and the metrics show.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::cache::CacheUsage;
use crate::read::DatasetStats;
use crate::read::ReadStats;

/// A mount's counters at one moment. Sums are since the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStat {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Milliseconds since the mount.
    pub uptime_ms: u64,
    /// Open files and directories.
    pub open_handles: u64,
    /// Files and directories that the kernel knows.
    pub inodes: u64,
    /// Whether cached files are handed to the kernel: what it reads of them is not counted here.
    pub passthrough: bool,
    /// What was read and fetched.
    pub read: ReadStats,
    /// The same for each dataset that was read.
    #[serde(default)]
    pub datasets: BTreeMap<String, DatasetStats>,
    /// The block cache.
    pub cache: CacheUsage,
}
