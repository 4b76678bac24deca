//! The process that a lease or a watch belongs to.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process by number and start time, which together are no other process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Worker {
    pid: i32,
    /// In clock ticks since the host started: proc_pid_stat(5), field 22.
    started: u64,
}

impl Worker {
    /// The process that has this number now.
    pub(super) fn of(pid: i32) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        // The second field is the name, which may hold anything.
        let (_, rest) = text.rsplit_once(") ").context("no name of the process")?;
        let started = rest.split(' ').nth(19).context("no start time")?;
        Ok(Self {
            pid,
            started: started.parse().context("no start time")?,
        })
    }

    /// A handle of the process, if it still lives.
    pub(super) fn handle(self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Asked after the handle was made: it is of this process or of none.
        (Self::of(self.pid).ok()? == self).then_some(handle)
    }
}

/// Ends a process and waits until it is gone, at most for `limit`: what it had open is closed then.
pub(super) fn kill(worker: &OwnedFd, limit: Duration) -> bool {
    let _ = pidfd_send_signal(worker, Signal::KILL);
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut fds = [PollFd::new(worker, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let worker = Worker::of(child.id() as i32).unwrap();
        let other = Worker {
            started: worker.started + 1,
            ..worker
        };
        assert!(other.handle().is_none());
        let handle = worker.handle().unwrap();
        assert!(kill(&handle, Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(worker.handle().is_none());
    }
}
