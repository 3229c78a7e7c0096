//! What is in the cache, how large, and how recently used: the books of the LRU. Pure.
//!
//! The books are this process's view. Other processes fill and evict too, so a scan of the
//! directory replaces them from time to time; being wrong costs an early or a late eviction,
//! nothing else.

use std::collections::HashMap;

use crate::cache::format::VersionId;

/// One cached version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cached {
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// When it was last used, in seconds since 1970.
    pub(crate) used: u64,
    /// Pinned: neither counted nor evicted.
    pub(crate) pinned: bool,
}

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Index {
    cached: HashMap<VersionId, Cached>,
    /// Sum over the versions that are not pinned.
    bytes: u64,
    pinned_bytes: u64,
}

impl Index {
    /// Bytes that count against the limit.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of pinned versions, which do not.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Versions with bytes on disk.
    pub(crate) fn files(&self) -> u64 {
        self.cached.values().filter(|cached| cached.bytes > 0).count() as u64
    }

    fn change(&mut self, id: VersionId, change: impl FnOnce(&mut Cached)) {
        let cached = self.cached.entry(id).or_default();
        let before = *cached;
        change(cached);
        let after = *cached;
        let sum = |pinned: bool, total: u64| {
            let part = |cached: Cached| if cached.pinned == pinned { cached.bytes } else { 0 };
            (total + part(after)).saturating_sub(part(before))
        };
        self.bytes = sum(false, self.bytes);
        self.pinned_bytes = sum(true, self.pinned_bytes);
        if after.bytes == 0 && !after.pinned {
            self.cached.remove(&id);
        }
    }

    /// Bytes were added to a version.
    pub(crate) fn add(&mut self, id: VersionId, bytes: u64, now: u64) {
        self.change(id, |cached| {
            cached.bytes += bytes;
            cached.used = now;
        });
    }

    /// A version was used.
    pub(crate) fn touch(&mut self, id: &VersionId, now: u64) {
        if let Some(cached) = self.cached.get_mut(id) {
            cached.used = now;
        }
    }

    /// A version's files are gone.
    pub(crate) fn remove(&mut self, id: VersionId) {
        self.change(id, |cached| cached.bytes = 0);
    }

    /// Pins or unpins a version, cached or not.
    pub(crate) fn set_pinned(&mut self, id: VersionId, pinned: bool) {
        self.change(id, |cached| cached.pinned = pinned);
    }

    /// Whether a version is pinned, as far as this process knows.
    pub(crate) fn is_pinned(&self, id: &VersionId) -> bool {
        self.cached.get(id).is_some_and(|cached| cached.pinned)
    }

    /// Bytes of a version on disk.
    pub(crate) fn cached_bytes(&self, id: &VersionId) -> u64 {
        self.cached.get(id).map_or(0, |cached| cached.bytes)
    }

    /// Takes what a scan found in place of the books; what was used since, stays used since.
    pub(crate) fn replace(&mut self, found: HashMap<VersionId, Cached>) {
        let before = std::mem::take(self);
        for (id, mut cached) in found {
            if let Some(known) = before.cached.get(&id) {
                cached.used = cached.used.max(known.used);
            }
            self.change(id, |slot| *slot = cached);
        }
    }

    /// The versions to evict, longest unused first and those in use last, so that at least
    /// `bytes` become free. Never pinned ones.
    pub(crate) fn victims(
        &self,
        bytes: u64,
        in_use: impl Fn(&VersionId) -> bool,
    ) -> Vec<(VersionId, Cached)> {
        let mut candidates: Vec<(VersionId, Cached)> = self
            .cached
            .iter()
            .filter(|(_, cached)| !cached.pinned && cached.bytes > 0)
            .map(|(id, cached)| (*id, *cached))
            .collect();
        candidates.sort_unstable_by_key(|(id, cached)| (in_use(id), cached.used, *id));
        let mut freed = 0;
        let enough = candidates.iter().position(|(_, cached)| {
            let done = freed >= bytes;
            freed += cached.bytes;
            done
        });
        candidates.truncate(enough.unwrap_or(candidates.len()));
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ETag;
    use crate::name::ObjectKey;

    fn id(n: u64) -> VersionId {
        VersionId::new("", &ObjectKey::from_listing(&n.to_string()), &ETag::from_server(""))
    }

    fn keys(victims: &[(VersionId, Cached)]) -> Vec<VersionId> {
        victims.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_longest_unused_go_first_and_no_more_than_needed() {
        let mut index = Index::default();
        for n in 1..=4 {
            index.add(id(n), 10, n);
        }
        index.touch(&id(1), 9);
        assert_eq!(index.bytes(), 40);
        assert_eq!(keys(&index.victims(15, |_| false)), [id(2), id(3)]);
        assert_eq!(keys(&index.victims(10, |_| false)), [id(2)]);
        assert_eq!(keys(&index.victims(0, |_| false)), []);
        assert_eq!(keys(&index.victims(15, |used| *used == id(2))), [id(3), id(4)]);
        assert_eq!(index.victims(u64::MAX, |used| *used == id(2)).last().map(|v| v.0), Some(id(2)));
        assert_eq!(index.victims(u64::MAX, |_| false).len(), 4);
    }

    #[test]
    fn pins_stand_outside() {
        let mut index = Index::default();
        index.set_pinned(id(1), true);
        index.add(id(1), 10, 1);
        index.add(id(2), 5, 2);
        assert_eq!((index.bytes(), index.pinned_bytes(), index.files()), (5, 10, 2));
        assert_eq!(keys(&index.victims(99, |_| false)), [id(2)]);
        index.set_pinned(id(1), false);
        assert_eq!((index.bytes(), index.pinned_bytes()), (15, 0));
        index.remove(id(1));
        index.remove(id(2));
        index.remove(id(3));
        assert_eq!((index.bytes(), index.files(), index.cached.len()), (0, 0, 0));
    }

    #[test]
    fn a_scan_replaces_the_books_but_not_what_was_used_since() {
        let mut index = Index::default();
        index.add(id(1), 10, 50);
        index.add(id(2), 10, 50);
        let found = [(1, 3), (3, 4)].map(|(n, used)| (id(n), Cached { bytes: 7, used, pinned: false }));
        index.replace(found.into());
        assert_eq!((index.bytes(), index.files()), (14, 2));
        assert_eq!(keys(&index.victims(99, |_| false)), [id(3), id(1)]);
    }
}
