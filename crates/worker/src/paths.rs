//! Where things live on a hypervisor, and what a catalog path means.

use std::path::{Path, PathBuf};

use relay::name;

/// First component of every catalog path of ours.
///
/// `#Class/…` is the convention that Bacularis follows for plugin data; an `@` would break its
/// browser.
pub const CLASS: &str = "#LabBackup";

/// Root of the run-time state (tmpfs).
pub const RUN: &str = "/run/lab-backup";
/// Root of the lasting state.
pub const STATE: &str = "/var/lib/lab-backup";

/// The places one process works with. Tests put them under a temporary directory.
#[derive(Clone, Debug)]
pub struct Places {
    /// tmpfs: locks, leases, sockets.
    pub run: PathBuf,
    /// Lasting: journal, maps, keys.
    pub state: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            run: RUN.into(),
            state: STATE.into(),
        }
    }
}

impl Places {
    /// Lock file of a VM.
    pub fn lock(&self, vm: &str) -> PathBuf {
        self.run.join("lock").join(vm)
    }
    /// Directory of the guard's leases.
    pub fn leases(&self) -> PathBuf {
        self.run.join("leases")
    }
    /// Directory of what the guard granted to jobs.
    pub fn claims(&self) -> PathBuf {
        self.run.join("claims")
    }
    /// The guard's socket.
    pub fn guard_socket(&self) -> PathBuf {
        self.run.join("guard.sock")
    }
    /// Directory in which QEMU creates its NBD sockets.
    pub fn nbd(&self) -> PathBuf {
        self.run.join("nbd")
    }
    /// Directory of the journals.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }
    /// Directory of a VM's block maps.
    pub fn maps(&self, vm: &str) -> PathBuf {
        self.state.join("maps").join(vm)
    }
    /// A VM's fingerprint key.
    pub fn key(&self, vm: &str) -> PathBuf {
        self.state.join("keys").join(vm)
    }
}

/// Where libvirt keeps the state of emulated TPMs, a directory for each UUID.
pub const SWTPM: &str = "/var/lib/libvirt/swtpm";

/// libvirt's directory for the state of a TPM of this version.
pub fn swtpm(uuid: &str, version: &str) -> PathBuf {
    let leaf = if version == "1.2" { "tpm1.2" } else { "tpm2" };
    Path::new(SWTPM).join(uuid).join(leaf)
}

/// The catalog path of a VM's file.
pub fn catalog(vm: &str, file: &str) -> String {
    format!("/{CLASS}/{vm}/{vm}/{file}")
}

/// Why a path from a volume is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path of this plugin")]
pub struct ForeignPath(String);

/// Takes a restored path apart into VM key and file name.
///
/// The File Daemon puts `where` in front, which may hold anything; only what follows the last
/// `/#LabBackup/` counts, and both names are checked, so neither can climb out of a directory.
pub fn parse_catalog(path: &str) -> Result<(&str, &str), ForeignPath> {
    let foreign = || ForeignPath(path.chars().take(200).collect());
    let (_, tail) = path
        .rsplit_once(&format!("/{CLASS}/"))
        .ok_or_else(foreign)?;
    let mut parts = tail.trim_end_matches('/').splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(vm), Some(setting), Some(file))
            if vm == setting && name::check(vm).is_ok() && is_in_backup(file) =>
        {
            Ok((vm, file))
        }
        _ => Err(foreign()),
    }
}

/// The directory of a TPM's state in a backup.
pub const TPM: &str = "tpm";
/// The directory in which every job of a chain has an empty file of its name: the Director knows it as
/// long as it has the job.
pub const CHAIN: &str = "chain";

/// A name that a file of a backup can have: a plain one, or a plain one in [`TPM`] or [`CHAIN`].
pub fn is_in_backup(file: &str) -> bool {
    match file.split_once('/') {
        None => ![TPM, CHAIN].contains(&file) && is_file_name(file),
        Some((dir, file)) => [TPM, CHAIN].contains(&dir) && is_file_name(file),
    }
}

/// Names that this program itself gives to files of a backup: nothing else is ever created.
pub fn is_file_name(file: &str) -> bool {
    !file.is_empty()
        && file.len() <= 128
        && !file.starts_with('.')
        && file
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The file of a disk in a backup. `over` is the job of `vm` in which it starts over between two Fulls: the
/// file has another name then, as Bacula's file browser goes by the highest sequence number of a name and
/// would show and restore the older content. A JobId would do, were it not given again after the catalog was
/// lost.
pub fn disk_file(target: &str, over: Option<(&str, &str)>) -> String {
    match over {
        None => format!("{target}.raw"),
        Some((vm, job)) => {
            let time = job.strip_prefix(vm).and_then(|time| time.strip_prefix('.'));
            format!("{target}.{}.raw", time.unwrap_or(job))
        }
    }
}

/// The target (`vda`) that a file name of a disk stands for.
pub fn disk_of(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".raw")?;
    let (target, _) = name.split_once('.').unwrap_or((name, ""));
    let plain = !target.is_empty() && target.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then_some(target)
}

/// Is `path` inside one of `roots`, by its text alone?
pub fn is_below(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalog_paths_survive_a_where_in_front() {
        let path = catalog("web01", "vda.raw");
        assert_eq!(path, "/#LabBackup/web01/web01/vda.raw");
        for front in ["", "/srv/x", "#eyJ2IjoxfQ", "/a/#LabBackup/b"] {
            assert_eq!(
                parse_catalog(&format!("{front}{path}")),
                Ok(("web01", "vda.raw"))
            );
        }
        let path = catalog("web01", "tpm/tpm2-00.permall");
        assert_eq!(parse_catalog(&path), Ok(("web01", "tpm/tpm2-00.permall")));
    }

    #[test]
    fn a_disk_has_the_name_of_the_job_that_started_it_over() {
        assert_eq!(disk_file("vda", None), "vda.raw");
        let over = disk_file("vda", Some(("web01.x", "web01.x.2026-01-31_22.00.00_05")));
        assert_eq!(over, "vda.2026-01-31_22.00.00_05.raw");
        assert_eq!(disk_of("vda.raw"), Some("vda"));
        assert_eq!(disk_of(&over), Some("vda"));
        for other in ["vda", ".raw", ".1.raw", "v-a.raw", "../vda.raw"] {
            assert_eq!(disk_of(other), None, "{other}");
        }
    }

    #[test]
    fn paths_that_climb_or_are_not_ours_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "/#LabBackup/a/b/vda.raw",
            "/#LabBackup/a/a/../x",
            "/#LabBackup/a/a/..",
            "/#LabBackup/a/a/.hidden",
            "/#LabBackup/../../vda.raw",
            "/#LabBackup/a/a/x y",
            "/#LabBackup/a/a",
            "/#LabBackup/a/a/",
            "/#LabBackup/a/a/tpm/",
            "/#LabBackup/a/a/tpm/.lock",
            "/#LabBackup/a/a/tpm/..",
            "/#LabBackup/a/a/tpm/../x",
            "/#LabBackup/a/a/tpm//x",
            "/#LabBackup/a/a/tpm/a/b",
            "/#LabBackup/a/a/other/x",
            "/#LabBackup/a/a//x",
        ] {
            assert!(parse_catalog(path).is_err(), "{path:?}");
        }
    }
}
