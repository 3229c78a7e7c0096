//! What others do to the bucket while it is read: commits of another machine, overwrites and deletions by a
//! tool that knows nothing of dsfs (boto3).
//!
//! Shell loops compare checksums: what they read is one version, whole, or an error that says so; never the
//! bytes of two. `DSFS_FOREIGN_SECONDS=180` makes a soak of it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::common::machine::Machine;
use crate::common::mount::wait_until;
use crate::common::servers::Server;

const SECONDS_DEFAULT: u64 = 8;
/// A version that is there for so long is what a new read sees; listings are kept for a second.
const SEEN_WITHIN: Duration = Duration::from_secs(12);

/// Puts versions of `overwritten` (3 MiB) and `comes-and-goes`, deleting the latter in between, and says so:
/// a line with path, number and checksum before each, for it may be read before the answer is here.
const FOREIGN_TOOL: &str = "
import random, threading
def body(version, size): return b''.join(b'%07d %07d\\n' % (version, n) for n in range(size // 16))
version = 0
while True:
    version += 1
    for path, size in (('overwritten', 3 << 20), ('comes-and-goes', 40000)):
        data = body(version, size + version % 7 * 16)
        print(path, version, hashlib.sha256(data).hexdigest(), flush=True)
        s3.put_object(Bucket=bucket, Key=f'datasets/run/{path}', Body=data)
    time.sleep(random.random())
    s3.delete_object(Bucket=bucket, Key='datasets/run/comes-and-goes')
    time.sleep(random.random())
";

/// What a process has said, and when.
type Said = Vec<(Instant, String)>;

/// A process whose lines are taken down as they come.
struct Lines {
    child: Child,
    said: Arc<Mutex<Said>>,
    taker: Option<JoinHandle<()>>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let said = Arc::<Mutex<Said>>::default();
        let taken = Arc::clone(&said);
        let take = move || {
            out.lines()
                .map_while(Result::ok)
                .for_each(|line| taken.lock().unwrap().push((Instant::now(), line)));
        };
        Self { child, said, taker: Some(thread::spawn(take)) }
    }

    /// How many versions a loop of [`checksums`] has read so far.
    fn versions_read(&self) -> usize {
        let said = self.said.lock().unwrap();
        let sums = said.iter().filter_map(|(_, line)| line.split_once("  "));
        sums.map(|(sum, _)| sum).collect::<HashSet<_>>().len()
    }

    /// Ends it, and returns what it has said.
    fn end(mut self) -> Said {
        self.child.kill().unwrap();
        self.taker.take().unwrap().join().unwrap();
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

/// A shell loop that prints checksums of a file, or why it has none.
fn checksums(path: &Path) -> Lines {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do sha256sum \"$1\" 2>&1 || sleep 0.01; done", "loop"]).arg(path);
    Lines::of(command.env("LC_ALL", "C"))
}

/// When each version began to be there, by path and checksum.
type Versions = HashMap<(String, String), (u64, Instant)>;

fn versions(said: &[(Instant, String)]) -> Versions {
    let parsed = said.iter().map(|(at, line)| {
        let fields: Vec<&str> = line.split(' ').collect();
        ((fields[0].to_owned(), fields[2].to_owned()), (fields[1].parse().unwrap(), *at))
    });
    parsed.collect()
}

/// Holds what a loop has read against what was there.
fn judge(path: &str, read: &[(Instant, String)], versions: &Versions) {
    let (mut newest, mut seen, mut refused) = (0, Vec::new(), 0);
    for (at, line) in read {
        let Some((sum, _)) = line.split_once("  ") else {
            let expected = ["Stale file handle", "No such file"];
            assert!(expected.iter().any(|word| line.contains(word)), "{path}: {line}");
            refused += 1;
            continue;
        };
        let key = (path.to_owned(), sum.to_owned());
        let (version, _) = versions.get(&key).unwrap_or_else(|| panic!("{path}: {sum} is no version of it"));
        assert!(*version >= newest, "{path}: version {version} after {newest}");
        newest = *version;
        let by_then = at.checked_sub(SEEN_WITHIN);
        let old = versions
            .iter()
            .filter(|((of, _), (_, since))| of == path && by_then.is_some_and(|then| *since < then));
        let due = old.map(|(_, (version, _))| *version).max().unwrap_or(0);
        assert!(
            newest >= due,
            "{path}: version {newest} was read {SEEN_WITHIN:?} after version {due} had come"
        );
        seen.push(*version);
    }
    let reads = seen.len();
    seen.dedup();
    eprintln!("{path}: {reads} reads of {} versions, {refused} refused", seen.len());
    assert!(seen.len() > 1, "{path}: {seen:?}");
}

/// Ends the readers also when what they are held against has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads a file through one handle, slowly. Returns whether it was told that its version is gone.
fn read_slowly(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let (mut body, mut buffer) = (Vec::new(), vec![0; 200_000]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => body.extend_from_slice(&buffer[..count]),
            Err(err) => {
                assert_eq!(err.raw_os_error(), Some(libc::ESTALE), "{err}");
                return true;
            }
        }
        thread::sleep(Duration::from_millis(40));
    }
    let version = &body[..7];
    for (number, line) in body.chunks(16).enumerate() {
        assert_eq!(line, [version, format!(" {number:07}\n").as_bytes()].concat(), "line {number}");
    }
    false
}

/// The number that a file of another machine's commit holds; 0 where there is none at the moment.
fn number(path: &Path) -> u64 {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().unwrap(),
        Err(err) => {
            assert!(matches!(err.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)), "{err}");
            0
        }
    }
}

#[test]
fn what_others_change_is_read_in_one_version_or_not_at_all() {
    let server = Server::seaweedfs();
    server.make_bucket_with_boto3();
    let reader = Machine::new(&server, "ann", &["--list-ttl", "1s"]);
    let writer = Machine::new(&server, "bob", &["--allow-replace", "--list-ttl", "1s"]);
    writer.stage("pair/x", "1");
    writer.stage("pair/y", "1");
    writer.must(&["commit", "pair"]);

    let tool = Lines::of(&mut server.boto3_command(FOREIGN_TOOL));
    wait_until("both files", || reader.mnt("run/comes-and-goes").exists());
    let paths = ["overwritten", "comes-and-goes"];
    let loops = paths.map(|path| checksums(&reader.mnt(&format!("run/{path}"))));
    let seconds = std::env::var("DSFS_FOREIGN_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT));
    let done = AtomicBool::new(false);
    let (mut commits, mut pairs, mut stale) = (1, 0, 0);
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let mut refused = 0;
            while !done.load(Ordering::Relaxed) {
                refused += u64::from(read_slowly(&reader.mnt("run/overwritten")));
            }
            refused
        });
        // A commit is seen whole: whoever has seen it in one file sees it, or a later one, in the other.
        let in_pairs = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let (first, second) =
                    if looks % 2 == 0 { ("pair/x", "pair/y") } else { ("pair/y", "pair/x") };
                let (before, after) = (number(&reader.mnt(first)), number(&reader.mnt(second)));
                assert!(after == 0 || after >= before, "{first} {before}, then {second} {after}");
                looks += 1;
            }
            looks
        });
        let ending = Ending(&done);
        while Instant::now() < end {
            commits += 1;
            for path in ["pair/x", "pair/y"] {
                wait_until("it can be replaced", || fs::write(writer.mnt(path), commits.to_string()).is_ok());
            }
            writer.must(&["commit", "pair", "--overwrite"]);
        }
        // One is there for half a second at a time: how often a loop meets it is chance.
        for (path, read) in paths.iter().zip(&loops) {
            wait_until(&format!("versions of {path}"), || read.versions_read() > 1);
        }
        drop(ending);
        stale = slow.join().unwrap();
        pairs = in_pairs.join().unwrap();
    });
    wait_until("the last commit", || number(&reader.mnt("pair/y")) == commits);
    eprintln!("{commits} commits, {pairs} looks at two files of them; {stale} slow readers were told ESTALE");
    let versions = versions(&tool.end());
    for (path, read) in paths.into_iter().zip(loops) {
        judge(path, &read.end(), &versions);
    }
}
