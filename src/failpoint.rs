//! Points at which a test ends the process, as kill -9 would.
//!
//! Whatever a commit does to a disk or a bucket announces itself here first: [`reach`]. In a
//! release build all of this is nothing. In a debug build it is nothing either, unless the
//! environment named a file when the program started (`DSFS_FAILPOINTS`, an absolute path). Each
//! command that changes something opens a [`scope`], which reads that file:
//!
//! | the file says | what happens at the points inside the scope |
//! | --- | --- |
//! | nothing, or is not there | nothing |
//! | `record` | their names are appended to `<file>.hits`, one a line |
//! | `kill NAME N` | the N-th time that NAME is reached, the process is gone |
//!
//! So a test finds the list of points by recording one run, and none can be forgotten.
//!
//! # What this module does not know
//!
//! What the points mean.

pub use active::arm;
pub use active::reach;
pub use active::reach_after;
pub use active::scope;

/// Points count while at least one of these is held.
#[derive(Debug)]
#[must_use]
pub struct Scope(());

#[cfg(debug_assertions)]
mod active {
    use std::fs;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    use parking_lot::Mutex;
    use rustix::process::Signal;

    use super::Scope;

    static ARMED: AtomicBool = AtomicBool::new(false);
    static STATE: Mutex<State> = Mutex::new(State { file: None, scopes: 0, plan: Plan::Nothing });

    struct State {
        file: Option<PathBuf>,
        scopes: usize,
        plan: Plan,
    }

    enum Plan {
        Nothing,
        Record,
        Kill { name: String, left: u64 },
    }

    impl Plan {
        fn parse(text: &str) -> Self {
            match *text.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["record"] => Self::Record,
                ["kill", name, left] => Self::Kill { name: name.to_owned(), left: left.parse().unwrap_or(1) },
                _ => Self::Nothing,
            }
        }
    }

    /// Names the file that scopes read; to be called once, at the start.
    pub fn arm(file: Option<PathBuf>) {
        ARMED.store(file.is_some(), Ordering::Relaxed);
        STATE.lock().file = file;
    }

    /// Begins something whose steps are points.
    pub fn scope() -> Scope {
        let mut state = STATE.lock();
        state.scopes += 1;
        if state.scopes == 1
            && let Some(file) = &state.file
        {
            state.plan = Plan::parse(&fs::read_to_string(file).unwrap_or_default());
        }
        Scope(())
    }

    impl Drop for Scope {
        fn drop(&mut self) {
            let mut state = STATE.lock();
            state.scopes -= 1;
            if state.scopes == 0 {
                state.plan = Plan::Nothing;
            }
        }
    }

    /// A point.
    pub fn reach(name: impl FnOnce() -> String) {
        reach_after(name, || {});
    }

    /// A point that comes in the middle of something: if the process ends here, `first` is done.
    pub fn reach_after(name: impl FnOnce() -> String, first: impl FnOnce()) {
        if !ARMED.load(Ordering::Relaxed) {
            return;
        }
        let mut state = STATE.lock();
        let State { file, plan, .. } = &mut *state;
        match plan {
            Plan::Nothing => {}
            Plan::Record => {
                let hits = file.as_ref().map(|file| file.with_extension("hits"));
                let opened = hits.map(|hits| OpenOptions::new().append(true).create(true).open(hits));
                if let Some(Ok(mut hits)) = opened {
                    let _unwritten = writeln!(hits, "{}", name());
                }
            }
            Plan::Kill { name: wanted, left } if *wanted == name() => {
                *left -= 1;
                if *left == 0 {
                    first();
                    let _gone = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
                    loop {
                        std::thread::park();
                    }
                }
            }
            Plan::Kill { .. } => {}
        }
    }
}

#[cfg(not(debug_assertions))]
mod active {
    use std::path::PathBuf;

    use super::Scope;

    /// Nothing, in a release build.
    #[inline(always)]
    pub fn arm(_file: Option<PathBuf>) {}

    /// Nothing, in a release build.
    #[inline(always)]
    pub fn scope() -> Scope {
        Scope(())
    }

    /// Nothing, in a release build.
    #[inline(always)]
    pub fn reach(_name: impl FnOnce() -> String) {}

    /// Nothing, in a release build.
    #[inline(always)]
    pub fn reach_after(_name: impl FnOnce() -> String, _first: impl FnOnce()) {}
}
