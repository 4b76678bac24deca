//! Which state of a VM is meant, and how the Director is asked for it.
//!
//! Shared by the verbs that read backups. Which jobs make up a state is the Director's knowledge
//! (`.bvfs_get_jobids`).

use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::bconsole::{Console, Error, Job, Line, level_word};
use crate::cli::Usage;
use crate::show;

/// Good jobs that are looked through for a point in time.
const HISTORY: u32 = 2000;

/// A state of a VM.
#[derive(Debug, Args)]
pub(super) struct Point {
    /// Key of the VM
    pub(super) vm: String,
    /// Take the state of this job
    #[arg(long, value_name = "ID", conflicts_with = "at")]
    job: Option<u32>,
    /// Take the last good state at this time, such as "2026-01-31 18:00" (local) or with a zone
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Only these disks, such as vda; may be repeated
    #[arg(long = "disk", value_name = "TARGET")]
    pub(super) disks: Vec<String>,
}

/// A state that exists.
#[derive(Debug)]
pub(super) struct State {
    /// The job whose state it is.
    pub(super) job: Job,
    /// All jobs that are read for it, oldest first; `job` is the last one.
    pub(super) chain: Vec<Job>,
}

/// What is to become of a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'r> {
    /// Key of the VM.
    pub(super) vm: &'r str,
    /// Name of the Restore job.
    pub(super) job: &'static str,
    /// Bacula's `where`.
    pub(super) place: &'r str,
    /// Disks that alone are read, with the manifest; empty reads everything.
    pub(super) only: &'r [String],
}

impl Point {
    /// Refuses what cannot be meant; the time, if one was given.
    pub(super) fn check(&self) -> Result<Option<Timestamp>, Usage> {
        let target = |t: &String| {
            (1..=16).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if let Some(bad) = self.disks.iter().find(|t| !target(t)) {
            return Err(Usage(format!(
                "disk {bad:?} is no target; write one such as vda"
            )));
        }
        self.at.as_deref().map(instant).transpose()
    }

    /// The disks for the options in `where`.
    pub(super) fn chosen(&self) -> Option<Vec<String>> {
        (!self.disks.is_empty()).then(|| self.disks.clone())
    }

    /// Finds the state. `at` is what [`Self::check`] returned.
    pub(super) fn decide(&self, console: &Console, at: Option<Timestamp>) -> anyhow::Result<State> {
        let job = self.find(console, at)?;
        let ids = match job.level.as_str() {
            // Whatever else there is, a Full needs nothing.
            "F" => vec![job.id],
            _ => ending_with(console.chain(job.id)?, job.id)?,
        };
        let chain = console.jobs(&ids)?;
        if let Some(lost) = ids.iter().find(|id| chain.iter().all(|job| job.id != **id)) {
            anyhow::bail!(
                "job {} needs job {lost}, which the catalog no longer has",
                job.id
            );
        }
        Ok(State { job, chain })
    }

    /// The job whose state is meant.
    fn find(&self, console: &Console, at: Option<Timestamp>) -> anyhow::Result<Job> {
        let vm = &self.vm;
        if let Some(id) = self.job {
            let job = console.job(id)?;
            let Some(job) = job.filter(|job| job.kind == "B" && job.name == *vm) else {
                anyhow::bail!(
                    "job {id} is no backup of {vm}; lab-backup status {vm} names the last good one"
                );
            };
            if !job.good() {
                let word = job.status_word();
                anyhow::bail!("job {id} of {vm} is no state to restore: {word}; choose a good one");
            }
            return Ok(job);
        }
        let limit = if at.is_some() { HISTORY } else { 1 };
        let good = console.backups(std::slice::from_ref(vm), true, limit)?;
        // A backup shows the instant at which it began.
        let begun = |job: &Job| match (at, show::instant(&job.start)) {
            (None, _) => true,
            (Some(at), start) => start.is_some_and(|start| start <= at),
        };
        good.into_iter().find(begun).ok_or_else(|| match at {
            None => {
                anyhow::anyhow!("{vm} has no good backup yet; lab-backup run {vm} --wait makes one")
            }
            Some(at) => anyhow::anyhow!("{vm} has no good backup at {} or before", show::local(at)),
        })
    }
}

/// The Director's chain, made to end with the job whose state is meant.
///
/// The Director leaves out a job that began before the second was over in which the one before it
/// ended, and would restore that one in its place. What does not fit together is refused by the
/// worker: it knows parts by their ids and states by their roots.
fn ending_with(mut chain: Vec<u32>, job: u32) -> anyhow::Result<Vec<u32>> {
    if !chain.contains(&job) {
        chain.push(job);
    }
    match chain.last() {
        Some(last) if *last != job => anyhow::bail!(
            "the Director names job {last} as a part of the state of job {job}, which is older; choose another job"
        ),
        _ => Ok(chain),
    }
}

impl State {
    /// Shows what will be read.
    pub(super) fn show(&self, vm: &str) {
        let time = |job: &Job| show::instant(&job.start).map_or("?".into(), show::local);
        println!("{vm} as of {} (job {})", time(&self.job), self.job.id);
        for job in &self.chain {
            let (level, size) = (level_word(&job.level), show::bytes(job.bytes));
            println!(
                "  read     job {} ({level}) of {}, {size}",
                job.id,
                time(job)
            );
        }
    }

    /// Bytes that come back at the most.
    pub(super) fn bytes(&self) -> u64 {
        self.chain.iter().map(|job| job.bytes).sum()
    }

    /// Has the state read; the JobId.
    pub(super) fn queue(&self, console: &Console, request: Request<'_>) -> anyhow::Result<u32> {
        let mut lines = self.commands(request)?;
        if request.only.is_empty() {
            return Ok(console.queue(&lines)?);
        }
        // Where nothing is marked, the Director restores the rest and calls it good.
        let files = request.only.len() + 1;
        let found = console.marked(&lines, files)?;
        let missing = request.only.iter().zip(found).find(|(_, found)| !found);
        if let Some((disk, _)) = missing {
            let (vm, id) = (request.vm, self.job.id);
            anyhow::bail!("disk {disk} is not in the state of {vm} that job {id} left");
        }
        lines.extend([Line::new("done"), Line::new("yes")]);
        Ok(console.queue(&lines)?)
    }

    /// The commands that choose jobs and files.
    fn commands(&self, request: Request<'_>) -> Result<Vec<Line>, Error> {
        let ids: Vec<String> = self.chain.iter().map(|job| job.id.to_string()).collect();
        let restore = Line::new("restore")
            .value("client", request.vm)?
            .value("jobid", &ids.join(","))?
            .value("where", request.place)?
            .value("restorejob", request.job)?;
        if request.only.is_empty() {
            return Ok(vec![restore.words("all done yes")]);
        }
        let vm = request.vm;
        let mut lines = vec![restore];
        lines.push(Line::new("cd").bare(&format!("/#LabBackup/{vm}/{vm}"))?);
        // The Director adds all parts of a chain to a file that is marked. One that started over has the time of
        // its job in its name.
        for disk in request.only {
            lines.push(Line::new("mark").bare(&format!("{disk}.*raw"))?);
        }
        lines.push(Line::new("mark").bare("manifest.json")?);
        Ok(lines)
    }
}

/// A time with a zone, or a local one.
fn instant(text: &str) -> Result<Timestamp, Usage> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let local = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|format| DateTime::strptime(format, text).ok());
    let zoned = local.and_then(|local| local.to_zoned(TimeZone::system()).ok());
    zoned.map(|zoned| zoned.timestamp()).ok_or_else(|| {
        Usage(format!(
            "time {:?} is not understood; write \"2026-01-31 18:00\" or 2026-01-31T18:00:00Z",
            text.chars().take(60).collect::<String>()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(ids: &[u32]) -> State {
        let job = |id: &u32| -> Job {
            let row = format!(
                r#"{{"jobid":{id},"name":"web01","type":"B","level":"I","jobstatus":"T","jobbytes":10}}"#
            );
            serde_json::from_str(&row).unwrap()
        };
        let chain: Vec<Job> = ids.iter().map(job).collect();
        State {
            job: chain.last().unwrap().clone(),
            chain,
        }
    }

    fn texts(state: &State, only: &[String]) -> Vec<String> {
        let request = Request {
            vm: "web01",
            job: "lab-backup-restore",
            place: "/srv/x",
            only,
        };
        let lines = state.commands(request).unwrap();
        lines.iter().map(Line::text).collect()
    }

    #[test]
    fn a_state_is_read_from_its_whole_chain() {
        assert_eq!(
            texts(&state(&[4, 6, 7]), &[]),
            [
                r#"restore client="web01" jobid="4,6,7" where="/srv/x" restorejob="lab-backup-restore" all done yes"#
            ]
        );
        assert_eq!(state(&[4, 6, 7]).bytes(), 30);
    }

    #[test]
    fn chosen_disks_are_marked_one_by_one() {
        assert_eq!(
            texts(&state(&[4, 6]), &["vda".into(), "vdb".into()]),
            [
                r#"restore client="web01" jobid="4,6" where="/srv/x" restorejob="lab-backup-restore""#,
                r##"cd "/#LabBackup/web01/web01""##,
                r#"mark "vda.*raw""#,
                r#"mark "vdb.*raw""#,
                r#"mark "manifest.json""#,
            ]
        );
    }

    #[test]
    fn a_chain_ends_with_the_job_whose_state_is_meant() {
        assert_eq!(ending_with(vec![4, 6, 7], 7).unwrap(), [4, 6, 7]);
        assert_eq!(ending_with(vec![4, 6], 7).unwrap(), [4, 6, 7]);
        let error = ending_with(vec![4, 7, 6], 7).unwrap_err().to_string();
        assert!(error.contains('6') && error.contains('7'), "{error}");
    }

    #[test]
    fn times_have_a_zone_or_are_local() {
        assert_eq!(instant("1970-01-01T00:01:00Z").unwrap().as_second(), 60);
        assert!(instant("2026-01-31 18:00").is_ok());
        for text in ["", "now", "2026-02-30 10:00", "18:00"] {
            assert!(instant(text).is_err(), "{text:?}");
        }
    }
}
