//! One mount: checked, composed, kept running, and taken down again.

pub mod holders;
pub mod mountinfo;
pub mod mountpoint;
pub mod unmount;
