//! The first `lab.toml`: every key with its default, and the VMs that this hypervisor has. Pure.
//!
//! Lines that begin with `#` and a key, without a blank, are settings that may be switched on as
//! they stand; `# ` begins a remark. What is written is read back before anybody gets it.

mod key;
mod settings;
mod vms;

use crate::inventory::Inventory;
use crate::model;
use crate::problem::{Problem, Problems};

/// A `lab.toml` that was not written yet.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Its text.
    pub(crate) text: String,
    /// VMs that it protects.
    pub(crate) vms: usize,
    /// Domains that it only names, with the reason.
    pub(crate) left_out: usize,
    /// Virtual size of all protected disks, in bytes, as far as libvirt knows them.
    pub(crate) bytes: u64,
}

/// Why there is no draft.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The address or the directory is none.
    #[error("{key} {reason}; {remedy}", key = .0.key, reason = .0.reason, remedy = .0.remedy)]
    Setting(Problem),
    /// The draft does not mean what it should.
    #[error("init would write a lab.toml that is wrong, which is a defect of init: {0}")]
    Defect(String),
}

/// Describes this host and its VMs.
pub(crate) fn draft(address: &str, storage: &str, inventory: &Inventory) -> Result<Draft, Error> {
    let bare = model(address, storage)?;
    let found = vms::describe(&inventory.domains);
    let text = format!("{}{}", settings::text(&bare), found.text);
    let read =
        model::parse(&text).map_err(|problems| Error::Defect(first(problems).to_string()))?;
    let protected = read.vms.iter();
    let protected = protected.map(|(key, vm)| (key.clone(), vm.policy.uuid.clone()));
    if protected.collect::<Vec<_>>() != found.protected {
        let reason = "its VMs are not those that were found";
        return Err(Error::Defect(reason.into()));
    }
    let same = model::Model {
        vms: bare.vms.clone(),
        ..read
    } == bare;
    if !same {
        let reason = "its settings are not the defaults";
        return Err(Error::Defect(reason.into()));
    }
    Ok(Draft {
        text,
        vms: found.protected.len(),
        left_out: found.left_out,
        bytes: found.bytes,
    })
}

/// A lab with nothing but its address and its directory: all else is default.
pub(crate) fn model(address: &str, storage: &str) -> Result<model::Model, Error> {
    let text = format!(
        "version = 1\n[lab]\naddress = {}\n[storage]\ndir = {}\n",
        key::quoted(address),
        key::quoted(storage)
    );
    model::parse(&text).map_err(|problems| Error::Setting(first(problems)))
}

impl Draft {
    /// Switches `storage.nfs` on.
    pub(crate) fn nfs(&mut self, source: &str) -> Result<(), Error> {
        let read = self.set("# nfs = ", "nfs", source)?;
        match read.storage.nfs.is_some_and(|read| read.source == source) {
            true => Ok(()),
            false => Err(Error::Defect("the share is not where it belongs".into())),
        }
    }

    /// Sets `images.base`.
    pub(crate) fn base(&mut self, base: &str) -> Result<(), Error> {
        self.set("#base = ", "base", base).map(|_| ())
    }

    /// Gives the first key whose line begins so a value.
    fn set(&mut self, line: &str, key: &str, value: &str) -> Result<model::Model, Error> {
        let mut lines: Vec<String> = self.text.lines().map(str::to_owned).collect();
        let found = lines.iter_mut().find(|found| found.starts_with(line));
        let found = found.ok_or_else(|| Error::Defect(format!("{key} has no line")))?;
        *found = format!("{key} = {}", key::quoted(value));
        let text = lines.join("\n") + "\n";
        let read = model::parse(&text).map_err(|problems| Error::Setting(first(problems)))?;
        self.text = text;
        Ok(read)
    }
}

fn first(problems: Problems) -> Problem {
    let first = problems.0.into_iter().next();
    first.unwrap_or_else(|| Problem::at(1, "lab.toml", "is wrong", "report this"))
}

#[cfg(test)]
mod tests;
