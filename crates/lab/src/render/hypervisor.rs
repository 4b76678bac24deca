//! What the host's own programs read: the native File Daemon and root's console.

use super::bacula::{Block, Value, file, word};
use super::{BCONSOLE, FD_CONF, Facts, SECRETS_DIR, root_file};
use crate::desired::File;
use crate::model::Model;

fn secret(name: &str) -> Value {
    Value::Secret(format!("{SECRETS_DIR}/{name}"))
}

/// `bacula-fd.conf`.
pub(super) fn fd(model: &Model, facts: &Facts) -> File {
    let blocks = [
        Block::new("FileDaemon")
            .set("Name", format!("lab-backup-fd-{}", model.hypervisor.name))
            .set("FD Port", 9102)
            .set("Working Directory", facts.fd_work_dir.as_str())
            .set("Pid Directory", "/run")
            .set("Plugin Directory", facts.plugin_dir.as_str())
            .set("Maximum Concurrent Jobs", 20)
            .set("Heartbeat Interval", 60)
            // Compressing what crosses the wire costs more time than the wire.
            .set("Comm Compression", false)
            .tls(),
        Block::new("Director")
            .set("Name", "lab-backup-dir")
            .set("Password", secret("fd"))
            .tls(),
        Block::new("Messages").set("Name", "lab-backup").set(
            "Director",
            word("lab-backup-dir = all, !skipped, !restored"),
        ),
    ];
    File {
        mode: 0o640,
        ..root_file(FD_CONF, file(&blocks))
    }
}

/// `bconsole.conf` of root: the console without limits, on this host's own port.
pub(super) fn bconsole() -> File {
    let director = Block::new("Director")
        .set("Name", "lab-backup-dir")
        .set("Address", "127.0.0.1")
        .set("Dir Port", 9101)
        .set("Password", secret("director"))
        .tls();
    File {
        mode: 0o600,
        ..root_file(BCONSOLE, file(&[director]))
    }
}
