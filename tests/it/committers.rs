//! The real binary commits over real servers: two machines to one dataset at the same moment, and
//! one machine over a server that honours no condition.
//!
//! `DSFS_COMMIT_ROUNDS=50` makes more rounds than the test command does.

use std::fs;

use dsfs::name::KeyPrefix;
use dsfs::record::CommitRecord;
use dsfs::record::Outcome;
use dsfs::store::ListRequest;
use dsfs::store::ObjectStore;
use dsfs::store::collect;
use dsfs::store::list_all;
use dsfs::store::s3::S3Store;
use tokio::runtime::Runtime;

use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;
use crate::common::home::Said;
use crate::common::machine::Machine;
use crate::common::servers::Server;

const ROUNDS_DEFAULT: u32 = 6;

fn bodies(runtime: &Runtime, store: &S3Store, prefix: &str) -> Vec<(String, Vec<u8>)> {
    runtime.block_on(async {
        let listed = list_all(store, ListRequest::recursive(KeyPrefix::from_listing(prefix))).await.unwrap();
        let mut bodies = Vec::new();
        for object in listed.objects {
            let meta = store.head(&object.key).await.unwrap();
            let len = meta.size_bytes;
            let name = object.key.as_str().strip_prefix(prefix).unwrap().to_owned();
            let mut body = Vec::new();
            if len > 0 {
                let stream = store.get(&object.key, &meta.etag, 0..len).await.unwrap();
                body = collect(stream, len as usize).await.unwrap().to_vec();
            }
            bodies.push((name, body));
        }
        bodies.sort();
        bodies
    })
}

fn rounds() -> u32 {
    let wanted = std::env::var("DSFS_COMMIT_ROUNDS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(ROUNDS_DEFAULT)
}

#[test]
fn of_two_committers_on_two_machines_both_or_exactly_one_succeed() {
    let server = Server::seaweedfs();
    server.make_bucket_with_boto3();
    let runtime = Runtime::new().unwrap();
    let store = S3Store::new(&server.options(BUCKET, SECRET_KEY));
    let machines = [Machine::new(&server, "ann", &[]), Machine::new(&server, "bob", &[])];
    let log = ".dsfs/datasets/log/run/";
    let mut commits = 0;
    for round in 0..rounds() {
        let overlapping = round % 2 == 0;
        for machine in &machines {
            let (user, shared) = (machine.user, if overlapping { "both" } else { machine.user });
            machine.stage(&format!("run/{round}/{user}.own"), user);
            machine.stage(&format!("run/{round}/{shared}"), &format!("{user} in round {round}"));
        }
        let running = [machines[0].begin(&["commit", "run"]), machines[1].begin(&["commit", "run"])];
        let said = running.map(|child| Said::of(child.wait_with_output().unwrap()));
        let codes = [said[0].code, said[1].code];
        let there = bodies(&runtime, &store, &format!("datasets/run/{round}/"));
        let names: Vec<&str> = there.iter().map(|(name, _)| name.as_str()).collect();
        if overlapping {
            let winner = match codes {
                [0, 3] => 0,
                [3, 0] => 1,
                _ => panic!("round {round}: {codes:?}: {} {}", said[0].err, said[1].err),
            };
            let (won, lost) = (&machines[winner], &machines[1 - winner]);
            let about = &said[1 - winner].err;
            for word in [format!("{round}/both"), format!("{}@", won.user), "nothing was changed".into()] {
                assert!(about.contains(&word), "round {round}: {word:?} is not in {about}");
            }
            assert_eq!(names, [format!("{}.own", won.user).as_str(), "both"], "round {round}");
            assert_eq!(there[1].1, format!("{} in round {round}", won.user).into_bytes(), "round {round}");
            assert_eq!((won.staged_files(), lost.staged_files()), (0, 2), "round {round}");
            lost.must(&["discard", "run", "--yes"]);
            commits += 1;
        } else {
            assert_eq!(codes, [0, 0], "round {round}: {} {}", said[0].err, said[1].err);
            assert_eq!(names, ["ann", "ann.own", "bob", "bob.own"], "round {round}");
            commits += 2;
        }
        let records = bodies(&runtime, &store, log);
        assert_eq!(records.len(), commits, "round {round}: every commit has its record, and nothing else");
        for (at, (name, body)) in records.iter().enumerate() {
            let record = CommitRecord::decode(body).unwrap();
            assert_eq!((name.as_str(), record.body.seq), (&*format!("{:010}", at + 1), at as u64 + 1));
            assert_eq!(record.outcome, Outcome::Commit);
        }
        assert!(bodies(&runtime, &store, ".dsfs/datasets/intents/run/").is_empty(), "round {round}");
    }
}

#[test]
fn over_a_server_without_conditions_a_commit_needs_consent() {
    let server = Server::rclone();
    let runtime = Runtime::new().unwrap();
    let store = S3Store::new(&server.options(BUCKET, SECRET_KEY));
    let machine = Machine::new(&server, "ann", &[]);
    let big: String = (0..2_500_000).map(|n| format!("{n:07}\n")).collect(); // 20 MB: several parts
    for (path, content) in [("small", "small"), ("frames/nothing", ""), ("frames/big", &big)] {
        machine.stage(&format!("run/{path}"), content);
    }
    let said = Said::of(machine.begin(&["commit", "run"]).wait_with_output().unwrap());
    said.failed(1, &["--allow-unenforced"]);
    for kind in ["datasets/", ".dsfs/datasets/intents/", ".dsfs/datasets/log/"] {
        assert!(bodies(&runtime, &store, kind).is_empty(), "nothing was changed");
    }
    assert_eq!(machine.staged_files(), 3);

    let said = Said::of(machine.command(&["commit", "run", "--allow-unenforced"]).output().unwrap());
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("best-effort"), "what it did not promise is said: {}", said.err);
    let there = bodies(&runtime, &store, "datasets/run/");
    let expected = [("frames/big", big.as_str()), ("frames/nothing", ""), ("small", "small")];
    assert!(there == expected.map(|(name, body)| (name.to_owned(), body.into())), "byte for byte");
    assert_eq!(machine.staged_files(), 0);
    // Through the mount of somebody who has nothing of it on the disk.
    let other = Machine::new(&server, "bob", &[]);
    for (path, content) in expected {
        let read = fs::read(other.home.path("mnt/run").join(path)).unwrap();
        assert!(read == content.as_bytes(), "{path}");
    }
    // What is there is in the way all the same, as far as looking first can tell.
    other.stage("run/small-too", "other");
    machine.stage("run/small-too", "other content");
    let said = Said::of(other.command(&["commit", "run", "--allow-unenforced"]).output().unwrap());
    assert_eq!(said.code, 0, "{}", said.err);
    let said = Said::of(machine.command(&["commit", "run", "--allow-unenforced"]).output().unwrap());
    said.failed(3, &["small-too", "nothing was changed"]);
    assert_eq!(bodies(&runtime, &store, "datasets/run/small-too")[0].1, b"other");
}
