//! Starts, restarts and reloads units.

use super::{Applier, Error, last_lines, write_error};
use crate::applied::Applied;
use crate::desired::{Scope, Service};
use crate::host::Run;
use crate::render::DIRECTOR;

impl Applier<'_> {
    /// Starts a unit and notes what it runs with.
    pub(super) fn up(&mut self, service: &Service, verb: &str) -> Result<(), Error> {
        // A unit that gave up earlier must not be refused because of that.
        let _ = self.systemctl(service, &["reset-failed"]);
        if let Err(error) = self.systemctl(service, &[verb]) {
            let journal = self.journal(service);
            return Err(match error {
                Error::Failed { .. } if !journal.is_empty() => Error::Unit {
                    unit: service.unit.clone(),
                    journal,
                },
                other => other,
            });
        }
        if service.unit == DIRECTOR {
            self.director.reloaded()?;
        }
        self.undo.up(service);
        self.note(service)
    }

    /// `systemctl VERB` for a unit, with whichever manager has it.
    pub(super) fn systemctl(&self, service: &Service, verb: &[&str]) -> Result<(), Error> {
        let mut run = Run::new(&["systemctl"]).minutes(8);
        if service.scope == Scope::Account {
            run.argv.push("--user".into());
            run = run.login(self.login()?);
        }
        run.argv.extend(verb.iter().map(|v| (*v).to_owned()));
        run.argv.push(service.unit.clone());
        self.must(&run)
    }

    /// The last words of a unit.
    fn journal(&self, service: &Service) -> String {
        let field = match service.scope {
            Scope::System => "UNIT",
            Scope::Account => "USER_UNIT",
        };
        let by_manager = format!("{field}={}", service.unit);
        let by_unit = match service.scope {
            Scope::System => format!("_SYSTEMD_UNIT={}", service.unit),
            Scope::Account => format!("_SYSTEMD_USER_UNIT={}", service.unit),
        };
        let run = Run::new(&[
            "journalctl",
            "--no-pager",
            "-n",
            "12",
            "-o",
            "cat",
            &by_unit,
            "+",
            &by_manager,
        ]);
        let output = self.run(&run).unwrap_or_default();
        let lines: Vec<_> = output.stdout.lines().map(|l| format!("  {l}")).collect();
        lines.join("\n")
    }

    /// Lets the Director read its configuration again and notes it.
    pub(super) fn reload(&mut self, service: &Service) -> Result<(), Error> {
        self.read_again()?;
        self.undo.up(service);
        self.note(service)
    }

    /// The Director says nothing when it has taken a new configuration; its clock proves it.
    fn read_again(&self) -> Result<(), Error> {
        let before = self.director.reloaded()?;
        let text = self.director.reload()?;
        let after = self.director.reloaded()?;
        if after > before {
            return Ok(());
        }
        let run = Run::new(&[
            "podman",
            "exec",
            "lab-backup-director",
            "bacula-dir",
            "-t",
            "-c",
            "/etc/lab-backup/bacula-dir.conf",
        ]);
        let output = self.run(&run.login(self.login()?))?;
        let reason = [output.stdout, output.stderr, text].concat();
        Err(Error::Refused(last_lines(&reason, 6)))
    }

    /// Notes what a unit runs with, once it does.
    fn note(&mut self, service: &Service) -> Result<(), Error> {
        if service.starts_with.is_empty() {
            return Ok(());
        }
        let noted = self
            .state
            .applied
            .note(self.host, &service.unit, service.applied());
        noted.map_err(|source| write_error(Applied::PATH.as_ref(), source))
    }
}
