//! What a daemon is carrying out for commands: an upgrade or an unmount does not cut it off.

use std::collections::BTreeMap;

use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::sync::watch;

use crate::control::message::Failure;
use crate::control::message::FailureKind;

/// Commands at work at a time; further ones have begun, and wait. Each commit may take memory for bodies.
pub const AT_WORK_MAX: usize = 16;

/// The commands under way.
#[derive(Debug)]
pub struct Commands {
    state: watch::Sender<State>,
    at_work: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    door: Door,
    next: u64,
    under_way: BTreeMap<u64, Begun>,
}

/// Whether commands begin, and else why not.
#[derive(Clone, Copy, Debug, Default)]
enum Door {
    #[default]
    Open,
    /// Somebody holds it closed.
    Closed(&'static str),
    /// For good: the daemon is ending.
    Shut(&'static str),
}

#[derive(Debug)]
struct Begun {
    what: String,
    /// It waits for the others to end.
    is_unmount: bool,
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

impl Default for Commands {
    fn default() -> Self {
        Self { state: watch::Sender::default(), at_work: Semaphore::new(AT_WORK_MAX) }
    }
}

impl Commands {
    /// Begins `what`, as in "a commit of run".
    ///
    /// # Errors
    /// None begins any more, and why.
    pub fn begin(&self, what: String) -> Result<UnderWay<'_>, Failure> {
        self.enter(Begun { what, is_unmount: false })
    }

    /// Begins an unmount that waits for the commands under way, also when no other ones begin any more.
    ///
    /// # Errors
    /// Somebody else holds the door closed, and why.
    pub fn begin_unmount(&self) -> Result<UnderWay<'_>, Failure> {
        self.enter(Begun { what: "an unmount".to_owned(), is_unmount: true })
    }

    fn enter(&self, begun: Begun) -> Result<UnderWay<'_>, Failure> {
        let mut entered = Err("");
        self.state.send_modify(|state| match state.door {
            Door::Shut(why) if !begun.is_unmount => entered = Err(why),
            Door::Closed(why) => entered = Err(why),
            Door::Open | Door::Shut(_) => {
                state.under_way.insert(state.next, begun);
                entered = Ok(state.next);
                state.next += 1;
            }
        });
        entered.map(|number| UnderWay { commands: self, number }).map_err(refused)
    }

    /// Waits until a command that has begun may work.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.at_work.acquire().await.expect("the semaphore is never closed")
    }

    /// Lets none begin, if none is under way. `why` is what whoever tries is told; `or_else` is the hint about a
    /// command that is under way.
    ///
    /// # Errors
    /// The command that has been under way for longest; or it is closed already, and why.
    pub fn close(&self, why: &'static str, or_else: &str) -> Result<Closed<'_>, Failure> {
        let mut closed = Ok(());
        self.state.send_modify(|state| match (state.under_way.first_key_value(), state.door) {
            (Some((_, begun)), _) => {
                let message = format!("{} is under way", begun.what);
                closed = Err(Failure::new(FailureKind::Failed, message).hint(or_else));
            }
            (None, Door::Closed(why) | Door::Shut(why)) => closed = Err(refused(why)),
            (None, Door::Open) => state.door = Door::Closed(why),
        });
        closed.map(|()| Closed { commands: self })
    }

    /// Lets none begin any more.
    pub fn shut(&self, why: &'static str) {
        self.state.send_modify(|state| state.door = Door::Shut(why));
    }

    /// As [`Self::shut`], and waits for those that are under way.
    pub async fn end(&self, why: &'static str) {
        self.shut(why);
        self.idle().await;
    }

    /// Waits until none is under way but unmounts, which wait themselves.
    pub async fn idle(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours, and lives as long as we wait.
        let _state = state.wait_for(|state| state.under_way.values().all(|begun| begun.is_unmount)).await;
    }
}

fn refused(why: &'static str) -> Failure {
    Failure::new(FailureKind::Failed, why).hint("nothing was done; try again in a moment")
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
        self.commands.state.send_modify(|state| {
            if let Door::Closed(_) = state.door {
                state.door = Door::Open;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin<'c>(commands: &'c Commands, what: &str) -> Result<UnderWay<'c>, Failure> {
        commands.begin(what.to_owned())
    }

    fn close<'c>(commands: &'c Commands, why: &'static str) -> Result<Closed<'c>, Failure> {
        commands.close(why, "wait for it")
    }

    #[test]
    fn what_is_under_way_is_named_and_nothing_begins_behind_a_closed_door() {
        let commands = Commands::default();
        let commit = begin(&commands, "a commit of run").unwrap();
        let listing = begin(&commands, "a listing").unwrap();
        let busy = close(&commands, "ending").unwrap_err();
        assert_eq!(
            (&*busy.message, busy.hint.as_deref()),
            ("a commit of run is under way", Some("wait for it"))
        );
        drop(commit);
        assert_eq!(close(&commands, "ending").unwrap_err().message, "a listing is under way");
        drop(listing);
        let closed = close(&commands, "ending").unwrap();
        assert_eq!(begin(&commands, "a listing").unwrap_err().message, "ending");
        drop(closed);
        drop(begin(&commands, "a listing").unwrap());
        let closed = close(&commands, "ending").unwrap();
        commands.shut("ended");
        drop(closed);
        assert_eq!(begin(&commands, "a listing").unwrap_err().message, "ended");
        assert_eq!(close(&commands, "ending").unwrap_err().message, "ended");
    }

    #[test]
    fn who_finds_the_door_closed_does_not_open_it() {
        let commands = Commands::default();
        let upgrade = close(&commands, "the daemon is being upgraded").unwrap();
        let second = close(&commands, "the mount is being unmounted").unwrap_err();
        assert_eq!(second.message, "the daemon is being upgraded");
        assert_eq!(commands.begin_unmount().unwrap_err().message, "the daemon is being upgraded");
        assert!(begin(&commands, "a commit of run").is_err());
        drop(upgrade);
        drop(begin(&commands, "a commit of run").unwrap());
    }

    #[tokio::test]
    async fn an_unmount_waits_for_what_is_under_way_and_not_for_itself() {
        let commands = Commands::default();
        let unmount = commands.begin_unmount().unwrap();
        assert_eq!(close(&commands, "upgrading").unwrap_err().message, "an unmount is under way");
        let commit = begin(&commands, "a commit of run").unwrap();
        let mut end = std::pin::pin!(commands.end("ending"));
        assert!(futures_util::poll!(&mut end).is_pending());
        drop(commands.begin_unmount().unwrap()); // said again, it cuts them off
        drop(commit);
        end.await;
        drop(unmount);
    }

    #[tokio::test]
    async fn only_so_many_are_at_work() {
        let commands = Commands::default();
        let mut at_work = Vec::new();
        for _ in 0..AT_WORK_MAX {
            at_work.push(commands.turn().await);
        }
        let mut next = std::pin::pin!(commands.turn());
        assert!(futures_util::poll!(&mut next).is_pending());
        at_work.pop();
        drop(next.await);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_is_under_way_and_for_nothing_new() {
        let commands = Commands::default();
        let commit = begin(&commands, "a commit of run").unwrap();
        let mut end = std::pin::pin!(commands.end("ending"));
        assert!(futures_util::poll!(&mut end).is_pending());
        assert!(begin(&commands, "a listing").is_err());
        drop(commit);
        end.await;
    }
}
