//! One connection: whole sends and receives, time-outs, and a way to end it from outside.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, recvmsg, sendmsg, socket_with, sockopt,
};

use crate::error::{Error, Step};

/// The part of a connection that other threads may touch.
#[derive(Debug)]
pub(crate) struct Shared {
    socket: UnixStream,
    stopped: AtomicBool,
}

impl Shared {
    pub(crate) fn stop(&self) {
        // The flag first: whoever wakes up because of the shutdown must see why.
        self.stopped.store(true, Ordering::SeqCst);
        // Fails only if the peer is gone, and then there is nothing left to stop.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// A connection and what it is busy with. Its errors name both.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) shared: Arc<Shared>,
    pub(crate) export: String,
    /// What errors are blamed on.
    pub(crate) step: Step,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    started: Instant,
    /// Set by the first failure: where the next reply begins is no longer known.
    broken: bool,
    /// A few bytes that were received too early.
    unread: Vec<u8>,
}

/// Connects a socket, waiting for a place in the server's queue no longer than `timeout`.
pub(crate) fn dial(path: &Path, timeout: Duration) -> Result<UnixStream, Error> {
    let dial = || -> rustix::io::Result<UnixStream> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
        connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    };
    dial().map_err(|source| Error::Connect {
        path: path.to_owned(),
        source: source.into(),
    })
}

impl Conn {
    pub(crate) fn new(socket: UnixStream, export: &str, deadline: Instant) -> Self {
        Self {
            shared: Arc::new(Shared {
                socket,
                stopped: AtomicBool::new(false),
            }),
            export: export.to_owned(),
            step: Step::Handshake,
            timeout: None,
            deadline: Some(deadline),
            started: Instant::now(),
            broken: false,
            unread: Vec::new(),
        }
    }

    /// From here on every wait for the server has its own limit instead of a common deadline.
    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.deadline = None;
        // The system takes zero for "no limit"; a caller who says zero means "at once".
        self.timeout = timeout.map(|limit| limit.max(Duration::from_millis(1)));
        self.limit(self.timeout)
    }

    fn limit(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        let socket = &self.shared.socket;
        let set = socket
            .set_read_timeout(limit)
            .and_then(|()| socket.set_write_timeout(limit));
        set.map_err(|source| self.failed(source))
    }

    fn arm(&mut self) -> Result<(), Error> {
        let Some(deadline) = self.deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.failed(io::ErrorKind::TimedOut.into()));
        }
        self.limit(Some(left))
    }

    /// Refuses to go on after a failure.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.shared.is_stopped() {
            return Err(self.stopped());
        }
        if self.broken {
            return Err(Error::Unusable {
                export: self.export.clone(),
            });
        }
        Ok(())
    }

    pub(crate) fn stopped(&self) -> Error {
        Error::Stopped {
            export: self.export.clone(),
            step: self.step,
        }
    }

    /// The connection must not be used again.
    pub(crate) fn poison(&mut self) {
        self.broken = true;
    }

    /// The server broke a rule; nothing more of what it says can be trusted.
    pub(crate) fn protocol(&mut self, what: &'static str) -> Error {
        self.broken = true;
        Error::Protocol {
            export: self.export.clone(),
            step: self.step,
            what,
        }
    }

    fn failed(&mut self, source: io::Error) -> Error {
        use io::ErrorKind::*;
        self.broken = true;
        if self.shared.is_stopped() {
            return self.stopped();
        }
        let (export, step) = (self.export.clone(), self.step);
        match source.kind() {
            WouldBlock | TimedOut => {
                let after = self.timeout.unwrap_or(self.started.elapsed());
                Error::TimedOut {
                    export,
                    step,
                    after,
                }
            }
            UnexpectedEof | ConnectionReset | BrokenPipe | NotConnected => {
                Error::Disconnected { export, step }
            }
            _ => Error::Io {
                export,
                step,
                source,
            },
        }
    }

    /// Sends `head` and then `body`, in one system call unless the socket is full.
    pub(crate) fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), Error> {
        let mut slices = [IoSlice::new(head), IoSlice::new(body)];
        let mut slices = &mut slices[..];
        let mut left = head.len() + body.len();
        while left > 0 {
            self.arm()?;
            let sent = sendmsg(
                &self.shared.socket,
                slices,
                &mut SendAncillaryBuffer::default(),
                // A server that is gone is an error here, not a signal to the whole process.
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(n) => {
                    left -= n;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
        Ok(())
    }

    /// Reads at least `least` bytes into `buf`, and more if they are there already.
    pub(crate) fn recv_some(&mut self, buf: &mut [u8], least: usize) -> Result<usize, Error> {
        let mut have = 0;
        while have < least {
            let Some(space) = buf.get_mut(have..) else {
                break;
            };
            have += self.recv_once(space, RecvFlags::empty())?;
        }
        Ok(have)
    }

    /// Puts bytes back that belong to what comes next.
    pub(crate) fn unread(&mut self, bytes: Option<&[u8]>) {
        self.unread.clear();
        self.unread.extend_from_slice(bytes.unwrap_or_default());
    }

    /// Fills `buf`.
    pub(crate) fn recv(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let mut have = 0;
        while let Some(space) = buf.get_mut(have..).filter(|space| !space.is_empty()) {
            have += self.recv_once(space, RecvFlags::WAITALL)?;
        }
        Ok(())
    }

    /// Receives something; `space` is not empty.
    fn recv_once(&mut self, space: &mut [u8], flags: RecvFlags) -> Result<usize, Error> {
        if !self.unread.is_empty() {
            let n = space.len().min(self.unread.len());
            for (to, from) in space.iter_mut().zip(self.unread.drain(..n)) {
                *to = from;
            }
            return Ok(n);
        }
        loop {
            self.arm()?;
            match recv(&self.shared.socket, &mut *space, flags) {
                Ok((_, 0)) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok((_, n)) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
    }

    /// Fills `head`, then `body`: a short field and the bytes that it announces.
    pub(crate) fn recv_both(&mut self, head: &mut [u8], body: &mut [u8]) -> Result<(), Error> {
        if !self.unread.is_empty() {
            self.recv(head)?;
            return self.recv(body);
        }
        let mut left = head.len() + body.len();
        let mut slices = [IoSliceMut::new(head), IoSliceMut::new(body)];
        let mut slices = &mut slices[..];
        while left > 0 {
            self.arm()?;
            let got = recvmsg(
                &self.shared.socket,
                slices,
                &mut RecvAncillaryBuffer::default(),
                RecvFlags::WAITALL,
            );
            match got.map(|message| message.bytes) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    left -= n;
                    IoSliceMut::advance_slices(&mut slices, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
        Ok(())
    }
}
