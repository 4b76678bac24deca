//! What the disks of an increment sit on.
//!
//! The Director says what is the base, never our own state: a delta sits on the part of a disk that a
//! restore would end with, which the Director knows by its id. For every job that read its disks to the end
//! there are here a map of each disk and a record of the job. The record names the jobs that the parts rest
//! on, and each job has an empty file of its name in the catalog ([`paths::CHAIN`]): where one is gone, for
//! instance a deleted Full with an older one below, whatever rests on it starts over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use blockmap::{Header, Key, Map};
use relay::message::{Known, Level};

use super::check_job_name;
use super::prepare::Ready;
use super::record::{Record, map_path, records};
use crate::paths;
use crate::session::Session;

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
    let asked = asked(ready, key);
    // Whether the Director has each job that was asked about; their files stay in the restore tree.
    let mut known_jobs = BTreeMap::new();
    let (mut starts, mut rests_on) = (Vec::new(), BTreeSet::new());
    for (disk, size) in ready.disks.iter().zip(&ready.sizes) {
        let mut known = |file: &str| Ok(session.ask(paths::catalog(ready.vm, file), false)?);
        let mut start = asked.start(&disk.target, *size, &mut known)?;
        if let Some(base) = start.base() {
            let mut is_there = |job: &str| {
                if let Some(found) = known_jobs.get(job) {
                    return Ok(*found);
                }
                let found = session
                    .ask(paths::catalog(ready.vm, &marker(job)), true)?
                    .found;
                known_jobs.insert(job.to_owned(), found);
                Ok(found)
            };
            match asked.rests_on(&base.job, &mut is_there)? {
                Ok(chain) => rests_on.extend(chain),
                Err(why) => start = Start::Over(Some(why)),
            }
        }
        starts.push(start);
    }
    Ok((starts, rests_on))
}

/// What the Director wants of the job at hand.
pub(super) fn asked<'a>(ready: &'a Ready<'_>, key: &'a Key) -> Asked<'a> {
    let hello = &ready.job.hello;
    Asked {
        level: hello.level.unwrap_or(Level::Incremental),
        base: &hello.prev_job,
        accurate: hello.accurate,
        maps: &ready.maps,
        key,
    }
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
    /// The jobs that the parts of job `base` rest on, itself included, or why they do not hold. `is_there`
    /// asks whether the Director has a job.
    ///
    /// # Errors
    /// Those of `is_there`.
    pub fn rests_on(
        &self,
        base: &str,
        is_there: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<Result<Vec<String>, String>> {
        let records = records(self.maps);
        let Some(record) = records.into_iter().find(|record| record.job == base) else {
            return Ok(Err(format!("there is no record of job {base} here")));
        };
        for job in &record.chain {
            if !is_there(job)? {
                return Ok(Err(format!(
                    "job {job}, which it rests on, is gone from the catalog"
                )));
            }
        }
        Ok(Ok(record.chain))
    }

    /// The file of a disk that sits on `base`, and of one that starts over in `job` of `vm`.
    pub fn files(
        &self,
        vm: &str,
        job: &str,
        target: &str,
        base: Option<&Header>,
    ) -> (String, String) {
        let over = (self.level != Level::Full).then_some((vm, job));
        let over = paths::disk_file(target, over);
        let sits = base.and_then(|base| {
            let records = records(self.maps);
            let record = records.iter().find(|record| record.job == base.job)?;
            Some(record.file(target))
        });
        (sits.unwrap_or_else(|| over.clone()), over)
    }
}
