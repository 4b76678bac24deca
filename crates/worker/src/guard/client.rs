//! The worker's side of a lease and of the watch over its job.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::lines::Lines;
use super::room::Room;
use super::ward::Ward;
use super::{Ask, Granted, Held, Stop, Terms};

/// How long the guard may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

fn ask(socket: &Path, what: &Ask) -> io::Result<(Lines, Granted)> {
    let mut lines = Lines::new(UnixStream::connect(socket)?)?;
    lines.say(what)?;
    let answer: Granted = lines.expect(ANSWER)?;
    if answer.granted {
        Ok((lines, answer))
    } else {
        let why = answer.why.unwrap_or_else(|| "no reason given".into());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

/// A lease that the guard granted. Dropping it without [`Lease::release`] makes the guard thaw.
#[derive(Debug)]
pub struct Lease {
    lines: Lines,
}

impl Lease {
    /// Asks the guard for a lease.
    ///
    /// # Errors
    /// The guard is not there, silent for 5 s, or refuses (it says why).
    pub fn ask(socket: &Path, terms: Terms) -> io::Result<Self> {
        let (lines, _) = ask(socket, &Ask::Lease(terms))?;
        Ok(Self { lines })
    }

    /// Says that the freeze failed and may still come: from here on the guest is only thawed, and
    /// when the time is up the guard helps with that instead of ending the worker.
    pub fn doubt(&mut self) {
        // A guard that is gone thaws when it is back: its file of the lease is still there.
        let _ = self.lines.say(&Ask::Doubt);
    }

    /// Gives the lease back after the guest is proven thawed.
    ///
    /// True means that it was held all the time, so that the freeze was never undone by the guard.
    pub fn release(mut self) -> bool {
        let mut held = || -> io::Result<bool> {
            self.lines.say(&Ask::Release)?;
            let answer: Held = self.lines.expect(ANSWER)?;
            Ok(answer.held)
        };
        held().unwrap_or(false)
    }
}

/// The worker's end of the watch over its job.
#[derive(Debug)]
pub struct Watching {
    lines: Lines,
    room: Room,
}

/// What the guard told the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// To close every reader, because of this.
    Stop(String),
}

impl Watching {
    /// Has the guard watch over a job, and decide how much scratch it gets.
    ///
    /// # Errors
    /// The guard is not there or silent for 5 s; [`io::ErrorKind::PermissionDenied`] if it refuses,
    /// with its reason.
    pub fn begin(socket: &Path, ward: &Ward) -> io::Result<Self> {
        let (lines, answer) = ask(socket, &Ask::Watch(ward.clone()))?;
        let room = answer.room.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { lines, room })
    }

    /// How much scratch the job has.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Listens for at most `limit`.
    ///
    /// # Errors
    /// The guard is gone: begin again.
    pub fn listen(&mut self, limit: Duration) -> io::Result<Told> {
        Ok(match self.lines.next::<Stop>(limit)? {
            None => Told::Nothing,
            Some(Stop { stop }) => Told::Stop(stop),
        })
    }

    /// Says that every reader is closed.
    pub fn closed(&mut self) -> io::Result<()> {
        self.lines.say(&Ask::Closed)
    }

    /// A second handle, by which another thread ends the watch: see [`end_watch`].
    pub fn handle(&self) -> io::Result<UnixStream> {
        self.lines.socket().try_clone()
    }
}

/// Ends the watch in an orderly way and wakes the thread that listens.
pub fn end_watch(handle: UnixStream) {
    if let Ok(mut lines) = Lines::new(handle) {
        let _ = lines.say(&Ask::Release);
        Lines::hang_up(lines.socket());
    }
}
