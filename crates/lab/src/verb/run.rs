//! `lab-backup run`

use clap::{Args, ValueEnum};

use super::{Vms, verify};
use crate::bconsole::{Console, Job, Line, level_word};
use crate::cli::DirectorArgs;
use crate::exit::Exit;
use crate::follow::{self, Watched};
use crate::show;

/// Backs up VMs now.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Keys of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// How much to move; without it what changed since the last good job
    #[arg(long, value_enum)]
    level: Option<Level>,
    /// Show progress until the end; Ctrl-C stops watching, not the job
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    director: DirectorArgs,
}

/// Bacula's levels.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// Everything
    Full,
    /// What changed since the last Full
    Differential,
    /// What changed since the last good job
    Incremental,
}

impl Run {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let console = Console::with(&self.director.console);
        // All names first: a slip in the third must not leave the first two running.
        Vms::known(&console)?.check(&self.vms)?;
        let mut jobs = Vec::new();
        for vm in &self.vms {
            jobs.push((vm, self.start(&console, vm)?));
        }
        if !self.wait {
            return Ok(Exit::Done);
        }
        let mut exit = Exit::Done;
        for (vm, id) in jobs {
            let job = follow::follow(
                &console,
                Watched {
                    id,
                    client: vm,
                    label: vm,
                    expected: self.expected(&console, vm),
                },
            )?;
            exit = exit.and(report(&console, vm, &job));
        }
        Ok(exit)
    }

    /// Starts a backup, or joins the one that runs.
    fn start(&self, console: &Console, vm: &str) -> anyhow::Result<u32> {
        let running = console.running()?;
        let same = running.iter().find(|job| job.kind == "B" && job.name == vm);
        let hint = |id: u32| {
            format!(
                "to cancel it: echo 'cancel jobid={id} yes' | bconsole -c {}",
                self.director.console.display()
            )
        };
        if let Some(job) = same {
            let (id, level) = (job.id, level_word(&job.level));
            eprintln!("{vm}: job {id} ({level}) is running already; {}", hint(id));
            return Ok(id);
        }
        let mut line = Line::new("run").value("job", vm)?;
        line = match self.level {
            None => line,
            Some(Level::Full) => line.words("level=Full"),
            Some(Level::Differential) => line.words("level=Differential"),
            Some(Level::Incremental) => line.words("level=Incremental"),
        };
        let id = console.queue(&[line.words("yes")])?;
        eprintln!("{vm}: job {id} started; {}", hint(id));
        Ok(id)
    }

    /// A Full moves about what the last one moved; of other levels nobody knows.
    fn expected(&self, console: &Console, vm: &str) -> Option<u64> {
        matches!(self.level, Some(Level::Full)).then_some(())?;
        let jobs = console.backups(&[vm.to_owned()], true, 50).ok()?;
        let full = jobs.iter().find(|job| job.level == "F" && job.bytes > 0)?;
        Some(full.bytes)
    }
}

/// Says how a job ended, and why if it did not end well.
pub(super) fn report(console: &Console, label: &str, job: &Job) -> Exit {
    let took = show::instant(&job.start).zip(show::instant(&job.end));
    let took = took.map_or(String::new(), |(start, end)| {
        format!(" in {}", show::seconds(end.as_second() - start.as_second()))
    });
    let what = match job.kind.as_str() {
        "R" if job.name == verify::JOB => "verify",
        "R" => "restore",
        _ => level_word(&job.level),
    };
    let (id, word, moved) = (job.id, job.status_word(), show::bytes(job.bytes));
    println!("{label}: job {id} ({what}) {word}: {moved}{took}");
    let causes = follow::causes(console, id);
    // A warning does not count as an error of the job, but whoever waits for it must see it.
    if job.good() && job.errors == 0 && causes.is_empty() {
        return Exit::Done;
    }
    let named = format!("{label}: ");
    for cause in causes.iter().take(5) {
        eprintln!("{named}{}", cause.strip_prefix(&named).unwrap_or(cause));
    }
    if causes.is_empty() {
        eprintln!("{label}: the log of job {id} gives no reason");
    }
    if job.good() {
        Exit::Warnings
    } else {
        Exit::Failed
    }
}
