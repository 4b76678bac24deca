//! Cost follows content: an increment of a 10 TiB disk with a million extents, planned and sent in bounded time
//! and memory.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod serve;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use blockmap::{BLOCK, Header, Key, Map, MapWriter, fingerprint};
use serve::{DIRTY, HOLE, Image, Server, ZERO};
use worker::backup::{Export, Look, Reading, Step};

const SIZE: u64 = 10 << 40;
const GRANULE: u64 = 64 << 10;
/// Most memory of the process, with the server and this test in it.
const MEMORY: u64 = 256 << 20;

/// In unoptimized code a twentieth of it takes as long.
const EXTENTS: u64 = if cfg!(debug_assertions) {
    50_000
} else {
    1_000_000
};
/// Seconds until all is known of what will be read. In unoptimized code other work on the machine is allowed for.
const PLANNING: f64 = if cfg!(debug_assertions) { 10.0 } else { 2.0 };

/// From one extent to the next, in bytes.
const STEP: u64 = SIZE / EXTENTS / GRANULE * GRANULE;

/// A disk with a block of data every [`STEP`] bytes, of which every ninth changed since the base.
struct Sparse {
    /// When it was first read: the plan is made then, but for one block.
    planned: OnceLock<Instant>,
}

/// The extent that `at` lies in or before, and where its data begins. Behind the last one all is zero.
fn extent(at: u64) -> Option<(u64, u64)> {
    let number = at / STEP;
    // Not always at the same place of a granule, nor of a page of the map.
    (number < EXTENTS).then(|| (number, number * STEP + number % 13 * BLOCK as u64))
}

fn content(number: u64, now: bool) -> u64 {
    let changed = now && number.is_multiple_of(9);
    (number << 1 | u64::from(changed)) + 1
}

fn fill(word: u64, to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(word.to_le_bytes().iter().cycle()) {
        *to = *from;
    }
}

impl Image for Sparse {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, to: &mut [u8]) {
        self.planned.get_or_init(Instant::now);
        for (at, block) in to.chunks_mut(BLOCK).enumerate() {
            let at = offset + (at * BLOCK) as u64;
            match extent(at) {
                Some((number, begin)) if begin == at => fill(content(number, true), block),
                _ => block.fill(0),
            }
        }
    }

    fn allocation(&self, at: u64) -> (u64, u32) {
        match extent(at) {
            None => (SIZE, HOLE | ZERO),
            Some((_, begin)) if at < begin => (begin, HOLE | ZERO),
            Some((_, begin)) if at < begin + BLOCK as u64 => (begin + BLOCK as u64, 0),
            Some((number, _)) => match extent((number + 1) * STEP) {
                Some((_, begin)) => (begin, HOLE | ZERO),
                None => (SIZE, HOLE | ZERO),
            },
        }
    }

    fn bitmap(&self) -> Option<&str> {
        Some("b")
    }

    /// Marks as many granules as there are extents: that of every third extent, and the one behind of the
    /// others.
    fn dirty(&self, at: u64) -> (u64, u32) {
        let Some((number, _)) = extent(at) else {
            return (SIZE, 0);
        };
        let begin = number * STEP + if number.is_multiple_of(3) { 0 } else { GRANULE };
        match at {
            _ if at < begin => (begin, 0),
            _ if at < begin + GRANULE => (begin + GRANULE, DIRTY),
            _ => ((number + 1) * STEP, 0),
        }
    }
}

fn header(job: &str, delta_seq: u32) -> Header {
    Header {
        job: job.into(),
        full_read: "full".into(),
        trusting: delta_seq,
        part_id: 1,
        delta_seq,
        identity: "large".into(),
        size: SIZE,
    }
}

/// Peak resident memory of this process, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// Where two maps of 4 KiB an extent have room: in memory if there is enough of it.
fn room() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let due = EXTENTS * 4096 * 5 / 2;
    let free = rustix::fs::statvfs(memory).map_or(0, |facts| facts.f_bavail * facts.f_frsize);
    match free > due {
        true => memory.into(),
        false => std::env::temp_dir(),
    }
}

#[test]
fn an_increment_of_ten_tebibytes_is_planned_at_once_and_fits_into_memory() {
    let dir = tempfile::tempdir_in(room()).unwrap();
    let key = Key::from_bytes([7; 32]);
    let (base, next) = (dir.path().join("base"), dir.path().join("next"));
    let mut writer = MapWriter::create(&base, &key, header("full", 0)).unwrap();
    let mut block = [0; BLOCK];
    for number in 0..EXTENTS {
        fill(content(number, false), &mut block);
        let (_, begin) = extent(number * STEP).unwrap();
        let prints = [fingerprint(&key, &block)];
        writer.set(begin / BLOCK as u64, &prints).unwrap();
    }
    writer.seal().unwrap();
    let map = Map::open(&base, &key).unwrap();
    let server = Server::start(dir.path());
    let disk = Arc::new(Sparse {
        planned: OnceLock::new(),
    });
    server.show(Arc::<Sparse>::clone(&disk));
    let mut export = Export::connect(server.socket(), "", Some("b"), |_| {}).unwrap();
    let mut reading = Reading {
        export: &mut export,
        key: &key,
        path: &next,
        wanted: &|| true,
        cluster: 64 << 10,
        limit: None,
    };
    let (start, mut records) = (Instant::now(), 0);
    let sent = reading.increment(header("inc", 1), map, Look::Bitmap, |step| {
        match step {
            Step::Begin { over } => assert_eq!(over, None, "it sits on its base"),
            Step::Data { send, .. } => {
                for run in send {
                    let (number, begin) = extent(run.offset).unwrap();
                    assert_eq!((run.offset, run.range.len()), (begin, BLOCK));
                    assert!(number.is_multiple_of(9), "extent {number} did not change");
                    records += 1;
                }
            }
            Step::Zero { offset, .. } => panic!("zeros at {offset}"),
        }
        Ok(())
    });
    let (map, _) = sent.unwrap();
    let took = start.elapsed().as_secs_f64();
    assert_eq!(map.nonzero_blocks(), EXTENTS);
    assert_eq!(records, EXTENTS.div_ceil(9));
    let planned = disk
        .planned
        .get()
        .unwrap()
        .duration_since(start)
        .as_secs_f64();
    println!(
        "{EXTENTS} extents: planned in {planned:.2} s, read in {took:.1} s, {} MiB",
        peak() >> 20
    );
    assert!(planned <= PLANNING, "planning took {planned} s");
    assert!(peak() <= MEMORY, "{} bytes", peak());
}
