//! How mounts end: by command, by signal, from outside, and by what breaks.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use crate::common::home::Home;
use crate::common::mount::wait_until;

/// The daemon as a service manager starts it: in the foreground.
fn foreground(home: &Home) -> Child {
    let mut daemon = home.command(&["mount", "mnt", "--foreground", "--remote", &home.remote()]);
    let daemon = daemon.stderr(Stdio::null()).spawn().unwrap();
    wait_until("the daemon", || !home.status()["mounts"].as_array().unwrap().is_empty());
    daemon
}

/// What is mounted there, lowest first.
fn mounted_at(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = table.lines().filter(|line| line.split(' ').nth(4) == path.to_str());
    here.map(|line| line.split(" - ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn what_a_mount_was_made_over_is_there_after_it() {
    let home = Home::new();
    let mnt = home.path("mnt");
    fs::create_dir(&mnt).unwrap();
    assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mnt).status().unwrap().success());
    let mut daemon = foreground(&home);
    assert_eq!(mounted_at(&mnt), ["tmpfs", "fuse.dsfs"]);
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);
    assert!(daemon.wait().unwrap().success());
    let left = mounted_at(&mnt);
    Command::new("umount").arg(&mnt).status().unwrap();
    assert_eq!(left, ["tmpfs"]);
}
