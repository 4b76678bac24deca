//! A stack that ran runs again after an apply that failed, with what it had; the next apply has the
//! same to do, and does it once the reason is gone.

use std::error::Error as _;
use std::path::PathBuf;

use super::*;
use crate::memory::{Broken, MemoryHost, World, go, lab};
use crate::model::Model;

const STORAGE_CONF: &str = "/etc/lab-backup/storage/bacula-sd.conf";
const CATALOG_UNIT: &str = "/etc/containers/systemd/users/1000/lab-backup-catalog.container";

/// A stack that runs, and has done nothing since.
fn running() -> MemoryHost {
    let host = MemoryHost::default();
    go(&host, &lab("[vms.web01]\ntier = 0\n")).1.unwrap();
    host.log.borrow_mut().clear();
    host
}

/// Another number of devices: the Storage Daemon restarts.
fn devices(mut model: Model) -> Model {
    model.storage.devices = 9;
    model
}

fn breaks(host: &MemoryHost, what: &'static str, file: &'static str, text: &'static str) {
    *host.broken.borrow_mut() = Some(Broken {
        what,
        file: Some((file, text)),
    });
}

fn undone(error: &super::Error) -> String {
    assert!(matches!(error, super::Error::Undone { .. }), "{error}");
    error.to_string()
}

/// Files and units; what systemd has read is in them.
fn stack(host: &MemoryHost) -> World {
    let mut world = host.world.borrow().clone();
    // A new image is of no use, and of no harm.
    world.images.clear();
    world.reloads = 0;
    world
}

/// Lines of the log from the one that failed on.
fn after(host: &MemoryHost, what: &str) -> Vec<String> {
    let log = host.log.borrow();
    let at = log.iter().position(|line| line == what).unwrap();
    log[at..].to_vec()
}

#[test]
fn a_unit_that_does_not_come_up_has_what_it_had_before_it_starts_again() {
    let host = running();
    let before = stack(&host);
    let model = devices(lab("[vms.web02]\ntier = 1\n"));
    breaks(
        &host,
        "restart lab-backup-storage",
        STORAGE_CONF,
        "Maximum Concurrent Jobs = 28",
    );
    let (count, done) = go(&host, &model);
    let said = undone(&done.unwrap_err());
    assert!(
        said.contains("lab-backup-storage.service does not run"),
        "{said}"
    );
    assert!(said.contains("what it had is back ("), "{said}");
    assert!(said.ends_with("and runs"), "{said}");
    assert_eq!(
        after(&host, "restart lab-backup-storage.service"),
        [
            "restart lab-backup-storage.service",
            // What was removed comes back, what was changed is changed back, what is new goes.
            "write /etc/lab-backup/director/vms/web01.conf",
            "write /etc/lab-backup/vms.toml",
            "write /etc/lab-backup/storage/bacula-sd.conf",
            "write /etc/lab-backup/director/bacula-dir.conf",
            "remove /etc/lab-backup/director/vms/web02.conf",
            "start lab-backup-catalog.service",
            "restart lab-backup-storage.service",
            "start lab-backup-director.service",
        ]
    );
    assert_eq!(stack(&host), before);
    *host.broken.borrow_mut() = None;
    let (again, done) = go(&host, &model);
    done.unwrap();
    assert_eq!(again, count);
    assert_eq!(go(&host, &model).0, 0);
}

#[test]
fn a_container_goes_back_to_its_image_and_systemd_reads_the_unit_before_the_start() {
    let host = running();
    let before = stack(&host);
    let mut model = lab("[vms.web01]\ntier = 0\n");
    model.images.catalog = Some("quay.io/catalog:18".into());
    breaks(
        &host,
        "restart lab-backup-catalog",
        CATALOG_UNIT,
        "quay.io/catalog:18",
    );
    undone(&go(&host, &model).1.unwrap_err());
    assert_eq!(
        after(&host, "restart lab-backup-catalog.service"),
        [
            "restart lab-backup-catalog.service",
            &format!("write {CATALOG_UNIT}"),
            "daemon-reload",
            "restart lab-backup-catalog.service",
            "start lab-backup-storage.service",
            "start lab-backup-director.service",
        ]
    );
    assert_eq!(stack(&host), before);
}

#[test]
fn a_configuration_that_the_director_refuses_is_not_left_for_its_next_start() {
    let host = running();
    let before = stack(&host);
    host.refuse.set(true);
    let after = lab("[vms.web01]\ntier = 0\n[vms.web02]\ntier = 2\n");
    let (count, done) = go(&host, &after);
    let error = done.unwrap_err();
    undone(&error);
    let source = error.source().unwrap().to_string();
    assert!(source.contains("line 7"), "{source}");
    assert_eq!(stack(&host), before);
    assert!(
        !host
            .log
            .borrow()
            .iter()
            .any(|line| line.contains("restart"))
    );
    host.refuse.set(false);
    assert_eq!(go(&host, &after).0, count);
    assert_eq!(go(&host, &after).0, 0);
}

#[test]
fn what_a_unit_has_come_up_with_stays() {
    let host = running();
    let mut model = devices(lab("[vms.web02]\ntier = 1\n"));
    model.hypervisor.name = "hv7".into();
    breaks(&host, "restart bacula-fd", FD_CONF, "lab-backup-fd-hv7");
    let said = undone(&go(&host, &model).1.unwrap_err());
    assert!(said.contains(FD_CONF), "{said}");
    let text = |path: &str| host.world.borrow().paths[Path::new(path)].text.clone();
    assert!(text(FD_CONF).contains("lab-backup-fd-local"));
    assert!(text(STORAGE_CONF).contains("Maximum Concurrent Jobs = 28"));
    assert!(text("/etc/lab-backup/vms.toml").contains("web02"));
    let removed = PathBuf::from("/etc/lab-backup/director/vms/web01.conf");
    assert!(!host.world.borrow().paths.contains_key(&removed));
    assert!(host.world.borrow().units["bacula-fd.service"].active);
}

#[test]
fn a_file_daemon_that_ran_before_the_first_apply_runs_again_as_packaged() {
    let host = MemoryHost::default();
    let unit = crate::observe::UnitState {
        active: true,
        enabled: true,
    };
    host.put(FD_CONF, "Password = theirs\n");
    let units = |host: &MemoryHost| host.world.borrow().units["bacula-fd.service"];
    host.world
        .borrow_mut()
        .units
        .insert("bacula-fd.service".into(), unit);
    breaks(&host, "restart bacula-fd", FD_CONF, "lab-backup-fd");
    undone(&go(&host, &lab("")).1.unwrap_err());
    let text = |path: &str| {
        let world = host.world.borrow();
        world
            .paths
            .get(Path::new(path))
            .map(|found| found.text.clone())
    };
    assert_eq!(text(FD_CONF).as_deref(), Some("Password = theirs\n"));
    assert_eq!(text(FD_KEPT), None);
    assert_eq!(units(&host), unit);
    *host.broken.borrow_mut() = None;
    go(&host, &lab("")).1.unwrap();
    assert_eq!(text(FD_KEPT).as_deref(), Some("Password = theirs\n"));
}

#[test]
fn a_unit_that_never_ran_keeps_its_files() {
    let host = MemoryHost::default();
    *host.broken.borrow_mut() = Some(Broken {
        what: "start lab-backup-storage",
        file: None,
    });
    let error = go(&host, &lab("")).1.unwrap_err();
    assert!(!matches!(error, super::Error::Undone { .. }), "{error}");
    assert!(
        host.world
            .borrow()
            .paths
            .contains_key(Path::new(STORAGE_CONF))
    );
}

#[test]
fn what_cannot_be_put_back_is_told_beside_the_first_error() {
    let host = running();
    let model = devices(lab("[vms.web01]\ntier = 0\n"));
    // Nothing works any more, whatever the files say.
    *host.broken.borrow_mut() = Some(Broken {
        what: "restart lab-backup-storage",
        file: None,
    });
    let error = go(&host, &model).1.unwrap_err();
    let said = undone(&error);
    assert!(said.contains("but not all"), "{said}");
    assert!(error.source().unwrap().to_string().contains("restart"));
    let log = host.log.borrow();
    assert_eq!(log.last().unwrap(), "start lab-backup-director.service");
}
