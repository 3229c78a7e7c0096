//! What has to hold, at any time and in the end.

use super::*;

/// Reads as a reader does, objects, then intents, then the log, and checks what it would show.
pub(super) async fn read_once(world: &World) {
    let line: Arc<dyn ObjectStore> = Arc::new(Line {
        bucket: Arc::clone(&world.bucket),
        dice: Arc::clone(&world.dice),
        death: None,
        faults: false,
        grade: world.grade,
        who: "other".into(),
        aloud: false,
    });
    let mark = directly(world).head().await.unwrap();
    let listed = list_all(&*line, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    let key = |at: &RelPath| prefix().key(&name(), at).unwrap();
    let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut gone: BTreeSet<(ObjectKey, ETag)> = BTreeSet::new();
    for object in list_all(&*line, ListRequest::recursive(prefix().intents(&name()))).await.unwrap().objects {
        let Some(body) = crate::log::read_object(&*line, &object.key).await.unwrap() else { continue };
        let intent = Intent::decode(&body).unwrap();
        named.extend(intent.creates.iter().map(key));
        let dirs = intent.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap());
        named.extend(dirs);
        gone.extend(intent.deletes.iter().map(|old| (key(&old.path), old.etag.clone())));
    }
    let log = Log::new(Arc::clone(&line), prefix(), name());
    let head = log.head().await.unwrap();
    for seq in mark + 1..=head {
        let record = log.record(seq).await.unwrap().unwrap();
        gone.extend(record.body.changes.deleted.iter().map(|old| (key(&old.path), old.etag.clone())));
    }
    let tree = log.snapshot(head).await.unwrap();
    let mut recorded: BTreeSet<ObjectKey> = tree.entries.values().map(|entry| key(&entry.path)).collect();
    recorded.extend(tree.markers.iter().map(|at| prefix().marker_key(&name(), &at.clone().into()).unwrap()));
    for object in listed.objects {
        if recorded.contains(&object.key) || named.contains(&object.key) || surrendered(world, &object.key) {
            continue;
        }
        // Shown as foreign. One that is gone by now was taken back while it was looked at.
        let Ok(meta) = world.bucket.head(&object.key).await else { continue };
        if Some(&meta.etag) == object.etag.as_ref() && !gone.contains(&(object.key.clone(), meta.etag)) {
            let txid = meta.metadata.get(META_TXID);
            assert_eq!(txid, None, "{} shows, of a commit that is not in the log", object.key);
        }
    }
    check_committed(world).await;
}

/// Lists the dataset as a mount does that knows nothing of it yet, and checks that it shows one snapshot,
/// whole, and of commits nothing else.
pub(super) async fn list_as_newcomer(world: &World) {
    let line = Line {
        bucket: Arc::clone(&world.bucket),
        dice: Arc::clone(&world.dice),
        death: None,
        faults: false,
        grade: world.grade,
        who: "newcomer".into(),
        aloud: world.aloud,
    };
    let mark = directly(world).head().await.unwrap();
    let catalog = Arc::new(Catalog::new(Arc::new(line), prefix(), Duration::from_secs(3600)));
    if world.one_in(2) {
        catalog.learn_whole(&name(), 1000).await.unwrap();
    }
    let shown = loop {
        match Shown::of(&catalog) {
            Ok(shown) => break shown,
            Err(unknown) => catalog.level(&unknown).await.unwrap(),
        };
    };
    let log = directly(world);
    let mut wrong = Vec::new();
    for seq in mark..=log.head().await.unwrap() {
        match shown.differs_from(&log.snapshot(seq).await.unwrap(), world).await {
            None => return,
            Some(why) => wrong.push(format!("commit {seq}: {why}")),
        }
    }
    panic!("what is shown is no snapshot: {wrong:?}");
}

/// All that a catalog shows of the dataset.
#[derive(Default)]
struct Shown {
    files: BTreeMap<RelPath, ETag>,
    directories: BTreeSet<RelPath>,
}

impl Shown {
    /// All of it at one moment; or a level that is not known yet.
    fn of(catalog: &Catalog) -> Result<Self, Level> {
        let mut shown = Self::default();
        let mut unread = vec![DirPath::root()];
        while let Some(dir) = unread.pop() {
            let level = Level::Directory(name(), dir.clone());
            let Some(known) = catalog.fresh(&level) else { return Err(level) };
            for (entry_name, entry) in &known.listing.entries {
                let path = dir.child(entry_name).unwrap();
                match entry {
                    RemoteEntry::File(file) => {
                        shown.files.insert(path, file.etag.clone().unwrap());
                    }
                    RemoteEntry::Directory => {
                        unread.push(path.clone().into());
                        shown.directories.insert(path);
                    }
                }
            }
        }
        Ok(shown)
    }

    /// What is missing of a snapshot, or too much.
    async fn differs_from(&self, tree: &Snapshot, world: &World) -> Option<String> {
        let is_free = |path: &RelPath| {
            let key = prefix().key(&name(), path).unwrap();
            surrendered(world, &key) || world.foreign.lock().contains_key(&key)
        };
        for entry in tree.entries.values() {
            if self.files.get(&entry.path) != Some(&entry.etag) && !is_free(&entry.path) {
                return Some(format!("{} is not shown", entry.path));
            }
        }
        if let Some(marker) = tree.markers.iter().find(|marker| !self.directories.contains(*marker)) {
            return Some(format!("{marker}/ is not shown"));
        }
        for (path, etag) in &self.files {
            if tree.entries.contains_key(path) || is_free(path) {
                continue;
            }
            // What is gone by now was taken back while it was looked at.
            let meta = world.bucket.head(&prefix().key(&name(), path).unwrap()).await;
            if meta.is_ok_and(|meta| meta.etag == *etag) {
                return Some(format!("{path} is shown"));
            }
        }
        None
    }
}

fn surrendered(world: &World, key: &ObjectKey) -> bool {
    world.surrendered.lock().contains(key)
}

/// The log, with nothing in between.
fn directly(world: &World) -> Log {
    Log::new(Arc::clone(&world.bucket) as Arc<dyn ObjectStore>, prefix(), name())
}

/// What is in the log now is in the bucket now.
async fn check_committed(world: &World) {
    let log = directly(world);
    let tree = log.snapshot(log.head().await.unwrap()).await.unwrap();
    for entry in tree.entries.values() {
        let key = prefix().key(&name(), &entry.path).unwrap();
        let meta = world.bucket.head(&key).await.unwrap_or_else(|err| panic!("committed and lost: {err}"));
        let replaced = surrendered(world, &key) && meta.metadata.contains_key(META_TXID);
        assert!(meta.etag == entry.etag || replaced, "committed and changed: {key}");
    }
}

pub(super) async fn check_end(world: &World) {
    read_once(world).await;
    let bucket: Arc<dyn ObjectStore> = Arc::clone(&world.bucket) as Arc<dyn ObjectStore>;
    let log = directly(world);
    let head = log.head().await.unwrap();
    let tree = log.snapshot(head).await.unwrap();
    let mut committed = BTreeMap::new();
    for seq in 1..=head {
        let record = log.record(seq).await.unwrap().unwrap();
        if record.outcome == Outcome::Commit {
            let before = committed.insert(record.body.txid.clone(), seq);
            assert_eq!(before, None, "a commit is in the log once");
        }
    }
    for report in world.acknowledged.lock().values() {
        assert!(report.seq.is_none() || committed.get(&report.txid) == report.seq.as_ref(), "{report:?}");
        for file in &report.published {
            let key = prefix().key(&name(), &file.path).unwrap();
            let entry = tree.entries.get(&file.path);
            let is_there = entry.map(|entry| &entry.etag) == Some(&file.etag);
            assert!(is_there || surrendered(world, &key), "acknowledged and not there: {key}");
        }
    }
    let foreign = world.foreign.lock().clone();
    for (key, etag) in foreign.iter().filter(|(key, _)| !surrendered(world, key)) {
        let meta = world.bucket.head(key).await.ok();
        assert_eq!(meta.map(|meta| meta.etag).as_ref(), Some(etag), "a foreign object changed: {key}");
    }
    let intents = list_all(&*bucket, ListRequest::recursive(prefix().intents(&name()))).await.unwrap();
    assert!(
        intents.objects.is_empty() || world.grade == Guarantee::BestEffort,
        "left: {:?}",
        intents.objects
    );
    let recorded: BTreeSet<ETag> = tree.entries.values().map(|entry| entry.etag.clone()).collect();
    let listed = list_all(&*bucket, ListRequest::recursive(prefix().dataset(&name()))).await.unwrap();
    for object in listed.objects.iter().filter(|object| !object.key.as_str().ends_with('/')) {
        let etag = object.etag.clone().unwrap();
        let known = recorded.contains(&etag) || foreign.values().any(|known| *known == etag);
        assert!(known || surrendered(world, &object.key), "{} is nobody's", object.key);
    }
}
