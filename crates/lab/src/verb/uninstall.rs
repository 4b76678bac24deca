//! `lab-backup uninstall`

use std::io;

use anyhow::Context as _;
use clap::Args;

use super::{confirmed, lock, no_jobs};
use crate::bconsole::Console;
use crate::cli::LabFile;
use crate::exit::Exit;
use crate::host::ThisHost;
use crate::uninstall::{self, Target};
use crate::{model, plan};

/// Removes what apply made; data stays unless it is asked for.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    file: LabFile,
    /// Also remove the account with the catalog, maps, keys and lab.toml; with --yes the volumes too
    #[arg(long)]
    purge_data: bool,
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Let running jobs fail
    #[arg(long)]
    force: bool,
}

impl Uninstall {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let target = self.target()?;
        if !rustix::process::geteuid().is_root() {
            anyhow::bail!("only root can see and remove all that apply made; run it with sudo");
        }
        let _lock = if self.dry_run { None } else { Some(lock()?) };
        let seen = uninstall::look(&ThisHost, &target)?;
        let removals = uninstall::plan(&target, &seen);
        let count = removals.actions.len();
        if self.dry_run || (count == 0 && seen.silent.is_none()) {
            println!("{removals}");
            return Ok(Exit::Done);
        }
        if seen.director() {
            no_jobs(&Console::root(), self.force)?;
        }
        if !self.yes {
            println!("{removals}");
            if !confirmed()? {
                println!("nothing was done");
                return Ok(Exit::Failed);
            }
        }
        let mut tell = |action: &uninstall::Removal| println!("  {action}");
        uninstall::remove(&ThisHost, &seen, &removals, self.force, &mut tell)?;
        for line in &removals.stays {
            println!("  stays: {line}");
        }
        println!("{}", plan::changes(count));
        Ok(Exit::Done)
    }

    /// What to look for. Without a `lab.toml`, after an uninstall say, that of the default lab.
    fn target(&self) -> anyhow::Result<Target> {
        let path = &self.file.lab;
        let model = match std::fs::read_to_string(path) {
            Ok(text) => Some(model::parse(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Target::new(model.as_ref(), self.purge_data, self.yes))
    }
}
