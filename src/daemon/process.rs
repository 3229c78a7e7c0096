//! What a daemon changes of its own process, before it has any threads.

use rustix::process::Resource;
use rustix::process::Rlimit;

/// Memory pools of glibc's allocator. Bodies are allocated by the threads of the runtime and freed by
/// those that write the cache and answer the kernel: with a pool for each thread (the default), a
/// third of the memory was holes.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;

/// Makes this process one that keeps many files open, and its memory together.
pub fn prepare() {
    raise_open_files();
    #[cfg(target_env = "gnu")]
    limit_arenas();
}

/// Every open large file is two descriptors of the cache's, and a mount has many users: the soft limit
/// is for programs that use select(2).
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!("open files: at most {:?}", limit.maximum),
        Err(err) => tracing::debug!("open files: at most {:?}, not raised: {err}", limit.current),
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper has mallopt")]
fn limit_arenas() {
    // SAFETY: it takes two integers, and the allocator's own lock.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) } == 0 {
        tracing::debug!("the allocator's pools stay as they are");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_as_high_as_it_may_be() {
        raise_open_files();
        let limit = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
