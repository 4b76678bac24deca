//! The resident guard: grants leases and thaws when they run out, watches over jobs.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use relay::policy::FREEZE_MS;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::process::{Signal, pidfd_send_signal};

use super::claims::Claims;
use super::lines::Lines;
use super::remote::{self, Remote};
use super::worker::Worker;
use super::{Ask, Granted, Held, Terms, VERSION, watch};
use crate::alive;
use crate::freeze::{Trouble, thaw_until_proven};
use crate::note::note;
use crate::paths::Places;

/// How long a worker may take to say what it wants.
const GREETING: Duration = Duration::from_secs(5);
/// How often systemd hears that we live.
const NOTIFY: Duration = Duration::from_secs(2);

/// What every connection shares.
struct Guard {
    leases: PathBuf,
    claims: Claims,
}

/// Runs the guard until the process ends. What an earlier one left is taken over first: guests that
/// may be frozen are thawed, scratch is watched.
pub fn serve(places: &Places) -> Result<()> {
    let leases = places.leases();
    fs::create_dir_all(&leases).context("cannot make the directory of the leases")?;
    for path in left_over(&leases)? {
        std::thread::spawn(move || thaw(&terms_of(&path), &path));
    }
    let (claims, found) = Claims::load(places.claims())?;
    let guard = Arc::new(Guard { leases, claims });
    for (number, claim) in found {
        let guard = Arc::clone(&guard);
        std::thread::spawn(move || {
            let handle = claim.worker.handle();
            watch::over(&guard.claims, number, &claim, handle.as_ref(), None);
        });
    }
    let path = places.guard_socket();
    // A socket of an earlier life has nobody behind it.
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    // So that a wait for workers ends in time for the next sign of life.
    set_socket_timeout(&listener, Timeout::Recv, Some(NOTIFY))?;
    alive::notify("READY=1");
    loop {
        alive::notify("WATCHDOG=1");
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => {
                // Out of descriptors, perhaps: whoever has a lease needs us all the more.
                note!("cannot accept a worker: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let guard = Arc::clone(&guard);
        let thread = std::thread::Builder::new().spawn(move || {
            if let Err(e) = guard.attend(socket) {
                note!("a worker was not served: {e:#}");
            }
        });
        if let Err(e) = thread {
            note!("there is no thread for a worker: {e}");
        }
    }
}

impl Guard {
    fn attend(&self, socket: UnixStream) -> Result<()> {
        let pid = socket_peercred(&socket)?.pid.as_raw_nonzero().get();
        let worker = Worker::of(pid)?;
        let handle = worker.handle().context("it is gone")?;
        let mut lines = Lines::new(socket)?;
        match lines.expect(GREETING)? {
            Ask::Lease(terms) => self.lease(lines, &handle, &terms),
            Ask::Watch(ward) => {
                let granted = ward.check().and_then(|()| self.claims.grant(&ward, worker));
                let (number, claim) = match granted {
                    Ok(granted) => granted,
                    Err(e) => return refuse(&mut lines, &e),
                };
                let said = lines.say(&Granted {
                    granted: true,
                    why: None,
                    room: Some(claim.room),
                });
                watch::over(&self.claims, number, &claim, Some(&handle), Some(lines));
                Ok(said?)
            }
            other => anyhow::bail!("{other:?} came first"),
        }
    }

    /// One freeze, from its request to its release.
    fn lease(&self, mut lines: Lines, worker: &OwnedFd, terms: &Terms) -> Result<()> {
        let path = self.leases.join(format!("{}.json", terms.uuid));
        if let Err(e) = check(terms, &path) {
            return refuse(&mut lines, &e);
        }
        write_terms(&path, terms)?;
        let deadline = Instant::now() + Duration::from_millis(terms.limit_ms);
        let granted = Granted {
            granted: true,
            ..Granted::default()
        };
        if let Err(e) = lines.say(&granted) {
            // It never knew of its lease, so it froze nothing.
            fs::remove_file(&path)?;
            return Err(e.into());
        }
        match released(&mut lines, deadline) {
            Released::Yes => {
                fs::remove_file(&path)?;
                return Ok(lines.say(&Held { held: true })?);
            }
            // It knows that there is no freeze, and is at the thaw itself.
            Released::InDoubt => {}
            // Dead already if the connection closed; it must not go on believing in a freeze.
            Released::No => {
                let _ = pidfd_send_signal(worker, Signal::KILL);
            }
        }
        thaw(terms, &path);
        Ok(())
    }
}

fn refuse(lines: &mut Lines, why: &anyhow::Error) -> Result<()> {
    Ok(lines.say(&Granted {
        granted: false,
        why: Some(format!("{why:#}")),
        room: None,
    })?)
}

/// Checks that we could thaw what is about to be frozen.
fn check(terms: &Terms, path: &Path) -> Result<()> {
    anyhow::ensure!(
        terms.version == VERSION,
        "lease version {} is not known",
        terms.version
    );
    anyhow::ensure!(
        FREEZE_MS.contains(&terms.limit_ms),
        "a freeze of {} ms is outside {FREEZE_MS:?}",
        terms.limit_ms
    );
    anyhow::ensure!(is_uuid(&terms.uuid), "{:?} is not a UUID", terms.uuid);
    // Its thaw would undo the new freeze, and its end forget the new lease.
    anyhow::ensure!(
        !path.exists(),
        "an earlier freeze of VM {} is not proven thawed yet",
        terms.vm
    );
    remote::reach(&terms.uuid).context("the guard cannot reach the domain")
}

/// How a lease ended.
enum Released {
    Yes,
    /// The worker thaws, and is not done with it.
    InDoubt,
    No,
}

/// Waits for the release until the deadline or the end of the connection.
fn released(lines: &mut Lines, deadline: Instant) -> Released {
    let mut doubt = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.next(left) {
            Ok(Some(Ask::Release)) => return Released::Yes,
            Ok(Some(Ask::Doubt)) => doubt = true,
            Ok(None) if doubt => return Released::InDoubt,
            _ => return Released::No,
        }
    }
}

/// Thaws until that is proven, whatever it takes, then forgets the lease.
fn thaw(terms: &Terms, path: &Path) {
    let start = Instant::now();
    let guest = Remote::new(&terms.uuid, terms.restart_libvirt).waits_for_missing();
    thaw_until_proven(&guest, Duration::from_secs(5), |trouble: &Trouble| {
        note!("VM {}: still not proven thawed: {trouble}", terms.vm);
    });
    note!(
        "VM {}: the lease of {} ran out; thawed within {:?}",
        terms.vm,
        terms.job,
        start.elapsed()
    );
    if let Err(e) = fs::remove_file(path) {
        note!("cannot remove {}: {e}", path.display());
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn left_over(leases: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(leases).context("cannot read the directory of the leases")?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect())
}

/// The terms of a lease that was left. What cannot be read is thawed all the same: its name says whom.
fn terms_of(path: &Path) -> Terms {
    let read = || -> Result<Terms> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    read().unwrap_or_else(|e| {
        note!("lease {} is not understood: {e:#}", path.display());
        let uuid = path.file_stem().and_then(|name| name.to_str());
        Terms::new("?", uuid.unwrap_or_default(), "?", *FREEZE_MS.end(), true)
    })
}

fn write_terms(path: &Path, terms: &Terms) -> io::Result<()> {
    let temp = path.with_extension("new");
    fs::write(&temp, serde_json::to_vec(terms)?)?;
    fs::rename(temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_not_understood_names_its_guest_still() {
        let dir = tempfile::tempdir().unwrap();
        let uuid = "5a1e6f9a-1f0e-4a8c-9d5e-6f1f0e4a8c9d";
        let path = dir.path().join(format!("{uuid}.json"));
        // As written before it said whether libvirt may be restarted.
        let old = format!(
            "{{\"version\":1,\"vm\":\"web01\",\"uuid\":\"{uuid}\",\"job\":\"j\",\"limit_ms\":5000}}"
        );
        for text in [old.as_str(), "", "{"] {
            fs::write(&path, text).unwrap();
            let terms = terms_of(&path);
            assert_eq!(terms.uuid, uuid);
            assert!(terms.restart_libvirt);
        }
    }

    #[test]
    fn a_doubt_keeps_the_worker_alive_at_the_deadline_and_a_release_counts_always() {
        let ends = |asks: &[Ask], close: bool| {
            let (far, near) = UnixStream::pair().unwrap();
            let mut worker = Lines::new(far).unwrap();
            asks.iter().for_each(|ask| worker.say(ask).unwrap());
            let worker = (!close).then_some(worker);
            let deadline = Instant::now() + Duration::from_millis(30);
            let ended = released(&mut Lines::new(near).unwrap(), deadline);
            drop(worker);
            ended
        };
        assert!(matches!(ends(&[Ask::Release], false), Released::Yes));
        assert!(matches!(
            ends(&[Ask::Doubt, Ask::Release], false),
            Released::Yes
        ));
        assert!(matches!(ends(&[Ask::Doubt], false), Released::InDoubt));
        assert!(matches!(ends(&[Ask::Doubt], true), Released::No));
        assert!(matches!(ends(&[], false), Released::No));
        assert!(matches!(ends(&[Ask::Closed], false), Released::No));
    }
}
