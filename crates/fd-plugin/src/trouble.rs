//! What can go wrong between the File Daemon and the worker.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use relay::frame;

/// Why a job cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The job was cancelled, or the File Daemon gave it up for another reason it has reported.
    #[error("the job was cancelled")]
    Cancelled,
    /// The worker said why; its line already names vm and disk.
    #[error("{text}")]
    Worker { text: String },
    /// The connection closed, or broke, before the last frame.
    #[error("the worker ended without END")]
    Ended,
    /// Nothing came from the worker, not even a sign of life.
    #[error("the worker was silent for {seconds} s")]
    Silent { seconds: u64 },
    /// There is no worker.
    #[error("cannot reach the worker at {path}", path = path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// A frame is malformed or out of place.
    #[error("the worker's frame is not understood")]
    Frame(#[source] frame::Error),
    /// A frame is well formed and says something that cannot be.
    #[error("the worker broke the protocol: {what}")]
    Protocol { what: String },
    /// The File Daemon handed over something that cannot be.
    #[error("the File Daemon {what}")]
    Daemon { what: String },
}

impl Trouble {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    pub(crate) fn daemon(what: impl Into<String>) -> Self {
        Self::Daemon { what: what.into() }
    }

    /// The whole chain of causes in one line.
    pub(crate) fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl From<frame::Error> for Trouble {
    /// A [`Trouble`] that travelled through a reader or writer comes out again as itself.
    fn from(error: frame::Error) -> Self {
        match error {
            frame::Error::Truncated => Self::Ended,
            frame::Error::Io(error) => error.into(),
            other => Self::Frame(other),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Ended,
            _ => error
                .downcast::<Self>()
                .unwrap_or_else(|error| Self::Frame(frame::Error::Io(error))),
        }
    }
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        io::Error::other(trouble)
    }
}
