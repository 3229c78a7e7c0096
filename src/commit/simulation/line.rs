//! An actor's line to the bucket, with its faults.

use super::*;

/// One actor's way to the bucket.
pub(super) struct Line {
    pub(super) bucket: Arc<MemoryStore>,
    pub(super) dice: Arc<Mutex<StdRng>>,
    /// Told when the actor dies; an actor without it does not.
    pub(super) death: Option<Arc<Notify>>,
    pub(super) faults: bool,
    pub(super) grade: Guarantee,
    pub(super) who: String,
    /// Every request is told, for one seed at a time.
    pub(super) aloud: bool,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

#[derive(Debug)]
enum Fate {
    Fine,
    /// Fails, and is not carried out.
    Fails,
    /// Is carried out, and the answer is lost.
    Lost,
    /// Is given up, and carried out later.
    Late(Duration),
    /// Its maker dies, before or after it.
    Death {
        after: bool,
    },
}

impl Line {
    /// What becomes of a request. The commit point and deletions have more than their share of bad luck.
    fn fate(&self, what: &str) -> (Duration, Fate) {
        let mut dice = self.dice.lock();
        let delay = Duration::from_millis(dice.random_range(0..DELAY_MS_MAX));
        if !self.faults {
            return (delay, Fate::Fine);
        }
        let unlucky = ["put .dsfs/datasets/log/", "delete datasets/"];
        let sides = if unlucky.iter().any(|start| what.starts_with(start)) { 40 } else { 200 };
        let fate = match dice.random_range(0..sides) {
            0..4 => Fate::Fails,
            4..7 => Fate::Lost,
            // Where no condition holds a late request, nothing is promised about it.
            7..10 if self.grade == Guarantee::BestEffort => Fate::Fails,
            7..10 if self.grade == Guarantee::SinglePut && what.starts_with("complete") => Fate::Fails,
            7..10 => Fate::Late(Duration::from_millis(dice.random_range(0..LATE_MS_MAX))),
            10..13 if self.death.is_some() => Fate::Death { after: dice.random_bool(0.5) },
            _ => Fate::Fine,
        };
        (delay, fate)
    }

    async fn send<T, F>(
        &self,
        what: String,
        request: impl FnOnce(Arc<MemoryStore>) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (delay, fate) = self.fate(&what);
        if self.aloud {
            eprintln!("{:?} {} {what}: {fate:?} after {delay:?}", Instant::now(), self.who);
        }
        let request = request(Arc::clone(&self.bucket));
        tokio::time::sleep(delay).await;
        let lost = || Err(StoreError::unavailable("simulation", "injected"));
        match fate {
            Fate::Fine => request.await,
            Fate::Fails => lost(),
            Fate::Lost => {
                request.await.ok();
                lost()
            }
            Fate::Late(by) => {
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    request.await.ok();
                });
                lost()
            }
            Fate::Death { after } => {
                if after {
                    request.await.ok();
                }
                if let Some(death) = &self.death {
                    death.notify_one();
                }
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Line {
    fn describe(&self) -> String {
        "simulation".into()
    }
    async fn check_access(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let what = format!("list {}", request.prefix);
        let request = request.clone();
        self.send(what, |bucket| async move { bucket.list(&request).await }).await
    }
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let what = format!("head {}", key);
        let key = key.clone();
        self.send(what, |bucket| async move { bucket.head(&key).await }).await
    }
    async fn get(&self, key: &ObjectKey, etag: &ETag, range: Range<u64>) -> Result<ByteStream, StoreError> {
        let what = format!("get {}", key);
        let (key, etag) = (key.clone(), etag.clone());
        self.send(what, |bucket| async move { bucket.get(&key, &etag, range).await }).await
    }
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        expect: &Expect,
        attributes: &PutAttributes,
    ) -> Result<ETag, StoreError> {
        let what = format!("put {}", key);
        let (key, expect, attributes) = (key.clone(), expect.clone(), attributes.clone());
        let ignores = self.grade == Guarantee::BestEffort;
        self.send(what, move |bucket| async move {
            let expect = if ignores { whatever(&bucket, &key).await } else { expect };
            bucket.put(&key, body, &expect, &attributes).await
        })
        .await
    }
    async fn create_multipart(
        &self,
        key: &ObjectKey,
        attributes: &PutAttributes,
    ) -> Result<UploadId, StoreError> {
        let what = format!("create_multipart {}", key);
        let (key, attributes) = (key.clone(), attributes.clone());
        self.send(what, |bucket| async move { bucket.create_multipart(&key, &attributes).await }).await
    }
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, StoreError> {
        let what = format!("put_part {}", key);
        let (key, upload) = (key.clone(), upload.clone());
        self.send(what, |bucket| async move { bucket.put_part(&key, &upload, number, body).await }).await
    }
    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        expect: &Expect,
    ) -> Result<ETag, StoreError> {
        let what = format!("complete_multipart {}", key);
        let (key, upload, parts, expect) = (key.clone(), upload.clone(), parts.to_vec(), expect.clone());
        let ignores = self.grade != Guarantee::Enforced;
        self.send(what, move |bucket| async move {
            let expect = if ignores { whatever(&bucket, &key).await } else { expect };
            bucket.complete_multipart(&key, &upload, &parts, &expect).await
        })
        .await
    }
    async fn abort_multipart(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), StoreError> {
        let what = format!("abort_multipart {}", key);
        let (key, upload) = (key.clone(), upload.clone());
        self.send(what, |bucket| async move { bucket.abort_multipart(&key, &upload).await }).await
    }
    async fn delete(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let what = format!("delete {}", key);
        let (key, etag) = (key.clone(), etag.clone());
        self.send(what, |bucket| async move { bucket.delete(&key, &etag).await }).await
    }
}

/// What is there now: a condition that holds, for servers that ignore conditions.
async fn whatever(bucket: &MemoryStore, key: &ObjectKey) -> Expect {
    bucket.head(key).await.map_or(Expect::Absent, |meta| Expect::Version(meta.etag))
}
