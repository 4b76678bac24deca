//! What befalls maps, records, catalog and jobs, whatever disk they are of.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use blockmap::Key;
use relay::message::Level;
use worker::backup::map_path;

use crate::chain::Chain;
use crate::job::TARGET;
use crate::rng::Rng;

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Good,
    /// The plugin goes after so many bytes.
    Cancelled(u64),
    /// The worker is killed between the maps and its record.
    Killed,
    /// All is well here, and the Director says that it failed.
    Failed,
}

/// How a job is run.
pub(crate) struct Plan {
    pub(crate) number: usize,
    pub(crate) level: Level,
    pub(crate) fate: Fate,
    pub(crate) accurate: bool,
    /// Its times are such that no chain has it.
    pub(crate) left_out: bool,
    pub(crate) audit_every: u32,
    pub(crate) part_id: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            level,
            fate,
            ..
        } = self;
        write!(
            f,
            "job {number}: {level:?} {fate:?}, audit every {}",
            self.audit_every
        )?;
        for (what, is) in [
            ("not accurate", !self.accurate),
            ("left out", self.left_out),
        ] {
            if is {
                write!(f, ", {what}")?;
            }
        }
        Ok(())
    }
}

impl Chain {
    /// A job of any kind, or one that must come to a good end and audits.
    pub(crate) fn plan(&self, rng: &mut Rng, audit: bool) -> Plan {
        let wanted = match rng.below(20) {
            _ if audit => Level::Incremental,
            0..2 => Level::Full,
            2..5 if self.differentials => Level::Differential,
            _ => Level::Incremental,
        };
        let level = self.director.level(wanted);
        let fate = match rng.below(24) {
            _ if audit => Fate::Good,
            0..2 => Fate::Cancelled(rng.below(100_000)),
            2 => Fate::Killed,
            3..5 => Fate::Failed,
            _ => Fate::Good,
        };
        Plan {
            number: self.points.len(),
            level,
            fate,
            accurate: audit || !rng.one_in(40),
            left_out: !audit && level != Level::Full && rng.one_in(40),
            audit_every: if audit { 1 } else { rng.between(2, 5) as u32 },
            part_id: rng.word() >> 1,
        }
    }

    /// Something happens to what jobs left behind; what it was.
    pub(crate) fn hazard(&mut self, rng: &mut Rng) -> Result<Option<String>> {
        Ok(match rng.below(12) {
            0..6 => self.spoil_a_map(rng)?,
            6 => {
                self.key = key(rng);
                self.spoil_all();
                Some("the key is another one".into())
            }
            7..9 => self.take_out(rng),
            9 => {
                self.lose_records(rng)?;
                self.spoil_all();
                Some("records of jobs are lost".into())
            }
            _ => {
                let path = format!(
                    "{}-{TARGET}.map.0123456789abcdef.unsealed",
                    self.next_name()
                );
                std::fs::write(self.maps.join(path), [7; 5000])?;
                Some("a worker crashed and left a map".into())
            }
        })
    }

    fn spoil_all(&mut self) {
        for point in self.points.iter_mut().flatten() {
            point.spoiled = true;
        }
    }

    /// A map is lost or damaged, mostly that of the next base.
    fn spoil_a_map(&mut self, rng: &mut Rng) -> Result<Option<String>> {
        let count = self.points.len() as u64;
        let number = match self.director.base(Level::Incremental) {
            Some(base) if rng.below(4) > 0 => base,
            _ if count > 0 => rng.below(count) as usize,
            _ => return Ok(None),
        };
        let path = map_path(&self.maps, &self.director.jobs[number].name, TARGET);
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
            return Ok(None);
        };
        let len = file.metadata()?.len();
        if len <= 4096 {
            // It was truncated already.
            return Ok(None);
        }
        let flip = |at: u64| -> Result<()> {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            Ok(file.write_all_at(&[byte[0] ^ 0x10], at)?)
        };
        let what = match rng.below(6) {
            0 => {
                std::fs::remove_file(&path)?;
                "lost"
            }
            1 => {
                flip(rng.below(4096))?;
                "damaged in its header"
            }
            2 => {
                file.set_len(rng.below(len))?;
                "truncated"
            }
            3 => {
                let other = &self.director.jobs[rng.below(count) as usize].name;
                // That of a job that left none is none.
                let _ = std::fs::copy(map_path(&self.maps, other, TARGET), &path);
                "another job's"
            }
            _ => {
                // The last pages hold fingerprints.
                let from = len.saturating_sub(8192).max(4096);
                flip(rng.between(from, len - 1))?;
                "damaged in a page"
            }
        };
        if let Some(point) = &mut self.points[number] {
            point.spoiled = true;
        }
        Ok(Some(format!("the map of job {number} is {what}")))
    }

    /// Somebody deletes a job from the catalog.
    fn take_out(&mut self, rng: &mut Rng) -> Option<String> {
        let count = self.points.len() as u64;
        let number = rng.below(count.max(1)) as usize;
        let gone = &mut self.director.jobs.get_mut(number)?.gone;
        *gone = gone.or(Some(count as usize));
        Some(format!("job {number} is deleted"))
    }

    fn lose_records(&self, rng: &mut Rng) -> Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.maps)? {
            files.push(entry?.path());
        }
        // A directory has no order of its own, and a seed must repeat.
        files.sort();
        for file in files {
            if file.extension().is_some_and(|e| e == "json") && rng.one_in(2) {
                std::fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn key(rng: &mut Rng) -> Key {
    Key::from_bytes(std::array::from_fn(|_| rng.word() as u8))
}
