//! `lab-backup restore`
//!
//! Which jobs are read is the Director's knowledge (`.bvfs_get_jobids`), what may be overwritten is
//! decided by the worker on the hypervisor; this verb only says what is wanted.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use relay::name;
use relay::options::{self, Options, Target};

use super::{Vms, run};
use crate::bconsole::{Console, Job, Line, level_word};
use crate::cli::{DirectorArgs, Usage};
use crate::exit::Exit;
use crate::follow::{self, Watched};
use crate::show;

/// Job that refuses to touch what exists.
const JOB: &str = "lab-backup-restore";
/// Good jobs that are looked through for a point in time.
const HISTORY: u32 = 2000;

/// Brings a VM back.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Key of the VM
    vm: String,
    /// Bring it back beside the original, under this name, with new UUID and MAC addresses
    #[arg(long = "as", value_name = "NAME", conflicts_with = "to")]
    name: Option<String>,
    /// Write plain files into this directory of the hypervisor; nothing is defined
    #[arg(long, value_name = "DIR")]
    to: Option<String>,
    /// Take the state of this job
    #[arg(long, value_name = "ID", conflicts_with = "at")]
    job: Option<u32>,
    /// Take the last good state at this time, such as "2026-01-31 18:00" (local) or with a zone
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Only these disks, such as vda; may be repeated
    #[arg(long = "disk", value_name = "TARGET")]
    disks: Vec<String>,
    /// Start the VM when it is back
    #[arg(long, conflicts_with = "to")]
    start: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    director: DirectorArgs,
}

/// What was decided.
struct Decision {
    /// The job whose state comes back.
    point: Job,
    /// All jobs that are read, oldest first.
    chain: Vec<Job>,
    /// Bacula's `where`.
    place: String,
}

impl Restore {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let place = self.place()?;
        let at = self.at.as_deref().map(instant).transpose()?;
        let console = Console::with(&self.director.console);
        Vms::known(&console)?.check(std::slice::from_ref(&self.vm))?;
        let point = self.point(&console, at)?;
        let decision = Decision {
            chain: self.chain(&console, &point)?,
            point,
            place,
        };
        self.show(&decision);
        if self.dry_run {
            return Ok(Exit::Done);
        }
        if !self.yes && !confirmed()? {
            println!("nothing was done");
            return Ok(Exit::Failed);
        }
        let id = console.queue(&self.commands(&decision)?)?;
        eprintln!(
            "{}: restore is job {id}; to cancel it: echo 'cancel jobid={id} yes' | bconsole -c {}",
            self.vm,
            self.director.console.display()
        );
        if self.no_wait {
            return Ok(Exit::Done);
        }
        let watched = Watched {
            id,
            client: &self.vm,
            label: &self.vm,
            expected: Some(decision.chain.iter().map(|job| job.bytes).sum()),
        };
        let job = follow::follow(&console, watched)?;
        let exit = run::report(&console, &self.vm, &job);
        if exit != Exit::Failed {
            println!("{}", self.next_step());
        }
        Ok(exit)
    }

    /// Bacula's `where` for what the command line asks.
    fn place(&self) -> Result<String, Usage> {
        let target = |t: &String| {
            (1..=16).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if let Some(bad) = self.disks.iter().find(|t| !target(t)) {
            return Err(Usage(format!(
                "disk {bad:?} is no target; write one such as vda"
            )));
        }
        if let Some(dir) = &self.to {
            return match Target::parse(dir) {
                Ok(Target::Directory(_)) => Ok(dir.clone()),
                _ => Err(Usage(format!(
                    "directory {:?} is not an absolute path without '..' and control characters",
                    dir.chars().take(120).collect::<String>()
                ))),
            };
        }
        if let Some(name) = &self.name {
            name::check(name).map_err(|error| {
                let text = error.to_string();
                Usage(text.replacen("VM key", "new name", 1))
            })?;
        }
        if self.name.is_none() && self.disks.is_empty() && !self.start {
            return Ok("/".into());
        }
        Ok(options::encode(&Options {
            v: 1,
            name: self.name.clone(),
            disks: (!self.disks.is_empty()).then(|| self.disks.clone()),
            start: self.start,
            ..Options::default()
        }))
    }

    /// The job whose state comes back.
    fn point(&self, console: &Console, at: Option<Timestamp>) -> anyhow::Result<Job> {
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

    fn chain(&self, console: &Console, point: &Job) -> anyhow::Result<Vec<Job>> {
        let mut chain = Vec::new();
        for id in console.chain(point.id)? {
            let Some(job) = console.job(id)? else {
                anyhow::bail!(
                    "job {} needs job {id}, which the catalog no longer has",
                    point.id
                );
            };
            chain.push(job);
        }
        Ok(chain)
    }

    fn show(&self, decision: &Decision) {
        let time = |job: &Job| show::instant(&job.start).map_or("?".into(), show::local);
        println!(
            "{} as of {} (job {})",
            self.vm,
            time(&decision.point),
            decision.point.id
        );
        for job in &decision.chain {
            let (level, size) = (level_word(&job.level), show::bytes(job.bytes));
            println!(
                "  read     job {} ({level}) of {}, {size}",
                job.id,
                time(job)
            );
        }
        let disks = if self.disks.is_empty() {
            "all disks".to_owned()
        } else {
            self.disks.join(", ")
        };
        match (&self.to, &self.name) {
            (Some(dir), _) => println!("  written  {disks} as plain files below {dir}"),
            (_, Some(name)) => {
                println!("  written  {disks} under new file names");
                println!(
                    "  defined  {name}, with new UUID and MAC addresses, network cards unplugged"
                );
            }
            (None, None) => {
                println!(
                    "  written  {disks} to the original places; refused if something is there"
                );
                println!("  defined  the VM as it was; refused if it exists");
            }
        }
        if self.start {
            println!("  started  when it is back");
        }
    }

    fn commands(&self, decision: &Decision) -> anyhow::Result<Vec<Line>> {
        let ids: Vec<String> = decision
            .chain
            .iter()
            .map(|job| job.id.to_string())
            .collect();
        let restore = Line::new("restore")
            .value("client", &self.vm)?
            .value("jobid", &ids.join(","))?
            .value("where", &decision.place)?
            .value("restorejob", JOB)?;
        if self.to.is_none() || self.disks.is_empty() {
            return Ok(vec![restore.words("all done yes")]);
        }
        // Without options in `where` the choice of disks is a choice of files.
        let vm = &self.vm;
        let mut lines = vec![restore];
        lines.push(Line::new("cd").bare(&format!("/#LabBackup/{vm}/{vm}"))?);
        for disk in &self.disks {
            lines.push(Line::new("mark").bare(&format!("{disk}.raw"))?);
        }
        lines.push(Line::new("mark").bare("manifest.json")?);
        lines.push(Line::new("done"));
        lines.push(Line::new("yes"));
        Ok(lines)
    }

    fn next_step(&self) -> String {
        let vm = &self.vm;
        match (&self.to, &self.name) {
            (Some(dir), _) => format!("next: the files are below {dir} on the hypervisor"),
            (_, Some(name)) if self.start => format!("next: virsh console {name}"),
            (_, Some(name)) => format!("next: virsh start {name}"),
            (None, None) if self.start => format!("next: lab-backup run {vm}"),
            (None, None) => "next: virsh start the VM, then lab-backup run it".to_owned(),
        }
    }
}

/// Asks once. Without a terminal nobody can answer, so nothing is done.
fn confirmed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(
            Usage("no terminal to ask on; add --yes to go on without a question".into()).into(),
        );
    }
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
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
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        restore: Restore,
    }

    fn parse(args: &[&str]) -> Restore {
        let args = ["restore"].iter().chain(args);
        Only::try_parse_from(args).ok().unwrap().restore
    }

    fn place(args: &[&str]) -> Result<Target, String> {
        let place = parse(args).place().map_err(|e| e.to_string())?;
        Ok(Target::parse(&place).unwrap())
    }

    #[test]
    fn the_command_line_becomes_a_where_that_the_worker_reads() {
        assert_eq!(place(&["web01"]), Ok(Target::Original));
        let dir = "/srv/$(id) x";
        assert_eq!(
            place(&["web01", "--to", dir]),
            Ok(Target::Directory(dir.into()))
        );
        let Ok(Target::Rebuild(options)) =
            place(&["web01", "--as", "web02", "--disk", "vda", "--start"])
        else {
            panic!("options");
        };
        assert_eq!(options.name.as_deref(), Some("web02"));
        assert_eq!(options.disks, Some(vec!["vda".into()]));
        assert!(options.start);
        let Ok(Target::Rebuild(options)) = place(&["web01", "--disk", "vdb"]) else {
            panic!("options");
        };
        assert_eq!(options.name, None);
    }

    #[test]
    fn places_and_names_that_could_do_harm_are_refused() {
        let long = "a".repeat(200);
        for args in [
            ["web01", "--to", "srv"],
            ["web01", "--to", "/srv/../etc"],
            ["web01", "--to", "/a\nb"],
            ["web01", "--to", ""],
            ["web01", "--to", "#eyJ2IjoxfQ"],
            ["web01", "--as", "$(id)"],
            ["web01", "--as", "a b"],
            ["web01", "--as", &long],
            ["web01", "--as", "../x"],
            ["web01", "--disk", "../vda"],
        ] {
            let error = place(&args).unwrap_err();
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn chosen_disks_of_plain_files_are_marked_one_by_one() {
        let restore = parse(&["web01", "--to", "/srv/x", "--disk", "vda"]);
        let row = r#"{"jobid":4,"name":"web01","type":"B","level":"F","jobstatus":"T"}"#;
        let job: Job = serde_json::from_str(row).unwrap();
        let decision = Decision {
            chain: vec![job.clone()],
            point: job,
            place: restore.place().unwrap(),
        };
        let lines: Vec<_> = restore
            .commands(&decision)
            .unwrap()
            .iter()
            .map(Line::text)
            .collect();
        assert_eq!(
            lines,
            [
                r#"restore client="web01" jobid="4" where="/srv/x" restorejob="lab-backup-restore""#,
                r##"cd "/#LabBackup/web01/web01""##,
                r#"mark "vda.raw""#,
                r#"mark "manifest.json""#,
                "done",
                "yes",
            ]
        );
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
