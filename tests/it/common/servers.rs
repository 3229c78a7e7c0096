//! Real S3 servers, from the Python environment that `DSFS_TEST_VENV` names
//! (`scripts/test-env.sh` makes it). A missing server is a failed test, never a skipped one.

use std::env;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use dsfs::store::s3::S3Credentials;
use dsfs::store::s3::S3Options;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use tempfile::TempDir;

use crate::common::double::ACCESS_KEY;
use crate::common::double::BUCKET;
use crate::common::double::SECRET_KEY;

/// SeaweedFS elects a leader first; the machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A real server with one bucket, killed and forgotten when dropped.
pub struct Server {
    command: Command,
    is_ready: fn(u16) -> bool,
    child: Child,
    port: u16,
    pub root: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub fn tool(name: &str) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration of their own")]
    let venv = env::var_os("DSFS_TEST_VENV")
        .expect("DSFS_TEST_VENV names the environment that scripts/test-env.sh makes");
    let path = PathBuf::from(venv).join("bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/test-env.sh", path.display());
    path
}

/// Ports that nobody uses at this moment, all different. They lie below those that the kernel gives to
/// outgoing connections, which would take one away before the server has it.
fn free_ports<const N: usize>() -> [u16; N] {
    let mut listeners = Vec::with_capacity(N);
    while listeners.len() < N {
        listeners.extend(TcpListener::bind(("127.0.0.1", rand::random_range(10_000..32_768))));
    }
    let mut ports = listeners.iter().map(|listener| listener.local_addr().expect("bound").port());
    std::array::from_fn(|_| ports.next().expect("as many as asked for"))
}

/// The status of a bare request, without any client library.
fn status(port: u16, method: &str, path: &str) -> Option<u16> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    let _until_closed = socket.read_to_string(&mut answer);
    answer.split(' ').nth(1)?.parse().ok()
}

impl Server {
    fn start(mut command: Command, port: u16, root: TempDir, is_ready: fn(u16) -> bool) -> Self {
        let log = fs::File::create(root.path().join("server.log")).expect("a temporary directory");
        let errors = log.try_clone().expect("a file");
        command.current_dir(root.path()).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().expect("the server starts");
        let mut server = Self { command, is_ready, child, port, root }; // from here on, drop kills the child
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while !(self.is_ready)(self.port) {
            let ended = self.child.try_wait().expect("our own child");
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.root.path().join("server.log")).unwrap_or_default();
                panic!("{:?} did not start (ended: {ended:?}):\n{log}", self.command);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGSTOP: connections are taken by the kernel, and nothing is ever answered.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// SIGKILL: connections are reset, then refused.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// The same server once more, with what it had on its disk.
    pub fn restart(&mut self) {
        self.child = self.command.spawn().expect("the server starts");
        self.wait_until_ready();
    }

    /// ministack: exact conditional writes, no authentication.
    pub fn ministack() -> Self {
        let [port] = free_ports();
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(tool("ministack"));
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("SERVICES", "s3");
        let server = Self::start(command, port, root, |port| status(port, "GET", "/").is_some());
        let made = status(port, "PUT", &format!("/{BUCKET}"));
        assert_eq!(made, Some(200), "ministack makes the bucket");
        server
    }

    /// SeaweedFS: a real engine with real authentication.
    pub fn seaweedfs() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let config = format!(
            r#"{{"identities":[{{"name":"dsfs","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        fs::write(root.path().join("s3.json"), config).expect("a temporary directory");
        fs::create_dir(root.path().join("data")).expect("a temporary directory");
        let [s3, master, volume, filer, master_grpc, volume_grpc, filer_grpc, s3_grpc] = free_ports();
        let mut command = Command::new(tool("weed"));
        command.arg("server").args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-dir=data"]);
        command.args(["-master.volumeSizeLimitMB=64", "-volume.max=50", "-s3.config=s3.json"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        for (flag, port) in [
            ("s3.port", s3),
            ("s3.port.grpc", s3_grpc),
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
        ] {
            command.arg(format!("-{flag}={port}"));
        }
        // It answers 403 to strangers when the identities are loaded.
        Self::start(command, s3, root, |port| status(port, "GET", "/") == Some(403))
    }

    /// `rclone serve s3`: real authentication, and no conditional write at all.
    pub fn rclone() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(root.path().join("data").join(BUCKET)).expect("a temporary directory");
        let [port] = free_ports();
        let mut command = Command::new(tool("rclone"));
        command.args(["serve", "s3", "--config", "/dev/null", "--addr", &format!("127.0.0.1:{port}")]);
        command.args(["--auth-key", &format!("{ACCESS_KEY},{SECRET_KEY}"), "data"]);
        Self::start(command, port, root, |port| status(port, "GET", "/").is_some())
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn options(&self, bucket: &str, secret: &str) -> S3Options {
        let credentials = S3Credentials::keys(ACCESS_KEY, secret);
        S3Options::new(bucket, Some(&self.endpoint()), "us-east-1", credentials)
    }

    /// Makes the bucket and waits until it takes objects, with a client that is not ours.
    pub fn make_bucket_with_boto3(&self) {
        self.boto3(
            "for attempt in range(120):\n\
             \x20   try:\n\
             \x20       s3.create_bucket(Bucket=bucket) if attempt == 0 else None\n\
             \x20       s3.put_object(Bucket=bucket, Key='ready', Body=b'1')\n\
             \x20       s3.delete_object(Bucket=bucket, Key='ready')\n\
             \x20       break\n\
             \x20   except Exception as err:\n\
             \x20       print(err); time.sleep(0.5)\n\
             else:\n\
             \x20   raise SystemExit('the bucket takes no objects')\n",
        );
    }

    /// Runs Python lines that have `s3`, a client that is not ours, and `bucket`.
    pub fn boto3(&self, lines: &str) {
        let done = self.boto3_command(lines).output().expect("python starts");
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&said));
    }

    /// The same as a process that is still to be started.
    pub fn boto3_command(&self, lines: &str) -> Command {
        let script = format!(
            "import boto3, hashlib, sys, time\n\
             s3 = boto3.client('s3', endpoint_url='{}', region_name='us-east-1', aws_access_key_id='{ACCESS_KEY}', aws_secret_access_key='{SECRET_KEY}')\n\
             bucket = '{BUCKET}'\n{lines}",
            self.endpoint()
        );
        let mut command = Command::new(tool("python"));
        command.args(["-c", &script]);
        command
    }
}
