//! `lab-backup man` and `lab-backup completions`: made from the same words as `--help`.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;

/// Writes the manual pages into a directory.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Directory to write into
    dir: PathBuf,
}

impl Man {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        clap_mangen::generate_to(Cli::command(), &self.dir)?;
        Ok(Exit::Done)
    }
}

/// Prints the completions of a shell.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let mut command = Cli::command();
        clap_complete::generate(self.shell, &mut command, "lab-backup", &mut io::stdout());
        Ok(Exit::Done)
    }
}
