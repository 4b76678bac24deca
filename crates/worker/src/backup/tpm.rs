//! The state of an emulated TPM: without it a guest with BitLocker or a sealed key does not boot.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libvirt::xml::{self, TpmSource};

use super::metadata::Files;
use super::settled;
use crate::manifest::Tpm;
use crate::{owner, paths};

/// Largest file of a TPM's state in bytes; real ones have some KiB.
const MAX_FILE: u64 = 8 << 20;
/// Most files of a TPM's state; real ones are one or two.
const MAX_FILES: usize = 16;

/// Where the state is, or why it is not in the backup.
pub(super) enum State {
    /// In the files of this directory.
    In {
        dir: PathBuf,
        version: String,
        /// Did somebody choose the directory?
        chosen: bool,
    },
    /// Nowhere that we can read.
    NotOurs(String),
}

/// Where a TPM's state is.
pub(super) fn place(tpm: &xml::Tpm, uuid: &str) -> State {
    match tpm.kind.as_deref() {
        Some("emulator") => {}
        kind => {
            return State::NotOurs(format!(
                "the state of its TPM, which is of kind {}",
                kind.unwrap_or("unknown")
            ));
        }
    }
    // libvirt always names the version of an emulator in the XML of a running domain.
    let version = tpm.version.clone().unwrap_or_else(|| "2.0".into());
    match &tpm.source {
        None => State::In {
            dir: paths::swtpm(uuid, &version),
            version,
            chosen: false,
        },
        Some(TpmSource::Dir(dir)) => State::In {
            dir: dir.into(),
            version,
            chosen: true,
        },
        Some(TpmSource::Other(path)) => State::NotOurs(format!(
            "the state of its TPM in {path}, which is no directory"
        )),
    }
}

/// Reads the whole state until two copies of it agree.
pub(super) fn take(dir: PathBuf, version: String, chosen: bool) -> Result<(Tpm, Files)> {
    let facts = std::fs::metadata(&dir)
        .with_context(|| format!("cannot look at the TPM state {}", dir.display()))?;
    let files = settled::read("the TPM state", || read(&dir))?;
    let tpm = Tpm {
        version,
        owner: owner::of(&facts).context("cannot read the names of users")?,
        source: dir,
        chosen,
        files: files.iter().map(|(name, _)| name.clone()).collect(),
    };
    Ok((tpm, files))
}

/// Every file, sorted by name.
fn read(dir: &Path) -> Result<Files> {
    let mut files = Vec::new();
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        // Only says who has it open.
        if entry.file_name() == ".lock" {
            continue;
        }
        let path = entry.path();
        let name = entry.file_name().into_string().ok();
        let name = name
            .filter(|name| paths::is_file_name(name))
            .with_context(|| format!("the TPM state has a file {path:?}, which is not swtpm's"))?;
        ensure!(
            files.len() < MAX_FILES,
            "the TPM state {} has more than {MAX_FILES} files",
            dir.display()
        );
        let content = settled::file("the TPM state", &path, MAX_FILE)?;
        files.push((format!("{}/{name}", paths::TPM), content));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_but_the_lock_is_state() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tpm2-00.permall", ".lock", "b"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let (tpm, files) = take(dir.path().into(), "2.0".into(), true).unwrap();
        assert_eq!(tpm.files, ["tpm/b", "tpm/tpm2-00.permall"]);
        assert_eq!(files[1].1, b"tpm2-00.permall");
        assert!(files.iter().all(|(name, _)| paths::is_in_backup(name)));
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn a_tpm_of_the_host_has_no_state_of_ours() {
        let mut tpm = xml::Tpm {
            model: None,
            kind: Some("emulator".into()),
            version: Some("1.2".into()),
            persistent_state: false,
            source: None,
        };
        let State::In { dir, chosen, .. } = place(&tpm, "u-u") else {
            panic!("an emulator has state");
        };
        assert_eq!(
            (dir.as_path(), chosen),
            (Path::new("/var/lib/libvirt/swtpm/u-u/tpm1.2"), false)
        );
        tpm.kind = Some("passthrough".into());
        assert!(matches!(place(&tpm, "u"), State::NotOurs(why) if why.contains("passthrough")));
    }
}
