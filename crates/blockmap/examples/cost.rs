//! What a map costs: processor time for each GiB of data, bytes on disk, bytes rewritten when the data changes.
//!
//! ```text
//! cost [DIR]    in a directory of DIR (default: where temporary files go); 4 GiB of data, none of which is kept
//! ```

#![allow(clippy::unwrap_used, reason = "a panic is how an example fails")]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blockmap::{BLOCK, Header, Key, Map, MapWriter, fingerprints};

const GIB: u64 = 4;
const BUFFER: usize = 1 << 20;

fn header(job: &str, delta_seq: u32) -> Header {
    Header {
        job: job.into(),
        full_read: "full".into(),
        trusting: delta_seq,
        part_id: 1,
        delta_seq,
        identity: "cost".into(),
        size: GIB << 30,
    }
}

/// Processor seconds of this process.
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<u64>().unwrap() as f64 / 1e9
}

/// Bytes that this process has written.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

/// Numbers without a pattern (splitmix64).
fn mix(at: u64) -> u64 {
    let x = at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn full(path: &Path, key: &Key) {
    let mut buffer: Vec<u8> = (0..BUFFER as u64 / 8)
        .flat_map(|at| mix(at).to_le_bytes())
        .collect();
    let mut prints = Vec::new();
    let mut writer = MapWriter::create(path, key, header("full", 0)).unwrap();
    let begin = processor();
    for at in (0..GIB << 30).step_by(BUFFER) {
        // Every block is another one.
        for block in buffer.chunks_mut(BLOCK) {
            block[0] = block[0].wrapping_add(1);
        }
        fingerprints(key, &buffer, &mut prints);
        writer.set(at / BLOCK as u64, &prints).unwrap();
    }
    writer.seal().unwrap();
    let each = (processor() - begin) / GIB as f64;
    let disk = std::fs::metadata(path).unwrap().blocks() * 512;
    println!(
        "map of a Full: {:.3} processor seconds for each GiB, {:.2} MiB on disk for each GiB",
        each,
        disk as f64 / GIB as f64 / (1 << 20) as f64
    );
}

fn change(what: &str, base: &Path, path: &Path, key: &Key, places: impl Iterator<Item = u64>) {
    // In ascending order, as a disk is read.
    let places: BTreeSet<u64> = places.collect();
    let map = Map::open(base, key).unwrap();
    let mut writer = MapWriter::clone_from(&map, path, header("inc", 1)).unwrap();
    let (before, begin) = (written(), processor());
    for block in &places {
        writer.set(*block, &[mix(*block) | 1]).unwrap();
    }
    writer.seal().unwrap();
    let gib = (places.len() * BLOCK) as f64 / f64::from(1 << 30);
    let mib = (written() - before) as f64 / f64::from(1 << 20);
    let took = processor() - begin;
    println!(
        "{gib:.2} GiB changed {what}: {mib:.2} MiB of the map rewritten, {took:.3} processor seconds"
    );
}

fn main() {
    let dir = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(dir).unwrap();
    let key = Key::random().unwrap();
    let (base, next) = (dir.path().join("base"), dir.path().join("next"));
    full(&base, &key);
    let blocks = (GIB << 30) / BLOCK as u64;
    for (what, count, spread) in [
        ("in one piece", blocks / 4, false),
        ("at random places", blocks / 4, true),
        ("at random places", 8192, true),
    ] {
        let place = |number| if spread { mix(number) % blocks } else { number };
        change(what, &base, &next, &key, (0..count).map(place));
        std::fs::remove_file(&next).unwrap();
    }
}
