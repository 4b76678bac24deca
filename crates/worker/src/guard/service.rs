//! Having systemd restart libvirt's daemon.

use anyhow::{Result, bail};

use crate::tool;

/// Services that may be libvirt's daemon for QEMU, the modular one first.
const DAEMONS: [&str; 2] = ["virtqemud.service", "libvirtd.service"];

/// Ends libvirt's daemon, which may be past listening, and starts it again.
pub(super) fn restart_libvirt() -> Result<()> {
    let mut known = DAEMONS
        .iter()
        .filter(|unit| state_of(unit).is_some_and(|state| state != "inactive"));
    // One that died is started by its socket; one that failed is not.
    let Some(unit) = known.next().or_else(|| {
        DAEMONS.iter().find(|unit| {
            state_of(&unit.replace(".service", ".socket")).is_some_and(|s| s == "active")
        })
    }) else {
        bail!("no service of libvirt is loaded");
    };
    let mut kill = tool::command("systemctl");
    // The guests are in other control groups, and processes of their own.
    kill.args(["kill", "--signal=KILL", "--kill-whom=main", unit]);
    if let Err(e) = tool::run(&mut kill) {
        eprintln!("{e:#}");
    }
    let mut start = tool::command("systemctl");
    start.args(["--no-block", "restart", unit]);
    tool::run(&mut start).map(drop)
}

/// `ActiveState` of a unit that systemd knows.
fn state_of(unit: &str) -> Option<String> {
    let mut show = tool::command("systemctl");
    show.args(["show", "--property=LoadState,ActiveState", unit]);
    let text = String::from_utf8(tool::run(&mut show).ok()?).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.to_owned())
    };
    (field("LoadState=")? == "loaded").then(|| field("ActiveState="))?
}
