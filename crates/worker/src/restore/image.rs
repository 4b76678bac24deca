//! One disk on its way back: the rules of a chain, and the map of what came.
//!
//! A part with sequence number 0 says "the disk is all zero, then this"; any other sits on the part
//! before it. Whether the bytes make an image is the business of [`super::sink`].

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use blockmap::{BLOCK, Header, Key, MapWriter, Root, fingerprints};
use relay::message::PartHead;

use super::sink::{Output, Writing};

/// A disk that is being taken.
pub(super) struct Image {
    target: String,
    output: Output,
    map_path: PathBuf,
    key: Key,
    /// What came so far; nothing before the part that starts the disk.
    open: Option<Open>,
    prints: Vec<u64>,
}

/// A disk since the part that started it.
struct Open {
    size: u64,
    /// Id and sequence number of the last part that began.
    last: (u64, u32),
    map: MapWriter,
    /// Closed for a moment while it is replaced or grows.
    writing: Option<Writing>,
}

/// A complete disk.
pub(super) struct Taken {
    /// Where its image lies, if there is one.
    pub(super) output: Output,
    /// Id of its last part.
    pub(super) part: u64,
    pub(super) root: Root,
    pub(super) map: MapWriter,
}

impl Image {
    /// A disk of which nothing came yet. `map` is where its map may lie meanwhile.
    pub(super) fn new(target: &str, output: Output, map: PathBuf, key: &Key) -> Self {
        Self {
            target: target.into(),
            output,
            map_path: map,
            key: key.clone(),
            open: None,
            prints: Vec::new(),
        }
    }

    /// A part begins: 0 starts the disk, any other must follow the last one.
    pub(super) fn begin_part(&mut self, head: &PartHead) -> Result<()> {
        let target = &self.target;
        let last = self.open.as_ref().map(|open| open.last.1);
        match (last, head.delta_seq) {
            (_, 0) => self.start(head)?,
            (None, seq) => bail!(
                "part {seq} of disk {target} came first: the part that starts it is missing from this restore"
            ),
            (Some(last), seq) if last.checked_add(1) == Some(seq) => self.go_on(head)?,
            (Some(last), seq) => bail!(
                "part {seq} of disk {target} came after part {last}: one is missing or out of order"
            ),
        }
        Ok(())
    }

    /// The disk is all zero, whatever it was before.
    fn start(&mut self, head: &PartHead) -> Result<()> {
        let header = Header {
            job: "restore".into(),
            full_read: "restore".into(),
            trusting: 0,
            part_id: 0,
            delta_seq: 0,
            identity: self.target.clone(),
            size: head.size,
        };
        if let Some(before) = self.open.take() {
            // What was written is worth nothing now, only that it is closed matters.
            drop(before);
            if let Output::Image(place) = &self.output {
                place.remove()?;
            }
        }
        self.open = Some(Open {
            size: head.size,
            last: (head.part, 0),
            map: MapWriter::create(&self.map_path, &self.key, header)?,
            writing: Some(Writing::create(&self.output, head.size)?),
        });
        Ok(())
    }

    /// A part that sits on the one before.
    fn go_on(&mut self, head: &PartHead) -> Result<()> {
        let open = self.open.as_mut().context("a disk has a first part")?;
        ensure!(
            head.size >= open.size,
            "disk {} has {} bytes in part {} and only {} in part {}, but a disk that shrank starts over",
            self.target,
            open.size,
            open.last.1,
            head.size,
            head.delta_seq
        );
        if head.size > open.size {
            open.close()?;
            open.map.grow(head.size)?;
            open.writing = Some(Writing::grow(&self.output, head.size)?);
            open.size = head.size;
        }
        open.last = (head.part, head.delta_seq);
        Ok(())
    }

    /// Takes bytes of the part at hand; returns a buffer for the next ones.
    pub(super) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let open = self.open.as_mut().context("no part of the disk began")?;
        let len = bytes.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= open.size);
        let aligned = |at: u64| at.is_multiple_of(BLOCK as u64);
        let fits = aligned(offset) && end.is_some_and(|end| aligned(end) || end == open.size);
        ensure!(
            fits && len > 0,
            "a record of {len} bytes at {offset} does not fit disk {} of {} bytes",
            self.target,
            open.size
        );
        fingerprints(&self.key, &bytes, &mut self.prints);
        open.map.set(offset / BLOCK as u64, &self.prints)?;
        let writing = open.writing.as_ref().context("the image is closed")?;
        match writing.write(offset, bytes) {
            Some(buffer) => Ok(buffer),
            None => {
                open.close()?;
                bail!("the image of disk {} was closed early", self.target)
            }
        }
    }

    /// Flushes and closes the image; computes the root of what came.
    pub(super) fn finish(mut self) -> Result<Taken> {
        let mut open = self.open.take().context("no part of the disk came")?;
        open.close()?;
        let root = open.map.root().map_err(|e| match e {
            blockmap::Error::StaleTail { .. } => anyhow::Error::new(e).context(
                "the disk grew, and the part that made it larger lacks the block that was its last",
            ),
            e => e.into(),
        })?;
        Ok(Taken {
            output: self.output,
            part: open.last.0,
            root,
            map: open.map,
        })
    }
}

impl Open {
    fn close(&mut self) -> Result<()> {
        self.writing.take().map_or(Ok(()), Writing::close)
    }
}

#[cfg(test)]
mod tests;
