//! Multipart uploads: a directory per upload, a file per part, one copy to make them an object.

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::AtFlags;
use rustix::fs::Mode;

use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::PART_BYTES_MIN;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;
use crate::store::directory::bucket::Bucket;
use crate::store::directory::bucket::nowhere;
use crate::store::directory::place;
use crate::store::directory::place::LOCAL_DIR;
use crate::store::directory::place::Place;
use crate::store::directory::place::STATE_DIR;
use crate::store::directory::place::store_error;
use crate::store::directory::temp;

const UPLOADS: &str = "uploads";
/// In an upload's directory: what it will be.
const ABOUT: &str = "upload.json";

#[derive(serde::Serialize, serde::Deserialize)]
struct About {
    key: String,
    metadata: std::collections::BTreeMap<String, String>,
}

/// Whether an id is one that we gave out, and so a safe name.
fn is_ours(upload: &UploadId) -> bool {
    upload.0.len() == 32 && upload.0.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn part_name(number: u32) -> String {
    format!("part-{number:05}")
}

fn rejected(key: &ObjectKey, reason: &str) -> StoreError {
    StoreError::Rejected { key: key.to_string(), reason: reason.into() }
}

impl Bucket {
    pub(super) fn create_upload(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        self.root()?;
        Place::of(key.as_str()).filter(|place| !place.marker).ok_or_else(|| nowhere(key))?;
        let id = temp::random_name();
        let made = || -> io::Result<()> {
            let uploads = self.local(UPLOADS)?;
            rustix::fs::mkdirat(&uploads, &id, Mode::from_raw_mode(0o777))?;
            let dir = place::open_dir(&uploads, &id)?;
            let about = About { key: key.to_string(), metadata: attributes.metadata.clone() };
            temp::write_file(&dir, ABOUT, &serde_json::to_vec(&about)?)?;
            rustix::fs::fsync(dir)?;
            Ok(rustix::fs::fsync(uploads)?)
        };
        made().map_err(|err| store_error(key.as_str(), err))?;
        Ok(UploadId(id))
    }

    /// The directory of an upload that is still open, and what it will be.
    fn upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<(OwnedFd, PutAttributes), StoreError> {
        let gone = || StoreError::NoSuchUpload { key: key.clone() };
        if !is_ours(upload) {
            return Err(gone());
        }
        let opened = || -> io::Result<(OwnedFd, About)> {
            let root = place::open_root(&self.path)?;
            let dir = place::open_dirs(root, &[STATE_DIR, LOCAL_DIR, UPLOADS, &upload.0])?;
            let about = serde_json::from_reader(temp::open_file(&dir, ABOUT)?)?;
            Ok((dir, about))
        };
        self.root()?;
        match opened() {
            Ok((dir, about)) if about.key == key.as_str() => {
                Ok((dir, PutAttributes { metadata: about.metadata, ..PutAttributes::default() }))
            }
            Ok(_) => Err(gone()),
            Err(err) if place::is_absence(&err) => Err(gone()),
            Err(err) => Err(store_error(key.as_str(), err)),
        }
    }

    pub(super) fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: &[u8],
    ) -> Result<PartReceipt, StoreError> {
        let (dir, _) = self.upload(key, upload)?;
        let file = self.temp(key)?;
        let written = || -> io::Result<ETag> {
            io::Write::write_all(&mut &file.file, body)?;
            file.seal(&std::collections::BTreeMap::new(), false, || self.local("meta"))?;
            file.publish_over(&dir, &part_name(number))?;
            Ok(place::etag_of_file(&file.stat()?))
        };
        match written() {
            Ok(etag) => Ok(PartReceipt { number, etag, checksum: None }),
            Err(err) if place::is_absence(&err) => Err(StoreError::NoSuchUpload { key: key.clone() }),
            Err(err) => Err(store_error(key.as_str(), err)),
        }
    }

    pub(super) fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let (dir, attributes) = self.upload(key, upload)?;
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(rejected(key, "the list of parts is empty or out of order"));
        }
        let mut files = Vec::with_capacity(parts.len().min(64));
        for (at, part) in parts.iter().enumerate() {
            let file = open_part(&dir, part).map_err(|err| match err {
                Some(err) => store_error(key.as_str(), err),
                None => rejected(key, "InvalidPart"),
            })?;
            let len = file.metadata().map_err(|err| store_error(key.as_str(), err))?.len();
            if at + 1 < parts.len() && len < PART_BYTES_MIN {
                return Err(rejected(key, "EntityTooSmall"));
            }
            files.push(part);
        }
        self.check(key, expect)?;
        let whole = self.temp(key)?;
        for part in files {
            // `io::copy` is copy_file_range(2) here: a file system that can shares the blocks.
            let mut from = open_part(&dir, part).map_err(|_| rejected(key, "InvalidPart"))?;
            io::copy(&mut from, &mut &whole.file).map_err(|err| store_error(key.as_str(), err))?;
        }
        let etag = self.publish(key, whole, expect, &attributes)?;
        self.remove_upload(upload).map_err(|err| store_error(key.as_str(), err))?;
        Ok(etag)
    }

    pub(super) fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        self.root()?;
        self.remove_upload(upload).map_err(|err| store_error(key.as_str(), err))
    }

    fn remove_upload(&self, upload: &UploadId) -> io::Result<()> {
        if !is_ours(upload) {
            return Ok(());
        }
        let dir = self.path.join(STATE_DIR).join(LOCAL_DIR).join(UPLOADS).join(&upload.0);
        match fs::remove_dir_all(dir) {
            Err(err) if !place::is_absence(&err) => Err(err),
            _ => Ok(()),
        }
    }
}

/// Opens a part, if it is the one that the receipt is for; `Err(None)` if it is not.
fn open_part(dir: &OwnedFd, part: &PartReceipt) -> Result<File, Option<io::Error>> {
    let name = part_name(part.number);
    let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Err(None),
        Err(err) => return Err(Some(err.into())),
    };
    if place::etag_of_file(&stat) != part.etag {
        return Err(None);
    }
    temp::open_file(dir, &name).map_err(Some)
}
