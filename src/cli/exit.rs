//! The one table from kinds of failure to exit codes.

use std::process::ExitCode;

use crate::control::message::FailureKind;

/// Done.
pub const DONE: u8 = 0;
/// Usage: also clap's own code.
pub const USAGE: u8 = 2;

/// Ended by SIGINT, as shells say it.
pub const CANCELLED: u8 = 130;

/// The exit code of a failure, as `dsfs --help` lists them.
#[must_use]
pub fn code_of(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Failed => 1,
        FailureKind::Usage => USAGE,
        FailureKind::Conflict => 3,
        FailureKind::NotFound => 4,
        FailureKind::Remote => 5,
        FailureKind::Partial => 6,
        FailureKind::Cancelled => CANCELLED,
    }
}

/// For `main`.
#[must_use]
pub fn exit_code(kind: FailureKind) -> ExitCode {
    ExitCode::from(code_of(kind))
}

/// For the help text.
pub const TABLE: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line or the configuration is wrong
  3  conflict: something is there already; nothing was changed
  4  not found
  5  the remote cannot be reached, or refuses
  6  work was left that the next run goes on with
  130  ended by Ctrl-C; nothing half is left, except of `commit`, which goes on where it was,
       and of `r2 delete`, which says how much is gone";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_help_text() {
        let kinds = [
            (FailureKind::Failed, 1),
            (FailureKind::Usage, 2),
            (FailureKind::Conflict, 3),
            (FailureKind::NotFound, 4),
            (FailureKind::Remote, 5),
            (FailureKind::Partial, 6),
            (FailureKind::Cancelled, 130),
        ];
        for (kind, code) in kinds {
            assert_eq!(code_of(kind), code);
            assert!(TABLE.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
