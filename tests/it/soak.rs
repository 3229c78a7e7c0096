//! The cache under kill -9: whatever a daemon was doing, the next one serves right bytes.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::common::home::Home;
use crate::common::mount::wait_until;

/// Kills in a run of the test; `DSFS_KILLS=100` is a soak.
const KILLS: u64 = 3;
const READERS: u64 = 4;
const SIZES: [u64; 6] = [1, 4096, 100_000, 131_072, 1_500_000, 9_000_001];
const FILES_OF_A_SIZE: u64 = 8;

/// A generator that needs no state of the system: a failing run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn name(file: u64) -> String {
    format!("part={}/{file:03}.bin", file % 3)
}

fn content(file: u64) -> Vec<u8> {
    let mut random = Random(file + 1);
    (0..SIZES[file as usize % SIZES.len()]).map(|_| random.below(256) as u8).collect()
}

/// Reads somewhere in some file. A daemon that is gone is an error; wrong bytes are a failure.
fn read_somewhere(dataset: &Path, truth: &[Vec<u8>], random: &mut Random) -> std::io::Result<()> {
    let file = random.below(truth.len() as u64);
    let whole = &truth[file as usize];
    let open = File::open(dataset.join(name(file)))?;
    let at = if random.below(2) == 0 { 0 } else { random.below(whole.len() as u64) };
    let mut buffer = vec![0; random.below(600_000) as usize + 1];
    let mut done = 0;
    while done < buffer.len() {
        let offset = at + done as u64;
        let read = open.read_at(&mut buffer[done..], offset)?;
        let expected = &whole[offset as usize..];
        assert!(read > 0 || expected.is_empty(), "{} ended at {offset}", name(file));
        assert!(buffer[done..done + read] == expected[..read], "wrong bytes in {} at {offset}", name(file));
        if read == 0 {
            break;
        }
        done += read;
    }
    Ok(())
}

/// A daemon that does not outlive a failed test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn mounted(home: &Home) -> Daemon {
    let child = home
        .command(&["mount", "mnt", "--foreground", "--memory-limit", "64MiB", "--remote", &home.remote()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon(child);
    wait_until("the mount", || fs::metadata(home.path("mnt/run/part=0/000.bin")).is_ok());
    daemon
}

#[test]
fn every_byte_served_after_kill_9_under_load_is_right() {
    let home = Home::new();
    let files = SIZES.len() as u64 * FILES_OF_A_SIZE;
    let truth: Arc<Vec<Vec<u8>>> = Arc::new((0..files).map(content).collect());
    for (file, body) in truth.iter().enumerate() {
        let path = home.path("remote/run").join(name(file as u64));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }
    let kills = std::env::var("DSFS_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let dataset = home.path("mnt/run");
    let mut random = Random(20_240_607);
    for kill in 0..kills {
        let mut daemon = mounted(&home);
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
                let (truth, dataset) = (Arc::clone(&truth), dataset.clone());
                let mut random = Random(kill * READERS + reader);
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed)
                        && read_somewhere(&dataset, &truth, &mut random).is_ok()
                    {
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        wait_until("the load", || reads.load(Ordering::Relaxed) > 0);
        // Not a wait for anything: the moment of the kill is what is tried out.
        thread::sleep(Duration::from_millis(random.below(300)));
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("no wrong byte");
        }
        let detached = Command::new("umount").arg("--lazy").arg(home.path("mnt")).status();
        assert!(detached.is_ok_and(|status| status.success()) || home.run(&["umount", "mnt"]).code == 0);
    }
    let mut daemon = mounted(&home);
    for (file, body) in truth.iter().enumerate() {
        assert!(fs::read(dataset.join(name(file as u64))).unwrap() == *body, "{}", name(file as u64));
    }
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);
    assert!(daemon.0.wait().unwrap().success());
}
