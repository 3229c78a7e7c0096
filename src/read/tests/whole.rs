//! Large files as one: what is kept in memory of them, and when the kernel may have them.

use std::fs::File;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::Advice;

use super::MIB;
use super::World;
use super::files_in;
use super::read_all;
use super::until;
use crate::cache::Pages;
use crate::read::ReadOptions;
use crate::read::STREAM_BYTES_MIN;

/// Longer than any test.
const PATIENT: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_has_left_behind_is_told_once_and_only_if_it_is_cached() {
    let world = World::new(ReadOptions::default());
    let (large, _) = world.put("large", STREAM_BYTES_MIN + 8 * MIB);
    let handle = world.reader.open(large.clone()).handle();
    assert_eq!(handle.left_behind(40 * MIB), None, "nothing is cached");
    read_all(&world, &large, 1024 * 1024).await.unwrap();
    world.cache.drain().await;
    assert_eq!(handle.left_behind(16 * MIB - 1), None, "the kernel may still be reading there");
    assert_eq!(handle.left_behind(16 * MIB), Some(0..8 * MIB));
    assert_eq!(handle.left_behind(17 * MIB), None, "told already");
    assert_eq!(handle.left_behind(40 * MIB), Some(8 * MIB..32 * MIB));
    assert_eq!(handle.left_behind(9 * MIB), None, "a reader who goes back keeps what he reads");

    let (smaller, _) = world.put("smaller", STREAM_BYTES_MIN - 1);
    read_all(&world, &smaller, 1024 * 1024).await.unwrap();
    world.cache.drain().await;
    assert_eq!(world.reader.open(smaller).handle().left_behind(STREAM_BYTES_MIN - 1), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_keeps_what_the_cache_has_to_evict_again() {
    for (limit_bytes, left_behind) in
        [(2 * STREAM_BYTES_MIN, Some(0..24 * MIB)), (2 * STREAM_BYTES_MIN - 1, None)]
    {
        let world = World::with_cache_limit(ReadOptions::default(), limit_bytes);
        let (large, _) = world.put("large", STREAM_BYTES_MIN);
        let handle = world.reader.open(large.clone()).handle();
        read_all(&world, &large, 1024 * 1024).await.unwrap();
        world.cache.drain().await;
        assert_eq!(handle.left_behind(STREAM_BYTES_MIN), left_behind, "in a cache of {limit_bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_let_go_only_of_a_stream_that_somebody_keeps() {
    let world = World::new(ReadOptions::default());
    let (large, _) = world.put("large", STREAM_BYTES_MIN);
    let object = world.reader.open(large);
    let ours = object.handle();
    assert_eq!(object.pages_of(MIB), Pages::Keep, "a download, or a pin: nobody has the bytes but the cache");
    let mounts = object.handle_with(Pages::LetGo);
    assert_eq!(object.pages_of(MIB), Pages::LetGo);
    assert_eq!(object.pages_of(MIB / 8), Pages::Keep, "single blocks are read here and there");
    drop(mounts);
    assert_eq!(object.pages_of(MIB), Pages::Keep);
    drop(ours);
    let (smaller, _) = world.put("smaller", STREAM_BYTES_MIN - 1);
    let object = world.reader.open(smaller);
    let _mounts = object.handle_with(Pages::LetGo);
    assert_eq!(object.pages_of(MIB), Pages::Keep);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mount_keeps_is_in_the_cache_as_well() {
    let mut world = World::new(ReadOptions::default());
    let (large, body) = world.put("large", STREAM_BYTES_MIN + 77);
    let handle = world.reader.open(large.clone()).handle_with(Pages::LetGo);
    for offset in (0..large.size_bytes).step_by(MIB as usize) {
        handle.read(offset, 1024 * 1024).await.unwrap();
    }
    drop(handle);
    world.cache.drain().await;
    world = world.restart();
    assert!(read_all(&world, &large, 128 * 1024).await.unwrap() == body);
    assert_eq!(world.gets(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_memory_is_not_waited_for_where_others_would_wait_too() {
    let mut world = World::new(ReadOptions::default());
    let (large, body) = world.put("large", STREAM_BYTES_MIN);
    read_all(&world, &large, 1024 * 1024).await.unwrap();
    world.cache.drain().await;
    world = world.restart();
    let handle = world.reader.open(large).handle_with(Pages::LetGo);
    assert!(handle.object().entry.verify());
    let paths = files_in(world.dir.path());
    let data = paths.iter().find(|path| path.extension().is_some_and(|suffix| suffix == "data")).unwrap();
    let data = File::open(data).unwrap();
    let in_memory = "a file system that tells what is in memory is needed: set TMPDIR";
    assert!(handle.try_read(5 * MIB, 1024 * 1024).is_some(), "{in_memory}");
    data.sync_all().unwrap();
    until("the disk would have to be waited for", || {
        rustix::fs::fadvise(&data, 0, None, Advice::DontNeed).unwrap();
        handle.try_read(5 * MIB, 1024 * 1024).is_none()
    })
    .await;
    let read = handle.read(5 * MIB, 1024 * 1024).await.unwrap();
    assert!(read == body[5 * MIB as usize..6 * MIB as usize]);
    assert!(handle.try_read(5 * MIB, 1024 * 1024).is_some(), "it is in memory again");
    assert_eq!(world.gets(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_just_read_whole_is_waited_for_and_another_is_not() {
    // So little memory that there is a line before the queue to the disk.
    let world = World::new(ReadOptions { memory_bytes: 16 * MIB, ..ReadOptions::default() });
    let (large, _) = world.put("large", STREAM_BYTES_MIN);
    read_all(&world, &large, 1024 * 1024).await.unwrap();
    let object = world.reader.open(large);
    let whole = tokio::time::timeout(Duration::from_secs(20), object.settled_file(PATIENT)).await;
    assert!(whole.expect("its writes end").is_some());

    let (partly, _) = world.put("partly", STREAM_BYTES_MIN + MIB);
    let object = world.reader.open(partly);
    object.handle().read(0, 4096).await.unwrap();
    let whole = tokio::time::timeout(Duration::from_secs(20), object.settled_file(PATIENT)).await;
    assert!(whole.expect("nobody waits for what is not on its way").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_files_are_verified_at_a_time_and_only_while_they_are_open() {
    let mut world = World::new(ReadOptions::default());
    let (version, body) = world.put("k", 3 * MIB);
    read_all(&world, &version, 1024 * 1024).await.unwrap();
    world.cache.drain().await;
    world = world.restart();
    let object = world.reader.open(version.clone());
    assert!(object.verified_file().await.is_none(), "nobody has it open");

    let handle = object.handle();
    let places = &world.reader.shared.verifying;
    let all = places.clone().acquire_many_owned(places.available_permits() as u32).await.unwrap();
    let verified = tokio::time::timeout(Duration::from_secs(20), object.verified_file()).await;
    assert!(verified.expect("nobody stands in line to open a file").is_none());
    let read: Bytes = handle.read(0, 1024 * 1024).await.unwrap();
    assert_eq!(read, body[..MIB as usize], "it is read through us meanwhile");

    drop(all);
    let (one, other) = tokio::join!(object.verified_file(), object.verified_file());
    assert!(one.is_some() && other.is_some(), "once is enough for both");
    until("the places are given back", || world.reader.shared.verifying.available_permits() > 0).await;
}
