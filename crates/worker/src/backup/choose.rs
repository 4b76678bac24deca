//! Which disks a backup holds, and why the others are not in it.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use libvirt::xml::{Disk, DiskSource, DomainView};

use crate::manifest::LeftOut;

/// A disk that the backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Target, such as `vda`; checked to be fit for a file name.
    pub(super) target: String,
    /// `qcow2` or `raw`.
    pub(super) format: String,
    /// The image.
    pub(super) source: PathBuf,
    /// A block device rather than a file?
    pub(super) block: bool,
}

impl Chosen {
    /// File name in the backup.
    pub(super) fn file(&self) -> String {
        format!("{}.raw", self.target)
    }
}

/// Sorts a domain's disks into those that are backed up and those that are not.
///
/// # Errors
/// A disk can be neither backed up nor left out in good conscience: the admin must exclude it.
pub(super) fn choose(
    vm: &str,
    view: &DomainView,
    exclude: &[String],
) -> Result<(Vec<Chosen>, Vec<LeftOut>)> {
    let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
    for disk in &view.disks {
        match judge(disk, exclude) {
            Verdict::Take(taken) => chosen.push(taken),
            Verdict::Leave(reason) => {
                left_out.push(LeftOut {
                    target: disk.target.clone(),
                    reason,
                });
            }
            Verdict::Refuse(why) => bail!(
                "disk {} of VM {vm} {why}; exclude it with vms.{vm}.exclude in lab.toml, or change it",
                disk.target
            ),
        }
    }
    if let Some(unknown) = exclude
        .iter()
        .find(|t| view.disks.iter().all(|d| d.target != **t))
    {
        // It may have been detached; the next plan shows it.
        left_out.push(LeftOut {
            target: unknown.clone(),
            reason: "excluded, not there".into(),
        });
    }
    ensure!(!chosen.is_empty(), "VM {vm} has no disk to back up");
    Ok((chosen, left_out))
}

enum Verdict {
    Take(Chosen),
    Leave(String),
    Refuse(String),
}

fn judge(disk: &Disk, exclude: &[String]) -> Verdict {
    let leave = |reason: &str| Verdict::Leave(reason.into());
    if exclude.contains(&disk.target) {
        return leave("excluded in lab.toml");
    }
    match disk.device.as_str() {
        "disk" => {}
        "cdrom" | "floppy" => return leave("removable medium"),
        other => return Verdict::Refuse(format!("is a {other}, which cannot be read")),
    }
    if disk.readonly {
        return leave("read-only");
    }
    if disk.transient {
        return leave("transient: its writes are thrown away");
    }
    if disk.shareable {
        return leave("shared between domains");
    }
    let format = disk.format.as_deref().unwrap_or("raw");
    let (source, block) = match &disk.source {
        DiskSource::File(path) => (path, false),
        DiskSource::Block(path) => (path, true),
        DiskSource::Empty => return leave("no medium"),
        DiskSource::Volume { pool, .. } => {
            return Verdict::Refuse(format!(
                "is a volume of pool {pool}, which is not supported"
            ));
        }
        DiskSource::Network { protocol } => {
            return Verdict::Refuse(format!("is on the network ({protocol}), not supported"));
        }
        DiskSource::Other(kind) => return Verdict::Refuse(format!("is of type {kind}")),
    };
    let refusal = [
        (
            !matches!(format, "raw" | "qcow2"),
            "has a format other than raw and qcow2",
        ),
        (
            disk.encrypted,
            "is encrypted by QEMU, which is not supported",
        ),
        (
            disk.data_store,
            "keeps its data in a second file, which is not supported",
        ),
        (
            disk.slices,
            "is a slice of an image, which is not supported",
        ),
        (disk.mirror, "is being copied or committed by somebody else"),
        (!is_plain(&disk.target), "has a target that is not plain"),
    ];
    if let Some((_, why)) = refusal.iter().find(|(refused, _)| *refused) {
        return Verdict::Refuse((*why).into());
    }
    Verdict::Take(Chosen {
        target: disk.target.clone(),
        format: format.into(),
        source: source.into(),
        block,
    })
}

/// Fit for a file name and an export name.
fn is_plain(target: &str) -> bool {
    (1..=16).contains(&target.len()) && target.bytes().all(|b| b.is_ascii_alphanumeric())
}
