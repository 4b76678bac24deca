//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::exit::Exit;
use crate::render::BCONSOLE;
use crate::{config, verb};

/// Protects the virtual machines of a lab with Bacula.
#[derive(Debug, Parser)]
#[command(name = "lab-backup", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Back up VMs now
    Run(verb::run::Run),
    /// Show how each VM is protected
    Status(verb::status::Status),
    /// Bring a VM back
    Restore(verb::restore::Restore),
    /// Prove a backup without restoring it
    Verify(verb::verify::Verify),
    /// Write a lab.toml with the VMs of this host
    Init(verb::init::Init),
    /// Show what apply would change
    Plan(verb::plan::Plan),
    /// Make this host what lab.toml says
    Apply(verb::apply::Apply),
    /// Print the console configuration of a user
    Console(verb::console::Console),
    /// Write the recovery kit
    Kit(verb::kit::Kit),
    /// Rebuild the stack on a blank host
    Recover(verb::recover::Recover),
    /// Bring the stack to the version of this program
    Upgrade(verb::upgrade::Upgrade),
    /// Remove what apply made
    Uninstall(verb::uninstall::Uninstall),
    /// Show, start and stop the services of the stack
    Stack(verb::stack::Stack),
    /// List the container images that lab.toml asks for
    #[command(hide = true)]
    Images(verb::images::Images),
    /// Write the manual pages
    #[command(hide = true)]
    Man(verb::manual::Man),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions(verb::manual::Completions),
}

/// Where `lab.toml` is.
#[derive(Debug, Args)]
pub(crate) struct LabFile {
    /// The lab's description
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    pub(crate) lab: PathBuf,
}

/// How to reach the Director.
#[derive(Debug, Args)]
pub(crate) struct DirectorArgs {
    /// Configuration of the console
    #[arg(long, value_name = "FILE", default_value = BCONSOLE)]
    pub(crate) console: PathBuf,
}

/// What the user wrote cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Parses the command line and does what it says.
pub(crate) fn run() -> anyhow::Result<Exit> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.print()?;
            return Ok(Exit::Usage);
        }
        Err(error) if error.use_stderr() => return Err(Usage(one_line(&error)).into()),
        // Help and version.
        Err(error) => {
            error.print()?;
            return Ok(Exit::Done);
        }
    };
    match cli.verb {
        Verb::Run(run) => run.run(),
        Verb::Status(status) => status.run(),
        Verb::Restore(restore) => restore.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Init(init) => init.run(),
        Verb::Plan(plan) => plan.run(),
        Verb::Apply(apply) => apply.run(),
        Verb::Console(console) => console.run(),
        Verb::Kit(kit) => kit.run(),
        Verb::Recover(recover) => recover.run(),
        Verb::Upgrade(upgrade) => upgrade.run(),
        Verb::Uninstall(uninstall) => uninstall.run(),
        Verb::Stack(stack) => stack.run(),
        Verb::Images(images) => images.run(),
        Verb::Man(man) => man.run(),
        Verb::Completions(completions) => completions.run(),
    }
}

/// What clap says in several paragraphs, in one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("the command line is not understood");
    let first = first.strip_prefix("error: ").unwrap_or(first);
    if first.ends_with(':') {
        // What is missing stands on the lines that follow.
        let rest: Vec<&str> = lines
            .take_while(|line| !line.starts_with("Usage"))
            .collect();
        return format!("{first} {}; see lab-backup --help", rest.join(" "));
    }
    // What may be written instead.
    let values = lines.find(|line| line.starts_with("[possible values"));
    let values = values.map(|line| format!(" {line}")).unwrap_or_default();
    format!("{first}{values}; see lab-backup --help")
}
