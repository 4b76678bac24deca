//! Reading the XML of backups and checkpoints.

use super::{XmlError, attr, child, children, descend, missing, parse, text};

/// A running backup, as libvirt describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupView {
    /// Is it in pull mode?
    pub pull: bool,
    /// Path of the Unix socket of its NBD server. A path of ours proves that the job is ours.
    pub socket: Option<String>,
    /// Every disk.
    pub disks: Vec<BackupViewDisk>,
}

/// A disk of a running backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupViewDisk {
    /// Target, such as `vda`.
    pub target: String,
    /// Does it take part?
    pub included: bool,
    /// Name of its NBD export.
    pub export: Option<String>,
    /// Checkpoint since which changes are shown.
    pub since: Option<String>,
    /// Path of its scratch image, or of the target in push mode.
    pub scratch: Option<String>,
    /// Index of that image, for block thresholds: `vda[index]`.
    pub index: Option<u32>,
}

impl BackupView {
    /// Reads a backup's XML.
    pub fn parse(xml: &str) -> Result<Self, XmlError> {
        let doc = parse(xml, "domainbackup")?;
        let root = doc.root_element();
        let disks = child(root, "disks")
            .into_iter()
            .flat_map(|disks| children(disks, "disk"));
        Ok(Self {
            pull: root.attribute("mode") == Some("pull"),
            socket: child(root, "server").and_then(|server| attr(server, "socket")),
            disks: disks
                .map(|disk| {
                    let image = child(disk, "scratch").or_else(|| child(disk, "target"));
                    Ok(BackupViewDisk {
                        target: attr(disk, "name").ok_or_else(|| missing("name of a disk"))?,
                        included: disk.attribute("backup") != Some("no"),
                        export: attr(disk, "exportname"),
                        since: attr(disk, "incremental"),
                        scratch: image.and_then(|i| attr(i, "file").or_else(|| attr(i, "dev"))),
                        index: disk.attribute("index").and_then(|i| i.parse().ok()),
                    })
                })
                .collect::<Result<_, XmlError>>()?,
        })
    }
}

/// A checkpoint, as libvirt describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointView {
    /// Its name.
    pub name: String,
    /// Name of the checkpoint before it.
    pub parent: Option<String>,
    /// When it was made, in seconds since 1970.
    pub creation_time: Option<u64>,
    /// Every disk.
    pub disks: Vec<CheckpointViewDisk>,
}

/// A disk of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointViewDisk {
    /// Target, such as `vda`.
    pub target: String,
    /// Name of its bitmap; none if the disk is left out.
    pub bitmap: Option<String>,
}

impl CheckpointView {
    /// Reads a checkpoint's XML.
    pub fn parse(xml: &str) -> Result<Self, XmlError> {
        let doc = parse(xml, "domaincheckpoint")?;
        let root = doc.root_element();
        let name = child(root, "name")
            .map(text)
            .ok_or_else(|| missing("name"))?;
        let disks = child(root, "disks")
            .into_iter()
            .flat_map(|disks| children(disks, "disk"));
        Ok(Self {
            parent: descend(root, &["parent", "name"]).map(text),
            creation_time: child(root, "creationTime").and_then(|t| text(t).parse().ok()),
            disks: disks
                .map(|disk| {
                    let taken = disk.attribute("checkpoint") == Some("bitmap");
                    Ok(CheckpointViewDisk {
                        target: attr(disk, "name").ok_or_else(|| missing("name of a disk"))?,
                        bitmap: taken.then(|| attr(disk, "bitmap").unwrap_or_else(|| name.clone())),
                    })
                })
                .collect::<Result<_, XmlError>>()?,
            name,
        })
    }
}
