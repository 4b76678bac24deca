//! The instant of the backup: freeze, begin, thaw.
//!
//! Everything is prepared before. Between freeze and thaw only the begin of the backup runs: no
//! file, no log, no network. The guard holds a lease on the freeze all the while.

use std::path::Path;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use libvirt::{AgentTimeout, Domain};
use relay::policy::Quiesce;

use crate::agent::AgentOf;
use crate::freeze::{Guest, Trouble, thaw_until_proven};
use crate::guard::{Lease, Remote, Terms};
use crate::manifest::{Consistency, Instant};
use crate::session::Line;

/// How long a guard that is being restarted is waited for.
const GUARD_RETURN: Duration = Duration::from_secs(5);

/// How the guest is to be quieted.
#[derive(Debug)]
pub(super) struct Quiet<'a> {
    pub(super) vm: &'a str,
    pub(super) job: &'a str,
    pub(super) quiesce: Quiesce,
    pub(super) limit_ms: u64,
    pub(super) restart_libvirt: bool,
    pub(super) guard: &'a Path,
}

/// Runs `begin` with the guest's file systems frozen, as far as the policy says.
///
/// `before_freeze` records the intent, `thawed` that the guest is proven thawed or was not frozen by us,
/// which also holds when this fails. Returns what `begin` returned and how it was.
///
/// # Errors
/// `begin` failed, or the policy requires a freeze that could not be had. The guest is thawed
/// in every case, or the guard is at it.
pub(super) fn take<T>(
    line: &Line,
    domain: &Domain,
    quiet: &Quiet<'_>,
    before_freeze: impl FnOnce() -> Result<()>,
    begin: impl FnOnce() -> Result<T>,
    thawed: impl Fn() -> Result<()>,
) -> Result<(T, Instant)> {
    let agent = AgentOf::new(domain);
    let ready = match quiet.quiesce {
        Quiesce::Off => None,
        Quiesce::Try | Quiesce::Require => {
            match prepare(&agent, domain.uuid(), quiet, before_freeze) {
                Ok(lease) => Some(lease),
                Err(error) => {
                    // Whoever freezes it from now on is somebody else, also for a repair.
                    thawed()?;
                    if quiet.quiesce == Quiesce::Require {
                        return Err(error.context(format!(
                            "quiesce = \"require\" and the guest cannot be frozen; set vms.{}.quiesce = \
                             \"try\" in lab.toml to back it up without",
                            quiet.vm
                        )));
                    }
                    line.warn(format!(
                        "{}: not frozen, the backup is crash-consistent: {error:#}",
                        quiet.vm
                    ));
                    None
                }
            }
        }
    };
    match ready {
        None => {
            let at = Timestamp::now();
            let value = begin()?;
            Ok((value, unfrozen(at)))
        }
        Some(lease) => frozen(line, &agent, quiet, lease, begin, thawed),
    }
}

fn unfrozen(at: Timestamp) -> Instant {
    Instant {
        at: at.to_string(),
        consistency: Consistency::Crash,
        frozen_ms: None,
        held_ms: None,
    }
}

/// Everything that can be known before the freeze, the lease last.
fn prepare(
    agent: &AgentOf<'_>,
    uuid: &str,
    quiet: &Quiet<'_>,
    before_freeze: impl FnOnce() -> Result<()>,
) -> Result<Lease> {
    agent.ping().context(
        "no guest agent answers; install or start the agent in the guest, or restart it if it runs",
    )?;
    if agent.is_frozen()? {
        bail!(FOREIGN);
    }
    // A call that outlives this limit is in doubt; what is left of the lease is for the thaw.
    let patience = Duration::from_millis(quiet.limit_ms).saturating_sub(Duration::from_secs(2));
    agent.bound(AgentTimeout::Within(patience))?;
    before_freeze()?;
    let terms = Terms::new(
        quiet.vm,
        uuid,
        quiet.job,
        quiet.limit_ms,
        quiet.restart_libvirt,
    );
    let lease = ask(quiet.guard, &terms).context("the guard grants no lease")?;
    // Writing down and asking took a while. A foreign freeze that we doubted about would be thawed.
    match agent.is_frozen() {
        Ok(false) => Ok(lease),
        other => {
            lease.release();
            other?;
            bail!(FOREIGN)
        }
    }
}

/// Why a guest is not frozen that is frozen.
const FOREIGN: &str = "somebody else holds it frozen";

/// Asks for a lease, also of a guard that is being restarted.
fn ask(guard: &Path, terms: &Terms) -> std::io::Result<Lease> {
    let start = Clock::now();
    loop {
        match Lease::ask(guard, terms.clone()) {
            Err(e)
                if e.kind() != std::io::ErrorKind::PermissionDenied
                    && start.elapsed() < GUARD_RETURN =>
            {
                std::thread::sleep(Duration::from_millis(250));
            }
            answer => return answer,
        }
    }
}

fn frozen<T>(
    line: &Line,
    agent: &AgentOf<'_>,
    quiet: &Quiet<'_>,
    mut lease: Lease,
    begin: impl FnOnce() -> Result<T>,
    proven: impl Fn() -> Result<()>,
) -> Result<(T, Instant)> {
    let sent = Clock::now();
    match agent.freeze() {
        Ok(count) => {
            let held = Clock::now();
            let at = Timestamp::now();
            let begun = begin();
            let held = held.elapsed();
            let thawed = thaw(line, agent, quiet);
            let frozen = sent.elapsed();
            let kept = lease.release();
            let recorded = proven();
            let value = begun?;
            recorded?;
            let mut instant = unfrozen(at);
            instant.frozen_ms = Some(millis(frozen));
            instant.held_ms = Some(millis(held));
            if kept && thawed >= count && count > 0 {
                instant.consistency = Consistency::FilesystemFrozen;
            } else {
                let why = format!(
                    "{}: {count} file systems frozen, {thawed} thawed, lease held: {kept}; the backup is crash-consistent",
                    quiet.vm
                );
                if quiet.quiesce == Quiesce::Require {
                    bail!(why);
                }
                line.warn(why);
            }
            Ok((value, instant))
        }
        Err(trouble) => {
            if matches!(trouble, Trouble::Away(_) | Trouble::Missing) {
                // Frozen or not, it is elsewhere. The guard keeps the lease until it comes back, and ends
                // this process now that the lease is dropped.
                line.warn(format!("{}: {trouble}; the backup is given up", quiet.vm));
                return Err(trouble.into());
            }
            let refused = matches!(trouble, Trouble::Refused(_));
            if !refused {
                // In doubt: it may freeze later, so thaw until that is excluded.
                lease.doubt();
                thaw_in_doubt(line, agent, quiet);
            }
            lease.release();
            proven()?;
            if quiet.quiesce == Quiesce::Require || trouble == Trouble::Gone {
                return Err(trouble).with_context(|| format!("the freeze of {} failed", quiet.vm));
            }
            line.warn(format!(
                "{}: the freeze failed ({trouble}), the backup is crash-consistent",
                quiet.vm
            ));
            let at = Timestamp::now();
            Ok((begin()?, unfrozen(at)))
        }
    }
}

/// The ordinary thaw: one call and one look. Anything else goes on until it is proven.
fn thaw(line: &Line, agent: &AgentOf<'_>, quiet: &Quiet<'_>) -> u32 {
    match agent.thaw() {
        Ok(count) if agent.is_frozen() == Ok(false) => count,
        Ok(count) => count + thaw_in_doubt(line, agent, quiet),
        Err(_) => thaw_in_doubt(line, agent, quiet),
    }
}

/// Over connections of its own: the one at hand may be dead, and the doubt because of that.
fn thaw_in_doubt(line: &Line, agent: &AgentOf<'_>, quiet: &Quiet<'_>) -> u32 {
    // The guard restarts a daemon that is silent, if that is allowed.
    let guest = Remote::new(agent.uuid(), false);
    thaw_until_proven(&guest, Duration::from_secs(1), |trouble| {
        line.warn(format!(
            "{}: the thaw is not proven yet: {trouble}",
            quiet.vm
        ));
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
