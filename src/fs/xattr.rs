//! Extended attributes: read-only, and all of them tell what dsfs knows of a file.
//!
//! | name | value |
//! | --- | --- |
//! | `user.dsfs.state` | `staged`, `sealed` (being committed), `published` or `past` |
//! | `user.dsfs.dataset` | the dataset's name |
//! | `user.dsfs.key` | the object key that it has, or will have |
//! | `user.dsfs.etag` | the version, for published and past files |
//! | `user.dsfs.seq` | below `NAME@SEQ`: the commit that made this state |
//!
//! Attributes of the system (ACLs, security labels, capabilities) are not supported, and that is what is
//! said: `ls -l` asks two of them of every file, unless it has been told so of this file system once.

use crate::fs::DatasetFs;
use crate::fs::error::FsError;
use crate::staging::StagedState;
use crate::tree::inode::Ino;
use crate::tree::inode::Node;

impl DatasetFs {
    /// One attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`]; [`FsError::NotSupported`] for those that are not the users'.
    pub fn getxattr(&self, ino: Ino, name: &str) -> Result<String, FsError> {
        if !name.starts_with("user.") {
            return Err(FsError::NotSupported("ACLs and security attributes"));
        }
        self.xattrs(ino)?
            .into_iter()
            .find_map(|(known, value)| (known == name).then_some(value))
            .ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes, each ended by NUL, as listxattr(2) has them.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let names = self.xattrs(ino)?.into_iter().flat_map(|(name, _)| [name.as_bytes(), &[0]].concat());
        Ok(names.collect())
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(&'static str, String)>, FsError> {
        match self.node(ino)? {
            Node::Root | Node::Unlinked(_) => Ok(vec![]),
            Node::Directory(dataset, dir) => {
                let key = self.tree.catalog().prefix().directory(&dataset, &dir);
                Ok(vec![("user.dsfs.dataset", dataset.to_string()), ("user.dsfs.key", key.to_string())])
            }
            Node::Staged(dataset, path) => {
                let attr = self.staged_attr(&dataset, &path)?.ok_or(FsError::Stale)?;
                let state = match attr.state {
                    StagedState::Open => "staged",
                    StagedState::Sealed => "sealed",
                };
                let key = self.tree.catalog().prefix().key(&dataset, &path)?;
                Ok(vec![
                    ("user.dsfs.state", state.to_owned()),
                    ("user.dsfs.dataset", dataset.to_string()),
                    ("user.dsfs.key", key.to_string()),
                ])
            }
            Node::PastDirectory(id, dir, _) => {
                let key = self.tree.catalog().prefix().directory(&id.dataset, &dir);
                Ok(vec![
                    ("user.dsfs.state", "past".to_owned()),
                    ("user.dsfs.dataset", id.dataset.to_string()),
                    ("user.dsfs.seq", id.seq.to_string()),
                    ("user.dsfs.key", key.to_string()),
                ])
            }
            Node::PastFile(id, _, file) => {
                let mut all = vec![
                    ("user.dsfs.state", "past".to_owned()),
                    ("user.dsfs.dataset", id.dataset.to_string()),
                    ("user.dsfs.seq", id.seq.to_string()),
                    ("user.dsfs.key", file.key.to_string()),
                ];
                all.extend(file.etag.as_ref().map(|etag| ("user.dsfs.etag", etag.to_string())));
                Ok(all)
            }
            Node::Published(dataset, _, file) => {
                let mut all = vec![
                    ("user.dsfs.state", "published".to_owned()),
                    ("user.dsfs.dataset", dataset.to_string()),
                    ("user.dsfs.key", file.key.to_string()),
                ];
                all.extend(file.etag.as_ref().map(|etag| ("user.dsfs.etag", etag.to_string())));
                Ok(all)
            }
        }
    }
}
