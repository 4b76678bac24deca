//! `lab-backup upgrade`

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{apply, kit, recover};
use crate::bconsole::{Console, Line};
use crate::cli::LabFile;
use crate::exit::Exit;
use crate::follow::{self, Watched};
use crate::host::{Host as _, Login, Run, ThisHost};
use crate::observe;
use crate::plan::changes;
use crate::render::{DUMP, KIT_DIR};

/// Job that saves the catalog.
const CATALOG_JOB: &str = "lab-backup-catalog";
/// Between two looks at the jobs.
const PAUSE: Duration = Duration::from_secs(5);

/// Brings the stack to the version of this program, when no job runs; whatever fails, the former version goes on.
///
/// The catalog is saved first. A unit that does not become healthy gets its former files back by `apply`; if the new
/// Director had changed the catalog's tables by then, the saved one takes their place.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    file: LabFile,
    /// Minutes to wait for the end of the jobs that run
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    wait: u64,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

impl Upgrade {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let outlook = super::outlook(&ThisHost, &self.file.lab)?;
        if self.dry_run || outlook.plan.actions.is_empty() {
            println!("{}", outlook.plan);
            return Ok(Exit::Done);
        }
        let account = outlook.state.login.clone();
        let account = account.context("there is no stack to upgrade; run lab-backup apply")?;
        let console = Console::root();
        self.idle(&console)?;
        let saved = save(&console, &account)?;
        // One may have begun meanwhile.
        self.idle(&console)?;
        let before = tables(&account)?;
        let done = apply::apply(&self.file.lab).and_then(|done| {
            console.vms().context("the Director does not answer")?;
            Ok(done)
        });
        let (count, warned) = match done {
            Ok(done) => done,
            Err(error) => return Err(back(&account, before, &saved, error)),
        };
        println!("  {}", kit::write(&outlook.model)?);
        println!("{}", changes(count));
        Ok(if warned { Exit::Warnings } else { Exit::Done })
    }

    /// Waits until no job runs.
    fn idle(&self, console: &Console) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut told = 0;
        loop {
            let running = console.running()?;
            if running.is_empty() {
                return Ok(());
            }
            if start.elapsed() >= Duration::from_secs(60 * self.wait) {
                bail!(
                    "{} jobs still run after {} minutes; nothing was changed",
                    running.len(),
                    self.wait
                );
            }
            if told != running.len() {
                told = running.len();
                let names: Vec<&str> = running.iter().map(|job| job.name.as_str()).collect();
                eprintln!("waiting for {}", names.join(", "));
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Has the catalog saved, and keeps a copy of the dump that no later job replaces.
fn save(console: &Console, account: &Login) -> anyhow::Result<std::path::PathBuf> {
    let line = Line::new("run").value("job", CATALOG_JOB)?.words("yes");
    let id = console.queue(&[line])?;
    let watched = Watched {
        id,
        client: CATALOG_JOB,
        label: "catalog",
        expected: None,
    };
    let job = follow::follow(console, watched)?;
    ensure!(
        job.good(),
        "the catalog was not saved (job {id} {}); nothing was changed",
        job.status_word()
    );
    let kept = std::path::Path::new(KIT_DIR).join("before-upgrade.sql");
    let dump = observe::director_data(account).join(DUMP);
    // The account owns the way there, and must not lead root anywhere else.
    let open = || -> std::io::Result<File> {
        let home = File::open(&account.home)?;
        let inside = dump
            .strip_prefix(&account.home)
            .map_err(std::io::Error::other)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat2(&home, inside, flags, Mode::empty(), resolve)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(std::io::Error::other("is no file")),
        }
    };
    let keep = |mut from: File| -> std::io::Result<()> {
        let mut to = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&kept)?;
        std::io::copy(&mut from, &mut to)?;
        to.sync_all()
    };
    open()
        .and_then(keep)
        .with_context(|| format!("cannot keep {}", dump.display()))?;
    Ok(kept)
}

/// Version of the catalog's tables.
fn tables(account: &Login) -> anyhow::Result<String> {
    let run = Run::new(&[
        "podman",
        "exec",
        "lab-backup-catalog",
        "psql",
        "--username=bacula",
        "--dbname=bacula",
        "--no-psqlrc",
        "--tuples-only",
        "--no-align",
        "--command=SELECT versionid FROM version",
    ]);
    let output = ThisHost
        .run(&run.login(account))
        .context("cannot ask the catalog")?;
    ensure!(
        output.ok(),
        "the catalog does not answer: {}",
        output.stderr.trim()
    );
    Ok(output.stdout.trim().to_owned())
}

/// The first error, with what was done about the catalog.
fn back(
    account: &Login,
    before: String,
    saved: &std::path::Path,
    error: anyhow::Error,
) -> anyhow::Error {
    let now = tables(account);
    if now.as_ref().is_ok_and(|now| *now == before) {
        return error.context(
            "what did not come up was taken back, what came up stays; the catalog is untouched",
        );
    }
    match recover::load(account, saved) {
        Ok(()) => error.context("what did not come up was taken back, and the catalog as well"),
        Err(failed) => error.context(format!(
            "what did not come up was taken back, but not the catalog, which is saved in {}: {failed:#}",
            saved.display()
        )),
    }
}
