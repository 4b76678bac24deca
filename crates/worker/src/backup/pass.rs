//! Passes over a disk: what of it must be sent, read through one export.
//!
//! ```text
//! full       read everything that is not known to be zero -> send what is not zero
//! increment  bitmap, surely small   read what it names   -> send what differs from the base
//!            otherwise              read and fingerprint -> now the difference is known: send it, or
//!                                                           start over if it is more than the disk holds
//! ```
//!
//! The second way reads twice what it sends, and nothing else: the first reading leaves a map, and the
//! maps tell where they differ. What is read twice is the same both times, because an export shows one
//! instant; that is checked all the same.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Error, Result, ensure};
use blockmap::{
    BLOCK, Header, Key, Map, MapWriter, Run, blocks_of, fingerprint, fingerprints, runs,
};
use nbd::{Client, Piece, Pool, ReadOptions};

use super::audit::{Audit, Missed};
use super::candidates::{self, Extents};
use super::export::Export;

/// Buffers that may wait between reader and sender.
const BEHIND: usize = 8;

/// Where an increment looks for changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Where the dirty bitmap says.
    Bitmap,
    /// Everywhere.
    Everything,
    /// Everywhere, and compares what is found with the bitmap.
    Audit,
}

/// What a pass hands over, in this order: one begin, then data and zeros in ascending order.
#[derive(Debug)]
pub enum Step {
    /// The part begins.
    Begin {
        /// Why it starts over; none if it sits on the base.
        over: Option<String>,
    },
    /// A buffer with the ranges of it that are sent.
    Data {
        /// What was read.
        bytes: nbd::Buffer,
        /// The parts of it that are sent, at least one.
        send: Vec<Run>,
    },
    /// Zeros that are sent.
    Zero {
        /// Where they begin, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// How a reading went.
#[derive(Debug, Default)]
pub struct Report {
    /// Bytes that were read from the export.
    pub read_bytes: u64,
    /// What an audit found.
    pub missed: Missed,
    /// Was the bitmap found to be wrong before anything was sent, so that this became an audit?
    pub doubted: bool,
}

/// One disk to be read. `sink` is called on this thread and must not wait for slow output.
pub struct Reading<'a> {
    /// Where it is read.
    pub export: &'a mut Export,
    /// The VM's key.
    pub key: &'a Key,
    /// Where its map goes.
    pub path: &'a Path,
    /// Does anybody still wait for it?
    pub wanted: &'a (dyn Fn() -> bool + Sync),
    /// Bytes of a cluster of its image, a power of two.
    pub cluster: u64,
    /// Most bytes a second that are asked for; none reads as fast as it goes.
    pub limit: Option<u64>,
}

impl Reading<'_> {
    /// Hands over all that is not zero.
    pub fn full(
        &mut self,
        header: Header,
        why: Option<String>,
        mut sink: impl FnMut(Step) -> Result<()>,
    ) -> Result<(MapWriter, Report)> {
        let mut report = Report::default();
        let map = self.over(header, why, &mut report, &mut sink)?;
        Ok((map, report))
    }

    /// Hands over what differs from `base`, or everything if that is less or the base turns out to be
    /// damaged. `header` is that of a delta.
    pub fn increment(
        &mut self,
        header: Header,
        mut base: Map,
        look: Look,
        mut sink: impl FnMut(Step) -> Result<()>,
    ) -> Result<(MapWriter, Report)> {
        let mut report = Report::default();
        let examined = self.examine(header.clone(), &mut base, look, &mut report);
        let (mut map, found) = match examined {
            Ok(examined) => examined,
            // A page of the base is damaged: nothing was sent yet.
            Err(e) if e.downcast_ref::<blockmap::Error>().is_some() => {
                return self.full(header, Some(format!("{e:#}")), sink);
            }
            Err(e) => return Err(e),
        };
        match found {
            Found::Little(from) => {
                sink(Step::Begin { over: None })?;
                self.compare(&mut base, &mut map, look, from, &mut report, &mut sink)?;
            }
            Found::Changed(changed) if changed > map.nonzero_blocks() => {
                let bytes = |blocks: u64| show(blocks.saturating_mul(BLOCK as u64));
                let why = format!(
                    "the change ({}) is more than the disk holds ({})",
                    bytes(changed),
                    bytes(map.nonzero_blocks())
                );
                // What the map says of blocks that were not read may be wrong; now all are read.
                map = self.over(header, Some(why), &mut report, &mut sink)?;
            }
            Found::Changed(_) => {
                sink(Step::Begin { over: None })?;
                self.differences(&mut base, &mut map, &mut report, &mut sink)?;
            }
        }
        Ok((map, report))
    }

    /// Starts over: a map of its own, and all that is not zero.
    fn over(
        &mut self,
        header: Header,
        why: Option<String>,
        report: &mut Report,
        sink: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<MapWriter> {
        let mut map = MapWriter::create(self.path, self.key, header.over())?;
        sink(Step::Begin { over: why })?;
        self.whole(&mut map, report, sink)?;
        Ok(map)
    }

    /// Finds out how much changed before anything is sent. Every page of the base that the reading of a
    /// [`Found::Little`] needs was read, so that damage of it is known now.
    fn examine(
        &mut self,
        mut header: Header,
        base: &mut Map,
        mut look: Look,
        report: &mut Report,
    ) -> Result<(MapWriter, Found)> {
        let mut from = candidates::known(base.header().size, header.size);
        if look == Look::Bitmap {
            let trust = candidates::weigh(self.export, base, self.cluster)?;
            if !self.is_kept(trust.witness, base, report)? {
                report.doubted = true;
                look = Look::Audit;
                header = header.whole();
            } else if trust.few {
                let map = MapWriter::clone_from(base, self.path, header)?;
                return Ok((map, Found::Little(trust.from)));
            } else {
                from = trust.from;
            }
        }
        let mut map = MapWriter::clone_from(base, self.path, header)?;
        let mut changed = 0;
        self.compare(base, &mut map, look, from, report, &mut |step| {
            changed += match step {
                Step::Data { send, .. } => send
                    .iter()
                    .map(|run| blocks_of(run.range.len() as u64))
                    .sum(),
                Step::Zero { len, .. } => blocks_of(len),
                Step::Begin { .. } => 0,
            };
            Ok(())
        })?;
        Ok((map, Found::Changed(changed)))
    }

    /// Is a block what it was?
    fn is_kept(&mut self, block: Option<u64>, base: &mut Map, report: &mut Report) -> Result<bool> {
        let Some(block) = block else {
            return Ok(true);
        };
        let offset = block * BLOCK as u64;
        let len = (self.export.size() - offset).min(BLOCK as u64);
        let mut bytes = vec![0; len as usize];
        self.export.data.read_at(offset, &mut bytes)?;
        report.read_bytes += len;
        let mut then = [0];
        base.read(block, &mut then)?;
        Ok(then == [fingerprint(self.key, &bytes)])
    }

    /// Everything that is not zero; `map` is of an all-zero disk.
    fn whole(
        &mut self,
        map: &mut MapWriter,
        report: &mut Report,
        sink: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let options = self.options();
        let extents = candidates::everything(&mut self.export.layout)?;
        let mut prints = Vec::new();
        let (key, wanted) = (self.key, self.wanted);
        read(&mut self.export.data, extents, &options, |piece| {
            // A disk may be full of zeros: nothing is sent then that would tell.
            ensure!(wanted(), GONE);
            // What is known to be zero is zero in the map already.
            if let Piece::Data { offset, bytes } = piece {
                report.read_bytes += bytes.len() as u64;
                fingerprints(key, &bytes, &mut prints);
                map.set(offset / BLOCK as u64, &prints)?;
                let send: Vec<_> = runs(offset, bytes.len(), &prints, None).collect();
                if !send.is_empty() {
                    sink(Step::Data { bytes, send })?;
                }
            }
            Ok(())
        })
    }

    /// Reads where `look` says and whatever lies at or beyond `from`, records it in `map`, a clone of `base`, and hands over what differs.
    fn compare(
        &mut self,
        base: &mut Map,
        map: &mut MapWriter,
        look: Look,
        from: u64,
        report: &mut Report,
        sink: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let options = self.options();
        let (key, wanted) = (self.key, self.wanted);
        let Export {
            layout,
            data,
            dirty,
        } = &mut *self.export;
        let mut audit = None;
        let extents = match (look, dirty) {
            (Look::Everything, _) => candidates::everything(layout)?,
            (Look::Bitmap, Some(dirty)) => candidates::dirty(layout, dirty, from)?,
            (Look::Audit, Some(dirty)) => {
                audit = Some(Audit::new(dirty, from)?);
                candidates::everything(layout)?
            }
            (_, None) => anyhow::bail!("there is no bitmap to look at"),
        };
        let (mut now, mut then) = (Vec::new(), Vec::new());
        read(data, extents, &options, |piece| {
            ensure!(wanted(), GONE);
            match piece {
                Piece::Data { offset, bytes } => {
                    let first = offset / BLOCK as u64;
                    report.read_bytes += bytes.len() as u64;
                    fingerprints(key, &bytes, &mut now);
                    then.resize(now.len(), 0);
                    base.read(first, &mut then)?;
                    map.set(first, &now)?;
                    let send: Vec<_> = runs(offset, bytes.len(), &now, Some(&then)).collect();
                    if let Some(audit) = &mut audit {
                        for run in &send {
                            audit.changed(run.offset, run.range.len() as u64)?;
                        }
                    }
                    if !send.is_empty() {
                        sink(Step::Data { bytes, send })?;
                    }
                }
                Piece::Zero { offset, len } => {
                    let blocks = offset / BLOCK as u64..blocks_of(offset + len);
                    let mut from = blocks.start;
                    while let Some(run) = base.next_nonzero(from)?
                        && run.start < blocks.end
                    {
                        from = run.end.min(blocks.end);
                        let start = run.start * BLOCK as u64;
                        let len = (from * BLOCK as u64).min(offset + len) - start;
                        if let Some(audit) = &mut audit {
                            audit.changed(start, len)?;
                        }
                        sink(Step::Zero { offset: start, len })?;
                    }
                    map.set_zero(blocks.start, blocks.end - blocks.start)?;
                }
            }
            Ok(())
        })?;
        if let Some(audit) = audit {
            report.missed = audit.end();
        }
        Ok(())
    }

    /// Reads and hands over where `map`, which knows the whole disk, differs from `base`.
    fn differences(
        &mut self,
        base: &mut Map,
        map: &mut MapWriter,
        report: &mut Report,
        sink: &mut dyn FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let size = self.export.size();
        let options = self.options();
        let (key, wanted) = (self.key, self.wanted);
        let maps = RefCell::new((base, map));
        let mut pending = Vec::new();
        let mut from = 0;
        let plan = std::iter::from_fn(|| {
            if pending.is_empty() {
                let (base, map) = &mut *maps.borrow_mut();
                match candidates::next_changed(map, base, from, size) {
                    Ok(None) => return None,
                    Ok(Some((end, extents))) => {
                        from = end;
                        pending = extents;
                        pending.reverse();
                    }
                    Err(e) => return Some(Err(e)),
                }
            }
            pending.pop().map(Ok)
        });
        let (mut now, mut then) = (Vec::new(), Vec::new());
        read(&mut self.export.data, Box::new(plan), &options, |piece| {
            ensure!(wanted(), GONE);
            match piece {
                Piece::Data { offset, bytes } => {
                    let (base, map) = &mut *maps.borrow_mut();
                    let first = offset / BLOCK as u64;
                    report.read_bytes += bytes.len() as u64;
                    fingerprints(key, &bytes, &mut now);
                    then.resize(now.len(), 0);
                    map.read(first, &mut then)?;
                    ensure!(
                        now == then,
                        "the disk changed at {offset} while it was read"
                    );
                    base.read(first, &mut then)?;
                    let send: Vec<_> = runs(offset, bytes.len(), &now, Some(&then)).collect();
                    if !send.is_empty() {
                        sink(Step::Data { bytes, send })?;
                    }
                }
                Piece::Zero { offset, len } => sink(Step::Zero { offset, len })?,
            }
            Ok(())
        })
    }

    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.limit = self.limit;
        options
    }
}

/// Bytes for people.
pub(super) fn show(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes >> 20),
    }
}

const GONE: &str = "the plugin closed the connection";

/// What is known of an increment before it is sent.
enum Found {
    /// It is smaller than the disk, whatever it holds; nothing was read yet. From this byte on, everything
    /// is to be read.
    Little(u64),
    /// So many blocks differ, and the map is complete.
    Changed(u64),
}

fn read(
    data: &mut Client,
    extents: Extents<'_>,
    options: &ReadOptions,
    sink: impl FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let pool: Pool = options.pool(BEHIND);
    data.read::<Error, _, _>(extents, options, &pool, sink)
}
