//! From settings to a store that has been asked for the first time.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::clock::SystemClock;
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
#[cfg(debug_assertions)]
use crate::store::failpoint::FailpointStore;
use crate::store::guarantee::Guarantee;
use crate::store::link::GatedStore;
use crate::store::link::Link;
use crate::store::link::PROBES_TIMEOUT;
use crate::store::link::WatchedStore;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;
use crate::store::s3::S3Store;
use crate::store::trace::TracedStore;

/// How long the first request may take, all in all: somebody is waiting at a terminal.
const ACCESS_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts of the first request. A server that is gone is to be told of soon.
const ACCESS_ATTEMPTS_MAX: u32 = 2;

/// Threads of a runtime for downloads beyond one for each core: they wait for the disk.
const SPARE_THREADS: usize = 2;
/// How often the line is looked at where nobody complains.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// A jump between two looks that no busy machine explains.
const SLEEP_MIN: Duration = Duration::from_secs(10);
/// An outage that lasts so long takes the connections with it; a shorter one may be a line that is full of
/// what is being sent.
const LOSS_MIN: Duration = Duration::from_secs(60);

/// Notices that the machine, or this process, was stopped for a while.
#[derive(Debug)]
struct SleepDetector {
    last: (Instant, SystemTime),
    /// How much of the time since then was spent waiting for answers.
    waited: Duration,
}

impl SleepDetector {
    fn new() -> Self {
        Self { last: (Instant::now(), SystemClock.now()), waited: Duration::ZERO }
    }

    /// Somebody was asked, and answered or not after so long. What is more than the longest that anybody is
    /// waited for has another reason.
    fn has_waited(&mut self, took: Duration) {
        self.waited += took.min(PROBES_TIMEOUT);
    }

    /// To be asked every second. A sleeping machine's monotonic clock stands still, a stopped
    /// process's does not.
    fn has_slept(&mut self, now: Instant, time: SystemTime) -> bool {
        let (last, last_time) = std::mem::replace(&mut self.last, (now, time));
        let here = now.saturating_duration_since(last);
        let there = time.duration_since(last_time).unwrap_or_default();
        let waited = std::mem::take(&mut self.waited);
        here.saturating_sub(waited) >= SLEEP_MIN || there.saturating_sub(here) >= SLEEP_MIN
    }
}

/// A remote and the store that it is in.
#[derive(Clone)]
pub struct OpenRemote {
    /// The remote.
    pub remote: Remote,
    /// Its store, with retries and limits.
    pub store: Arc<dyn ObjectStore>,
    /// The same for those who do not want to wait for a remote that does not answer.
    pub gated: Arc<dyn ObjectStore>,
    /// The line to it.
    pub link: Arc<Link>,
    /// What the user says that it enforces; `None` leaves it to the probe.
    pub assumed_guarantee: Option<Guarantee>,
    /// Requests that the store sends at a time: who wants more waits in line.
    pub requests_max: usize,
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
    let plain = TracedStore::wrap(plain);
    #[cfg(debug_assertions)]
    let plain: Arc<dyn ObjectStore> = Arc::new(FailpointStore::new(plain));
    let (retry, assumed_guarantee) = match &config.remote {
        RemoteSettings::S3(settings) => {
            (bucket::retry_options(settings), bucket::assumed_guarantee(settings))
        }
        RemoteSettings::Directory { .. } => (RetryOptions::default(), None),
    };
    Ok(OpenRemote { assumed_guarantee, s3, ..OpenRemote::over(remote, plain, retry) })
}

impl OpenRemote {
    /// A remote in this store.
    fn over(remote: Remote, plain: Arc<dyn ObjectStore>, retry: RetryOptions) -> Self {
        let requests_max = retry.requests_max;
        let link = Link::new(Arc::new(SystemClock));
        let watched = Arc::new(WatchedStore::new(Arc::clone(&plain), Arc::clone(&link)));
        let store: Arc<dyn ObjectStore> = Arc::new(RetryingStore::new(watched, retry));
        let gated = Arc::new(GatedStore::new(Arc::clone(&store), Arc::clone(&link)));
        Self { remote, store, gated, link, assumed_guarantee: None, requests_max, plain, s3: None }
    }

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
            Err(StoreError::unanswered(&self.remote, format!("no answer within {seconds} seconds")))
        })
    }

    /// Watches the line until `stop`: probes the remote when there is a doubt, and after the machine
    /// has slept. `on_return` is called when an outage has ended.
    pub async fn keep_watch(&self, on_return: impl Fn(), stop: CancellationToken) {
        let mut sleep = SleepDetector::new();
        let mut outage = self.link.subscribe();
        let mut down_since = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(WATCH_EVERY) => {}
                () = self.link.wait_until_due() => {}
            }
            if sleep.has_slept(Instant::now(), SystemClock.now()) {
                tracing::info!("this machine has slept, or its clock was set: looking for the remote");
                self.reconnect();
                self.link.lost();
                self.link.look_now();
            }
            let began = Instant::now();
            self.link.probe_when_due(&*self.plain, || self.reconnect()).await;
            sleep.has_waited(began.elapsed());
            if outage.has_changed().unwrap_or(false) {
                let is_down = outage.borrow_and_update().is_some();
                // Connections from before lead nowhere, as after a change of the network.
                self.reconnect();
                if is_down {
                    down_since.get_or_insert_with(Instant::now);
                    continue;
                }
                if down_since.take().is_some_and(|since| since.elapsed() >= LOSS_MIN) {
                    self.link.lost();
                }
                on_return();
            }
        }
    }

    /// As [`Self::keep_watch`], for as long as the runtime runs: for commands that work without a mount. To be
    /// called in a runtime.
    pub fn watch_line(&self) {
        let remote = self.clone();
        tokio::spawn(async move { remote.keep_watch(|| (), CancellationToken::new()).await });
    }

    fn reconnect(&self) {
        if let Some(s3) = &self.s3 {
            s3.reconnect();
        }
        self.link.renewed();
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
    built(tokio::runtime::Builder::new_multi_thread().enable_all())
}

/// A runtime for downloads: its threads write files too, so that there are more of them than cores.
///
/// # Errors
/// No threads can be started.
pub fn runtime_for_downloads() -> Result<tokio::runtime::Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    built(tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(cores + SPARE_THREADS))
}

fn built(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = builder.thread_name("dsfs-io").build();
    runtime.map_err(|err| Failure::new(FailureKind::Failed, format!("no threads can be started: {err}")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::ObjectKey;
    use crate::name::RemotePrefix;
    use crate::store::PutAttributes;
    use crate::store::fault::Fault;
    use crate::store::fault::FaultyStore;
    use crate::store::fault::Operation;
    use crate::store::memory::MemoryStore;

    #[test]
    fn sleep_is_noticed_and_a_busy_second_is_not() {
        let mut detector = SleepDetector::new();
        let (start, time) = detector.last;
        let seconds = Duration::from_secs;
        assert!(!detector.has_slept(start + seconds(1), time + seconds(1)));
        assert!(!detector.has_slept(start + seconds(5), time + seconds(6)), "busy");
        assert!(detector.has_slept(start + seconds(6), time + seconds(3600)), "suspended");
        assert!(!detector.has_slept(start + seconds(7), time + seconds(3601)));
        assert!(detector.has_slept(start + seconds(60), time + seconds(3654)), "stopped");
        assert!(!detector.has_slept(start + seconds(61), time), "a clock that was set back");
    }

    #[test]
    fn who_waits_for_answers_does_not_sleep() {
        let mut detector = SleepDetector::new();
        let (start, time) = detector.last;
        let seconds = Duration::from_secs;
        detector.has_waited(seconds(10));
        assert!(!detector.has_slept(start + seconds(11), time + seconds(11)), "two probes");
        assert!(detector.has_slept(start + seconds(22), time + seconds(22)), "it waited before that");
        detector.has_waited(seconds(10));
        assert!(detector.has_slept(start + seconds(33), time + seconds(3600)), "suspended in a probe");
        detector.has_waited(seconds(25));
        assert!(detector.has_slept(start + seconds(58), time + seconds(3625)), "stopped in a probe");
    }

    /// A slow line that is full of what is being sent, and somebody who asks for something else.
    #[tokio::test(start_paused = true)]
    async fn what_is_being_sent_while_probes_time_out_is_not_begun_anew() {
        let faults = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
        let place = Place::Directory("/nowhere".into());
        let remote = Remote { place, prefix: RemotePrefix::parse("datasets").unwrap() };
        let store = Arc::clone(&faults) as Arc<dyn ObjectStore>;
        let remote = OpenRemote::over(remote, store, RetryOptions::default());
        let key = ObjectKey::from_listing("datasets/a");
        let upload = remote.store.create_multipart(&key, &PutAttributes::default()).await.unwrap();
        faults.script(Operation::PutPart, Fault::Delay(Duration::from_secs(100)));
        for _ in 0..3 {
            faults.script(Operation::CheckAccess, Fault::Stall);
        }
        remote.link.look_now();
        let body = Bytes::from(vec![0; 8 << 20]);
        tokio::select! {
            part = remote.store.put_part(&key, &upload, 1, body) => drop(part.unwrap()),
            () = remote.keep_watch(|| (), CancellationToken::new()) => unreachable!("it watches for ever"),
        }
        let probes = faults.requests().into_iter().filter(|request| *request == Operation::CheckAccess);
        assert_eq!(probes.count(), 4, "the last one was answered");
        let parts = faults.requests().into_iter().filter(|request| *request == Operation::PutPart);
        assert_eq!(parts.count(), 1);
    }
}
