//! An ordinary directory as a bucket: a network share, or the demo's own disk.
//!
//! Keys are paths, objects are plain files: whatever is put into the directory by other means
//! is an object, and other programs read what dsfs publishes. What S3 has and a directory has
//! not is made up for as follows.
//!
//! * **Create if absent** is renameat2(2) with `RENAME_NOREPLACE`, or link(2) where a file
//!   system knows only that: as atomic as the file system, also between machines.
//! * **Replace** and **delete** compare and then act under a lock file, which excludes other
//!   processes of dsfs; the compared version of a foreign program may slip in between.
//! * **`ETag`s** are made of inode, mtime, ctime and size: reading one is a stat(2), and no
//!   change goes unnoticed but one of the same length within a tick of the clock of the last.
//! * **Metadata** is in the extended attribute `user.dsfs.meta`, or beside the bucket's content
//!   where there are none.
//! * **`dir/` keys** are directories: one that is empty, or was made as an object.
//!
//! # Promises
//!
//! 1. When a write returns, it survives power loss: file, name and directories are synced.
//! 2. A crash at any point leaves the old object or the new one, under no other name.
//! 3. No key reaches outside of the directory, and symbolic links are never followed.
//! 4. A root that is another directory than at the start (a share that is not mounted any more)
//!    is unavailable, never empty.
//!
//! The store's own files are in `.dsfs/.local/`, which no listing shows and no key can name.
//!
//! # What this module does not know
//!
//! Datasets. It differs from S3 in that `a` and `a/b` cannot both be objects, that keys are
//! what a file system can hold, and that two keys may be one on a disk that ignores case.

mod bucket;
mod listing;
mod place;
mod temp;
mod upload;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use tokio::task::spawn_blocking;

use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::ByteStream;
use crate::store::Expect;
use crate::store::ListPage;
use crate::store::ListRequest;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::PartReceipt;
use crate::store::PutAttributes;
use crate::store::StoreError;
use crate::store::UploadId;

use self::bucket::Bucket;
use self::place::store_error;

/// Bytes read at once: enough to make a blocking thread worth its while, and small enough to
/// be still in the CPU's cache when it is handed on.
const PIECE_BYTES: u64 = 1024 * 1024;

/// A directory as a bucket.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    bucket: Arc<Bucket>,
}

impl DirectoryStore {
    /// Opens a directory, which has to exist.
    ///
    /// # Errors
    /// [`StoreError::NoBucket`] if it does not, [`StoreError::Denied`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { bucket: Arc::new(Bucket::open(path.to_owned())?) })
    }

    /// Runs blocking work where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Bucket) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let bucket = Arc::clone(&self.bucket);
        let done = spawn_blocking(move || work(&bucket)).await;
        done.unwrap_or_else(|err| Err(StoreError::unavailable(self.bucket.path.display(), err)))
    }
}

/// A body that is being read.
struct Body {
    file: Arc<File>,
    key: ObjectKey,
    etag: ETag,
    left: Range<u64>,
}

impl Body {
    /// Reads a piece, and makes sure afterwards that it is of the right version.
    fn read(&self) -> Result<Bytes, StoreError> {
        let len = (self.left.end - self.left.start).min(PIECE_BYTES) as usize;
        let mut piece = Vec::with_capacity(len);
        let failed = |err: io::Error| store_error(self.key.as_str(), err);
        while piece.len() < len {
            let at = self.left.start + piece.len() as u64;
            match rustix::io::pread(&*self.file, rustix::buffer::spare_capacity(&mut piece), at) {
                Ok(0) => return Err(StoreError::Changed { key: self.key.clone() }),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(failed(err.into())),
            }
        }
        piece.truncate(len);
        let stat = rustix::fs::fstat(&*self.file).map_err(|err| failed(err.into()))?;
        if place::etag_of_file(&stat) != self.etag {
            return Err(StoreError::Changed { key: self.key.clone() });
        }
        Ok(Bytes::from(piece))
    }

    async fn next(self) -> Option<(Result<Bytes, StoreError>, Option<Self>)> {
        if self.left.is_empty() {
            return None;
        }
        let key = self.key.clone();
        let read = spawn_blocking(move || {
            let piece = self.read();
            (piece, self)
        });
        match read.await {
            Ok((Ok(piece), mut body)) => {
                body.left.start += piece.len() as u64;
                Some((Ok(piece), Some(body)))
            }
            Ok((Err(err), _)) => Some((Err(err), None)),
            Err(err) => Some((Err(StoreError::unavailable(key, err)), None)),
        }
    }
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    fn describe(&self) -> String {
        format!("file://{}", self.bucket.path.display())
    }

    async fn check_access(&self) -> Result<(), StoreError> {
        self.list(&ListRequest {
            keys_max: 1,
            ..ListRequest::one_level(crate::name::KeyPrefix::from_listing(""))
        })
        .await
        .map(drop)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let request = request.clone();
        self.blocking(move |bucket| {
            listing::list(bucket.root()?, &bucket.names, &request)
                .map_err(|err| store_error(request.prefix.as_str(), err))
        })
        .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let key = key.clone();
        self.blocking(move |bucket| bucket.head(&key)).await
    }

    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let (asked, version) = (key.clone(), etag.clone());
        let (file, size_bytes) = self.blocking(move |bucket| bucket.open_version(&asked, &version)).await?;
        if range.is_empty() || range.end > size_bytes {
            return Err(StoreError::Rejected { key: key.to_string(), reason: format!("range {range:?}") });
        }
        let body = Body { file: Arc::new(file), key: key.clone(), etag: etag.clone(), left: range };
        Ok(Box::pin(stream::unfold(Some(body), |body| async move { body?.next().await })))
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let (key, expect, attributes) = (key.clone(), expect.clone(), attributes.clone());
        self.blocking(move |bucket| {
            if key.as_str().ends_with('/') {
                if !body.is_empty() {
                    return Err(bucket::nowhere(&key));
                }
                return bucket.put_marker(&key, &expect, &attributes);
            }
            bucket.check(&key, &expect)?;
            let file = bucket.temp(&key)?;
            io::Write::write_all(&mut &file.file, &body).map_err(|err| store_error(key.as_str(), err))?;
            bucket.publish(&key, file, &expect, &attributes)
        })
        .await
    }

    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let (key, attributes) = (key.clone(), attributes.clone());
        self.blocking(move |bucket| bucket.create_upload(&key, &attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(move |bucket| bucket.put_part(&key, &upload, number, &body)).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let (key, upload, parts, expect) = (key.clone(), upload.clone(), parts.to_vec(), expect.clone());
        self.blocking(move |bucket| bucket.complete_upload(&key, &upload, &parts, &expect)).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(move |bucket| bucket.abort_upload(&key, &upload)).await
    }

    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let (key, etag) = (key.clone(), etag.clone());
        self.blocking(move |bucket| bucket.delete(&key, &etag)).await
    }
}

#[cfg(test)]
mod tests;
