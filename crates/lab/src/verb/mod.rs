//! One file per verb.

pub(crate) mod apply;
pub(crate) mod console;
pub(crate) mod images;
pub(crate) mod init;
pub(crate) mod kit;
pub(crate) mod manual;
pub(crate) mod plan;
mod point;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod stack;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod upgrade;
pub(crate) mod verify;

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use relay::name;

use crate::bconsole::Console;
use crate::cli::Usage;
use crate::desired::Desired;
use crate::host::Host;
use crate::model::{self, Model};
use crate::observe::{self, State};
use crate::{plan as planning, render, show};

/// Held by a running apply or uninstall.
const LOCK: &str = "/run/lab-backup-apply.lock";

/// Reads and checks a `lab.toml`.
fn model(path: &Path) -> anyhow::Result<Model> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(model::parse(&text)?)
}

/// What shall be, what is, and what must be done.
struct Outlook {
    model: Model,
    desired: Desired,
    state: State,
    plan: planning::Plan,
}

fn outlook(host: &dyn Host, path: &Path) -> anyhow::Result<Outlook> {
    let model = model(path)?;
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("only root can look at all that lab.toml asks for; run it with sudo");
    }
    observe::ready(host, &model)?;
    let facts = observe::facts(host, &model, &has_backups)?;
    let desired = render::render(&model, &facts);
    let state = observe::state(host, &desired)?;
    let plan = planning::plan(&desired, &state);
    Ok(Outlook {
        model,
        desired,
        state,
        plan,
    })
}

/// Has the catalog backups of a VM? Not to know counts as yes.
fn has_backups(vm: &str) -> bool {
    let backups = Console::root().backups(&[vm.to_owned()], true, 1);
    backups.map_or(true, |backups| !backups.is_empty())
}

/// Asks once. Without a terminal nobody can answer, so nothing is done.
fn confirmed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(
            Usage("no terminal to ask on; add --yes to go on without a question".into()).into(),
        );
    }
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Two at a time would see each other's half-done work.
fn lock() -> anyhow::Result<File> {
    let path = Path::new(LOCK);
    let file = File::create(path).with_context(|| format!("cannot lock {LOCK}"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .context("another lab-backup apply or uninstall is running")?;
    Ok(file)
}

/// Refuses to go on while jobs run, which what comes next would make fail; `force` only warns.
///
/// A Director that does not answer cannot be asked, and must not keep anybody from mending it.
fn no_jobs(console: &Console, force: bool) -> anyhow::Result<()> {
    let running = match console.running() {
        Ok(running) => running,
        Err(error) => {
            eprintln!("lab-backup: going on without knowing whether jobs run: {error}");
            return Ok(());
        }
    };
    if running.is_empty() {
        return Ok(());
    }
    let jobs = running
        .iter()
        .map(|job| format!("{} (job {})", job.name, job.id));
    let jobs = jobs.collect::<Vec<_>>().join(", ");
    if !force {
        anyhow::bail!(
            "jobs run or wait, and would fail: {jobs}; wait for their end, or add --force"
        );
    }
    eprintln!("lab-backup: these jobs will fail: {jobs}");
    Ok(())
}

/// The VMs that the Director knows.
struct Vms {
    names: Vec<String>,
}

impl Vms {
    fn known(console: &Console) -> anyhow::Result<Self> {
        Ok(Self {
            names: console.vms()?,
        })
    }

    /// Refuses names that are no keys at all (a usage error) and keys that nobody knows.
    fn check(&self, vms: &[String]) -> anyhow::Result<()> {
        for vm in vms {
            name::check(vm).map_err(|error| Usage(error.to_string()))?;
        }
        for vm in vms {
            if self.names.contains(vm) {
                continue;
            }
            let near = show::near(vm, &self.names);
            if near.is_empty() {
                anyhow::bail!("VM {vm} is not protected; lab-backup status lists those that are");
            }
            anyhow::bail!(
                "VM {vm} is not protected; did you mean {}?",
                near.join(" or ")
            );
        }
        Ok(())
    }
}
