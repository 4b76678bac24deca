//! Writes Quadlet units.
//!
//! Podman's generator drops a whole unit for one key it does not know, without stopping anything.
//! So the keys are an allow-list: those of podman 5.4, the oldest we run on, that we use.

use std::fmt::Write as _;

/// Keys of podman 5.4 that may stand in a Quadlet section.
#[cfg(test)]
const KEYS: &[(&str, &[&str])] = &[
    (
        "Container",
        &[
            "AddHost",
            "ContainerName",
            "DropCapability",
            "Environment",
            "HealthCmd",
            "HealthInterval",
            "HealthOnFailure",
            "HealthRetries",
            "HealthStartPeriod",
            "HealthStartupCmd",
            "HealthStartupInterval",
            "HealthStartupRetries",
            "HealthStartupSuccess",
            "HealthStartupTimeout",
            "HealthTimeout",
            "Image",
            "LogDriver",
            "Network",
            "NoNewPrivileges",
            "Notify",
            "PublishPort",
            "Pull",
            "ReadOnly",
            "Secret",
            "ShmSize",
            "StopTimeout",
            "Tmpfs",
            "User",
            "Group",
            "UserNS",
            "Volume",
        ],
    ),
    ("Network", &["NetworkName"]),
    ("Volume", &["VolumeName"]),
];

/// A unit file: sections of `Key=value`.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    sections: Vec<(&'static str, Vec<(&'static str, String)>)>,
}

impl Unit {
    /// Begins a section.
    pub(super) fn section(mut self, name: &'static str) -> Self {
        self.sections.push((name, Vec::new()));
        self
    }

    /// Adds a line to the section begun last.
    pub(super) fn set(mut self, key: &'static str, value: impl Into<String>) -> Self {
        if let Some((_, lines)) = self.sections.last_mut() {
            lines.push((key, value.into()));
        }
        self
    }

    /// The text of the file.
    pub(super) fn text(&self) -> String {
        let mut out = String::from(super::HEADER);
        for (name, lines) in &self.sections {
            // Writing to a String cannot fail.
            let _ = write!(out, "\n[{name}]\n");
            for (key, value) in lines {
                let _ = writeln!(out, "{key}={}", escape(value));
            }
        }
        out
    }

    /// What the generator of podman 5.4 would stumble over.
    #[cfg(test)]
    pub(super) fn lint(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, lines) in &self.sections {
            let Some((_, keys)) = KEYS.iter().find(|(section, _)| section == name) else {
                if !["Unit", "Service", "Install"].contains(name) {
                    found.push(format!("section {name}"));
                }
                continue;
            };
            for (key, value) in lines {
                if !keys.contains(key) {
                    found.push(format!("{name}.{key}"));
                }
                // podman before 5.8.2 splits such a command wrongly.
                if key.starts_with("Health") && value.contains('"') {
                    found.push(format!("double quote in {key}"));
                }
            }
        }
        found
    }
}

/// systemd reads `%` as the start of a specifier and a trailing backslash as a continued line.
fn escape(value: &str) -> String {
    let plain: String = value
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    plain.replace('%', "%%").trim_end_matches('\\').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_on_its_line_and_is_no_specifier() {
        let unit = Unit::default()
            .section("Unit")
            .set("Description", "a\nb %h\\");
        assert!(unit.text().ends_with("\n[Unit]\nDescription=a b %%h\n"));
    }

    #[test]
    fn the_lint_finds_what_the_generator_would_refuse() {
        let unit = Unit::default()
            .section("Container")
            .set("Memory", "1g")
            .set("HealthCmd", "sh -c \"x\"");
        assert_eq!(
            unit.lint(),
            ["Container.Memory", "double quote in HealthCmd"]
        );
    }
}
