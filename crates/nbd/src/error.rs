//! What can go wrong with a server, by who is at fault.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::wire::Command;

/// What the client was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Agreeing on the export, its size and contexts.
    Handshake,
    /// A request; with several in flight, the oldest.
    Request {
        /// What was asked.
        command: Command,
        /// Where on the disk, in bytes.
        offset: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Handshake => f.write_str("the handshake"),
            Step::Request { command, offset } => write!(f, "{command} at offset {offset}"),
        }
    }
}

/// Why a server refused a request, from its error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerError {
    /// The storage under the export failed (EIO).
    Io,
    /// The storage is full (ENOSPC).
    NoSpace,
    /// Not allowed, for instance writing to a read-only export (EPERM).
    Permission,
    /// The server calls the request malformed (EINVAL).
    Invalid,
    /// The server is out of memory (ENOMEM).
    NoMemory,
    /// The answer would be too large (EOVERFLOW).
    Overflow,
    /// The command is not supported (ENOTSUP).
    Unsupported,
    /// The server is going away (ESHUTDOWN).
    ShuttingDown,
    /// A number the protocol does not define.
    Other(u32),
}

impl ServerError {
    pub(crate) fn from_errno(errno: u32) -> Self {
        match errno {
            1 => Self::Permission,
            5 => Self::Io,
            12 => Self::NoMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::Unsupported,
            108 => Self::ShuttingDown,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("input/output error"),
            Self::NoSpace => f.write_str("no space left"),
            Self::Permission => f.write_str("not permitted"),
            Self::Invalid => f.write_str("invalid request"),
            Self::NoMemory => f.write_str("out of memory"),
            Self::Overflow => f.write_str("answer too large"),
            Self::Unsupported => f.write_str("not supported"),
            Self::ShuttingDown => f.write_str("server is shutting down"),
            Self::Other(errno) => write!(f, "error {errno}"),
        }
    }
}

/// A failure of the client, the connection or the server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens on the socket, or the path is no socket.
    #[error("cannot connect to NBD socket {path:?}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server refused an option of the handshake, usually because there is no such export.
    #[error("the server refuses {option} of NBD export {export:?}: {reason}")]
    Refused {
        /// Name of the export.
        export: String,
        /// What was asked for.
        option: &'static str,
        /// The server's words, or its error number.
        reason: String,
    },
    /// The server said nothing for too long. The connection is unusable.
    #[error("NBD export {export:?}: no answer within {} ms to {step}", .after.as_millis())]
    TimedOut {
        /// Name of the export.
        export: String,
        /// What was waited for.
        step: Step,
        /// How long.
        after: Duration,
    },
    /// A [`crate::ShutdownHandle`] ended the connection.
    #[error("NBD export {export:?}: stopped during {step}")]
    Stopped {
        /// Name of the export.
        export: String,
        /// What was interrupted.
        step: Step,
    },
    /// The server closed the connection.
    #[error("NBD export {export:?}: the server closed the connection during {step}")]
    Disconnected {
        /// Name of the export.
        export: String,
        /// What was open.
        step: Step,
    },
    /// The system failed the connection.
    #[error("NBD export {export:?}: the connection failed during {step}")]
    Io {
        /// Name of the export.
        export: String,
        /// What was open.
        step: Step,
        /// What the system said.
        source: io::Error,
    },
    /// The server said something that the protocol does not allow. The connection is unusable.
    #[error("NBD export {export:?}: the server broke the protocol in {step}: {what}")]
    Protocol {
        /// Name of the export.
        export: String,
        /// What was open.
        step: Step,
        /// The rule that was broken.
        what: &'static str,
    },
    /// The server failed one request. The connection goes on.
    #[error(
        "NBD export {export:?}: {command} of {len} bytes at offset {offset}: {kind}{}{text}",
        if .text.is_empty() { "" } else { ": " }
    )]
    Server {
        /// Name of the export.
        export: String,
        /// What was asked.
        command: Command,
        /// Where the request begins, in bytes.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Why.
        kind: ServerError,
        /// The server's own words, cleaned for a log line; may be empty.
        text: String,
    },
    /// The context was not granted when connecting.
    #[error("NBD export {export:?} has no context {context:?}")]
    NoContext {
        /// Name of the export.
        export: String,
        /// What was asked for.
        context: String,
    },
    /// The caller asked for bytes outside the disk, or for ranges out of order.
    #[error("NBD export {export:?}: {len} bytes at offset {offset} {reason}")]
    BadRange {
        /// Name of the export.
        export: String,
        /// Where the range begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server does not offer this command for the export.
    #[error("NBD export {export:?} does not offer {command}")]
    NotOffered {
        /// Name of the export.
        export: String,
        /// The command.
        command: Command,
    },
    /// An earlier failure left the connection in an unknown state.
    #[error("NBD export {export:?}: the connection is unusable after an earlier failure")]
    Unusable {
        /// Name of the export.
        export: String,
    },
}

impl Error {
    /// Did one of our own [`crate::ShutdownHandle`]s cause this?
    pub fn is_stopped(&self) -> bool {
        matches!(self, Error::Stopped { .. })
    }

    /// The server's reason, when a server failed a request.
    pub fn server_error(&self) -> Option<ServerError> {
        match self {
            Error::Server { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// The offset on the disk that the failure belongs to, where there is one.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Error::Server { offset, .. } | Error::BadRange { offset, .. } => Some(*offset),
            Error::TimedOut { step, .. }
            | Error::Stopped { step, .. }
            | Error::Disconnected { step, .. }
            | Error::Io { step, .. }
            | Error::Protocol { step, .. } => match step {
                Step::Request { offset, .. } => Some(*offset),
                Step::Handshake => None,
            },
            _ => None,
        }
    }
}
