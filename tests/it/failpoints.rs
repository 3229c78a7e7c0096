//! The real daemon, killed (-9) at every step of a commit, an abort, an overwriting commit and a
//! `gc`, and what is found afterwards.
//!
//! The steps are not listed here: each test records those that one undisturbed run reaches (see
//! `dsfs::failpoint`), and dies at each of them once. `DSFS_FAILPOINT_SOAK=n` runs n rounds of
//! deaths at random, several in one commit; `DSFS_FAILPOINT_SEED` repeats one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Child;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use dsfs::record::CommitRecord;
use dsfs::record::Outcome;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::Double;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::mount::wait_until;

const SIGKILL: i32 = 9;
/// More than one part.
const BIG_BYTES: usize = (8 << 20) + 4321;
/// A random soak's deaths in one commit.
const DEATHS_MAX: u32 = 4;

/// A server, a user, and a mount that dies now and then.
struct Lab {
    double: Double,
    home: Home,
    daemon: Option<Child>,
    datasets: u32,
}

/// A recorded point and how often one run reaches it.
type Points = BTreeMap<String, u64>;

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("data.jsonl", b"{\"frame\": 1}\n".to_vec()),
        ("frames/0.bin", b"frame".to_vec()),
        ("frames/big.bin", (0..BIG_BYTES).map(|at| (at / 7) as u8).collect()),
        ("nothing", Vec::new()),
    ]
}

impl Lab {
    fn new() -> Self {
        let lab = Self { double: Double::start(), home: Home::new(), daemon: None, datasets: 0 };
        // What the remote enforces is found out before anything is recorded.
        let said = lab.run(&["doctor", "-e", &lab.double.endpoint(), "-b", BUCKET]);
        assert_eq!(said.code, 0, "{} {}", said.out, said.err);
        lab
    }

    fn plan(&self) -> PathBuf {
        self.home.path("failpoints")
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.home.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_REGION", "us-east-1").env("DSFS_FAILPOINTS", self.plan());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap())
    }

    /// Mounts, unless that is done. A daemon that was killed leaves a mount that the next one clears.
    fn mount(&mut self) {
        if self.daemon.is_some() {
            return;
        }
        let endpoint = self.double.endpoint();
        let mut command = self.command(&["mount", "mnt", "--foreground", "--allow-replace"]);
        command.args(["-e", &endpoint, "-b", BUCKET, "--list-ttl", "100ms"]);
        let log = fs::OpenOptions::new().append(true).create(true).open(self.home.path("log")).unwrap();
        let mut daemon = command.stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let pid = u64::from(daemon.id());
        wait_until("the mount", || {
            assert_eq!(daemon.try_wait().unwrap(), None, "it mounts");
            let said = self.run(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
            status["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(|mount| mount["pid"] == pid))
        });
        self.daemon = Some(daemon);
    }

    fn at(&self, dataset: &str, path: &str) -> PathBuf {
        self.home.path("mnt").join(dataset).join(path)
    }

    /// A new dataset with something of everything, and a neighbour that is not ours.
    fn stage(&mut self) -> String {
        self.stage_files(files())
    }

    fn stage_files(&mut self, files: Vec<(&str, Vec<u8>)>) -> String {
        self.mount();
        self.datasets += 1;
        let name = format!("run_{}", self.datasets);
        self.double.put_out_of_band(&format!("datasets/{name}/foreign"), b"foreign");
        for (path, content) in files {
            fs::create_dir_all(self.at(&name, path).parent().unwrap()).unwrap();
            fs::write(self.at(&name, path), content).unwrap();
        }
        fs::create_dir_all(self.at(&name, "empty")).unwrap();
        name
    }

    fn plan_to(&self, what: &str) {
        fs::write(self.plan(), what).unwrap();
    }

    fn plan_nothing(&self) {
        fs::remove_file(self.plan()).ok();
    }

    /// The points that `work` reaches.
    fn record(&mut self, work: impl FnOnce(&mut Self)) -> Points {
        let hits = self.plan().with_extension("hits");
        fs::remove_file(&hits).ok();
        self.plan_to("record");
        work(self);
        self.plan_nothing();
        let mut points = Points::new();
        for name in fs::read_to_string(&hits).unwrap().lines() {
            *points.entry(name.to_owned()).or_default() += 1;
        }
        assert!(!points.is_empty(), "nothing was recorded");
        points
    }

    /// Runs a command while the daemon is to die at a point; whether it did.
    fn dies(&mut self, point: &str, nth: u64, arguments: &[&str]) -> bool {
        self.plan_to(&format!("kill {point} {nth}"));
        let said = self.run(arguments);
        self.plan_nothing();
        let Some(daemon) = &mut self.daemon else { panic!("nothing is mounted") };
        if said.code == 0 || daemon.try_wait().unwrap().is_none() && !said.err.contains("daemon") {
            return false;
        }
        let status = daemon.wait().unwrap();
        self.daemon = None;
        assert_eq!(status.signal(), Some(SIGKILL), "{point}: {status:?}");
        true
    }

    fn is_recorded(&self, name: &str) -> bool {
        self.records(name).iter().any(|record| record.outcome == Outcome::Commit)
    }

    fn records(&self, name: &str) -> Vec<CommitRecord> {
        let log = format!(".dsfs/datasets/log/{name}/");
        let keys = self.double.keys().into_iter().filter(|key| key.starts_with(&log));
        keys.map(|key| CommitRecord::decode(&self.double.object(&key).unwrap().0).unwrap()).collect()
    }

    /// Everything is there to be read, whether it is staged, sealed or published.
    fn expect_nothing_lost(&self, name: &str, what: &str) {
        for (path, content) in files() {
            let found = fs::read(self.at(name, path)).unwrap_or_else(|err| panic!("{what}: {path}: {err}"));
            assert!(found == content, "{what}: {path} has {} bytes", found.len());
        }
    }

    /// The bucket has exactly `expected` under the dataset, beside what is not ours.
    fn expect_in_bucket(&self, name: &str, expected: &[(&str, Vec<u8>)], what: &str) {
        let start = format!("datasets/{name}/");
        let keys =
            self.double.keys().into_iter().filter_map(|key| Some(key.strip_prefix(&start)?.to_owned()));
        let mut found: BTreeMap<String, Vec<u8>> = keys
            .map(|path| (path.clone(), self.double.object(&format!("{start}{path}")).unwrap().0.to_vec()))
            .collect();
        assert_eq!(found.remove("foreign").as_deref(), Some(&b"foreign"[..]), "{what}");
        let expected: BTreeMap<String, Vec<u8>> =
            expected.iter().map(|(path, content)| ((*path).to_owned(), content.clone())).collect();
        assert!(found == expected, "{what}: {:?}", found.keys());
    }

    fn expect_published(&self, name: &str, commits: usize, what: &str) {
        let mut expected = files();
        expected.push(("empty/", Vec::new()));
        self.expect_in_bucket(name, &expected, what);
        self.expect_nothing_lost(name, what);
        let records = self.records(name);
        let recorded = records.iter().filter(|record| record.outcome == Outcome::Commit);
        assert_eq!(recorded.count(), commits, "{what}: {records:?}");
        let said = self.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        let staged = status["mounts"][0]["staged"].as_array().unwrap();
        assert!(staged.iter().all(|dataset| dataset["name"] != name), "{what}: {staged:?}");
    }

    /// What a user does after a crash: goes on, or, every third time, gives up and begins anew.
    fn recover(&mut self, name: &str, by_abort: bool, what: &str) {
        self.mount();
        self.expect_nothing_lost(name, what);
        if by_abort && !self.is_recorded(name) {
            let said = self.run(&["commit", name, "--abort"]);
            // 4: it died before it had begun.
            assert!(matches!(said.code, 0 | 4), "{what}: {} {}", said.code, said.err);
            self.expect_in_bucket(name, &[], what);
            self.expect_nothing_lost(name, what);
        }
        let said = self.run(&["commit", name]);
        let ended = said.code == 4 && self.is_recorded(name); // it had come to its very end
        assert!(said.code == 0 || ended, "{what}: {} {}", said.code, said.err);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ended = self.home.run(&["umount", "mnt", "--lazy"]);
            let _ended = daemon.kill();
            let _ended = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.home.path("log")).unwrap_or_default());
        }
    }
}

/// Uploads whose names the journal cannot have: the answer, or the note of it, was lost. A large file is hashed
/// while its upload is being begun, so that either may be the first to end.
fn may_lose_an_upload(point: &str) -> bool {
    point == "store:create-multipart:data:after"
        || point.starts_with("journal:upload:")
        || point.starts_with("journal:hashed:")
}

/// Which time of several a point is deadly: each point once, but not always the first time.
fn nth(index: usize, count: u64) -> u64 {
    1 + (index as u64 * 7) % count.div_ceil(2)
}

#[test]
fn a_commit_that_is_killed_at_any_step_is_resumed_or_aborted() {
    kill_commits(0);
}

#[test]
fn a_commit_that_is_killed_at_any_other_step_is_resumed_or_aborted() {
    kill_commits(1);
}

/// At every second step: two tests share the work, and the machine's cores.
fn kill_commits(half: usize) {
    let mut lab = Lab::new();
    let first = lab.stage();
    let points = lab.record(|lab| assert_eq!(lab.run(&["commit", &first]).code, 0));
    lab.expect_published(&first, 1, "undisturbed");
    for needed in ["journal:begun:torn", "rename:sealed:renamed", "store:put:log:after", "rename:done:before"]
    {
        assert!(points.contains_key(needed), "{needed} is not in {points:?}");
    }
    for (index, (point, count)) in points.iter().enumerate().filter(|(index, _)| index % 2 == half) {
        let name = lab.stage();
        let uploads = lab.double.open_uploads();
        let nth = nth(index, *count);
        let what = format!("{name}: killed at {point}, time {nth} of {count}");
        assert!(lab.dies(point, nth, &["commit", &name]), "{what}: it was not reached");
        lab.recover(&name, index % 3 == 0, &what);
        lab.expect_published(&name, 1, &what);
        let lost = usize::from(may_lose_an_upload(point));
        assert!(lab.double.open_uploads() <= uploads + lost, "{what}: uploads are left");
    }
}

#[test]
fn an_abort_that_is_killed_at_any_step_is_completed() {
    let mut lab = Lab::new();
    // Just before its commit point: everything is visible that ever will be.
    let interrupted = |lab: &mut Lab| {
        let name = lab.stage();
        assert!(lab.dies("store:put:log:before", 1, &["commit", &name]));
        lab.mount();
        name
    };
    let first = interrupted(&mut lab);
    let points = lab.record(|lab| assert_eq!(lab.run(&["commit", &first, "--abort"]).code, 0));
    lab.expect_in_bucket(&first, &[], "undisturbed");
    for needed in ["journal:aborting:torn", "store:delete:data:after", "rename:thawing:renamed"] {
        assert!(points.contains_key(needed), "{needed} is not in {points:?}");
    }
    for (index, (point, count)) in points.iter().enumerate() {
        let name = interrupted(&mut lab);
        let nth = nth(index, *count);
        let what = format!("{name}: killed at {point}, time {nth} of {count}");
        assert!(lab.dies(point, nth, &["commit", &name, "--abort"]), "{what}: it was not reached");
        lab.mount();
        lab.expect_nothing_lost(&name, &what);
        let said = lab.run(&["commit", &name, "--abort"]);
        assert!(matches!(said.code, 0 | 4), "{what}: {} {}", said.code, said.err);
        lab.expect_in_bucket(&name, &[], &what);
        lab.expect_nothing_lost(&name, &what);
    }
}

/// The dataset's next version: one file replaced by a large one, one deleted, one new.
fn change(lab: &mut Lab, name: &str) -> Vec<(&'static str, Vec<u8>)> {
    lab.mount();
    let (_, big) = files().swap_remove(2);
    fs::write(lab.at(name, "frames/0.bin"), &big).unwrap();
    fs::write(lab.at(name, "data.jsonl"), b"{}\n").unwrap();
    fs::remove_file(lab.at(name, "nothing")).unwrap();
    fs::write(lab.at(name, "more"), b"more").unwrap();
    let after = [("frames/0.bin", big), ("data.jsonl", b"{}\n".to_vec()), ("more", b"more".to_vec())];
    after.into_iter().chain([("empty/", Vec::new())]).collect()
}

#[test]
fn an_overwriting_commit_that_is_killed_at_any_step_is_resumed() {
    let mut lab = Lab::new();
    let published = |lab: &mut Lab| {
        let small = files().into_iter().filter(|(_, content)| content.len() < BIG_BYTES);
        let name = lab.stage_files(small.collect());
        assert_eq!(lab.run(&["commit", &name]).code, 0);
        let after = change(lab, &name);
        (name, after)
    };
    let plain = lab.stage();
    let plain = lab.record(|lab| assert_eq!(lab.run(&["commit", &plain]).code, 0));
    let (first, after) = published(&mut lab);
    let mut points = lab.record(|lab| assert_eq!(lab.run(&["commit", &first, "--overwrite"]).code, 0));
    // What is the same as in any commit has a test above.
    points.retain(|point, _| !plain.contains_key(point) || point.contains(":data:"));
    lab.expect_in_bucket(&first, &after, "undisturbed");
    for (index, (point, count)) in points.iter().enumerate() {
        let (name, after) = published(&mut lab);
        let nth = nth(index, *count);
        let what = format!("{name}: killed at {point}, time {nth} of {count}");
        assert!(lab.dies(point, nth, &["commit", &name, "--overwrite"]), "{what}: it was not reached");
        lab.mount();
        let said = lab.run(&["commit", &name, "--overwrite"]);
        let ended = said.code == 4 && lab.records(&name).len() == 2;
        assert!(said.code == 0 || ended, "{what}: {} {}", said.code, said.err);
        lab.expect_in_bucket(&name, &after, &what);
        assert_eq!(lab.records(&name).len(), 2, "{what}");
        assert!(!lab.at(&name, "nothing").exists(), "{what}");
    }
}

/// `gc` is a process of its own.
fn gc(lab: &Lab, name: &str) -> ExitStatus {
    let endpoint = lab.double.endpoint();
    let mut command = lab.command(&["gc", name, "--older-than", "0s", "-e", &endpoint, "-b", BUCKET]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

#[test]
fn a_gc_that_is_killed_at_any_step_is_repeated() {
    let mut lab = Lab::new();
    let dead = |lab: &mut Lab| {
        let name = lab.stage();
        assert!(lab.dies("store:put:log:before", 1, &["commit", &name]));
        name
    };
    let first = dead(&mut lab);
    let points = lab.record(|lab| assert!(gc(lab, &first).success()));
    for (index, (point, count)) in points.iter().enumerate() {
        let name = dead(&mut lab);
        let nth = nth(index, *count);
        let what = format!("{name}: killed at {point}, time {nth} of {count}");
        lab.plan_to(&format!("kill {point} {nth}"));
        assert_eq!(gc(&lab, &name).signal(), Some(SIGKILL), "{what}: it was not reached");
        lab.plan_nothing();
        assert!(gc(&lab, &name).success(), "{what}");
        let records = lab.records(&name);
        assert_eq!((records.len(), records[0].outcome), (1, Outcome::Abort), "{what}");
        // Who comes back finds that out, takes back what is there, and can begin anew.
        lab.mount();
        let said = lab.run(&["commit", &name, "--resume"]);
        assert_eq!(said.code, 3, "{what}: {}", said.err);
        lab.expect_in_bucket(&name, &[], &what);
        lab.expect_nothing_lost(&name, &what);
    }
}

/// Nobody has to run `gc`: the next commit of the dataset, from whatever machine, does what is due.
#[test]
fn the_next_commit_tidies_up_behind_one_that_is_long_dead() {
    let day = Duration::from_secs(24 * 60 * 60);
    let mut lab = Lab::new();
    let name = lab.stage();
    assert!(lab.dies("store:put:log:before", 1, &["commit", &name]));
    let elsewhere = Home::new();
    let endpoint = lab.double.endpoint();
    let run = |arguments: &[&str]| {
        let mut command = elsewhere.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        Said::of(command.env("AWS_REGION", "us-east-1").output().unwrap())
    };
    let said = run(&["mount", "mnt", "-e", &endpoint, "-b", BUCKET]);
    assert_eq!(said.code, 0, "{}", said.err);
    let left = |lab: &Lab| {
        let keys = lab.double.keys();
        let notices = keys.iter().filter(|key| key.starts_with(".dsfs/datasets/intents/")).count();
        let objects =
            files().iter().filter(|(path, _)| keys.contains(&format!("datasets/{name}/{path}"))).count();
        (notices, objects)
    };
    let next = |file: &str| {
        fs::create_dir_all(elsewhere.path("mnt").join(&name)).unwrap();
        fs::write(elsewhere.path("mnt").join(&name).join(file), file).unwrap();
        let said = run(&["commit", &name]);
        assert_eq!(said.code, 0, "{file}: {}", said.err);
    };
    let outcomes = |lab: &Lab| lab.records(&name).iter().map(|record| record.outcome).collect::<Vec<_>>();

    lab.double.make_older(".dsfs/datasets/intents/", day * 6);
    next("first");
    assert_eq!(outcomes(&lab), [Outcome::Commit], "whoever began it may still go on with it");
    assert_eq!(left(&lab), (1, files().len()));
    lab.double.make_older(".dsfs/datasets/intents/", day);
    next("second");
    assert_eq!(outcomes(&lab), [Outcome::Commit, Outcome::Abort, Outcome::Commit]);
    assert_eq!(left(&lab), (1, files().len()), "something may still come, and has to be hidden");
    let ended = format!(".dsfs/datasets/log/{name}/0000000002");
    let mut record = CommitRecord::decode(&lab.double.object(&ended).unwrap().0).unwrap();
    record.body.time -= day;
    lab.double.put_out_of_band(&ended, &record.encode().unwrap());
    next("third");
    assert_eq!(left(&lab), (0, 0));
    assert_eq!(outcomes(&lab).len(), 4);
    // Who began it finds that out, with everything still staged.
    lab.mount();
    let said = lab.run(&["commit", &name, "--resume"]);
    assert_eq!(said.code, 3, "{}", said.err);
    lab.expect_nothing_lost(&name, "in the end");
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whoever_dies_again_and_again_gets_there_in_the_end() {
    let rounds = setting("DSFS_FAILPOINT_SOAK").unwrap_or(2);
    let seed = setting("DSFS_FAILPOINT_SEED").unwrap_or_else(rand::random);
    eprintln!("repeat with DSFS_FAILPOINT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lab = Lab::new();
    let first = lab.stage();
    let points: Vec<(String, u64)> =
        lab.record(|lab| assert_eq!(lab.run(&["commit", &first]).code, 0)).into_iter().collect();
    for round in 0..rounds {
        let name = lab.stage();
        let mut what = format!("round {round}, {name}");
        for _ in 0..rng.random_range(1..=DEATHS_MAX) {
            let (point, count) = &points[rng.random_range(0..points.len())];
            let nth = rng.random_range(1..=*count);
            let abort = !lab.is_recorded(&name) && rng.random_range(0..4) == 0;
            lab.mount();
            let arguments: &[&str] = if abort { &["commit", &name, "--abort"] } else { &["commit", &name] };
            let died = lab.dies(point, nth, arguments);
            what = format!("{what}; {} at {point}:{nth}", if died { "killed" } else { "passed" });
            lab.mount();
            lab.expect_nothing_lost(&name, &what);
        }
        if !lab.is_recorded(&name) || lab.run(&["commit", &name, "--resume"]).code != 4 {
            lab.recover(&name, rng.random_range(0..3) == 0, &what);
        }
        lab.expect_published(&name, 1, &what);
    }
}
