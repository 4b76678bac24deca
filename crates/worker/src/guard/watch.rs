//! Watching over the scratch of a job, from before its first image until the last one is gone.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::claims::{Claim, Claims};
use super::lines::Lines;
use super::ward::{Look, Ward};
use super::{Ask, Stop, worker};
use crate::note::note;

/// How long a worker may take to close its readers.
const CLOSE: Duration = Duration::from_millis(500);
/// How long a worker that was killed may take to be gone.
const DIE: Duration = Duration::from_secs(2);
/// Time between two attempts to end a backup.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between two looks for a backup that may still begin: its worker died over it.
const LATER: Duration = Duration::from_millis(200);

/// Watches while the worker is there, and on until none of its scratch images is left: it may have gone
/// without a word, or have failed to end libvirt's job.
pub(super) fn over(
    claims: &Claims,
    number: u64,
    claim: &Claim,
    handle: Option<&OwnedFd>,
    lines: Option<Lines>,
) {
    let ward = &claim.ward;
    if let Some(lines) = lines
        && let Err(e) = with_worker(lines, handle, claim)
    {
        note!("VM {}: {} left its watch: {e:#}", ward.vm, ward.job);
    }
    alone(claims, number, claim, handle);
    claims.give_back(&ward.job, number);
}

/// Until the worker ends the watch. An error if it goes without.
fn with_worker(mut lines: Lines, handle: Option<&OwnedFd>, claim: &Claim) -> Result<()> {
    let mut stopped = false;
    loop {
        let pause = match claim.ward.scratch.look(claim.room) {
            Look::Again(time) => time,
            Look::Short(_) if stopped => AGAIN,
            Look::Short(why) => {
                stopped = true;
                stop(Some(&mut lines), handle, &claim.ward, why);
                Duration::ZERO
            }
        };
        if let Some(Ask::Release) = lines.next(pause)? {
            return Ok(());
        }
    }
}

/// Until its scratch images are gone, or the worker is back with a claim of its own. What a dead worker
/// left is repaired by its unit, which may take its time while libvirt hangs.
fn alone(claims: &Claims, number: u64, claim: &Claim, handle: Option<&OwnedFd>) {
    let ward = &claim.ward;
    while claims.is_current(&ward.job, number) && ward.scratch.exists() {
        match ward.scratch.look(claim.room) {
            Look::Again(time) => std::thread::sleep(time),
            // A worker that ended its backup may still be at its files: it is left alone.
            Look::Short(_) if !ward.runs() => std::thread::sleep(LATER),
            Look::Short(why) => {
                stop(None, handle, ward, why);
                std::thread::sleep(AGAIN);
            }
        }
    }
}

/// Ends a backup for the guest's sake: first its readers, then the job.
fn stop(lines: Option<&mut Lines>, handle: Option<&OwnedFd>, ward: &Ward, why: String) {
    let said = format!("VM {}: {why}: ending the backup", ward.vm);
    let closed = lines.is_some_and(|lines| asked(lines, why));
    // A reader with requests in flight that does not take its answers would stall the guest.
    if let (false, Some(handle)) = (closed, handle)
        && !worker::kill(handle, DIE)
    {
        note!("VM {}: the worker of {} does not die", ward.vm, ward.job);
    }
    let ended = ward.abort();
    note!("{said}");
    if let Err(e) = ended {
        note!("VM {}: {e:#}", ward.vm);
    }
}

/// Asks the worker to close its readers; false if it does not say in time that it has.
fn asked(lines: &mut Lines, why: String) -> bool {
    let deadline = Instant::now() + CLOSE;
    if lines.say(&Stop { stop: why }).is_err() {
        return false;
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.next(left) {
            Ok(Some(Ask::Closed)) => return true,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return false,
        }
    }
}
