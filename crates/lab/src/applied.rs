//! `/var/lib/lab-backup/applied.json`: what each unit was last started or reloaded with.
//!
//! A file on disk says nothing about whether the running daemon has read it. The record is written
//! after a unit has come up with some content, never before: whatever interrupts `apply` in
//! between, the next one does the restart again.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::Host;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Applied {
    /// Version of the file: 1.
    version: u32,
    /// Units by name.
    units: BTreeMap<String, Unit>,
}

/// What a unit runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unit {
    /// Fingerprint of what it read when it started.
    pub(crate) starts_with: String,
    /// Fingerprint of what it last loaded while running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reloads: Option<String>,
}

impl Applied {
    /// Where it lives.
    pub(crate) const PATH: &str = "/var/lib/lab-backup/applied.json";

    /// Reads the record. One that is not understood is as good as none: units are restarted.
    pub(crate) fn read(host: &dyn Host) -> io::Result<Self> {
        let found = host.look(Path::new(Self::PATH))?;
        let record: Option<Self> = found.and_then(|f| serde_json::from_str(&f.text).ok());
        Ok(record.filter(|r| r.version == 1).unwrap_or_default())
    }

    /// What a unit runs with, as far as is known.
    pub(crate) fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.get(name)
    }

    /// Notes what a unit now runs with, for good.
    pub(crate) fn note(&mut self, host: &dyn Host, name: &str, unit: Unit) -> io::Result<()> {
        self.version = 1;
        self.units.insert(name.into(), unit);
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        host.write(Path::new(Self::PATH), &format!("{text}\n"), 0o644)
    }
}
