//! What SEMANTICS.md promises, one file a chapter, on a real mount.

mod commits;
mod past;
mod published;
mod replace;
mod staged;
mod tree;

use std::io;

/// The errno of an operation that had to fail.
fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("this has to be refused").raw_os_error().expect("refused by the kernel or by dsfs")
}
