//! The records of jobs that left maps, and which of them may still be built on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use relay::message::Level;
use serde::{Deserialize, Serialize};

use super::prepare::Ready;
use crate::manifest::Disk;
use crate::note::note;
use crate::paths;

/// Version of a job's record.
const VERSION: u32 = 1;
/// Ending of the name of a job's record.
const RECORD: &str = ".json";

/// Where the map of a disk and a job lies.
pub fn map_path(maps: &Path, job: &str, target: &str) -> PathBuf {
    maps.join(format!("{job}-{target}.map"))
}

/// A job that left maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Bacula's unique Job name.
    pub(super) job: String,
    /// Bacula's JobId: a later job has a higher one.
    pub(super) job_id: u32,
    level: Level,
    /// The job that the Director named as its base; empty for a Full.
    prev_job: String,
    /// The jobs that its parts rest on, itself included.
    pub(super) chain: Vec<String>,
    /// The file of each disk in the catalog, by target.
    files: BTreeMap<String, String>,
}

impl Record {
    /// That of the job at hand.
    pub(super) fn of(ready: &Ready<'_>, rests_on: BTreeSet<String>, disks: &[Disk]) -> Self {
        let hello = &ready.job.hello;
        let level = hello.level.unwrap_or(Level::Full);
        let files = disks.iter();
        Self::new(&hello.job, hello.job_id, level, &hello.prev_job).with(
            rests_on,
            files.map(|disk| (disk.target.clone(), disk.file.clone())),
        )
    }

    /// Names the jobs below that its parts rest on, and the file of each disk in the catalog, by target.
    pub fn with(
        mut self,
        rests_on: impl IntoIterator<Item = String>,
        files: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.chain.extend(rests_on);
        self.files.extend(files);
        self
    }

    /// The file of a disk in the catalog.
    pub(super) fn file(&self, target: &str) -> String {
        let known = self.files.get(target).cloned();
        known.unwrap_or_else(|| paths::disk_file(target, None))
    }

    /// That of a job by Bacula's names for it and for the one it was built on.
    pub fn new(job: &str, job_id: u32, level: Level, prev_job: &str) -> Self {
        Self {
            version: VERSION,
            job: job.into(),
            job_id,
            level,
            prev_job: prev_job.into(),
            chain: vec![job.into()],
            files: BTreeMap::new(),
        }
    }

    /// Makes it durable. Until then the maps of its job are nobody's base.
    pub fn write(&self, maps: &Path) -> Result<()> {
        let path = maps.join(format!("{}{RECORD}", self.job));
        let temp = maps.join(format!("{}{RECORD}.unsealed", self.job));
        let write = || -> Result<()> {
            let mut file = File::create(&temp)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            std::fs::rename(&temp, &path)?;
            Ok(File::open(maps)?.sync_all()?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The records of all jobs that left maps; what cannot be read is no record.
pub(super) fn records(maps: &Path) -> Vec<Record> {
    let entries = std::fs::read_dir(maps).into_iter().flatten();
    let read = |path: PathBuf| -> Option<Record> {
        path.extension().filter(|e| *e == "json")?;
        let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.version == VERSION).then_some(record)
    };
    entries
        .filter_map(|entry| read(entry.ok()?.path()))
        .collect()
}

/// Forgets what no later job can be built on, now that `this` is about to end; the jobs that stay.
///
/// Nothing of a running or failed job depends on what goes: a base is opened, and its map cloned, first.
pub fn prune(maps: &Path, this: &Record, differentials: bool) -> BTreeSet<String> {
    let keep = keep(&records(maps), this, differentials);
    let entries = std::fs::read_dir(maps).into_iter().flatten();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let job = match name.strip_suffix(".map") {
            Some(map) => map.rsplit_once('-').map(|(job, _)| job),
            None => name.strip_suffix(RECORD),
        };
        if job.is_some_and(|job| !keep.contains(job))
            && let Err(e) = std::fs::remove_file(&path)
        {
            note!("cannot remove {}: {e}", path.display());
        }
    }
    keep
}

/// Which jobs the next one may be built on.
///
/// That this job was given its base proves that base good, and what came between bad. Whether this job
/// turns out good is known only to the next one, so its base stays; and so does the Full below, for the
/// next Differential.
fn keep(records: &[Record], this: &Record, differentials: bool) -> BTreeSet<String> {
    let find = |job: &str| records.iter().find(|record| record.job == job);
    let mut keep = BTreeSet::from([this.job.clone()]);
    let below = |record: &Record, keep: &mut BTreeSet<String>| {
        keep.insert(record.job.clone());
        let mut at = record;
        // A chain has no circles, but a file may say anything.
        for _ in 0..records.len() {
            if at.level == Level::Full || !differentials {
                break;
            }
            match find(&at.prev_job) {
                Some(next) => at = next,
                None => return,
            }
        }
        keep.insert(at.job.clone());
    };
    match (this.level, find(&this.prev_job)) {
        (Level::Incremental, Some(base)) => below(base, &mut keep),
        // Built on the last Full; the increments since then may be good, and the next one built on them.
        (Level::Differential, Some(base)) => {
            let since = records.iter().filter(|record| record.job_id >= base.job_id);
            keep.extend(since.map(|record| record.job.clone()));
        }
        // A Full proves nothing, nor does a base that is not here: the newest jobs may be good.
        _ => {
            let mut newest: Vec<&Record> = records.iter().filter(|r| r.job != this.job).collect();
            newest.sort_by_key(|record| std::cmp::Reverse(record.job_id));
            for record in newest.into_iter().take(2) {
                below(record, &mut keep);
                if let Some(base) = find(&record.prev_job) {
                    below(base, &mut keep);
                }
            }
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(job_id: u32, level: Level, base: u32) -> Record {
        let base = match base {
            0 => String::new(),
            base => format!("j{base}"),
        };
        Record::new(&format!("j{job_id}"), job_id, level, &base)
    }

    fn kept(records: &[Record], this: &Record, differentials: bool) -> String {
        let keep = keep(records, this, differentials);
        keep.into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_increment_keeps_itself_its_base_and_the_full_for_differentials() {
        use Level::{Full, Incremental};
        let records = [
            record(1, Full, 0),
            record(2, Incremental, 1),
            record(3, Incremental, 2),
            // Failed after its end: it is nobody's base.
            record(4, Incremental, 3),
        ];
        let this = record(5, Incremental, 3);
        assert_eq!(kept(&records, &this, false), "j3 j5");
        assert_eq!(kept(&records, &this, true), "j1 j3 j5");
    }

    #[test]
    fn a_differential_keeps_what_may_be_good_since_the_full() {
        use Level::{Differential, Full, Incremental};
        let records = [
            record(1, Full, 0),
            record(2, Full, 0),
            record(3, Incremental, 2),
            record(4, Incremental, 3),
        ];
        let this = record(5, Differential, 2);
        assert_eq!(kept(&records, &this, true), "j2 j3 j4 j5");
    }

    #[test]
    fn fulls_alone_do_not_pile_up() {
        use Level::{Full, Incremental};
        let records: Vec<Record> = (1..9).map(|id| record(id, Full, 0)).collect();
        assert_eq!(kept(&records, &record(9, Full, 0), true), "j7 j8 j9");
        let chain = [
            record(1, Full, 0),
            record(2, Incremental, 1),
            record(3, Incremental, 2),
        ];
        assert_eq!(kept(&chain, &record(4, Full, 0), false), "j1 j2 j3 j4");
        // A base that is not here: a job of another hypervisor.
        assert_eq!(
            kept(&chain, &record(5, Incremental, 4), false),
            "j1 j2 j3 j5"
        );
    }

    #[test]
    fn what_is_pruned_is_gone_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let maps = dir.path();
        for job in 1..4 {
            record(job, Level::Full, 0).write(maps).unwrap();
            std::fs::write(map_path(maps, &format!("j{job}"), "vda"), "").unwrap();
        }
        std::fs::write(maps.join("other"), "").unwrap();
        let this = record(9, Level::Incremental, 2);
        this.write(maps).unwrap();
        prune(maps, &this, false);
        let mut left: Vec<String> = std::fs::read_dir(maps)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["j2-vda.map", "j2.json", "j9.json", "other"]);
    }
}
