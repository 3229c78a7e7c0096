//! The command `dsfs`, run as a user of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

/// A home directory of its own, with no setting from outside; whatever is mounted in it is unmounted.
pub struct Home {
    dir: TempDir,
}

/// What a run said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The program under test: the one that was built with the tests, or a copy of it that whoever runs them can
/// read.
pub fn program() -> PathBuf {
    std::env::var_os("DSFS_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_dsfs").into(), PathBuf::from)
}

impl Home {
    pub fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(home.path("remote")).unwrap();
        home
    }

    pub fn path(&self, below: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(below)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env_clear().current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("HOME", self.dir.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("XDG_RUNTIME_DIR", self.runtime());
        command
    }

    pub fn runtime(&self) -> PathBuf {
        let dir = self.dir.path().join("run");
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap())
    }

    pub fn run_with(&self, arguments: &[&str], env: &[(&str, &str)]) -> Said {
        Said::of(self.command(arguments).envs(env.iter().copied()).output().unwrap())
    }

    /// `file://` and the directory that is the remote.
    pub fn remote(&self) -> String {
        format!("file://{}/", self.path("remote").display())
    }

    pub fn mount(&self) -> PathBuf {
        let said = self.run(&["mount", "mnt", "--remote", &self.remote()]);
        assert_eq!(said.code, 0, "{}", said.err);
        self.path("mnt")
    }

    pub fn status(&self) -> Value {
        let said = self.run(&["status", "--json"]);
        assert_eq!(said.code, 0, "{}", said.err);
        serde_json::from_str(&said.out).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for mount in ["mnt", "other"] {
            let path = self.dir.path().join(mount);
            let _ = self.command(&["umount", "--lazy", path.to_str().unwrap()]).output();
        }
    }
}

impl Said {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Failed with this code, saying all of this, with a hint and without a panic.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        assert!(self.out.is_empty(), "errors do not go to stdout: {}", self.out);
    }
}
