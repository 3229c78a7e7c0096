//! A dataset's past on the command line: log, show, diff, verify, with a mount and without one.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::home::Home;
use crate::common::home::Said;

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
}

fn commit(home: &Home, flags: &[&str]) {
    let said = home.run(&[&["commit", "run"], flags].concat());
    assert_eq!(said.code, 0, "{}", said.err);
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
