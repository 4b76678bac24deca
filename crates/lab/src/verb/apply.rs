//! `lab-backup apply`

use anyhow::Context as _;
use clap::Args;

use crate::bconsole::Console;
use crate::cli::LabFile;
use crate::exit::Exit;
use crate::host::ThisHost;
use crate::{apply, plan};

/// Makes this host what lab.toml says.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    file: LabFile,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        if self.dry_run {
            let outlook = super::outlook(&ThisHost, &self.file.lab)?;
            println!("{}", outlook.plan);
            return Ok(Exit::Done);
        }
        // A wrong lab.toml is told before anything is touched, the lock included.
        super::model(&self.file.lab)?;
        let _lock = super::lock()?;
        let outlook = super::outlook(&ThisHost, &self.file.lab)?;
        let count = outlook.plan.actions.len();
        let mut tell = |action: &plan::Action| println!("  {action}");
        let done = apply::apply(
            &ThisHost,
            &Console::root(),
            &outlook.desired,
            outlook.state,
            &outlook.plan,
            &mut tell,
        );
        done.context(
            "apply stopped; mend this and run lab-backup apply again, it goes on from here",
        )?;
        println!("{}", plan::changes(count));
        Ok(Exit::Done)
    }
}
