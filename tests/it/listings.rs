//! Listings of several pages, on every server there is: whatever order it lists in, wherever a listing can
//! begin, and whatever it leaves out there, each key is found once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dsfs::catalog::Catalog;
use dsfs::catalog::Level;
use dsfs::name::DatasetName;
use dsfs::name::DirPath;
use dsfs::name::RelPath;
use dsfs::name::RemotePrefix;
use dsfs::store::Expect;
use dsfs::store::ObjectStore;
use dsfs::store::PutAttributes;
use dsfs::store::directory::DirectoryStore;
use dsfs::store::retry::RetryOptions;
use dsfs::store::retry::RetryingStore;
use dsfs::store::s3::S3Store;
use futures_util::StreamExt;
use futures_util::stream;

use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;
use crate::common::servers::Server;

/// Paths of a dataset: two pages of directories in one, with those among them at whose names listings could
/// be split, and some that are sorted otherwise by servers that list directory by directory; names that are
/// encoded in a listing; and partitions of several pages.
fn paths() -> BTreeSet<String> {
    let numbered = (0..1300).map(|number| format!("many/{number:04}/x"));
    let dotted = ["1", "1.d", "1!", "0~", "2"].map(|name| format!("many/{name}/x"));
    let counted = (0..1300).map(|number| format!("parts/part={:02}/{number:05}.bin", number % 13));
    let files = (0..1300).map(|number| format!("files/img {number:04}+.jpg"));
    let between = (0..1300).step_by(100).map(|number| format!("files/img {number:04}/x"));
    numbered.chain(dotted).chain(counted).chain(files).chain(between).collect()
}

async fn every_key_is_found(store: impl ObjectStore + 'static) {
    let store: Arc<dyn ObjectStore> = Arc::new(RetryingStore::new(Arc::new(store), RetryOptions::default()));
    let prefix = RemotePrefix::parse("datasets").unwrap();
    let run = DatasetName::parse("run").unwrap();
    let paths = paths();
    let put = |path: &String| {
        let key = prefix.key(&run, &RelPath::parse(path).unwrap()).unwrap();
        let store = Arc::clone(&store);
        async move {
            let attributes = PutAttributes::default();
            store.put(&key, Bytes::from_static(b"x"), &Expect::Absent, &attributes).await.unwrap();
        }
    };
    stream::iter(paths.iter().map(put)).buffer_unordered(16).collect::<Vec<()>>().await;

    let catalog = || Arc::new(Catalog::new(Arc::clone(&store), prefix.clone(), Duration::from_secs(60)));
    let learnt = catalog().learn_whole(&run, 100_000).await.unwrap().expect("it is not too large");
    let names = learnt.iter().flat_map(|(dir, listing)| {
        let files = listing.entries.keys().map(move |name| format!("{dir}/{name}"));
        files.filter(|path| paths.contains(path)).collect::<Vec<_>>()
    });
    let found: BTreeSet<String> = names.collect();
    let missing: Vec<&String> = paths.difference(&found).take(5).collect();
    assert!(missing.is_empty(), "{} of {} keys in all, without {missing:?}", found.len(), paths.len());

    for dir in ["many", "files", "parts", "parts/part=07"] {
        let level = Level::Directory(run.clone(), DirPath::from(RelPath::parse(dir).unwrap()));
        let known = catalog().level(&level).await.unwrap();
        let below = paths.iter().filter_map(|path| path.strip_prefix(dir)?.strip_prefix('/'));
        let expected: BTreeSet<&str> = below.filter_map(|path| path.split('/').next()).collect();
        let found: BTreeSet<&str> = known.listing.entries.keys().map(|name| &**name).collect();
        let missing: Vec<&&str> = expected.difference(&found).take(5).collect();
        assert!(missing.is_empty(), "{dir}: {} of {}, without {missing:?}", found.len(), expected.len());
        assert_eq!(found.len(), expected.len(), "{dir}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_shows_every_key() {
    let server = Server::seaweedfs();
    server.make_bucket_with_boto3();
    every_key_is_found(S3Store::new(&server.options(BUCKET, SECRET_KEY))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ministack_shows_every_key() {
    let server = Server::ministack();
    every_key_is_found(S3Store::new(&server.options(BUCKET, SECRET_KEY))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_shows_every_key() {
    let server = Server::rclone();
    every_key_is_found(S3Store::new(&server.options(BUCKET, SECRET_KEY))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_shows_every_key() {
    let dir = tempfile::tempdir().unwrap();
    every_key_is_found(DirectoryStore::open(dir.path()).unwrap()).await;
}
