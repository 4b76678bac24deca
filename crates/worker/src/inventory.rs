//! What this hypervisor has: facts for `init`, `check` and `unprotected`.

use anyhow::Result;
use libvirt::xml::DomainView;
use libvirt::{Connect, XmlFlags};
use serde::Serialize;

use crate::agent;

/// Everything known of this hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Version of this output: 1.
    pub version: u32,
    /// Host name.
    pub hypervisor: String,
    /// libvirt's version.
    pub libvirt: String,
    /// Every domain, by name.
    pub domains: Vec<Domain>,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Domain {
    /// libvirt's name.
    pub name: String,
    /// libvirt's UUID.
    pub uuid: String,
    /// Its state, in words.
    pub state: String,
    /// Does its definition outlive its process?
    pub persistent: bool,
    /// `bios` or `efi`.
    pub firmware: String,
    /// Has it a channel for the guest agent?
    pub agent: bool,
    /// Has it a TPM?
    pub tpm: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Target, such as `vda`.
    pub target: String,
    /// `disk`, `cdrom`, `floppy` or `lun`.
    pub device: String,
    /// Format, if libvirt knows one.
    pub format: Option<String>,
    /// Path, if it is a file or block device.
    pub source: Option<String>,
    /// Virtual size in bytes, if libvirt can tell.
    pub size: Option<u64>,
}

/// Asks libvirt.
pub fn collect() -> Result<Inventory> {
    let connect = Connect::open(agent::URI)?;
    let mut domains = connect
        .domains()?
        .iter()
        .map(|domain| {
            let view = DomainView::parse(&domain.xml(XmlFlags::default())?)?;
            let efi = view.nvram.is_some() || view.firmware.as_deref() == Some("efi");
            Ok(Domain {
                name: domain.name().into(),
                uuid: domain.uuid().into(),
                state: domain.state()?.to_string(),
                persistent: domain.is_persistent()?,
                firmware: if efi { "efi" } else { "bios" }.into(),
                agent: view.agent,
                tpm: view.tpm.is_some(),
                disks: view
                    .disks
                    .iter()
                    .map(|disk| Disk {
                        target: disk.target.clone(),
                        device: disk.device.clone(),
                        format: disk.format.clone(),
                        source: disk.source.path().map(str::to_owned),
                        size: domain
                            .block_info(&disk.target)
                            .ok()
                            .map(|info| info.capacity_bytes),
                    })
                    .collect(),
            })
        })
        .collect::<Result<Vec<Domain>>>()?;
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Inventory {
        version: 1,
        hypervisor: connect.hostname()?,
        libvirt: connect.lib_version()?.to_string(),
        domains,
    })
}

impl Inventory {
    /// As JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self)
            .expect("an inventory is plain data and always serialises")
    }
}
