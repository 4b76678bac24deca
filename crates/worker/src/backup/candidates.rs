//! Where a disk may have changed: ranges that are read, in ascending order, never collected.

use anyhow::{Error, Result};
use blockmap::{BLOCK, Map, blocks_of};
use nbd::extent::{self, DIRTY};
use nbd::{BASE_ALLOCATION, Client, Extent, Span};

use super::pass::{Dirty, Export};

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

/// Is what the bitmap names surely less than the disk holds, whatever is found there? Reads nothing of the
/// disk, and every page of the base that the bitmap concerns.
///
/// A delta is larger than the disk only if more blocks became zero than are unchanged. At most every
/// nonzero block that is named became zero; all others are unchanged.
pub(super) fn are_few(export: &mut Export, base: &mut Map) -> Result<bool> {
    let base_size = base.header().size;
    let Some(told) = &mut export.dirty else {
        return Ok(false);
    };
    let mut named = 0;
    for extent in dirty(&mut export.layout, told, base_size)? {
        let extent = extent?;
        named += base.nonzero_in(extent.offset / BLOCK as u64..blocks_of(extent.end()))?;
    }
    Ok(named <= base.nonzero_blocks().saturating_sub(named))
}
