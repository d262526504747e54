//! `mini completion SHELL`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Global};

/// Options of `completion`.
#[derive(Args)]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub fn run(self, _global: &Global) -> Result<ExitCode> {
        clap_complete::generate(self.shell, &mut Cli::command(), "mini", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
