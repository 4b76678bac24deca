//! Ends a backup before its scratch images run out of room.
//!
//! A scratch image that cannot grow pauses the guest, and the thread that streams may be blocked by
//! a slow Storage Daemon at that very moment. So this is a thread of its own: it shuts the readers
//! down, then aborts the job, in that order.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use libvirt::{Domain, Ended};
use nbd::ShutdownHandle;

use super::scratch;

/// Longest wait for libvirt to take an abort.
const ABORT: Duration = Duration::from_secs(10);
/// Time between two looks.
const EVERY: Duration = Duration::from_millis(200);

/// Watches over the room until dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    readers: Mutex<Vec<ShutdownHandle>>,
    over: AtomicBool,
    short: AtomicBool,
}

impl Watch {
    /// Begins to watch `dir` for `domain`. With the room reserved there is nothing to watch.
    pub(super) fn start(
        dir: PathBuf,
        domain: Domain,
        socket: &Path,
        room: scratch::Room,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            readers: Mutex::default(),
            over: AtomicBool::new(false),
            short: AtomicBool::new(false),
        });
        let mut thread = None;
        if room != scratch::Room::Reserved {
            let shared = Arc::clone(&shared);
            let socket = socket.to_string_lossy().into_owned();
            let builder = std::thread::Builder::new().name("scratch".into());
            thread = Some(builder.spawn(move || shared.run(&dir, &domain, &socket))?);
        }
        Ok(Self { shared, thread })
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
    fn run(&self, dir: &Path, domain: &Domain, socket: &str) {
        while !self.over.load(Ordering::Acquire) {
            if scratch::is_short(dir) {
                self.short.store(true, Ordering::Release);
                let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
                readers.iter().for_each(ShutdownHandle::shutdown);
                let (job, ours) = (domain.clone(), socket.to_owned());
                let abort = move || job.abort_backup(Some(&ours));
                // The backup's own end waits for this thread: it may not hang with QEMU.
                let name = domain.name();
                match libvirt::deadline::run(ABORT, "abort the backup of", name, abort) {
                    Ok(Ended::Now) => return,
                    // It has not begun yet, or is over.
                    Ok(Ended::Before) => {}
                    Err(e) => eprintln!("cannot abort the backup of {}: {e}", domain.name()),
                }
            }
            std::thread::park_timeout(EVERY);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        // An abort that is on its way belongs to this job, not to what comes after it.
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
