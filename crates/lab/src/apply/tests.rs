//! Apply reaches what was planned, a second apply has nothing to do, and whatever interrupts the
//! first one, the next one ends in the same state.

use super::*;
use crate::host::Found;
use crate::memory::{LAB, MemoryHost, facts, go, lab};
use crate::render::{self, Facts};
use crate::{model, plan};

fn at(host: &MemoryHost, what: &str) -> usize {
    let log = host.log.borrow();
    let at = log.iter().position(|line| line.contains(what));
    at.unwrap_or_else(|| panic!("no {what} in {log:#?}"))
}

#[test]
fn a_second_apply_has_nothing_to_do() {
    let host = MemoryHost::default();
    let model = lab("[vms.web01]\ntier = 0\n");
    let (count, done) = go(&host, &model);
    done.unwrap();
    assert!(count > 40, "{count}");
    assert_eq!(go(&host, &model).0, 0);
}

#[test]
fn everything_that_a_unit_reads_is_there_before_it_starts() {
    let host = MemoryHost::default();
    go(&host, &lab("[vms.web01]\ntier = 0\n")).1.unwrap();
    let order = [
        "useradd",
        "usermod --add-subgids",
        "linger",
        "write /etc/lab-backup/secrets/fd",
        "image import",
        "image build localhost/lab-backup-director",
        "secret lab-backup-fd",
        "write /etc/lab-backup/director/bacula-dir.conf",
        "write /etc/lab-backup/vms.toml",
        "daemon-reload",
        "start lab-backup-catalog.service",
        "start lab-backup-storage.service",
        "start lab-backup-director.service",
        "restart bacula-fd.service",
        "lab-backup-guard.service",
        "lab-backup-worker.socket",
    ];
    for pair in order.windows(2) {
        assert!(at(&host, pair[0]) < at(&host, pair[1]), "{pair:?}");
    }
}

#[test]
fn an_apply_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let model = lab("[vms.web01]\ntier = 0\n");
    let whole = MemoryHost::default();
    go(&whole, &model).1.unwrap();
    let steps = whole.log.borrow().len();
    for cut in 0..steps {
        let host = MemoryHost::default();
        host.fuel.set(Some(cut));
        assert!(go(&host, &model).1.is_err(), "cut {cut}");
        host.fuel.set(None);
        go(&host, &model).1.unwrap();
        assert_eq!(*host.world.borrow(), *whole.world.borrow(), "cut {cut}");
        assert_eq!(go(&host, &model).0, 0, "cut {cut}");
    }
}

#[test]
fn a_changed_lab_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let before = lab("[vms.web01]\ntier = 0\n");
    let after = lab("[vms.web02]\ntier = 1\n[tiers.0]\nwindow = \"40 days\"\n");
    let start = MemoryHost::default();
    go(&start, &before).1.unwrap();
    let world = start.world.borrow().clone();
    start.log.borrow_mut().clear();
    go(&start, &after).1.unwrap();
    let steps = start.log.borrow().len();
    for cut in 0..steps {
        let host = MemoryHost::default();
        *host.world.borrow_mut() = world.clone();
        host.fuel.set(Some(cut));
        assert!(go(&host, &after).1.is_err(), "cut {cut}");
        host.fuel.set(None);
        go(&host, &after).1.unwrap();
        let (world, whole) = (host.world.borrow(), start.world.borrow());
        assert_eq!(world.paths, whole.paths, "cut {cut}");
        assert_eq!(
            world.loaded,
            host.under("/etc/lab-backup/director"),
            "cut {cut}"
        );
    }
}

#[test]
fn a_new_vm_costs_a_reload_and_no_restart() {
    let host = MemoryHost::default();
    go(&host, &lab("[vms.web01]\ntier = 0\n")).1.unwrap();
    host.log.borrow_mut().clear();
    go(
        &host,
        &lab("[vms.web01]\ntier = 0\n[vms.web02]\ntier = 2\n"),
    )
    .1
    .unwrap();
    let log = host.log.borrow().join("\n");
    assert!(log.contains("reload"), "{log}");
    assert!(!log.contains("start"), "{log}");
}

#[test]
fn a_file_that_somebody_changed_is_put_right_and_read_again() {
    let host = MemoryHost::default();
    let model = lab("[vms.web01]\ntier = 0\n");
    go(&host, &model).1.unwrap();
    host.log.borrow_mut().clear();
    for path in [
        "/etc/lab-backup/director/bacula-dir.conf",
        "/etc/lab-backup/storage/bacula-sd.conf",
    ] {
        let mut world = host.world.borrow_mut();
        world
            .paths
            .get_mut(Path::new(path))
            .unwrap()
            .text
            .push_str("# mine\n");
    }
    go(&host, &model).1.unwrap();
    let log = host.log.borrow().clone();
    assert_eq!(
        log.iter()
            .filter(|l| !l.starts_with("write") && *l != "daemon-reload")
            .collect::<Vec<_>>(),
        ["restart lab-backup-storage.service", "reload"]
    );
}

#[test]
fn the_packaged_file_daemon_configuration_is_kept_once() {
    let host = MemoryHost::default();
    let packaged = Found {
        text: "Password = theirs\n".into(),
        mode: 0o640,
        uid: 0,
    };
    host.world
        .borrow_mut()
        .paths
        .insert(FD_CONF.into(), packaged);
    go(&host, &lab("")).1.unwrap();
    go(&host, &lab("[hypervisors.hv7]\n")).1.unwrap();
    let kept = host
        .look(Path::new("/etc/bacula/bacula-fd.conf.packaged"))
        .unwrap()
        .unwrap();
    assert_eq!(kept.text, "Password = theirs\n");
}

#[test]
fn new_ids_begin_above_all_others() {
    assert_eq!(free_range(""), 100_000);
    assert_eq!(free_range("a:100000:65536\nb:165536:65536\n"), 231_072);
    assert_eq!(free_range("a:x:1\nb\nc:18446744073709551615:9\n"), 100_000);
}

#[test]
fn a_share_is_mounted_then_marked_then_used() {
    let host = MemoryHost::default();
    let text = LAB.replace("dir = \"/srv/v\"", "dir = \"/srv/v\"\nnfs = \"nas:/x\"");
    let model = model::parse(&text).unwrap();
    go(&host, &model).1.unwrap();
    let order = [
        "start srv-v.mount",
        "tee /srv/v/.lab-backup",
        "start lab-backup-storage",
    ];
    let places = order.map(|what| at(&host, what));
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(
        host.world.borrow().paths[Path::new("/srv/v")].mode,
        0,
        "nobody writes below the share"
    );
    assert_eq!(go(&host, &model).0, 0);
}

#[test]
fn the_volumes_of_another_lab_are_left_alone() {
    let host = MemoryHost::default();
    let mark = Found {
        text: "kother\n".into(),
        mode: 0o644,
        uid: 0,
    };
    host.world
        .borrow_mut()
        .paths
        .insert("/srv/v/.lab-backup".into(), mark.clone());
    let error = go(&host, &lab("")).1.unwrap_err();
    assert!(matches!(error, Error::Foreign(_)), "{error}");
    assert_eq!(
        host.world.borrow().paths[Path::new("/srv/v/.lab-backup")],
        mark
    );
    assert!(
        !host
            .log
            .borrow()
            .iter()
            .any(|line| line.contains("start lab-backup-storage"))
    );
}

#[test]
fn a_vm_that_leaves_stays_restorable_until_its_backups_are_gone() {
    let host = MemoryHost::default();
    go(&host, &lab("[vms.a]\ntier = 0\n[vms.b]\ntier = 1\n"))
        .1
        .unwrap();
    let less = lab("[vms.a]\ntier = 0\n");
    let go_with = |still: bool| {
        let found = observe::retired::retired(&host, &less, &|_| still).unwrap();
        let facts = Facts {
            retired: found,
            ..facts()
        };
        let desired = render::render(&less, &facts);
        let state = observe::state(&host, &desired).unwrap();
        let plan = plan::plan(&desired, &state);
        apply(&host, &host, &desired, state, &plan, &mut |_| {}).unwrap();
        host.look(Path::new("/etc/lab-backup/director/vms/b.conf"))
            .unwrap()
    };
    let kept = go_with(true).unwrap().text;
    assert!(
        kept.contains("Enabled = no") && kept.contains("Job Defs = \"tier1\""),
        "{kept}"
    );
    // It goes on from what is there now.
    assert_eq!(go_with(true).unwrap().text, kept);
    assert_eq!(go_with(false), None);
}

#[test]
fn volumes_without_a_mark_are_not_taken_over() {
    let host = MemoryHost::default();
    host.put("/srv/v/tier0-full-0001", "data");
    let error = go(&host, &lab("")).1.unwrap_err();
    assert!(matches!(error, Error::Used { .. }), "{error}");
    // The mark that the message speaks of is enough.
    host.put("/srv/v/.lab-backup", "kmark\n");
    go(&host, &lab("")).1.unwrap();
    assert_eq!(go(&host, &lab("")).0, 0);
}
