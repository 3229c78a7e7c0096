//! Who works on a staging area: one process at a time.
//!
//! The lock is an `flock` on the file `lock`, which the kernel drops with its holder, however
//! that ends; what is written into the file only tells others whom to ask.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::staging::StagingError;

const LOCK_FILE: &str = "lock";
/// [`holder`] itself holds the lock for an instant; so one refusal is not the last word.
const TRIES: u32 = 5;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The process that works on a staging area, and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Its process id; 0 if it has not said yet.
    pub pid: u32,
    /// Its control socket, if it has one.
    pub socket: Option<PathBuf>,
    /// Where it has mounted the datasets, if it has.
    pub mountpoint: Option<PathBuf>,
    /// The mount is out of sight, and files that are open in it are still served.
    #[serde(default)]
    pub detached: bool,
}

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// The open file that holds the lock: whoever has it after an exec has the lock.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Says in the file that the mount is out of sight.
    pub(super) fn mark_detached(&self) -> io::Result<()> {
        let mut file = &self.file;
        file.rewind()?;
        let holder = Holder { detached: true, ..read_holder(&mut file) };
        write_holder(file, &holder)
    }

    /// The lock of the program that ran before in this process.
    pub(super) fn adopted(file: File) -> Self {
        Self { file }
    }
}

fn open_lock_file(dir: &Path, create: bool) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC).bits();
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(i32::try_from(flags).expect("open flags fit into an int"))
        .open(dir.join(LOCK_FILE))
}

/// Takes the lock, and says in the file who has it.
pub(super) fn acquire(dir: &Path, holder: &Holder) -> Result<Lock, StagingError> {
    let failed = |source| StagingError::io(dir, source);
    let mut file = open_lock_file(dir, true).map_err(failed)?;
    for attempt in 1.. {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if attempt < TRIES => thread::sleep(TRY_AGAIN_AFTER),
            Err(Errno::WOULDBLOCK) => return Err(StagingError::Locked { holder: read_holder(&mut file) }),
            Err(err) => return Err(failed(err.into())),
        }
    }
    write_holder(&file, holder).map_err(failed)?;
    Ok(Lock { file })
}

/// Who has the lock, if anybody.
pub(super) fn holder(dir: &Path) -> io::Result<Option<Holder>> {
    let mut file = match open_lock_file(dir, false) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(read_holder(&mut file))),
        Err(err) => Err(err.into()),
    }
}

fn write_holder(mut file: &File, holder: &Holder) -> io::Result<()> {
    let text = serde_json::to_vec(holder)?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&text)
}

fn read_holder(file: &mut impl Read) -> Holder {
    let mut text = Vec::new();
    let read = file.read_to_end(&mut text);
    read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
