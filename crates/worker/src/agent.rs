//! A libvirt domain as the freeze machine sees it.

use std::cell::Cell;
use std::time::Duration;

use libvirt::{AgentTimeout, Connect, Domain, Error, Kind};

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
}

impl<'a> AgentOf<'a> {
    /// The agent of a domain.
    pub(crate) fn new(domain: &'a Domain) -> Self {
        Self {
            domain,
            bounded: Cell::new(false),
        }
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
            Kind::NotFound => Trouble::Gone,
            Kind::InvalidState | Kind::AgentUnavailable
                if self.domain.state().is_ok_and(libvirt::State::is_off) =>
            {
                Trouble::Gone
            }
            _ if error.leaves_freeze_in_doubt() => Trouble::Unknown(error.message.clone()),
            _ => Trouble::Refused(error.message.clone()),
        }
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
        if self.bounded.get() {
            // What libvirt begins with. A domain that is gone has no limit either.
            let _ = self.domain.set_agent_timeout(AgentTimeout::Forever);
        }
    }
}

/// Opens a connection of our own and finds the domain.
pub(crate) fn find(uuid: &str) -> Result<Domain, Error> {
    Connect::open(URI)?.by_uuid(uuid)
}
