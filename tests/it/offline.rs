//! Days without a network, and what is kept for them: the command `dsfs` over a line that can be cut.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use dsfs::store::fault::Operation;
use serde_json::Value;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::HttpFault;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::line::Line;
use crate::common::line::State;
use crate::common::mount::wait_until;

/// What a person takes for 'at once', on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A user with a server at the other end of a line.
struct User {
    home: Home,
    server: Double,
    line: Line,
}

impl User {
    fn new(objects: &[(&str, &str)]) -> Self {
        let server = Double::start();
        for (path, body) in objects {
            server.put_out_of_band(&format!("datasets/{path}"), body.as_bytes());
        }
        let line = Line::to(&server.endpoint());
        Self { home: Home::new(), server, line }
    }

    /// A dataset that is too large to be known whole before anybody has looked: `large/sub` is listed when
    /// somebody asks for it.
    fn put_large(&self) {
        for number in 0..1000 {
            self.server.put_out_of_band(&format!("datasets/large/sub/{number}"), b"x");
        }
    }

    fn list_large(&self) -> std::io::Result<Option<fs::DirEntry>> {
        fs::read_dir(self.mnt("large/sub")).and_then(|mut dir| dir.next().transpose())
    }

    fn dsfs(&self, arguments: &[&str]) -> Said {
        let endpoint = self.line.endpoint();
        let env = [
            ("R2_ACCESS_KEY_ID", ACCESS_KEY),
            ("R2_SECRET_ACCESS_KEY", SECRET_KEY),
            ("R2_REGION_NAME", "us-east-1"),
            ("R2_BUCKET", BUCKET),
            ("R2_ENDPOINT", &endpoint),
        ];
        self.home.run_with(arguments, &env)
    }

    fn must(&self, arguments: &[&str]) -> Said {
        let said = self.dsfs(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        said
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.must(arguments).out).unwrap()
    }

    fn mnt(&self, path: &str) -> PathBuf {
        self.home.path("mnt").join(path)
    }

    fn offline(&self) -> bool {
        !self.home.status()["mounts"][0]["offline"].is_null()
    }

    /// Names in a directory of the mount.
    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.mnt(dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn a_day_without_a_network() {
    let user = User::new(&[("run/a", "pinned"), ("run/sub/b", "not cached"), ("other/deep/c", "c")]);
    user.put_large();
    user.must(&["mount", "mnt"]);
    assert_eq!(user.names(""), ["large", "other", "run"]);
    assert_eq!(
        (user.names("run"), user.names("run/sub")),
        (vec!["a".into(), "sub".into()], vec!["b".into()])
    );
    user.must(&["pin", "run/a"]);
    fs::write(user.mnt("large/lock"), "").unwrap();
    fs::remove_file(user.mnt("large/lock")).unwrap();
    wait_until("the listings are on disk", || user.json(&["cache", "--json"])["usage"]["catalog_bytes"] != 0);
    user.must(&["umount", "mnt"]);

    user.line.set(State::Down);
    let began = Instant::now();
    let said = user.must(&["mount", "mnt"]);
    assert!(began.elapsed() < AT_ONCE * 2 && said.err.contains("what is known of it"), "{}", said.err);
    assert_eq!(user.names(""), ["large", "other", "run"]);
    assert_eq!(
        (user.names("run"), user.names("run/sub")),
        (vec!["a".into(), "sub".into()], vec!["b".into()])
    );
    for (dir, name) in [("other", "deep"), ("other/deep", "c"), ("large", "sub")] {
        assert_eq!(user.names(dir), [name], "listed by the mount before, though nobody looked");
    }
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"pinned");
    assert_eq!(errno(fs::read(user.mnt("run/sub/b"))), Some(libc::ENETUNREACH));
    assert_eq!(errno(user.list_large()), Some(libc::ENETUNREACH), "never listed is not empty");
    let status = user.home.status();
    let offline = &status["mounts"][0]["offline"];
    assert!(offline["reason"].is_string() && offline["since"].is_string(), "{status}");
    assert!(user.home.run(&["status"]).out.contains("OFFLINE since"));
    fs::write(user.mnt("run/new"), "staged on the way").unwrap();
    fs::create_dir(user.mnt("fresh")).unwrap();
    fs::write(user.mnt("fresh/x"), "x").unwrap();

    user.line.set(State::Up);
    wait_until("the line is used again", || !user.offline());
    user.must(&["commit", "run"]);
    user.must(&["commit", "fresh"]);
    assert_eq!(&*user.server.object("datasets/run/new").unwrap().0, b"staged on the way");
    assert_eq!(fs::read(user.mnt("run/sub/b")).unwrap(), b"not cached");
    assert_eq!(user.names("large/sub").len(), 1000);
}

#[test]
fn a_mount_of_something_never_seen_waits_for_it() {
    let user = User::new(&[("run/a", "a")]);
    user.line.set(State::Down);
    let said = user.must(&["mount", "mnt"]);
    assert!(said.err.contains("nothing is known of it yet") && said.err.contains("hint:"), "{}", said.err);
    assert_eq!(errno(fs::metadata(user.mnt("run"))), Some(libc::ENETUNREACH), "unreachable is not deleted");
    user.line.set(State::Up);
    wait_until("it is there", || user.mnt("run/a").exists());
}

#[test]
fn a_proxy_that_answers_for_its_server_is_no_server() {
    let user = User::new(&[("run/a", "a"), ("run/b", "b")]);
    let proxys = || user.server.spell(0..usize::MAX, HttpFault::Page(404, None));
    proxys();
    user.dsfs(&["mount", "mnt"]).failed(5, &["no answer of an S3 server", "the endpoint comes from"]);
    user.server.end_spell();
    user.must(&["mount", "mnt"]);
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a");
    wait_until("the listings are on disk", || user.json(&["cache", "--json"])["usage"]["catalog_bytes"] != 0);
    proxys();
    assert_eq!(errno(fs::read(user.mnt("run/b"))), Some(libc::ENETUNREACH));
    let reason = user.home.status()["mounts"][0]["offline"]["reason"].to_string();
    assert!(reason.contains("no answer of an S3 server"), "{reason}");
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a", "what is cached stays");
    user.must(&["umount", "mnt"]);
    // It was a server before.
    let said = user.must(&["mount", "mnt"]);
    assert!(said.err.contains("what is known of it"), "{}", said.err);
    assert_eq!(user.names("run"), ["a", "b"]);
    user.server.end_spell();
    wait_until("it is read again", || fs::read(user.mnt("run/b")).is_ok_and(|body| body == b"b"));
}

#[test]
fn keys_that_cannot_be_shown_are_named() {
    let user = User::new(&[("run/a", "a"), ("run/sub//x", "x"), ("run/sub/../y", "y"), ("run/sub/ok", "z")]);
    let said = user.must(&["doctor", "run"]);
    assert!(
        said.out.contains("datasets/run/sub//") && said.out.contains("datasets/run/sub/../"),
        "{}",
        said.out
    );
    assert!(said.err.contains("2 files shown, 2 keys cannot be"), "{}", said.err);
    assert_eq!(user.json(&["doctor", "run", "--json"])["hidden"].as_array().unwrap().len(), 2);
    user.dsfs(&["doctor", "nosuch"]).failed(4, &["nosuch"]);
}

/// A process that reads a file of the mount.
fn reader(user: &User, path: &str) -> Child {
    Command::new("cat").arg(user.mnt(path)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_line_that_swallows_everything_is_noticed_and_nobody_hangs() {
    let user = User::new(&[("run/a", "a"), ("run/b", "b"), ("run/sub/c", "c")]);
    user.put_large();
    user.must(&["mount", "mnt", "--list-ttl", "1s"]);
    assert_eq!(user.names("run"), ["a", "b", "sub"]);
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a");
    user.line.set(State::Black);
    let mut stuck = reader(&user, "run/b");
    std::thread::sleep(Duration::from_millis(300)); // long enough to be stuck, or the test proves less
    let began = Instant::now();
    Command::new("kill").args(["-INT", &stuck.id().to_string()]).status().unwrap();
    stuck.wait().unwrap();
    assert!(began.elapsed() < AT_ONCE);
    assert_eq!(user.home.status()["mounts"].as_array().unwrap().len(), 1, "status answers meanwhile");
    // Who waits on is told when the silence was noticed, and the next one at once.
    assert_eq!(errno(fs::read(user.mnt("run/b"))), Some(libc::ENETUNREACH));
    assert!(user.offline());
    let began = Instant::now();
    assert_eq!(errno(fs::read(user.mnt("run/b"))), Some(libc::ENETUNREACH));
    assert_eq!(errno(user.list_large()), Some(libc::ENETUNREACH));
    assert_eq!(user.names("run"), ["a", "b", "sub"], "what was listed stays");
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a", "what is cached stays");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    user.line.set(State::Up);
    wait_until("it is read again", || fs::read(user.mnt("run/b")).is_ok_and(|body| body == b"b"));
    user.line.set(State::Black);
    let mut stuck = reader(&user, "run/sub/c");
    let began = Instant::now();
    user.must(&["umount", "--lazy", "mnt"]);
    assert!(began.elapsed() < AT_ONCE * 3, "{:?}", began.elapsed());
    stuck.kill().unwrap();
    stuck.wait().unwrap();
}

#[test]
fn a_refresh_shows_what_others_did_and_a_remount_comes_at_once() {
    let user = User::new(&[("run/a", "a"), ("run/gone", "g")]);
    user.must(&["mount", "mnt", "--list-ttl", "1h"]);
    assert_eq!(user.names("run"), ["a", "gone"]);
    assert!(!user.mnt("run/b").exists());
    user.server.put_out_of_band("datasets/run/b", b"b");
    user.server.put_out_of_band("datasets/run/a", b"another");
    assert!(!user.mnt("run/b").exists(), "kept for an hour");
    let refreshed = user.json(&["refresh", "run", "--json"]);
    assert_eq!(refreshed["changed"], serde_json::json!(["run/a", "run/b"]));
    wait_until("the kernel has forgotten", || user.mnt("run/b").exists());
    wait_until("the other version is there", || fs::read(user.mnt("run/a")).unwrap() == b"another");
    assert_eq!(user.json(&["refresh", "run", "--json"])["changed_count"], 0);

    wait_until("the listing is on disk", || user.json(&["cache", "--json"])["usage"]["catalog_bytes"] != 0);
    user.must(&["umount", "mnt"]);
    user.server.put_out_of_band("datasets/run/c", b"c");
    user.must(&["mount", "mnt", "--list-ttl", "1h"]);
    wait_until("what came meanwhile is there", || user.names("run") == ["a", "b", "c", "gone"]);
    assert_eq!(user.dsfs(&["refresh", "--watch=soon"]).code, 2);
    user.must(&["umount", "mnt"]);
    user.dsfs(&["refresh"]).failed(4, &["no mount"]);
}

#[test]
fn what_is_pinned_stays_local_and_follows_its_dataset() {
    let big = "x".repeat(300_000);
    let user = User::new(&[("run/data/a", &big), ("run/data/b", "b"), ("run/note", "n")]);
    user.must(&["mount", "mnt", "--cache-limit", "1MiB", "--list-ttl", "1s"]);
    assert!(user.must(&["pin", "run/data"]).out.contains("2 files"));
    assert!(user.must(&["pin", "run/data"]).out.contains("local already"));
    user.must(&["pin", "run/note"]);
    user.server.put_out_of_band("datasets/large/a", &vec![7; 900_000]);
    user.must(&["refresh"]);
    user.dsfs(&["pin", "large"]).failed(1, &["does not fit", "1 MiB", "pinned already", "hint:"]);
    user.dsfs(&["pin", "nosuch"]).failed(4, &["nosuch"]);
    user.dsfs(&["unpin", "large"]).failed(4, &["run/data", "run/note"]);

    let usage = user.json(&["cache", "--json"]);
    let pins = usage["usage"]["pins"].as_array().unwrap();
    assert_eq!(pins.iter().map(|pin| pin["local_files"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    assert!(user.must(&["cache"]).out.contains("pinned run/data since"));
    assert!(user.must(&["evict", "run"]).err.contains("3 files stayed"));
    user.line.set(State::Down);
    assert_eq!(fs::read_to_string(user.mnt("run/data/a")).unwrap(), big);
    user.line.set(State::Up);
    wait_until("it is online", || !user.offline());

    user.server.put_out_of_band("datasets/run/data/c", b"came later");
    user.must(&["refresh", "run"]);
    wait_until("the new file is local", || {
        user.json(&["cache", "--json"])["usage"]["pins"][0]["local_files"] == 3
    });
    user.must(&["umount", "mnt"]);
    // Pins survive, and commands work without a mount.
    assert!(user.must(&["unpin", "run/data"]).out.contains("not pinned any more"));
    assert_eq!(user.json(&["cache", "--json"])["usage"]["pins"].as_array().unwrap().len(), 1);
    assert!(user.must(&["evict", "run/data"]).out.contains("3 files"));
    assert!(user.must(&["prefetch", "run/data"]).out.contains("fetched 3 files"));
}

#[test]
fn damaged_blocks_are_found_and_the_cache_can_be_cleared() {
    let user = User::new(&[("run/a", &"x".repeat(400_000)), ("run/b", "small")]);
    user.must(&["mount", "mnt"]);
    user.must(&["prefetch", "run"]);
    assert!(user.must(&["cache", "verify"]).out.contains("0 damaged blocks"));
    let blocks = user.home.path(".cache/dsfs/blocks");
    let data = Command::new("find").arg(&blocks).args(["-name", "*.data"]).output().unwrap();
    let data = PathBuf::from(String::from_utf8(data.stdout).unwrap().trim());
    let mut body = fs::read(&data).unwrap();
    body[200_000] ^= 1;
    fs::write(&data, &body).unwrap();
    user.dsfs(&["cache", "verify", "--json"]);
    let said = user.dsfs(&["cache", "verify"]);
    assert_eq!(said.code, 0, "dropped the first time: {}", said.err);
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), vec![b'x'; 400_000]);
    assert!(user.must(&["cache", "clear"]).out.contains("2 files"));
    assert_eq!(user.json(&["cache", "--json"])["usage"]["used_bytes"], 0);
}

#[test]
fn pins_that_are_being_fetched_hold_nobody_up_who_mounts_again() {
    let user = User::new(&[("run/a", "a")]);
    user.must(&["mount", "mnt"]);
    user.must(&["pin", "run"]);
    let log = user.home.status()["mounts"][0]["log"].as_str().unwrap().to_owned();
    user.server.put_out_of_band("datasets/run/later", b"came later");
    user.server.script(Operation::Get, HttpFault::Stall);
    user.must(&["refresh", "run"]);
    wait_until("the new file is being fetched", || {
        user.server
            .requests()
            .iter()
            .any(|request| request.operation == Some(Operation::Get) && request.key.ends_with("run/later"))
    });
    user.must(&["umount", "mnt"]);
    user.must(&["mount", "mnt"]);
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("cut off"), "{log}");
}

impl User {
    /// A mount with `run` staged and its commit under way: a request of it is held, for as long as the test takes.
    fn committing(&self) -> Child {
        self.must(&["mount", "mnt", "--request-timeout", "1h"]);
        fs::create_dir_all(self.mnt("run")).unwrap();
        fs::write(self.mnt("run/new"), "staged").unwrap();
        // So that the commit has nothing to find out first.
        wait_until("the guarantee", || !self.home.status()["mounts"][0]["guarantee"].is_null());
        self.server.forget_requests();
        self.server.script(Operation::Put, HttpFault::Hold);
        let mut commit = self.home.command(&["commit", "run"]);
        let commit = commit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the commit is under way", || self.server.count(Operation::Put) > 0);
        commit
    }
}

#[test]
fn a_commit_under_way_is_not_cut_off_by_an_unmount() {
    let user = User::new(&[]);
    let commit = user.committing();
    user.dsfs(&["umount", "mnt"]).failed(1, &["a commit of run is under way", "Ctrl-C", "--lazy"]);
    let said = user.must(&["umount", "mnt", "--lazy"]);
    assert!(said.err.contains("still in use"), "{}", said.err);
    assert!(!user.mnt("run").exists());
    user.server.let_go();
    let said = Said::of(commit.wait_with_output().unwrap());
    assert_eq!(said.code, 0, "{}", said.err);
    wait_until("the daemon has ended", || user.home.status()["mounts"].as_array().unwrap().is_empty());
    user.must(&["mount", "mnt"]);
}

#[test]
fn a_commit_that_a_signal_has_cut_off_can_be_gone_on_with() {
    let user = User::new(&[]);
    let commit = user.committing();
    let daemon = user.home.status()["mounts"][0]["pid"].to_string();
    assert!(Command::new("kill").arg(daemon).status().unwrap().success());
    Said::of(commit.wait_with_output().unwrap()).failed(6, &["run: cut off", "dsfs commit run", "--abort"]);
    user.must(&["commit", "run"]);
    assert_eq!(&*user.server.object("datasets/run/new").unwrap().0, b"staged");
}
