//! The guard watches over a backup from before its first scratch image to the end of libvirt's job.
//!
//! A scratch image that cannot grow pauses the guest, and this process may hang, be stopped or be
//! blocked by a slow Storage Daemon at that very moment. So the guard looks, and this thread only does
//! its bidding: it closes the readers when it is told to, before the guard aborts the backup. While
//! there is no guard, it looks itself.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd::ShutdownHandle;

use crate::guard::{Look, Room, Told, Ward, Watching, end_watch};
use crate::note::note;

/// How long a guard that is being restarted is waited for.
const RETURN: Duration = Duration::from_secs(15);
/// Time between two looks whether the watch is over; a quarter of it between two attempts to reach the guard.
const LOOK: Duration = Duration::from_secs(1);

/// Watched over until dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    guard: PathBuf,
    ward: Ward,
    room: Room,
    readers: Mutex<Vec<ShutdownHandle>>,
    over: AtomicBool,
    /// Why the backup must end.
    stopped: Mutex<Option<String>>,
    /// By which the watch is ended in good order.
    handle: Mutex<Option<UnixStream>>,
}

impl Watch {
    /// Has the guard watch over `ward`, whose scratch images do not exist yet.
    ///
    /// # Errors
    /// There is no guard, or no room.
    pub(super) fn start(guard: PathBuf, mut ward: Ward) -> Result<Self> {
        let watching = begin(&guard, &ward)?;
        let room = watching.room();
        ward.scratch.granted = Some(room);
        let shared = Arc::new(Shared {
            guard,
            ward,
            room,
            readers: Mutex::default(),
            over: AtomicBool::new(false),
            stopped: Mutex::default(),
            handle: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("watch".into());
        let thread = Some(builder.spawn(move || theirs.run(watching))?);
        Ok(Self { shared, thread })
    }

    /// How much scratch there is.
    pub(super) fn room(&self) -> Room {
        self.shared.room
    }

    /// Names a reader that must be closed before the backup is aborted.
    pub(super) fn guards(&self, reader: ShutdownHandle) {
        lock(&self.shared.readers).push(reader.clone());
        // It may have come too late to be closed with the others.
        if self.check().is_err() {
            reader.shutdown();
        }
    }

    /// Fails if the backup was ended for the guest's sake.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(why) = &*lock(&self.shared.stopped) {
            bail!("{why}; the backup was ended for the guest's sake: give scratch_dir more room");
        }
        Ok(())
    }
}

/// Reaches a guard, also one that is being restarted.
fn begin(guard: &std::path::Path, ward: &Ward) -> Result<Watching> {
    let start = Instant::now();
    loop {
        match Watching::begin(guard, ward) {
            Ok(watching) => return Ok(watching),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => bail!("{e}"),
            Err(e) if start.elapsed() > RETURN => {
                return Err(e).context(
                    "the guard does not answer, and there is no backup without it; \
                     look with systemctl status lab-backup-guard",
                );
            }
            Err(_) => std::thread::sleep(LOOK / 4),
        }
    }
}

impl Shared {
    fn run(&self, watching: Watching) {
        let mut watching = Some(watching);
        while !self.over.load(Ordering::Acquire) {
            watching = match watching {
                Some(watching) => self.with_guard(watching),
                None => self.without_guard(),
            };
        }
    }

    /// Until the guard is gone or the watch is over.
    fn with_guard(&self, mut watching: Watching) -> Option<Watching> {
        *lock(&self.handle) = watching.handle().ok();
        while !self.over.load(Ordering::Acquire) {
            let told = watching.listen(LOOK);
            match told {
                Ok(Told::Nothing) => {}
                Ok(Told::Stop(why)) => {
                    self.close_readers(why);
                    if watching.closed().is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        *lock(&self.handle) = None;
        None
    }

    /// One look of our own, one attempt to reach the guard.
    fn without_guard(&self) -> Option<Watching> {
        if let Look::Short(why) = self.ward.scratch.look(self.room)
            && lock(&self.stopped).is_none()
        {
            self.close_readers(why);
            if let Err(e) = self.ward.abort() {
                note!("{}: {e:#}", self.ward.vm);
            }
        }
        match Watching::begin(&self.guard, &self.ward) {
            Ok(watching) => Some(watching),
            Err(_) => {
                std::thread::park_timeout(LOOK / 4);
                None
            }
        }
    }

    fn close_readers(&self, why: String) {
        *lock(&self.stopped) = Some(why);
        lock(&self.readers)
            .iter()
            .for_each(ShutdownHandle::shutdown);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(handle) = lock(&self.shared.handle).take() {
            end_watch(handle);
        }
        // An abort that is on its way belongs to this job, not to what comes after it.
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
