//! Does what a plan says, in order, and stops at the first failure.
//!
//! Nothing is undone behind a failure, because nothing half done takes effect: a unit is touched
//! only after everything it reads is in place, and the record of what a unit runs with is written
//! after it came up. So the next `apply` goes on exactly where this one stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::bconsole::{self, Console};
use crate::desired::{Desired, Image, Owner, Scope, Service, Source};
use crate::host::{Feed, Host, Login, Run};
use crate::made::Made;
use crate::observe::{self, State};
use crate::plan::{Action, Plan};
use crate::process::Output;
use crate::render::{ACCOUNT_COMMENT, DIRECTOR, FD_CONF, HEADER};

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
    /// The host cannot be looked at.
    #[error(transparent)]
    Observe(#[from] observe::Error),
    /// The Director does not answer.
    #[error("the Director does not answer")]
    Console(#[from] bconsole::Error),
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
    };
    for action in &plan.actions {
        tell(action);
        applier.act(action)?;
    }
    Ok(())
}

struct Applier<'a> {
    host: &'a dyn Host,
    director: &'a dyn Director,
    desired: &'a Desired,
    state: State,
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
                let written = self.host.write(&file.path, &file.text, file.mode);
                written.map_err(|source| write_error(&file.path, source))
            }
            Action::Remove { path } => {
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
            Action::Generate => {
                let run = Run::new(&["systemctl", "--user", "daemon-reload"]);
                self.must(&run.login(self.login()?))
            }
            Action::Enable(service) => {
                self.systemctl(service, &["enable"])?;
                self.up(service, "restart")
            }
            Action::Start(service) => self.up(service, "start"),
            Action::Restart(service) => self.up(service, "restart"),
            Action::Reload(service) => {
                self.reload()?;
                self.note(service)
            }
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
        let kept = PathBuf::from(format!("{FD_CONF}.packaged"));
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

    fn up(&mut self, service: &Service, verb: &str) -> Result<(), Error> {
        // A unit that gave up earlier must not be refused because of that.
        let _ = self.systemctl(service, &["reset-failed"]);
        if let Err(error) = self.systemctl(service, &[verb]) {
            let journal = self.journal(service);
            return Err(match error {
                Error::Failed { .. } if !journal.is_empty() => Error::Unit {
                    unit: service.unit.into(),
                    journal,
                },
                other => other,
            });
        }
        if service.unit == DIRECTOR {
            self.director.reloaded()?;
        }
        self.note(service)
    }

    fn systemctl(&self, service: &Service, verb: &[&str]) -> Result<(), Error> {
        let mut run = Run::new(&["systemctl"]).minutes(8);
        if service.scope == Scope::Account {
            run.argv.push("--user".into());
            run = run.login(self.login()?);
        }
        run.argv.extend(verb.iter().map(|v| (*v).to_owned()));
        run.argv.push(service.unit.into());
        self.must(&run)
    }

    fn journal(&self, service: &Service) -> String {
        let field = match service.scope {
            Scope::System => "UNIT",
            Scope::Account => "USER_UNIT",
        };
        let by_manager = format!("{field}={}", service.unit);
        let by_unit = match service.scope {
            Scope::System => format!("_SYSTEMD_UNIT={}", service.unit),
            Scope::Account => format!("_SYSTEMD_USER_UNIT={}", service.unit),
        };
        let run = Run::new(&[
            "journalctl",
            "--no-pager",
            "-n",
            "12",
            "-o",
            "cat",
            &by_unit,
            "+",
            &by_manager,
        ]);
        let output = self.run(&run).unwrap_or_default();
        let lines: Vec<_> = output.stdout.lines().map(|l| format!("  {l}")).collect();
        lines.join("\n")
    }

    /// The Director says nothing when it has taken a new configuration; its clock proves it.
    fn reload(&self) -> Result<(), Error> {
        let before = self.director.reloaded()?;
        let text = self.director.reload()?;
        let after = self.director.reloaded()?;
        if after > before {
            return Ok(());
        }
        let run = Run::new(&[
            "podman",
            "exec",
            "lab-backup-director",
            "bacula-dir",
            "-t",
            "-c",
            "/etc/lab-backup/bacula-dir.conf",
        ]);
        let output = self.run(&run.login(self.login()?))?;
        let reason = [output.stdout, output.stderr, text].concat();
        Err(Error::Refused(last_lines(&reason, 6)))
    }

    fn note(&mut self, service: &Service) -> Result<(), Error> {
        if service.starts_with.is_empty() {
            return Ok(());
        }
        let noted = self
            .state
            .applied
            .note(self.host, service.unit, service.applied());
        noted.map_err(|source| write_error(crate::applied::Applied::PATH.as_ref(), source))
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
