//! Everyday tools on a mount, as SEEDS of what users do: each one copies, saves, locks or maps in
//! its own way. `scripts/test.sh` installs them; one that is missing is a failed test.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::mount::Setup;
use crate::common::mount::TestMount;

/// Runs a shell script; its output, if it succeeded.
fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env("HOME", dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A mount with a staged dataset `run`, and beside it, on the local disk, a tree `src`.
fn in_both_modes(check: impl Fn(&Path)) {
    for passthrough in [true, false] {
        let mount = TestMount::with(&Setup { passthrough, ..Setup::default() });
        for i in 0..50 {
            mount.publish(&format!("pub/frames/{i:02}.bin"), vec![i; 10_000]);
        }
        mount.publish("pub/data.jsonl", "{\"i\": 0}\n".repeat(1000));
        fs::create_dir(mount.path("run")).unwrap();
        let script = "mkdir -p src/sub/deep src/empty && seq 10000 > src/numbers && head -c 3000000 /dev/urandom > src/sub/random \
             && echo '#!/bin/sh' > src/sub/deep/script && chmod 755 src/sub/deep/script \
             && touch -d '2020-02-02 02:02:02.123456789' src/numbers";
        sh(mount.beside(), script);
        check(mount.beside());
    }
}

#[test]
fn cp_in_and_out() {
    in_both_modes(|dir| {
        sh(dir, "cp -r src mnt/run/copy && diff -r src mnt/run/copy");
        sh(dir, "cp -a src mnt/run/archive && diff -r src mnt/run/archive");
        sh(dir, "[ \"$(stat -c '%y %a' src/numbers)\" = \"$(stat -c '%y %a' mnt/run/archive/numbers)\" ]");
        sh(dir, "cp -r mnt/pub out && diff -r mnt/pub out && [ \"$(ls out/frames | wc -l)\" = 50 ]");
    });
}

#[test]
fn rsync_sends_nothing_twice() {
    in_both_modes(|dir| {
        sh(dir, "rsync -a src/ mnt/run/sync/ && diff -r src mnt/run/sync");
        let again = sh(dir, "rsync -ai src/ mnt/run/sync/");
        assert_eq!(again, "", "nothing has changed");
        sh(
            dir,
            "echo more >> src/numbers && rsync -a --inplace src/ mnt/run/sync/ && diff -r src mnt/run/sync",
        );
        sh(dir, "rsync -a mnt/pub/ fromhere/ && diff -r mnt/pub fromhere");
    });
}

#[test]
fn tar_both_ways() {
    in_both_modes(|dir| {
        sh(dir, "tar -C src -cf - . | tar -C mnt/run -xf - && diff -r src mnt/run");
        sh(
            dir,
            "tar -C mnt/pub -cf - . | sha256sum > one && tar -C mnt/pub -cf - . | sha256sum > two && cmp one two",
        );
    });
}

#[test]
fn git_keeps_a_repository_in_a_staged_dataset() {
    in_both_modes(|dir| {
        let script = "cp -r src/. mnt/run && cd mnt/run && git init -q . && git add -A \
             && git -c user.name=t -c user.email=t@example.org commit -qm first && git fsck --strict \
             && echo changed >> numbers && git diff --stat | grep -q numbers && git status --short";
        assert_eq!(sh(dir, script).trim(), "M numbers");
        sh(dir, "git clone -q mnt/run clone && diff src/sub/random clone/sub/random");
    });
}

#[test]
fn editors_save_by_renaming() {
    in_both_modes(|dir| {
        sh(dir, "echo one > mnt/run/f && sed -i s/one/two/ mnt/run/f && grep -qx two mnt/run/f");
        let script = "vim.tiny -u NONE -i NONE -n -es -c 's/two/three/' -c 'wq' mnt/run/f < /dev/null";
        sh(dir, script);
        assert_eq!(sh(dir, "cat mnt/run/f; ls -A mnt/run"), "three\nf\n");
    });
}

#[test]
fn sqlite_inserts_and_reads() {
    in_both_modes(|dir| {
        let script = "db=mnt/run/a.db; sqlite3 $db 'create table t(i int); insert into t values (1),(2)' \
             && sqlite3 $db 'pragma journal_mode=wal; insert into t values (3)' \
             && sqlite3 $db 'select sum(i) from t; pragma integrity_check'";
        assert_eq!(sh(dir, script), "wal\n6\nok\n");
    });
}

#[test]
fn fio_verifies_what_it_wrote() {
    in_both_modes(|dir| {
        let script = "fio --name=verify --directory=mnt/run --size=16M --rw=randwrite --bs=4k-64k --bsrange=4k-64k \
             --verify=crc32c --verify_fatal=1 --do_verify=1 --ioengine=psync --minimal > fio.out";
        sh(dir, script);
        let script = "fio --name=map --directory=mnt/run --size=8M --rw=randrw --bs=8k --verify=crc32c \
             --verify_fatal=1 --ioengine=mmap --minimal > fio.out";
        sh(dir, script);
    });
}

#[test]
fn find_grep_du_and_pipes() {
    in_both_modes(|dir| {
        assert_eq!(sh(dir, "find mnt/pub -type f | wc -l").trim(), "51");
        assert_eq!(sh(dir, "grep -c '\"i\": 0' mnt/pub/data.jsonl").trim(), "1000");
        assert_eq!(sh(dir, "head -1 mnt/pub/data.jsonl").trim(), "{\"i\": 0}");
        assert_eq!(sh(dir, "du -s --apparent-size --block-size=1 mnt/pub/frames | cut -f1").trim(), "500000");
        assert_eq!(sh(dir, "cat mnt/pub/frames/* | wc -c").trim(), "500000");
        sh(dir, "test ! -w mnt/pub/data.jsonl || [ $(id -u) = 0 ]");
    });
}
