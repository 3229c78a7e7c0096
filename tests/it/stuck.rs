//! Nobody hangs: the command `dsfs` over a real server that is stopped, killed, or behind a firewall,
//! while programs are in the middle of what they do.
//!
//! What a test measures it prints; it asserts wider bounds than it should find, since the machine may be busy.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use rustix::process::kill_process_group;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::line::Line;
use crate::common::line::State;
use crate::common::mount::wait_until;
use crate::common::servers::Server;

/// How long a process may take to end after a signal. A fifth of it is promised.
const FREED_WITHIN: Duration = Duration::from_secs(1);
/// How long a command may take that needs nothing of the remote.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long a read may wait for a remote that says nothing: silence and probe are 5 s each.
const READ_WITHIN: Duration = Duration::from_secs(25);
/// What the readers of a `DataLoader` do: processes that were forked, each with threads.
const DATALOADER: &str = "
import os, sys, threading
files = sys.argv[1:]
def read():
    for file in files: open(file, 'rb').read()
workers = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        threading.Thread(target=read, daemon=True).start()
        read()
        os._exit(0)
    workers.append(pid)
for pid in workers: os.waitpid(pid, 0)
";

/// A user, a mount, and a server.
struct Lab {
    home: Home,
    line: Line,
    server: Server,
    direct: bool,
}

/// A program that is in the middle of something that needs the remote.
struct Victim {
    what: &'static str,
    child: Child,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        while !group_states(&self.child).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            let _ = self.child.try_wait();
        }
    }
}

impl Victim {
    /// Signals it as a terminal does, with all its children. Returns how long it took until it had
    /// ended, which is when a shell goes on, and until the last of its threads had.
    fn ends_at(mut self, signal: Signal) -> (Duration, Duration) {
        assert!(self.child.try_wait().unwrap().is_none(), "{} was not stuck", self.what);
        let began = Instant::now();
        kill_process_group(Pid::from_child(&self.child), signal).unwrap();
        let mut ended = None;
        loop {
            if self.has_ended() {
                ended.get_or_insert_with(|| began.elapsed());
            }
            let states = group_states(&self.child);
            if let (Some(ended), true) = (ended, states.is_empty()) {
                return (ended, began.elapsed());
            }
            let late = began.elapsed() >= FREED_WITHIN;
            assert!(!late, "{} ignores {signal:?}: its processes are in the states {states:?}", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// The states (`D` is uninterruptible sleep) of the threads that are left of this process's group.
fn group_states(leader: &Child) -> Vec<char> {
    let group = leader.id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let threads = processes.filter_map(|process| fs::read_dir(process.join("task")).ok()).flatten().flatten();
    let states = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let (state, _parent, of) = (fields.next()?.chars().next()?, fields.next()?, fields.next()?);
        (of == group && state != 'Z').then_some(state)
    });
    states.collect()
}

impl Lab {
    /// Datasets `run` (listed, `pinned` pinned), `never0` and so on (not looked at: a new mount lists 16
    /// datasets by itself, which come before them), `mine` (staged).
    fn new(direct: bool) -> Self {
        let server = Server::seaweedfs();
        server.make_bucket_with_boto3();
        server.boto3(
            "for n in range(16): s3.put_object(Bucket=bucket, Key=f'datasets/a{n:02}/x', Body=b'x')\n\
             for name in ['run', 'never0', 'never1', 'never2', 'never3']:\n\
             \x20   for n in range(6): s3.put_object(Bucket=bucket, Key=f'datasets/{name}/f{n}', Body=bytes([n]) * 300000)\n\
             s3.put_object(Bucket=bucket, Key='datasets/run/pinned', Body=b'kept here')\n",
        );
        let line = Line::to(&server.endpoint());
        let lab = Self { home: Home::new(), line, server, direct };
        lab.mount();
        assert_eq!(fs::read_dir(lab.mnt("run")).unwrap().count(), 7);
        lab.must(&["pin", "run/pinned"]);
        // So that a commit has nothing to find out first.
        wait_until("the guarantee", || !lab.home.status()["mounts"][0]["guarantee"].is_null());
        lab
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_REGION", "us-east-1").env("R2_BUCKET", BUCKET);
        let endpoint = if self.direct { self.server.endpoint() } else { self.line.endpoint() };
        command.env("R2_ENDPOINT", endpoint);
        command
    }

    fn must(&self, arguments: &[&str]) -> Said {
        let said = Said::of(self.command(arguments).output().unwrap());
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        said
    }

    fn mount(&self) {
        self.must(&["mount", "mnt", "--list-ttl", "1h"]);
    }

    fn mnt(&self, path: &str) -> PathBuf {
        self.home.path("mnt").join(path)
    }

    fn pid(&self) -> Pid {
        let pid = self.home.status()["mounts"][0]["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Somebody in each kind of call, all stuck by the time that this returns.
    fn victims(&self) -> Vec<Victim> {
        let beside = self.home.path("");
        let start = |what, command: &mut Command| {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Victim { what, child: quiet.process_group(0).spawn().unwrap() }
        };
        let mut loader = Command::new("python3");
        loader.args(["-c", DATALOADER]).args((3..6).map(|n| self.mnt(&format!("run/f{n}"))));
        let victims = vec![
            start("cat", Command::new("cat").arg(self.mnt("run/f0"))),
            start("ls", Command::new("ls").arg(self.mnt("never0"))),
            start("cp from", Command::new("cp").arg(self.mnt("run/f1")).arg(beside.join("copy"))),
            start("cp into", Command::new("cp").arg("/etc/hostname").arg(self.mnt("never1/new"))),
            start("dataloader", &mut loader),
            start("commit", &mut self.command(&["commit", "mine"])),
        ];
        // Not a wait for anything that could be seen: long enough to be stuck, or the test proves less.
        std::thread::sleep(Duration::from_millis(400));
        victims
    }

    fn stage(&self) {
        fs::create_dir_all(self.mnt("mine")).unwrap();
        fs::write(self.mnt("mine/note"), "staged meanwhile").unwrap();
    }

    /// Everything that a remote in this state must not keep anybody from. It is silent already.
    fn nobody_hangs(&self, state: &str) {
        for signal in [Signal::INT, Signal::KILL] {
            for victim in self.victims() {
                let what = victim.what;
                eprintln!("{state}: {what} ended {:?} after {signal:?}", victim.ends_at(signal));
            }
        }
        let began = Instant::now();
        assert_eq!(self.home.status()["mounts"].as_array().unwrap().len(), 1);
        assert!(began.elapsed() < AT_ONCE, "status: {:?}", began.elapsed());
        assert_eq!(fs::read(self.mnt("run/pinned")).unwrap(), b"kept here");
        fs::write(self.mnt("mine/more"), "more").unwrap();
        let began = Instant::now();
        let err = fs::read(self.mnt("run/f2")).unwrap_err();
        eprintln!("{state}: a read failed after {:?}: {err}", began.elapsed());
        assert_eq!(err.raw_os_error(), Some(libc::ENETUNREACH), "{err}");
        assert!(began.elapsed() < READ_WITHIN);
        let began = Instant::now();
        let err = fs::read(self.mnt("run/f2")).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENETUNREACH), "{err}");
        assert!(began.elapsed() < AT_ONCE, "known by now: {:?}", began.elapsed());
        assert!(!self.home.status()["mounts"][0]["offline"].is_null());
        assert_eq!(fs::read(self.mnt("run/pinned")).unwrap(), b"kept here");
    }

    /// The remote is back: so is everything else.
    fn goes_on(&self) {
        wait_until("reads", || fs::read(self.mnt("run/f2")).is_ok_and(|body| body == [2; 300_000]));
        assert_eq!(fs::read_dir(self.mnt("never0")).unwrap().count(), 6);
        self.must(&["commit", "mine"]);
        assert_eq!(fs::read(self.mnt("mine/note")).unwrap(), b"staged meanwhile");
    }
}

#[test]
fn a_stopped_server_holds_nobody() {
    let lab = Lab::new(true);
    lab.stage();
    lab.server.stop();
    lab.nobody_hangs("stopped");
    lab.server.go_on();
    lab.goes_on();

    lab.server.stop();
    let mut victims = lab.victims();
    victims.pop(); // nothing is staged any more
    let said = Said::of(lab.command(&["umount", "mnt"]).output().unwrap());
    said.failed(1, &["busy", "hint:"]);
    drop(victims);
    let began = Instant::now();
    lab.must(&["umount", "mnt"]);
    eprintln!("stopped: unmounted after {:?}", began.elapsed());
    assert!(began.elapsed() < AT_ONCE * 2, "{:?}", began.elapsed());

    lab.mount();
    let mut victims = lab.victims();
    victims.pop();
    let (daemon, began) = (lab.pid(), Instant::now());
    kill_process(daemon, Signal::TERM).unwrap();
    wait_until("the signal has been taken", || {
        kill_process(daemon, Signal::TERM).is_err() || began.elapsed() > Duration::from_millis(500)
    });
    wait_until("the daemon has ended", || kill_process(daemon, Signal::CONT).is_err());
    eprintln!("stopped: the daemon ended {:?} after SIGTERM", began.elapsed());
    for mut victim in victims {
        wait_until(victim.what, || victim.has_ended());
    }
    lab.server.go_on();
    lab.mount();
    assert_eq!(fs::read(lab.mnt("run/f0")).unwrap(), [0; 300_000]);
}

#[test]
fn a_killed_server_holds_nobody() {
    let mut lab = Lab::new(true);
    lab.stage();
    lab.server.stop();
    let mut victims = lab.victims();
    let commit = victims.pop().unwrap();
    let began = Instant::now();
    lab.server.kill();
    for victim in &mut victims {
        wait_until(victim.what, || victim.has_ended());
    }
    eprintln!("killed: everybody was told within {:?}", began.elapsed());
    assert!(began.elapsed() < READ_WITHIN);
    eprintln!("killed: the commit ended {:?} after Ctrl-C", commit.ends_at(Signal::INT));
    wait_until("it is noticed", || !lab.home.status()["mounts"][0]["offline"].is_null());
    assert_eq!(fs::read(lab.mnt("run/pinned")).unwrap(), b"kept here");
    let began = Instant::now();
    let error = fs::read_dir(lab.mnt("never3")).and_then(|mut dir| dir.next().transpose()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    fs::write(lab.mnt("run/staged"), "meanwhile").unwrap();
    lab.server.restart();
    wait_until("it is listed", || fs::read_dir(lab.mnt("never3")).is_ok_and(|dir| dir.count() == 6));
    lab.must(&["commit", "run"]);
}

#[test]
fn a_firewall_holds_nobody() {
    let lab = Lab::new(false);
    lab.stage();
    lab.line.set(State::Black);
    lab.nobody_hangs("firewalled");
    lab.line.set(State::Up);
    lab.goes_on();
}

/// The daemon sleeps as a laptop does; meanwhile its connections have come to nothing, as when it wakes with another address.
#[test]
fn after_a_sleep_new_connections_are_made() {
    let lab = Lab::new(false);
    assert_eq!(fs::read(lab.mnt("run/f0")).unwrap(), [0; 300_000]);
    let daemon = lab.pid();
    kill_process(daemon, Signal::STOP).unwrap();
    lab.line.forget();
    std::thread::sleep(Duration::from_secs(11)); // what it takes for sleep is 10 s
    kill_process(daemon, Signal::CONT).unwrap();
    let began = Instant::now();
    wait_until("reads", || fs::read(lab.mnt("run/f1")).is_ok_and(|body| body == [1; 300_000]));
    eprintln!("slept: read again after {:?}", began.elapsed());
    assert!(began.elapsed() < READ_WITHIN);
    assert_eq!(fs::read_dir(lab.mnt("never0")).unwrap().count(), 6);
}
