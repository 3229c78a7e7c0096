//! A dataset's past on the command line: log, show, diff, verify, with a mount and without one.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::mount::wait_until;

/// A mounted remote whose dataset `run` has three commits: two files, one of them replaced, the other deleted.
struct History {
    home: Home,
    mnt: PathBuf,
}

impl History {
    fn new() -> Self {
        let home = Home::new();
        let said = home.run(&["mount", "mnt", "--allow-replace", "--remote", &home.remote()]);
        assert_eq!(said.code, 0, "{}", said.err);
        let mnt = home.path("mnt");
        fs::create_dir_all(mnt.join("run/dir")).unwrap();
        fs::write(mnt.join("run/a"), "first").unwrap();
        fs::write(mnt.join("run/dir/b"), "bb").unwrap();
        commit(&home, &["-m", "begin\nand more"]);
        fs::write(mnt.join("run/a"), "second!").unwrap();
        commit(&home, &["--overwrite"]);
        fs::remove_file(mnt.join("run/dir/b")).unwrap();
        fs::write(mnt.join("run/c"), "ccc").unwrap();
        commit(&home, &["--overwrite", "-m", "tidy\u{1b}[2J"]);
        Self { home, mnt }
    }

    /// The same command through the daemon and without one: the same answer.
    fn both_ways(&self, arguments: &[&str]) -> Said {
        let mounted = self.home.run(arguments);
        let other = Home::new(); // nothing of this one's mount is known there
        let remote = self.home.remote();
        let direct = other.run(&[arguments, &["--remote", &remote]].concat());
        assert_eq!(
            (mounted.code, &mounted.out),
            (direct.code, &direct.out),
            "{} {}",
            mounted.err,
            direct.err
        );
        mounted
    }

    /// As [`Self::both_ways`], for answers that tell of each one's own cache.
    fn both_ways_but_cache(&self, arguments: &[&str]) -> Value {
        let without_cache = |mut answer: Value| {
            answer.as_object_mut().unwrap().remove("cache");
            answer
        };
        let mounted = without_cache(json(&self.home.run(arguments)));
        let remote = [("DSFS_REMOTE", &*self.home.remote())];
        assert_eq!(mounted, without_cache(json(&Home::new().run_with(arguments, &remote))));
        mounted
    }
}

fn commit(home: &Home, flags: &[&str]) {
    let said = home.run(&[&["commit", "run"], flags].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    // The kernel is told a moment later that these are other files now.
    for file in ["a", "c"].map(|name| home.path("mnt/run").join(name)) {
        wait_until("the published file", || !file.exists() || is_published(&file));
    }
}

fn is_published(file: &Path) -> bool {
    let mut value = [0; 16];
    let state = rustix::fs::getxattr(file, c"user.dsfs.state", &mut value);
    state.is_ok_and(|len| &value[..len] == b"published")
}

fn json(said: &Said) -> Value {
    assert_eq!(said.code, 0, "{}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn the_log_is_told_newest_first() {
    let history = History::new();
    let log = json(&history.both_ways(&["log", "run", "--json"]));
    let column = |name: &str| log.as_array().unwrap().iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("seq"), [3, 2, 1]);
    assert_eq!(column("new"), [1, 0, 2]);
    assert_eq!(column("replaced"), [0, 1, 0]);
    assert_eq!(column("deleted"), [1, 0, 0]);
    assert_eq!(column("bytes"), [3, 7, 7]);
    assert_eq!(column("message")[2], "begin\nand more");
    assert_eq!(log[0]["txid"].as_str().unwrap().len(), 26);

    let said = history.both_ways(&["log", "run"]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("3  ") && lines[0].contains("1 new, 1 deleted, 3 B"), "{}", lines[0]);
    assert!(lines[0].ends_with("tidy\\u{1b}[2J"), "a message cannot clear the screen: {}", lines[0]);
    assert!(lines[2].ends_with("begin"), "one line a commit: {}", lines[2]);
    assert!(!lines[0].contains(log[0]["txid"].as_str().unwrap()), "the id is cut short");

    let newest = history.both_ways(&["log", "run", "-n", "1"]);
    assert_eq!(newest.out.lines().count(), 1);
    assert!(newest.out.starts_with("3  "), "{}", newest.out);
}

#[test]
fn a_commit_is_shown_file_by_file() {
    let history = History::new();
    let shown = json(&history.both_ways(&["show", "run@2", "--json"]));
    assert_eq!((&shown["seq"], &shown["dataset"]), (&2.into(), &"run".into()));
    let file = &shown["files"][0];
    assert_eq!(
        (&file["path"], &file["change"], &file["size_bytes"]),
        (&"a".into(), &"replaced".into(), &7.into())
    );
    assert!(file["cid"].as_str().unwrap().starts_with("bafkrei"), "{file}");
    let first = json(&history.both_ways(&["show", "run@1", "--json"]));
    assert_eq!(file["replaced_etag"], first["files"][0]["etag"]);
    let newest = history.both_ways(&["show", "run"]);
    assert!(newest.out.starts_with("commit 3 of run\n"), "{}", newest.out);
    let letters: Vec<&str> = newest.out.lines().filter_map(|line| line.split("  ").next()).collect();
    assert!(letters.ends_with(&["A", "D"]), "{}", newest.out);
}

#[test]
fn what_is_not_there_is_told_apart() {
    let history = History::new();
    let home = &history.home;
    for command in ["log", "show"] {
        history.both_ways(&[command, "nowhere"]).failed(4, &["no dataset nowhere", "hint:", "dsfs list"]);
    }
    history.both_ways(&["show", "run@9"]).failed(4, &["no run@9", "newest", "is 3", "dsfs log run"]);
    home.run(&["show", "run@0"]).failed(2, &["run@0", "numbered from 1"]);
    home.run(&["log", "run", "-n", "0"]).failed(2, &["0"]);
    fs::create_dir(history.mnt.join("draft")).unwrap();
    fs::write(history.mnt.join("draft/x"), "x").unwrap();
    home.run(&["log", "draft"]).failed(4, &["staged", "dsfs commit draft"]);
    fs::create_dir(home.path("remote/foreign")).unwrap();
    fs::write(home.path("remote/foreign/x"), "x").unwrap();
    let said = history.both_ways(&["log", "foreign"]);
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    assert!(said.err.contains("has no commits"), "{}", said.err);
    assert_eq!(history.both_ways(&["log", "foreign", "--json"]).out.trim(), "[]");
    history.both_ways(&["show", "foreign"]).failed(4, &["has no commits"]);
}

#[test]
fn a_damaged_log_is_a_failure_and_says_where() {
    let history = History::new();
    let record = history.home.path("remote/.dsfs/log/run/0000000002");
    fs::write(&record, "not a record").unwrap();
    history.both_ways(&["log", "run"]).failed(1, &["log of run", "0000000002"]);
    fs::remove_file(&record).unwrap();
    history.both_ways(&["show", "run@2"]).failed(1, &["damaged", "0000000002", "missing"]);
}

#[test]
fn what_is_staged_is_compared_with_what_is_published() {
    let history = History::new();
    let mnt = &history.mnt;
    fs::write(mnt.join("run/a"), "second!").unwrap(); // again what is published
    fs::write(mnt.join("run/c"), "another").unwrap();
    fs::write(mnt.join("run/new"), "new").unwrap();
    let kinds = |said: &Said| -> Vec<(String, String)> {
        let rows: Value = json(said);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(|row| (text(&row["path"]), text(&row["kind"]))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let expected = pairs(&[("a", "same"), ("c", "changed"), ("new", "new")]);
    assert_eq!(kinds(&history.home.run(&["diff", "run", "--json"])), expected);
    let said = history.home.run(&["diff", "run"]);
    let shown = "=  7 B         a\nM  3 B -> 7 B  c\nA  3 B         new\n";
    assert_eq!((said.code, said.out.as_str()), (0, shown), "{}", said.err);
    assert!(said.err.contains("1 file new, 1 file changed, 1 file with the same content"), "{}", said.err);

    let since = history.both_ways(&["diff", "run@1", "--json"]);
    assert_eq!(kinds(&since), pairs(&[("a", "changed"), ("c", "new"), ("dir/b", "deleted")]));
    let between = history.both_ways(&["diff", "run@1", "run@2", "--json"]);
    assert_eq!(kinds(&between), pairs(&[("a", "changed")]));
    let none = history.both_ways(&["diff", "run@2", "run@2"]);
    assert_eq!((none.code, none.out.as_str()), (0, ""));
    assert!(none.err.contains("no differences"), "{}", none.err);
    history.both_ways(&["diff", "run@1", "run@9"]).failed(4, &["no run@9"]);
    history.both_ways(&["diff", "nowhere"]).failed(4, &["no dataset nowhere"]);

    // The same without the mount, by whoever has the staging area.
    assert_eq!(history.home.run(&["umount", "mnt"]).code, 0);
    let direct = history.home.run(&["diff", "run", "--json", "--remote", &history.home.remote()]);
    assert_eq!(kinds(&direct), expected);
}

#[test]
fn a_damaged_object_and_a_damaged_cache_are_found_and_named() {
    let history = History::new();
    let home = &history.home;
    let content: Vec<u8> = (0..3_000_000).map(|at: u32| (at / 7) as u8).collect();
    fs::write(history.mnt.join("run/large"), &content).unwrap();
    commit(home, &["-m", "large"]);
    fs::write(home.path("remote/run/foreign"), "f").unwrap();
    let right = history.both_ways_but_cache(&["verify", "run", "--remote", "--json"]);
    assert_eq!(right["bad"], Value::Array(vec![]));
    assert_eq!((&right["remote"]["right_files"], &right["remote"]["foreign_files"]), (&3.into(), &1.into()));
    let cached = json(&home.run(&["verify", "run", "--json"]));
    assert_eq!((&cached["remote"], &cached["seq"]), (&Value::Null, &4.into()));
    assert_eq!(cached["cache"]["whole_files"], 3, "what was committed here is cached already: {cached}");

    // One byte of the cache's file, as a disk would lose it: the reader has its pages, verify has not.
    assert_eq!(fs::read(history.mnt.join("run/large")).unwrap(), content);
    let data = find_file(&home.path(".cache/dsfs/blocks"), 3_000_000);
    let mut bytes = fs::read(&data).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&data, &bytes).unwrap();
    let said = home.run(&["verify", "run"]);
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.out.contains("BAD  cache  damaged  large  (1 block did not fit"), "{}", said.out);
    assert!(
        said.err.contains("1 file not as committed") && said.err.contains("fetches it again"),
        "{}",
        said.err
    );
    wait_until("the right bytes", || fs::read(history.mnt.join("run/large")).unwrap() == content);
    assert_eq!(home.run(&["verify", "run"]).code, 0);

    // And one byte of the object: in a directory that is another version too.
    let object = home.path("remote/run/large");
    let mut bytes = content.clone();
    bytes[7] ^= 1;
    fs::write(&object, &bytes).unwrap();
    fs::remove_file(home.path("remote/run/c")).unwrap();
    let said = home.run(&["verify", "run", "--remote"]);
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.out.contains("BAD  remote  missing   c "), "{}", said.out);
    assert!(
        said.out.contains("BAD  remote  replaced  large  (written anew by another tool: the content is b"),
        "{}",
        said.out
    );
    assert!(said.err.contains("2 files not as committed"), "{}", said.err);
    let said = home.run(&["verify", "run", "--remote", "--json"]);
    assert_eq!(said.code, 1);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["bad"][1]["problem"], "replaced");
    home.run(&["verify", "nowhere"]).failed(4, &["no dataset nowhere"]);
    home.run(&["verify", "run@9"]).failed(4, &["no run@9"]);
    let foreign = home.path("remote/foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("x"), "x").unwrap();
    let said = home.run(&["verify", "foreign"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("no commits"), "{}", said.out);
}

/// The only file of this size below a directory.
fn find_file(dir: &Path, size_bytes: u64) -> PathBuf {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.len() == size_bytes {
                found.push(entry.path());
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}
