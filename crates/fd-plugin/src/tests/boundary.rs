//! What the boundary itself promises: versions, packet sizes, panics.

use std::ptr;
use std::time::Duration;

use super::bacula::{Bacula, load, table};
use super::restore::file;
use super::worker::serve;
use crate::abi::*;

const IDLE: Duration = Duration::from_secs(20);

#[test]
fn any_other_interface_is_refused() {
    for version in [0, 14, 21, 22, 24, u32::MAX] {
        let (answer, info, funcs) = load(version, table());
        assert_eq!(answer, rc::ERROR, "{version}");
        assert!(info.is_null() && funcs.is_null());
    }
    let broken: [fn(&mut BaculaFuncs); 6] = [
        |table| table.size -= 8,
        |table| table.version = 22,
        |table| table.get_value = None,
        |table| table.job_message = None,
        |table| table.free = None,
        |table| table.get_accurate = None,
    ];
    for breaks in broken {
        let mut table = table();
        breaks(&mut table);
        assert_eq!(load(INTERFACE, table).0, rc::ERROR);
    }
    assert_eq!(load(INTERFACE, table()).0, rc::OK);
}

#[test]
fn packets_of_another_size_are_refused_in_every_callback() {
    type Call = fn(&mut Bacula, i32, i32) -> i32;
    let calls: [Call; 5] = [
        |bacula, size, end| {
            let mut save = Bacula::save_packet();
            (save.pkt_size, save.pkt_end) = (save.pkt_size + size, save.pkt_end + end);
            bacula.start_file(&mut save)
        },
        |bacula, size, end| {
            let mut file = file(c"/x", None, 0);
            (file.pkt_size, file.pkt_end) = (file.pkt_size + size, file.pkt_end + end);
            bacula.create(&mut file).0
        },
        |bacula, size, end| {
            // SAFETY: plain data.
            let mut io: IoPacket = unsafe { std::mem::zeroed() };
            let right = size_of::<IoPacket>() as i32;
            (io.pkt_size, io.pkt_end, io.func) = (right + size, right + end, io::OPEN);
            // SAFETY: a live context and packet.
            unsafe { (bacula.funcs.plugin_io)(bacula.context(), &raw mut io) }
        },
        |bacula, size, end| {
            // SAFETY: plain data.
            let mut object: ObjectPacket = unsafe { std::mem::zeroed() };
            let right = size_of::<ObjectPacket>() as i32;
            (object.pkt_size, object.pkt_end) = (right + size, right + end);
            bacula.event(event::RESTORE_OBJECT, (&raw mut object).cast())
        },
        |bacula, size, end| {
            // SAFETY: plain data.
            let mut query: QueryPacket = unsafe { std::mem::zeroed() };
            let right = size_of::<QueryPacket>() as i32;
            (query.pkt_size, query.pkt_end) = (right + size, right + end);
            // SAFETY: a live context and packet.
            unsafe { (bacula.funcs.query_parameter)(bacula.context(), &raw mut query) }
        },
    ];
    for call in calls {
        for (size, end) in [(8, 8), (-8, -8), (0, 8), (8, 0)] {
            let (mut bacula, _listener) = Bacula::new(IDLE);
            assert_eq!(call(&mut bacula, size, end), rc::ERROR);
            let fatal = bacula.fatal();
            let of_size = |line: &String| line.contains("a packet of another size");
            assert!(fatal.len() == 1 && fatal.iter().all(of_size), "{fatal:?}");
        }
    }
}

#[test]
fn null_pointers_are_refused() {
    let (mut bacula, _listener) = Bacula::new(IDLE);
    let (context, funcs) = (bacula.context(), bacula.funcs);
    // SAFETY: the callbacks check every pointer.
    unsafe {
        assert_eq!(
            (funcs.start_backup_file)(context, ptr::null_mut()),
            rc::ERROR
        );
        assert_eq!((funcs.plugin_io)(context, ptr::null_mut()), rc::ERROR);
        assert_eq!((funcs.create_file)(context, ptr::null_mut()), rc::ERROR);
        assert_eq!((funcs.query_parameter)(context, ptr::null_mut()), rc::ERROR);
        assert_eq!((funcs.end_backup_file)(ptr::null_mut()), rc::ERROR);
        assert_eq!((funcs.new_plugin)(ptr::null_mut()), rc::ERROR);
        assert_eq!((funcs.free_plugin)(ptr::null_mut()), rc::OK);
        assert_eq!(
            (funcs.handle_event)(context, ptr::null_mut(), ptr::null_mut()),
            rc::ERROR
        );
    }
    assert_eq!(bacula.fatal().len(), 1);
}

#[test]
fn a_panic_stops_at_the_boundary_and_fails_the_job() {
    type Call = fn(&mut Bacula) -> i32;
    let calls: [Call; 6] = [
        |bacula| bacula.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01"),
        |bacula| bacula.start_file(&mut Bacula::save_packet()),
        |bacula| bacula.end_file(),
        |bacula| match bacula.io(io::READ, &mut [0; 10], 0) {
            io if io.status == -1 && io.io_errno == libc::EIO => rc::ERROR,
            _ => rc::OK,
        },
        |bacula| match bacula.io(io::SEEK, &mut [], 5).offset {
            -1 => rc::ERROR,
            _ => rc::OK,
        },
        |bacula| bacula.end_restore(),
    ];
    for call in calls {
        let (mut bacula, listener) = Bacula::new(IDLE);
        let worker = serve(listener, |worker| worker.until_closed());
        assert_eq!(
            bacula.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01"),
            rc::OK
        );
        super::PANIC.set(true);
        assert_eq!(call(&mut bacula), rc::ERROR);
        bacula.assert_failed("plugin has a bug, the job is given up (asked to)");
        // The connection is closed at once, and nothing goes on.
        worker.join().unwrap();
        assert_eq!(call(&mut bacula), rc::ERROR);
        assert_eq!(bacula.fatal().len(), 1);
    }
}

#[test]
fn texts_that_are_not_utf8_are_refused() {
    let (mut bacula, _listener) = Bacula::new(IDLE);
    let line = c"lab-backup: vm=\xff";
    assert_eq!(bacula.command(event::BACKUP_COMMAND, line), rc::ERROR);
    assert!(bacula.fatal()[0].contains("not UTF-8"));
}
