//! A map against the simplest thing that could be right: a vector of blocks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use blockmap::{BLOCK, Map, MapWriter, Root, compare_image, fingerprint, fingerprints, root_of};
use common::{collect, differences, header, key};
use proptest::prelude::*;

/// A disk in which one byte per block says all of the block's content.
#[derive(Clone, Debug, Default)]
struct Disk {
    blocks: Vec<u8>,
    size: u64,
}

impl Disk {
    fn new(size: u64) -> Self {
        Self {
            blocks: vec![0; blockmap::blocks_of(size) as usize],
            size,
        }
    }

    fn len_of(&self, block: usize) -> usize {
        (self.size - (block * BLOCK) as u64).min(BLOCK as u64) as usize
    }

    fn fingerprint(&self, block: usize) -> u64 {
        static WHOLE: LazyLock<Vec<u64>> = LazyLock::new(|| {
            (0..8)
                .map(|byte| fingerprint(&key(), &[byte; BLOCK]))
                .collect()
        });
        let byte = self.blocks[block];
        match self.len_of(block) {
            BLOCK => WHOLE[byte as usize],
            len => fingerprint(&key(), &vec![byte; len]),
        }
    }

    fn fingerprints(&self, range: Range<usize>) -> Vec<u64> {
        range.map(|block| self.fingerprint(block)).collect()
    }

    fn all(&self) -> Vec<u64> {
        self.fingerprints(0..self.blocks.len())
    }

    /// The root by a map written from scratch in one go.
    fn naive_root(&self, dir: &Path) -> Root {
        let path = dir.join("naive");
        let mut writer = MapWriter::create(&path, &key(), header(0, self.size)).unwrap();
        writer.set(0, &self.all()).unwrap();
        writer.root().unwrap()
    }

    fn image(&self, path: &Path) -> std::fs::File {
        let file = std::fs::File::options();
        let file = { file }
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .unwrap();
        file.set_len(self.size).unwrap();
        for (block, byte) in self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte != 0)
        {
            let bytes = vec![*byte; self.len_of(block)];
            file.write_all_at(&bytes, (block * BLOCK) as u64).unwrap();
        }
        file
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Write blocks of the given value at a place, both as fractions of the disk.
    Write { at: f64, count: usize, value: u8 },
    /// Zero a stretch.
    Zero { at: f64, count: usize },
    /// Ask for the root half-way, which flushes.
    Root,
    /// Seal, reopen, go on in a clone that is `grow` bytes larger.
    Clone { grow: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let count = prop_oneof![4 => 1_usize..40, 1 => 1_usize..70_000];
    let step = prop_oneof![
        6 => (0.0..1.0, count.clone(), 0_u8..4)
            .prop_map(|(at, count, value)| Step::Write { at, count: count.min(3000), value }),
        2 => (0.0..1.0, count).prop_map(|(at, count)| Step::Zero { at, count }),
        1 => Just(Step::Root),
        1 => prop_oneof![Just(0_u64), 1_u64..5000, 1_u64..(20 << 20), 1_u64..(300 << 20)]
            .prop_map(|grow| Step::Clone { grow }),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Reads everything through every door and compares with the model.
fn check(map: &mut Map, disk: &Disk, root: Root, dir: &Path) {
    let all = disk.all();
    let mut read = vec![1; all.len() + 3];
    map.read(0, &mut read).unwrap();
    assert_eq!(&read[..all.len()], &all[..]);
    assert_eq!(&read[all.len()..], [0; 3]);
    assert_eq!(map.root(), root);
    assert_eq!(
        map.nonzero_blocks(),
        all.iter().filter(|f| **f != 0).count() as u64
    );
    map.verify().unwrap();
    let mut nonzero = Vec::new();
    let mut from = 0;
    while let Some(run) = map.next_nonzero(from).unwrap() {
        assert!(run.start >= from && !run.is_empty());
        from = run.end;
        nonzero.extend(run);
    }
    let due: Vec<u64> = (0..)
        .zip(&all)
        .filter(|(_, f)| **f != 0)
        .map(|(i, _)| i)
        .collect();
    assert_eq!(nonzero, due);
    let (mut backwards, mut end) = (Vec::new(), all.len() as u64);
    while let Some(block) = map.last_nonzero(end).unwrap() {
        backwards.push(block);
        end = block;
    }
    backwards.reverse();
    assert_eq!(backwards, due);
    assert_eq!(disk.naive_root(dir), root);
    let image = disk.image(&dir.join("image"));
    for threads in [1, 3] {
        let threads = NonZeroUsize::new(threads).unwrap();
        assert_eq!(root_of(&image, disk.size, &key(), threads).unwrap(), root);
    }
    let mut found = Vec::new();
    compare_image(&image, &key(), map, collect(&mut found)).unwrap();
    assert!(found.is_empty(), "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_sequence_of_writes_zeroes_clones_and_grows_reads_back(
        size in prop_oneof![1_u64..20_000, 1_u64..(20 << 20), 1_u64..(700 << 20)],
        steps in steps(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = |job: u32| -> PathBuf { dir.path().join(format!("{job}.map")) };
        let mut disk = Disk::new(size);
        let mut base = disk.clone();
        let mut job = 0;
        let mut writer = MapWriter::create(&path(job), &key(), header(job, size)).unwrap();
        for step in steps.into_iter().chain([Step::Clone { grow: 0 }]) {
            let blocks = disk.blocks.len();
            let place = |at: f64, count: usize| {
                let first = ((blocks as f64 * at) as usize).min(blocks - 1);
                first..(first + count).min(blocks)
            };
            match step {
                Step::Write { at, count, value } => {
                    let range = place(at, count);
                    // Mixed runs: every third block differs.
                    for block in range.clone() {
                        disk.blocks[block] = if block % 3 == 0 { value } else { value ^ 1 };
                    }
                    writer.set(range.start as u64, &disk.fingerprints(range)).unwrap();
                }
                Step::Zero { at, count } => {
                    let range = place(at, count);
                    disk.blocks[range.clone()].fill(0);
                    writer.set_zero(range.start as u64, range.len() as u64).unwrap();
                }
                Step::Root => {
                    prop_assert_eq!(writer.root().unwrap(), disk.naive_root(dir.path()));
                }
                Step::Clone { grow } => {
                    let root = writer.seal().unwrap();
                    let mut map = Map::open(&path(job), &key()).unwrap();
                    check(&mut map, &disk, root, dir.path());
                    // What changed since the last job, by comparing the two maps.
                    if job > 0 {
                        let mut older = Map::open(&path(job - 1), &key()).unwrap();
                        let found = differences(|from| map.next_difference(&mut older, from)).unwrap();
                        let (now, mut then) = (disk.all(), base.all());
                        then.resize(now.len(), 0);
                        let due = (0..).zip(now.iter().zip(&then)).filter(|(_, (a, b))| a != b);
                        prop_assert_eq!(found, due.map(|(i, _)| i).collect::<Vec<u64>>());
                        let mut found = Vec::new();
                        if base.size == disk.size {
                            let image = base.image(&dir.path().join("image"));
                            compare_image(&image, &key(), &mut map, collect(&mut found)).unwrap();
                            let due = differences(|from| older.next_difference(&mut map, from));
                            prop_assert_eq!(found, due.unwrap());
                        }
                    }
                    base = disk.clone();
                    let tail = disk.blocks.len().checked_sub(1);
                    disk.size += grow;
                    disk.blocks.resize(blockmap::blocks_of(disk.size) as usize, 0);
                    job += 1;
                    writer = MapWriter::clone_from(&map, &path(job), header(job, disk.size)).unwrap();
                    // Bytes beyond the base's end are always candidates, so its last block is set.
                    if let Some(tail) = tail {
                        writer.set(tail as u64, &disk.fingerprints(tail..tail + 1)).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn runs_are_exactly_what_differs(
        tail in 1_usize..=BLOCK,
        pairs in proptest::collection::vec((0_u64..3, 0_u64..3), 1..60),
        with_base: bool,
        short_base in 0_usize..60,
    ) {
        let now: Vec<u64> = pairs.iter().map(|(now, _)| *now).collect();
        let mut base: Vec<u64> = pairs.iter().map(|(_, base)| *base).collect();
        base.truncate(short_base);
        let len = (now.len() - 1) * BLOCK + tail;
        let offset = 10 * BLOCK as u64;
        let mut sent = vec![false; now.len()];
        let mut last = None;
        for run in blockmap::runs(offset, len, &now, with_base.then_some(&base[..])) {
            prop_assert_eq!(run.offset, offset + run.range.start as u64);
            prop_assert_eq!(run.range.start % BLOCK, 0);
            prop_assert!(run.range.end % BLOCK == 0 || run.range.end == len);
            // Runs do not touch: each is as long as can be.
            prop_assert!(last.is_none_or(|end| run.range.start > end));
            last = Some(run.range.end);
            sent[run.range.start / BLOCK..run.range.end.div_ceil(BLOCK)].fill(true);
        }
        for (i, sent) in sent.into_iter().enumerate() {
            let then = if with_base { base.get(i).copied().unwrap_or(0) } else { 0 };
            prop_assert_eq!(sent, now[i] != then);
        }
    }

    #[test]
    fn a_buffer_is_fingerprinted_block_by_block(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..20_000),
    ) {
        let mut all = vec![9; 3];
        fingerprints(&key(), &bytes, &mut all);
        let each: Vec<u64> = bytes.chunks(BLOCK).map(|block| fingerprint(&key(), block)).collect();
        prop_assert_eq!(all, each);
    }
}
