//! Which remote a command means: the rule of `docs/CLI.md`.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::common::double::BUCKET;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::transfers::Lab;

/// A remote that is mounted, and another one that the environment names; both have a dataset `run`.
struct Two {
    home: Home,
    mnt: PathBuf,
    assets: String,
}

impl Two {
    fn new() -> Self {
        let home = Home::new();
        for (remote, file) in [("remote", "of-remote"), ("assets", "of-assets")] {
            let dir = home.path(remote).join("run");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(file), "x").unwrap();
        }
        let mnt = home.mount();
        let assets = format!("file://{}/", home.path("assets").display());
        Self { home, mnt, assets }
    }

    /// Where nothing is mounted, with the other remote in the environment.
    fn outside(&self, arguments: &[&str]) -> Said {
        self.home.run_with(arguments, &[("DSFS_REMOTE", &self.assets)])
    }

    /// The same within the mount.
    fn within(&self, arguments: &[&str]) -> Said {
        let mut command = self.home.command(arguments);
        Said::of(command.current_dir(&self.mnt).env("DSFS_REMOTE", &self.assets).output().unwrap())
    }

    fn stage(&self, name: &str) {
        fs::create_dir(self.mnt.join(name)).unwrap();
        fs::write(self.mnt.join(name).join("a"), "staged").unwrap();
    }
}

#[track_caller]
fn done(said: &Said, words: &[&str]) {
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    for word in words {
        assert!(said.out.contains(word) || said.err.contains(word), "{word:?}: {} {}", said.out, said.err);
    }
}

#[test]
fn what_is_staged_in_another_mount_than_the_environment_names_is_told() {
    let two = Two::new();
    two.stage("mine");
    let way = format!("`dsfs commit mine --at {}`", two.mnt.display());
    let look = |two: &Two| {
        two.outside(&["commit", "mine"]).failed(4, &["nothing is staged", "mine is staged at", &way]);
        two.outside(&["discard", "mine", "--yes"]).failed(4, &["nothing is staged for mine", "mine --at"]);
        two.outside(&["commit", "yours"]).failed(4, &["nothing is staged", "dsfs status"]);
    };
    look(&two);
    let mounts = [&two.assets, "is not mounted", "DSFS_REMOTE", two.mnt.to_str().unwrap(), "--at MOUNTPOINT"];
    two.outside(&["refresh"]).failed(4, &mounts);
    done(&two.outside(&["mount", "other"]), &[]);
    look(&two);
    done(&two.outside(&["refresh"]), &[]);
    done(&two.outside(&["commit", "mine", "--at", "mnt"]), &["published 1 file"]);
    assert!(two.home.path("remote/mine/a").exists());
}

#[test]
fn whoever_is_in_a_mount_means_its_remote() {
    let two = Two::new();
    let remote = two.home.remote();
    let both: &[&str] = &["working on", &remote, &two.assets, "DSFS_REMOTE"];
    let keys = ["r2", "list"];
    done(&two.within(&keys), &[both, &["run/of-remote\n"]].concat());
    done(&two.within(&["gc", "--dry-run"]), both);
    done(&two.within(&["dataset", "list", "--remote"]), both);
    done(&two.within(&["doctor", "run"]), both);
    for said in [two.outside(&keys), two.within(&["r2", "list", "--remote", &two.assets])] {
        done(&said, &["run/of-assets\n"]);
        assert_eq!(said.err, "", "what was named is not told again");
    }
    done(&two.home.run(&keys), &["run/of-remote\n", "working on", "mnt"]);

    done(&two.within(&["dataset", "delete", "run", "--yes"]), both);
    assert!(two.home.path("assets/run/of-assets").exists());
    assert!(!two.home.path("remote/run/of-remote").exists());
    assert!(!two.mnt.join("run").exists(), "the mount was told");

    done(&two.outside(&["mount", "other"]), &[]);
    two.home.run(&keys).failed(2, &["several mounts", "mnt", "other", "--remote"]);
}

#[test]
fn the_settings_of_a_mount_in_a_bucket_are_found_again() {
    let lab = Lab::new();
    lab.server.put_out_of_band("x/run/a", b"1");
    let remote = format!("s3://{BUCKET}/x/");
    lab.ok(&["mount", "mnt", "--remote", &remote]);
    let mut command = lab.command(&["dataset", "list", "--remote"]);
    command.env("R2_ENDPOINT", "http://127.0.0.1:1").env("R2_BUCKET", "another");
    let said = Said::of(command.current_dir(lab.home.path("mnt")).output().unwrap());
    done(&said, &["run\n", "working on", &remote, "s3://another/datasets/"]);
}

#[test]
fn whoever_is_in_a_mount_that_cannot_be_asked_does_not_mean_another() {
    let two = Two::new();
    // Like another user, who has another place for sockets.
    let elsewhere = two.home.path("elsewhere");
    let within = |arguments: &[&str], remote: &str| {
        let mut command = two.home.command(arguments);
        command.current_dir(&two.mnt).env("XDG_RUNTIME_DIR", &elsewhere).env("DSFS_REMOTE", remote);
        Said::of(command.output().unwrap())
    };
    let delete = ["dataset", "delete", "run", "--yes"];
    within(&delete, &two.assets).failed(2, &["does not answer", &two.home.remote(), "--remote"]);
    assert!(two.home.path("assets/run/of-assets").exists());
    done(&within(&["r2", "list"], &two.home.remote()), &["run/of-remote\n"]);
}

#[test]
fn a_mount_that_cannot_be_asked_makes_no_other_one_the_only_one() {
    let two = Two::new();
    done(&two.outside(&["mount", "other"]), &[]);
    let mounts = two.home.status()["mounts"].as_array().unwrap().clone();
    let other = mounts.iter().find(|mount| mount["mountpoint"].as_str().unwrap().ends_with("other")).unwrap();
    let daemon = Pid::from_raw(i32::try_from(other["pid"].as_i64().unwrap()).unwrap()).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    let delete = two.home.run(&["dataset", "delete", "run", "--yes"]);
    let list = two.home.run(&["list"]);
    done(&two.home.run(&["umount", "mnt"]), &[]);
    let alone = two.home.run(&["list"]);
    kill_process(daemon, Signal::CONT).unwrap();
    delete.failed(2, &["several mounts", "mnt", "other", "does not answer", "--remote"]);
    assert!(two.home.path("remote/run/of-remote").exists());
    list.failed(2, &["several mounts", "--at"]);
    alone.failed(1, &["other", "does not answer"]);
}

#[test]
fn a_mount_point_and_a_remote_that_differ_are_not_chosen_between() {
    let two = Two::new();
    two.stage("mine");
    let (assets, remote) = (two.assets.clone(), two.home.remote());
    let both = ["commit", "mine", "--at", "mnt", "--remote"];
    two.home.run(&[&both[..], &[&assets]].concat()).failed(2, &[&assets, &remote, "the flags name"]);
    done(&two.home.run(&[&both[..], &[&remote]].concat()), &["published 1 file"]);
}

#[test]
fn a_mount_point_can_be_written_in_any_way() {
    let two = Two::new();
    std::os::unix::fs::symlink(&two.mnt, two.home.path("link")).unwrap();
    for at in ["mnt", "./mnt/", "remote/../mnt", "link", two.mnt.to_str().unwrap()] {
        for command in [&["stat"][..], &["top", "--count", "1"], &["list"]] {
            done(&two.home.run(&[command, &["--at", at]].concat()), &[]);
        }
    }
    two.home.run(&["stat", "--at", "remote"]).failed(4, &["no dsfs mount", "remote"]);
}
