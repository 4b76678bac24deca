//! Pipelined reads: the hot path of a backup.
//!
//! A few requests are kept in flight on one connection, their replies are received straight into
//! pooled buffers, and the sink gets them in the order of their offsets. One or two MiB in flight
//! keep a local server busy; more only drops out of the processor's cache, and smaller requests
//! cost the server more time per byte.

use crate::client::Client;
use crate::error::Error;
use crate::extent::{self, Extent};
use crate::pool::{Buffer, Pool};
use crate::window::Window;

/// Requests begin and end on multiples of this, or at the end of the disk.
const BLOCK: u64 = 4096;

/// How a read is cut up and how much of it is under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Longest request in bytes. The buffers of the pool and the server's maximum cap it; requests
    /// are cut at its multiples.
    pub request: u32,
    /// Most requests in flight.
    pub in_flight: usize,
    /// Shall the server look for holes and send them as such? Costs it a look at the image's
    /// metadata for every request; useful where zeros are not known beforehand.
    pub holes: bool,
    /// Most bytes per second to ask for; `None` reads as fast as the server answers.
    pub limit: Option<u64>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            request: 512 << 10,
            in_flight: 4,
            holes: false,
            limit: None,
        }
    }
}

impl ReadOptions {
    /// A pool that fits these options and lets a consumer hold `behind` buffers besides.
    pub fn pool(&self, behind: usize) -> Pool {
        Pool::new(self.in_flight.max(1) + behind, self.request as usize)
    }
}

/// A part of the disk, as the sink gets it.
#[derive(Debug)]
pub enum Piece {
    /// Bytes that were read; at most one request long.
    Data {
        /// First byte, a multiple of 4 KiB.
        offset: u64,
        /// The bytes. Dropping it returns the memory to the pool.
        bytes: Buffer,
    },
    /// Zeros: a zero extent of the plan, or a hole that the server reported. Any length.
    Zero {
        /// First byte, a multiple of 4 KiB.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Piece {
    /// First byte of the part.
    pub fn offset(&self) -> u64 {
        match self {
            Piece::Data { offset, .. } | Piece::Zero { offset, .. } => *offset,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data { bytes, .. } => bytes.len() as u64,
            Piece::Zero { len, .. } => *len,
        }
    }

    /// Never true: there are no empty parts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Client {
    /// Reads `extents` and hands them to `sink` in order, without gaps inside an extent.
    ///
    /// Extents ascend without overlap; each is widened to whole blocks of 4 KiB
    /// ([`extent::align`]), zero ones are passed on without a request. The iterator may ask another
    /// connection for what comes next.
    ///
    /// The sink runs on this thread and shall not wait for slow output: replies under way would
    /// stay in the server. Let it push into an unbounded channel; the pool is what bounds memory,
    /// because no request is sent before it has a buffer. When the pool is dry and nothing is
    /// under way, this waits for a buffer, or for [`crate::ShutdownHandle::shutdown`].
    ///
    /// # Errors
    /// The first failure ends the read; everything before its offset has been given to the sink.
    /// If the server failed one request, or the plan or the sink failed, what was under way is drained
    /// and the client can be used again.
    pub fn read<E, I, S>(
        &mut self,
        extents: I,
        options: &ReadOptions,
        pool: &Pool,
        mut sink: S,
    ) -> Result<(), E>
    where
        E: From<Error>,
        I: IntoIterator<Item = Result<Extent, E>>,
        S: FnMut(Piece) -> Result<(), E>,
    {
        self.conn.check()?;
        let block = BLOCK.max(u64::from(self.agreed.blocks.minimum));
        let size = self.size();
        let export = self.conn.export.clone();
        let checked = ordered(extents.into_iter(), size, export);
        let mut plan = extent::align(checked, block, size);
        let mut window = Window::new(self, options, pool, block);
        let mut ended: Option<Result<(), E>> = None;
        loop {
            while ended.is_none() && window.wants_more() {
                match plan.next() {
                    Some(Ok(extent)) => window.add(extent),
                    Some(Err(error)) => ended = Some(Err(error)),
                    None => ended = Some(Ok(())),
                }
            }
            window.send()?;
            let mut served = false;
            while let Some(done) = window.pop() {
                served = true;
                match done {
                    Ok(piece) => {
                        if let Err(error) = sink(piece) {
                            // Whoever wants no more of this may want something else. If this fails,
                            // so will the next request.
                            let _ = window.drain();
                            return Err(error);
                        }
                    }
                    Err(error) => {
                        window.drain()?;
                        return Err(error.into());
                    }
                }
            }
            if served {
                // Its buffers may be free again: ask for more before waiting.
                continue;
            }
            if window.open > 0 {
                window.receive()?;
            } else if let Some(end) = ended.take_if(|_| !window.has_work()) {
                return end;
            }
        }
    }

    /// Reads exactly `buf` at `offset`, one request at a time: for a few bytes, not for a disk.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        if buf.is_empty() {
            return Ok(());
        }
        let options = ReadOptions::default();
        let pool = Pool::new(options.in_flight, 64 << 10);
        buf.fill(0);
        self.read([Ok(Extent::data(offset, len))], &options, &pool, |piece| {
            if let Piece::Data { offset: at, bytes } = piece {
                // The piece may begin before what was asked for, and end behind it.
                let skip = offset.saturating_sub(at) as usize;
                let from = bytes.get(skip..).unwrap_or_default();
                let to = buf.get_mut(at.saturating_sub(offset) as usize..);
                to.unwrap_or_default()
                    .iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| *to = *from);
            }
            Ok(())
        })
    }
}

/// Passes a plan on while it ascends inside the disk.
fn ordered<E: From<Error>>(
    extents: impl Iterator<Item = Result<Extent, E>>,
    size: u64,
    export: String,
) -> impl Iterator<Item = Result<Extent, E>> {
    let mut done = 0;
    extents
        .filter(|extent| !matches!(extent, Ok(extent) if extent.len == 0))
        .map(move |extent| {
            let extent = extent?;
            let bad = |reason| Error::BadRange {
                export: export.clone(),
                offset: extent.offset,
                len: extent.len,
                reason,
            };
            match extent.offset.checked_add(extent.len) {
                Some(end) if end <= size => {
                    if extent.offset < done {
                        return Err(bad("come after what lies behind them").into());
                    }
                    done = end;
                    Ok(extent)
                }
                _ => Err(bad("reach beyond the end of the disk").into()),
            }
        })
}
