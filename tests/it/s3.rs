//! The S3 store against a server that misbehaves on command.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use dsfs::clock::Clock;
use dsfs::name::ETag;
use dsfs::name::KeyPrefix;
use dsfs::name::ObjectKey;
use dsfs::store::Expect;
use dsfs::store::ListRequest;
use dsfs::store::META_TXID;
use dsfs::store::ObjectStore;
use dsfs::store::PART_BYTES_MIN;
use dsfs::store::PutAttributes;
use dsfs::store::StoreError;
use dsfs::store::collect;
use dsfs::store::fault::Operation;
use dsfs::store::list_all;
use dsfs::store::retry::RetryOptions;
use dsfs::store::retry::RetryingStore;
use dsfs::store::s3::S3Credentials;
use dsfs::store::s3::S3Options;
use dsfs::store::s3::S3Proxy;
use dsfs::store::s3::S3Store;

use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::HttpFault;
use crate::common::double::REQUEST_ID;
use crate::common::double::Recorded;

fn key() -> ObjectKey {
    ObjectKey::from_listing("datasets/run/a")
}

fn ours() -> PutAttributes {
    PutAttributes {
        metadata: BTreeMap::from([(META_TXID.to_owned(), "tx-1".to_owned())]),
        ..PutAttributes::default()
    }
}

fn on(switch: &AtomicBool) {
    switch.store(true, Ordering::SeqCst);
}

async fn impatient(double: &Double) -> S3Store {
    let options = S3Options { request_timeout: Duration::from_millis(300), ..double.options() };
    S3Store::new(&options)
}

async fn retrying(double: &Double) -> RetryingStore {
    let options = RetryOptions {
        attempts_max: 4,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..RetryOptions::default()
    };
    RetryingStore::new(Arc::new(double.store().await), options)
}

async fn put(store: &dyn ObjectStore) -> Result<ETag, StoreError> {
    store.put(&key(), Bytes::from_static(b"mine"), &Expect::Absent, &ours()).await
}

async fn read(store: &dyn ObjectStore, etag: &ETag, len: u64) -> Result<Bytes, StoreError> {
    collect(store.get(&key(), etag, 0..len).await?, len as usize).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etag_of_the_answer_is_compared_where_the_server_ignores_the_condition() {
    let double = Double::start();
    on(&double.switches().ignore_get_conditions);
    let store = double.store().await;
    let old = ETag::from_server(&double.put_out_of_band(key().as_str(), b"old bytes"));
    double.put_out_of_band(key().as_str(), b"new bytes");
    assert!(matches!(read(&store, &old, 9).await, Err(StoreError::Changed { .. })));
    // Shorter now: the server finds the range wanting, not the version.
    double.put_out_of_band(key().as_str(), b"n");
    let shrunk = store.get(&key(), &old, 4..9).await.err();
    assert!(matches!(shrunk, Some(StoreError::Changed { .. })), "{shrunk:?}");
    let etag = double.put_out_of_band(key().as_str(), b"whole");
    double.script(Operation::Get, HttpFault::DropHeader("etag"));
    let unnamed = store.get(&key(), &ETag::from_server(&etag), 0..5).await.err();
    assert!(matches!(unnamed, Some(StoreError::Unavailable { .. })), "an answer without ETag proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_another_range_is_refused() {
    let double = Double::start();
    on(&double.switches().ignore_range);
    let store = double.store().await;
    let etag = ETag::from_server(&double.put_out_of_band(key().as_str(), b"0123456789"));
    assert_eq!(read(&store, &etag, 10).await.unwrap(), "0123456789", "200 with exactly the whole object");
    for range in [0..5, 5..10] {
        let err = store.get(&key(), &etag, range.clone()).await.err();
        assert!(matches!(&err, Some(StoreError::Rejected { .. })), "{range:?}: {err:?}");
        assert!(err.unwrap().to_string().contains("does not answer for ranges"), "{range:?}");
    }
    // One that can do it has not said this.
    double.switches().ignore_range.store(false, Ordering::SeqCst);
    let part = store.get(&key(), &etag, 0..5).await.unwrap();
    assert_eq!(collect(part, 5).await.unwrap(), "01234");
    on(&double.switches().ignore_range);
    let err = store.get(&key(), &etag, 5..10).await.err();
    assert!(matches!(err, Some(StoreError::Unavailable { .. })), "{err:?}");
}

fn is_not_s3s<T>(answer: Result<T, StoreError>) -> bool {
    matches!(answer, Err(err) if err.is_unanswered() && err.to_string().contains("no answer of an S3"))
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_believed_only_if_s3_says_so() {
    let double = Double::start();
    let store = double.store().await;
    let etag = ETag::from_server(&double.put_out_of_band(key().as_str(), b"there"));
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let proxys = |operations: &[Operation]| {
        operations.iter().for_each(|operation| double.script(*operation, HttpFault::Page(404, None)));
    };
    // Through the SDK, as the first request of each client goes, and past it.
    for is_warm in [false, true] {
        let client = || async {
            let store = double.store().await;
            if is_warm {
                store.check_access().await.unwrap();
            }
            store
        };
        let (reader, writer, lister) = (client().await, client().await, client().await);
        proxys(&[Operation::Get, Operation::List, Operation::Put]);
        assert!(is_not_s3s(reader.get(&key(), &etag, 0..5).await));
        assert!(is_not_s3s(lister.list(&ListRequest::recursive(KeyPrefix::from_listing("x"))).await));
        assert!(is_not_s3s(put(&writer).await));
    }
    proxys(&[Operation::List]);
    assert!(is_not_s3s(store.check_access().await));
    proxys(&[Operation::PutPart, Operation::CompleteMultipart, Operation::AbortMultipart]);
    assert!(is_not_s3s(store.put_part(&key(), &upload, 1, Bytes::from_static(b"x")).await));
    assert!(is_not_s3s(store.complete_multipart(&key(), &upload, &[], &Expect::Absent).await));
    assert!(is_not_s3s(store.abort_multipart(&key(), &upload).await));
    assert_eq!(double.open_uploads(), 1);
    // A HEAD has no words: they are asked for, from a server, from a proxy, and of what is not there.
    proxys(&[Operation::Head]);
    assert!(is_not_s3s(store.head(&key()).await));
    proxys(&[Operation::Head, Operation::Get]);
    assert!(is_not_s3s(store.delete(&key(), &etag).await));
    proxys(&[Operation::Delete]);
    assert!(is_not_s3s(store.delete(&key(), &etag).await));
    assert!(double.object(key().as_str()).is_some());
    let missing = ObjectKey::from_listing("datasets/run/missing");
    double.script(Operation::Head, HttpFault::DropHeader(REQUEST_ID));
    let not_found = store.head(&missing).await;
    assert!(matches!(not_found, Err(StoreError::NotFound { .. })), "{not_found:?}");
    double.forget_requests();
    let not_found = store.head(&missing).await;
    assert!(matches!(not_found, Err(StoreError::NotFound { .. })), "{not_found:?}");
    assert_eq!(double.requests().len(), 1, "S3 is believed at once");
    store.delete(&missing, &etag).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_no_success() {
    let double = Double::start();
    let store = double.store().await;
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let page = |operation| double.script(operation, HttpFault::Page(200, Some("\"page\"")));
    page(Operation::PutPart);
    assert!(is_not_s3s(store.put_part(&key(), &upload, 1, Bytes::from_static(b"x")).await));
    page(Operation::CreateMultipart);
    assert!(is_not_s3s(store.create_multipart(&key(), &ours()).await));
    page(Operation::CompleteMultipart);
    assert!(is_not_s3s(store.complete_multipart(&key(), &upload, &[], &Expect::Absent).await));
    page(Operation::AbortMultipart);
    assert!(is_not_s3s(store.abort_multipart(&key(), &upload).await));
    assert_eq!(double.open_uploads(), 1);
    page(Operation::List);
    assert!(is_not_s3s(store.list(&ListRequest::recursive(KeyPrefix::from_listing("x"))).await));
    // Through the SDK, and past it.
    for store in [double.store().await, store] {
        page(Operation::Put);
        assert!(is_not_s3s(put(&store).await));
    }
    assert!(double.keys().is_empty());
    let store = double.store().await;
    let etag = put(&store).await.unwrap();
    double.script(Operation::Get, HttpFault::Page(200, None));
    assert!(is_not_s3s(store.get(&key(), &etag, 0..4).await));
    page(Operation::Delete);
    assert!(is_not_s3s(store.delete(&key(), &etag).await));
    assert!(double.object(key().as_str()).is_some());
}

/// A proxy's, with nothing in it: what is there was there before, or is another's.
#[tokio::test(flavor = "multi_thread")]
async fn a_yes_that_names_no_version_is_no_success() {
    let double = Double::start();
    let [old, theirs] = ["old", "them"].map(|body| double.put_out_of_band(key().as_str(), body.as_bytes()));
    assert_ne!(old, theirs);
    let plain = PutAttributes::default();
    let version = Expect::Version(ETag::from_server(&theirs));
    let body = Bytes::from_static(b"mine");
    let warm = double.store().await;
    warm.check_access().await.unwrap();
    // Through the SDK, and past it.
    for store in [double.store().await, warm] {
        for (expect, attributes) in
            [(&version, &ours()), (&version, &plain), (&Expect::Absent, &ours()), (&Expect::Absent, &plain)]
        {
            double.script(Operation::Put, HttpFault::BareYes);
            let answer = store.put(&key(), body.clone(), expect, attributes).await;
            assert!(is_not_s3s(answer), "{expect:?} {attributes:?}");
        }
    }
    // Under the same transaction, as the claim that an object replaces.
    let mut claim = ours();
    claim.metadata.insert("claim".into(), "1".into());
    let store = double.store().await;
    let name = ObjectKey::from_listing("datasets/run/claimed");
    let held = store.put(&name, Bytes::from_static(b"hold"), &Expect::Absent, &claim).await.unwrap();
    double.script(Operation::Put, HttpFault::BareYes);
    assert!(is_not_s3s(store.put(&name, body.clone(), &Expect::Version(held), &ours()).await));

    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let parts = [store.put_part(&key(), &upload, 1, body.clone()).await.unwrap()];
    for expect in [&version, &Expect::Absent] {
        double.script(Operation::CompleteMultipart, HttpFault::BareYes);
        let answer = store.complete_multipart(&key(), &upload, &parts, expect).await;
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{expect:?}: {answer:?}");
    }
    assert_eq!(double.object(key().as_str()).unwrap().0, "them");
    // Asked again, it is written.
    double.script(Operation::Put, HttpFault::BareYes);
    retrying(&double).await.put(&key(), body, &version, &ours()).await.unwrap();
    assert_eq!(double.object(key().as_str()).unwrap().0, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_an_error_not_a_short_body() {
    let double = Double::start();
    let store = impatient(&double).await;
    let body = vec![7; 1_000_000];
    let etag = ETag::from_server(&double.put_out_of_band(key().as_str(), &body));
    for fault in [HttpFault::Truncate(0), HttpFault::Truncate(300_000), HttpFault::StallBody(300_000)] {
        double.script(Operation::Get, fault.clone());
        let broken = read(&store, &etag, 1_000_000).await;
        assert!(matches!(broken, Err(StoreError::Unavailable { .. })), "{fault:?}: {broken:?}");
    }
    assert!(read(&store, &etag, 1_000_000).await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_in_an_error_within_the_timeout() {
    let double = Double::start();
    let store = impatient(&double).await;
    double.script(Operation::Head, HttpFault::Stall);
    let begun = Instant::now();
    let err = store.head(&key()).await.unwrap_err();
    assert!(matches!(&err, StoreError::Unavailable { reason, .. } if reason.contains("no answer")), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_twice_below_the_retries() {
    let double = Double::start();
    let store = double.store().await;
    for fault in [HttpFault::Status(503, "SlowDown"), HttpFault::Reset, HttpFault::LostReply] {
        double.forget_requests();
        double.script(Operation::Put, fault.clone());
        let err = put(&store).await.unwrap_err();
        assert!(matches!(err, StoreError::Unavailable { .. }), "{fault:?}: {err}");
        assert_eq!(double.count(Operation::Put), 1, "{fault:?}");
    }
    assert!(double.object(key().as_str()).is_some(), "the last one was carried out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_says_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let credentials = S3Credentials::keys("a", "s");
    let endpoint = format!("http://127.0.0.1:{port}");
    let store = S3Store::new(&S3Options::new(BUCKET, Some(&endpoint), "auto", credentials));
    let err = store.check_access().await.unwrap_err();
    assert!(matches!(err, StoreError::Unavailable { .. }), "{err}");
    assert!(err.to_string().to_lowercase().contains("connection refused"), "{err}");
    assert_eq!(store.server_time(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_carry_the_servers_words() {
    let double = Double::start();
    let store = double.store().await;
    type IsRight = fn(&StoreError) -> bool;
    let cases: [(u16, &'static str, IsRight); 7] = [
        (403, "ExpiredToken", |err| matches!(err, StoreError::Denied { .. })),
        (400, "ExpiredToken", |err| matches!(err, StoreError::Denied { .. })),
        (403, "RequestTimeTooSkewed", |err| matches!(err, StoreError::Denied { .. })),
        (301, "PermanentRedirect", |err| matches!(err, StoreError::Rejected { .. })),
        (409, "ConditionalRequestConflict", |err| matches!(err, StoreError::Contended { .. })),
        (500, "InternalError", |err| matches!(err, StoreError::Unavailable { .. })),
        (400, "EntityTooLarge", |err| matches!(err, StoreError::Rejected { .. })),
    ];
    for (status, code, is_right) in cases {
        double.script(Operation::Put, HttpFault::Status(status, code));
        let err = put(&store).await.unwrap_err();
        assert!(is_right(&err), "{status} {code}: {err:?}");
        let says_why = matches!(err, StoreError::Contended { .. }) || err.to_string().contains(code);
        assert!(says_why, "{err}");
    }
    assert!(double.keys().is_empty());
    assert!(store.server_time().is_some(), "the Date of an error counts too");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_buckets_are_told_apart() {
    let double = Double::start();
    let wrong_secret = S3Credentials::keys(crate::common::double::ACCESS_KEY, "wrong");
    let options = S3Options { credentials: wrong_secret, ..double.options() };
    let denied = S3Store::new(&options).check_access().await;
    assert!(matches!(&denied, Err(StoreError::Denied { .. })), "{denied:?}");
    let options = S3Options { credentials: S3Credentials::Anonymous, ..double.options() };
    let denied = S3Store::new(&options).check_access().await;
    assert!(matches!(&denied, Err(StoreError::Denied { .. })), "{denied:?}");
    let options = S3Options { bucket: "other".into(), ..double.options() };
    let missing = S3Store::new(&options).check_access().await;
    assert!(matches!(&missing, Err(StoreError::NoBucket { bucket }) if bucket == "other"), "{missing:?}");
    assert!(!format!("{options:?}").contains("testsecret1"), "secrets are not printed");
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_with_an_error_in_a_200_is_an_error() {
    let double = Double::start();
    let store = double.store().await;
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let part = store.put_part(&key(), &upload, 1, Bytes::from_static(b"x")).await.unwrap();
    double.script(Operation::CompleteMultipart, HttpFault::OkWithError("InternalError"));
    let parts = [part];
    let err = store.complete_multipart(&key(), &upload, &parts, &Expect::Absent).await;
    assert!(matches!(err, Err(StoreError::Unavailable { .. })), "{err:?}");
    assert!(double.keys().is_empty());
    store.complete_multipart(&key(), &upload, &parts, &Expect::Absent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_put_is_resolved_by_what_is_there() {
    let double = Double::start();
    double.script(Operation::Put, HttpFault::LostReply);
    let etag = put(&retrying(&double).await).await.expect("it was us");
    assert_eq!(double.object(key().as_str()).unwrap().0, "mine");
    assert_eq!((double.count(Operation::Put), double.count(Operation::Head)), (2, 1));
    assert_eq!(double.store().await.head(&key()).await.unwrap().etag, etag);

    let double = Double::start();
    double.put_out_of_band(key().as_str(), b"them");
    double.script(Operation::Put, HttpFault::LostReply);
    let conflict = put(&retrying(&double).await).await;
    assert!(matches!(conflict, Err(StoreError::AlreadyExists { .. })), "{conflict:?}");
    assert_eq!(double.object(key().as_str()).unwrap().0, "them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_complete_is_resolved_by_what_is_there() {
    for theirs in [false, true] {
        let double = Double::start();
        let store = retrying(&double).await;
        let upload = store.create_multipart(&key(), &ours()).await.unwrap();
        let part = store.put_part(&key(), &upload, 1, Bytes::from_static(b"mine")).await.unwrap();
        if theirs {
            double.put_out_of_band(key().as_str(), b"them");
        }
        double.script(Operation::CompleteMultipart, HttpFault::LostReply);
        let completed = store.complete_multipart(&key(), &upload, &[part], &Expect::Absent).await;
        if theirs {
            assert!(matches!(completed, Err(StoreError::AlreadyExists { .. })), "{completed:?}");
            assert_eq!(double.object(key().as_str()).unwrap().0, "them");
        } else {
            assert_eq!(double.store().await.head(&key()).await.unwrap().etag, completed.expect("it was us"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_and_contended_puts_are_asked_again() {
    let double = Double::start();
    double.script(Operation::Put, HttpFault::Status(503, "SlowDown"));
    double.script(Operation::Put, HttpFault::Status(409, "ConditionalRequestConflict"));
    double.script(Operation::Put, HttpFault::Reset);
    put(&retrying(&double).await).await.unwrap();
    assert_eq!(double.count(Operation::Put), 4);
    assert_eq!(double.count(Operation::Head), 0, "a success needs no explanation");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_part_that_failed_is_sent_again() {
    let double = Double::start();
    let store = retrying(&double).await;
    let upload = store.create_multipart(&key(), &ours()).await.unwrap();
    let mut parts = Vec::new();
    for number in 1..=3 {
        if number == 2 {
            double.script(Operation::PutPart, HttpFault::LostReply);
        }
        let body = Bytes::from(vec![number as u8; PART_BYTES_MIN as usize]);
        parts.push(store.put_part(&key(), &upload, number, body).await.unwrap());
    }
    store.complete_multipart(&key(), &upload, &parts, &Expect::Absent).await.unwrap();
    let requests = double.requests();
    assert!(requests.iter().all(|request| request.key == key().as_str()), "{requests:?}");
    let sent: Vec<u32> = requests.iter().filter_map(Recorded::part).collect();
    assert_eq!(sent, [1, 2, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_listing_that_only_claims_to_be_encoded_are_read_as_they_are() {
    let double = Double::start();
    on(&double.switches().claim_encoding);
    for key in ["x/1+1", "x/100%", "x/with space"] {
        double.put_out_of_band(key, b"");
    }
    let store = double.store().await;
    let page = list_all(&store, ListRequest::recursive(KeyPrefix::from_listing("x/"))).await.unwrap();
    let keys: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["x/1+1", "x/100%", "x/with space"]);
}

/// The clock of a machine that sleeps for an hour whenever it has been looked at.
#[derive(Debug, Default)]
struct Sleepy(AtomicU64);

impl Clock for Sleepy {
    fn now(&self) -> SystemTime {
        let hours = self.0.fetch_add(1, Ordering::SeqCst);
        SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 60 * 60)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_slept_between_look_and_deletion_does_not_delete() {
    let double = Double::start();
    let etag = ETag::from_server(&double.put_out_of_band(key().as_str(), b"by now somebody else's"));
    let store = double.store().await.with_clock(Arc::new(Sleepy::default()));
    let err = store.delete(&key(), &etag).await.unwrap_err();
    assert!(err.is_transient() && err.to_string().contains("looked at again"), "{err}");
    assert_eq!((double.count(Operation::Head), double.count(Operation::Delete)), (1, 0));
    double.store().await.delete(&key(), &etag).await.unwrap();
    assert!(double.keys().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_used_again() {
    let double = Double::start();
    let store = double.store().await;
    let etag = ETag::from_server(&double.put_out_of_band(key().as_str(), &vec![1; 300_000]));
    for _ in 0..50 {
        let body = store.get(&key(), &etag, 0..300_000).await.unwrap();
        assert_eq!(collect(body, 300_000).await.unwrap().len(), 300_000);
        store.head(&key()).await.unwrap();
    }
    // Now and then a request comes before the last connection is back in the pool.
    assert!(double.connections() <= 10, "{} connections for 100 requests in turn", double.connections());
}

/// What a request says, but for what is new in each and for who sends it.
fn said(request: &Recorded) -> BTreeMap<String, String> {
    let of_the_sender = ["authorization", "user-agent", "x-amz-user-agent", "x-amz-date"];
    let mut headers = request.headers.clone();
    headers.retain(|name, _| !of_the_sender.contains(&&**name) && !name.starts_with("amz-sdk-"));
    headers
}

/// The first request of a client goes through the SDK, the next ones past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_past_the_sdk_says_what_one_through_it_says() {
    let double = Double::start();
    let endpoint = double.options().endpoint.unwrap();
    // What goes through a proxy is signed with its body.
    for proxy in [S3Proxy::Direct, S3Proxy::Url(endpoint)] {
        let options = S3Options { proxy, ..double.options() };
        for name in ["a/plain", "a/with space+plus=and ümlaut/(it's)~*!"] {
            let key = ObjectKey::from_listing(name);
            double.put_out_of_band(name, b"before");
            let mut etag = double.store().await.head(&key).await.unwrap().etag;
            let mut sent = Vec::new();
            for is_warm in [false, true] {
                let store = S3Store::new(&options);
                if is_warm {
                    store.check_access().await.unwrap();
                }
                let expect = Expect::Version(etag);
                double.forget_requests();
                etag = store.put(&key, Bytes::from_static(b"mine"), &expect, &ours()).await.unwrap();
                let taken = store.put(&key, Bytes::from_static(b"mine"), &Expect::Absent, &ours()).await;
                assert!(matches!(taken, Err(StoreError::AlreadyExists { .. })), "{taken:?}");
                let requests = double.requests();
                assert_eq!((requests.len(), &*requests[0].key), (2, name));
                assert_eq!(requests[0].headers["user-agent"].starts_with("dsfs/"), is_warm);
                assert_eq!(requests[1].headers["if-none-match"], "*");
                assert_eq!(double.object(name).unwrap().0, "mine");
                sent.push(said(&requests[0]));
            }
            assert!(sent.iter_mut().all(|headers| headers.remove("if-match").is_some()));
            assert_eq!(sent[0], sent[1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_to_a_put_past_the_sdk_counts() {
    let double = Double::start();
    let store = impatient(&double).await;
    store.check_access().await.unwrap();
    double.script(Operation::Put, HttpFault::OkWithError("InternalError"));
    let err = put(&store).await.unwrap_err();
    assert!(
        matches!(&err, StoreError::Unavailable { reason, .. } if reason.contains("InternalError")),
        "{err}"
    );
    double.script(Operation::Put, HttpFault::Stall);
    let err = put(&store).await.unwrap_err();
    assert!(err.is_unanswered() && err.to_string().contains("no answer within"), "{err}");
    double.script(Operation::Put, HttpFault::Reset);
    let err = put(&store).await.unwrap_err();
    assert!(err.is_unanswered(), "{err}");
    assert!(double.keys().is_empty());
    double.script(Operation::Put, HttpFault::DropHeader("etag"));
    let etag = put(&store).await.unwrap();
    assert_eq!(store.head(&key()).await.unwrap().etag, etag, "a server that does not say is asked");
    let before = double.connections();
    for nth in 0..50 {
        let key = ObjectKey::from_listing(&format!("n{nth}"));
        store.put(&key, Bytes::from_static(b"mine"), &Expect::Absent, &ours()).await.unwrap();
    }
    assert!(double.connections() - before <= 5, "connections are used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_clock_is_seen() {
    let double = Double::start();
    let store = double.store().await;
    store.check_access().await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "the same clock as the server's")]
    let here = std::time::SystemTime::now();
    let there = store.server_time().unwrap();
    let skew = here.duration_since(there).unwrap_or_else(|err| err.duration());
    assert!(skew < Duration::from_secs(5), "{skew:?}");
}
