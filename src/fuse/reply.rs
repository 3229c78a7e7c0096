//! Our answers in the protocol's words.

use std::time::SystemTime;

use fuser::Errno;
use fuser::FileAttr;
use fuser::FileType;
use fuser::INodeNo;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyXattr;

use crate::fs::DatasetFs;
use crate::fs::Lookup;
use crate::fs::attr::Attr;
use crate::fs::attr::Kind;
use crate::fs::error::FsError;
use crate::fuse::ADVISED_READ_BYTES;
use crate::fuse::GENERATION;
use crate::fuse::log_errno;

pub(super) fn file_attr(fs: &DatasetFs, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: attr.accessed,
        mtime: attr.modified,
        ctime: attr.changed,
        crtime: attr.changed,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: fs.options().uid,
        gid: fs.options().gid,
        rdev: 0,
        blksize: ADVISED_READ_BYTES,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
    }
}

pub(super) fn reply_entry(fs: &DatasetFs, reply: ReplyEntry, lookup: Result<Lookup, Errno>) {
    match lookup {
        Ok(Lookup::Entry(entry)) => {
            let attr = file_attr(fs, &entry.attr);
            reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &attr, GENERATION);
        }
        Ok(Lookup::Absent(ttl)) => reply.entry(&ttl, &absent(), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// Inode 0 says that the name does not exist, and that the kernel may remember so.
pub(super) fn absent() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Answers the two forms of an xattr request: how long the answer is, and the answer.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(log_errno("xattr", &FsError::Range)),
        Err(err) => reply.error(log_errno("xattr", &err)),
    }
}
