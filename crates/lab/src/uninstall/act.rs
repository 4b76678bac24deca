//! Removes, in order. One failure does not keep the rest from going; all of them are told.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::look::Seen;
use super::{FD, GUARD, Kind, Removal, Removals, SOCKET};
use crate::desired::Scope;
use crate::host::{Host, Login, Run};

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// Guests first.
    #[error(
        "interrupted jobs left something in guests ({0}) that cannot be cleared up now, and without lab-backup nobody would; \
         journalctl -u lab-backup-repair says why; nothing was removed"
    )]
    Guests(String),
    /// Everything that failed, one line each.
    #[error("{} could not be removed; run uninstall again:{}", things(.0.len()), lines(.0))]
    Left(Vec<String>),
}

fn things(count: usize) -> String {
    format!("{count} thing{}", if count == 1 { "" } else { "s" })
}

fn lines(items: &[String]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

/// Does all of `removals`; `tell` hears each before it is done. `force` goes on although a guest
/// may need what is removed.
pub(crate) fn remove(
    host: &dyn Host,
    seen: &Seen,
    removals: &Removals,
    force: bool,
    tell: &mut dyn FnMut(&Removal),
) -> Result<(), Error> {
    let remover = Remover {
        host,
        login: seen.login.as_ref(),
        ours: seen.ours,
    };
    let mut failed: Vec<String> = seen.silent.iter().cloned().collect();
    for action in &removals.actions {
        if matches!(action, Removal::Last(_)) && !failed.is_empty() {
            continue;
        }
        tell(action);
        let done = remover.act(action);
        if *action == Removal::Repair && !force {
            let left = host.list(Path::new("/var/lib/lab-backup/journal"));
            let left = left.unwrap_or_else(|error| vec![error.to_string()]);
            if !left.is_empty() {
                return Err(Error::Guests(left.join(", ")));
            }
        }
        if let Err(reason) = done {
            failed.push(format!("{action}: {reason}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::Left(failed))
}

fn kept(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
    )
}

struct Remover<'a> {
    host: &'a dyn Host,
    login: Option<&'a Login>,
    /// Was the account made by `apply`, so that nobody else uses its manager?
    ours: bool,
}

impl Remover<'_> {
    fn act(&self, action: &Removal) -> Result<(), String> {
        let told = |result: io::Result<()>| result.map_err(|error| error.to_string());
        match action {
            Removal::Repair => self
                .must(&Run::new(&["systemctl", "start", "lab-backup-repair.service"]).minutes(11)),
            Removal::Stop {
                unit,
                scope,
                disable,
            } => self.stop(unit, *scope, *disable),
            Removal::File(path) | Removal::Last(path) => told(self.host.remove(path)),
            Removal::Tree(path) => told(self.host.remove_tree(path)),
            Removal::Dir(path) => match self.host.remove_dir(path) {
                // Somebody put something there since, mounted something on it, or something in it
                // could not be removed.
                Err(error) if kept(error.kind()) => Ok(()),
                other => told(other),
            },
            Removal::Forget => {
                self.must(&self.account(&["systemctl", "--user", "daemon-reload"])?)?;
                // One that failed would be remembered for ever; there need not be one.
                let reset = ["systemctl", "--user", "reset-failed", "lab-backup*"];
                let _ = self.host.run(&self.account(&reset)?);
                Ok(())
            }
            Removal::ForgetHost => self.must(&Run::new(&["systemctl", "daemon-reload"])),
            Removal::Podman(kind, name) => {
                let words: &[&str] = match kind {
                    Kind::Container => &["container", "rm", "--force", "--ignore", name],
                    _ => &[kind.word(), "rm", name],
                };
                self.must(&self.account(&[&["podman"], words].concat())?.minutes(5))
            }
            Removal::Restore { kept, path } => told(self.host.rename(kept, path)),
            Removal::Start => self.must(&Run::new(&["systemctl", "start", FD]).minutes(8)),
            Removal::Volumes { dir, names } => self.volumes(dir, names),
            Removal::Linger => {
                let login = self.login()?;
                self.must(&Run::new(&["loginctl", "disable-linger", &login.name]))?;
                if self.ours {
                    return self.manager_down(login);
                }
                Ok(())
            }
            Removal::Account => self.userdel(),
        }
    }

    fn stop(&self, unit: &str, scope: Scope, disable: bool) -> Result<(), String> {
        if scope == Scope::Account {
            let run = self.account(&["systemctl", "--user", "stop", unit])?;
            return self.must(&run.minutes(8));
        }
        if unit == GUARD {
            // What a worker still has to clear up it does as it ends, and the guard after it.
            let workers = ["systemctl", "stop", "lab-backup-worker@*.service"];
            self.must(&Run::new(&workers).minutes(8))?;
        }
        self.must(&Run::new(&["systemctl", "stop", unit]).minutes(8))?;
        if disable {
            self.must(&Run::new(&["systemctl", "disable", unit]))?;
        }
        if unit == SOCKET || unit == FD {
            let _ = self
                .host
                .run(&Run::new(&["systemctl", "reset-failed", unit]));
        }
        Ok(())
    }

    fn volumes(&self, dir: &Path, names: &[String]) -> Result<(), String> {
        let mut failed = Vec::new();
        for name in names {
            if let Err(error) = self.host.remove(&dir.join(name)) {
                failed.push(format!("{name}: {error}"));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(failed.join("; "))
    }

    /// Stops the account's manager; by itself it would end a moment later.
    fn manager_down(&self, login: &Login) -> Result<(), String> {
        let manager = format!("user@{}.service", login.uid);
        let dir = format!("user-runtime-dir@{}.service", login.uid);
        self.must(&Run::new(&["systemctl", "stop", &manager, &dir]).minutes(3))
    }

    fn userdel(&self) -> Result<(), String> {
        let login = self.login()?;
        self.manager_down(login)?;
        let run = Run::new(&["userdel", "--remove", &login.name]).minutes(10);
        let mut done = self.must(&run);
        // Podman may have left a process outside of the manager, which holds its name spaces.
        for _ in 0..25 {
            match &done {
                Err(reason) if reason.contains("currently used") => {
                    let uid = login.uid.to_string();
                    let _ = self.host.run(&Run::new(&["pkill", "-KILL", "-U", &uid]));
                    thread::sleep(Duration::from_millis(200));
                    done = self.must(&run);
                }
                _ => break,
            }
        }
        done
    }

    fn account(&self, words: &[&str]) -> Result<Run, String> {
        Ok(Run::new(words).login(self.login()?))
    }

    fn login(&self) -> Result<&Login, String> {
        self.login.ok_or_else(|| "its account is not there".into())
    }

    fn must(&self, run: &Run) -> Result<(), String> {
        let output = self.host.run(run);
        let output = output.map_err(|error| format!("cannot run {}: {error}", run.line()))?;
        if output.ok() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(format!("{} failed: {said}", run.line()))
    }
}
