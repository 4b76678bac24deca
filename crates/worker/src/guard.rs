//! The lease between a worker and the resident guard.
//!
//! No guest is frozen without a lease. The guard outlives the worker: when the lease runs out, or
//! the connection closes without a release, it ends the worker and thaws the guest until that is
//! proven. One line of JSON each way over a Unix socket:
//!
//! ```text
//! worker  {"ask":"lease","version":1,"vm":…,"uuid":…,"job":…,"limit_ms":…}
//! guard   {"granted":true}                     or {"granted":false,"why":…}
//! worker  {"ask":"release"}                    when the thaw is proven
//! guard   {"held":true}
//! ```

mod client;
mod server;

pub use client::Lease;
pub use server::serve;

use serde::{Deserialize, Serialize};

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
enum Ask {
    Lease(Terms),
    Release,
}

/// The terms of a lease; kept in a file of tmpfs while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Version of this line: 1.
    pub version: u32,
    /// The VM's key.
    pub vm: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Bacula's unique Job name.
    pub job: String,
    /// How long the guest may be frozen, in milliseconds from the grant.
    pub limit_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Granted {
    granted: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    held: bool,
}

/// Longest line either side accepts, in bytes.
const MAX_LINE: u64 = 4096;

/// Reads one line; an error if it does not end or is too long.
fn read_line(from: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if from.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match byte {
            [b'\n'] => break,
            [other] => line.push(other),
        }
        if line.len() as u64 > MAX_LINE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    String::from_utf8(line).map_err(|_| std::io::ErrorKind::InvalidData.into())
}
