//! All integration tests in one binary: each one more would link the S3 client once more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

mod architecture;
mod cli;
mod contract;
mod s3;
mod semantics;
mod stores;
mod tools;
