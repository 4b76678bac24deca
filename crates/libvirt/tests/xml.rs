//! Domain XML as data that may be anything: what is read, what is refused, and what an edit leaves
//! alone. `domains/everything.xml` has one of everything; it is never tidied.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use libvirt::xml::{DiskSource, DomainView, Edits, MAX_BYTES, MAX_DEPTH, TpmSource, XmlError};
use proptest::prelude::*;

const XML: &str = include_str!("domains/everything.xml");
const HOSTILE: &str = "$(id) \"q\" & <x> 'y'\t-z";

fn view() -> DomainView {
    DomainView::parse(XML).unwrap()
}

#[test]
fn everything_is_read() {
    let view = view();
    assert_eq!(view.name, "web &  \"01\"");
    assert_eq!(
        view.uuid.as_deref(),
        Some("0f0e0d0c-0b0a-4908-8706-050403020100")
    );
    assert_eq!(view.id, Some(7));
    assert_eq!(view.kind.as_deref(), Some("kvm"));
    assert_eq!(view.title.as_deref(), Some("Front\u{a0}door"));
    assert!(view.metadata);
    assert_eq!(view.memory_bytes, Some(2 << 30));
    assert_eq!(view.arch.as_deref(), Some("x86_64"));
    assert_eq!(view.machine.as_deref(), Some("pc-q35-9.1"));
    assert_eq!(view.cpu_mode.as_deref(), Some("host-passthrough"));
    assert_eq!(view.firmware.as_deref(), Some("efi"));
    let loader = view.loader.unwrap();
    assert!(loader.secure && loader.path.unwrap().ends_with("CODE_4M.secboot.qcow2"));
    assert_eq!(loader.kind.as_deref(), Some("pflash"));
    let nvram = view.nvram.unwrap();
    assert_eq!(
        nvram.path.as_deref(),
        Some("/var/lib/libvirt/qemu/nvram/web_VARS.qcow2")
    );
    assert_eq!(nvram.format.as_deref(), Some("qcow2"));
    assert_eq!(nvram.template_format.as_deref(), Some("qcow2"));
    assert!(nvram.template.unwrap().ends_with("VARS_4M.secboot.qcow2"));
    let tpm = view.tpm.unwrap();
    assert_eq!(
        (tpm.model.as_deref(), tpm.kind.as_deref()),
        (Some("tpm-crb"), Some("emulator"))
    );
    assert!(tpm.version.as_deref() == Some("2.0") && tpm.persistent_state);
    assert!(view.agent);
    assert_eq!(view.agent_connected, Some(true));
    let log = "/var/log/guests/web.log";
    assert_eq!(
        view.console_files,
        [log, log, "/var/log/guests/pty.log", "/srv/own.sock"]
    );
    assert_eq!(view.networks, ["lab net"]);
    assert_eq!(view.pools, ["fast"]);
    assert_eq!(view.filters, ["clean-traffic"]);
    assert_eq!(view.hostdevs, ["pci"]);
    assert_eq!(view.shared_dirs, ["/srv/share"]);
    let secrets: Vec<char> = view
        .secrets
        .iter()
        .map(|s| s.uuid.as_ref().unwrap().chars().next().unwrap())
        .collect();
    assert_eq!(secrets, ['1', '2', '4']);
    let cards: Vec<_> = view
        .interfaces
        .iter()
        .map(|i| i.source.as_deref())
        .collect();
    assert_eq!(cards, [Some("lab net"), Some("br0"), None]);
    assert!(view.interfaces.iter().all(|i| !i.link_down));
    assert_eq!((view.kernel, view.initrd, view.cmdline), (None, None, None));
}

#[test]
fn every_disk_is_read_and_none_is_taken_for_another_kind() {
    let view = view();
    let targets: Vec<&str> = view.disks.iter().map(|d| d.target.as_str()).collect();
    assert_eq!(
        targets,
        [
            "vda", "vdb", "vdc", "vdd", "vde", "vdf", "sda", "fda", "vdg"
        ]
    );
    let disk = |target| view.disk(target).unwrap();
    let vda = disk("vda");
    assert_eq!(
        vda.source.path(),
        Some("/var/lib/libvirt/images/web & 01.qcow2")
    );
    assert_eq!((vda.index, vda.backing.len()), (Some(3), 2));
    assert_eq!(vda.backing[1].format.as_deref(), Some("raw"));
    assert_eq!(
        vda.backing[1].source.path(),
        Some("/var/lib/libvirt/images/base.raw")
    );
    assert_eq!(
        (vda.format.as_deref(), vda.bus.as_deref()),
        (Some("qcow2"), Some("virtio"))
    );
    assert_eq!(vda.serial.as_deref(), Some("WEB-0001"));
    assert!(!(vda.readonly || vda.shareable || vda.transient || vda.encrypted || vda.data_store));
    assert_eq!(disk("vdb").source, DiskSource::Block("/dev/vg0/web".into()));
    assert_eq!(
        (disk("vdb").backing.len(), disk("vdb").format.as_deref()),
        (0, Some("raw"))
    );
    let volume = DiskSource::Volume {
        pool: "fast".into(),
        volume: "web.qcow2".into(),
    };
    assert!(disk("vdc").source == volume && disk("vdc").shareable);
    assert_eq!(
        disk("vdd").source,
        DiskSource::Network {
            protocol: "rbd".into()
        }
    );
    assert!(disk("vdd").transient && disk("vdd").secrets.len() == 1);
    assert!(disk("vde").encrypted && disk("vde").data_store);
    assert_eq!(disk("vdf").format, None);
    assert_eq!(disk("sda").source, DiskSource::Empty);
    assert!(view.disks.iter().all(|disk| !disk.optional));
    let optional = XML.replace("/no/driver'", "/no/driver' startupPolicy='optional'");
    assert!(
        DomainView::parse(&optional)
            .unwrap()
            .disk("vdf")
            .unwrap()
            .optional
    );
    assert!(disk("sda").readonly && disk("sda").device == "cdrom");
    assert_eq!(disk("fda").device, "floppy");
    assert_eq!(disk("vdg").source, DiskSource::Other("vhostuser".into()));
}

/// Makes one edit and compares with a plain replacement of text that occurs once.
fn check(
    edit: impl FnOnce(&mut Edits) -> Result<(), XmlError>,
    replacements: &[(&str, &str)],
) -> String {
    let mut edits = Edits::new(XML).unwrap();
    edit(&mut edits).unwrap();
    let mut due = XML.to_owned();
    for (old, new) in replacements {
        assert_eq!(due.matches(old).count(), 1, "{old}");
        due = due.replacen(old, new, 1);
    }
    let got = edits.apply().unwrap();
    assert_eq!(got, due);
    got
}

#[test]
fn an_edit_changes_its_own_bytes_and_no_others() {
    check(
        |e| e.set_name(HOSTILE),
        &[(
            "web &amp; <!-- sales --> \"01\"",
            "$(id) &quot;q&quot; &amp; &lt;x&gt; &apos;y&apos;&#9;-z",
        )],
    );
    let new = "ffffffff-0b0a-4908-8706-050403020100";
    check(
        |e| e.set_uuid(new),
        &[
            (
                "<uuid>0f0e0d0c-0b0a-4908-8706-050403020100<",
                &format!("<uuid>{new}<"),
            ),
            (
                "'uuid'>0f0e0d0c-0b0a-4908-8706-050403020100<",
                &format!("'uuid'>{new}<"),
            ),
        ],
    );
    check(
        |e| {
            e.strip_id();
            Ok(())
        },
        &[("<domain type=\"kvm\" id='7'\n", "<domain type=\"kvm\"\n")],
    );
    check(|e| e.set_mac(0, "x"), &[("52:54:00:aa:bb:01", "x")]);
    check(
        |e| e.set_mac(2, "x"),
        &[(
            "<interface type='user'/>",
            "<interface type='user'><mac address='x'/></interface>",
        )],
    );
    check(
        |e| e.set_link_down(1),
        &[("state=\"up\"", "state=\"down\"")],
    );
    let filter = "<filterref filter='clean-traffic'/>";
    check(
        |e| e.set_link_down(0),
        &[(filter, &format!("{filter}\n      <link state='down'/>"))],
    );
    check(
        |e| e.set_nvram("/n & m".as_ref()),
        &[("/var/lib/libvirt/qemu/nvram/web_VARS.qcow2", "/n &amp; m")],
    );
    check(
        |e| {
            e.strip_channel_sockets();
            Ok(())
        },
        &[
            (
                "\n      <source mode='bind' path='/run/libvirt/qemu/channel/7-web/org.qemu.guest_agent.0'/>",
                "",
            ),
            (
                "<source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web/x.0'/>",
                "",
            ),
        ],
    );
    check(
        |e| e.map_console_files(|path| path.contains("pty").then(|| "/p".into())),
        &[("/var/log/guests/pty.log", "/p")],
    );
    check(
        |e| e.map_console_files(|path| path.ends_with(".sock").then(|| "/p".into())),
        &[("/srv/own.sock", "/p")],
    );
    check(
        |e| {
            e.strip_runtime_labels();
            Ok(())
        },
        &[
            (
                "\n    <label>system_u:system_r:svirt_t:s0:c1,c2</label>",
                "",
            ),
            (
                "\n    <imagelabel>system_u:object_r:svirt_image_t:s0:c1,c2</imagelabel>",
                "",
            ),
        ],
    );
}

#[test]
fn edits_of_disks_change_that_disk_only() {
    let path = Path::new("/new/a & b.raw");
    check(
        |e| e.set_disk_file("vda", path, "qcow2"),
        &[(
            "/var/lib/libvirt/images/web &amp; 01.qcow2",
            "/new/a &amp; b.raw",
        )],
    );
    check(
        |e| e.set_disk_file("vda", path, "raw"),
        &[
            (
                "/var/lib/libvirt/images/web &amp; 01.qcow2",
                "/new/a &amp; b.raw",
            ),
            ("type='qcow2' discard", "type='raw' discard"),
        ],
    );
    check(
        |e| e.set_disk_file("vdb", path, "raw"),
        &[
            ("<disk\ttype = \"block\"", "<disk\ttype = \"file\""),
            (
                "<source dev='/dev/vg0/web'/>",
                "<source file='/new/a &amp; b.raw'/>",
            ),
        ],
    );
    check(
        |e| e.set_disk_file("vdc", path, "qcow2"),
        &[
            ("<disk type='volume'", "<disk type='file'"),
            (
                "<source pool='fast' volume='web.qcow2'/>",
                "<source file='/new/a &amp; b.raw'/>",
            ),
        ],
    );
    let auth = "\n      <auth username='libvirt'><secret type='ceph' \
                uuid='11111111-1111-4111-8111-111111111111'/></auth>";
    let rbd = "<source protocol='rbd' name='pool/web'><host name='mon1' port='6789'/></source>";
    check(
        |e| e.set_disk_file("vdd", path, "raw"),
        &[
            ("<disk type='network'", "<disk type='file'"),
            (auth, ""),
            (rbd, "<source file='/new/a &amp; b.raw'/>"),
        ],
    );
    // Encryption and data file described the old image: they must not be said of the new one.
    let xml = check_view(|e| e.set_disk_file("vde", path, "qcow2"));
    let disk = xml.disk("vde").unwrap();
    assert!(!disk.encrypted && !disk.data_store && disk.secrets.is_empty());
    assert_eq!(disk.source.path(), Some("/new/a & b.raw"));
    let xml = check_view(|e| e.set_disk_file("vdf", path, "qcow2"));
    assert_eq!(xml.disk("vdf").unwrap().format.as_deref(), Some("qcow2"));
    let xml = check_view(|e| e.set_disk_file("sda", path, "raw"));
    let disk = xml.disk("sda").unwrap();
    assert_eq!(
        (disk.source.path(), disk.format.as_deref()),
        (path.to_str(), Some("raw"))
    );
    let start = XML
        .find("\n      <backingStore type='file' index='4'>")
        .unwrap();
    let end = XML.find("\n      <target dev='vda'").unwrap();
    check(|e| e.strip_backing_store("vda"), &[(&XML[start..end], "")]);
    check(
        |e| e.strip_backing_store("vdb"),
        &[("web'/><backingStore/>", "web'/>")],
    );
    check(|e| e.strip_backing_store("vdc"), &[]);
    let start = XML.find("\n    <disk type='volume'").unwrap();
    let end = XML.find("\n    <disk type='network'").unwrap();
    check(|e| e.remove_disk("vdc"), &[(&XML[start..end], "")]);
}

fn check_view(edit: impl FnOnce(&mut Edits) -> Result<(), XmlError>) -> DomainView {
    let mut edits = Edits::new(XML).unwrap();
    edit(&mut edits).unwrap();
    DomainView::parse(&edits.apply().unwrap()).unwrap()
}

/// `domains/live.xml` is what libvirt 11.3 said of a running UEFI domain with a TPM.
#[test]
fn a_running_domain_becomes_a_second_one_by_a_few_edits() {
    let live = include_str!("domains/live.xml");
    let mut edits = Edits::new(live).unwrap();
    edits.set_name("copy").unwrap();
    edits
        .set_uuid("c0c0c0c0-0000-4000-8000-000000000001")
        .unwrap();
    edits.set_mac(0, "52:54:00:00:00:01").unwrap();
    edits.set_link_down(0).unwrap();
    edits.set_nvram("/nvram/copy.fd".as_ref()).unwrap();
    for target in ["vda", "vdb"] {
        edits
            .set_disk_file(target, format!("/new/{target}").as_ref(), "raw")
            .unwrap();
        edits.strip_backing_store(target).unwrap();
    }
    edits.strip_id();
    edits.strip_channel_sockets();
    edits.strip_runtime_labels();
    let copy = edits.apply().unwrap();
    let only_in = |a: &str, b: &str| -> Vec<String> {
        a.lines()
            .filter(|l| !b.lines().any(|m| m == *l))
            .map(|l| l.trim().to_owned())
            .collect()
    };
    let template = "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' templateFormat='raw' \
                    format='raw'>/nvram/copy.fd</nvram>";
    let new = [
        "<domain type='qemu'>",
        "<name>copy</name>",
        "<uuid>c0c0c0c0-0000-4000-8000-000000000001</uuid>",
        template,
        "<source file='/new/vda' index='2'/>",
        "<source file='/new/vdb' index='1'/>",
        "<mac address='52:54:00:00:00:01'/>",
        "<link state='down'/>",
    ];
    assert_eq!(only_in(&copy, live), new);
    let gone = only_in(live, &copy);
    assert_eq!(gone.len(), new.len() - 1 + 7, "{gone:#?}");
    assert_eq!(
        DomainView::parse(live).unwrap().agent_connected,
        Some(false)
    );
}

#[test]
fn writing_what_is_there_is_no_edit() {
    check(
        |e| {
            let view = view();
            e.set_name(&view.name)?;
            e.set_uuid(view.uuid.as_deref().unwrap())?;
            e.set_mac(0, view.interfaces[0].mac.as_deref().unwrap())?;
            e.set_nvram(view.nvram.unwrap().path.unwrap().as_ref())?;
            e.map_console_files(|path| Some(path.to_owned()))?;
            let vda = "/var/lib/libvirt/images/web & 01.qcow2";
            e.set_disk_file("vda", vda.as_ref(), "qcow2")
        },
        &[],
    );
}

#[test]
fn a_uuid_is_added_where_there_was_none() {
    let mut edits = Edits::new("<domain>\n  <name>a</name>\n</domain>").unwrap();
    edits.set_uuid("u").unwrap();
    let due = "<domain>\n  <name>a</name>\n  <uuid>u</uuid>\n</domain>";
    assert_eq!(edits.apply().unwrap(), due);
}

#[test]
fn nvram_as_a_source_element_is_read_and_edited() {
    let xml = "<domain><name>a</name><os><nvram type='file' format='raw'>\n <source file='/n'/>\n\
               </nvram></os></domain>";
    assert_eq!(
        DomainView::parse(xml)
            .unwrap()
            .nvram
            .unwrap()
            .path
            .as_deref(),
        Some("/n")
    );
    let mut edits = Edits::new(xml).unwrap();
    edits.set_nvram("/m".as_ref()).unwrap();
    assert_eq!(edits.apply().unwrap(), xml.replace("'/n'", "'/m'"));
    let empty = "<domain><name>a</name><os><nvram template='t'/></os></domain>";
    assert_eq!(DomainView::parse(empty).unwrap().nvram.unwrap().path, None);
    let mut edits = Edits::new(empty).unwrap();
    edits.set_nvram("/m".as_ref()).unwrap();
    let due = "<domain><name>a</name><os><nvram template='t'>/m</nvram></os></domain>";
    assert_eq!(edits.apply().unwrap(), due);
}

#[test]
fn what_is_not_there_and_what_overlaps_is_refused() {
    let mut edits = Edits::new(XML).unwrap();
    assert!(matches!(
        edits.set_mac(3, "x"),
        Err(XmlError::Missing { .. })
    ));
    assert!(matches!(
        edits.remove_disk("vdz"),
        Err(XmlError::Missing { .. })
    ));
    assert!(matches!(
        edits.set_name("a\0"),
        Err(XmlError::BadValue { .. })
    ));
    edits.remove_disk("vda").unwrap();
    edits.strip_backing_store("vda").unwrap();
    assert!(matches!(edits.apply(), Err(XmlError::Overlap { .. })));
    let mut edits = Edits::new(XML).unwrap();
    edits.set_name("a").unwrap();
    edits.set_name("b").unwrap();
    assert!(matches!(edits.apply(), Err(XmlError::Overlap { .. })));
}

#[test]
fn entity_bombs_and_other_traps_are_refused() {
    let refused = |xml: &str| DomainView::parse(xml).unwrap_err();
    let bomb = "<!DOCTYPE d [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]>\
                <domain><name>&b;</name></domain>";
    assert!(matches!(
        refused(bomb),
        XmlError::Parse(roxmltree::Error::DtdDetected)
    ));
    let outside = "<!DOCTYPE d [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>\
                   <domain><name>&x;</name></domain>";
    assert!(matches!(
        refused(outside),
        XmlError::Parse(roxmltree::Error::DtdDetected)
    ));
    let nested = |depth: usize| {
        let (open, close) = ("<a>".repeat(depth), "</a>".repeat(depth));
        format!("<domain><name>a</name>{open}{close}</domain>")
    };
    assert_eq!(refused(&nested(MAX_DEPTH)), XmlError::TooDeep);
    assert_eq!(
        refused(&nested(200_000)),
        XmlError::Parse(roxmltree::Error::NodesLimitReached)
    );
    assert!(DomainView::parse(&nested(MAX_DEPTH - 1)).is_ok());
    let wide = format!("<domain><name>a</name>{}</domain>", "<a/>".repeat(200_000));
    assert_eq!(
        refused(&wide),
        XmlError::Parse(roxmltree::Error::NodesLimitReached)
    );
    let long = format!("<domain><name>{}</name></domain>", "a".repeat(MAX_BYTES));
    assert!(matches!(refused(&long), XmlError::TooLong { .. }));
    assert!(matches!(
        refused("<domainsnapshot/>"),
        XmlError::Root { .. }
    ));
    assert!(matches!(refused("<domain/>"), XmlError::Missing { .. }));
    let lost = "<domain><name>a</name><devices><disk/></devices></domain>";
    assert!(matches!(refused(lost), XmlError::Missing { .. }));
    for xml in [
        "",
        "<",
        "<domain",
        "<domain><name>a</domain>",
        "\0",
        "<domain></domain><x/>",
    ] {
        assert!(matches!(refused(xml), XmlError::Parse(_)), "{xml:?}");
    }
}

#[test]
fn foreign_elements_are_not_mistaken_for_libvirts() {
    let xml = "<domain xmlns:x='urn:x'><x:name>wrong</x:name><metadata><name>wrong</name>\
               </metadata><name>right</name><x:uuid>wrong</x:uuid><devices>\
               <x:disk/></devices></domain>";
    let view = DomainView::parse(xml).unwrap();
    assert_eq!(
        (view.name.as_str(), view.uuid, view.disks.len()),
        ("right", None, 0)
    );
    let mut edits = Edits::new(xml).unwrap();
    edits.set_name("new").unwrap();
    assert_eq!(edits.apply().unwrap(), xml.replace("right", "new"));
}

/// What a restore may ask for.
#[derive(Clone, Debug)]
enum Ask {
    Name(String),
    Uuid(String),
    Mac(usize, String),
    Link(usize),
    Nvram(String),
    Disk(&'static str, String, &'static str),
    Backing(&'static str),
    Consoles(String),
    Id,
    Sockets,
    Labels,
}

impl Ask {
    fn make(&self, edits: &mut Edits) -> Result<(), XmlError> {
        match self {
            Ask::Name(name) => edits.set_name(name)?,
            Ask::Uuid(uuid) => edits.set_uuid(uuid)?,
            Ask::Mac(n, mac) => edits.set_mac(*n, mac)?,
            Ask::Link(n) => edits.set_link_down(*n)?,
            Ask::Nvram(path) => edits.set_nvram(path.as_ref())?,
            Ask::Disk(target, path, format) => {
                edits.set_disk_file(target, path.as_ref(), format)?;
            }
            Ask::Backing(target) => edits.strip_backing_store(target)?,
            Ask::Consoles(path) => edits.map_console_files(|_| Some(path.clone()))?,
            Ask::Id => edits.strip_id(),
            Ask::Sockets => edits.strip_channel_sockets(),
            Ask::Labels => edits.strip_runtime_labels(),
        }
        Ok(())
    }

    /// Two of the same slot would overlap.
    fn slot(&self) -> String {
        match self {
            // The second card is empty, so all that is added to it goes to the same place.
            Ask::Mac(n, _) | Ask::Link(n) if *n == 2 => "card 2".into(),
            Ask::Mac(n, _) => format!("mac {n}"),
            Ask::Link(n) => format!("link {n}"),
            Ask::Disk(target, ..) => format!("disk {target}"),
            Ask::Backing(target) => format!("backing {target}"),
            other => format!("{:?}", std::mem::discriminant(other)),
        }
    }
}

/// Any text that XML can carry.
fn value() -> impl Strategy<Value = String> {
    let awkward = prop::sample::select(vec!["&", "<", ">", "'", "\"", "]]>", "&amp;", "\t", "-->"]);
    prop::collection::vec(
        prop_oneof![awkward.prop_map(str::to_owned), "\\PC{1,6}"],
        1..6,
    )
    .prop_map(|parts| parts.concat())
    .prop_filter("XML cannot carry it", |text| {
        !text.contains(['\u{fffe}', '\u{ffff}']) && text.trim() == text
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let target = || prop::sample::select(vec!["vda", "vdb", "vdc", "vdd", "vde", "vdf", "sda"]);
    let format = prop::sample::select(vec!["raw", "qcow2"]);
    prop_oneof![
        value().prop_map(Ask::Name),
        value().prop_map(Ask::Uuid),
        (0..3usize, value()).prop_map(|(n, mac)| Ask::Mac(n, mac)),
        (0..3usize).prop_map(Ask::Link),
        value().prop_map(Ask::Nvram),
        (target(), value(), format).prop_map(|(t, path, f)| Ask::Disk(t, path, f)),
        target().prop_map(Ask::Backing),
        value().prop_map(Ask::Consoles),
        Just(Ask::Id),
        Just(Ask::Sockets),
        Just(Ask::Labels),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn edits_at_once_are_edits_one_by_one(mut asks in prop::collection::vec(ask(), 1..8)) {
        let mut seen = std::collections::HashSet::new();
        asks.retain(|ask| seen.insert(ask.slot()));
        let mut edits = Edits::new(XML).unwrap();
        let mut single = XML.to_owned();
        for ask in &asks {
            ask.make(&mut edits).unwrap();
            let mut one = Edits::new(&single).unwrap();
            ask.make(&mut one).unwrap();
            single = one.apply().unwrap();
        }
        let together = edits.apply().unwrap();
        prop_assert_eq!(&together, &single);
        let view = DomainView::parse(&together).unwrap();
        for ask in &asks {
            match ask {
                Ask::Name(name) => prop_assert_eq!(&view.name, name),
                Ask::Uuid(uuid) => prop_assert_eq!(view.uuid.as_ref(), Some(uuid)),
                Ask::Mac(n, mac) => prop_assert_eq!(view.interfaces[*n].mac.as_ref(), Some(mac)),
                Ask::Link(n) => prop_assert!(view.interfaces[*n].link_down),
                Ask::Nvram(path) => {
                    prop_assert_eq!(view.nvram.as_ref().unwrap().path.as_ref(), Some(path));
                }
                Ask::Disk(target, path, format) => {
                    let disk = view.disk(target).unwrap();
                    prop_assert_eq!(disk.source.path(), Some(path.as_str()));
                    prop_assert_eq!(disk.format.as_deref(), Some(*format));
                }
                Ask::Backing(target) => {
                    prop_assert_eq!(view.disk(target).unwrap().backing.len(), 0);
                }
                Ask::Consoles(path) => prop_assert!(view.console_files.iter().all(|f| f == path)),
                Ask::Id => prop_assert_eq!(view.id, None),
                Ask::Sockets | Ask::Labels => {}
            }
        }
    }

}

proptest! {
    #[test]
    fn damaged_xml_never_panics(
        cuts in prop::collection::vec((0..XML.len(), 0..40usize, "\\PC{0,8}"), 1..6),
        asks in prop::collection::vec(ask(), 1..8),
    ) {
        let mut bytes = XML.as_bytes().to_vec();
        for (at, len, new) in cuts {
            let start = at.min(bytes.len());
            let end = (start + len).min(bytes.len());
            bytes.splice(start..end, new.into_bytes());
        }
        let text = String::from_utf8_lossy(&bytes);
        let _ = DomainView::parse(&text);
        if let Ok(mut edits) = Edits::new(&text) {
            for ask in &asks {
                let _ = ask.make(&mut edits);
            }
            let _ = edits.apply();
        }
    }
}

#[test]
fn boot_files_and_the_place_of_a_tpm_are_edited() {
    let xml = "<domain><name>a</name><os><kernel>/boot/k</kernel><initrd>/boot/i</initrd></os><devices>\
        <tpm><backend type='emulator'><source type='dir' path='/srv/tpm'/></backend></tpm></devices></domain>";
    let place = DomainView::parse(xml).unwrap().tpm.unwrap().source;
    assert_eq!(place, Some(TpmSource::Dir("/srv/tpm".into())));
    let mut edits = Edits::new(xml).unwrap();
    edits.set_kernel(Path::new("/new/<k>")).unwrap();
    edits.set_initrd(Path::new("/boot/i")).unwrap();
    edits.strip_tpm_source();
    assert_eq!(
        edits.apply().unwrap(),
        "<domain><name>a</name><os><kernel>/new/&lt;k&gt;</kernel><initrd>/boot/i</initrd></os><devices>\
        <tpm><backend type='emulator'></backend></tpm></devices></domain>"
    );
    let mut edits = Edits::new("<domain><name>a</name></domain>").unwrap();
    assert!(edits.set_kernel(Path::new("/k")).is_err());
    edits.strip_tpm_source();
}
