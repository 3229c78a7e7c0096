//! The composition root: every layer made once, from one configuration, in one place.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::catalog::Catalog;
use crate::clock::SystemClock;
use crate::config::CACHE_RESERVE_BYTES;
use crate::config::Config;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::RemoteChoice;
use crate::daemon::failure;
use crate::daemon::guarantee;
use crate::daemon::guarantee::Remembered;
use crate::daemon::operations;
use crate::daemon::remote::OpenRemote;
use crate::daemon::turn::Turns;
use crate::daemon::upgrade::Inheritance;
use crate::fs::DatasetFs;
use crate::fs::FsOptions;
use crate::fuse::MountOptions;
use crate::fuse::MountedFs;
use crate::read::ReadOptions;
use crate::read::Reader;
use crate::record::Author;
use crate::staging::Holder;
use crate::staging::Staging;
use crate::transfer::LocalCache;

/// Where in the cache directory the catalogs are, one a remote.
const CATALOG_DIR: &str = "catalog";
/// Share of the memory limit that the cache takes for blocks on their way to its disk; the rest is the
/// reader's.
const CACHE_MEMORY_SHARE: u64 = 4;

/// Published files that the kernel may hold at a time: some 150 MB here. `find` alone makes none.
const INODES_MAX: usize = 200_000;

/// A remote with its local side: what a commit works with, mounted or not.
#[derive(Debug)]
pub struct Workspace {
    /// The remote and its store.
    pub remote: OpenRemote,
    /// The settings that name it.
    pub choice: RemoteChoice,
    /// The remote's staging area, which this process has locked.
    pub staging: Arc<Staging>,
    /// The block cache.
    pub cache: Arc<BlockCache>,
    /// Where the cache is.
    pub cache_dir: PathBuf,
    /// The state directory of all remotes.
    pub state_dir: PathBuf,
    /// This remote's own part of it.
    pub remote_state_dir: PathBuf,
    /// Who commits.
    pub author: Author,
    /// Keeps commands apart that change the same dataset.
    pub turns: Turns,
    /// What the remote enforces, as far as that is known.
    guarantee: RwLock<Option<Remembered>>,
}

impl Workspace {
    /// Locks the staging area and opens the cache.
    ///
    /// # Errors
    /// Another process works on the staging area; the local disk's.
    pub fn open(config: &Config, remote: OpenRemote, holder: &Holder) -> Result<Self, Failure> {
        let dir = config.remote_state_dir();
        operations::prepare_state_dir(&dir, &remote.remote.to_string())
            .map_err(|err| failure::of_directory("state directory", &dir, &err))?;
        let staging = Staging::open(&dir, holder).map_err(|err| failure::of_staging(&err))?;
        Ok(Self::over(config, remote, staging))
    }

    /// Goes on with the staging area of the program before this one, whose lock this is.
    ///
    /// # Errors
    /// The local disk's.
    pub fn adopt(config: &Config, remote: OpenRemote, lock: File) -> Result<Self, Failure> {
        let staging =
            Staging::adopt(&config.remote_state_dir(), lock).map_err(|err| failure::of_staging(&err))?;
        Ok(Self::over(config, remote, staging))
    }

    fn over(config: &Config, remote: OpenRemote, staging: Staging) -> Self {
        let dir = config.remote_state_dir();
        let cache = open_cache(config);
        let state_dir = config.state_dir.value.clone();
        let guarantee = RwLock::new(guarantee::known(&remote, &state_dir));
        let choice = RemoteChoice {
            remote: remote.remote.clone(),
            config: config.file_present.then(|| config.file.value.clone()),
            profile: config.profile.as_ref().map(|profile| profile.value.clone()),
        };
        Self {
            remote,
            choice,
            staging: Arc::new(staging),
            cache,
            cache_dir: config.cache_dir.value.clone(),
            state_dir,
            remote_state_dir: dir,
            author: Author { user: config.user.clone(), host: host() },
            turns: Turns::default(),
            guarantee,
        }
    }

    /// What the remote enforces, if that is known.
    #[must_use]
    pub fn guarantee(&self) -> Option<Remembered> {
        self.guarantee.read().clone()
    }

    /// What the remote enforces; probed if that is not known.
    ///
    /// # Errors
    /// It cannot be probed.
    pub async fn probed_guarantee(&self) -> Result<Remembered, Failure> {
        if let Some(known) = self.guarantee() {
            return Ok(known);
        }
        let probed = guarantee::known_or_probed(&self.remote, &self.state_dir).await;
        let probed = probed.map_err(|err| failure::of_store(&err))?;
        *self.guarantee.write() = Some(probed.clone());
        Ok(probed)
    }
}

/// This machine's name.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The block cache of these settings.
#[must_use]
pub fn open_cache(config: &Config) -> Arc<BlockCache> {
    BlockCache::open(cache_options(config))
}

/// What this machine's block cache has of a remote; `None` if there is no such cache.
#[must_use]
pub fn local_cache(config: &Config, remote: &OpenRemote) -> Option<LocalCache> {
    let is_there = BlockCache::is_in(&config.cache_dir.value);
    let store_identity = remote.remote.store_identity();
    is_there.then(|| LocalCache { cache: open_cache_of_mounts(config), store_identity })
}

/// The block cache for a command that reads in it. How large it may be is the mounts' business, which may
/// have been told otherwise than this command.
#[must_use]
pub fn open_cache_of_mounts(config: &Config) -> Arc<BlockCache> {
    BlockCache::open(CacheOptions { limit_bytes: u64::MAX, reserve_bytes: 0, ..cache_options(config) })
}

fn cache_options(config: &Config) -> CacheOptions {
    CacheOptions {
        dir: config.cache_dir.value.clone(),
        limit_bytes: config.cache_limit_bytes.value,
        reserve_bytes: CACHE_RESERVE_BYTES,
        memory_bytes: config.memory_limit_bytes.value,
    }
}

/// What is known of a remote tree, by this process and those before it.
#[must_use]
pub fn catalog(config: &Config, remote: &OpenRemote) -> Arc<Catalog> {
    let path = config.cache_dir.value.join(CATALOG_DIR).join(format!("{}.sqlite", remote.remote.id()));
    let prefix = remote.remote.prefix.clone();
    Arc::new(Catalog::new(Arc::clone(&remote.gated), prefix, config.list_ttl.value).with_disk(&path))
}

/// Puts the file system on top of a workspace, and mounts it, or goes on with a mount that is there.
///
/// # Errors
/// The mount cannot be made.
pub fn mount(
    config: &Config,
    workspace: &Workspace,
    catalog: Arc<Catalog>,
    mountpoint: &std::path::Path,
    runtime: &tokio::runtime::Handle,
    inheritance: Option<Inheritance>,
) -> Result<(Arc<DatasetFs>, MountedFs), Failure> {
    let reader = reader(config, workspace, runtime);
    let options = FsOptions {
        read_only: config.read_only.value,
        allow_replace: config.allow_replace.value,
        passthrough: true,
        inodes_max: INODES_MAX,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        state_dir: workspace.remote_state_dir.clone(),
    };
    let fs = DatasetFs::new(catalog, Arc::clone(&workspace.staging), reader, Arc::new(SystemClock), options);
    let options = MountOptions {
        read_only: config.read_only.value,
        allow_other: config.allow_other.value,
        fs_name: workspace.remote.remote.fs_name(),
    };
    let mounted = match inheritance {
        None => MountedFs::mount(Arc::clone(&fs), runtime.clone(), mountpoint, &options),
        Some(inheritance) => inheritance.restore(&fs).and_then(|inherited| {
            MountedFs::take_over(Arc::clone(&fs), runtime.clone(), mountpoint, &options, inherited)
        }),
    };
    let mounted = mounted.map_err(|err| of_mount(&err, mountpoint))?;
    Ok((fs, mounted))
}

/// The reader of a workspace's remote, through its cache.
#[must_use]
pub fn reader(config: &Config, workspace: &Workspace, runtime: &tokio::runtime::Handle) -> Arc<Reader> {
    let memory_bytes = config.memory_limit_bytes.value;
    let options = ReadOptions {
        memory_bytes: memory_bytes - memory_bytes / CACHE_MEMORY_SHARE,
        read_timeout: config.read_timeout.value,
        requests_max: workspace.remote.requests_max,
        datasets: workspace.remote.remote.prefix.datasets(),
    };
    let identity = workspace.remote.remote.store_identity();
    let (store, cache) = (Arc::clone(&workspace.remote.gated), Arc::clone(&workspace.cache));
    Reader::new(store, identity, cache, options, runtime.clone())
}

fn of_mount(err: &io::Error, mountpoint: &std::path::Path) -> Failure {
    let failure =
        Failure::new(FailureKind::Failed, format!("cannot mount at {}: {err}", mountpoint.display()));
    // fusermount3 says in words what it refuses, and this only to those whom it matters to.
    let text = err.to_string();
    if text.contains("user_allow_other") {
        failure.hint("--allow-other needs the line `user_allow_other` in /etc/fuse.conf")
    } else if err.kind() == io::ErrorKind::PermissionDenied
        || text.contains("no write access")
        || text.contains("not owned by user")
    {
        failure.hint("the mount point must be yours and writable; in a container, CAP_SYS_ADMIN is needed")
    } else {
        failure.hint("`dsfs doctor` looks closer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_is_refused_is_explained_by_what_was_said() {
        let hint = |text: &str| {
            let failure = of_mount(&io::Error::other(text), std::path::Path::new("/mnt"));
            failure.hint.unwrap()
        };
        let not_set =
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
        assert!(hint(not_set).contains("/etc/fuse.conf"));
        for not_theirs in [
            "fusermount3: user has no write access to mountpoint /mnt",
            "fusermount3: mountpoint /mnt not owned by user",
        ] {
            assert!(hint(not_theirs).contains("must be yours"), "{not_theirs}");
        }
        assert!(hint("fusermount3: failed to open /dev/fuse").contains("dsfs doctor"));
    }
}
