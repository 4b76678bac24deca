//! What keeps the recovery kit new: its passphrase, and the units that write it after each dump of the catalog.

use super::{DUMP, Facts, HEADER, PASSPHRASE, root_file};
use crate::desired::File;

/// All of it.
pub(super) fn files(facts: &Facts) -> Vec<File> {
    let dump = facts.director_data.join(DUMP);
    vec![
        File {
            path: PASSPHRASE.into(),
            text: format!("{}\n", facts.passphrase),
            mode: 0o600,
            secret: true,
        },
        root_file(
            "/etc/systemd/system/lab-backup-kit.path",
            format!(
                "{HEADER}\n[Unit]\nDescription=Look for a new dump of the catalog\n\n[Path]\nPathChanged={}\n\n\
                 [Install]\nWantedBy=multi-user.target\n",
                dump.display()
            ),
        ),
        root_file(
            "/etc/systemd/system/lab-backup-kit.service",
            format!(
                "{HEADER}\n[Unit]\nDescription=Recovery kit of lab-backup\nDocumentation=man:lab-backup-kit(1)\n\n\
                 [Service]\nType=oneshot\nExecStart=/usr/bin/lab-backup kit\n"
            ),
        ),
    ]
}
