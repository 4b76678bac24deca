//! What is there: looks at this host, changes nothing.
//!
//! [`facts`] collects what rendering needs, [`state`] what a plan is compared with. Both run as
//! root; the account's containers are seen through its own Podman and its own systemd.

pub(crate) mod retired;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use highway::{HighwayHash as _, HighwayHasher};
use serde::Deserialize;

use crate::applied::Applied;
use crate::desired::{Desired, Scope, Service, fingerprint};
use crate::host::{Found, Host, Login, Run};
use crate::model::{Base, Model};
use crate::render::{self, CONTAINERS, Facts, PASSPHRASE, SECRETS_DIR, SENTINEL, STORAGE_DIR};

/// Volume of the Director's container below the account's home, as rootless Podman keeps it.
const DIRECTOR_VOLUME: &str = ".local/share/containers/storage/volumes/lab-backup-director/_data";

/// Oldest podman whose unit keys we use.
const PODMAN: (u32, u32) = (5, 4);

/// Why this host cannot be looked at, or cannot carry the stack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// Something cannot be read.
    #[error("cannot look at {path}", path = path.display())]
    Look {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Its command line.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Random numbers cannot be had.
    #[error("cannot get random numbers for a password: {0}")]
    Random(getrandom::Error),
    /// Everything that is missing, one line each.
    #[error("this host is not ready:{}", lines(.0))]
    NotReady(Vec<String>),
}

fn lines(items: &[String]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

/// What is there of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitState {
    /// Does it run, or listen, or wait?
    pub(crate) active: bool,
    /// Will it start at boot?
    pub(crate) enabled: bool,
}

/// What is there of all that shall be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The account.
    pub(crate) login: Option<Login>,
    /// Has it subordinate user and group ids?
    pub(crate) subids: bool,
    /// Does its manager run without a login?
    pub(crate) linger: bool,
    /// Files and directories by path.
    pub(crate) found: BTreeMap<PathBuf, Found>,
    /// Files of ours that shall no longer be there.
    pub(crate) strangers: Vec<PathBuf>,
    /// Images that are there.
    pub(crate) images: BTreeSet<String>,
    /// Fingerprints of Podman secrets by name.
    pub(crate) secrets: BTreeMap<String, String>,
    /// Units by name.
    pub(crate) units: BTreeMap<String, UnitState>,
    /// What the units run with.
    pub(crate) applied: Applied,
    /// What the mark of the directory of the volumes holds; none if it is not there or cannot be read.
    pub(crate) sentinel: Option<String>,
}

/// Checks that this host can carry the stack at all.
pub(crate) fn ready(host: &dyn Host, model: &Model) -> Result<(), Error> {
    let mut missing = Vec::new();
    let tools = [
        ("podman", "podman"),
        ("crun", "crun"),
        ("useradd", "passwd or shadow-utils"),
        ("usermod", "passwd or shadow-utils"),
        ("runuser", "util-linux"),
        ("loginctl", "systemd"),
        ("gpg", "gpg or gnupg2"),
        ("tar", "tar"),
        ("bconsole", "bacula-console"),
        ("bacula-fd", "bacula-fd or bacula-client"),
    ];
    let nfs = model.storage.nfs.as_ref();
    let nfs = nfs.map(|_| ("mount.nfs4", "nfs-utils or nfs-common"));
    for (tool, package) in tools.into_iter().chain(nfs) {
        let run = Run::new(&["sh", "-c", "command -v \"$1\"", "sh", tool]);
        if !host.run(&run).is_ok_and(|o| o.ok()) {
            missing.push(format!(
                "{tool} is not installed; install package {package}"
            ));
        }
    }
    if let Ok(output) = host.run(&Run::new(&["podman", "--version"]))
        && output.ok()
        && podman_version(&output.stdout).is_none_or(|version| version < PODMAN)
    {
        let version = output.stdout.trim();
        missing.push(format!(
            "{version} is too old; podman 5.4 or newer is needed"
        ));
    }
    for unit in ["lab-backup-worker.socket", "lab-backup-guard.service"] {
        let path = Path::new("/usr/lib/systemd/system").join(unit);
        if look(host, &path)?.is_none() {
            missing.push(format!(
                "{} is missing; run packaging/install",
                path.display()
            ));
        }
    }
    if !missing.is_empty() {
        return Err(Error::NotReady(missing));
    }
    Ok(())
}

fn podman_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split_whitespace().last()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What rendering needs to know of this host. Passwords that do not exist are made here, so that a
/// plan and its execution mean the same ones. `still` tells whether the catalog has backups of a VM.
pub(crate) fn facts(
    host: &dyn Host,
    model: &Model,
    still: &dyn Fn(&str) -> bool,
) -> Result<Facts, Error> {
    let uid = match login(host, &model.account)? {
        Some(login) => login.uid,
        None => free_uid(host, &model.storage.dir.join(SENTINEL))?,
    };
    let mut secrets = BTreeMap::new();
    for name in render::secrets(model) {
        let found = look(host, &Path::new(SECRETS_DIR).join(&name))?;
        let value = found.map(|f| f.text.trim().to_owned());
        let value = match value.filter(|v| is_secret(v)) {
            Some(value) => value,
            None => new_secret()?,
        };
        secrets.insert(name, value);
    }
    let mut sources = BTreeMap::new();
    for name in ["catalog", "director", "storage"] {
        sources.insert(name, source(host, &Path::new(CONTAINERS).join(name))?);
    }
    let first = |paths: &[&str]| -> Result<String, Error> {
        for path in paths {
            if look(host, Path::new(path))?.is_some() {
                return Ok((*path).into());
            }
        }
        Ok(paths.first().copied().unwrap_or_default().into())
    };
    let account = login(host, &model.account)?;
    let expected = Login {
        name: model.account.clone(),
        uid,
        gid: uid,
        home: Path::new("/home").join(&model.account),
    };
    let director_data = director_data(account.as_ref().unwrap_or(&expected));
    let passphrase = look(host, Path::new(PASSPHRASE))?.map(|found| found.text.trim().to_owned());
    let dir = &model.storage.dir;
    // The record alone decides: a mark that is found may be that of another lab.
    let known = look(host, &Path::new(STORAGE_DIR).join("sentinel"))?;
    let known = known.map(|found| found.text.trim().to_owned());
    let known = known.filter(|id| is_secret(id));
    let mounts = look(host, Path::new("/proc/self/mountinfo"))?;
    let base = match &model.images.base {
        Base::Tar(tar) => Some(content(tar)?),
        Base::Image(_) => None,
    };
    Ok(Facts {
        uid,
        plugin_dir: first(&["/usr/lib64/bacula", "/usr/lib/bacula"])?,
        fd_work_dir: first(&["/var/lib/bacula", "/var/spool/bacula"])?,
        secrets,
        sources,
        base,
        retired: retired::retired(host, model, still)?,
        director_data,
        passphrase: match passphrase {
            Some(short) if short.len() < SHORTEST_PASSPHRASE => {
                let reason = format!(
                    "{PASSPHRASE} has less than {SHORTEST_PASSPHRASE} letters; write a longer passphrase, or remove it to have one made"
                );
                return Err(Error::NotReady(vec![reason]));
            }
            Some(passphrase) => passphrase,
            None => new_passphrase()?,
        },
        sentinel: match known {
            Some(id) => id,
            None => new_secret()?,
        },
        mounted: mounts.and_then(|found| mounted(&found.text, dir)),
        selinux: look(host, Path::new("/sys/fs/selinux/enforce"))?.is_some(),
    })
}

/// What the Director's container keeps, seen from outside.
pub(crate) fn director_data(account: &Login) -> PathBuf {
    account.home.join(DIRECTOR_VOLUME)
}

/// What is mounted at a path: proc_pid_mountinfo(5); such a path has no characters that are escaped there. The last
/// one counts.
fn mounted(mounts: &str, path: &Path) -> Option<String> {
    let at = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(path);
    let line = mounts.lines().rfind(at)?;
    let (_, filesystem) = line.split_once(" - ")?;
    filesystem.split(' ').nth(1).map(str::to_owned)
}

/// What the mark holds. Read by the account: on a share root is nobody.
fn sentinel(host: &dyn Host, path: &Path, account: Option<&Login>) -> Option<String> {
    let Some(account) = account else {
        return look(host, path).ok().flatten().map(|found| found.text);
    };
    let cat = Run::new(&["cat", "--", &path.to_string_lossy()]).login(account);
    let output = host.run(&cat).ok()?;
    output.ok().then_some(output.stdout)
}

/// A password may stand unquoted in a Bacula file and in quotes in SQL.
fn is_secret(text: &str) -> bool {
    (20..=120).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn new_secret() -> Result<String, Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("k{hex}"))
}

/// Shortest passphrase that an admin may choose, in bytes.
const SHORTEST_PASSPHRASE: usize = 12;

/// 125 random bits that can be written down: no letter looks like another one.
fn new_passphrase() -> Result<String, Error> {
    const LETTERS: &[u8; 32] = b"abcdefghjkmnopqrstuvwxyz23456789";
    let mut bytes = [0; 25];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    let letters = bytes.map(|b| char::from(LETTERS[usize::from(b % 32)]));
    let groups: Vec<String> = letters
        .chunks(5)
        .map(|group| group.iter().collect())
        .collect();
    Ok(groups.join("-"))
}

/// Fingerprint of an image's sources.
fn source(host: &dyn Host, dir: &Path) -> Result<String, Error> {
    let mut parts = Vec::new();
    for name in list(host, dir)? {
        let found = look(host, &dir.join(&name))?;
        parts.push(name);
        parts.push(found.map(|f| f.text).unwrap_or_default());
    }
    Ok(fingerprint(parts.iter().map(String::as_bytes)))
}

/// Fingerprint of a large file.
fn content(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Look {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = HighwayHasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        match buffer.get(..read) {
            None | Some([]) => break,
            Some(bytes) => hasher.append(bytes),
        }
    }
    Ok(format!("{:016x}", hasher.finalize64()))
}

/// What is there of `desired`.
pub(crate) fn state(host: &dyn Host, desired: &Desired) -> Result<State, Error> {
    let login = login(host, &desired.account)?;
    let mut state = State {
        applied: Applied::read(host).map_err(|source| Error::Look {
            path: Applied::PATH.into(),
            source,
        })?,
        ..State::default()
    };
    let dirs = desired.dirs.iter().map(|d| &d.path);
    for path in dirs.chain(desired.files.iter().map(|f| &f.path)) {
        if let Some(found) = look(host, path)? {
            state.found.insert(path.clone(), found);
        }
    }
    for (dir, prefix) in &desired.owned {
        for name in list(host, dir)? {
            let path = dir.join(&name);
            let known = desired.files.iter().any(|f| f.path == path);
            if name.starts_with(prefix) && !known {
                state.strangers.push(path);
            }
        }
    }
    if let Some(login) = &login {
        account(host, desired, login, &mut state)?;
    }
    for service in desired.mounts.iter().chain(&desired.services) {
        let unit = unit(host, service, login.as_ref())?;
        state.units.insert(service.unit.clone(), unit);
    }
    state.sentinel = sentinel(host, &desired.sentinel.path, login.as_ref());
    state.login = login;
    Ok(state)
}

fn account(
    host: &dyn Host,
    desired: &Desired,
    login: &Login,
    state: &mut State,
) -> Result<(), Error> {
    let subids = |argv: &[&str]| -> Result<bool, Error> {
        let output = run(host, &Run::new(argv))?;
        let wide = output.stdout.lines().any(|line| {
            let count = line.split_whitespace().last().and_then(|n| n.parse().ok());
            count.is_some_and(|count: u64| count >= 65_536)
        });
        Ok(output.ok() && wide)
    };
    state.subids =
        subids(&["getsubids", &login.name])? && subids(&["getsubids", "-g", &login.name])?;
    let linger = Path::new("/var/lib/systemd/linger").join(&login.name);
    state.linger = look(host, &linger)?.is_some();
    if !state.subids || !state.linger {
        // Its Podman cannot answer yet.
        return Ok(());
    }
    for image in &desired.images {
        let exists = Run::new(&["podman", "image", "exists", &image.tag]).login(login);
        if run(host, &exists)?.ok() {
            state.images.insert(image.tag.clone());
        }
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inspected {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Spec {
        name: String,
        #[serde(default)]
        labels: Option<BTreeMap<String, String>>,
    }
    for secret in &desired.secrets {
        let inspect = Run::new(&["podman", "secret", "inspect", &secret.name]).login(login);
        let output = run(host, &inspect)?;
        let secrets: Vec<Inspected> = serde_json::from_str(&output.stdout).unwrap_or_default();
        for secret in secrets {
            let labels = secret.spec.labels.unwrap_or_default();
            let fingerprint = labels.get("fingerprint").cloned().unwrap_or_default();
            state.secrets.insert(secret.spec.name, fingerprint);
        }
    }
    Ok(())
}

fn unit(host: &dyn Host, service: &Service, login: Option<&Login>) -> Result<UnitState, Error> {
    let show = match (service.scope, login) {
        (Scope::System, _) => Run::new(&["systemctl", "show"]),
        (Scope::Account, Some(login)) => Run::new(&["systemctl", "--user", "show"]).login(login),
        (Scope::Account, None) => return Ok(UnitState::default()),
    };
    let mut show = show;
    show.argv
        .extend(["-p", "ActiveState,UnitFileState", &service.unit].map(str::to_owned));
    let output = run(host, &show)?;
    let has = |line: &str| output.stdout.lines().any(|l| l == line);
    Ok(UnitState {
        active: has("ActiveState=active"),
        enabled: has("UnitFileState=enabled"),
    })
}

/// The account of that name, if there is one.
pub(crate) fn login(host: &dyn Host, name: &str) -> Result<Option<Login>, Error> {
    let output = run(host, &Run::new(&["getent", "passwd", name]))?;
    let fields: Vec<&str> = output.stdout.trim().split(':').collect();
    let [_, _, uid, gid, _, home, ..] = fields.as_slice() else {
        return Ok(None);
    };
    let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else {
        return Ok(None);
    };
    Ok(Some(Login {
        name: name.into(),
        uid,
        gid,
        home: home.into(),
    }))
}

/// A user id that nobody has, so that a plan can name the paths that depend on it. Volumes that are there already
/// keep their owner if that can be.
fn free_uid(host: &dyn Host, mark: &Path) -> Result<u32, Error> {
    let output = run(host, &Run::new(&["getent", "passwd"]))?;
    let taken: BTreeSet<u32> = output
        .stdout
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok())
        .collect();
    let owner = host.look(mark).ok().flatten().map(|found| found.uid);
    let ids = owner
        .into_iter()
        .filter(|uid| (1000..60_000).contains(uid))
        .chain(1000..60_000);
    let free = ids.into_iter().find(|uid| !taken.contains(uid));
    free.ok_or_else(|| Error::NotReady(vec!["no user id from 1000 to 59999 is free".into()]))
}

fn look(host: &dyn Host, path: &Path) -> Result<Option<Found>, Error> {
    host.look(path).map_err(|source| Error::Look {
        path: path.into(),
        source,
    })
}

fn list(host: &dyn Host, dir: &Path) -> Result<Vec<String>, Error> {
    host.list(dir).map_err(|source| Error::Look {
        path: dir.into(),
        source,
    })
}

fn run(host: &dyn Host, run: &Run) -> Result<crate::process::Output, Error> {
    host.run(run).map_err(|source| Error::Run {
        program: run.line(),
        source,
    })
}
