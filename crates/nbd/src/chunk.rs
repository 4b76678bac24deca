//! The chunks that answer one read: received where they belong, each byte once.

use crate::client::Client;
use crate::error::{Error, ServerError};
use crate::pool::Buffer;
use crate::wire::{self, Chunk, Command};

/// A buffer that replies are being received into.
pub(crate) struct Filling {
    pub(crate) buffer: Buffer,
    pub(crate) seen: Seen,
    pub(crate) any_data: bool,
    pub(crate) error: Option<Error>,
}

impl Filling {
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self {
            buffer,
            seen: Seen::default(),
            any_data: false,
            error: None,
        }
    }
}

impl Client {
    pub(crate) fn refused(&self, offset: u64, len: u64, kind: ServerError, text: String) -> Error {
        Error::Server {
            export: self.conn.export.clone(),
            command: Command::Read,
            offset,
            len,
            kind,
            text,
        }
    }

    /// Receives the payload of a chunk that answers the read at `offset`.
    pub(crate) fn recv_chunk(
        &mut self,
        offset: u64,
        filling: &mut Filling,
        kind: Chunk,
        len: u32,
    ) -> Result<(), Error> {
        let size = filling.buffer.len() as u64;
        match kind {
            Chunk::None if len == 0 => {}
            Chunk::Data => {
                let bytes = u64::from(len).saturating_sub(8);
                // Where the data belongs is said in front of it, and is nearly always where the
                // last chunk ended: both are received at once, and moved if that was wrong.
                let guess = filling.seen.prefix;
                if bytes == 0 || bytes > size {
                    return Err(self.conn.protocol("more was sent than was asked for"));
                }
                let guess = if filling.seen.free(guess, bytes) && bytes <= size - guess {
                    Some(guess as usize..(guess + bytes) as usize)
                } else {
                    None
                };
                let mut at = [0; 8];
                match guess
                    .clone()
                    .and_then(|g| filling.buffer.space().get_mut(g))
                {
                    Some(space) => self.conn.recv_both(&mut at, space)?,
                    None => self.conn.recv(&mut at)?,
                }
                let at = u64::from_be_bytes(at).checked_sub(offset);
                let at = at.filter(|at| at.checked_add(bytes).is_some_and(|end| end <= size));
                let Some(at) = at.filter(|at| filling.seen.add(*at, bytes)) else {
                    return Err(self.conn.protocol("data came for another place"));
                };
                let to = at as usize..(at + bytes) as usize;
                match guess {
                    Some(guess) if guess == to => {}
                    Some(guess) => filling.buffer.space().copy_within(guess, to.start),
                    None => {
                        let space = filling.buffer.space().get_mut(to).unwrap_or_default();
                        self.conn.recv(space)?;
                    }
                }
                filling.any_data = true;
            }
            Chunk::Hole if len == 12 => {
                let mut payload = [0; 12];
                self.conn.recv(&mut payload)?;
                let mut cursor = wire::Cursor(&payload);
                let at = cursor.u64().and_then(|at| at.checked_sub(offset));
                let bytes = u64::from(cursor.u32().unwrap_or(0));
                let at = at.filter(|at| at.checked_add(bytes).is_some_and(|end| end <= size));
                let Some(at) = at.filter(|at| bytes > 0 && filling.seen.add(*at, bytes)) else {
                    return Err(self.conn.protocol("a hole came for another place"));
                };
                // A reply that is one hole stays a hole; only in a mixed one bytes are needed.
                if bytes < size {
                    let hole = at as usize..(at + bytes) as usize;
                    filling
                        .buffer
                        .space()
                        .get_mut(hole)
                        .unwrap_or_default()
                        .fill(0);
                }
            }
            Chunk::Error => {
                let (kind, text) = self.recv_error(len)?;
                filling.error = Some(self.refused(offset, size, kind, text));
            }
            _ => return Err(self.conn.protocol("a chunk does not fit a read")),
        }
        Ok(())
    }
}

/// Which bytes of a request have been answered.
///
/// Servers answer from front to back, so a prefix is nearly always all there is to know.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    prefix: u64,
    /// Ranges behind the prefix, in no order, not touching each other's bytes.
    strays: Vec<(u64, u64)>,
}

/// Most ranges out of order that one reply may have.
const MAX_STRAYS: usize = 256;

impl Seen {
    pub(crate) fn whole(&mut self, len: u64) {
        self.prefix = len;
    }

    pub(crate) fn is_whole(&self, len: u64) -> bool {
        self.prefix == len
    }

    fn free(&self, at: u64, len: u64) -> bool {
        let hits = |&(start, end): &(u64, u64)| at < end && start < at + len;
        at >= self.prefix && !self.strays.iter().any(hits)
    }

    /// Notes a range; false if a byte of it was answered before, or there are too many.
    fn add(&mut self, at: u64, len: u64) -> bool {
        if !self.free(at, len) || self.strays.len() >= MAX_STRAYS {
            return false;
        }
        if at > self.prefix {
            self.strays.push((at, at + len));
            return true;
        }
        self.prefix += len;
        while let Some(next) = self.strays.iter().position(|s| s.0 == self.prefix) {
            self.prefix = self.strays.swap_remove(next).1;
        }
        true
    }
}
