//! Where a disk may have changed: ranges that are read, in ascending order, never collected.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Error, Result};
use blockmap::{BLOCK, Map, MapWriter, blocks_of};
use nbd::extent::{self, DIRTY};
use nbd::{BASE_ALLOCATION, Client, Extent, Span};

use super::export::{Dirty, Export};

/// How much of a bitmap is kept in memory at once, in bytes of the disk.
const STRETCH: u64 = 1 << 30;

/// Extents that are handed to the thread that counts at once, and how many such batches may wait.
const BATCH: usize = 1024;
const BATCHES: usize = 4;

/// Ranges to be read.
pub(super) type Extents<'a> = Box<dyn Iterator<Item = Result<Extent>> + 'a>;

/// The whole disk: what is known to be zero is told from what must be read.
pub(super) fn everything(layout: &mut Client) -> Result<Extents<'_>> {
    let size = layout.size();
    let spans = layout.extents(BASE_ALLOCATION, 0, size)?;
    Ok(Box::new(
        extent::allocation(spans).map(|extent| extent.map_err(Error::from)),
    ))
}

/// What the bitmap names, and whatever lies at or beyond `from`.
pub(super) fn dirty<'a>(
    layout: &'a mut Client,
    dirty: &'a mut Dirty,
    from: u64,
) -> Result<Extents<'a>> {
    let spans = spans(dirty, from)?;
    Ok(Box::new(layout.changed::<Error, _>(spans)))
}

/// The bitmap as it counts: from `from` on everything is marked.
pub(super) fn spans<'a>(
    dirty: &'a mut Dirty,
    from: u64,
) -> Result<impl Iterator<Item = Result<Span>> + 'a> {
    let size = dirty.client.size();
    let told = match from {
        // There is nothing to ask about.
        0 => None,
        _ => Some(dirty.client.extents(&dirty.context, 0, from)?),
    };
    let rest = (from < size).then(|| {
        Ok(Span {
            offset: from,
            len: size - from,
            flags: DIRTY,
        })
    });
    let told = told.into_iter().flatten();
    Ok(told.map(|span| span.map_err(Error::from)).chain(rest))
}

/// Up to where a bitmap can know of a disk of `size` bytes that had `base_size` bytes: libvirt reports clean
/// what a disk grew by, and its short last block was another one before.
pub(super) fn known(base_size: u64, size: u64) -> u64 {
    match base_size < size {
        true => base_size - base_size % BLOCK as u64,
        false => size,
    }
}

/// How far a bitmap is to be trusted.
pub(super) struct Trust {
    /// The last block that the base holds and the bitmap calls clean: it must be what it was.
    pub(super) witness: Option<u64>,
    /// From this byte on everything is looked at.
    pub(super) from: u64,
    /// Is what is looked at surely less than the disk holds, whatever is found there?
    pub(super) few: bool,
}

/// Weighs a bitmap. Reads nothing of the disk, and every page of the base that is concerned.
///
/// A bitmap says nothing of a disk that shrank and grew back. QEMU forgets what was marked in the part
/// that was cut off, and that part reads as zero afterwards, but for what is left of the last cluster. So if
/// the last block that the base holds and the bitmap calls clean is what it was, everything below
/// its cluster was kept; what lies above was written since, or was zero, and is looked at.
///
/// A delta is larger than the disk only if more blocks became zero than are unchanged. At most every
/// nonzero block that is looked at became zero; all others are unchanged.
pub(super) fn weigh(export: &mut Export, base: &mut Map, cluster: u64) -> Result<Trust> {
    let size = export.size();
    let known = known(base.header().size, size);
    let told = export.dirty.as_mut().context("there is no bitmap")?;
    let extents = dirty(&mut export.layout, told, known)?;
    let mut blocks = nonzero_of(extent::align(extents, BLOCK as u64, size), base)?;
    let witness = match blocks < base.nonzero_blocks() {
        true => last_clean(export, base)?,
        false => None,
    };
    let from = witness.map_or(0, |block| {
        let offset = block * BLOCK as u64;
        known.min(offset - offset % cluster.max(BLOCK as u64))
    });
    if let Some(block) = witness {
        blocks += base.nonzero_in(from / BLOCK as u64..block + 1)?;
    }
    let few = blocks <= base.nonzero_blocks().saturating_sub(blocks);
    Ok(Trust { witness, from, few })
}

/// How many blocks of some extents the base holds. They are counted on a thread of its own: to read and check the
/// pages of a map takes longer than to be told of a million extents.
fn nonzero_of(mut extents: impl Iterator<Item = Result<Extent>>, base: &mut Map) -> Result<u64> {
    std::thread::scope(|scope| {
        let (to, from) = sync_channel::<Vec<Range<u64>>>(BATCHES);
        let counter = scope.spawn(move || {
            let ranges = from.into_iter().flatten();
            ranges
                .map(|blocks| base.nonzero_in(blocks))
                .sum::<Result<u64, _>>()
        });
        let told = loop {
            let batch = extents.by_ref().take(BATCH).map(|extent| {
                extent.map(|extent| extent.offset / BLOCK as u64..blocks_of(extent.end()))
            });
            match batch.collect::<Result<Vec<_>>>() {
                Ok(batch) if batch.is_empty() => break Ok(()),
                Ok(batch) => {
                    // It ended before, for a reason that is the answer.
                    if to.send(batch).is_err() {
                        break Ok(());
                    }
                }
                Err(e) => break Err(e),
            }
        };
        drop(to);
        let counted = counter.join().unwrap_or_else(|panic| resume_unwind(panic));
        told?;
        Ok(counted?)
    })
}

/// The last block that the base holds and the bitmap calls clean.
fn last_clean(export: &mut Export, base: &mut Map) -> Result<Option<u64>> {
    let told = export.dirty.as_mut().context("there is no bitmap")?;
    let size = told.client.size();
    let mut next = base.last_nonzero(blocks_of(size))?;
    while let Some(last) = next {
        let end = ((last + 1) * BLOCK as u64).min(size);
        let start = end.saturating_sub(STRETCH);
        let spans = told.client.extents(&told.context, start, end - start)?;
        let mut marked: Vec<Span> = spans
            .filter(|span| !matches!(span, Ok(span) if span.flags & DIRTY == 0))
            .collect::<Result<_, _>>()?;
        while let Some(block) = next.filter(|block| block * BLOCK as u64 >= start) {
            let (from, to) = (block * BLOCK as u64, (block + 1) * BLOCK as u64);
            while marked.pop_if(|span| span.offset >= to).is_some() {}
            match marked.last() {
                Some(span) if span.end() > from => {
                    next = base.last_nonzero(span.offset / BLOCK as u64)?;
                }
                _ => return Ok(Some(block)),
            }
        }
    }
    Ok(None)
}

/// The next blocks at or after `from` that differ, as extents, and where to go on.
pub(super) fn next_changed(
    map: &mut MapWriter,
    base: &mut Map,
    from: u64,
    size: u64,
) -> Result<Option<(u64, Vec<Extent>)>> {
    let Some(range) = map.next_difference(base, from)? else {
        return Ok(None);
    };
    let count = usize::try_from(range.end - range.start).context("a range is too long")?;
    let mut now = vec![0; count];
    map.read(range.start, &mut now)?;
    let extents = range.clone().zip(now).map(|(block, print)| {
        let offset = block * BLOCK as u64;
        let len = (size - offset).min(BLOCK as u64);
        Ok::<_, Error>(match print {
            0 => Extent::zero(offset, len),
            _ => Extent::data(offset, len),
        })
    });
    let extents = extent::join(extents).collect::<Result<_>>()?;
    Ok(Some((range.end, extents)))
}
