//! The contract and the guarantee, for every store there is.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use dsfs::name::RemotePrefix;
use dsfs::store::ObjectStore;
use dsfs::store::StoreError;
use dsfs::store::directory::DirectoryStore;
use dsfs::store::guarantee::Check;
use dsfs::store::guarantee::Guarantee;
use dsfs::store::guarantee::ProbeReport;
use dsfs::store::guarantee::probe;
use dsfs::store::memory::MemoryStore;
use dsfs::store::retry::RetryOptions;
use dsfs::store::retry::RetryingStore;
use dsfs::store::s3::S3Credentials;
use dsfs::store::s3::S3Options;
use dsfs::store::s3::S3Store;

use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::SECRET_KEY;
use crate::common::double::Switches;
use crate::common::servers::Server;
use crate::contract;
use crate::contract::Quirks;

async fn graded(store: &dyn ObjectStore) -> ProbeReport {
    let prefix = RemotePrefix::parse("datasets").unwrap();
    probe(store, &prefix).await.unwrap()
}

#[tokio::test]
async fn memory_obeys_the_contract() {
    contract::check(&MemoryStore::default(), "datasets/", &Quirks::S3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_obeys_the_contract_and_is_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    let quirks = Quirks { file_and_directory: false, ..Quirks::S3 };
    contract::check(&store, "datasets/", &quirks).await;
    let report = graded(&store).await;
    assert_eq!(report.guarantee, Guarantee::Enforced, "{report:?}");
    assert_only_local_state(dir.path());
}

/// Nothing of the probe is left, and nothing of the store's own but its lock.
fn assert_only_local_state(root: &Path) {
    let entries = |dir: &str| {
        let found = std::fs::read_dir(root.join(dir)).unwrap();
        let mut names: Vec<String> =
            found.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(entries(".dsfs"), [".local"]);
    assert!(entries(".dsfs/.local/tmp").is_empty());
    assert!(entries(".dsfs/.local/uploads").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_obeys_the_contract_on_the_double() {
    let double = Double::start();
    let store = double.store().await;
    contract::check(&store, "datasets/", &Quirks::S3).await;
    assert_eq!(double.open_uploads(), 0);
    let report = graded(&store).await;
    assert_eq!(report.guarantee, Guarantee::Enforced, "{report:?}");
    assert!(double.keys().iter().all(|key| key.starts_with("datasets/")), "the probe cleans up");
    assert_eq!(double.open_uploads(), 0);
}

/// With faults in one of every seven requests the contract holds all the same.
#[tokio::test(flavor = "multi_thread")]
async fn retries_hide_a_server_that_is_busy() {
    let double = Double::start();
    double.switches().slow_down_every.store(7, std::sync::atomic::Ordering::SeqCst);
    let options =
        RetryOptions { backoff_base: std::time::Duration::from_millis(2), ..RetryOptions::default() };
    let store = RetryingStore::new(std::sync::Arc::new(double.store().await), options);
    let double_body = bytes::Bytes::from_static(b"x");
    for number in 0..200 {
        let key = dsfs::name::ObjectKey::from_listing(&format!("busy/{number}"));
        let attributes = dsfs::store::PutAttributes {
            metadata: [(dsfs::store::META_TXID.to_owned(), number.to_string())].into(),
            ..Default::default()
        };
        store.put(&key, double_body.clone(), &dsfs::store::Expect::Absent, &attributes).await.unwrap();
        assert_eq!(store.head(&key).await.unwrap().size_bytes, 1);
    }
    assert_eq!(double.keys().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn guarantees_are_graded_by_what_the_server_does() {
    let on = |switch: &std::sync::atomic::AtomicBool| switch.store(true, std::sync::atomic::Ordering::SeqCst);
    let double = Double::start();
    on(&double.switches().ignore_complete_conditions);
    let report = graded(&double.store().await).await;
    assert_eq!(report.guarantee, Guarantee::SinglePut, "{report:?}");
    let failed: Vec<Check> = report.failures().map(|outcome| outcome.check).collect();
    assert_eq!(failed, [Check::CompleteExisting, Check::CompleteAppeared, Check::CompleteRace]);

    // Such servers may fail over racing writers (rclone does), who could show nothing new.
    on(&double.switches().ignore_put_conditions);
    double.forget_requests();
    let report = graded(&double.store().await).await;
    assert_eq!(report.guarantee, Guarantee::BestEffort, "{report:?}");
    let raced: Vec<_> =
        double.requests().into_iter().filter(|request| request.key.contains("race")).collect();
    assert!(raced.is_empty(), "{raced:?}");

    // Reads and deletes are compared by the client, so that they are right on any server.
    let double = Double::start();
    on(&double.switches().ignore_get_conditions);
    on(&double.switches().ignore_delete_conditions);
    let report = graded(&double.store().await).await;
    assert_eq!((report.guarantee, report.failures().count()), (Guarantee::Enforced, 0), "{report:?}");
    assert!(double.keys().is_empty(), "scratch objects are removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn ministack_obeys_the_contract_and_is_enforced() {
    let server = Server::ministack();
    let store = S3Store::new(&server.options(BUCKET, SECRET_KEY));
    let quirks = Quirks { refuses_small_parts: false, forgets_completed_uploads: false, ..Quirks::S3 };
    contract::check(&store, "datasets/", &quirks).await;
    let report = graded(&store).await;
    assert_eq!((report.guarantee, report.failures().count()), (Guarantee::Enforced, 0), "{report:?}");
    let missing = S3Store::new(&server.options("nobody", SECRET_KEY)).check_access().await;
    assert!(matches!(missing, Err(StoreError::NoBucket { .. })), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_obeys_the_contract_and_knows_who_asks() {
    let server = Server::seaweedfs();
    server.make_bucket_with_boto3();
    let store = S3Store::new(&server.options(BUCKET, SECRET_KEY));
    let quirks = Quirks {
        complete_is_atomic: false,
        byte_order: false,
        forgets_completed_uploads: false,
        ..Quirks::S3
    };
    contract::check(&store, "datasets/", &quirks).await;
    // Its Complete is racy: whether a probe sees it is luck. Its PutObject is not.
    let report = graded(&store).await;
    assert!(report.guarantee >= Guarantee::SinglePut, "{report:?}");

    let wrong = S3Store::new(&server.options(BUCKET, "not the secret")).check_access().await;
    assert!(
        matches!(&wrong, Err(StoreError::Denied { reason, .. }) if reason.contains("SignatureDoesNotMatch")),
        "{wrong:?}"
    );
    let missing = S3Store::new(&server.options("nobody", SECRET_KEY)).check_access().await;
    assert!(matches!(missing, Err(StoreError::NoBucket { .. })), "{missing:?}");
    let nobody = S3Options::new(BUCKET, Some(&server.endpoint()), "us-east-1", S3Credentials::Anonymous);
    let denied = S3Store::new(&nobody).check_access().await;
    assert!(matches!(denied, Err(StoreError::Denied { .. })), "{denied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_obeys_all_but_conditions_and_is_best_effort() {
    let server = Server::rclone();
    let store = S3Store::new(&server.options(BUCKET, SECRET_KEY));
    let quirks = Quirks {
        conditional_writes: false,
        replaces_parts: false,
        complete_says_etag: false,
        directory_markers: false,
        file_and_directory: false,
        refuses_small_parts: false,
        ..Quirks::S3
    };
    contract::check(&store, "datasets/", &quirks).await;
    let report = graded(&store).await;
    assert_eq!(report.guarantee, Guarantee::BestEffort, "{report:?}");
    let failed: Vec<Check> = report.failures().map(|outcome| outcome.check).collect();
    for check in [Check::PutExisting, Check::ReplaceStale, Check::PutRace, Check::CompleteExisting] {
        assert!(failed.contains(&check), "{check:?}: {report:?}");
    }
    let wrong = S3Store::new(&server.options(BUCKET, "not the secret")).check_access().await;
    assert!(matches!(wrong, Err(StoreError::Denied { .. })), "{wrong:?}");
    let missing = S3Store::new(&server.options("nobody", SECRET_KEY)).check_access().await;
    assert!(matches!(missing, Err(StoreError::NoBucket { .. })), "{missing:?}");
}

/// Whose an object is, when the answer to a write was lost, is told by nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_metadata_is_refused() {
    type Switch = fn(&Switches) -> &AtomicBool;
    let loses: [(Switch, &str); 2] = [
        (|switches| &switches.lose_put_metadata, "PutObject"),
        (|switches| &switches.lose_upload_metadata, "CreateMultipartUpload"),
    ];
    for (switch, request) in loses {
        let double = Double::start();
        switch(double.switches()).store(true, std::sync::atomic::Ordering::SeqCst);
        let refused = probe(&double.store().await, &RemotePrefix::parse("datasets").unwrap()).await;
        let Err(StoreError::Rejected { reason, .. }) = refused else { panic!("{refused:?}") };
        for words in [request, "dsfs-txid", "cannot commit"] {
            assert!(reason.contains(words), "{words:?} is not in {reason:?}");
        }
        assert!(double.keys().is_empty(), "scratch objects are removed");
        assert_eq!(double.open_uploads(), 0);
    }
}
