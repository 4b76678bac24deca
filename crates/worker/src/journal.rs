//! What we are about to do to this host, written down first.
//!
//! One file per job, one JSON line per intent, appended and synced before the side effect itself.
//! A clean end removes the file. Whatever is found later names exactly what may be left over;
//! libvirt remains the truth about what is really there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Something that we may have made and must be able to take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Intent {
    /// First line: whose journal this is.
    Job {
        /// Version of this file: 1.
        version: u32,
        /// The VM's key.
        vm: String,
        /// Bacula's unique Job name.
        job: String,
        /// UUID of the domain, empty while there is none.
        uuid: String,
    },
    /// A file of ours will exist at this path.
    File {
        /// The file.
        path: PathBuf,
    },
    /// A directory of ours will exist at this path.
    Dir {
        /// The directory.
        path: PathBuf,
    },
    /// A file of ours will get the name `path`, which nobody has.
    Rename {
        /// Its name to be.
        path: PathBuf,
        /// Device and inode, which it keeps: whatever else bears the name later is somebody else's.
        file: (u64, u64),
    },
    /// A backup job of libvirt will run that serves this socket.
    Backup {
        /// UUID of the domain.
        uuid: String,
        /// The NBD socket, which proves that the job is ours.
        socket: PathBuf,
    },
    /// libvirt will have a checkpoint of this name, with bitmaps in the images.
    Checkpoint {
        /// UUID of the domain.
        uuid: String,
        /// Its name, which is ours alone.
        name: String,
    },
    /// The guest's file systems will be frozen.
    Freeze {
        /// UUID of the domain.
        uuid: String,
    },
    /// The guest is thawed again, or was never frozen: a later freeze is somebody else's.
    Thawed {
        /// UUID of the domain.
        uuid: String,
    },
    /// A domain of ours will be defined.
    Define {
        /// UUID of the domain.
        uuid: String,
    },
    /// The files named so far are the result now: keep them.
    Keep,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins the journal of a job. Fails if that job already has one.
    pub fn begin(dir: &Path, vm: &str, job: &str, uuid: &str) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(format!("{vm}@{job}.jsonl"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)?;
        File::open(dir)?.sync_all()?;
        let mut journal = Self { path, file };
        journal.intend(&Intent::Job {
            version: 1,
            vm: vm.into(),
            job: job.into(),
            uuid: uuid.into(),
        })?;
        Ok(journal)
    }

    /// Records an intent; when this returns it is on disk and the deed may follow.
    pub fn intend(&mut self, intent: &Intent) -> io::Result<()> {
        let mut line = serde_json::to_vec(intent).map_err(io::Error::other)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    /// Where the journal is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything was undone or kept: nothing of this job is left to remember.
    pub fn end(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Adds to the journal of a job that is over; a torn last line is cut off first.
pub fn append(path: &Path, intent: &Intent) -> io::Result<()> {
    let text = std::fs::read(path)?;
    let complete = text.iter().rposition(|b| *b == b'\n');
    let file = OpenOptions::new().append(true).open(path)?;
    file.set_len(complete.map_or(0, |end| end as u64 + 1))?;
    let path = path.to_path_buf();
    Journal { path, file }.intend(intent)
}

/// Reads a journal. A torn last line is no intent: its deed never began.
pub fn read(path: &Path) -> io::Result<Vec<Intent>> {
    let text = std::fs::read(path)?;
    let complete = text
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |end| end + 1);
    text.get(..complete)
        .unwrap_or_default()
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).map_err(io::Error::other))
        .collect()
}

/// The key of the VM whose journal this is, from its name.
pub fn vm_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    // A key has no @, Bacula's job names neither.
    Some(name.split_once('@')?.0.to_owned())
}

/// Every journal in `dir`, oldest name first.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_are_read_back_and_a_torn_line_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), "web01", "web01.j1", "u").unwrap();
        let file = Intent::File { path: "/x".into() };
        journal.intend(&file).unwrap();
        let path = journal.path().to_path_buf();
        let mut raw = OpenOptions::new().append(true).open(&path).unwrap();
        raw.write_all(b"{\"do\":\"file\",\"pa").unwrap();
        let intents = read(&path).unwrap();
        assert_eq!(intents.len(), 2);
        assert_eq!(intents[1], file);
        append(&path, &Intent::Keep).unwrap();
        assert_eq!(read(&path).unwrap(), [intents, vec![Intent::Keep]].concat());
        assert_eq!(vm_of(&path).as_deref(), Some("web01"));
        assert_eq!(list(dir.path()).unwrap(), [path]);
        journal.end().unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn one_job_has_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Journal::begin(dir.path(), "web01", "web01.j1", "u").unwrap();
        assert!(Journal::begin(dir.path(), "web01", "web01.j1", "u").is_err());
    }
}
