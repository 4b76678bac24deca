//! What a restore will write, decided before the first byte is.
//!
//! Every path lies below a directory that the hypervisor's policy names; nothing that exists is
//! ever opened for writing. What a manifest says about paths is a wish, checked like any other.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blockmap::Key;
use libvirt::Connect;
use relay::message::PartHead;
use relay::options::{Format, Network, Options, Target};

use super::image::{Image, Kind};
use crate::journal::{Intent, Journal};
use crate::lock::{self, Locked};
use crate::manifest::{Disk, Manifest};
use crate::paths;
use crate::serve::Job;
use crate::session::Line;
use crate::{agent, repair};

/// Job that never replaces anything.
const REPLACE_JOB: &str = "lab-backup-restore-replace.";
/// Where libvirt keeps UEFI variables.
const NVRAM_DIR: &str = "/var/lib/libvirt/qemu/nvram";
/// Left free on the target's file system, in bytes.
const MARGIN: u64 = 16 << 20;
/// Files besides the disks that a restore into a directory may write.
const SMALL: [&str; 4] = [
    "domain.xml",
    "domain-inactive.xml",
    "nvram.fd",
    "manifest.json",
];
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
    pub(super) nvram: Option<PathBuf>,
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
        undo(line, &self.vm, &self.journal);
        Ok(())
    }

    /// What the newest job of this restore says of a disk.
    pub(super) fn newest(&self, target: &str) -> Option<&Disk> {
        let newest = self.manifests.iter().max_by_key(|m| m.job_id)?;
        newest.disk(target)
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
    let goal = match decide(job, target, vm, manifest.as_ref(), &mut journal) {
        Ok(goal) => goal,
        Err(e) => {
            undo(line, vm, &journal);
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
        _lock: lock,
    })
}

/// Where everything goes; all that is made for it is a directory that was not there.
fn decide(
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
        Target::Directory(dir) => files(job, dir, vm, manifest, journal),
        Target::Original => machine(job, &plain, manifest, journal),
        Target::Rebuild(options) => machine(job, options, manifest, journal),
    }
}

/// Takes back what a failed restore made.
fn undo(line: &Line, vm: &str, journal: &Journal) {
    let path = journal.path();
    if let Err(e) = repair::journal(path, &mut |text| eprintln!("{text}")) {
        line.warn(format!("{vm}: clearing up failed too: {e:#}"));
    }
}

fn files(
    job: &Job,
    dir: &Path,
    vm: &str,
    manifest: Option<&Manifest>,
    journal: &mut Journal,
) -> Result<Goal> {
    let dir = allowed(&dir.join(vm), &job.policy.restore_dirs, journal)?;
    if let Some(manifest) = manifest {
        for disk in &manifest.disks {
            refuse_file(&dir.join(format!("{}.raw", disk.target)))?;
        }
        room(
            &dir,
            manifest.disks.iter().map(|disk| disk.nonzero_bytes).sum(),
        )?;
    }
    for file in SMALL {
        refuse_file(&dir.join(file))?;
    }
    Ok(Goal::Files { dir })
}

fn machine(
    job: &Job,
    options: &Options,
    manifest: Option<&Manifest>,
    journal: &mut Journal,
) -> Result<Goal> {
    let Some(manifest) = manifest else {
        bail!(
            "no manifest came with the restore, so the VM cannot be rebuilt; select the whole job, \
             or restore plain files into a directory"
        );
    };
    let renamed = options.name.is_some();
    ensure!(
        renamed || options.uuid.is_none(),
        "a new UUID is for a VM under a new name; give it a name as well"
    );
    let name = match &options.name {
        Some(name) => {
            relay::name::check(name).context("the new name of the VM")?;
            name.clone()
        }
        None => manifest.domain.clone(),
    };
    let uuid = match (&options.uuid, renamed) {
        (Some(uuid), _) => uuid.clone(),
        (None, true) => random_uuid()?,
        (None, false) => manifest.uuid.clone(),
    };
    let connect = Connect::open(agent::URI)?;
    // Before its files: nobody shall be told to move the image of a running VM away.
    refuse_existing(&connect, &name, &uuid, &manifest.vm)?;
    if options.disks.is_some() && !renamed {
        bail!("single disks are restored under a new name or into a directory, not in place");
    }
    let mut images = BTreeMap::new();
    let mut needs: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for disk in &manifest.disks {
        if options
            .disks
            .as_ref()
            .is_some_and(|wanted| !wanted.contains(&disk.target))
        {
            continue;
        }
        let (path, kind) = image_path(disk, options, renamed.then_some(name.as_str()))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = allowed(parent, &job.policy.restore_dirs, journal)?;
        *needs.entry(dir.clone()).or_default() += disk.nonzero_bytes;
        let path = dir.join(path.file_name().context("an image has no name")?);
        refuse_file(&path)?;
        images.insert(disk.target.clone(), (path, kind));
    }
    ensure!(
        !images.is_empty(),
        "none of the disks {:?} is in the backup",
        options.disks
    );
    for (dir, bytes) in needs {
        room(&dir, bytes)?;
    }
    let nvram = match &manifest.nvram {
        None => None,
        Some(nvram) if !renamed => Some(nvram.source.clone()),
        Some(_) => Some(Path::new(NVRAM_DIR).join(format!("{name}_VARS.fd"))),
    };
    if let Some(path) = &nvram {
        let mut roots = job.policy.restore_dirs.clone();
        roots.push(NVRAM_DIR.into());
        allowed(path.parent().unwrap_or(Path::new("/")), &roots, journal)?;
        refuse_file(path)?;
    }
    Ok(Goal::Machine(Box::new(Machine {
        name,
        uuid,
        renamed,
        isolated: options
            .network
            .map_or(renamed, |network| network == Network::Isolated),
        macs: options.mac.clone(),
        images,
        nvram,
        start: options.start,
        connect,
    })))
}

/// Refuses if a domain has the name or UUID: libvirt would silently replace its definition.
pub(super) fn refuse_existing(connect: &Connect, name: &str, uuid: &str, vm: &str) -> Result<()> {
    for domain in [connect.by_uuid(uuid), connect.by_name(name)] {
        match domain {
            Ok(domain) => bail!(
                "VM {vm} exists as domain {:?} ({}); restore it under a new name, or undefine it first",
                domain.name(),
                domain.state()?
            ),
            Err(e) if e.kind == libvirt::Kind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Where an image is to lie. The name of a renamed VM's image begins with the new name.
fn image_path(disk: &Disk, options: &Options, new: Option<&str>) -> Result<(PathBuf, Kind)> {
    let kind = match (options.format, disk.format.as_str()) {
        (Some(Format::Raw), _) | (None, "raw") => Kind::Raw,
        (Some(Format::Qcow2), _) | (None, "qcow2") => Kind::Qcow2,
        (None, other) => bail!(
            "disk {} has the format {other:?}, not raw or qcow2",
            disk.target
        ),
    };
    let ending = match kind {
        Kind::Raw => "img",
        Kind::Qcow2 => "qcow2",
    };
    ensure!(
        disk.source.is_absolute(),
        "the original path {} of disk {} is not absolute",
        disk.source.display(),
        disk.target
    );
    let parent = disk.source.parent().unwrap_or(Path::new("/"));
    let dir = options.dir.as_deref().unwrap_or(parent);
    let name = match new {
        Some(new) => format!("{new}-{}.{ending}", disk.target).into(),
        None => disk
            .source
            .file_name()
            .context("an original image has no name")?
            .to_owned(),
    };
    Ok((dir.join(name), kind))
}

/// The real path of a directory, if the policy allows restores there.
///
/// A directory that does not exist yet is made, but only below one that is allowed.
fn allowed(dir: &Path, roots: &[PathBuf], journal: &mut Journal) -> Result<PathBuf> {
    let refuse = || {
        let roots: Vec<String> = roots
            .iter()
            .map(|root| root.display().to_string())
            .collect();
        anyhow::anyhow!(
            "restores may not write to {}; choose a directory below {}",
            dir.display(),
            roots.join(" or ")
        )
    };
    let clean = dir.is_absolute()
        && dir.components().all(|part| {
            matches!(
                part,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
    if !clean || !paths::is_below(dir, roots) {
        return Err(refuse());
    }
    // Links may lead out of what is allowed, so this comes before anything is made.
    let real = resolve(dir)?;
    let real_roots: Vec<PathBuf> = roots.iter().filter_map(|root| resolve(root).ok()).collect();
    if !paths::is_below(&real, &real_roots) {
        return Err(refuse());
    }
    let mut missing: Vec<&Path> = real.ancestors().take_while(|dir| !dir.exists()).collect();
    missing.reverse();
    for dir in missing {
        journal.intend(&Intent::Dir { path: dir.into() })?;
        std::fs::create_dir(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    // Somebody may have put a link there in that moment.
    if real.canonicalize()? == real {
        Ok(real)
    } else {
        Err(refuse())
    }
}

/// A path without links, also if its end does not exist yet. A link to nowhere is an error: what it
/// should lead to may only be missing at the moment.
fn resolve(path: &Path) -> Result<PathBuf> {
    let mut end = Vec::new();
    let mut there = path;
    loop {
        match there.symlink_metadata() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                end.extend(there.file_name());
                there = there.parent().context("a path begins at the root")?;
            }
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", there.display())),
        }
    }
    let mut real = there
        .canonicalize()
        .with_context(|| format!("{} leads nowhere; mount or remove it", there.display()))?;
    real.extend(end.iter().rev());
    Ok(real)
}

fn refuse_file(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => bail!(
            "{} exists; move it away, or restore to another place or under a new name",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
}

fn room(dir: &Path, bytes: u64) -> Result<()> {
    let fs = rustix::fs::statvfs(dir)?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    ensure!(
        free >= bytes.saturating_add(MARGIN),
        "{} has {} MiB free, the restore needs {}; make room or choose another directory",
        dir.display(),
        free >> 20,
        (bytes + MARGIN) >> 20
    );
    Ok(())
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    // Version 4, variant 1: RFC 9562, section 5.4.
    let number = u128::from_be_bytes(bytes);
    let number = (number & !(0xF << 76) | (4 << 76)) & !(3 << 62) | (2 << 62);
    let hex = format!("{number:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    Ok([
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_outside_the_policy_are_refused_links_included() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("allowed");
        std::fs::create_dir(&root).unwrap();
        let roots = [root.clone()];
        let mut journal = Journal::begin(&dir.path().join("journal"), "web01", "j", "").unwrap();
        let mut allowed = |path: &Path| allowed(path, &roots, &mut journal).is_ok();
        assert!(allowed(&root.join("a/b")));
        assert!(!allowed(dir.path()));
        assert!(!allowed(&root.join("../x")));
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let [out, nowhere] = ["out", "nowhere"].map(|name| root.join(name));
        std::os::unix::fs::symlink(&outside, &out).unwrap();
        std::os::unix::fs::symlink(dir.path().join("missing"), &nowhere).unwrap();
        assert!(!allowed(&out));
        assert!(!allowed(&out.join("a")) && !outside.join("a").exists());
        assert!(!allowed(&nowhere) && !allowed(&nowhere.join("a")));
        // What was made for a restore that fails is known, and goes again.
        repair::journal(journal.path(), &mut |_| {}).unwrap();
        assert!(!root.join("a").exists() && root.exists() && nowhere.is_symlink());
    }

    #[test]
    fn uuids_are_of_version_4() {
        let uuid = random_uuid().unwrap();
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
    }
}
