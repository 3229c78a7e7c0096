//! All integration tests in one binary: each one more would link the S3 client once more.

mod common;
mod semantics;
