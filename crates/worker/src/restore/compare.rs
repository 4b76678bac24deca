//! Is the restored definition the stored one? Every line that differs is explained or warned about.

use libvirt::xml::{Difference, DomainView, differences};

use super::target::Machine;
use crate::session::Line;

/// Most differences that are written to the job log.
const MAX_LINES: usize = 100;

/// Why a fact differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It was true of the running machine only.
    Running(&'static str),
    /// The restore changed it on purpose.
    Restored(&'static str),
    /// Nobody knows.
    Unexplained,
}

/// The definition that is restored: the stored one, unless the machine ran with something else, such as
/// a disk that was plugged in. Then it comes back as it ran.
pub(super) fn base<'a>(line: &Line, vm: &str, live: &'a str, stored: Option<&'a str>) -> &'a str {
    let Some(stored) = stored else {
        return live;
    };
    let Ok(found) = differences(live, stored) else {
        return live;
    };
    let cpu = DomainView::parse(stored)
        .ok()
        .and_then(|view| view.cpu_mode);
    let real: Vec<&Difference> = found
        .iter()
        .filter(|difference| running(difference, cpu.as_deref()).is_none())
        .collect();
    match real.first() {
        None => stored,
        Some(first) => {
            line.info(format!(
                "{vm}: restored as it ran, which was not as it was stored: {} differences, the first: {first}; \
                 domain-inactive.xml of the backup has the stored definition",
                real.len()
            ));
            live
        }
    }
}

/// Compares the definition that was restored with what libvirt says of it now.
pub(super) fn report(line: &Line, vm: &str, machine: &Machine, base: &str, now: &str) {
    let found = match differences(base, now) {
        Ok(found) => found,
        Err(e) => return line.warn(format!("{vm}: the definition cannot be compared: {e}")),
    };
    if found.is_empty() {
        return line.info(format!("{vm}: definition: as backed up"));
    }
    let cpu = DomainView::parse(now).ok().and_then(|view| view.cpu_mode);
    for difference in found.iter().take(MAX_LINES) {
        match reason(difference, machine, cpu.as_deref()) {
            Reason::Running(why) => line.info(format!(
                "{vm}: definition: {difference} (only of the running machine: {why})"
            )),
            Reason::Restored(why) => line.info(format!("{vm}: definition: {difference} ({why})")),
            Reason::Unexplained => {
                line.warn(format!("{vm}: definition: {difference} (unexplained)"))
            }
        }
    }
    if let Some(more) = found.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        line.warn(format!("{vm}: definition: {more} more differences"));
    }
}

fn reason(difference: &Difference, machine: &Machine, cpu: Option<&str>) -> Reason {
    if let Some(why) = restored(difference, machine) {
        return Reason::Restored(why);
    }
    running(difference, cpu).map_or(Reason::Unexplained, Reason::Running)
}

/// A path such as `devices/disk[vda]/source@file` taken apart.
struct Place<'a> {
    /// Such as `devices/disk[vda]/source`.
    element: &'a str,
    /// Such as `source`, without what counts it.
    leaf: &'a str,
    /// Empty for text.
    attribute: &'a str,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Self {
        let (element, attribute) = path.rsplit_once('@').unwrap_or((path, ""));
        let leaf = element.rsplit('/').next().unwrap_or_default();
        let leaf = leaf.split(['#', '[']).next().unwrap_or_default();
        Self {
            element,
            leaf,
            attribute,
        }
    }

    fn is_in(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.element.starts_with(part))
    }
}

/// Character devices, whose ends libvirt chooses while a machine runs.
const PORTS: [&str; 4] = [
    "devices/serial",
    "devices/parallel",
    "devices/console",
    "devices/channel",
];

/// Why a fact is of the running machine only, if it is. `cpu` is how the stored definition chooses the
/// processor.
fn running(difference: &Difference, cpu: Option<&str>) -> Option<&'static str> {
    let place = Place::of(&difference.path);
    let (before, after) = (difference.before.as_deref(), difference.after.as_deref());
    let gone = after.is_none();
    let found = match (place.leaf, place.attribute) {
        ("", "id") => Some("its number"),
        ("alias", "name") if gone => Some("libvirt's names of devices"),
        ("partition", "") if gone && place.is_in(&["resource"]) => Some("its control group"),
        _ if gone && place.is_in(&["seclabel"]) => Some("labels of its process"),
        ("currentMemory", "") => Some("what the balloon left it"),
        ("source", "index") if gone => Some("libvirt's numbers of images"),
        _ if gone && place.element.contains("/backingStore") => {
            Some("what libvirt found below an image")
        }
        _ if gone && place.element.contains("/dataStore") => {
            Some("what libvirt found beside an image")
        }
        _ if gone && place.is_in(&["devices/disk"]) && place.element.contains("/mirror") => {
            Some("a block job")
        }
        ("source", "file")
            if before.zip(after).is_some_and(|(before, after)| {
                before
                    .strip_prefix(after)
                    .is_some_and(|end| end.starts_with(".TRANSIENT"))
            }) =>
        {
            Some("where writes of a transient disk go")
        }
        ("target", "dev") if gone && place.is_in(&["devices/interface"]) => {
            Some("the host's end of a network card")
        }
        ("source", "portid" | "bridge" | "dev" | "mode")
            if gone && place.is_in(&["devices/interface"]) =>
        {
            Some("how a network is reached")
        }
        ("interface", "type") if after == Some("network") => Some("how a network is reached"),
        (_, "port" | "tlsPort" | "websocket" | "socket")
            if place.is_in(&["devices/graphics"]) && matches!(after, None | Some("-1")) =>
        {
            Some("the port of a display")
        }
        ("graphics", "listen") | ("listen", "address")
            if gone && place.is_in(&["devices/graphics"]) =>
        {
            Some("where this host lets displays listen")
        }
        ("target", "state") if gone && place.is_in(&PORTS) => Some("is somebody connected"),
        ("source", "path" | "mode") if gone && place.is_in(&PORTS) => {
            Some("the host's end of a port")
        }
        (_, "tty") if gone && place.is_in(&PORTS) => Some("the host's end of a port"),
        ("cid", "address") if place.is_in(&["devices/vsock"]) => Some("the address that it got"),
        _ if gone && place.is_in(&["devices/tpm/backend/profile"]) => Some("what swtpm chose"),
        _ => None,
    };
    found.or_else(|| processor(difference, &place, cpu))
}

/// What becomes of a processor when a machine starts.
fn processor(
    difference: &Difference,
    place: &Place<'_>,
    cpu: Option<&str>,
) -> Option<&'static str> {
    if place.element != "cpu" && !place.element.starts_with("cpu/") {
        return None;
    }
    let added =
        difference.after.is_none() && ["feature", "vendor", "maxphysaddr"].contains(&place.leaf);
    match (place.element, place.attribute) {
        _ if cpu == Some("host-model") => Some("what host-model came to on that host"),
        ("cpu", "check") => Some("how strictly it was checked"),
        _ if added => Some("features that QEMU reported"),
        _ => None,
    }
}

/// Why the restore changed a fact, if it did.
fn restored(difference: &Difference, machine: &Machine) -> Option<&'static str> {
    let place = Place::of(&difference.path);
    let disk = place
        .element
        .strip_prefix("devices/disk[")
        .and_then(|rest| rest.split_once(']'));
    if let Some((target, below)) = disk {
        return of_disk(target, below, &place, difference, machine);
    }
    match (place.element, place.leaf, place.attribute) {
        ("name", _, "") if machine.renamed => Some("its new name"),
        ("uuid", _, "") if machine.renamed => Some("its new UUID"),
        (element, "entry", _) if machine.renamed && element.starts_with("sysinfo/system") => {
            Some("its new UUID")
        }
        (_, "mac", "address") if place.is_in(&["devices/interface"]) => {
            (machine.renamed || !machine.macs.is_empty()).then_some("its new MAC address")
        }
        (_, "link", "state") if place.is_in(&["devices/interface"]) => machine
            .isolated
            .then_some("not plugged in unless asked for"),
        ("os/nvram" | "os/nvram/source", _, "" | "file" | "dev") => machine
            .nvram
            .is_some()
            .then_some("where its UEFI variables are now"),
        ("os/kernel" | "os/initrd", leaf, "") => {
            let ours = machine
                .boot
                .iter()
                .any(|boot| boot.ours && boot.file == leaf);
            ours.then_some("where the file from the backup is")
        }
        (_, "source", "path") | (_, "log", "file")
            if machine.renamed && difference.after.is_some() && place.is_in(&PORTS) =>
        {
            Some("a file of its own")
        }
        (element, ..) if element.starts_with("devices/tpm/backend/source") => {
            let moved = machine.tpm.as_ref().is_some_and(|tpm| tpm.moved);
            moved.then_some("a TPM state of its own, where libvirt keeps it")
        }
        _ => None,
    }
}

fn of_disk(
    target: &str,
    below: &str,
    place: &Place<'_>,
    difference: &Difference,
    machine: &Machine,
) -> Option<&'static str> {
    if !machine.images.contains_key(target) {
        let gone = difference.after.is_none();
        return (machine.renamed && gone)
            .then_some("not in the backup, and a new VM shares nothing");
    }
    match (below, place.attribute) {
        ("", "type") | ("/driver", "type") => Some("its image now"),
        _ if ["/source", "/backingStore", "/auth", "/encryption"]
            .iter()
            .any(|part| below.starts_with(part)) =>
        {
            Some("its image now")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use libvirt::Connect;

    use super::super::machine;
    use super::super::sink::Kind;
    use super::super::state::NvramFile;
    use super::*;
    use crate::session::Session;

    const STORED: &str = "<domain type='kvm'><name>a</name><memory>5</memory><currentMemory>5</currentMemory>
        <cpu mode='host-model' check='partial'/><devices>
        <disk type='file' device='disk'><source file='/i/a.qcow2'/><target dev='vda'/></disk>
        <disk type='file' device='disk'><source file='/i/t.qcow2'/><target dev='vdb'/><transient/></disk>
        <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
        <graphics type='vnc' port='-1' autoport='yes'><listen type='address'/></graphics><serial type='pty'><target port='0'/></serial>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";
    const LIVE: &str = "<domain type='kvm' id='7'><name>a</name><memory>5</memory><currentMemory>4</currentMemory>
        <resource><partition>/machine</partition></resource>
        <cpu mode='custom' match='exact' check='full'><model>x</model><feature policy='require' name='y'/></cpu><devices>
        <disk type='file' device='disk'><source file='/i/a.qcow2' index='3'/><backingStore type='file' index='4'>
          <format type='raw'/><source file='/i/b.raw'/><backingStore/></backingStore><target dev='vda'/><alias name='d0'/></disk>
        <disk type='file' device='disk'><source file='/i/t.qcow2.TRANSIENT-a' index='1'/><target dev='vdb'/><transient/></disk>
        <interface type='network'><mac address='52:54:00:00:00:01'/><target dev='vnet0'/>
          <source network='default' portid='p' bridge='virbr0'/></interface>
        <graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
        <serial type='pty'><source path='/dev/pts/1'/><target port='0'/></serial>
        <channel type='unix'><source mode='bind' path='/run/x'/>
          <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel></devices>
        <seclabel type='dynamic' model='dac' relabel='yes'><label>+1:+1</label></seclabel></domain>";

    fn unexplained(live: &str, stored: &str) -> Vec<String> {
        let cpu = DomainView::parse(stored).unwrap().cpu_mode;
        let found = differences(live, stored).unwrap();
        let left = found
            .iter()
            .filter(|difference| running(difference, cpu.as_deref()).is_none());
        left.map(ToString::to_string).collect()
    }

    #[test]
    fn what_a_start_adds_is_no_difference_of_the_definition() {
        assert!(differences(LIVE, STORED).unwrap().len() > 15);
        assert_eq!(unexplained(LIVE, STORED), [""; 0]);
    }

    #[test]
    fn what_was_plugged_in_or_edited_is_one() {
        let plugged = LIVE.replace(
            "<interface",
            "<disk type='file'><source file='/i/c.raw'/><target dev='vdc'/></disk><interface",
        );
        assert!(!unexplained(&plugged, STORED).is_empty());
        for (from, to) in [
            ("<memory>5", "<memory>6"),
            ("/i/a.qcow2'/>", "/i/other.qcow2'/>"),
            ("00:01", "00:02"),
            ("network='default'", "network='other'"),
            ("type='pty'", "type='null'"),
        ] {
            let edited = STORED.replace(from, to);
            assert!(
                edited != STORED && !unexplained(LIVE, &edited).is_empty(),
                "{to}"
            );
        }
        let custom = STORED.replace(
            "mode='host-model' check='partial'/",
            "mode='custom' match='exact'><model>z</model></cpu",
        );
        assert_eq!(
            unexplained(LIVE, &custom),
            ["cpu/model: \"x\" became \"z\""]
        );
    }

    /// A clone of a VM with one of everything, some of its disks in the backup.
    fn clone_of_everything() -> Machine {
        let images = ["vda", "vdb", "vdc", "vde"].map(|target| {
            let path = format!("/images/new-{target}.qcow2");
            (target.to_owned(), (path.into(), Kind::Qcow2))
        });
        Machine {
            name: "new".into(),
            uuid: "00000000-0000-4000-8000-000000000001".into(),
            renamed: true,
            isolated: true,
            macs: Default::default(),
            images: images.into(),
            nvram: Some(NvramFile {
                path: "/nvram/new_VARS.qcow2".into(),
                ids: Default::default(),
            }),
            tpm: None,
            boot: Vec::new(),
            autostart: false,
            start: false,
            connect: Connect::open("test:///default").unwrap(),
        }
    }

    #[test]
    fn every_line_that_a_clone_changes_is_explained() {
        // libvirt gives every network card an address.
        let base = &include_str!("../../../libvirt/tests/domains/everything.xml").replace(
            "<interface type='user'/>",
            "<interface type='user'><mac address='52:54:00:aa:bb:03'/></interface>",
        );
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let session = Session::new(ours).unwrap();
        let mut machine = clone_of_everything();
        let xml = machine::definition(session.line(), "web01", &machine, base).unwrap();
        let found = differences(base, &xml).unwrap();
        assert!(found.len() > 40, "{}", found.len());
        let unexplained = |machine: &Machine| -> Vec<String> {
            let left = found
                .iter()
                .filter(|difference| reason(difference, machine, None) == Reason::Unexplained);
            left.map(ToString::to_string).collect()
        };
        assert_eq!(unexplained(&machine), [""; 0]);
        // Had the restore not meant to change them, they would not be.
        machine.renamed = false;
        machine.isolated = false;
        machine.nvram = None;
        let left = unexplained(&machine).join("\n");
        for part in [
            "name: ",
            "uuid: ",
            "mac@address",
            "link@state",
            "os/nvram",
            "disk[vdd]",
        ] {
            assert!(left.contains(part), "{part} is not in {left}");
        }
    }
}
