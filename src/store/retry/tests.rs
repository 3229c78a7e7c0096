//! What becomes of requests that fail, of answers that are lost, and of those who wait in line.

use std::time::SystemTime;

use futures_util::future::join_all;

use super::*;
use crate::store::fault::Fault;
use crate::store::fault::FaultyStore;
use crate::store::fault::Operation;
use crate::store::memory::MemoryStore;

struct Setup {
    memory: Arc<MemoryStore>,
    faulty: Arc<FaultyStore>,
    store: RetryingStore,
}

fn setup() -> Setup {
    let memory = Arc::new(MemoryStore::default());
    let faulty = Arc::new(FaultyStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>));
    let options = RetryOptions {
        attempts_max: 3,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        attempt_timeout: Duration::from_millis(200),
        deadline: Duration::from_secs(5),
        requests_max: 4,
        rate: RateOptions::default(),
    };
    let store = RetryingStore::new(Arc::clone(&faulty) as Arc<dyn ObjectStore>, options);
    Setup { memory, faulty, store }
}

fn key() -> ObjectKey {
    ObjectKey::from_listing("a/b")
}

fn ours() -> PutAttributes {
    PutAttributes {
        metadata: BTreeMap::from([(META_TXID.to_owned(), "tx-1".to_owned())]),
        ..PutAttributes::default()
    }
}

fn unavailable() -> Fault {
    Fault::Before(StoreError::unavailable("a/b", "503"))
}

async fn put(setup: &Setup, attributes: &PutAttributes) -> Result<ETag, StoreError> {
    setup.store.put(&key(), Bytes::from_static(b"mine"), &Expect::Absent, attributes).await
}

#[tokio::test]
async fn transient_failures_are_asked_again_and_others_are_not() {
    let setup = setup();
    setup.faulty.script(Operation::Put, unavailable());
    setup.faulty.script(Operation::Put, Fault::Before(StoreError::Contended { key: key() }));
    put(&setup, &ours()).await.unwrap();
    let denied = StoreError::Denied { key: "a/b".into(), reason: "no".into() };
    setup.faulty.script(Operation::Head, Fault::Before(denied));
    assert!(matches!(setup.store.head(&key()).await, Err(StoreError::Denied { .. })));
    use Operation::Head;
    use Operation::Put;
    assert_eq!(setup.faulty.requests(), [Put, Put, Put, Head]);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let setup = setup();
    for _ in 0..5 {
        setup.faulty.script(Operation::Head, unavailable());
    }
    assert!(setup.store.head(&key()).await.is_err_and(|err| err.is_transient()));
    assert_eq!(setup.faulty.requests().len(), 3);
}

#[tokio::test]
async fn a_silent_attempt_is_given_up_and_asked_again() {
    let setup = setup();
    setup.faulty.script(Operation::Put, Fault::Stall);
    put(&setup, &ours()).await.unwrap();
    assert_eq!(setup.faulty.requests().len(), 2);
}

#[tokio::test]
async fn the_deadline_bounds_all_attempts() {
    let mut setup = setup();
    setup.store.options.deadline = Duration::from_millis(50);
    setup.store.options.attempts_max = 1000;
    for _ in 0..1000 {
        setup.faulty.script(Operation::Head, Fault::Stall);
    }
    let begun = Instant::now();
    assert!(setup.store.head(&key()).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(setup.faulty.requests().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_of_our_own_put_is_success() {
    let setup = setup();
    setup.faulty.script(Operation::Put, Fault::LostReply);
    let etag = put(&setup, &ours()).await.unwrap();
    assert_eq!(setup.memory.head(&key()).await.unwrap().etag, etag);
    // And whoever writes can ask whether that has happened.
    assert_eq!(setup.store.lost_answers(), 1);
    let outer = RetryingStore::new(Arc::new(setup.store), RetryOptions::default());
    assert_eq!(outer.lost_answers(), 1);
}

#[tokio::test]
async fn a_lost_answer_of_a_put_that_lost_is_the_conflict() {
    let setup = setup();
    let theirs = setup.memory.overwrite_out_of_band(&key(), Bytes::from_static(b"them"));
    setup.faulty.script(Operation::Put, Fault::LostReply);
    assert!(matches!(put(&setup, &ours()).await, Err(StoreError::AlreadyExists { .. })));
    assert_eq!(setup.memory.head(&key()).await.unwrap().etag, theirs);
}

#[tokio::test]
async fn another_transaction_or_another_size_is_not_ours() {
    for (txid, body) in [("tx-2", "mine"), ("tx-1", "longer")] {
        let setup = setup();
        let theirs = PutAttributes {
            metadata: BTreeMap::from([(META_TXID.into(), txid.into())]),
            ..PutAttributes::default()
        };
        let body = Bytes::from_static(body.as_bytes());
        setup.memory.put(&key(), body, &Expect::Absent, &theirs).await.unwrap();
        setup.faulty.script(Operation::Put, unavailable());
        let conflict = put(&setup, &ours()).await;
        assert!(matches!(conflict, Err(StoreError::AlreadyExists { .. })), "{conflict:?}");
    }
}

#[tokio::test]
async fn without_a_transaction_id_nothing_is_guessed() {
    let setup = setup();
    setup.faulty.script(Operation::Put, Fault::LostReply);
    let unknown = put(&setup, &PutAttributes::default()).await;
    assert!(matches!(unknown, Err(StoreError::Unavailable { .. })), "{unknown:?}");
}

#[tokio::test]
async fn an_unambiguous_conflict_costs_no_head() {
    let setup = setup();
    setup.memory.overwrite_out_of_band(&key(), Bytes::new());
    assert!(matches!(put(&setup, &ours()).await, Err(StoreError::AlreadyExists { .. })));
    assert_eq!(setup.faulty.requests(), [Operation::Put]);
}

#[tokio::test]
async fn a_lost_answer_of_a_replacement_is_resolved_too() {
    let setup = setup();
    let before = setup.memory.overwrite_out_of_band(&key(), Bytes::from_static(b"old"));
    setup.faulty.script(Operation::Put, Fault::LostReply);
    let expect = Expect::Version(before);
    let etag = setup.store.put(&key(), Bytes::from_static(b"new"), &expect, &ours()).await.unwrap();
    assert_eq!(setup.memory.head(&key()).await.unwrap().etag, etag);
}

async fn upload(store: &dyn ObjectStore) -> (UploadId, [PartReceipt; 1]) {
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let part = store.put_part(&key(), &upload, 1, Bytes::from_static(b"mine")).await.unwrap();
    (upload, [part])
}

#[tokio::test]
async fn a_lost_answer_of_complete_is_resolved_by_what_is_there() {
    let setup = setup();
    let (id, parts) = upload(&setup.store).await;
    setup.faulty.script(Operation::CompleteMultipart, Fault::LostReply);
    let etag = setup.store.complete_multipart(&key(), &id, &parts, &Expect::Absent).await.unwrap();
    assert_eq!(setup.memory.head(&key()).await.unwrap().etag, etag);

    let other = self::setup();
    let (id, parts) = upload(&other.store).await;
    other.memory.overwrite_out_of_band(&key(), Bytes::from_static(b"them"));
    other.faulty.script(Operation::CompleteMultipart, Fault::LostReply);
    let conflict = other.store.complete_multipart(&key(), &id, &parts, &Expect::Absent).await;
    assert!(matches!(conflict, Err(StoreError::AlreadyExists { .. })), "{conflict:?}");
}

#[tokio::test]
async fn completing_an_upload_of_another_process_is_not_guessed_about() {
    let setup = setup();
    let (id, parts) = upload(&*setup.memory).await;
    setup.faulty.script(Operation::CompleteMultipart, Fault::LostReply);
    let unknown = setup.store.complete_multipart(&key(), &id, &parts, &Expect::Absent).await;
    assert!(matches!(unknown, Err(StoreError::Unavailable { .. })), "{unknown:?}");
}

#[tokio::test]
async fn a_contended_complete_is_not_asked_again() {
    let setup = setup();
    let (id, parts) = upload(&setup.store).await;
    let contended = Fault::Before(StoreError::Contended { key: key() });
    setup.faulty.script(Operation::CompleteMultipart, contended);
    let err = setup.store.complete_multipart(&key(), &id, &parts, &Expect::Absent).await;
    assert!(matches!(err, Err(StoreError::Contended { .. })));
    assert_eq!(setup.faulty.requests().last(), Some(&Operation::CompleteMultipart));
}

#[tokio::test]
async fn requests_are_limited_until_their_bodies_are_dropped() {
    let setup = setup();
    let etag = setup.memory.overwrite_out_of_band(&key(), Bytes::from_static(b"12345678"));
    let mut bodies = Vec::new();
    for _ in 0..4 {
        bodies.push(setup.store.get(&key(), &etag, 0..8).await.unwrap());
    }
    assert_eq!(setup.store.requests.available_permits(), 0);
    let waiting = tokio::time::timeout(Duration::from_millis(20), setup.store.head(&key())).await;
    assert!(waiting.is_err(), "the fifth request waits");
    bodies.pop();
    setup.store.head(&key()).await.unwrap();
    drop(bodies);
    assert_eq!(setup.store.requests.available_permits(), 4);
}

/// A clock that is set by hand.
#[derive(Debug)]
struct SetClock(Mutex<SystemTime>);

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

/// Its deadline stands still meanwhile, and the same content may have been put there by somebody else.
#[tokio::test(start_paused = true)]
async fn a_deletion_from_before_the_machine_slept_is_not_asked_for_again() {
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH)));
    let Setup { memory, faulty, store } = setup();
    let store = store.with_clock(clock.clone());
    let key = key();
    let etag = memory.overwrite_out_of_band(&key, Bytes::from_static(b"anybody's"));
    let sleep = || *clock.0.lock() += Duration::from_secs(8 * 60 * 60);

    faulty.script(Operation::Delete, Fault::Stall);
    let (given_up, ()) = tokio::join!(store.delete(&key, &etag), async { sleep() });
    assert!(given_up.is_err_and(|err| err.is_transient()), "who asked may look, and ask again");
    assert_eq!((faulty.requests().len(), store.lost_answers()), (1, 1));

    // Nor begun, if it had to wait in line.
    let line = Arc::clone(&store.requests).acquire_many_owned(4).await.unwrap();
    let woken = async {
        sleep();
        drop(line);
    };
    let (refused, ()) = tokio::join!(store.delete(&key, &etag), woken);
    assert!(refused.is_err_and(|err| err.to_string().contains("looked at again")));
    assert_eq!(faulty.requests().len(), 1);
    assert!(memory.head(&key).await.is_ok());

    faulty.script(Operation::Delete, Fault::Stall);
    store.delete(&key, &etag).await.unwrap();
    assert_eq!(faulty.requests().len(), 3, "of a machine that is awake it is repeated as ever");
}

/// Eight parts of 8 MiB at 2 Mbit/s: each of them takes eight times as long as it would alone.
#[tokio::test(start_paused = true)]
async fn parts_that_share_a_slow_line_are_all_waited_for() {
    let faulty = setup().faulty;
    let store = RetryingStore::new(Arc::clone(&faulty) as Arc<dyn ObjectStore>, RetryOptions::default());
    let key = key();
    let upload = store.create_multipart(&key, &ours()).await.unwrap();
    for _ in 0..8 {
        faulty.script(Operation::PutPart, Fault::Delay(Duration::from_secs(270)));
    }
    let body = Bytes::from(vec![0; 8 << 20]);
    let parts = (1..=8).map(|number| store.put_part(&key, &upload, number, body.clone()));
    for part in join_all(parts).await {
        part.unwrap();
    }
    assert_eq!(faulty.requests().len(), 1 + 8, "nothing was sent twice");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_begun_has_its_time() {
    let faulty = setup().faulty;
    let store = RetryingStore::new(Arc::clone(&faulty) as Arc<dyn ObjectStore>, RetryOptions::default());
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    faulty.script(Operation::PutPart, Fault::Stall);
    faulty.script(Operation::PutPart, Fault::Delay(Duration::from_secs(120)));
    store.put_part(&key(), &upload, 1, Bytes::from(vec![0; 8 << 20])).await.unwrap();
    assert_eq!(faulty.requests().len(), 1 + 2);
}
