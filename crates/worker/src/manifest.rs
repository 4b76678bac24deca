//! `manifest.json`: what a backup holds and how to prove it.
//!
//! It travels twice: as a file beside the disks, for whoever has only the volumes, and as a
//! restore object, so that a restore knows formats, paths and roots before the first byte arrives.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the manifest that this program writes.
pub const VERSION: u32 = 1;

/// What proves that the map is the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// This job read the whole disk.
    FullRead,
    /// This job read what QEMU's dirty bitmap named.
    Bitmap,
}

/// One disk of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Target in the guest, such as `vda`.
    pub target: String,
    /// File name in the backup, such as `vda.raw`.
    pub file: String,
    /// Virtual size in bytes.
    pub size: u64,
    /// Format of the original image: `qcow2` or `raw`.
    pub format: String,
    /// Path of the original image.
    pub source: PathBuf,
    /// Was it on a block device rather than in a file?
    pub block: bool,
    /// The images below it, the nearest first. What the guest saw of them is in the backup; the
    /// restored image stands alone.
    pub chain: Vec<Below>,
    /// The file that held the data of a qcow2 image; the restored image has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<PathBuf>,
    /// Names of the snapshots inside the image. They are not in the backup.
    pub internal_snapshots: Vec<String>,
    /// Why chain, data file and internal snapshots may be incomplete here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_unknown: Option<String>,
    /// Id of the part that this job wrote; it travels as `st_ino`.
    pub part: u64,
    /// Its place in the chain: 0 starts the disk, any other sits on the part before.
    pub delta_seq: u32,
    /// Merkle root of the disk's map at the instant of the backup, hexadecimal.
    pub root: String,
    /// What the root rests on.
    pub basis: Basis,
    /// The last job that read the whole disk.
    pub full_read: String,
    /// Bytes in blocks that are not all zero.
    pub nonzero_bytes: u64,
    /// Bytes that this job sent.
    pub sent_bytes: u64,
}

/// An image below another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Where it was.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
}

/// A file of the backup besides the disks and the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name in the backup, such as `domain.xml` or `tpm/tpm2-00.permall`.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub digest: String,
}

/// Who could read and write a file; names, because numbers differ between hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User; absent if the host had no name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group; absent if the host had no name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// A disk that is not in the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Target in the guest.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// UEFI variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nvram {
    /// File name in the backup.
    pub file: String,
    /// Path of the original.
    pub source: PathBuf,
    /// `raw` or `qcow2`; the bytes are kept as they were.
    pub format: String,
    /// Whose it was.
    pub owner: Owner,
}

/// State of an emulated TPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tpm {
    /// `1.2` or `2.0`.
    pub version: String,
    /// Directory of the originals.
    pub source: PathBuf,
    /// Did somebody choose that directory? Otherwise it is libvirt's for this UUID.
    pub chosen: bool,
    /// Whose directory and files were.
    pub owner: Owner,
    /// File names in the backup.
    pub files: Vec<String>,
}

/// A file that is booted directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// File name in the backup: `kernel` or `initrd`.
    pub file: String,
    /// Path of the original.
    pub source: PathBuf,
}

/// A secret that the VM needs. Its value is never in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// UUID, if the definition names it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
}

/// What the VM needs of a hypervisor besides what is in the backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Such as `kvm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Machine type, such as `pc-q35-9.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// How the processor is chosen, such as `host-model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Firmware image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Virtual networks.
    pub networks: Vec<String>,
    /// Storage pools.
    pub pools: Vec<String>,
    /// Network filters.
    pub filters: Vec<String>,
    /// Secrets.
    pub secrets: Vec<Secret>,
}

/// How quiet the guest was at the instant of the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// File systems were frozen by the guest agent.
    FilesystemFrozen,
    /// The machine was off.
    PoweredOff,
    /// As after a power cut.
    Crash,
}

/// The instant of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instant {
    /// When the backup job of libvirt began, RFC 3339.
    pub at: String,
    /// How quiet the guest was.
    pub consistency: Consistency,
    /// Milliseconds from when the freeze was sent to when the thaw returned; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// Milliseconds of that which are ours: freeze returned to thaw sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The VM's key.
    pub vm: String,
    /// Bacula's unique Job name.
    pub job: String,
    /// Bacula's JobId.
    pub job_id: u32,
    /// The jobs that came before in its chain, as far as they are known: whoever is named here is older.
    #[serde(default)]
    pub after: Vec<String>,
    /// libvirt's domain name.
    pub domain: String,
    /// libvirt's UUID.
    pub uuid: String,
    /// The hypervisor's host name.
    pub hypervisor: String,
    /// libvirt's version there.
    pub libvirt: String,
    /// The instant all disks and the definition are of.
    pub instant: Instant,
    /// Id of the fingerprint key.
    pub key_id: String,
    /// The fingerprint key, hexadecimal. Not a secret: it only makes collisions unlikely.
    pub key: String,
    /// Disks in the backup.
    pub disks: Vec<Disk>,
    /// Disks that are not, and why.
    pub left_out: Vec<LeftOut>,
    /// What else of the VM is not in the backup, such as a device of the host.
    pub not_in_backup: Vec<String>,
    /// Every file besides the disks and this manifest.
    pub files: Vec<File>,
    /// UEFI variables, if the VM has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvram: Option<Nvram>,
    /// State of its TPM, if it has an emulated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Tpm>,
    /// Kernel and initial RAM disk, if it boots them directly.
    pub boot: Vec<Boot>,
    /// Did it start with the host?
    pub autostart: bool,
    /// What it needs of a hypervisor.
    pub needs: Needs,
    /// libvirt's names of its snapshots; they are not in the backup.
    pub snapshots: Vec<String>,
    /// libvirt's names of its checkpoints; they are not in the backup.
    pub checkpoints: Vec<String>,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the JSON of a manifest.
    #[error("the manifest is not understood")]
    Parse(#[from] serde_json::Error),
    /// Written by a newer program.
    #[error("the manifest has version {0}, this program knows 1")]
    Version(u32),
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_slice(text)?;
        if head.version != VERSION {
            return Err(Error::Version(head.version));
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// The manifest's text.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self)
            .expect("a manifest is plain data and always serialises");
        text.push(b'\n');
        text
    }

    /// The newest of some: one that no other names as older. JobIds begin anew when a catalog was lost, and
    /// a clock may step, so they only decide where that does not.
    pub fn newest(manifests: &[Self]) -> Option<&Self> {
        let last = |manifest: &&Self| {
            let job = &manifest.job;
            manifests.iter().all(|other| !other.after.contains(job))
        };
        let by_time = |manifest: &&Self| (manifest.instant.at.clone(), manifest.job_id);
        let found = manifests.iter().filter(last).max_by_key(by_time);
        found.or_else(|| manifests.iter().max_by_key(by_time))
    }

    /// The record of a file.
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A manifest of a VM with one of everything.
    pub(crate) fn sample() -> Manifest {
        let owner = Owner {
            user: Some("tss".into()),
            group: None,
        };
        Manifest {
            version: VERSION,
            vm: "web01".into(),
            job: "web01.2026-01-31_22.00.00_05".into(),
            job_id: 7,
            after: Vec::new(),
            domain: "web 01".into(),
            uuid: "0f0e0d0c-0b0a-4908-8706-050403020100".into(),
            hypervisor: "hv1".into(),
            libvirt: "11.3.0".into(),
            instant: Instant {
                at: "2026-01-31T22:00:01Z".into(),
                consistency: Consistency::Crash,
                frozen_ms: None,
                held_ms: None,
            },
            key_id: "1".into(),
            key: "00".into(),
            disks: vec![Disk {
                target: "vda".into(),
                file: "vda.raw".into(),
                size: 4096,
                format: "qcow2".into(),
                source: "/images/web.qcow2".into(),
                block: false,
                chain: vec![Below {
                    path: "/images/base.raw".into(),
                    format: "raw".into(),
                }],
                data_file: Some("/images/web.data".into()),
                internal_snapshots: vec!["one".into()],
                image_unknown: None,
                part: 1,
                delta_seq: 0,
                root: "00".into(),
                basis: Basis::FullRead,
                full_read: "web01.2026-01-31_22.00.00_05".into(),
                nonzero_bytes: 0,
                sent_bytes: 4096,
            }],
            left_out: Vec::new(),
            not_in_backup: Vec::new(),
            files: vec![File {
                name: "domain.xml".into(),
                size: 3,
                digest: crate::digest::of(b"abc"),
            }],
            nvram: Some(Nvram {
                file: "nvram.fd".into(),
                source: "/nvram/web.fd".into(),
                format: "raw".into(),
                owner: owner.clone(),
            }),
            tpm: Some(Tpm {
                version: "2.0".into(),
                source: "/swtpm/tpm2".into(),
                chosen: false,
                owner,
                files: vec!["tpm/tpm2-00.permall".into()],
            }),
            boot: vec![Boot {
                file: "kernel".into(),
                source: "/boot/vmlinuz".into(),
            }],
            autostart: true,
            needs: Needs {
                networks: vec!["default".into()],
                ..Needs::default()
            },
            snapshots: Vec::new(),
            checkpoints: Vec::new(),
        }
    }

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        let manifest = sample();
        assert_eq!(Manifest::parse(&manifest.to_json()).unwrap(), manifest);
        assert!(manifest.file("domain.xml").is_some() && manifest.file("x").is_none());
    }

    #[test]
    fn the_newest_is_named_by_no_other_whatever_its_number_and_time() {
        let made = |job: &str, job_id, at: &str, after: &[&str]| {
            let mut manifest = sample();
            (manifest.job, manifest.job_id) = (job.into(), job_id);
            manifest.instant.at = at.into();
            manifest.after = after.iter().map(|job| (*job).into()).collect();
            manifest
        };
        let chain = [
            made("full", 40, "2026-01-01T00:00:00Z", &[]),
            // The catalog was lost, and the clock stepped back.
            made("last", 3, "2025-12-31T00:00:00Z", &["full", "one"]),
            made("one", 41, "2026-01-02T00:00:00Z", &["full"]),
        ];
        assert_eq!(Manifest::newest(&chain).unwrap().job, "last");
        assert_eq!(Manifest::newest(&chain[..1]).unwrap().job, "full");
        assert!(Manifest::newest(&[]).is_none());
        let apart = [chain[0].clone(), made("x", 1, "2026-02-01T00:00:00Z", &[])];
        assert_eq!(Manifest::newest(&apart).unwrap().job, "x");
    }

    #[test]
    fn another_version_and_what_is_no_manifest_are_refused() {
        let mut manifest = sample();
        manifest.version = 2;
        assert!(matches!(
            Manifest::parse(&manifest.to_json()),
            Err(Error::Version(2))
        ));
        for text in ["", "{}", "[]", "{\"version\": 1}"] {
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
