//! `lab-backup verify`
//!
//! The worker reads the volumes and compares; what it found is in the job log.

use clap::Args;
use relay::options::{self, Options};
use relay::proof::{Disk, Whole};
use serde::Serialize;

use super::point::{Point, Request};
use super::{Vms, run};
use crate::bconsole::{Console, Job};
use crate::cli::DirectorArgs;
use crate::exit::Exit;
use crate::follow::{self, Watched};

/// Job that writes nothing.
pub(super) const JOB: &str = "lab-backup-verify";

/// Proves that a backup can be read back as it was made; nothing is written.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    point: Point,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    director: DirectorArgs,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report<'r> {
    version: u32,
    vm: &'r str,
    /// The job that verifies.
    job: u32,
    /// The jobs that were read; the last one's state was to be proven.
    chain: Vec<u32>,
    outcome: Outcome,
    disks: Vec<DiskRoot>,
    /// Files besides the disks that were proven.
    files: usize,
    /// What the job log says that it should not.
    messages: Vec<String>,
}

/// A disk that was proven.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct DiskRoot {
    target: String,
    root: String,
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// Nobody waited for the end.
    Started,
    /// Everything that was asked for is what was backed up.
    Proven,
    /// The same, with something to read.
    Warnings,
    /// Nothing contradicts, but there was nothing to compare with.
    Unverified,
    /// Something is not what was backed up, or could not be read.
    Failed,
}

impl Verify {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let (vm, point) = (&self.point.vm, &self.point);
        let at = point.check()?;
        let console = Console::with(&self.director.console);
        Vms::known(&console)?.check(std::slice::from_ref(vm))?;
        let state = point.decide(&console, at)?;
        if !self.json {
            state.show(vm);
        }
        let request = Request {
            vm,
            job: JOB,
            place: &self.place(),
            only: &point.disks,
        };
        let id = state.queue(&console, request)?;
        eprintln!(
            "{vm}: verification is job {id}; to cancel it: echo 'cancel jobid={id} yes' | bconsole -c {}",
            self.director.console.display()
        );
        let chain = state.chain.iter().map(|job| job.id).collect();
        let mut report = Report::new(vm, id, chain);
        let mut exit = Exit::Done;
        if !self.no_wait {
            let watched = Watched {
                id,
                client: vm,
                label: vm,
                expected: point.disks.is_empty().then(|| state.bytes()),
            };
            let job = follow::follow(&console, watched)?;
            report.read(&job, &console.log(id)?);
            exit = report.outcome.into();
            if !self.json {
                run::report(&console, vm, &job);
                report.show();
            }
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        Ok(exit)
    }

    /// Bacula's `where`.
    fn place(&self) -> String {
        options::encode(&Options {
            v: 1,
            verify: true,
            disks: self.point.chosen(),
            ..Options::default()
        })
    }
}

impl<'r> Report<'r> {
    fn new(vm: &'r str, job: u32, chain: Vec<u32>) -> Self {
        Self {
            version: 1,
            vm,
            job,
            chain,
            outcome: Outcome::Started,
            disks: Vec::new(),
            files: 0,
            messages: Vec::new(),
        }
    }

    /// Takes what became of the job. Only what the worker says in so many words counts as proof.
    fn read(&mut self, job: &Job, log: &[String]) {
        let lines = || log.iter().filter_map(|entry| entry.lines().next());
        let disks = lines().filter_map(|line| Disk::read(line, self.vm));
        let disks = disks.map(|disk| DiskRoot {
            target: disk.target.into(),
            root: disk.root.into(),
        });
        self.disks = disks.collect();
        let whole = lines().find_map(|line| Whole::read(line, self.vm));
        self.files = whole.map_or(0, |whole| whole.files);
        self.messages = follow::causes_in(log);
        self.outcome = match whole {
            _ if !job.good() => Outcome::Failed,
            Some(whole) if whole.disks == self.disks.len() => {
                match job.errors == 0 && self.messages.is_empty() {
                    true => Outcome::Proven,
                    false => Outcome::Warnings,
                }
            }
            _ => Outcome::Unverified,
        };
    }

    fn show(&self) {
        for disk in &self.disks {
            println!("  proven   {}, root {}", disk.target, disk.root);
        }
        if self.files > 0 {
            println!("  proven   files besides the disks: {}", self.files);
        }
        if self.outcome == Outcome::Unverified && self.messages.is_empty() {
            let (vm, job) = (self.vm, self.job);
            eprintln!("{vm}: unverified: the log of job {job} claims no proof");
        }
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Started | Outcome::Proven => Exit::Done,
            Outcome::Warnings | Outcome::Unverified => Exit::Warnings,
            Outcome::Failed => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use relay::options::Target;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        verify: Verify,
    }

    fn parse(args: &[&str]) -> Option<Verify> {
        let args = ["verify"].iter().chain(args);
        Some(Only::try_parse_from(args).ok()?.verify)
    }

    #[test]
    fn the_command_line_becomes_a_where_that_the_worker_reads() {
        let target = |args: &[&str]| Target::parse(&parse(args).unwrap().place()).unwrap();
        assert_eq!(target(&["web01"]), Target::Proof { disks: None });
        let disks = Some(vec!["vda".into(), "vdb".into()]);
        assert_eq!(
            target(&["web01", "--job", "7", "--disk", "vda", "--disk", "vdb"]),
            Target::Proof { disks }
        );
        for args in [
            &["web01", "--as", "x"][..],
            &["web01", "--to", "/x"],
            &["web01", "--at", "2026-01-31 18:00", "--job", "7"],
            &[],
        ] {
            assert!(parse(args).is_none(), "{args:?}");
        }
        let bad = parse(&["web01", "--disk", "../vda"]).unwrap();
        assert!(bad.point.check().is_err());
    }

    const FRONT: &str = "hv1-fd JobId 12: ";
    const VDA: &str = "web01/vda: proven, root 00ff";
    const WHOLE: &str = "web01: verified: disks proven: 1, files: 5";

    fn read(status: &str, errors: u32, lines: &[&str]) -> Report<'static> {
        let row = format!(
            r#"{{"jobid":12,"name":"lab-backup-verify","type":"R","level":"F","jobstatus":"{status}","joberrors":{errors}}}"#
        );
        let log: Vec<String> = lines
            .iter()
            .map(|line| format!("{FRONT}{line}\n"))
            .collect();
        let mut report = Report::new("web01", 12, vec![4, 7]);
        report.read(&serde_json::from_str(&row).unwrap(), &log);
        report
    }

    #[test]
    fn only_the_words_of_the_worker_are_a_proof() {
        let report = read("T", 0, &["Start Restore Job", VDA, WHOLE]);
        assert_eq!(report.outcome, Outcome::Proven);
        assert_eq!((report.disks[0].target.as_str(), report.files), ("vda", 5));
        let warning = "Warning: web01/vdb: unverified: no manifest came with it";
        for (status, errors, lines, outcome) in [
            ("T", 0, &[VDA][..], Outcome::Unverified),
            ("T", 0, &[], Outcome::Unverified),
            ("T", 0, &[WHOLE], Outcome::Unverified),
            ("T", 0, &[VDA, warning], Outcome::Unverified),
            ("T", 0, &[VDA, WHOLE, warning], Outcome::Warnings),
            ("T", 1, &[VDA, WHOLE], Outcome::Warnings),
            ("f", 0, &[VDA, WHOLE], Outcome::Failed),
            ("A", 0, &[], Outcome::Failed),
        ] {
            assert_eq!(read(status, errors, lines).outcome, outcome, "{lines:?}");
        }
    }

    #[test]
    fn the_exit_code_tells_proof_from_the_lack_of_one() {
        for (outcome, exit) in [
            (Outcome::Proven, Exit::Done),
            (Outcome::Warnings, Exit::Warnings),
            (Outcome::Unverified, Exit::Warnings),
            (Outcome::Failed, Exit::Failed),
        ] {
            assert_eq!(Exit::from(outcome), exit);
        }
    }

    #[test]
    fn the_json_has_a_version_and_the_roots() {
        let report = read("T", 0, &[VDA, WHOLE]);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"version":1,"vm":"web01","job":12,"chain":[4,7],"outcome":"proven","disks":[{"target":"vda","root":"00ff"}],"files":5,"messages":[]}"#
        );
    }
}
