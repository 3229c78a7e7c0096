//! The command `dsfs` itself: what it says to bad input, and what a mount by it promises.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::SystemTime;

use dsfs::name::DatasetName;
use dsfs::name::RelPath;
use dsfs::record::Author;
use dsfs::record::Intent;
use serde_json::Value;

use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::home::program;
use crate::common::mount::wait_until;
use crate::transfers::Lab;

#[test]
fn nothing_configured_is_one_sentence_and_a_hint() {
    let home = Home::new();
    home.run(&["mount", "mnt"]).failed(2, &["neither an endpoint nor a bucket", "hint:", "dsfs demo"]);
    home.run(&["list"]).failed(2, &["neither an endpoint nor a bucket"]);
    assert!(!home.path("mnt").exists());
}

#[test]
fn bad_flags_are_usage_errors_that_name_them() {
    let home = Home::new();
    home.run(&["explode"]).failed(2, &["explode"]);
    home.run(&["list", "--remote", "ftp://x"]).failed(2, &["--remote", "ftp://x"]);
    home.run(&["list", "--remote", "s3://lab/x/", "-b", "lab"]).failed(2, &["--remote", "--bucket"]);
    home.run(&["list", "-e", "nonsense"]).failed(2, &["--endpoint", "nonsense"]);
    home.run(&["mount", "mnt", "--remote", &home.remote(), "--cache-limit", "lots"])
        .failed(2, &["--cache-limit", "lots"]);
    home.run(&["commit", "../up", "--remote", &home.remote()]).failed(2, &["../up"]);
    home.run(&["discard", "run", "/etc/passwd", "--yes"]).failed(2, &["/etc/passwd"]);
}

#[test]
fn a_bad_configuration_file_is_told_with_its_line() {
    let home = Home::new();
    let config = home.path(".config/dsfs/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, "bucket = 'lab'\nbukcet = 'lab'\n").unwrap();
    home.run(&["config"]).failed(2, &["config.toml:2", "bukcet"]);
    fs::write(&config, "access-key-id = 'k'\nsecret-access-key = 'hush-hush'\n").unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    home.run(&["config"]).failed(2, &["0644", "chmod 600"]);
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let said = home.run(&["config"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("access-key-id") && !said.out.contains("hush"), "{}", said.out);
    home.run(&["config", "--profile", "lab"]).failed(2, &["no profile \"lab\""]);
    home.run(&["config", "--config", "nowhere.toml"]).failed(2, &["nowhere.toml"]);
}

#[test]
fn the_environment_counts_and_is_named() {
    let home = Home::new();
    let env = [
        ("R2_ENDPOINT", "http://h:1"),
        ("R2_BUCKET", "lab"),
        ("R2_ACCESS_KEY_ID", "k"),
        ("R2_SECRET_ACCESS_KEY", "hush"),
    ];
    let said = home.run_with(&["config", "--json"], &env);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(!said.out.contains("hush"));
    let rows: Value = serde_json::from_str(&said.out).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["setting"] == "bucket").unwrap();
    assert_eq!((&row["value"], &row["origin"]), (&"lab".into(), &"environment R2_BUCKET".into()));
    home.run_with(&["list"], &env[..3]).failed(2, &["R2_ACCESS_KEY_ID"]);
}

#[test]
fn a_server_that_is_not_there_is_told_soon() {
    let home = Home::new();
    let env = [("R2_ACCESS_KEY_ID", "k"), ("R2_SECRET_ACCESS_KEY", "s")];
    let arguments = ["mount", "mnt", "-b", "lab", "-e", "http://127.0.0.1:1"];
    let said = home.run_with(&arguments, &env);
    assert_eq!(said.code, 0, "a laptop may be mounted on the train: {}", said.err);
    for word in ["http://127.0.0.1:1", "nothing is known of it yet", "hint:", "--endpoint"] {
        assert!(said.err.contains(word), "{word:?} is not in: {}", said.err);
    }
    home.run(&["umount", "mnt"]);
    home.run(&["mount", "mnt", "--remote", "file:///no/such/dir"]).failed(5, &["/no/such/dir", "hint:"]);
}

#[test]
fn mount_points_that_cannot_be_are_refused() {
    let home = Home::new();
    let remote = home.remote();
    let mount = |at: &str| home.run(&["mount", at, "--remote", &remote]);
    mount("a/b/c").failed(4, &["a/b does not exist", "mkdir -p"]);
    fs::write(home.path("file"), "x").unwrap();
    mount("file").failed(2, &["not a directory"]);
    mount("remote/..").failed(2, &["not empty", "--nonempty"]);
}

#[test]
fn data_goes_to_stdout_and_a_closed_pipe_is_no_error() {
    let home = Home::new();
    for name in 0..2000 {
        let dir = home.path(&format!("remote/dataset-with-a-long-name-{name:06}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("data.jsonl"), "{}\n").unwrap();
    }
    let mut child = home
        .command(&["list", "--json", "--remote", &home.remote()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take()); // nobody reads
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

#[test]
fn log_lines_that_nobody_reads_are_no_error() {
    let home = Home::new();
    fs::create_dir(home.path("remote/run")).unwrap();
    fs::write(home.path("remote/run/data.jsonl"), "{}\n").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader); // as after `2>&1 | head -1`
    let listing = home.command(&["-vv", "list", "--remote", &home.remote()]).stderr(writer).output().unwrap();
    let said = Said::of(listing);
    assert_eq!(said.code, 0);
    assert!(said.out.contains("run"), "{}", said.out);
}

#[test]
fn completions_manual_and_help_are_there() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).out.contains("commit"), "{shell}");
    }
    assert!(home.run(&["man"]).out.starts_with(".ie"));
    assert!(home.run(&["man", "commit"]).out.contains("overwrite"));
    home.run(&["man", "explode"]).failed(4, &["explode"]);
    let help = home.run(&["mount", "--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Examples:"));
}

#[test]
fn a_mount_is_there_when_the_command_returns_and_gone_after_umount() {
    let home = Home::new();
    fs::create_dir(home.path("remote/run")).unwrap();
    fs::write(home.path("remote/run/data.jsonl"), "{}\n").unwrap();
    let mnt = home.mount();
    assert_eq!(fs::read_to_string(mnt.join("run/data.jsonl")).unwrap(), "{}\n");
    home.run(&["mount", "mnt", "--remote", &home.remote()]).failed(1, &["mounted already", "hint:"]);
    home.run(&["mount", "other", "--remote", &home.remote()])
        .failed(1, &["mounted already", "mnt", "process"]);
    assert!(!home.path("other").exists());
    let said = home.run(&["umount", "mnt"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    home.run(&["umount", "mnt"]).failed(4, &["no dsfs mount"]);
}

#[test]
fn what_is_staged_is_committed_with_a_mount_and_without_one() {
    let home = Home::new();
    let mnt = home.mount();
    for name in ["one", "two"] {
        fs::create_dir(mnt.join(name)).unwrap();
        fs::write(mnt.join(name).join("data.jsonl"), name).unwrap();
    }
    let status = home.status();
    assert_eq!(status["mounts"][0]["staged"].as_array().unwrap().len(), 2);
    let said = home.run(&["commit", "one", "--json"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["files"], 1);
    assert_eq!(fs::read(home.path("remote/one/data.jsonl")).unwrap(), b"one");
    home.run(&["commit", "one"]).failed(4, &["nothing is staged"]);
    home.run(&["discard", "two"]).failed(2, &["--yes"]);
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);

    let unmounted = home.status();
    assert_eq!(unmounted["unmounted"][0]["staged"][0]["name"], "two");
    let dry = home.run(&["commit", "two", "--dry-run", "--remote", &home.remote()]);
    assert_eq!((dry.code, dry.out.as_str()), (0, "data.jsonl\n"), "{}", dry.err);
    assert!(!home.path("remote/two").exists());
    let said = home.run(&["commit", "two", "--remote", &home.remote()]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::read(home.path("remote/two/data.jsonl")).unwrap(), b"two");
}

/// Runs `dsfs discard` on a terminal of its own, where this is typed. What is seen there, and the exit code.
fn discard_on_a_terminal(home: &Home, arguments: &str, typed: &str) -> (String, i32) {
    let dsfs = home.command(&[]);
    let line = format!("{} discard {arguments}", dsfs.get_program().to_str().unwrap());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]).env_clear();
    script.envs(dsfs.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.current_dir(home.path("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = script.spawn().unwrap();
    running.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

#[test]
fn discard_asks_on_a_terminal_and_takes_yes_for_an_answer() {
    let home = Home::new();
    let mnt = home.mount();
    let stage = |name: &str| {
        fs::create_dir(mnt.join(name)).unwrap();
        fs::write(mnt.join(name).join("a"), "1").unwrap();
        fs::write(mnt.join(name).join("b"), "22").unwrap();
    };
    let refused = |arguments: &str| {
        for typed in ["n\n", "\n", "no\n", "yesterday\n", ""] {
            let (seen, code) = discard_on_a_terminal(&home, arguments, typed);
            let question = "discard 2 staged files of run (3 B)? They exist nowhere else. [y/N]";
            assert!(seen.contains(question), "{typed:?}: {seen}");
            assert!(seen.contains("nothing was discarded"), "{typed:?}: {seen}");
            assert_eq!(code, 1, "{typed:?}: {seen}");
        }
    };
    stage("run");
    refused("run");
    assert_eq!(fs::read_dir(mnt.join("run")).unwrap().count(), 2);
    let (seen, code) = discard_on_a_terminal(&home, "run", "y\n");
    assert!(code == 0 && seen.contains("discarded 2 staged files of run (3 B)"), "{seen}");
    assert!(!mnt.join("run").exists());
    stage("run");
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);
    let directly = format!("run --remote {}", home.remote());
    refused(&directly);
    assert_eq!(home.status()["unmounted"][0]["staged"][0]["files"], 2);
    let (seen, code) = discard_on_a_terminal(&home, &directly, "yes\n");
    assert!(code == 0 && seen.contains("discarded 2 staged files of run (3 B)"), "{seen}");
    assert!(home.status()["unmounted"].as_array().is_none_or(Vec::is_empty), "{}", home.status());
}

#[test]
fn gc_works_without_a_mount_and_leaves_recent_commits_alone() {
    let home = Home::new();
    fs::create_dir_all(home.path("remote")).unwrap();
    let said = home.run(&["gc", "--remote", &home.remote()]);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
    let said = home.run(&["gc", "run", "--json", "--dry-run", "--remote", &home.remote()]);
    assert_eq!((said.code, said.out.trim()), (0, "[]"), "{}", said.err);
    home.run(&["gc", "--older-than", "soon", "--remote", &home.remote()]).failed(2, &["--older-than"]);
}

#[test]
fn gc_goes_on_with_the_other_datasets_where_one_fails() {
    let home = Home::new();
    for dataset in ["bad", "good", "worse"] {
        let name = DatasetName::parse(dataset).unwrap();
        let state = |kind: &str| home.path(&format!("remote/.dsfs/{kind}/{dataset}"));
        fs::create_dir_all(state("intents")).unwrap();
        let intent = Intent {
            dataset: name,
            txid: "01KAAAAAAAAAAAAAAAAAAAAAAA".into(),
            author: Author { user: "ann".into(), host: "lab".into() },
            time: SystemTime::UNIX_EPOCH,
            creates: vec![RelPath::parse("a").unwrap()],
            markers: Vec::new(),
            replaces: Vec::new(),
            deletes: Vec::new(),
            deleting: None,
        };
        fs::write(state("intents").join(&intent.txid), intent.encode().unwrap()).unwrap();
        if dataset != "good" {
            fs::create_dir_all(state("log")).unwrap();
            fs::write(state("log").join("0000000001"), "not a record").unwrap();
        }
    }
    let said = home.run(&["gc", "--remote", &home.remote()]);
    assert!(said.out.contains("good: commit 01KAAAAAAAAAAAAAAAAAAAAAAA may be under way"), "{}", said.out);
    assert_eq!(said.code, 1, "{}", said.err);
    for failed in ["bad: .dsfs/log/bad/0000000001", "worse: .dsfs/log/worse/0000000001"] {
        assert!(said.err.contains(failed), "{}", said.err);
    }
}

#[test]
fn a_conflict_has_its_own_exit_code_and_changes_nothing() {
    let home = Home::new();
    let mnt = home.mount();
    fs::create_dir(mnt.join("run")).unwrap();
    fs::write(mnt.join("run/a"), "ours").unwrap();
    fs::write(mnt.join("run/b"), "ours").unwrap();
    fs::create_dir(home.path("remote/run")).unwrap();
    fs::write(home.path("remote/run/a"), "theirs").unwrap();
    home.run(&["commit", "run"]).failed(3, &["a ", "nothing was changed", "hint:"]);
    assert_eq!(fs::read(home.path("remote/run/a")).unwrap(), b"theirs");
    assert!(!home.path("remote/run/b").exists());
    assert_eq!(home.run(&["discard", "run", "a", "--yes"]).code, 0);
    assert_eq!(home.run(&["commit", "run"]).code, 0);
}

#[test]
fn a_busy_mount_names_who_holds_it_and_goes_when_asked_to_be_lazy() {
    let home = Home::new();
    let mnt = home.mount();
    let mut sleeper = Command::new("sleep").arg("60").current_dir(&mnt).spawn().unwrap();
    home.run(&["umount", "mnt"]).failed(1, &["busy", "sleep", &sleeper.id().to_string(), "--lazy"]);
    assert_eq!(home.run(&["umount", "mnt", "--lazy"]).code, 0);
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn a_killed_daemon_leaves_nothing_that_the_next_mount_does_not_clear() {
    let home = Home::new();
    let mnt = home.mount();
    fs::create_dir(mnt.join("run")).unwrap();
    fs::write(mnt.join("run/kept"), "kept").unwrap();
    let pid = home.status()["mounts"][0]["pid"].to_string();
    fs::metadata(&mnt).unwrap(); // the kernel goes on answering this for a second, whoever has died
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    wait_until("the daemon to be gone", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    assert_eq!(home.mount(), mnt);
    assert_eq!(fs::read(mnt.join("run/kept")).unwrap(), b"kept");
    assert!(
        Command::new("kill")
            .args(["-9", &home.status()["mounts"][0]["pid"].to_string()])
            .status()
            .unwrap()
            .success()
    );
    wait_until("the daemon to be gone", || fs::metadata(&mnt).is_err());
    let said = home.run(&["umount", "mnt"]);
    assert_eq!(said.code, 0, "{}", said.err);
}

#[test]
fn sigterm_unmounts() {
    let home = Home::new();
    let mut child = home
        .command(&["mount", "mnt", "--foreground", "--remote", &home.remote()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the mount", || is_mounted(&home.path("mnt")));
    wait_until("the daemon", || !home.status()["mounts"].as_array().unwrap().is_empty());
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert!(!is_mounted(&home.path("mnt")));
}

#[test]
fn a_read_only_mount_does_not_probe_the_bucket() {
    let lab = Lab::new();
    lab.server.put_out_of_band("datasets/run/a", b"1");
    lab.ok(&["mount", "mnt", "--read-only"]);
    // One that is made later and has probed its remote: by then the first would have begun to.
    let said = lab.home.run(&["mount", "other", "--remote", &lab.home.remote()]);
    assert_eq!(said.code, 0, "{}", said.err);
    let guarantee = |at: &str| {
        let (status, path) = (lab.home.status(), lab.home.path(at));
        let mounts = status["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["mountpoint"] == path.to_str().unwrap()).unwrap()["guarantee"]
            .clone()
    };
    wait_until("the other mount to know", || !guarantee("other").is_null());
    assert!(guarantee("mnt").is_null());
    let touched = lab.server.requests().into_iter().filter(|request| request.key.contains("scratch/"));
    assert_eq!(touched.count(), 0);
}

#[test]
fn wrong_settings_keep_nobody_from_unmounting() {
    let home = Home::new();
    let mnt = home.mount();
    let lone_key = [("R2_ACCESS_KEY_ID", "k")];
    home.run_with(&["list"], &lone_key).failed(2, &["R2_ACCESS_KEY_ID"]);
    home.run_with(&["upgrade", "elsewhere"], &lone_key).failed(4, &["no dsfs mount", "elsewhere"]);
    let config = home.path(".config/dsfs/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, "bukcet = 'lab'\n").unwrap();
    let said = home.run_with(&["umount", "mnt"], &lone_key);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(!is_mounted(&mnt));
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str() && line.contains("fuse.dsfs"))
}

#[test]
fn the_demo_keeps_what_was_committed_and_what_is_staged() {
    let home = Home::new();
    let demo = || {
        let said = home.run(&["demo", "mnt", "--dir", "demo"]);
        assert_eq!(said.code, 0, "{}", said.err);
        said
    };
    let said = demo();
    assert!(said.out.contains("head -3"), "{}", said.out);
    let mnt = home.path("mnt");
    let lines = fs::read_to_string(mnt.join("astronaut_pan/data.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 16);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!(
        fs::metadata(mnt.join("astronaut_pan").join(first["frame"].as_str().unwrap())).unwrap().len() > 1000
    );
    assert!(mnt.join("iris/data/train/iris.csv").exists());
    fs::create_dir(mnt.join("mine")).unwrap();
    fs::write(mnt.join("mine/x"), "committed").unwrap();
    assert_eq!(home.run(&["commit", "mine"]).code, 0);
    fs::write(mnt.join("mine/y"), "staged").unwrap();
    assert!(demo().err.contains("mounted already"));
    assert_eq!(home.run(&["umount", "mnt"]).code, 0);
    demo();
    assert_eq!(fs::read(mnt.join("mine/x")).unwrap(), b"committed");
    assert_eq!(fs::read(mnt.join("mine/y")).unwrap(), b"staged");
    assert_eq!(home.status()["mounts"][0]["staged"][0]["files"], 1);
    home.run(&["demo", "-b", "lab"]).failed(2, &["remote of its own"]);
}

#[test]
fn the_doctor_looks_at_everything_and_says_how_to_mend() {
    let home = Home::new();
    let said = home.run(&["doctor", "--json", "--remote", &home.remote()]);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    let checks: Value = serde_json::from_str(&said.out).unwrap();
    let verdict = |name: &str| {
        let check = checks.as_array().unwrap().iter().find(|check| check["check"] == name);
        check.unwrap_or_else(|| panic!("{name} is not in {checks}"))["verdict"].clone()
    };
    for name in ["FUSE in the kernel", "/dev/fuse", "bucket", "guarantee"] {
        assert_eq!(verdict(name), "ok", "{name}");
    }
    let said = home.run(&["doctor", "-b", "lab", "-e", "http://127.0.0.1:1"]);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("FAIL  endpoint"), "{}", said.out);
}

#[test]
fn names_of_datasets_are_completed() {
    let home = Home::new();
    let odd = ["$(touch${IFS}pwned)", "`touch pwned`", "a b", "*", "two\nlines"];
    for name in ["run_one", "run_two", "other"].into_iter().chain(odd) {
        fs::create_dir_all(home.path("remote").join(name)).unwrap();
        fs::write(home.path("remote").join(name).join("data.jsonl"), "").unwrap();
    }
    let script = home.run(&["completions", "bash"]).out;
    fs::write(home.path("completions.bash"), script).unwrap();
    let complete = |words: &str| {
        let bin = program().parent().unwrap().to_owned();
        let words_count = words.split(' ').count();
        let ask = format!(
            "source completions.bash; COMP_WORDS=({words}); COMP_CWORD={}; _dsfs_with_names dsfs \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words_count - 1
        );
        let mut command = Command::new("bash");
        command.args(["-c", &ask]).current_dir(home.path("")).env_clear();
        command.env("HOME", home.path("")).env("DSFS_REMOTE", home.remote());
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        Said::of(command.output().unwrap()).out
    };
    assert_eq!(complete("dsfs commit run"), "run_one\nrun_two\n");
    assert_eq!(complete("dsfs dataset download o"), "other\n");
    assert!(complete("dsfs comm").contains("commit"));
    assert!(complete("dsfs commit --over").contains("--overwrite"));
    // Names are somebody else's: each is one candidate, written as bash reads it, and none of them is run.
    let mut all: Vec<String> = complete("dsfs commit ").lines().map(str::to_owned).collect();
    all.sort();
    let as_read =
        [r"\$\(touch\$\{IFS\}pwned\)", r"\*", r"\`touch\ pwned\`", r"a\ b", "other", "run_one", "run_two"];
    assert_eq!(all, as_read);
    assert!(!home.path("pwned").exists(), "a name was run");
    assert_eq!(home.run(&["names"]).code, 0, "whoever completes is not told of errors");
    for shell in ["zsh", "fish"] {
        assert!(home.run(&["completions", shell]).out.contains("dsfs names"), "{shell}");
    }
}

#[test]
fn every_new_command_has_its_page() {
    let home = Home::new();
    for command in ["r2", "dataset", "url", "r2 download", "dataset upload"] {
        let words: Vec<&str> = std::iter::once("man").chain(command.split(' ')).collect();
        let page = home.run(&words);
        assert_eq!(page.code, 0, "{}", page.err);
        assert!(page.out.contains(".TH"), "{command}");
    }
}

#[test]
fn whoever_asks_for_everything_sees_each_request() {
    let home = Home::new();
    for (flags, is_said) in [(&[][..], false), (&["-v"][..], false), (&["-vv"][..], true)] {
        let remote = home.remote();
        let said = home.run(&[flags, &["list", "--remote", &remote]].concat());
        assert_eq!(said.code, 0, "{}", said.err);
        assert_eq!(said.err.contains("LIST one level of "), is_said, "{flags:?}: {}", said.err);
    }
    let said = home.run_with(&["list", "--remote", &home.remote()], &[("DSFS_LOG", "dsfs=trace")]);
    assert!(said.err.contains("LIST one level of "), "{}", said.err);
}
