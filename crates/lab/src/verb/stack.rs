//! `lab-backup stack`: the services by hand, by commands of systemd that are shown before they run.

mod report;

use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};

use crate::bconsole::Console;
use crate::cli::{LabFile, Usage};
use crate::desired::Scope;
use crate::exit::Exit;
use crate::host::{Login, Run, ThisHost};
use crate::observe;
use crate::render::{CATALOG, DIRECTOR, FD, GUARD, STORAGE};

/// Shows, starts and stops the services of the stack.
#[derive(Debug, Args)]
pub(crate) struct Stack {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what runs
    Status {
        #[command(flatten)]
        which: Which,
        /// Print JSON, times in UTC
        #[arg(long)]
        json: bool,
    },
    /// Show what the services and their containers wrote to the journal
    Logs {
        #[command(flatten)]
        which: Which,
        /// Go on with what is written from now on
        #[arg(long, short)]
        follow: bool,
    },
    /// Stop and start services
    Restart {
        #[command(flatten)]
        which: Which,
        /// Let running jobs fail
        #[arg(long)]
        force: bool,
    },
    /// Stop services until the next start or boot
    Stop {
        #[command(flatten)]
        which: Which,
        /// Let running jobs fail
        #[arg(long)]
        force: bool,
    },
    /// Start services
    Start {
        #[command(flatten)]
        which: Which,
    },
}

/// Which services are meant.
#[derive(Debug, Args)]
struct Which {
    /// One service; without it, all
    unit: Option<Unit>,
    #[command(flatten)]
    file: LabFile,
}

/// A service of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// PostgreSQL
    Catalog,
    /// The Director
    Director,
    /// The Storage Daemon
    Storage,
    /// The File Daemon of this hypervisor
    Fd,
    /// What thaws guests
    Guard,
}

/// All, in the order in which they start: each after what it needs. They stop the other way round.
const ORDER: [Unit; 5] = [
    Unit::Guard,
    Unit::Catalog,
    Unit::Storage,
    Unit::Director,
    Unit::Fd,
];

impl Unit {
    /// Name of its systemd unit.
    fn name(self) -> &'static str {
        match self {
            Self::Catalog => CATALOG,
            Self::Director => DIRECTOR,
            Self::Storage => STORAGE,
            Self::Fd => FD,
            Self::Guard => GUARD,
        }
    }

    /// Whose manager runs it.
    fn scope(self) -> Scope {
        match self {
            Self::Catalog | Self::Director | Self::Storage => Scope::Account,
            Self::Fd | Self::Guard => Scope::System,
        }
    }

    /// Its container, if it runs in one.
    fn container(self) -> Option<&'static str> {
        match self.scope() {
            Scope::Account => self.name().strip_suffix(".service"),
            Scope::System => None,
        }
    }
}

impl Stack {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        if !rustix::process::geteuid().is_root() {
            anyhow::bail!("only root can reach the services of the account; run it with sudo");
        }
        match &self.verb {
            Verb::Status { which, json } => {
                let (units, login) = which.find()?;
                if *json {
                    return report::print(&ThisHost, &units, login.as_ref());
                }
                attach(&status(&units, login.as_ref()), false)
            }
            Verb::Logs { which, follow } => {
                let (units, login) = which.find()?;
                attach(&[logs(&units, login.as_ref(), *follow)], true)
            }
            Verb::Start { which } => {
                let (units, login) = which.find()?;
                // What follows needs what went before.
                attach(&each("start", &units, login.as_ref()), true)
            }
            Verb::Stop { which, force } => {
                let (mut units, login) = which.find()?;
                super::no_jobs(&Console::root(), *force)?;
                units.reverse();
                attach(&each("stop", &units, login.as_ref()), false)
            }
            Verb::Restart { which, force } => {
                let (units, login) = which.find()?;
                super::no_jobs(&Console::root(), *force)?;
                attach(&restart(&units, login.as_ref()), true)
            }
        }
    }
}

impl Which {
    /// The units in the order in which they start, and the account if one of them is its.
    fn find(&self) -> anyhow::Result<(Vec<Unit>, Option<Login>)> {
        let units = self.unit.map_or_else(|| ORDER.to_vec(), |unit| vec![unit]);
        if units.iter().all(|unit| unit.scope() == Scope::System) {
            return Ok((units, None));
        }
        let name = account(&self.file.lab)?;
        let Some(login) = observe::login(&ThisHost, &name)? else {
            anyhow::bail!("account {name} is not there; lab-backup apply makes it");
        };
        Ok((units, Some(login)))
    }
}

/// The account's name; whatever else may be wrong with the file must not keep anybody from the logs.
fn account(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let name = crate::config::read(&text).0.account.name;
    let name = name.unwrap_or_else(|| crate::model::ACCOUNT.into());
    if name.starts_with('-') || name.contains(|c: char| c.is_control()) {
        return Err(Usage(format!("account.name is {name:?}, which is no login name")).into());
    }
    Ok(name)
}

/// Shows each command and runs it; the worst end of all is told.
fn attach(runs: &[Run], stop_at_first: bool) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for run in runs {
        eprintln!("$ {}", run.shown());
        let done = ThisHost.attach(run);
        let done = done.map_err(|error| anyhow::anyhow!("cannot run {}: {error}", run.line()))?;
        if !done {
            exit = Exit::Failed;
            if stop_at_first {
                break;
            }
        }
    }
    Ok(exit)
}

/// `systemctl WORDS` of whichever manager has the unit.
fn systemctl(scope: Scope, login: Option<&Login>, words: &[&str]) -> Run {
    let mut run = Run::new(&["systemctl"]);
    if let (Scope::Account, Some(login)) = (scope, login) {
        run = Run::new(&["systemctl", "--user"]).login(login);
    }
    run.argv.extend(words.iter().map(|w| (*w).to_owned()));
    run
}

/// One command for each unit, so that the order is ours.
fn each(verb: &str, units: &[Unit], login: Option<&Login>) -> Vec<Run> {
    let run = |unit: &Unit| systemctl(unit.scope(), login, &[verb, unit.name()]);
    units.iter().map(run).collect()
}

fn restart(units: &[Unit], login: Option<&Login>) -> Vec<Run> {
    if units.len() == 1 {
        return each("restart", units, login);
    }
    let down: Vec<Unit> = units.iter().rev().copied().collect();
    let mut runs = each("stop", &down, login);
    runs.extend(each("start", units, login));
    runs
}

fn status(units: &[Unit], login: Option<&Login>) -> Vec<Run> {
    let mut runs = Vec::new();
    for scope in [Scope::Account, Scope::System] {
        let mut words = vec!["status", "--no-pager"];
        words.extend(
            units
                .iter()
                .filter(|u| u.scope() == scope)
                .map(|u| u.name()),
        );
        if words.len() > 2 {
            runs.push(systemctl(scope, login, &words));
        }
    }
    runs
}

/// What the units wrote, what their managers say of them, and what their containers wrote.
fn logs(units: &[Unit], login: Option<&Login>, follow: bool) -> Run {
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut group = |first: String, field: &str, values: &[&str]| {
        if !values.is_empty() {
            let fields = values.iter().map(|value| format!("{field}={value}"));
            groups.push(std::iter::once(first).chain(fields).collect());
        }
    };
    let of = |scope| -> Vec<&str> {
        let units = units.iter().filter(|u| u.scope() == scope);
        units.map(|u| u.name()).collect()
    };
    if let Some(login) = login {
        // Anybody may write any field into the journal, but only the account has its user id.
        let uid = || format!("_UID={}", login.uid);
        let containers: Vec<&str> = units.iter().filter_map(|u| u.container()).collect();
        group(uid(), "_SYSTEMD_USER_UNIT", &of(Scope::Account));
        group(uid(), "USER_UNIT", &of(Scope::Account));
        group(uid(), "CONTAINER_NAME", &containers);
    }
    for unit in of(Scope::System) {
        groups.push(vec![format!("_SYSTEMD_UNIT={unit}")]);
        groups.push(vec!["_PID=1".into(), format!("UNIT={unit}")]);
    }
    let mut run = Run::new(&["journalctl"]);
    if follow {
        run.argv.push("--follow".into());
    }
    run.argv.extend(groups.join(&"+".to_owned()));
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            name: "lab-backup".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/lab-backup".into(),
        }
    }

    fn lines(runs: &[Run]) -> Vec<String> {
        let line = |run: &Run| {
            let who = run.login.as_ref().map_or("root", |login| &login.name);
            format!("{who}: {}", run.line())
        };
        runs.iter().map(line).collect()
    }

    #[test]
    fn everything_stops_the_other_way_round_than_it_starts() {
        assert_eq!(
            lines(&restart(&ORDER, Some(&login()))),
            [
                "root: systemctl stop bacula-fd.service",
                "lab-backup: systemctl --user stop lab-backup-director.service",
                "lab-backup: systemctl --user stop lab-backup-storage.service",
                "lab-backup: systemctl --user stop lab-backup-catalog.service",
                "root: systemctl stop lab-backup-guard.service",
                "root: systemctl start lab-backup-guard.service",
                "lab-backup: systemctl --user start lab-backup-catalog.service",
                "lab-backup: systemctl --user start lab-backup-storage.service",
                "lab-backup: systemctl --user start lab-backup-director.service",
                "root: systemctl start bacula-fd.service",
            ]
        );
        assert_eq!(
            lines(&restart(&[Unit::Fd], None)),
            ["root: systemctl restart bacula-fd.service"]
        );
    }

    #[test]
    fn status_asks_each_manager_once() {
        assert_eq!(
            lines(&status(&ORDER, Some(&login()))),
            [
                "lab-backup: systemctl --user status --no-pager lab-backup-catalog.service \
                 lab-backup-storage.service lab-backup-director.service",
                "root: systemctl status --no-pager lab-backup-guard.service bacula-fd.service",
            ]
        );
        assert_eq!(
            lines(&status(&[Unit::Guard], None)),
            ["root: systemctl status --no-pager lab-backup-guard.service"]
        );
    }

    #[test]
    fn logs_are_those_of_the_unit_its_manager_and_its_container() {
        assert_eq!(
            logs(&[Unit::Director], Some(&login()), true).line(),
            "journalctl --follow _UID=1000 _SYSTEMD_USER_UNIT=lab-backup-director.service \
             + _UID=1000 USER_UNIT=lab-backup-director.service \
             + _UID=1000 CONTAINER_NAME=lab-backup-director"
        );
        assert_eq!(
            logs(&[Unit::Fd], None, false).line(),
            "journalctl _SYSTEMD_UNIT=bacula-fd.service + _PID=1 UNIT=bacula-fd.service"
        );
    }
}
