//! Scratch images: where QEMU saves the old content of what the guest overwrites meanwhile.
//!
//! They are made before the freeze and removed by us. A scratch image that cannot grow any more
//! pauses the guest, so it lies on a local file system only, and its whole size is reserved when
//! there is room for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{statfs, statvfs};

use super::choose::Chosen;
use crate::tool;

/// Room that is left to others on the file system, in bytes.
const MARGIN: u64 = 64 << 20;
/// Without a reservation: at least this part of the disks must be free.
const UNRESERVED_PART: u64 = 10;

/// Magic numbers of file systems that can hang with the network or a user process: statfs(2).
const REMOTE: [(i64, &str); 7] = [
    (0x6969, "NFS"),
    (0x6573_5546, "FUSE"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x0102_1997, "9p"),
    (0x00C3_6400, "Ceph"),
    (0x0116_1970, "GFS2"),
];

/// How much scratch a backup gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Every byte that the guest could overwrite is reserved.
    Reserved,
    /// There is less room than the disks are large; `free` bytes.
    Tight {
        /// Bytes free.
        free: u64,
    },
}

/// Checks the directory and the room for disks of `total` bytes.
pub(super) fn check(dir: &Path, total: u64) -> Result<Room> {
    make(dir).with_context(|| format!("cannot make the scratch directory {}", dir.display()))?;
    let kind = statfs(dir)?.f_type;
    if let Some((_, name)) = REMOTE.iter().find(|(magic, _)| *magic == kind) {
        anyhow::bail!(
            "scratch_dir {} is on {name}: a hang there would freeze the guest; use a local file system",
            dir.display()
        );
    }
    let free = free(dir)?;
    if free >= total.saturating_add(total / 50).saturating_add(MARGIN) {
        return Ok(Room::Reserved);
    }
    let least = total / UNRESERVED_PART + MARGIN;
    ensure!(
        free >= least,
        "scratch_dir {} has {} MiB free, the backup needs {}",
        dir.display(),
        free >> 20,
        least >> 20
    );
    Ok(Room::Tight { free })
}

/// Makes a directory and what is missing above it: QEMU must pass through, nobody may list.
fn make(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    dir.parent().map_or(Ok(()), make)?;
    std::fs::create_dir(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
}

/// Bytes free for us.
pub(super) fn free(dir: &Path) -> Result<u64> {
    let fs = statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// Is so little left that the backup must stop before QEMU meets the end? Not to know counts as yes.
pub(super) fn is_short(dir: &Path) -> bool {
    free(dir).map_or(true, |free| free < MARGIN)
}

/// Name of a disk's scratch image.
pub(super) fn path(dir: &Path, job: &str, disk: &Chosen) -> PathBuf {
    dir.join(format!("{job}-{}.qcow2", disk.target))
}

/// Makes a disk's scratch image, `size` bytes of virtual size.
pub(super) fn create(path: &Path, disk: &Chosen, size: u64, room: Room) -> Result<()> {
    let options = match room {
        Room::Reserved => "extended_l2=on,preallocation=falloc",
        Room::Tight { .. } => "extended_l2=on",
    };
    // -u: the live image is only named, never opened.
    let mut command = tool::command("qemu-img");
    command.args([
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-o",
        options,
        "-F",
        &disk.format,
        "-b",
    ]);
    command.arg(&disk.source).arg(path).arg(size.to_string());
    tool::run(&mut command).context("cannot make a scratch image")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}
