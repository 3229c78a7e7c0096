//! What tests of several kinds need: servers and mounts.

pub mod double;
pub mod home;
pub mod line;
pub mod machine;
pub mod http;
pub mod mount;
pub mod servers;
