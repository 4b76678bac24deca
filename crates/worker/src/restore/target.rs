//! What a restore will write, decided before the first byte is.
//!
//! Every path lies below a directory that the hypervisor's policy names; nothing that exists is
//! ever opened for writing. What a manifest says about paths is a wish, checked like any other.
//! [`super::decide`] makes the decisions, [`super::allowed`] knows where things may go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blockmap::Key;
use libvirt::Connect;
use relay::options::{Options, Target};

use super::decide::{self, Manifests};
use super::image::Image;
use super::sink::{Kind, Output, Place};
use super::state::{BootFile, NvramFile, TpmState};
use crate::journal::{Intent, Journal};
use crate::lock::{self, Locked};
use crate::manifest::{Disk, Manifest};
use crate::paths::Places;
use crate::repair;
use crate::serve::Job;
use crate::session::Line;

/// Job that never replaces anything.
const REPLACE_JOB: &str = "lab-backup-restore-replace.";
/// Job that never writes anything.
const VERIFY_JOB: &str = "lab-backup-verify.";
/// Locks of restores and of proofs of a VM, which do not wait for each other: never a VM's own key,
/// which cannot begin like this.
const RESTORE_LOCK: &str = "lab-backup-restore.";
const PROOF_LOCK: &str = "lab-backup-verify.";

/// Everything decided.
pub(super) struct Plan {
    vm: String,
    manifests: Vec<Manifest>,
    key: Key,
    temp_tag: String,
    /// Where images and files go.
    pub(super) goal: Goal,
    pub(super) journal: Journal,
    maps: PathBuf,
    places: Places,
    _lock: Locked,
}

/// What a restore is to end with.
pub(super) enum Goal {
    /// Plain files in a directory.
    Files {
        /// The directory, which is ours to fill.
        dir: PathBuf,
    },
    /// A defined domain.
    Machine(Box<Machine>),
    /// Nothing: only the proof is wanted.
    Proof {
        /// Targets to prove; `None` means all, and the files beside them.
        disks: Option<Vec<String>>,
    },
}

/// A domain to be.
pub(super) struct Machine {
    /// libvirt's name.
    pub(super) name: String,
    /// libvirt's UUID.
    pub(super) uuid: String,
    /// Another one than was backed up?
    pub(super) renamed: bool,
    /// Link of the network cards down?
    pub(super) isolated: bool,
    /// New MAC addresses by the old one.
    pub(super) macs: BTreeMap<String, String>,
    /// Image and its format by target.
    pub(super) images: BTreeMap<String, (PathBuf, Kind)>,
    /// Where UEFI variables go.
    pub(super) nvram: Option<NvramFile>,
    /// Where the state of its TPM goes.
    pub(super) tpm: Option<TpmState>,
    /// Kernel and initial RAM disk.
    pub(super) boot: Vec<BootFile>,
    /// Shall it start with the host?
    pub(super) autostart: bool,
    /// Start it?
    pub(super) start: bool,
    /// The hypervisor.
    pub(super) connect: Connect,
}

impl Plan {
    /// The VM's key.
    pub(super) fn vm(&self) -> &str {
        &self.vm
    }

    /// Is this disk to be written?
    pub(super) fn wants(&self, target: &str) -> bool {
        match &self.goal {
            Goal::Files { .. } => true,
            Goal::Machine(machine) => machine.images.contains_key(target),
            Goal::Proof { disks } => disks
                .as_ref()
                .is_none_or(|disks| disks.iter().any(|disk| disk == target)),
        }
    }

    /// Is this the file of a disk before it started over, which Bacula's file browser still shows?
    pub(super) fn is_stale(&self, target: &str, file: &str) -> bool {
        self.newest(target).is_some_and(|disk| disk.file != file)
    }

    /// Is this file besides the disks wanted? A kernel that is on this host need not come.
    pub(super) fn wants_file(&self, name: &str) -> bool {
        match &self.goal {
            Goal::Files { .. } | Goal::Proof { .. } => true,
            Goal::Machine(machine) => machine
                .boot
                .iter()
                .all(|boot| boot.ours || boot.file != name),
        }
    }

    /// What the newest job of this restore recorded.
    pub(super) fn newest_manifest(&self) -> Option<&Manifest> {
        Manifest::newest(&self.manifests)
    }

    /// Where the bytes of a disk go.
    pub(super) fn image(&mut self, target: &str) -> Result<Image> {
        let image = match &self.goal {
            Goal::Files { dir } => Some((dir.join(format!("{target}.raw")), Kind::Raw)),
            Goal::Machine(machine) => {
                let image = machine.images.get(target).cloned();
                Some(image.with_context(|| format!("disk {target} is not in the plan"))?)
            }
            Goal::Proof { .. } => None,
        };
        let output = match image {
            Some((path, kind)) => {
                let temp = self.temp(&path)?;
                self.journal.intend(&Intent::File { path: temp.clone() })?;
                let run = self.places.run.clone();
                Output::Image(Place {
                    temp,
                    path,
                    kind,
                    run,
                })
            }
            None => Output::Nothing,
        };
        let map = self.maps.join(format!("{}-{target}.map", self.temp_tag));
        Ok(Image::new(target, output, map, &self.key))
    }

    /// The name under which a file is written until it is proven.
    pub(super) fn temp(&self, path: &Path) -> Result<PathBuf> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a path has no name")?;
        Ok(path.with_file_name(format!(".{name}.{}", self.temp_tag)))
    }

    /// Ends the journal. After a failure the code that repairs after a kill undoes what it names.
    pub(super) fn close(self, line: &Line, done: bool) -> Result<()> {
        if done {
            return Ok(self.journal.end()?);
        }
        undo(line, &self.places, &self.vm, &self.journal);
        Ok(())
    }

    /// The key of all fingerprints.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Where the maps of the VM's backups are.
    pub(super) fn maps_of_jobs(&self) -> PathBuf {
        self.places.maps(&self.vm)
    }

    /// What the newest job of this restore says of a disk.
    pub(super) fn newest(&self, target: &str) -> Option<&Disk> {
        self.newest_manifest()?.disk(target)
    }

    /// The record of the job that wrote a part.
    pub(super) fn record_of(&self, target: &str, part: u64) -> Option<&Disk> {
        self.manifests
            .iter()
            .filter_map(|manifest| manifest.disk(target))
            .find(|disk| disk.part == part)
    }
}

/// Decides. Nothing exists yet when this fails.
pub(super) fn plan(
    line: &Line,
    job: &Job,
    target: &Target,
    vm: &str,
    manifests: &[Manifest],
) -> Result<Plan> {
    ensure!(
        !job.hello.job.starts_with(REPLACE_JOB),
        "replacing a VM is not supported yet; restore it under a new name, or undefine it first"
    );
    let prove = matches!(target, Target::Proof { .. });
    ensure!(
        prove || !job.hello.job.starts_with(VERIFY_JOB),
        "the job lab-backup-verify writes nothing; leave its where as it is, or take lab-backup-restore"
    );
    let prefix = if prove { PROOF_LOCK } else { RESTORE_LOCK };
    let lock_name = format!("{prefix}{vm}");
    let places = &job.places;
    let lock = lock::take(
        &places.lock(&lock_name),
        &lock_name,
        &job.hello.job,
        std::time::Duration::from_secs(5),
    )?;
    repair::of_vm(places, &lock_name, |text| {
        line.warn(format!("{vm}: earlier restore: {text}"))
    })?;
    if let Some(foreign) = manifests.iter().find(|manifest| manifest.vm != vm) {
        bail!(
            "a manifest of VM {} came with the files of VM {vm}",
            foreign.vm
        );
    }
    let manifest = Manifest::newest(manifests).cloned();
    let key = match &manifest {
        Some(manifest) => manifest
            .key
            .parse()
            .context("the manifest's key is damaged")?,
        None => Key::random()?,
    };
    let same_key = |m: &&Manifest| manifest.as_ref().is_some_and(|n| n.key == m.key);
    let manifests: Vec<Manifest> = manifests.iter().filter(same_key).cloned().collect();
    let known = Manifests {
        newest: manifest.as_ref(),
        all: &manifests,
    };
    let mut journal = Journal::begin(&places.journal(), &lock_name, &job.hello.job, "")?;
    let goal = match goal(line, job, target, vm, &known, &mut journal) {
        Ok(goal) => goal,
        Err(e) => {
            undo(line, places, vm, &journal);
            return Err(e);
        }
    };
    let maps = places.state.join("restore");
    std::fs::create_dir_all(&maps)?;
    Ok(Plan {
        vm: vm.into(),
        manifests,
        key,
        temp_tag: job.hello.job.clone(),
        goal,
        journal,
        maps,
        places: places.clone(),
        _lock: lock,
    })
}

/// Where everything goes; all that is made for it is a directory that was not there.
fn goal(
    line: &Line,
    job: &Job,
    target: &Target,
    vm: &str,
    manifests: &Manifests<'_>,
    journal: &mut Journal,
) -> Result<Goal> {
    let plain = Options {
        v: 1,
        ..Options::default()
    };
    match target {
        Target::Directory(dir) => decide::files(job, dir, vm, manifests, journal),
        Target::Original => decide::machine(line, job, &plain, manifests, journal),
        Target::Rebuild(options) => decide::machine(line, job, options, manifests, journal),
        Target::Proof { disks } => decide::proof(disks.as_deref(), vm, manifests),
    }
}

/// Takes back what a failed restore made.
fn undo(line: &Line, places: &Places, vm: &str, journal: &Journal) {
    let path = journal.path();
    if let Err(e) = repair::journal(places, path, &mut |text| eprintln!("{text}")) {
        line.warn(format!("{vm}: clearing up failed too: {e:#}"));
    }
}
