//! A modelled disk: content, what its image stores, and dirty bitmaps as QEMU keeps them.

use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::serve::{DIRTY, HOLE, Image, ZERO};

const SECTOR: u64 = 512;

/// What an image knows of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Data,
    /// Reads as zero, allocated.
    Zero,
    /// Reads as zero, not allocated.
    Hole,
    /// Not stored here, and not zero: it lies in an image below, or was discarded without effect.
    Below,
}

#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) data: Vec<u8>,
    pub(crate) identity: String,
    /// What lies behind the end in the last cluster.
    rest: Vec<u8>,
    stored: Vec<Stored>,
    pub(crate) cluster: u64,
    granule: u64,
    bitmaps: BTreeMap<String, Vec<bool>>,
}

impl Disk {
    pub(crate) fn new(rng: &mut Rng, identity: &str, size: u64) -> Self {
        let mut disk = Self {
            data: vec![0; size as usize],
            identity: identity.into(),
            rest: Vec::new(),
            stored: vec![Stored::Hole; size.div_ceil(SECTOR) as usize],
            cluster: *rng.pick(&[512, 4096, 4096, 65536]),
            granule: *rng.pick(&[4096, 65536, 65536, 65536, 65536]),
            bitmaps: BTreeMap::new(),
        };
        match rng.below(4) {
            0 => {}
            1 => disk.write_random(rng, 0, size),
            _ => (0..rng.between(1, 8)).for_each(|_| disk.guest(rng)),
        }
        disk
    }

    pub(crate) fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// Something that a guest does.
    pub(crate) fn guest(&mut self, rng: &mut Rng) {
        let (offset, len) = self.somewhere(rng);
        match rng.below(16) {
            0..8 => self.write_random(rng, offset, len),
            // What is there already.
            8 => self.written(offset, len),
            9 => self.write(offset, len, |bytes| bytes.fill(0)),
            10 => self.zero(offset, len, Stored::Zero),
            11 | 12 => self.zero(offset, len, Stored::Hole),
            13 if rng.one_in(4) => match rng.one_in(2) {
                true => self.zero(0, self.size(), Stored::Hole),
                false => self.write_random(rng, 0, self.size()),
            },
            13 | 14 => {
                // A discard that only gives up storage.
                self.mark(offset, len);
                for stored in &mut self.stored[sectors(offset, len)] {
                    if *stored == Stored::Data {
                        *stored = Stored::Below;
                    }
                }
            }
            // Scattered blocks, as a database writes.
            _ => {
                for _ in 0..rng.between(1, 40) {
                    let at = rng.below(self.size().div_ceil(4096)) * 4096;
                    let len = (self.size() - at).min(4096);
                    self.write_random(rng, at, len);
                }
            }
        }
    }

    /// A write somewhere behind `offset`.
    pub(crate) fn touch(&mut self, rng: &mut Rng, offset: u64) {
        let room = self.size() - offset;
        if room > 0 {
            let at = offset + rng.below(room.min(16384));
            let len = rng.between(1, 8192).min(self.size() - at);
            self.write_random(rng, at, len);
        }
    }

    /// A change that no bitmap sees; not of the whole disk.
    pub(crate) fn lie(&mut self, rng: &mut Rng) {
        let bitmaps = std::mem::take(&mut self.bitmaps);
        let (offset, len) = self.somewhere(rng);
        self.write_random(rng, offset, len.min(16384));
        self.bitmaps = bitmaps;
    }

    fn somewhere(&self, rng: &mut Rng) -> (u64, u64) {
        let size = self.size();
        let longest = *rng.pick(&[512, 4096, 4096, 16384, 16384, 65536, 65536, 262_144]);
        // Blocks are touched at both ends, in the middle, and whole.
        let unit = *rng.pick(&[1, 512, 512, 4096]);
        let len = rng.between(1, longest.min(size));
        let len = len.next_multiple_of(unit).min(size);
        let offset = match rng.below(6) {
            0 => size - len,
            1 => 0,
            _ => rng.between(0, size - len) / unit * unit,
        };
        (offset, len)
    }

    fn write_random(&mut self, rng: &mut Rng, offset: u64, len: u64) {
        self.write(offset, len, |bytes| rng.fill(bytes));
    }

    fn write(&mut self, offset: u64, len: u64, put: impl FnOnce(&mut [u8])) {
        put(&mut self.data[offset as usize..(offset + len) as usize]);
        self.written(offset, len);
    }

    /// Clusters that were written are stored, with whatever else is in them.
    fn written(&mut self, offset: u64, len: u64) {
        let first = offset / self.cluster * self.cluster;
        let end = (offset + len)
            .next_multiple_of(self.cluster)
            .min(self.size());
        self.stored[sectors(first, end - first)].fill(Stored::Data);
        self.mark(offset, len);
    }

    fn zero(&mut self, offset: u64, len: u64, how: Stored) {
        let end = offset + len;
        self.write(offset, len, |bytes| bytes.fill(0));
        let first = offset.next_multiple_of(self.cluster);
        let last = match end == self.size() {
            true => end,
            false => end / self.cluster * self.cluster,
        };
        if first < last {
            self.stored[sectors(first, last - first)].fill(how);
        }
    }

    fn mark(&mut self, offset: u64, len: u64) {
        let granules = offset / self.granule..(offset + len).div_ceil(self.granule);
        for bitmap in self.bitmaps.values_mut() {
            bitmap[granules.start as usize..granules.end as usize].fill(true);
        }
    }

    /// Makes it larger or smaller. As in QEMU, no bitmap says anything of it, and what is left of the last
    /// cluster comes back.
    pub(crate) fn resize(&mut self, size: u64) {
        let kept = self.size().min(size);
        let cluster = kept.next_multiple_of(self.cluster) as usize;
        if size < self.size() {
            let end = cluster.min(self.data.len());
            self.rest = self.data[kept as usize..end].to_vec();
        }
        self.data.resize(size as usize, 0);
        self.stored
            .resize(size.div_ceil(SECTOR) as usize, Stored::Hole);
        if kept < size {
            let rest = std::mem::take(&mut self.rest);
            let back = rest.len().min((size - kept) as usize);
            self.data[kept as usize..][..back].copy_from_slice(&rest[..back]);
            self.rest = rest[back..].to_vec();
            let end = (kept + back as u64).max(kept.next_multiple_of(SECTOR).min(size));
            self.stored[sectors(kept, end - kept)].fill(Stored::Data);
        }
        let granules = size.div_ceil(self.granule) as usize;
        for bitmap in self.bitmaps.values_mut() {
            bitmap.resize(granules, false);
        }
    }

    /// A checkpoint.
    pub(crate) fn add_bitmap(&mut self, name: &str) {
        let granules = self.size().div_ceil(self.granule) as usize;
        self.bitmaps.insert(name.into(), vec![false; granules]);
    }

    pub(crate) fn keep_bitmaps(&mut self, keep: impl Fn(&str) -> bool) {
        self.bitmaps.retain(|name, _| keep(name));
    }

    pub(crate) fn has_bitmap(&self, name: &str) -> bool {
        self.bitmaps.contains_key(name)
    }

    /// Is all of this range marked in a bitmap?
    pub(crate) fn is_marked(&self, name: &str, offset: u64, len: u64) -> bool {
        let granules = offset / self.granule..(offset + len).div_ceil(self.granule);
        let bitmap = &self.bitmaps[name];
        bitmap[granules.start as usize..granules.end as usize]
            .iter()
            .all(|marked| *marked)
    }

    /// Where a run of equal `of` ends that begins at `at` with one for every `unit` bytes.
    fn run<T: PartialEq>(&self, of: &[T], unit: u64, at: u64) -> u64 {
        let first = (at / unit) as usize;
        let same = of[first..].iter().take_while(|next| **next == of[first]);
        ((first + same.count()) as u64 * unit).min(self.size())
    }
}

fn sectors(offset: u64, len: u64) -> std::ops::Range<usize> {
    (offset / SECTOR) as usize..(offset + len).div_ceil(SECTOR) as usize
}

/// A disk at an instant, with the bitmap that is exported.
pub(crate) struct Instant {
    pub(crate) disk: Disk,
    pub(crate) bitmap: Option<(String, String)>,
    pub(crate) whim: u64,
}

impl Image for Instant {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, offset: u64, to: &mut [u8]) {
        to.copy_from_slice(&self.disk.data[offset as usize..][..to.len()]);
    }

    fn allocation(&self, at: u64) -> (u64, u32) {
        let disk = &self.disk;
        let end = disk.run(&disk.stored, SECTOR, at);
        let flags = match disk.stored[(at / SECTOR) as usize] {
            Stored::Data => 0,
            Stored::Zero => ZERO,
            Stored::Hole => ZERO | HOLE,
            Stored::Below => HOLE,
        };
        (end, flags)
    }

    fn bitmap(&self) -> Option<&str> {
        self.bitmap.as_ref().map(|(exported, _)| exported.as_str())
    }

    fn dirty(&self, at: u64) -> (u64, u32) {
        let (_, name) = self.bitmap.as_ref().expect("a bitmap is exported");
        let bitmap = &self.disk.bitmaps[name];
        let end = self.disk.run(bitmap, self.disk.granule, at);
        let marked = bitmap[(at / self.disk.granule) as usize];
        (end, if marked { DIRTY } else { 0 })
    }

    fn whim(&self) -> u64 {
        self.whim
    }
}
