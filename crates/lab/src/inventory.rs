//! What this hypervisor has, as `lab-backup-worker inventory` tells it. The worker alone talks to
//! libvirt; what it prints is read here leniently, since the two may be of different releases.

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::host::{Host, Run};

/// Who knows.
const WORKER: &str = "/usr/libexec/lab-backup/lab-backup-worker";

/// Everything known of this hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Inventory {
    /// Version of this output: 1.
    version: u32,
    /// Every domain, by name.
    pub(crate) domains: Vec<Domain>,
}

/// A domain. Its strings are the words of whoever defined it: they may be anything.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Domain {
    /// libvirt's name.
    pub(crate) name: String,
    /// libvirt's UUID.
    pub(crate) uuid: String,
    /// Does its definition outlive its process?
    #[serde(default = "yes")]
    pub(crate) persistent: bool,
    /// `bios` or `efi`.
    pub(crate) firmware: String,
    /// Has it a channel for the guest agent?
    pub(crate) agent: bool,
    /// Has it a TPM?
    pub(crate) tpm: bool,
    /// Its disks.
    pub(crate) disks: Vec<Disk>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Disk {
    /// Target, such as `vda`.
    pub(crate) target: String,
    /// `disk`, `cdrom`, `floppy` or `lun`.
    pub(crate) device: String,
    /// Format, if libvirt knows one.
    pub(crate) format: Option<String>,
    /// Virtual size in bytes, if libvirt can tell.
    pub(crate) size: Option<u64>,
}

/// A worker that does not tell knows only of domains that stay.
fn yes() -> bool {
    true
}

impl Disk {
    /// Can it be in a backup? Media can be taken out, and a `lun` is the host's.
    pub(crate) fn is_disk(&self) -> bool {
        self.device == "disk"
    }
}

/// Asks the worker.
pub(crate) fn read(host: &dyn Host) -> anyhow::Result<Inventory> {
    let output = host
        .run(&Run::new(&[WORKER, "inventory", "--json"]))
        .with_context(|| format!("cannot run {WORKER}"))?;
    if !output.ok() {
        // The worker's own message is one line; whatever a library printed stands before it.
        let said = output.stderr.lines().rfind(|line| !line.trim().is_empty());
        let said = said.unwrap_or("lab-backup-worker failed without a word");
        bail!("cannot tell what this hypervisor has: {said}");
    }
    let inventory: Inventory = serde_json::from_str(&output.stdout)
        .with_context(|| format!("cannot understand what {WORKER} prints"))?;
    if inventory.version != 1 {
        bail!(
            "{WORKER} prints version {}, this program knows 1; install both from one release",
            inventory.version
        );
    }
    Ok(inventory)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk of a size in GiB.
    pub(crate) fn disk(target: &str, device: &str, gib: u64) -> Disk {
        Disk {
            target: target.into(),
            device: device.into(),
            format: Some("qcow2".into()),
            size: Some(gib << 30),
        }
    }

    /// A domain with an agent; `n` makes its UUID.
    pub(crate) fn domain(name: &str, n: u32, disks: Vec<Disk>) -> Domain {
        Domain {
            name: name.into(),
            uuid: format!("00000000-0000-4000-8000-{n:012x}"),
            persistent: true,
            firmware: "efi".into(),
            agent: true,
            tpm: false,
            disks,
        }
    }

    /// These domains.
    pub(crate) fn inventory(domains: Vec<Domain>) -> Inventory {
        Inventory {
            version: 1,
            domains,
        }
    }

    #[test]
    fn what_an_older_or_newer_worker_prints_is_understood() {
        let text = r#"{"version":1,"hypervisor":"hv1","libvirt":"11.3.0","new":1,"domains":[
            {"name":"a","uuid":"u","state":"running","firmware":"bios","agent":false,"tpm":false,
             "disks":[{"target":"sda","device":"cdrom","format":null,"source":null,"size":null}]}]}"#;
        let inventory: Inventory = serde_json::from_str(text).unwrap();
        let [domain] = inventory.domains.as_slice() else {
            panic!("{inventory:?}");
        };
        assert!(domain.persistent);
        assert!(!domain.disks[0].is_disk());
    }
}
