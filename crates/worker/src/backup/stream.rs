//! One disk on its way: NBD export -> fingerprints -> map and plugin.
//!
//! A reader thread asks QEMU where data is, reads it, fingerprints it and records it in the map; this
//! thread sends what is not zero. The pool of buffers bounds memory and, through it, how far the
//! reader runs ahead: when the Storage Daemon is slow, no new request is sent to QEMU.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use blockmap::{BLOCK, Header, Key, MapWriter, fingerprints, runs};
use nbd::{BASE_ALLOCATION, Client, Piece, ReadOptions, extent};

use super::choose::Chosen;
use super::image::Image;
use super::watch::Watch;
use super::{Ready, head};
use crate::manifest::{Basis, Disk};
use crate::session::Session;

/// How long QEMU may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Buffers that may wait between reader and sender.
const BEHIND: usize = 8;

/// A buffer with the ranges of it that are sent.
#[derive(Debug)]
pub struct Block {
    /// Where the buffer begins on the disk, in bytes.
    pub offset: u64,
    /// What was read.
    pub bytes: nbd::Buffer,
    /// The parts of it that are not zero.
    pub send: Vec<blockmap::Run>,
}

/// Sends one disk as a file that starts over; seals its map.
pub(super) fn disk(
    session: &mut Session,
    ready: &Ready<'_>,
    disk: &Chosen,
    key: &Key,
    maps: &Path,
    watch: &Watch,
    image: Image,
) -> Result<Disk> {
    let line = session.line().clone();
    let connect = |contexts: &[&str]| -> Result<Client> {
        let client = Client::connect(&ready.socket, &disk.target, contexts, CONNECT)?;
        watch.guards(client.shutdown_handle());
        Ok(client)
    };
    let layout = connect(&[BASE_ALLOCATION])?;
    let data = connect(&[])?;
    let size = data.size();
    ensure!(size > 0, "the disk has no bytes");
    let part = random_part()?;
    let header = Header {
        job: ready.job.hello.job.clone(),
        full_read: ready.job.hello.job.clone(),
        part_id: part,
        delta_seq: 0,
        identity: identity(disk)?,
        size,
    };
    let path = maps.join(format!("{}-{}.map", ready.job.hello.job, disk.target));
    let mut map = MapWriter::create(&path, key, header)?;

    session.file(&head(ready.vm, &disk.file(), size, part))?;
    let (sender, blocks) = mpsc::channel();
    let stop = data.shutdown_handle();
    let (sent, read) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let sender: Sender<Block> = sender;
            let wanted = || !line.is_gone();
            scan(layout, data, key, &mut map, wanted, |block| {
                sender.send(block).context("the sender is gone")
            })
        });
        let sent = send(&line, blocks, size);
        if sent.is_err() {
            // The reader may wait for a buffer or for QEMU.
            stop.shutdown();
        }
        let read = reader
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e));
        (sent, read)
    });
    watch.check()?;
    // The sender's error comes first: the reader's is its echo, unless only the reader failed.
    let sent_bytes = sent?;
    read?;
    session.file_end()?;
    let nonzero_bytes = map.nonzero_blocks() * BLOCK as u64;
    let root = map.seal()?;
    line.info(format!(
        "{}/{}: {} MiB sent of {} MiB, root {root}",
        ready.vm,
        disk.target,
        sent_bytes >> 20,
        size >> 20
    ));
    Ok(Disk {
        target: disk.target.clone(),
        file: disk.file(),
        size,
        format: disk.format.clone(),
        source: disk.source.clone(),
        block: disk.block,
        chain: image.chain,
        data_file: image.data_file,
        internal_snapshots: image.snapshots,
        image_unknown: image.unknown,
        part,
        root: root.to_string(),
        basis: Basis::FullRead,
        nonzero_bytes,
        sent_bytes,
    })
}

/// Reads everything that is not known to be zero, fingerprints it, records it in `map`, and hands over
/// the buffers that have something to send. Ends early when nobody is there any more for whom it is
/// `wanted`. Both connections are closed when this returns.
pub fn scan(
    mut layout: Client,
    mut data: Client,
    key: &Key,
    map: &mut MapWriter,
    wanted: impl Fn() -> bool,
    mut sink: impl FnMut(Block) -> Result<()>,
) -> Result<()> {
    let size = data.size();
    let extents = extent::allocation(layout.extents(BASE_ALLOCATION, 0, size)?)
        .map(|extent| extent.map_err(anyhow::Error::from));
    let options = ReadOptions::default();
    let pool = options.pool(BEHIND);
    let mut prints = Vec::new();
    data.read(extents, &options, &pool, |piece| -> Result<()> {
        // A disk may be full of zeros: nothing is sent then that would tell.
        ensure!(wanted(), "the plugin closed the connection");
        // What is zero is zero in a fresh map already.
        if let Piece::Data { offset, bytes } = piece {
            fingerprints(key, &bytes, &mut prints);
            map.set(offset / BLOCK as u64, &prints)?;
            let send: Vec<_> = runs(offset, bytes.len(), &prints, None).collect();
            if !send.is_empty() {
                sink(Block {
                    offset,
                    bytes,
                    send,
                })?;
            }
        }
        Ok(())
    })?;
    data.close()?;
    layout.close()?;
    Ok(())
}

/// Sends what the reader hands over, and the disk's last block in any case: it carries the size, so
/// that a hole at the end survives in tools that know only the records.
fn send(line: &crate::session::Line, blocks: Receiver<Block>, size: u64) -> Result<u64> {
    let mut sent = 0;
    let mut end = 0;
    for block in blocks {
        for run in &block.send {
            let bytes = block
                .bytes
                .get(run.range.clone())
                .context("a run leaves its buffer")?;
            line.data(run.offset, bytes)?;
            sent += bytes.len() as u64;
            end = run.offset + bytes.len() as u64;
        }
        debug_assert!(block.offset <= end, "runs lie in their block");
        if line.is_gone() {
            bail!("the plugin closed the connection");
        }
    }
    if end < size {
        let start = (size - 1) / BLOCK as u64 * BLOCK as u64;
        let zeros = [0; BLOCK];
        let last = zeros
            .get(..(size - start) as usize)
            .context("a block is too long")?;
        line.data(start, last)?;
        sent += last.len() as u64;
    }
    Ok(sent)
}

/// A random id of 63 bits, never 0.
fn random_part() -> Result<u64> {
    let random = getrandom::u64().map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    Ok((random >> 1).max(1))
}

/// What makes a disk this disk: its image's device and inode (or device number), format, target.
fn identity(disk: &Chosen) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(&disk.source)
        .with_context(|| format!("cannot look at {}", disk.source.display()))?;
    let place = if disk.block {
        format!("block {}", facts.rdev())
    } else {
        format!("file {}:{}", facts.dev(), facts.ino())
    };
    Ok(format!("{place} {} {}", disk.format, disk.target))
}
