//! The Storage Daemon's configuration: one directory, several devices in one changer.

use std::path::Path;

use super::bacula::{Block, Value, file, word};
use super::{STORAGE_DIR, root_file};
use crate::desired::File;
use crate::model::Model;

/// Where the directory of the volumes is inside the container.
pub(super) const VOLUMES: &str = "/volumes";

/// `bacula-sd.conf`.
pub(super) fn conf(model: &Model) -> File {
    let secret = Value::Secret("/run/secrets/storage".into());
    let names: Vec<String> = (0..model.storage.devices).map(device_name).collect();
    let mut blocks = vec![
        Block::new("Storage")
            .set("Name", "lab-backup-sd")
            .set("SD Port", 9103)
            .set("Working Directory", "/var/lib/bacula")
            .set("Pid Directory", "/var/lib/bacula")
            .set("Maximum Concurrent Jobs", 2 * model.storage.devices + 10)
            .set("Heartbeat Interval", 60)
            // Compressing what crosses the wire costs more time than the wire.
            .set("Comm Compression", false)
            .tls(),
        Block::new("Director")
            .set("Name", "lab-backup-dir")
            .set("Password", secret)
            .tls(),
        Block::new("Messages")
            .set("Name", "lab-backup")
            .set("Director", word("lab-backup-dir = all"))
            .set("Stdout", word("all")),
        // A file device does one job at a time; the changer hands out the next free one.
        Block::new("Autochanger")
            .set("Name", "lab-backup-sd")
            .set("Device", Value::List(names))
            .set("Changer Command", "")
            .set("Changer Device", "/dev/null"),
    ];
    blocks.extend((0..model.storage.devices).map(device));
    root_file(Path::new(STORAGE_DIR).join("bacula-sd.conf"), file(&blocks))
}

fn device_name(number: u32) -> String {
    format!("lab-backup-file-{number}")
}

fn device(number: u32) -> Block {
    Block::new("Device")
        .set("Name", device_name(number))
        .set("Media Type", "lab-backup-file")
        .set("Archive Device", VOLUMES)
        .set("Autochanger", true)
        .set("Drive Index", number)
        .set("Label Media", true)
        .set("Random Access", true)
        .set("Automatic Mount", true)
        .set("Removable Media", false)
        .set("Always Open", false)
        // On NFS a write error may show only now.
        .set("Sync On Close", true)
        .set("Maximum Concurrent Jobs", 1)
}
