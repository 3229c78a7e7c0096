//! Looking at everything that is cached of a version anew, whatever was believed of it before.
//!
//! Reading trusts what this process has checked once. An audit does not: it reads the disk, compares
//! every block with its checksum, and shows the bytes to the caller, who may know more about them.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::block;
use crate::cache::Entry;
use crate::cache::files::Files;
use crate::cache::paths::Suffix;

/// What an audit has found. Damaged blocks are not in the cache any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Blocks that are there and sound.
    pub sound_blocks: u64,
    /// Their bytes.
    pub sound_bytes: u64,
    /// Blocks whose bytes did not fit their checksum, or could not be read.
    pub damaged_blocks: u64,
    /// Every block of the object is there and sound: `visit` has seen all of it, in order.
    pub whole: bool,
}

impl Audit {
    /// Whether nothing of the version was in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sound_blocks + self.damaged_blocks == 0
    }
}

impl Entry {
    /// Reads and checks all that is cached of the version, blocking, and shows each sound block to
    /// `visit` in order; ends early when that says so. What is damaged is dropped.
    pub fn audit(&self, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Audit {
        if self.is_small() {
            return self.audit_small(visit);
        }
        let blocks = block::count(self.size_bytes());
        let was_there = self.path(Suffix::Map).exists();
        self.check_linked();
        self.refresh(0..blocks);
        let Some(files) = self.files() else {
            // A pair of files that does not fit together was removed by the look at it.
            return Audit { damaged_blocks: u64::from(was_there), ..Audit::default() };
        };
        // The disk is what is to be checked, not what memory holds of it; where that cannot be
        // asked for, memory is checked.
        let _ = rustix::fs::fadvise(&**files.data(), 0, None, rustix::fs::Advice::DontNeed);
        let audit = audit_blocks(&files, blocks, visit);
        if audit.damaged_blocks > 0 {
            self.report_damage(audit.damaged_blocks);
        }
        audit
    }

    fn audit_small(&self, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Audit {
        if !self.path(Suffix::One).exists() {
            return Audit::default();
        }
        // A damaged one is removed, and counted, by the reading of it.
        let Some(content) = self.read_one() else {
            return Audit { damaged_blocks: 1, ..Audit::default() };
        };
        let _ = visit(&content);
        Audit { sound_blocks: 1, sound_bytes: self.size_bytes(), damaged_blocks: 0, whole: true }
    }

    /// Removes all that is cached of the version: its bytes are not the object's, although their
    /// checksums are right. Whoever has the file open keeps what he has.
    pub fn remove_false(&self) {
        self.report_damage(block::count(self.size_bytes()).max(1));
        self.discard();
    }
}

fn audit_blocks(files: &Arc<Files>, blocks: u64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Audit {
    let mut audit = Audit::default();
    let mut buffer = vec![0; block::BLOCK_BYTES as usize];
    for index in (0..blocks).filter(|index| files.is_present(*index)) {
        match files.recheck(index, &mut buffer) {
            Some(content) => {
                audit.sound_blocks += 1;
                audit.sound_bytes += content.len() as u64;
                if visit(content).is_break() {
                    return audit;
                }
            }
            None => audit.damaged_blocks += 1,
        }
    }
    audit.whole = audit.sound_blocks == blocks;
    audit
}
