//! The directory of the volumes: what is mounted there, and the mark by which the Storage Daemon knows it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Facts, HEADER, STORAGE_DIR, root_file};
use crate::desired::{Dir, File, Owner, Scope, Sentinel, Service};
use crate::model::{Model, Nfs, NfsMode};

/// Name of the mark in the directory of the volumes.
pub(crate) const SENTINEL: &str = ".lab-backup";

/// The mark.
pub(super) fn sentinel(model: &Model, facts: &Facts) -> Sentinel {
    let dir = &model.storage.dir;
    let source = model
        .storage
        .nfs
        .as_ref()
        .map_or("", |nfs| nfs.source.as_str());
    Sentinel {
        path: dir.join(SENTINEL),
        record: Path::new(STORAGE_DIR).join("sentinel"),
        text: format!("{}\n", facts.sentinel),
        place: format!("{} {source}", dir.display()),
        elsewhere: facts
            .mounted
            .clone()
            .filter(|found| !source.is_empty() && found != source),
    }
}

/// Directory of what the account's service manager is told; made with the mount.
pub(super) fn drop_in(facts: &Facts) -> PathBuf {
    format!("/etc/systemd/system/user@{}.service.d", facts.uid).into()
}

/// The directory itself. Below a share it belongs to nobody, so that nothing can be written there while the share
/// is not mounted; what is mounted is the server's to own.
pub(super) fn dirs(model: &Model, facts: &Facts) -> Vec<Dir> {
    let volumes = |mode, owner| Dir {
        path: model.storage.dir.clone(),
        mode,
        owner,
    };
    if model.storage.nfs.is_none() {
        return vec![volumes(0o750, Owner::Account)];
    }
    let below = facts.mounted.is_none().then(|| volumes(0o000, Owner::Root));
    let drop_in = Dir {
        path: drop_in(facts),
        mode: 0o755,
        owner: Owner::Root,
    };
    below.into_iter().chain([drop_in]).collect()
}

/// The mount unit, and what makes the account's service manager wait for it.
pub(super) fn mount(model: &Model, facts: &Facts) -> (Vec<File>, Vec<Service>) {
    let Some(nfs) = &model.storage.nfs else {
        return (Vec::new(), Vec::new());
    };
    let dir = model.storage.dir.to_string_lossy();
    let unit = unit_name(&dir);
    let options = options(nfs, facts.selinux);
    let text = format!(
        "{HEADER}\n[Unit]\nDescription=Volumes of lab-backup\nDocumentation=man:nfs(5)\n\n\
         [Mount]\nWhat={}\nWhere={dir}\nType=nfs4\nOptions={options}\nTimeoutSec=60\n\n\
         [Install]\nWantedBy=remote-fs.target\n",
        nfs.source
    );
    let mount = root_file(Path::new("/etc/systemd/system").join(&unit), text);
    // Wants, not Requires: without the server the Director must still come up and say so.
    let waits = root_file(
        drop_in(facts).join("lab-backup.conf"),
        format!("{HEADER}\n[Unit]\nWants={unit}\nAfter={unit}\n"),
    );
    let service = Service {
        unit: unit.clone(),
        scope: Scope::System,
        enable: true,
        // A new source is mounted by a new unit name or by hand: an unmount under running jobs would lose them.
        starts_with: String::new(),
        reloads: None,
        files: vec![mount.path.clone()],
        beside: Vec::new(),
    };
    // systemd tries a mount once; a server that comes up after this host would be missed for ever. Starting what is
    // mounted does nothing.
    let timer = unit.replace(".mount", "-again.timer");
    let text = format!(
        "{HEADER}\n[Unit]\nDescription=Try again to mount the volumes of lab-backup\n\n[Timer]\nOnCalendar=*:0/5\nUnit={unit}\n\n\
         [Install]\nWantedBy=timers.target\n"
    );
    let again = Service {
        unit: timer.clone(),
        ..service.clone()
    };
    let timer = root_file(Path::new("/etc/systemd/system").join(timer), text);
    (vec![mount, waits, timer], vec![service, again])
}

/// Waits of softerr and soft, as nfs(5) counts them: `timeo` in tenths of a second, longer by itself each time,
/// `retrans` times. A server that reboots, with its grace period of 90 s, must not cost a job.
const WAIT: &str = "timeo=600,retrans=5";

fn options(nfs: &Nfs, selinux: bool) -> String {
    let mut options = format!("vers=4.2,{}", nfs.mode);
    if nfs.mode != NfsMode::Hard {
        options.push(',');
        options.push_str(WAIT);
    }
    options.push_str(",nconnect=4,noatime,nodev,nosuid,noexec,_netdev");
    if selinux {
        // Else containers reach NFS only by a boolean that opens it to every virtual machine as well.
        options.push_str(",context=system_u:object_r:container_file_t:s0");
    }
    options
}

/// The name of a mount unit, as systemd.unit(5) escapes a path.
fn unit_name(dir: &str) -> String {
    let mut name = String::new();
    for (at, byte) in dir.trim_matches('/').bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b if b.is_ascii_alphanumeric() || b"_.:".contains(&b) => name.push(b.into()),
            // Writing to a String cannot fail.
            b => drop(write!(name, "\\x{b:02x}")),
        }
    }
    name + ".mount"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_unit_is_named_as_systemd_escapes_its_path() {
        assert_eq!(unit_name("/srv/lab-backup"), "srv-lab\\x2dbackup.mount");
        assert_eq!(unit_name("/.a/.b_c"), "\\x2ea-.b_c.mount");
    }

    #[test]
    fn every_mode_says_how_long_it_waits() {
        let of = |mode, selinux| {
            let source = "nas:/x".into();
            options(&Nfs { source, mode }, selinux)
        };
        assert!(of(NfsMode::Softerr, false).starts_with("vers=4.2,softerr,timeo=600,retrans=5,"));
        assert!(!of(NfsMode::Hard, false).contains("retrans"));
        assert!(of(NfsMode::Soft, true).ends_with("container_file_t:s0"));
    }
}
