//! What a program changes of its own process, most of it before it has any threads.

use rustix::process::Resource;
use rustix::process::Rlimit;

/// Memory pools of glibc's allocator. Bodies are allocated by the threads of the runtime and freed by
/// those that write the cache and answer the kernel: with a pool for each thread (the default), a
/// third of the memory was holes.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;

/// What the allocator keeps at the end of a pool for the next bodies, in bytes. Given back to the kernel
/// at once (128 KiB by default), the same pages were faulted in and cleared again for most bodies.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 4 << 20;
/// Allocations from this size on, in bytes, are mappings of their own, which go when they are freed. The
/// runs of a reader and of a check (1 MiB) are not, since each would be faulted in anew.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 4 << 20;
/// Pools grow by at least so much, in bytes.
#[cfg(target_env = "gnu")]
const GROWTH_BYTES: libc::c_int = 1 << 20;

/// Makes this process one that moves bodies all the time: its memory stays together, and warm.
pub fn arrange_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES),
        (libc::M_TOP_PAD, GROWTH_BYTES),
    ] {
        set_allocator(parameter, value);
    }
}

/// Makes this process one that keeps many files open.
///
/// Every open large file is two descriptors of the cache's, and a mount has many users: the soft limit
/// is for programs that use select(2).
pub fn raise_open_files() {
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

/// A write to a pipe that nobody reads fails, and does not end this process: so every Rust program begins,
/// and an exec that has failed leaves it the other way.
#[expect(unsafe_code, reason = "no safe wrapper has signal(2)")]
pub fn ignore_broken_pipes() {
    // SAFETY: ignoring a signal runs nothing of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper has mallopt")]
fn set_allocator(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: it takes two integers, and the allocator's own lock.
    if unsafe { libc::mallopt(parameter, value) } == 0 {
        tracing::debug!(parameter, value, "a setting of the allocator stays as it is");
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
