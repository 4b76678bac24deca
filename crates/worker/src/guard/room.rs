//! How much scratch a backup may use, decided in one place for all jobs of the host.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::statvfs;
use serde::{Deserialize, Serialize};

/// Room that is left to others on the file system, in bytes.
pub(super) const MARGIN: u64 = 64 << 20;
/// Without a reservation: at least this part of the disks must fit.
const LEAST_PART: u64 = 10;

/// How much scratch a backup gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Room {
    /// Every byte that the guest could overwrite is reserved in the scratch images.
    Reserved,
    /// There is less room than the disks are large: the backup is ended when its scratch images
    /// together occupy `limit` bytes.
    Tight {
        /// Bytes.
        limit: u64,
    },
}

impl Room {
    /// Bytes that a backup of disks of `total` bytes may come to occupy. A tight one goes on to write
    /// until it has ended, which takes as much again at the worst.
    pub(super) fn claim(self, total: u64) -> u64 {
        match self {
            Room::Reserved => with_tables(total),
            Room::Tight { limit } => limit.saturating_mul(2),
        }
    }
}

/// Disks of `total` bytes as qcow2 images, tables included: below 2 % with 64 KiB clusters and
/// extended L2 entries.
fn with_tables(total: u64) -> u64 {
    total.saturating_add(total / 50)
}

/// Decides for disks of `total` bytes with `free` bytes left, of which running jobs may still take
/// `claimed`. `beside_images`: the file system holds images of guests, too.
///
/// # Errors
/// One line that says how much is missing.
pub(super) fn decide(
    free: u64,
    claimed: u64,
    total: u64,
    beside_images: bool,
) -> Result<Room, String> {
    let usable = free.saturating_sub(claimed).saturating_sub(MARGIN);
    let all = with_tables(total);
    if usable >= all {
        return Ok(Room::Reserved);
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let others = if claimed > 0 {
        format!(", {} of them claimed by running backups", mib(claimed))
    } else {
        String::new()
    };
    if beside_images {
        return Err(format!(
            "has {} MiB free{others}; beside images the whole {} MiB must be reserved, because a full \
             file system would pause every guest on it: give scratch_dir a file system of its own",
            mib(free),
            mib(all.saturating_add(MARGIN))
        ));
    }
    // The other half is for what the guest writes until the backup has ended.
    let limit = usable / 2;
    let least = total / LEAST_PART;
    if limit < least {
        return Err(format!(
            "has {} MiB free{others}, the backup needs {}",
            mib(free),
            mib(least
                .saturating_mul(2)
                .saturating_add(MARGIN)
                .saturating_add(claimed))
        ));
    }
    Ok(Room::Tight { limit })
}

/// Bytes free for us on the file system of `dir`.
pub(super) fn free(dir: &Path) -> Result<u64> {
    let fs = statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_whole_is_reserved_where_it_fits_and_others_claims_count() {
        assert_eq!(decide(12 * GIB, 0, 10 * GIB, true), Ok(Room::Reserved));
        assert_ne!(
            decide(12 * GIB, 2 * GIB, 10 * GIB, false),
            Ok(Room::Reserved)
        );
    }

    #[test]
    fn tight_room_keeps_as_much_again_for_the_time_until_the_end() {
        let Ok(Room::Tight { limit }) = decide(5 * GIB, GIB, 10 * GIB, false) else {
            panic!("not tight");
        };
        assert_eq!(limit, (4 * GIB - MARGIN) / 2);
        assert!(decide(2 * GIB, 0, 10 * GIB, false).is_err());
        assert!(decide(5 * GIB, 4 * GIB, 10 * GIB, false).is_err());
    }

    #[test]
    fn the_headroom_of_a_tight_backup_is_not_given_to_another() {
        let free = 100 * GIB;
        let first = decide(free, 0, 200 * GIB, false).unwrap();
        assert!(matches!(first, Room::Tight { .. }));
        let claimed = first.claim(200 * GIB);
        assert!(decide(free, claimed, 30 * GIB, true).is_err());
        assert!(decide(free, claimed, 30 * GIB, false).is_err());
    }

    #[test]
    fn beside_images_it_is_all_or_nothing() {
        let why = decide(10 * GIB, 0, 10 * GIB, true).unwrap_err();
        assert!(why.contains("10240 MiB free"), "{why}");
        assert!(decide(0, u64::MAX, u64::MAX, true).is_err());
    }
}
