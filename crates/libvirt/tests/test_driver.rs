//! The wrapper against libvirt's own test driver: a real library, an imaginary hypervisor.
//!
//! Each connection to `test://` + `node.xml` has a hypervisor of its own, with one domain.

#![allow(clippy::unwrap_used)]

use std::thread;
use std::time::Duration;

use libvirt::xml::{CheckpointDisk, CheckpointView, DomainView, Edits, checkpoint_xml};
use libvirt::{
    AgentTimeout, BackupFlags, Connect, Domain, Kind, PausedReason, Presence, ShutOffReason, State,
    Undefine, Version, XmlFlags, deadline,
};

const URI: &str = concat!("test://", env!("CARGO_MANIFEST_DIR"), "/tests/node.xml");
const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

fn open() -> (Connect, Domain) {
    let connect = Connect::open(URI).unwrap();
    let domain = connect.by_name("test").unwrap();
    (connect, domain)
}

fn define(connect: &Connect, name: &str, uuid: &str, devices: &str) -> libvirt::Result<Domain> {
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    connect.define(&format!(
        "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory>\
         <os><type>hvm</type></os><devices>{devices}</devices></domain>"
    ))
}

#[test]
fn a_connection_tells_who_it_is() {
    let (connect, _) = open();
    assert_eq!(connect.uri(), URI);
    assert!(connect.lib_version().unwrap() >= Version::new(6, 0, 0));
    assert!(!connect.hostname().unwrap().is_empty());
    assert!(connect.is_alive());
    connect.reopen().unwrap().by_name("test").unwrap();
}

#[test]
fn a_domain_is_found_by_name_and_uuid_and_in_the_list() {
    let (connect, domain) = open();
    assert_eq!((domain.name(), domain.uuid()), ("test", UUID));
    assert_eq!(connect.by_uuid(UUID).unwrap().name(), "test");
    define(&connect, "off", "6695eb01-f6a4-8304-79aa-97f2502e1900", "").unwrap();
    let mut names: Vec<String> = connect
        .domains()
        .unwrap()
        .iter()
        .map(|d| d.name().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["off", "test"]);
}

#[test]
fn failures_have_a_kind_and_name_their_object() {
    let (connect, domain) = open();
    let error = connect.by_name("$(id)\n").unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(error.code, 42);
    let text = error.to_string();
    assert!(
        text.starts_with("cannot find the domain \"$(id)\\n\": "),
        "{text}"
    );
    assert_eq!(
        connect.by_uuid(&UUID.replace('6', "7")).unwrap_err().kind,
        Kind::NotFound
    );
    assert_eq!(connect.by_name("a\0b").unwrap_err().kind, Kind::Other);
    assert_eq!(
        connect.define("<domain").unwrap_err().kind,
        Kind::InvalidXml
    );
    let error = domain
        .backup_begin("<domainbackup/>", None, BackupFlags::default())
        .unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    let error = Connect::open("qemu+unix:///system?socket=/nonexistent/sock").unwrap_err();
    assert_eq!(error.kind, Kind::ConnectionLost, "{error:?}");
}

#[test]
fn a_name_or_uuid_that_is_taken_is_not_replaced() {
    let (connect, _) = open();
    let other = "6695eb01-f6a4-8304-79aa-97f2502e1901";
    assert_eq!(
        define(&connect, "test", other, "").unwrap_err().kind,
        Kind::Exists
    );
    assert_eq!(
        define(&connect, "other", UUID, "").unwrap_err().kind,
        Kind::Exists
    );
}

#[test]
fn the_states_of_a_domain() {
    let (connect, domain) = open();
    assert_eq!(domain.state().unwrap(), State::Running);
    assert!(domain.is_active().unwrap() && domain.is_persistent().unwrap());
    assert_eq!(domain.id().unwrap(), Some(1));
    domain.suspend().unwrap();
    assert_eq!(domain.state().unwrap(), State::Paused(PausedReason::User));
    domain.resume().unwrap();
    domain.shutdown().unwrap();
    assert_eq!(
        domain.state().unwrap(),
        State::ShutOff(ShutOffReason::Shutdown)
    );
    assert_eq!(domain.id().unwrap(), None);
    domain.create().unwrap();
    assert!(domain.id().unwrap().is_some());
    domain.destroy().unwrap();
    assert_eq!(
        domain.state().unwrap(),
        State::ShutOff(ShutOffReason::Destroyed)
    );
    domain.create().unwrap();
    assert!(!domain.has_managed_save().unwrap());
    assert!(!domain.autostart().unwrap());
    domain.set_autostart(true).unwrap();
    assert!(domain.autostart().unwrap());
    domain.undefine(Undefine::default()).unwrap();
    assert!(!domain.is_persistent().unwrap());
    domain.destroy().unwrap();
    assert_eq!(domain.state().unwrap_err().kind, Kind::NotFound);
    assert_eq!(connect.by_name("test").unwrap_err().kind, Kind::NotFound);
}

#[test]
fn hostile_names_are_plain_data() {
    let (connect, _) = open();
    let names = [
        "$(id)",
        "-x",
        "*",
        "\"q\" & `id` | x",
        "a b\tc",
        &"n".repeat(200),
        "é<ü>",
    ];
    for (i, name) in names.into_iter().enumerate() {
        let uuid = format!("6695eb01-f6a4-8304-79aa-97f2502e20{i:02}");
        define(&connect, name, &uuid, "").unwrap();
        let domain = connect.by_name(name).unwrap();
        assert_eq!((domain.name(), domain.uuid()), (name, uuid.as_str()));
        let view = DomainView::parse(&domain.xml(XmlFlags::default()).unwrap()).unwrap();
        assert_eq!(view.name, name);
    }
}

#[test]
fn edited_xml_defines_a_second_domain_beside_the_first() {
    let (connect, _) = open();
    let devices = "<disk type='block'><source dev='/dev/x'/><target dev='vda'/></disk>\
                   <interface type='network'><mac address='52:54:00:00:00:01'/>\
                   <source network='default'/></interface>";
    let uuid = "6695eb01-f6a4-8304-79aa-97f2502e1902";
    let first = define(&connect, "first", uuid, devices).unwrap();
    let flags = XmlFlags {
        secure: true,
        inactive: true,
        migratable: false,
    };
    let xml = first.xml(flags).unwrap();
    let second_uuid = "6695eb01-f6a4-8304-79aa-97f2502e1903";
    let mut edits = Edits::new(&xml).unwrap();
    edits.set_name("a & b").unwrap();
    edits.set_uuid(second_uuid).unwrap();
    edits.set_mac(0, "52:54:00:00:00:02").unwrap();
    edits.set_link_down(0).unwrap();
    edits
        .set_disk_file("vda", "/new/<vda>.qcow2".as_ref(), "qcow2")
        .unwrap();
    let second = connect.define(&edits.apply().unwrap()).unwrap();
    assert_eq!((second.name(), second.uuid()), ("a & b", second_uuid));
    let view = DomainView::parse(&second.xml(flags).unwrap()).unwrap();
    let disk = view.disk("vda").unwrap();
    assert_eq!(disk.source.path(), Some("/new/<vda>.qcow2"));
    assert_eq!(disk.format.as_deref(), Some("qcow2"));
    assert_eq!(view.interfaces[0].mac.as_deref(), Some("52:54:00:00:00:02"));
    assert!(view.interfaces[0].link_down);
    assert_eq!(first.xml(flags).unwrap(), xml);
}

#[test]
fn checkpoints_are_made_listed_and_deleted() {
    let (connect, domain) = open();
    domain.destroy().unwrap();
    let devices = "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/d'/>\
                   <target dev='vda'/></disk>\
                   <disk type='file'><source file='/e'/><target dev='vdb'/></disk>";
    let domain = define(
        &connect,
        "c",
        "6695eb01-f6a4-8304-79aa-97f2502e1904",
        devices,
    )
    .unwrap();
    domain.create().unwrap();
    for name in ["one", "two"] {
        let disks = [
            CheckpointDisk {
                target: "vda",
                bitmap: Some(name),
            },
            CheckpointDisk {
                target: "vdb",
                bitmap: None,
            },
        ];
        let made = domain
            .checkpoint_create(&checkpoint_xml(name, &disks).unwrap())
            .unwrap();
        assert_eq!(made.name(), name);
    }
    let vda = [CheckpointDisk {
        target: "vda",
        bitmap: Some("one"),
    }];
    let again = domain.checkpoint_create(&checkpoint_xml("one", &vda).unwrap());
    assert_eq!(again.unwrap_err().kind, Kind::Exists);
    let list = domain.checkpoints().unwrap();
    let names: Vec<&str> = list.iter().map(|c| c.name()).collect();
    assert_eq!(names, ["one", "two"]);
    let view = CheckpointView::parse(&list[1].xml().unwrap()).unwrap();
    assert_eq!(view.parent.as_deref(), Some("one"));
    assert_eq!(view.disks[0].bitmap.as_deref(), Some("two"));
    assert_eq!(view.disks[1].bitmap, None);
    assert!(domain.checkpoint("three").unwrap().is_none());
    domain.checkpoint("one").unwrap().unwrap().delete().unwrap();
    domain.checkpoint("two").unwrap().unwrap().forget().unwrap();
    assert!(domain.checkpoints().unwrap().is_empty());
    assert!(domain.snapshots().unwrap().is_empty());
}

#[test]
fn freezing_and_thawing_count_file_systems() {
    let (_connect, domain) = open();
    assert!(domain.fs_freeze(&[]).unwrap() > 0);
    assert!(domain.fs_thaw().unwrap() > 0);
    assert_eq!(domain.fs_thaw().unwrap(), 0);
    assert!(
        !domain
            .fs_freeze(&["/nowhere"])
            .unwrap_err()
            .leaves_freeze_in_doubt()
    );
    assert_eq!(domain.fs_freeze(&["/"]).unwrap(), 1);
    assert_eq!(domain.fs_thaw().unwrap(), 1);
    let mounts = domain.mounts().unwrap();
    assert!(
        mounts
            .iter()
            .any(|m| m.mountpoint == "/" && !m.kind.is_empty()),
        "{mounts:?}"
    );
    let error = domain.set_agent_timeout(AgentTimeout::Within(Duration::from_secs(2)));
    assert_eq!(error.unwrap_err().kind, Kind::Unsupported);
}

#[test]
fn handles_work_from_many_threads_at_once() {
    let (connect, domain) = open();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (connect, domain) = (connect.clone(), &domain);
            scope.spawn(move || {
                for i in 0..200 {
                    let copy = domain.clone();
                    assert_eq!(copy.state().unwrap(), State::Running);
                    assert_eq!(copy.id().unwrap(), Some(1));
                    // Errors belong to the thread: this one must never show up elsewhere.
                    let missing = format!("missing-{i}");
                    let error = connect.by_name(&missing).unwrap_err();
                    assert_eq!((error.kind, error.object), (Kind::NotFound, missing));
                }
            });
        }
    });
    drop(connect);
    // The domain keeps the connection.
    assert!(domain.is_active().unwrap());
    assert!(domain.connection().is_alive());
}

#[test]
fn a_call_runs_on_a_thread_and_a_connection_of_its_own() {
    let limit = Duration::from_secs(30);
    let name = deadline::run_on_new(URI, limit, "ask", "test", |connect| {
        Ok(connect.by_name("test")?.name().to_owned())
    });
    assert_eq!(name.unwrap(), "test");
    let (_connect, domain) = open();
    let copy = domain.clone();
    let error = deadline::run(limit, "begin a backup of", domain.name(), move || {
        copy.backup_begin("<domainbackup/>", None, BackupFlags::default())
    });
    assert_eq!(error.unwrap_err().kind, Kind::Unsupported);
}

#[test]
fn a_volume_is_found_by_pool_and_name() {
    let (connect, _) = open();
    let error = connect.volume_path("default-pool", "none").unwrap_err();
    assert_eq!(
        (error.kind, error.object.as_str()),
        (Kind::NotFound, "default-pool/none")
    );
    assert_eq!(
        connect.volume_path("none", "x").unwrap_err().kind,
        Kind::NotFound
    );
}

#[test]
fn what_a_host_does_not_have_is_told_from_what_it_has() {
    let (connect, _) = open();
    assert_eq!(connect.pool("default-pool").unwrap(), Presence::Active);
    assert_eq!(connect.pool("none").unwrap(), Presence::Missing);
    assert_eq!(connect.network("none").unwrap(), Presence::Missing);
}
