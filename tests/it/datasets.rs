//! `dsfs dataset` and `dsfs url`: whole datasets without a mount.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use dsfs::store::fault::Operation;
use serde_json::Value;

use crate::common::double::HttpFault;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::mount::wait_until;
use crate::transfers::Lab;
use crate::transfers::body;

const LARGE: usize = 20 << 20;

/// The objects of datasets, without dsfs's own state.
fn published(lab: &Lab) -> Vec<String> {
    lab.server.keys().into_iter().filter(|key| !key.starts_with(".dsfs/")).collect()
}

/// A dataset with a large file, and what it is made of.
fn recorded(lab: &Lab, name: &str) {
    lab.write(&format!("temp/{name}/data.jsonl"), b"{}\n");
    lab.write(&format!("temp/{name}/frames/0.bin"), &body(LARGE));
    lab.write(&format!("temp/{name}/frames/1.bin"), b"1");
}

#[test]
fn a_dataset_goes_up_as_a_commit_and_comes_down_checked() {
    let lab = Lab::new();
    recorded(&lab, "run");
    fs::create_dir(lab.home.path("temp/run/empty")).unwrap();
    let said = lab.ok(&["dataset", "upload", "run", "-m", "first", "--json"]);
    let outcome: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&outcome["seq"], &outcome["files"]), (&1.into(), &3.into()));
    let bytes = LARGE + 4;
    assert!(said.err.contains(&format!("Uploading: {bytes}/{bytes} bytes (100%)\n")), "{:?}", said.err);
    let keys = published(&lab);
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(keys.contains(&"datasets/run/empty/".to_owned()), "{keys:?}");
    assert!(lab.server.keys().contains(&".dsfs/datasets/log/run/0000000001".to_owned()));
    assert!(!lab.server.keys().iter().any(|key| key.contains("/intents/")));

    let said = lab.ok(&["dataset", "--root", "down", "download", "run", "--json"]);
    let outcome: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(outcome["checked_by_content"], 3);
    assert_eq!(lab.files("down/run"), lab.files("temp/run"));
    assert!(lab.home.path("down/run/empty").is_dir());
    assert!(!said.err.contains("warning"), "{}", said.err);
}

#[test]
fn what_the_block_cache_has_is_copied_from_there() {
    let lab = Lab::new();
    recorded(&lab, "run");
    lab.ok(&["dataset", "upload", "run"]);
    lab.ok(&["prefetch", "run"]);
    let download = |root: &str| -> (Value, usize) {
        lab.server.forget_requests();
        let said = lab.ok(&["dataset", "--root", root, "download", "run", "--json"]);
        assert_eq!(lab.files(&format!("{root}/run")), lab.files("temp/run"));
        let of_files =
            lab.server.requests().into_iter().filter(|request| request.key.starts_with("datasets/run/"));
        (
            serde_json::from_str(&said.out).unwrap(),
            of_files.filter(|request| request.operation == Some(Operation::Get)).count(),
        )
    };
    let (outcome, gets) = download("down");
    assert_eq!((&outcome["from_cache"], &outcome["checked_by_content"]), (&3.into(), &3.into()));
    assert_eq!(gets, 0);
    let time = |name: &str| fs::metadata(lab.home.path(name)).unwrap().modified().unwrap();
    assert_eq!(time("down/run/frames/0.bin"), time("temp/run/frames/0.bin"));

    // How large the cache may be is the mounts' business.
    let blocks = lab.files(".cache/dsfs/blocks").len();
    let mut command = lab.command(&["dataset", "--root", "small-cache", "download", "run", "--json"]);
    let said = Said::of(command.env("DSFS_CACHE_LIMIT", "1MiB").output().unwrap());
    let outcome: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&outcome["from_cache"], lab.files(".cache/dsfs/blocks").len()), (&3.into(), blocks));

    // A byte of the large file is flipped: it is fetched, and the others still come from the cache.
    let cached = lab.files(".cache/dsfs/blocks");
    let (name, mut bytes) = cached.into_iter().find(|(name, _)| name.ends_with(".data")).unwrap();
    bytes[LARGE / 2] ^= 1;
    fs::write(lab.home.path(".cache/dsfs/blocks").join(name), bytes).unwrap();
    let (outcome, gets) = download("again");
    assert_eq!((&outcome["from_cache"], &outcome["checked_by_content"]), (&2.into(), &3.into()));
    assert!(gets > 0);
}

#[test]
fn lists_are_local_unless_the_remote_is_asked_for() {
    let lab = Lab::new();
    assert_eq!(lab.ok(&["dataset", "list"]).out, "", "no directory is no error");
    lab.write("temp/here/data.jsonl", b"");
    lab.write("temp/not-yet/other", b"");
    lab.server.put_out_of_band("datasets/there/x", b"");
    lab.server.put_out_of_band("elsewhere/there2/x", b"");
    let list = |arguments: &[&str]| lab.ok(&[&["dataset", "list"], arguments].concat()).out;
    assert_eq!(list(&[]), "here\n");
    assert_eq!(list(&["--local"]), "here\n");
    assert_eq!(list(&["--remote"]), "there\n", "also without a data.jsonl");
    assert_eq!(list(&["--remote", "--local"]), "here\nthere\n");
    assert_eq!(list(&["--remote", "--local-only"]), "here\n");
    assert_eq!(list(&["--remote", "--remote-prefix", "elsewhere"]), "there2\n", "the '/' is added");
    let json: Value = serde_json::from_str(&list(&["--remote", "--local", "--json"])).unwrap();
    assert_eq!(json[1]["name"], "there");
    assert_eq!((&json[1]["remote"], &json[1]["local"]), (&true.into(), &false.into()));
    let before = lab.ok(&["dataset", "-w", "3", "--root", "temp", "list"]);
    assert_eq!(before.out, "here\n", "flags can stand before the subcommand");
}

#[test]
fn nothing_is_overwritten_and_all_of_it_is_named() {
    let lab = Lab::new();
    lab.write("temp/run/data.jsonl", b"mine");
    lab.write("temp/run/a", b"mine");
    lab.server.put_out_of_band("datasets/run/a", b"mine");
    lab.server.put_out_of_band("datasets/run/data.jsonl", b"theirs");
    let said = lab.run(&["dataset", "upload", "run"]);
    said.failed(3, &["data.jsonl is published already", "a is published already", "nothing was changed"]);
    assert_eq!(published(&lab).len(), 2);
    assert!(!lab.server.keys().iter().any(|key| key.contains("/log/")));

    lab.server.put_out_of_band("datasets/run/extra", b"stays");
    lab.ok(&["dataset", "upload", "run", "--overwrite"]);
    assert_eq!(lab.body("datasets/run/data.jsonl").unwrap(), b"mine");
    assert_eq!(lab.body("datasets/run/extra").unwrap(), b"stays");
    lab.run(&["dataset", "download", "run"]).failed(3, &["temp/run/a", "temp/run/data.jsonl"]);
    lab.ok(&["dataset", "download", "run", "--overwrite"]);
    assert_eq!(lab.files("temp/run").len(), 3);
}

#[test]
fn an_incomplete_dataset_is_warned_about() {
    let lab = Lab::new();
    lab.write("temp/run/a", b"1");
    symlink("a", lab.home.path("temp/run/link")).unwrap();
    symlink(".", lab.home.path("temp/run/loop")).unwrap();
    let said = lab.ok(&["dataset", "upload", "run"]);
    assert!(said.err.contains("no data.jsonl"), "{}", said.err);
    assert!(said.err.contains("left out: loop"), "{}", said.err);
    assert_eq!(published(&lab), ["datasets/run/a", "datasets/run/link"]);
    let said = lab.ok(&["dataset", "download", "run", "--root", "down"]);
    assert!(said.err.contains("no data.jsonl"), "{}", said.err);
    lab.run(&["dataset", "download", "nothing", "--root", "other"]).failed(4, &["nothing", "hint:"]);
    assert!(!lab.home.path("other").exists());
    lab.run(&["dataset", "upload", "nothing"]).failed(4, &["temp/nothing"]);
}

#[test]
fn names_are_one_component() {
    let lab = Lab::new();
    for name in ["a/b", "..", ".", "", ".hidden"] {
        for command in ["upload", "download", "delete"] {
            let said = lab.run(&["dataset", command, name]);
            assert_eq!(said.code, 2, "{command} {name:?}: {}", said.err);
        }
    }
}

#[test]
fn deleting_needs_a_yes_and_is_recorded() {
    let lab = Lab::new();
    lab.write("temp/run/data.jsonl", b"");
    lab.write("temp/run/a/b", b"1");
    fs::create_dir(lab.home.path("temp/run/empty")).unwrap();
    lab.ok(&["dataset", "upload", "run"]);
    lab.server.put_out_of_band("datasets/run/foreign", b"");
    lab.server.put_out_of_band("datasets/run2/data.jsonl", b"");
    lab.run(&["dataset", "delete", "run"]).failed(2, &["--yes"]);
    assert_eq!(published(&lab).len(), 5);

    let said = lab.ok(&["dataset", "delete", "run", "--yes"]);
    assert!(said.out.contains("3 files"), "{}", said.out);
    assert_eq!(published(&lab), ["datasets/run2/data.jsonl"]);
    assert!(lab.server.keys().contains(&".dsfs/datasets/log/run/0000000002".to_owned()));
    assert!(lab.home.path("temp/run").is_dir(), "the local one is another matter");
    lab.run(&["dataset", "delete", "run", "-y"]).failed(4, &["run"]);
    lab.ok(&["dataset", "upload", "run"]);
    lab.ok(&["dataset", "delete", "run", "-y", "--local"]);
    assert!(!lab.home.path("temp/run").exists());
    assert_eq!(published(&lab).len(), 1);
}

#[test]
fn what_is_replaced_while_a_dataset_is_deleted_is_named() {
    let lab_with_an_empty_directory = || {
        let lab = Lab::new();
        probed(&lab);
        lab.write("temp/run/data.jsonl", b"");
        fs::create_dir(lab.home.path("temp/run/empty")).unwrap();
        lab.ok(&["dataset", "upload", "run"]);
        lab.server.forget_requests();
        lab
    };
    let dry = lab_with_an_empty_directory();
    dry.ok(&["dataset", "delete", "run", "--yes"]);
    let mut requests = dry.server.requests();
    requests.retain(|request| request.operation == Some(Operation::Delete));
    let before = requests.iter().position(|request| request.key == "datasets/run/empty/").unwrap();

    for (fault, says) in [
        (HttpFault::Status(412, "PreconditionFailed"), "datasets/run/empty/"),
        (HttpFault::Status(403, "AccessDenied"), "not everything was deleted"),
    ] {
        let lab = lab_with_an_empty_directory();
        for _ in 0..before {
            lab.server.script(Operation::Delete, HttpFault::DropHeader("x-nothing"));
        }
        lab.server.script(Operation::Delete, fault);
        let said = lab.run(&["dataset", "delete", "run", "--yes"]);
        said.failed(6, &[says, "1 other object deleted", "the same command"]);
        assert_eq!(published(&lab), ["datasets/run/empty/"]);
        lab.ok(&["dataset", "delete", "run", "--yes"]);
        assert!(published(&lab).is_empty());
    }
}

/// Starts a command, and waits until the server has seen so many requests of a kind.
fn started(lab: &Lab, arguments: &[&str], operation: Operation, count: usize) -> std::process::Child {
    let mut command = lab.command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the transfer is under way", || lab.server.count(operation) >= count);
    child
}

/// After it, what the server guarantees is known.
fn probed(lab: &Lab) {
    lab.write("temp/probe/data.jsonl", b"");
    lab.ok(&["dataset", "upload", "probe"]);
    lab.ok(&["dataset", "delete", "probe", "--yes", "--local"]);
    lab.server.forget_requests();
}

#[test]
fn after_kill_9_the_same_upload_goes_on() {
    let lab = Lab::new();
    probed(&lab);
    recorded(&lab, "run");
    let arrives = || HttpFault::DropHeader("x-nothing");
    for fault in [arrives(), arrives(), HttpFault::Stall] {
        lab.server.script(Operation::PutPart, fault);
    }
    let mut child = started(&lab, &["dataset", "upload", "run"], Operation::PutPart, 3);
    let journal = || {
        let state = crate::transfers::files(&lab.home.path(".local/state/dsfs"));
        state.into_iter().find(|(name, _)| name.ends_with("/journal")).map(|(_, text)| text)
    };
    wait_until("two parts are noted", || {
        journal().is_some_and(|text| String::from_utf8_lossy(&text).matches("\"note\":\"part\"").count() == 2)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(published(&lab).is_empty(), "nothing can be seen");
    lab.server.forget_requests();
    lab.ok(&["dataset", "upload", "run"]);
    assert_eq!(lab.server.count(Operation::PutPart), 1, "only the part that was missing");
    assert_eq!(published(&lab).len(), 3);
    assert_eq!(lab.body("datasets/run/frames/0.bin").unwrap(), body(LARGE));
    assert_eq!(lab.server.open_uploads(), 0);
}

#[test]
fn a_directory_that_changed_since_is_uploaded_anew() {
    let lab = Lab::new();
    probed(&lab);
    recorded(&lab, "run");
    lab.server.script(Operation::PutPart, HttpFault::Stall);
    let mut child = started(&lab, &["dataset", "upload", "run"], Operation::PutPart, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    lab.write("temp/run/frames/0.bin", b"another recording");
    lab.write("temp/run/frames/2.bin", b"2");
    lab.ok(&["dataset", "upload", "run"]);
    assert_eq!(lab.body("datasets/run/frames/0.bin").unwrap(), b"another recording");
    assert_eq!(published(&lab).len(), 4);
    assert_eq!(lab.server.open_uploads(), 0, "what was begun is given up");
}

#[test]
fn ctrl_c_takes_an_upload_back() {
    let lab = Lab::new();
    probed(&lab);
    recorded(&lab, "run");
    lab.server.script(Operation::PutPart, HttpFault::Stall);
    let child = started(&lab, &["dataset", "upload", "run"], Operation::PutPart, 3);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    Said::of(child.wait_with_output().unwrap()).failed(130, &["cancelled; nothing was changed"]);
    assert!(published(&lab).is_empty());
    assert_eq!(lab.server.open_uploads(), 0);
    assert!(!lab.server.keys().iter().any(|key| key.contains("/intents/")));
    lab.ok(&["dataset", "upload", "run"]);
}

#[test]
fn what_could_not_be_made_local_fails_as_json_too() {
    let lab = Lab::new();
    lab.server.put_out_of_band("datasets/run/data.jsonl", b"{}\n");
    for command in ["prefetch", "pin"] {
        lab.server.script(Operation::Get, HttpFault::Status(404, "NoSuchKey"));
        let said = lab.run(&[command, "run", "--json"]);
        assert_eq!(said.code, 6, "{command}: {} {}", said.out, said.err);
        assert!(said.err.contains("1 file of run could not be kept"), "{command}: {}", said.err);
        let outcome: Value = serde_json::from_str(&said.out).unwrap();
        assert!(said.out.contains("data.jsonl"), "{outcome}");
    }
    lab.ok(&["pin", "run", "--json"]);
}

#[test]
fn ctrl_c_leaves_a_commit_to_be_gone_on_with_or_undone() {
    let lab = Lab::new();
    probed(&lab);
    let said = lab.run(&["mount", "mnt"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let stage = |name: &str| {
        fs::create_dir(lab.home.path("mnt").join(name)).unwrap();
        lab.write(&format!("mnt/{name}/large"), &body(LARGE));
    };
    let interrupted = |name: &str| {
        lab.server.forget_requests();
        lab.server.script(Operation::PutPart, HttpFault::Stall);
        let child = started(&lab, &["commit", name], Operation::PutPart, 3);
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let hint =
            format!("hint: `dsfs commit {name}` goes on with it, `dsfs commit {name} --abort` undoes it");
        Said::of(child.wait_with_output().unwrap()).failed(130, &["interrupted", &hint]);
        assert!(!published(&lab).contains(&format!("datasets/{name}/large")));
    };
    for name in ["resumed", "undone", "directly"] {
        stage(name);
    }
    interrupted("resumed");
    lab.ok(&["commit", "resumed"]);
    assert_eq!(lab.body("datasets/resumed/large").unwrap(), body(LARGE));
    interrupted("undone");
    lab.ok(&["commit", "undone", "--abort"]);
    assert_eq!(lab.server.open_uploads(), 0);

    assert_eq!(lab.run(&["umount", "mnt"]).code, 0);
    interrupted("directly");
    lab.ok(&["commit", "directly"]);
    assert_eq!(lab.body("datasets/directly/large").unwrap(), body(LARGE));
}

#[test]
fn half_a_commit_is_not_downloaded() {
    let lab = Lab::new();
    probed(&lab);
    recorded(&lab, "run");
    lab.ok(&["dataset", "upload", "run"]);
    lab.write("temp/second/run/late-1", b"1");
    lab.write("temp/second/run/late-2", b"2");
    // One of both objects arrives; the other one never does.
    lab.server.forget_requests();
    for fault in [HttpFault::DropHeader("x-nothing"), HttpFault::DropHeader("x-nothing"), HttpFault::Stall] {
        lab.server.script(Operation::Put, fault); // the intent, one file
    }
    let mut child = started(&lab, &["dataset", "upload", "run", "--root", "temp/second"], Operation::Put, 3);
    wait_until("one is there", || published(&lab).iter().any(|key| key.contains("late-")));
    child.kill().unwrap();
    child.wait().unwrap();
    lab.ok(&["dataset", "download", "run", "--root", "down"]);
    assert_eq!(lab.files("down/run"), lab.files("temp/run"), "the second commit is not there yet");
    lab.ok(&["dataset", "upload", "run", "--root", "temp/second"]);
    lab.ok(&["dataset", "download", "run", "--root", "later"]);
    assert_eq!(lab.files("later/run").len(), 5);
}

#[test]
fn a_dataset_without_a_log_is_downloaded_as_it_is_listed() {
    let lab = Lab::new();
    lab.server.put_out_of_band("datasets/raw/data.jsonl", b"{}");
    lab.server.put_out_of_band("datasets/raw/large", &body(LARGE));
    lab.server.switches().slow_down_every.store(5, Ordering::SeqCst);
    let said = lab.ok(&["dataset", "download", "raw", "--json"]);
    let outcome: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&outcome["files"], &outcome["checked_by_content"]), (&2.into(), &0.into()));
    assert_eq!(lab.files("temp/raw")["large"], body(LARGE));
}

/// Asks for a URL without any library of ours.
fn fetch(url: &str, arguments: &[&str]) -> (u16, Vec<u8>) {
    let output = Command::new("curl")
        .args(["-s", "-o", "-", "-w", "\n%{http_code}"])
        .args(arguments)
        .arg(url)
        .output()
        .expect("curl is installed");
    let at = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
    let status = String::from_utf8_lossy(&output.stdout[at + 1..]).parse().unwrap();
    (status, output.stdout[..at].to_vec())
}

#[test]
fn urls_work_for_whoever_has_them() {
    let lab = Lab::new();
    lab.server.put_out_of_band("datasets/run/data.jsonl", b"{}");
    lab.server.put_out_of_band("datasets/run/a b/ü", b"strange");
    let said = lab.ok(&["url", "run/data.jsonl", "--expires", "5min"]);
    assert_eq!(fetch(said.out.trim_end(), &[]), (200, b"{}".to_vec()));
    let said = lab.ok(&["url", "run", "--json"]);
    let rows: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        (&rows[0]["key"], &rows[0]["expires_in_seconds"]),
        (&"datasets/run/a b/ü".into(), &3600.into())
    );
    assert_eq!(fetch(rows[0]["url"].as_str().unwrap(), &[]).1, b"strange");

    let url = lab.ok(&["url", "run/new", "--put"]).out;
    let put = |body: &str| fetch(url.trim_end(), &["-X", "PUT", "-H", "If-None-Match: *", "-d", body]).0;
    assert_eq!(put("first"), 200);
    assert_eq!(lab.body("datasets/run/new").unwrap(), b"first");
    assert_eq!(put("second"), 412, "it cannot overwrite");
    assert_eq!(fetch(url.trim_end(), &["-X", "PUT", "-d", "third"]).0, 403, "nor without the header");
    assert_eq!(lab.body("datasets/run/new").unwrap(), b"first");

    lab.run(&["url", "run/missing"]).failed(4, &["run/missing"]);
    lab.run(&["url", "nothing"]).failed(4, &["nothing"]);
    lab.run(&["url", "run", "--put"]).failed(2, &["single file"]);
    lab.run(&["url", "run/x", "--expires", "8d"]).failed(2, &["a week"]);
    let remote = lab.home.remote();
    lab.run(&["url", "run/x", "--remote", &remote]).failed(2, &["is a directory"]);
}

#[test]
fn mounts_of_this_user_show_the_change_at_once() {
    let home = Home::new();
    let mount = home.mount();
    fs::create_dir_all(home.path("temp/run")).unwrap();
    fs::write(home.path("temp/run/data.jsonl"), "{}\n").unwrap();
    assert!(fs::read_dir(&mount).unwrap().next().is_none());
    assert!(!mount.join("run").exists());
    let remote = home.remote();
    let up = home.run(&["dataset", "upload", "run", "--remote", &remote]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert_eq!(fs::read(mount.join("run/data.jsonl")).unwrap(), b"{}\n");
    let gone = home.run(&["dataset", "delete", "run", "--yes", "--remote", &remote]);
    assert_eq!(gone.code, 0, "{}", gone.err);
    assert!(!mount.join("run").exists());
    assert!(fs::read_dir(&mount).unwrap().next().is_none());
    let used = home.run(&["cache", "--json"]);
    let used: Value = serde_json::from_str(&used.out).unwrap();
    assert_eq!(used["usage"]["datasets"].as_array().map(Vec::len), Some(0), "{used}");
}
