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
use relay::message::PartHead;
use relay::options::{Options, Target};

use super::decide;
use super::image::{Image, Kind};
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
/// Lock of restores of a VM: never a VM's own key, which cannot begin like this.
const LOCK_PREFIX: &str = "lab-backup-restore.";

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
        }
    }

    /// Is this file besides the disks wanted? A kernel that is on this host need not come.
    pub(super) fn wants_file(&self, name: &str) -> bool {
        match &self.goal {
            Goal::Files { .. } => true,
            Goal::Machine(machine) => machine
                .boot
                .iter()
                .all(|boot| boot.ours || boot.file != name),
        }
    }

    /// What the newest job of this restore recorded.
    pub(super) fn newest_manifest(&self) -> Option<&Manifest> {
        self.manifests.iter().max_by_key(|manifest| manifest.job_id)
    }

    /// Opens the image of a disk for its first part.
    pub(super) fn create_image(&mut self, target: &str, head: &PartHead) -> Result<Image> {
        let (path, kind) = match &self.goal {
            Goal::Files { dir } => (dir.join(format!("{target}.raw")), Kind::Raw),
            Goal::Machine(machine) => machine
                .images
                .get(target)
                .cloned()
                .with_context(|| format!("disk {target} is not in the plan"))?,
        };
        let temp = self.temp(&path)?;
        let map = self.maps.join(format!("{}-{target}.map", self.temp_tag));
        self.journal.intend(&Intent::File { path: temp.clone() })?;
        Image::create(target, head.size, temp, path, kind, &map, &self.key)
            .with_context(|| format!("cannot write disk {target} of VM {}", self.vm))
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
    let lock_name = format!("{LOCK_PREFIX}{vm}");
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
    let manifest = manifests
        .iter()
        .max_by_key(|manifest| manifest.job_id)
        .cloned();
    let key = match &manifest {
        Some(manifest) => manifest
            .key
            .parse()
            .context("the manifest's key is damaged")?,
        None => Key::random()?,
    };
    let manifests = manifests
        .iter()
        .filter(|m| manifest.as_ref().is_some_and(|n| n.key == m.key))
        .cloned();
    let mut journal = Journal::begin(&places.journal(), &lock_name, &job.hello.job, "")?;
    let goal = match goal(line, job, target, vm, manifest.as_ref(), &mut journal) {
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
        manifests: manifests.collect(),
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
    manifest: Option<&Manifest>,
    journal: &mut Journal,
) -> Result<Goal> {
    let plain = Options {
        v: 1,
        ..Options::default()
    };
    match target {
        Target::Directory(dir) => decide::files(job, dir, vm, manifest, journal),
        Target::Original => decide::machine(line, job, &plain, manifest, journal),
        Target::Rebuild(options) => decide::machine(line, job, options, manifest, journal),
    }
}

/// Takes back what a failed restore made.
fn undo(line: &Line, places: &Places, vm: &str, journal: &Journal) {
    let path = journal.path();
    if let Err(e) = repair::journal(places, path, &mut |text| eprintln!("{text}")) {
        line.warn(format!("{vm}: clearing up failed too: {e:#}"));
    }
}
