//! What apply made is gone after uninstall, and nothing else is; whatever interrupts the way back,
//! the next uninstall ends in the same state.

use super::*;
use crate::host::Host as _;
use crate::memory::{Broken, MemoryHost, World, go, lab};
use crate::observe::UnitState;

/// A host with the packages, a File Daemon that runs, and a `lab.toml`.
fn blank() -> MemoryHost {
    let host = MemoryHost::default();
    host.put("/etc/bacula", "");
    host.put(FD_CONF, "Password = theirs\n");
    host.put(ETC, "");
    host.put(config::PATH, "version = 1\n");
    host.make_dir(Path::new("/var/lib/lab-backup"), 0o711, (0, 0))
        .unwrap();
    host.log.borrow_mut().clear();
    for dir in ["journal", "maps", "restore"] {
        host.put(format!("/var/lib/lab-backup/{dir}"), "");
    }
    let unit = UnitState {
        active: true,
        enabled: true,
    };
    host.world.borrow_mut().units.insert(FD.into(), unit);
    host
}

/// What jobs leave on the host.
fn work(host: &MemoryHost) {
    host.put("/var/lib/lab-backup/maps/web01", "");
    host.put("/var/lib/lab-backup/maps/web01/1.map", "map");
    host.put("/var/lib/lab-backup/keys", "");
    host.put("/var/lib/lab-backup/keys/web01", "key");
    host.put("/srv/v/tier0-full-0001", "data");
}

/// One `lab-backup uninstall`: what it planned, and how it ended.
fn back(host: &MemoryHost, purge: bool, yes: bool) -> (Removals, Result<(), act::Error>) {
    let there = host
        .world
        .borrow()
        .paths
        .contains_key(Path::new(config::PATH));
    let model = there.then(|| lab("[vms.web01]\ntier = 0\n"));
    let target = Target::new(model.as_ref(), purge, yes);
    let seen = look(host, &target).unwrap();
    let removals = plan(&target, &seen);
    let done = remove(host, &seen, &removals, false, &mut |_| {});
    (removals, done)
}

/// What counts of a world; what its daemons hold in memory does not.
fn lasting(host: &MemoryHost) -> World {
    let mut world = host.world.borrow().clone();
    world.loaded.clear();
    world.generated.clear();
    world.reloads = 0;
    world
}

#[test]
fn with_its_data_everything_is_gone() {
    let host = blank();
    let mut before = lasting(&host);
    before.paths.remove(Path::new(config::PATH));
    before.paths.remove(Path::new(ETC));
    go(&host, &lab("[vms.web01]\ntier = 0\n")).1.unwrap();
    work(&host);
    back(&host, true, true).1.unwrap();
    assert_eq!(lasting(&host), before);
    let (removals, done) = back(&host, true, true);
    done.unwrap();
    assert_eq!(removals.to_string(), "0 changes");
}

#[test]
fn without_it_the_data_stays_and_apply_brings_the_stack_back() {
    let host = blank();
    let model = lab("[vms.web01]\ntier = 0\n");
    go(&host, &model).1.unwrap();
    work(&host);
    back(&host, false, true).1.unwrap();
    let world = host.world.borrow().clone();
    assert!(world.account.is_some() && world.images.is_empty() && world.secrets.is_empty());
    assert_eq!(
        world
            .things
            .iter()
            .filter(|(kind, _)| *kind == "volume")
            .count(),
        3
    );
    assert_eq!(world.paths[Path::new(FD_CONF)].text, "Password = theirs\n");
    for path in [
        "/srv/v/tier0-full-0001",
        "/var/lib/lab-backup/keys/web01",
        config::PATH,
    ] {
        assert!(world.paths.contains_key(Path::new(path)), "{path}");
    }
    assert_eq!(world.units.keys().collect::<Vec<_>>(), [FD]);
    let again = back(&host, false, true).0;
    assert_eq!(again.actions, []);
    let stays = again.stays.join("\n");
    for word in [
        "account lab-backup",
        "block maps",
        "lab.toml",
        "1 volume in /srv/v",
    ] {
        assert!(stays.contains(word), "{word} in {stays}");
    }
    go(&host, &model).1.unwrap();
    assert_eq!(go(&host, &model).0, 0);
}

#[test]
fn a_way_back_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let start = blank();
    let model = lab("[vms.web01]\ntier = 0\n");
    go(&start, &model).1.unwrap();
    work(&start);
    let world = start.world.borrow().clone();
    start.log.borrow_mut().clear();
    back(&start, true, true).1.unwrap();
    let steps = start.log.borrow().len();
    for cut in 0..steps {
        let host = MemoryHost::default();
        *host.world.borrow_mut() = world.clone();
        host.fuel.set(Some(cut));
        assert!(back(&host, true, true).1.is_err(), "cut {cut}");
        host.fuel.set(None);
        back(&host, true, true).1.unwrap();
        assert_eq!(lasting(&host), lasting(&start), "cut {cut}");
        assert_eq!(back(&host, true, true).0.actions, [], "cut {cut}");
    }
}

#[test]
fn an_apply_that_was_cut_off_anywhere_can_be_taken_back() {
    let before = {
        let host = blank();
        back(&host, true, true).1.unwrap();
        lasting(&host)
    };
    let model = lab("[vms.web01]\ntier = 0\n");
    let whole = blank();
    go(&whole, &model).1.unwrap();
    let steps = whole.log.borrow().len();
    for cut in 0..steps {
        let host = blank();
        host.fuel.set(Some(cut));
        assert!(go(&host, &model).1.is_err(), "cut {cut}");
        host.fuel.set(None);
        back(&host, true, true).1.unwrap();
        assert_eq!(lasting(&host), before, "cut {cut}");
    }
}

#[test]
fn one_failure_does_not_keep_the_rest_from_going() {
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    *host.broken.borrow_mut() = Some(Broken {
        what: "podman secret rm lab-backup-fd",
        file: None,
    });
    let error = back(&host, false, true).1.unwrap_err().to_string();
    assert!(error.starts_with("1 thing could not be removed"), "{error}");
    assert!(error.contains("lab-backup-fd failed: in use"), "{error}");
    assert!(host.world.borrow().images.is_empty());
    // The next one must know what the first found.
    assert!(
        host.world
            .borrow()
            .paths
            .contains_key(Path::new(Made::PATH))
    );
}

#[test]
fn what_podman_does_not_tell_is_not_taken_for_gone() {
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    *host.broken.borrow_mut() = Some(Broken {
        what: "podman image ls",
        file: None,
    });
    let error = back(&host, false, true).1.unwrap_err().to_string();
    assert!(error.contains("podman image ls"), "{error}");
    assert!(
        host.world
            .borrow()
            .paths
            .contains_key(Path::new(Made::PATH))
    );
    // With its home everything goes.
    back(&host, true, true).1.unwrap();
}

#[test]
fn a_guest_that_needs_repair_keeps_everything_in_place() {
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    host.put("/var/lib/lab-backup/journal/web01@7.jsonl", "frozen");
    *host.broken.borrow_mut() = Some(Broken {
        what: "repair",
        file: None,
    });
    let before = lasting(&host);
    let error = back(&host, true, true).1.unwrap_err().to_string();
    assert!(error.contains("web01@7.jsonl"), "{error}");
    assert_eq!(lasting(&host), before);
    *host.broken.borrow_mut() = None;
    back(&host, true, true).1.unwrap();
}

#[test]
fn what_others_own_stays() {
    let host = blank();
    host.world.borrow_mut().account = Some("Somebody".into());
    host.put("/var/lib/systemd/linger/lab-backup", "");
    host.world
        .borrow_mut()
        .images
        .insert("quay.io/theirs:1".into());
    host.put("/srv/v", "");
    host.put("/srv/v/photos", "theirs");
    host.put("/etc/lab-backup/notes", "theirs");
    go(&host, &lab("")).1.unwrap();
    host.put("/srv/v/tier0-full-0001", "data");
    let (removals, done) = back(&host, true, true);
    done.unwrap();
    let world = host.world.borrow();
    assert_eq!(world.account.as_deref(), Some("Somebody"));
    assert_eq!(
        world.images.iter().collect::<Vec<_>>(),
        ["quay.io/theirs:1"]
    );
    for path in [
        "/var/lib/systemd/linger/lab-backup",
        "/srv/v/photos",
        "/etc/lab-backup/notes",
    ] {
        assert!(world.paths.contains_key(Path::new(path)), "{path}");
    }
    assert!(
        !world
            .paths
            .contains_key(Path::new("/srv/v/tier0-full-0001"))
    );
    assert!(removals.stays[0].contains("did not make"), "{removals}");
}

#[test]
fn volumes_go_only_without_a_question() {
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    work(&host);
    let (removals, done) = back(&host, true, false);
    done.unwrap();
    assert!(
        removals
            .to_string()
            .contains("stays: 1 volume in /srv/v; add --yes")
    );
    assert!(
        host.world
            .borrow()
            .paths
            .contains_key(Path::new("/srv/v/tier0-full-0001"))
    );
}

#[test]
fn the_file_daemon_comes_back_as_it_was_found() {
    // Neither enabled nor running, as on RHEL, and without a configuration.
    let host = blank();
    host.world.borrow_mut().units.clear();
    host.world.borrow_mut().paths.remove(Path::new(FD_CONF));
    go(&host, &lab("")).1.unwrap();
    back(&host, false, true).1.unwrap();
    assert!(host.world.borrow().units.is_empty());
    assert!(!host.world.borrow().paths.contains_key(Path::new(FD_CONF)));

    // Changed by somebody since: theirs stays, and so does what apply had kept.
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    host.put(FD_CONF, "Password = newer\n");
    let (removals, done) = back(&host, false, true);
    done.unwrap();
    assert!(host.world.borrow().paths.contains_key(Path::new(FD_KEPT)));
    assert!(
        removals
            .stays
            .iter()
            .any(|line| line.contains("somebody changed"))
    );
    assert!(host.world.borrow().units[FD].active);
}

#[test]
fn services_stop_before_what_they_read_is_gone_and_the_guard_last() {
    let host = blank();
    go(&host, &lab("")).1.unwrap();
    host.log.borrow_mut().clear();
    back(&host, true, true).1.unwrap();
    let log = host.log.borrow();
    let at = |what: &str| {
        let at = log.iter().position(|line| line.contains(what));
        at.unwrap_or_else(|| panic!("no {what} in {log:#?}"))
    };
    let order = [
        "stop lab-backup-director.service",
        "stop lab-backup-storage.service",
        "stop lab-backup-catalog.service",
        "stop lab-backup-worker.socket",
        "stop lab-backup-guard.service",
        "remove /etc/containers/systemd/users/1000/lab-backup-catalog.container",
        "daemon-reload",
        "podman volume rm lab-backup-catalog",
        "stop bacula-fd.service",
        "rename",
        "start bacula-fd.service",
        "remove /etc/lab-backup/secrets",
        "no linger",
        "userdel",
        "remove /etc/lab-backup/lab.toml",
        "remove /var/lib/lab-backup/made.json",
    ];
    for pair in order.windows(2) {
        assert!(at(pair[0]) < at(pair[1]), "{pair:?} in {log:#?}");
    }
}
