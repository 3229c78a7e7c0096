//! `dsfs completions` and `dsfs man`: made from the definition of the command line itself.

use clap::Args;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::cli::Context;
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
    cx.out.bytes(&bytes);
}

/// Print the manual page
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dsfs man | man -l -
  dsfs man commit > ~/.local/share/man/man1/dsfs-commit.1")]
pub struct ManArgs {
    /// The page of this command, instead of the main one
    command: Option<String>,
}

/// Runs `dsfs man`.
///
/// # Errors
/// There is no such command.
pub fn run_man(args: &ManArgs, cx: &mut Context) -> Result<(), Failure> {
    let mut whole = Cli::command();
    whole.build();
    let command = match &args.command {
        None => whole,
        Some(name) => whole
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("there is no command {name:?}")))?,
    };
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .map_err(|err| Failure::new(FailureKind::Failed, format!("the manual page cannot be made: {err}")))?;
    cx.out.bytes(&page);
    Ok(())
}
