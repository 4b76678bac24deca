//! Backup jobs.

use std::thread;
use std::time::{Duration, Instant};

use virt_sys as sys;

use crate::error::{Error, Kind, Result};
use crate::ffi::records::Value;
use crate::xml::BackupView;
use crate::{Domain, deadline};

/// How long [`BackupJob::end`] waits for a job that it aborted.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How often it looks. An idle job is gone after 10 to 50 ms.
const END_POLL: Duration = Duration::from_millis(5);
/// How long a dropped [`BackupJob`] waits for its abort.
const DROP_LIMIT: Duration = Duration::from_secs(10);

/// How a backup is begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupFlags {
    /// The scratch images exist already. libvirt then neither makes nor removes them.
    pub reuse_external: bool,
}

/// A backup job that runs on a domain.
///
/// Close every NBD connection before it ends: QEMU waits for a client that still has requests in
/// flight, and the guest waits with it. Dropping the value aborts the job as a last resort: it
/// waits 10 seconds at most, tells nobody if that fails, and leaves the call to itself. The good
/// way out is [`BackupJob::end`].
#[derive(Debug)]
#[must_use = "dropping a job aborts it"]
pub struct BackupJob {
    domain: Domain,
    /// Of its NBD server: what tells it from any other job of the domain.
    socket: Option<String>,
    over: bool,
}

/// How a backup job came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It ran until now.
    Now,
    /// It was over already: the domain stopped, or somebody else aborted it. When the domain
    /// stopped, its socket is still there.
    Before,
}

impl BackupJob {
    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Ends the job and waits until it is gone: export and socket with it, scratch images free to
    /// be removed. A checkpoint made with the job stays.
    ///
    /// After a failure the job may still run and this value no longer watches it.
    /// [`Kind::Timeout`] if it is not gone 30 seconds after it was aborted. May block while QEMU
    /// does: see [`deadline`].
    pub fn end(mut self) -> Result<Ended> {
        self.over = true;
        self.domain.end_backup(self.socket.as_deref())
    }

    /// Leaves the job running for somebody else to end.
    pub fn leave(mut self) -> Domain {
        self.over = true;
        self.domain.clone()
    }
}

impl Drop for BackupJob {
    fn drop(&mut self) {
        if !self.over {
            let domain = self.domain.clone();
            let socket = self.socket.take();
            // Whoever drops a job has no place to put an error; repair finds the job.
            let _ = deadline::run(
                DROP_LIMIT,
                "end the backup of",
                self.domain.name(),
                move || domain.end_backup(socket.as_deref()),
            );
        }
    }
}

/// The socket that a `<domainbackup>` serves.
fn socket_of(xml: &str) -> Option<String> {
    BackupView::parse(xml).ok()?.socket
}

/// Is there a job, and how did the last one go?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// There is none.
    None,
    /// One is running.
    Active,
    /// The last one finished. So ends a pull-mode backup that its owner ended, with "Operation
    /// canceled" for an error text.
    Completed,
    /// The last one failed.
    Failed,
    /// The last one was cut off, for instance because the domain stopped.
    Cancelled,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// A backup.
    Backup,
    /// A migration, in or out.
    Migration,
    /// Saving or restoring memory.
    Save,
    /// A snapshot: made, reverted to or deleted.
    Snapshot,
    /// Something else, by libvirt's number.
    Other(i32),
}

/// A job and its figures; those that libvirt does not give are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Is there one?
    pub state: JobState,
    /// What it does.
    pub operation: Operation,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
    /// Bytes of disk that it is about.
    pub disk_total_bytes: u64,
    /// Bytes of disk done.
    pub disk_processed_bytes: u64,
    /// Bytes in use in all scratch images.
    pub scratch_used_bytes: u64,
    /// Bytes that all scratch images may come to hold.
    pub scratch_total_bytes: u64,
    /// Why it failed, in libvirt's words.
    pub error: Option<String>,
}

impl Job {
    fn from_raw((kind, values): (i32, Vec<(String, Value)>)) -> Self {
        let find = |key: &std::ffi::CStr| {
            let found = values
                .iter()
                .find(|(name, _)| name.as_bytes() == key.to_bytes());
            found.map(|(_, value)| value)
        };
        let number = |key| match find(key) {
            Some(Value::Number(number)) => u64::try_from(*number).unwrap_or(0),
            _ => 0,
        };
        let state = match u32::try_from(kind).unwrap_or(0) {
            sys::VIR_DOMAIN_JOB_NONE => JobState::None,
            sys::VIR_DOMAIN_JOB_COMPLETED => JobState::Completed,
            sys::VIR_DOMAIN_JOB_FAILED => JobState::Failed,
            sys::VIR_DOMAIN_JOB_CANCELLED => JobState::Cancelled,
            _ => JobState::Active,
        };
        let operation = u32::try_from(number(sys::VIR_DOMAIN_JOB_OPERATION)).unwrap_or(0);
        let operation = match operation {
            sys::VIR_DOMAIN_JOB_OPERATION_BACKUP => Operation::Backup,
            sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN
            | sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT => Operation::Migration,
            sys::VIR_DOMAIN_JOB_OPERATION_SAVE | sys::VIR_DOMAIN_JOB_OPERATION_RESTORE => {
                Operation::Save
            }
            sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT
            | sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT
            | sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE => Operation::Snapshot,
            other => Operation::Other(other as i32),
        };
        let error = match find(sys::VIR_DOMAIN_JOB_ERRMSG) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        Self {
            state,
            operation,
            elapsed_ms: number(sys::VIR_DOMAIN_JOB_TIME_ELAPSED),
            disk_total_bytes: number(sys::VIR_DOMAIN_JOB_DISK_TOTAL),
            disk_processed_bytes: number(sys::VIR_DOMAIN_JOB_DISK_PROCESSED),
            scratch_used_bytes: number(sys::VIR_DOMAIN_JOB_DISK_TEMP_USED),
            scratch_total_bytes: number(sys::VIR_DOMAIN_JOB_DISK_TEMP_TOTAL),
            error,
        }
    }
}

impl Domain {
    /// Begins a backup and, in the same instant, makes a checkpoint if its XML is given.
    ///
    /// The point in time is fixed when this returns. If it fails a checkpoint may have been made
    /// all the same: list them and delete the new one. [`Kind::Busy`] comes after libvirt waited
    /// 30 seconds for another job; [`Kind::InvalidState`] if the domain is off;
    /// [`Kind::NotFound`] if there is no such checkpoint as the XML builds on;
    /// [`Kind::CheckpointBroken`] if its bitmap is missing or inconsistent.
    pub fn backup_begin(
        &self,
        backup_xml: &str,
        checkpoint_xml: Option<&str>,
        flags: BackupFlags,
    ) -> Result<BackupJob> {
        let flags = if flags.reuse_external {
            sys::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        } else {
            0
        };
        let answer = self.raw.backup_begin(backup_xml, checkpoint_xml, flags);
        if let Err(mut error) = self.at("begin a backup of", answer) {
            // libvirt calls a domain that is off unsupported, like a format that it cannot do.
            if error.kind == Kind::Unsupported && matches!(self.is_active(), Ok(false)) {
                error.kind = Kind::InvalidState;
            }
            return Err(error);
        }
        Ok(BackupJob {
            domain: self.clone(),
            socket: socket_of(backup_xml),
            over: false,
        })
    }

    /// Ends the backup that serves `socket`, like [`BackupJob::end`], also if somebody else began it.
    pub fn end_backup(&self, socket: Option<&str>) -> Result<Ended> {
        let ended = self.abort_backup(socket)?;
        // An abort only asks, and somebody else may have asked before.
        let start = Instant::now();
        while self.serves_backup(socket)? {
            if start.elapsed() > END_LIMIT {
                let message = format!("it still runs after {} ms", END_LIMIT.as_millis());
                let op = "see the end of the backup of";
                return Err(Error::ours(Kind::Timeout, op, self.name(), message));
            }
            thread::sleep(END_POLL);
        }
        Ok(ended)
    }

    /// Asks libvirt to end the backup that serves `socket`, and no other job: once that backup is
    /// over, a migration may run. Does not wait until it is gone, as [`BackupJob::end`] does.
    pub fn abort_backup(&self, socket: Option<&str>) -> Result<Ended> {
        if !self.serves_backup(socket)? {
            return Ok(Ended::Before);
        }
        match self.abort_job() {
            Ok(()) => Ok(Ended::Now),
            // No job is active, or the domain is not.
            Err(Error {
                kind: Kind::InvalidState | Kind::NotFound,
                ..
            }) => Ok(Ended::Before),
            Err(error) => Err(error),
        }
    }

    /// The XML of the backup that runs, none if there is none. Does not ask QEMU, so it answers
    /// even while QEMU hangs. See [`crate::xml::BackupView`].
    pub fn backup_xml(&self) -> Result<Option<String>> {
        let answer = self.at("read the backup of", self.raw.backup_xml());
        match answer {
            Err(Error {
                kind: Kind::InvalidState,
                ..
            }) => Ok(None),
            answer => crate::connect::none_if_not_found(answer),
        }
    }

    /// Takes over a backup job that somebody else began and left, by what [`Domain::backup_xml`]
    /// said of it.
    pub fn adopt_backup(&self, backup_xml: &str) -> BackupJob {
        BackupJob {
            domain: self.clone(),
            socket: socket_of(backup_xml),
            over: false,
        }
    }

    /// Is the backup that runs the one that serves `socket`? XML that cannot be read is an error, not
    /// a no: whoever takes it for one removes files under a running job. Does not ask QEMU.
    pub fn serves_backup(&self, socket: Option<&str>) -> Result<bool> {
        let Some(xml) = self.backup_xml()? else {
            return Ok(false);
        };
        let view = BackupView::parse(&xml).map_err(|e| {
            let op = "understand the backup of";
            Error::ours(Kind::Other, op, self.name(), e.to_string())
        })?;
        Ok(view.socket.as_deref() == socket)
    }

    /// Aborts whatever job runs, and does not wait until it is gone. [`Kind::InvalidState`] if
    /// there is none. Make sure that it is yours: the call cannot tell.
    pub fn abort_job(&self) -> Result<()> {
        self.at("abort the job of", self.raw.abort_job())
    }

    /// The running job and its figures. Asks QEMU, so it may block when QEMU does.
    pub fn job(&self) -> Result<Job> {
        self.at("ask the job of", self.raw.job_stats(0))
            .map(Job::from_raw)
    }

    /// The last job that ended, as long as libvirt remembers it.
    pub fn last_job(&self) -> Result<Job> {
        let flags = sys::VIR_DOMAIN_JOB_STATS_COMPLETED | sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED;
        self.at("ask the last job of", self.raw.job_stats(flags))
            .map(Job::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_name_and_hostile_ones_do_not_wrap() {
        let values = vec![
            ("operation".into(), Value::Number(9)),
            ("disk_temp_used".into(), Value::Number(65536)),
            ("disk_total".into(), Value::Number(-1)),
            ("errmsg".into(), Value::Text("no space".into())),
        ];
        let job = Job::from_raw((4, values));
        assert_eq!(
            (job.state, job.operation),
            (JobState::Failed, Operation::Backup)
        );
        assert_eq!((job.scratch_used_bytes, job.disk_total_bytes), (65536, 0));
        assert_eq!(job.error.as_deref(), Some("no space"));
        assert_eq!(Job::from_raw((0, vec![])).state, JobState::None);
        assert_eq!(Job::from_raw((2, vec![])).state, JobState::Active);
    }
}
