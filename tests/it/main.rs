//! All integration tests in one binary: each one more would link the S3 client once more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "tests do what users do: rename, and look at the clock")]

mod common;

mod answers;
mod architecture;
mod cli;
mod clients;
mod committers;
mod contract;
mod datasets;
mod failpoints;
mod failures;
mod foreign;
mod history;
mod listings;
mod offline;
mod options;
mod replaced;
mod s3;
mod semantics;
mod soak;
mod stores;
mod stuck;
mod tools;
mod transfers;
mod unmount;
mod upgrade;
mod which;
