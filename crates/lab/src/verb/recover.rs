//! `lab-backup recover`

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::apply;
use crate::bconsole::Console;
use crate::config;
use crate::exit::Exit;
use crate::host::{Feed, Host as _, Login, Run, ThisHost};
use crate::kit::{self, OPENED};
use crate::model::Model;
use crate::observe;
use crate::render::{ACCOUNT_COMMENT, DIRECTOR, DUMP, ETC, SENTINEL};

/// Rebuilds the stack on a blank host from the directory of the volumes and the passphrase of its recovery kit.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// Directory of the volumes
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The kit to open; without it the newest one in DIR
    #[arg(long, value_name = "FILE")]
    kit: Option<PathBuf>,
    /// File with the passphrase; without it the passphrase is asked for
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Replace the lab.toml, the passwords and the catalog that are here already
    #[arg(long)]
    force: bool,
}

impl Recover {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can rebuild the stack; run it with sudo"
        );
        let lab = Path::new(config::PATH);
        ensure!(
            self.force || !lab.exists(),
            "{} is here already, so this host is not blank; --force replaces it",
            lab.display()
        );
        if self.force {
            super::no_jobs(&Console::root(), false)?;
        }
        let kit = match &self.kit {
            Some(kit) => kit.clone(),
            None => kit::newest(&ThisHost, &self.dir)?,
        };
        let opened = Path::new(OPENED);
        remove_tree(opened)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(opened)
            .with_context(|| format!("cannot make {OPENED}"))?;
        let model = match self.fitting(&kit, opened) {
            Ok(model) => model,
            Err(error) => {
                // Nothing was put in place, and while it lies there no new kit is written.
                if let Err(left) = remove_tree(opened) {
                    eprintln!("lab-backup: {left:#}");
                }
                return Err(error);
            }
        };
        println!("opened {}", kit.display());
        for part in [ETC, "/var/lib/lab-backup/keys"] {
            copy_tree(&opened.join(part.trim_start_matches('/')), Path::new(part))?;
        }
        println!("put {} and the passwords in place", lab.display());
        own(&model)?;
        apply::apply(lab)?;
        let account = observe::login(&ThisHost, &model.account)?;
        let account = account.context("apply made no account")?;
        let dump = opened.join(DUMP);
        // A link would have been one of the account's making.
        if !fs::symlink_metadata(&dump).is_ok_and(|facts| facts.is_file()) {
            remove_tree(opened)?;
            println!("the kit has no catalog: bscan reads it from the volumes, see RESTORE.txt");
            return Ok(Exit::Warnings);
        }
        load(&account, &dump)?;
        remove_tree(opened)?;
        let vms = Console::root().vms()?.len();
        println!(
            "the catalog is loaded; {vms} VMs can be restored: lab-backup status, lab-backup restore VM"
        );
        Ok(Exit::Done)
    }

    /// Opens the kit; its lab, if that has its volumes where they are.
    fn fitting(&self, kit: &Path, opened: &Path) -> anyhow::Result<Model> {
        self.open(kit, opened)?;
        let model = super::model(&opened.join("etc/lab-backup/lab.toml"))?;
        ensure!(
            model.storage.nfs.is_some() || model.storage.dir == self.dir,
            "lab.toml of the kit has its volumes in {}, and they are in {}; move or mount them there",
            model.storage.dir.display(),
            self.dir.display()
        );
        Ok(model)
    }

    fn open(&self, kit: &Path, into: &Path) -> anyhow::Result<()> {
        // gpg keeps its own files there.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(crate::render::KIT_DIR)
            .context("cannot make the directory of the kit")?;
        if let Some(file) = &self.passphrase_file {
            return Ok(kit::open(&ThisHost, kit, file, into)?);
        }
        if !std::io::stdin().is_terminal() {
            bail!("the passphrase cannot be asked for without a terminal; use --passphrase-file");
        }
        let ask = Command::new("systemd-ask-password")
            .arg("Passphrase of the recovery kit:")
            .output()
            .context("cannot run systemd-ask-password")?;
        ensure!(ask.status.success(), "there is no passphrase");
        let file = into.join("passphrase");
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut file| file.write_all(&ask.stdout))
            .context("cannot hand over the passphrase")?;
        let opened = kit::open(&ThisHost, kit, &file, into);
        fs::remove_file(&file).context("cannot remove the passphrase")?;
        Ok(opened?)
    }
}

/// Volumes on a local disk belong to the account; its number may be another one than on the host that is gone. On a
/// share the server decides, and the Storage Daemon says so when it starts.
fn own(model: &Model) -> anyhow::Result<()> {
    if model.storage.nfs.is_some() {
        return Ok(());
    }
    let dir = model.storage.dir.to_string_lossy();
    if observe::login(&ThisHost, &model.account)?.is_none() {
        let facts = fs::metadata(model.storage.dir.join(SENTINEL));
        let uid = facts.map_or(0, |facts| facts.uid());
        let free = !ThisHost
            .run(&Run::new(&["getent", "passwd", &uid.to_string()]))?
            .ok();
        if free && (1000..60_000).contains(&uid) {
            // apply gives the account this number.
            return Ok(());
        }
        // It is made now, as apply would, so that there is somebody to give them to.
        must(&Run::new(&[
            "useradd",
            "--create-home",
            "--shell",
            "/usr/sbin/nologin",
            "--comment",
            ACCOUNT_COMMENT,
            &model.account,
        ]))?;
    }
    let owner = format!("{0}:{0}", model.account);
    must(&Run::new(&["chown", "--recursive", "--no-dereference", &owner, &dir]).minutes(60))
}

/// Puts a dump in the place of the catalog, while the Director does not run. All of it or nothing.
pub(super) fn load(account: &Login, dump: &Path) -> anyhow::Result<()> {
    must(&Run::new(&["systemctl", "--user", "stop", DIRECTOR]).login(account))?;
    let mut psql = Run::new(&[
        "podman",
        "exec",
        "--interactive",
        "lab-backup-catalog",
        "psql",
        "--username=bacula",
        "--dbname=bacula",
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        "--single-transaction",
        "--output=/dev/null",
        // What the dump does not know would be in the way of the next change of the tables.
        "--command=DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        "--file=-",
    ])
    .login(account)
    .minutes(60);
    psql.stdin = Some(Feed::File(dump.into()));
    let loaded = must(&psql).context("the catalog is not loaded");
    // Whatever came of it: without a Director nothing is protected.
    let started = must(
        &Run::new(&["systemctl", "--user", "start", DIRECTOR])
            .login(account)
            .minutes(8),
    );
    loaded.and(started)
}

fn must(run: &Run) -> anyhow::Result<()> {
    let output = ThisHost
        .run(run)
        .with_context(|| format!("cannot run {}", run.line()))?;
    ensure!(
        output.ok(),
        "{} failed: {}",
        run.line(),
        output.stderr.trim().replace('\n', "; ")
    );
    Ok(())
}

/// Files as they lie in the kit: plain files and directories, nothing else.
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    let failed = || format!("cannot copy {} to {}", from.display(), to.display());
    let mode = if to.ends_with("secrets") || to.ends_with("keys") {
        0o700
    } else {
        0o755
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(to)
        .with_context(failed)?;
    for entry in entries {
        let entry = entry.with_context(failed)?;
        let (kind, to) = (
            entry.file_type().with_context(failed)?,
            to.join(entry.file_name()),
        );
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_file() {
            // The mode comes along.
            fs::copy(entry.path(), &to).with_context(failed)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
