//! The `dsfs` command.

fn main() {}
