//! The lab as it shall be: `lab.toml` with its defaults filled in and everything checked.
//!
//! [`resolve`] reports all problems at once. What comes out needs no further checks: every name
//! may stand in a unit file, a Bacula resource or a path.

mod check;
mod outside;
mod tier;
mod user;

use std::collections::BTreeMap;
use std::path::PathBuf;

use relay::policy;

use crate::config::{self, Config};
use crate::problem::{Problem, Problems};

use check::Checker;
pub(crate) use outside::{Alerts, Nfs, NfsMode};
pub(crate) use tier::Tier;
pub(crate) use user::{ROLES, Role, User};

/// Account that runs the containers unless `account.name` says otherwise.
pub(crate) const ACCOUNT: &str = "lab-backup";

/// The whole lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// Name of the lab.
    pub(crate) name: String,
    /// This host, as the Director, the File Daemons and the Storage Daemon must all find it.
    ///
    /// Always a name: the Director's container cannot reach this host by its number, see
    /// [`crate::render`].
    pub(crate) address: String,
    /// Where volumes go.
    pub(crate) storage: Storage,
    /// What containers are made of.
    pub(crate) images: Images,
    /// Who hears of jobs; absent means nobody.
    pub(crate) alerts: Option<Alerts>,
    /// Login name of the account that runs the containers.
    pub(crate) account: String,
    /// Policies by tier number; the four shipped tiers are always there.
    pub(crate) tiers: BTreeMap<u8, Tier>,
    /// The hypervisor, which is this host.
    pub(crate) hypervisor: Hypervisor,
    /// Protected VMs by key.
    pub(crate) vms: BTreeMap<String, Vm>,
    /// Who has a console of their own, by name.
    pub(crate) users: BTreeMap<String, User>,
}

/// Where volumes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Directory on this host.
    pub(crate) dir: PathBuf,
    /// What is mounted there; absent means a local directory.
    pub(crate) nfs: Option<Nfs>,
    /// Directory that gets a copy of each recovery kit.
    pub(crate) kit_copy: Option<PathBuf>,
    /// Upper bound of a volume, in bytes.
    pub(crate) volume_bytes: u64,
    /// Jobs that may use the storage at once; at least 2.
    pub(crate) devices: u32,
}

/// What containers are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Images {
    /// What the images are built on.
    pub(crate) base: Base,
    /// Ready-made image of the catalog; absent means built.
    pub(crate) catalog: Option<String>,
    /// Ready-made image of the Director; absent means built.
    pub(crate) director: Option<String>,
    /// Ready-made image of the Storage Daemon; absent means built.
    pub(crate) storage: Option<String>,
}

/// What images are built on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// An image reference.
    Image(String),
    /// A root file system as tar, imported first.
    Tar(PathBuf),
}

/// A host that runs VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hypervisor {
    /// Its key.
    pub(crate) name: String,
    /// Where its File Daemon listens.
    pub(crate) address: String,
    /// What its worker and guard are told, VMs apart.
    pub(crate) policy: policy::Policy,
}

/// A protected VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vm {
    /// Number of its tier.
    pub(crate) tier: u8,
    /// What its hypervisor is told.
    pub(crate) policy: policy::Vm,
}

/// Reads, completes and checks the text of a `lab.toml`.
pub(crate) fn parse(text: &str) -> Result<Model, Problems> {
    let (config, problems) = config::read(text);
    resolve(config, problems)
}

/// Completes and checks; `problems` are those found while reading.
fn resolve(config: Config, problems: Vec<Problem>) -> Result<Model, Problems> {
    let mut check = Checker {
        lines: &config.lines,
        // What did not even parse cannot sensibly be missed as well.
        quiet: problems.iter().any(|p| p.key == "lab.toml"),
        problems,
    };
    if config.version != Some(1) {
        check.bad("version", "must be 1", "write version = 1");
    }
    let address = check.required_address("lab.address", config.lab.address.as_deref());
    let tiers = check.tiers(&config.tiers);
    let model = Model {
        name: check.label("lab.name", config.lab.name.as_deref(), "lab"),
        storage: check.storage(&config.storage),
        images: check.images(&config.images),
        alerts: check.alerts(&config.alerts, &address),
        account: check.account(config.account.name.as_deref()),
        hypervisor: check.hypervisor(&config.hypervisors, &address),
        vms: check.vms(&config.vms, &tiers),
        users: check.users(&config.users, &config.vms),
        address,
        tiers,
    };
    if check.problems.is_empty() {
        return Ok(model);
    }
    check.problems.sort_by_key(|p| p.line.unwrap_or(0));
    Err(Problems(check.problems))
}

#[cfg(test)]
mod tests;
