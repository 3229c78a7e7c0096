//! How mounts end: by command, by signal, from outside, and by what breaks.

use std::fs;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use dsfs::control;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

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

/// A home with a mount in which a file is open for writing, and the daemon's process.
fn in_use(home: &Home) -> (File, Pid) {
    let mnt = home.mount();
    fs::create_dir(mnt.join("run")).unwrap();
    let mut file = File::create(mnt.join("run/recording")).unwrap();
    file.write_all(b"before, ").unwrap();
    (file, daemon_of(home))
}

fn daemon_of(home: &Home) -> Pid {
    let pid = home.status()["mounts"][0]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn has_ended(daemon: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn files_that_are_open_in_a_detached_mount_are_served_until_they_are_closed() {
    let home = Home::new();
    let (mut file, daemon) = in_use(&home);
    let said = home.run(&["umount", "mnt", "--lazy"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        said.err.contains("still in use") && said.err.contains(&daemon.as_raw_nonzero().to_string()),
        "{}",
        said.err
    );
    assert!(mounted_at(&home.path("mnt")).is_empty());

    let mount = &home.status()["mounts"][0];
    assert_eq!((&mount["detached"], &mount["staged"][0]["files"]), (&true.into(), &1.into()), "{mount}");
    assert!(home.run(&["status"]).out.contains("detached"), "it is said to people too");
    home.run(&["mount", "mnt", "--remote", &home.remote()])
        .failed(1, &["detached from", "serves files", "--lazy"]);
    fs::create_dir(home.path("another")).unwrap();
    let another = format!("file://{}/", home.path("another").display());
    home.run(&["mount", "mnt", "--remote", &another]).failed(1, &["still running", "--lazy"]);
    home.run(&["umount", "mnt"]).failed(1, &["detached already", "--lazy"]);
    home.run(&["upgrade"]).failed(4, &["no dsfs mount"]);
    home.run(&["commit", "run"]).failed(1, &["open for writing"]);

    file.write_all(b"after").unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 13);
    drop(file);
    wait_until("the daemon has ended", || has_ended(daemon));
    let mnt = home.mount();
    assert_eq!(fs::read(mnt.join("run/recording")).unwrap(), b"before, after");
}

#[test]
fn what_is_open_in_a_detached_mount_is_given_up_when_that_is_said_again() {
    for by_signal in [true, false] {
        let home = Home::new();
        let (_file, daemon) = in_use(&home);
        assert_eq!(home.run(&["umount", "mnt", "--lazy"]).code, 0);
        assert!(!has_ended(daemon));
        if by_signal {
            kill_process(daemon, Signal::TERM).unwrap();
            wait_until("the daemon has ended", || has_ended(daemon));
        } else {
            let said = home.run(&["umount", "mnt", "--lazy"]);
            assert_eq!(said.code, 0, "{}", said.err);
            assert!(has_ended(daemon), "umount waits for it");
        }
        assert_eq!(fs::read(home.mount().join("run/recording")).unwrap(), b"before, ");
    }
}

#[test]
fn a_daemon_that_hangs_is_shown_and_can_be_unmounted_without_it() {
    let home = Home::new();
    let mnt = home.mount();
    fs::create_dir(mnt.join("run")).unwrap();
    fs::write(mnt.join("run/a"), "a").unwrap();
    let daemon = daemon_of(&home);
    kill_process(daemon, Signal::STOP).unwrap();
    let status = home.status();
    let shown = &status["unanswered"][0];
    assert_eq!(
        (shown["problem"].as_str(), shown["mountpoint"].as_str()),
        (Some("silent"), mnt.to_str()),
        "{status}"
    );
    assert_eq!(
        (&shown["pid"], &shown["staged"][0]["name"]),
        (&daemon.as_raw_nonzero().get().into(), &"run".into())
    );
    assert!(status["unmounted"].as_array().unwrap().is_empty(), "{status}");
    home.run(&["upgrade"]).failed(1, &["does not answer", "--lazy"]);
    let said = home.run(&["umount", "--lazy", "mnt"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("does not answer"), "{}", said.err);
    assert!(mounted_at(&mnt).is_empty());
    let shown = home.run(&["status"]).out;
    assert!(shown.contains(&format!("kill -9 {}", daemon.as_raw_nonzero())), "{shown}");
    kill_process(daemon, Signal::CONT).unwrap();
    wait_until("the daemon has ended", || has_ended(daemon));
}

/// Listens where a daemon does, as long as it has a mount, and refuses everything in the same words.
const REFUSES_ALL: &str = r#"
import json, os, socket, sys
path, mountpoint, words = sys.argv[1:]
refusal = {'failed': {'kind': 'failed', 'message': words, 'hint': None}}
os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
server.settimeout(0.02)
print('ready', flush=True)
while mountpoint in open('/proc/self/mountinfo').read():
    try:
        client, _ = server.accept()
        client.makefile().readline()
        client.sendall(json.dumps(refusal).encode() + b'\n')
        client.close()
    except OSError: pass
"#;

/// Somebody else listens in the daemon's place, until the mount is gone.
fn refuse_all(home: &Home, mnt: &Path, words: &str) -> Child {
    let mut other = Command::new("python3");
    let socket = control::socket_path(&home.runtime().join("dsfs"), mnt);
    other.args(["-c", REFUSES_ALL]).arg(socket).arg(mnt).arg(words);
    let mut other = other.stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    other
}

#[test]
fn a_daemon_that_refuses_is_not_passed_over() {
    let home = Home::new();
    let mnt = home.mount();
    let daemon = daemon_of(&home);
    let mut other = refuse_all(&home, &mnt, "too many open files");
    let status = home.status();
    let shown = &status["unanswered"][0];
    assert_eq!((&shown["problem"], &shown["reason"]), (&"failing".into(), &"too many open files".into()));
    for how in [&["umount", "mnt"][..], &["umount", "--lazy", "mnt"], &["upgrade", "mnt"]] {
        home.run(how).failed(1, &["too many open files"]);
        assert_eq!(mounted_at(&mnt), ["fuse.dsfs"], "{how:?}");
    }
    assert!(Command::new("umount").arg(&mnt).status().unwrap().success());
    wait_until("the daemon has ended", || has_ended(daemon));
    other.wait().unwrap();
}

#[test]
fn a_daemon_of_another_version_is_shown_and_can_be_unmounted() {
    let home = Home::new();
    let mnt = home.mount();
    let daemon = daemon_of(&home);
    let mut other = refuse_all(&home, &mnt, "the daemon speaks version 1");
    let status = home.status();
    assert_eq!(status["unanswered"][0]["problem"], "other-version", "{status}");
    assert_eq!(status["unanswered"][0]["mountpoint"].as_str(), mnt.to_str(), "{status}");
    assert!(home.run(&["status"]).out.contains("another version"));
    home.run(&["upgrade", "mnt"]).failed(1, &["another version", "dsfs umount"]);
    let file = File::open(&mnt).unwrap();
    home.run(&["umount", "mnt"]).failed(1, &["busy"]);
    drop(file);
    let said = home.run(&["umount", "mnt"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(mounted_at(&mnt).is_empty());
    wait_until("the daemon has ended", || has_ended(daemon));
    other.wait().unwrap();
}

#[test]
fn only_what_a_dead_daemon_has_left_is_cleared_on_request() {
    let home = Home::new();
    let mnt = home.mount();
    let daemon = daemon_of(&home);
    home.run(&["umount", "--dead", "mnt"]).failed(1, &["stays mounted", "hint:"]);
    fs::remove_dir_all(home.runtime().join("dsfs")).unwrap(); // as for who looks for sockets elsewhere
    home.run(&["umount", "--dead", "mnt"]).failed(1, &["stays mounted"]);
    assert_eq!(mounted_at(&mnt), ["fuse.dsfs"]);
    kill_process(daemon, Signal::KILL).unwrap();
    wait_until("the daemon is dead", || has_ended(daemon));
    for cleared in ["the mount is cleared", ""] {
        let said = home.run(&["umount", "--dead", "mnt"]);
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.err.contains(cleared), "{}", said.err);
        assert!(mounted_at(&mnt).is_empty());
    }
}

#[test]
fn a_service_that_stops_clears_no_mount_of_somebody_else() {
    for unit in ["systemd/dsfs@.service", "systemd/user/dsfs.service"] {
        let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(unit)).unwrap();
        let after: Vec<&str> = unit.lines().filter(|line| line.starts_with("ExecStopPost=")).collect();
        assert_eq!(after, ["ExecStopPost=-/usr/local/bin/dsfs umount --dead ${DSFS_MOUNTPOINT}"]);
    }
}
