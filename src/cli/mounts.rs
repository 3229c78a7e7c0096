//! The mounts of this user: those whose daemons answer, and those whose do not.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::thread;

use serde::Serialize;

use crate::config::Directories;
use crate::control;
use crate::control::client::CallError;
use crate::control::client::Client;
use crate::control::client::LOOK_PATIENCE;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::message::MountStatus;
use crate::control::message::Reply;
use crate::control::message::Request;
use crate::daemon::mountinfo;
use crate::name::DatasetName;

/// All that listen where this user's daemons do.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Who answers, by the mount point, with the socket.
    pub live: Vec<(PathBuf, MountStatus)>,
    /// Who does not.
    pub mute: Vec<Mute>,
}

/// A daemon that nothing can be asked.
#[derive(Clone, Debug, Serialize)]
pub struct Mute {
    /// Where it has mounted the datasets, if that is still in the kernel's table.
    pub mountpoint: Option<PathBuf>,
    /// Its process, where the kernel says.
    pub pid: Option<i32>,
    /// What is wrong with it.
    pub problem: Problem,
    /// Why it cannot say how it is, in its own words.
    pub reason: Option<String>,
    /// Where it listens.
    #[serde(skip)]
    pub socket: PathBuf,
}

/// Why a daemon cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// It says nothing: it hangs, or is stopped.
    Silent,
    /// It does not understand this command, or the other way round.
    OtherVersion,
    /// It answers, and cannot say how it is.
    Failing,
}

/// What a daemon says when it is asked how it is; `None` if it has ended meanwhile.
enum Heard {
    Status(Box<MountStatus>),
    Nothing { problem: Problem, reason: Option<String>, pid: Option<i32> },
}

/// Asks all daemons of this user at once; for a dataset's staged files too.
#[must_use]
pub fn all(directories: &Directories, files_of: Option<&DatasetName>) -> Mounts {
    let files = directories.runtime.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let sockets: Vec<PathBuf> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "sock"))
        .collect();
    let heard: Vec<Option<Heard>> = thread::scope(|scope| {
        let asked: Vec<_> = sockets.iter().map(|socket| scope.spawn(|| ask(socket, files_of))).collect();
        asked.into_iter().map(|asked| asked.join().ok().flatten()).collect()
    });
    let mut mounts = Mounts::default();
    for (socket, heard) in sockets.into_iter().zip(heard) {
        match heard {
            None => {}
            Some(Heard::Status(status)) => mounts.live.push((socket, *status)),
            Some(Heard::Nothing { problem, reason, pid }) => {
                let mountpoint = mountpoint_of(&socket);
                mounts.mute.push(Mute { mountpoint, pid, problem, reason, socket });
            }
        }
    }
    mounts.live.sort_by(|a, b| a.1.mountpoint.cmp(&b.1.mountpoint));
    mounts.live.dedup_by(|a, b| a.1.pid == b.1.pid);
    mounts.mute.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    mounts
}

/// Asks the simplest question that there is.
fn ask(socket: &Path, files_of: Option<&DatasetName>) -> Option<Heard> {
    let client = Client::connect_for(socket, LOOK_PATIENCE).ok()?;
    let pid = client.peer().ok().map(|peer| peer.pid());
    let request = Request::Status { files_of: files_of.cloned() };
    let nothing = |problem, reason| Some(Heard::Nothing { problem, reason, pid });
    match client.ask(&request, &mut |_| {}) {
        Ok(Reply::Status(status)) => Some(Heard::Status(status)),
        Err(CallError::Silent(_)) => nothing(Problem::Silent, None),
        Err(CallError::Refused(failure)) => nothing(Problem::Failing, Some(failure.message)),
        Ok(_) | Err(CallError::NotUnderstood(_) | CallError::Garbled(_)) => {
            nothing(Problem::OtherVersion, None)
        }
        Err(CallError::Lost(_)) => None,
    }
}

/// A socket's name is a hash of the mount point, so that this is found by trying all mounts.
fn mountpoint_of(socket: &Path) -> Option<PathBuf> {
    let dir = socket.parent()?;
    let mounts = mountinfo::mounts().ok()?.into_iter().filter(mountinfo::Mount::is_dsfs);
    mounts.map(|mount| mount.mountpoint).find(|mountpoint| control::socket_path(dir, mountpoint) == socket)
}

impl Mute {
    /// One sentence, and what to do.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let who = self.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let daemon = match &self.mountpoint {
            Some(at) => format!("the daemon of {}{who}", at.display()),
            None => format!("a daemon without a mount{who}"),
        };
        let message = match self.problem {
            Problem::Silent => format!("{daemon} does not answer: it hangs, or is stopped"),
            Problem::OtherVersion => format!("{daemon} is of another version of dsfs, and cannot be asked"),
            Problem::Failing => {
                format!("{daemon} cannot say how it is: {}", self.reason.as_deref().unwrap_or("it fails"))
            }
        };
        Failure::new(FailureKind::Failed, message).hint(self.hint())
    }

    fn hint(&self) -> String {
        let at = self.mountpoint.as_ref().map(|at| at.display());
        match (self.problem, at, self.pid) {
            (Problem::Failing, Some(at), _) => {
                format!("try again; if that stays so, `dsfs umount {at}`, then `dsfs mount`")
            }
            (Problem::Failing, None, _) => "try again".to_owned(),
            (Problem::Silent, Some(at), _) => format!("`dsfs umount --lazy {at}` unmounts without it"),
            (Problem::OtherVersion, Some(at), _) => format!("`dsfs umount {at}`, then `dsfs mount`"),
            // Nothing is left that could be unmounted.
            (Problem::Silent, None, Some(pid)) => format!("`kill -9 {pid}` ends it; what is staged stays"),
            (Problem::OtherVersion, None, Some(pid)) => format!("`kill {pid}` ends it; what is staged stays"),
            (Problem::Silent | Problem::OtherVersion, None, None) => {
                format!("whoever listens at {} has to be ended; what is staged stays", self.socket.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_unmount_what_is_not_mounted() {
        let mounted = Mute {
            mountpoint: Some("/data".into()),
            pid: Some(7),
            problem: Problem::Silent,
            reason: None,
            socket: "/run/dsfs/x.sock".into(),
        };
        let hint = |mute: &Mute| mute.failure().hint.unwrap();
        assert!(hint(&mounted).contains("`dsfs umount --lazy /data`"));
        let unmounted = Mute { mountpoint: None, ..mounted };
        assert_eq!(hint(&unmounted), "`kill -9 7` ends it; what is staged stays");
        let other = Mute { problem: Problem::OtherVersion, ..unmounted };
        assert_eq!(hint(&other), "`kill 7` ends it; what is staged stays");
        assert!(!hint(&Mute { pid: None, ..other }).contains("umount"));
    }
}
