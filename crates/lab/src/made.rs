//! `/var/lib/lab-backup/made.json`: what was not there before the first `apply`, as far as nothing
//! else tells: `uninstall` leaves the host as it was found.
//!
//! It is written before anything is made, so that whatever interrupts `apply`, nothing of it is
//! forgotten. So it may name what was never made; `uninstall` looks.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::observe::State;
use crate::plan::{Action, Plan};
use crate::render::FD;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Made {
    /// Version of the file: 1.
    version: u32,
    /// The account's manager did not run without a login.
    pub(crate) linger: bool,
    /// Directories that were not there.
    pub(crate) dirs: BTreeSet<PathBuf>,
    /// The File Daemon did not start at boot.
    pub(crate) fd_enabled: bool,
    /// The File Daemon did not run.
    pub(crate) fd_started: bool,
}

impl Made {
    /// Where it lives.
    pub(crate) const PATH: &str = "/var/lib/lab-backup/made.json";

    /// Reads the record; `None` when there is none, or none that is understood.
    pub(crate) fn read(host: &dyn Host) -> io::Result<Option<Self>> {
        let found = host.look(Path::new(Self::PATH))?;
        let record: Option<Self> = found.and_then(|f| serde_json::from_str(&f.text).ok());
        Ok(record.filter(|r| r.version == 1))
    }

    /// Notes what `plan` is about to make.
    pub(crate) fn note(host: &dyn Host, state: &State, plan: &Plan) -> io::Result<()> {
        let before = Self::read(host)?.unwrap_or_default();
        let mut made = before.clone();
        for action in &plan.actions {
            made.add(action, state);
        }
        if made == before {
            return Ok(());
        }
        made.version = 1;
        let path = Path::new(Self::PATH);
        if let Some(dir) = path.parent()
            && host.look(dir)?.is_none()
        {
            host.make_dir(dir, 0o711, (0, 0))?;
        }
        let text = serde_json::to_string_pretty(&made).map_err(io::Error::other)?;
        host.write(path, &format!("{text}\n"), 0o644)
    }

    fn add(&mut self, action: &Action, state: &State) {
        match action {
            Action::Linger { .. } => self.linger = true,
            // The record's own directory is the package's.
            Action::Dir { dir, exists: false } if !Path::new(Self::PATH).starts_with(&dir.path) => {
                self.dirs.insert(dir.path.clone());
            }
            // What ran with a configuration of ours was started by us or was ours already.
            Action::Enable(service) | Action::Start(service)
                if service.unit == FD && state.applied.unit(FD).is_none() =>
            {
                let was = state.units.get(FD).copied().unwrap_or_default();
                self.fd_enabled |= !was.enabled;
                self.fd_started |= !was.active;
            }
            _ => {}
        }
    }
}
