//! Ends a backup before its scratch images run out of room.
//!
//! A scratch image that cannot grow pauses the guest, and the thread that streams may be blocked by
//! a slow Storage Daemon at that very moment. So this is a thread of its own: it shuts the readers
//! down, then aborts the job, in that order.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use libvirt::Domain;
use nbd::ShutdownHandle;

use super::scratch;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(200);

/// Watches over the room until dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    readers: Mutex<Vec<ShutdownHandle>>,
    over: AtomicBool,
    short: AtomicBool,
}

impl Watch {
    /// Begins to watch `dir` for `domain`. With the room reserved there is nothing to watch.
    pub(super) fn start(dir: PathBuf, domain: Domain, room: scratch::Room) -> Result<Self> {
        let shared = Arc::new(Shared {
            readers: Mutex::default(),
            over: AtomicBool::new(false),
            short: AtomicBool::new(false),
        });
        if room != scratch::Room::Reserved {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("scratch".into())
                .spawn(move || shared.run(&dir, &domain))?;
        }
        Ok(Self { shared })
    }

    /// Names a reader that must be closed before the job is aborted.
    pub(super) fn guards(&self, reader: ShutdownHandle) {
        self.shared
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(reader);
    }

    /// Fails if the room ran short.
    pub(super) fn check(&self) -> Result<()> {
        if self.shared.short.load(Ordering::Acquire) {
            bail!(
                "the scratch file system ran short, so the backup was ended for the guest's sake; \
                 give scratch_dir more room"
            );
        }
        Ok(())
    }
}

impl Shared {
    fn run(&self, dir: &std::path::Path, domain: &Domain) {
        while !self.over.load(Ordering::Acquire) {
            if scratch::is_short(dir) {
                self.short.store(true, Ordering::Release);
                let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
                readers.iter().for_each(ShutdownHandle::shutdown);
                if let Err(e) = domain.abort_job() {
                    eprintln!("cannot abort the backup of {}: {e}", domain.name());
                }
                return;
            }
            std::thread::sleep(EVERY);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
    }
}
