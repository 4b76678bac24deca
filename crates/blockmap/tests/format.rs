//! `docs/blockmap.md` is normative: the bytes printed in it are the bytes written, and the digests
//! follow from its text alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use blockmap::{BLOCK, Key, Map, MapWriter, fingerprint, fingerprints};
use common::{header, key};
use highway::{HighwayHash, HighwayHasher, PortableHash};

/// The disk of the document: a block of data, a zero block, a short tail of 100 bytes.
fn example_disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0..BLOCK).map(|i| (i % 251) as u8).collect();
    disk.resize(2 * BLOCK, 0);
    disk.resize(2 * BLOCK + 100, 0x55);
    disk
}

fn write_example(path: &Path) {
    let disk = example_disk();
    let mut prints = Vec::new();
    fingerprints(&key(), &disk, &mut prints);
    let mut writer = MapWriter::create(path, &key(), header(3, disk.len() as u64)).unwrap();
    writer.set(0, &prints).unwrap();
    writer.seal().unwrap();
}

/// Lines of 16 bytes as `hexdump -C` prints them, `*` for repetitions.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut starred = false;
    for (line, chunk) in bytes.chunks(16).enumerate() {
        if last == Some(chunk) {
            if !starred {
                text.push_str("*\n");
            }
            starred = true;
            continue;
        }
        (last, starred) = (Some(chunk), false);
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain: String = chunk
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            })
            .collect();
        let (left, right) = hex.split_at(8);
        let (left, right) = (left.join(" "), right.join(" "));
        text.push_str(&format!("{:08x}  {left}  {right}  |{plain}|\n", line * 16));
    }
    text.push_str(&format!("{:08x}\n", bytes.len()));
    text
}

fn undump(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for line in text.lines().filter(|line| *line != "*") {
        let at = usize::from_str_radix(&line[..8], 16).unwrap();
        while bytes.len() < at {
            let last = bytes.len() - 16;
            bytes.extend_from_within(last..);
        }
        let hex = line[8..].split('|').next().unwrap();
        bytes.extend(
            hex.split_whitespace()
                .map(|hex| u8::from_str_radix(hex, 16).unwrap()),
        );
    }
    bytes
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/blockmap.md");
    std::fs::read_to_string(path).unwrap()
}

/// The dump in the document.
fn printed() -> String {
    let document = document();
    let start = document.find("00000000  ").unwrap();
    document[start..].split("```").next().unwrap().to_owned()
}

#[test]
fn the_document_prints_the_bytes_that_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("example.map");
    write_example(&path);
    let written = dump(&std::fs::read(&path).unwrap());
    assert_eq!(written, printed(), "what is written now:\n{written}");
}

#[test]
fn the_bytes_printed_in_the_document_open_and_say_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("example.map");
    std::fs::write(&path, undump(&printed())).unwrap();
    let mut map = Map::open(&path, &key()).unwrap();
    map.verify().unwrap();
    assert_eq!(*map.header(), header(3, 2 * BLOCK as u64 + 100));
    assert_eq!(map.nonzero_blocks(), 2);
    let mut prints = [0; 3];
    map.read(0, &mut prints).unwrap();
    let disk = example_disk();
    let due = [
        fingerprint(&key(), &disk[..BLOCK]),
        0,
        fingerprint(&key(), &disk[2 * BLOCK..]),
    ];
    assert_eq!(prints, due);
    for word in [
        map.root().to_string(),
        key().id().to_string(),
        key().to_hex(),
    ] {
        assert!(
            document().contains(&word),
            "the document does not say {word}"
        );
    }
}

/// HighwayHash-256 with a key given as bytes, as bytes.
fn hash(key: &[u8; 32], data: &[u8]) -> [u8; 32] {
    let words = |bytes: &[u8; 32]| -> [u64; 4] {
        std::array::from_fn(|i| u64::from_le_bytes(bytes[i * 8..][..8].try_into().unwrap()))
    };
    let out = HighwayHasher::new(highway::Key(words(key))).hash256(data);
    let mut bytes = [0; 32];
    for (i, word) in out.iter().enumerate() {
        bytes[i * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The root as the document defines it: recursion, no cache, no file.
fn naive_root(key: &[u8; 32], size: u64, prints: &[u64]) -> [u8; 32] {
    fn digest(key: &[u8; 32], level: u32, first: u64, prints: &[u64]) -> [u8; 32] {
        let blocks = 512 * 128_u64.pow(level);
        let inside = prints.get(first as usize..).unwrap_or_default();
        if inside.iter().take(blocks as usize).all(|print| *print == 0) {
            return [0; 32];
        }
        let mut page = Vec::new();
        let label = match level {
            0 => {
                page.extend(
                    inside
                        .iter()
                        .take(512)
                        .flat_map(|print| print.to_le_bytes()),
                );
                page.resize(4096, 0);
                "lab-backup map 1: page".to_owned()
            }
            _ => {
                for child in 0..128 {
                    page.extend(digest(
                        key,
                        level - 1,
                        first + child * (blocks / 128),
                        prints,
                    ));
                }
                format!("lab-backup map 1: node {level}")
            }
        };
        hash(&hash(key, label.as_bytes()), &page)
    }
    let mut data = size.to_le_bytes().to_vec();
    data.extend(digest(key, 4, 0, prints));
    hash(&hash(key, b"lab-backup map 1: root"), &data)
}

#[test]
fn the_root_follows_from_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let key_bytes: [u8; 32] = std::array::from_fn(|i| (i * 7) as u8);
    let key = Key::from_bytes(key_bytes);
    // One page; several; a second node of level 1; a second node of level 2.
    for blocks in [0_usize, 1, 511, 512, 513, 65_536, 65_537, 8_400_000] {
        let prints: Vec<u64> = (0..blocks as u64)
            .map(|i| {
                if i % 1000 < 3 || i + 2 > blocks as u64 {
                    i * i + 1
                } else {
                    0
                }
            })
            .collect();
        let size = blocks as u64 * BLOCK as u64;
        for size in [size, size.saturating_sub(17)] {
            let path = dir.path().join("naive");
            let mut writer = MapWriter::create(&path, &key, header(0, size)).unwrap();
            writer.set(0, &prints).unwrap();
            let due = naive_root(&key_bytes, size, &prints);
            let due: String = due.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                writer.root().unwrap().to_string(),
                due,
                "{blocks} blocks, {size} bytes"
            );
        }
    }
}

#[test]
fn the_root_depends_on_the_size_even_where_the_content_is_zero() {
    let dir = tempfile::tempdir().unwrap();
    let root = |size| {
        let path = dir.path().join("zero");
        MapWriter::create(&path, &key(), header(0, size))
            .unwrap()
            .root()
            .unwrap()
    };
    let sizes = [0, 1, 4095, 4096, 4097, 1 << 30, blockmap::MAX_SIZE];
    let roots: std::collections::HashSet<_> = sizes.into_iter().map(root).collect();
    assert_eq!(roots.len(), sizes.len());
}

#[test]
fn every_tail_length_is_hashed_as_the_portable_code_hashes_it() {
    let lanes = highway::Key(std::array::from_fn(|i| {
        u64::from_le_bytes(std::array::from_fn(|byte| (i * 8 + byte) as u8))
    }));
    let data: Vec<u8> = (0..BLOCK + 32).map(|i| (i * 31 % 256) as u8).collect();
    let mut seen = std::collections::HashSet::new();
    for len in 1..=BLOCK {
        // Any alignment of the buffer gives the same.
        let from = 1 + len % 31;
        let block = &data[from..from + len];
        assert_eq!(
            fingerprint(&key(), block),
            PortableHash::new(lanes).hash64(block),
            "{len}"
        );
        // A zero tail is zero; one that differs in length alone is another block.
        assert_eq!(fingerprint(&key(), &vec![0; len]), 0);
        assert!(seen.insert(fingerprint(&key(), &vec![9; len])), "{len}");
    }
}

#[test]
fn the_hash_is_the_published_one() {
    // Test vectors of the reference implementation: this key, the bytes 0, 1, 2, ….
    for (len, due) in [(2, 0xb8d0_569a_b0b5_3d62_u64), (3, 0x5c6b_efab_8a46_3d80)] {
        let bytes: Vec<u8> = (0..len).collect();
        assert_eq!(fingerprint(&key(), &bytes), due, "{len}");
    }
}
