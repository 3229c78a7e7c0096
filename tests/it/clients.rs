//! The whole way with real S3 servers, and with a client that is not ours (boto3) on the other side.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;
use crate::common::home::Home;
use crate::common::mount::wait_until;
use crate::common::servers::Server;
use crate::common::servers::tool;

/// A user of a server: the command, and boto3.
struct User<'s> {
    home: Home,
    server: &'s Server,
}

impl User<'_> {
    fn new(server: &Server) -> User<'_> {
        User { home: Home::new(), server }
    }

    fn env(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", "us-east-1".into()),
            ("R2_BUCKET", BUCKET.into()),
            ("R2_ENDPOINT", self.server.endpoint()),
        ]
    }

    /// Runs the command; what it said, and its exit code.
    fn dsfs(&self, arguments: &[&str]) -> (i32, String) {
        let env = self.env();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let said = self.home.run_with(arguments, &env);
        (said.code, format!("{}{}", said.out, said.err))
    }

    fn must(&self, arguments: &[&str]) -> String {
        let (code, said) = self.dsfs(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    }

    /// Runs Python with `s3`, a boto3 client, and `bucket`; what it printed.
    fn python(&self, script: &str) -> String {
        let start = format!(
            "import boto3, hashlib, os, sys\n\
             s3 = boto3.client('s3', endpoint_url='{}', region_name='us-east-1', \
             aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}')\n\
             bucket = '{BUCKET}'\n",
            self.server.endpoint()
        );
        let mut child = Command::new(tool("python"))
            .arg("-")
            .current_dir(self.home.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all((start + script).as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn mnt(&self) -> std::path::PathBuf {
        self.home.path("mnt")
    }
}

/// Makes files of many sizes and odd names under `dir`.
fn make_files(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er")).unwrap();
    let sizes: [(&str, u64); 7] = [
        ("empty", 0),
        ("one", 1),
        ("deep/with space + plus", 4096),
        ("deep/ünïcode 100%", 100_000),
        ("deep/er/block", 131_072),
        ("large.bin", 9 << 20),
        ("larger.bin", 20_000_001),
    ];
    for (name, size) in sizes {
        let body: Vec<u8> = (0..size).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(dir.join(name), body).unwrap();
    }
    fs::write(dir.join("data.jsonl"), "{\"frame\": 0}\n").unwrap();
}

fn same_trees(one: &Path, other: &Path) {
    let output = Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What boto3 uploads is read through the mount, what the mount commits is read by boto3, and
/// what exists is never overwritten.
fn both_ways(server: &Server) {
    let user = User::new(server);
    make_files(&user.home.path("src"));
    user.python(
        "for root, _, files in os.walk('src'):\n for f in files:\n  p = os.path.join(root, f)\n  \
         s3.upload_file(p, bucket, 'datasets/up/' + os.path.relpath(p, 'src'))\n",
    );
    user.must(&["mount", "mnt"]);
    same_trees(&user.home.path("src"), &user.mnt().join("up"));

    let copied =
        Command::new("cp").args(["-r", "src"]).arg(user.mnt().join("down")).current_dir(user.home.path(""));
    assert!({ copied }.status().unwrap().success());
    let status = user.must(&["status", "down"]);
    assert!(status.contains("larger.bin"), "{status}");
    user.must(&["commit", "down", "-m", "first"]);
    let script = "for root, _, files in os.walk('src'):\n for f in files:\n  p = os.path.join(root, f)\n  \
                  body = s3.get_object(Bucket=bucket, Key='datasets/down/' + os.path.relpath(p, 'src'))['Body'].read()\n  \
                  assert body == open(p, 'rb').read(), p\n  print(p)\n";
    assert_eq!(user.python(script).lines().count(), 8);
    same_trees(&user.home.path("src"), &user.mnt().join("down"));

    conflict(&user);
    user.must(&["umount", "mnt"]);
}

/// Somebody else puts an object where a staged file wants to go.
fn conflict(user: &User<'_>) {
    fs::write(user.mnt().join("down/new"), "ours").unwrap();
    fs::write(user.mnt().join("down/other"), "ours too").unwrap();
    let head =
        "h = s3.head_object(Bucket=bucket, Key='datasets/down/new'); print(h['ETag'], h['ContentLength'])\n";
    user.python("s3.put_object(Bucket=bucket, Key='datasets/down/new', Body=b'theirs!')\n");
    let before = user.python(head);
    let (code, said) = user.dsfs(&["commit", "down"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("new"), "{said}");
    assert_eq!(user.python(head), before, "what was there is as it was");
    let listed = user.python("print([o['Key'] for o in s3.list_objects_v2(Bucket=bucket, Prefix='datasets/down/o').get('Contents', [])])\n");
    assert_eq!(listed.trim(), "[]", "nothing of the commit was published");
    assert_eq!(
        fs::read(user.mnt().join("down/other")).unwrap(),
        b"ours too",
        "and nothing that was staged is lost"
    );
    user.must(&["discard", "down", "new", "--yes"]);
    user.must(&["commit", "down"]);
}

#[test]
fn ministack_and_boto3() {
    both_ways(&Server::ministack());
}

#[test]
fn seaweedfs_and_boto3() {
    let server = Server::seaweedfs();
    server.make_bucket_with_boto3();
    both_ways(&server);
}

/// Two machines: what one commits appears on the other, whole.
#[test]
fn a_commit_appears_on_another_machine() {
    let server = Server::ministack();
    let (one, two) = (User::new(&server), User::new(&server));
    one.must(&["mount", "mnt"]);
    two.must(&["mount", "mnt", "--list-ttl", "1s"]);
    fs::create_dir(one.mnt().join("run")).unwrap();
    for i in 0..50 {
        fs::write(one.mnt().join(format!("run/{i:02}")), format!("frame {i}")).unwrap();
    }
    one.must(&["commit", "run"]);
    let mut seen = Vec::new();
    wait_until("the commit on the other machine", || {
        let count = fs::read_dir(two.mnt().join("run")).map_or(0, Iterator::count);
        seen.push(count);
        count == 50
    });
    assert!(seen.iter().all(|count| matches!(count, 0 | 50)), "never in part: {seen:?}");
    assert_eq!(fs::read_to_string(two.mnt().join("run/07")).unwrap(), "frame 7");
    one.must(&["umount", "mnt"]);
    two.must(&["umount", "mnt"]);
}
