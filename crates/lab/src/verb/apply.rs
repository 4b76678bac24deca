//! `lab-backup apply`

use std::path::Path;

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
        let model = super::model(&self.file.lab)?;
        let (count, warned) = apply(&self.file.lab)?;
        let mut exit = if warned { Exit::Warnings } else { Exit::Done };
        // Nothing that the kit holds changed otherwise.
        if count > 0 {
            match super::kit::write(&model) {
                Ok(said) => println!("  {said}"),
                Err(error) => {
                    eprintln!("lab-backup: {error:#}");
                    exit = Exit::Warnings;
                }
            }
        }
        println!("{}", plan::changes(count));
        Ok(exit)
    }
}

/// Does what is to be done, telling each step: how many there were, and whether there was something to warn of.
pub(super) fn apply(lab: &Path) -> anyhow::Result<(usize, bool)> {
    let _lock = super::lock()?;
    let outlook = super::outlook(&ThisHost, lab)?;
    let mut tell = |action: &plan::Action| println!("  {action}");
    let done = apply::apply(
        &ThisHost,
        &Console::root(),
        &outlook.desired,
        outlook.state,
        &outlook.plan,
        &mut tell,
    );
    // Said also, and above all, when a unit does not start for it.
    for warning in &outlook.plan.warnings {
        eprintln!("lab-backup: {warning}");
    }
    done.context("apply stopped; mend this and run lab-backup apply again, it goes on from here")?;
    Ok((
        outlook.plan.actions.len(),
        !outlook.plan.warnings.is_empty(),
    ))
}
