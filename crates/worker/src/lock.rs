//! One process at a time for each VM.
//!
//! The lock is a `flock` on a file in tmpfs, so that it dies with its holder. The file names the
//! holder for the message that somebody else gets; it is never stolen.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// A VM's lock, held until dropped.
#[derive(Debug)]
pub struct Locked {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else holds it.
    #[error("VM {vm} is busy: {holder} holds its lock; wait for it or cancel it")]
    Busy {
        /// The VM's key.
        vm: String,
        /// Who, as the lock file tells.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("cannot use the lock file of VM {vm}")]
    Io {
        /// The VM's key.
        vm: String,
        /// Why.
        source: io::Error,
    },
}

/// Takes the lock of `vm` at `path`, waiting at most `patience`; `holder` says who we are.
pub fn take(path: &Path, vm: &str, holder: &str, patience: Duration) -> Result<Locked, Error> {
    let io = |source| Error::Io {
        vm: vm.into(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(io)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io)?;
    let start = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(e) if e == rustix::io::Errno::WOULDBLOCK => {
                if start.elapsed() >= patience {
                    let mut text = String::new();
                    // Whatever is readable is good enough for a message.
                    let _ = (&mut file).take(200).read_to_string(&mut text);
                    let holder = if text.is_empty() {
                        "another process".into()
                    } else {
                        text
                    };
                    return Err(Error::Busy {
                        vm: vm.into(),
                        holder,
                    });
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(e) => return Err(io(e.into())),
        }
    }
    file.set_len(0).map_err(io)?;
    file.rewind().map_err(io)?;
    write!(file, "{holder} (process {})", std::process::id()).map_err(io)?;
    Ok(Locked { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_waits_and_is_told_who_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock/web01");
        let held = take(&path, "web01", "job a", Duration::ZERO).unwrap();
        let error = take(&path, "web01", "job b", Duration::from_millis(150)).unwrap_err();
        assert!(error.to_string().contains("job a (process "), "{error}");
        drop(held);
        take(&path, "web01", "job b", Duration::ZERO).unwrap();
    }
}
