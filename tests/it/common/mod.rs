//! What tests of several kinds need: servers.

pub mod double;
pub mod servers;
