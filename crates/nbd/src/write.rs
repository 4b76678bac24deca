//! Pipelined writes, for restores.

use std::collections::VecDeque;

use crate::client::Client;
use crate::error::{Error, ServerError};
use crate::wire::{self, Command, Request};

/// Writes are cut at multiples of this, in bytes: a request that fits the socket's buffer (208 KiB
/// by default) leaves at once, while a longer one makes client and server wait for each other.
/// Also the largest minimum block size, and a multiple of every other.
const MAX_WRITE: u64 = 64 << 10;
/// Longest range of zeros or trim in one request, in bytes; a multiple of every block size.
const MAX_RANGE: u64 = 1 << 30;

impl Client {
    /// A writer that keeps up to `in_flight` requests under way. QEMU works on up to 16.
    ///
    /// Dropping it with requests under way makes the client unusable: end with
    /// [`Writer::flush`].
    pub fn writer(&mut self, in_flight: usize) -> Writer<'_> {
        Writer {
            client: self,
            open: VecDeque::new(),
            in_flight: in_flight.max(1),
            failed: None,
        }
    }
}

/// Writes with several requests in flight; see [`Client::writer`].
///
/// A call may return before its bytes are written, and may report the failure of an earlier one.
/// The first failure is final: every later call, flush included, reports that the work is
/// incomplete. Nothing is durable before [`Writer::flush`] returns `Ok`.
/// Requests that overlap are done in the order of the calls.
#[derive(Debug)]
pub struct Writer<'a> {
    client: &'a mut Client,
    open: VecDeque<Request>,
    in_flight: usize,
    failed: Option<Failure>,
}

/// The first request that the server failed.
#[derive(Clone, Debug)]
struct Failure {
    command: Command,
    offset: u64,
    len: u64,
    kind: ServerError,
    text: String,
}

impl Writer<'_> {
    /// Writes `bytes` at `offset`. They are sent when this returns, so they may be reused.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(Command::Write, 0, offset, bytes.len() as u64)?;
        let (mut at, mut rest) = (offset, bytes);
        let minimum = u64::from(self.client.agreed.blocks.minimum);
        let largest = MAX_WRITE.min(u64::from(self.client.agreed.blocks.maximum));
        let largest = (largest - largest % minimum).max(minimum);
        while !rest.is_empty() {
            let len = (largest - at % largest).min(rest.len() as u64);
            let (part, behind) = rest.split_at(len as usize);
            self.send(Command::Write, 0, at, len, part)?;
            (at, rest) = (at + len, behind);
        }
        Ok(())
    }

    /// Makes a range read as zero. The server may punch a hole for it.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        self.ranges(
            Command::WriteZeroes,
            wire::FLAG_SEND_WRITE_ZEROES,
            offset,
            len,
        )
    }

    /// Tells the server that the content of a range no longer matters. What it reads as
    /// afterwards is not defined: use [`Writer::write_zeroes`] where it has to be zero.
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        self.ranges(Command::Trim, wire::FLAG_SEND_TRIM, offset, len)
    }

    /// Waits for every request, then makes them durable. Reports the first failure of any.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.check(Command::Flush, wire::FLAG_SEND_FLUSH, 0, 0)?;
        // A flush covers what is complete, not what is under way.
        self.settle(0)?;
        self.send(Command::Flush, 0, 0, 0, &[])?;
        self.settle(0)
    }

    fn ranges(&mut self, command: Command, flag: u16, offset: u64, len: u64) -> Result<(), Error> {
        self.check(command, flag, offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = (MAX_RANGE - at % MAX_RANGE).min(end - at);
            self.send(command, 0, at, part, &[])?;
            at += part;
        }
        Ok(())
    }

    /// Refuses what cannot work before anything is sent.
    fn check(&mut self, command: Command, flag: u16, offset: u64, len: u64) -> Result<(), Error> {
        self.report()?;
        self.client.conn.check()?;
        self.client.check_range(offset, len)?;
        if self.client.read_only() || (flag != 0 && !self.client.offers(flag)) {
            return Err(Error::NotOffered {
                export: self.client.conn.export.clone(),
                command,
            });
        }
        let (minimum, size) = (
            u64::from(self.client.agreed.blocks.minimum),
            self.client.size(),
        );
        let end = offset + len;
        if !offset.is_multiple_of(minimum) || (!end.is_multiple_of(minimum) && end != size) {
            let reason = "do not begin and end on the server's blocks";
            return Err(self.client.bad_range(offset, len, reason));
        }
        Ok(())
    }

    fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.settle(self.in_flight - 1)?;
        // A server may do requests in any order, so one that overlaps has to wait.
        let overlaps =
            |r: &Request| offset < r.offset + u64::from(r.len) && r.offset < offset + len;
        while self.open.iter().any(overlaps) {
            self.settle(self.open.len() - 1)?;
        }
        // Every caller cuts its range well below 4 GiB.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let request = self.client.request(command, flags, offset, len);
        self.client.conn.send(&request.encode(), payload)?;
        self.open.push_back(request);
        Ok(())
    }

    /// Receives replies until at most `allowed` requests are open, then reports failures.
    fn settle(&mut self, allowed: usize) -> Result<(), Error> {
        while self.open.len() > allowed {
            if let Some(oldest) = self.open.front() {
                self.client.conn.step = crate::Step::Request {
                    command: oldest.command,
                    offset: oldest.offset,
                };
            }
            let ack = self.client.recv_ack()?;
            let Some(at) = self.open.iter().position(|r| r.cookie == ack.cookie) else {
                return Err(self.client.conn.protocol("a reply answers no request"));
            };
            if let (Some((kind, text)), Some(request)) = (ack.error, self.open.get(at)) {
                self.failed.get_or_insert(Failure {
                    command: request.command,
                    offset: request.offset,
                    len: u64::from(request.len),
                    kind,
                    text,
                });
            }
            if ack.done {
                self.open.remove(at);
            }
        }
        self.report()
    }

    fn report(&self) -> Result<(), Error> {
        match self.failed.clone() {
            None => Ok(()),
            Some(failure) => Err(Error::Server {
                export: self.client.conn.export.clone(),
                command: failure.command,
                offset: failure.offset,
                len: failure.len,
                kind: failure.kind,
                text: failure.text,
            }),
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            // Replies are under way that the next user would take for its own.
            self.client.conn.poison();
        }
    }
}
