//! The messages that frames carry.
//!
//! Backup: the plugin says HELLO; the worker answers with files (FILE, DATA…, FILE-END), may ASK
//! what the Director knows of a path (the plugin answers KNOWN), and closes with END.
//!
//! Restore: HELLO, then OBJECT for every manifest the catalog holds, then for every part PART
//! (answered GO), DATA…, FILE-END; then FINISH, answered by END when everything is in place.
//!
//! At any time the worker may send LOG or ALIVE, or FAIL in place of END.

use serde::{Deserialize, Serialize};

/// What the plugin wants from the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Stream a VM to the Storage Daemon.
    Backup,
    /// List what a backup would send, without data.
    Estimate,
    /// Take parts back and rebuild a VM, or plain files.
    Restore,
    /// Answer a question about this hypervisor: text in DATA frames, then END.
    Query,
}

/// Level of a backup, as Bacula names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Everything.
    #[serde(rename = "F")]
    Full,
    /// What changed since the last Full.
    #[serde(rename = "D")]
    Differential,
    /// What changed since the last good job.
    #[serde(rename = "I")]
    Incremental,
}

/// First frame of every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the plugin.
    pub version: u32,
    /// What is wanted.
    pub op: Op,
    /// Bacula's JobId; 0 for an estimate from the console.
    pub job_id: u32,
    /// Bacula's unique Job name, such as `web01.2026-01-31_22.00.00_05`.
    pub job: String,
    /// Level of a backup.
    pub level: Option<Level>,
    /// Unique name of the job that an increment builds on; empty when there is none.
    pub prev_job: String,
    /// The plugin line after `lab-backup:`, such as ` vm=web01`; for a query, its parameter.
    pub line: String,
    /// Does the Director send what it knows of earlier parts (`Accurate = yes`)? Never on a Full.
    pub accurate: bool,
    /// Bacula's `where` of a restore, untouched.
    #[serde(rename = "where")]
    pub where_: Option<String>,
    /// Bacula's `regexwhere` of a restore, untouched. The worker refuses it.
    pub regex_where: Option<String>,
}

/// What a file of the backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A restore object: kept in the catalog and handed to a restore before any data.
    Object,
}

/// Begins a file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHead {
    /// Path in the catalog, such as `/#LabBackup/web01/web01/vda.raw`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// True size in bytes; the virtual size for a disk.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Permission bits.
    pub mode: u32,
    /// Travels as `st_ino`: random 63-bit id of a disk's part, 0 for other files.
    pub part: u64,
    /// Are the records addressed (`FO_OFFSETS`)? True for disks.
    pub offsets: bool,
    /// For a delta (`FO_DELTA`), the `delta_seq` of the part it sits on; `None` starts the file.
    pub delta_on: Option<u32>,
}

/// Asks what the Director knows of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Path in the catalog.
    pub path: String,
    /// Shall the file stay in the restore tree, although this job does not send it? Otherwise an
    /// accurate job records it as deleted.
    #[serde(default)]
    pub keep: bool,
}

/// What the Director knows of a path: the last part on the chain this job extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Is there such a part?
    pub found: bool,
    /// Its [`FileHead::part`].
    pub part: u64,
    /// Its place in the chain; 0 starts a file.
    pub delta_seq: u32,
}

/// How loud a line of the job log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Normal course.
    Info,
    /// Something was healed, skipped or late; the data is right.
    Warning,
    /// The job is counted as having errors.
    Error,
}

/// A line for the job log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// How loud.
    pub class: Class,
    /// One line of text.
    pub text: String,
}

/// The worker succeeded: everything announced was sent, or everything is in place. The plugin
/// compares the counts with its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Files that were sent, directories and objects included, or parts that were taken.
    pub files: u64,
    /// Bytes of DATA that were sent or taken.
    pub bytes: u64,
}

/// The worker failed. Nothing follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fail {
    /// One line: vm, disk if any, cause, next step.
    pub text: String,
}

/// Begins a part of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHead {
    /// Path in the catalog with Bacula's `where` in front, as the File Daemon made it.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes from the part's attributes.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Permission bits.
    pub mode: u32,
    /// The part's id from `st_ino`.
    pub part: u64,
    /// 0 starts the file; any other must be the last one plus 1.
    pub delta_seq: u32,
}

/// Answer to [`PartHead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Go {
    /// Send the data.
    Write,
    /// Nothing to write (a directory); go on with the next part.
    Done,
    /// Not wanted; go on with the next part.
    Skip,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_hello_never_changes() {
        let hello = Hello {
            version: 1,
            op: Op::Backup,
            job_id: 7,
            job: "web01.2026-01-31_22.00.00_05".into(),
            level: Some(Level::Incremental),
            prev_job: String::new(),
            line: " vm=web01".into(),
            accurate: true,
            where_: None,
            regex_where: None,
        };
        let text = r#"{"version":1,"op":"backup","job_id":7,"job":"web01.2026-01-31_22.00.00_05","level":"I","prev_job":"","line":" vm=web01","accurate":true,"where":null,"regex_where":null}"#;
        assert_eq!(serde_json::to_string(&hello).unwrap(), text);
        assert_eq!(serde_json::from_str::<Hello>(text).unwrap(), hello);
    }
}
