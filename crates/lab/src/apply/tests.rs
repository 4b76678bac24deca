//! A host in memory that behaves like the real one as far as apply can see, and that can fail at
//! any step. What it proves: apply reaches what was planned, a second apply has nothing to do, and
//! whatever interrupts the first one, the next one ends in the same state.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::host::Found;
use crate::model::Model;
use crate::observe::UnitState;
use crate::render::{self, Facts};
use crate::{model, plan};

const LAB: &str = "version = 1\n[lab]\naddress = \"lab\"\n[storage]\ndir = \"/srv/v\"\n[images]\nbase = \"/base.tar\"\n";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct World {
    paths: BTreeMap<PathBuf, Found>,
    account: bool,
    images: BTreeSet<String>,
    secrets: BTreeMap<String, String>,
    units: BTreeMap<String, UnitState>,
    /// What the account's systemd has read.
    generated: BTreeMap<PathBuf, String>,
    /// The Director's configuration in memory.
    loaded: BTreeMap<PathBuf, String>,
    reloads: u64,
}

#[derive(Default)]
struct MemoryHost {
    world: RefCell<World>,
    log: RefCell<Vec<String>>,
    /// Changes that may still happen before everything fails.
    fuel: Cell<Option<usize>>,
    refuse: Cell<bool>,
}

impl MemoryHost {
    fn burn(&self, what: String) -> io::Result<()> {
        if let Some(fuel) = self.fuel.get() {
            let left = fuel.checked_sub(1).ok_or(io::ErrorKind::Interrupted)?;
            self.fuel.set(Some(left));
        }
        self.log.borrow_mut().push(what);
        Ok(())
    }

    fn under(&self, dir: &str) -> BTreeMap<PathBuf, String> {
        let world = self.world.borrow();
        let files = world.paths.iter().filter(|(path, _)| path.starts_with(dir));
        files
            .map(|(path, found)| (path.clone(), found.text.clone()))
            .collect()
    }

    fn unit(&self, verb: &str, name: &str) -> io::Result<i32> {
        self.burn(format!("{verb} {name}"))?;
        let generated = ["catalog", "storage", "director"]
            .iter()
            .any(|n| name.contains(n));
        let mut loaded = None;
        if name.contains("director") && verb != "enable" {
            loaded = Some(self.under("/etc/lab-backup/director"));
        }
        let mut world = self.world.borrow_mut();
        if generated && world.generated.is_empty() {
            return Ok(5);
        }
        if let Some(loaded) = loaded {
            world.loaded = loaded;
        }
        let unit = world.units.entry(name.into()).or_default();
        unit.active |= verb != "enable";
        unit.enabled |= verb == "enable";
        Ok(0)
    }
}

impl Host for MemoryHost {
    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        Ok(self.world.borrow().paths.get(path).cloned())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world.borrow();
        let inside = world.paths.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name());
        Ok(names
            .map(|name| name.to_string_lossy().into_owned())
            .collect())
    }

    fn run(&self, run: &Run) -> io::Result<Output> {
        let argv: Vec<&str> = run.argv.iter().map(String::as_str).collect();
        let answer = |code: i32, stdout: String| {
            Ok(Output {
                code: Some(code),
                stdout,
                stderr: String::new(),
            })
        };
        let exists = self.world.borrow().account;
        let passwd = if exists {
            "lab-backup:x:1000:1000::/home/lab-backup:/x\n"
        } else {
            ""
        };
        match argv.as_slice() {
            ["getent", "passwd", ..] => answer(if exists { 0 } else { 2 }, passwd.into()),
            ["useradd", ..] => {
                self.burn("useradd".into())?;
                self.world.borrow_mut().account = true;
                answer(0, String::new())
            }
            ["usermod", option, range, _] => {
                self.burn(format!("usermod {option} {range}"))?;
                let file = if *option == "--add-subuids" {
                    "/etc/subuid"
                } else {
                    "/etc/subgid"
                };
                let text = format!("lab-backup:{}:65536\n", range.split('-').next().unwrap());
                let found = Found {
                    text,
                    mode: 0o644,
                    uid: 0,
                };
                self.world.borrow_mut().paths.insert(file.into(), found);
                answer(0, String::new())
            }
            ["getsubids", rest @ ..] => {
                let file = if rest.len() == 2 {
                    "/etc/subgid"
                } else {
                    "/etc/subuid"
                };
                let found = self.look(Path::new(file))?;
                answer(
                    0,
                    found.map_or(String::new(), |_| "0: lab-backup 100000 65536\n".into()),
                )
            }
            ["loginctl", "enable-linger", name] => {
                self.burn("linger".into())?;
                let path = Path::new("/var/lib/systemd/linger").join(name);
                let found = Found {
                    text: String::new(),
                    mode: 0o644,
                    uid: 0,
                };
                self.world.borrow_mut().paths.insert(path, found);
                answer(0, String::new())
            }
            ["systemctl", "--user", "is-system-running", _] => answer(0, "running\n".into()),
            ["systemctl", "--user", "daemon-reload"] => {
                self.burn("daemon-reload".into())?;
                let read = self.under("/etc/containers/systemd");
                self.world.borrow_mut().generated = read;
                answer(0, String::new())
            }
            ["systemctl", .., "-p", _, unit] => {
                let unit = self
                    .world
                    .borrow()
                    .units
                    .get(*unit)
                    .copied()
                    .unwrap_or_default();
                let active = if unit.active { "active" } else { "inactive" };
                let enabled = if unit.enabled { "enabled" } else { "disabled" };
                answer(
                    0,
                    format!("ActiveState={active}\nUnitFileState={enabled}\n"),
                )
            }
            ["systemctl", .., "reset-failed", _] => answer(1, String::new()),
            ["systemctl", .., verb, unit] => answer(self.unit(verb, unit)?, String::new()),
            ["journalctl", ..] => answer(0, String::new()),
            ["podman", "image", "exists", tag] => {
                let there = self.world.borrow().images.contains(*tag);
                answer(if there { 0 } else { 1 }, String::new())
            }
            ["podman", "import" | "build" | "pull", .., a, b] => {
                self.burn(format!(
                    "image {} {}",
                    argv[1],
                    if argv[1] == "build" { a } else { b }
                ))?;
                let tag = if argv[1] == "build" { a } else { b };
                self.world.borrow_mut().images.insert((*tag).into());
                answer(0, String::new())
            }
            ["podman", "secret", "inspect", name] => match self.world.borrow().secrets.get(*name) {
                Some(label) => {
                    let (_, fingerprint) = label.split_once('=').unwrap();
                    answer(
                        0,
                        format!(
                            r#"[{{"ID":"x","Spec":{{"Name":"{name}","Labels":{{"fingerprint":"{fingerprint}"}}}}}}]"#
                        ),
                    )
                }
                None => answer(125, "[]".into()),
            },
            ["podman", "secret", "create", _, _, label, name, "-"] => {
                self.burn(format!("secret {name}"))?;
                self.world
                    .borrow_mut()
                    .secrets
                    .insert((*name).into(), (*label).into());
                answer(0, String::new())
            }
            ["cat", "--", path] => match self.look(Path::new(path))? {
                Some(found) => answer(0, found.text),
                None => answer(1, String::new()),
            },
            ["tee", "--", path] => {
                self.burn(format!("tee {path}"))?;
                let Some(Feed::File(from)) = &run.stdin else {
                    panic!("nothing to write to {path}");
                };
                let mut found = self.look(from)?.unwrap();
                found.uid = 1000;
                self.world.borrow_mut().paths.insert(path.into(), found);
                answer(0, String::new())
            }
            ["systemctl", "daemon-reload"] => answer(0, String::new()),
            ["podman", "exec", ..] => answer(1, "line 7: no such resource\n".into()),
            other => panic!("nobody taught the host {other:?}"),
        }
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()> {
        self.burn(format!("write {}", path.display()))?;
        let found = Found {
            text: text.into(),
            mode,
            uid: 0,
        };
        self.world.borrow_mut().paths.insert(path.into(), found);
        Ok(())
    }

    fn make_dir(&self, path: &Path, mode: u32, (uid, _): (u32, u32)) -> io::Result<()> {
        self.burn(format!("dir {}", path.display()))?;
        let found = Found {
            text: String::new(),
            mode,
            uid,
        };
        self.world.borrow_mut().paths.insert(path.into(), found);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.burn(format!("remove {}", path.display()))?;
        self.world.borrow_mut().paths.remove(path);
        Ok(())
    }
}

impl Director for MemoryHost {
    fn reloaded(&self) -> Result<u64, bconsole::Error> {
        Ok(self.world.borrow().reloads)
    }

    fn reload(&self) -> Result<String, bconsole::Error> {
        self.burn("reload".into()).map_err(bconsole::Error::Run)?;
        if self.refuse.get() {
            return Ok("Please correct configuration file\n".into());
        }
        let loaded = self.under("/etc/lab-backup/director");
        let mut world = self.world.borrow_mut();
        world.loaded = loaded;
        world.reloads += 1;
        Ok(String::new())
    }
}

fn lab(vms: &str) -> Model {
    model::parse(&format!("{LAB}{vms}")).unwrap()
}

fn facts() -> Facts {
    Facts {
        uid: 1000,
        plugin_dir: "/usr/lib/bacula".into(),
        fd_work_dir: "/var/lib/bacula".into(),
        secrets: render::SECRETS
            .map(|name| (name.to_owned(), format!("k{name}")))
            .into(),
        sources: BTreeMap::from([("catalog", "1".into()), ("director", "2".into())]),
        base: Some("b".into()),
        retired: BTreeMap::new(),
        director_data: "/home/lab-backup/director".into(),
        passphrase: "ksecretkit".into(),
        sentinel: "kmark".into(),
        mounted: false,
        selinux: false,
    }
}

/// One `lab-backup apply`: the number of its actions, and how it ended.
fn go(host: &MemoryHost, model: &Model) -> (usize, Result<(), Error>) {
    let desired = render::render(model, &facts());
    let state = observe::state(host, &desired).unwrap();
    let plan = plan::plan(&desired, &state);
    let done = apply(host, host, &desired, state, &plan, &mut |_| {});
    (plan.actions.len(), done)
}

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
fn a_configuration_that_the_director_refuses_stays_to_be_done() {
    let host = MemoryHost::default();
    go(&host, &lab("")).1.unwrap();
    host.refuse.set(true);
    let after = lab("[vms.web01]\ntier = 0\n");
    let error = go(&host, &after).1.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert!(error.to_string().contains("line 7"), "{error}");
    host.refuse.set(false);
    assert_eq!(go(&host, &after).0, 1);
    assert_eq!(go(&host, &after).0, 0);
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
