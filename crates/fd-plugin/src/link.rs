//! The connection to the worker: blocking for the caller, never blocking for good.
//!
//! Every wait ticks once a second to look at the job's cancel flag, and gives up when the worker
//! shows no sign of life. Time is only counted while the worker is waited for: a slow Storage
//! Daemon holds up the File Daemon, not this clock.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use relay::frame::{Header, Kind, Reader, Writer};
use relay::message::{Fail, Log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use crate::daemon::Daemon;
use crate::trouble::Trouble;

/// How often a wait looks at the cancel flag. A signal from the File Daemon shortens it.
const TICK: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    idle: Duration,
    /// Drop the worker's log lines instead of writing them to the job log.
    quiet: bool,
}

impl Link {
    /// Connects. A listener with a full queue is waited for like a silent worker.
    pub(crate) fn open(path: &Path, idle: Duration, daemon: &Daemon) -> Result<Self, Trouble> {
        let failed = |source: io::Error| Trouble::Connect {
            path: path.into(),
            source,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| failed(e.into()))?;
        let deadline = Instant::now() + idle;
        loop {
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(TICK / 10),
                Err(error) => return Err(failed(error.into())),
            }
            if daemon.cancelled() {
                return Err(Trouble::Cancelled);
            }
        }
        Ok(Self {
            stream: socket.into(),
            idle,
            quiet: false,
        })
    }

    /// The same connection, with the worker's log lines dropped.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Reads frames.
    pub(crate) fn reader<'a>(&'a self, daemon: &'a Daemon<'a>) -> Reader<Pipe<'a>> {
        Reader::new(Pipe { link: self, daemon })
    }

    /// Writes frames.
    pub(crate) fn writer<'a>(&'a self, daemon: &'a Daemon<'a>) -> Writer<Pipe<'a>> {
        Writer::new(Pipe { link: self, daemon })
    }

    /// The next frame that is not a log line or a sign of life. A FAIL and an end are errors.
    pub(crate) fn next(&self, daemon: &Daemon) -> Result<Header, Trouble> {
        loop {
            if daemon.cancelled() {
                return Err(Trouble::Cancelled);
            }
            if let Some(header) = self.frame(daemon)? {
                return Ok(header);
            }
        }
    }

    /// Takes in what the worker has said by now, so that its own words come before a broken pipe.
    pub(crate) fn listen(&self, daemon: &Daemon) -> Result<(), Trouble> {
        while self
            .ready(PollFlags::IN, Duration::ZERO)?
            .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
        {
            self.only_talk(daemon)?;
        }
        Ok(())
    }

    /// Reads one frame where only a log line, a sign of life or a FAIL may come.
    fn only_talk(&self, daemon: &Daemon) -> Result<(), Trouble> {
        match self.frame(daemon)? {
            None => Ok(()),
            Some(header) => Err(unexpected(header, "nothing")),
        }
    }

    /// Reads one frame; `None` if it was dealt with here.
    fn frame(&self, daemon: &Daemon) -> Result<Option<Header>, Trouble> {
        let mut reader = self.reader(daemon);
        let header = reader.header()?.ok_or(Trouble::Ended)?;
        match header.kind {
            Kind::Alive => {}
            Kind::Log => {
                let log: Log = reader.json(header)?;
                if !self.quiet {
                    daemon.log(log.class, &log.text);
                }
            }
            Kind::Fail => {
                let Fail { text } = reader.json(header)?;
                return Err(Trouble::Worker { text });
            }
            _ => return Ok(Some(header)),
        }
        Ok(None)
    }

    /// Waits until the socket is ready for `what`.
    fn wait(&self, what: PollFlags, since: Instant, daemon: &Daemon) -> Result<PollFlags, Trouble> {
        loop {
            if daemon.cancelled() {
                return Err(Trouble::Cancelled);
            }
            let ready = self.ready(what, TICK.min(self.idle))?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            if since.elapsed() >= self.idle {
                return Err(Trouble::Silent {
                    seconds: self.idle.as_secs(),
                });
            }
        }
    }

    fn ready(&self, what: PollFlags, limit: Duration) -> Result<PollFlags, Trouble> {
        let mut fds = [PollFd::new(&self.stream, what)];
        let limit = Timespec::try_from(limit).unwrap_or_default();
        match poll(&mut fds, Some(&limit)) {
            Ok(_) => Ok(fds[0].revents()),
            // The File Daemon's signal to a cancelled job's thread: the caller looks at the flag.
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

/// An answer that has no place here.
pub(crate) fn unexpected(header: Header, due: &'static str) -> Trouble {
    Trouble::Frame(relay::frame::Error::Unexpected {
        got: header.kind,
        due,
    })
}

/// One direction of a connection during one callback. A [`Trouble`] travels inside its errors.
#[derive(Clone, Copy)]
pub(crate) struct Pipe<'a> {
    link: &'a Link,
    daemon: &'a Daemon<'a>,
}

impl Read for Pipe<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        loop {
            match (&self.link.stream).read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.link.wait(PollFlags::IN, since, self.daemon)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    /// Sends, and takes in the worker's talk while its queue is full: a worker that is busy with
    /// a disk shows signs of life there, and one that failed says why.
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut since = Instant::now();
        loop {
            let mut no_fds = SendAncillaryBuffer::default();
            match sendmsg(&self.link.stream, bufs, &mut no_fds, SendFlags::NOSIGNAL) {
                Ok(sent) => return Ok(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let both = PollFlags::IN | PollFlags::OUT;
                    if self
                        .link
                        .wait(both, since, self.daemon)?
                        .contains(PollFlags::IN)
                    {
                        self.link.only_talk(self.daemon)?;
                        since = Instant::now();
                    }
                }
                // The worker is gone; what it said last is the cause, not the broken pipe.
                Err(Errno::PIPE | Errno::CONNRESET) => loop {
                    self.link.only_talk(self.daemon)?;
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
