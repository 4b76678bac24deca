//! `/etc/lab-backup/vms.toml`: what the hypervisor is told about each VM.
//!
//! `lab-backup apply` writes it from `lab.toml`; the worker reads it at the start of every job. It
//! is kept out of Bacula's FileSet on purpose: a changed FileSet would force a Full.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::name;

/// Where the policy lives on a hypervisor.
pub const PATH: &str = "/etc/lab-backup/vms.toml";

/// Is the guest's file system frozen for the instant of the backup?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// Never: the backup is crash-consistent.
    Off,
    /// If the agent answers; otherwise crash-consistent, with a warning.
    #[default]
    Try,
    /// Or the job fails.
    Require,
}

/// How the disks are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The best one for the VM's state.
    #[default]
    Auto,
    /// libvirt's backup API in pull mode; the VM must run.
    Pull,
    /// The images of a VM that is off; it must stay off meanwhile.
    Cold,
}

/// Policy of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// libvirt's domain name.
    pub domain: String,
    /// libvirt's UUID; when given it decides and `domain` may change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uuid: Option<String>,
    /// Freeze the guest's file systems?
    #[serde(default)]
    pub quiesce: Quiesce,
    /// Longest freeze in milliseconds, within [`FREEZE_MS`].
    #[serde(default = "default_freeze_ms")]
    pub freeze_ms: u64,
    /// How the disks are read.
    #[serde(default)]
    pub method: Method,
    /// Every how many increments a disk is read whole and compared with its dirty bitmap, within
    /// [`AUDIT_EVERY`]; 1 trusts no bitmap.
    #[serde(default = "default_audit_every")]
    pub audit_every: u32,
    /// Are there Differentials, which build on the last Full?
    #[serde(default)]
    pub differentials: bool,
    /// Targets (`vdb`, …) that are left out, and listed as left out.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exclude: Vec<String>,
}

/// Range of `freeze_ms`: an agent is given whole seconds, and time for the thaw is part of it.
pub const FREEZE_MS: std::ops::RangeInclusive<u64> = 2_000..=10_000;

/// Range of `audit_every`.
pub const AUDIT_EVERY: std::ops::RangeInclusive<u32> = 1..=1000;

fn default_audit_every() -> u32 {
    8
}

fn default_freeze_ms() -> u64 {
    5000
}

fn yes() -> bool {
    true
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Version of this file: 1.
    pub version: u32,
    /// Local directory for scratch images.
    #[serde(default = "default_scratch")]
    pub scratch_dir: PathBuf,
    /// Directories below which a restore may write plain files or images under a new name,
    /// besides the directories of the original images.
    #[serde(default = "default_restore_dirs")]
    pub restore_dirs: Vec<PathBuf>,
    /// May the guard restart a libvirt daemon that answers nobody for 10 s while a guest is frozen?
    #[serde(default = "yes")]
    pub restart_libvirt: bool,
    /// Every VM by its key.
    #[serde(default)]
    pub vms: BTreeMap<String, Vm>,
}

fn default_scratch() -> PathBuf {
    "/var/lib/libvirt/lab-backup/scratch".into()
}

fn default_restore_dirs() -> Vec<PathBuf> {
    vec![
        "/var/lib/lab-backup/restore".into(),
        "/var/lib/libvirt/images".into(),
    ]
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not parse.
    #[error("the policy is not understood")]
    Parse(#[from] toml::de::Error),
    /// The file is of another version.
    #[error("the policy has version {0}, this program knows 1")]
    Version(u32),
    /// A VM key is not legal.
    #[error(transparent)]
    Name(#[from] name::BadName),
    /// A freeze limit is out of range.
    #[error("vms.{vm}.freeze_ms = {value} is outside 2000 to 10000")]
    FreezeMs {
        /// The VM's key.
        vm: String,
        /// What was given.
        value: u64,
    },
    /// The number of increments between whole readings is out of range.
    #[error("vms.{vm}.audit_every = {value} is outside 1 to 1000")]
    AuditEvery {
        /// The VM's key.
        vm: String,
        /// What was given.
        value: u32,
    },
}

impl Policy {
    /// A policy without VMs.
    pub fn empty() -> Self {
        Self {
            version: 1,
            scratch_dir: default_scratch(),
            restore_dirs: default_restore_dirs(),
            restart_libvirt: true,
            vms: BTreeMap::new(),
        }
    }

    /// Reads and checks a policy file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Parses and checks a policy.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let policy: Self = toml::from_str(text)?;
        if policy.version != 1 {
            return Err(Error::Version(policy.version));
        }
        for (key, vm) in &policy.vms {
            name::check(key)?;
            if !FREEZE_MS.contains(&vm.freeze_ms) {
                return Err(Error::FreezeMs {
                    vm: key.clone(),
                    value: vm.freeze_ms,
                });
            }
            if !AUDIT_EVERY.contains(&vm.audit_every) {
                return Err(Error::AuditEvery {
                    vm: key.clone(),
                    value: vm.audit_every,
                });
            }
        }
        Ok(policy)
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a policy is plain data and always serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_being_written_and_read() {
        let mut policy = Policy::empty();
        let vm = Vm {
            domain: "$(id) \"q\"".into(),
            uuid: None,
            quiesce: Quiesce::Require,
            freeze_ms: 2000,
            method: Method::Pull,
            audit_every: 3,
            differentials: true,
            exclude: vec!["vdb".into()],
        };
        policy.vms.insert("web01".into(), vm);
        assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        for text in [
            "",
            "version = 2",
            "version = 1\nx = 1",
            "version = 1\n[vms.\"$(id)\"]\ndomain = \"a\"",
            "version = 1\n[vms.a]\ndomain = \"a\"\nfreeze_ms = 60000",
            "version = 1\n[vms.a]\ndomain = \"a\"\nquiesce = \"maybe\"",
            "version = 1\n[vms.a]\ndomain = \"a\"\naudit_every = 0",
        ] {
            assert!(Policy::parse(text).is_err(), "{text:?}");
        }
    }
}
