//! A libvirt domain as the freeze machine sees it.

use std::cell::Cell;
use std::time::Duration;

use libvirt::{AgentTimeout, Domain, Error, Kind, ShutOffReason, State};

use crate::freeze::{Guest, Trouble};

/// The hypervisor of this host.
pub(crate) const URI: &str = "qemu:///system";

/// How long the agent may take for anything but a freeze.
const PATIENCE: AgentTimeout = AgentTimeout::Within(Duration::from_secs(3));

/// A domain, and how long libvirt waits for its agent.
///
/// libvirt keeps that limit for everybody who talks to this agent. Whoever freezes the guest after us
/// with a slow hook must not fail on a limit of ours, so it is lifted again when this is dropped.
#[derive(Debug)]
pub(crate) struct AgentOf<'a> {
    domain: &'a Domain,
    bounded: Cell<bool>,
    lifts: bool,
}

impl<'a> AgentOf<'a> {
    /// The agent of a domain.
    pub(crate) fn new(domain: &'a Domain) -> Self {
        Self {
            domain,
            bounded: Cell::new(false),
            lifts: true,
        }
    }

    /// The same for one call of many: somebody else lifts the limit after the last one.
    pub(crate) fn for_one_call(domain: &'a Domain) -> Self {
        Self {
            domain,
            bounded: Cell::new(false),
            lifts: false,
        }
    }

    /// UUID of the domain.
    pub(crate) fn uuid(&self) -> &str {
        self.domain.uuid()
    }

    /// Is there an agent that answers?
    pub(crate) fn ping(&self) -> Result<(), Error> {
        self.domain
            .agent_command(r#"{"execute":"guest-ping"}"#, PATIENCE)
            .map(drop)
    }

    /// Limits how long freeze and thaw wait for an answer.
    pub(crate) fn bound(&self, limit: AgentTimeout) -> Result<(), Error> {
        self.bounded.set(true);
        self.domain.set_agent_timeout(limit)
    }

    fn trouble(&self, error: &Error) -> Trouble {
        match error.kind {
            Kind::NotFound => Trouble::Missing,
            Kind::ConnectionLost | Kind::Timeout => Trouble::Lost(error.message.clone()),
            Kind::InvalidState | Kind::AgentUnavailable => match self.domain.state() {
                Ok(state) if state.is_off() => self.off(state),
                _ => unclear(error),
            },
            _ => unclear(error),
        }
    }

    /// Off, but its memory may live on with the file systems in it frozen.
    fn off(&self, state: State) -> Trouble {
        let saved = self.domain.has_managed_save().unwrap_or(true);
        match state {
            State::ShutOff(ShutOffReason::Saved) => Trouble::Away("saved to a file"),
            State::ShutOff(ShutOffReason::Migrated) => Trouble::Away("migrated to another host"),
            _ if saved => Trouble::Away("saved to a file"),
            // A daemon that was restarted does not remember.
            State::ShutOff(ShutOffReason::Unknown(_)) => Trouble::Missing,
            _ => Trouble::Gone,
        }
    }
}

fn unclear(error: &Error) -> Trouble {
    if error.leaves_freeze_in_doubt() {
        Trouble::Unknown(error.message.clone())
    } else {
        Trouble::Refused(error.message.clone())
    }
}

impl Guest for AgentOf<'_> {
    fn freeze(&self) -> Result<u32, Trouble> {
        self.domain.fs_freeze(&[]).map_err(|e| self.trouble(&e))
    }

    fn thaw(&self) -> Result<u32, Trouble> {
        // Each time: somebody else may have set another limit, and a thaw must never hang.
        // Without a limit it is still the thing to do.
        let _ = self.bound(PATIENCE);
        self.domain.fs_thaw().map_err(|e| self.trouble(&e))
    }

    fn is_frozen(&self) -> Result<bool, Trouble> {
        let answer = self
            .domain
            .agent_command(r#"{"execute":"guest-fsfreeze-status"}"#, PATIENCE)
            .map_err(|e| self.trouble(&e))?;
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(rename = "return")]
            status: String,
        }
        let answer: Answer = serde_json::from_str(&answer)
            .map_err(|_| Trouble::Unknown("its answer is not understood".into()))?;
        Ok(answer.status != "thawed")
    }
}

impl Drop for AgentOf<'_> {
    fn drop(&mut self) {
        if self.bounded.get() && self.lifts {
            lift(self.domain);
        }
    }
}

/// Lets libvirt wait for the agent as long as it does by itself.
pub(crate) fn lift(domain: &Domain) {
    // A domain that is gone has no limit either.
    let _ = domain.set_agent_timeout(AgentTimeout::Forever);
}
