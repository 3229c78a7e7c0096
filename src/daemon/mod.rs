//! One mount: checked, composed, kept running, and taken down again.

pub mod background;
mod bucket;
pub mod commands;
pub mod compose;
pub mod dataset;
mod descriptor;
mod ending;
pub mod failure;
pub mod guarantee;
pub mod history;
pub mod holders;
pub mod keep;
pub mod lifecycle;
mod metrics;
pub mod mountinfo;
pub mod mountpoint;
pub mod notify;
pub mod operations;
mod pins;
pub mod process;
pub mod publish;
pub mod remote;
pub mod service;
pub mod turn;
pub mod upgrade;
