//! Proving an image file without writing a map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{SeekFrom, seek};

use crate::fingerprint::fingerprints;
use crate::key::{Key, Root};
use crate::map::{Map, check_key};
use crate::sparse;
use crate::tree::{Digest, FAN, Keys, PAGE, PER_PAGE, Page, TOP, ZERO};
use crate::{BLOCK, Error};

/// How much is read at a time: several fit in a core's second-level cache.
const CHUNK: u64 = 256 << 10;
/// Bytes of a disk under one page of fingerprints.
const PAGE_SPAN: u64 = PER_PAGE * BLOCK as u64;
/// Bytes of a disk under one node of level 1: the unit of work of a thread.
const GROUP_SPAN: u64 = FAN * PAGE_SPAN;

/// The root of a raw image of a disk of `size` bytes, computed by `threads` threads.
///
/// Holes are not read. A regular file must be exactly `size` bytes long; a block device may be longer.
/// Moves the file's position.
pub fn root_of(image: &File, size: u64, key: &Key, threads: NonZeroUsize) -> Result<Root, Error> {
    check_size(image, size)?;
    let keys = Keys::new(key);
    let work = Mutex::new(Work {
        next: 0,
        digests: BTreeMap::new(),
    });
    std::thread::scope(|scope| {
        let hands: Vec<_> = (0..threads.get())
            .map(|_| scope.spawn(|| hash_groups(image, size, key, &keys, &work)))
            .collect();
        hands
            .into_iter()
            .map(|hand| hand.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect::<Result<Vec<()>, Error>>()
    })?;
    let work = work.into_inner().unwrap_or_else(PoisonError::into_inner);
    let top = combine(&keys, work.digests);
    Ok(keys.root(size, &top))
}

/// What the threads share: where to go on, and the digests of level 1 so far.
struct Work {
    next: u64,
    digests: BTreeMap<u64, Digest>,
}

fn hash_groups(
    image: &File,
    size: u64,
    key: &Key,
    keys: &Keys,
    work: &Mutex<Work>,
) -> Result<(), Error> {
    let mut reader = Reader::new(image, size, key);
    loop {
        let group = {
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(data) = next_data(image, work.next * GROUP_SPAN, size)? else {
                return Ok(());
            };
            let group = data.start / GROUP_SPAN;
            work.next = group + 1;
            group
        };
        let mut node: Page = [0; PAGE];
        let digests = node.as_chunks_mut().0;
        for (index, digest) in (group * FAN..).zip(digests) {
            *digest = reader
                .page(index)?
                .map_or(ZERO, |page| keys.digest(0, page));
        }
        let digest = keys.digest(1, &node);
        if digest != ZERO {
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            work.digests.insert(group, digest);
        }
    }
}

/// Builds the levels above 1 from the digests of level 1 that are not zero.
fn combine(keys: &Keys, digests: BTreeMap<u64, Digest>) -> Digest {
    let mut digests = digests;
    for level in 2..=TOP {
        let mut nodes: BTreeMap<u64, Digest> = BTreeMap::new();
        let mut children = digests.into_iter().peekable();
        while let Some(index) = children.peek().map(|(child, _)| child / FAN) {
            let mut node: Page = [0; PAGE];
            let slots = node.as_chunks_mut().0;
            while let Some((child, digest)) = children.next_if(|(child, _)| child / FAN == index) {
                slots[(child % FAN) as usize] = digest;
            }
            nodes.insert(index, keys.digest(level, &node));
        }
        digests = nodes;
    }
    digests.remove(&0).unwrap_or(ZERO)
}

/// Reports the ranges of blocks in which a raw image differs from a map, in ascending order, until
/// `report` breaks off. The image must be as long as the map's disk.
pub fn compare_image(
    image: &File,
    key: &Key,
    map: &mut Map,
    mut report: impl FnMut(Range<u64>) -> ControlFlow<()>,
) -> Result<(), Error> {
    let size = map.header().size;
    check_size(image, size)?;
    check_key(map.path(), key.id(), map.tree.keys.id)?;
    let mut reader = Reader::new(image, size, key);
    let mut recorded = [0; PER_PAGE as usize];
    let mut page = 0;
    loop {
        // The next page in which either has content.
        let here = next_data(image, page * PAGE_SPAN, size)?.map(|data| data.start / PAGE_SPAN);
        let there = map.tree.next_page(page)?;
        let Some(next) = here.into_iter().chain(there).min() else {
            return Ok(());
        };
        let zeros = [0; PAGE];
        let found = reader.page(next)?.unwrap_or(&zeros);
        map.read(next * PER_PAGE, &mut recorded)?;
        let pairs = found.as_chunks::<8>().0.iter().zip(&recorded);
        let mut pending = 0..0;
        for (block, (found, recorded)) in (next * PER_PAGE..).zip(pairs) {
            if u64::from_le_bytes(*found) == *recorded {
                continue;
            }
            if block != pending.end {
                let done = std::mem::replace(&mut pending, block..block);
                if !done.is_empty() && report(done).is_break() {
                    return Ok(());
                }
            }
            pending.end = block + 1;
        }
        if !pending.is_empty() && report(pending).is_break() {
            return Ok(());
        }
        page = next + 1;
    }
}

/// Refuses what cannot be the disk: bytes that are missing would count as zeros otherwise.
fn check_size(image: &File, size: u64) -> Result<(), Error> {
    let failed = |source| Error::Image { offset: 0, source };
    let kind = image.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed(io::Error::other(
            "neither a file nor a block device",
        )));
    }
    let found = seek(image, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    match kind.is_file() && found != size || found < size {
        true => Err(Error::ImageSize {
            wanted: size,
            found,
        }),
        false => Ok(()),
    }
}

fn next_data(image: &File, from: u64, end: u64) -> Result<Option<Range<u64>>, Error> {
    sparse::next_data(image, from, end).map_err(|source| Error::Image {
        offset: from,
        source,
    })
}

/// Reads an image as pages of fingerprints.
struct Reader<'a> {
    image: &'a File,
    size: u64,
    key: &'a Key,
    buffer: Vec<u8>,
    fingerprints: Vec<u64>,
    page: Box<Page>,
    /// Where the last look for data began, and what it found.
    looked: Option<(u64, Option<Range<u64>>)>,
}

impl<'a> Reader<'a> {
    fn new(image: &'a File, size: u64, key: &'a Key) -> Self {
        Self {
            image,
            size,
            key,
            buffer: vec![0; CHUNK as usize],
            fingerprints: Vec::with_capacity(CHUNK as usize / BLOCK),
            page: Box::new([0; PAGE]),
            looked: None,
        }
    }

    /// The fingerprints of page `index`; `None` if the image has no data there.
    fn page(&mut self, index: u64) -> Result<Option<&Page>, Error> {
        let start = index * PAGE_SPAN;
        let end = (start + PAGE_SPAN).min(self.size);
        let mut any = false;
        let mut at = start;
        while let Some(data) = self.data_from(at)?
            && data < end
        {
            if !any {
                self.page.fill(0);
                any = true;
            }
            at = data - data % CHUNK;
            let len = (end - at).min(CHUNK);
            self.chunk(at, len as usize, ((at - start) / BLOCK as u64) as usize)?;
            at += len;
        }
        Ok(any.then_some(&*self.page))
    }

    /// Fingerprints `len` bytes at `at` into the page, from its fingerprint `first` on.
    fn chunk(&mut self, at: u64, len: usize, first: usize) -> Result<(), Error> {
        let buffer = self.buffer.get_mut(..len).unwrap_or_default();
        self.image
            .read_exact_at(buffer, at)
            .map_err(|source| Error::Image { offset: at, source })?;
        fingerprints(self.key, buffer, &mut self.fingerprints);
        let slots = self.page.as_chunks_mut::<8>().0.iter_mut().skip(first);
        for (slot, fingerprint) in slots.zip(&self.fingerprints) {
            *slot = fingerprint.to_le_bytes();
        }
        Ok(())
    }

    /// Where the first data at or after `at` begins.
    fn data_from(&mut self, at: u64) -> Result<Option<u64>, Error> {
        let known = self
            .looked
            .as_ref()
            .filter(|(from, data)| *from <= at && data.as_ref().is_none_or(|data| at < data.end));
        let data = match known {
            Some((_, data)) => data.clone(),
            None => {
                let data = next_data(self.image, at, self.size)?;
                self.looked = Some((at, data.clone()));
                data
            }
        };
        Ok(data.map(|data| data.start.max(at)))
    }
}
