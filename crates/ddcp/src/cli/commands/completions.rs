use std::io;

use clap_complete::Shell;

use crate::cli::{Failed, command_tree};

/// Print a completion script.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ddcp completions bash > ~/.local/share/bash-completion/completions/ddcp")]
pub(in crate::cli) struct Args {
    /// For which shell.
    shell: Shell,
}

pub(in crate::cli) fn run(Args { shell }: Args) -> Result<(), Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_tree(), "ddcp", &mut script);
    Ok(io::Write::write_all(&mut io::stdout().lock(), &script)?)
}
