//! One part of a disk: what a job writes of it, without libvirt and without Bacula.
//!
//! A reader thread reads, fingerprints and records in the map what there is ([`super::pass`]); the
//! calling thread hands out what is new. The pool of buffers bounds memory and, through it, how far the
//! reader runs ahead: when the Storage Daemon is slow, no new request is sent to QEMU.

use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context, Result};
use blockmap::{BLOCK, Header, MapWriter};
use relay::frame::MAX_DATA;

use super::chain::Start;
use super::pass::{Look, Reading, Report, Step};

/// Takes the records of a part.
pub trait Records {
    /// The part begins, once and first. `delta_on` is the sequence number of the part that it sits on; none
    /// if it starts over.
    fn begin(&mut self, delta_on: Option<u32>) -> Result<()>;

    /// A record, behind the one before it: whole blocks, the last one of the disk at its true length.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// A part whose records are all handed out. Its map is not sealed yet.
#[derive(Debug)]
pub struct Part {
    /// Fingerprints of the disk as it is now.
    pub map: MapWriter,
    /// How the reading went.
    pub report: Report,
    /// Bytes in all records.
    pub sent_bytes: u64,
    /// Nothing if it sits on its base; otherwise why it starts over, unless that is what the job is for.
    pub over: Option<Option<String>>,
}

/// The header of the map of part `part_id`, of a delta if there is a base.
pub fn header(
    job: &str,
    identity: String,
    part_id: u64,
    size: u64,
    base: Option<&Header>,
    look: Option<Look>,
) -> Header {
    let bitmap = base.filter(|_| look == Some(Look::Bitmap));
    Header {
        full_read: bitmap.map_or(job, |base| &base.full_read).to_owned(),
        trusting: bitmap.map_or(0, |base| base.trusting.saturating_add(1)),
        job: job.to_owned(),
        part_id,
        delta_seq: base.map_or(0, |base| base.delta_seq.saturating_add(1)),
        identity,
        size,
    }
}

/// Reads a disk as `start` and `look` say and gives `out` the records of the part.
///
/// # Errors
/// What `out` says comes first: the reader's error is then its echo.
pub fn send(
    reading: &mut Reading<'_>,
    header: Header,
    start: Start,
    look: Option<Look>,
    out: &mut dyn Records,
) -> Result<Part> {
    let base = start.base().cloned();
    let size = header.size;
    let stop = reading.export.shutdown_handle();
    let (sender, steps) = mpsc::channel();
    let (sent, read) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<(MapWriter, Report)> {
            let sender: Sender<Step> = sender;
            let sink = |step| sender.send(step).context("the sender is gone");
            match start {
                Start::Over(why) => reading.full(header, why, sink),
                Start::Delta(map) => {
                    reading.increment(header, *map, look.unwrap_or(Look::Everything), sink)
                }
            }
        });
        let sent = records(steps, base.as_ref(), size, out);
        if sent.is_err() {
            // The reader may wait for a buffer or for QEMU.
            stop.shutdown();
        }
        let read = reader
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e));
        (sent, read)
    });
    let sent = sent?;
    let (map, report) = read?;
    let (sent_bytes, over) = sent.context("the disk was not begun")?;
    Ok(Part {
        map,
        report,
        sent_bytes,
        over,
    })
}

/// Makes records of what the reader hands over: how many bytes, and whether and why the disk starts over.
/// Nothing if the reader failed before it began.
fn records(
    steps: Receiver<Step>,
    base: Option<&Header>,
    size: u64,
    out: &mut dyn Records,
) -> Result<Option<(u64, Option<Option<String>>)>> {
    let mut begun = None;
    let mut sent = Sent {
        out,
        bytes: 0,
        end: 0,
    };
    for step in steps {
        match step {
            Step::Begin { over } => {
                let over = match base {
                    Some(_) => over.map(Some),
                    None => Some(over),
                };
                let sits = base.filter(|_| over.is_none());
                sent.out.begin(sits.map(|base| base.delta_seq))?;
                begun = Some(over);
            }
            Step::Data { bytes, send: runs } => {
                for run in runs {
                    let part = bytes.get(run.range).context("a run leaves its buffer")?;
                    sent.data(run.offset, part)?;
                }
            }
            Step::Zero { mut offset, len } => {
                let until = offset + len;
                while offset < until {
                    let piece = (until - offset).min(ZEROS.len() as u64);
                    sent.data(offset, ZEROS.get(..piece as usize).unwrap_or_default())?;
                    offset += piece;
                }
            }
        }
    }
    let Some(over) = begun else {
        return Ok(None);
    };
    // The last block carries the size, so that a hole at the end survives in tools that know only
    // the records.
    let resized = over.is_some() || base.is_none_or(|base| base.size != size);
    if resized && sent.end < size {
        let start = (size - 1) / BLOCK as u64 * BLOCK as u64;
        let last = ZEROS.get(..(size - start) as usize);
        sent.data(start, last.context("a block is too long")?)?;
    }
    Ok(Some((sent.bytes, over)))
}

/// What was handed out.
struct Sent<'a> {
    out: &'a mut dyn Records,
    bytes: u64,
    /// Where the last record ended.
    end: u64,
}

impl Sent<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.out.data(offset, bytes)?;
        self.bytes += bytes.len() as u64;
        self.end = offset + bytes.len() as u64;
        Ok(())
    }
}

static ZEROS: [u8; MAX_DATA as usize] = [0; MAX_DATA as usize];
