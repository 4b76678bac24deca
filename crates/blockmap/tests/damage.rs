//! Whatever happens to a file: it reads back exactly, or it says that it is damaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockmap::{BLOCK, Error, Kind, Map, MapWriter};
use common::{header, key};

const PAGE: u64 = 4096;
/// A little over two nodes of level 1, so that the file has holes between its pages.
const SIZE: u64 = (2 * 65_536 + 700) * BLOCK as u64 + 99;

fn content() -> Vec<(u64, Vec<u64>)> {
    vec![
        (0, vec![1, 2, 0, 4]),
        (65_530, (1..=12).collect()),
        (131_771, vec![7, 8]),
    ]
}

fn write(path: &Path) {
    let mut writer = MapWriter::create(path, &key(), header(1, SIZE)).unwrap();
    for (first, prints) in content() {
        writer.set(first, &prints).unwrap();
    }
    writer.seal().unwrap();
}

/// Everything that the map says, or how it refuses.
fn read(path: &Path) -> Result<(), Error> {
    let mut map = Map::open(path, &key())?;
    // Also reads pages that are holes.
    for first in (0..map.blocks()).step_by(40_000) {
        map.read(first, &mut [0; 1])?;
    }
    let mut count = 0;
    for (first, prints) in content() {
        let mut found = vec![0; prints.len()];
        map.read(first, &mut found)?;
        assert_eq!(found, prints);
        count += prints.iter().filter(|print| **print != 0).count() as u64;
    }
    assert_eq!(map.nonzero_blocks(), count);
    assert_eq!(*map.header(), header(1, SIZE));
    Ok(())
}

fn verify(path: &Path) -> Result<(), Error> {
    Map::open(path, &key())?.verify()
}

/// Pages of the file that hold something.
fn used_pages(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    (0..)
        .zip(bytes.chunks(PAGE as usize))
        .filter(|(_, page)| page.iter().any(|b| *b != 0))
        .map(|(at, _)| at)
        .collect()
}

fn flip(file: &File, at: u64, bits: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_damage_and_never_another_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    write(&path);
    read(&path).unwrap();
    verify(&path).unwrap();
    let used = used_pages(&path);
    // Header, one node of levels 4 to 2, three of level 1, four pages of fingerprints.
    assert_eq!(used.len(), 1 + 3 + 3 + 4);
    let all = std::fs::metadata(&path).unwrap().len() / PAGE;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    for page in 0..all {
        // Every third byte of the pages in use, at least one of every hole.
        let (start, step) = match used.contains(&page) {
            true => (page % 3, 3),
            false => (page % PAGE, PAGE as usize),
        };
        for at in (page * PAGE + start..(page + 1) * PAGE).step_by(step) {
            flip(&file, at, 1 << (at % 8));
            let error = verify(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "byte {at}: {error}");
            if at % 7 == 0 {
                match read(&path) {
                    Ok(()) => assert!(!used.contains(&page), "byte {at}"),
                    Err(e) => assert_eq!(e.kind(), Kind::Damaged, "byte {at}: {e}"),
                }
            }
            flip(&file, at, 1 << (at % 8));
        }
    }
    verify(&path).unwrap();
}

#[test]
fn a_file_cut_or_lengthened_anywhere_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    write(&path);
    let whole = std::fs::read(&path).unwrap();
    let len = whole.len() as u64;
    let near_pages =
        (0..=len / PAGE).flat_map(|page| [page * PAGE, page * PAGE + 1, page * PAGE + 4095]);
    for cut in near_pages
        .chain(0..200)
        .chain([len + 1, len + PAGE])
        .filter(|cut| *cut != len)
    {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(cut).unwrap();
        let error = Map::open(&path, &key()).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "cut at {cut}: {error}");
        file.set_len(len).unwrap();
        if cut < len {
            file.write_all_at(&whole[cut as usize..], cut).unwrap();
        }
    }
    verify(&path).unwrap();
}

#[test]
fn a_file_cut_while_open_is_damaged_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    write(&path);
    let mut map = Map::open(&path, &key()).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(3 * PAGE)
        .unwrap();
    assert_eq!(map.read(0, &mut [0; 1]).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn pages_swapped_within_the_file_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    write(&path);
    let whole = std::fs::read(&path).unwrap();
    let used = used_pages(&path);
    for (i, a) in used.iter().enumerate() {
        for b in &used[i + 1..] {
            let page = |at: u64| &whole[(at * PAGE) as usize..][..PAGE as usize];
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(page(*a), b * PAGE).unwrap();
            file.write_all_at(page(*b), a * PAGE).unwrap();
            assert_eq!(
                verify(&path).unwrap_err().kind(),
                Kind::Damaged,
                "{a} and {b}"
            );
            file.write_all_at(&whole, 0).unwrap();
        }
    }
}

#[test]
fn a_clone_never_covers_up_damage_in_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let (base_path, path) = (dir.path().join("1.map"), dir.path().join("2.map"));
    write(&base_path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&base_path)
        .unwrap();
    let mut refused = 0;
    for page in used_pages(&base_path).into_iter().skip(1) {
        for byte in [0, 1, 35, 63, 4000, 4095] {
            flip(&file, page * PAGE + byte, 4);
            // Sets a block in a damaged page, beside a damaged page, and in a hole.
            let clone = || -> Result<(), Error> {
                let base = Map::open(&base_path, &key())?;
                let mut writer = MapWriter::clone_from(&base, &path, header(2, SIZE))?;
                writer.set(2, &[3])?;
                writer.set(65_536, &[3; 3])?;
                writer.set(100_000, &[5])?;
                writer.seal()?;
                Ok(())
            };
            match clone() {
                Err(e) => assert_eq!(e.kind(), Kind::Damaged, "{e}"),
                Ok(()) => assert_eq!(verify(&path).unwrap_err().kind(), Kind::Damaged),
            }
            refused += 1;
            flip(&file, page * PAGE + byte, 4);
        }
    }
    assert_eq!(refused, 10 * 6);
}

#[test]
fn what_is_missing_foreign_or_of_another_version_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    let open = || Map::open(&path, &key());
    assert_eq!(open().unwrap_err().kind(), Kind::Missing);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(open().unwrap_err().kind(), Kind::Damaged);
    write(&path);
    let job = header(1, SIZE).job;
    assert_eq!(open().unwrap().of_job(&job).unwrap().header().job, job);
    let error = open().unwrap().of_job("web01.other").unwrap_err();
    assert!(
        matches!(&error, Error::WrongJob { wanted, found, .. } if wanted == "web01.other" && *found == job)
    );
    assert_eq!(error.kind(), Kind::Foreign);
    let other = blockmap::Key::from_bytes([1; 32]);
    assert!(matches!(
        Map::open(&path, &other).unwrap_err(),
        Error::WrongKey { .. }
    ));
    // A directory is no map, but nothing is damaged either.
    assert_eq!(Map::open(dir.path(), &key()).unwrap_err().kind(), Kind::Io);
}

#[test]
fn headers_that_cannot_be_stored_are_refused_before_a_file_exists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    for (job, full_read, identity, size) in [
        ("", "a", "a", 1),
        ("a", "", "a", 1),
        ("a", "a", "", 1),
        ("a\0b", "a", "a", 1),
        (&"a".repeat(128), "a", "a", 1),
        ("a", &"a".repeat(128), "a", 1),
        ("a", "a", &"a".repeat(1024), 1),
        ("a", "a", "a", blockmap::MAX_SIZE + 1),
    ] {
        let header = blockmap::Header {
            job: job.into(),
            full_read: full_read.into(),
            trusting: 0,
            identity: identity.into(),
            size,
            part_id: 0,
            delta_seq: 0,
        };
        let error = MapWriter::create(&path, &key(), header).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // The longest texts fit, of several bytes per character too.
    let header = blockmap::Header {
        job: "a".repeat(127),
        full_read: format!("{}b", "é".repeat(63)),
        trusting: 0,
        identity: "c".repeat(1023),
        size: blockmap::MAX_SIZE,
        part_id: u64::MAX,
        delta_seq: u32::MAX,
    };
    MapWriter::create(&path, &key(), header.clone())
        .unwrap()
        .seal()
        .unwrap();
    assert_eq!(*Map::open(&path, &key()).unwrap().header(), header);
}
