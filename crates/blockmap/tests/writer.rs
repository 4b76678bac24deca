//! What stays behind when a writer ends in any way, and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use blockmap::{
    BLOCK, Error, Key, Kind, MAX_SIZE, Map, MapWriter, compare_image, fingerprint, root_of, sweep,
};
use common::{collect, header, key};

const MIB: u64 = 1 << 20;

fn names(dir: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn sealed(path: &Path, job: u32, size: u64, set: &[(u64, &[u64])]) -> Map {
    let mut writer = MapWriter::create(path, &key(), header(job, size)).unwrap();
    for (first, prints) in set {
        writer.set(*first, prints).unwrap();
    }
    let root = writer.seal().unwrap();
    let map = Map::open(path, &key()).unwrap();
    assert_eq!(map.root(), root);
    map
}

#[test]
fn an_unsealed_map_is_nowhere_under_its_name_and_gone_after_drop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    let mut writer = MapWriter::create(&path, &key(), header(1, MIB)).unwrap();
    writer.set(0, &[1, 2]).unwrap();
    writer.root().unwrap();
    assert_eq!(Map::open(&path, &key()).unwrap_err().kind(), Kind::Missing);
    // Nor does the torn file open under the name it has meanwhile.
    let torn = dir.path().join(&names(dir.path())[0]);
    assert_eq!(Map::open(&torn, &key()).unwrap_err().kind(), Kind::Damaged);
    // Only root reads what fingerprints a guest's disk.
    assert_eq!(
        std::fs::metadata(&torn).unwrap().permissions().mode() & 0o777,
        0o600
    );
    drop(writer);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_torn_clone_does_not_pass_for_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = sealed(&dir.path().join("1.map"), 1, MIB, &[(0, &[1])]);
    let path = dir.path().join("2.map");
    let writer = MapWriter::clone_from(&base, &path, header(2, MIB)).unwrap();
    let torn = names(dir.path())
        .into_iter()
        .find(|name| name != "1.map")
        .unwrap();
    let error = Map::open(&dir.path().join(torn), &key()).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    drop(writer);
    assert_eq!(names(dir.path()), ["1.map"]);
}

#[test]
fn a_seal_that_fails_keeps_the_old_map_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // A directory in the way makes the rename fail.
    let path = dir.path().join("1.map");
    std::fs::create_dir(&path).unwrap();
    let writer = MapWriter::create(&path, &key(), header(1, MIB)).unwrap();
    assert_eq!(writer.seal().unwrap_err().kind(), Kind::Io);
    assert_eq!(names(dir.path()), ["1.map"]);
}

#[test]
fn a_place_that_takes_no_file_is_an_error_of_the_system() {
    let path = Path::new("/proc/no-map-can-be-here");
    let error = MapWriter::create(path, &key(), header(1, MIB)).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}

/// Writes and seals for ever: what the test below kills.
fn write_for_ever(dir: &Path) -> ! {
    let path = dir.join("1.map");
    let mut round = 0;
    loop {
        round += 1;
        let mut writer = MapWriter::create(&path, &key(), header(round, 100 * MIB)).unwrap();
        for block in (0..25_600).step_by(700) {
            writer.set(block, &[u64::from(round)]).unwrap();
        }
        writer.seal().unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_map_or_the_new_one() {
    const CHILD: &str = "BLOCKMAP_TEST_DIR";
    if let Some(dir) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    sealed(&path, 0, 100 * MIB, &[]);
    let (mut torn, mut newer) = (0, 0);
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "a_kill_at_any_moment_leaves_the_old_map_or_the_new_one",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(20_000 + round * 1_370));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut map = Map::open(&path, &key()).unwrap();
        map.verify().unwrap();
        let job = map.header().delta_seq;
        newer += u32::from(job > 0);
        for block in (0..25_600).step_by(700) {
            let mut print = [0];
            map.read(block, &mut print).unwrap();
            assert_eq!(print, [u64::from(job)]);
        }
        let left = names(dir.path()).len() - 1;
        assert!(left <= 1);
        assert_eq!(sweep(dir.path()).unwrap().len(), left);
        assert_eq!(names(dir.path()), ["1.map"]);
        torn += left;
    }
    assert!(
        torn > 0 && newer > 0,
        "the kills came too early or too late: {torn} {newer}"
    );
}

#[test]
fn sweep_leaves_live_writers_maps_and_strangers_alone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(sweep(&dir.path().join("absent")).unwrap().is_empty());
    sealed(&dir.path().join("1.map"), 1, MIB, &[]);
    std::fs::write(dir.path().join("notes"), "mine").unwrap();
    std::fs::create_dir(dir.path().join("d.unsealed")).unwrap();
    std::os::unix::fs::symlink("notes", dir.path().join("l.unsealed")).unwrap();
    let stale = dir.path().join("0.map.0123456789abcdef.unsealed");
    std::fs::write(&stale, "torn").unwrap();
    let live = dir.path().join("2.map");
    let writer = MapWriter::create(&live, &key(), header(2, MIB)).unwrap();
    assert_eq!(sweep(dir.path()).unwrap(), [stale]);
    writer.seal().unwrap();
    assert_eq!(
        names(dir.path()),
        ["1.map", "2.map", "d.unsealed", "l.unsealed", "notes"]
    );
}

#[test]
fn a_shrunk_disk_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = sealed(&dir.path().join("1.map"), 1, MIB, &[]);
    let path = dir.path().join("2.map");
    let error = MapWriter::clone_from(&base, &path, header(2, MIB - 1)).unwrap_err();
    assert!(matches!(error, Error::Shrunk { base_size: MIB, size, .. } if size == MIB - 1));
    assert_eq!(error.kind(), Kind::Shrunk);
    let mut writer = MapWriter::clone_from(&base, &path, header(2, MIB)).unwrap();
    assert_eq!(writer.grow(MIB - 1).unwrap_err().kind(), Kind::Shrunk);
    assert_eq!(writer.grow(MAX_SIZE + 1).unwrap_err().kind(), Kind::Usage);
    drop(writer);
    assert_eq!(names(dir.path()), ["1.map"]);
}

#[test]
fn blocks_beyond_the_end_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.map");
    let mut writer = MapWriter::create(&path, &key(), header(1, MIB + 1)).unwrap();
    let before = writer.root().unwrap();
    for (first, count) in [
        (257, 1),
        (256, 2),
        (0, 258),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
    ] {
        let prints = vec![1; count];
        assert!(matches!(
            writer.set(first, &prints),
            Err(Error::OutOfRange { blocks: 257, .. })
        ));
        assert!(writer.set_zero(first, count as u64).is_err());
    }
    writer.set(257, &[]).unwrap();
    assert_eq!(writer.root().unwrap(), before);
    writer.set(256, &[1]).unwrap();
    assert_ne!(writer.root().unwrap(), before);
}

#[test]
fn a_short_end_that_grew_must_be_set_before_there_is_a_root() {
    let dir = tempfile::tempdir().unwrap();
    let base = sealed(&dir.path().join("1.map"), 1, MIB + 100, &[(256, &[9])]);
    let path = dir.path().join("2.map");
    let grown = || MapWriter::clone_from(&base, &path, header(2, MIB + 200)).unwrap();
    let stale = |result: Result<_, Error>| {
        assert!(
            matches!(result, Err(Error::StaleTail { block: 256, .. })),
            "{result:?}"
        );
    };
    stale(grown().root());
    stale(grown().seal());
    let mut writer = grown();
    writer.set(0, &[1; 256]).unwrap();
    stale(writer.root());
    // A later growth does not let it be forgotten.
    writer.grow(4 * MIB).unwrap();
    stale(writer.root());
    writer.grow(5 * MIB + 3).unwrap();
    writer.grow(6 * MIB + 3).unwrap();
    writer.set(1536, &[4]).unwrap();
    writer.grow(7 * MIB).unwrap();
    stale(writer.root());
    writer.set(1536, &[4]).unwrap();
    stale(writer.root());
    writer.set(255, &[1, 2]).unwrap();
    writer.root().unwrap();
    let mut writer = grown();
    writer.set_zero(200, 57).unwrap();
    writer.seal().unwrap();
    // A zero end means the same at any length.
    let zero = sealed(&dir.path().join("3.map"), 3, MIB + 100, &[(255, &[9])]);
    MapWriter::clone_from(&zero, &path, header(2, 2 * MIB))
        .unwrap()
        .seal()
        .unwrap();
    // The same size is no growth.
    MapWriter::clone_from(&base, &path, header(2, MIB + 100))
        .unwrap()
        .seal()
        .unwrap();
}

#[test]
fn zeroing_gives_back_the_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let prints = vec![5; 1 << 20];
    let base = sealed(&dir.path().join("1.map"), 1, 4096 << 20, &[(0, &prints)]);
    let used = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
    assert!(used(base.path()) > 8 * MIB);
    let path = dir.path().join("2.map");
    let mut writer = MapWriter::clone_from(&base, &path, header(2, 4096 << 20)).unwrap();
    writer.set_zero(1, (1 << 20) - 1).unwrap();
    assert_eq!(writer.nonzero_blocks(), 1);
    let root = writer.seal().unwrap();
    assert_eq!(
        root,
        sealed(&dir.path().join("3.map"), 3, 4096 << 20, &[(0, &[5])]).root()
    );
    Map::open(&path, &key()).unwrap().verify().unwrap();
    // The file system under the tests must know holes, as any that carries maps must; XFS reserves
    // some space around what is written.
    assert!(used(&path) < MIB, "{} bytes", used(&path));
}

#[test]
fn maps_of_different_keys_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let mut ours = sealed(&dir.path().join("1.map"), 1, MIB, &[]);
    let other = Key::from_bytes([1; 32]);
    let path = dir.path().join("2.map");
    let mut writer = MapWriter::create(&path, &other, header(2, MIB)).unwrap();
    let mut none = Vec::new();
    let error = writer.next_difference(&mut ours, 0).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }));
    writer.seal().unwrap();
    let mut theirs = Map::open(&path, &other).unwrap();
    assert!(ours.next_difference(&mut theirs, 0).is_err());
    let image = tempfile::tempfile().unwrap();
    image.set_len(MIB).unwrap();
    let error = compare_image(&image, &other, &mut ours, collect(&mut none)).unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }));
}

#[test]
fn an_image_of_another_length_is_not_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = sealed(&dir.path().join("1.map"), 1, MIB, &[]);
    let image = tempfile::tempfile().unwrap();
    let one = NonZeroUsize::MIN;
    for len in [0, MIB - 1, MIB + 1] {
        image.set_len(len).unwrap();
        let error = root_of(&image, MIB, &key(), one).unwrap_err();
        assert!(matches!(error, Error::ImageSize { wanted: MIB, found } if found == len));
        let mut none = Vec::new();
        assert!(compare_image(&image, &key(), &mut map, collect(&mut none)).is_err());
    }
    image.set_len(MIB).unwrap();
    assert_eq!(root_of(&image, MIB, &key(), one).unwrap(), map.root());
    // What is no file at all.
    let directory = std::fs::File::open(dir.path()).unwrap();
    assert_eq!(
        root_of(&directory, MIB, &key(), one).unwrap_err().kind(),
        Kind::Io
    );
}

#[test]
fn one_changed_byte_of_an_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let size = 600 * MIB + 77;
    let image = tempfile::tempfile().unwrap();
    image.set_len(size).unwrap();
    let mut set = Vec::new();
    for block in [0, 1, 700, 65_535, 65_536, 100_000, size / BLOCK as u64] {
        let at = block * BLOCK as u64;
        let data = vec![block as u8 | 1; (size - at).min(BLOCK as u64) as usize];
        image.write_all_at(&data, at).unwrap();
        set.push((block, [fingerprint(&key(), &data)]));
    }
    let set: Vec<(u64, &[u64])> = set
        .iter()
        .map(|(block, print)| (*block, &print[..]))
        .collect();
    let mut map = sealed(&dir.path().join("1.map"), 1, size, &set);
    let two = NonZeroUsize::new(2).unwrap();
    assert_eq!(root_of(&image, size, &key(), two).unwrap(), map.root());
    for at in [0, 4095, 4096 * 3, 4096 * 65_536 + 5, 300 * MIB, size - 1] {
        let mut byte = [0];
        image.read_exact_at(&mut byte, at).unwrap();
        image.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        assert_ne!(root_of(&image, size, &key(), two).unwrap(), map.root());
        let mut found = Vec::new();
        compare_image(&image, &key(), &mut map, collect(&mut found)).unwrap();
        assert_eq!(found, [at / BLOCK as u64], "byte {at}");
        image.write_all_at(&byte, at).unwrap();
    }
    // The caller may have seen enough.
    image.write_all_at(&[0; 3 * BLOCK], 0).unwrap();
    image.write_all_at(&[1], 300 * MIB).unwrap();
    let mut calls = 0;
    compare_image(&image, &key(), &mut map, |range| {
        calls += 1;
        assert_eq!(range, 0..2);
        std::ops::ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn maps_and_writers_may_change_threads() {
    fn check<T: Send>() {}
    check::<Map>();
    check::<MapWriter>();
}
