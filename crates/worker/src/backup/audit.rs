//! Does a dirty bitmap tell the truth? An audit reads the whole disk and compares.

use std::fmt;
use std::iter::Peekable;

use anyhow::Result;
use nbd::Span;
use nbd::extent::DIRTY;

use super::candidates;
use super::export::Dirty;

/// Most ranges that are named.
const NAMED: usize = 16;

/// What changed and was not in the bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// The first ranges, in bytes: where they begin, and how long they are.
    ranges: Vec<(u64, u64)>,
    /// Bytes in all ranges.
    bytes: u64,
}

impl Missed {
    /// Was there nothing?
    pub fn is_none(&self) -> bool {
        self.bytes == 0
    }

    fn add(&mut self, offset: u64, len: u64) {
        self.bytes += len;
        let named = self.ranges.len();
        match self.ranges.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += len,
            _ if named < NAMED => self.ranges.push((offset, len)),
            _ => {}
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at", self.bytes)?;
        for (offset, len) in &self.ranges {
            write!(f, " {offset}+{len}")?;
        }
        let named: u64 = self.ranges.iter().map(|(_, len)| len).sum();
        match named < self.bytes {
            true => write!(f, " and more"),
            false => Ok(()),
        }
    }
}

/// Compares what changed, in ascending order, with the bitmap.
pub(super) struct Audit<'a> {
    spans: Peekable<Box<dyn Iterator<Item = Result<Span>> + 'a>>,
    missed: Missed,
}

impl<'a> Audit<'a> {
    pub(super) fn new(dirty: &'a mut Dirty, from: u64) -> Result<Self> {
        let spans: Box<dyn Iterator<Item = Result<Span>> + 'a> =
            Box::new(candidates::spans(dirty, from)?);
        Ok(Self::over(spans))
    }

    fn over(spans: Box<dyn Iterator<Item = Result<Span>> + 'a>) -> Self {
        Self {
            spans: spans.peekable(),
            missed: Missed::default(),
        }
    }

    /// This range changed: is it marked?
    pub(super) fn changed(&mut self, offset: u64, len: u64) -> Result<()> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            while self
                .spans
                .next_if(|span| matches!(span, Ok(span) if span.end() <= at))
                .is_some()
            {}
            let (until, marked) = match self.spans.peek() {
                Some(Ok(span)) if span.offset <= at => (span.end(), span.flags & DIRTY != 0),
                Some(Ok(span)) => (span.offset, false),
                Some(Err(_)) => match self.spans.next() {
                    Some(Err(e)) => return Err(e),
                    _ => continue,
                },
                None => (end, false),
            };
            let until = until.min(end);
            if !marked {
                self.missed.add(at, until - at);
            }
            at = until;
        }
        Ok(())
    }

    pub(super) fn end(self) -> Missed {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_outside_of_the_bitmap_is_named() {
        let span = |offset, len, flags| Ok(Span { offset, len, flags });
        let spans = vec![
            span(0, 8192, 0),
            span(8192, 8192, DIRTY),
            span(16384, 4096, 0),
        ];
        let mut audit = Audit::over(Box::new(spans.into_iter()));
        audit.changed(8192, 4096).unwrap();
        audit.changed(12288, 8192).unwrap();
        audit.changed(40960, 4096).unwrap();
        let missed = audit.end();
        assert_eq!(missed.to_string(), "8192 bytes at 16384+4096 40960+4096");
        assert!(!missed.is_none() && Missed::default().is_none());
    }

    #[test]
    fn only_the_first_ranges_are_named() {
        let mut missed = Missed::default();
        for at in 0..100 {
            missed.add(at * 8192, 4096);
        }
        let text = missed.to_string();
        assert!(
            text.starts_with("409600 bytes at 0+4096 8192+4096"),
            "{text}"
        );
        assert!(text.ends_with("122880+4096 and more"), "{text}");
    }
}
