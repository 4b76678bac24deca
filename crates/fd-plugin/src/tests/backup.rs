//! Backup and estimate.

use std::io::Write;
use std::net::Shutdown;
use std::ptr;
use std::time::Duration;

use relay::frame::{HEADER_LEN, Kind};
use relay::message::{Class, Fail, FileHead, FileKind, Known, Level, Log, Op};

use super::bacula::{Bacula, Saved};
use super::worker::{DISK, Worker, conversation, disk, head, serve};
use crate::abi::{event, file_type, message, option, rc};

const IDLE: Duration = Duration::from_secs(20);

/// Sends bytes and closes the sending side only, so that every answer still finds a reader.
fn send(mut worker: Worker, bytes: &[u8]) {
    // A plugin that has given up closes early.
    let _ = worker.stream.write_all(bytes);
    let _ = worker.stream.shutdown(Shutdown::Write);
    worker.rest();
}

fn run(bytes: Vec<u8>, room: usize) -> (Bacula, Vec<Saved>) {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, move |worker| send(worker, &bytes));
    let files = bacula.backup(room);
    worker.join().unwrap();
    (bacula, files)
}

/// A backup of one file by hand: what the worker says after FILE.
fn one(head: FileHead, then: impl FnOnce(&mut Worker) + Send + 'static) -> Bacula {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, move |mut worker| {
        worker.say(Kind::File, &head);
        then(&mut worker);
        worker.until_closed();
    });
    bacula.backup(65_536);
    worker.join().unwrap();
    bacula
}

#[test]
fn a_backup_arrives_as_the_worker_sent_it() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, |mut worker| {
        let bytes = conversation().concat();
        worker.stream.write_all(&bytes).unwrap();
        let known: Known = worker.hear(Kind::Known);
        assert_eq!(worker.rest(), []);
        (worker.hello, known)
    });
    let files = bacula.backup(65_528);
    assert_eq!(bacula.fatal(), [""; 0]);
    assert_eq!(bacula.said(message::INFO), ["2 disks"]);
    assert_eq!(bacula.kept(), [DISK]);
    drop(bacula);
    let (hello, known) = worker.join().unwrap();
    assert_eq!(
        (hello.op, hello.level),
        (Op::Backup, Some(Level::Incremental))
    );
    assert_eq!((hello.job_id, hello.line.as_str()), (7, " vm=web01"));
    assert_eq!(hello.job, "web01.2026-01-31_22.00.00_05");
    assert_eq!(hello.prev_job, "web01.2026-01-30_22.00.00_04");
    assert!(hello.accurate && hello.where_.is_none() && hello.regex_where.is_none());
    assert_eq!((known.found, known.part, known.delta_seq), (true, 42, 3));

    let [directory, xml, disk, manifest] = &files[..] else {
        panic!("{files:?}");
    };
    assert_eq!(directory.name, "/#LabBackup/web01/web01/tpm/");
    assert_eq!(directory.file_type, file_type::DIREND);
    assert_eq!(directory.mode, libc::S_IFDIR | 0o640);
    assert_eq!((xml.file_type, xml.flags, xml.size), (file_type::REG, 0, 5));
    assert_eq!(xml.records, [(0, b"<dom".to_vec()), (4, b">".to_vec())]);
    assert_eq!(
        (disk.name.as_str(), disk.inode, disk.delta_seq),
        (DISK, 77, 3)
    );
    assert_eq!(disk.flags, option::OFFSETS | option::DELTA);
    let records: Vec<_> = disk
        .records
        .iter()
        .map(|(at, data)| (*at, data.len()))
        .collect();
    // 65528 bytes of room hold 15 whole blocks; a frame's rest is a record of its own.
    let whole = 61_440;
    assert_eq!(
        records,
        [
            (8192, whole),
            (8192 + 61_440, whole),
            (8192 + 2 * 61_440, 131_072 - 2 * whole),
            (0, 4096),
            (937_984, 62_116)
        ]
    );
    assert_eq!(manifest.file_type, file_type::RESTORE_FIRST);
    assert_eq!(manifest.object, b"{}");
}

#[test]
fn a_worker_that_ends_anywhere_before_its_end_fails_the_job() {
    let frames = conversation();
    let all = frames.concat();
    let mut cuts = vec![0];
    for frame in &frames {
        let start = cuts.last().copied().unwrap_or(0);
        let inside = [
            1,
            7,
            HEADER_LEN - 1,
            HEADER_LEN,
            HEADER_LEN + 1,
            frame.len() - 1,
        ];
        let inside = inside.into_iter().filter(|at| *at < frame.len());
        let inside: Vec<_> = inside.map(|at| start + at).collect();
        cuts.extend(inside);
        cuts.push(start + frame.len());
    }
    assert_eq!(cuts.pop(), Some(all.len()));
    cuts.sort_unstable();
    cuts.dedup();
    assert!(cuts.len() > 60);
    for cut in cuts {
        let (bacula, _) = run(all[..cut].to_vec(), 65_536);
        bacula.assert_failed("the worker ended without END");
    }
    let (bacula, _) = run(all, 65_536);
    assert_eq!(bacula.fatal(), [""; 0]);
}

#[test]
fn a_header_with_a_wrong_byte_fails_the_job() {
    let frames = conversation();
    let mut start = 0;
    for frame in &frames {
        for at in 0..HEADER_LEN {
            // Another offset of a disk's data is as good as the right one to anyone but the worker.
            if frame[0] == Kind::Data as u8 && frame.len() > 1000 && at >= 8 {
                continue;
            }
            for wrong in [0xff, 0x80, 0x01, frame[at].wrapping_add(1)] {
                let mut bytes = frames.concat();
                if bytes[start + at] == wrong {
                    continue;
                }
                bytes[start + at] = wrong;
                let (bacula, _) = run(bytes, 65_536);
                assert_eq!(bacula.fatal().len(), 1, "byte {at} of {frame:?} as {wrong}");
            }
        }
        start += frame.len();
    }
}

#[test]
fn a_worker_that_says_why_is_quoted_and_every_line_is_logged_in_its_class() {
    let bacula = one(disk(8192), |worker| {
        for (class, text) in [
            (Class::Warning, "no agent"),
            (Class::Error, "odd\nline \u{1b}[2J%s%n"),
        ] {
            let text = text.into();
            worker.say(Kind::Log, &Log { class, text });
        }
        worker.writer.data(0, &[1; 4096]).unwrap();
        let text = "web01: vda: the export broke; look at the hypervisor's log".into();
        worker.say(Kind::Fail, &Fail { text });
    });
    bacula.assert_failed("web01: vda: the export broke; look at the hypervisor's log");
    assert_eq!(bacula.said(message::WARNING), ["no agent"]);
    assert_eq!(bacula.said(message::ERROR), ["odd line  [2J%s%n"]);
}

#[test]
fn files_that_cannot_be_are_refused() {
    let file = |path: &str| head(path, FileKind::Regular, 0);
    let cases = [
        (file("relative"), "is no path"),
        (file("/a\nb"), "is no path"),
        (file("/a\0b"), "is no path"),
        (file(&format!("/{}", "a".repeat(5000))), "is no path"),
        (file("/a/"), "ends in a slash"),
        (head("/a", FileKind::Regular, u64::MAX), "impossible"),
        (
            FileHead {
                part: u64::MAX,
                ..file("/a")
            },
            "impossible",
        ),
        (
            FileHead {
                offsets: true,
                ..head("/a", FileKind::Directory, 0)
            },
            "impossible",
        ),
        (
            FileHead {
                delta_on: Some(2),
                ..disk(0)
            },
            "a delta on part 2",
        ),
        (
            FileHead {
                path: "/new".into(),
                ..disk(0)
            },
            "a delta on part 3",
        ),
    ];
    for (head, words) in cases {
        one(head, |_| ()).assert_failed(words);
    }
}

#[test]
fn data_that_cannot_be_is_refused() {
    type Say = fn(&mut Worker);
    let xml = || head("/x", FileKind::Regular, 10);
    let cases: [(FileHead, Say, &str); 10] = [
        (
            disk(8192),
            |w| w.writer.data(4096, &[0; 8192]).unwrap(),
            "8192 bytes at 4096 in a file of",
        ),
        (
            disk(8192),
            |w| w.writer.data(u64::MAX - 9, &[0; 4096]).unwrap(),
            "in a file of 8192",
        ),
        (
            disk(8192),
            |w| w.writer.data(512, &[0; 4096]).unwrap(),
            "out of step",
        ),
        (
            disk(8192),
            |w| w.writer.data(0, &[0; 512]).unwrap(),
            "out of step",
        ),
        (
            disk(8192),
            |w| w.writer.data(0, &[]).unwrap(),
            "0 bytes at 0",
        ),
        (xml(), |w| w.writer.data(1, b"x").unwrap(), "out of step"),
        (
            xml(),
            |w| w.writer.empty(Kind::FileEnd).unwrap(),
            "0 bytes of a file of 10",
        ),
        (
            xml(),
            |w| w.writer.empty(Kind::Finish).unwrap(),
            "Finish frame came where a file",
        ),
        (
            head("/d", FileKind::Directory, 10),
            |w| w.writer.data(0, b"x").unwrap(),
            "1 bytes at 0",
        ),
        (
            head("/o", FileKind::Object, 5 << 20),
            |w| {
                for i in 0..5 {
                    let _ = w.writer.data(i << 20, &[0; 1 << 20]);
                }
            },
            "over 4 MiB",
        ),
    ];
    for (head, say, words) in cases {
        one(head, say).assert_failed(words);
    }
}

#[test]
fn counts_that_differ_fail_the_job() {
    for (files, bytes) in [(0, 0), (2, 5), (1, 4), (1, 6), (u64::MAX, u64::MAX)] {
        one(head("/x", FileKind::Regular, 5), move |worker| {
            worker.writer.data(0, b"12345").unwrap();
            worker.writer.empty(Kind::FileEnd).unwrap();
            worker.say(Kind::End, &relay::message::End { files, bytes });
        })
        .assert_failed("it sent 1 files with 5 bytes and counts");
    }
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, |mut worker| {
        worker.say(Kind::End, &relay::message::End::default());
    });
    bacula.backup(65_536);
    bacula.assert_failed("it sent no file");
    worker.join().unwrap();
}

#[test]
fn a_file_that_bacula_left_half_read_fails_the_job() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, |mut worker| {
        worker.say(Kind::File, &head("/x", FileKind::Regular, 10));
        worker.until_closed();
    });
    bacula.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01");
    assert_eq!(bacula.start_file(&mut Bacula::save_packet()), rc::OK);
    assert_eq!(bacula.end_file(), rc::ERROR);
    bacula.assert_failed("/x: the File Daemon did not read the file to its end");
    worker.join().unwrap();
}

#[test]
fn a_backup_that_bacula_ends_first_fails() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, |worker| worker.until_closed());
    bacula.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01");
    assert_eq!(
        bacula.event(event::END_BACKUP_JOB, ptr::null_mut()),
        rc::ERROR
    );
    bacula.assert_failed("ended the backup before the worker did");
    worker.join().unwrap();
}

#[test]
fn an_estimate_lists_files_and_moves_no_data() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = serve(listener, |mut worker| {
        worker.say(Kind::File, &disk(10 << 40));
        worker.say(Kind::File, &head("/x", FileKind::Regular, 5));
        worker.writer.empty(Kind::FileEnd).unwrap();
        let end = relay::message::End { files: 2, bytes: 0 };
        worker.say(Kind::End, &end);
        worker.hello.op
    });
    bacula.command(event::ESTIMATE_COMMAND, c"lab-backup: vm=web01 listing=/");
    let mut sizes = Vec::new();
    loop {
        let mut save = Bacula::save_packet();
        assert_eq!(bacula.start_file(&mut save), rc::OK);
        sizes.push(save.stat.st_size);
        if bacula.end_file() != rc::MORE {
            break;
        }
    }
    assert_eq!(sizes, [10 << 40, 5]);
    assert_eq!(worker.join().unwrap(), Op::Estimate);
    assert_eq!(bacula.fatal(), [""; 0]);
}
