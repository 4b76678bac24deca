//! Gives a unit back what it had, when it does not come up with what it was given.
//!
//! What goes back is every file that this `apply` wrote or removed, but for those that a unit has
//! come up with: the stack then is what it was, or what it is on the way to, and no unit has one
//! half of each. Directories, images and secrets stay: nothing reads them that did not before. A unit
//! that never ran has nothing to go back to; its files stay for whoever looks for the reason.

use std::path::{Path, PathBuf};

use super::{Applier, Error, write_error};
use crate::desired::{Scope, Service};
use crate::host::{Found, Run};
use crate::plan::Action;
use crate::render::{FD_CONF, FD_KEPT, HEADER};

/// Where the account's Quadlet units are.
const QUADLET: &str = "/etc/containers/systemd";

/// What can be undone.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// What each file was before, in the order in which they were touched.
    before: Vec<(PathBuf, Option<Found>)>,
    /// Units that came up.
    up: Vec<Service>,
}

impl Undo {
    /// A unit has come up; what it read stays.
    pub(super) fn up(&mut self, service: &Service) {
        self.up.push(service.clone());
    }

    /// What goes back, the last one first.
    fn back(&self) -> Vec<(PathBuf, Option<Found>)> {
        let stays = |path: &Path| self.up.iter().any(|service| service.reads(path));
        let back = self.before.iter().rev();
        back.filter(|(path, _)| !stays(path)).cloned().collect()
    }
}

impl Service {
    /// Is this file part of what the unit runs with? One that was removed counts by its directory.
    fn reads(&self, path: &Path) -> bool {
        let mut dirs = self.files.iter().filter_map(|file| file.parent());
        self.beside.iter().any(|file| file == path) || dirs.any(|dir| path.starts_with(dir))
    }
}

impl Applier<'_> {
    /// Remembers what a file is, before it changes.
    pub(super) fn remember(&mut self, path: &Path) -> Result<(), Error> {
        let found = self.host.look(path);
        let found = found.map_err(|source| write_error(path, source))?;
        self.undo.before.push((path.into(), found));
        Ok(())
    }

    /// Undoes what made `action` fail, if that can be, and says so with the error.
    pub(super) fn undone(&self, action: &Action, error: Error) -> Error {
        let (service, reload) = match action {
            Action::Enable(service) | Action::Start(service) | Action::Restart(service) => {
                (service, false)
            }
            Action::Reload(service) => (service, true),
            _ => return error,
        };
        let back = self.undo.back();
        if back.is_empty() || !(self.ran(service) || self.noted(service)) {
            return error;
        }
        let mut failed = Vec::new();
        let mut paths = Vec::new();
        for (path, found) in &back {
            match self.put_back(path, found.as_ref()) {
                Ok(()) => paths.push(path.as_path()),
                Err(error) => failed.push(told(&error)),
            }
        }
        if paths.iter().any(|path| path.starts_with(QUADLET)) {
            let read = self.login().and_then(|login| {
                let run = Run::new(&["systemctl", "--user", "daemon-reload"]);
                self.must(&run.login(login))
            });
            failed.extend(read.err().map(|error| told(&error)));
        }
        for (service, verb) in self.again(service, reload) {
            let _ = self.systemctl(service, &["reset-failed"]);
            let done = self.systemctl(service, &[verb]);
            failed.extend(done.err().map(|error| told(&error)));
        }
        Error::Undone {
            unit: service.unit.clone(),
            outcome: outcome(&paths, &failed),
            source: Box::new(error),
        }
    }

    fn put_back(&self, path: &Path, found: Option<&Found>) -> Result<(), Error> {
        let kept = Path::new(FD_KEPT);
        let done = match found {
            None => self.host.remove(path),
            // The kept one still has its owner and label.
            Some(found)
                if path == Path::new(FD_CONF)
                    && !found.text.starts_with(HEADER)
                    && self
                        .host
                        .look(kept)
                        .is_ok_and(|k| k.as_ref() == Some(found)) =>
            {
                self.host.rename(kept, path)
            }
            Some(found) => self.host.write(path, &found.text, found.mode),
        };
        done.map_err(|source| write_error(path, source))
    }

    /// Units to start, in order. A container that failed may have taken down those that need it; one
    /// that runs is left alone by a start.
    fn again<'s>(&'s self, failed: &'s Service, reload: bool) -> Vec<(&'s Service, &'static str)> {
        if reload {
            return vec![(failed, "start")];
        }
        let services = self.desired.services.iter();
        let services = services.filter(|s| s.scope == failed.scope || s.unit == failed.unit);
        let services = services.filter_map(|service| {
            if service.unit == failed.unit {
                // systemd may be at starting it with the new text, again and again.
                return Some((service, "restart"));
            }
            let needed = service.scope == Scope::Account && self.ran(service);
            needed.then_some((service, "start"))
        });
        services.collect()
    }

    /// Did it run when this apply began?
    fn ran(&self, service: &Service) -> bool {
        let unit = self.state.units.get(&service.unit);
        unit.is_some_and(|unit| unit.active)
    }

    /// Has it ever come up with what we wrote?
    fn noted(&self, service: &Service) -> bool {
        self.state.applied.unit(&service.unit).is_some()
    }
}

/// An error with its source, in one line.
fn told(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What was put back, and what could not be.
fn outcome(paths: &[&Path], failed: &[String]) -> String {
    let shown = paths.iter().take(4).map(|path| path.display().to_string());
    let mut names: Vec<String> = shown.collect();
    if paths.len() > names.len() {
        names.push(format!("{} more", paths.len() - names.len()));
    }
    let names = names.join(", ");
    match (paths.is_empty(), failed.is_empty()) {
        (false, true) => format!("what it had is back ({names}) and runs"),
        (false, false) => format!("back is {names}, but not all: {}", failed.join("; ")),
        (true, _) => format!("what it had could not be put back: {}", failed.join("; ")),
    }
}

#[cfg(test)]
mod tests;
