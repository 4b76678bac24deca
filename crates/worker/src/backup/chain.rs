//! What an increment sits on, and which jobs may still be sat on.
//!
//! The Director says what is the base, never our own state: a delta sits on the part of a disk that a
//! restore would end with, which the Director knows by its id. For every job that read its disks to the end
//! there are here a map of each disk and a record of the job. The record names the jobs that the parts rest
//! on, and each job has an empty file of its name in the catalog ([`paths::CHAIN`]): where one is gone, for
//! instance a deleted Full with an older one below, whatever rests on it starts over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use blockmap::{Header, Key, Map};
use relay::message::{Known, Level};
use serde::{Deserialize, Serialize};

use super::check_job_name;
use super::prepare::Ready;
use crate::manifest::Disk;
use crate::note::note;
use crate::paths;
use crate::session::Session;

/// Version of a job's record.
const VERSION: u32 = 1;
/// Ending of the name of a job's record.
const RECORD: &str = ".json";

/// How a disk begins in this job.
#[derive(Debug)]
pub enum Start {
    /// All of it is sent; why, unless that is what the job is for.
    Over(Option<String>),
    /// Only what differs from this map.
    Delta(Box<Map>),
}

impl Start {
    /// What the map of the base is of.
    pub fn base(&self) -> Option<&Header> {
        match self {
            Start::Over(_) => None,
            Start::Delta(map) => Some(map.header()),
        }
    }
}

/// How each disk begins, and the jobs that this one will rest on.
///
/// # Errors
/// The plugin is gone.
pub(super) fn starts(
    session: &mut Session,
    ready: &Ready<'_>,
    key: &Key,
) -> Result<(Vec<Start>, BTreeSet<String>)> {
    let hello = &ready.job.hello;
    let asked = Asked {
        level: hello.level.unwrap_or(Level::Incremental),
        base: &hello.prev_job,
        accurate: hello.accurate,
        maps: &ready.maps,
        key,
    };
    let records = records(&ready.maps);
    // Whether the Director has each job that was asked about.
    let mut there = BTreeMap::new();
    let (mut starts, mut rests_on) = (Vec::new(), BTreeSet::new());
    for (disk, size) in ready.disks.iter().zip(&ready.sizes) {
        let mut known = |file: &str| Ok(session.ask(paths::catalog(ready.vm, file), false)?);
        let mut start = asked.start(&disk.target, *size, &mut known)?;
        if let Some(base) = start.base() {
            let chain = chain_of(&records, &base.job);
            match missing(session, ready.vm, &base.job, &chain, &mut there)? {
                None => rests_on.extend(chain),
                Some(why) => start = Start::Over(Some(why)),
            }
        }
        starts.push(start);
    }
    Ok((starts, rests_on))
}

/// The jobs that the parts of a job rest on, itself included; none if they are not known.
fn chain_of(records: &[Record], job: &str) -> Vec<String> {
    let record = records.iter().find(|record| record.job == job);
    record.map_or_else(Vec::new, |record| record.chain.clone())
}

/// Why a chain does not hold; the files of its jobs stay in the restore tree.
fn missing(
    session: &mut Session,
    vm: &str,
    base: &str,
    chain: &[String],
    there: &mut BTreeMap<String, bool>,
) -> Result<Option<String>> {
    if chain.is_empty() {
        return Ok(Some(format!("there is no record of job {base} here")));
    }
    for job in chain {
        let found = match there.get(job) {
            Some(found) => *found,
            None => {
                let known = session.ask(paths::catalog(vm, &marker(job)), true)?;
                there.insert(job.clone(), known.found);
                known.found
            }
        };
        if !found {
            return Ok(Some(format!(
                "job {job}, which it rests on, is gone from the catalog"
            )));
        }
    }
    Ok(None)
}

/// The file that says in the catalog that a job is there.
pub(super) fn marker(job: &str) -> String {
    format!("{}/{job}", paths::CHAIN)
}

/// What the Director wants of a job, and where the maps of its bases lie.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The level that it runs at.
    pub level: Level,
    /// The job that it is to be built on; empty if there is none.
    pub base: &'a str,
    /// Does the Director say what it has?
    pub accurate: bool,
    /// Directory of the VM's maps.
    pub maps: &'a Path,
    /// The VM's key.
    pub key: &'a Key,
}

impl Asked<'_> {
    /// How a disk of `size` bytes begins. `known` asks the Director for the last part of a file.
    ///
    /// # Errors
    /// Those of `known`, and a base that is no job's name.
    pub fn start(
        &self,
        target: &str,
        size: u64,
        known: &mut dyn FnMut(&str) -> Result<Known>,
    ) -> Result<Start> {
        let over = |why: String| Ok(Start::Over(Some(why)));
        if self.level == Level::Full {
            return Ok(Start::Over(None));
        }
        let base = self.base;
        if base.is_empty() {
            return over("the Director names no job to build on".into());
        }
        if !self.accurate {
            return over(
                "the Director does not say what it has: the job needs Accurate = yes".into(),
            );
        }
        check_job_name(base)?;
        let map = match self.map_of(target, known)? {
            Ok(map) => map,
            Err(why) => return over(why),
        };
        let before = map.header().size;
        if size < before {
            return over(format!("it shrank from {before} to {size} bytes"));
        }
        Ok(Start::Delta(Box::new(map)))
    }

    /// The map of the part that a restore would end with: nearly always that of the job that the Director
    /// names. Not so after a VirtualFull, which no worker saw, or when that job fell out of its own chain.
    /// Otherwise why there is none.
    fn map_of(
        &self,
        target: &str,
        known: &mut dyn FnMut(&str) -> Result<Known>,
    ) -> Result<Result<Map, String>> {
        let mut records = records(self.maps);
        // A map without a record, if one was lost, is looked at as well.
        let named = Record::new(self.base, 0, self.level, "");
        records.sort_by_key(|record| (record.job != self.base, std::cmp::Reverse(record.job_id)));
        if records.first().is_none_or(|record| record.job != self.base) {
            records.insert(0, named);
        }
        let mut why = None;
        for record in &records {
            let path = map_path(self.maps, &record.job, target);
            let map = match Map::open(&path, self.key).and_then(|map| map.of_job(&record.job)) {
                Ok(map) => map,
                Err(e) if e.kind() == blockmap::Kind::Missing => {
                    why.get_or_insert_with(|| {
                        format!("there is no map of it of job {} here", record.job)
                    });
                    continue;
                }
                Err(e) => {
                    why.get_or_insert_with(|| format!("{:#}", anyhow::Error::from(e)));
                    continue;
                }
            };
            let (last, header) = (known(&record.file(target))?, map.header());
            if last.found && (last.part, last.delta_seq) == (header.part_id, header.delta_seq) {
                return Ok(Ok(map));
            }
            why.get_or_insert_with(|| {
                format!(
                    "a restore would not end with the part of job {}",
                    record.job
                )
            });
        }
        Ok(Err(why.unwrap_or_default()))
    }
}

/// The file of a disk that sits on `base`, and of one that starts over in this job.
pub(super) fn files(ready: &Ready<'_>, target: &str, base: Option<&Header>) -> (String, String) {
    let hello = &ready.job.hello;
    let full = hello.level.is_none_or(|level| level == Level::Full);
    let over = paths::disk_file(target, (!full).then_some(hello.job_id));
    let sits = base.and_then(|base| {
        let records = records(&ready.maps);
        let record = records.iter().find(|record| record.job == base.job)?;
        Some(record.file(target))
    });
    (sits.unwrap_or_else(|| over.clone()), over)
}

/// Where the map of a disk and a job lies.
pub fn map_path(maps: &Path, job: &str, target: &str) -> PathBuf {
    maps.join(format!("{job}-{target}.map"))
}

/// A job that left maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Bacula's unique Job name.
    job: String,
    /// Bacula's JobId: a later job has a higher one.
    job_id: u32,
    level: Level,
    /// The job that the Director named as its base; empty for a Full.
    prev_job: String,
    /// The jobs that its parts rest on, itself included.
    chain: Vec<String>,
    /// The file of each disk in the catalog, by target.
    files: BTreeMap<String, String>,
}

impl Record {
    /// That of the job at hand.
    pub(super) fn of(ready: &Ready<'_>, rests_on: BTreeSet<String>, disks: &[Disk]) -> Self {
        let hello = &ready.job.hello;
        let level = hello.level.unwrap_or(Level::Full);
        let mut record = Self::new(&hello.job, hello.job_id, level, &hello.prev_job);
        record.chain.extend(rests_on);
        let files = disks.iter();
        record.files = files
            .map(|disk| (disk.target.clone(), disk.file.clone()))
            .collect();
        record
    }

    /// The file of a disk in the catalog.
    fn file(&self, target: &str) -> String {
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
fn records(maps: &Path) -> Vec<Record> {
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
