//! `lab-backup plan`

use clap::Args;

use crate::cli::LabFile;
use crate::exit::Exit;
use crate::host::ThisHost;

/// Shows what apply would change.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    file: LabFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Plan {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let outlook = super::outlook(&ThisHost, &self.file.lab)?;
        if self.json {
            println!("{:#}", outlook.plan.json());
        } else {
            println!("{}", outlook.plan);
        }
        Ok(Exit::Done)
    }
}
