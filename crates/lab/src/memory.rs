//! For tests: a host in memory that behaves like the real one as far as `apply` and `uninstall` can
//! see, and that can fail at any step.

mod lab;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use lab::{LAB, facts, go, lab};

use crate::host::{Feed, Found, Host, Run};
use crate::observe::UnitState;
use crate::process::Output;

/// All that can change on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) paths: BTreeMap<PathBuf, Found>,
    /// What the account database says of the account.
    pub(crate) account: Option<String>,
    pub(crate) images: BTreeSet<String>,
    pub(crate) secrets: BTreeMap<String, String>,
    /// Networks and volumes, made by the units that need them.
    pub(crate) things: BTreeSet<(&'static str, String)>,
    /// Those that run or are enabled.
    pub(crate) units: BTreeMap<String, UnitState>,
    /// What the account's systemd has read.
    pub(crate) generated: BTreeMap<PathBuf, String>,
    /// The Director's configuration in memory.
    pub(crate) loaded: BTreeMap<PathBuf, String>,
    pub(crate) reloads: u64,
}

/// What does not work.
pub(crate) struct Broken {
    /// A part of its line in the log.
    pub(crate) what: &'static str,
    /// Only while this file has this text in it.
    pub(crate) file: Option<(&'static str, &'static str)>,
}

/// The host.
#[derive(Default)]
pub(crate) struct MemoryHost {
    pub(crate) world: RefCell<World>,
    /// Every change, in order.
    pub(crate) log: RefCell<Vec<String>>,
    /// Changes that may still happen before everything fails.
    pub(crate) fuel: Cell<Option<usize>>,
    /// Does the Director refuse its configuration?
    pub(crate) refuse: Cell<bool>,
    /// A change that fails, by a part of its line in the log, while the text says why not yet.
    pub(crate) broken: RefCell<Option<Broken>>,
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

    /// Does a program fail?
    fn fails(&self, what: &str) -> bool {
        let broken = self.broken.borrow();
        let Some(broken) = broken.as_ref().filter(|b| what.contains(b.what)) else {
            return false;
        };
        broken.file.is_none_or(|(path, text)| {
            let world = self.world.borrow();
            let found = world.paths.get(Path::new(path));
            found.is_some_and(|f| f.text.contains(text))
        })
    }

    /// An empty file of root's.
    pub(crate) fn put(&self, path: impl AsRef<Path>, text: &str) {
        let found = Found {
            text: text.into(),
            mode: 0o644,
            uid: 0,
        };
        let path = path.as_ref().to_path_buf();
        self.world.borrow_mut().paths.insert(path, found);
    }

    pub(crate) fn under(&self, dir: &str) -> BTreeMap<PathBuf, String> {
        let world = self.world.borrow();
        let files = world.paths.iter().filter(|(path, _)| path.starts_with(dir));
        files
            .map(|(path, found)| (path.clone(), found.text.clone()))
            .collect()
    }

    fn unit(&self, verb: &str, name: &str) -> io::Result<i32> {
        let what = format!("{verb} {name}");
        self.burn(what.clone())?;
        let container = ["catalog", "storage", "director"]
            .iter()
            .find(|n| name == format!("lab-backup-{n}.service"));
        let up = matches!(verb, "start" | "restart");
        let loaded = self.under("/etc/lab-backup/director");
        let fails = self.fails(&what);
        let mut world = self.world.borrow_mut();
        if up && (fails || container.is_some() && world.generated.is_empty()) {
            world.units.entry(name.into()).or_default().active = false;
            return Ok(5);
        }
        if let Some(container) = container.filter(|_| up) {
            let volume = format!("lab-backup-{container}");
            world.things.insert(("volume", volume.clone()));
            world.things.insert(("network", "lab-backup".into()));
            let unit = format!("{volume}-volume.service");
            world.units.entry(unit).or_default().active = true;
            if *container == "director" {
                world.loaded = loaded;
            }
        }
        let unit = world.units.entry(name.into()).or_default();
        match verb {
            "enable" => unit.enabled = true,
            "disable" => unit.enabled = false,
            "stop" => unit.active = false,
            _ => unit.active = true,
        }
        world.units.retain(|_, unit| unit.active || unit.enabled);
        Ok(0)
    }

    fn names(&self, kind: &str) -> String {
        let world = self.world.borrow();
        let things = world.things.iter().filter(|(k, _)| *k == kind);
        let names: Vec<&str> = match kind {
            "secret" => world.secrets.keys().map(String::as_str).collect(),
            "image" => world.images.iter().map(String::as_str).collect(),
            _ => things.map(|(_, name)| name.as_str()).collect(),
        };
        names.join("\n")
    }
}

impl Host for MemoryHost {
    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        let world = self.world.borrow();
        if path.starts_with("/run/user") {
            let linger = Path::new("/var/lib/systemd/linger/lab-backup");
            return Ok(world.paths.get(linger).cloned());
        }
        Ok(world.paths.get(path).cloned())
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
        let account = self.world.borrow().account.clone();
        let exists = account.is_some();
        let passwd = account.map_or(String::new(), |comment| {
            format!("lab-backup:x:1000:1000:{comment}:/home/lab-backup:/x\n")
        });
        match argv.as_slice() {
            ["getent", "passwd", ..] => answer(if exists { 0 } else { 2 }, passwd),
            ["useradd", .., "--comment", comment, _] => {
                self.burn("useradd".into())?;
                self.world.borrow_mut().account = Some((*comment).into());
                answer(0, String::new())
            }
            ["userdel", "--remove", _] => {
                self.burn("userdel".into())?;
                let mut world = self.world.borrow_mut();
                world.account = None;
                world.paths.remove(Path::new("/etc/subuid"));
                world.paths.remove(Path::new("/etc/subgid"));
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
                self.put(file, &text);
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
                self.put(Path::new("/var/lib/systemd/linger").join(name), "");
                answer(0, String::new())
            }
            ["loginctl", "disable-linger", name] => {
                self.burn("no linger".into())?;
                let path = Path::new("/var/lib/systemd/linger").join(name);
                self.world.borrow_mut().paths.remove(&path);
                answer(0, String::new())
            }
            ["systemctl", "--user", "is-system-running", _] => answer(0, "running\n".into()),
            ["systemctl", "--user", "daemon-reload"] => {
                self.burn("daemon-reload".into())?;
                let read = self.under("/etc/containers/systemd");
                self.world.borrow_mut().generated = read;
                answer(0, String::new())
            }
            ["systemctl", "daemon-reload"] => answer(0, String::new()),
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
            ["systemctl", "start", "lab-backup-repair.service"] => {
                self.burn("repair".into())?;
                if self.fails("repair") {
                    return answer(1, String::new());
                }
                let journal = Path::new("/var/lib/lab-backup/journal");
                let mut world = self.world.borrow_mut();
                world.paths.retain(|path, _| path.parent() != Some(journal));
                answer(0, String::new())
            }
            ["systemctl", .., "reset-failed", _] => answer(1, String::new()),
            ["systemctl", "stop", manager, _] if manager.starts_with("user@") => {
                self.burn(format!("stop {manager}"))?;
                answer(0, String::new())
            }
            ["systemctl", .., verb, unit] => answer(self.unit(verb, unit)?, String::new()),
            ["journalctl", ..] => answer(0, String::new()),
            ["podman", "image", "exists", tag] => {
                let there = self.world.borrow().images.contains(*tag);
                answer(if there { 0 } else { 1 }, String::new())
            }
            ["podman", "pull", tag] => {
                self.burn(format!("image pull {tag}"))?;
                self.world.borrow_mut().images.insert((*tag).into());
                answer(0, String::new())
            }
            ["podman", "import" | "build", .., a, b] => {
                self.burn(format!(
                    "image {} {}",
                    argv[1],
                    if argv[1] == "build" { a } else { b }
                ))?;
                let tag = if argv[1] == "build" { a } else { b };
                self.world.borrow_mut().images.insert((*tag).into());
                answer(0, String::new())
            }
            ["podman", "ps", ..] => answer(0, String::new()),
            ["podman", kind, "ls", ..] if self.fails(&format!("podman {kind} ls")) => {
                answer(125, String::new())
            }
            ["podman", kind, "ls", ..] => answer(0, self.names(kind)),
            ["podman", kind, "rm", name] => {
                let what = format!("podman {kind} rm {name}");
                self.burn(what.clone())?;
                if self.fails(&what) {
                    return answer(2, "in use".into());
                }
                let mut world = self.world.borrow_mut();
                world.images.retain(|n| *kind != "image" || n != name);
                world.secrets.retain(|n, _| *kind != "secret" || n != name);
                world.things.retain(|(k, n)| k != kind || n != name);
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
            ["ls", "-1", "--", dir] => answer(0, self.list(Path::new(dir))?.join("\n")),
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

    fn keep(&self, path: &Path, kept: &Path) -> io::Result<()> {
        self.burn(format!("keep {}", kept.display()))?;
        let mut world = self.world.borrow_mut();
        let found = world.paths.get(path).cloned();
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        world.paths.entry(kept.into()).or_insert(found);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.burn(format!("rename {}", from.display()))?;
        let mut world = self.world.borrow_mut();
        let found = world.paths.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.paths.insert(to.into(), found);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.burn(format!("rmdir {}", path.display()))?;
        if !self.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.world.borrow_mut().paths.remove(path);
        Ok(())
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.burn(format!("remove {}", path.display()))?;
        let mut world = self.world.borrow_mut();
        world.paths.retain(|other, _| !other.starts_with(path));
        Ok(())
    }
}
