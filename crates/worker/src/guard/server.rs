//! The resident guard: grants leases and thaws when they run out, watches over jobs.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use relay::policy::FREEZE_MS;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::lines::Lines;
use super::remote::{self, Remote};
use super::room::{self, Room};
use super::ward::{Look, Scratch, Ward};
use super::{Ask, Granted, Held, Stop, Terms, VERSION};
use crate::alive;
use crate::freeze::{Trouble, thaw_until_proven};
use crate::paths::Places;

/// How long a worker may take to close its readers.
const CLOSE: Duration = Duration::from_millis(500);
/// How long a worker may take to say what it wants.
const GREETING: Duration = Duration::from_secs(5);
/// How often systemd hears that we live.
const NOTIFY: Duration = Duration::from_secs(2);

/// What every connection shares.
struct Guard {
    leases: PathBuf,
    /// Scratch that running jobs were granted, by a number of ours.
    claims: Mutex<Vec<(u64, Scratch, Room)>>,
}

/// Runs the guard until the process ends. Guests with a lease from an earlier life are thawed first.
pub fn serve(places: &Places) -> Result<()> {
    let leases = places.leases();
    fs::create_dir_all(&leases).context("cannot make the directory of the leases")?;
    for path in left_over(&leases)? {
        std::thread::spawn(move || match read_terms(&path) {
            Ok(terms) => thaw(&terms, &path),
            Err(e) => eprintln!("lease {} is not readable: {e}", path.display()),
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
    let guard = Arc::new(Guard {
        leases,
        claims: Mutex::default(),
    });
    alive::notify("READY=1");
    loop {
        alive::notify("WATCHDOG=1");
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => continue,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        let guard = Arc::clone(&guard);
        std::thread::spawn(move || {
            if let Err(e) = guard.attend(socket) {
                eprintln!("a worker was not served: {e:#}");
            }
        });
    }
}

impl Guard {
    fn attend(&self, socket: UnixStream) -> Result<()> {
        let pid = socket_peercred(&socket)?.pid;
        let worker = pidfd_open(pid, PidfdFlags::empty())?;
        let mut lines = Lines::new(socket)?;
        match lines.expect(GREETING)? {
            Ask::Lease(terms) => self.lease(lines, &worker, &terms),
            Ask::Watch(ward) => self.watch(lines, &worker, &ward),
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
            Released::InDoubt => eprintln!("VM {}: thawing along with {}", terms.vm, terms.job),
            Released::No => {
                eprintln!(
                    "VM {}: the lease of {} ran out, thawing",
                    terms.vm, terms.job
                );
                // Dead already if the connection closed; the worker must not go on believing in a
                // freeze.
                let _ = pidfd_send_signal(worker, Signal::KILL);
            }
        }
        thaw(terms, &path);
        Ok(())
    }

    /// One job, from its begin to its end.
    fn watch(&self, mut lines: Lines, worker: &OwnedFd, ward: &Ward) -> Result<()> {
        let claim = match ward.check().and_then(|()| self.claim(&ward.scratch)) {
            Ok(claim) => claim,
            Err(e) => return refuse(&mut lines, &e),
        };
        let room = claim.room;
        lines.say(&Granted {
            granted: true,
            why: None,
            room: Some(room),
        })?;
        let mut stopped = false;
        loop {
            let pause = match ward.scratch.look(room) {
                Look::Again(time) => time,
                Look::Short(_) if stopped => Duration::from_secs(1),
                Look::Short(why) => {
                    stopped = true;
                    stop(&mut lines, worker, ward, why);
                    Duration::ZERO
                }
            };
            match lines.next(pause) {
                Ok(None) => {}
                Ok(Some(Ask::Release)) => return Ok(()),
                Ok(Some(_)) => {}
                // What a dead worker leaves is repaired by its unit.
                Err(e) => return Err(e).with_context(|| format!("{} left its watch", ward.job)),
            }
        }
    }

    /// Decides how much scratch a job gets, and remembers it until the claim is dropped.
    fn claim(&self, scratch: &Scratch) -> Result<Claim<'_>> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let device = |scratch: &Scratch| scratch.dir.metadata().map(|facts| facts.dev()).ok();
        let here = device(scratch);
        let claimed = claims
            .iter()
            .filter(|(_, other, _)| device(other) == here)
            .map(|(_, other, room)| room.claim(other.total).saturating_sub(other.occupied()))
            .sum();
        let room = match scratch.granted {
            Some(room) => room,
            None => {
                let free = room::free(&scratch.dir)?;
                room::decide(free, claimed, scratch.total, scratch.beside_images)
                    .map_err(|why| anyhow::anyhow!("scratch_dir {} {why}", scratch.dir.display()))?
            }
        };
        let number = claims.last().map_or(0, |(number, ..)| number + 1);
        claims.push((number, scratch.clone(), room));
        Ok(Claim {
            guard: self,
            number,
            room,
        })
    }
}

/// Scratch that is counted as taken until this is dropped.
struct Claim<'a> {
    guard: &'a Guard,
    number: u64,
    room: Room,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let claims = &self.guard.claims;
        let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|(number, ..)| *number != self.number);
    }
}

/// Ends a backup for the guest's sake: first its readers, then the job.
fn stop(lines: &mut Lines, worker: &OwnedFd, ward: &Ward, why: String) {
    eprintln!("VM {}: {why}: ending the backup", ward.vm);
    let deadline = Instant::now() + CLOSE;
    let mut closed = lines.say(&Stop { stop: why }).is_ok();
    while closed {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.next(left) {
            Ok(Some(Ask::Closed)) => break,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => closed = false,
        }
    }
    if !closed {
        // A reader with requests in flight that does not take its answers would stall the guest.
        let _ = pidfd_send_signal(worker, Signal::KILL);
    }
    if let Err(e) = ward.abort() {
        eprintln!("VM {}: {e:#}", ward.vm);
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
    let guest = Remote::new(&terms.uuid, terms.restart_libvirt);
    thaw_until_proven(&guest, Duration::from_secs(5), |trouble: &Trouble| {
        eprintln!("VM {}: still not proven thawed: {trouble}", terms.vm);
    });
    eprintln!("VM {}: thawed after {:?}", terms.vm, start.elapsed());
    if let Err(e) = fs::remove_file(path) {
        eprintln!("cannot remove {}: {e}", path.display());
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

fn read_terms(path: &Path) -> io::Result<Terms> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write_terms(path: &Path, terms: &Terms) -> io::Result<()> {
    let temp = path.with_extension("new");
    fs::write(&temp, serde_json::to_vec(terms)?)?;
    fs::rename(temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard {
            leases: "/nowhere".into(),
            claims: Mutex::default(),
        }
    }

    #[test]
    fn what_a_running_backup_may_still_take_is_not_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let guard = guard();
        let free = room::free(dir.path()).unwrap();
        let scratch = Scratch {
            dir: dir.path().into(),
            images: Vec::new(),
            total: free / 2,
            beside_images: true,
            granted: None,
        };
        let first = guard.claim(&scratch).unwrap();
        assert_eq!(first.room, Room::Reserved);
        let why = guard.claim(&scratch).err().unwrap().to_string();
        assert!(why.contains("claimed by running backups"), "{why}");
        // After a restart of the guard nobody loses what he has.
        let again = Scratch {
            granted: Some(Room::Reserved),
            ..scratch.clone()
        };
        drop(guard.claim(&again).unwrap());
        drop(first);
        assert!(guard.claim(&scratch).is_ok());
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
