//! What a daemon is carrying out for commands: an upgrade or an unmount does not cut it off.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::control::message::Failure;
use crate::control::message::FailureKind;

/// The commands under way.
#[derive(Debug, Default)]
pub struct Commands {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why none begins any more.
    closed: Option<&'static str>,
    next: u64,
    under_way: BTreeMap<u64, String>,
}

/// A command under way, until dropped.
#[derive(Debug)]
pub struct UnderWay<'c> {
    commands: &'c Commands,
    number: u64,
}

/// No command begins, until dropped.
#[derive(Debug)]
pub struct Closed<'c> {
    commands: &'c Commands,
}

impl Commands {
    /// Begins `what`, as in "a commit of run".
    ///
    /// # Errors
    /// None begins any more, and why.
    pub fn begin(&self, what: String) -> Result<UnderWay<'_>, Failure> {
        let mut begun = Err("");
        self.state.send_modify(|state| match state.closed {
            Some(why) => begun = Err(why),
            None => {
                state.under_way.insert(state.next, what);
                begun = Ok(state.next);
                state.next += 1;
            }
        });
        let number = begun.map_err(|why| Failure::new(FailureKind::Failed, why).hint("nothing was done"))?;
        Ok(UnderWay { commands: self, number })
    }

    /// Lets none begin, if none is under way. `why` is what whoever tries is told.
    ///
    /// # Errors
    /// The one that has been under way for longest.
    pub fn close(&self, why: &'static str) -> Result<Closed<'_>, Failure> {
        let mut oldest = None;
        self.state.send_modify(|state| match state.under_way.first_key_value() {
            Some((_, what)) => oldest = Some(what.clone()),
            None => state.closed = Some(why),
        });
        match oldest {
            None => Ok(Closed { commands: self }),
            Some(what) => Err(Failure::new(FailureKind::Failed, format!("{what} is under way"))),
        }
    }

    /// Lets none begin any more, and waits for those that are under way.
    pub async fn end(&self, why: &'static str) {
        self.state.send_modify(|state| state.closed = Some(why));
        self.idle().await;
    }

    /// Waits until none is under way.
    pub async fn idle(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours, and lives as long as we wait.
        let _state = state.wait_for(|state| state.under_way.is_empty()).await;
    }
}

impl Closed<'_> {
    /// It stays that way.
    pub fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.commands.state.send_modify(|state| {
            state.under_way.remove(&self.number);
        });
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.commands.state.send_modify(|state| state.closed = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_named_and_nothing_begins_behind_a_closed_door() {
        let commands = Commands::default();
        let commit = commands.begin("a commit of run".to_owned()).unwrap();
        let listing = commands.begin("a listing".to_owned()).unwrap();
        assert_eq!(commands.close("ending").unwrap_err().message, "a commit of run is under way");
        drop(commit);
        assert_eq!(commands.close("ending").unwrap_err().message, "a listing is under way");
        drop(listing);
        let closed = commands.close("ending").unwrap();
        assert_eq!(commands.begin("a listing".to_owned()).unwrap_err().message, "ending");
        drop(closed);
        drop(commands.begin("a listing".to_owned()).unwrap());
        commands.close("ending").unwrap().for_good();
        assert!(commands.begin("a listing".to_owned()).is_err());
    }

    #[tokio::test]
    async fn the_end_waits_for_what_is_under_way_and_for_nothing_new() {
        let commands = Commands::default();
        let commit = commands.begin("a commit of run".to_owned()).unwrap();
        let mut end = std::pin::pin!(commands.end("ending"));
        assert!(futures_util::poll!(&mut end).is_pending());
        assert!(commands.begin("a listing".to_owned()).is_err());
        drop(commit);
        end.await;
    }
}
