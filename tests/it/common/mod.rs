//! What several tests need.

pub mod mount;
