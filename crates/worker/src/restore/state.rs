//! Where the state beside the disks goes: UEFI variables, TPM, kernel and initial RAM disk.
//!
//! Under the same identity everything goes where it was. A VM under a new name gets its own copies;
//! only a kernel that is the very same is shared, because it is only read.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::allowed::{PASSED, allowed, refuse_file, room};
use super::decide::plain_name;
use crate::journal::Journal;
use crate::manifest::{self, Manifest, Owner};
use crate::owner::{self, Ids};
use crate::serve::Job;
use crate::session::Line;
use crate::{digest, paths};

/// Where libvirt keeps UEFI variables.
const NVRAM_DIR: &str = "/var/lib/libvirt/qemu/nvram";

/// UEFI variables to be.
pub(super) struct NvramFile {
    pub(super) path: PathBuf,
    pub(super) ids: Ids,
}

/// State of a TPM to be.
pub(super) struct TpmState {
    pub(super) dir: PathBuf,
    /// Names in the backup.
    pub(super) files: Vec<String>,
    pub(super) ids: Ids,
    /// Must the definition forget the directory that somebody chose?
    pub(super) moved: bool,
}

/// Kernel or initial RAM disk to be.
pub(super) struct BootFile {
    /// `kernel` or `initrd`.
    pub(super) file: String,
    pub(super) path: PathBuf,
    /// Is it written by us? Otherwise the one that is there is the same.
    pub(super) ours: bool,
}

/// Who the restored VM is.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) name: &'a str,
    pub(super) uuid: &'a str,
    pub(super) renamed: bool,
}

/// What the decisions rest on.
pub(super) struct State<'a> {
    pub(super) line: &'a Line,
    pub(super) job: &'a Job,
    pub(super) manifest: &'a Manifest,
    pub(super) identity: Identity<'a>,
    pub(super) journal: &'a mut Journal,
}

impl State<'_> {
    /// The directory of `path`, below the policy's directories or below `root`.
    fn allow(&mut self, dir: &Path, root: Option<&str>) -> Result<PathBuf> {
        let mut roots = self.job.policy.restore_dirs.clone();
        roots.extend(root.map(PathBuf::from));
        allowed(dir, &roots, PASSED, self.journal)
    }

    /// UEFI variables: in the same place, or in libvirt's under the new name.
    pub(super) fn nvram(&mut self) -> Result<Option<NvramFile>> {
        let Some(nvram) = &self.manifest.nvram else {
            return Ok(None);
        };
        let path = if self.identity.renamed {
            let ending = if nvram.format == "qcow2" {
                "qcow2"
            } else {
                "fd"
            };
            Path::new(NVRAM_DIR).join(format!("{}_VARS.{ending}", self.identity.name))
        } else {
            nvram.source.clone()
        };
        self.allow(path.parent().unwrap_or(Path::new("/")), Some(NVRAM_DIR))?;
        refuse_file(&path)?;
        let ids = self.ids(&nvram.owner, "NVRAM")?;
        Ok(Some(NvramFile { path, ids }))
    }

    /// A TPM's state: where it was, or in libvirt's directory of the new UUID.
    pub(super) fn tpm(&mut self) -> Result<Option<TpmState>> {
        let Some(tpm) = &self.manifest.tpm else {
            return Ok(None);
        };
        let moved = tpm.chosen && self.identity.renamed;
        let dir = if tpm.chosen && !moved {
            tpm.source.clone()
        } else {
            paths::swtpm(self.identity.uuid, &tpm.version)
        };
        for file in &tpm.files {
            let plain = file
                .strip_prefix(paths::TPM)
                .and_then(|f| f.strip_prefix('/'));
            ensure!(
                plain.is_some_and(paths::is_file_name),
                "the manifest calls {file:?} a file of the TPM state"
            );
        }
        refuse_state(&dir)?;
        let dir = self.allow(&dir, Some(paths::SWTPM))?;
        let ids = self.ids(&tpm.owner, "TPM state")?;
        Ok(Some(TpmState {
            dir,
            files: tpm.files.clone(),
            ids,
            moved,
        }))
    }

    /// Kernel and initial RAM disk: the same ones where they were, otherwise ours `beside` the images.
    pub(super) fn boot(&mut self, beside: &Path) -> Result<Vec<BootFile>> {
        let manifest = self.manifest;
        let mut files = Vec::new();
        for boot in &manifest.boot {
            ensure!(
                ["kernel", "initrd"].contains(&boot.file.as_str()),
                "the manifest calls {:?} a file that is booted",
                boot.file
            );
            let record = manifest
                .file(&boot.file)
                .with_context(|| format!("the manifest has no record of its {}", boot.file))?;
            if is_same(&boot.source, record) {
                files.push(BootFile {
                    file: boot.file.clone(),
                    path: boot.source.clone(),
                    ours: false,
                });
                continue;
            }
            let name = format!("{}-{}", plain_name(self.identity.name), boot.file);
            let path = self.allow(beside, None)?.join(name);
            refuse_file(&path)?;
            room(beside, record.size)?;
            self.line.info(format!(
                "{}: the {} {} is missing or another one on this host; the one in the backup goes to {}",
                manifest.vm,
                boot.file,
                boot.source.display(),
                path.display()
            ));
            files.push(BootFile {
                file: boot.file.clone(),
                path,
                ours: true,
            });
        }
        Ok(files)
    }

    /// The owner's numbers on this host.
    fn ids(&self, owner: &Owner, what: &str) -> Result<Ids> {
        let ids = owner::ids(owner).context("cannot read the names of users")?;
        let unknown = [
            ("user", &owner.user, ids.user),
            ("group", &owner.group, ids.group),
        ];
        for (kind, name, id) in unknown {
            if let (Some(name), None) = (name, id) {
                self.line.warn(format!(
                    "{}: this host has no {kind} {name:?}, whose the {what} was; it is root's until libvirt starts the VM",
                    self.manifest.vm
                ));
            }
        }
        Ok(ids)
    }
}

/// Refuses the state of a TPM that is there: it cannot be made again.
fn refuse_state(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot look into {}", dir.display()))?,
    };
    for entry in entries {
        if entry?.file_name() != ".lock" {
            bail!(
                "{} holds the state of a TPM; move it away, or restore under a new name",
                dir.display()
            );
        }
    }
    Ok(())
}

/// Is there a file with exactly this content?
fn is_same(path: &Path, record: &manifest::File) -> bool {
    // The path comes out of a volume: a pipe or device there must not make us wait or read for ever.
    let open = |path: &Path| -> std::io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = options.read(true).custom_flags(nonblock).open(path)?;
        let facts = file.metadata()?;
        Ok((facts.is_file() && facts.len() == record.size).then_some(file))
    };
    if !path.is_absolute() {
        return false;
    }
    let Ok(Some(file)) = open(path) else {
        return false;
    };
    digest::of_reader(file, record.size.saturating_add(1))
        .is_ok_and(|(found, size)| size == record.size && found == record.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_same_kernel_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        std::fs::write(&path, "kernel").unwrap();
        let mut record = manifest::File {
            name: "kernel".into(),
            size: 6,
            digest: digest::of(b"kernel"),
        };
        assert!(is_same(&path, &record));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(is_same(&link, &record));
        std::fs::write(&path, "kernal").unwrap();
        assert!(!is_same(&path, &record));
        for other in ["/dev/zero", "/nowhere", "vmlinuz", "/"] {
            assert!(!is_same(Path::new(other), &record), "{other}");
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        record.size = 0;
        assert!(!is_same(&pipe, &record));
    }

    #[test]
    fn state_that_is_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refuse_state(&dir.path().join("none")).is_ok());
        std::fs::write(dir.path().join(".lock"), "").unwrap();
        assert!(refuse_state(dir.path()).is_ok());
        std::fs::write(dir.path().join("tpm2-00.permall"), "").unwrap();
        let error = refuse_state(dir.path()).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    }
}
