//! What a worker and the resident guard say to each other.
//!
//! The guard outlives the worker. One line of JSON each way over a Unix socket; a connection is
//! either a **lease** on a freeze or the **watch** over a whole job:
//!
//! ```text
//! worker  {"ask":"lease","version":1,"vm":…,"uuid":…,"job":…,"limit_ms":…}
//! guard   {"granted":true}                     or {"granted":false,"why":…}
//! worker  {"ask":"doubt"}                      the freeze failed and may still come: only thaw
//! worker  {"ask":"release"}                    when the thaw is proven
//! guard   {"held":true}
//!
//! worker  {"ask":"watch","version":1,"vm":…,"uuid":…,"job":…,"socket":…,"scratch":{…}}
//! guard   {"granted":true,"room":"reserved"}   or {"tight":{"limit":…}}, or granted false and why
//! guard   {"stop":"…"}                         scratch runs short: close the readers
//! worker  {"ask":"closed"}                     then the guard aborts the backup
//! worker  {"ask":"release"}
//! ```
//!
//! No guest is frozen without a lease. When it runs out, or its connection closes without a release,
//! the guard ends the worker and thaws the guest until that is proven.

mod claims;
mod client;
mod lines;
mod remote;
mod room;
mod server;
mod service;
mod ward;
mod watch;
mod worker;

pub use client::{Lease, Told, Watching, end_watch};
pub(crate) use remote::Remote;
pub use room::Room;
pub use server::serve;
pub use ward::{Look, Scratch, Ward};

use serde::{Deserialize, Serialize};

/// Version of the lines of this protocol, and of a lease's file.
const VERSION: u32 = 1;

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
enum Ask {
    Lease(Terms),
    Doubt,
    Watch(Ward),
    Closed,
    Release,
}

/// The terms of a lease; kept in a file of tmpfs while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Version of this line: 1.
    version: u32,
    /// The VM's key.
    pub vm: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Bacula's unique Job name.
    pub job: String,
    /// How long the guest may be frozen, in milliseconds from the grant.
    pub limit_ms: u64,
    /// May a libvirt daemon that is silent over the frozen guest be restarted?
    #[serde(default = "yes")]
    pub restart_libvirt: bool,
}

fn yes() -> bool {
    true
}

impl Terms {
    /// The terms under which `job` may freeze the domain for `limit_ms` milliseconds.
    pub fn new(vm: &str, uuid: &str, job: &str, limit_ms: u64, restart_libvirt: bool) -> Self {
        Self {
            version: VERSION,
            vm: vm.into(),
            uuid: uuid.into(),
            job: job.into(),
            limit_ms,
            restart_libvirt,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Granted {
    granted: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    room: Option<Room>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    held: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stop {
    stop: String,
}
