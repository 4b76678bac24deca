//! The pages of a map and the digests over them, in a file, through a small cache.
//!
//! Level 0 are pages of 512 fingerprints; a page of level 1 to 4 is a node and holds the digests of
//! its 128 children. The depth is fixed: four levels of nodes cover [`MAX_SIZE`], and an all-zero
//! subtree of any height has the digest zero and no bytes in the file, so the unused height costs
//! nothing and a disk can grow without moving a page.
//!
//! Two rules make every answer exact:
//! * a page that comes from the file is compared with the digest above it before anybody sees it;
//! * a changed page that leaves the cache is written and its digest put into the page above.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::key::{Key, KeyId, Root, digest};
use crate::sparse;
use crate::{BLOCK, Error};

/// Bytes of a page, of either kind.
pub(crate) const PAGE: usize = 4096;
/// Fingerprints in a page of level 0.
pub(crate) const PER_PAGE: u64 = 512;
/// Digests in a page of level 1 and up.
pub(crate) const FAN: u64 = 128;
/// Level of the only page that has no page above it.
pub(crate) const TOP: usize = 4;
/// Largest disk that a map can describe: 512 TiB, in bytes.
pub const MAX_SIZE: u64 = FAN.pow(TOP as u32) * PER_PAGE * BLOCK as u64;

/// Cached pages per level: enough for requests that complete out of order over 128 MiB, and for
/// random writes all over 10 TiB; 1.3 MiB if all are in use.
const CACHE: [u64; TOP + 1] = [64, 128, 128, 16, 1];

pub(crate) type Page = [u8; PAGE];
/// HighwayHash-256 of a page under its level's key; zero for an all-zero page.
pub(crate) type Digest = [u8; 32];
pub(crate) const ZERO: Digest = [0; 32];

/// The digest keys of one VM key.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) id: KeyId,
    level: [highway::Key; TOP + 1],
    root: highway::Key,
}

impl Keys {
    pub(crate) fn new(key: &Key) -> Self {
        Self {
            id: key.id(),
            level: [
                key.derive("lab-backup map 1: page"),
                key.derive("lab-backup map 1: node 1"),
                key.derive("lab-backup map 1: node 2"),
                key.derive("lab-backup map 1: node 3"),
                key.derive("lab-backup map 1: node 4"),
            ],
            root: key.derive("lab-backup map 1: root"),
        }
    }

    /// The digest of a page of `level`.
    pub(crate) fn digest(&self, level: usize, page: &Page) -> Digest {
        match is_zero(page) {
            true => ZERO,
            false => self.hash(level, page),
        }
    }

    /// The digest of a page that is not all zero.
    fn hash(&self, level: usize, page: &Page) -> Digest {
        let [page_key, node_keys @ ..] = self.level;
        let key = level.checked_sub(1).and_then(|node| node_keys.get(node));
        digest(*key.unwrap_or(&page_key), page)
    }

    /// The root of a disk of `size` bytes whose topmost page has the digest `top`.
    pub(crate) fn root(&self, size: u64, top: &Digest) -> Root {
        let mut data = [0; 40];
        for (to, from) in data.iter_mut().zip(size.to_le_bytes().iter().chain(top)) {
            *to = *from;
        }
        Root(digest(self.root, &data))
    }
}

fn is_zero(page: &Page) -> bool {
    page.chunks_exact(256)
        .all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// Pages in the subtree of a page of `level`, itself included.
const fn stride(level: usize) -> u64 {
    let mut pages = 1;
    let mut below = 0;
    while below < level {
        pages = 1 + FAN * pages;
        below += 1;
    }
    pages
}

/// Where page `index` of `level` lies in the file, in pages.
///
/// A node lies right before the subtrees of its children. So locality on the disk is locality in the
/// file, and growth only appends.
pub(crate) fn position(level: usize, index: u64) -> u64 {
    let mut at = 1;
    for above in (level..TOP).rev() {
        let child = (index / FAN.pow((above - level) as u32)) % FAN;
        at += 1 + child * stride(above);
    }
    at
}

/// Which page lies at `at` in the file; the reverse of [`position`]. `None` for the header.
pub(crate) fn page_at(at: u64) -> Option<(usize, u64)> {
    let mut rest = at.checked_sub(1)?;
    let (mut level, mut index) = (TOP, 0);
    while rest > 0 {
        level = level.checked_sub(1)?;
        rest -= 1;
        index = index * FAN + rest / stride(level);
        rest %= stride(level);
    }
    Some((level, index))
}

/// How many pages of fingerprints a disk of `size` bytes has.
pub(crate) fn pages_of(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64 * PER_PAGE)
}

/// Length of the map of a disk of `size` bytes.
pub(crate) fn file_len(size: u64) -> u64 {
    let last = match pages_of(size) {
        0 => position(TOP, 0),
        pages => position(0, pages - 1),
    };
    (last + 1) * PAGE as u64
}

/// A page in memory.
struct Slot {
    index: u64,
    dirty: bool,
    page: Box<Page>,
}

pub(crate) struct Tree {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) keys: Keys,
    /// Digest of the topmost page, as of the last flush.
    pub(crate) top: Digest,
    levels: [Vec<Option<Slot>>; TOP + 1],
}

impl Tree {
    pub(crate) fn new(file: File, path: PathBuf, keys: Keys, top: Digest) -> Self {
        let levels = CACHE.map(|slots| (0..slots).map(|_| None).collect());
        Self {
            file,
            path,
            keys,
            top,
            levels,
        }
    }

    fn slot(&mut self, level: usize, index: u64) -> &mut Option<Slot> {
        let slots = &mut self.levels[level];
        let at = (index % slots.len() as u64) as usize;
        &mut slots[at]
    }

    /// A page, read and verified unless it is in memory.
    pub(crate) fn page(&mut self, level: usize, index: u64) -> Result<&Page, Error> {
        Ok(&self.load(level, index)?.page)
    }

    /// A page to change. The caller changes it: it counts as dirty from here on.
    pub(crate) fn page_mut(&mut self, level: usize, index: u64) -> Result<&mut Page, Error> {
        let slot = self.load(level, index)?;
        slot.dirty = true;
        Ok(&mut slot.page)
    }

    fn load(&mut self, level: usize, index: u64) -> Result<&mut Slot, Error> {
        if self
            .slot(level, index)
            .as_ref()
            .is_none_or(|slot| slot.index != index)
        {
            let room = self.evict(level, index)?;
            let page = self.fetch(level, index, room)?;
            *self.slot(level, index) = Some(Slot {
                index,
                dirty: false,
                page,
            });
        }
        Ok(self.slot(level, index).as_mut().expect("filled just above"))
    }

    /// Reads a page from the file, into `room` if there is some, and compares it with the digest above.
    fn fetch(
        &mut self,
        level: usize,
        index: u64,
        room: Option<Box<Page>>,
    ) -> Result<Box<Page>, Error> {
        let due = self.digest_of(level, index)?;
        let mut page = room.unwrap_or_else(|| Box::new([0; PAGE]));
        // A zero digest says it all. This keeps a walk over holes out of the file system.
        if due == ZERO {
            page.fill(0);
            return Ok(page);
        }
        self.read(position(level, index), &mut page)?;
        match self.keys.hash(level, &page) == due {
            true => Ok(page),
            false => Err(self.damage(level, index)),
        }
    }

    pub(crate) fn read(&self, at: u64, page: &mut Page) -> Result<(), Error> {
        let (mut at, mut rest) = (at * PAGE as u64, &mut page[..]);
        while !rest.is_empty() {
            match rustix::io::pread(&self.file, &mut *rest, at) {
                Ok(0) => return Err(Error::damaged(&self.path, "it is too short")),
                Ok(len) => {
                    rest = rest.get_mut(len..).unwrap_or_default();
                    at += len as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io("read", &self.path)(e)),
            }
        }
        Ok(())
    }

    pub(crate) fn damage(&self, level: usize, index: u64) -> Error {
        let what = match level {
            0 => format!("page {index} does not match its digest"),
            _ => format!("node {index} of level {level} does not match its digest"),
        };
        Error::damaged(&self.path, what)
    }

    /// The digest that the tree holds for a page.
    ///
    /// It describes the page in the file; a dirty page in memory has none yet.
    pub(crate) fn digest_of(&mut self, level: usize, index: u64) -> Result<Digest, Error> {
        if level == TOP {
            return Ok(self.top);
        }
        let node = self.page(level + 1, index / FAN)?;
        let (digests, _) = node.as_chunks();
        Ok(digests[(index % FAN) as usize])
    }

    fn put_digest(&mut self, level: usize, index: u64, digest: Digest) -> Result<(), Error> {
        if level == TOP {
            self.top = digest;
            return Ok(());
        }
        let node = self.page_mut(level + 1, index / FAN)?;
        let (digests, _) = node.as_chunks_mut();
        digests[(index % FAN) as usize] = digest;
        Ok(())
    }

    /// Empties the slot that `index` needs and hands back the memory. On failure the page stays, still dirty.
    fn evict(&mut self, level: usize, index: u64) -> Result<Option<Box<Page>>, Error> {
        // Pages above are loaded on the way, never one of this level.
        let Some(slot) = self.slot(level, index).take() else {
            return Ok(None);
        };
        if slot.dirty
            && let Err(e) = self.write(level, &slot)
        {
            *self.slot(level, index) = Some(slot);
            return Err(e);
        }
        Ok(Some(slot.page))
    }

    fn write(&mut self, level: usize, slot: &Slot) -> Result<(), Error> {
        let old = self.digest_of(level, slot.index)?;
        let new = self.keys.digest(level, &slot.page);
        if old == new {
            return Ok(());
        }
        let at = position(level, slot.index) * PAGE as u64;
        if new == ZERO {
            sparse::zero(&self.file, at, PAGE as u64)
        } else {
            self.file.write_all_at(&slot.page[..], at)
        }
        .map_err(Error::io("write", &self.path))?;
        self.put_digest(level, slot.index, new)
    }

    /// Writes every changed page; then `top` is the digest of it all.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        for (level, slots) in CACHE.into_iter().enumerate() {
            for at in 0..slots {
                let Some(mut slot) = self.slot(level, at).take() else {
                    continue;
                };
                let written = match slot.dirty {
                    true => self.write(level, &slot),
                    false => Ok(()),
                };
                slot.dirty &= written.is_err();
                *self.slot(level, at) = Some(slot);
                written?;
            }
        }
        Ok(())
    }

    /// The first page of fingerprints at or after `from` that is not all zero. Flush first.
    pub(crate) fn next_page(&mut self, from: u64) -> Result<Option<u64>, Error> {
        self.next_below(TOP, 0, from)
    }

    fn next_below(&mut self, level: usize, index: u64, from: u64) -> Result<Option<u64>, Error> {
        if level == 0 {
            return Ok(Some(index));
        }
        let pages = FAN.pow(level as u32 - 1);
        let children = index * FAN..(index + 1) * FAN;
        for child in (from / pages).max(children.start)..children.end {
            if self.digest_of(level - 1, child)? != ZERO
                && let Some(page) = self.next_below(level - 1, child, from)?
            {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// The last page of fingerprints before `end` that is not all zero. Flush first.
    pub(crate) fn last_page(&mut self, end: u64) -> Result<Option<u64>, Error> {
        self.last_below(TOP, 0, end)
    }

    fn last_below(&mut self, level: usize, index: u64, end: u64) -> Result<Option<u64>, Error> {
        if level == 0 {
            return Ok(Some(index));
        }
        let pages = FAN.pow(level as u32 - 1);
        let until = end.div_ceil(pages).min((index + 1) * FAN);
        for child in (index * FAN..until).rev() {
            if self.digest_of(level - 1, child)? != ZERO
                && let Some(page) = self.last_below(level - 1, child, end)?
            {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// The next range of blocks at or after `from` in which two flushed trees of one key differ; it ends
    /// at the latest with its page.
    ///
    /// Equal subtrees are not visited.
    pub(crate) fn next_difference(
        &mut self,
        other: &mut Tree,
        from: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        self.difference_below(other, TOP, 0, from)
    }

    fn difference_below(
        &mut self,
        other: &mut Tree,
        level: usize,
        index: u64,
        from: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        if self.digest_of(level, index)? == other.digest_of(level, index)? {
            return Ok(None);
        }
        if level == 0 {
            let pairs = self.page(0, index)?.as_chunks::<8>().0.iter();
            let pairs = pairs.zip(other.page(0, index)?.as_chunks::<8>().0);
            let first = index * PER_PAGE;
            let skip = from.saturating_sub(first);
            let mut blocks = (first..).zip(pairs).skip(skip as usize);
            return Ok(blocks
                .find(|(_, (ours, theirs))| ours != theirs)
                .map(|(start, _)| {
                    let rest = blocks.take_while(|(_, (ours, theirs))| ours != theirs);
                    start..start + 1 + rest.count() as u64
                }));
        }
        let below = FAN.pow(level as u32 - 1) * PER_PAGE;
        for child in (from / below).max(index * FAN)..(index + 1) * FAN {
            let found = self.difference_below(other, level - 1, child, from)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
