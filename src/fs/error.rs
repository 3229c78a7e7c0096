//! Why a file system operation failed, and the one table that turns it into an errno.

use crate::name::NameError;
use crate::name::RelPath;
use crate::read::ReadError;
use crate::staging::StagingError;
use crate::store::StoreError;
use crate::tree::TreeError;

/// Why an operation was refused or failed, sorted by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Nothing by that name.
    #[error("no such file or directory")]
    NotFound,
    /// A file where a directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory where a file is needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries, staged or published.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// Published files do not change.
    #[error("{0} is published and does not change; mount with --allow-replace to stage a replacement")]
    Published(String),
    /// The file is part of a commit that is under way.
    #[error("{0} is being committed")]
    BeingCommitted(RelPath),
    /// The top of the mount holds datasets only.
    #[error("only datasets can be made at the top of the mount: use mkdir")]
    DatasetsOnly,
    /// The mount was made read-only, or this is a past state of a dataset.
    #[error("for reading only, as a whole mount or as what was committed before")]
    ReadOnly,
    /// Between datasets, or of something that cannot be renamed in place: tools copy instead.
    #[error("cannot be renamed in place")]
    CrossDataset,
    /// The inode or file is no longer what it was.
    #[error("the file is no longer the one that was looked up")]
    Stale,
    /// A handle that is not open, or not open for this.
    #[error("bad file handle {0}")]
    BadHandle(u64),
    /// A combination of arguments that makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// Not something dsfs does.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// Not permitted to anybody: owners, links, devices.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// There is no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The buffer is too small for the answer.
    #[error("the answer does not fit the buffer")]
    Range,
    /// The caller was told to stop (a signal), and asks no more.
    #[error("interrupted")]
    Interrupted,
    /// The name cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The remote's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A read's.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The staging disk's.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The local disk's.
    #[error("local disk: {0}")]
    Local(#[from] std::io::Error),
}

impl From<TreeError> for FsError {
    fn from(err: TreeError) -> Self {
        match err {
            TreeError::Store(err) => Self::Store(err),
            TreeError::Staging(err) => Self::Staging(err),
        }
    }
}

impl FsError {
    /// The errno. Total, with no `_` arm: a new variant does not compile until it has one.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::Exists => libc::EEXIST,
            Self::Published(_) | Self::DatasetsOnly | Self::NotPermitted(_) => libc::EPERM,
            Self::BeingCommitted(_) => libc::EBUSY,
            Self::ReadOnly => libc::EROFS,
            Self::CrossDataset => libc::EXDEV,
            Self::Stale => libc::ESTALE,
            Self::BadHandle(_) => libc::EBADF,
            Self::Invalid(_) => libc::EINVAL,
            Self::NotSupported(_) => libc::EOPNOTSUPP,
            Self::NoAttribute => libc::ENODATA,
            Self::Range => libc::ERANGE,
            Self::Interrupted => libc::EINTR,
            Self::Name(err) => name_errno(err),
            Self::Store(err) => store_errno(err),
            Self::Read(err) => read_errno(err),
            Self::Staging(err) => err.errno(),
            Self::Local(err) => io_errno(err),
        }
    }

    /// Whether this is part of everyday life (every shell probes for names that are not there),
    /// as opposed to something that a log should tell.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        match self {
            Self::Store(_) | Self::Read(_) | Self::Staging(_) | Self::Local(_) | Self::Stale => {
                matches!(self.errno(), libc::ENOENT | libc::EEXIST | libc::ENOTEMPTY | libc::EBUSY)
            }
            Self::NotFound
            | Self::NotDirectory
            | Self::IsDirectory
            | Self::NotEmpty
            | Self::Exists
            | Self::Published(_)
            | Self::BeingCommitted(_)
            | Self::DatasetsOnly
            | Self::ReadOnly
            | Self::CrossDataset
            | Self::BadHandle(_)
            | Self::Invalid(_)
            | Self::NotSupported(_)
            | Self::NotPermitted(_)
            | Self::NoAttribute
            | Self::Range
            | Self::Interrupted
            | Self::Name(_) => true,
        }
    }
}

fn name_errno(err: &NameError) -> i32 {
    match err {
        NameError::ComponentTooLong(_) | NameError::KeyTooLong { .. } => libc::ENAMETOOLONG,
        NameError::NotUtf8(_) => libc::EILSEQ,
        NameError::BadComponent(_)
        | NameError::BadDataset(_)
        | NameError::NotWhole { .. }
        | NameError::BadCommitNumber(_)
        | NameError::BadPrefix(_) => libc::EINVAL,
    }
}

fn store_errno(err: &StoreError) -> i32 {
    match err {
        StoreError::NotFound { .. } => libc::ENOENT,
        StoreError::AlreadyExists { .. } => libc::EEXIST,
        StoreError::Changed { .. } => libc::ESTALE,
        StoreError::Denied { .. } => libc::EACCES,
        StoreError::Offline { .. } => libc::ENETUNREACH,
        StoreError::NoBucket { .. }
        | StoreError::Contended { .. }
        | StoreError::NoSuchUpload { .. }
        | StoreError::Rejected { .. }
        | StoreError::Unavailable { .. } => libc::EIO,
    }
}

/// The local disk's own errno is the truth: ENOSPC must stay ENOSPC.
fn io_errno(err: &std::io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}

fn read_errno(err: &ReadError) -> i32 {
    match err {
        ReadError::Changed { .. } => libc::ESTALE,
        ReadError::Timeout { .. } => libc::ETIMEDOUT,
        ReadError::Store(err) => store_errno(err),
    }
}
