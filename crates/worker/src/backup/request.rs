//! What libvirt is asked for.

use anyhow::Result;
use libvirt::XmlFlags;
use libvirt::xml::{BackupDisk, BackupRead, DiskSource, DomainView, backup_xml};

use super::Ready;

/// The XML of the backup job.
pub(super) fn xml(ready: &Ready<'_>) -> Result<String> {
    let mut disks: Vec<BackupDisk<'_>> = Vec::new();
    for (disk, scratch) in ready.disks.iter().zip(&ready.scratches) {
        let read = BackupRead {
            scratch,
            export: &disk.target,
            since: None,
            bitmap: "",
        };
        disks.push(BackupDisk {
            target: &disk.target,
            read: Some(read),
        });
    }
    // What the domain has besides must be named, or libvirt decides about it.
    let view = DomainView::parse(&ready.domain.xml(XmlFlags::default())?)?;
    let others: Vec<String> = view
        .disks
        .iter()
        .filter(|disk| {
            ready
                .disks
                .iter()
                .all(|chosen| chosen.target != disk.target)
        })
        .filter(|disk| disk.source != DiskSource::Empty)
        .map(|disk| disk.target.clone())
        .collect();
    disks.extend(
        others
            .iter()
            .map(|target| BackupDisk { target, read: None }),
    );
    Ok(backup_xml(&ready.socket, &disks)?)
}
