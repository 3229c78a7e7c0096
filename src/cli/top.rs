//! `dsfs top`: the counters again and again, with their rates, in place.

use std::thread;
use std::time::Duration;

use clap::Args;

use crate::cli::Context;
use crate::cli::stat;
use crate::cli::target::TargetArgs;
use crate::config::units;
use crate::control::message::Failure;
use crate::control::message::FailureKind;
use crate::control::stat::MountStat;

/// Where a terminal's cursor goes and what it clears before each picture.
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[2J";
/// Shortest time between two pictures.
const EVERY_MIN: Duration = Duration::from_millis(100);

/// Watch what mounts read, fetch and cache
///
/// Updates in place until Ctrl-C, or until the mount is gone. Where stdout is not a terminal, one
/// picture follows the other.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs top
  dsfs top --every 5s --at ~/datasets
  dsfs top --count 2 --every 10s        rates over ten seconds, for a script")]
pub struct TopArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Time between two pictures
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::parse_duration)]
    every: Duration,
    /// End after so many pictures
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// Nothing is mounted (there), or no more.
pub fn run(args: &TopArgs, cx: &mut Context) -> Result<(), Failure> {
    if args.every < EVERY_MIN {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("--every {} is too short", units::show_duration(args.every)),
        )
        .hint(format!("at least {}", units::show_duration(EVERY_MIN))));
    }
    let mut before: Vec<MountStat> = Vec::new();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 && !cx.out.is_closed() {
        let now = stat::gather(&args.target, cx)?;
        if cx.out.is_terminal() {
            cx.out.bytes(HOME_AND_CLEAR.as_bytes());
        }
        for stat in &now {
            let earlier = before.iter().find(|earlier| earlier.mountpoint == stat.mountpoint);
            cx.out.line(stat.mountpoint.display().to_string());
            cx.out.table(&stat::rows(stat, earlier));
        }
        cx.out.flush();
        before = now;
        left -= 1;
        if left > 0 {
            thread::sleep(args.every);
        }
    }
    Ok(())
}
