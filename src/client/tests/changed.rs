//! What changes, at either end, while a transfer is under way or before it goes on.

use super::*;

/// One object of many: whatever is wrong with it, the others need not be fetched again.
#[tokio::test]
async fn one_object_that_fails_does_not_put_the_others_in_the_way() {
    let key = ObjectKey::from_listing("x/2");
    let refused = StoreError::Denied { key: key.to_string(), reason: "not this one".into() };
    let gone = StoreError::NotFound { key: key.clone() };
    for failure in [StoreError::Changed { key: key.clone() }, gone, refused] {
        let setup = Setup::new();
        // Large enough that one is fetched after the other.
        setup.put("x/1", &body(600 << 10, 1));
        setup.put("x/2", &body(600 << 10, 2));
        setup.faulty.script(Operation::Get, Fault::Delay(std::time::Duration::ZERO));
        setup.faulty.script(Operation::Get, Fault::Before(failure.clone()));
        let client = setup.client().workers(1);
        let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
        if matches!(failure, StoreError::Denied { .. }) {
            assert!(matches!(err, TransferError::Store(StoreError::Denied { .. })), "{err}");
        } else {
            assert!(matches!(err, TransferError::Interrupted { done: 1, files: 2, .. }), "{err}");
        }
        assert_eq!((setup.files("down").len(), setup.notes()), (1, 1), "{failure}");

        let report = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
        assert_eq!((report.files, report.done_before), (2, 1), "{failure}");
        assert_eq!((setup.files("down").len(), setup.notes()), (2, 0), "{failure}");
    }
}

/// Its pieces are of a version that is not there any more.
#[tokio::test]
async fn an_object_that_is_replaced_on_the_way_leaves_no_pieces() {
    let setup = Setup::new();
    setup.put("x/1", &body(PART + 1, 1));
    setup.put("x/2", &body(2 * PART, 2));
    for _ in 0..3 {
        setup.faulty.script(Operation::Get, Fault::Delay(std::time::Duration::ZERO));
    }
    let changed = StoreError::Changed { key: ObjectKey::from_listing("x/2") };
    setup.faulty.script(Operation::Get, Fault::Before(changed));
    let client = setup.client().workers(1);
    let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Interrupted { done: 1, files: 2, .. }), "{err}");
    assert_eq!(setup.files("down").into_keys().collect::<Vec<_>>(), ["1"]);
}

/// Parts of what it was, and the rest of what it is, would be a file that never was.
#[tokio::test]
async fn a_file_that_changes_before_its_turn_is_not_mixed_with_what_it_was() {
    let setup = Setup::new();
    setup.write("up/large", &body(2 * PART, 15));
    let client = setup.client().workers(1);
    setup.faulty.script(Operation::PutPart, Fault::Delay(std::time::Duration::ZERO));
    for _ in 0..4 {
        setup.faulty.script(Operation::PutPart, unavailable());
    }
    client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
    assert_eq!(setup.memory.open_uploads(), 1);
    let up = setup.path("up");
    let tree = LocalTree::of(&up).unwrap();
    setup.write("up/large", &body(2 * PART, 16));
    let file = fs::File::options().write(true).open(setup.path("up/large")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let err = client.upload_tree(&up, &tree, "x", Overwrite::No).await.unwrap_err();
    assert!(matches!(&err, TransferError::Changed { path, .. } if path == "large"), "{err}");
    assert_eq!(setup.object("x/large"), None);
    assert_eq!((setup.memory.open_uploads(), setup.notes()), (0, 0), "nobody goes on with those parts");

    client.upload_directory(&up, "x", Overwrite::No).await.unwrap();
    assert_eq!(setup.object("x/large").unwrap(), body(2 * PART, 16));
}

/// The first run has finished the large file, and its txid is kept with the notes.
#[tokio::test]
async fn a_file_that_changed_after_it_was_finished_is_replaced_when_asked_for() {
    for guarantee in [Guarantee::Enforced, Guarantee::SinglePut, Guarantee::BestEffort] {
        let setup = Setup::new();
        setup.write("up/large", &body(2 * PART, 13));
        setup.write("up/small", b"small");
        let client = setup.client().workers(1).guarantee(guarantee);
        if guarantee == Guarantee::SinglePut {
            setup.faulty.script(Operation::Put, Fault::Delay(std::time::Duration::ZERO)); // the claim
        }
        for _ in 0..4 {
            setup.faulty.script(Operation::Put, unavailable());
        }
        let err = client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
        assert!(matches!(err, TransferError::Interrupted { done: 1, .. }), "{guarantee:?}: {err}");

        let other = body(2 * PART, 14);
        setup.write("up/large", &other);
        let file = fs::File::options().write(true).open(setup.path("up/large")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let refused = client.upload_directory(&setup.path("up"), "x", Overwrite::No).await.unwrap_err();
        assert!(matches!(&refused, TransferError::InTheWay { what } if *what == ["x/large"]), "{refused}");
        let report = client.upload_directory(&setup.path("up"), "x", Overwrite::Yes).await.unwrap();
        assert_eq!((report.files, report.replaced), (2, 1), "{guarantee:?}");
        assert_eq!(setup.object("x/large").unwrap(), other, "{guarantee:?}");
        assert_eq!(setup.object("x/small").unwrap(), "small");
        assert_eq!((setup.memory.open_uploads(), setup.notes()), (0, 0), "{guarantee:?}");
    }
}

/// The others are there, and nobody goes on to say that nothing is.
#[tokio::test]
async fn a_file_that_is_made_in_the_way_of_one_does_not_end_the_others() {
    let setup = Setup::new();
    // Large enough that one is fetched after the other.
    setup.put("x/1", &body(600 << 10, 1));
    setup.put("x/2", &body(600 << 10, 2));
    setup.faulty.script(Operation::Get, Fault::Delay(std::time::Duration::from_millis(20)));
    let client = setup.client().workers(1);
    let down = setup.path("down");
    let somebody = async {
        while gets(&setup) == 0 {
            tokio::task::yield_now().await;
        }
        setup.write("down/2", b"theirs");
    };
    let (outcome, ()) = tokio::join!(client.download_directory("x", &down, Overwrite::No), somebody);
    let err = outcome.unwrap_err();
    let TransferError::Interrupted { done: 1, files: 2, source } = err else { panic!("{err}") };
    assert!(matches!(*source, TransferError::InTheWay { .. }), "{source}");
    assert_eq!(setup.files("down")["2"], b"theirs");

    let refused = client.download_directory("x", &down, Overwrite::No).await.unwrap_err();
    assert!(matches!(&refused, TransferError::InTheWay { what } if what.len() == 1), "{refused}");
    fs::remove_file(down.join("2")).unwrap();
    let report = client.download_directory("x", &down, Overwrite::No).await.unwrap();
    assert_eq!((report.files, report.done_before), (2, 1));
}

/// A download that goes on looks at its large objects first, and the answer to a HEAD has no words for keys
/// that have expired: a bare 400.
#[tokio::test]
async fn keys_that_expire_before_a_download_goes_on_cost_it_no_pieces() {
    let setup = Setup::new();
    let large = body(4 * PART, 20);
    let client = broken_off(&setup, &large).await;
    let bare = StoreError::Rejected { key: "x/large".into(), reason: "HTTP 400".into() };
    let denied = StoreError::Denied { key: "bucket".into(), reason: "ExpiredToken".into() };
    setup.faulty.script(Operation::Head, Fault::Before(bare.clone()));
    setup.faulty.script(Operation::CheckAccess, Fault::Before(denied));
    let err = client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Interrupted { .. }), "{err}");

    let before = gets(&setup);
    client.download_directory("x", &setup.path("down"), Overwrite::No).await.unwrap();
    assert_eq!(gets(&setup) - before, 3, "the second piece, and two requests for the last two");
    assert_eq!(fs::read(setup.path("down/large")).unwrap(), large);

    // What is refused for itself is refused.
    setup.faulty.script(Operation::Head, Fault::Before(bare));
    let err = client.download_directory("x", &setup.path("other"), Overwrite::No).await.unwrap_err();
    assert!(matches!(err, TransferError::Store(StoreError::Rejected { .. })), "{err}");
}
