//! One at a time: what changes a dataset's staging area takes its turn first.
//!
//! A commit's journal, its sealed tree and its objects have one writer. The staging area's lock keeps
//! other processes away; this keeps commands apart that reach the same process.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::name::DatasetName;

/// The datasets that something is working on.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    taken: Arc<Mutex<HashSet<DatasetName>>>,
}

/// The right to change one dataset's staging area, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    name: DatasetName,
}

impl Turns {
    /// Takes the turn at `name`; nobody waits for it.
    ///
    /// # Errors
    /// Something else has it.
    pub fn take(&self, name: &DatasetName) -> Result<Turn, Failure> {
        if !self.taken.lock().insert(name.clone()) {
            let message = format!("a commit of {name} is under way");
            return Err(Failure::new(FailureKind::Failed, message)
                .hint("nothing was done; try again when it has ended"));
        }
        Ok(Turn { turns: self.clone(), name: name.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_has_one_turn_at_a_time_and_others_have_their_own() {
        let turns = Turns::default();
        let (run, other) = (DatasetName::parse("run").unwrap(), DatasetName::parse("other").unwrap());
        let held = turns.take(&run).unwrap();
        assert_eq!(turns.take(&run).unwrap_err().message, "a commit of run is under way");
        turns.take(&other).unwrap();
        drop(held);
        turns.take(&run).unwrap();
    }
}
