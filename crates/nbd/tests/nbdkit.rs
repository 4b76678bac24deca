//! Another server than QEMU, with errors and delays on demand.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod tools;

use std::time::{Duration, Instant};

use nbd::{BASE_ALLOCATION, Error, Extent, ReadOptions, ServerError};
use tools::*;

const MIB: u64 = 1 << 20;

#[test]
fn an_error_of_the_storage_stops_the_read_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let trigger = dir.path().join("trigger");
    let kit = Nbdkit::spawn(
        dir.path(),
        &[
            "--filter=error",
            "pattern",
            "64M",
            "error-pread=EIO",
            "error-pread-rate=100%",
            &format!("error-pread-file={}", text(&trigger)),
        ],
    );
    let mut client = connect(&kit.socket, &[]);
    let options = ReadOptions::default();
    let mut next = 0;
    let plan = [Ok::<_, Error>(Extent::data(0, 64 * MIB))];
    let result = client.read(plan, &options, &options.pool(0), |piece| {
        assert_eq!(piece.offset(), next);
        next += piece.len();
        if next == 16 * MIB {
            std::fs::write(&trigger, "").unwrap();
        }
        Ok(())
    });
    let error = result.unwrap_err();
    assert_eq!(error.server_error(), Some(ServerError::Io));
    assert_eq!(error.offset(), Some(next));
    // The storage is back: so are we, on the same connection.
    std::fs::remove_file(&trigger).unwrap();
    let mut eight = [0; 8];
    client.read_at(8 * MIB, &mut eight).unwrap();
    assert_eq!(u64::from_be_bytes(eight), 8 * MIB);
}

#[test]
fn a_plan_that_fails_in_the_middle_ends_the_read_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(
        dir.path(),
        &[
            "--filter=error",
            "sparse-random",
            "8G",
            "error-extents=EIO",
            "error-extents-rate=100%",
        ],
    );
    let mut base = connect(&kit.socket, &[BASE_ALLOCATION]);
    let size = base.size();
    let error = base
        .extents(BASE_ALLOCATION, 0, size)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.server_error(), Some(ServerError::Io));
}

#[test]
fn slow_storage_is_waited_for_and_very_slow_storage_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(
        dir.path(),
        &["--filter=delay", "pattern", "1M", "delay-read=300ms"],
    );
    let mut client = connect(&kit.socket, &[]);
    client.set_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut eight = [0; 8];
    client.read_at(4096, &mut eight).unwrap();
    assert_eq!(u64::from_be_bytes(eight), 4096);
    client.set_timeout(Some(Duration::from_millis(50))).unwrap();
    let start = Instant::now();
    let error = client.read_at(4096, &mut eight).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_stop_does_not_wait_for_slow_storage() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(
        dir.path(),
        &["--filter=delay", "pattern", "64M", "delay-read=30"],
    );
    let mut client = connect(&kit.socket, &[]);
    let handle = client.shutdown_handle();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            handle.shutdown();
        });
        let options = ReadOptions::default();
        let plan = [Ok::<_, Error>(Extent::data(0, 64 * MIB))];
        let result = client.read(plan, &options, &options.pool(0), |_| Ok(()));
        assert!(result.unwrap_err().is_stopped());
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_without_structured_replies_is_read_and_has_no_contexts() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(dir.path(), &["--no-sr", "pattern", "4M"]);
    let mut client = connect(&kit.socket, &[BASE_ALLOCATION]);
    assert!(client.contexts().is_empty());
    let mut disk = Vec::new();
    let plan = [Ok(Extent::data(0, 4 * MIB))];
    read_into(&mut client, plan, &ReadOptions::default(), &mut disk);
    let right = |(at, eight): (usize, &[u8])| eight == (at as u64 * 8).to_be_bytes();
    assert!(disk.chunks(8).enumerate().all(right));
    assert!(matches!(
        client.extents(BASE_ALLOCATION, 0, 512),
        Err(Error::NoContext { .. })
    ));
}

#[test]
fn scattered_extents_of_a_real_server_cover_the_disk_and_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(
        dir.path(),
        &["sparse-random", "256M", "seed=7", "percent=20"],
    );
    let options = ReadOptions::default();
    let (disk, data) = read_all(&kit.socket, &options);
    assert!(data > 10 * MIB && data < 128 * MIB, "{data}");
    let mut whole = Vec::new();
    let plan = [Ok(Extent::data(0, disk.len() as u64))];
    read_into(&mut connect(&kit.socket, &[]), plan, &options, &mut whole);
    assert!(disk == whole);
}
