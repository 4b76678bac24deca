//! The guest agent: freezing, thawing, asking.
//!
//! There is deliberately no guard that thaws on drop. A freeze outlives its caller, its connection
//! and the daemon, and a freeze that timed out may still happen; only somebody who keeps asking can
//! end it. That is a state machine of its own, with these calls as its moves.

use std::time::Duration;

use crate::Domain;
use crate::error::Result;

/// How long libvirt waits for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTimeout {
    /// For ever.
    Forever,
    /// libvirt's default for the call; 5 seconds for most.
    Default,
    /// Send and do not wait.
    NoWait,
    /// At most this long, in whole seconds rounded up, at least 1.
    Within(Duration),
}

impl AgentTimeout {
    fn seconds(self) -> i32 {
        match self {
            AgentTimeout::Forever => -2,
            AgentTimeout::Default => -1,
            AgentTimeout::NoWait => 0,
            AgentTimeout::Within(limit) => {
                let whole = limit
                    .as_secs()
                    .saturating_add(u64::from(limit.subsec_nanos() > 0));
                i32::try_from(whole.max(1)).unwrap_or(i32::MAX)
            }
        }
    }
}

/// A file system mounted in the guest. Every field is the guest's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Device in the guest, such as `vda1` or `loop0`.
    pub device: String,
    /// Type, such as `ext4`.
    pub kind: String,
    /// Targets of the domain's disks below it; none if it is not on one of them alone.
    pub targets: Vec<String>,
}

impl Domain {
    /// Sets how long libvirt waits for the agent in every later call on this domain, also of other
    /// connections, until the domain ends. A call that gives up does not take the command back.
    pub fn set_agent_timeout(&self, limit: AgentTimeout) -> Result<()> {
        let answer = self.raw.set_agent_timeout(limit.seconds());
        answer.map_err(|e| e.at_agent("set the agent timeout of", self.name()))
    }

    /// Freezes the guest's file systems, or those at the given mount points; returns how many.
    ///
    /// After a failure ask [`crate::Error::leaves_freeze_in_doubt`].
    pub fn fs_freeze(&self, mountpoints: &[&str]) -> Result<u32> {
        let answer = self.raw.freeze(mountpoints);
        answer.map_err(|e| e.at_agent("freeze the file systems of", self.name()))
    }

    /// Thaws every frozen file system; returns how many. 0 means that none was frozen.
    pub fn fs_thaw(&self) -> Result<u32> {
        let answer = self.raw.thaw();
        answer.map_err(|e| e.at_agent("thaw the file systems of", self.name()))
    }

    /// Sends a command to the agent, such as `{"execute":"guest-fsfreeze-status"}`; returns its
    /// answer, JSON of at most some megabytes that the guest made.
    ///
    /// libvirt sends `guest-sync` first, so an answer is proof that the agent lives.
    pub fn agent_command(&self, json: &str, limit: AgentTimeout) -> Result<String> {
        let answer = self.raw.agent_command(json, limit.seconds());
        answer.map_err(|e| e.at_agent("send a command to the agent of", self.name()))
    }

    /// The file systems that the agent sees.
    pub fn mounts(&self) -> Result<Vec<Mount>> {
        let answer = self.raw.mounts();
        let mounts = answer.map_err(|e| e.at_agent("list the file systems of", self.name()))?;
        Ok(mounts
            .into_iter()
            .map(|m| Mount {
                mountpoint: m.mountpoint,
                device: m.device,
                kind: m.kind,
                targets: m.targets,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_never_rounds_down_to_not_waiting() {
        let seconds = |ms| AgentTimeout::Within(Duration::from_millis(ms)).seconds();
        assert_eq!(
            [seconds(0), seconds(1), seconds(1000), seconds(1001)],
            [1, 1, 1, 2]
        );
        assert_eq!(AgentTimeout::Within(Duration::MAX).seconds(), i32::MAX);
    }
}
