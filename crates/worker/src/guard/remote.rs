//! A guest that is asked over connections that may hang or die: libvirt may be killed, stopped or
//! stuck at the very moment when a guest is frozen.
//!
//! Every call has a deadline, every lost connection is opened again. A daemon that answers nobody for
//! too long is restarted, if that is allowed: guests do not notice, they are processes of their own.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use libvirt::{Connect, Domain, Error, Kind, deadline};

use super::service;
use crate::agent::{self, AgentOf};
use crate::freeze::{Guest, Trouble};

/// Longest wait for one call: the agent has 3 s, libvirt the rest.
const CALL: Duration = Duration::from_secs(5);
/// Longest wait for a daemon that has nothing else to do than to answer.
const PROBE: Duration = Duration::from_secs(3);
/// How long a daemon may answer nobody over a frozen guest.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a domain that is missing may come back.
const MISSING: Duration = Duration::from_secs(24 * 3600);
/// Most calls that may hang at once; each holds a thread.
const HANGING: usize = 16;

/// A domain by UUID.
#[derive(Debug)]
pub(crate) struct Remote {
    uuid: String,
    domain: RefCell<Option<Domain>>,
    may_restart: bool,
    /// Since when the daemon answers nobody.
    silent: Cell<Option<Instant>>,
    /// How long a domain that is missing is waited for, and since when it is.
    patience: Duration,
    missing: Cell<Option<Instant>>,
}

impl Remote {
    /// The domain with this UUID.
    pub(crate) fn new(uuid: &str, may_restart: bool) -> Self {
        Self {
            uuid: uuid.into(),
            domain: RefCell::default(),
            may_restart,
            silent: Cell::default(),
            patience: Duration::ZERO,
            missing: Cell::default(),
        }
    }

    /// The same for whoever has the time: a domain that is missing may come back, frozen as it was.
    pub(super) fn waits_for_missing(mut self) -> Self {
        self.patience = MISSING;
        self
    }

    /// Asks the agent, in a connection that works, within the time limit.
    fn ask<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl FnOnce(&AgentOf<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let answer = self.ask_once(op, call);
        match &answer {
            Err(Trouble::Missing) => {
                let since = self.missing.get().unwrap_or_else(Instant::now);
                self.missing.set(Some(since));
                if since.elapsed() >= self.patience {
                    return Err(Trouble::Gone);
                }
            }
            _ => self.missing.set(None),
        }
        answer
    }

    fn ask_once<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl FnOnce(&AgentOf<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let start = Instant::now();
        if deadline::left_behind() >= HANGING {
            // One more would not help; those that hang end with the daemon.
            self.silence(start);
            return Err(Trouble::Lost("too many calls wait for it".into()));
        }
        let answer = self.domain().and_then(|domain| {
            deadline::run(CALL, op, &self.uuid, move || {
                Ok(call(&AgentOf::for_one_call(&domain)))
            })
        });
        match answer {
            Ok(Err(Trouble::Lost(why))) => {
                self.lost(start);
                Err(Trouble::Lost(why))
            }
            Ok(answer) => {
                self.silent.set(None);
                answer
            }
            Err(e) if e.kind == Kind::NotFound => {
                self.silent.set(None);
                Err(Trouble::Missing)
            }
            Err(e) => {
                self.lost(start);
                Err(Trouble::Lost(e.message))
            }
        }
    }

    fn domain(&self) -> Result<Domain, Error> {
        if let Some(domain) = self.domain.borrow().clone() {
            return Ok(domain);
        }
        let uuid = self.uuid.clone();
        let found =
            deadline::run_on_new(agent::URI, PROBE, "find", &self.uuid, move |connection| {
                connection.by_uuid(&uuid)
            })?;
        *self.domain.borrow_mut() = Some(found.clone());
        Ok(found)
    }

    /// No answer since `start`: is it this call alone, or the daemon?
    fn lost(&self, start: Instant) {
        *self.domain.borrow_mut() = None;
        let answers = deadline::run_on_new(agent::URI, PROBE, "reach", agent::URI, |connection| {
            connection.lib_version()
        });
        if answers.is_ok() {
            self.silent.set(None);
            return;
        }
        self.silence(start);
    }

    /// The daemon has been silent since `start` at the least.
    fn silence(&self, start: Instant) {
        let since = self.silent.get().unwrap_or(start);
        self.silent.set(Some(since));
        if self.may_restart && since.elapsed() >= SILENCE {
            service::restart_libvirt(since.elapsed());
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(domain) = self.domain.take() {
            let lift = move || {
                agent::lift(&domain);
                Ok(())
            };
            let _ = deadline::run(PROBE, "lift the limit of", &self.uuid, lift);
        }
    }
}

impl Guest for Remote {
    fn freeze(&self) -> Result<u32, Trouble> {
        // Whoever freezes must know at once how that went: see `backup::instant`.
        Err(Trouble::Refused("only a worker freezes".into()))
    }

    fn thaw(&self) -> Result<u32, Trouble> {
        self.ask("thaw", |agent| agent.thaw())
    }

    fn is_frozen(&self) -> Result<bool, Trouble> {
        self.ask("ask the agent of", |agent| agent.is_frozen())
    }
}

/// Does a connection of its own reach the domain? For whoever is about to freeze it.
pub(super) fn reach(uuid: &str) -> Result<(), Error> {
    let wanted = uuid.to_owned();
    deadline::run_on_new(agent::URI, PROBE, "find", uuid, move |c: &Connect| {
        c.by_uuid(&wanted).map(drop)
    })
}
