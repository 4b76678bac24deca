//! `lab-backup stack status --json`.

use jiff::Timestamp;
use serde::Serialize;

use super::{Unit, systemctl};
use crate::exit::Exit;
use crate::host::{Host, Login, Run};

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    units: Vec<UnitStatus>,
}

/// One unit. What it does not have, or what could not be seen, is null.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct UnitStatus {
    unit: &'static str,
    /// systemd's ActiveState.
    active: String,
    /// systemd's SubState.
    sub: String,
    /// Since when it has been in this state.
    since: Option<Timestamp>,
    /// Image of its container.
    image: Option<String>,
    /// What Podman's health check last said.
    health: Option<String>,
}

/// Prints how the units are.
pub(super) fn print(
    host: &dyn Host,
    units: &[Unit],
    login: Option<&Login>,
) -> anyhow::Result<Exit> {
    let units = units.iter().map(|unit| look(host, *unit, login));
    let report = Report {
        version: 1,
        units: units.collect::<anyhow::Result<_>>()?,
    };
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(Exit::Done)
}

fn look(host: &dyn Host, unit: Unit, login: Option<&Login>) -> anyhow::Result<UnitStatus> {
    let properties = "ActiveState,SubState,StateChangeTimestamp";
    let words = ["show", "--timestamp=unix", "-p", properties, unit.name()];
    let output = host.run(&systemctl(unit.scope(), login, &words))?;
    if !output.ok() {
        anyhow::bail!(
            "systemctl cannot show {}: {}",
            unit.name(),
            output.stderr.trim()
        );
    }
    let mut status = properties_of(unit.name(), &output.stdout);
    if let (Some(container), Some(login)) = (unit.container(), login) {
        let format = "{{.ImageName}} {{if .State.Health}}{{.State.Health.Status}}{{end}}";
        let inspect = [
            "podman",
            "container",
            "inspect",
            "--format",
            format,
            container,
        ];
        let output = host.run(&Run::new(&inspect).login(login))?;
        // A container that is down does not exist.
        if output.ok() {
            let mut words = output.stdout.split_whitespace().map(str::to_owned);
            (status.image, status.health) = (words.next(), words.next());
        }
    }
    Ok(status)
}

fn properties_of(unit: &'static str, text: &str) -> UnitStatus {
    let mut status = UnitStatus {
        unit,
        ..UnitStatus::default()
    };
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "ActiveState" => status.active = value.into(),
            "SubState" => status.sub = value.into(),
            "StateChangeTimestamp" => {
                let seconds = value.strip_prefix('@').and_then(|text| text.parse().ok());
                status.since = seconds.and_then(|s| Timestamp::from_second(s).ok());
            }
            _ => {}
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_does_not_know_is_null() {
        let text = "ActiveState=active\nSubState=running\nStateChangeTimestamp=@1700000000\n";
        let status = properties_of("x.service", text);
        assert_eq!((&*status.active, &*status.sub), ("active", "running"));
        assert_eq!(status.since.unwrap().to_string(), "2023-11-14T22:13:20Z");
        let text = "ActiveState=inactive\nSubState=dead\nStateChangeTimestamp=\n";
        assert_eq!(properties_of("x.service", text).since, None);
    }
}
