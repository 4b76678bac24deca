//! Reading domain XML.

use roxmltree::Node;

use super::disk::{Disk, SecretRef, read_all, secrets};
use super::{XmlError, attr, child, children, descend, missing, parse, text};

/// Name of the channel that the guest agent listens on.
const AGENT: &str = "org.qemu.guest_agent.0";

/// What lab-backup wants to know of a domain's XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainView {
    /// Name.
    pub name: String,
    /// UUID, if it has one yet.
    pub uuid: Option<String>,
    /// Number of the running domain; only live XML has one.
    pub id: Option<u32>,
    /// Such as `kvm` or `qemu`.
    pub kind: Option<String>,
    /// Title for people.
    pub title: Option<String>,
    /// Has it application metadata?
    pub metadata: bool,
    /// Largest memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Machine type, such as `pc-q35-9.1`.
    pub machine: Option<String>,
    /// How the processor is chosen, such as `host-passthrough`.
    pub cpu_mode: Option<String>,
    /// `bios` or `efi` if libvirt chooses the firmware itself.
    pub firmware: Option<String>,
    /// Firmware image.
    pub loader: Option<Loader>,
    /// Firmware variables.
    pub nvram: Option<Nvram>,
    /// Kernel booted directly.
    pub kernel: Option<String>,
    /// Its initial RAM disk.
    pub initrd: Option<String>,
    /// Its command line.
    pub cmdline: Option<String>,
    /// Every disk, in the order of the XML.
    pub disks: Vec<Disk>,
    /// Every network card, in the order of the XML. [`super::Edits`] counts them the same way.
    pub interfaces: Vec<Interface>,
    /// Trusted platform module.
    pub tpm: Option<Tpm>,
    /// Has it a channel for the guest agent?
    pub agent: bool,
    /// Does the agent have it open? Only live XML says so.
    pub agent_connected: Option<bool>,
    /// Files that serial ports, consoles and channels write to, logs included, and sockets that
    /// somebody chose for QEMU to listen on. Two domains that name the same one take it from each
    /// other. Sockets that libvirt chose are not among them.
    pub console_files: Vec<String>,
    /// Every secret it needs.
    pub secrets: Vec<SecretRef>,
    /// Every virtual network it is plugged into.
    pub networks: Vec<String>,
    /// Every storage pool its disks are in.
    pub pools: Vec<String>,
    /// Every network filter it uses.
    pub filters: Vec<String>,
    /// Kind of every device of the host that is passed through, such as `pci`.
    pub hostdevs: Vec<String>,
    /// Every directory of the host that the guest shares. Their content is no disk.
    pub shared_dirs: Vec<String>,
}

/// A firmware image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    /// Its path, if libvirt has chosen one.
    pub path: Option<String>,
    /// `rom` or `pflash`.
    pub kind: Option<String>,
    /// Does it enforce secure boot?
    pub secure: bool,
}

/// Firmware variables of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvram {
    /// Their path, if libvirt has chosen one and they are a file or block device.
    pub path: Option<String>,
    /// The file they were copied from.
    pub template: Option<String>,
    /// Their format; none means raw.
    pub format: Option<String>,
    /// Format of the template.
    pub template_format: Option<String>,
}

/// A trusted platform module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// Such as `tpm-crb`.
    pub model: Option<String>,
    /// `emulator`, `passthrough` or `external`.
    pub kind: Option<String>,
    /// `1.2` or `2.0`.
    pub version: Option<String>,
    /// Is the state kept when the domain is undefined by itself?
    pub persistent_state: bool,
    /// Where somebody put the state of an emulated one; none means where libvirt keeps it.
    pub source: Option<TpmSource>,
}

/// Where the state of a TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmSource {
    /// In the files of a directory.
    Dir(String),
    /// In one file, or in another way.
    Other(String),
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Such as `network` or `bridge`.
    pub kind: Option<String>,
    /// Its address.
    pub mac: Option<String>,
    /// Network, bridge or device that it is plugged into.
    pub source: Option<String>,
    /// Such as `virtio`.
    pub model: Option<String>,
    /// Is its link down?
    pub link_down: bool,
}

impl DomainView {
    /// Reads a domain's XML, live or inactive.
    pub fn parse(xml: &str) -> Result<Self, XmlError> {
        let doc = parse(xml, "domain")?;
        let root = doc.root_element();
        let name = child(root, "name")
            .map(text)
            .ok_or_else(|| missing("name"))?;
        let get = |path: &[&str]| descend(root, path).map(text);
        let at = |path: &[&str], key| descend(root, path).and_then(|node| attr(node, key));
        let devices = |kind: &'static str| {
            child(root, "devices")
                .into_iter()
                .flat_map(move |devices| children(devices, kind))
        };
        let agent = devices("channel")
            .filter_map(|channel| child(channel, "target"))
            .find(|target| target.attribute("name") == Some(AGENT));
        let disks = read_all(root)?;
        let mut pools: Vec<String> = disks.iter().filter_map(pool).collect();
        let mut networks: Vec<String> = devices("interface").filter_map(network).collect();
        let mut filters: Vec<String> = devices("interface")
            .filter_map(|i| child(i, "filterref").and_then(|f| attr(f, "filter")))
            .collect();
        let mut secrets = secrets(root);
        for list in [&mut pools, &mut networks, &mut filters] {
            list.sort();
            list.dedup();
        }
        secrets.sort();
        secrets.dedup();
        Ok(Self {
            name,
            uuid: get(&["uuid"]),
            id: root.attribute("id").and_then(|id| id.parse().ok()),
            kind: attr(root, "type"),
            title: get(&["title"]),
            metadata: child(root, "metadata").is_some(),
            memory_bytes: child(root, "memory").and_then(bytes),
            arch: at(&["os", "type"], "arch"),
            machine: at(&["os", "type"], "machine"),
            cpu_mode: at(&["cpu"], "mode"),
            firmware: at(&["os"], "firmware"),
            loader: descend(root, &["os", "loader"]).map(|loader| Loader {
                path: Some(text(loader)).filter(|path| !path.is_empty()),
                kind: attr(loader, "type"),
                secure: loader.attribute("secure") == Some("yes"),
            }),
            nvram: descend(root, &["os", "nvram"]).map(read_nvram),
            kernel: get(&["os", "kernel"]),
            initrd: get(&["os", "initrd"]),
            cmdline: get(&["os", "cmdline"]),
            interfaces: devices("interface").map(read_interface).collect(),
            tpm: devices("tpm").next().map(read_tpm),
            agent: agent.is_some(),
            agent_connected: agent
                .and_then(|target| target.attribute("state"))
                .map(|state| state == "connected"),
            console_files: console_files(root)
                .filter_map(|(node, key)| attr(node, key))
                .collect(),
            secrets,
            networks,
            pools,
            filters,
            hostdevs: devices("hostdev").filter_map(hostdev).collect(),
            shared_dirs: devices("filesystem")
                .filter_map(|fs| child(fs, "source").and_then(|source| attr(source, "dir")))
                .collect(),
            disks,
        })
    }

    /// The disk of a target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// Where libvirt puts channel sockets when it chooses their path.
const CHANNEL_DIRS: [&str; 3] = [
    "/run/libvirt/qemu/channel/",
    "/var/run/libvirt/qemu/channel/",
    "/var/lib/libvirt/qemu/channel/target/",
];

/// Did libvirt choose the path of this socket, and will it choose again for another domain?
pub(super) fn is_libvirts(socket: &str) -> bool {
    CHANNEL_DIRS.iter().any(|dir| socket.starts_with(dir))
}

/// Every attribute that names a file which a character device writes to or listens on.
pub(super) fn console_files<'a, 'i: 'a>(
    domain: Node<'a, 'i>,
) -> impl Iterator<Item = (Node<'a, 'i>, &'static str)> {
    let devices = child(domain, "devices")
        .into_iter()
        .flat_map(|devices| devices.children());
    let ports = devices.filter(|n| {
        n.tag_name().namespace().is_none()
            && ["serial", "parallel", "console", "channel"].contains(&n.tag_name().name())
    });
    ports.flat_map(|port| {
        let kind = port.attribute("type");
        let source = child(port, "source")
            .filter(|source| match kind {
                Some("file") => true,
                Some("unix") => {
                    source.attribute("mode") == Some("bind")
                        && !source.attribute("path").is_some_and(is_libvirts)
                }
                _ => false,
            })
            .map(|source| (source, "path"));
        let log = child(port, "log").map(|log| (log, "file"));
        source
            .into_iter()
            .chain(log)
            .filter(|(node, key)| node.has_attribute(*key))
    })
}

fn read_nvram(nvram: Node) -> Nvram {
    let source = child(nvram, "source");
    let path = match source {
        Some(source) => attr(source, "file").or_else(|| attr(source, "dev")),
        None => Some(text(nvram)),
    };
    Nvram {
        path: path.map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()),
        template: attr(nvram, "template"),
        format: attr(nvram, "format"),
        template_format: attr(nvram, "templateFormat"),
    }
}

fn read_interface(interface: Node) -> Interface {
    let get = |name, key| child(interface, name).and_then(|node| attr(node, key));
    Interface {
        kind: attr(interface, "type"),
        mac: get("mac", "address"),
        source: ["network", "bridge", "dev"]
            .into_iter()
            .find_map(|key| get("source", key)),
        model: get("model", "type"),
        link_down: get("link", "state").as_deref() == Some("down"),
    }
}

fn read_tpm(tpm: Node) -> Tpm {
    let backend = child(tpm, "backend");
    let get = |key| backend.and_then(|backend| attr(backend, key));
    Tpm {
        model: attr(tpm, "model"),
        kind: get("type"),
        version: get("version"),
        persistent_state: get("persistent_state").as_deref() == Some("yes"),
        source: backend
            .and_then(|backend| child(backend, "source"))
            .map(|source| {
                let path = attr(source, "path").unwrap_or_default();
                match source.attribute("type") {
                    Some("dir") => TpmSource::Dir(path),
                    _ => TpmSource::Other(path),
                }
            }),
    }
}

fn pool(disk: &Disk) -> Option<String> {
    match &disk.source {
        super::DiskSource::Volume { pool, .. } => Some(pool.clone()),
        _ => None,
    }
}

fn network(interface: Node) -> Option<String> {
    child(interface, "source").and_then(|source| attr(source, "network"))
}

/// Such as `pci`; a mediated or SCSI host device calls it by the second name.
fn hostdev(hostdev: Node) -> Option<String> {
    attr(hostdev, "type")
}

/// A size with libvirt's units.
fn bytes(node: Node) -> Option<u64> {
    let number: u64 = text(node).trim().parse().ok()?;
    let unit: u64 = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}
