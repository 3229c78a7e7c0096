//! One directory level of the remote, as it can be shown.
//!
//! S3 keys can hold what a file system cannot: `a//b`, `.` and `..`, segments over 255 bytes, a
//! key that is both an object `a` and a prefix `a/`. The rule is to leave such a key out, count
//! it and name it to whoever asks; a directory wins over an object of the same name; nothing is
//! escaped or renamed. This module is where that rule is applied, and it does no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::name;
use crate::name::ETag;
use crate::name::KeyPrefix;
use crate::name::ObjectKey;
use crate::name::RelPath;
use crate::record::any_time;
use crate::store::ListPage;
use crate::store::ListedObject;

/// A published file: one version of one object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RemoteFile {
    /// The object.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its version; `None` if the server's listings do not say, until a HEAD has.
    pub etag: Option<ETag>,
    /// When it was modified.
    #[serde(with = "any_time")]
    pub modified: SystemTime,
}

/// One entry of a directory level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteEntry {
    /// Keys go on below it.
    Directory,
    /// An object.
    File(RemoteFile),
}

/// Keys that exist and cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenKey {
    /// The key or prefix.
    pub key: String,
    /// Why, as a clause.
    pub reason: String,
}

impl HiddenKey {
    /// A file of the newest snapshot that the listing of its directory does not have.
    #[must_use]
    pub fn missing(directory: &KeyPrefix, path: &RelPath) -> Self {
        let key = format!("{directory}{}", path.file_name());
        Self { key, reason: "committed, and deleted since by another tool".into() }
    }
}

/// A whole directory level.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// By name.
    pub entries: BTreeMap<Arc<str>, RemoteEntry>,
    /// What cannot be shown.
    pub hidden: Vec<HiddenKey>,
    /// What the dataset's log says is not to be shown: see [`view`](crate::catalog::view).
    pub withheld: Vec<HiddenKey>,
    /// The level's own `dir/` marker is there: it exists even with nothing in it.
    pub marker: bool,
}

impl Listing {
    /// Whether there is any key at this level or below it.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.marker || !self.entries.is_empty() || !self.hidden.is_empty()
    }

    /// Takes in one page of the listing of `prefix`.
    pub fn add_page(&mut self, prefix: &KeyPrefix, page: ListPage) {
        for object in page.objects {
            self.add_object(prefix, object);
        }
        for below in page.prefixes {
            self.add_directory(prefix, &below);
        }
    }

    fn add_object(&mut self, prefix: &KeyPrefix, object: ListedObject) {
        let Some(name) = prefix.strip(&object.key) else { return };
        if name.is_empty() {
            self.marker = true;
            return;
        }
        if let Err(err) = name::check_component(name) {
            self.hide(object.key.as_str(), err.to_string());
        } else if matches!(self.entries.get(name), Some(RemoteEntry::Directory)) {
            self.hide(object.key.as_str(), "a directory of the same name is shown instead".into());
        } else {
            let name = name.into();
            let ListedObject { key, size_bytes, etag, modified } = object;
            self.entries.insert(name, RemoteEntry::File(RemoteFile { key, size_bytes, etag, modified }));
        }
    }

    fn add_directory(&mut self, prefix: &KeyPrefix, below: &KeyPrefix) {
        let name = below.as_str().strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_suffix('/'));
        let Some(name) = name else { return };
        if let Err(err) = name::check_component(name) {
            self.hide(below.as_str(), err.to_string());
            return;
        }
        let replaced = self.entries.insert(name.into(), RemoteEntry::Directory);
        if let Some(RemoteEntry::File(file)) = replaced {
            self.hide(file.key.as_str(), "a directory of the same name is shown instead".into());
        }
    }

    fn hide(&mut self, key: &str, reason: String) {
        self.hidden.push(HiddenKey { key: key.to_owned(), reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> ListedObject {
        ListedObject {
            key: ObjectKey::from_listing(key),
            size_bytes: 1,
            etag: None,
            modified: SystemTime::UNIX_EPOCH,
        }
    }

    fn listing(objects: &[&str], prefixes: &[&str]) -> Listing {
        let mut listing = Listing::default();
        let page = ListPage {
            objects: objects.iter().map(|key| object(key)).collect(),
            prefixes: prefixes.iter().map(|prefix| KeyPrefix::from_listing(prefix)).collect(),
            continuation: None,
        };
        listing.add_page(&KeyPrefix::from_listing("p/"), page);
        listing
    }

    #[test]
    fn what_cannot_be_shown_is_left_out_and_named() {
        let long = format!("p/{}", "x".repeat(256));
        let listing = listing(&["p/ok", "p/..", "p/.", &long], &["p//", "p/dir/", "p/../"]);
        let shown: Vec<&str> = listing.entries.keys().map(|name| &**name).collect();
        assert_eq!(shown, ["dir", "ok"]);
        let hidden: Vec<&str> = listing.hidden.iter().map(|hidden| &*hidden.key).collect();
        assert_eq!(hidden, ["p/..", "p/.", &long, "p//", "p/../"]);
    }

    #[test]
    fn a_directory_wins_over_an_object_in_either_order() {
        let mut one = listing(&["p/a"], &["p/a/"]);
        assert_eq!(one.entries.get("a"), Some(&RemoteEntry::Directory));
        let again = ListPage { objects: vec![object("p/a")], ..ListPage::default() };
        one.add_page(&KeyPrefix::from_listing("p/"), again);
        assert_eq!(one.entries.get("a"), Some(&RemoteEntry::Directory));
        assert_eq!(one.hidden.len(), 2);
    }

    #[test]
    fn a_marker_makes_an_empty_directory() {
        assert!(listing(&["p/"], &[]).exists());
        assert!(listing(&["p/"], &[]).entries.is_empty());
        assert!(!listing(&[], &[]).exists());
    }
}
