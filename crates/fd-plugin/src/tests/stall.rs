//! Cancelled jobs, silent workers, slow Storage Daemons.

use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use relay::frame::Kind;
use relay::message::{End, Fail, FileKind, Go, PartHead};

use super::bacula::Bacula;
use super::restore::file;
use super::worker::{Worker, disk, head, serve};
use crate::abi::{create, event, io, rc};
use crate::daemon::Daemon;
use crate::link::Link;
use crate::trouble::Trouble;

const LONG: Duration = Duration::from_secs(60);

/// Where the plugin waits when the job is cancelled.
#[derive(Clone, Copy, Debug)]
enum Stage {
    File,
    Data,
    MiddleOfData,
    NextFile,
    Go,
    Writing,
    Finish,
}

fn worker(stage: Stage, listener: UnixListener) -> thread::JoinHandle<Vec<Kind>> {
    serve(listener, move |mut worker| {
        match stage {
            Stage::File | Stage::Go => {}
            Stage::Data => worker.say(Kind::File, &disk(1 << 20)),
            Stage::MiddleOfData => {
                worker.say(Kind::File, &disk(1 << 20));
                let mut data = Vec::new();
                relay::frame::Writer::new(&mut data)
                    .data(0, &[1; 8192])
                    .unwrap();
                std::io::Write::write_all(&mut worker.stream, &data[..5000]).unwrap();
            }
            Stage::NextFile => {
                worker.say(Kind::File, &head("/x", FileKind::Regular, 0));
                worker.writer.empty(Kind::FileEnd).unwrap();
            }
            Stage::Writing | Stage::Finish => {
                worker.hear::<PartHead>(Kind::Part);
                worker.say(Kind::Go, &Go::Write);
                if matches!(stage, Stage::Writing) {
                    // Takes nothing until the plugin has gone.
                    thread::sleep(Duration::from_secs(3));
                }
            }
        }
        worker.rest()
    })
}

fn act(stage: Stage, bacula: &mut Bacula) {
    match stage {
        Stage::File | Stage::Data | Stage::MiddleOfData | Stage::NextFile => {
            bacula.backup(65_536);
        }
        Stage::Go => {
            assert_eq!(bacula.create(&mut file(c"/x", None, 0)).0, rc::ERROR);
            bacula.end_restore();
        }
        Stage::Writing => {
            bacula.create(&mut file(c"/x", None, 0));
            while bacula.io(io::WRITE, &mut [1; 65_536], 0).status == 65_536 {}
            bacula.io(io::CLOSE, &mut [], 0);
            bacula.end_restore();
        }
        Stage::Finish => {
            assert_eq!(bacula.create(&mut file(c"/x", None, 0)).1, create::EXTRACT);
            bacula.io(io::CLOSE, &mut [], 0);
            assert_eq!(bacula.end_restore(), rc::ERROR);
        }
    }
}

const STAGES: [Stage; 7] = [
    Stage::File,
    Stage::Data,
    Stage::MiddleOfData,
    Stage::NextFile,
    Stage::Go,
    Stage::Writing,
    Stage::Finish,
];

/// Every stage on a thread of its own, so that the waits pass side by side.
fn everywhere(test: fn(Stage)) {
    let threads: Vec<_> = STAGES
        .into_iter()
        .map(|stage| thread::spawn(move || test(stage)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_cancel_ends_every_wait_within_two_seconds() {
    everywhere(|stage| {
        let (mut bacula, listener) = Bacula::new(LONG);
        let worker = worker(stage, listener);
        let cancel = bacula.canceller(true);
        let canceller = thread::spawn(|| {
            thread::sleep(Duration::from_millis(500));
            cancel();
            Instant::now()
        });
        act(stage, &mut bacula);
        let since = canceller.join().unwrap().elapsed();
        assert!(since < Duration::from_secs(2), "{stage:?} took {since:?}");
        assert_eq!(bacula.fatal(), [""; 0], "{stage:?}: the status says it");
        drop(bacula);
        let heard = worker.join().unwrap();
        let finished = heard.contains(&Kind::Finish);
        assert_eq!(
            finished,
            matches!(stage, Stage::Finish),
            "{stage:?}: {heard:?}"
        );
    });
}

#[test]
fn a_silent_worker_is_given_up() {
    everywhere(|stage| {
        let (mut bacula, listener) = Bacula::new(Duration::from_millis(1500));
        let worker = worker(stage, listener);
        act(stage, &mut bacula);
        bacula.assert_failed("the worker was silent for 1 s");
        drop(bacula);
        worker.join().unwrap();
    });
}

#[test]
fn a_cancel_that_bacula_never_counts_fails_the_job() {
    let (mut bacula, listener) = Bacula::new(LONG);
    let worker = worker(Stage::File, listener);
    bacula.canceller(false)();
    bacula.backup(65_536);
    bacula.assert_failed("the job was cancelled");
    worker.join().unwrap();
}

/// One sequential file of three pieces; `between` runs before each.
fn slowly(worker: &mut Worker, between: impl Fn(&mut Worker)) {
    worker.say(Kind::File, &head("/x", FileKind::Regular, 12));
    for i in 0..3 {
        between(worker);
        worker.writer.data(i * 4, b"data").unwrap();
    }
    worker.writer.empty(Kind::FileEnd).unwrap();
    worker.say(
        Kind::End,
        &End {
            files: 1,
            bytes: 12,
        },
    );
}

#[test]
fn signs_of_life_keep_a_busy_worker() {
    let (mut bacula, listener) = Bacula::new(Duration::from_millis(700));
    let worker = serve(listener, |mut worker| {
        slowly(&mut worker, |worker| {
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(300));
                worker.writer.empty(Kind::Alive).unwrap();
            }
        });
    });
    assert_eq!(bacula.backup(65_536).len(), 1);
    assert_eq!(bacula.fatal(), [""; 0]);
    worker.join().unwrap();
}

#[test]
fn a_slow_storage_daemon_is_no_silent_worker() {
    let (mut bacula, listener) = Bacula::new(Duration::from_millis(300));
    let worker = serve(listener, |mut worker| slowly(&mut worker, |_| ()));
    bacula.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01");
    assert_eq!(bacula.start_file(&mut Bacula::save_packet()), rc::OK);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(500));
        assert_eq!(bacula.io(io::READ, &mut [0; 65_536], 0).status, 4);
    }
    assert_eq!(bacula.io(io::READ, &mut [0; 65_536], 0).status, 0);
    assert_eq!(bacula.end_file(), rc::OK);
    assert_eq!(bacula.fatal(), [""; 0]);
    worker.join().unwrap();
}

#[test]
fn a_worker_that_is_slow_to_take_data_shows_signs_of_life() {
    let (mut bacula, listener) = Bacula::new(Duration::from_millis(700));
    let worker = serve(listener, |mut worker| {
        worker.hear::<PartHead>(Kind::Part);
        worker.say(Kind::Go, &Go::Write);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(300));
            worker.writer.empty(Kind::Alive).unwrap();
        }
        let mut bytes = 0;
        loop {
            let header = worker.reader.header().unwrap().unwrap();
            bytes += worker.reader.bytes(header).unwrap().len() as u64;
            if header.kind == Kind::Finish {
                break worker.say(Kind::End, &End { files: 1, bytes });
            }
        }
    });
    bacula.create(&mut file(c"/x", None, 0));
    for _ in 0..40 {
        assert_eq!(bacula.io(io::WRITE, &mut [1; 65_536], 0).status, 65_536);
    }
    bacula.io(io::CLOSE, &mut [], 0);
    assert_eq!(bacula.end_restore(), rc::OK);
    assert_eq!(bacula.fatal(), [""; 0]);
    worker.join().unwrap();
}

#[test]
fn the_last_words_of_a_worker_come_before_the_broken_pipe() {
    for words in [Some("web01: vda: no space left"), None] {
        let (mut bacula, listener) = Bacula::new(LONG);
        let settings = super::settings().unwrap();
        let cancel = AtomicBool::new(false);
        // SAFETY: the context of a live job.
        let daemon = unsafe { Daemon::new(bacula.context(), &cancel) }.unwrap();
        let link = Link::open(&settings.socket, settings.idle, &daemon).unwrap();
        let (stream, _) = listener.accept().unwrap();
        if let Some(words) = words {
            let text = words.into();
            let fail = Fail { text };
            relay::frame::Writer::new(&stream)
                .json(Kind::Fail, &fail)
                .unwrap();
        }
        drop(stream);
        let error = link.writer(&daemon).data(0, &[1; 4096]).unwrap_err();
        let line = Trouble::from(error).line();
        assert_eq!(line, words.unwrap_or("the worker ended without END"));
    }
}
