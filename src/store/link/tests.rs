//! Outages that begin and end, and requests over connections that lead nowhere.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use super::*;
use crate::clock::SystemClock;
use crate::name::KeyPrefix;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;

struct Setup {
    faults: Arc<FaultyStore>,
    link: Arc<Link>,
    gated: Arc<GatedStore>,
}

fn setup() -> Setup {
    let faults = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
    let link = Link::new(Arc::new(SystemClock));
    let watched = WatchedStore::new(Arc::clone(&faults) as Arc<dyn ObjectStore>, Arc::clone(&link));
    let gated = Arc::new(GatedStore::new(Arc::new(watched), Arc::clone(&link)));
    Setup { faults, link, gated }
}

fn silence() -> Fault {
    Fault::Before(StoreError::unanswered("d/", "connection refused"))
}

fn everything() -> ListRequest {
    ListRequest::recursive(KeyPrefix::from_listing(""))
}

#[tokio::test(start_paused = true)]
async fn while_the_remote_is_silent_requests_fail_at_once() {
    let Setup { faults, link, gated } = setup();
    faults.script(Operation::List, silence());
    for _ in 0..2 {
        faults.script(Operation::CheckAccess, silence());
    }
    assert!(gated.list(&everything()).await.is_err());
    assert!(link.outage().is_none(), "one request is no proof");
    link.wait_until_due().await;
    link.probe_when_due(&*faults, || ()).await;
    let refused = gated.list(&everything()).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Offline { reason, .. } if reason == "connection refused"),
        "{refused}"
    );
    time::advance(Duration::from_secs(2)).await;
    link.probe_when_due(&*faults, || ()).await;
    assert!(link.outage().is_none());
    gated.list(&everything()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_line_goes_down_waits_no_longer() {
    let Setup { faults, link, gated } = setup();
    faults.script(Operation::List, Fault::Stall);
    let stuck = tokio::spawn(async move { gated.list(&everything()).await });
    time::advance(Duration::from_secs(1)).await;
    tokio::task::yield_now().await;
    link.probe_when_due(&*faults, || ()).await;
    assert!(!stuck.is_finished() && link.outage().is_none());
    time::advance(SILENCE_MAX).await;
    for _ in 0..2 {
        faults.script(Operation::CheckAccess, Fault::Stall);
    }
    link.probe_when_due(&*faults, || ()).await;
    assert!(matches!(stuck.await.unwrap(), Err(StoreError::Offline { .. })));
}

#[tokio::test(start_paused = true)]
async fn who_waits_over_an_old_connection_asks_again() {
    let Setup { faults, link, .. } = setup();
    let watched = WatchedStore::new(Arc::clone(&faults) as Arc<dyn ObjectStore>, Arc::clone(&link));
    let store = RetryingStore::new(Arc::new(watched), RetryOptions::default());
    faults.script(Operation::List, Fault::Stall);
    let began = Instant::now();
    let asked = tokio::spawn(async move { store.list(&everything()).await });
    tokio::task::yield_now().await;
    link.renewed();
    asked.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_body_over_an_old_connection_breaks_off() {
    let Setup { faults, link, .. } = setup();
    let watched = WatchedStore::new(faults, Arc::clone(&link));
    let body = futures_util::stream::iter([Ok(Bytes::from_static(b"begun"))]);
    let silent = body.chain(futures_util::stream::pending());
    let mut body = watched.watched(&ObjectKey::from_listing("d/a"), Box::pin(silent));
    assert_eq!(body.next().await.unwrap().unwrap(), "begun");
    let rest = tokio::spawn(async move { (body.next().await, body.next().await.is_none()) });
    tokio::task::yield_now().await;
    link.renewed();
    let (piece, ended) = rest.await.unwrap();
    assert!(piece.unwrap().unwrap_err().is_transient() && ended);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_or_is_overloaded_is_there() {
    let Setup { faults, link, gated } = setup();
    let busy = StoreError::unavailable("d/", "SlowDown (HTTP 503)");
    let denied = StoreError::Denied { key: "d".into(), reason: "expired".into() };
    for answer in [busy, denied] {
        faults.script(Operation::List, Fault::Before(answer.clone()));
        faults.script(Operation::CheckAccess, Fault::Before(answer));
        assert!(gated.list(&everything()).await.is_err());
        link.look_now();
        link.probe_when_due(&*faults, || ()).await;
        assert!(link.outage().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn any_answer_ends_an_outage() {
    let Setup { faults, link, gated } = setup();
    link.is_down(&StoreError::unanswered("d/", "no route"));
    assert!(gated.list(&everything()).await.is_err());
    let watched = WatchedStore::new(faults, Arc::clone(&link));
    watched.list(&everything()).await.unwrap();
    gated.list(&everything()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_being_sent_over_a_lost_connection_is_sent_again() {
    let Setup { faults, link, .. } = setup();
    let watched = WatchedStore::new(Arc::clone(&faults) as Arc<dyn ObjectStore>, Arc::clone(&link));
    let store = RetryingStore::new(Arc::new(watched), RetryOptions::default());
    let (key, nobodys) = (ObjectKey::from_listing("d/a"), ObjectKey::from_listing("d/b"));
    let ours = PutAttributes {
        metadata: BTreeMap::from([(META_TXID.to_owned(), "tx-1".to_owned())]),
        ..PutAttributes::default()
    };
    let upload = store.create_multipart(&key, &ours).await.unwrap();
    let body = Bytes::from(vec![0; 8 << 20]);
    let began = Instant::now();
    for operation in [Operation::PutPart, Operation::Put] {
        faults.script(operation, Fault::Stall);
    }
    let sent = async {
        let part = store.put_part(&key, &upload, 1, body.clone());
        let (part, object) = tokio::join!(part, store.put(&key, body.clone(), &Expect::Absent, &ours));
        part.unwrap();
        object.unwrap();
    };
    let lost = async {
        link.renewed();
        time::sleep(Duration::from_secs(20)).await;
        assert_eq!(faults.requests().len(), 3, "a doubt is no reason to begin anew");
        link.lost();
    };
    tokio::join!(sent, lost);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(faults.requests().len(), 5);

    // What cannot be told from others' work has its whole time.
    let etag = store.head(&key).await.unwrap().etag;
    for operation in [Operation::Delete, Operation::Put] {
        faults.script(operation, Fault::Stall);
    }
    let anonymous = PutAttributes::default();
    let lost = async {
        link.lost();
        time::sleep(Duration::from_secs(20)).await;
        assert_eq!(faults.requests().len(), 8, "one look, and these two");
    };
    let (deleted, put, ()) = tokio::join!(
        store.delete(&key, &etag),
        store.put(&nobodys, Bytes::new(), &Expect::Absent, &anonymous),
        lost,
    );
    deleted.unwrap();
    put.unwrap();
}

/// A mount's way to the remote, with whoever watches the line every second until `work` is done; how often
/// connections were made anew.
async fn watched<T>(setup: &Setup, work: impl AsyncFnOnce(GatedStore) -> T) -> (T, u32) {
    let Setup { faults, link, .. } = setup;
    let watched = WatchedStore::new(Arc::clone(faults) as Arc<dyn ObjectStore>, Arc::clone(link));
    let retrying = Arc::new(RetryingStore::new(Arc::new(watched), RetryOptions::default()));
    let reconnects = AtomicU32::new(0);
    let reconnect = || {
        reconnects.fetch_add(1, Ordering::Relaxed);
        link.renewed();
    };
    let watch = async {
        loop {
            time::sleep(Duration::from_secs(1)).await;
            link.probe_when_due(&**faults, reconnect).await;
        }
    };
    let done = tokio::select! {
        done = work(GatedStore::new(retrying, Arc::clone(link))) => done,
        () = watch => unreachable!("it watches for ever"),
    };
    (done, reconnects.into_inner())
}

/// What is asked over it, and the probe behind it.
#[tokio::test(start_paused = true)]
async fn a_connection_that_leads_nowhere_is_no_outage() {
    let setup = setup();
    setup.faults.script(Operation::List, Fault::Stall);
    setup.faults.script(Operation::CheckAccess, Fault::Stall);
    let (listed, reconnects) = watched(&setup, async |store| store.list(&everything()).await).await;
    listed.unwrap();
    assert_eq!(reconnects, 1);
    assert!(setup.link.outage().is_none());
}

/// The probe had another connection.
#[tokio::test(start_paused = true)]
async fn who_waits_while_probes_are_answered_asks_again_once() {
    let setup = setup();
    let began = Instant::now();
    setup.faults.script(Operation::List, Fault::Stall);
    let (listed, reconnects) = watched(&setup, async |store| store.list(&everything()).await).await;
    listed.unwrap();
    assert_eq!(reconnects, 1);
    assert!(began.elapsed() < RetryOptions::default().attempt_timeout);

    // Of a server that takes its time each answer is waited for, but for the first.
    let slow = Duration::from_secs(15);
    for _ in 0..3 {
        setup.faults.script(Operation::List, Fault::Delay(slow));
    }
    let twice = async |store: GatedStore| {
        store.list(&everything()).await.unwrap();
        store.list(&everything()).await.unwrap();
    };
    let ((), reconnects) = watched(&setup, twice).await;
    assert_eq!(reconnects, 1);
}

/// What is sent while somebody asks over a dead connection, and what the two probes behind that meet; how often
/// it was sent.
async fn sent_between(first: Fault, second: Option<Fault>) -> usize {
    let setup = setup();
    let key = ObjectKey::from_listing("d/a");
    let upload = setup.faults.create_multipart(&key, &PutAttributes::default()).await.unwrap();
    setup.faults.script(Operation::PutPart, Fault::Delay(Duration::from_secs(100)));
    setup.faults.script(Operation::List, Fault::Stall);
    for probe in std::iter::once(first).chain(second) {
        setup.faults.script(Operation::CheckAccess, probe);
    }
    let work = async |store: GatedStore| {
        let body = Bytes::from(vec![0; 8 << 20]);
        let everything = everything();
        let (part, listed) = tokio::join!(store.put_part(&key, &upload, 1, body), store.list(&everything));
        part.unwrap();
        listed.unwrap();
    };
    let ((), reconnects) = watched(&setup, work).await;
    assert_eq!(reconnects, 1);
    setup.faults.requests().into_iter().filter(|request| *request == Operation::PutPart).count()
}

#[tokio::test(start_paused = true)]
async fn what_was_being_sent_before_the_network_changed_is_sent_again() {
    assert_eq!(sent_between(Fault::Stall, None).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_sent_over_a_line_that_is_only_slow_or_a_connection_that_was_closed_goes_on() {
    let slow = Fault::Delay(Duration::from_secs(3));
    assert_eq!(sent_between(Fault::Stall, Some(slow)).await, 1, "full of what is being sent");
    assert_eq!(sent_between(silence(), None).await, 1, "nobody was silent");
}
