//! Scratch images: where QEMU saves the old content of what the guest overwrites meanwhile.
//!
//! They are made before the freeze and removed by us. A scratch image that cannot grow any more
//! pauses the guest, so it lies on a local file system only, and its whole size is reserved when
//! there is room for it: the guard decides, for all jobs of the host (see [`crate::guard`]).

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::statfs;

use super::choose::Chosen;
use crate::guard::Room;
use crate::tool;

const BTRFS: i64 = 0x9123_683E;
/// File systems of this host alone, by their magic numbers: statfs(2). Any other may hang with the
/// network or with a process, and the guest with it.
const LOCAL: [i64; 7] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    BTRFS,
    0x0102_1994, // tmpfs
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
];

/// Makes sure of a local directory; true if its file system holds one of the `images` as well, which
/// may be devices. Btrfs hides that behind subvolumes, so it always counts as yes.
pub(super) fn check(dir: &Path, images: &[PathBuf]) -> Result<bool> {
    make(dir).with_context(|| format!("cannot make the scratch directory {}", dir.display()))?;
    let kind = statfs(dir)?.f_type;
    ensure!(
        LOCAL.contains(&kind),
        "scratch_dir {} is on a file system that is not known as local (type {kind:#x}): a hang there \
         would freeze the guest; use ext4, XFS or Btrfs",
        dir.display()
    );
    let device = dir.metadata()?.dev();
    if kind == BTRFS {
        return Ok(true);
    }
    let holds = |image: &PathBuf| {
        let facts = image.metadata();
        facts.is_ok_and(|facts| facts.is_file() && facts.dev() == device)
    };
    Ok(images.iter().any(holds))
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
