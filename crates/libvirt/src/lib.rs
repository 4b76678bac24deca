//! The libvirt calls that lab-backup uses, made safe, and the XML around them.
//!
//! * [`Connect`] and [`Domain`] are cheap handles that may be cloned and used from any thread at
//!   once; libvirt counts references and serialises its wire. A second connection is still worth
//!   having: libvirtd serves only a few calls of one connection at a time, so a call that hangs
//!   can starve the others.
//! * Calls may block for ever, for instance while a guest agent or a QEMU behind a dead disk does
//!   not answer. [`deadline`] gives up on them.
//! * libvirt is silenced: it never prints. A failed call returns an [`Error`] whose [`Kind`] is
//!   for programs and whose message is for people.
//! * There is no event loop: jobs are polled.
//! * [`xml`] reads domain XML as untrusted data, edits it byte by byte, and writes the XML of
//!   backups and checkpoints.
//!
//! Names, XML and agent answers are data. Nothing here interprets them beyond XML.

mod backup;
mod block;
mod checkpoint;
mod connect;
pub mod deadline;
mod domain;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod host;
mod quiesce;
mod state;
pub mod xml;

pub use backup::{BackupFlags, BackupJob, Ended, Job, JobState, Operation};
pub use block::{BlockInfo, BlockJob, Snapshot};
pub use checkpoint::Checkpoint;
pub use connect::{Connect, Version};
pub use domain::{Domain, Keep, Undefine, XmlFlags};
pub use error::{Error, Kind, Result};
pub use host::Presence;
pub use quiesce::{AgentTimeout, Mount};
pub use state::{PausedReason, ShutOffReason, State};
