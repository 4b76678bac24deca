//! Disks in domain XML.

use roxmltree::Node;

use super::{XmlError, attr, child, children, missing, text};

/// Where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// In a file.
    File(String),
    /// On a block device.
    Block(String),
    /// In a volume of a storage pool.
    Volume {
        /// Name of the pool.
        pool: String,
        /// Name of the volume.
        volume: String,
    },
    /// Behind a network protocol.
    Network {
        /// Such as `nbd` or `rbd`.
        protocol: String,
    },
    /// A tray without a medium, or a disk without a source.
    Empty,
    /// Something else, such as `vhostuser`, `nvme` or `dir`.
    Other(String),
}

impl DiskSource {
    /// Path on this host, if it is a file or a block device.
    pub fn path(&self) -> Option<&str> {
        match self {
            DiskSource::File(path) | DiskSource::Block(path) => Some(path),
            _ => None,
        }
    }
}

/// An image below a disk's active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its format, such as `raw`.
    pub format: Option<String>,
    /// Where it is.
    pub source: DiskSource,
}

/// How a domain names a secret that it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretRef {
    /// By UUID.
    pub uuid: Option<String>,
    /// By what it is for.
    pub usage: Option<String>,
    /// Such as `ceph` or `passphrase`.
    pub kind: Option<String>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Target, such as `vda`: unique in the domain.
    pub target: String,
    /// Bus, such as `virtio`.
    pub bus: Option<String>,
    /// `disk`, `cdrom`, `floppy` or `lun`.
    pub device: String,
    /// Format, such as `qcow2`. None means that libvirt says nothing, which it treats as raw.
    pub format: Option<String>,
    /// Where its content is.
    pub source: DiskSource,
    /// Index of its active image in the running domain.
    pub index: Option<u32>,
    /// The guest cannot write.
    pub readonly: bool,
    /// Several domains may write at once.
    pub shareable: bool,
    /// Writes are thrown away when the domain stops.
    pub transient: bool,
    /// The images below the active one that the XML names, the nearest first.
    pub backing: Vec<Backing>,
    /// A start goes on without it when its source is missing.
    pub optional: bool,
    /// Serial number.
    pub serial: Option<String>,
    /// The guest's data is in a second file beside the qcow2 one.
    pub data_store: bool,
    /// Only a slice of the image is the disk.
    pub slices: bool,
    /// Secrets that the disk needs.
    pub secrets: Vec<SecretRef>,
    /// The image is encrypted.
    pub encrypted: bool,
    /// A copy or commit of it is running.
    pub mirror: bool,
}

impl Disk {
    /// Reads a `<disk>`. One without a target is an error: it must not get lost.
    pub(super) fn read(disk: Node) -> Result<Self, XmlError> {
        let target = child(disk, "target").ok_or_else(|| missing("target of a disk"))?;
        let driver = child(disk, "driver");
        let source = child(disk, "source");
        let inside = |name| {
            source
                .and_then(|s| child(s, name))
                .or_else(|| child(disk, name))
        };
        Ok(Self {
            target: attr(target, "dev").ok_or_else(|| missing("target of a disk"))?,
            bus: attr(target, "bus"),
            device: attr(disk, "device").unwrap_or_else(|| "disk".into()),
            format: driver.and_then(|d| attr(d, "type")),
            source: read_source(disk.attribute("type").unwrap_or("file"), source),
            index: source.and_then(|s| s.attribute("index")?.parse().ok()),
            readonly: child(disk, "readonly").is_some(),
            shareable: child(disk, "shareable").is_some(),
            transient: child(disk, "transient").is_some(),
            backing: backing(disk),
            optional: source.and_then(|s| s.attribute("startupPolicy")) == Some("optional"),
            serial: child(disk, "serial").map(text),
            data_store: source.and_then(|s| child(s, "dataStore")).is_some(),
            slices: source.and_then(|s| child(s, "slices")).is_some(),
            secrets: secrets(disk),
            encrypted: inside("encryption").is_some(),
            mirror: child(disk, "mirror").is_some(),
        })
    }
}

fn read_source(kind: &str, source: Option<Node>) -> DiskSource {
    let Some(source) = source else {
        return DiskSource::Empty;
    };
    let get = |name| attr(source, name);
    let found = match kind {
        "file" => get("file").map(DiskSource::File),
        "block" => get("dev").map(DiskSource::Block),
        "volume" => get("pool")
            .zip(get("volume"))
            .map(|(pool, volume)| DiskSource::Volume { pool, volume }),
        "network" => get("protocol").map(|protocol| DiskSource::Network { protocol }),
        other => Some(DiskSource::Other(other.into())),
    };
    found.unwrap_or(DiskSource::Empty)
}

/// `<backingStore>` nests, and ends with an empty one.
fn backing(disk: Node) -> Vec<Backing> {
    let below = |node: Node<'_, '_>| child(node, "backingStore").map(|n| n.id());
    let mut found = Vec::new();
    let mut next = below(disk);
    while let Some(node) = next.and_then(|id| disk.document().get_node(id)) {
        let Some(source) = child(node, "source") else {
            break;
        };
        found.push(Backing {
            format: child(node, "format").and_then(|format| attr(format, "type")),
            source: read_source(node.attribute("type").unwrap_or("file"), Some(source)),
        });
        next = below(node);
    }
    found
}

/// Every secret that is named below a node.
pub(super) fn secrets(node: Node) -> Vec<SecretRef> {
    let below = node
        .descendants()
        .filter(|n| n.tag_name().namespace().is_none());
    below
        .filter_map(|n| match n.tag_name().name() {
            "secret" => Some(SecretRef {
                uuid: attr(n, "uuid"),
                usage: attr(n, "usage"),
                kind: attr(n, "type"),
            }),
            // A TPM names its secret like this.
            "encryption" => attr(n, "secret").map(|uuid| SecretRef {
                uuid: Some(uuid),
                usage: None,
                kind: Some("vtpm".into()),
            }),
            _ => None,
        })
        .filter(|secret| secret.uuid.is_some() || secret.usage.is_some())
        .collect()
}

/// Every disk of a domain.
pub(super) fn read_all(domain: Node) -> Result<Vec<Disk>, XmlError> {
    let devices = child(domain, "devices");
    devices
        .into_iter()
        .flat_map(|devices| children(devices, "disk"))
        .map(Disk::read)
        .collect()
}
