//! Giving up on calls that block.
//!
//! libvirt's calls have no time limit: an agent that does not answer, a QEMU behind a dead disk or
//! a daemon that is stopped hold their caller for as long as they last, and nothing can take a call
//! back. So the call runs on a thread of its own, and whoever gives up leaves that thread behind.
//! Such a thread ends when its call does, or with the process.
//!
//! What a call that finishes too late returns is dropped on its thread. A late
//! [`crate::BackupJob`] is therefore aborted; a late freeze is *not* thawed: that is the duty of
//! whoever froze.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::Connect;
use crate::error::{Error, Kind, Result};

static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

/// How many threads of this process are still inside calls that were given up.
pub fn left_behind() -> usize {
    LEFT_BEHIND.load(Ordering::SeqCst)
}

/// What the caller and the thread of its call know of each other.
enum Slot<T> {
    Waiting,
    Answered(Result<T>),
    GivenUp,
}

/// Runs `call`, at most for `limit`; then gives up with [`Kind::Timeout`].
///
/// `op` and `object` go into that error and read as in `cannot {op} {object}`. Handles that `call`
/// needs are cloned into it.
pub fn run<T, F>(limit: Duration, op: &'static str, object: &str, call: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let shared = Arc::new((Mutex::new(Slot::Waiting), Condvar::new()));
    let theirs = Arc::clone(&shared);
    let name = object.to_owned();
    let spawned = thread::Builder::new()
        .name("libvirt-call".into())
        .spawn(move || {
            // A panic is an answer too; without one the caller would wait for the whole limit.
            let result = catch_unwind(AssertUnwindSafe(call))
                .unwrap_or_else(|_| Err(Error::ours(Kind::Other, op, &name, "the call panicked")));
            let (slot, answered) = &*theirs;
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if let Slot::GivenUp = *slot {
                drop(slot);
                // Dropping a late backup job aborts it, which may block as well.
                drop(result);
                LEFT_BEHIND.fetch_sub(1, Ordering::SeqCst);
            } else {
                *slot = Slot::Answered(result);
                answered.notify_one();
            }
        });
    if let Err(error) = spawned {
        let message = format!("there is no thread for the call: {error}");
        return Err(Error::ours(Kind::Other, op, object, message));
    }
    let (slot, answered) = &*shared;
    let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = answered.wait_timeout_while(slot, limit, |slot| matches!(slot, Slot::Waiting));
    let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *slot, Slot::GivenUp) {
        Slot::Answered(result) => result,
        _ => {
            LEFT_BEHIND.fetch_add(1, Ordering::SeqCst);
            let message = format!("no answer within {} ms", limit.as_millis());
            Err(Error::ours(Kind::Timeout, op, object, message))
        }
    }
}

/// Like [`run`], on a connection of its own, so that a call that never ends cannot hold up the
/// calls of other threads. `limit` includes opening the connection.
pub fn run_on_new<T, F>(
    uri: &str,
    limit: Duration,
    op: &'static str,
    object: &str,
    call: F,
) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Connect) -> Result<T> + Send + 'static,
{
    let uri = uri.to_owned();
    run(limit, op, object, move || call(&Connect::open(&uri)?))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    // One test, because the count of left-behind threads is the process's.
    #[test]
    fn a_call_is_answered_or_given_up_and_its_late_result_is_dropped() {
        assert_eq!(run(LONG, "ask", "vm", || Ok(7)).unwrap(), 7);
        let error = run::<(), _>(LONG, "ask", "vm", || panic!("expected by this test"));
        assert_eq!(error.unwrap_err().kind, Kind::Other);
        assert_eq!(left_behind(), 0);

        /// Tells when it is dropped.
        struct Late(mpsc::Sender<()>);
        impl Drop for Late {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (release, held) = mpsc::channel::<()>();
        let (dropped, was_dropped) = mpsc::channel();
        let error = run(SOON, "freeze", "vm", move || {
            held.recv().unwrap();
            Ok(Late(dropped))
        });
        let error = error.err().unwrap();
        assert_eq!(error.kind, Kind::Timeout);
        assert_eq!(
            error.to_string(),
            "cannot freeze \"vm\": no answer within 20 ms"
        );
        assert_eq!(left_behind(), 1);
        assert!(was_dropped.try_recv().is_err());
        release.send(()).unwrap();
        was_dropped.recv_timeout(LONG).unwrap();
        while left_behind() > 0 {
            thread::yield_now();
        }
    }
}
