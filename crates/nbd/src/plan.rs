//! What an increment sends: the dirty ranges, told apart by what they hold now.
//!
//! A walk over all of `base:allocation` costs the server a look at every piece of the disk, so
//! only the neighbourhood of dirty ranges is asked about. Asking for each range alone would cost
//! a round trip per range: ranges that lie close together are asked about together.

use std::collections::VecDeque;

use crate::BASE_ALLOCATION;
use crate::client::Client;
use crate::error::Error;
use crate::extent::{self, DIRTY, Extent, Span};

/// Clean bytes between two dirty ranges that are worth one question less.
const GAP: u64 = 16 << 20;
/// Longest stretch that is asked about at once, in bytes; a longer dirty range is cut.
const STRETCH: u64 = 1 << 30;
/// Most dirty ranges asked about at once: the bound on memory.
const RANGES: usize = 1 << 16;

impl Client {
    /// Turns the ranges of a dirty bitmap into the extents that an increment sends: dirty and
    /// zero is zero, dirty and not zero is data, clean is nothing.
    ///
    /// This connection answers `base:allocation` and should have been granted nothing else;
    /// `dirty` comes from another one. Lazy, like [`Client::extents`], with memory for 65536 dirty
    /// ranges and what they hold.
    pub fn changed<E, I>(&mut self, dirty: I) -> Changed<'_, I::IntoIter>
    where
        E: From<Error>,
        I: IntoIterator<Item = Result<Span, E>>,
    {
        Changed {
            base: self,
            dirty: dirty.into_iter(),
            ahead: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }
}

/// Extents of an increment; see [`Client::changed`].
#[derive(Debug)]
pub struct Changed<'a, I> {
    base: &'a mut Client,
    dirty: I,
    /// A dirty range, or the rest of one, that was beyond the last stretch.
    ahead: Option<Span>,
    ready: VecDeque<Extent>,
    ended: bool,
}

impl<E: From<Error>, I: Iterator<Item = Result<Span, E>>> Changed<'_, I> {
    /// The next dirty ranges that are close enough together.
    fn gather(&mut self) -> Result<Vec<Span>, E> {
        let mut ranges: Vec<Span> = Vec::new();
        while let Some(span) = self.ahead.take().map(Ok).or_else(|| self.dirty.next()) {
            let mut span = span?;
            if span.flags & DIRTY == 0 {
                continue;
            }
            let (start, last) = match (ranges.first(), ranges.last()) {
                (Some(first), Some(last)) => (first.offset, last.end()),
                _ => (span.offset, span.offset),
            };
            let room = start.saturating_add(STRETCH).saturating_sub(span.offset);
            let far = span.offset.saturating_sub(last) > GAP;
            if far || room == 0 || ranges.len() >= RANGES {
                self.ahead = Some(span);
                break;
            }
            if span.len > room {
                self.ahead = Some(Span {
                    offset: span.offset + room,
                    len: span.len - room,
                    ..span
                });
                span.len = room;
            }
            ranges.push(span);
        }
        Ok(ranges)
    }

    fn ask(&mut self) -> Result<(), E> {
        let ranges = self.gather()?;
        let Some((first, last)) = ranges.first().zip(ranges.last()) else {
            self.ended = true;
            return Ok(());
        };
        let (start, end) = (first.offset, last.end());
        let len = end.saturating_sub(start);
        let base = self.base.extents(BASE_ALLOCATION, start, len)?;
        for extent in extent::changed(ranges.into_iter().map(Ok), base) {
            self.ready.push_back(extent?);
        }
        Ok(())
    }
}

impl<E: From<Error>, I: Iterator<Item = Result<Span, E>>> Iterator for Changed<'_, I> {
    type Item = Result<Extent, E>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.ended {
            if let Err(error) = self.ask() {
                self.ended = true;
                self.ready.clear();
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
