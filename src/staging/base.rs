//! What a staged file replaces, and what a staged deletion hides.
//!
//! Only on mounts that allow replacing. One small file per path, `base/<hex sha256 of path>.json`,
//! written before the change that it belongs to; in memory by directory, so that a lookup or a
//! listing costs nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use sha2::Digest;
use sha2::Sha256;

use crate::durable;
use crate::name::DirPath;
use crate::name::ETag;
use crate::name::RelPath;

/// The published version that a staged change stands on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The version that was seen; any other is a conflict, not a victim.
    pub etag: ETag,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What happens to it.
    pub kind: BaseKind,
}

/// What a commit does to a published version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseKind {
    /// The staged file takes its place.
    Replace,
    /// It is deleted.
    Delete,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct BaseFile {
    path: RelPath,
    #[serde(flatten)]
    base: Base,
}

/// All bases of one tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Bases {
    by_dir: BTreeMap<DirPath, BTreeMap<String, Base>>,
}

impl Bases {
    /// Reads the directory `dir`; a missing one is empty.
    pub fn load(dir: &Path) -> io::Result<Self> {
        let mut bases = Self::default();
        let entries = match fs::read_dir(dir) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(bases),
            answer => answer?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let file: BaseFile = serde_json::from_slice(&fs::read(&path)?)?;
                bases.insert(&file.path, file.base);
            }
        }
        Ok(bases)
    }

    fn insert(&mut self, path: &RelPath, base: Base) {
        self.by_dir.entry(path.parent()).or_default().insert(path.file_name().to_owned(), base);
    }

    pub fn get(&self, path: &RelPath) -> Option<&Base> {
        self.by_dir.get(&path.parent())?.get(path.file_name())
    }

    /// Writes one down, durably.
    pub fn set(&mut self, dir: &Path, path: &RelPath, base: &Base) -> io::Result<()> {
        durable::create_private_dirs(dir)?;
        let file = BaseFile { path: path.clone(), base: base.clone() };
        durable::replace(&file_of(dir, path), &serde_json::to_vec(&file)?)?;
        self.insert(path, base.clone());
        Ok(())
    }

    /// Forgets one, durably.
    pub fn clear(&mut self, dir: &Path, path: &RelPath) -> io::Result<()> {
        let Some(names) = self.by_dir.get_mut(&path.parent()) else { return Ok(()) };
        if names.remove(path.file_name()).is_some() {
            if names.is_empty() {
                self.by_dir.remove(&path.parent());
            }
            fs::remove_file(file_of(dir, path))?;
            durable::sync_dir(dir)?;
        }
        Ok(())
    }

    /// The names in `dir` that are deleted.
    pub fn deletions<'a>(&'a self, dir: &DirPath) -> impl Iterator<Item = &'a str> {
        let names = self.by_dir.get(dir).into_iter().flatten();
        names.filter(|(_, base)| base.kind == BaseKind::Delete).map(|(name, _)| name.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.by_dir.is_empty()
    }

    /// All of them, in the order of their paths.
    pub fn all(&self) -> Vec<(RelPath, Base)> {
        let mut all: Vec<(RelPath, Base)> = Vec::new();
        for (dir, names) in &self.by_dir {
            all.extend(names.iter().filter_map(|(name, base)| Some((dir.child(name).ok()?, base.clone()))));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

fn file_of(dir: &Path, path: &RelPath) -> PathBuf {
    dir.join(format!("{}.json", HEXLOWER.encode(&Sha256::digest(path.as_str()))))
}
