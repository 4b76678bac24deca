//! What libvirt is asked for.

use anyhow::Result;
use libvirt::XmlFlags;
use libvirt::xml::{BackupDisk, BackupRead, DiskSource, DomainView, backup_xml};

use super::prepare::{Live, Ready};

/// Name of every dirty bitmap in its export.
pub(super) const BITMAP: &str = "lab-backup";

/// The XML of the backup job; `since` has the checkpoint since which a disk's bitmap is wanted.
pub(super) fn xml(
    ready: &Ready<'_>,
    live: &Live,
    since: &[Option<String>],
    others: &[String],
) -> Result<String> {
    let mut disks: Vec<BackupDisk<'_>> = Vec::new();
    for (at, (disk, scratch)) in ready.disks.iter().zip(&live.scratches).enumerate() {
        let read = BackupRead {
            scratch,
            export: &disk.target,
            since: since.get(at).and_then(Option::as_deref),
            bitmap: BITMAP,
        };
        disks.push(BackupDisk {
            target: &disk.target,
            read: Some(read),
        });
    }
    disks.extend(
        others
            .iter()
            .map(|target| BackupDisk { target, read: None }),
    );
    Ok(backup_xml(&live.socket, &disks)?)
}

/// What the domain has besides: it must be named, or libvirt decides about it.
pub(super) fn others(ready: &Ready<'_>) -> Result<Vec<String>> {
    let view = DomainView::parse(&ready.domain.xml(XmlFlags::default())?)?;
    let others = view.disks.iter().filter(|disk| {
        ready
            .disks
            .iter()
            .all(|chosen| chosen.target != disk.target)
    });
    Ok(others
        .filter(|disk| disk.source != DiskSource::Empty)
        .map(|disk| disk.target.clone())
        .collect())
}
