//! Scratch that jobs were granted, for the whole host.
//!
//! Each claim is a file in tmpfs as well, so that a guard that is restarted knows at once what is
//! taken, and looks after the jobs that it finds before their workers come back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::room::{self, Room};
use super::ward::Ward;
use super::worker::Worker;
use crate::note::note;

/// How long one decision may wait for another one. A file system that hangs holds up both.
const PATIENCE: Duration = Duration::from_secs(4);

/// Every claim of the host.
pub(super) struct Claims {
    dir: PathBuf,
    /// One decision at a time. Looking at a file system may hang: no other lock is held meanwhile.
    deciding: Mutex<()>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_job: BTreeMap<String, (u64, Claim)>,
    next: u64,
}

/// What one job holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) ward: Ward,
    pub(super) room: Room,
    pub(super) worker: Worker,
    device: u64,
}

/// A claim with the number that tells it from a later one of the same job.
pub(super) type Numbered = (u64, Claim);

impl Claims {
    /// Claims that are kept in `dir`, with what an earlier guard left there.
    pub(super) fn load(dir: PathBuf) -> Result<(Self, Vec<Numbered>)> {
        fs::create_dir_all(&dir).context("cannot make the directory of the claims")?;
        let mut held = Held::default();
        for entry in fs::read_dir(&dir).context("cannot read the directory of the claims")? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match fs::read(&path).map(|text| serde_json::from_slice::<Claim>(&text)) {
                Ok(Ok(claim)) => drop(held.put(claim)),
                // Of another version: its worker comes back with what it has.
                Ok(Err(e)) => note!("claim {} is not understood: {e}", path.display()),
                Err(e) => note!("claim {} is not readable: {e}", path.display()),
            }
        }
        let found = held.by_job.values().cloned().collect();
        let claims = Self {
            dir,
            deciding: Mutex::default(),
            held: Mutex::new(held),
        };
        Ok((claims, found))
    }

    /// Decides how much scratch a job gets, and remembers it.
    pub(super) fn grant(&self, ward: &Ward, worker: Worker) -> Result<Numbered> {
        let _deciding = self.decide_alone()?;
        let scratch = &ward.scratch;
        let device = scratch
            .dir
            .metadata()
            .with_context(|| format!("cannot look at {}", scratch.dir.display()))?
            .dev();
        let others: Vec<Claim> = self
            .held()
            .by_job
            .values()
            .filter(|(_, other)| other.device == device && other.ward.job != ward.job)
            .map(|(_, other)| other.clone())
            .collect();
        let claimed = others.iter().map(|other| {
            let scratch = &other.ward.scratch;
            let all = other.room.claim(scratch.total);
            all.saturating_sub(scratch.occupied())
        });
        let room = match scratch.granted {
            // From an earlier guard.
            Some(room) => room,
            None => {
                let free = room::free(&scratch.dir)?;
                room::decide(free, claimed.sum(), scratch.total, scratch.beside_images)
                    .map_err(|why| anyhow::anyhow!("scratch_dir {} {why}", scratch.dir.display()))?
            }
        };
        let claim = Claim {
            ward: ward.clone(),
            room,
            worker,
            device,
        };
        write(&self.path(&ward.job), &claim)?;
        Ok(self.held().put(claim))
    }

    /// Is this still what the job holds?
    pub(super) fn is_current(&self, job: &str, number: u64) -> bool {
        let held = self.held();
        held.by_job
            .get(job)
            .is_some_and(|(current, _)| *current == number)
    }

    /// Gives a claim back, unless the job holds another one by now.
    pub(super) fn give_back(&self, job: &str, number: u64) {
        let mut held = self.held();
        if held.by_job.get(job).is_none_or(|(n, _)| *n != number) {
            return;
        }
        held.by_job.remove(job);
        match fs::remove_file(self.path(job)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                note!("cannot remove the claim of {job}: {e}");
            }
            _ => {}
        }
    }

    fn decide_alone(&self) -> Result<MutexGuard<'_, ()>> {
        let start = Instant::now();
        loop {
            match self.deciding.try_lock() {
                Ok(alone) => return Ok(alone),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    bail!("the guard waits for a file system that hangs")
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bacula's job names are plain: see [`Ward::check`].
    fn path(&self, job: &str) -> PathBuf {
        self.dir.join(format!("{job}.json"))
    }
}

impl Held {
    fn put(&mut self, claim: Claim) -> Numbered {
        self.next += 1;
        let numbered = (self.next, claim);
        self.by_job
            .insert(numbered.1.ward.job.clone(), numbered.clone());
        numbered
    }
}

fn write(path: &Path, claim: &Claim) -> Result<()> {
    let temp = path.with_extension("new");
    fs::write(&temp, serde_json::to_vec(claim)?)
        .and_then(|()| fs::rename(&temp, path))
        .context("cannot write down what was granted")
}

#[cfg(test)]
mod tests {
    use super::super::ward::Scratch;
    use super::*;

    fn ward(job: &str, dir: &Path, total: u64, granted: Option<Room>) -> Ward {
        let scratch = Scratch {
            dir: dir.into(),
            images: Vec::new(),
            total,
            beside_images: true,
            granted,
        };
        Ward::new("web01", "u", job, "/run/s".into(), scratch)
    }

    #[test]
    fn what_a_running_backup_may_still_take_is_not_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("claims");
        let (claims, found) = Claims::load(kept.clone()).unwrap();
        assert!(found.is_empty());
        let half = room::free(dir.path()).unwrap() / 2;
        let me = Worker::of(std::process::id() as i32).unwrap();
        let grant = |claims: &Claims, job: &str, granted| {
            claims.grant(&ward(job, dir.path(), half, granted), me)
        };
        let (first, claim) = grant(&claims, "a", None).unwrap();
        assert_eq!(claim.room, Room::Reserved);
        let why = grant(&claims, "b", None).unwrap_err().to_string();
        assert!(why.contains("claimed by running backups"), "{why}");
        // A guard that was restarted knows, and gives a worker that comes back what it had.
        let (claims, found) = Claims::load(kept).unwrap();
        assert_eq!(found.len(), 1);
        assert!(grant(&claims, "b", None).is_err());
        let (again, _) = grant(&claims, "a", Some(Room::Reserved)).unwrap();
        assert!(again != found[0].0 && !claims.is_current("a", found[0].0));
        claims.give_back("a", first + 100);
        assert!(grant(&claims, "b", None).is_err());
        claims.give_back("a", again);
        assert!(grant(&claims, "b", None).is_ok());
    }
}
