//! All integration tests in one binary, since each binary links the SDK again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

mod architecture;
mod contract;
mod s3;
mod stores;
