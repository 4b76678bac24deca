//! Restore and questions from the console.

use std::ffi::{CStr, CString};
use std::ptr;
use std::thread::JoinHandle;
use std::time::Duration;

use relay::frame::Kind;
use relay::message::{Class, End, Fail, FileKind, Go, Log, Op, PartHead};

use super::bacula::Bacula;
use super::worker::{Worker, serve};
use crate::abi::*;

const IDLE: Duration = Duration::from_secs(20);

/// Hands a restore object over.
pub(super) fn object(bacula: &mut Bacula, plugin: &CStr, bytes: &[u8]) -> i32 {
    let size = size_of::<ObjectPacket>() as i32;
    let mut packet = ObjectPacket {
        pkt_size: size,
        name: c"manifest.json".as_ptr().cast_mut(),
        bytes: bytes.as_ptr().cast_mut().cast(),
        plugin: plugin.as_ptr().cast_mut(),
        object_type: 25,
        len: bytes.len() as i32,
        full_len: 0,
        index: 0,
        compression: 0,
        stream: 0,
        job_id: 3,
        pkt_end: size,
    };
    bacula.event(event::RESTORE_OBJECT, (&raw mut packet).cast())
}

/// Bacula's packet for a file to restore.
pub(super) fn file(path: &CStr, where_: Option<&CStr>, delta_seq: u32) -> RestorePacket {
    // SAFETY: plain data.
    let mut packet: RestorePacket = unsafe { std::mem::zeroed() };
    packet.pkt_size = size_of::<RestorePacket>() as i32;
    packet.pkt_end = packet.pkt_size;
    packet.file_type = file_type::REG;
    packet.stat.st_mode = libc::S_IFREG | 0o600;
    packet.stat.st_size = 1 << 20;
    packet.stat.st_ino = 77;
    packet.ofname = path.as_ptr();
    packet.where_ = where_.map_or(ptr::null(), CStr::as_ptr);
    packet.delta_seq = delta_seq;
    packet
}

impl Bacula {
    pub(super) fn create(&mut self, packet: &mut RestorePacket) -> (i32, i32) {
        let line = c"lab-backup: vm=web01";
        if self.command(event::RESTORE_COMMAND, line) != rc::OK {
            return (rc::ERROR, create::ERROR);
        }
        // SAFETY: a live context, string and packet.
        let answer = unsafe {
            assert_eq!(
                (self.funcs.start_restore_file)(self.context(), line.as_ptr()),
                rc::OK
            );
            (self.funcs.create_file)(self.context(), packet)
        };
        (answer, packet.create_status)
    }

    /// A part with two extents, as bacula-fd writes them.
    pub(super) fn write_part(&mut self, path: &CStr, delta_seq: u32) -> bool {
        let mut packet = file(path, Some(c"/x"), delta_seq);
        if self.create(&mut packet) != (rc::OK, create::EXTRACT) {
            return false;
        }
        self.io(io::OPEN, &mut [], 0);
        let good = [0, 1, 9].into_iter().all(|block| {
            (block == 1 || self.io(io::SEEK, &mut [], block * 65_536).offset >= 0)
                && self.io(io::WRITE, &mut [block as u8; 65_536], 0).status == 65_536
        });
        // SAFETY: a live context and packet.
        unsafe { (self.funcs.set_file_attributes)(self.context(), &raw mut packet) };
        self.io(io::CLOSE, &mut [], 0);
        // SAFETY: a live context.
        unsafe { (self.funcs.end_restore_file)(self.context()) };
        good
    }

    pub(super) fn end_restore(&mut self) -> i32 {
        self.event(event::END_RESTORE_JOB, ptr::null_mut())
    }
}

/// A worker that takes everything, up to the frame in which `stop` says so.
pub(super) fn take(
    listener: std::os::unix::net::UnixListener,
    mut stop: impl FnMut(&mut Worker, Kind) -> bool + Send + 'static,
) -> JoinHandle<(relay::message::Hello, Vec<String>)> {
    serve(listener, move |mut worker| {
        let mut heard = Vec::new();
        let mut end = End::default();
        while let Ok(Some(header)) = worker.reader.header() {
            let bytes = worker.reader.bytes(header).unwrap();
            heard.push(match header.kind {
                Kind::Data => format!("data {} {} {}", header.offset, bytes.len(), bytes[0]),
                Kind::Part => {
                    let part: PartHead = serde_json::from_slice(&bytes).unwrap();
                    assert_eq!((part.part, part.mode, part.size), (77, 0o600, 1 << 20));
                    format!("part {} {}", part.path, part.delta_seq)
                }
                Kind::Object => format!("object {}", String::from_utf8_lossy(&bytes)),
                kind => format!("{kind:?}"),
            });
            if stop(&mut worker, header.kind) {
                break;
            }
            match header.kind {
                Kind::Part => worker.say(Kind::Go, &Go::Write),
                Kind::Data => end.bytes += bytes.len() as u64,
                Kind::FileEnd => end.files += 1,
                Kind::Finish => worker.say(Kind::End, &end),
                _ => {}
            }
        }
        (worker.hello, heard)
    })
}

#[test]
fn a_restore_arrives_as_bacula_gave_it() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = take(listener, |worker, kind| {
        if kind == Kind::Finish {
            let text = "verified".into();
            let class = Class::Info;
            worker.say(Kind::Log, &Log { class, text });
            worker.writer.empty(Kind::Alive).unwrap();
        }
        false
    });
    for (plugin, bytes) in [
        (c"lab-backup: vm=web01", "one"),
        (c"other: x", "not ours"),
        (c"lab-backup: vm=web02", "another vm"),
        (c"", "nobody's"),
        (c"lab-backup: vm=web01", "two"),
    ] {
        assert_eq!(object(&mut bacula, plugin, bytes.as_bytes()), rc::OK);
    }
    assert_eq!(bacula.event(event::RESTORE_OBJECT, ptr::null_mut()), rc::OK);
    assert!(bacula.write_part(c"/x/vda.raw", 0));
    assert!(bacula.write_part(c"/x/vda.raw", 1));
    assert_eq!(bacula.end_restore(), rc::OK);
    assert_eq!(bacula.fatal(), [""; 0]);
    assert_eq!(bacula.said(message::INFO), ["verified"]);
    drop(bacula);
    let (hello, heard) = worker.join().unwrap();
    assert_eq!(
        (hello.op, hello.level, hello.line.as_str()),
        (Op::Restore, None, " vm=web01")
    );
    assert_eq!(hello.where_.as_deref(), Some("/x"));
    assert_eq!(hello.regex_where, None);
    let data = [
        "data 0 65536 0",
        "data 65536 65536 1",
        "data 589824 65536 9",
        "FileEnd",
    ];
    let due: Vec<&str> = ["object one", "object two", "part /x/vda.raw 0"]
        .into_iter()
        .chain(data)
        .chain(["part /x/vda.raw 1"])
        .chain(data)
        .chain(["Finish"])
        .collect();
    assert_eq!(heard, due);
}

#[test]
fn where_may_be_null_and_long_writes_are_split() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = take(listener, |_, _| false);
    let mut packet = file(c"/vda.raw", None, 0);
    packet.regex_where = c"!a!b!".as_ptr();
    assert_eq!(bacula.create(&mut packet), (rc::OK, create::EXTRACT));
    assert_eq!(
        bacula.io(io::WRITE, &mut vec![5; (2 << 20) + 1], 0).status,
        (2 << 20) + 1
    );
    bacula.io(io::CLOSE, &mut [], 0);
    bacula.end_restore();
    let (hello, heard) = worker.join().unwrap();
    assert_eq!(
        (hello.where_, hello.regex_where.as_deref()),
        (None, Some("!a!b!"))
    );
    let due = [
        "data 0 1048576 5",
        "data 1048576 1048576 5",
        "data 2097152 1 5",
    ];
    assert_eq!(heard[1..4], due);
}

#[test]
fn a_worker_may_skip_a_part_or_want_no_data() {
    for (go, status) in [(Go::Skip, create::SKIP), (Go::Done, create::CREATED)] {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let worker = serve(listener, move |mut worker| {
            let part: PartHead = worker.hear(Kind::Part);
            worker.say(Kind::Go, &go);
            worker.hear::<PartHead>(Kind::Part);
            worker.say(Kind::Go, &Go::Write);
            worker.until_closed();
            part.kind
        });
        let mut packet = file(c"/d/", None, 0);
        packet.file_type = file_type::DIREND;
        assert_eq!(bacula.create(&mut packet), (rc::OK, status));
        assert_eq!(bacula.create(&mut packet), (rc::ERROR, create::ERROR));
        bacula.assert_failed("it wants data of /d/");
        assert_eq!(worker.join().unwrap(), FileKind::Directory);
    }
}

#[test]
fn a_worker_that_goes_at_any_frame_fails_the_restore() {
    // Ten frames: an object, two parts of five, FINISH.
    for last in 0..12 {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let mut count = 0;
        let worker = take(listener, move |_, _| {
            count += 1;
            count > last
        });
        object(&mut bacula, c"lab-backup: vm=web01", b"one");
        let _ = bacula.write_part(c"/x/vda.raw", 0) && bacula.write_part(c"/x/vda.raw", 1);
        assert_eq!(bacula.end_restore(), rc::ERROR, "{last}");
        bacula.assert_failed("the worker ended without END");
        worker.join().unwrap();
    }
}

#[test]
fn a_worker_that_fails_at_any_frame_is_quoted() {
    for last in 0..12 {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let mut count = 0;
        let worker = take(listener, move |worker, _| {
            count += 1;
            if count > last {
                let text = "web01: vda: no space left".into();
                let _ = worker.writer.json(Kind::Fail, &Fail { text });
            }
            count > last
        });
        object(&mut bacula, c"lab-backup: vm=web01", b"one");
        let _ = bacula.write_part(c"/x/vda.raw", 0) && bacula.write_part(c"/x/vda.raw", 1);
        assert_eq!(bacula.end_restore(), rc::ERROR, "{last}");
        bacula.assert_failed("web01: vda: no space left");
        worker.join().unwrap();
    }
}

#[test]
fn wrong_counts_at_the_end_fail_the_restore() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = take(listener, |worker, kind| {
        if kind == Kind::Finish {
            worker.say(Kind::End, &End { files: 1, bytes: 5 });
        }
        kind == Kind::Finish
    });
    assert!(bacula.write_part(c"/x/vda.raw", 0));
    bacula.end_restore();
    bacula.assert_failed("it was given 1 files with 196608 bytes and counts 1 with 5");
    worker.join().unwrap();
}

#[test]
fn a_job_that_went_wrong_elsewhere_never_says_finish() {
    for in_a_file in [false, true] {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let worker = take(listener, |_, _| false);
        assert!(bacula.write_part(c"/x/vda.raw", 0));
        if in_a_file {
            bacula.create(&mut file(c"/x/vda.raw", None, 1));
        }
        bacula
            .job
            .canceled
            .store(true, std::sync::atomic::Ordering::SeqCst);
        bacula.io(io::CLOSE, &mut [], 0);
        bacula.end_restore();
        assert_eq!(bacula.fatal(), [""; 0], "bacula has said why");
        let (_, heard) = worker.join().unwrap();
        let due = if in_a_file {
            "part /x/vda.raw 1"
        } else {
            "FileEnd"
        };
        assert_eq!(heard.last().unwrap(), due);
    }
}

#[test]
fn a_restore_of_other_files_needs_no_worker() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    drop(listener);
    assert_eq!(object(&mut bacula, c"lab-backup: vm=web01", b"one"), rc::OK);
    assert_eq!(bacula.end_restore(), rc::OK);
    assert_eq!(bacula.fatal(), [""; 0]);
}

#[test]
fn two_vms_in_one_restore_and_a_missing_worker_are_refused() {
    let (mut bacula, listener) = Bacula::new(IDLE);
    let worker = take(listener, |_, _| false);
    assert!(bacula.write_part(c"/x/vda.raw", 0));
    let other = bacula.command(event::RESTORE_COMMAND, c"lab-backup: vm=web02");
    assert_eq!(other, rc::ERROR);
    bacula.assert_failed("restores web01 and web02 in one job");
    worker.join().unwrap();

    let (mut bacula, listener) = Bacula::new(IDLE);
    drop(listener);
    assert!(!bacula.write_part(c"/x/vda.raw", 0));
    bacula.assert_failed("cannot reach the worker at /");
}

#[test]
fn an_object_too_large_for_a_frame_is_refused() {
    let (mut bacula, _listener) = Bacula::new(IDLE);
    let large = vec![b'x'; (4 << 20) + 1];
    assert_eq!(
        object(&mut bacula, c"lab-backup: vm=web01", &large),
        rc::ERROR
    );
    assert_eq!(bacula.fatal().len(), 1);
}

#[test]
fn a_question_is_answered_and_its_failure_told() {
    let ask = |reply: fn(&mut Worker)| {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let worker = serve(listener, move |mut worker| {
            reply(&mut worker);
            (worker.hello.op, worker.hello.line)
        });
        let parameter = CString::new("inventory --json").unwrap();
        // SAFETY: plain data.
        let mut query: QueryPacket = unsafe { std::mem::zeroed() };
        query.pkt_size = size_of::<QueryPacket>() as i32;
        query.pkt_end = query.pkt_size;
        query.parameter = parameter.as_ptr().cast_mut();
        let mut text = String::new();
        let answer = loop {
            // SAFETY: a live context and packet; the result lives until the next call.
            let answer =
                unsafe { (bacula.funcs.query_parameter)(bacula.context(), &raw mut query) };
            if answer == rc::MORE || answer == rc::OK {
                // SAFETY: as above.
                text.push_str(unsafe { CStr::from_ptr(query.result) }.to_str().unwrap());
            }
            if answer != rc::MORE {
                break answer;
            }
        };
        assert_eq!(bacula.job.messages.lock().unwrap().len(), 0);
        assert_eq!(
            worker.join().unwrap(),
            (Op::Query, "inventory --json".to_owned())
        );
        (answer, text)
    };
    let whole = ask(|worker| {
        let text = "not for the console".into();
        let class = Class::Warning;
        worker.say(Kind::Log, &Log { class, text });
        worker.writer.data(0, b"a\nb").unwrap();
        worker.writer.data(3, b"c\n").unwrap();
        worker.say(Kind::End, &End { files: 0, bytes: 5 });
    });
    assert_eq!(whole, (rc::OK, "a\nbc\n".to_owned()));
    let short = ask(|worker| {
        worker.writer.data(0, b"a\n").unwrap();
        worker.say(Kind::End, &End { files: 0, bytes: 5 });
    });
    let line = "error=the worker broke the protocol: its answer is not whole\n";
    assert_eq!(short, (rc::ERROR, line.to_owned()));
    let dead = ask(|worker| worker.writer.data(0, b"a\n").unwrap());
    assert_eq!(
        dead,
        (rc::ERROR, "error=the worker ended without END\n".to_owned())
    );
}
