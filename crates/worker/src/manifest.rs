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
    /// Id of the part that this job wrote; it travels as `st_ino`.
    pub part: u64,
    /// Merkle root of the disk's map at the instant of the backup, hexadecimal.
    pub root: String,
    /// What the root rests on.
    pub basis: Basis,
    /// Bytes in blocks that are not all zero.
    pub nonzero_bytes: u64,
    /// Bytes that this job sent.
    pub sent_bytes: u64,
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
}

/// How quiet the guest was at the instant of the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// File systems were frozen by the guest agent.
    FilesystemFrozen,
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
    /// UEFI variables, if the VM has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvram: Option<Nvram>,
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

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}
