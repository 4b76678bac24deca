//! What Bacula knows: jobs, levels, parts, and what a restore reads. The rules are those that were found on
//! real daemons, which `tests/contract-chain` keeps.

use std::sync::Arc;

use relay::message::{Known, Level};

/// What one job wrote of the disk, as it lies on a volume.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) id: u64,
    /// Its name in the catalog.
    pub(crate) file: String,
    pub(crate) delta_seq: u32,
    /// `st_size`.
    pub(crate) size: u64,
    /// Where each record goes, and its bytes.
    pub(crate) records: Vec<(u64, Vec<u8>)>,
}

/// A job in the catalog.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) level: Level,
    /// Did it end well?
    pub(crate) good: bool,
    /// Its times overlap with those of its Full, so that it is left out of every chain.
    pub(crate) left_out: bool,
    /// Purged, or deleted by hand, when there were so many jobs.
    pub(crate) gone: Option<usize>,
    /// Number of the job whose part this one's part sits on, for the oracle.
    pub(crate) sits_on: Option<usize>,
    pub(crate) part: Arc<Part>,
}

#[derive(Default)]
pub(crate) struct Director {
    pub(crate) jobs: Vec<Job>,
}

impl Director {
    fn good(&self, number: usize) -> bool {
        let job = &self.jobs[number];
        job.good && job.gone.is_none()
    }

    fn last(&self, of: &[Level], until: usize, chained: bool) -> Option<usize> {
        (0..until).rev().find(|number| {
            let job = &self.jobs[*number];
            self.good(*number) && of.contains(&job.level) && !(chained && job.left_out)
        })
    }

    /// The level at which a job runs: without a Full there can be nothing else.
    pub(crate) fn level(&self, wanted: Level) -> Level {
        match self.last(&[Level::Full], self.jobs.len(), false) {
            None => Level::Full,
            Some(_) => wanted,
        }
    }

    /// The last good job: what an Incremental is built on; a Differential on the last Full.
    pub(crate) fn base(&self, level: Level) -> Option<usize> {
        use Level::{Differential, Full, Incremental};
        match level {
            Full => None,
            Differential => self.last(&[Full], self.jobs.len(), false),
            Incremental => self.last(&[Full, Differential, Incremental], self.jobs.len(), false),
        }
    }

    /// The jobs that hold the newest state of all files before job `until`.
    fn chain(&self, until: usize, differential: bool) -> Vec<usize> {
        let Some(full) = self.last(&[Level::Full], until, true) else {
            return Vec::new();
        };
        let mut chain = vec![full];
        if differential {
            return chain;
        }
        let after = self
            .last(&[Level::Differential], until, true)
            .filter(|d| *d > full);
        chain.extend(after);
        let from = after.unwrap_or(full) + 1;
        let increments = (from..until).filter(|number| {
            let job = &self.jobs[*number];
            self.good(*number) && !job.left_out && job.level == Level::Incremental
        });
        chain.extend(increments);
        chain
    }

    /// What a job of this level is told of a file. Of a disk there is only the file of the last job: one that
    /// a job did not send is deleted.
    pub(crate) fn known(&self, level: Level, file: &str) -> Known {
        let chain = self.chain(self.jobs.len(), level == Level::Differential);
        let part = chain.last().map(|number| &self.jobs[*number].part);
        let part = part.filter(|part| part.file == file);
        Known {
            found: part.is_some(),
            part: part.map_or(0, |part| part.id),
            delta_seq: part.map_or(0, |part| part.delta_seq),
        }
    }

    /// Is a job among those that one of this level is told of?
    pub(crate) fn is_there(&self, level: Level, name: &str) -> bool {
        let chain = self.chain(self.jobs.len(), level == Level::Differential);
        chain.iter().any(|number| self.jobs[*number].name == name)
    }

    /// The jobs whose parts a restore of job `number` reads, in order: of the parts of its file the newest that
    /// starts it and all that follow. Nothing if the job cannot be restored by itself.
    pub(crate) fn restore(&self, number: usize) -> Vec<usize> {
        let job = &self.jobs[number];
        if !self.good(number) || job.left_out {
            return Vec::new();
        }
        let mut chain = self.chain(number + 1, false);
        chain.retain(|number| self.jobs[*number].part.file == job.part.file);
        let start = chain
            .iter()
            .rposition(|number| self.jobs[*number].part.delta_seq == 0);
        chain[start.unwrap_or(0)..].to_vec()
    }

    /// Was a job on which job `number` rests taken out after that was made?
    pub(crate) fn lost_since(&self, number: usize) -> bool {
        let lineage = self.lineage(number);
        let mut gone = lineage.iter().filter_map(|below| self.jobs[*below].gone);
        gone.any(|when| when > number)
    }

    /// The jobs whose parts hold the state of job `number`, in order, whatever the Director thinks.
    pub(crate) fn lineage(&self, number: usize) -> Vec<usize> {
        let mut lineage = vec![number];
        while let Some(below) = self.jobs[lineage[0]].sits_on {
            lineage.insert(0, below);
        }
        lineage
    }

    pub(crate) fn parts(&self, jobs: &[usize]) -> Vec<&Part> {
        jobs.iter()
            .map(|number| &*self.jobs[*number].part)
            .collect()
    }
}

/// What a restore makes of parts, by a plain reading of what a record is: an all-zero image, then every
/// record at its place. An error says why it is refused.
pub(crate) fn apply(parts: &[&Part]) -> Result<Vec<u8>, String> {
    let mut image: Vec<u8> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        if part.delta_seq as usize != at {
            return Err(format!("part {} where {at} is due", part.delta_seq));
        }
        if part.size < image.len() as u64 {
            return Err("a part is of a smaller disk than the one before".into());
        }
        image.resize(part.size as usize, 0);
        for (offset, bytes) in &part.records {
            image[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    Ok(image)
}

/// The length of the file that a tool makes which knows nothing but records.
pub(crate) fn bare_length(parts: &[&Part]) -> u64 {
    let ends = parts.iter().flat_map(|part| &part.records);
    ends.map(|(offset, bytes)| offset + bytes.len() as u64)
        .max()
        .unwrap_or(0)
}
