//! Block status: the flags of ranges in one context, as a lazy iterator.

use std::iter::FusedIterator;

use crate::client::Client;
use crate::error::Error;
use crate::extent::Span;
use crate::wire::{self, Chunk, Command, Cursor, Reply};

/// Longest range one request asks about, in bytes.
const MAX_ASK: u64 = 1 << 30;

impl Client {
    /// The flags of `len` bytes at `offset` in `context`, in order, without gaps, equal
    /// neighbours merged.
    ///
    /// The iterator asks the server as it goes and keeps one reply in memory (QEMU: at most
    /// 1 MiB for 131072 ranges), so a disk of any size can be walked. It ends after an error.
    pub fn extents(&mut self, context: &str, offset: u64, len: u64) -> Result<Extents<'_>, Error> {
        self.conn.check()?;
        self.check_range(offset, len)?;
        let granted = self.agreed.contexts.iter().find(|c| c.name == context);
        let Some(id) = granted.map(|context| context.id) else {
            return Err(Error::NoContext {
                export: self.conn.export.clone(),
                context: context.to_owned(),
            });
        };
        Ok(Extents {
            client: self,
            id,
            at: offset,
            end: offset + len,
            reply: Vec::new(),
            parsed: 0,
            merged: None,
            failed: None,
        })
    }
}

/// Ranges of a disk with their flags; see [`Client::extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    client: &'a mut Client,
    id: u32,
    /// Where the next range begins.
    at: u64,
    end: u64,
    /// The pairs of length and flags of the last reply, and how much of it is used.
    reply: Vec<u8>,
    parsed: usize,
    /// The range that may still grow.
    merged: Option<Span>,
    failed: Option<Error>,
}

impl Extents<'_> {
    /// The next range as the server reports it, clamped to what was asked for.
    fn raw(&mut self) -> Result<Option<Span>, Error> {
        while self.at < self.end {
            let mut cursor = Cursor(self.reply.get(self.parsed..).unwrap_or_default());
            let Some((len, flags)) = cursor.u32().zip(cursor.u32()) else {
                self.ask()?;
                continue;
            };
            self.parsed += 8;
            if len == 0 {
                return Err(self.client.conn.protocol("a range is empty"));
            }
            let span = Span {
                offset: self.at,
                len: u64::from(len).min(self.end - self.at),
                flags,
            };
            self.at = span.end();
            return Ok(Some(span));
        }
        Ok(None)
    }

    /// Asks for the ranges from `at` on.
    fn ask(&mut self) -> Result<(), Error> {
        let client = &mut *self.client;
        client.conn.check()?;
        // The protocol wants aligned requests; ranges that end elsewhere are answered again.
        let minimum = u64::from(client.agreed.blocks.minimum);
        let start = self.at - self.at % minimum;
        let end = self.end.next_multiple_of(minimum).min(client.agreed.size);
        let len = (end - start).min(MAX_ASK);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        client.block_status(self.id, start, len, &mut self.reply)?;
        self.parsed = 0;
        let mut skip = self.at - start;
        while skip > 0 {
            let pair = self.reply.get_mut(self.parsed..).unwrap_or_default();
            let Some((len, rest)) = pair.split_first_chunk_mut::<4>() else {
                return Err(client.conn.protocol("a block status makes no progress"));
            };
            let have = u64::from(u32::from_be_bytes(*len));
            if have > skip {
                // Fits: it is less than what a u32 held.
                *len = ((have - skip) as u32).to_be_bytes();
                return Ok(());
            }
            let _ = rest;
            skip -= have;
            self.parsed += 8;
        }
        if self.parsed >= self.reply.len() {
            return Err(client.conn.protocol("a block status makes no progress"));
        }
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Span, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.failed.is_none() {
            match (self.raw(), &mut self.merged) {
                (Ok(Some(span)), Some(last)) if last.flags == span.flags => last.len += span.len,
                (Ok(Some(span)), merged) => {
                    if let Some(full) = merged.replace(span) {
                        return Some(Ok(full));
                    }
                }
                (Ok(None), merged) => return merged.take().map(Ok),
                (Err(error), _) => {
                    self.failed = Some(error);
                    // Nothing more is asked; what was merged so far still goes out first.
                    self.at = self.end;
                }
            }
        }
        if let Some(span) = self.merged.take() {
            return Some(Ok(span));
        }
        self.failed.take().map(Err)
    }
}

impl FusedIterator for Extents<'_> {}

impl Client {
    /// One block status request; leaves the pairs of context `id` in `pairs`.
    fn block_status(
        &mut self,
        id: u32,
        offset: u64,
        len: u32,
        pairs: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let request = self.request(Command::BlockStatus, 0, offset, len);
        self.conn.send(&request.encode(), &[])?;
        let mut refused = None;
        let mut found = false;
        pairs.clear();
        loop {
            let (done, kind, cookie, size) = match self.recv_reply()? {
                Reply::Chunk {
                    done,
                    kind,
                    cookie,
                    len,
                } => (done, kind, cookie, len),
                Reply::Simple { .. } => {
                    return Err(self
                        .conn
                        .protocol("a block status was answered without a chunk"));
                }
            };
            if cookie != request.cookie {
                return Err(self.conn.protocol("a reply answers no request"));
            }
            match kind {
                Chunk::BlockStatus => {
                    if !(12..=wire::MAX_STATUS).contains(&size) || size % 8 != 4 {
                        return Err(self
                            .conn
                            .protocol("a block status has an impossible length"));
                    }
                    let mut context = [0; 4];
                    self.conn.recv(&mut context)?;
                    let context = u32::from_be_bytes(context);
                    let mut other = Vec::new();
                    let wanted = context == id && !found;
                    if !wanted && !self.agreed.contexts.iter().any(|c| c.id == context) {
                        return Err(self.conn.protocol("a block status of an unknown context"));
                    }
                    if context == id && found {
                        return Err(self.conn.protocol("a context was answered twice"));
                    }
                    found |= wanted;
                    let space = if wanted { &mut *pairs } else { &mut other };
                    space.resize(size as usize - 4, 0);
                    self.conn.recv(space)?;
                }
                Chunk::Error => refused = Some(self.recv_error(size)?),
                Chunk::None if size == 0 => {}
                _ => return Err(self.conn.protocol("a chunk does not fit a block status")),
            }
            if !done {
                continue;
            }
            return match refused {
                Some((kind, text)) => Err(Error::Server {
                    export: self.conn.export.clone(),
                    command: Command::BlockStatus,
                    offset,
                    len: u64::from(len),
                    kind,
                    text,
                }),
                None if !found => Err(self.conn.protocol("a block status lacks its context")),
                None => Ok(()),
            };
        }
    }
}
