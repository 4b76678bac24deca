use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;

use relay::message::FileKind;

use super::super::sink::{Kind, Place};
use super::*;

/// An image in a directory of its own, and what its disk should hold.
struct Bench {
    dir: tempfile::TempDir,
    key: Key,
    kind: Option<Kind>,
    image: Image,
    disk: Vec<u8>,
}

impl Bench {
    fn new(kind: Option<Kind>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::random().unwrap();
        let output = match kind {
            Some(kind) => Output::Image(Place {
                temp: dir.path().join("temp"),
                path: dir.path().join("final"),
                kind,
                run: dir.path().into(),
            }),
            None => Output::Nothing,
        };
        let image = Image::new("vda", output, dir.path().join("map"), &key);
        Self {
            dir,
            key,
            kind,
            image,
            disk: Vec::new(),
        }
    }

    /// Takes a part whose records are `(offset, length, byte)`.
    fn part(&mut self, delta_seq: u32, size: usize, records: &[(usize, usize, u8)]) -> Result<()> {
        self.image.begin_part(&head(delta_seq, size as u64))?;
        if delta_seq == 0 {
            self.disk.clear();
        }
        self.disk.resize(size, 0);
        for (offset, len, byte) in records {
            let bytes = vec![*byte; *len];
            self.disk[*offset..][..*len].copy_from_slice(&bytes);
            self.image.write(*offset as u64, bytes)?;
        }
        Ok(())
    }

    /// The disk is what its parts say, byte for byte and by its root.
    fn exact(self) {
        let taken = self.image.finish().unwrap();
        let flat = self.dir.path().join("flat");
        match self.kind {
            Some(Kind::Raw) => std::fs::copy(self.dir.path().join("temp"), &flat)
                .map(drop)
                .unwrap(),
            Some(Kind::Qcow2) => flatten(&self.dir.path().join("temp"), &flat),
            None => std::fs::write(&flat, &self.disk).unwrap(),
        }
        assert!(
            std::fs::read(&flat).unwrap() == self.disk,
            "the image is wrong"
        );
        let file = File::open(&flat).unwrap();
        let one = NonZeroUsize::MIN;
        let root = blockmap::root_of(&file, self.disk.len() as u64, &self.key, one).unwrap();
        assert_eq!(taken.root, root);
    }
}

fn head(delta_seq: u32, size: u64) -> PartHead {
    PartHead {
        path: "/#LabBackup/web01/web01/vda.raw".into(),
        kind: FileKind::Regular,
        size,
        mtime: 0,
        mode: 0o600,
        part: 100 + u64::from(delta_seq),
        delta_seq,
    }
}

fn flatten(image: &Path, flat: &Path) {
    let mut command = crate::tool::command("qemu-img");
    command.args(["convert", "-f", "qcow2", "-O", "raw"]);
    crate::tool::run(command.arg(image).arg(flat)).unwrap();
}

/// Everywhere that a disk may go.
const ALL: [Option<Kind>; 3] = [Some(Kind::Raw), Some(Kind::Qcow2), None];

#[test]
fn a_chain_is_applied_in_order() {
    for kind in ALL {
        let mut bench = Bench::new(kind);
        bench
            .part(0, 1 << 20, &[(0, 65536, 1), (1 << 19, 4096, 2)])
            .unwrap();
        bench
            .part(1, 1 << 20, &[(4096, 4096, 3), (1 << 19, 4096, 0)])
            .unwrap();
        bench.part(2, 1 << 20, &[]).unwrap();
        bench.exact();
    }
}

#[test]
fn a_part_that_is_missing_or_out_of_order_is_refused() {
    let say = |before: &[u32], seq: u32| {
        let mut bench = Bench::new(Some(Kind::Raw));
        for seq in before {
            bench.part(*seq, 8192, &[]).unwrap();
        }
        let error = bench.part(seq, 8192, &[]).unwrap_err().to_string();
        assert!(
            error.contains("disk vda") && !error.contains('\n'),
            "{error}"
        );
        error
    };
    assert!(say(&[], 1).contains("part 1"));
    let gap = say(&[0, 1], 3);
    assert!(
        gap.contains("part 3") && gap.contains("after part 1"),
        "{gap}"
    );
    say(&[0, 1], 1);
    say(&[0, 1, 2], 1);
    let mut bench = Bench::new(Some(Kind::Raw));
    assert!(bench.image.write(0, vec![1; 4096]).is_err());
    assert!(!bench.dir.path().join("temp").exists());
}

#[test]
fn a_disk_that_grew_makes_the_image_larger() {
    for kind in ALL {
        let mut bench = Bench::new(kind);
        bench.part(0, 1 << 20, &[(0, 8192, 1)]).unwrap();
        bench
            .part(1, 3 << 20, &[((3 << 20) - 4096, 4096, 2)])
            .unwrap();
        bench.part(2, 3 << 20, &[(1 << 20, 8192, 3)]).unwrap();
        bench.exact();
    }
}

#[test]
fn a_disk_that_ended_in_a_short_block_may_grow() {
    // QEMU's images have whole sectors.
    let (small, large) = (4096 + 512, 3 * 4096 + 1024);
    for kind in ALL {
        let mut bench = Bench::new(kind);
        bench
            .part(0, small, &[(0, 4096, 1), (4096, 512, 2)])
            .unwrap();
        bench
            .part(1, large, &[(4096, 4096, 3), (3 * 4096, 1024, 4)])
            .unwrap();
        bench.exact();
    }
    for (small, large) in [(1000, 1001), (1000, 4096), (4097, 10_000)] {
        let mut bench = Bench::new(Some(Kind::Raw));
        let tail = small / 4096 * 4096;
        bench.part(0, small, &[(tail, small - tail, 2)]).unwrap();
        let end = large.min(tail + 4096);
        bench.part(1, large, &[(tail, end - tail, 5)]).unwrap();
        bench.exact();
    }
}

#[test]
fn a_short_last_block_that_did_not_come_again_is_an_error() {
    let mut bench = Bench::new(Some(Kind::Raw));
    bench.part(0, 5000, &[(4096, 904, 2)]).unwrap();
    bench.part(1, 8192, &[]).unwrap();
    let error = bench.image.finish().err().unwrap();
    assert!(error.to_string().contains("lacks the block"), "{error:#}");
    // Where there was nothing but zeros, nothing needs to come.
    let mut bench = Bench::new(Some(Kind::Raw));
    bench.part(0, 5000, &[]).unwrap();
    bench.part(1, 8192, &[]).unwrap();
    bench.exact();
}

#[test]
fn a_disk_that_shrank_must_start_over() {
    let mut bench = Bench::new(Some(Kind::Raw));
    bench.part(0, 12288, &[]).unwrap();
    let error = bench.part(1, 8192, &[]).unwrap_err().to_string();
    for word in ["disk vda", "12288", "8192", "starts over"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_disk_that_starts_over_is_a_new_image_whatever_its_size() {
    for kind in ALL {
        for size in [1 << 20, 512 << 10, 2 << 20] {
            let mut bench = Bench::new(kind);
            bench.part(0, 1 << 20, &[(0, 1 << 20, 1)]).unwrap();
            bench.part(1, 1 << 20, &[(8192, 4096, 2)]).unwrap();
            bench.part(0, size, &[(4096, 4096, 3)]).unwrap();
            bench.part(1, size, &[(size - 4096, 4096, 4)]).unwrap();
            bench.exact();
        }
    }
    // What the first image held takes no room in the second.
    let mut bench = Bench::new(Some(Kind::Raw));
    bench.part(0, 1 << 20, &[(0, 1 << 20, 1)]).unwrap();
    bench.part(0, 1 << 20, &[]).unwrap();
    let temp = bench.dir.path().join("temp");
    bench.image.finish().unwrap();
    let facts = std::os::unix::fs::MetadataExt::blocks(&temp.metadata().unwrap());
    assert_eq!(facts, 0);
}

#[test]
fn a_record_beyond_the_disk_of_its_part_is_refused() {
    let mut bench = Bench::new(Some(Kind::Raw));
    bench.part(0, 5000, &[]).unwrap();
    for (offset, len) in [(4096, 905), (8192, 1), (0, 100), (1, 4096), (4096, 0)] {
        assert!(
            bench.image.write(offset, vec![1; len]).is_err(),
            "{offset}+{len}"
        );
    }
    assert!(bench.image.write(u64::MAX - 4095, vec![1; 4096]).is_err());
    bench.part(1, 8192, &[]).unwrap();
    bench.image.write(4096, vec![1; 4096]).unwrap();
}

#[test]
fn an_image_that_cannot_be_written_says_which() {
    let mut bench = Bench::new(Some(Kind::Raw));
    std::fs::write(bench.dir.path().join("temp"), "theirs").unwrap();
    let error = bench.part(0, 4096, &[]).unwrap_err();
    assert!(format!("{error:#}").contains("/temp"), "{error:#}");
    assert_eq!(
        std::fs::read(bench.dir.path().join("temp")).unwrap(),
        b"theirs"
    );
}
