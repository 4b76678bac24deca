//! A map in the making.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::header::{Header, Sealed};
use crate::key::{Key, Root};
use crate::map::{self, Map, check_key};
use crate::sparse;
use crate::tree::{Keys, MAX_SIZE, PAGE, PER_PAGE, Tree, ZERO, file_len, pages_of};
use crate::{BLOCK, Error, blocks_of};

/// How the name of a file ends that was not sealed (yet).
const UNSEALED: &str = ".unsealed";

/// A map that is being written, under another name until it is sealed.
///
/// Dropping it removes the file. After a kill the file stays under a name that nobody opens, until
/// [`sweep`] removes it.
pub struct MapWriter {
    tree: Tree,
    header: Header,
    nonzero: u64,
    /// Blocks that were the short end of a smaller disk and were not set since: one per growth.
    stale_tails: Vec<u64>,
    /// The name after sealing.
    path: PathBuf,
    sealed: bool,
}

impl std::fmt::Debug for MapWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapWriter")
            .field("path", &self.path)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl MapWriter {
    /// Starts a map of an all-zero disk, which sealing will put at `path`.
    pub fn create(path: &Path, key: &Key, header: Header) -> Result<Self, Error> {
        let tree = |file, temp| Tree::new(file, temp, Keys::new(key), ZERO);
        let mut writer = Self::start(path, &header, 0, tree)?;
        writer.grow(header.size)?;
        Ok(writer)
    }

    /// Starts a map with the content of `base`, which sealing will put at `path`.
    ///
    /// The disk may have grown, with the consequences of [`MapWriter::grow`].
    pub fn clone_from(base: &Map, path: &Path, header: Header) -> Result<Self, Error> {
        let base_size = base.header().size;
        if header.size < base_size {
            return Err(Error::Shrunk {
                path: base.path().to_owned(),
                base_size,
                size: header.size,
            });
        }
        let tree = |file, temp| Tree::new(file, temp, base.tree.keys.clone(), base.tree.top);
        let mut writer = Self::start(path, &header, base_size, tree)?;
        writer.nonzero = base.nonzero_blocks();
        sparse::clone(&base.tree.file, &writer.tree.file)
            .and_then(|()| sparse::zero(&writer.tree.file, 0, PAGE as u64))
            .map_err(Error::io("clone a base into", &writer.tree.path))?;
        writer.grow(header.size)?;
        Ok(writer)
    }

    /// A writer of a disk of `size` bytes, over an empty file.
    fn start(
        path: &Path,
        header: &Header,
        size: u64,
        tree: impl FnOnce(File, PathBuf) -> Tree,
    ) -> Result<Self, Error> {
        header.check()?;
        let (file, temp) = create_unsealed(path)?;
        Ok(Self {
            tree: tree(file, temp),
            header: Header {
                size,
                ..header.clone()
            },
            nonzero: 0,
            stale_tails: Vec::new(),
            path: path.to_owned(),
            sealed: false,
        })
    }

    /// Makes the disk larger, as a later part of a chain may. The new blocks are zero.
    ///
    /// If the disk ended in a short nonzero block, that block must be set before the root is taken,
    /// as its fingerprint covered fewer bytes.
    pub fn grow(&mut self, size: u64) -> Result<(), Error> {
        let old = self.header.size;
        if size < old {
            return Err(Error::Shrunk {
                path: self.path.clone(),
                base_size: old,
                size,
            });
        }
        if size > MAX_SIZE {
            return Err(Error::TooLarge { size });
        }
        self.tree
            .file
            .set_len(file_len(size))
            .map_err(Error::io("size", &self.tree.path))?;
        if size > old && !old.is_multiple_of(BLOCK as u64) {
            let tail = old / BLOCK as u64;
            let mut fingerprint = [0];
            self.read(tail, &mut fingerprint)?;
            if fingerprint != [0] && !self.stale_tails.contains(&tail) {
                self.stale_tails.push(tail);
            }
        }
        self.header.size = size;
        Ok(())
    }

    /// What the map is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many blocks are not zero, as of now.
    pub fn nonzero_blocks(&self) -> u64 {
        self.nonzero
    }

    /// Sets the fingerprints of the blocks from `first` on, in any order, any number of times.
    ///
    /// Ascending order is cheapest. After an error the map must be dropped.
    pub fn set(&mut self, first: u64, fingerprints: &[u64]) -> Result<(), Error> {
        let end = self.end_of(first, fingerprints.len() as u64)?;
        let mut rest = fingerprints;
        let mut block = first;
        while block < end {
            let within = block % PER_PAGE;
            let len = rest.len().min((PER_PAGE - within) as usize);
            let (now, later) = rest.split_at(len);
            self.set_in_page(block / PER_PAGE, within as usize, now)?;
            block += len as u64;
            rest = later;
        }
        self.is_set(first..end);
        Ok(())
    }

    /// Makes the blocks from `first` on zero. Stretches that are zero already cost nothing.
    pub fn set_zero(&mut self, first: u64, count: u64) -> Result<(), Error> {
        let end = self.end_of(first, count)?;
        // Far enough for the walk to pay for the flush it needs.
        let far = count > 64 * PER_PAGE;
        if far {
            self.tree.flush()?;
        }
        let mut block = first;
        while block < end {
            if far {
                match self.tree.next_page(block / PER_PAGE)? {
                    Some(page) => block = block.max(page * PER_PAGE),
                    None => break,
                }
                if block >= end {
                    break;
                }
            }
            let within = block % PER_PAGE;
            let len = (end - block).min(PER_PAGE - within);
            let zeros = [0; PER_PAGE as usize];
            self.set_in_page(block / PER_PAGE, within as usize, &zeros[..len as usize])?;
            block += len;
        }
        self.is_set(first..end);
        Ok(())
    }

    /// Where the blocks end, if they exist.
    fn end_of(&self, first: u64, count: u64) -> Result<u64, Error> {
        let blocks = blocks_of(self.header.size);
        let end = first.checked_add(count).filter(|end| *end <= blocks);
        end.ok_or_else(|| Error::OutOfRange {
            path: self.path.clone(),
            first,
            count,
            blocks,
        })
    }

    /// Notes that the blocks describe the disk as it is now.
    fn is_set(&mut self, blocks: Range<u64>) {
        self.stale_tails.retain(|tail| !blocks.contains(tail));
    }

    fn set_in_page(&mut self, page: u64, within: usize, now: &[u64]) -> Result<(), Error> {
        let old = self.tree.page(0, page)?.as_chunks::<8>().0;
        let pairs = old.iter().skip(within).zip(now);
        let (mut gone, mut come, mut same) = (0, 0, true);
        for (old, now) in pairs {
            let old = u64::from_le_bytes(*old);
            gone += u64::from(old != 0);
            come += u64::from(*now != 0);
            same &= old == *now;
        }
        // An unchanged page stays shared with the base.
        if same {
            return Ok(());
        }
        let slots = self.tree.page_mut(0, page)?.as_chunks_mut::<8>().0;
        for (slot, now) in slots.iter_mut().skip(within).zip(now) {
            *slot = now.to_le_bytes();
        }
        self.nonzero = self.nonzero + come - gone;
        Ok(())
    }

    /// Reads the fingerprints of the blocks from `first` on, as they are now.
    pub fn read(&mut self, first: u64, out: &mut [u64]) -> Result<(), Error> {
        let pages = pages_of(self.header.size);
        map::read(&mut self.tree, pages, first, out)
    }

    /// The root as of now.
    pub fn root(&mut self) -> Result<Root, Error> {
        if let Some(&block) = self.stale_tails.first() {
            return Err(Error::StaleTail {
                path: self.path.clone(),
                block,
            });
        }
        self.tree.flush()?;
        Ok(self.tree.keys.root(self.header.size, &self.tree.top))
    }

    /// The next range of blocks at or after `from` in which this map, as it is now, differs from
    /// `other`. See [`Map::next_difference`].
    pub fn next_difference(
        &mut self,
        other: &mut Map,
        from: u64,
    ) -> Result<Option<Range<u64>>, Error> {
        check_key(other.path(), self.tree.keys.id, other.tree.keys.id)?;
        self.tree.flush()?;
        self.tree.next_difference(&mut other.tree, from)
    }

    /// Makes the map durable under its name, replacing what was there, and returns its root.
    ///
    /// When this returns, file and name survive a power loss. An error after the rename (from the
    /// directory's fsync) leaves a whole map under the name.
    pub fn seal(mut self) -> Result<Root, Error> {
        let root = self.root()?;
        let page = Sealed {
            header: self.header.clone(),
            key_id: self.tree.keys.id,
            nonzero: self.nonzero,
            top: self.tree.top,
            root,
        }
        .encode();
        self.tree
            .file
            .write_all_at(&page, 0)
            .map_err(Error::io("write", &self.tree.path))?;
        self.tree
            .file
            .sync_all()
            .map_err(Error::io("sync", &self.tree.path))?;
        std::fs::rename(&self.tree.path, &self.path)
            .map_err(Error::io("put in place", &self.path))?;
        self.sealed = true;
        let dir = parent(&self.path);
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync the directory of", &self.path))?;
        Ok(root)
    }
}

impl Drop for MapWriter {
    fn drop(&mut self) {
        if !self.sealed {
            // A file that cannot be removed now is found by `sweep`.
            let _ = std::fs::remove_file(&self.tree.path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Creates a file beside `path` that nobody takes for a map, and locks it as being in use.
fn create_unsealed(path: &Path) -> Result<(File, PathBuf), Error> {
    let mut name = path.as_os_str().to_owned();
    let nonce = getrandom::u64().map_err(Error::Random)?;
    name.push(format!(".{nonce:016x}{UNSEALED}"));
    let temp = PathBuf::from(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .map_err(Error::io("create", &temp))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(Error::io("lock", &temp))?;
    Ok((file, temp))
}

/// Removes what killed writers left in a directory, and returns what it removed.
///
/// Files that a live writer holds are left alone. A directory that does not exist is clean.
pub fn sweep(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list the directory of", dir))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list the directory of", dir))?;
        let path = entry.path();
        let ours = path.as_os_str().as_bytes().ends_with(UNSEALED.as_bytes());
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(Error::io("open", &path))?,
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        removed.push(path);
    }
    Ok(removed)
}
