//! A client for the Network Block Device protocol over Unix sockets.
//!
//! It reads a disk that QEMU exports (what is dirty, what is zero, the bytes themselves, many
//! requests in flight) and writes one that a [`QemuNbd`] child owns. Plain threads and blocking
//! sockets; a [`ShutdownHandle`] ends a blocked call from another thread.
//!
//! ```text
//! backup    extents() -> extent::allocation / Client::changed -> read() -> sink
//! restore   writer()
//! ```
//!
//! A server is not trusted: every length is checked against what was asked before a byte of it is
//! read, every reply must answer a request that is open, and memory is reserved before a request
//! is sent. After a failure of the connection (not of a single request) the client refuses
//! further work; connect again.

mod align;
mod chunk;
mod client;
mod conn;
mod error;
pub mod extent;
mod handshake;
mod plan;
mod pool;
mod read;
mod server;
mod status;
mod window;
mod wire;
mod write;

pub use client::{Client, ShutdownHandle, list_contexts};
pub use error::{Error, ServerError, Step};
pub use extent::{Extent, Kind, Span};
pub use handshake::{BlockSizes, Context};
pub use plan::Changed;
pub use pool::{Buffer, Pool};
pub use read::{Piece, ReadOptions};
pub use server::{Cache, QemuNbd, QemuNbdOptions, ServerFailure};
pub use status::Extents;
pub use wire::Command;
pub use write::Writer;

/// The context that says which ranges read as zero.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The context of the dirty bitmap `name`.
pub fn dirty_bitmap(name: &str) -> String {
    format!("qemu:dirty-bitmap:{name}")
}
