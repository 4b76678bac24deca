//! One Bacula job, or one question from the console.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use relay::message::{Hello, Level, Op};

use crate::abi::var;
use crate::backup::Backup;
use crate::daemon::Daemon;
use crate::link::Link;
use crate::query::Answer;
use crate::restore::{Object, Restore};
use crate::trouble::Trouble;

/// Name of the plugin in Bacula's plugin lines: the file's name without `-fd.so`.
pub(crate) const NAME: &str = "lab-backup";

/// A worker that shows no sign of life for so long is given up.
const IDLE: Duration = Duration::from_secs(120);

/// How long Bacula may take to mark a job as cancelled after it said so.
const SETTLE: Duration = Duration::from_secs(5);

/// Most bytes of restore objects that are kept for one restore.
const MAX_OBJECTS: usize = 64 << 20;

/// Where the worker listens; tests set another place in the environment of bacula-fd.
static SOCKET: OnceLock<PathBuf> = OnceLock::new();

/// Settings that hold for the life of the File Daemon.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) socket: PathBuf,
    pub(crate) idle: Duration,
}

impl Settings {
    /// Reads the environment, once.
    pub(crate) fn load() -> Self {
        #[cfg(test)]
        if let Some(settings) = crate::tests::settings() {
            return settings;
        }
        let place = || {
            std::env::var_os("LAB_BACKUP_WORKER_SOCKET")
                .unwrap_or_else(|| OsString::from(relay::WORKER_SOCKET))
                .into()
        };
        Self {
            socket: SOCKET.get_or_init(place).clone(),
            idle: IDLE,
        }
    }
}

/// What hangs on Bacula's context pointer. The flag is outside of the lock because it is raised by
/// another thread while the job's own thread is busy.
pub(crate) struct Context {
    pub(crate) cancel: AtomicBool,
    pub(crate) job: Mutex<Job>,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self {
            cancel: AtomicBool::new(false),
            job: Mutex::new(Job {
                settings: Settings::load(),
                vm: NAME.to_owned(),
                failed: false,
                line: String::new(),
                objects: Vec::new(),
                work: Work::None,
            }),
        }
    }
}

/// What a job is doing.
pub(crate) enum Work {
    None,
    Backup(Box<Backup>),
    Restore(Restore),
    Answer(Answer),
}

/// State of a job.
pub(crate) struct Job {
    settings: Settings,
    /// The VM of the plugin line, for messages.
    vm: String,
    /// A fatal message was written: nothing goes on.
    failed: bool,
    /// The plugin line of the file that is being restored.
    line: String,
    objects: Vec<Object>,
    work: Work,
}

impl Job {
    /// Did the job fail before?
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// A plugin line begins: connects to a worker for it.
    pub(crate) fn begin(&mut self, daemon: &Daemon, op: Op, command: &str) -> Result<(), Trouble> {
        let line = arguments(command).to_owned();
        self.vm = vm_of(&line);
        self.work = Work::None;
        let (link, _) = self.connect(daemon, op, line, None, None)?;
        self.work = Work::Backup(Box::new(Backup::new(link, op)));
        Ok(())
    }

    /// The backup, if that is what the job is.
    pub(crate) fn backup(&mut self) -> Result<&mut Backup, Trouble> {
        match &mut self.work {
            Work::Backup(backup) => Ok(backup),
            _ => Err(Trouble::daemon("asked for a file outside of a backup")),
        }
    }

    /// A restore object arrives. It is only kept: a restore of other plugins' files brings ours
    /// along, and must not start a worker.
    pub(crate) fn keep(&mut self, object: Object) -> Result<(), Trouble> {
        if arguments_of_ours(&object.plugin).is_none() {
            return Ok(());
        }
        let kept: usize = self.objects.iter().map(|object| object.bytes.len()).sum();
        if object.bytes.len() > relay::frame::MAX_CONTROL as usize
            || kept + object.bytes.len() > MAX_OBJECTS
        {
            return Err(Trouble::daemon("sends restore objects that are too large"));
        }
        self.objects.push(object);
        Ok(())
    }

    /// A file of ours follows in a restore.
    pub(crate) fn restore_line(&mut self, command: &str) -> Result<(), Trouble> {
        let line = arguments(command);
        if matches!(self.work, Work::Restore(_)) && self.line != line {
            return Err(Trouble::daemon(format!(
                "restores {} and {} in one job: restore one VM at a time",
                self.vm,
                vm_of(line)
            )));
        }
        self.vm = vm_of(line);
        line.clone_into(&mut self.line);
        Ok(())
    }

    /// The restore, begun with the first file.
    pub(crate) fn restore(
        &mut self,
        daemon: &Daemon,
        where_: Option<String>,
        regex_where: Option<String>,
    ) -> Result<&mut Restore, Trouble> {
        if !matches!(self.work, Work::Restore(_)) {
            let line = self.line.clone();
            let (link, hello) = self.connect(daemon, Op::Restore, line, where_, regex_where)?;
            let objects = std::mem::take(&mut self.objects);
            let objects = objects
                .iter()
                .filter(|object| arguments(&object.plugin) == hello.line);
            self.work = Work::Restore(Restore::new(link, daemon, objects)?);
        }
        self.restoring()
    }

    /// The restore, if one has begun.
    pub(crate) fn restoring(&mut self) -> Result<&mut Restore, Trouble> {
        match &mut self.work {
            Work::Restore(restore) => Ok(restore),
            _ => Err(Trouble::daemon("writes outside of a restore")),
        }
    }

    /// The restore job ends: the worker puts things in place, unless the job went wrong.
    pub(crate) fn end_restore(&mut self, daemon: &Daemon) -> Result<(), Trouble> {
        match std::mem::replace(&mut self.work, Work::None) {
            // Dropping the connection tells the worker to undo.
            Work::Restore(_) if daemon.cancelled() => Err(Trouble::Cancelled),
            Work::Restore(restore) => restore.finish(daemon),
            _ => Ok(()),
        }
    }

    /// The backup job ends. One that did not see the worker's END must not pass for a good one.
    pub(crate) fn end_backup(&mut self, daemon: &Daemon) -> Result<(), Trouble> {
        match std::mem::replace(&mut self.work, Work::None) {
            Work::Backup(backup) if !backup.ended() && daemon.cancelled() => {
                Err(Trouble::Cancelled)
            }
            Work::Backup(backup) if !backup.ended() => {
                Err(Trouble::daemon("ended the backup before the worker did"))
            }
            _ => Ok(()),
        }
    }

    /// The answer to a question from the console, asked of a worker at the first call.
    pub(crate) fn answer(&mut self, daemon: &Daemon, parameter: &str) -> &mut Answer {
        if !matches!(self.work, Work::Answer(_)) {
            let answer = self
                .connect(daemon, Op::Query, parameter.to_owned(), None, None)
                .and_then(|(link, _)| Answer::ask(&link.quiet(), daemon));
            self.work = Work::Answer(answer.unwrap_or_else(|trouble| Answer::failed(&trouble)));
        }
        match &mut self.work {
            Work::Answer(answer) => answer,
            _ => unreachable!("an answer was just put there"),
        }
    }

    /// Drops the connection, which the worker takes as an order to stop.
    pub(crate) fn close(&mut self) {
        self.work = Work::None;
    }

    /// Reports a failure in the job log, once, and fails the job.
    pub(crate) fn fail(&mut self, daemon: &Daemon, trouble: &Trouble) {
        let file = match &self.work {
            Work::Backup(backup) => backup.path().map(str::to_owned),
            Work::Restore(restore) => restore.path().map(str::to_owned),
            _ => None,
        };
        self.close();
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        let text = match (trouble, file) {
            (Trouble::Cancelled, _) if settles(daemon) => return,
            (Trouble::Worker { text }, _) => text.clone(),
            (_, Some(file)) => format!("{}: {file}: {}", self.vm, trouble.line()),
            (_, None) => format!("{}: {}", self.vm, trouble.line()),
        };
        daemon.fatal(&text);
    }

    /// A panic was caught at the boundary.
    pub(crate) fn fail_after_panic(&mut self, daemon: &Daemon, what: &str) {
        let trouble = Trouble::daemon(format!("plugin has a bug, the job is given up ({what})"));
        self.fail(daemon, &trouble);
    }

    fn connect(
        &mut self,
        daemon: &Daemon,
        op: Op,
        line: String,
        where_: Option<String>,
        regex_where: Option<String>,
    ) -> Result<(Link, Hello), Trouble> {
        let hello = Hello {
            version: relay::VERSION,
            op,
            job_id: u32::try_from(daemon.number(var::JOB_ID)).unwrap_or(0),
            job: daemon.text(var::JOB_NAME)?,
            level: match op {
                Op::Backup => Some(level(daemon.number(var::LEVEL))?),
                // `.ls` asks without a level.
                Op::Estimate => level(daemon.number(var::LEVEL)).ok(),
                Op::Restore | Op::Query => None,
            },
            prev_job: daemon.text(var::PREV_JOB_NAME)?,
            line,
            accurate: daemon.number(var::ACCURATE) != 0,
            where_,
            regex_where,
        };
        let link = Link::open(&self.settings.socket, self.settings.idle, daemon)?;
        link.writer(daemon)
            .json(relay::frame::Kind::Hello, &hello)?;
        Ok((link, hello))
    }
}

/// Waits until Bacula counts a cancelled job as such. The cancel event comes a moment before the
/// status; a job that ended within that moment would otherwise be recorded as good.
fn settles(daemon: &Daemon) -> bool {
    let start = Instant::now();
    while start.elapsed() < SETTLE {
        if daemon.given_up() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn level(letter: i32) -> Result<Level, Trouble> {
    match u8::try_from(letter) {
        Ok(b'F') => Ok(Level::Full),
        Ok(b'D') => Ok(Level::Differential),
        Ok(b'I') => Ok(Level::Incremental),
        _ => Err(Trouble::daemon(format!(
            "runs level {letter}, which is not Full, Differential or Incremental"
        ))),
    }
}

/// What follows the plugin's name in a plugin line; `None` for another plugin's line.
fn arguments_of_ours(command: &str) -> Option<&str> {
    match command.strip_prefix(NAME)? {
        "" => Some(""),
        rest => rest.strip_prefix(':'),
    }
}

fn arguments(command: &str) -> &str {
    arguments_of_ours(command).unwrap_or(command)
}

/// The VM's key in a plugin line, for messages; the worker is the one that checks it.
fn vm_of(line: &str) -> String {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("vm="))
        .map_or_else(
            || NAME.to_owned(),
            |vm| vm.chars().take(relay::name::MAX_LEN).collect(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_lines() {
        assert_eq!(arguments("lab-backup: vm=web01"), " vm=web01");
        assert_eq!(arguments("lab-backup"), "");
        assert_eq!(arguments_of_ours("lab-backup2: vm=web01"), None);
        assert_eq!(arguments_of_ours("bpipe:/x:y:z"), None);
        assert_eq!(vm_of(" vm=web01 listing=/"), "web01");
        assert_eq!(vm_of(" x"), "lab-backup");
    }

    #[test]
    fn levels() {
        assert_eq!(level(i32::from(b'D')).unwrap(), Level::Differential);
        assert!(level(i32::from(b'f')).is_err());
        assert!(level(-1).is_err());
    }
}
