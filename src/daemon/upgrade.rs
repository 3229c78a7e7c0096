//! Another program goes on with a mount: `dsfs upgrade`.
//!
//! The process stays and the program changes, by exec: so the connection to the kernel, the lock of the
//! staging area and every open staged file stay where they are, as does the process id that a service manager
//! watches. What else the next program has to know is written down in a file in memory.
//!
//! 1. **Rehearsal.** The program at the path that this one was started from is run with the same arguments and
//!    [`CAN_TAKE_OVER_FLAG`]; it says whether it understands them, and the form of what is written down.
//! 2. **Standstill.** The gate of the session closes (`fuse::gate`): requests wait in the kernel.
//! 3. **Exec.** The next program finds descriptors under the numbers that it reads, puts inodes and handles
//!    back, and reads the first request.
//!
//! Whatever goes wrong before the exec is undone by opening the gate. A command under way is not interrupted:
//! the upgrade is refused.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Seek;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::Serialize;
use tokio::time;

use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::daemon::descriptor;
use crate::daemon::process;
use crate::fs::DatasetFs;
use crate::fs::handover::Item;
use crate::fs::handover::Passed;
use crate::fuse::Inherited;
use crate::fuse::Standstill;
use crate::staging::Staging;
use crate::tree::inode::Ino;

/// Of what is written down.
const FORMAT: u32 = 2;
/// The oldest that is read: it has no times before 1970, and is the same otherwise.
const FORMAT_MIN: u32 = 1;
/// Asks a program whether it can go on with a mount of these arguments. Not for users.
pub const CAN_TAKE_OVER_FLAG: &str = "--can-take-over";
/// Tells a program where it is written down what it goes on with. Not for users.
pub const TAKE_OVER_FLAG: &str = "--take-over";

/// How long the next program may take to say whether it can.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests under way may take to be answered.
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How this program was started.
#[derive(Clone, Debug)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
    directory: Directory,
}

/// Where a program was started, which is where its relative arguments lead from.
#[derive(Clone, Debug)]
enum Directory {
    Named(PathBuf),
    /// At the mount point or below it: once the mount is there, the name leads into that, and whoever goes
    /// there waits for an answer of ours. The mount keeps this directory busy as it is.
    Covered(Arc<OwnedFd>),
}

/// What can be upgraded: a mount, and the program that serves it.
#[derive(Debug)]
pub struct Upgrade {
    /// This one.
    pub program: Program,
    /// Of the session.
    pub standstill: Standstill,
}

/// What is written down first.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    mountpoint: PathBuf,
    mounted: String,
    device: RawFd,
    lock: RawFd,
    backings: Vec<(Ino, u32)>,
}

/// What the program before this one has written down.
#[derive(Debug)]
pub struct Inheritance {
    header: Header,
    items: BufReader<File>,
}

impl Program {
    /// This program, as long as its file is where it was started from. To be called where it was started, and
    /// before anything is mounted; the mount point is without symbolic links.
    ///
    /// # Errors
    /// Its file or the working directory are not known.
    pub fn this(mountpoint: &Path) -> io::Result<Self> {
        let is_ours = |argument: &OsString| argument.to_string_lossy().starts_with(TAKE_OVER_FLAG);
        let arguments = std::env::args_os().skip(1).filter(|argument| !is_ours(argument)).collect();
        let directory = match std::env::current_dir()? {
            inside if inside.starts_with(mountpoint) => Directory::Covered(Arc::new(working_directory()?)),
            elsewhere => Directory::Named(elsewhere),
        };
        Ok(Self { file: std::env::current_exe()?, arguments, directory })
    }

    fn command(&self, flag: &str, value: impl std::fmt::Display) -> Command {
        let mut command = Command::new(&self.file);
        command.args(&self.arguments).arg(format!("{flag}={value}"));
        match &self.directory {
            Directory::Named(path) => command.current_dir(path),
            Directory::Covered(fd) => command.current_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        };
        command
    }

    /// Changes the program; returns only if that failed.
    fn exec(&self, written: RawFd) -> io::Error {
        let here = match working_directory() {
            Ok(here) => here,
            Err(err) => return err,
        };
        let err = self.command(TAKE_OVER_FLAG, written).exec();
        // What has been prepared for the other program is ours again.
        process::ignore_broken_pipes();
        if let Err(err) = rustix::process::fchdir(here) {
            tracing::warn!("the working directory is another one now: {err}");
        }
        err
    }

    /// Whether the program that is at this one's path now can go on.
    async fn rehearse(&self) -> Result<(), Failure> {
        let refused = |why: String| {
            let message = format!("{} cannot take the mount over: {why}", self.file.display());
            Failure::new(FailureKind::Failed, message)
                .hint("nothing has changed; `dsfs umount`, then `dsfs mount`, changes the program too")
        };
        let mut command = tokio::process::Command::from(self.command(CAN_TAKE_OVER_FLAG, FORMAT));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = time::timeout(REHEARSAL_TIMEOUT, command.output()).await;
        let output = output.map_err(|_| refused("it does not say whether it can".into()))?;
        let output = output.map_err(|err| refused(err.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(refused(said.lines().next().unwrap_or("it does not say why").to_owned()))
    }
}

impl Upgrade {
    /// Lets the program at this one's path go on with the mount. Returns only if that failed, in which case
    /// this one goes on.
    pub async fn run(&self, fs: &DatasetFs, staging: &Staging, mountpoint: &Path, mounted: &str) -> Failure {
        if let Err(failure) = self.program.rehearse().await {
            return failure;
        }
        tokio::task::block_in_place(|| {
            let inherited = match self.standstill.stand_still(STANDSTILL_TIMEOUT) {
                Ok(inherited) => inherited,
                Err(err) => {
                    return Failure::new(
                        FailureKind::Failed,
                        format!("the mount cannot be handed over: {err}"),
                    )
                    .hint("nothing has changed; try again, or look at `dsfs status`");
                }
            };
            let header = Header {
                format: FORMAT,
                mountpoint: mountpoint.to_owned(),
                mounted: mounted.to_owned(),
                device: inherited.device.as_raw_fd(),
                lock: staging.lock_file().as_raw_fd(),
                backings: inherited.backings.clone(),
            };
            let err = self.exec(&header, fs);
            self.standstill.go_on();
            Failure::new(FailureKind::Failed, format!("the mount cannot be handed over: {err}"))
        })
    }

    fn exec(&self, header: &Header, fs: &DatasetFs) -> io::Error {
        let (file, descriptors) = match write_down(header, fs) {
            Ok(written) => written,
            Err(err) => return err,
        };
        tracing::info!("{} goes on with {}", self.program.file.display(), header.mountpoint.display());
        let err = match descriptor::inherit(&descriptors, true) {
            Ok(()) => self.program.exec(file.as_raw_fd()),
            Err(err) => err,
        };
        if let Err(err) = descriptor::inherit(&descriptors, false) {
            tracing::warn!("programs that this one starts inherit its files: {err}");
        }
        err
    }
}

/// The working directory itself, whatever is mounted over it. Nobody is asked, as a mount of ours would have to be.
fn working_directory() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/self/cwd", flags, Mode::empty())?)
}

/// Whether this program can go on with what is written down in this form.
#[must_use]
pub fn reads(format: u32) -> bool {
    (FORMAT_MIN..=FORMAT).contains(&format)
}

/// Writes everything down, in memory; names the descriptors that have to stay open, the file's own among them.
fn write_down(header: &Header, fs: &DatasetFs) -> io::Result<(File, Vec<RawFd>)> {
    let file = memory_file()?;
    let mut descriptors = vec![file.as_raw_fd(), header.device, header.lock];
    let mut out = BufWriter::new(file);
    serde_json::to_writer(&mut out, header)?;
    out.write_all(b"\n")?;
    fs.hand_over(|item| {
        descriptors.extend(item.descriptor());
        serde_json::to_writer(&mut out, item)?;
        out.write_all(b"\n")
    })?;
    let mut file = out.into_inner().map_err(|err| err.into_error())?;
    file.rewind()?;
    Ok((file, descriptors))
}

fn memory_file() -> io::Result<File> {
    let make = |flags| rustix::fs::memfd_create("dsfs-upgrade", flags | MemfdFlags::CLOEXEC);
    // Some systems insist on the first, and kernels before 6.3 do not know it.
    let file = make(MemfdFlags::NOEXEC_SEAL).or_else(|_| make(MemfdFlags::empty()))?;
    Ok(File::from(file))
}

impl Inheritance {
    /// Opens what the program before this one has written down, by the number of the descriptor.
    ///
    /// # Errors
    /// It cannot be read, or is of another form.
    pub fn open(descriptor: RawFd) -> Result<Self, Failure> {
        let failed = |err: io::Error| {
            Failure::new(FailureKind::Failed, format!("the mount cannot be taken over: {err}"))
        };
        let mut items = BufReader::new(File::from(descriptor::adopt(descriptor).map_err(failed)?));
        let mut line = String::new();
        items.read_line(&mut line).map_err(failed)?;
        let header: Header = serde_json::from_str(&line).map_err(|err| failed(err.into()))?;
        if !reads(header.format) {
            return Err(failed(io::Error::other(format!("it is of the form {}", header.format))));
        }
        Ok(Self { header, items })
    }

    /// Where the mount is.
    #[must_use]
    pub fn mountpoint(&self) -> &PathBuf {
        &self.header.mountpoint
    }

    /// Since when it is there.
    #[must_use]
    pub fn mounted(&self) -> &str {
        &self.header.mounted
    }

    /// The lock of the staging area. To be called once.
    ///
    /// # Errors
    /// It is not open.
    pub fn lock(&self) -> io::Result<File> {
        descriptor::adopt(self.header.lock).map(File::from)
    }

    /// Puts inodes and handles back into a file system that nobody uses yet; returns the connection to the kernel.
    ///
    /// # Errors
    /// It cannot be read; the local disk's.
    pub fn restore(self, fs: &DatasetFs) -> io::Result<Inherited> {
        let Self { header, items } = self;
        let mut passed = Passed::default();
        for item in serde_json::Deserializer::from_reader(items).into_iter::<Item>() {
            fs.take_over(item?, descriptor::adopt, &mut passed)?;
        }
        Ok(Inherited { device: descriptor::adopt(header.device)?, backings: header.backings })
    }
}
