//! Where a disk may have changed: ranges that are read, in ascending order, never collected.

use anyhow::{Context, Error, Result};
use blockmap::{BLOCK, Map, MapWriter, blocks_of};
use nbd::extent::{self, DIRTY};
use nbd::{BASE_ALLOCATION, Client, Extent, Span};

use super::export::{Dirty, Export};

/// How much of a bitmap is kept in memory at once, in bytes of the disk.
const STRETCH: u64 = 1 << 30;

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

/// What the bitmap names, and whatever lies beyond the end that the base had.
pub(super) fn dirty<'a>(
    layout: &'a mut Client,
    dirty: &'a mut Dirty,
    base_size: u64,
) -> Result<Extents<'a>> {
    let spans = spans(dirty, base_size)?;
    Ok(Box::new(layout.changed::<Error, _>(spans)))
}

/// The bitmap as it counts: libvirt reports clean what a disk grew by, and its short last block was
/// another one before.
pub(super) fn spans<'a>(
    dirty: &'a mut Dirty,
    base_size: u64,
) -> Result<impl Iterator<Item = Result<Span>> + 'a> {
    let size = dirty.client.size();
    let known = match base_size < size {
        true => base_size - base_size % BLOCK as u64,
        false => size,
    };
    let told = match known {
        // There is nothing to ask about.
        0 => None,
        _ => Some(dirty.client.extents(&dirty.context, 0, known)?),
    };
    let grown = (known < size).then(|| {
        Ok(Span {
            offset: known,
            len: size - known,
            flags: DIRTY,
        })
    });
    let told = told.into_iter().flatten();
    Ok(told.map(|span| span.map_err(Error::from)).chain(grown))
}

/// What the bitmap names, in blocks that the base holds.
pub(super) struct Named {
    /// How many blocks it names.
    pub(super) blocks: u64,
    /// How many it does not.
    ///
    /// A delta is larger than the disk only if more blocks became zero than are unchanged. At most every
    /// block that is named became zero, and these are unchanged.
    pub(super) rest: u64,
}

/// Counts what the bitmap names. Reads nothing of the disk, and every page of the base that the bitmap
/// concerns.
pub(super) fn named(export: &mut Export, base: &mut Map) -> Result<Named> {
    let size = export.size();
    let told = export.dirty.as_mut().context("there is no bitmap")?;
    let extents = dirty(&mut export.layout, told, base.header().size)?;
    let mut blocks = 0;
    for extent in extent::align(extents, BLOCK as u64, size) {
        let extent = extent?;
        blocks += base.nonzero_in(extent.offset / BLOCK as u64..blocks_of(extent.end()))?;
    }
    let rest = base.nonzero_blocks().saturating_sub(blocks);
    Ok(Named { blocks, rest })
}

/// The last block that the base holds and the bitmap calls clean, for a disk that is as large as it was.
pub(super) fn last_clean(export: &mut Export, base: &mut Map) -> Result<Option<u64>> {
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
