//! What every object store has to do, as one suite that all of them pass.
//!
//! Where servers differ and dsfs can live with it, the difference is a field of [`Quirks`] and
//! is itself checked: nothing is left out because a store happens not to do it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use dsfs::name::ETag;
use dsfs::name::KeyPrefix;
use dsfs::name::ObjectKey;
use dsfs::store::Expect;
use dsfs::store::ListRequest;
use dsfs::store::META_MTIME;
use dsfs::store::META_SHA256;
use dsfs::store::META_TXID;
use dsfs::store::ObjectStore;
use dsfs::store::PART_BYTES_MIN;
use dsfs::store::PutAttributes;
use dsfs::store::StoreError;
use dsfs::store::UploadId;
use dsfs::store::collect;
use dsfs::store::list_all;
use futures_util::future::join_all;

/// In what a store departs from S3's documentation, as measured.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// `a` and `a/b` can both be objects.
    pub file_and_directory: bool,
    /// A part that is too small and not the last is refused.
    pub refuses_small_parts: bool,
    /// Of racing completions exactly one wins (not on SeaweedFS).
    pub complete_is_atomic: bool,
    /// An upload that was completed is unknown afterwards; some say 412 or 200 to a second go.
    pub forgets_completed_uploads: bool,
    /// Keys are listed in their byte order. SeaweedFS lists directory by directory: `b/1` before `b.d/4`.
    pub byte_order: bool,
    /// Keys hold what XML cannot: control characters come back as they were.
    pub control_characters: bool,
    /// A write whose condition does not hold is refused. rclone says 200, and overwrites.
    pub conditional_writes: bool,
    /// A part that was sent can be sent again with other content. rclone has passed it on by then.
    pub replaces_parts: bool,
    /// The `ETag` in the answer to a completion is the object's. rclone's is what S3's would be.
    pub complete_says_etag: bool,
    /// A key can end in `/`. rclone leaves the slash away.
    pub directory_markers: bool,
}

impl Quirks {
    /// S3 as it is documented.
    pub const S3: Self = Self {
        file_and_directory: true,
        refuses_small_parts: true,
        complete_is_atomic: true,
        forgets_completed_uploads: true,
        byte_order: true,
        control_characters: true,
        conditional_writes: true,
        replaces_parts: true,
        complete_says_etag: true,
        directory_markers: true,
    };
}

/// Runs all of it below `prefix`, which is empty or ends in `/` and names nothing yet.
pub async fn check(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    let at = |name: &str| format!("{prefix}{name}/");
    store.check_access().await.expect("the store is there");
    writes_and_reads(store, &at("basic")).await;
    if quirks.conditional_writes {
        conditions(store, &at("conditions")).await;
        racing_creators(store, &at("race")).await;
    } else {
        ignored_conditions(store, &at("conditions")).await;
    }
    versions(store, &at("versions")).await;
    names(store, &at("names"), quirks).await;
    listings(store, &at("list"), quirks).await;
    uploads(store, &at("uploads"), quirks).await;
    if quirks.conditional_writes {
        completions(store, &at("complete"), quirks).await;
    }
    deletions(store, &at("delete")).await;
    overlaps(store, &at("overlap"), quirks).await;
}

fn key(prefix: &str, name: &str) -> ObjectKey {
    ObjectKey::from_listing(&format!("{prefix}{name}"))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn create(store: &dyn ObjectStore, key: &ObjectKey, body: &str) -> ETag {
    let put = store.put(key, bytes(body), &Expect::Absent, &PutAttributes::default()).await;
    put.unwrap_or_else(|err| panic!("creating {key:?}: {err}"))
}

async fn read(store: &dyn ObjectStore, key: &ObjectKey) -> Bytes {
    let meta = store.head(key).await.unwrap_or_else(|err| panic!("{key:?}: {err}"));
    if meta.size_bytes == 0 {
        return Bytes::new();
    }
    let body =
        store.get(key, &meta.etag, 0..meta.size_bytes).await.unwrap_or_else(|err| panic!("{key:?}: {err}"));
    collect(body, meta.size_bytes as usize).await.unwrap_or_else(|err| panic!("{key:?}: {err}"))
}

async fn keys_below(store: &dyn ObjectStore, prefix: &str) -> Vec<String> {
    let page = list_all(store, ListRequest::recursive(KeyPrefix::from_listing(prefix))).await.unwrap();
    page.objects.iter().map(|object| object.key.to_string()).collect()
}

async fn writes_and_reads(store: &dyn ObjectStore, prefix: &str) {
    let metadata = BTreeMap::from([
        (META_TXID.to_owned(), "01J".to_owned()),
        (META_SHA256.to_owned(), "0".repeat(64)),
        (META_MTIME.to_owned(), "1700000000.123456789".to_owned()),
    ]);
    let attributes = PutAttributes { metadata: metadata.clone(), ..PutAttributes::default() };
    let whole = key(prefix, "whole");
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let etag = store.put(&whole, Bytes::from(body.clone()), &Expect::Absent, &attributes).await.unwrap();
    let meta = store.head(&whole).await.unwrap();
    assert_eq!((meta.size_bytes, &meta.etag), (3_000_000, &etag));
    for (name, value) in &metadata {
        assert_eq!(meta.metadata.get(name), Some(value), "{name}");
    }
    for range in [0..1, 0..3_000_000, 2_999_999..3_000_000, 1_000_001..2_000_003] {
        let stream = store.get(&whole, &etag, range.clone()).await.unwrap();
        let got = collect(stream, (range.end - range.start) as usize).await.unwrap();
        assert!(got == body[range.start as usize..range.end as usize], "bytes {range:?}");
    }
    let beyond = store.get(&whole, &etag, 2_999_999..3_000_001).await.err();
    assert!(matches!(beyond, Some(StoreError::Rejected { .. })), "{beyond:?}");
    let far_beyond = store.get(&whole, &etag, 4_000_000..4_000_001).await.err();
    assert!(matches!(far_beyond, Some(StoreError::Rejected { .. })), "{far_beyond:?}");

    let empty = key(prefix, "empty");
    create(store, &empty, "").await;
    assert_eq!(store.head(&empty).await.unwrap().size_bytes, 0);
    let missing = key(prefix, "missing");
    assert!(matches!(store.head(&missing).await, Err(StoreError::NotFound { .. })));
    let got = store.get(&missing, &etag, 0..1).await.err();
    assert!(matches!(got, Some(StoreError::NotFound { .. })), "{got:?}");
}

async fn conditions(store: &dyn ObjectStore, prefix: &str) {
    let name = key(prefix, "a");
    let none = PutAttributes::default();
    let never = Expect::Version(ETag::from_server("00000000000000000000000000000000"));
    let onto_nothing = store.put(&name, bytes("x"), &never, &none).await;
    assert!(matches!(onto_nothing, Err(StoreError::Changed { .. })), "{onto_nothing:?}");
    let first = create(store, &name, "first").await;
    let again = store.put(&name, bytes("first"), &Expect::Absent, &none).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { .. })), "{again:?}");
    assert_eq!(store.head(&name).await.unwrap().etag, first, "a refused write changes nothing");
    let second = store.put(&name, bytes("second"), &Expect::Version(first.clone()), &none).await.unwrap();
    assert_ne!(first, second);
    let stale = store.put(&name, bytes("third"), &Expect::Version(first), &none).await;
    assert!(matches!(stale, Err(StoreError::Changed { .. })), "{stale:?}");
    assert_eq!(read(store, &name).await, "second");
}

/// A server that ignores conditions does so always: one that honours some of them is another quirk.
async fn ignored_conditions(store: &dyn ObjectStore, prefix: &str) {
    let name = key(prefix, "a");
    let first = create(store, &name, "first").await;
    let second = create(store, &name, "second").await;
    assert_ne!(first, second);
    let stale = Expect::Version(first);
    store.put(&name, bytes("third"), &stale, &PutAttributes::default()).await.unwrap();
    assert_eq!(read(store, &name).await, "third");
    let upload = begin(store, &name).await;
    let part = store.put_part(&name, &upload, 1, bytes("upload")).await.unwrap();
    store.complete_multipart(&name, &upload, &[part], &Expect::Absent).await.unwrap();
    assert_eq!(read(store, &name).await, "upload");
}

async fn versions(store: &dyn ObjectStore, prefix: &str) {
    let name = key(prefix, "a");
    let first = create(store, &name, "first").await;
    let expect = Expect::Version(first.clone());
    store.put(&name, bytes("second"), &expect, &PutAttributes::default()).await.unwrap();
    let stale = store.get(&name, &first, 0..5).await.err();
    assert!(matches!(stale, Some(StoreError::Changed { .. })), "{stale:?}");
}

/// Of many racing creators exactly one wins, and it is its bytes that are there.
async fn racing_creators(store: &dyn ObjectStore, prefix: &str) {
    for round in 0..3 {
        let name = key(prefix, &format!("{round}"));
        let none = PutAttributes::default();
        let body = |racer: usize| Bytes::from(vec![racer as u8; 100_000]);
        let puts = (0..16).map(|racer| store.put(&name, body(racer), &Expect::Absent, &none));
        let results = join_all(puts).await;
        let winners: Vec<usize> = (0..16).filter(|racer| results[*racer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "exactly one of 16 creators wins: {results:?}");
        for lost in results.iter().filter_map(|result| result.as_ref().err()) {
            let fair = matches!(lost, StoreError::AlreadyExists { .. } | StoreError::Contended { .. });
            assert!(fair, "{lost}");
        }
        assert!(read(store, &name).await == body(winners[0]), "the winner's bytes are there");
    }
}

async fn names(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    let mut odd = vec![
        "space in it",
        " leading",
        "trailing ",
        "plus+plus",
        "100%",
        "%2F",
        "%41",
        "ünïcödé/日本語",
        "a&b=c?d#e",
        "<xml>\"'",
        "semi;colon,comma",
        "tab\there",
        "line\nbreak",
        "~tilde!*'()",
        "-rf",
        ".hidden",
        "...",
        "emoji 🦀",
    ];
    if quirks.control_characters {
        odd.push("bell\u{7}");
    }
    for name in &odd {
        create(store, &key(prefix, name), name).await;
    }
    let listed: BTreeSet<String> = keys_below(store, prefix).await.into_iter().collect();
    let expected: BTreeSet<String> = odd.iter().map(|name| format!("{prefix}{name}")).collect();
    assert_eq!(listed, expected);
    for name in &odd {
        assert_eq!(read(store, &key(prefix, name)).await, *name, "{name:?}");
        let again =
            store.put(&key(prefix, name), bytes("x"), &Expect::Absent, &PutAttributes::default()).await;
        let refused = matches!(again, Err(StoreError::AlreadyExists { .. }));
        assert_eq!(refused, quirks.conditional_writes, "{name:?}: {again:?}");
    }
    let folder = format!("{prefix}fold er+%/");
    create(store, &key(&folder, "x"), "").await;
    let page = list_all(store, ListRequest::one_level(KeyPrefix::from_listing(prefix))).await.unwrap();
    assert!(page.prefixes.contains(&KeyPrefix::from_listing(&folder)), "{:?}", page.prefixes);
    assert_eq!(keys_below(store, &folder).await, [format!("{folder}x")]);
    let long = key(prefix, &"n".repeat(255));
    create(store, &long, "long").await;
    assert_eq!(read(store, &long).await, "long");
}

async fn listings(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    assert!(keys_below(store, prefix).await.is_empty(), "a prefix without keys is an empty page");
    let names = ["a", "a.txt", "b/1", "b/2", "b/c/3", "b.d/4", "c", "d/5"];
    for name in names {
        create(store, &key(prefix, name), name).await;
    }
    let mut sorted: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
    sorted.sort();
    for keys_max in [1, 2, 3, 1000] {
        let request = ListRequest { keys_max, ..ListRequest::recursive(KeyPrefix::from_listing(prefix)) };
        let page = list_all(store, request.clone()).await.unwrap();
        let mut listed: Vec<String> = page.objects.iter().map(|object| object.key.to_string()).collect();
        if !quirks.byte_order {
            listed.sort();
        }
        assert_eq!(listed, sorted, "in pages of {keys_max}");
        assert!(page.prefixes.is_empty());
        let first = store.list(&request).await.unwrap();
        assert!(first.objects.len() <= usize::from(keys_max));

        let request = ListRequest { one_level: true, ..request };
        let level = list_all(store, request).await.unwrap();
        let objects: Vec<&str> = level.objects.iter().map(|object| object.key.as_str()).collect();
        let mut folded: Vec<&str> = level.prefixes.iter().map(KeyPrefix::as_str).collect();
        if !quirks.byte_order {
            folded.sort_unstable();
        }
        assert_eq!(objects, ["a", "a.txt", "c"].map(|name| format!("{prefix}{name}")), "pages of {keys_max}");
        assert_eq!(folded, ["b.d/", "b/", "d/"].map(|name| format!("{prefix}{name}")), "pages of {keys_max}");
    }
    let behind = ListRequest {
        start_after: Some(format!("{prefix}a.txt")),
        ..ListRequest::one_level(KeyPrefix::from_listing(prefix))
    };
    let level = list_all(store, behind).await.unwrap();
    assert_eq!(
        level.objects.len() + level.prefixes.len(),
        4,
        "a listing can begin behind any key: {level:?}"
    );
    let page = list_all(store, ListRequest::recursive(KeyPrefix::from_listing(prefix))).await.unwrap();
    for object in page.objects {
        let meta = store.head(&object.key).await.unwrap();
        assert_eq!(object.size_bytes, meta.size_bytes);
        assert!(object.etag.is_none_or(|etag| etag == meta.etag), "the listing's ETag is HEAD's");
    }
}

async fn begin(store: &dyn ObjectStore, name: &ObjectKey) -> UploadId {
    let metadata = BTreeMap::from([(META_TXID.to_owned(), "01J".to_owned())]);
    store.create_multipart(name, &PutAttributes { metadata, ..PutAttributes::default() }).await.unwrap()
}

async fn uploads(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    let name = key(prefix, "big");
    let upload = begin(store, &name).await;
    let full = |byte: u8| Bytes::from(vec![byte; PART_BYTES_MIN as usize]);
    // In any order, and one of them twice.
    let third = store.put_part(&name, &upload, 3, bytes("tail")).await.unwrap();
    let first = store.put_part(&name, &upload, 1, full(1)).await.unwrap();
    let before = if quirks.replaces_parts { 9 } else { 2 };
    store.put_part(&name, &upload, 2, full(before)).await.unwrap();
    let second = store.put_part(&name, &upload, 2, full(2)).await.unwrap();
    assert!(keys_below(store, prefix).await.is_empty(), "an upload is invisible");
    let parts = [first, second, third];
    let etag = store.complete_multipart(&name, &upload, &parts, &Expect::Absent).await.unwrap();
    let meta = store.head(&name).await.unwrap();
    assert_eq!(meta.size_bytes, 2 * PART_BYTES_MIN + 4);
    assert_eq!(meta.etag == etag, quirks.complete_says_etag, "{etag:?}, and {:?} in HEAD", meta.etag);
    let etag = meta.etag;
    assert_eq!(meta.metadata.get(META_TXID).map(String::as_str), Some("01J"));
    let seam = store.get(&name, &etag, PART_BYTES_MIN - 1..PART_BYTES_MIN + 1).await.unwrap();
    assert_eq!(collect(seam, 2).await.unwrap()[..], [1, 2]);
    let tail = store.get(&name, &etag, 2 * PART_BYTES_MIN - 1..2 * PART_BYTES_MIN + 4).await.unwrap();
    assert_eq!(collect(tail, 5).await.unwrap()[..], *b"\x02tail");
    let again = store.complete_multipart(&name, &upload, &parts, &Expect::Absent).await;
    if quirks.forgets_completed_uploads {
        assert!(matches!(again, Err(StoreError::NoSuchUpload { .. })), "{again:?}");
    } else {
        // Said again, or refused as a conflict: what is there is the same.
        assert!(matches!(again, Ok(_) | Err(StoreError::AlreadyExists { .. })), "{again:?}");
    }
    assert_eq!(store.head(&name).await.unwrap().etag, etag);

    let name = key(prefix, "given up");
    let upload = begin(store, &name).await;
    store.put_part(&name, &upload, 1, bytes("x")).await.unwrap();
    store.abort_multipart(&name, &upload).await.unwrap();
    store.abort_multipart(&name, &upload).await.expect("giving up twice is giving up");
    let part = store.put_part(&name, &upload, 2, bytes("x")).await;
    assert!(matches!(part, Err(StoreError::NoSuchUpload { .. })), "{part:?}");

    let name = key(prefix, "small parts");
    let upload = begin(store, &name).await;
    let first = store.put_part(&name, &upload, 1, bytes("small")).await.unwrap();
    let second = store.put_part(&name, &upload, 2, bytes("small")).await.unwrap();
    let mut wrong = second;
    wrong.etag = ETag::from_server("00000000000000000000000000000000");
    let forged = store.complete_multipart(&name, &upload, &[first, wrong], &Expect::Absent).await;
    assert!(matches!(forged, Err(StoreError::Rejected { .. })), "{forged:?}");
    store.abort_multipart(&name, &upload).await.unwrap();
    let upload = begin(store, &name).await;
    let first = store.put_part(&name, &upload, 1, bytes("small")).await.unwrap();
    let second = store.put_part(&name, &upload, 2, bytes("small")).await.unwrap();
    let small = store.complete_multipart(&name, &upload, &[first, second], &Expect::Absent).await;
    assert_eq!(small.is_err(), quirks.refuses_small_parts, "{small:?}");
    store.abort_multipart(&name, &upload).await.unwrap();
}

async fn completions(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    let name = key(prefix, "appeared");
    let upload = begin(store, &name).await;
    let part = store.put_part(&name, &upload, 1, bytes("upload")).await.unwrap();
    let there = create(store, &name, "appeared").await;
    let parts = [part];
    let refused = store.complete_multipart(&name, &upload, &parts, &Expect::Absent).await;
    assert!(matches!(refused, Err(StoreError::AlreadyExists { .. })), "{refused:?}");
    assert_eq!(read(store, &name).await, "appeared");
    let stale = Expect::Version(ETag::from_server("00000000000000000000000000000000"));
    let refused = store.complete_multipart(&name, &upload, &parts, &stale).await;
    assert!(matches!(refused, Err(StoreError::Changed { .. })), "{refused:?}");
    // The upload is still open, so the right condition completes it.
    store.complete_multipart(&name, &upload, &parts, &Expect::Version(there)).await.unwrap();
    assert_eq!(read(store, &name).await, "upload");

    let name = key(prefix, "race");
    let mut ready = Vec::new();
    for _ in 0..4 {
        let upload = begin(store, &name).await;
        let part = store.put_part(&name, &upload, 1, bytes("upload")).await.unwrap();
        ready.push((upload, [part]));
    }
    let racing = ready.iter().map(|(id, parts)| store.complete_multipart(&name, id, parts, &Expect::Absent));
    let results = join_all(racing).await;
    let winners = results.iter().filter(|result| result.is_ok()).count();
    assert!(winners >= 1 && (winners == 1 || !quirks.complete_is_atomic), "{results:?}");
    for (upload, _) in &ready {
        store.abort_multipart(&name, upload).await.unwrap();
    }
}

async fn deletions(store: &dyn ObjectStore, prefix: &str) {
    let name = key(prefix, "a");
    let first = create(store, &name, "first").await;
    let expect = Expect::Version(first.clone());
    let second = store.put(&name, bytes("second"), &expect, &PutAttributes::default()).await.unwrap();
    let stale = store.delete(&name, &first).await;
    assert!(matches!(stale, Err(StoreError::Changed { .. })), "{stale:?}");
    assert_eq!(read(store, &name).await, "second", "another version is left alone");
    store.delete(&name, &second).await.unwrap();
    store.delete(&name, &second).await.expect("what is gone counts as deleted");
    assert!(matches!(store.head(&name).await, Err(StoreError::NotFound { .. })));
    assert!(keys_below(store, prefix).await.is_empty());
    create(store, &name, "third").await;
}

async fn overlaps(store: &dyn ObjectStore, prefix: &str, quirks: &Quirks) {
    create(store, &key(prefix, "marker/"), "").await;
    let listed = if quirks.directory_markers { "marker/" } else { "marker" };
    assert_eq!(keys_below(store, prefix).await, [format!("{prefix}{listed}")]);
    if quirks.directory_markers {
        assert_eq!(store.head(&key(prefix, "marker/")).await.unwrap().size_bytes, 0);
        create(store, &key(prefix, "marker/inside"), "1").await;
        assert_eq!(
            keys_below(store, prefix).await,
            ["marker/", "marker/inside"].map(|name| format!("{prefix}{name}"))
        );
    }

    create(store, &key(prefix, "both"), "file").await;
    let below =
        store.put(&key(prefix, "both/x"), bytes("x"), &Expect::Absent, &PutAttributes::default()).await;
    if quirks.file_and_directory {
        below.unwrap();
        assert_eq!(read(store, &key(prefix, "both")).await, "file");
        assert_eq!(read(store, &key(prefix, "both/x")).await, "x");
    } else {
        let refused = matches!(below, Err(StoreError::Rejected { .. } | StoreError::Unavailable { .. }));
        assert!(refused, "{below:?}");
    }
}
