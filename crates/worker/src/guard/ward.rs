//! A job that the guard watches over: its scratch images and its signs of life.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use libvirt::{Domain, Ended};
use serde::{Deserialize, Serialize};

use super::room::{self, Room};
use super::{VERSION, room::MARGIN};
use crate::agent;

/// Longest wait for libvirt to take an abort, or to tell what runs.
const ABORT: Duration = Duration::from_secs(10);
/// Longest time between two looks.
const SELDOM: Duration = Duration::from_millis(200);
/// Shortest time between two looks.
const OFTEN: Duration = Duration::from_millis(5);
/// No guest of this host fills its scratch faster, in bytes a second.
const FASTEST: u64 = 4 << 30;

/// What the guard must know of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ward {
    version: u32,
    /// The VM's key.
    pub vm: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Bacula's unique Job name.
    pub job: String,
    /// Socket of the backup's NBD server, which tells it from any other job of the domain.
    pub socket: PathBuf,
    /// Its scratch images.
    pub scratch: Scratch,
}

/// The scratch images of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// The directory that holds them.
    pub dir: PathBuf,
    /// The images, which may not exist yet.
    pub images: Vec<PathBuf>,
    /// Bytes of all disks together, as the guest sees them.
    pub total: u64,
    /// Does the file system hold images of guests as well?
    pub beside_images: bool,
    /// What was granted before, by a guard that was restarted since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub granted: Option<Room>,
}

/// What a look at the scratch images came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// There is room; look again after this time.
    Again(Duration),
    /// The backup must end now, and why.
    Short(String),
}

impl Ward {
    /// A job of `vm` whose backup serves `socket`.
    pub fn new(vm: &str, uuid: &str, job: &str, socket: PathBuf, scratch: Scratch) -> Self {
        Self {
            version: VERSION,
            vm: vm.into(),
            uuid: uuid.into(),
            job: job.into(),
            socket,
            scratch,
        }
    }

    /// Checks a request that came over the socket.
    pub(super) fn check(&self) -> Result<()> {
        anyhow::ensure!(
            self.version == VERSION,
            "watch version {} is not known",
            self.version
        );
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
        anyhow::ensure!(
            (1..=200).contains(&self.job.len())
                && self.job.bytes().all(plain)
                && !self.job.starts_with('.'),
            "{:?} is no job of Bacula's",
            self.job
        );
        let paths = self.scratch.images.iter();
        anyhow::ensure!(
            paths
                .chain([&self.scratch.dir, &self.socket])
                .all(|path| path.is_absolute()),
            "a path is not absolute"
        );
        Ok(())
    }

    /// Does its backup run? Not to know counts as yes.
    pub(super) fn runs(&self) -> bool {
        let op = "look for the backup of";
        match self.on_domain(op, |domain, socket| domain.serves_backup(Some(socket))) {
            Ok(runs) => runs,
            Err(e) => e.kind != libvirt::Kind::NotFound,
        }
    }

    /// Ends the backup. Every reader must be closed: QEMU, and with it the guest, waits for one that
    /// has requests in flight.
    pub(crate) fn abort(&self) -> Result<Ended> {
        let op = "abort the backup of";
        self.on_domain(op, |domain, socket| domain.abort_backup(Some(socket)))
            .context("the backup goes on")
    }

    /// Asks libvirt on a connection of its own: others may hang.
    fn on_domain<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl FnOnce(&Domain, &str) -> libvirt::Result<T> + Send + 'static,
    ) -> libvirt::Result<T> {
        let uuid = self.uuid.clone();
        let socket = self.socket.to_string_lossy().into_owned();
        libvirt::deadline::run_on_new(agent::URI, ABORT, op, &self.vm, move |connect| {
            call(&connect.by_uuid(&uuid)?, &socket)
        })
    }
}

impl Scratch {
    /// Is there room in what was granted? Not to know counts as no.
    pub fn look(&self, room: Room) -> Look {
        let free = match room::free(&self.dir) {
            Ok(free) => free,
            Err(e) => return Look::Short(format!("{e:#}")),
        };
        let mut left = free.saturating_sub(MARGIN / 2);
        if let Room::Tight { limit } = room {
            left = left.min(limit.saturating_sub(self.occupied()));
        } else if !self.beside_images {
            // All that it can ever need is in its images.
            return Look::Again(SELDOM);
        }
        if left == 0 {
            return Look::Short(format!(
                "scratch ran short: {} MiB are free, the images occupy {} MiB{}",
                free >> 20,
                self.occupied() >> 20,
                match room {
                    Room::Reserved => String::new(),
                    Room::Tight { limit } => format!(" of the {} that they may", limit >> 20),
                }
            ));
        }
        // Half-way to where it could be used up at the earliest.
        let micros = left.saturating_mul(1_000_000) / FASTEST / 2;
        Look::Again(Duration::from_micros(micros).clamp(OFTEN, SELDOM))
    }

    /// Is there one of the images? Not to know counts as yes.
    pub(super) fn exists(&self) -> bool {
        self.images
            .iter()
            .any(|path| match path.symlink_metadata() {
                Ok(_) => true,
                Err(e) => e.kind() != std::io::ErrorKind::NotFound,
            })
    }

    /// Bytes that the images occupy.
    pub(super) fn occupied(&self) -> u64 {
        self.images
            .iter()
            .filter_map(|path| path.symlink_metadata().ok())
            .map(|facts| facts.blocks().saturating_mul(512))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_short_when_its_images_reach_the_limit_or_nobody_can_tell() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("a.qcow2");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let scratch = Scratch {
            dir: dir.path().into(),
            images: vec![image, dir.path().join("not there yet")],
            total: 1 << 30,
            beside_images: false,
            granted: None,
        };
        let tight = |limit| scratch.look(Room::Tight { limit });
        assert!(matches!(tight(64 << 20), Look::Again(time) if time < SELDOM));
        assert!(matches!(tight(1 << 20), Look::Short(_)));
        assert_eq!(scratch.look(Room::Reserved), Look::Again(SELDOM));
        let lost = Scratch {
            dir: "/nowhere/at/all".into(),
            ..scratch
        };
        assert!(matches!(lost.look(Room::Reserved), Look::Short(_)));
    }
}
