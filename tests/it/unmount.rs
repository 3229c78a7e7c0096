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

#[test]
fn a_session_that_broke_is_a_failure_and_an_unmount_from_outside_is_none() {
    let home = Home::new();
    let mut daemon = foreground(&home);
    assert!(Command::new("umount").arg(home.path("mnt")).status().unwrap().success());
    assert!(daemon.wait().unwrap().success());

    let mut daemon = foreground(&home);
    let device = rustix::fs::stat(home.path("mnt")).unwrap().st_dev;
    let control = home.path("connections");
    fs::create_dir(&control).unwrap();
    let mut mount = Command::new("mount");
    assert!(mount.args(["-t", "fusectl", "none"]).arg(&control).status().unwrap().success());
    let aborted = fs::write(control.join(rustix::fs::minor(device).to_string()).join("abort"), "1");
    Command::new("umount").arg(&control).status().unwrap();
    aborted.unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(1));
    assert!(mounted_at(&home.path("mnt")).is_empty(), "nobody was in it");
}
