//! From a buffer to fingerprints, and from fingerprints to what must be sent.
//!
//! This is the hot path: it runs in the reader on every byte of a disk. HighwayHash is bound by the
//! latency of one chain of multiplications, so what counts is to feed it whole blocks from cache and
//! to spare it the zero ones.

use std::ops::Range;

use highway::{HighwayHash, HighwayHasher};

use crate::{BLOCK, Key};

/// The fingerprint of one block: its keyed HighwayHash-64, and 0 exactly if all bytes are zero.
///
/// A block shorter than [`BLOCK`] (the last of a disk) is hashed at its true length. A nonzero block
/// whose hash happens to be 0 gets 1.
pub fn fingerprint(key: &Key, block: &[u8]) -> u64 {
    of_block(key.lanes(), block)
}

/// The fingerprints of consecutive blocks, the first of which begins at the buffer's begin.
///
/// `out` is cleared first. Only the last block of a disk may be short, so a buffer that is not the
/// disk's end must be a multiple of [`BLOCK`].
pub fn fingerprints(key: &Key, buffer: &[u8], out: &mut Vec<u64>) {
    let key = key.lanes();
    out.clear();
    out.extend(buffer.chunks(BLOCK).map(|block| of_block(key, block)));
}

fn of_block(key: highway::Key, block: &[u8]) -> u64 {
    if is_zero(block) {
        return 0;
    }
    // The processor's best implementation is chosen per block; that costs 4% of the block's time at
    // most, and cloning a ready hasher measured the same.
    HighwayHasher::new(key).hash64(block).max(1)
}

/// Whether all bytes are zero. Looks at 256 bytes at a time, so that data is told at a glance and
/// zeros run at the speed of the cache.
fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(256);
    chunks.all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// A contiguous range that must be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it lies on the disk, in bytes; a multiple of [`BLOCK`].
    pub offset: u64,
    /// Where it lies in the buffer. Ends at a multiple of [`BLOCK`] or with the buffer.
    pub range: Range<usize>,
}

/// The ranges of a buffer that must be sent. See [`runs`].
#[derive(Debug)]
pub struct Runs<'a> {
    offset: u64,
    len: usize,
    now: &'a [u64],
    base: Option<&'a [u64]>,
    next: usize,
}

/// Tells which parts of a buffer of `len` bytes at `offset` on the disk must be sent.
///
/// Without `base`, the nonzero blocks: the image starts as zeros. With it, the blocks that differ
/// from the base, those that became zero included; blocks past the end of `base` count as zero
/// there, as they do beyond the end of a disk that grew.
pub fn runs<'a>(offset: u64, len: usize, now: &'a [u64], base: Option<&'a [u64]>) -> Runs<'a> {
    debug_assert!(offset.is_multiple_of(BLOCK as u64), "runs begin at blocks");
    debug_assert_eq!(now.len(), len.div_ceil(BLOCK), "a fingerprint per block");
    Runs {
        offset,
        len,
        now,
        base,
        next: 0,
    }
}

impl Runs<'_> {
    fn changed(&self, block: usize) -> Option<bool> {
        let now = *self.now.get(block)?;
        let then = self.base.and_then(|base| base.get(block)).copied();
        Some(now != then.unwrap_or(0))
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        while !self.changed(self.next)? {
            self.next += 1;
        }
        let first = self.next;
        while self.changed(self.next) == Some(true) {
            self.next += 1;
        }
        let start = first * BLOCK;
        Some(Run {
            offset: self.offset + start as u64,
            range: start..(self.next * BLOCK).min(self.len),
        })
    }
}
