//! Committers: what they stage, how they die, and how they go on.

use super::*;

pub(super) struct Machine {
    world: Rc<World>,
    root: TempDir,
    staging: Option<Staging>,
    user: String,
}

impl Machine {
    pub(super) fn new(world: &Rc<World>, number: usize) -> Self {
        let shm = Path::new("/dev/shm");
        let root =
            if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() };
        let staging = Some(Staging::open(root.path(), &Holder::default()).unwrap());
        Self { world: Rc::clone(world), root, staging, user: format!("user{number}") }
    }

    fn dataset(&self) -> Arc<StagedDataset> {
        self.staging.as_ref().unwrap().create_dataset(&name()).unwrap()
    }

    async fn stage(&self) {
        let dataset = self.dataset();
        for _ in 0..self.world.roll(0..3) {
            self.change(&dataset).await;
        }
        for _ in 0..self.world.roll(1..5) {
            let at = PATHS[self.world.roll(0..PATHS.len() as u64) as usize];
            let at = if self.world.one_in(2) { format!("{}/{at}", self.user) } else { at.to_owned() };
            // Over 40 bytes it goes up in parts.
            let Ok(file) = dataset.create_file(&RelPath::parse(&at).unwrap(), 0o644) else { continue };
            file.write_all_at(&self.content(), 0).unwrap();
        }
        if self.world.one_in(3) {
            let empty = format!("{}/empty{}", self.user, self.world.roll(0..3));
            dataset.mkdir(&RelPath::parse(&empty).unwrap(), 0o755).ok();
        }
    }

    /// One of a few, so that the same comes back.
    fn content(&self) -> Vec<u8> {
        let letter = b'a' + self.world.roll(0..3) as u8;
        vec![letter; [0, 7, 60, 75][self.world.roll(0..4) as usize]]
    }

    /// Stages a replacement or a deletion of something that is published.
    async fn change(&self, dataset: &Arc<StagedDataset>) {
        let at = PATHS[self.world.roll(0..PATHS.len() as u64) as usize];
        let path = RelPath::parse(at).unwrap();
        let key = prefix().key(&name(), &path).unwrap();
        let Ok(meta) = self.world.bucket.head(&key).await else { return };
        let kind = if self.world.one_in(2) { BaseKind::Replace } else { BaseKind::Delete };
        if kind == BaseKind::Replace {
            let Ok(file) = dataset.create_file(&path, 0o644) else { return };
            file.write_all_at(&self.content(), 0).unwrap();
        }
        dataset.set_base(&path, &Base { etag: meta.etag, size_bytes: meta.size_bytes, kind }).unwrap();
        self.world.surrendered.lock().insert(key);
    }

    fn context(&self, death: Option<Arc<Notify>>, faults: bool) -> CommitContext {
        let world = &self.world;
        let line = Line {
            bucket: Arc::clone(&world.bucket),
            dice: Arc::clone(&world.dice),
            death,
            faults,
            grade: world.grade,
            who: self.user.clone(),
            aloud: world.aloud,
        };
        let clock = SimClock { start: world.start };
        CommitContext {
            store: Arc::new(line),
            prefix: prefix(),
            staging: self.dataset(),
            cache: None,
            published: None,
            clock: Arc::new(clock),
            author: Author { user: self.user.clone(), host: "lab".into() },
            options: CommitOptions {
                part_bytes: 40,
                workers: 3,
                overwrite: true,
                allow_unenforced: true,
                entropy: Some(world.roll(0..u64::MAX)),
                ..CommitOptions::default()
            },
            guarantee: world.grade,
            progress: Arc::new(NoProgress),
        }
    }

    /// One attempt to end what is under way; `None`: it died.
    async fn attempt(&self, faults: bool) -> Option<Result<CommitReport, CommitError>> {
        let death = Arc::new(Notify::new());
        let ctx = self.context(faults.then(|| Arc::clone(&death)), faults);
        let run = async {
            if ctx.staging.sealed().is_none() {
                commit(&ctx).await
            } else if self.world.one_in(3) {
                match abort(&ctx).await {
                    Ok(()) => Err(CommitError::NothingToResume),
                    Err(err) => Err(err),
                }
            } else {
                resume(&ctx).await
            }
        };
        tokio::select! {
            biased;
            () = death.notified() => None,
            outcome = run => Some(outcome),
        }
    }

    pub(super) async fn live(&mut self) {
        for _ in 0..ROUNDS {
            // Now and then long enough for everything that was under way to be over.
            let pause = if self.world.one_in(8) { SWEEP_AFTER } else { Duration::ZERO };
            tokio::time::sleep(pause + Duration::from_millis(self.world.roll(0..400))).await;
            if self.dataset().sealed().is_none() {
                self.stage().await;
            }
            self.once(true).await;
        }
        // The last word of each machine, on a network that works.
        for _ in 0..20 {
            if self.dataset().sealed().is_none() {
                return;
            }
            self.once(false).await;
            tokio::time::sleep(SWEEP_AFTER / 4).await; // whoever is in the way may have to end first
        }
        panic!("a commit did not end on a network that works");
    }

    async fn once(&mut self, faults: bool) {
        *self.world.active.lock() = Instant::now();
        match self.attempt(faults).await {
            None => {
                self.staging = None;
                tokio::time::sleep(Duration::from_millis(self.world.roll(0..5000))).await;
                self.staging = Some(Staging::open(self.root.path(), &Holder::default()).unwrap());
            }
            Some(Ok(report)) => {
                self.world.acknowledged.lock().insert(report.txid.clone(), report);
            }
            Some(Err(CommitError::Conflict { .. })) => {
                self.dataset().discard(&DirPath::root()).unwrap();
            }
            Some(Err(CommitError::Unenforced)) => panic!("it was allowed"),
            Some(Err(err)) => {
                if self.world.aloud {
                    eprintln!("{}: {err}", self.user);
                }
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct SimClock {
    pub(super) start: Instant,
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.start.elapsed()
    }
}
