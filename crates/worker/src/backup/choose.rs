//! Which disks a backup holds, and why the others are not in it.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use libvirt::xml::{Disk, DiskSource, DomainView};

use crate::manifest::{Below, LeftOut};

/// A disk that the backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Target, such as `vda`; checked to be fit for a file name.
    pub(super) target: String,
    /// `qcow2` or `raw`.
    pub(super) format: String,
    /// The image.
    pub(super) source: PathBuf,
    /// The images below it that libvirt names.
    pub(super) chain: Vec<Below>,
    /// A block device rather than a file?
    pub(super) block: bool,
}

/// Sorts a domain's disks into those that are backed up and those that are not.
///
/// # Errors
/// A disk can be neither backed up nor left out in good conscience: the admin must exclude it.
pub(super) fn choose(
    vm: &str,
    view: &DomainView,
    exclude: &[String],
    volume: &VolumePath<'_>,
) -> Result<(Vec<Chosen>, Vec<LeftOut>)> {
    let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
    for disk in &view.disks {
        match judge(disk, exclude, volume) {
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

/// Tells where a volume of a pool is.
pub(super) type VolumePath<'a> = dyn Fn(&str, &str) -> Result<String, String> + 'a;

enum Verdict {
    Take(Chosen),
    Leave(String),
    Refuse(String),
}

fn judge(disk: &Disk, exclude: &[String], volume: &VolumePath<'_>) -> Verdict {
    let leave = |reason: &str| Verdict::Leave(reason.into());
    if exclude.contains(&disk.target) {
        return leave("excluded in lab.toml");
    }
    match disk.device.as_str() {
        "disk" => {}
        "cdrom" | "floppy" => return leave("removable medium"),
        "lun" => {
            return Verdict::Refuse("is a device of the host, passed through as lun".into());
        }
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
        DiskSource::File(path) => (path.clone(), false),
        DiskSource::Block(path) => (path.clone(), true),
        DiskSource::Empty => return leave("no medium"),
        DiskSource::Volume { pool, volume: name } => match volume(pool, name) {
            Ok(path) => {
                let block = is_device(Path::new(&path));
                (path, block)
            }
            Err(why) => {
                return Verdict::Refuse(format!(
                    "is volume {name} of pool {pool}, and libvirt cannot tell its path: {why}"
                ));
            }
        },
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
            !Path::new(&source).is_absolute(),
            "has a source that is no absolute path",
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
        chain: chain(disk),
        block,
    })
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|facts| facts.file_type().is_block_device())
}

/// What libvirt knows to be below a disk's image.
fn chain(disk: &Disk) -> Vec<Below> {
    let below = disk.backing.iter();
    below
        .map(|image| Below {
            path: match &image.source {
                DiskSource::File(path) | DiskSource::Block(path) => path.into(),
                DiskSource::Volume { pool, volume } => format!("{pool}/{volume}").into(),
                DiskSource::Network { protocol } => format!("({protocol})").into(),
                DiskSource::Empty | DiskSource::Other(_) => "(unknown)".into(),
            },
            format: image.format.clone().unwrap_or_else(|| "raw".into()),
        })
        .collect()
}

/// Fit for a file name and an export name.
fn is_plain(target: &str) -> bool {
    (1..=16).contains(&target.len()) && target.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = include_str!("../../../libvirt/tests/domains/everything.xml");

    /// What becomes of one disk when all others are excluded.
    fn one(target: &str) -> Result<(Vec<Chosen>, Vec<LeftOut>)> {
        let view = DomainView::parse(XML).unwrap();
        let others = view.disks.iter().map(|disk| disk.target.clone());
        let exclude: Vec<String> = others.filter(|other| other != target).collect();
        choose("web01", &view, &exclude, &|pool, volume| match pool {
            "fast" => Ok(format!("/pools/fast/{volume}")),
            _ => Err("no".into()),
        })
    }

    #[test]
    fn a_linked_clone_is_taken_with_its_chain() {
        let (chosen, left_out) = one("vda").unwrap();
        assert_eq!(left_out.len(), 8);
        let below: Vec<&str> = chosen[0].chain.iter().map(|b| b.format.as_str()).collect();
        assert_eq!(below, ["qcow2", "raw"]);
        assert_eq!(
            chosen[0].chain[1].path,
            Path::new("/var/lib/libvirt/images/base.raw")
        );
        assert!(one("vdb").unwrap().0[0].block);
    }

    #[test]
    fn what_cannot_be_backed_up_is_refused_or_listed_with_its_reason() {
        for (target, why) in [
            ("vdc", "no disk to back up"),
            ("vdd", "no disk to back up"),
            ("vde", "encrypted"),
            ("vdg", "vhostuser"),
            ("sda", "no disk to back up"),
        ] {
            let error = one(target).unwrap_err().to_string();
            assert!(error.contains(why), "{target}: {error}");
        }
    }

    #[test]
    fn a_volume_is_taken_where_libvirt_says_it_is() {
        let with = |pool: &str| {
            let xml = format!(
                "<domain><name>a</name><devices><disk type='volume' device='disk'><driver type='qcow2'/>\
                <source pool='{pool}' volume='v'/><target dev='vda'/></disk></devices></domain>"
            );
            let view = DomainView::parse(&xml).unwrap();
            choose("web01", &view, &[], &|pool, volume| match pool {
                "fast" => Ok(format!("/pools/fast/{volume}")),
                _ => Err("it is not active".into()),
            })
        };
        assert_eq!(
            with("fast").unwrap().0[0].source,
            Path::new("/pools/fast/v")
        );
        let error = with("slow").unwrap_err().to_string();
        assert!(
            error.contains("it is not active") && error.contains("exclude"),
            "{error}"
        );
    }
}
