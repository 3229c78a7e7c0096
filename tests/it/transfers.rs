//! `dsfs r2`, against a server that can be made to fail, and against a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use dsfs::store::fault::Operation;
use serde_json::Value;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::HttpFault;
use crate::common::double::Recorded;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::mount::wait_until;

/// More than one part, so that it goes in pieces.
const LARGE: usize = 20 << 20;

/// A user with a bucket.
pub struct Lab {
    pub home: Home,
    pub server: Double,
}

impl Lab {
    pub fn new() -> Self {
        Self { home: Home::new(), server: Double::start() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        command.env("R2_ENDPOINT", self.server.endpoint()).env("R2_BUCKET", BUCKET);
        command.env("R2_ACCESS_KEY_ID", ACCESS_KEY).env("R2_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap())
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}", said.err);
        said
    }

    pub fn write(&self, name: &str, body: &[u8]) {
        let path = self.home.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }

    pub fn body(&self, key: &str) -> Option<Vec<u8>> {
        self.server.object(key).map(|(body, _)| body.to_vec())
    }

    pub fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        files(&self.home.path(dir))
    }
}

/// All files below a directory, by their paths.
pub fn files(top: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                waiting.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(top).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// Bytes that differ everywhere.
pub fn body(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

#[test]
fn a_directory_goes_up_and_comes_down() {
    let lab = Lab::new();
    lab.write("up/large.bin", &body(LARGE));
    lab.write("up/a/b.txt", b"small");
    lab.write("up/a/empty", b"");
    let said = lab.ok(&["r2", "upload", "up", "results/one", "--json"]);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&report["files"], &report["target"]), (&3.into(), &"results/one/".into()));
    assert_eq!(lab.server.keys(), ["results/one/a/b.txt", "results/one/a/empty", "results/one/large.bin"]);

    let said = lab.ok(&["r2", "download", "results/one", "--json"]);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["files"], 3);
    assert_eq!(lab.files("temp/one"), lab.files("up"), "the prefix's last component is the directory");
    assert!(said.err.is_empty(), "no progress unless asked for: {}", said.err);
}

#[test]
fn a_single_object_lands_under_its_name() {
    let lab = Lab::new();
    lab.write("data.jsonl", b"{}\n");
    lab.ok(&["r2", "upload", "data.jsonl", "runs/1/"]);
    lab.ok(&["s3", "upload", "data.jsonl", &format!("s3://{BUCKET}/runs/copy")]);
    assert_eq!(lab.server.keys(), ["runs/1/data.jsonl", "runs/copy"]);
    lab.ok(&["r2", "download", "runs/1/data.jsonl", "-o", "out"]);
    assert_eq!(lab.files("out").keys().collect::<Vec<_>>(), ["data.jsonl"]);
    // Without a slash it is the object, if there is one, and the prefix otherwise.
    lab.server.put_out_of_band("runs/copy/below", b"");
    lab.ok(&["r2", "download", "runs/copy", "-o", "exact"]);
    assert_eq!(lab.files("exact").keys().collect::<Vec<_>>(), ["copy"]);
    lab.ok(&["r2", "download", "runs/copy/", "-o", "prefix"]);
    assert_eq!(lab.files("prefix").keys().collect::<Vec<_>>(), ["copy/below"]);
    lab.run(&["r2", "download", "runs/nothing", "-o", "nowhere"]).failed(4, &["runs/nothing"]);
    assert!(!lab.home.path("nowhere").exists());
}

#[test]
fn lists_are_keys_one_a_line() {
    let lab = Lab::new();
    assert_eq!(lab.ok(&["r2", "list"]).out, "");
    for key in ["a/1", "a/b/2", "ab", "c"] {
        lab.server.put_out_of_band(key, b"123");
    }
    assert_eq!(lab.ok(&["r2", "list"]).out, "a/1\na/b/2\nab\nc\n");
    assert_eq!(lab.ok(&["r2", "list", "a", "--flat"]).out, "a/\nab\n");
    assert_eq!(lab.ok(&["r2", "ls", "a/", "--flat"]).out, "a/1\na/b/\n");
    let said = lab.ok(&["r2", "list", &format!("s3://{BUCKET}/a/"), "--json"]);
    let json: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json["objects"][1]["key"], "a/b/2");
    assert_eq!(json["objects"][1]["size"], 3);
    assert!(json["objects"][1]["last_modified"].as_str().unwrap().starts_with("20"));
    lab.run(&["r2", "list", "s3://other-bucket/", "-b", BUCKET]).failed(2, &["two buckets"]);
}

#[test]
fn keys_tell_a_terminal_nothing() {
    let home = Home::new();
    let key = "p/\u{1b}]52;c;eA==\u{7}\u{1b}[2J";
    fs::create_dir(home.path("remote/p")).unwrap();
    fs::write(home.path("remote").join(key), "1").unwrap();
    let remote = home.remote();
    let said = home.run(&["r2", "list", "--remote", &remote]);
    assert_eq!(said.out, format!("{key}\n"), "a program gets the key as it is: {}", said.err);

    let download = ["r2", "download", "p", "--remote", &remote];
    assert_eq!(home.run(&download).code, 0);
    let said = home.run(&download);
    said.failed(3, &[r"p/\u{1b}]52;c;eA==\u{7}\u{1b}[2J"]);
    assert!(!said.err.contains('\u{1b}'), "{:?}", said.err);

    let dsfs = home.command(&[]);
    let line = format!("{} r2 list --remote {remote}", dsfs.get_program().to_str().unwrap());
    let mut on_terminal = Command::new("script");
    on_terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_clear();
    on_terminal.envs(dsfs.get_envs().filter_map(|(name, value)| Some((name, value?))));
    on_terminal.current_dir(home.path("")).stdin(Stdio::null());
    let said = Said::of(on_terminal.output().unwrap());
    assert!(said.out.contains(r"p/\u{1b}]52;c;eA==\u{7}\u{1b}[2J"), "{:?}", said.out);
    assert!(!said.out.contains('\u{1b}'), "{:?}", said.out);
}

#[test]
fn nothing_is_overwritten_in_either_direction() {
    let lab = Lab::new();
    lab.write("up/1", b"mine");
    lab.write("up/2", b"mine");
    lab.server.put_out_of_band("x/2", b"theirs");
    let said = lab.run(&["r2", "upload", "up", "x"]);
    said.failed(3, &["x/2", "nothing was transferred"]);
    assert_eq!(lab.server.keys(), ["x/2"]);
    lab.run(&["r2", "upload", "up/2", "x/2"]).failed(3, &["x/2"]);
    lab.run(&["r2", "upload", "up/2", "x/2", "--overwrite"]).failed(2, &["dsfs r2 delete x/2"]);
    assert_eq!(lab.body("x/2").unwrap(), b"theirs");
    lab.ok(&["r2", "upload", "up", "x/", "--overwrite"]);
    assert_eq!(lab.body("x/2").unwrap(), b"mine");

    lab.write("temp/x/1", b"here");
    lab.run(&["r2", "download", "x"]).failed(3, &["temp/x/1", "nothing was transferred"]);
    assert_eq!(lab.files("temp/x").len(), 1);
    lab.ok(&["r2", "download", "x", "--overwrite"]);
    assert_eq!(lab.files("temp/x"), lab.files("up"));
}

#[test]
fn deleting_takes_a_prefix_only_when_asked() {
    let lab = Lab::new();
    for key in ["p/a", "p/a/1", "p/ab", "q/1", "q/2"] {
        lab.server.put_out_of_band(key, b"");
    }
    lab.ok(&["r2", "delete", "p/nothing"]);
    lab.ok(&["r2", "delete", "-r", "p/a"]);
    assert_eq!(lab.server.keys(), ["p/ab", "q/1", "q/2"], "-r p/a takes p/a and p/a/…, not p/ab");
    lab.ok(&["r2", "delete", "q"]);
    assert_eq!(lab.server.keys().len(), 3, "q is no object");
    let said = lab.ok(&["r2", "delete", "q/", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["deleted"], 2);
    for whole in ["", "/", "s3://assets/"] {
        lab.run(&["r2", "delete", "-r", whole]).failed(2, &["whole bucket"]);
    }
    assert_eq!(lab.server.keys(), ["p/ab"]);
}

#[test]
fn progress_ends_with_all_of_it_and_a_new_line() {
    let lab = Lab::new();
    lab.write("up/1", &body(1000));
    let said = lab.ok(&["r2", "upload", "up", "x", "-p"]);
    let last = said.err.lines().find(|line| line.contains("Uploading")).unwrap();
    assert!(last.ends_with("\rUploading: 1000/1000 bytes (100%)"), "{last:?}");
    let said = lab.ok(&["r2", "download", "x", "-p"]);
    assert!(said.err.contains("\rDownloading: 1000/1000 bytes (100%)\n"), "{:?}", said.err);
    lab.write("none/0", b"");
    let said = lab.ok(&["r2", "upload", "none", "y", "-p"]);
    assert!(said.err.contains("Uploading: 0/0 bytes (100%)\n"), "{:?}", said.err);
    let said = lab.ok(&["r2", "download", "y", "-p", "-q"]);
    assert_eq!(said.err, "");
}

#[test]
fn resets_and_truncated_bodies_cost_only_time() {
    let lab = Lab::new();
    for number in 0..60 {
        lab.write(&format!("up/{number:02}"), &body(1000 + number));
    }
    lab.write("up/large", &body(LARGE));
    lab.write("probe", b"");
    lab.ok(&["r2", "upload", "probe", "probed"]); // the server is known from here on
    for nth in 0..3 {
        lab.server.script(Operation::Put, HttpFault::Reset);
        lab.server.script(Operation::Put, HttpFault::LostReply);
        lab.server.script(Operation::PutPart, HttpFault::Reset);
        lab.server.script(Operation::Get, HttpFault::Truncate(500 * nth));
        lab.server.script(Operation::Get, HttpFault::Reset);
    }
    lab.server.script(Operation::CompleteMultipart, HttpFault::LostReply);
    lab.ok(&["r2", "upload", "up", "x"]);
    lab.ok(&["r2", "download", "x"]);
    assert_eq!(lab.files("temp/x"), lab.files("up"));
    assert_eq!(lab.server.open_uploads(), 0);
}

#[test]
fn a_server_that_resets_every_20th_connection_is_ridden_out() {
    let lab = Lab::new();
    for number in 0..100 {
        lab.write(&format!("up/{number:02}"), &body(1000 + number));
    }
    lab.write("up/large", &body(LARGE));
    lab.ok(&["r2", "upload", "up/00", "probed"]); // the server is known from here on
    lab.server.switches().reset_every.store(20, Ordering::SeqCst);
    lab.ok(&["r2", "upload", "up", "x"]);
    lab.ok(&["r2", "download", "x"]);
    assert_eq!(lab.files("temp/x"), lab.files("up"));
}

#[test]
fn a_full_disk_is_told_before_anything_is_fetched() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/large", &body(LARGE));
    lab.server.put_out_of_band("x/small", b"small");
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "a small file system can be mounted");
    let out = disk.path().join("out");
    lab.run(&["r2", "download", "x", "-o", out.to_str().unwrap()])
        .failed(1, &["room for 4 MiB", "need 20 MiB", "nothing was transferred"]);
    assert!(!out.exists());
    assert_eq!(lab.server.count(Operation::Get), 0);
    lab.ok(&["r2", "download", "x/small", "-o", out.to_str().unwrap()]);
    assert!(Command::new("umount").arg(disk.path()).status().unwrap().success());
}

#[test]
fn a_storm_of_503_is_ridden_out() {
    let lab = Lab::new();
    for number in 0..40 {
        lab.write(&format!("up/{number:02}"), &body(1000 + number));
    }
    lab.ok(&["r2", "upload", "up/00", "probed"]); // the server is known from here on
    lab.server.switches().slow_down_every.store(4, Ordering::SeqCst);
    lab.ok(&["r2", "upload", "up", "x"]);
    lab.ok(&["r2", "download", "x"]);
    assert_eq!(lab.files("temp/x"), lab.files("up"));
}

#[test]
fn a_proxy_that_answers_for_its_server_costs_only_time() {
    let lab = Lab::new();
    lab.write("up/large", &body(LARGE));
    lab.write("up/small", b"small");
    lab.ok(&["r2", "upload", "up/small", "probed"]); // the server is known from here on
    let writes =
        [Operation::CreateMultipart, Operation::PutPart, Operation::CompleteMultipart, Operation::Put];
    for operation in writes.into_iter().chain([Operation::List]) {
        lab.server.script(operation, HttpFault::Page(404, None));
        lab.server.script(operation, HttpFault::Page(200, Some("\"page\"")));
    }
    lab.ok(&["r2", "upload", "up", "x"]);
    for fault in [HttpFault::Page(404, None), HttpFault::Page(200, None)] {
        for operation in [Operation::List, Operation::Head, Operation::Get] {
            lab.server.script(operation, fault.clone());
        }
    }
    lab.ok(&["r2", "download", "x/"]);
    assert_eq!(lab.files("temp/x"), lab.files("up"));
    assert_eq!(lab.server.open_uploads(), 0);
    let deletes = [Operation::List, Operation::Head, Operation::Delete];
    deletes.into_iter().for_each(|operation| lab.server.script(operation, HttpFault::Page(404, None)));
    lab.ok(&["r2", "delete", "x/"]);
    assert_eq!(lab.server.keys(), ["probed"]);
}

/// Starts a command, and waits until the server has seen so many requests of a kind.
fn started(lab: &Lab, arguments: &[&str], operation: Operation, count: usize) -> std::process::Child {
    let mut command = lab.command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the transfer is under way", || lab.server.count(operation) >= count);
    child
}

fn kill(child: &std::process::Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn ctrl_c_leaves_nothing_half() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/large", &body(LARGE));
    lab.server.script(Operation::Get, HttpFault::StallBody(1000));
    let child = started(&lab, &["r2", "download", "x"], Operation::Get, 1);
    kill(&child, "-INT");
    Said::of(child.wait_with_output().unwrap()).failed(130, &["cancelled: 0 of 1"]);
    assert!(!lab.home.path("temp").exists(), "neither files nor the directories made for them");

    lab.write("up/large", &body(LARGE));
    lab.ok(&["r2", "upload", "up/large", "probed"]); // the server is known from here on
    lab.server.forget_requests();
    lab.server.script(Operation::PutPart, HttpFault::Stall);
    let child = started(&lab, &["r2", "upload", "up", "y"], Operation::PutPart, 1);
    kill(&child, "-INT");
    Said::of(child.wait_with_output().unwrap()).failed(130, &["cancelled: 0 of 1"]);
    assert_eq!(lab.server.open_uploads(), 0);
    assert_eq!(lab.body("y/large"), None);
}

/// As a mount does: longer than this test waits would the request's own timeout be.
#[test]
fn who_waits_over_a_connection_that_leads_nowhere_asks_again_over_a_new_one() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x", b"1");
    lab.server.script(Operation::Head, HttpFault::Stall);
    let arguments = ["r2", "download", "x", "--request-timeout", "5min"];
    let mut child = started(&lab, &arguments, Operation::Head, 1);
    wait_until("it is asked again", || lab.server.count(Operation::Head) > 1);
    assert!(child.wait().unwrap().success());
}

#[test]
fn ctrl_c_ends_a_deletion_and_how_far_it_was_is_told() {
    let lab = Lab::new();
    for key in ["x/1", "x/2", "x/3"] {
        lab.server.put_out_of_band(key, b"");
    }
    lab.server.script(Operation::List, HttpFault::Stall);
    let child = started(&lab, &["r2", "delete", "-r", "x"], Operation::List, 1);
    kill(&child, "-INT");
    Said::of(child.wait_with_output().unwrap()).failed(130, &["cancelled; nothing was deleted"]);
    assert_eq!(lab.server.keys().len(), 3);

    lab.server.script(Operation::Delete, HttpFault::Stall);
    let child = started(&lab, &["r2", "delete", "-r", "x"], Operation::Delete, 3);
    wait_until("two are gone", || lab.server.keys().len() == 1);
    kill(&child, "-INT");
    Said::of(child.wait_with_output().unwrap()).failed(130, &["of 3 objects are known to be deleted"]);
    lab.ok(&["r2", "delete", "-r", "x"]);
    assert!(lab.server.keys().is_empty());
}

#[test]
fn what_is_replaced_while_others_are_deleted_is_named() {
    let lab = Lab::new();
    let replaced = || lab.server.script(Operation::Delete, HttpFault::Status(412, "PreconditionFailed"));
    for key in ["x/1", "x/2", "y", "y/1"] {
        lab.server.put_out_of_band(key, b"");
    }
    replaced();
    let said = lab.run(&["r2", "delete", "x/"]);
    said.failed(6, &["x/", "they were left alone; 1 other object deleted", "the same command"]);
    assert_eq!(lab.server.keys().len(), 3);
    // Beside the object of the name itself.
    replaced();
    lab.run(&["r2", "delete", "-r", "y"]).failed(6, &["y/1", "1 other object deleted"]);
    replaced();
    lab.run(&["r2", "delete", "y/1"]).failed(3, &["y/1", "theirs were left alone"]);
    lab.ok(&["r2", "delete", "-r", "y"]);
    lab.ok(&["r2", "delete", "x/"]);
    assert!(lab.server.keys().is_empty());
}

#[test]
fn after_kill_9_the_same_command_goes_on() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/large", &body(LARGE));
    // Two pieces arrive, the third one never does.
    let arrives = || HttpFault::DropHeader("x-nothing");
    for fault in [arrives(), arrives(), HttpFault::Stall] {
        lab.server.script(Operation::Get, fault);
    }
    let mut child = started(&lab, &["r2", "download", "x", "-w", "1"], Operation::Get, 3);
    let map = || {
        let found = files(&lab.home.path("temp/x"));
        found.into_iter().find(|(name, _)| name.ends_with(".map")).map(|(_, text)| text)
    };
    wait_until("two pieces are noted", || map().is_some_and(|map| map.split(|b| *b == b'\n').count() == 4));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!lab.home.path("temp/x/large").exists());
    lab.server.forget_requests();
    lab.ok(&["r2", "download", "x"]);
    assert_eq!(lab.server.count(Operation::Get), 1, "only the piece that was missing");
    assert_eq!(lab.files("temp/x").len(), 1, "nothing else is left");
    assert_eq!(lab.files("temp/x")["large"], body(LARGE));
}

#[test]
fn after_kill_9_an_upload_goes_on_too() {
    let lab = Lab::new();
    lab.write("up/large", &body(LARGE));
    lab.write("up/small", b"small");
    lab.ok(&["r2", "upload", "up/small", "probed"]);
    lab.server.forget_requests();
    for fault in [HttpFault::DropHeader("x-nothing"), HttpFault::DropHeader("x-nothing"), HttpFault::Stall] {
        lab.server.script(Operation::PutPart, fault);
    }
    let mut child = started(&lab, &["r2", "upload", "up", "x"], Operation::PutPart, 3);
    wait_until("the small file is there", || lab.body("x/small").is_some());
    let notes = || files(&lab.home.path(".local/state/dsfs/transfers")).into_values().next();
    wait_until("two parts are noted", || {
        notes().is_some_and(|text| String::from_utf8_lossy(&text).matches("\"number\"").count() >= 2)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    lab.server.forget_requests();
    let said = lab.ok(&["r2", "upload", "up", "x", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["done_before"], 1);
    assert_eq!(lab.server.count(Operation::PutPart), 1, "only the part that was missing");
    assert_eq!(lab.body("x/large").unwrap(), body(LARGE));
    assert_eq!(lab.server.open_uploads(), 0);
    lab.run(&["r2", "upload", "up", "x"]).failed(3, &["x/large", "x/small"]);
}

#[test]
fn a_target_that_cannot_be_written_is_told_and_nothing_is_left() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/1", b"1");
    lab.write("file", b"");
    lab.run(&["r2", "download", "x", "-o", "file"]).failed(3, &["file", "not a directory"]);
    lab.run(&["r2", "download", "x", "-o", "/proc/nowhere"]).failed(1, &["/proc/nowhere"]);
    lab.run(&["r2", "upload", "missing", "y"]).failed(1, &["missing"]);
    lab.run(&["r2", "upload", "file", "a//b"]).failed(2, &["cannot be a file name"]);
    lab.run(&["r2", "upload", "file", ".dsfs/datasets/log/x/1"]).failed(1, &["own state"]);
}

#[test]
fn a_read_only_target_is_told_before_anything_is_fetched() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/large", &body(LARGE));
    let disk = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none"]).arg(disk.path()).status();
    assert!(mounted.unwrap().success(), "a small file system can be mounted");
    let out = disk.path().join("out");
    lab.run(&["r2", "download", "x", "-o", out.to_str().unwrap()])
        .failed(1, &[out.to_str().unwrap(), "Read-only file system"]);
    assert_eq!(lab.server.count(Operation::Get), 0);
    assert!(Command::new("umount").arg(disk.path()).status().unwrap().success());
}

#[test]
fn keys_that_expire_on_the_way_only_interrupt() {
    let lab = Lab::new();
    lab.write("up/large", &body(LARGE));
    lab.ok(&["r2", "upload", "up/large", "probed"]);
    let expired = || HttpFault::Status(400, "ExpiredToken");
    // One part arrives; then nothing is allowed any more, whatever is asked for.
    lab.server.forget_requests();
    lab.server.spell(3..usize::MAX, expired()); // after HEAD, CreateMultipartUpload and a part
    let said = lab.run(&["r2", "upload", "up", "x", "-w", "1"]);
    said.failed(6, &["interrupted after 0 of 1", "ExpiredToken"]);
    lab.server.end_spell();
    assert_eq!((lab.body("x/large"), lab.server.open_uploads()), (None, 1));
    lab.server.forget_requests();
    lab.ok(&["r2", "upload", "up", "x", "-w", "1"]);
    assert_eq!(lab.server.count(Operation::PutPart), 2, "what has arrived is not sent again");
    assert_eq!((lab.body("x/large"), lab.server.open_uploads()), (Some(body(LARGE)), 0));

    lab.server.forget_requests();
    lab.ok(&["r2", "download", "x", "-w", "1", "-o", "once"]);
    let is_get = |request: &Recorded| request.operation == Some(Operation::Get);
    let first_get = lab.server.requests().iter().position(is_get).unwrap();
    lab.server.forget_requests();
    lab.server.spell(first_get + 1..usize::MAX, expired());
    lab.run(&["r2", "download", "x", "-w", "1"]).failed(6, &["interrupted after 0 of 1", "ExpiredToken"]);
    lab.server.end_spell();
    assert!(!lab.home.path("temp/x/large").exists());
    lab.server.forget_requests();
    lab.ok(&["r2", "download", "x", "-w", "1"]);
    assert_eq!(lab.server.count(Operation::Get), 2, "what has arrived is not fetched again");
    assert_eq!(lab.files("temp/x")["large"], body(LARGE));
    // What is refused for itself is refused.
    lab.server.script(Operation::Get, HttpFault::Status(403, "AccessDenied"));
    lab.run(&["r2", "download", "x", "-o", "other"]).failed(5, &["AccessDenied"]);
    assert!(!lab.home.path("other").exists());
}

#[test]
fn a_directory_as_a_remote_is_as_good() {
    let home = Home::new();
    fs::create_dir_all(home.path("up/a")).unwrap();
    fs::write(home.path("up/a/b"), "body").unwrap();
    let remote = home.remote();
    for arguments in [
        ["r2", "upload", "up", "x", "--remote", &remote],
        ["r2", "download", "x", "--remote", &remote, "--quiet"],
        ["r2", "delete", "x/", "--remote", &remote, "--quiet"],
    ] {
        let said = home.run(&arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}", said.err);
    }
    assert_eq!(files(&home.path("temp/x")), files(&home.path("up")));
    assert_eq!(home.run(&["r2", "list", "--remote", &remote]).out, "");
}
