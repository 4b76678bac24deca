//! From what shall be and what is there to what must be done: pure, ordered, readable.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::applied;
use crate::desired::{
    Desired, Dir, File, Image, Owner, Scope, Secret, Sentinel, Service, Source, fingerprint,
};
use crate::diff;
use crate::observe::State;
use crate::render::{HEADER, SENTINEL};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the account.
    Account {
        /// Login name.
        name: String,
        /// User id.
        uid: u32,
    },
    /// Give the account subordinate ids.
    SubIds {
        /// Login name.
        name: String,
    },
    /// Let the account's manager run without a login.
    Linger {
        /// Login name.
        name: String,
    },
    /// Make a directory, or correct its mode and owner.
    Dir {
        /// The directory.
        dir: Dir,
        /// Is there one already?
        exists: bool,
    },
    /// Write a file.
    Write {
        /// The file.
        file: File,
        /// Its text so far.
        before: Option<String>,
    },
    /// Remove a file that `lab.toml` no longer asks for.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// Import, build or pull an image.
    Image(Image),
    /// Make or replace a Podman secret.
    Secret {
        /// The secret.
        secret: Secret,
        /// Is there one already?
        exists: bool,
    },
    /// Mark the directory of the volumes.
    Sentinel(Sentinel),
    /// Let the host's manager read the unit files.
    ReadUnits,
    /// Let the account's manager read the unit files.
    Generate,
    /// Enable a unit and start it.
    Enable(Service),
    /// Start a unit.
    Start(Service),
    /// Restart a unit.
    Restart(Service),
    /// Let a unit read its configuration again while it runs.
    Reload(Service),
}

/// What must be done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The actions.
    pub(crate) actions: Vec<Action>,
    /// What somebody should look at; nothing is done about it.
    pub(crate) warnings: Vec<String>,
}

/// What must be done to get from `state` to `desired`.
pub(crate) fn plan(desired: &Desired, state: &State) -> Plan {
    let mut actions = Vec::new();
    account(desired, state, &mut actions);
    for dir in &desired.dirs {
        let found = state.found.get(&dir.path);
        let uid = match dir.owner {
            Owner::Root => 0,
            Owner::Account => desired.uid,
        };
        if found.is_none_or(|f| f.mode != dir.mode || f.uid != uid) {
            actions.push(Action::Dir {
                dir: dir.clone(),
                exists: found.is_some(),
            });
        }
    }
    let (secret, plain): (Vec<&File>, Vec<&File>) = desired.files.iter().partition(|f| f.secret);
    actions.extend(secret.into_iter().filter_map(|f| write(f, state)));
    let absent = desired
        .images
        .iter()
        .filter(|i| !state.images.contains(&i.tag));
    let absent: Vec<&Image> = absent.collect();
    let building = absent
        .iter()
        .any(|i| !matches!(i.source, Source::Import { .. }));
    // The base serves only to build the others.
    actions.extend(
        absent
            .into_iter()
            .filter(|_| building)
            .cloned()
            .map(Action::Image),
    );
    for secret in &desired.secrets {
        let found = state.secrets.get(&secret.name);
        if found != Some(&secret.fingerprint) {
            actions.push(Action::Secret {
                secret: secret.clone(),
                exists: found.is_some(),
            });
        }
    }
    actions.extend(plain.into_iter().filter_map(|f| write(f, state)));
    let strangers = state.strangers.iter().cloned();
    actions.extend(strangers.map(|path| Action::Remove { path }));
    let system = |action: &Action| match action {
        Action::Write { file, .. } => file.path.starts_with("/etc/systemd/system"),
        _ => false,
    };
    if actions.iter().any(system) {
        actions.push(Action::ReadUnits);
    }
    let mounts = desired.mounts.iter();
    actions.extend(mounts.filter_map(|service| start(service, state, false)));
    let marks = Action::Sentinel(desired.sentinel.clone());
    let mut warnings = Vec::new();
    if let Some(found) = &desired.sentinel.elsewhere {
        warnings.push(desired.sentinel.other(found));
    } else if state.applied.unit(SENTINEL) != Some(&desired.sentinel.applied()) {
        actions.push(marks);
    } else if state.sentinel.as_deref() != Some(&desired.sentinel.text) {
        warnings.push(desired.sentinel.missing());
    }
    let starts: Vec<Action> = desired
        .services
        .iter()
        .filter_map(|service| {
            let wrong = |action: &Action| match action {
                Action::Write { file, .. } => service.files.contains(&file.path),
                _ => false,
            };
            start(service, state, actions.iter().any(wrong))
        })
        .collect();
    let generated = starts.iter().any(|action| match action {
        Action::Start(service) | Action::Restart(service) => service.scope == Scope::Account,
        _ => false,
    });
    if generated {
        actions.push(Action::Generate);
    }
    actions.extend(starts);
    Plan { actions, warnings }
}

fn account(desired: &Desired, state: &State, actions: &mut Vec<Action>) {
    let name = desired.account.clone();
    if state.login.is_none() {
        actions.push(Action::Account {
            name: name.clone(),
            uid: desired.uid,
        });
    }
    if !state.subids {
        actions.push(Action::SubIds { name: name.clone() });
    }
    if !state.linger {
        actions.push(Action::Linger { name });
    }
}

fn write(file: &File, state: &State) -> Option<Action> {
    let found = state.found.get(&file.path);
    if found.is_some_and(|f| f.text == file.text && f.mode == file.mode && f.uid == 0) {
        return None;
    }
    Some(Action::Write {
        file: file.clone(),
        before: found.map(|f| f.text.clone()),
    })
}

fn start(service: &Service, state: &State, wrote: bool) -> Option<Action> {
    let unit = state.units.get(&service.unit).copied().unwrap_or_default();
    if service.enable && !unit.enabled {
        return Some(Action::Enable(service.clone()));
    }
    if !unit.active {
        return Some(Action::Start(service.clone()));
    }
    if service.starts_with.is_empty() {
        return None;
    }
    let runs_with = state.applied.unit(&service.unit);
    let started = runs_with.map(|u| &u.starts_with) == Some(&service.starts_with);
    let loaded = runs_with.and_then(|u| u.reloads.as_ref()) == service.reloads.as_ref();
    match (started, loaded && !wrote) {
        (true, true) => None,
        (true, false) if service.reloads.is_some() => Some(Action::Reload(service.clone())),
        _ => Some(Action::Restart(service.clone())),
    }
}

impl Service {
    /// What the record says once the unit has come up.
    pub(crate) fn applied(&self) -> applied::Unit {
        applied::Unit {
            starts_with: self.starts_with.clone(),
            reloads: self.reloads.clone(),
        }
    }
}

impl Sentinel {
    /// What the record says once the directory is marked.
    pub(crate) fn applied(&self) -> applied::Unit {
        applied::Unit {
            starts_with: fingerprint([self.place.as_bytes(), self.text.as_bytes()]),
            reloads: None,
        }
    }

    /// What is wrong when something else is mounted.
    fn other(&self, found: &str) -> String {
        let dir = self.path.parent().unwrap_or(&self.path).display();
        format!(
            "{found} is mounted on {dir}, not what lab.toml says; when no job runs: lab-backup stack stop storage, umount {dir}, \
             lab-backup apply"
        )
    }

    /// What is wrong when a directory that was marked is not marked.
    pub(crate) fn missing(&self) -> String {
        let path = self.path.display();
        format!(
            "{path} is missing or another one, so this is not the directory that was set up; the Storage Daemon \
             does not start until it is back; is it mounted?"
        )
    }
}

impl Action {
    /// `+` makes, `~` changes, `-` removes, `!` interrupts something that runs.
    fn sign(&self) -> char {
        match self {
            Self::Dir { exists: true, .. }
            | Self::Secret { exists: true, .. }
            | Self::Write {
                before: Some(_), ..
            }
            | Self::Generate
            | Self::ReadUnits
            | Self::Reload(_) => '~',
            Self::Remove { .. } => '-',
            Self::Restart(_) => '!',
            _ => '+',
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Account { name, uid } => format!("account {name}, user id {uid}, no login"),
            Self::SubIds { name } => format!("subordinate user and group ids of {name}"),
            Self::Linger { name } => format!("services of {name} start at boot"),
            Self::Dir { dir, .. } => {
                let owner = match dir.owner {
                    Owner::Root => "root",
                    Owner::Account => "the account",
                };
                format!(
                    "directory {}, {:04o}, of {owner}",
                    dir.path.display(),
                    dir.mode
                )
            }
            Self::Write { file, .. } => format!("file {}, {:04o}", file.path.display(), file.mode),
            Self::Remove { path } => format!("file {}", path.display()),
            Self::Image(Image { tag, source }) => match source {
                Source::Import { tar } => format!("image {tag}, imported from {}", tar.display()),
                Source::Build { dir, .. } => format!("image {tag}, built from {}", dir.display()),
                Source::Pull => format!("image {tag}, pulled"),
            },
            Self::Secret { secret, .. } => format!("Podman secret {}", secret.name),
            Self::Sentinel(sentinel) => {
                format!(
                    "mark {} of the directory of the volumes",
                    sentinel.path.display()
                )
            }
            Self::ReadUnits => "systemd reads the unit files".into(),
            Self::Generate => "the account's systemd reads the unit files".into(),
            Self::Enable(service) => format!("{} enabled and started", service.unit),
            Self::Start(service) => format!("{} started", service.unit),
            Self::Restart(service) => format!("{} restarted; its running jobs fail", service.unit),
            Self::Reload(service) => format!("{} reloaded", service.unit),
        }
    }

    /// The lines that change, if that can be shown.
    fn details(&self) -> Vec<String> {
        match self {
            Self::Write { file, .. } if file.secret => vec!["(not shown)".into()],
            Self::Write {
                file,
                before: Some(before),
            } if before.starts_with(HEADER) => diff::lines(before, &file.text),
            // What others wrote may hold their passwords.
            Self::Write {
                before: Some(_), ..
            } => vec!["(replaces a file that lab-backup did not write)".into()],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.sign(), self.text())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "  {action}")?;
            for line in action.details() {
                writeln!(f, "      {line}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "  ? {warning}")?;
        }
        write!(f, "{}", changes(self.actions.len()))
    }
}

/// `1 change`, `2 changes`.
pub(crate) fn changes(count: usize) -> String {
    format!("{count} change{}", if count == 1 { "" } else { "s" })
}

/// An action in `plan --json`.
#[derive(Serialize)]
struct ActionJson {
    sign: char,
    text: String,
    details: Vec<String>,
}

impl Plan {
    /// The plan as JSON, version 1.
    pub(crate) fn json(&self) -> serde_json::Value {
        let actions: Vec<ActionJson> = self
            .actions
            .iter()
            .map(|action| ActionJson {
                sign: action.sign(),
                text: action.text(),
                details: action.details(),
            })
            .collect();
        serde_json::json!({ "version": 1, "changes": actions.len(), "actions": actions, "warnings": self.warnings })
    }
}

#[cfg(test)]
mod tests;
