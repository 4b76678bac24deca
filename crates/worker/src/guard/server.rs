//! The resident guard: grants leases and thaws when they run out.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Ask, Granted, Held, Terms, read_line};
use crate::agent::{self, AgentOf};
use crate::freeze::{Trouble, thaw_until_proven};
use crate::paths::Places;

/// Longest freeze that a lease may be asked for, in milliseconds.
const MAX_LIMIT_MS: u64 = 10_000;

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
    for socket in listener.incoming() {
        let socket = socket?;
        let leases = leases.clone();
        std::thread::spawn(move || {
            if let Err(e) = attend(socket, &leases) {
                eprintln!("a worker left without a lease: {e}");
            }
        });
    }
    Ok(())
}

/// One worker, from its request to its release.
fn attend(mut socket: UnixStream, leases: &Path) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    let ask: Ask = serde_json::from_str(&read_line(&mut socket)?)?;
    let Ask::Lease(terms) = ask else {
        return Err(io::Error::other("a release without a lease"));
    };
    let path = leases.join(format!("{}.json", terms.uuid));
    let worker = match grant(&socket, &terms, &path) {
        Ok(worker) => worker,
        Err(e) => {
            let why = format!("{e:#}");
            return say(
                &mut socket,
                &Granted {
                    granted: false,
                    why: Some(why),
                },
            );
        }
    };
    write_terms(&path, &terms)?;
    let deadline = Instant::now() + Duration::from_millis(terms.limit_ms);
    if say(
        &mut socket,
        &Granted {
            granted: true,
            why: None,
        },
    )
    .is_err()
    {
        return fs::remove_file(&path);
    }
    if released(&mut socket, deadline) {
        fs::remove_file(&path)?;
        return say(&mut socket, &Held { held: true });
    }
    eprintln!(
        "VM {}: the lease of {} ran out, thawing",
        terms.vm, terms.job
    );
    // Dead already if the connection closed; the worker must not go on believing in a freeze.
    let _ = pidfd_send_signal(&worker, Signal::KILL);
    thaw(&terms, &path);
    Ok(())
}

/// Checks that we could thaw what is about to be frozen.
fn grant(socket: &UnixStream, terms: &Terms, path: &Path) -> Result<OwnedFd> {
    anyhow::ensure!(
        terms.version == 1,
        "lease version {} is not known",
        terms.version
    );
    anyhow::ensure!(
        (1..=MAX_LIMIT_MS).contains(&terms.limit_ms),
        "a freeze of {} ms is outside 1 to {MAX_LIMIT_MS}",
        terms.limit_ms
    );
    anyhow::ensure!(is_uuid(&terms.uuid), "{:?} is not a UUID", terms.uuid);
    // Its thaw would undo the new freeze, and its end forget the new lease.
    anyhow::ensure!(
        !path.exists(),
        "an earlier freeze of VM {} is not proven thawed yet",
        terms.vm
    );
    let pid: Pid = rustix::net::sockopt::socket_peercred(socket)?.pid;
    let worker = pidfd_open(pid, PidfdFlags::empty())?;
    agent::find(&terms.uuid).context("the guard cannot reach the domain")?;
    Ok(worker)
}

/// Waits for the release; false on the deadline or when the connection closes.
fn released(socket: &mut UnixStream, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
        return false;
    }
    read_line(socket)
        .ok()
        .and_then(|line| serde_json::from_str(&line).ok())
        .is_some_and(|ask: Ask| ask == Ask::Release)
}

/// Thaws until that is proven, whatever it takes, then forgets the lease.
fn thaw(terms: &Terms, path: &Path) {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        match agent::find(&terms.uuid) {
            Ok(domain) => {
                thaw_until_proven(
                    &AgentOf::new(&domain),
                    Duration::from_secs(5),
                    |trouble: &Trouble| {
                        eprintln!("VM {}: still not proven thawed: {trouble}", terms.vm);
                    },
                );
                eprintln!("VM {}: thawed after {:?}", terms.vm, start.elapsed());
                break;
            }
            // No such domain: nothing is frozen.
            Err(e) if e.kind == libvirt::Kind::NotFound => break,
            Err(e) => {
                let text = e.to_string();
                if text != last {
                    eprintln!("VM {}: {text}", terms.vm);
                    last = text;
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }
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

fn say<T: serde::Serialize>(socket: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line)
}
