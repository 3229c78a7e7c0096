//! Directories of the user's own: what is in them that can be uploaded.
//!
//! Objects have no links and no devices. A symbolic link to a file is followed, since its bytes can be
//! uploaded; one to a directory is not, since it may lead anywhere. What is left out is told, never silent.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::name::DirPath;
use crate::name::NameError;
use crate::name::RelPath;

/// What temporary files of dsfs begin with, wherever they are; they are never uploaded.
pub const TEMPORARY_PREFIX: &str = ".dsfs-part-";

/// Why a directory could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The local disk's answer.
    #[error("{}: {source}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name that no key can have.
    #[error("{}: {source}", path.display())]
    Name {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        source: NameError,
    },
}

/// A file that can be uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is below the directory.
    pub path: RelPath,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its content was last changed.
    pub modified: SystemTime,
}

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalTree {
    /// The files, in the order of their paths.
    pub files: Vec<LocalFile>,
    /// Directories with nothing in them.
    pub empty_directories: Vec<DirPath>,
    /// What is left out, and why, for people.
    pub left_out: Vec<String>,
}

impl LocalTree {
    /// Looks through a directory.
    ///
    /// # Errors
    /// It is no directory or cannot be read; a name that no key can have.
    pub fn of(root: &Path) -> Result<Self, LocalError> {
        let mut tree = Self::default();
        let mut waiting = vec![DirPath::root()];
        while let Some(dir) = waiting.pop() {
            tree.read(root, &dir, &mut waiting)?;
        }
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        tree.empty_directories.sort();
        tree.left_out.sort();
        Ok(tree)
    }

    fn read(&mut self, root: &Path, dir: &DirPath, waiting: &mut Vec<DirPath>) -> Result<(), LocalError> {
        let place = root.join(dir.as_str());
        let failed = |source| LocalError::Io { path: place.clone(), source };
        let mut is_empty = true;
        for entry in fs::read_dir(&place).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            is_empty = false;
            let name = entry.file_name();
            let bad = |source| LocalError::Name { path: entry.path(), source };
            let name =
                name.to_str().ok_or_else(|| bad(NameError::NotUtf8(name.to_string_lossy().into_owned())))?;
            if name.starts_with(TEMPORARY_PREFIX) {
                continue;
            }
            let path = dir.child(name).map_err(bad)?;
            let kind = entry.file_type().map_err(|source| LocalError::Io { path: entry.path(), source })?;
            if kind.is_dir() {
                waiting.push(path.into());
            } else {
                self.add(&entry.path(), path)?;
            }
        }
        if is_empty && !dir.is_root() {
            self.empty_directories.push(dir.clone());
        }
        Ok(())
    }

    fn add(&mut self, place: &Path, path: RelPath) -> Result<(), LocalError> {
        let meta = match fs::metadata(place) {
            Ok(meta) => meta,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.left_out.push(format!("{path}: a symbolic link to nothing"));
                return Ok(());
            }
            Err(source) => return Err(LocalError::Io { path: place.to_owned(), source }),
        };
        if meta.is_file() {
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            self.files.push(LocalFile { path, size_bytes: meta.len(), modified });
        } else if meta.is_dir() {
            self.left_out.push(format!("{path}: a symbolic link to a directory"));
        } else {
            self.left_out.push(format!("{path}: neither a file nor a directory"));
        }
        Ok(())
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_are_found_links_to_them_followed_and_the_rest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir_all(at("empty")).unwrap();
        fs::write(at("a/b/1"), "1").unwrap();
        fs::write(at("z"), "22").unwrap();
        fs::write(at(".dsfs-part-0123"), "not ours to upload").unwrap();
        symlink("z", at("link")).unwrap();
        symlink("a", at("loop")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let tree = LocalTree::of(dir.path()).unwrap();
        let files: Vec<(&str, u64)> =
            tree.files.iter().map(|file| (file.path.as_str(), file.size_bytes)).collect();
        assert_eq!(files, [("a/b/1", 1), ("link", 2), ("z", 2)]);
        assert_eq!(tree.bytes(), 5);
        assert_eq!(tree.empty_directories, [DirPath::from(RelPath::parse("empty").unwrap())]);
        let told: Vec<&str> = tree.left_out.iter().map(|what| what.split(':').next().unwrap()).collect();
        assert_eq!(told, ["dangling", "loop", "pipe"]);
    }

    #[test]
    fn names_that_no_key_can_have_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "").unwrap();
        assert!(matches!(LocalTree::of(dir.path()), Err(LocalError::Name { .. })));
        assert!(matches!(LocalTree::of(&dir.path().join("missing")), Err(LocalError::Io { .. })));
    }
}
