//! The way back: from what is there to what must be removed. Pure, ordered, readable, like a plan.
//!
//! It asks what is there, not what `lab.toml` would make: that file may have changed since, or be
//! gone. Nothing is removed that is not known to be ours.

mod act;
mod look;
mod show;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) use act::remove;
pub(crate) use look::{Seen, look};

use crate::applied::Applied;
use crate::config;
use crate::desired::Scope;
use crate::made::Made;
use crate::model::{self, Base, Model};
use crate::render::{
    BCONSOLE, CATALOG, DIRECTOR, DIRECTOR_DIR, ETC, FD, FD_CONF, FD_KEPT, GUARD, HEADER, REPAIR,
    SECRETS_DIR, SOCKET, STORAGE, STORAGE_DIR,
};

/// Units of ours beside the File Daemon's, in the order in which they stop. What uses others goes
/// first; the guard goes when no job can be left that froze a guest.
const UNITS: [(&str, Scope); 12] = [
    ("lab-backup-kit.path", Scope::System),
    ("lab-backup-kit.service", Scope::System),
    (DIRECTOR, Scope::Account),
    (STORAGE, Scope::Account),
    (CATALOG, Scope::Account),
    ("lab-backup-network.service", Scope::Account),
    ("lab-backup-catalog-volume.service", Scope::Account),
    ("lab-backup-director-volume.service", Scope::Account),
    ("lab-backup-storage-volume.service", Scope::Account),
    (SOCKET, Scope::System),
    (REPAIR, Scope::System),
    (GUARD, Scope::System),
];

/// Names of the containers and of their Podman volumes.
const CONTAINERS: [&str; 3] = [
    "lab-backup-catalog",
    "lab-backup-director",
    "lab-backup-storage",
];

/// What shall go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Login name of the account.
    account: String,
    /// Directory of the volumes, if `lab.toml` is still there to tell.
    storage: Option<PathBuf>,
    /// Images that `apply` had pulled.
    pulled: BTreeSet<String>,
    /// Also catalog, maps, keys and `lab.toml`?
    purge: bool,
    /// Also the volumes with the backups?
    volumes: bool,
}

impl Target {
    /// Everything of a lab; of the default one when there is no `lab.toml`.
    pub(crate) fn new(model: Option<&Model>, purge: bool, volumes: bool) -> Self {
        let mut pulled = BTreeSet::new();
        if let Some(images) = model.map(|m| &m.images) {
            let ready = [&images.catalog, &images.director, &images.storage];
            pulled.extend(ready.into_iter().flatten().cloned());
            if let Base::Image(base) = &images.base {
                pulled.insert(base.clone());
            }
        }
        Self {
            account: model.map_or_else(|| model::ACCOUNT.into(), |m| m.account.clone()),
            storage: model.map(|m| m.storage.dir.clone()),
            pulled,
            purge,
            volumes: purge && volumes,
        }
    }
}

/// A thing of Podman's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container.
    Container,
    /// A secret.
    Secret,
    /// A network.
    Network,
    /// An image.
    Image,
    /// A volume, which holds data.
    Volume,
}

/// One thing to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Let the worker clear up what interrupted jobs left in guests.
    Repair,
    /// Stop a unit, and keep it from starting at boot.
    Stop {
        /// Its full name.
        unit: String,
        /// Whose.
        scope: Scope,
        /// Disable it as well?
        disable: bool,
    },
    /// Remove a file.
    File(PathBuf),
    /// Remove a file or a directory and all that is in it.
    Tree(PathBuf),
    /// Remove a directory that will be empty.
    Dir(PathBuf),
    /// Let the account's manager forget the units.
    Forget,
    /// Let the host's manager forget them.
    ForgetHost,
    /// Remove a thing of Podman's.
    Podman(Kind, String),
    /// Put a file back that `apply` had kept.
    Restore {
        /// The kept one.
        kept: PathBuf,
        /// Its place.
        path: PathBuf,
    },
    /// Start the File Daemon with what it had before.
    Start,
    /// Remove the volumes with the backups.
    Volumes {
        /// Where they are.
        dir: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The account's manager runs no longer without a login.
    Linger,
    /// Remove the account with its home.
    Account,
    /// Remove what a second uninstall needs to know if this one fails.
    Last(PathBuf),
}

/// What must be removed, in order, and what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removals {
    /// The actions.
    pub(crate) actions: Vec<Removal>,
    /// What stays and why, one line each.
    pub(crate) stays: Vec<String>,
}

/// What must be removed of what was seen.
pub(crate) fn plan(target: &Target, seen: &Seen) -> Removals {
    let mut removals = Removals::default();
    let actions = &mut removals.actions;
    if !seen.journals.is_empty() {
        actions.push(Removal::Repair);
    }
    actions.extend(stops(seen));
    actions.extend(seen.unit_files.iter().cloned().map(Removal::File));
    if !seen.unit_files.is_empty() && seen.manager {
        actions.push(Removal::Forget);
    }
    let podman = seen.podman.iter();
    let podman = podman.filter(|(kind, _)| target.purge || *kind != Kind::Volume);
    actions.extend(podman.map(|(kind, name)| Removal::Podman(*kind, name.clone())));
    if let Some(dir) = &target.storage
        && target.volumes
        && !seen.volumes.is_empty()
    {
        actions.push(Removal::Volumes {
            dir: dir.clone(),
            names: seen.volumes.clone(),
        });
    }
    if let Some(dir) = &target.storage
        && target.volumes
    {
        actions.extend(seen.beside.iter().map(|name| Removal::Tree(dir.join(name))));
    }
    // Nothing writes there any more.
    actions.extend(seen.mounts.iter().map(|unit| Removal::Stop {
        unit: unit.clone(),
        scope: Scope::System,
        disable: true,
    }));
    actions.extend(seen.host_files.iter().cloned().map(Removal::File));
    if !seen.host_files.is_empty() {
        actions.push(Removal::ForgetHost);
    }
    file_daemon(seen, actions);
    actions.extend(seen.files.iter().cloned().map(Removal::File));
    actions.extend(seen.trees.iter().cloned().map(Removal::Tree));
    if target.purge {
        actions.extend(seen.state.iter().cloned().map(Removal::Tree));
    }
    if seen.linger && (seen.ours || seen.record().linger) {
        actions.push(Removal::Linger);
    }
    if target.purge && seen.ours {
        actions.push(Removal::Account);
    }
    let lab = target.purge && seen.lab;
    if lab {
        actions.push(Removal::Last(config::PATH.into()));
    }
    dirs(target, seen, actions);
    // While data stays, so does the knowledge of what was there before it.
    let records = seen.records.iter();
    let records = records.filter(|path| target.purge || *path != Path::new(Made::PATH));
    actions.extend(records.cloned().map(Removal::Last));
    removals.stays = show::stays(target, seen);
    removals
}

fn stops(seen: &Seen) -> Vec<Removal> {
    let units = UNITS.iter().filter_map(|(unit, scope)| {
        let state = seen.units.get(unit).copied().unwrap_or_default();
        // Generated units are enabled by their file.
        let disable = *scope == Scope::System && state.enabled;
        (state.active || disable).then_some(Removal::Stop {
            unit: (*unit).into(),
            scope: *scope,
            disable,
        })
    });
    units.collect()
}

/// Puts the File Daemon back to what it was: it is the package's, only its configuration is ours.
fn file_daemon(seen: &Seen, actions: &mut Vec<Removal>) {
    let ours = |text: &String| text.starts_with(HEADER);
    let (now, kept) = (seen.fd_conf.as_ref(), seen.fd_kept.as_ref());
    let path = || PathBuf::from(FD_CONF);
    let change = match (now, kept) {
        (now, Some(_)) if now.is_none_or(ours) => Some(Removal::Restore {
            kept: FD_KEPT.into(),
            path: path(),
        }),
        // An apply that was cut off before it wrote its own.
        (Some(now), Some(kept)) if now == kept => Some(Removal::File(FD_KEPT.into())),
        (Some(now), None) if ours(now) => Some(Removal::File(path())),
        _ => None,
    };
    let rewrites = match &change {
        Some(Removal::Restore { .. }) => true,
        Some(Removal::File(file)) => *file == path(),
        _ => false,
    };
    let theirs = now.is_some_and(|now| !ours(now) && kept.is_some_and(|kept| now != kept));
    if theirs || !rewrites && seen.made.is_none() {
        // Nothing of ours was ever there, or somebody has taken the File Daemon over since.
        actions.extend(change);
        return;
    }
    let made = seen.record();
    let unit = seen.units.get(FD).copied().unwrap_or_default();
    let has_conf = kept.is_some() || now.is_some_and(|now| !ours(now));
    let shall_run = has_conf && !made.fd_started;
    let disable = unit.enabled && (made.fd_enabled || !has_conf);
    if disable || (unit.active && (rewrites || !shall_run)) {
        actions.push(Removal::Stop {
            unit: FD.into(),
            scope: Scope::System,
            disable,
        });
    }
    actions.extend(change);
    if shall_run && (rewrites || !unit.active) {
        actions.push(Removal::Start);
    }
}

/// Directories that will be empty, the deepest first.
fn dirs(target: &Target, seen: &Seen, actions: &mut Vec<Removal>) {
    let mut gone: BTreeSet<PathBuf> = BTreeSet::new();
    for action in actions.iter() {
        match action {
            Removal::File(path) | Removal::Tree(path) | Removal::Last(path) => {
                gone.insert(path.clone());
            }
            Removal::Volumes { dir, names } => gone.extend(names.iter().map(|n| dir.join(n))),
            _ => {}
        }
    }
    for (dir, names) in seen.dirs.iter().rev() {
        let emptied = names.iter().all(|name| gone.contains(&dir.join(name)));
        let wanted = if dir == Path::new(ETC) {
            target.purge || seen.record().dirs.contains(dir)
        } else if Some(dir) == target.storage.as_ref() {
            target.volumes
        } else {
            true
        };
        if emptied && wanted && gone.insert(dir.clone()) {
            actions.push(Removal::Dir(dir.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
