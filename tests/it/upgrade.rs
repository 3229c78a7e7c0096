//! Another program goes on with a mount, while everything that is open in it stays open.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use crate::common::home::Home;
use crate::common::home::Said;
use crate::common::home::program;
use crate::common::mount::wait_until;

/// A user with a program of their own, which can be replaced.
struct User {
    home: Home,
}

impl User {
    fn new() -> Self {
        let user = Self { home: Home::new() };
        fs::create_dir_all(user.home.path("bin")).unwrap();
        user.install(&fs::read(program()).unwrap());
        user
    }

    fn program(&self) -> PathBuf {
        self.home.path("bin/dsfs")
    }

    /// Puts another program in the place of the installed one, as `install` does.
    fn install(&self, program: &[u8]) {
        let new = self.home.path("bin/new");
        fs::write(&new, program).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, self.program()).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let as_user = self.home.command(arguments);
        let mut command = Command::new(self.program());
        command.args(arguments).env_clear().current_dir(self.home.path("")).stdin(Stdio::null());
        command.envs(as_user.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    fn must(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        said
    }

    fn mnt(&self, path: &str) -> PathBuf {
        self.home.path("mnt").join(path)
    }

    fn pid(&self) -> u64 {
        self.home.status()["mounts"][0]["pid"].as_u64().unwrap()
    }
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 4096) as u8).collect()
}

/// Reads whole files again and again until told to stop; nothing may fail.
fn load(
    paths: Vec<(PathBuf, Vec<u8>)>,
    stop: &Arc<AtomicBool>,
    reads: &Arc<AtomicU64>,
) -> thread::JoinHandle<()> {
    let (stop, reads) = (Arc::clone(stop), Arc::clone(reads));
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for (path, body) in &paths {
                assert!(fs::read(path).unwrap() == *body, "{}", path.display());
            }
            reads.fetch_add(1, Ordering::Relaxed);
        }
    })
}

#[test]
fn what_is_open_stays_open() {
    let user = User::new();
    let (small, large) = (body(10_000), body(3_000_000));
    for (path, body) in [("run/small", &small), ("run/large", &large), ("run/sub/deep", &small)] {
        let path = user.home.path("remote").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }
    for n in 0..3000 {
        let path = user.home.path(&format!("remote/many/{n:04}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    user.must(&["mount", "mnt", "--remote", &user.home.remote()]);
    let pid = user.pid();

    fs::read(user.mnt("run/large")).unwrap(); // whole in the cache: the kernel reads it without us, if it may
    let published = [("run/small", &small), ("run/large", &large)].map(|(path, body)| {
        let mut file = File::open(user.mnt(path)).unwrap();
        let mut first = [0; 1000];
        file.read_exact(&mut first).unwrap();
        assert_eq!(first, body[..1000]);
        (file, body)
    });
    fs::create_dir(user.mnt("mine")).unwrap();
    let mut staged = File::create(user.mnt("mine/notes")).unwrap();
    staged.write_all(b"before, ").unwrap();
    let mut nameless = OpenOptions::new();
    let mut nameless = nameless.read(true).write(true).create_new(true).open(user.mnt("mine/gone")).unwrap();
    nameless.write_all(b"without a name").unwrap();
    fs::remove_file(user.mnt("mine/gone")).unwrap();
    rustix::fs::flock(&staged, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut many = fs::read_dir(user.mnt("many")).unwrap();
    let mut names: BTreeSet<_> = many.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
    let mut shell = Command::new("sh");
    shell.args(["-c", "cd \"$1\" && echo in && read line && ls && cat small | wc -c", "sh"]);
    let mut shell = shell.arg(user.mnt("run")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(shell.stdout.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    let number = fs::metadata(user.mnt("run/sub/deep")).unwrap().ino();

    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let files = vec![(user.mnt("run/small"), small.clone()), (user.mnt("run/large"), large.clone())];
    let readers: Vec<_> = (0..3).map(|_| load(files.clone(), &stop, &reads)).collect();
    for round in 0..3 {
        user.install(&fs::read(program()).unwrap());
        let began = std::time::Instant::now();
        let said = user.must(&["upgrade", "mnt"]);
        eprintln!("upgrade {round}: {:?}", began.elapsed());
        assert!(said.err.contains("goes on with dsfs"), "{}", said.err);
        assert_eq!(user.pid(), pid, "the same process");
        let running = fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino();
        assert_eq!(running, fs::metadata(user.program()).unwrap().ino(), "another program");
        let now = reads.load(Ordering::Relaxed);
        wait_until("reads", || {
            reads.load(Ordering::Relaxed) > now + 3 || readers.iter().any(thread::JoinHandle::is_finished)
        });
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());

    for (file, body) in &published {
        let mut rest = vec![0; body.len() - 1000];
        file.read_exact_at(&mut rest, 1000).unwrap();
        assert!(rest == body[1000..]);
    }
    staged.write_all(b"after").unwrap();
    staged.sync_all().unwrap();
    assert_eq!(fs::read(user.mnt("mine/notes")).unwrap(), b"before, after");
    let mut text = [0; 14];
    nameless.read_exact_at(&mut text, 0).unwrap();
    assert_eq!((&text[..], nameless.metadata().unwrap().nlink()), (&b"without a name"[..], 0));
    let again = File::open(user.mnt("mine/notes")).unwrap();
    assert!(rustix::fs::flock(&again, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err());
    names.extend(many.map(|entry| entry.unwrap().file_name()));
    assert_eq!(names.len(), 3000);
    shell.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let mut listed = String::new();
    said.read_to_string(&mut listed).unwrap();
    assert_eq!(listed, "large\nsmall\nsub\n10000\n");
    assert!(shell.wait().unwrap().success());
    assert_eq!(fs::metadata(user.mnt("run/sub/deep")).unwrap().ino(), number);

    user.run(&["commit", "mine"]).failed(1, &["notes", "open for writing"]);
    drop((staged, again, nameless, published));
    user.must(&["commit", "mine"]);
    assert_eq!(fs::read(user.home.path("remote/mine/notes")).unwrap(), b"before, after");
    assert!(!user.home.path("remote/mine/gone").exists());
    user.must(&["umount", "mnt"]);
}

/// Whether a process ignores a signal.
fn ignores(process: &Path, signal: rustix::process::Signal) -> bool {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    u64::from_str_radix(mask, 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
}

#[test]
fn a_mount_over_the_directory_that_it_was_made_in() {
    let user = User::new();
    for dir in ["remote/run", "mnt"] {
        fs::create_dir_all(user.home.path(dir)).unwrap();
    }
    fs::write(user.home.path("remote/run/a"), "a").unwrap();
    let remote = user.home.remote();
    let mut daemon =
        user.command(&["mount", ".", "--foreground", "--cache-dir", "../kept", "--remote", &remote]);
    let mut daemon = daemon.current_dir(user.mnt("")).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the mount", || user.mnt("run/a").exists());
    wait_until("the daemon", || !user.home.status()["mounts"].as_array().unwrap().is_empty());
    for _ in 0..2 {
        user.install(&fs::read(program()).unwrap());
        user.must(&["upgrade", "mnt"]);
        assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a");
    }
    assert!(!user.mnt("kept").exists() && user.home.path("kept").exists());
    user.must(&["umount", "mnt"]); // which nobody stands in, the daemon neither
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_program_that_cannot_go_on_changes_nothing() {
    let user = User::new();
    fs::create_dir_all(user.home.path("remote/run")).unwrap();
    fs::write(user.home.path("remote/run/a"), "a").unwrap();
    user.run(&["upgrade"]).failed(4, &["no dsfs mount"]);
    user.must(&["mount", "mnt", "--remote", &user.home.remote()]);
    let open = File::open(user.mnt("run/a")).unwrap();
    user.run(&["upgrade", "elsewhere"]).failed(4, &["elsewhere"]);
    let ask = |user: &User| user.home.run(&["upgrade", "mnt"]); // by the other copy of the program
    user.install(b"#!/bin/sh\necho 'of another age' >&2\nexit 2\n");
    ask(&user).failed(1, &["cannot take the mount over: of another age", "nothing has changed"]);
    user.install(b"no program at all");
    ask(&user).failed(1, &["cannot take the mount over", "hint:"]);
    fs::remove_file(user.program()).unwrap();
    ask(&user).failed(1, &["cannot take the mount over", "hint:"]);
    user.install(b"#!/bin/sh\nrm \"$0\"\n");
    ask(&user).failed(1, &["the mount cannot be handed over"]);
    let process = PathBuf::from(format!("/proc/{}", user.pid()));
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    assert!(ignores(&process, rustix::process::Signal::PIPE), "who hangs up must not end the daemon");
    assert_eq!(open.metadata().unwrap().len(), 1);
    assert_eq!(fs::read(user.mnt("run/a")).unwrap(), b"a");
    fs::write(user.mnt("run/b"), "b").unwrap();
    drop(open);
    assert_eq!(user.home.run(&["umount", "mnt"]).code, 0);
}

#[test]
fn nothing_else_begins_while_a_program_is_asked_whether_it_can_go_on() {
    let user = User::new();
    user.must(&["mount", "mnt", "--remote", &user.home.remote()]);
    let go_on = user.home.path("go-on");
    assert!(Command::new("mkfifo").arg(&go_on).status().unwrap().success());
    user.install(b"#!/bin/sh\n: > \"$HOME/asked\"\ncat \"$HOME/go-on\"\necho 'not today' >&2\nexit 2\n");
    let mut upgrade = user.home.command(&["upgrade", "mnt"]);
    let upgrade = upgrade.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the program is asked", || user.home.path("asked").exists());
    for other in [&["upgrade", "mnt"][..], &["umount", "mnt"], &["umount", "--lazy", "mnt"], &["list"]] {
        user.home.run(other).failed(1, &["the daemon is being upgraded", "nothing was done"]);
    }
    fs::write(&go_on, "").unwrap();
    Said::of(upgrade.wait_with_output().unwrap()).failed(1, &["not today", "nothing has changed"]);
    assert_eq!(user.home.run(&["umount", "mnt"]).code, 0);
}
