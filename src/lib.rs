//! dsfs: the datasets of an S3-compatible bucket as a directory.
//!
//! Reads come through a block cache on the local disk; what is written is staged on the local
//! disk and published by a commit, all or nothing, that never overwrites. `ARCHITECTURE.md` is
//! the map of this code and lists its invariants; the modules below are in dependency order,
//! lowest first, and use only those above them in this list.

pub mod name;
pub mod block;
pub mod clock;
pub mod failpoint;
pub mod durable;
pub mod local;
pub mod config;
pub mod observe;
pub mod store;
pub mod record;
pub mod log;
pub mod cache;
pub mod read;
pub mod staging;
pub mod catalog;
pub mod tree;
pub mod commit;
pub mod compare;
pub mod transfer;
pub mod client;
pub mod fs;
pub mod fuse;
pub mod control;
pub mod daemon;
pub mod cli;
