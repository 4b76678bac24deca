//! The requests of a read that are under way, in order of offset.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::chunk::Filling;
use crate::client::Client;
use crate::error::{Error, ServerError, Step};
use crate::extent::{Extent, Kind};
use crate::pool::{Buffer, Pool};
use crate::read::{Piece, ReadOptions};
use crate::wire::{self, Command, Reply, Request};

/// Spreads requests over time.
struct Pace {
    per_second: u64,
    next: Instant,
}

impl Pace {
    /// How long the next request has to wait.
    fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    fn spend(&mut self, bytes: u32) {
        let cost = Duration::from_secs_f64(f64::from(bytes) / self.per_second as f64);
        // A pause of the consumer is not saved up for a burst.
        self.next = self.next.max(Instant::now()) + cost;
    }
}

/// The requests under way and the pieces that wait for an earlier one, in order of offset.
pub(crate) struct Window<'a> {
    pub(crate) client: &'a mut Client,
    pool: &'a Pool,
    slots: VecDeque<Slot>,
    /// Cookie of the first slot; the others follow one by one.
    first: u64,
    /// Requests that are sent and not answered in full.
    pub(crate) open: usize,
    /// What is left of the extent being cut into requests.
    work: Option<Extent>,
    /// Encoded requests that are not sent yet.
    outbox: Vec<u8>,
    in_flight: usize,
    request: u64,
    flags: u16,
    pace: Option<Pace>,
}

struct Slot {
    offset: u64,
    len: u64,
    body: Body,
}

enum Body {
    Zero,
    Open(Filling),
    Done(Buffer),
    Failed(Error),
}

impl<'a> Window<'a> {
    pub(crate) fn new(
        client: &'a mut Client,
        options: &ReadOptions,
        pool: &'a Pool,
        block: u64,
    ) -> Self {
        let largest = u64::from(options.request)
            .min(pool.buffer_bytes() as u64)
            .min(u64::from(client.agreed.blocks.maximum));
        let no_holes = !options.holes && client.offers(wire::FLAG_SEND_DF);
        Self {
            first: client.next_cookie,
            client,
            pool,
            slots: VecDeque::new(),
            open: 0,
            work: None,
            outbox: Vec::new(),
            in_flight: options.in_flight.max(1),
            request: (largest - largest % block).max(block),
            flags: if no_holes { wire::CMD_FLAG_DF } else { 0 },
            pace: options.limit.map(|per_second| Pace {
                per_second: per_second.max(1),
                next: Instant::now(),
            }),
        }
    }

    /// Is a part of an extent not asked for yet?
    pub(crate) fn has_work(&self) -> bool {
        self.work.is_some()
    }

    /// Is there room for the next extent of the plan?
    pub(crate) fn wants_more(&self) -> bool {
        self.work.is_none() && self.open < self.in_flight && self.slots.len() < 2 * self.in_flight
    }

    pub(crate) fn add(&mut self, extent: Extent) {
        match extent.kind {
            Kind::Data => self.work = Some(extent),
            Kind::Zero => {
                self.client.next_cookie += 1;
                self.slots.push_back(Slot {
                    offset: extent.offset,
                    len: extent.len,
                    body: Body::Zero,
                });
            }
        }
        // As many requests as the window takes, so that they leave in one system call.
        self.cut();
    }

    /// Turns work into requests while there is room and memory for them.
    fn cut(&mut self) {
        while self.open < self.in_flight && !self.client.conn.shared.is_stopped() {
            let Some(work) = self.work else { return };
            let pause = self.pace.as_ref().map_or(Duration::ZERO, Pace::wait);
            // With nothing under way there is nothing better to do than to wait.
            let idle = self.open == 0 && self.slots.is_empty();
            if !pause.is_zero() {
                if !idle {
                    return;
                }
                std::thread::sleep(pause.min(Duration::from_millis(50)));
                continue;
            }
            let buffer = if idle {
                let shared = &self.client.conn.shared;
                self.pool.take(|| shared.is_stopped())
            } else {
                self.pool.try_take()
            };
            let Some(mut buffer) = buffer else { return };
            let len = (self.request - work.offset % self.request).min(work.len);
            // The request is no longer than a buffer, and a buffer no longer than u32.
            if buffer.set_len(len as usize).is_none() {
                return;
            }
            let request = Request {
                flags: self.flags,
                command: Command::Read,
                cookie: self.client.next_cookie,
                offset: work.offset,
                len: len as u32,
            };
            self.client.next_cookie += 1;
            self.outbox.extend_from_slice(&request.encode());
            self.slots.push_back(Slot {
                offset: work.offset,
                len,
                body: Body::Open(Filling::new(buffer)),
            });
            self.open += 1;
            if let Some(pace) = &mut self.pace {
                pace.spend(request.len);
            }
            let rest = Extent::data(work.offset + len, work.len - len);
            self.work = (rest.len > 0).then_some(rest);
        }
    }

    /// Sends what has been cut.
    pub(crate) fn send(&mut self) -> Result<(), Error> {
        self.cut();
        if self.client.conn.shared.is_stopped() {
            return Err(self.client.conn.stopped());
        }
        if !self.outbox.is_empty() {
            self.blame();
            self.client.conn.send(&self.outbox, &[])?;
            self.outbox.clear();
        }
        Ok(())
    }

    /// The first piece, if it is complete.
    pub(crate) fn pop(&mut self) -> Option<Result<Piece, Error>> {
        if matches!(self.slots.front()?.body, Body::Open(_)) {
            return None;
        }
        let Slot { offset, len, body } = self.slots.pop_front()?;
        self.first += 1;
        match body {
            Body::Zero => Some(Ok(Piece::Zero { offset, len })),
            Body::Done(bytes) => Some(Ok(Piece::Data { offset, bytes })),
            Body::Failed(error) => Some(Err(error)),
            Body::Open(_) => None,
        }
    }

    /// Errors of the connection name the oldest request that is open.
    fn blame(&mut self) {
        let oldest = self.slots.iter().find(|s| matches!(s.body, Body::Open(_)));
        if let Some(slot) = oldest {
            self.client.conn.step = Step::Request {
                command: Command::Read,
                offset: slot.offset,
            };
        }
    }

    /// Receives replies until none is due.
    pub(crate) fn drain(&mut self) -> Result<(), Error> {
        while self.open > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Receives one reply, or one chunk of it.
    pub(crate) fn receive(&mut self) -> Result<(), Error> {
        self.blame();
        let Self { client, slots, .. } = self;
        let reply = client.recv_reply()?;
        let (Reply::Simple { cookie, .. } | Reply::Chunk { cookie, .. }) = reply;
        let slot = cookie
            .checked_sub(self.first)
            .and_then(|at| slots.get_mut(usize::try_from(at).ok()?));
        let Some(slot) = slot else {
            return Err(client.conn.protocol("a reply answers no request"));
        };
        client.conn.step = Step::Request {
            command: Command::Read,
            offset: slot.offset,
        };
        let Body::Open(filling) = &mut slot.body else {
            return Err(client.conn.protocol("a reply answers no open request"));
        };
        let (offset, len) = (slot.offset, slot.len);
        let done = match reply {
            Reply::Simple { .. } if client.agreed.structured => {
                return Err(client.conn.protocol("a read was answered without a chunk"));
            }
            Reply::Simple { error: 0, .. } => {
                client.conn.recv(filling.buffer.space())?;
                filling.any_data = true;
                filling.seen.whole(len);
                true
            }
            Reply::Simple { error, .. } => {
                let kind = ServerError::from_errno(error);
                filling.error = Some(client.refused(offset, len, kind, String::new()));
                true
            }
            Reply::Chunk {
                done, kind, len, ..
            } => {
                client.recv_chunk(offset, filling, kind, len)?;
                done
            }
        };
        if done {
            self.open -= 1;
            slot.body = match std::mem::replace(&mut slot.body, Body::Zero) {
                Body::Open(Filling { error: Some(e), .. }) => Body::Failed(e),
                Body::Open(filling) if !filling.seen.is_whole(len) => {
                    return Err(client.conn.protocol("a read was answered in part"));
                }
                Body::Open(filling) if filling.any_data => Body::Done(filling.buffer),
                // Nothing but holes: the buffer goes back unused.
                other => {
                    drop(other);
                    Body::Zero
                }
            };
        }
        Ok(())
    }
}
