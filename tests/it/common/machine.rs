//! One of several machines that mount the same bucket.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::servers::Server;

/// A machine with its own home and mount.
pub struct Machine<'s> {
    server: &'s Server,
    pub home: Home,
    pub user: &'static str,
}

impl Machine<'_> {
    /// Mounts, with these flags.
    pub fn new<'s>(server: &'s Server, user: &'static str, flags: &[&str]) -> Machine<'s> {
        let machine = Machine { server, home: Home::new(), user };
        machine.must(&[&["mount", "mnt"], flags].concat());
        machine
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_REGION", "us-east-1").env("R2_ENDPOINT", self.server.endpoint());
        command.env("R2_BUCKET", BUCKET).env("USER", self.user);
        command
    }

    pub fn must(&self, arguments: &[&str]) -> Said {
        let said = Said::of(self.command(arguments).output().unwrap());
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        said
    }

    /// Starts a command that is looked at later.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn mnt(&self, path: &str) -> PathBuf {
        self.home.path("mnt").join(path)
    }

    pub fn stage(&self, path: &str, content: &str) {
        let path = self.mnt(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn staged_files(&self) -> u64 {
        let status = self.home.status();
        let staged = status["mounts"][0]["staged"].as_array().unwrap();
        staged.iter().filter_map(|dataset| dataset["files"].as_u64()).sum()
    }
}
