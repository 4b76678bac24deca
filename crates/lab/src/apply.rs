//! Does what a plan says, in order, and stops at the first failure.
//!
//! A unit is touched only after everything it reads is in place, and the record of what it runs with
//! is written after it came up: until then nothing half done takes effect, and the next `apply` goes
//! on exactly where this one stopped. One step takes effect and can fail: a unit that ran and does
//! not come up with what it was given. [`undo`] gives it back what it had.

mod undo;
mod unit;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use undo::Undo;

use crate::bconsole::{self, Console};
use crate::desired::{Desired, Image, Owner, Sentinel, Source};
use crate::host::{Feed, Host, Login, Run};
use crate::made::Made;
use crate::observe::{self, State};
use crate::plan::{Action, Plan};
use crate::process::Output;
use crate::render::{ACCOUNT_COMMENT, FD_CONF, FD_KEPT, HEADER, SENTINEL};

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A file or directory could not be put in place.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Its command line.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {reason}")]
    Failed {
        /// Its command line.
        program: String,
        /// The end of what it printed.
        reason: String,
    },
    /// A unit did not come up.
    #[error("{unit} did not come up; its last words:\n{journal}")]
    Unit {
        /// Its name.
        unit: String,
        /// The end of its journal.
        journal: String,
    },
    /// The account is missing although it was made.
    #[error("account {0} is not there; is it made by another system, such as LDAP?")]
    NoAccount(String),
    /// The directory of the volumes has the mark of another lab.
    #[error("{path} is the mark of another lab-backup; name another directory, or remove it if that lab is gone", path = .0.display())]
    Foreign(PathBuf),
    /// The directory of the volumes has volumes and no mark.
    #[error(
        "{dir} has volumes already, such as {volume}, and no mark of this lab; if they are this lab's, put {mark} back (copy /etc/lab-backup/storage/sentinel there); \
         if their lab is gone, lab-backup recover {dir} takes them over",
        dir = dir.display(), mark = mark.display()
    )]
    Used {
        /// Which.
        dir: PathBuf,
        /// One of them.
        volume: String,
        /// Where the mark belongs.
        mark: PathBuf,
    },
    /// The directory of the volumes belongs to somebody else.
    #[error(
        "the account cannot write to {dir}; on the NFS server it must belong to user {uid} and group {gid}; change that and run lab-backup apply again",
        dir = dir.display()
    )]
    Owner {
        /// Which.
        dir: PathBuf,
        /// User id of the account.
        uid: u32,
        /// Its group id.
        gid: u32,
    },
    /// The host cannot be looked at.
    #[error(transparent)]
    Observe(#[from] observe::Error),
    /// The Director does not answer.
    #[error("the Director does not answer")]
    Console(#[from] bconsole::Error),
    /// A unit is back to what it had.
    #[error("{unit} does not run with its new configuration; {outcome}")]
    Undone {
        /// Its name.
        unit: String,
        /// What was put back, and what could not be.
        outcome: String,
        /// Why it was.
        source: Box<Error>,
    },
    /// The Director keeps its old configuration.
    #[error("the Director refuses its new configuration and keeps the old one: {0}")]
    Refused(String),
}

/// What `apply` asks of the Director.
pub(crate) trait Director {
    /// When it last took a configuration, in seconds since 1970.
    fn reloaded(&self) -> Result<u64, bconsole::Error>;
    /// Tells it to take its configuration again, and returns what it said.
    fn reload(&self) -> Result<String, bconsole::Error>;
}

impl Director for Console {
    fn reloaded(&self) -> Result<u64, bconsole::Error> {
        self.reloaded()
    }

    fn reload(&self) -> Result<String, bconsole::Error> {
        // Its clock has whole seconds, and two reloads in one of them would look like none.
        thread::sleep(Duration::from_millis(1100));
        self.text("reload")
    }
}

/// Does all actions of `plan`; `tell` hears each before it is done.
pub(crate) fn apply(
    host: &dyn Host,
    director: &dyn Director,
    desired: &Desired,
    state: State,
    plan: &Plan,
    tell: &mut dyn FnMut(&Action),
) -> Result<(), Error> {
    let noted = Made::note(host, &state, plan);
    noted.map_err(|source| write_error(Made::PATH.as_ref(), source))?;
    let mut applier = Applier {
        host,
        director,
        desired,
        state,
        undo: Undo::default(),
    };
    for action in &plan.actions {
        tell(action);
        if let Err(error) = applier.act(action) {
            return Err(applier.undone(action, error));
        }
    }
    Ok(())
}

struct Applier<'a> {
    host: &'a dyn Host,
    director: &'a dyn Director,
    desired: &'a Desired,
    state: State,
    undo: Undo,
}

impl Applier<'_> {
    fn act(&mut self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Account { name, uid } => self.account(name, *uid),
            Action::SubIds { name } => self.subids(name),
            Action::Linger { name } => self.linger(name),
            Action::Dir { dir, .. } => {
                let owner = match dir.owner {
                    Owner::Root => (0, 0),
                    Owner::Account => {
                        let login = self.login()?;
                        (login.uid, login.gid)
                    }
                };
                let made = self.host.make_dir(&dir.path, dir.mode, owner);
                made.map_err(|source| write_error(&dir.path, source))
            }
            Action::Write { file, before } => {
                self.keep_packaged(&file.path, before.as_deref())?;
                // Podman has its own copy of a secret; one without the other would help nobody.
                if !file.secret {
                    self.remember(&file.path)?;
                }
                let written = self.host.write(&file.path, &file.text, file.mode);
                written.map_err(|source| write_error(&file.path, source))
            }
            Action::Remove { path } => {
                self.remember(path)?;
                let removed = self.host.remove(path);
                removed.map_err(|source| write_error(path, source))
            }
            Action::Image(image) => self.image(image),
            Action::Secret { secret, .. } => {
                let label = format!("fingerprint={}", secret.fingerprint);
                let argv = [
                    "podman",
                    "secret",
                    "create",
                    "--replace",
                    "--label",
                    &label,
                    &secret.name,
                    "-",
                ];
                let mut run = Run::new(&argv).login(self.login()?);
                run.stdin = Some(Feed::Pipe(secret.file.clone()));
                self.must(&run)
            }
            Action::Sentinel(sentinel) => self.sentinel(sentinel),
            Action::ReadUnits => self.must(&Run::new(&["systemctl", "daemon-reload"])),
            Action::Generate => {
                let run = Run::new(&["systemctl", "--user", "daemon-reload"]);
                self.must(&run.login(self.login()?))
            }
            Action::Enable(service) => {
                self.systemctl(service, &["enable"])?;
                // What reads nothing of ours may run already, such as a mount: it goes on.
                let verb = if service.starts_with.is_empty() {
                    "start"
                } else {
                    "restart"
                };
                self.up(service, verb)
            }
            Action::Start(service) => self.up(service, "start"),
            Action::Restart(service) => self.up(service, "restart"),
            Action::Reload(service) => self.reload(service),
        }
    }

    /// By the account's own hand: on a share root is nobody.
    fn sentinel(&mut self, sentinel: &Sentinel) -> Result<(), Error> {
        let path = sentinel.path.to_string_lossy();
        let cat = Run::new(&["cat", "--", &path]).login(self.login()?);
        let found = self.run(&cat)?;
        // An empty one was cut off as it was written.
        let none = !found.ok() || found.stdout.is_empty();
        if !none && found.stdout != sentinel.text {
            return Err(Error::Foreign(sentinel.path.clone()));
        }
        if none {
            self.unused(sentinel)?;
            let mut tee = Run::new(&["tee", "--", &path]).login(self.login()?);
            tee.stdin = Some(Feed::File(sentinel.record.clone()));
            self.must(&tee)
                .map_err(|error| self.refused(sentinel, error))?;
        }
        let noted = self
            .state
            .applied
            .note(self.host, SENTINEL, sentinel.applied());
        noted.map_err(|source| write_error(crate::applied::Applied::PATH.as_ref(), source))
    }

    /// A directory that is to be marked must have no volumes yet: whose are they, and does the catalog know them?
    fn unused(&self, sentinel: &Sentinel) -> Result<(), Error> {
        let Some(dir) = sentinel.path.parent() else {
            return Ok(());
        };
        let list = Run::new(&["ls", "-1", "--", &dir.to_string_lossy()]).login(self.login()?);
        let output = self.run(&list)?;
        let volume = output.stdout.lines().find(|name| {
            name.starts_with("tier") && (name.contains("-full-") || name.contains("-inc-"))
        });
        match volume {
            None => Ok(()),
            Some(volume) => Err(Error::Used {
                dir: dir.into(),
                volume: volume.into(),
                mark: sentinel.path.clone(),
            }),
        }
    }

    /// What a share says that belongs to somebody else.
    fn refused(&self, sentinel: &Sentinel, error: Error) -> Error {
        match (&error, self.login()) {
            (Error::Failed { reason, .. }, Ok(login)) if reason.contains("ermission denied") => {
                Error::Owner {
                    dir: sentinel.path.parent().unwrap_or(&sentinel.path).into(),
                    uid: login.uid,
                    gid: login.gid,
                }
            }
            _ => error,
        }
    }

    fn account(&mut self, name: &str, uid: u32) -> Result<(), Error> {
        let uid = uid.to_string();
        self.must(&Run::new(&[
            "useradd",
            "--uid",
            &uid,
            "--create-home",
            "--shell",
            "/usr/sbin/nologin",
            "--comment",
            ACCOUNT_COMMENT,
            name,
        ]))?;
        self.state.login = observe::login(self.host, name)?;
        self.login().map(|_| ())
    }

    fn subids(&mut self, name: &str) -> Result<(), Error> {
        // A fresh account may have got them by itself.
        let has = |file: &str| -> bool {
            let found = self.host.look(file.as_ref()).ok().flatten();
            let mark = format!("{name}:");
            found.is_some_and(|f| f.text.lines().any(|l| l.starts_with(&mark)))
        };
        for (file, option) in [
            ("/etc/subuid", "--add-subuids"),
            ("/etc/subgid", "--add-subgids"),
        ] {
            if has(file) {
                continue;
            }
            let taken = self.host.look(file.as_ref());
            let taken = taken.map_err(|source| write_error(file.as_ref(), source))?;
            let first = free_range(&taken.map(|f| f.text).unwrap_or_default());
            let range = format!("{first}-{}", first + 65_535);
            self.must(&Run::new(&["usermod", option, &range, name]))?;
        }
        Ok(())
    }

    fn linger(&self, name: &str) -> Result<(), Error> {
        self.must(&Run::new(&["loginctl", "enable-linger", name]))?;
        // The manager comes up a moment later.
        let running = Run::new(&["systemctl", "--user", "is-system-running", "--wait"]);
        let running = running.login(self.login()?);
        for _ in 0..100 {
            let output = self.run(&running)?;
            if matches!(output.stdout.trim(), "running" | "degraded") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        Err(Error::Failed {
            program: running.line(),
            reason: format!("the service manager of {name} does not start"),
        })
    }

    /// The File Daemon's package brings a file of the same name; it comes back with uninstall.
    fn keep_packaged(&self, path: &Path, before: Option<&str>) -> Result<(), Error> {
        let foreign = before.is_some_and(|text| !text.starts_with(HEADER));
        if path.as_os_str() != FD_CONF || !foreign {
            return Ok(());
        }
        let kept = PathBuf::from(FD_KEPT);
        let done = self.host.keep(path, &kept);
        done.map_err(|source| write_error(&kept, source))
    }

    fn image(&self, image: &Image) -> Result<(), Error> {
        let login = self.login()?;
        let run = match &image.source {
            Source::Import { tar } => return self.import(tar, &image.tag, login),
            Source::Build { dir, base } => Run::new(&[
                "podman",
                "build",
                "--pull=missing",
                "--build-arg",
                &format!("BASE={base}"),
                "--tag",
                &image.tag,
                &dir.to_string_lossy(),
            ]),
            Source::Pull => Run::new(&["podman", "pull", &image.tag]),
        };
        self.must(&run.login(login).minutes(30))
    }

    fn import(&self, tar: &Path, tag: &str, login: &Login) -> Result<(), Error> {
        let import = |tar: &Path| {
            let mut run = Run::new(&["podman", "import", "-", tag])
                .login(login)
                .minutes(10);
            run.stdin = Some(Feed::File(tar.into()));
            self.must(&run)
        };
        if tar.extension().is_none_or(|e| e != "zst") {
            return import(tar);
        }
        // podman takes the compressed bytes for the layer and then refuses it for its checksum.
        let plain = Path::new("/var/lib/lab-backup/base.tar");
        let (from, to) = (tar.to_string_lossy(), plain.to_string_lossy());
        let expand = Run::new(&[
            "zstd",
            "--decompress",
            "--force",
            "--quiet",
            &from,
            "-o",
            &to,
        ]);
        let done = self.must(&expand.minutes(10)).and_then(|()| import(plain));
        let removed = self.host.remove(plain);
        done.and(removed.map_err(|source| write_error(plain, source)))
    }

    fn login(&self) -> Result<&Login, Error> {
        let login = self.state.login.as_ref();
        login.ok_or_else(|| Error::NoAccount(self.desired.account.clone()))
    }

    fn run(&self, run: &Run) -> Result<Output, Error> {
        self.host.run(run).map_err(|source| Error::Run {
            program: run.line(),
            source,
        })
    }

    fn must(&self, run: &Run) -> Result<(), Error> {
        let output = self.run(run)?;
        if output.ok() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].join("\n");
        Err(Error::Failed {
            program: run.line(),
            reason: last_lines(&text, 12),
        })
    }
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write {
        path: path.into(),
        source,
    }
}

/// First of 65536 ids above every range in an `/etc/subuid`.
fn free_range(text: &str) -> u64 {
    let ends = text.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(1);
        let first: u64 = fields.next()?.parse().ok()?;
        let count: u64 = fields.next()?.parse().ok()?;
        first.checked_add(count)
    });
    ends.chain([100_000]).max().unwrap_or(100_000)
}

/// The end of some output.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let skip = lines.len().saturating_sub(count);
    lines.get(skip..).unwrap_or(&[]).join("\n")
}

#[cfg(test)]
mod tests;
