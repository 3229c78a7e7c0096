//! One mount: checked, composed, kept running, and taken down again.

pub mod background;
pub mod failure;
pub mod holders;
pub mod mountinfo;
pub mod mountpoint;
pub mod notify;
pub mod unmount;
