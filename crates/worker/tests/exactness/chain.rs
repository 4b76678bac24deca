//! Jobs of one disk, what each one read, and what is asked of every part and every restore.

use std::collections::BTreeSet;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use blockmap::{Key, Map, Root, root_of};
use relay::message::Level;
use worker::backup::{Record, prune};

use crate::director::{Director, Job, Part, apply, bare_length};
use crate::examine::examine;
use crate::hazard::{Fate, Plan};
use crate::job::{self, Done, Order, TARGET};
use crate::report::Tally;

/// A disk at the instant of a job, copied without any code of ours.
pub(crate) struct Point {
    truth: Arc<Vec<u8>>,
    /// Is it known to be right? A bitmap that lied spoils every job until the next whole reading.
    pub(crate) clean: bool,
    /// How many lies were told before.
    lies: u64,
    /// Was its map lost or damaged, or was it made from one that was?
    pub(crate) spoiled: bool,
    key: Key,
    root: Root,
}

/// What a job meets.
pub(crate) struct Meeting {
    pub(crate) plan: Plan,
    /// The disk, and where it is served.
    pub(crate) truth: Vec<u8>,
    pub(crate) identity: String,
    pub(crate) cluster: u64,
    pub(crate) socket: PathBuf,
    pub(crate) export: &'static str,
    /// The name of the base's bitmap in the export, or why there is none.
    pub(crate) bitmap: Result<String, String>,
}

/// What came of it.
pub(crate) struct Outcome {
    /// The jobs whose checkpoints stay, after a job that came to its end.
    pub(crate) keep: Option<BTreeSet<String>>,
    /// Is it the Director's newest good job, with what it read known to be right?
    pub(crate) healed: bool,
}

/// All jobs of a disk.
pub(crate) struct Chain {
    pub(crate) maps: PathBuf,
    pub(crate) key: Key,
    pub(crate) director: Director,
    /// One for each job; none if it recorded nothing.
    pub(crate) points: Vec<Option<Point>>,
    pub(crate) differentials: bool,
    /// How many changes were made behind the back of a bitmap.
    pub(crate) lies: u64,
    pub(crate) tally: Tally,
}

impl Chain {
    pub(crate) fn new(maps: PathBuf, key: Key, differentials: bool) -> Self {
        Self {
            maps,
            key,
            director: Director::default(),
            points: Vec::new(),
            differentials,
            lies: 0,
            tally: Tally::default(),
        }
    }

    /// Name of the next job.
    pub(crate) fn next_name(&self) -> String {
        format!("m.2026-01-01_00.00.00_{:02}", self.points.len())
    }

    /// The job that one of this level is built on.
    pub(crate) fn base(&self, level: Level) -> Option<&str> {
        let number = self.director.base(level)?;
        Some(&self.director.jobs[number].name)
    }

    /// Runs a job. `marked` tells of ranges whether the base's bitmap marks all of them.
    pub(crate) fn job(
        &mut self,
        meeting: Meeting,
        marked: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Outcome> {
        let name = self.next_name();
        let Plan {
            level,
            fate,
            left_out,
            ..
        } = meeting.plan;
        let base = self.director.base(level);
        let base_name = base.map_or("", |base| &self.director.jobs[base].name);
        let base_name = base_name.to_owned();
        blockmap::sweep(&self.maps)?;
        let order = Order {
            name: &name,
            level,
            base: &base_name,
            accurate: meeting.plan.accurate,
            known: &|file| self.director.known(level, file),
            is_there: &|job| self.director.is_there(level, job),
            part_id: meeting.plan.part_id,
            maps: &self.maps,
            key: &self.key,
            socket: &meeting.socket,
            export: meeting.export,
            bitmap: meeting.bitmap.clone(),
            identity: &meeting.identity,
            cluster: meeting.cluster,
            size: meeting.truth.len() as u64,
            audit_every: meeting.plan.audit_every,
            breaks_at: match fate {
                Fate::Cancelled(at) => Some(at),
                _ => None,
            },
        };
        let done = match (job::run(&order), fate) {
            (Ok(done), _) => done,
            (Err(_), Fate::Cancelled(_)) => {
                let part = Part {
                    id: meeting.plan.part_id,
                    file: String::new(),
                    delta_seq: 0,
                    size: 0,
                    records: Vec::new(),
                };
                self.enter(name, level, false, false, None, part);
                self.points.push(None);
                self.tally.failed += 1;
                return Ok(Outcome {
                    keep: None,
                    healed: false,
                });
            }
            (Err(e), _) => return Err(e),
        };
        self.must_it_be_a_delta(&meeting, base, &done)?;
        // Nearly always the job that the Director names.
        let base = match &done.base {
            Some(name) => self.director.jobs.iter().position(|job| job.name == *name),
            None => base,
        };
        let point = self.examine(&meeting, base, &done, marked)?;
        let good = fate == Fate::Good;
        let healed = good && point.clean && !left_out;
        let sits_on = base.filter(|_| done.over.is_none());
        let file = done.part.file.clone();
        self.enter(name.clone(), level, good, left_out, sits_on, done.part);
        self.points.push(Some(point));
        let number = self.points.len();
        let keep = match fate {
            Fate::Good | Fate::Failed => {
                let record = Record::new(&name, number as u32, level, &base_name)
                    .with(done.rests_on, [(TARGET.into(), file)]);
                record.write(&self.maps)?;
                Some(prune(&self.maps, &record, self.differentials))
            }
            Fate::Cancelled(_) | Fate::Killed => None,
        };
        self.tally.failed += u64::from(!good);
        Ok(Outcome { keep, healed })
    }

    fn enter(
        &mut self,
        name: String,
        level: Level,
        good: bool,
        left_out: bool,
        sits_on: Option<usize>,
        part: Part,
    ) {
        self.tally.jobs += 1;
        self.director.jobs.push(Job {
            name,
            level,
            good,
            left_out,
            gone: None,
            sits_on,
            part: Arc::new(part),
        });
    }

    /// A disk must not start over without a reason.
    fn must_it_be_a_delta(
        &mut self,
        meeting: &Meeting,
        base: Option<usize>,
        done: &Done,
    ) -> Result<()> {
        let Some(why) = done.over.clone().flatten() else {
            ensure!(
                done.over.is_none() || meeting.plan.level == Level::Full,
                "it started over and does not say why"
            );
            return Ok(());
        };
        *self.tally.over.entry(kind(&why)).or_default() += 1;
        let base = base.context("it started over without a base")?;
        let Some(point) = &self.points[base] else {
            bail!("the Director's base recorded nothing");
        };
        let director = &self.director;
        let (level, part) = (meeting.plan.level, &director.jobs[base].part);
        let known = director.known(level, &part.file);
        let mut below = director.lineage(base).into_iter();
        // Two jobs that came to their end here, and were bad: the maps below may be gone.
        let later = self.points[base + 1..].iter().flatten().count();
        let excused = point.spoiled
            || !meeting.plan.accurate
            || later > 1
            || meeting.truth.len() < point.truth.len()
            || known.part != part.id
            || below.any(|number| director.jobs[number].gone.is_some())
            || why.starts_with("the change (");
        ensure!(excused, "it started over: {why}");
        Ok(())
    }

    /// Compares what a job sent with what changed, and remembers the disk.
    fn examine(
        &mut self,
        meeting: &Meeting,
        base: Option<usize>,
        done: &Done,
        marked: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Point> {
        let point = base.and_then(|base| self.points[base].as_ref());
        let clean =
            done.read_whole || point.is_some_and(|point| point.clean && point.lies == self.lies);
        // What the disk was according to the backup.
        let then = match (base, point) {
            (Some(_), Some(point)) if point.clean => point.truth.to_vec(),
            (Some(base), _) => {
                let parts = self.director.lineage(base);
                apply(&self.director.parts(&parts)).map_err(Error::msg)?
            }
            (None, _) => Vec::new(),
        };
        let found = examine(done, &then, &meeting.truth, clean, marked)?;
        if done.over.is_none() && clean {
            let (bitmap, whole) = (&mut self.tally.bitmap, &mut self.tally.whole);
            let to = if done.read_whole { whole } else { bitmap };
            to.add(done.sent_bytes(), found.changed_bytes, done.read_bytes);
        }
        self.tally.audits += u64::from(found.audited);
        self.tally.lies += u64::from(done.missed);
        Ok(Point {
            truth: Arc::new(meeting.truth.clone()),
            clean,
            lies: self.lies,
            spoiled: done.over.is_none() && point.is_some_and(|point| point.spoiled),
            key: self.key.clone(),
            root: Map::open(&done.map, &self.key)?.root(),
        })
    }

    /// Restores a job's state as the Director would, and compares it.
    pub(crate) fn restore(&mut self, number: usize) -> Result<()> {
        let jobs = self.director.restore(number);
        let Some(point) = &self.points[number] else {
            return Ok(());
        };
        if jobs.is_empty() {
            return Ok(());
        }
        let parts = self.director.parts(&jobs);
        let restored = apply(&parts);
        let proven = |image: &[u8]| -> Result<bool> {
            let file = tempfile::tempfile_in(&self.maps)?;
            std::io::Write::write_all(&mut &file, image)?;
            proof(&file, image.len() as u64, point)
        };
        if jobs != self.director.lineage(number) {
            ensure!(
                self.director.lost_since(number),
                "a restore of job {number} reads the parts of {jobs:?}, and it sits on {:?}",
                self.director.lineage(number)
            );
            // What cannot be right must be known to be wrong.
            let right = match &restored {
                Ok(image) => image == &*point.truth || !proven(image)?,
                Err(_) => true,
            };
            ensure!(right, "a restore of job {number} is wrong and proven");
            self.tally.refused += 1;
            return Ok(());
        }
        let image = restored.map_err(Error::msg)?;
        let size = point.truth.len() as u64;
        let bare = bare_length(&parts);
        ensure!(
            bare == size,
            "job {number} has {size} bytes, its records {bare}"
        );
        ensure!(
            proven(&image)?,
            "job {number} is restored, and another one is recorded"
        );
        if !point.clean {
            self.tally.lied += 1;
            return Ok(());
        }
        let wrong = image.iter().zip(&*point.truth).filter(|(a, b)| a != b);
        let wrong = wrong.count() + image.len().abs_diff(point.truth.len());
        ensure!(
            wrong == 0,
            "job {number} is restored with {wrong} wrong bytes"
        );
        self.tally.restores += 1;
        Ok(())
    }
}

fn proof(file: &File, size: u64, point: &Point) -> Result<bool> {
    if size != point.truth.len() as u64 {
        return Ok(false);
    }
    let root = root_of(file, size, &point.key, NonZeroUsize::MIN)?;
    Ok(root == point.root)
}

/// A reason without the numbers and names that differ from job to job.
fn kind(why: &str) -> String {
    // What follows the path of a map, if there is one.
    let why = match why.rsplit_once('/') {
        Some((_, tail)) => tail.split_once(' ').map_or("", |(_, said)| said),
        None => why,
    };
    let ends = ["key ", "\"", " m."].map(|end| why.find(end));
    let digit = why.find(|c: char| c.is_ascii_digit());
    let end = ends.into_iter().flatten().chain(digit).min();
    let kind = &why[..end.unwrap_or(why.len())];
    kind.trim_end_matches([' ', '(']).into()
}
