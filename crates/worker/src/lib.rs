//! The worker: one backup or restore of one VM, and every side effect on the hypervisor.
//!
//! A worker serves one connection from the File Daemon plugin and ends with it. It lives in a control
//! group of its own, so that killing the File Daemon kills neither it nor the guard; whatever kills
//! the worker itself is cleared up from its [`journal`] by [`repair`].
//!
//! ```text
//! plugin --relay--> serve -+-> backup    freeze, begin, thaw; read, fingerprint, send
//!                          +-> restore   take, prove, put in place, define
//!                          +-> inventory
//! guard  <--lease-- backup                no freeze without it
//! ```

mod agent;
mod alive;
pub mod backup;
mod digest;
pub mod freeze;
pub mod guard;
pub mod inventory;
pub mod journal;
mod keys;
pub mod lock;
pub mod manifest;
mod note;
mod owner;
pub mod paths;
pub mod repair;
pub mod restore;
pub mod root;
pub mod serve;
pub mod session;
mod tool;
