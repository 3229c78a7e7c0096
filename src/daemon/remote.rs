//! From settings to a store that has been asked for the first time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::time;

use crate::config::Config;
use crate::config::Place;
use crate::config::Remote;
use crate::config::RemoteSettings;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::bucket;
use crate::daemon::failure;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::directory::DirectoryStore;
use crate::store::guarantee::Guarantee;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;
use crate::store::s3::S3Store;

/// How long the first request may take, all in all: somebody is waiting at a terminal.
const ACCESS_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts of the first request. A server that is gone is to be told of soon.
const ACCESS_ATTEMPTS_MAX: u32 = 2;

/// A remote and the store that it is in.
#[derive(Clone)]
pub struct OpenRemote {
    /// The remote.
    pub remote: Remote,
    /// Its store, with retries and limits.
    pub store: Arc<dyn ObjectStore>,
    /// What the user says that it enforces; `None` leaves it to the probe.
    pub assumed_guarantee: Option<Guarantee>,
    /// The same without retries.
    plain: Arc<dyn ObjectStore>,
    s3: Option<Arc<S3Store>>,
}

impl fmt::Debug for OpenRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRemote").field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// Prepares the remote of the settings. Nothing is sent yet.
///
/// # Errors
/// There is nothing to connect to, the directory does not exist, or the CA bundle is none.
pub async fn open(config: &Config) -> Result<OpenRemote, Failure> {
    let remote = config.remote.remote();
    config.remote.check_reachable_in_principle().map_err(|err| failure::of_config(&err))?;
    let (plain, s3): (Arc<dyn ObjectStore>, _) = match (&remote.place, &config.remote) {
        (Place::Directory(path), _) => {
            let store = DirectoryStore::open(path).map_err(|err| failure::of_access(&err, config))?;
            (Arc::new(store), None)
        }
        (Place::S3 { .. }, RemoteSettings::S3(settings)) => {
            let store = Arc::new(S3Store::new(&bucket::client_options(settings)?));
            (Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store))
        }
        (Place::S3 { .. }, RemoteSettings::Directory { .. }) => {
            unreachable!("the remote was made from the settings")
        }
    };
    let (retry, assumed_guarantee) = match &config.remote {
        RemoteSettings::S3(settings) => {
            (bucket::retry_options(settings), bucket::assumed_guarantee(settings))
        }
        RemoteSettings::Directory { .. } => (RetryOptions::default(), None),
    };
    let store = Arc::new(RetryingStore::new(Arc::clone(&plain), retry));
    Ok(OpenRemote { remote, store, assumed_guarantee, plain, s3 })
}

impl OpenRemote {
    /// Shows that the remote can be reached and listed.
    ///
    /// # Errors
    /// What was tried, why it failed, and which setting to look at.
    pub async fn check_access(&self, config: &Config) -> Result<(), Failure> {
        self.try_access().await.map_err(|err| failure::of_access(&err, config))
    }

    /// As [`Self::check_access`], for whoever looks closer at the error.
    ///
    /// # Errors
    /// The store's own.
    pub async fn try_access(&self) -> Result<(), StoreError> {
        let options = RetryOptions { attempts_max: ACCESS_ATTEMPTS_MAX, ..RetryOptions::default() };
        let store = RetryingStore::new(Arc::clone(&self.plain), options);
        let seconds = ACCESS_TIMEOUT.as_secs();
        time::timeout(ACCESS_TIMEOUT, store.check_access()).await.unwrap_or_else(|_| {
            Err(StoreError::unavailable(&self.remote, format!("no answer within {seconds} seconds")))
        })
    }

    /// The bucket, for what only a bucket can do.
    #[must_use]
    pub fn bucket(&self) -> Option<&Arc<S3Store>> {
        self.s3.as_ref()
    }

    /// The time at the server, if it has one and has answered.
    #[must_use]
    pub fn server_time(&self) -> Option<SystemTime> {
        self.s3.as_ref()?.server_time()
    }
}

/// A runtime for work outside a mount.
///
/// # Errors
/// No threads can be started.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("dsfs-io")
        .build()
        .map_err(|err| Failure::new(FailureKind::Failed, format!("no threads can be started: {err}")))
}
