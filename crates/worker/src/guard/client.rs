//! The worker's side of a lease.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Ask, Granted, Held, Terms, read_line};

/// A lease that the guard granted. Dropping it without [`Lease::release`] makes the guard thaw.
#[derive(Debug)]
pub struct Lease {
    socket: UnixStream,
}

impl Lease {
    /// Asks the guard for a lease.
    ///
    /// # Errors
    /// The guard is not there, silent for 5 s, or refuses (it says why).
    pub fn ask(socket: &Path, terms: Terms) -> io::Result<Self> {
        let mut socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.set_write_timeout(Some(Duration::from_secs(5)))?;
        send(&mut socket, &Ask::Lease(terms))?;
        let answer: Granted = serde_json::from_str(&read_line(&mut socket)?)?;
        if answer.granted {
            Ok(Self { socket })
        } else {
            Err(io::Error::other(
                answer.why.unwrap_or_else(|| "no reason given".into()),
            ))
        }
    }

    /// Gives the lease back after the guest is proven thawed.
    ///
    /// True means that it was held all the time, so that the freeze was never undone by the guard.
    pub fn release(mut self) -> bool {
        let mut held = || -> io::Result<bool> {
            send(&mut self.socket, &Ask::Release)?;
            let answer: Held = serde_json::from_str(&read_line(&mut self.socket)?)?;
            Ok(answer.held)
        };
        held().unwrap_or(false)
    }
}

fn send(socket: &mut UnixStream, ask: &Ask) -> io::Result<()> {
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    socket.write_all(&line)
}
