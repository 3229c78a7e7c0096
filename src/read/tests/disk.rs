//! The read path over a cache directory that is damaged, in the way, or cleared by others.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::block::BLOCK_BYTES;
use crate::cache::BlockCache;
use crate::cache::CacheOptions;
use crate::cache::Pages;
use crate::read::ObjectVersion;
use crate::read::ReadOptions;
use crate::read::tests::MIB;
use crate::read::tests::World;
use crate::read::tests::files_in;
use crate::read::tests::read_all;
use crate::read::tests::until;

/// The file in which the cache keeps a small object.
fn small_file(world: &World, version: &ObjectVersion) -> PathBuf {
    let id = world.reader.version_id(version).to_string();
    world.dir.path().join("blocks").join(&id[..2]).join(format!("{}.one", &id[2..]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_on_disk_is_fetched_again_and_never_served() {
    let mut world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 5 * MIB);
    let (small, small_body) = world.put("small", 70_000);
    read_all(&world, &version, 1 << 20).await.unwrap();
    read_all(&world, &small, 1 << 20).await.unwrap();
    world.cache.drain().await;
    for file in files_in(world.dir.path()) {
        let mut content = std::fs::read(&file).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&file, content).unwrap();
    }
    world = world.restart();
    assert!(read_all(&world, &version, 1 << 20).await.unwrap() == body);
    assert!(read_all(&world, &small, 1 << 20).await.unwrap() == small_body);
    let fetched = world.reader.stats().fetched_bytes;
    assert!((BLOCK_BYTES + 70_000..MIB * 3).contains(&fetched), "only the damaged blocks: {fetched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cache_directory_everything_is_still_right() {
    let world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 5 * MIB);
    std::fs::remove_dir_all(world.dir.path()).unwrap();
    std::fs::write(world.dir.path(), b"in the way").unwrap();
    assert!(read_all(&world, &version, 1 << 20).await.unwrap() == body);
    world.cache.drain().await;
    assert!(world.cache.usage().bypassed.is_some());
    let (small, small_body) = world.put("small", 70_000);
    assert!(read_all(&world, &small, 1 << 20).await.unwrap() == small_body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_cached_file_that_cannot_be_used_is_fetched() {
    let world = World::new(ReadOptions::default());
    until("the scan is over", || world.cache.usage().scanned).await;
    let (linked, linked_body) = world.put("linked", 5000);
    let path = small_file(&world, &linked);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink("/dev/null", &path).unwrap(); // found, but never opened
    assert!(read_all(&world, &linked, 1 << 20).await.unwrap() == linked_body);
    assert_eq!(world.gets(), 1);
    world.cache.drain().await;
    world.reader.forget(&linked.key, &linked.etag);
    assert!(read_all(&world, &linked, 1 << 20).await.unwrap() == linked_body);
    assert_eq!(world.gets(), 1, "it was replaced by a sound one");

    let (blocked, blocked_body) = world.put("blocked", 70_000);
    let path = small_file(&world, &blocked);
    std::fs::create_dir_all(&path).unwrap(); // opened, but neither read nor removed
    for gets in [2, 3] {
        assert!(read_all(&world, &blocked, 1 << 20).await.unwrap() == blocked_body);
        world.cache.drain().await;
        assert_eq!(world.gets(), gets);
        world.reader.forget(&blocked.key, &blocked.etag);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_opened_again_is_not_read_from_a_deleted_file() {
    let world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 3 * MIB);
    assert!(read_all(&world, &version, 1 << 20).await.unwrap() == body);
    world.cache.drain().await;
    let other = BlockCache::open(CacheOptions {
        dir: world.dir.path().to_owned(),
        limit_bytes: u64::MAX,
        reserve_bytes: 0,
        memory_bytes: 16 * MIB,
    });
    other.evict_version(&world.reader.version_id(&version), false).unwrap();
    let entry = other.entry(&world.reader.version_id(&version), version.size_bytes);
    entry.store(0, &body[..2 * MIB as usize], Pages::Keep).unwrap();
    entry.store(2 * MIB / BLOCK_BYTES, &body[2 * MIB as usize..], Pages::Keep).unwrap();
    let fetched = world.store.bytes.load(Ordering::Relaxed);
    let handle = world.reader.open(version.clone()).handle();
    assert!(handle.object().verified_file().await.is_some(), "what others have cached since is found");
    assert_eq!(world.store.bytes.load(Ordering::Relaxed), fetched);
    drop((handle, Arc::clone(&other)));
}
