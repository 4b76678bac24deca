//! Writing through a `qemu-nbd` child, and the child itself.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod tools;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nbd::{Cache, Client, Error, QemuNbd, QemuNbdOptions, ServerError, ServerFailure};
use tools::*;

const MIB: u64 = 1 << 20;

/// Bytes in which no two blocks are equal.
fn noise(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
        .collect()
}

#[test]
fn a_restored_image_is_what_was_written_and_qemu_finds_it_sound() {
    for (format, cache) in [
        ("qcow2", Cache::Writeback),
        ("raw", Cache::Writeback),
        ("qcow2", Cache::Unsafe),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("target");
        let size = 32 * MIB + 512;
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                format,
                text(&image),
                &size.to_string(),
            ],
        );
        let mut options = QemuNbdOptions::write(&image, format);
        options.cache = cache;
        let server = serve(&options, dir.path());
        let mut client = connect(&server.socket(), &[]);
        assert!(!client.read_only());
        let mut due = vec![0; size as usize];
        let mut writer = client.writer(8);
        for number in 0..40 {
            let (offset, len) = (number * 700 * 1024, 64 << 10);
            let bytes = noise(offset, len);
            writer.write(offset, &bytes).unwrap();
            due[offset as usize..][..len].copy_from_slice(&bytes);
        }
        let long = noise(MIB, 5 * MIB as usize);
        writer.write(MIB, &long).unwrap();
        due[MIB as usize..][..long.len()].copy_from_slice(&long);
        // A later part of the chain zeroes and overwrites what an earlier one wrote.
        writer.write_zeroes(2 * MIB + 4096, MIB).unwrap();
        due[2 * MIB as usize + 4096..][..MIB as usize].fill(0);
        writer.write(2 * MIB + 8192, &noise(7, 4096)).unwrap();
        due[2 * MIB as usize + 8192..][..4096].copy_from_slice(&noise(7, 4096));
        writer.write(size - 512, &noise(9, 512)).unwrap();
        due[size as usize - 512..].copy_from_slice(&noise(9, 512));
        writer.trim(20 * MIB, MIB).unwrap();
        writer.write_zeroes(20 * MIB, MIB).unwrap();
        due[20 * MIB as usize..][..MIB as usize].fill(0);
        writer.flush().unwrap();
        drop(writer);
        // The same connection reads back what it wrote.
        let mut part = vec![0; 9 * MIB as usize];
        client.read_at(0, &mut part).unwrap();
        assert!(part == due[..part.len()], "{format}");
        client.close().unwrap();
        server.stop(SOON).unwrap();
        assert!(content(format, &image) == due, "{format} {cache:?}");
        if format == "qcow2" {
            run("qemu-img", &["check", "-q", text(&image)]);
        }
    }
}

#[test]
fn zeros_and_trims_take_no_room_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("target");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), "16G"],
    );
    let server = serve(&QemuNbdOptions::write(&image, "qcow2"), dir.path());
    let mut client = connect(&server.socket(), &[]);
    let mut writer = client.writer(8);
    writer.write(0, &noise(0, 8 * MIB as usize)).unwrap();
    writer.write_zeroes(0, 16 << 30).unwrap();
    writer.flush().unwrap();
    drop(writer);
    client.close().unwrap();
    server.stop(SOON).unwrap();
    let stored = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap()) * 512;
    assert!(stored < 4 * MIB, "{stored} bytes");
}

#[test]
fn a_full_target_is_reported_with_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let kit = Nbdkit::spawn(
        dir.path(),
        &[
            "--filter=error",
            "memory",
            "64M",
            "error-pwrite=ENOSPC",
            "error-pwrite-rate=100%",
        ],
    );
    let mut client = connect(&kit.socket, &[]);
    let mut writer = client.writer(4);
    let failed = (0..20).find_map(|number| writer.write(MIB + number * 4096, &[1; 4096]).err());
    let error = failed.or_else(|| writer.flush().err()).unwrap();
    assert_eq!(error.server_error(), Some(ServerError::NoSpace));
    // Four requests are under way at once, and the server answers in any order.
    let first = (0..4).map(|number| MIB + number * 4096);
    assert!(
        first
            .into_iter()
            .any(|offset| error.offset() == Some(offset))
    );
    assert!(writer.flush().is_err());
}

#[test]
fn a_read_only_server_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", text(&image), "1M"],
    );
    let server = serve(&QemuNbdOptions::read(&image, "raw"), dir.path());
    let mut client = connect(&server.socket(), &[]);
    let result = client.writer(8).write(0, &[1; 512]);
    assert!(
        matches!(result, Err(Error::NotOffered { .. })),
        "{result:?}"
    );
    drop(client);
    server.stop(SOON).unwrap();
}

#[test]
fn a_server_that_cannot_serve_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    std::fs::write(&image, [0; 4096]).unwrap();
    let spawn = |options: &QemuNbdOptions| QemuNbd::spawn(options, dir.path(), SOON);
    let said = |options| match spawn(&options) {
        Err(error @ ServerFailure::Exited { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said(QemuNbdOptions::read(&image, "qcow2")).contains("not in qcow2 format"));
    assert!(said(QemuNbdOptions::read(&image, "")).contains("disk"));
    assert!(said(QemuNbdOptions::read(dir.path().join("no"), "raw")).contains("No such file"));
    let mut bitmap = QemuNbdOptions::read(&image, "raw");
    bitmap.bitmap = Some("none".into());
    assert!(said(bitmap).contains("none"));
    let relative = spawn(&QemuNbdOptions::read("nbd:unix:/x", "raw"));
    assert!(matches!(relative, Err(ServerFailure::NotAbsolute { .. })));
    let mut missing = QemuNbdOptions::read(&image, "raw");
    missing.program = "/no/such/program".into();
    assert!(matches!(spawn(&missing), Err(ServerFailure::Run { .. })));
    let nowhere = QemuNbd::spawn(&QemuNbdOptions::read(&image, "raw"), &image, SOON);
    assert!(matches!(nowhere, Err(ServerFailure::Directory { .. })));
    // A program that never serves is late, and does not stay.
    let mut idle = QemuNbdOptions::read("/dev/zero", "raw");
    idle.program = "/usr/bin/yes".into();
    let late = QemuNbd::spawn(&idle, dir.path(), Duration::from_millis(100));
    assert!(
        matches!(
            late,
            Err(ServerFailure::Late { .. } | ServerFailure::Exited { .. })
        ),
        "{late:?}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(left, [image], "nothing of ours is left");
}

#[test]
fn names_are_data_and_the_socket_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a b:$(touch x),driver=null-co;'\"");
    std::fs::write(&image, noise(0, 8192)).unwrap();
    let server = serve(&QemuNbdOptions::read(&image, "raw"), dir.path());
    let room = server.socket().parent().unwrap().to_owned();
    let mode = std::fs::metadata(&room).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let mut bytes = vec![0; 8192];
    let mut client = connect(&server.socket(), &[]);
    client.read_at(0, &mut bytes).unwrap();
    assert!(bytes == noise(0, 8192));
    let environment = std::fs::read(format!("/proc/{}/environ", server.pid())).unwrap();
    assert!(environment.is_empty());
    drop(client);
    server.stop(SOON).unwrap();
    assert!(!room.exists());
    assert!(!std::path::Path::new("/x").exists());
}

#[test]
fn a_server_leaves_with_its_last_client_and_at_once_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    std::fs::write(&image, noise(0, 8192)).unwrap();
    let alive = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A dead child that was not waited for is a zombie.
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let server = serve(&QemuNbdOptions::read(&image, "raw"), dir.path());
    let pid = server.pid();
    let first = connect(&server.socket(), &[]);
    let second = connect(&server.socket(), &[]);
    drop(first);
    std::thread::sleep(Duration::from_millis(100));
    assert!(alive(pid), "one connection is still open");
    drop(second);
    let end = Instant::now() + SOON;
    while alive(pid) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!alive(pid), "it outlived its last client");
    server.stop(SOON).unwrap();

    let mut options = QemuNbdOptions::read(&image, "raw");
    options.persistent = true;
    let server = serve(&options, dir.path());
    let pid = server.pid();
    for _ in 0..3 {
        connect(&server.socket(), &[]).close().unwrap();
    }
    assert!(alive(pid));
    drop(server);
    assert!(!alive(pid));

    // Nobody ever connected.
    serve(&options, dir.path()).stop(SOON).unwrap();
}

#[test]
fn a_wrong_export_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    std::fs::write(&image, noise(0, 8192)).unwrap();
    let mut options = QemuNbdOptions::read(&image, "raw");
    options.persistent = true;
    let server = serve(&options, dir.path());
    let error = Client::connect(&server.socket(), "vda", &[], SOON).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refuses the use of NBD export \"vda\": export 'vda' not present"
    );
    server.stop(SOON).unwrap();
}
