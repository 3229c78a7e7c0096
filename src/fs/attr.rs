//! What `stat` shows of each kind of thing.

use std::time::SystemTime;

use crate::catalog::listing::RemoteFile;
use crate::staging::StagedAttr;
use crate::staging::StagedKind;
use crate::tree::inode::Ino;

/// Bytes in the unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
const DIRECTORY_MODE: u32 = 0o755;
/// Published files do not change, and say so.
const PUBLISHED_MODE: u32 = 0o444;
/// Nothing can be made in a directory of the past.
const PAST_DIRECTORY_MODE: u32 = 0o555;
/// Where replacing is allowed, a tool that looks at the mode first must not be put off.
const REPLACEABLE_MODE: u32 = 0o644;

/// A file or a directory: there is nothing else in a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// The attributes of an inode.
#[derive(Clone, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Permission bits.
    pub mode: u32,
    /// Names. 1 for directories too: they do not count their subdirectories, which tells `find` not to rely on it.
    pub links: u32,
    /// Last read.
    pub accessed: SystemTime,
    /// Last written.
    pub modified: SystemTime,
    /// Last changed in any way.
    pub changed: SystemTime,
}

/// How attributes are made where the thing itself does not say.
#[derive(Clone, Copy, Debug)]
pub struct AttrRules {
    /// The time of directories that exist only as prefixes of keys.
    pub started: SystemTime,
    /// Published files may be replaced.
    pub allow_replace: bool,
}

impl AttrRules {
    /// A directory, with its staged side's attributes where there is one.
    #[must_use]
    pub fn directory(&self, ino: Ino, staged: Option<&StagedAttr>) -> Attr {
        match staged {
            Some(staged) => self.staged(ino, staged),
            None => Attr {
                ino,
                kind: Kind::Directory,
                size_bytes: 0,
                blocks: 0,
                mode: DIRECTORY_MODE,
                links: 1,
                accessed: self.started,
                modified: self.started,
                changed: self.started,
            },
        }
    }

    /// A directory of a past state, which was committed at `time`.
    #[must_use]
    pub fn past_directory(&self, ino: Ino, time: SystemTime) -> Attr {
        let mode = PAST_DIRECTORY_MODE;
        Attr { mode, accessed: time, modified: time, changed: time, ..self.directory(ino, None) }
    }

    /// A file of a past state.
    #[must_use]
    pub fn past_file(&self, ino: Ino, file: &RemoteFile) -> Attr {
        Attr { mode: PUBLISHED_MODE, ..self.published(ino, file) }
    }

    /// A staged file or directory: what the local disk says.
    #[must_use]
    pub fn staged(&self, ino: Ino, staged: &StagedAttr) -> Attr {
        let kind = match staged.kind {
            StagedKind::File => Kind::File,
            StagedKind::Directory => Kind::Directory,
        };
        Attr {
            ino,
            kind,
            size_bytes: if kind == Kind::File { staged.size_bytes } else { 0 },
            blocks: staged.blocks,
            mode: staged.mode & 0o7777,
            links: 1,
            accessed: staged.accessed,
            modified: staged.modified,
            changed: staged.changed,
        }
    }

    /// A published file.
    #[must_use]
    pub fn published(&self, ino: Ino, file: &RemoteFile) -> Attr {
        Attr {
            ino,
            kind: Kind::File,
            size_bytes: file.size_bytes,
            blocks: file.size_bytes.div_ceil(STAT_BLOCK_BYTES),
            mode: if self.allow_replace { REPLACEABLE_MODE } else { PUBLISHED_MODE },
            links: 1,
            accessed: file.modified,
            modified: file.modified,
            changed: file.modified,
        }
    }
}
