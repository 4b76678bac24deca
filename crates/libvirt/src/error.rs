//! What a libvirt call can fail with.

use virt_sys as sys;

/// How libvirt reports a domain without an agent channel.
const NO_AGENT: u32 = sys::VIR_ERR_ARGUMENT_UNSUPPORTED;

/// Result of a libvirt call.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it was. Callers branch on this, never on the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No such domain, checkpoint, snapshot, job, pool, volume, network, filter or secret.
    NotFound,
    /// libvirt, polkit or the socket's mode forbids it.
    Denied,
    /// Another job or call holds the object.
    Busy,
    /// This libvirt, driver or configuration cannot do it.
    Unsupported,
    /// The object is in the wrong state, such as a backup of a domain that is off.
    InvalidState,
    /// The guest has no agent, it is not connected, or it does not answer the greeting that
    /// libvirt sends before each command.
    ///
    /// Before 11.2 libvirt says the same when the agent took too long over the command itself, so
    /// that it may still run later.
    AgentUnavailable,
    /// The guest agent took too long. The command may still run later.
    AgentTimeout,
    /// The guest agent answered with an error.
    AgentFailed,
    /// A checkpoint's bitmap is missing or inconsistent: the disk needs another base.
    CheckpointBroken,
    /// The XML, or a value meant for it, is not acceptable.
    InvalidXml,
    /// The name or UUID is taken.
    Exists,
    /// libvirt cannot be reached, or the connection closed.
    ConnectionLost,
    /// Our own deadline passed; the call may still finish later.
    Timeout,
    /// Anything else: see the message.
    Other,
}

/// A libvirt call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op} {object:?}: {message}")]
#[non_exhaustive]
pub struct Error {
    /// What kind of failure.
    pub kind: Kind,
    /// What was being done, in words that follow "cannot".
    pub op: &'static str,
    /// To what: a domain, checkpoint, URI or disk. Hostile names are possible.
    pub object: String,
    /// libvirt's error number, 0 if libvirt did not fail.
    pub code: i32,
    /// libvirt's own words, on one line.
    pub message: String,
}

impl Error {
    /// After a freeze failed like this: may the guest be frozen, or freeze later?
    ///
    /// Only failures that prove that the command was never handed to an agent say no. So ping the
    /// agent before: one that is hung is found out without any doubt.
    pub fn leaves_freeze_in_doubt(&self) -> bool {
        let proven = matches!(
            self.kind,
            Kind::NotFound
                | Kind::Denied
                | Kind::Busy
                | Kind::Unsupported
                | Kind::InvalidState
                | Kind::InvalidXml
        );
        !proven && self.code != code(NO_AGENT)
    }

    /// A failure of ours, not of libvirt.
    pub(crate) fn ours(
        kind: Kind,
        op: &'static str,
        object: &str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            op,
            object: object.into(),
            code: 0,
            message: message.into(),
        }
    }
}

/// A failure as libvirt reports it, before it is known what was being done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    /// `virErrorNumber`.
    pub(crate) code: i32,
    /// `virErrorDomain`: the part of libvirt that failed.
    pub(crate) origin: i32,
    /// The `errno` of a system error.
    pub(crate) errno: i32,
    /// One line.
    pub(crate) message: String,
}

impl Fault {
    /// A value that C cannot take.
    pub(crate) fn bad_value(message: &str) -> Self {
        Self {
            code: code(sys::VIR_ERR_INVALID_ARG),
            message: message.into(),
            ..Self::default()
        }
    }

    /// Says what was being done to what.
    pub(crate) fn at(self, op: &'static str, object: &str) -> Error {
        Error {
            kind: self.kind(),
            op,
            object: object.into(),
            code: self.code,
            message: self.message,
        }
    }

    /// Like [`Fault::at`] for calls that reach the guest agent.
    pub(crate) fn at_agent(self, op: &'static str, object: &str) -> Error {
        let absent = self.code == code(NO_AGENT);
        let mut error = self.at(op, object);
        if absent {
            error.kind = Kind::AgentUnavailable;
        }
        error
    }

    /// Like [`Fault::at`] for calls that make something with a name.
    pub(crate) fn at_new(self, op: &'static str, object: &str) -> Error {
        // A clash of names or UUIDs comes as a plain failed operation.
        let clash = self.code == code(sys::VIR_ERR_OPERATION_FAILED);
        let mut error = self.at(op, object);
        if clash {
            error.kind = Kind::Exists;
        }
        error
    }

    fn kind(&self) -> Kind {
        let Ok(number) = u32::try_from(self.code) else {
            return Kind::Other;
        };
        match number {
            sys::VIR_ERR_NO_DOMAIN
            | sys::VIR_ERR_NO_DOMAIN_CHECKPOINT
            | sys::VIR_ERR_NO_DOMAIN_SNAPSHOT
            | sys::VIR_ERR_NO_DOMAIN_BACKUP
            | sys::VIR_ERR_NO_STORAGE_POOL
            | sys::VIR_ERR_NO_STORAGE_VOL
            | sys::VIR_ERR_NO_NETWORK
            | sys::VIR_ERR_NO_NWFILTER
            | sys::VIR_ERR_NO_SECRET => Kind::NotFound,
            sys::VIR_ERR_OPERATION_DENIED
            | sys::VIR_ERR_ACCESS_DENIED
            | sys::VIR_ERR_AUTH_FAILED
            | sys::VIR_ERR_AUTH_CANCELLED
            | sys::VIR_ERR_AUTH_UNAVAILABLE => Kind::Denied,
            sys::VIR_ERR_OPERATION_TIMEOUT
            | sys::VIR_ERR_RESOURCE_BUSY
            | sys::VIR_ERR_BLOCK_COPY_ACTIVE => Kind::Busy,
            sys::VIR_ERR_NO_SUPPORT
            | sys::VIR_ERR_CONFIG_UNSUPPORTED
            | sys::VIR_ERR_ARGUMENT_UNSUPPORTED
            | sys::VIR_ERR_OPERATION_UNSUPPORTED => Kind::Unsupported,
            sys::VIR_ERR_OPERATION_INVALID => Kind::InvalidState,
            sys::VIR_ERR_AGENT_UNRESPONSIVE | sys::VIR_ERR_AGENT_UNSYNCED => Kind::AgentUnavailable,
            sys::VIR_ERR_AGENT_COMMAND_TIMEOUT => Kind::AgentTimeout,
            sys::VIR_ERR_AGENT_COMMAND_FAILED => Kind::AgentFailed,
            sys::VIR_ERR_CHECKPOINT_INCONSISTENT => Kind::CheckpointBroken,
            sys::VIR_ERR_XML_ERROR
            | sys::VIR_ERR_XML_DETAIL
            | sys::VIR_ERR_XML_INVALID_SCHEMA
            | sys::VIR_ERR_INVALID_MAC => Kind::InvalidXml,
            sys::VIR_ERR_DOM_EXIST => Kind::Exists,
            sys::VIR_ERR_NO_CONNECT | sys::VIR_ERR_INVALID_CONN | sys::VIR_ERR_RPC => {
                Kind::ConnectionLost
            }
            sys::VIR_ERR_SYSTEM_ERROR if self.of_transport() && self.errno == libc::EACCES => {
                Kind::Denied
            }
            sys::VIR_ERR_SYSTEM_ERROR | sys::VIR_ERR_INTERNAL_ERROR if self.of_transport() => {
                Kind::ConnectionLost
            }
            _ => Kind::Other,
        }
    }

    /// Did libvirt's own client side fail, rather than the daemon behind it?
    fn of_transport(&self) -> bool {
        [sys::VIR_FROM_RPC, sys::VIR_FROM_REMOTE]
            .map(code)
            .contains(&self.origin)
    }
}

/// libvirt's numbers are unsigned in the bindings and signed in its errors.
pub(crate) fn code(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: i32, origin: i32, errno: i32) -> Fault {
        Fault {
            code,
            origin,
            errno,
            message: "m".into(),
        }
    }

    #[test]
    fn a_failed_freeze_is_in_doubt_unless_the_command_was_never_sent() {
        let doubt = |code| {
            let error = fault(code, 10, 0).at_agent("freeze", "vm");
            (error.kind, error.leaves_freeze_in_doubt())
        };
        assert_eq!(doubt(112), (Kind::AgentTimeout, true));
        assert_eq!(doubt(113), (Kind::AgentFailed, true));
        assert_eq!(doubt(86), (Kind::AgentUnavailable, true));
        assert_eq!(doubt(1), (Kind::Other, true));
        assert_eq!(doubt(39), (Kind::ConnectionLost, true));
        assert_eq!(doubt(74), (Kind::AgentUnavailable, false));
        assert_eq!(doubt(55), (Kind::InvalidState, false));
        assert_eq!(doubt(68), (Kind::Busy, false));
        let late = Error::ours(Kind::Timeout, "freeze", "vm", "late");
        assert!(late.leaves_freeze_in_doubt());
    }

    #[test]
    fn a_lost_connection_is_told_from_a_failure_behind_it() {
        let kind = |code, origin, errno| fault(code, origin, errno).at("ask", "vm").kind;
        assert_eq!(kind(38, 7, libc::ENOENT), Kind::ConnectionLost);
        assert_eq!(kind(38, 7, libc::EACCES), Kind::Denied);
        assert_eq!(kind(1, 7, 0), Kind::ConnectionLost);
        assert_eq!(kind(38, 10, libc::ENOENT), Kind::Other);
        assert_eq!(kind(1, 10, 0), Kind::Other);
        assert_eq!(kind(-5, 0, 0), Kind::Other);
    }
}
