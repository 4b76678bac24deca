//! What is there of all that `apply` may have made: looks, changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    Applied, BCONSOLE, CONTAINERS, DIRECTOR_DIR, ETC, FD, FD_CONF, Kind, Made, SECRETS_DIR,
    STORAGE_DIR, Target, UNITS,
};
use crate::config;
use crate::desired::Scope;
use crate::host::{Host, Login, Run};
use crate::kit;
use crate::observe::{self, Error, UnitState};
use crate::process::Output;
use crate::render::{self, ACCOUNT_COMMENT, FD_KEPT, HEADER, SENTINEL};

/// Lasting state on the hypervisor; its directories are the package's.
const STATE: &str = "/var/lib/lab-backup";
/// How our half-written files are called.
const TEMPORARY: &str = ".lab-backup-";

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The account.
    pub(crate) login: Option<Login>,
    /// Was it made by `apply`?
    pub(super) ours: bool,
    /// Does its manager run without a login?
    pub(super) linger: bool,
    /// Does its manager run now, so that Podman can be asked?
    pub(super) manager: bool,
    /// Units of ours and the File Daemon's.
    pub(super) units: BTreeMap<&'static str, UnitState>,
    /// Files that Quadlet reads.
    pub(super) unit_files: Vec<PathBuf>,
    /// Other files of ours.
    pub(super) files: Vec<PathBuf>,
    /// Directories with nothing but files of ours.
    pub(super) trees: Vec<PathBuf>,
    /// Directories that may go when they are empty, and what is in them.
    pub(super) dirs: BTreeMap<PathBuf, Vec<String>>,
    /// Things of Podman's, in the order in which they can go.
    pub(super) podman: Vec<(Kind, String)>,
    /// Why Podman did not tell all that it has.
    pub(crate) silent: Option<String>,
    /// Maps and keys.
    pub(super) state: Vec<PathBuf>,
    /// Journals of jobs that left something in a guest.
    pub(super) journals: Vec<String>,
    /// Were files restored to the state directory?
    pub(super) restored: bool,
    /// Volumes with backups.
    pub(super) volumes: Vec<String>,
    /// What else of ours lies beside them: the mark, the recovery kits.
    pub(super) beside: Vec<String>,
    /// Mount units of ours.
    pub(super) mounts: Vec<String>,
    /// Files of ours that the host's systemd reads.
    pub(super) host_files: Vec<PathBuf>,
    /// The File Daemon's configuration.
    pub(super) fd_conf: Option<String>,
    /// The one that `apply` found.
    pub(super) fd_kept: Option<String>,
    /// Is there a `lab.toml`?
    pub(super) lab: bool,
    /// What `apply` made.
    pub(super) made: Option<Made>,
    /// Records of `apply`.
    pub(super) records: Vec<PathBuf>,
}

impl Seen {
    /// What `apply` made; an older one left no record.
    pub(super) fn record(&self) -> Made {
        self.made.clone().unwrap_or_default()
    }

    /// Does the Director run?
    pub(crate) fn director(&self) -> bool {
        self.units.get(super::DIRECTOR).is_some_and(|u| u.active)
    }
}

/// Looks at this host.
pub(crate) fn look(host: &dyn Host, target: &Target) -> Result<Seen, Error> {
    let looker = Looker { host, target };
    let mut seen = Seen {
        login: observe::login(host, &target.account)?,
        made: Made::read(host).map_err(|source| Error::Look {
            path: Made::PATH.into(),
            source,
        })?,
        fd_conf: looker.text(Path::new(FD_CONF))?,
        fd_kept: looker.text(Path::new(FD_KEPT))?,
        ..Seen::default()
    };
    looker.account(&mut seen)?;
    looker.units(&mut seen)?;
    looker.etc(&mut seen)?;
    looker.host_units(&mut seen)?;
    looker.state(&mut seen)?;
    looker.dirs(&mut seen)?;
    Ok(seen)
}

/// Things of Podman's, and why these may not be all.
type Things = (Vec<(Kind, String)>, Option<String>);

struct Looker<'a> {
    host: &'a dyn Host,
    target: &'a Target,
}

impl Looker<'_> {
    fn account(&self, seen: &mut Seen) -> Result<(), Error> {
        let Some(login) = &seen.login else {
            return Ok(());
        };
        let passwd = self.run(&Run::new(&["getent", "passwd", &login.name]))?;
        seen.ours = passwd.trim().split(':').nth(4) == Some(ACCOUNT_COMMENT);
        let linger = Path::new("/var/lib/systemd/linger").join(&login.name);
        seen.linger = self.text(&linger)?.is_some();
        let runtime = PathBuf::from(format!("/run/user/{}", login.uid));
        seen.manager = self.text(&runtime)?.is_some();
        let dir = render::units_dir(login.uid);
        let ours = |name: &String| name.starts_with("lab-backup") || name.starts_with(TEMPORARY);
        let names = self.list(&dir)?.into_iter().filter(ours);
        seen.unit_files = names.map(|name| dir.join(name)).collect();
        if seen.manager {
            let (things, silent) = self.podman(login, seen.ours)?;
            seen.podman = things;
            // With the account's home everything goes.
            seen.silent = silent.filter(|_| !(seen.ours && self.target.purge));
        }
        Ok(())
    }

    /// What Podman has, and why that may not be all.
    fn podman(&self, login: &Login, ours: bool) -> Result<Things, Error> {
        let mut silent = None;
        let mut ask = |words: &[&str]| -> Result<Vec<String>, Error> {
            let run = Run::new(words).login(login);
            let output = self.output(&run)?;
            if !output.ok() {
                silent = Some(format!("{} failed: {}", run.line(), output.stderr.trim()));
            }
            let names = output.stdout.split_whitespace();
            Ok(names.map(str::to_owned).collect())
        };
        let name = "{{.Name}}";
        let mut things = Vec::new();
        let mut add = |kind, names: Vec<String>, ours: &dyn Fn(&str) -> bool| {
            let names = names.into_iter().filter(|name| ours(name));
            things.extend(names.map(|name| (kind, name)));
        };
        let container = |name: &str| CONTAINERS.contains(&name);
        let containers = ask(&["podman", "ps", "--all", "--format", "{{.Names}}"])?;
        add(Kind::Container, containers, &container);
        let secrets = ask(&["podman", "secret", "ls", "--format", name])?;
        add(Kind::Secret, secrets, &|name| {
            let secret = name.strip_prefix("lab-backup-");
            secret.is_some_and(|name| render::SECRETS.contains(&name) || name.starts_with("user-"))
        });
        let networks = ask(&["podman", "network", "ls", "--format", name])?;
        add(Kind::Network, networks, &|name| name == "lab-backup");
        let format = "{{.Repository}}:{{.Tag}}";
        let mut images = ask(&["podman", "image", "ls", "--format", format])?;
        // What others are built on goes last.
        let base = |tag: &String| tag.starts_with("localhost/lab-backup-base:");
        images.sort_by_key(|tag| (!tag.starts_with("localhost/"), base(tag), tag.clone()));
        add(Kind::Image, images, &|tag| {
            let built = tag.starts_with("localhost/lab-backup-");
            // In an account that we did not make, others may use what we pulled.
            built || (ours && self.target.pulled.contains(tag))
        });
        let volumes = ask(&["podman", "volume", "ls", "--format", name])?;
        add(Kind::Volume, volumes, &container);
        Ok((things, silent))
    }

    fn units(&self, seen: &mut Seen) -> Result<(), Error> {
        for (unit, scope) in UNITS.into_iter().chain([(FD, Scope::System)]) {
            let show = match (scope, &seen.login) {
                (Scope::System, _) => Run::new(&["systemctl", "show"]),
                (Scope::Account, Some(login)) if seen.manager => {
                    Run::new(&["systemctl", "--user", "show"]).login(login)
                }
                (Scope::Account, _) => continue,
            };
            let mut show = show;
            let words = ["-p", "ActiveState,UnitFileState", unit];
            show.argv.extend(words.map(str::to_owned));
            let text = self.run(&show)?;
            let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            // One that starts again and again is not active and must be stopped all the same.
            let active = field("ActiveState=");
            let state = UnitState {
                active: active.is_some_and(|a| !matches!(a, "" | "inactive" | "failed")),
                enabled: field("UnitFileState=") == Some("enabled"),
            };
            seen.units.insert(unit, state);
        }
        Ok(())
    }

    fn etc(&self, seen: &mut Seen) -> Result<(), Error> {
        let etc = Path::new(ETC);
        for name in self.list(etc)? {
            let path = etc.join(&name);
            let is = |other: &str| path == Path::new(other);
            if is(config::PATH) {
                seen.lab = true;
            } else if is(DIRECTOR_DIR)
                || (self.target.purge && (is(SECRETS_DIR) || is(STORAGE_DIR)))
            {
                seen.trees.push(path);
            } else if is(SECRETS_DIR) || is(STORAGE_DIR) {
                // What the volumes and the kits beside them are known and opened by stays as long as they do.
                let names = self.list(&path)?.into_iter();
                let gone = names.filter(|name| !["kit", "sentinel"].contains(&name.as_str()));
                seen.files.extend(gone.map(|name| path.join(name)));
            } else if is(BCONSOLE) || is(relay::policy::PATH) || name.starts_with(TEMPORARY) {
                seen.files.push(path);
            }
        }
        let bacula = Path::new("/etc/bacula");
        let names = self.list(bacula)?.into_iter();
        let left = names.filter(|name| name.starts_with(TEMPORARY));
        seen.files.extend(left.map(|name| bacula.join(name)));
        Ok(())
    }

    /// Units that apply wrote for the host's own systemd.
    fn host_units(&self, seen: &mut Seen) -> Result<(), Error> {
        let dir = Path::new("/etc/systemd/system");
        let mut paths: Vec<PathBuf> = self.list(dir)?.iter().map(|name| dir.join(name)).collect();
        let users = seen.login.iter();
        paths.extend(
            users.map(|login| dir.join(format!("user@{}.service.d/lab-backup.conf", login.uid))),
        );
        for path in paths {
            // Links are the enabled units of others.
            let text = self.host.look(&path).ok().flatten().map(|found| found.text);
            if !text.is_some_and(|text| text.starts_with(HEADER)) {
                continue;
            }
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| name.ends_with(".mount")) {
                seen.mounts.push(name.into());
            }
            seen.host_files.push(path);
        }
        Ok(())
    }

    fn state(&self, seen: &mut Seen) -> Result<(), Error> {
        let state = Path::new(STATE);
        let maps = state.join("maps");
        let names = self.list(&maps)?.into_iter();
        seen.state = names.map(|name| maps.join(name)).collect();
        for name in self.list(state)? {
            let path = state.join(&name);
            if name == "keys" || name == "kit" {
                seen.state.push(path);
            } else if path == Path::new(Applied::PATH)
                || path == Path::new(Made::PATH)
                || name == "base.tar"
                || name.starts_with(TEMPORARY)
            {
                seen.records.push(path);
            }
        }
        // Without it the next uninstall would not know what the others are about.
        seen.records
            .sort_by_key(|path| path == Path::new(Made::PATH));
        seen.journals = self.list(&state.join("journal"))?;
        seen.restored = !self.list(&state.join("restore"))?.is_empty();
        if let Some(dir) = &self.target.storage {
            let names = self.list(dir)?;
            let ours = [SENTINEL, "RESTORE.txt", kit::DIR];
            seen.beside = names
                .iter()
                .filter(|n| ours.contains(&n.as_str()))
                .cloned()
                .collect();
            seen.volumes = names.into_iter().filter(|n| is_volume(n)).collect();
        }
        Ok(())
    }

    fn dirs(&self, seen: &mut Seen) -> Result<(), Error> {
        let mut dirs: Vec<PathBuf> = seen.record().dirs.into_iter().collect();
        dirs.push(ETC.into());
        dirs.extend(seen.login.iter().map(|login| render::units_dir(login.uid)));
        dirs.retain(|dir| !seen.trees.iter().any(|tree| dir.starts_with(tree)));
        for dir in dirs {
            if self.text(&dir)?.is_some() {
                let names = self.list(&dir)?;
                seen.dirs.insert(dir, names);
            }
        }
        Ok(())
    }

    /// Text of a file; empty for a directory.
    fn text(&self, path: &Path) -> Result<Option<String>, Error> {
        let found = self.host.look(path).map_err(|source| Error::Look {
            path: path.into(),
            source,
        })?;
        Ok(found.map(|f| f.text))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        self.host.list(dir).map_err(|source| Error::Look {
            path: dir.into(),
            source,
        })
    }

    fn run(&self, run: &Run) -> Result<String, Error> {
        Ok(self.output(run)?.stdout)
    }

    fn output(&self, run: &Run) -> Result<Output, Error> {
        self.host.run(run).map_err(|source| Error::Run {
            program: run.line(),
            source,
        })
    }
}

/// Is this the name of a volume of ours, such as `tier0-full-0001`? The directory may hold more.
fn is_volume(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some(number) = name.strip_prefix("lab-backup-catalog-") {
        return number.len() >= 4 && digits(number);
    }
    let mut parts = name.split('-');
    let tier = parts.next().and_then(|part| part.strip_prefix("tier"));
    let level = parts.next();
    let number = parts.next();
    tier.is_some_and(digits)
        && matches!(level, Some("full" | "diff" | "inc"))
        && number.is_some_and(|n| n.len() >= 4 && digits(n))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::is_volume;

    #[test]
    fn only_our_volumes_are_ours() {
        for name in [
            "lab-backup-catalog-0001",
            "tier0-full-0001",
            "tier12-inc-10000",
            "tier3-diff-0042",
        ] {
            assert!(is_volume(name), "{name}");
        }
        for name in [
            "tier0-full",
            "tier-full-0001",
            "tier0-full-1",
            "tier0-full-0001.bak",
            "tier0-full-0001-x",
            "home",
            "tier0-log-0001",
        ] {
            assert!(!is_volume(name), "{name}");
        }
    }
}
