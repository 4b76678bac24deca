//! `lab-backup status`

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::Vms;
use crate::bconsole::{Console, Job, Running, level_word};
use crate::cli::{DirectorArgs, LabFile};
use crate::exit::Exit;
use crate::{model, show};

/// Shows how each VM is protected.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Keys of VMs; without any, all
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// Print JSON, times in UTC
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: LabFile,
    #[command(flatten)]
    director: DirectorArgs,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    vms: Vec<VmStatus>,
}

/// One VM.
#[derive(Debug, Serialize)]
struct VmStatus {
    vm: String,
    tier: Option<u8>,
    last_good: Option<JobStatus>,
    last: Option<JobStatus>,
    running: Option<RunningStatus>,
}

/// One job that has ended or runs.
#[derive(Debug, Serialize)]
struct JobStatus {
    job: u32,
    level: String,
    status: &'static str,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    bytes: u64,
    files: u32,
    errors: u32,
}

/// One job that runs or waits.
#[derive(Debug, Serialize)]
struct RunningStatus {
    job: u32,
    level: String,
    kind: &'static str,
}

impl Status {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let console = Console::with(&self.director.console);
        let known = Vms::known(&console)?;
        known.check(&self.vms)?;
        let vms = if self.vms.is_empty() {
            known.names
        } else {
            self.vms.clone()
        };
        let report = Report {
            version: 1,
            vms: self.look(&console, &vms)?,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else if report.vms.is_empty() {
            println!("no VM is protected; write [vms.NAME] into lab.toml and run lab-backup apply");
        } else {
            println!("{}", table(&report.vms));
        }
        Ok(Exit::Done)
    }

    fn look(&self, console: &Console, vms: &[String]) -> anyhow::Result<Vec<VmStatus>> {
        let good = console.backups(vms, true, 1)?;
        let last = console.backups(vms, false, 1)?;
        let running = console.running()?;
        // Only root may read it; without it the tier is that of the last job.
        let lab = std::fs::read_to_string(&self.file.lab).ok();
        let lab = lab.and_then(|text| model::parse(&text).ok());
        let of = |jobs: &[Job], vm: &str| jobs.iter().find(|job| job.name == vm).cloned();
        let status = |vm: &String| {
            let last = of(&last, vm);
            let tier = lab.as_ref().and_then(|lab| Some(lab.vms.get(vm)?.tier));
            VmStatus {
                vm: vm.clone(),
                tier: tier.or_else(|| last.as_ref()?.tier()),
                last_good: of(&good, vm).map(JobStatus::from),
                last: last.map(JobStatus::from),
                running: running
                    .iter()
                    .find(|job| job.name == *vm)
                    .map(RunningStatus::from),
            }
        };
        Ok(vms.iter().map(status).collect())
    }
}

impl From<Job> for JobStatus {
    fn from(job: Job) -> Self {
        Self {
            job: job.id,
            level: level_word(&job.level).into(),
            status: job.status_word(),
            start: show::instant(&job.start),
            end: show::instant(&job.end),
            bytes: job.bytes,
            files: job.files,
            errors: job.errors,
        }
    }
}

impl From<&Running> for RunningStatus {
    fn from(job: &Running) -> Self {
        Self {
            job: job.id,
            level: level_word(&job.level).into(),
            kind: if job.kind == "R" { "restore" } else { "backup" },
        }
    }
}

fn table(vms: &[VmStatus]) -> Table {
    let now = Timestamp::now().as_second();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "VM",
            "TIER",
            "LAST GOOD",
            "AGE",
            "LEVEL",
            "SIZE",
            "LAST RUN",
            "NOW",
        ]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let dash = || "-".to_owned();
    for vm in vms {
        let good = vm.last_good.as_ref();
        let end = good.and_then(|job| job.end);
        table.add_row([
            vm.vm.clone(),
            vm.tier.map_or_else(dash, |tier| tier.to_string()),
            end.map_or_else(|| "never".into(), show::local),
            end.map_or_else(dash, |end| show::seconds((now - end.as_second()).max(0))),
            good.map_or_else(dash, |job| job.level.clone()),
            good.map_or_else(dash, |job| show::bytes(job.bytes)),
            vm.last
                .as_ref()
                .map_or_else(dash, |job| format!("{} (job {})", job.status, job.job)),
            vm.running
                .as_ref()
                .map_or_else(dash, |job| format!("{} (job {})", job.kind, job.job)),
        ]);
    }
    table
}
