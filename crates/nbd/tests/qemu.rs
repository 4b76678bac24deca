//! Reading what QEMU serves, against what QEMU's own tools say of the same image.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod tools;

use std::path::Path;

use nbd::{BASE_ALLOCATION, Error, Extent, Piece, QemuNbdOptions, ReadOptions, dirty_bitmap};
use tools::*;

const MIB: u64 = 1 << 20;

fn small_requests() -> ReadOptions {
    let mut options = ReadOptions::default();
    (options.request, options.in_flight) = (64 << 10, 6);
    options
}

/// Data, written zeros, discards and holes at the start, in the middle and at the end.
fn make(format: &str, image: &Path, size: u64) {
    run(
        "qemu-img",
        &["create", "-q", "-f", format, text(image), &size.to_string()],
    );
    qemu_io(
        format,
        image,
        &[
            "write -P 1 3M 5M",
            "write -P 2 8390656 5120",
            "write -P 3 12M 2M",
            "write -z 4M 1M",
            "write -z -u 12M 64k",
            "discard 13M 512k",
            "write -P 4 16M 4k",
            "write -P 0 17M 1M",
            "write -P 5 18M 256k",
            "discard 18M 64k",
        ],
    );
}

#[test]
fn a_disk_reads_as_qemu_img_converts_it() {
    for format in ["raw", "qcow2"] {
        // The last sizes are no multiple of 4 KiB; QEMU serves whole sectors of 512 bytes.
        for size in [32 * MIB, 32 * MIB + 512, 20 * MIB + 3 * 1024] {
            let dir = tempfile::tempdir().unwrap();
            let image = dir.path().join("disk");
            make(format, &image, size);
            qemu_io(format, &image, &[&format!("write -P 6 {} 512", size - 512)]);
            let due = content(format, &image);
            let server = serve(&QemuNbdOptions::read(&image, format), dir.path());
            // One connection stays open, or the server would leave between two reads.
            let mut blind = connect(&server.socket(), &[]);
            assert_eq!(blind.size(), size, "{format}");
            assert!(blind.read_only() && blind.can_multi_conn());

            for options in [ReadOptions::default(), small_requests()] {
                let (disk, data) = read_all(&server.socket(), &options);
                assert!(disk == due, "{format} {size}: by allocation");
                assert!(data < 12 * MIB, "{format} {size}: {data} bytes of data");

                let whole = || [Ok(Extent::data(0, size))];
                let mut disk = vec![0xee; size as usize];
                let data = read_into(&mut blind, whole(), &options, &mut disk);
                assert!(disk == due && data == size, "{format} {size}: everything");

                let mut holes = options;
                holes.holes = true;
                let mut disk = vec![0xee; size as usize];
                let data = read_into(&mut blind, whole(), &holes, &mut disk);
                assert!(disk == due, "{format} {size}: with holes");
                assert!(data < 16 * MIB, "{format} {size}: {data} bytes with holes");
            }
            for (offset, len) in [
                (0, 1),
                (3 * MIB - 1, 70_000),
                (8_390_655, 5122),
                (size - 700, 700),
            ] {
                let mut part = vec![0xee; len];
                blind.read_at(offset, &mut part).unwrap();
                assert!(
                    part == due[offset as usize..][..len],
                    "{format} {offset} {len}"
                );
            }
            blind.close().unwrap();
            server.stop(SOON).unwrap();
        }
    }
}

#[test]
fn a_raw_file_of_an_odd_length_is_served_up_to_the_next_sector() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    let bytes: Vec<u8> = (0..1_000_001_u32)
        .map(|n| (n * 7 + n / 4096) as u8 | 1)
        .collect();
    std::fs::write(&image, &bytes).unwrap();
    let server = serve(&QemuNbdOptions::read(&image, "raw"), dir.path());
    let keep = connect(&server.socket(), &[]);
    let (disk, _) = read_all(&server.socket(), &small_requests());
    assert_eq!(disk.len(), 1_000_448);
    assert!(disk[..bytes.len()] == bytes && disk[bytes.len()..].iter().all(|byte| *byte == 0));
    drop(keep);
    server.stop(SOON).unwrap();
}

/// Lines of `nbdinfo --map`: offset, length, flags.
fn nbdinfo_map(context: &str, socket: &Path) -> Vec<(u64, u64, u32)> {
    let uri = format!("nbd+unix:///?socket={}", text(socket));
    let said = run("nbdinfo", &[&format!("--map={context}"), &uri]);
    let lines = said.lines().map(|line| {
        let fields: Vec<u64> = line
            .split_whitespace()
            .take(3)
            .map(|f| f.parse().unwrap())
            .collect();
        (fields[0], fields[1], fields[2] as u32)
    });
    lines.collect()
}

#[test]
fn extents_are_those_of_nbdinfo_and_qemu_img_map() {
    for format in ["raw", "qcow2"] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        make(format, &image, 32 * MIB + 512);
        let server = serve(&QemuNbdOptions::read(&image, format), dir.path());
        let mut client = connect(&server.socket(), &[BASE_ALLOCATION]);
        let size = client.size();
        let spans: Vec<_> = client
            .extents(BASE_ALLOCATION, 0, size)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let ours: Vec<_> = spans.iter().map(|s| (s.offset, s.len, s.flags)).collect();
        assert_eq!(
            ours,
            nbdinfo_map(BASE_ALLOCATION, &server.socket()),
            "{format}"
        );
        assert!(ours.len() > 5, "{format}: {ours:?}");

        // qemu-img prints "start", "length", "zero" of each range.
        let map = run(
            "qemu-img",
            &["map", "--output=json", "-f", format, text(&image)],
        );
        let mut zero = vec![None; (size / 512) as usize];
        for line in map.lines().filter(|line| line.contains("\"start\"")) {
            let value = |key: &str| line.split(&format!("\"{key}\": ")).nth(1).unwrap();
            let number = |key| {
                value(key)
                    .split([',', '}'])
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            };
            let (start, length) = (number("start") / 512, number("length") / 512);
            zero[start as usize..][..length as usize].fill(Some(value("zero").starts_with("true")));
        }
        for span in &spans {
            let sectors = &zero[(span.offset / 512) as usize..][..(span.len / 512) as usize];
            let ours = nbd::extent::kind(span.flags) == nbd::Kind::Zero;
            assert!(
                sectors.iter().all(|zero| *zero == Some(ours)),
                "{format} {span:?}"
            );
        }

        // Any part of the walk is the same walk, clamped.
        for (offset, len) in [
            (1, size - 1),
            (4 * MIB - 77, 2 * MIB),
            (size - 1, 1),
            (5, 0),
        ] {
            let part: Vec<_> = client
                .extents(BASE_ALLOCATION, offset, len)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let due: Vec<_> = spans
                .iter()
                .filter_map(|s| {
                    let (from, to) = (s.offset.max(offset), s.end().min(offset + len));
                    (from < to).then(|| (from, to - from, s.flags))
                })
                .collect();
            assert_eq!(
                part.iter()
                    .map(|s| (s.offset, s.len, s.flags))
                    .collect::<Vec<_>>(),
                due
            );
        }
        drop(client);
        server.stop(SOON).unwrap();
    }
}

#[test]
fn an_increment_by_bitmap_turns_the_old_disk_into_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    let size = 32 * MIB + 512;
    make("qcow2", &image, size);
    let mut disk = content("qcow2", &image);
    run("qemu-img", &["bitmap", "--add", text(&image), "b0"]);
    qemu_io(
        "qcow2",
        &image,
        &[
            "write -P 7 3145733 9",
            "write -z 5M 300k",
            "write -z -u 12M 100k",
            "discard 6M 128k",
            "write -P 8 25M 1M",
            &format!("write -P 9 {} 512", size - 512),
        ],
    );
    let due = content("qcow2", &image);
    assert!(disk != due);
    let mut options = QemuNbdOptions::read(&image, "qcow2");
    options.bitmap = Some("b0".into());
    let server = serve(&options, dir.path());
    let context = dirty_bitmap("b0");
    assert_eq!(
        nbd::list_contexts(&server.socket(), "", &["qemu:"], SOON).unwrap(),
        [context.as_str()]
    );
    let server = {
        // Listing was the only connection, so the first server has left.
        server.stop(SOON).unwrap();
        serve(&options, dir.path())
    };
    let mut bitmap = connect(&server.socket(), &[&context]);
    assert!(bitmap.has_context(&context) && !bitmap.has_context(BASE_ALLOCATION));
    let mut base = connect(
        &server.socket(),
        &[BASE_ALLOCATION, "qemu:dirty-bitmap:nope"],
    );
    assert_eq!(base.contexts().len(), 1);
    let mut reader = connect(&server.socket(), &[]);

    let spans: Vec<_> = bitmap
        .extents(&context, 0, size)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let ours: Vec<_> = spans.iter().map(|s| (s.offset, s.len, s.flags)).collect();
    assert_eq!(ours, nbdinfo_map(&context, &server.socket()));

    let dirty: u64 = spans
        .iter()
        .filter(|s| s.flags & 1 != 0)
        .map(|s| s.len)
        .sum();
    assert!(dirty < 3 * MIB, "{dirty}");
    let plan = base.changed(bitmap.extents(&context, 0, size).unwrap());
    let data = read_into(&mut reader, plan, &small_requests(), &mut disk);
    assert!(disk == due);
    assert!(
        data < dirty - 300 * 1024,
        "zeros were read: {data} of {dirty}"
    );
    drop((bitmap, base, reader));
    server.stop(SOON).unwrap();
}

#[test]
fn a_server_killed_in_the_middle_of_a_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", text(&image), "64M"],
    );
    let mut server = Some(serve(&QemuNbdOptions::read(&image, "raw"), dir.path()));
    let mut client = connect(&server.as_ref().unwrap().socket(), &[]);
    let options = small_requests();
    let mut last = 0;
    let plan = [Ok::<_, Error>(Extent::data(0, 64 * MIB))];
    let result = client.read(plan, &options, &options.pool(0), |piece| {
        last = piece.offset();
        if last >= 8 * MIB {
            server.take();
        }
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    assert_eq!(
        error.offset(),
        Some(last + (64 << 10)),
        "the first byte that is missing"
    );
}

#[test]
fn two_threads_share_the_work_and_the_buffers_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    make("raw", &image, 32 * MIB);
    let due = content("raw", &image);
    let server = serve(&QemuNbdOptions::read(&image, "raw"), dir.path());
    let mut client = connect(&server.socket(), &[]);
    let options = small_requests();
    // As the worker does: an unbounded channel, bounded by the pool.
    let pool = options.pool(3);
    let (send, receive) = std::sync::mpsc::channel::<Piece>();
    let disk = std::thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let mut disk = Vec::new();
            for piece in receive {
                std::thread::sleep(std::time::Duration::from_micros(200));
                match piece {
                    Piece::Data { bytes, .. } => disk.extend_from_slice(&bytes),
                    Piece::Zero { len, .. } => disk.resize(disk.len() + len as usize, 0),
                }
            }
            disk
        });
        let plan = [Ok::<_, Error>(Extent::data(0, 32 * MIB))];
        let sent = client.read(plan, &options, &pool, |piece| {
            send.send(piece).expect("the consumer outlives the reader");
            Ok(())
        });
        sent.unwrap();
        drop(send);
        consumer.join().unwrap()
    });
    assert!(disk == due);
    let shelf = format!("{pool:?}");
    let free = shelf
        .split("free: ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    let unmade = shelf
        .split("unmade: ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let (free, unmade): (usize, usize) = (free.parse().unwrap(), unmade.parse().unwrap());
    assert_eq!(free + unmade, 9, "{shelf}");
    drop(client);
    server.stop(SOON).unwrap();
}
