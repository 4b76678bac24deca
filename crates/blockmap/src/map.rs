//! A sealed map, read.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::header::{Header, Sealed};
use crate::key::{Key, KeyId, Root};
use crate::sparse;
use crate::tree::{FAN, PAGE, PER_PAGE, TOP, Tree, ZERO, file_len, page_at, pages_of};
use crate::{Error, blocks_of};

/// A sealed map.
///
/// What it returns has been compared with the digests up to the root. It keeps at most 1.3 MiB in
/// memory, whatever the size of the disk.
pub struct Map {
    pub(crate) tree: Tree,
    sealed: Sealed,
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("path", &self.tree.path)
            .field("header", self.header())
            .finish_non_exhaustive()
    }
}

impl Map {
    /// Opens a map. Checks header, length, key and the topmost page; the rest is checked as it is
    /// read.
    pub fn open(path: &Path, key: &Key) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                path: path.to_owned(),
            },
            _ => Error::io("open", path)(e),
        })?;
        let mut tree = Tree::new(file, path.to_owned(), crate::tree::Keys::new(key), ZERO);
        let mut page = [0; PAGE];
        tree.read(0, &mut page)?;
        let sealed = Sealed::decode(path, &page)?;
        check_key(path, tree.keys.id, sealed.key_id)?;
        let len = tree.file.metadata().map_err(Error::io("stat", path))?.len();
        let due = file_len(sealed.header.size);
        if len != due {
            let what = format!("it has {len} bytes, not {due}");
            return Err(Error::damaged(path, what));
        }
        if sealed.root != tree.keys.root(sealed.header.size, &sealed.top) {
            return Err(Error::damaged(
                path,
                "the root does not follow from the top",
            ));
        }
        tree.top = sealed.top;
        tree.page(TOP, 0)?;
        Ok(Self { tree, sealed })
    }

    /// The map itself if `job` made it, else [`Error::WrongJob`].
    pub fn of_job(self, job: &str) -> Result<Self, Error> {
        match self.header().job == job {
            true => Ok(self),
            false => Err(Error::WrongJob {
                path: self.tree.path,
                wanted: job.to_owned(),
                found: self.sealed.header.job,
            }),
        }
    }

    /// Where the map lies.
    pub fn path(&self) -> &Path {
        &self.tree.path
    }

    /// What the map is of.
    pub fn header(&self) -> &Header {
        &self.sealed.header
    }

    /// The root, as it was sealed; all that the map returns has been compared with it.
    pub fn root(&self) -> Root {
        self.sealed.root
    }

    /// How many blocks of the disk are not zero.
    pub fn nonzero_blocks(&self) -> u64 {
        self.sealed.nonzero
    }

    /// How many blocks the disk has.
    pub fn blocks(&self) -> u64 {
        blocks_of(self.header().size)
    }

    /// Reads the fingerprints of the blocks from `first` on, as many as `out` holds.
    ///
    /// Blocks beyond the end of the disk are zero, as they are for a disk that grew.
    pub fn read(&mut self, first: u64, out: &mut [u64]) -> Result<(), Error> {
        let pages = pages_of(self.header().size);
        read(&mut self.tree, pages, first, out)
    }

    /// The next run of nonzero blocks at or after block `from`. Zero stretches of any length are
    /// stepped over at once; a run ends at the latest after 512 blocks.
    pub fn next_nonzero(&mut self, from: u64) -> Result<Option<Range<u64>>, Error> {
        let mut from = from;
        while let Some(index) = self.tree.next_page(from / PER_PAGE)? {
            let first = index * PER_PAGE;
            let page = self.tree.page(0, index)?;
            let skip = from.saturating_sub(first);
            let mut blocks = (first..).zip(page.as_chunks::<8>().0).skip(skip as usize);
            if let Some((start, _)) = blocks.find(|(_, fingerprint)| **fingerprint != [0; 8]) {
                let rest = blocks.take_while(|(_, fingerprint)| **fingerprint != [0; 8]);
                return Ok(Some(start..start + 1 + rest.count() as u64));
            }
            from = first + PER_PAGE;
        }
        Ok(None)
    }

    /// The last nonzero block before block `end`. Zero stretches of any length are stepped over at once.
    pub fn last_nonzero(&mut self, end: u64) -> Result<Option<u64>, Error> {
        let mut end = end;
        while let Some(index) = self.tree.last_page(end.div_ceil(PER_PAGE))? {
            let first = index * PER_PAGE;
            let blocks = (first..end).zip(self.tree.page(0, index)?.as_chunks::<8>().0);
            let nonzero = blocks.filter(|(_, fingerprint)| **fingerprint != [0; 8]);
            if let Some((block, _)) = nonzero.last() {
                return Ok(Some(block));
            }
            end = first;
        }
        Ok(None)
    }

    /// The next range of blocks at or after `from` in which two maps differ; a range ends at the latest
    /// after 512 blocks. The cost of all of them follows the difference. Both maps must be of one key.
    pub fn next_difference(
        &mut self,
        other: &mut Map,
        from: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        check_key(other.path(), self.tree.keys.id, other.tree.keys.id)?;
        self.tree.next_difference(&mut other.tree, from)
    }

    /// How many blocks of a range are not zero. Zero stretches of any length cost nothing.
    pub fn nonzero_in(&mut self, blocks: Range<u64>) -> Result<u64, Error> {
        let (mut count, mut from) = (0, blocks.start);
        while from < blocks.end
            && let Some(index) = self.tree.next_page(from / PER_PAGE)?
            && index * PER_PAGE < blocks.end
        {
            let first = index * PER_PAGE;
            let (start, end) = (from.max(first) - first, (blocks.end - first).min(PER_PAGE));
            let page = self.tree.page(0, index)?.as_chunks::<8>().0;
            let some = page.iter().take(end as usize).skip(start as usize);
            count += some.filter(|fingerprint| **fingerprint != [0; 8]).count() as u64;
            from = first + PER_PAGE;
        }
        Ok(count)
    }

    /// Reads the whole file and compares every byte of it with the root.
    pub fn verify(&mut self) -> Result<(), Error> {
        let (mut nonzero, mut end) = (0, 0);
        while let Some(run) = self.next_nonzero(end)? {
            nonzero += run.end - run.start;
            end = run.end;
        }
        if nonzero != self.sealed.nonzero {
            let what = "the count of nonzero blocks is wrong";
            return Err(Error::damaged(self.path(), what));
        }
        if end > self.blocks() {
            let what = "it has fingerprints beyond the end of the disk";
            return Err(Error::damaged(self.path(), what));
        }
        self.verify_holes()
    }

    /// Pages with a zero digest are never read, so nothing else would notice bytes in them.
    fn verify_holes(&mut self) -> Result<(), Error> {
        let end = file_len(self.header().size);
        let path = self.tree.path.clone();
        let mut at = PAGE as u64;
        let mut page = [0; PAGE];
        while let Some(data) =
            sparse::next_data(&self.tree.file, at, end).map_err(Error::io("read", &path))?
        {
            let pages = data.start / PAGE as u64..data.end.div_ceil(PAGE as u64);
            for place in pages {
                let Some((level, index)) = page_at(place) else {
                    continue;
                };
                if self.tree.digest_of(level, index)? == ZERO {
                    self.tree.read(place, &mut page)?;
                    if self.tree.keys.digest(level, &page) != ZERO {
                        return Err(self.tree.damage(level, index));
                    }
                }
            }
            at = data.end;
        }
        Ok(())
    }
}

/// Refuses to compare what was made with different keys.
pub(crate) fn check_key(path: &Path, wanted: KeyId, found: KeyId) -> Result<(), Error> {
    match wanted == found {
        true => Ok(()),
        false => Err(Error::WrongKey {
            path: path.to_owned(),
            wanted,
            found,
        }),
    }
}

/// Reads fingerprints through a tree that has `pages` pages of them; zeros from there on.
pub(crate) fn read(tree: &mut Tree, pages: u64, first: u64, out: &mut [u64]) -> Result<(), Error> {
    let mut block = first;
    let mut rest = out;
    while !rest.is_empty() {
        let within = block % PER_PAGE;
        let len = rest.len().min((PER_PAGE - within) as usize);
        let (now, later) = rest.split_at_mut(len);
        if block / PER_PAGE < pages {
            let page = tree.page(0, block / PER_PAGE)?.as_chunks::<8>().0;
            for (to, from) in now.iter_mut().zip(page.iter().skip(within as usize)) {
                *to = u64::from_le_bytes(*from);
            }
        } else {
            now.fill(0);
        }
        block = block.saturating_add(len as u64);
        rest = later;
    }
    Ok(())
}

const _: () = assert!(PER_PAGE * 8 == PAGE as u64 && FAN * 32 == PAGE as u64);
