//! Whole blocks from ranges that begin and end anywhere.

use std::iter::Peekable;

use crate::extent::{Extent, Kind, join};

/// Widens ranges to whole blocks, so that a block is either read or zero, never both.
///
/// A block that any data range touches is data, and so is one that is covered only in part
/// (a caller may not call the rest of it zero); a block is zero if zero ranges cover all of it.
/// `block` is a power of two; the last block ends with the disk at `size`.
pub fn align<E>(
    extents: impl Iterator<Item = Result<Extent, E>>,
    block: u64,
    size: u64,
) -> impl Iterator<Item = Result<Extent, E>> {
    join(Align {
        inner: join(extents).fuse().peekable(),
        block: block.max(1),
        size,
        done: 0,
        rest: None,
    })
}

struct Align<I: Iterator> {
    inner: Peekable<I>,
    block: u64,
    size: u64,
    /// Everything before this has been given out.
    done: u64,
    rest: Option<Extent>,
}

impl<I: Iterator> Align<I> {
    fn down(&self, at: u64) -> u64 {
        at - at % self.block
    }

    /// The next block boundary at or behind `at`, where the end of the disk is one.
    fn up(&self, at: u64) -> u64 {
        if at >= self.size || at.is_multiple_of(self.block) {
            return at;
        }
        self.down(at).saturating_add(self.block).min(self.size)
    }
}

impl<E, I: Iterator<Item = Result<Extent, E>>> Iterator for Align<I> {
    type Item = Result<Extent, E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut extent = match self.rest.take() {
                Some(extent) => extent,
                None => match self.inner.next()? {
                    Ok(extent) => extent,
                    error => return Some(error),
                },
            };
            // An earlier range may have widened over the head of this one.
            if extent.end() <= self.done {
                continue;
            }
            if extent.offset < self.done {
                extent.len = extent.end() - self.done;
                extent.offset = self.done;
            }
            let (start, end) = (extent.offset, extent.end());
            let whole = match extent.kind {
                Kind::Data => Extent::data(self.down(start), self.up(end) - self.down(start)),
                Kind::Zero => {
                    let first = self.up(start);
                    let last = if end >= self.size {
                        end
                    } else {
                        self.down(end)
                    };
                    if first == start && last > first {
                        if last < end {
                            self.rest = Some(Extent::zero(last, end - last));
                        }
                        Extent::zero(first, last - first)
                    } else {
                        // Only a part of the block is zero here, and ranges of one kind are
                        // joined: the rest of it is something else.
                        let behind = self.up(start.saturating_add(1));
                        if behind < end {
                            self.rest = Some(Extent::zero(behind, end - behind));
                        }
                        Extent::data(self.down(start), behind - self.down(start))
                    }
                }
            };
            self.done = whole.end();
            return Some(Ok(whole));
        }
    }
}
