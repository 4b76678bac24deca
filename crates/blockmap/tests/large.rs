//! Cost follows content: a 10 TiB disk with little on it takes little time and memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use blockmap::{BLOCK, Map, MapWriter, blocks_of, compare_image, fingerprint, root_of};
use common::{collect, differences, header, key};

const SIZE: u64 = 10 << 40;

/// Peak resident memory of this process, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Processor time of this thread so far, in seconds: other work on the machine does not count.
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos: u64 = text.split(' ').next().unwrap().parse().unwrap();
    nanos as f64 / 1e9
}

/// One test, so that nothing else in the process uses time or memory meanwhile.
#[test]
fn ten_tebibytes_cost_what_is_on_them() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.map"), dir.path().join("2.map"));
    let blocks: Vec<u64> = (0..2000)
        .map(|i| i * (blocks_of(SIZE) / 2000) + i % 7)
        .collect();
    let (start, before) = (processor(), peak());

    let mut writer = MapWriter::create(&first, &key(), header(1, SIZE)).unwrap();
    for block in &blocks {
        writer.set(*block, &[block + 1]).unwrap();
    }
    let root = writer.seal().unwrap();
    let mut map = Map::open(&first, &key()).unwrap();
    let mut writer = MapWriter::clone_from(&map, &second, header(2, SIZE)).unwrap();
    // In no order, and now and then what lies between set to the zeros that are there.
    for i in 0..blocks.len() {
        let block = blocks[i * 7919 % blocks.len()];
        writer.set(block, &[block + 2]).unwrap();
        if i % 10 == 0 {
            let rest = blocks_of(SIZE) - block - 1;
            let far = rest.min(blocks_of(SIZE) / 4000);
            writer.set_zero(block + 1, far).unwrap();
        }
    }
    assert_ne!(writer.root().unwrap(), root);
    let found = differences(|from| writer.next_difference(&mut map, from)).unwrap();
    assert_eq!(found, blocks);
    for block in &blocks {
        writer.set(*block, &[block + 1]).unwrap();
    }
    assert_eq!(writer.seal().unwrap(), root);

    let mut same = Map::open(&second, &key()).unwrap();
    assert_eq!(same.next_difference(&mut map, 0).unwrap(), None);
    assert_eq!(
        same.nonzero_in(0..blocks_of(SIZE)).unwrap(),
        blocks.len() as u64
    );
    let mut from = 0;
    let mut nonzero = Vec::new();
    while let Some(run) = same.next_nonzero(from).unwrap() {
        from = run.end;
        nonzero.extend(run);
    }
    assert_eq!(nonzero, blocks);

    // An image of that size; ext4 stops at 16 TiB per file, so this one fits.
    let image = tempfile::tempfile_in(dir.path()).unwrap();
    image.set_len(SIZE).unwrap();
    let data = [7; BLOCK];
    let few: Vec<u64> = blocks.iter().step_by(200).copied().collect();
    let mut writer = MapWriter::create(&second, &key(), header(3, SIZE)).unwrap();
    for block in &few {
        image.write_all_at(&data, block * BLOCK as u64).unwrap();
        writer.set(*block, &[fingerprint(&key(), &data)]).unwrap();
    }
    let due = writer.seal().unwrap();
    let threads = NonZeroUsize::new(2).unwrap();
    assert_eq!(root_of(&image, SIZE, &key(), threads).unwrap(), due);
    let mut found = Vec::new();
    compare_image(&image, &key(), &mut map, collect(&mut found)).unwrap();
    assert_eq!(found, blocks);

    let (took, grew) = (processor() - start, peak() - before);
    println!("{took:.1} s, {} KiB", grew >> 10);
    // Two maps open at a time, and this test's own lists of blocks.
    assert!(grew < 8 << 20, "{grew} bytes");
    // Visiting each of 5 million pages once in unoptimized code takes minutes.
    assert!(took < 30.0, "{took} s");
}
