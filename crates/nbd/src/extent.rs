//! Ranges of a disk and what is in them: pure, lazy, and indifferent to where they come from.
//!
//! All functions take and give iterators of results in ascending order without overlap, so that a
//! plan of any length needs no memory, and an error of the server passes through.

use std::iter::Peekable;

pub use crate::align::align;

/// Flag of `base:allocation`: not allocated. Promises nothing about the content.
pub const HOLE: u32 = 1;
/// Flag of `base:allocation`: reads as zero.
pub const ZERO: u32 = 2;
/// Flag of a dirty bitmap: written since the bitmap began.
pub const DIRTY: u32 = 1;

/// A range with the flags that a server reports for it in some context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
    /// Flags of the context, such as [`ZERO`] or [`DIRTY`].
    pub flags: u32,
}

/// What a range of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes that must be read to be known.
    Data,
    /// Zeros, without reading.
    Zero,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
    /// What it holds.
    pub kind: Kind,
}

impl Span {
    /// First byte behind the range.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl Extent {
    /// A range that must be read.
    pub fn data(offset: u64, len: u64) -> Self {
        let kind = Kind::Data;
        Self { offset, len, kind }
    }

    /// A range that reads as zero.
    pub fn zero(offset: u64, len: u64) -> Self {
        let kind = Kind::Zero;
        Self { offset, len, kind }
    }

    /// First byte behind the range.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Kind of a range of `base:allocation`.
///
/// [`ZERO`] alone decides: a bare [`HOLE`] says where bytes are not stored, not what they are.
pub fn kind(flags: u32) -> Kind {
    if flags & ZERO != 0 {
        Kind::Zero
    } else {
        Kind::Data
    }
}

/// A whole disk from its `base:allocation`: every range, equal neighbours merged.
pub fn allocation<E>(
    base: impl Iterator<Item = Result<Span, E>>,
) -> impl Iterator<Item = Result<Extent, E>> {
    join(base.map(|span| {
        span.map(|span| Extent {
            offset: span.offset,
            len: span.len,
            kind: kind(span.flags),
        })
    }))
}

/// What an increment sends: dirty and zero is zero, dirty and not zero is data, clean is nothing.
///
/// A dirty range that `base` does not cover is data.
pub fn changed<E>(
    dirty: impl Iterator<Item = Result<Span, E>>,
    base: impl Iterator<Item = Result<Span, E>>,
) -> impl Iterator<Item = Result<Extent, E>> {
    let dirty = dirty.filter(|span| !matches!(span, Ok(span) if span.flags & DIRTY == 0));
    join(Changed {
        dirty: dirty.fuse(),
        base: base.fuse().peekable(),
        rest: None,
    })
}

struct Changed<D, B: Iterator> {
    dirty: D,
    base: Peekable<B>,
    /// The part of the current dirty range that is not classified yet.
    rest: Option<(u64, u64)>,
}

impl<E, D, B> Iterator for Changed<D, B>
where
    D: Iterator<Item = Result<Span, E>>,
    B: Iterator<Item = Result<Span, E>>,
{
    type Item = Result<Extent, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let (start, end) = match self.rest.take() {
            Some(rest) => rest,
            None => match self.dirty.next()? {
                Ok(span) => (span.offset, span.end()),
                Err(error) => return Some(Err(error)),
            },
        };
        let base = loop {
            match self.base.peek() {
                Some(Ok(span)) if span.end() <= start => drop(self.base.next()),
                Some(Ok(span)) => break Some(*span),
                Some(Err(_)) => {
                    self.rest = Some((start, end));
                    return self.base.next()?.err().map(Err);
                }
                None => break None,
            }
        };
        let (cut, kind) = match base {
            Some(span) if span.offset <= start => (span.end().min(end), kind(span.flags)),
            Some(span) => (span.offset.min(end), Kind::Data),
            None => (end, Kind::Data),
        };
        if cut < end {
            self.rest = Some((cut, end));
        }
        Some(Ok(Extent {
            offset: start,
            len: cut - start,
            kind,
        }))
    }
}

/// Merges neighbours of one kind.
pub fn join<E>(
    extents: impl Iterator<Item = Result<Extent, E>>,
) -> impl Iterator<Item = Result<Extent, E>> {
    Join {
        inner: extents.fuse().peekable(),
    }
}

struct Join<I: Iterator> {
    inner: Peekable<I>,
}

impl<E, I: Iterator<Item = Result<Extent, E>>> Iterator for Join<I> {
    type Item = Result<Extent, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut extent = match self.inner.next()? {
            Ok(extent) => extent,
            error => return Some(error),
        };
        while let Some(Ok(next)) = self.inner.peek() {
            if next.kind != extent.kind || next.offset != extent.end() {
                break;
            }
            extent.len = next.end() - extent.offset;
            self.inner.next();
        }
        Some(Ok(extent))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 40;

    type Item<T> = Result<T, Infallible>;

    /// Lengths and flags become ranges that ascend from 0; a flag of 9 becomes a gap.
    fn spans(parts: &[(u64, u32)]) -> Vec<Span> {
        let (mut offset, mut spans) = (0, Vec::new());
        for &(len, flags) in parts {
            let len = len.min(SIZE - offset);
            if flags != 9 && len > 0 {
                spans.push(Span { offset, len, flags });
            }
            offset += len;
        }
        spans
    }

    fn items<T: Copy>(list: &[T]) -> impl Iterator<Item = Item<T>> {
        list.iter().copied().map(Ok)
    }

    fn collect(extents: impl Iterator<Item = Item<Extent>>) -> Vec<Extent> {
        extents.map(|extent| extent.unwrap()).collect()
    }

    /// What each byte of the disk is, and that the list is in order and merged.
    fn bytes(extents: &[Extent]) -> Vec<Option<Kind>> {
        let mut bytes = vec![None; SIZE as usize];
        for extent in extents {
            assert!(extent.len > 0);
            bytes[extent.offset as usize..extent.end() as usize].fill(Some(extent.kind));
        }
        for pair in extents.windows(2) {
            assert!(pair[0].end() <= pair[1].offset, "{extents:?}");
            let touch = pair[0].end() == pair[1].offset;
            assert!(!touch || pair[0].kind != pair[1].kind, "{extents:?}");
        }
        bytes
    }

    fn flags_at(spans: &[Span], at: u64) -> Option<u32> {
        let hit = spans.iter().find(|s| s.offset <= at && at < s.end());
        hit.map(|span| span.flags)
    }

    fn parts(flags: &'static [u32]) -> impl Strategy<Value = Vec<(u64, u32)>> {
        proptest::collection::vec((1_u64..9, proptest::sample::select(flags)), 0..20)
    }

    #[test]
    fn a_hole_that_does_not_promise_zeros_is_read() {
        let base = spans(&[(4, 0), (4, HOLE), (4, ZERO), (4, HOLE | ZERO)]);
        let due = [Extent::data(0, 8), Extent::zero(8, 8)];
        assert_eq!(collect(allocation(items(&base))), due);
    }

    #[test]
    fn a_dirty_range_that_reads_as_zero_is_sent_as_zero() {
        let dirty = spans(&[(4, 0), (20, DIRTY), (4, 0), (4, DIRTY)]);
        let base = spans(&[(8, 0), (8, ZERO), (12, 0), (12, ZERO)]);
        let due = [
            Extent::data(4, 4),
            Extent::zero(8, 8),
            Extent::data(16, 8),
            Extent::zero(28, 4),
        ];
        assert_eq!(collect(changed(items(&dirty), items(&base))), due);
    }

    #[test]
    fn errors_of_either_side_pass_through() {
        let dirty = spans(&[(8, DIRTY)]);
        let broken = || [Err("lost")].into_iter();
        let fine = || dirty.iter().copied().map(Ok);
        assert_eq!(changed(broken(), fine()).next(), Some(Err("lost")));
        assert_eq!(changed(fine(), broken()).next(), Some(Err("lost")));
        assert_eq!(allocation(broken()).next(), Some(Err("lost")));
        let extents = || [Ok(Extent::zero(0, 4)), Err("lost"), Ok(Extent::data(4, 4))];
        let seen: Vec<_> = align(extents().into_iter(), 4, SIZE).collect();
        assert_eq!(seen, extents());
    }

    #[test]
    fn the_ends_of_the_number_range_do_not_overflow() {
        let last = Extent::data(u64::MAX - 1, u64::MAX);
        let _ = collect(align(items(&[last]), 4096, u64::MAX));
        let span = Span {
            offset: u64::MAX - 1,
            len: u64::MAX,
            flags: 1,
        };
        let _ = collect(changed(items(&[span]), items(&[span])));
    }

    proptest! {
        #[test]
        fn changed_is_what_every_single_byte_says(
            dirty in parts(&[0, DIRTY, 9]),
            base in parts(&[0, HOLE, ZERO, HOLE | ZERO, 9]),
        ) {
            let (dirty, base) = (spans(&dirty), spans(&base));
            let seen = bytes(&collect(changed(items(&dirty), items(&base))));
            for (at, seen) in seen.into_iter().enumerate() {
                let is_dirty = flags_at(&dirty, at as u64).is_some_and(|f| f & DIRTY != 0);
                let is_zero = flags_at(&base, at as u64).is_some_and(|f| f & ZERO != 0);
                let due = is_dirty.then_some(if is_zero { Kind::Zero } else { Kind::Data });
                prop_assert_eq!(seen, due, "byte {}", at);
            }
        }

        #[test]
        fn aligned_blocks_are_zero_only_if_every_byte_is(
            base in parts(&[0, ZERO, 9]),
            block in proptest::sample::select(&[1_u64, 2, 4, 8][..]),
            cut in 0_u64..8,
        ) {
            let size = SIZE - cut;
            let mut extents = collect(allocation(items(&spans(&base))));
            extents.retain(|extent| extent.offset < size);
            for extent in &mut extents {
                extent.len = extent.len.min(size - extent.offset);
            }
            let before = bytes(&extents);
            let after = collect(align(items(&extents), block, size));
            for extent in &after {
                prop_assert!(extent.offset % block == 0);
                prop_assert!(extent.end() % block == 0 || extent.end() == size);
            }
            let after = bytes(&after);
            for start in (0..size).step_by(block as usize) {
                let range = start as usize..(start + block).min(size) as usize;
                let due = match &before[range.clone()] {
                    all if all.iter().all(Option::is_none) => None,
                    all if all.iter().all(|kind| *kind == Some(Kind::Zero)) => Some(Kind::Zero),
                    _ => Some(Kind::Data),
                };
                prop_assert!(after[range].iter().all(|kind| *kind == due), "block {}", start);
            }
        }
    }
}
