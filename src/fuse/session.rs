//! Mounting and unmounting.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::BackingId;
use fuser::Config;
use fuser::INodeNo;
use fuser::MountOption;
use fuser::Notifier;
use fuser::Session;
use fuser::SessionACL;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;
use tokio::sync::oneshot;

use crate::fs::DatasetFs;
use crate::fs::KernelCache;
use crate::fuse::FuseAdapter;
use crate::fuse::backing::Backings;
use crate::fuse::gate::Gate;
use crate::fuse::takeover;
use crate::tree::inode::Ino;

/// FUSE worker threads: two suffice, since none of them ever waits for the network.
const THREADS_MAX: usize = 4;
/// Notices to the kernel that may wait at a time; past that, entries expire by themselves.
const NOTICES_MAX: usize = 65_536;
/// What the kernel takes for a length without an end.
const TO_THE_END: i64 = 0;
/// The kernel's readahead on the mount in KiB, where we may set it: one large local read costs
/// less than many small ones.
const READ_AHEAD_KIB: u32 = 4096;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Refuse changes in the kernel already.
    pub read_only: bool,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// What `mount` and `df` show as the source.
    pub fs_name: String,
}

/// A mounted file system.
#[derive(Debug)]
pub struct MountedFs {
    mountpoint: PathBuf,
    passthrough: bool,
    standstill: Standstill,
    session: JoinHandle<io::Result<()>>,
    /// The session's end of the connection, which nobody closes.
    connection: BorrowedFd<'static>,
}

/// Brings a session to a standstill, so that another program can go on with it.
#[derive(Clone, Debug)]
pub struct Standstill {
    device: Arc<OwnedFd>,
    gate: Arc<Gate>,
    backings: Arc<Backings>,
    mountpoint: PathBuf,
    threads: usize,
}

/// What a program before this one has left of a session.
#[derive(Debug)]
pub struct Inherited {
    /// The connection to the kernel.
    pub device: OwnedFd,
    /// What the kernel calls the files that it reads without us, by inode.
    pub backings: Vec<(Ino, u32)>,
}

/// Unmounts from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
}

impl MountedFs {
    /// Mounts, and serves the mount from threads of its own.
    ///
    /// # Errors
    /// Those of mounting: no /dev/fuse, no permission, a mount point that cannot be.
    pub fn mount(
        fs: Arc<DatasetFs>,
        runtime: tokio::runtime::Handle,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> io::Result<Self> {
        let config = config(options);
        let adapter = FuseAdapter::new(Arc::clone(&fs), runtime);
        let standing = (Arc::clone(&adapter.gate), Arc::clone(&adapter.backings));
        let linger = Arc::clone(&adapter.linger);
        let session = Session::new(adapter, mountpoint, &config)?;
        let device = Arc::new(session.as_fd().try_clone_to_owned()?);
        linger.attach(&device);
        Self::run(&fs, session, mountpoint, Standstill::new(device, standing, mountpoint, &config))
    }

    /// Goes on with a mount that is there already.
    ///
    /// # Errors
    /// The connection is none, or no threads can be started.
    pub fn take_over(
        fs: Arc<DatasetFs>,
        runtime: tokio::runtime::Handle,
        mountpoint: &Path,
        options: &MountOptions,
        inherited: Inherited,
    ) -> io::Result<Self> {
        let config = config(options);
        let adapter = FuseAdapter::new(Arc::clone(&fs), runtime);
        let standing = (Arc::clone(&adapter.gate), Arc::clone(&adapter.backings));
        let linger = Arc::clone(&adapter.linger);
        let device = Arc::new(inherited.device);
        adapter.backings.adopt(&inherited.backings, &device);
        let session = takeover::session(adapter, &device, &config)?;
        linger.attach(&device);
        Self::run(&fs, session, mountpoint, Standstill::new(device, standing, mountpoint, &config))
    }

    fn run(
        fs: &Arc<DatasetFs>,
        session: Session<FuseAdapter>,
        mountpoint: &Path,
        standstill: Standstill,
    ) -> io::Result<Self> {
        let passthrough = passthrough_permitted(&session, &fs.options().state_dir);
        let notices = NoticeQueue::start(session.notifier(), Arc::clone(&standstill.gate))?;
        fs.attach(Arc::new(notices), passthrough);
        let (session, connection) = serve(session)?;
        Ok(Self { mountpoint: mountpoint.to_owned(), passthrough, standstill, session, connection })
    }

    /// What brings it to a standstill.
    #[must_use]
    pub fn standstill(&self) -> Standstill {
        self.standstill.clone()
    }

    /// Whether whole local files are handed to the kernel.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.passthrough
    }

    /// Raises the kernel's readahead for this mount, where that is permitted (root). The mount must answer already.
    ///
    /// # Errors
    /// Those of the file in /sys.
    pub fn raise_read_ahead(&self) -> io::Result<()> {
        let dev = rustix::fs::stat(&self.mountpoint)?.st_dev;
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
    }

    /// Something that unmounts it.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter::new(&self.mountpoint)
    }

    /// Waits until it has been unmounted.
    ///
    /// # Errors
    /// What ended the session, if it was not an unmount.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.session.join();
        // The kernel lets go of the files that it read without us when the last descriptor is gone.
        let gone = File::open("/dev/null").and_then(|null| takeover::replace(self.connection, &null.into()));
        if let Err(err) = gone {
            tracing::debug!("the connection to the kernel is open until this process ends: {err}");
        }
        match ended {
            // A thread that had taken a request just when the connection ended reads this, the others
            // ENODEV (fuse_dev_do_read in the kernel's fs/fuse/dev.c).
            Ok(Err(err)) if err.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            Ok(result) => result,
            Err(_) => Err(io::Error::other("a FUSE thread panicked")),
        }
    }
}

/// Serves a session from threads of its own. When it has ended, it unmounts nothing: the crate would unmount by
/// name, and by then that may be another mount, or what ours was mounted over. So what would do that is never
/// dropped, and its descriptor stays open.
#[expect(unsafe_code, reason = "a descriptor whose owner is never dropped")]
fn serve(session: Session<FuseAdapter>) -> io::Result<(JoinHandle<io::Result<()>>, BorrowedFd<'static>)> {
    let connection = session.as_fd().as_raw_fd();
    let mut served = session.spawn()?;
    let nothing = thread::Builder::new().spawn(|| Ok(()))?;
    let session = mem::replace(&mut served.guard, nothing);
    mem::forget(served);
    // SAFETY: it was the session's, and what was forgotten owns it too: it is open, and nobody closes it.
    Ok((session, unsafe { BorrowedFd::borrow_raw(connection) }))
}

/// The session's settings.
fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.fs_name.clone()),
        // Not `Subtype`: that reaches fusermount3 only, and root's mounts would be plain `fuse`.
        MountOption::CUSTOM("subtype=dsfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(thread::available_parallelism().map_or(2, usize::from).clamp(2, THREADS_MAX));
    config.clone_fd = true;
    config
}

impl Standstill {
    fn new(
        device: Arc<OwnedFd>,
        (gate, backings): (Arc<Gate>, Arc<Backings>),
        mountpoint: &Path,
        config: &Config,
    ) -> Self {
        Self {
            device,
            gate,
            backings,
            mountpoint: mountpoint.to_owned(),
            threads: config.n_threads.unwrap_or(1),
        }
    }

    /// Comes to a standstill: when this returns, every request has been answered, and nobody takes another
    /// one from the kernel, where they wait. [`Self::go_on`] ends it.
    ///
    /// # Errors
    /// Requests that were not answered in time; then it goes on already.
    pub fn stand_still(&self, patience: Duration) -> io::Result<Inherited> {
        self.gate.close();
        self.wait_for_rest(patience).inspect_err(|_| self.gate.open())
    }

    fn wait_for_rest(&self, patience: Duration) -> io::Result<Inherited> {
        for _ in 0..self.threads {
            // Each is answered by a thread that rests from then on.
            let mountpoint = self.mountpoint.clone();
            thread::Builder::new().name("dsfs-poke".into()).spawn(move || rustix::fs::statvfs(mountpoint))?;
        }
        if !self.gate.wait_for_rest(self.threads, patience) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "requests to the mount wait for an answer"));
        }
        Ok(Inherited { device: self.device.try_clone()?, backings: self.backings.numbers(&self.device) })
    }

    /// Takes requests again.
    pub fn go_on(&self) {
        self.gate.open();
    }
}

impl Unmounter {
    /// Unmounts whatever FUSE file system is mounted there.
    #[must_use]
    pub fn new(mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned() }
    }

    /// Unmounts: at once if nothing is open; with `lazy`, from now on for new users, and for
    /// good when the last file is closed.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if it is in use.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match rustix::mount::unmount(&self.mountpoint, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::PERM) => self.fusermount(lazy),
            Err(err) => Err(err.into()),
        }
    }

    /// The set-uid helper, for users without the privilege.
    fn fusermount(&self, lazy: bool) -> io::Result<()> {
        let mut command = Command::new("fusermount3");
        command.args(if lazy { &["-u", "-z", "--"][..] } else { &["-u", "--"] }).arg(&self.mountpoint);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let kind = if message.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
        Err(io::Error::new(kind, message))
    }
}

/// Whether the kernel lets us hand files over. It grants the capability to anybody and refuses
/// at the first file, so a file is tried.
fn passthrough_permitted(session: &Session<FuseAdapter>, dir: &Path) -> bool {
    let file =
        rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match file.map_err(io::Error::from).and_then(|file| BackingId::create_raw(session, file)) {
        Ok(_) => true, // one id, given back when the connection ends
        Err(err) => {
            tracing::debug!("files are read through the daemon, since passthrough is not permitted: {err}");
            false
        }
    }
}

/// Notices on their way to the kernel, from a thread that holds no lock: the kernel may have to
/// wait for a request of ours before it takes one.
struct NoticeQueue {
    notices: mpsc::SyncSender<Notice>,
}

#[derive(Debug)]
enum Notice {
    Entry(Ino, String),
    Content(Ino, Range<u64>),
    /// Nothing for the kernel: those before it are told.
    Told(oneshot::Sender<()>),
}

impl fmt::Debug for NoticeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeQueue")
    }
}

impl NoticeQueue {
    fn start(notifier: Notifier, gate: Arc<Gate>) -> io::Result<Self> {
        let (notices, inbox) = mpsc::sync_channel::<Notice>(NOTICES_MAX);
        thread::Builder::new().name("dsfs-notify".into()).spawn(move || {
            for notice in inbox {
                if let Notice::Told(waiting) = notice {
                    let _left_meanwhile = waiting.send(());
                    continue;
                }
                let _under_way = gate.begin_when_open();
                let taken = match &notice {
                    Notice::Entry(parent, name) => notifier.inval_entry(INodeNo(*parent), name.as_ref()),
                    Notice::Content(ino, bytes) => drop_pages(&notifier, *ino, bytes),
                    Notice::Told(_) => Ok(()), // it was told above
                };
                if let Err(err) = taken {
                    tracing::debug!("the kernel did not take a notice ({notice:?}): {err}");
                }
            }
        })?;
        Ok(Self { notices })
    }

    fn send(&self, notice: Notice) {
        if let Err(lost) = self.notices.try_send(notice) {
            tracing::debug!("too many notices to the kernel: {lost}");
        }
    }
}

fn drop_pages(notifier: &Notifier, ino: Ino, bytes: &Range<u64>) -> io::Result<()> {
    let len = i64::try_from(bytes.end - bytes.start).unwrap_or(TO_THE_END);
    notifier.inval_inode(INodeNo(ino), bytes.start.cast_signed(), len)
}

impl KernelCache for NoticeQueue {
    fn entry_changed(&self, parent: Ino, name: &str) {
        self.send(Notice::Entry(parent, name.to_owned())); // one that is lost expires by itself
    }

    fn drop_pages(&self, ino: Ino, bytes: Range<u64>) {
        self.send(Notice::Content(ino, bytes));
    }

    fn told(&self) -> oneshot::Receiver<()> {
        let (told, receiver) = oneshot::channel();
        self.send(Notice::Told(told));
        receiver
    }
}
