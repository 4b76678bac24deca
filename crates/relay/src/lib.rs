//! What the processes of lab-backup say to each other.
//!
//! The File Daemon plugin and the worker talk over one Unix socket per job: [`frame`] cuts that
//! byte stream into frames, [`message`] says what the frames carry. A conversation ends with an
//! explicit END; a connection that closes without it is a failure, so that a truncated stream can
//! never pass for a complete one.
//!
//! Four smaller contracts live here too because two programs must read them the same way:
//! [`name`] (which VM keys are legal), [`policy`] (`/etc/lab-backup/vms.toml`, written by
//! `lab-backup apply`, read by the worker), [`options`] (restore options inside Bacula's
//! `where`, written by the CLI or a web form, read by the worker) and [`proof`] (lines of a job log,
//! written by the worker, read by the CLI).

pub mod frame;
pub mod message;
pub mod name;
pub mod options;
pub mod policy;
pub mod proof;

/// Version of the conversation. Both sides refuse any other.
pub const VERSION: u32 = 1;

/// Where the worker's socket-activated listener waits for the plugin.
pub const WORKER_SOCKET: &str = "/run/lab-backup/worker.sock";
