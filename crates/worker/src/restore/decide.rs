//! Deciding where everything of a restore goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libvirt::Connect;
use relay::options::{Format, Network, Options};

use super::allowed::{OURS, PASSED, allowed, most_bytes, refuse_file, room};
use super::sink::Kind;
use super::state::{Identity, State};
use super::target::{Goal, Machine};
use crate::journal::Journal;
use crate::manifest::{Disk, Manifest};
use crate::serve::Job;
use crate::session::Line;
use crate::{agent, paths};

/// Where libvirt keeps images.
const IMAGES_DIR: &str = "/var/lib/libvirt/images";
/// Names besides the disks that a restore into a directory may write.
const SMALL: [&str; 7] = [
    "domain.xml",
    "domain-inactive.xml",
    "nvram.fd",
    "kernel",
    "initrd",
    paths::TPM,
    "manifest.json",
];

/// What is known of a backup before its data comes.
pub(super) struct Manifests<'a> {
    /// The one of the newest job: the state that comes back.
    pub(super) newest: Option<&'a Manifest>,
    /// Those of all jobs.
    pub(super) all: &'a [Manifest],
}

/// Plain files in a directory.
pub(super) fn files(
    job: &Job,
    dir: &Path,
    vm: &str,
    manifests: &Manifests<'_>,
    journal: &mut Journal,
) -> Result<Goal> {
    let dir = allowed(&dir.join(vm), &job.policy.restore_dirs, OURS, journal)?;
    if let Some(manifest) = manifests.newest {
        for disk in &manifest.disks {
            refuse_file(&dir.join(format!("{}.raw", disk.target)))?;
        }
        let disks = manifest.disks.iter();
        let bytes = disks.map(|disk| most_bytes(disk, manifests.all));
        room(&dir, bytes.fold(0, u64::saturating_add))?;
    }
    for file in SMALL {
        refuse_file(&dir.join(file))?;
    }
    Ok(Goal::Files { dir })
}

/// Nothing but the proof. Neither libvirt nor the VM is needed.
pub(super) fn proof(disks: Option<&[String]>, vm: &str, manifests: &Manifests<'_>) -> Result<Goal> {
    ensure!(
        disks.is_none_or(|disks| !disks.is_empty()),
        "no disk of {vm} is named to be proven; name one, or leave disks out for all"
    );
    if let (Some(disks), Some(manifest)) = (disks, manifests.newest) {
        let known: Vec<&str> = manifest.disks.iter().map(|d| d.target.as_str()).collect();
        if let Some(unknown) = disks.iter().find(|disk| !known.contains(&disk.as_str())) {
            bail!(
                "disk {unknown} is not in the backup of {vm}, which has {}",
                known.join(", ")
            );
        }
    }
    Ok(Goal::Proof {
        disks: disks.map(<[String]>::to_vec),
    })
}

/// A VM. All that is made for it is directories that were not there.
pub(super) fn machine(
    line: &Line,
    job: &Job,
    options: &Options,
    manifests: &Manifests<'_>,
    journal: &mut Journal,
) -> Result<Goal> {
    let Some(manifest) = manifests.newest else {
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
        (Some(uuid), _) => uuid.to_ascii_lowercase(),
        (None, true) => random_uuid()?,
        (None, false) => manifest.uuid.clone(),
    };
    // It becomes the name of a directory.
    ensure!(is_uuid(&uuid), "{uuid:?} is no UUID");
    let connect = Connect::open(agent::URI)?;
    // Before its files: nobody shall be told to move the image of a running VM away.
    refuse_existing(&connect, &name, &uuid, &manifest.vm)?;
    if options.disks.is_some() && !renamed {
        bail!("single disks are restored under a new name or into a directory, not in place");
    }
    let images = images(
        job,
        options,
        (manifest, manifests.all),
        renamed.then_some(name.as_str()),
        journal,
    )?;
    let identity = Identity {
        name: &name,
        uuid: &uuid,
        renamed,
    };
    let (first, _) = images.values().next().context("a VM has an image")?;
    let beside = first.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut state = State {
        line,
        job,
        manifest,
        identity,
        journal,
    };
    let nvram = state.nvram()?;
    let tpm = state.tpm()?;
    let boot = state.boot(&beside)?;
    Ok(Goal::Machine(Box::new(Machine {
        renamed,
        isolated: options
            .network
            .map_or(renamed, |network| network == Network::Isolated),
        macs: options.mac.clone(),
        images,
        nvram,
        tpm,
        boot,
        autostart: manifest.autostart && !renamed,
        start: options.start,
        connect,
        name,
        uuid,
    })))
}

/// Path and format of every image that is wanted.
fn images(
    job: &Job,
    options: &Options,
    (manifest, all): (&Manifest, &[Manifest]),
    new: Option<&str>,
    journal: &mut Journal,
) -> Result<BTreeMap<String, (PathBuf, Kind)>> {
    let mut images = BTreeMap::new();
    let mut needs: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for disk in &manifest.disks {
        let chosen = |wanted: &Vec<String>| wanted.contains(&disk.target);
        if !options.disks.as_ref().is_none_or(chosen) {
            continue;
        }
        let (path, kind) = image_path(disk, options, manifest, new)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = allowed(parent, &job.policy.restore_dirs, PASSED, journal)?;
        let need = needs.entry(dir.clone()).or_default();
        *need = need.saturating_add(most_bytes(disk, all));
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
    Ok(images)
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

/// Where an image is to lie. The name of a renamed VM's image begins with the new name. What was on a
/// block device becomes a file: nothing that exists is written to, so no device either.
fn image_path(
    disk: &Disk,
    options: &Options,
    manifest: &Manifest,
    new: Option<&str>,
) -> Result<(PathBuf, Kind)> {
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
    let dir = match (&options.dir, disk.block) {
        (Some(dir), _) => dir.as_path(),
        (None, false) => disk.source.parent().unwrap_or(Path::new("/")),
        (None, true) => dir_of_files(manifest),
    };
    let name = match new {
        Some(new) => format!("{new}-{}.{ending}", disk.target).into(),
        None if disk.block => {
            format!("{}-{}.{ending}", plain_name(&manifest.domain), disk.target).into()
        }
        None => disk
            .source
            .file_name()
            .context("an original image has no name")?
            .to_owned(),
    };
    Ok((dir.join(name), kind))
}

/// Where the VM's other images are, or libvirt's own place.
fn dir_of_files(manifest: &Manifest) -> &Path {
    let file = manifest.disks.iter().find(|disk| !disk.block);
    file.and_then(|disk| disk.source.parent())
        .unwrap_or(Path::new(IMAGES_DIR))
}

/// A domain's name made fit for the beginning of a file name.
pub(super) fn plain_name(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String = name
        .chars()
        .take(100)
        .map(|c| if fits(c) { c } else { '-' })
        .collect();
    name.trim_start_matches('.').to_owned()
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

/// 36 characters: hexadecimal digits, with a dash after 8, 12, 16 and 20 of them.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4() {
        let uuid = random_uuid().unwrap();
        assert!(is_uuid(&uuid));
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
    }

    #[test]
    fn only_a_uuid_is_one() {
        assert!(is_uuid("0f0e0d0c-0b0a-4908-8706-050403020100"));
        for text in [
            "",
            "..",
            "0f0e0d0c-0b0a-4908-8706-05040302010/",
            "0f0e0d0c00b0a-4908-8706-050403020100",
        ] {
            assert!(!is_uuid(text), "{text}");
        }
    }

    #[test]
    fn any_name_becomes_the_beginning_of_a_file_name() {
        assert_eq!(plain_name("web 01/$(id)"), "web-01---id-");
        assert_eq!(plain_name("../x"), "-x");
        assert_eq!(plain_name(&"ü".repeat(500)).len(), 100);
    }
}
