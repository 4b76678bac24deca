//! What is removed and what stays, in words.

use std::fmt;
use std::path::Path;

use super::look::Seen;
use super::{FD, FD_CONF, FD_KEPT, HEADER, Kind, Removal, Removals, Target};
use crate::config;
use crate::plan::changes;

/// What stays and why, one line each.
pub(super) fn stays(target: &Target, seen: &Seen) -> Vec<String> {
    let mut stays = Vec::new();
    let account = &target.account;
    if seen.login.is_some() && !seen.ours {
        stays.push(format!("account {account}, which lab-backup did not make"));
    } else if seen.login.is_some() && !target.purge {
        stays.push(format!(
            "account {account} and its Podman volumes, which hold the catalog; add --purge-data"
        ));
    }
    if target.purge && seen.login.is_some() && !seen.manager && !seen.ours {
        stays.push(format!(
            "what {account} has in Podman: its service manager does not run; loginctl enable-linger {account} starts it"
        ));
    }
    if !target.purge && !seen.state.is_empty() {
        stays.push("block maps and keys in /var/lib/lab-backup; add --purge-data".into());
    }
    if !target.purge && seen.lab {
        stays.push(format!("{}; add --purge-data", config::PATH));
    }
    if let Some(dir) = target.storage.as_ref().filter(|_| !seen.volumes.is_empty())
        && !target.volumes
    {
        let add = if target.purge {
            "--yes"
        } else {
            "--purge-data --yes"
        };
        stays.push(format!("{}; add {add}", volumes(dir, seen.volumes.len())));
    }
    if let (Some(now), Some(kept)) = (&seen.fd_conf, &seen.fd_kept)
        && !now.starts_with(HEADER)
        && now != kept
    {
        stays.push(format!("{FD_KEPT}: somebody changed {FD_CONF} since"));
    }
    if seen.restored {
        stays.push("restored files in /var/lib/lab-backup/restore".into());
    }
    stays
}

impl Removal {
    /// `-` removes, `~` changes, `+` brings back, `!` interrupts something that runs.
    fn sign(&self) -> char {
        match self {
            Self::Repair | Self::Forget | Self::ForgetHost | Self::Restore { .. } => '~',
            Self::Stop { .. } => '!',
            Self::Start => '+',
            _ => '-',
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.sign())?;
        match self {
            Self::Repair => write!(f, "what interrupted jobs left behind is cleared up"),
            Self::Stop { unit, disable, .. } => {
                let also = if *disable { " and disabled" } else { "" };
                write!(f, "{unit} stopped{also}")
            }
            Self::File(path) | Self::Last(path) => write!(f, "file {}", path.display()),
            Self::Tree(path) => write!(f, "{} and all that is in it", path.display()),
            Self::Dir(path) => write!(f, "directory {}", path.display()),
            Self::Forget => write!(f, "the account's systemd forgets the units"),
            Self::ForgetHost => write!(f, "systemd forgets the units"),
            Self::Podman(kind, name) => write!(f, "Podman {} {name}", kind.word()),
            Self::Restore { path, .. } => {
                write!(f, "file {} as it was before lab-backup", path.display())
            }
            Self::Start => write!(f, "{FD} started"),
            Self::Volumes { dir, names } => f.write_str(&volumes(dir, names.len())),
            Self::Linger => write!(f, "services of the account start at boot"),
            Self::Account => write!(f, "the account with its home and its Podman volumes"),
        }
    }
}

impl Kind {
    /// As Podman calls it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Secret => "secret",
            Self::Network => "network",
            Self::Image => "image",
            Self::Volume => "volume",
        }
    }
}

impl fmt::Display for Removals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "  {action}")?;
        }
        for line in &self.stays {
            writeln!(f, "  stays: {line}")?;
        }
        write!(f, "{}", changes(self.actions.len()))
    }
}

fn volumes(dir: &Path, count: usize) -> String {
    let noun = if count == 1 { "volume" } else { "volumes" };
    format!("{count} {noun} in {}", dir.display())
}
