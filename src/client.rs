//! The library's front door: objects of a bucket, as a program uses them.
//!
//! A [`Client`] lists, downloads, uploads and deletes, many files at once and never overwriting unless
//! it is told to. `dsfs r2` is this client with a command line.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dsfs::client::Client;
//! use dsfs::client::Overwrite;
//! use dsfs::store::memory::MemoryStore;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(Arc::new(MemoryStore::default())); // or Client::connect(…), Client::directory(…)
//! client.upload_bytes("runs/01/data.jsonl", "{}\n", Overwrite::No).await?;
//! assert!(client.exists("runs/01/data.jsonl").await?);
//!
//! let dir = tempfile::tempdir()?;
//! let report = client.download_directory("runs/01", dir.path(), Overwrite::No).await?;
//! assert_eq!((report.files, report.checked_by_content), (1, 1));
//! assert_eq!(std::fs::read(dir.path().join("data.jsonl"))?, b"{}\n");
//!
//! // Nothing is overwritten: neither files ...
//! assert!(client.download_directory("runs/01", dir.path(), Overwrite::No).await.is_err());
//! // ... nor objects.
//! assert!(client.upload_directory(dir.path(), "runs/01", Overwrite::No).await.is_err());
//!
//! let found = client.list("runs/", false).await?;
//! assert_eq!(found.prefixes, ["runs/01/"]);
//! client.delete_object("runs/01/data.jsonl", false).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A bucket:
//!
//! ```no_run
//! use dsfs::client::Client;
//! use dsfs::store::s3::S3Credentials;
//! use dsfs::store::s3::S3Options;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let credentials = S3Credentials::DefaultChain;
//! let options = S3Options::new("assets", Some("https://ACCOUNT.r2.cloudflarestorage.com"), "auto", credentials);
//! let client = Client::connect(&options);
//! for object in client.list("datasets/", true).await?.objects {
//!     println!("{} {}", object.size_bytes, object.key);
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::local::LocalTree;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::name::RemotePrefix;
use crate::store::ListRequest;
use crate::store::ListedObject;
use crate::store::ObjectMeta;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::directory::DirectoryStore;
use crate::store::guarantee;
use crate::store::guarantee::Guarantee;
use crate::store::list_all;
use crate::store::retry::RetryOptions;
use crate::store::retry::RetryingStore;
use crate::store::s3::S3Options;
use crate::store::s3::S3Store;
use crate::transfer;
use crate::transfer::DeleteReport;
use crate::transfer::DownloadFile;
use crate::transfer::DownloadReport;
use crate::transfer::NoWatch;
use crate::transfer::Notes;
use crate::transfer::Transfer;
use crate::transfer::TransferOptions;
use crate::transfer::UploadFile;
use crate::transfer::UploadReport;
use crate::transfer::Watch;

pub use crate::transfer::TransferError as ClientError;

/// Whether what is in the way may be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Anything in the way is an error that names all of it, before anything is transferred.
    #[default]
    No,
    /// Files are replaced; objects in the version that was seen before the transfer began.
    Yes,
}

impl From<bool> for Overwrite {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// What is at a prefix.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The objects, in the order of their keys.
    pub objects: Vec<ListedObject>,
    /// The next level's prefixes, ending in `/`; none in a recursive listing.
    pub prefixes: Vec<String>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Found {
    /// This object.
    Object(ObjectKey, ObjectMeta),
    /// Everything below this prefix, which is not nothing.
    Prefix(KeyPrefix, Vec<ListedObject>),
}

/// A bucket or a directory, and how it is worked with.
#[derive(Clone)]
pub struct Client {
    store: Arc<dyn ObjectStore>,
    options: TransferOptions,
    watch: Arc<dyn Watch>,
    notes: Option<Notes>,
    guarantee: Arc<OnceCell<Guarantee>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("store", &self.store).field("options", &self.options).finish()
    }
}

impl Client {
    /// A client of any store, as it is: without retries, unless the store has them.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            options: TransferOptions::default(),
            watch: Arc::new(NoWatch),
            notes: None,
            guarantee: Arc::default(),
        }
    }

    /// A client of a bucket, with retries. Nothing is sent yet.
    #[must_use]
    pub fn connect(options: &S3Options) -> Self {
        let store = Arc::new(S3Store::new(options));
        Self::new(Arc::new(RetryingStore::new(store, RetryOptions::default())))
    }

    /// A client of a directory that plays the bucket.
    ///
    /// # Errors
    /// [`StoreError::NoBucket`] if there is no such directory.
    pub fn directory(path: &Path) -> Result<Self, ClientError> {
        Ok(Self::new(Arc::new(DirectoryStore::open(path)?)))
    }

    /// With so many requests for large bodies at a time, instead of 8; small ones go several to a place.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.workers = workers;
        self
    }

    /// With other options; those that the methods take as arguments are overruled by them.
    #[must_use]
    pub fn options(mut self, options: TransferOptions) -> Self {
        self.options = options;
        self
    }

    /// Watched by somebody.
    #[must_use]
    pub fn watch(mut self, watch: Arc<dyn Watch>) -> Self {
        self.watch = watch;
        self
    }

    /// Ended by this token: then what is not whole is taken away.
    #[must_use]
    pub fn cancel(mut self, cancel: CancellationToken) -> Self {
        self.options.cancel = cancel;
        self
    }

    /// With a memory of interrupted transfers: the same transfer goes on where it was stopped.
    #[must_use]
    pub fn notes(mut self, notes: Notes) -> Self {
        self.notes = Some(notes);
        self
    }

    /// Takes it as known what the server guarantees, instead of probing it before the first upload.
    #[must_use]
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = Arc::new(OnceCell::new_with(Some(guarantee)));
        self
    }

    /// The store beneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// What is at a prefix, all of it or one level.
    ///
    /// # Errors
    /// The store's. A prefix without keys is empty, not an error.
    pub async fn list(&self, prefix: &str, recursive: bool) -> Result<Listing, ClientError> {
        let prefix = KeyPrefix::from_listing(prefix);
        let request = if recursive { ListRequest::recursive(prefix) } else { ListRequest::one_level(prefix) };
        let mut page = list_all(&*self.store, request).await?;
        page.objects.sort_by(|a, b| a.key.cmp(&b.key));
        let mut prefixes: Vec<String> = page.prefixes.iter().map(ToString::to_string).collect();
        prefixes.sort();
        Ok(Listing { objects: page.objects, prefixes })
    }

    /// Size, version, time and metadata of an object; `None` if there is none.
    ///
    /// # Errors
    /// The store's.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ClientError> {
        match self.store.head(&ObjectKey::from_listing(key)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// The store's.
    pub async fn exists(&self, key: &str) -> Result<bool, ClientError> {
        Ok(self.head(key).await?.is_some())
    }

    /// What a name stands for: with `/` at its end a prefix, else the object of that key, else the prefix.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], and the store's.
    pub async fn find(&self, name: &str) -> Result<Found, ClientError> {
        if !name.is_empty() && !name.ends_with('/') {
            let key = ObjectKey::from_listing(name);
            match self.store.head(&key).await {
                Ok(meta) => return Ok(Found::Object(key, meta)),
                Err(StoreError::NotFound { .. }) => {}
                Err(err) => return Err(err.into()),
            }
        }
        let prefix = KeyPrefix::parse(name)?;
        let objects = list_all(&*self.store, ListRequest::recursive(prefix.clone())).await?.objects;
        if objects.is_empty() {
            return Err(ClientError::NotFound { what: name.to_owned() });
        }
        Ok(Found::Prefix(prefix, objects))
    }

    /// Downloads an object to the file `target`; directories above it are made.
    ///
    /// # Errors
    /// [`ClientError::InTheWay`], [`ClientError::NotFound`], and all that a transfer can meet with.
    pub async fn download_file(
        &self,
        key: &str,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<DownloadReport, ClientError> {
        let key = ObjectKey::from_listing(key);
        let meta = match self.store.head(&key).await {
            Err(StoreError::NotFound { .. }) => {
                return Err(ClientError::NotFound { what: key.to_string() });
            }
            answer => answer?,
        };
        self.download_object(&key, &meta, target, overwrite).await
    }

    /// As [`Self::download_file`], of an object that was looked at already.
    ///
    /// # Errors
    /// As [`Self::download_file`].
    pub async fn download_object(
        &self,
        key: &ObjectKey,
        meta: &ObjectMeta,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<DownloadReport, ClientError> {
        let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        let file = DownloadFile {
            key: key.clone(),
            etag: Some(meta.etag.clone()),
            size_bytes: meta.size_bytes,
            modified: meta.modified,
            content: None,
            target: target.clone(),
        };
        let root = target.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
        let what = format!("{key} {}", target.display());
        transfer::download(&self.transfer(overwrite), &what, &root, vec![file], &[]).await
    }

    /// Downloads everything below a prefix into the directory `target`, under its keys without the prefix.
    ///
    /// # Errors
    /// [`ClientError::InTheWay`], [`ClientError::NotFound`], [`ClientError::Unfit`], and all that a
    /// transfer can meet with.
    pub async fn download_directory(
        &self,
        prefix: &str,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<DownloadReport, ClientError> {
        let prefix = KeyPrefix::parse(prefix)?;
        let objects = list_all(&*self.store, ListRequest::recursive(prefix.clone())).await?.objects;
        if objects.is_empty() {
            return Err(ClientError::NotFound { what: prefix.to_string() });
        }
        self.download_listed(&prefix, &objects, target, overwrite).await
    }

    /// As [`Self::download_directory`], of a prefix that was listed already.
    ///
    /// # Errors
    /// As [`Self::download_directory`].
    pub async fn download_listed(
        &self,
        prefix: &KeyPrefix,
        objects: &[ListedObject],
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<DownloadReport, ClientError> {
        let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        let (files, directories) = transfer::landing(prefix, objects, &target)?;
        let transfer = self.transfer(overwrite);
        transfer::download(&transfer, prefix.as_str(), &target, files, &directories).await
    }

    /// Uploads a file to a key at which nothing is. To replace an object, delete it first.
    ///
    /// # Errors
    /// [`ClientError::InTheWay`], [`ClientError::Overtaken`], and all that a transfer can meet with.
    pub async fn upload_file(&self, source: &Path, key: &str) -> Result<UploadReport, ClientError> {
        let key = ObjectKey::parse(key)?;
        check_not_state(&key)?;
        let failed = |err| ClientError::Io { path: source.to_owned(), source: err };
        let meta = fs::metadata(source).map_err(failed)?;
        let modified = meta.modified().map_err(failed)?;
        let name = key.as_str().rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
        let file = UploadFile {
            source: source.to_owned(),
            path: RelPath::parse(name)?,
            key: key.clone(),
            size_bytes: meta.len(),
            modified,
        };
        // The key itself is the prefix: one listing shows whether it is there.
        let prefix = KeyPrefix::from_listing(key.as_str());
        let transfer = self.uploading(Overwrite::No).await?;
        transfer::upload(&transfer, &prefix, source, vec![file]).await
    }

    /// Uploads everything in a directory below a prefix. Symbolic links to files are followed; see
    /// [`LocalTree`] for what is left out.
    ///
    /// # Errors
    /// [`ClientError::InTheWay`], [`ClientError::Overtaken`], and all that a transfer can meet with.
    pub async fn upload_directory(
        &self,
        source: &Path,
        prefix: &str,
        overwrite: Overwrite,
    ) -> Result<UploadReport, ClientError> {
        let tree = LocalTree::of(source)?;
        self.upload_tree(source, &tree, prefix, overwrite).await
    }

    /// As [`Self::upload_directory`], of a directory that was looked through already.
    ///
    /// # Errors
    /// As [`Self::upload_directory`].
    pub async fn upload_tree(
        &self,
        source: &Path,
        tree: &LocalTree,
        prefix: &str,
        overwrite: Overwrite,
    ) -> Result<UploadReport, ClientError> {
        let prefix = KeyPrefix::parse(prefix)?;
        let mut files = Vec::with_capacity(tree.files.len());
        for file in &tree.files {
            let key = prefix.key(&file.path)?;
            check_not_state(&key)?;
            files.push(UploadFile {
                source: source.join(file.path.as_str()),
                path: file.path.clone(),
                key,
                size_bytes: file.size_bytes,
                modified: file.modified,
            });
        }
        let transfer = self.uploading(overwrite).await?;
        transfer::upload(&transfer, &prefix, source, files).await
    }

    /// Writes an object from memory.
    ///
    /// # Errors
    /// [`ClientError::InTheWay`], [`ClientError::Overtaken`], the store's.
    pub async fn upload_bytes(
        &self,
        key: &str,
        body: impl Into<Bytes>,
        overwrite: Overwrite,
    ) -> Result<ETag, ClientError> {
        let key = ObjectKey::parse(key)?;
        check_not_state(&key)?;
        transfer::upload_bytes(&self.uploading(overwrite).await?, &key, body.into()).await
    }

    /// Deletes an object, in the version that is there now; whether there was one.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] unless `missing_ok`; [`ClientError::Overtaken`] if it is replaced at this
    /// moment; [`ClientError::Cancelled`]; the store's.
    pub async fn delete_object(&self, key: &str, missing_ok: bool) -> Result<bool, ClientError> {
        let key = ObjectKey::from_listing(key);
        check_not_state(&key)?;
        match self.unless_cancelled(1, self.store.head(&key)).await? {
            Ok(meta) => {
                let objects = vec![(key, Some(meta.etag))];
                transfer::delete(&self.transfer(Overwrite::No), objects).await.map(|_| true)
            }
            Err(StoreError::NotFound { .. }) if missing_ok => Ok(false),
            Err(StoreError::NotFound { .. }) => Err(ClientError::NotFound { what: key.to_string() }),
            Err(err) => Err(err.into()),
        }
    }

    /// Deletes everything below a prefix: `a` takes `a/b` along, and neither `a` itself nor `ab`.
    ///
    /// # Errors
    /// [`ClientError::Overtaken`]; [`ClientError::Cancelled`], of no files as long as they are not known; the
    /// store's; an empty prefix, which would be the whole bucket.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<DeleteReport, ClientError> {
        let prefix = KeyPrefix::parse(prefix)?;
        if prefix.as_str().is_empty() {
            return Err(ClientError::Other("an empty prefix is the whole bucket".into()));
        }
        let listing = list_all(&*self.store, ListRequest::recursive(prefix));
        let objects = self.unless_cancelled(0, listing).await??.objects;
        for object in &objects {
            check_not_state(&object.key)?;
        }
        let objects = objects.into_iter().map(|object| (object.key, object.etag)).collect();
        transfer::delete(&self.transfer(Overwrite::No), objects).await
    }

    /// Waits for a look at the remote, on behalf of a transfer of so many files, unless that is cancelled.
    async fn unless_cancelled<T>(
        &self,
        files: u64,
        look: impl Future<Output = T> + Send,
    ) -> Result<T, ClientError> {
        tokio::select! {
            biased;
            () = self.options.cancel.cancelled() => Err(ClientError::Cancelled { done: 0, files }),
            seen = look => Ok(seen),
        }
    }

    fn transfer(&self, overwrite: Overwrite) -> Transfer {
        let options = TransferOptions { overwrite: overwrite == Overwrite::Yes, ..self.options.clone() };
        Transfer {
            store: Arc::clone(&self.store),
            options,
            watch: Arc::clone(&self.watch),
            notes: self.notes.clone(),
            cache: None,
        }
    }

    /// For an upload it has to be known what the server guarantees.
    async fn uploading(&self, overwrite: Overwrite) -> Result<Transfer, ClientError> {
        let probe = || async {
            let prefix = RemotePrefix::parse("").expect("a constant that is a valid prefix");
            guarantee::probe(&*self.store, &prefix).await.map(|report| report.guarantee)
        };
        let guarantee = *self.guarantee.get_or_try_init(probe).await?;
        let mut transfer = self.transfer(overwrite);
        transfer.options.guarantee = guarantee;
        Ok(transfer)
    }
}

/// The log and the intents are written by commits only.
fn check_not_state(key: &ObjectKey) -> Result<(), ClientError> {
    if key.is_state() {
        return Err(ClientError::Other(format!("{key} belongs to dsfs's own state, and is left alone")));
    }
    Ok(())
}
