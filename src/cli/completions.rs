//! `dsfs completions` and `dsfs man`: made from the definition of the command line itself.
//!
//! Names of datasets are completed by asking dsfs for them ([`NamesArgs`]): what the shells' own scripts
//! leave to file names is replaced in bash, zsh and fish.
//!
//! Whoever may write to the bucket chooses these names, so that no shell may take them for anything but
//! text: bash's `compgen -W` would run the `$(…)` in them.

use std::time::Duration;

use clap::Args;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::cli::Context;
use crate::cli::list;
use crate::cli::target::TargetArgs;
use crate::control::message::Failure;
use crate::control::message::FailureKind;

/// Print completions for a shell
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs completions bash > ~/.local/share/bash-completion/completions/dsfs
  dsfs completions zsh  > ~/.zfunc/_dsfs
  dsfs completions fish > ~/.config/fish/completions/dsfs.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs `dsfs completions`.
pub fn run(args: &CompletionsArgs, cx: &mut Context) {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dsfs", &mut bytes);
    let script = String::from_utf8_lossy(&bytes);
    cx.out.bytes(with_names(args.shell, &script).as_bytes());
}

/// Commands whose arguments are names of datasets, and what these are called there.
const NAMED: [&str; 5] = ["commit", "discard", "gc", "status", "url"];
const NAMED_BELOW_DATASET: [&str; 3] = ["upload", "download", "delete"];

#[expect(clippy::wildcard_enum_match_arm, reason = "the other shells keep what clap makes for them")]
fn with_names(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => {
            let named = NAMED.map(|name| format!("*\\ {name}\\ *"));
            let below = NAMED_BELOW_DATASET.map(|name| format!("*\\ dataset\\ {name}"));
            let patterns = named.into_iter().chain(below).collect::<Vec<_>>().join("|");
            format!(
                "{script}
_dsfs_with_names() {{
    local cur=\"${{COMP_WORDS[COMP_CWORD]}}\" name
    case \"$cur ${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}\" in
        -*) _dsfs \"$@\" ;;
        {patterns})
            COMPREPLY=()
            while IFS= read -r name; do
                [[ $name == \"$cur\"* ]] && COMPREPLY+=(\"$(printf %q \"$name\")\")
            done < <(dsfs names 2>/dev/null) ;;
        *) _dsfs \"$@\" ;;
    esac
}}
complete -F _dsfs_with_names dsfs
"
            )
        }
        Shell::Zsh => {
            let asks = script.replace(" -- The dataset:_default'", " -- The dataset:_dsfs_names'");
            format!(
                "{asks}
_dsfs_names() {{ compadd -- ${{(f)\"$(dsfs names 2>/dev/null)\"}} }}
"
            )
        }
        Shell::Fish => {
            let (named, below) = (NAMED.join(" "), NAMED_BELOW_DATASET.join(" "));
            format!(
                "{script}complete -c dsfs -n '__fish_seen_subcommand_from {named}' -f -a '(dsfs names 2>/dev/null)'
complete -c dsfs -n '__fish_seen_subcommand_from dataset; and __fish_seen_subcommand_from {below}' -f -a '(dsfs names 2>/dev/null)'
"
            )
        }
        _ => script.to_owned(),
    }
}

/// Print the names of datasets, for completions: nothing if they cannot be had
///
/// One a line: those with line breaks, or anything else that no line shows, are left out.
#[derive(Clone, Debug, Args)]
pub struct NamesArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// How long somebody waits who has pressed the tab key.
const NAMES_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs `dsfs names`.
pub fn run_names(args: &NamesArgs, cx: &mut Context) {
    std::thread::spawn(|| {
        std::thread::sleep(NAMES_TIMEOUT);
        std::process::exit(0);
    });
    for row in list::rows(&args.target, cx).unwrap_or_default() {
        if !row.name.as_str().contains(char::is_control) {
            cx.out.line(row.name.as_str());
        }
    }
}

/// Print the manual page
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs man | man -l -
  dsfs man commit > ~/.local/share/man/man1/dsfs-commit.1
  dsfs man r2 download | man -l -")]
pub struct ManArgs {
    /// The page of this command, instead of the main one
    command: Vec<String>,
}

/// Runs `dsfs man`.
///
/// # Errors
/// There is no such command.
pub fn run_man(args: &ManArgs, cx: &mut Context) -> Result<(), Failure> {
    let mut whole = Cli::command();
    whole.build();
    let mut command = whole;
    for name in &args.command {
        command = command
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("there is no command {name:?}")))?;
    }
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .map_err(|err| Failure::new(FailureKind::Failed, format!("the manual page cannot be made: {err}")))?;
    cx.out.bytes(&page);
    Ok(())
}
