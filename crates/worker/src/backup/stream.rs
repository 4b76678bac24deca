//! One disk on its way: NBD export -> fingerprints -> map and plugin.
//!
//! A reader thread reads, fingerprints and records in the map what there is ([`super::pass`]); this
//! thread sends what is new. The pool of buffers bounds memory and, through it, how far the
//! reader runs ahead: when the Storage Daemon is slow, no new request is sent to QEMU.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context, Result, bail, ensure};
use blockmap::{BLOCK, Header, Key, MapWriter};
use nbd::ShutdownHandle;
use relay::frame::MAX_DATA;
use relay::message::FileHead;

use super::chain::{Start, map_path};
use super::choose::Chosen;
use super::image::Image;
use super::look::{Where, identity};
use super::pass::{Export, Look, Reading, Report, Step};
use super::prepare::Ready;
use super::request::BITMAP;
use crate::manifest::{Basis, Disk};
use crate::session::{Line, Session};

/// How a disk is read and sent.
pub(super) struct Plan<'a> {
    pub(super) disk: &'a Chosen,
    pub(super) image: &'a Image,
    pub(super) start: Start,
    /// For a delta.
    pub(super) look: Option<Where>,
    pub(super) socket: PathBuf,
    pub(super) export: &'a str,
}

/// Sends one disk and seals its map. `guards` is told every reader.
pub(super) fn disk(
    session: &mut Session,
    ready: &Ready<'_>,
    plan: Plan<'_>,
    key: &Key,
    guards: &dyn Fn(ShutdownHandle),
) -> Result<Disk> {
    let line = session.line().clone();
    let Plan {
        disk, image, start, ..
    } = plan;
    let target = &disk.target;
    let look = plan.look.as_ref().map(|(look, _)| *look);
    let bitmap = matches!(look, Some(Look::Bitmap | Look::Audit)).then_some(BITMAP);
    let mut export = Export::connect(&plan.socket, plan.export, bitmap, guards)?;
    let size = export.size();
    ensure!(size > 0, "the disk has no bytes");
    let part = random_part()?;
    let base = match &start {
        Start::Over(_) => None,
        Start::Delta(map) => Some(map.header().clone()),
    };
    let header = header(ready, disk, part, size, base.as_ref(), look)?;
    let path = map_path(&ready.maps, &ready.job.hello.job, target);
    let (sender, steps) = mpsc::channel();
    let stop = export.shutdown_handle();
    let (sent, read) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(MapWriter, Report)> {
            let sender: Sender<Step> = sender;
            let mut reading = Reading {
                export: &mut export,
                key,
                path: &path,
                wanted: &|| !line.is_gone(),
                limit: None,
            };
            let sink = |step| sender.send(step).context("the sender is gone");
            match start {
                Start::Over(why) => reading.full(header, why, sink),
                Start::Delta(map) => {
                    reading.increment(header, *map, look.unwrap_or(Look::Everything), sink)
                }
            }
        });
        let sending = Sending {
            session: &*session,
            vm: ready.vm,
            disk,
            part,
            size,
            base: base.as_ref(),
        };
        let sent = sending.all(steps);
        if sent.is_err() {
            // The reader may wait for a buffer or for QEMU.
            stop.shutdown();
        }
        let read = reader
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e));
        (sent, read)
    });
    // The sender's error comes first: the reader's is its echo, unless only the reader failed.
    let sent = sent?;
    let (map, report) = read?;
    export.close()?;
    let (sent_bytes, over) = sent.context("the disk was not begun")?;
    session.file_end()?;
    let nonzero_bytes = map.nonzero_blocks() * BLOCK as u64;
    let header = map.header().clone();
    let root = map.seal()?;
    if !report.missed.is_none() {
        line.warn(format!(
            "{}/{target}: THE BITMAP WAS WRONG: what changed outside of it is in this backup, and missing in \
             those since job {}: {}",
            ready.vm,
            base.map_or_else(String::new, |base| base.full_read),
            report.missed
        ));
    }
    let how = match (&over, &plan.look) {
        (Some(Some(why)), _) => format!(" (starts over: {why})"),
        (Some(None), _) => String::new(),
        (None, Some((_, Some(why)))) => format!(" (read whole: {why})"),
        (None, _) => " (bitmap)".into(),
    };
    line.info(format!(
        "{}/{target}: {} sent, {} read of {}{how}, root {root}",
        ready.vm,
        show(sent_bytes),
        show(report.read_bytes),
        show(size)
    ));
    Ok(Disk {
        target: target.clone(),
        file: disk.file(),
        size,
        format: disk.format.clone(),
        source: disk.source.clone(),
        block: disk.block,
        chain: image.chain.clone(),
        data_file: image.data_file.clone(),
        internal_snapshots: image.snapshots.clone(),
        image_unknown: image.unknown.clone(),
        part,
        delta_seq: header.delta_seq,
        root: root.to_string(),
        basis: match header.trusting {
            0 => Basis::FullRead,
            _ => Basis::Bitmap,
        },
        full_read: header.full_read,
        nonzero_bytes,
        sent_bytes,
    })
}

/// The header of the map to come, of a delta if there is a base.
fn header(
    ready: &Ready<'_>,
    disk: &Chosen,
    part_id: u64,
    size: u64,
    base: Option<&Header>,
    look: Option<Look>,
) -> Result<Header> {
    let job = ready.job.hello.job.clone();
    let bitmap = base.filter(|_| look == Some(Look::Bitmap));
    Ok(Header {
        full_read: bitmap.map_or_else(|| job.clone(), |base| base.full_read.clone()),
        trusting: bitmap.map_or(0, |base| base.trusting.saturating_add(1)),
        job,
        part_id,
        delta_seq: base.map_or(0, |base| base.delta_seq.saturating_add(1)),
        identity: identity(disk)?,
        size,
    })
}

/// The side of a disk that speaks to the plugin.
struct Sending<'a> {
    session: &'a Session,
    vm: &'a str,
    disk: &'a Chosen,
    part: u64,
    size: u64,
    base: Option<&'a Header>,
}

impl Sending<'_> {
    /// Sends what the reader hands over: how many bytes, and whether and why the disk starts over.
    /// Nothing if the reader failed before it began.
    fn all(&self, steps: Receiver<Step>) -> Result<Option<(u64, Option<Option<String>>)>> {
        let line: &Line = self.session.line();
        let mut begun = None;
        let mut sent = Sent::default();
        for step in steps {
            match step {
                Step::Begin { over } => {
                    let over = match self.base {
                        Some(_) => over.map(Some),
                        None => Some(over),
                    };
                    self.session.file(&self.head(over.is_some()))?;
                    begun = Some(over);
                }
                Step::Data { bytes, send: runs } => {
                    for run in runs {
                        let part = bytes.get(run.range).context("a run leaves its buffer")?;
                        sent.data(line, run.offset, part)?;
                    }
                }
                Step::Zero { mut offset, len } => {
                    let until = offset + len;
                    while offset < until {
                        let piece = (until - offset).min(ZEROS.len() as u64);
                        let zeros = ZEROS.get(..piece as usize).unwrap_or_default();
                        sent.data(line, offset, zeros)?;
                        offset += piece;
                    }
                }
            }
            if line.is_gone() {
                bail!("the plugin closed the connection");
            }
        }
        let Some(over) = begun else {
            return Ok(None);
        };
        // The last block carries the size, so that a hole at the end survives in tools that know only
        // the records.
        let size = self.size;
        let resized = over.is_some() || self.base.is_none_or(|base| base.size != size);
        if resized && sent.end < size {
            let start = (size - 1) / BLOCK as u64 * BLOCK as u64;
            let last = ZEROS.get(..(size - start) as usize);
            sent.data(line, start, last.context("a block is too long")?)?;
        }
        Ok(Some((sent.bytes, over)))
    }

    fn head(&self, over: bool) -> FileHead {
        let delta_on = self.base.filter(|_| !over).map(|base| base.delta_seq);
        FileHead {
            part: self.part,
            offsets: true,
            delta_on,
            ..super::head(self.vm, &self.disk.file(), self.size)
        }
    }
}

/// What was sent of a disk.
#[derive(Default)]
struct Sent {
    bytes: u64,
    /// Where the last record ended.
    end: u64,
}

impl Sent {
    fn data(&mut self, line: &Line, offset: u64, bytes: &[u8]) -> Result<()> {
        line.data(offset, bytes)?;
        self.bytes += bytes.len() as u64;
        self.end = offset + bytes.len() as u64;
        Ok(())
    }
}

static ZEROS: [u8; MAX_DATA as usize] = [0; MAX_DATA as usize];

/// A random id of 63 bits, never 0.
fn random_part() -> Result<u64> {
    let random = getrandom::u64().map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    Ok((random >> 1).max(1))
}

/// Bytes for people.
fn show(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes >> 20),
    }
}
