//! The command `dsfs`. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dsfs::cli::main()
}
