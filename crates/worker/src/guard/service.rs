//! Having systemd restart libvirt's daemon.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::note::note;
use crate::tool;

/// Services that may be libvirt's daemon for QEMU, the modular one first.
const DAEMONS: [&str; 2] = ["virtqemud", "libvirtd"];
/// Longest wait for systemd.
const LIMIT: Duration = Duration::from_secs(5);
/// Time for a restarted daemon to find its domains again, at first; doubled each time that it does not.
const SETTLE: Duration = Duration::from_secs(30);
/// Longest time between two restarts.
const SETTLE_MAX: Duration = Duration::from_secs(600);

/// When the daemon was restarted last, and how long it has to come up: one for all guests of the host.
static LAST: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);

/// Ends libvirt's daemon, which may be past listening, and starts it again; not while it is coming up
/// from an earlier time. Guests are processes of their own and go on.
pub(super) fn restart_libvirt(silent: Duration) {
    {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let settle = match *last {
            Some((at, settle)) if at.elapsed() < settle => return,
            // One that was fine for long starts anew.
            Some((at, settle)) if at.elapsed() < 4 * settle => (2 * settle).min(SETTLE_MAX),
            _ => SETTLE,
        };
        *last = Some((Instant::now(), settle));
    }
    match restart() {
        Ok(unit) => note!(
            "libvirt answered nobody for {silent:?} while a guest may be frozen: {unit} was restarted"
        ),
        Err(e) => note!("cannot restart libvirt's daemon: {e:#}"),
    }
}

fn restart() -> Result<String> {
    let is = |name: &str, wanted: &[&str]| {
        state_of(name).is_some_and(|state| wanted.contains(&state.as_str()))
    };
    let running = ["active", "activating", "reloading", "deactivating"];
    let service = |name: &&str| format!("{name}.service");
    let found = DAEMONS
        .iter()
        .map(service)
        .find(|unit| is(unit, &running))
        // One that died is started by its socket; one that failed is not.
        .or_else(|| {
            let listens = |name: &&&str| is(&format!("{name}.socket"), &["active"]);
            DAEMONS.iter().find(listens).map(service)
        })
        .or_else(|| {
            DAEMONS
                .iter()
                .map(service)
                .find(|unit| is(unit, &["failed"]))
        });
    let Some(unit) = found else {
        bail!("no service of libvirt runs or failed");
    };
    let mut kill = tool::command("systemctl");
    kill.args(["kill", "--signal=KILL", "--kill-whom=main", &unit]);
    if let Err(e) = tool::run_within(&mut kill, LIMIT) {
        note!("{e:#}");
    }
    let mut start = tool::command("systemctl");
    start.args(["--no-block", "restart", &unit]);
    tool::run_within(&mut start, LIMIT)?;
    Ok(unit)
}

/// `ActiveState` of a unit that systemd knows.
fn state_of(unit: &str) -> Option<String> {
    let mut show = tool::command("systemctl");
    show.args(["show", "--property=LoadState,ActiveState", unit]);
    let text = String::from_utf8(tool::run_within(&mut show, LIMIT).ok()?).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.to_owned())
    };
    (field("LoadState=")? == "loaded").then(|| field("ActiveState="))?
}
