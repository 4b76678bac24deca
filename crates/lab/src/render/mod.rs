//! From the model to everything that shall exist: pure, so that it can be compared, shown and
//! tested against golden files.
//!
//! No password is ever part of a configuration file. Files name a path, the daemon reads it: in a
//! container `/run/secrets/…`, on the host `/etc/lab-backup/secrets/…`. So every file but the
//! secrets themselves may be shown in a plan.

mod bacula;
mod consoles;
mod director;
mod hypervisor;
mod kit;
mod mount;
mod quadlet;
mod storage;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use relay::policy;

use crate::desired::{
    Desired, Dir, File, Image, Owner, Scope, Secret, Service, Source, fingerprint,
};
use crate::model::{Base, Model, Vm};
pub(crate) use mount::SENTINEL;

pub(crate) use units::dir as units_dir;

/// First line of every file we write.
pub(crate) const HEADER: &str =
    "# Written by lab-backup apply from /etc/lab-backup/lab.toml; changes are lost.\n";

/// Everything of ours on the host.
pub(crate) const ETC: &str = "/etc/lab-backup";
/// Passwords, one per file.
pub(crate) const SECRETS_DIR: &str = "/etc/lab-backup/secrets";
/// What the mark of the directory of the volumes must hold.
pub(crate) const RECORD: &str = "/etc/lab-backup/storage/sentinel";
/// What root's own bconsole reads.
pub(crate) const BCONSOLE: &str = "/etc/lab-backup/bconsole.conf";
/// What the native File Daemon reads.
pub(crate) const FD_CONF: &str = "/etc/bacula/bacula-fd.conf";
/// The one that the package brought.
pub(crate) const FD_KEPT: &str = "/etc/bacula/bacula-fd.conf.packaged";
/// Sources of the images.
pub(crate) const CONTAINERS: &str = "/usr/share/lab-backup/containers";
pub(crate) const DIRECTOR_DIR: &str = "/etc/lab-backup/director";
/// One file for each VM.
pub(crate) const VMS_DIR: &str = "/etc/lab-backup/director/vms";
/// What the Storage Daemon's container reads.
pub(crate) const STORAGE_DIR: &str = "/etc/lab-backup/storage";
/// What the account database says of an account that apply made.
pub(crate) const ACCOUNT_COMMENT: &str = "Containers of lab-backup";

/// Units of the three containers, in the order in which they start.
pub(crate) const CATALOG: &str = "lab-backup-catalog.service";
pub(crate) const STORAGE: &str = "lab-backup-storage.service";
pub(crate) const DIRECTOR: &str = "lab-backup-director.service";
pub(crate) const FD: &str = "bacula-fd.service";
/// Units of the host's that the package brings.
pub(crate) const GUARD: &str = "lab-backup-guard.service";
pub(crate) const SOCKET: &str = "lab-backup-worker.socket";
pub(crate) const REPAIR: &str = "lab-backup-repair.timer";

/// Every secret: a file of that name, and for most a Podman secret `lab-backup-NAME`.
pub(crate) const SECRETS: [&str; 7] = [
    "catalog",
    "console-engineer",
    "console-monitor",
    "console-operator",
    "director",
    "fd",
    "storage",
];

/// The secrets of a lab: those that each has, and the password of every user's console.
pub(crate) fn secrets(model: &Model) -> Vec<String> {
    let own = SECRETS.iter().map(|name| (*name).to_owned());
    let users = model.users.keys().map(|name| format!("user-{name}"));
    own.chain(users).collect()
}

/// Passphrase of the recovery kit. No container gets it.
pub(crate) const PASSPHRASE: &str = "/etc/lab-backup/secrets/kit";
/// Where the recovery kit is kept on this host.
pub(crate) const KIT_DIR: &str = "/var/lib/lab-backup/kit";
/// The catalog as its job saves it, in the Director's volume.
pub(crate) const DUMP: &str = "lab-backup-catalog.sql";
/// Bootstraps, in the Director's volume.
pub(crate) const BOOTSTRAPS: &str = "bootstrap";

/// What the host contributes, besides the model.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// User id of the account, present or chosen.
    pub(crate) uid: u32,
    /// Directory from which the native File Daemon loads plugins.
    pub(crate) plugin_dir: String,
    /// Directory in which the native File Daemon keeps its state.
    pub(crate) fd_work_dir: String,
    /// Passwords by name, read or freshly made.
    pub(crate) secrets: BTreeMap<String, String>,
    /// Fingerprint of each image's sources, by name.
    pub(crate) sources: BTreeMap<&'static str, String>,
    /// Fingerprint of the base tar, when the base is one.
    pub(crate) base: Option<String>,
    /// VMs that the model no longer has and that must still be restorable.
    pub(crate) retired: BTreeMap<String, Vm>,
    /// What the Director's container keeps, seen from outside: its volume.
    pub(crate) director_data: PathBuf,
    /// Passphrase of the recovery kit: read, or freshly made.
    pub(crate) passphrase: String,
    /// Names the directory of the volumes: read, or freshly made.
    pub(crate) sentinel: String,
    /// What is mounted on it.
    pub(crate) mounted: Option<String>,
    /// Has this host SELinux?
    pub(crate) selinux: bool,
}

/// What shall exist.
pub(crate) fn render(model: &Model, facts: &Facts) -> Desired {
    let images = images(model, facts);
    let units = units::files(model, facts, &images);
    let director = director::files(model, facts);
    let storage = storage::conf(model);
    let fd = hypervisor::fd(model, facts);
    let bconsole = hypervisor::bconsole();
    let policy = policy(model, facts);

    let secret = |names: &[&str]| {
        let values = names.iter().filter_map(|name| facts.secrets.get(*name));
        fingerprint(values.map(String::as_bytes))
    };
    let text = |file: &File| file.text.clone();
    let unit_files = |name: &str| -> Vec<&File> {
        // The network and the volumes are part of what a container starts with.
        let shared = units.iter().filter(|f| !ends(f, ".container"));
        let own = units
            .iter()
            .filter(|f| ends(f, &format!("{name}.container")));
        own.chain(shared).collect()
    };
    let unit = |name: &str| -> String { unit_files(name).into_iter().map(text).collect() };
    let beside = |name: &str| -> Vec<PathBuf> {
        let files = unit_files(name).into_iter();
        files.map(|f| f.path.clone()).collect()
    };
    let service = |unit: &str, starts_with: &[&str], files: &[File]| Service {
        unit: unit.into(),
        scope: Scope::Account,
        enable: false,
        starts_with: fingerprint(starts_with.iter().map(|s| s.as_bytes())),
        reloads: None,
        files: files.iter().map(|f| f.path.clone()).collect(),
        beside: Vec::new(),
    };
    let system = |unit: &str| Service {
        unit: unit.into(),
        scope: Scope::System,
        enable: true,
        starts_with: String::new(),
        reloads: None,
        files: Vec::new(),
        beside: Vec::new(),
    };
    let services = vec![
        Service {
            beside: beside("catalog"),
            ..service(CATALOG, &[&unit("catalog"), &secret(&["catalog"])], &[])
        },
        Service {
            beside: beside("storage"),
            ..service(
                STORAGE,
                &[&unit("storage"), &secret(&["storage"]), &storage.text],
                std::slice::from_ref(&storage),
            )
        },
        Service {
            // A VM that the Director knows must be known to its worker.
            beside: [beside("director"), vec![policy::PATH.into()]].concat(),
            reloads: Some(fingerprint(director.iter().map(|f| f.text.as_bytes()))),
            ..service(
                DIRECTOR,
                &[
                    &unit("director"),
                    &fingerprint(facts.secrets.values().map(String::as_bytes)),
                ],
                &director,
            )
        },
        Service {
            scope: Scope::System,
            enable: true,
            ..service(FD, &[&fd.text, &secret(&["fd"])], std::slice::from_ref(&fd))
        },
        system(GUARD),
        system(SOCKET),
        system(REPAIR),
        system("lab-backup-kit.path"),
    ];

    let sentinel = mount::sentinel(model, facts);
    let (mount_files, mounts) = mount::mount(model, facts);
    let mut files = secret_files(facts);
    files.extend(kit::files(facts));
    files.push(root_file(&sentinel.record, sentinel.text.clone()));
    files.extend(mount_files);
    files.extend(units);
    files.extend(director);
    files.extend([storage, bconsole, fd, policy]);
    Desired {
        account: model.account.clone(),
        uid: facts.uid,
        dirs: dirs(model, facts),
        files,
        owned: vec![(units::dir(facts.uid), "lab-backup"), (VMS_DIR.into(), "")],
        secrets: podman_secrets(facts),
        images: images.all,
        mounts,
        sentinel,
        services,
    }
}

fn ends(file: &File, suffix: &str) -> bool {
    file.path.as_os_str().to_string_lossy().ends_with(suffix)
}

fn root_file(path: impl Into<PathBuf>, text: String) -> File {
    File {
        path: path.into(),
        text,
        mode: 0o644,
        secret: false,
    }
}

fn dirs(model: &Model, facts: &Facts) -> Vec<Dir> {
    let root = |path: &str, mode| Dir {
        path: path.into(),
        mode,
        owner: Owner::Root,
    };
    vec![
        root(ETC, 0o755),
        root(SECRETS_DIR, 0o700),
        root(DIRECTOR_DIR, 0o755),
        root(VMS_DIR, 0o755),
        root(STORAGE_DIR, 0o755),
        root("/etc/containers/systemd", 0o755),
        root("/etc/containers/systemd/users", 0o755),
        Dir {
            path: units::dir(facts.uid),
            mode: 0o755,
            owner: Owner::Root,
        },
        root("/var/lib/lab-backup", 0o711),
        root(KIT_DIR, 0o700),
    ]
    .into_iter()
    .chain(mount::dirs(model, facts))
    .collect()
}

fn secret_files(facts: &Facts) -> Vec<File> {
    let file = |(name, value): (&String, &String)| File {
        path: Path::new(SECRETS_DIR).join(name),
        text: format!("{value}\n"),
        mode: 0o600,
        secret: true,
    };
    facts.secrets.iter().map(file).collect()
}

fn podman_secrets(facts: &Facts) -> Vec<Secret> {
    let secret = |(name, value): (&String, &String)| Secret {
        name: format!("lab-backup-{name}"),
        file: Path::new(SECRETS_DIR).join(name),
        fingerprint: fingerprint([value.as_bytes()]),
    };
    facts.secrets.iter().map(secret).collect()
}

fn policy(model: &Model, facts: &Facts) -> File {
    let mut policy = model.hypervisor.policy.clone();
    for (key, vm) in facts.retired.iter().chain(&model.vms) {
        policy.vms.insert(key.clone(), vm.policy.clone());
    }
    root_file(policy::PATH, format!("{HEADER}\n{}", policy.to_toml()))
}

/// The images and which of them each container runs.
struct Images {
    catalog: String,
    director: String,
    storage: String,
    all: Vec<Image>,
}

fn images(model: &Model, facts: &Facts) -> Images {
    let mut all = Vec::new();
    let base = match &model.images.base {
        Base::Image(reference) => reference.clone(),
        Base::Tar(tar) => {
            let tag = format!(
                "localhost/lab-backup-base:{}",
                facts.base.as_deref().unwrap_or("none")
            );
            all.push(Image {
                tag: tag.clone(),
                source: Source::Import { tar: tar.clone() },
            });
            tag
        }
    };
    let mut image = |name: &'static str, ready: &Option<String>| {
        if let Some(tag) = ready {
            all.push(Image {
                tag: tag.clone(),
                source: Source::Pull,
            });
            return tag.clone();
        }
        // The tag names the content, so that changed sources give a new image and an image that
        // was built elsewhere and loaded is recognised.
        let sources = facts.sources.get(name).map_or("", String::as_str);
        let content = fingerprint([sources.as_bytes(), base.as_bytes()]);
        let tag = format!("localhost/lab-backup-{name}:{content}");
        all.push(Image {
            tag: tag.clone(),
            source: Source::Build {
                dir: Path::new(CONTAINERS).join(name),
                base: base.clone(),
            },
        });
        tag
    };
    let catalog = image("catalog", &model.images.catalog);
    let storage = image("storage", &model.images.storage);
    let director = image("director", &model.images.director);
    let built = all.iter().any(|i| matches!(i.source, Source::Build { .. }));
    if !built {
        // Nobody needs the base then.
        all.retain(|i| !matches!(i.source, Source::Import { .. }));
    }
    Images {
        catalog,
        director,
        storage,
        all,
    }
}

#[cfg(test)]
mod tests;
