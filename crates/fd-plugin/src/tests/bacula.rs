//! A File Daemon that keeps what it is told, and runs jobs in the order in which bacula-fd does.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::net::UnixListener;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::abi::*;
use crate::job::Settings;

/// What Bacula knows of a job.
pub(super) struct Job {
    pub(super) level: u8,
    pub(super) name: CString,
    pub(super) prev: CString,
    /// Path to part id and delta_seq.
    pub(super) known: BTreeMap<String, (u64, i32)>,
    pub(super) canceled: AtomicBool,
    pub(super) messages: Mutex<Vec<(c_int, String)>>,
    pub(super) kept: Mutex<Vec<String>>,
    freed: AtomicUsize,
    handed: AtomicUsize,
}

fn job<'a>(context: *mut PluginContext) -> &'a Job {
    // SAFETY: every context in these tests carries a `Job` that outlives it.
    unsafe { &*(*context).bacula.cast::<Job>() }
}

unsafe extern "C" fn get_value(context: *mut PluginContext, id: c_int, out: *mut c_void) -> c_int {
    let job = job(context);
    let number = |value: c_int| {
        // SAFETY: numeric variables have room for an int.
        unsafe { *out.cast::<c_int>() = value }
    };
    let text = |value: &CStr| {
        // SAFETY: text variables have room for a pointer.
        unsafe { *out.cast::<*const c_char>() = value.as_ptr() }
    };
    match id {
        var::JOB_ID => number(7),
        var::LEVEL => number(c_int::from(job.level)),
        var::ACCURATE => number(1),
        var::IS_CANCELED => number(c_int::from(job.canceled.load(Ordering::SeqCst))),
        var::JOB_NAME => text(&job.name),
        var::PREV_JOB_NAME => text(&job.prev),
        _ => return rc::ERROR,
    }
    rc::OK
}

unsafe extern "C" fn set_value(
    context: *mut PluginContext,
    id: c_int,
    value: *mut c_void,
) -> c_int {
    assert_eq!(id, var::FILE_SEEN);
    // SAFETY: this variable is a string.
    let path = unsafe { CStr::from_ptr(value.cast()) };
    let path = path.to_str().unwrap().to_owned();
    job(context).kept.lock().unwrap().push(path);
    rc::OK
}

/// Takes the one argument that the plugin's only format has. Rust cannot define a function with
/// "…"; on Linux an argument after six others is passed alike in both forms.
unsafe extern "C" fn job_message(
    context: *mut PluginContext,
    _file: *const c_char,
    _line: c_int,
    class: c_int,
    _time: i64,
    format: *const c_char,
    text: *const c_char,
) -> c_int {
    // SAFETY: both are strings of the caller.
    let (format, text) = unsafe { (CStr::from_ptr(format), CStr::from_ptr(text)) };
    assert_eq!(format, c"%s");
    let job = job(context);
    if class == message::FATAL {
        job.canceled.store(true, Ordering::SeqCst);
    }
    let text = text.to_str().unwrap().strip_suffix('\n').unwrap();
    assert!(!text.contains('\n'), "{text:?}");
    job.messages.lock().unwrap().push((class, text.to_owned()));
    rc::OK
}

unsafe extern "C" fn free(
    context: *mut PluginContext,
    _file: *const c_char,
    _line: c_int,
    memory: *mut c_void,
) {
    job(context).freed.fetch_add(1, Ordering::SeqCst);
    // SAFETY: only checksums are freed, which `get_accurate` made this way.
    drop(unsafe { CString::from_raw(memory.cast()) });
}

unsafe extern "C" fn get_accurate(
    context: *mut PluginContext,
    packet: *mut AccuratePacket,
) -> c_int {
    let job = job(context);
    // SAFETY: the plugin's packet and the name in it.
    let (packet, name) = unsafe { (&mut *packet, CStr::from_ptr((*packet).fname)) };
    let Some((part, delta_seq)) = job.known.get(name.to_str().unwrap()) else {
        return rc::OK;
    };
    packet.stat.st_ino = *part;
    packet.delta_seq = *delta_seq;
    packet.checksum = CString::new("sum").unwrap().into_raw();
    job.handed.fetch_add(1, Ordering::SeqCst);
    rc::SEEN
}

/// The daemon's table.
pub(super) fn table() -> BaculaFuncs {
    type Fixed = unsafe extern "C" fn(
        *mut PluginContext,
        *const c_char,
        c_int,
        c_int,
        i64,
        *const c_char,
        *const c_char,
    ) -> c_int;
    BaculaFuncs {
        size: size_of::<BaculaFuncs>() as u32,
        version: INTERFACE,
        register_events: ptr::null(),
        get_value: Some(get_value),
        set_value: Some(set_value),
        // SAFETY: see `job_message`.
        job_message: Some(unsafe {
            std::mem::transmute::<Fixed, JobMessage>(job_message as Fixed)
        }),
        debug_message: ptr::null(),
        malloc: ptr::null(),
        free: Some(free),
        file_set: [ptr::null(); 8],
        check_changes: ptr::null(),
        accept_file: ptr::null(),
        get_accurate: Some(get_accurate),
        add_plugin: ptr::null(),
        add_file_event: ptr::null(),
    }
}

/// Loads the plugin as the daemon does: its answer and its two tables.
pub(super) fn load(
    version: u32,
    table: BaculaFuncs,
) -> (c_int, *const PluginInfo, *const PluginFuncs) {
    let mut info = BaculaInfo { size: 8, version };
    let (mut ours, mut funcs) = (ptr::null_mut(), ptr::null_mut());
    let answer = unsafe {
        // SAFETY: the table lives for ever, as Bacula's does; the places are ours.
        crate::boundary::loadPlugin(
            (&raw mut info).cast(),
            ptr::from_mut(Box::leak(Box::new(table))).cast(),
            &raw mut ours,
            &raw mut funcs,
        )
    };
    (answer, ours.cast(), funcs.cast())
}

/// A pointer that a test may use on two threads, as Bacula does.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut PluginContext);

// SAFETY: the plugin's promise under test: a cancel may come from any thread.
unsafe impl Send for Shared {}

/// A daemon with one job.
pub(super) struct Bacula {
    pub(super) job: Arc<Job>,
    pub(super) context: Box<PluginContext>,
    pub(super) funcs: &'static PluginFuncs,
    _directory: tempfile::TempDir,
}

/// A file as the daemon saw it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Saved {
    pub(super) name: String,
    pub(super) file_type: i32,
    pub(super) flags: u64,
    pub(super) delta_seq: u32,
    pub(super) inode: u64,
    pub(super) size: i64,
    pub(super) mode: u32,
    pub(super) object: Vec<u8>,
    pub(super) records: Vec<(i64, Vec<u8>)>,
}

impl Bacula {
    /// A daemon, and the place where its worker shall listen.
    pub(super) fn new(idle: Duration) -> (Self, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("worker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        super::SETTINGS.set(Some(Settings { socket, idle }));
        let (answer, info, funcs) = load(INTERFACE, table());
        assert_eq!(answer, rc::OK);
        // SAFETY: the plugin's tables are static.
        let (info, funcs) = unsafe { (&*info, &*funcs) };
        assert_eq!((info.version, funcs.version), (INTERFACE, INTERFACE));
        let job = Arc::new(Job {
            level: b'I',
            name: c"web01.2026-01-31_22.00.00_05".into(),
            prev: c"web01.2026-01-30_22.00.00_04".into(),
            known: BTreeMap::from([("/#LabBackup/web01/web01/vda.raw".into(), (42, 3))]),
            canceled: AtomicBool::new(false),
            messages: Mutex::default(),
            kept: Mutex::default(),
            freed: AtomicUsize::new(0),
            handed: AtomicUsize::new(0),
        });
        let mut context = Box::new(PluginContext {
            bacula: Arc::as_ptr(&job).cast_mut().cast(),
            plugin: ptr::null_mut(),
        });
        // SAFETY: a fresh context.
        assert_eq!(unsafe { (funcs.new_plugin)(&raw mut *context) }, rc::OK);
        let daemon = Self {
            job,
            context,
            funcs,
            _directory: directory,
        };
        (daemon, listener)
    }

    pub(super) fn context(&mut self) -> *mut PluginContext {
        &raw mut *self.context
    }

    pub(super) fn event(&mut self, kind: u32, value: *mut c_void) -> c_int {
        let mut event = Event { kind };
        // SAFETY: a live context and event; the value is what the event carries.
        unsafe { (self.funcs.handle_event)(self.context(), &raw mut event, value) }
    }

    pub(super) fn command(&mut self, kind: u32, line: &CStr) -> c_int {
        self.event(kind, line.as_ptr().cast_mut().cast())
    }

    /// What another thread runs to cancel the job, in bacula-fd's order.
    pub(super) fn canceller(&mut self, marks: bool) -> impl FnOnce() + Send + 'static {
        let (context, event, job) = (
            Shared(self.context()),
            self.funcs.handle_event,
            Arc::clone(&self.job),
        );
        move || {
            let context = context;
            let mut cancel = Event {
                kind: event::CANCEL_COMMAND,
            };
            // SAFETY: the test keeps the context until this thread has ended.
            unsafe { event(context.0, &raw mut cancel, ptr::null_mut()) };
            if marks {
                job.canceled.store(true, Ordering::SeqCst);
            }
        }
    }

    pub(super) fn io(&mut self, func: i32, buf: &mut [u8], offset: i64) -> IoPacket {
        let size = size_of::<IoPacket>() as i32;
        let mut io = IoPacket {
            pkt_size: size,
            func,
            count: buf.len() as i32,
            flags: 0,
            mode: 0,
            buf: buf.as_mut_ptr().cast(),
            fname: ptr::null(),
            status: -1,
            io_errno: 99,
            lerror: 99,
            whence: libc::SEEK_SET,
            offset,
            win32: 9,
            pkt_end: size,
        };
        // SAFETY: a live context and packet.
        unsafe { (self.funcs.plugin_io)(self.context(), &raw mut io) };
        io
    }

    pub(super) fn save_packet() -> SavePacket {
        // SAFETY: plain data, which Bacula zeroes too.
        let mut save: SavePacket = unsafe { std::mem::zeroed() };
        save.pkt_size = size_of::<SavePacket>() as i32;
        save.pkt_end = save.pkt_size;
        save
    }

    pub(super) fn start_file(&mut self, save: &mut SavePacket) -> c_int {
        // SAFETY: a live context and packet.
        unsafe { (self.funcs.start_backup_file)(self.context(), save) }
    }

    pub(super) fn end_file(&mut self) -> c_int {
        // SAFETY: a live context.
        unsafe { (self.funcs.end_backup_file)(self.context()) }
    }

    /// A whole backup with reads of `room` bytes.
    pub(super) fn backup(&mut self, room: usize) -> Vec<Saved> {
        let mut files = Vec::new();
        if self.command(event::BACKUP_COMMAND, c"lab-backup: vm=web01") == rc::OK {
            while !self.canceled() {
                let mut save = Self::save_packet();
                if self.start_file(&mut save) != rc::OK {
                    break;
                }
                files.push(self.save_file(&save, room));
                if self.end_file() != rc::MORE {
                    break;
                }
            }
        }
        self.event(event::END_BACKUP_JOB, ptr::null_mut());
        files
    }

    fn save_file(&mut self, save: &SavePacket, room: usize) -> Saved {
        // SAFETY: the plugin's strings, which live until the next file.
        let (name, object) = unsafe {
            let object = match save.object.bytes.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(
                    save.object.bytes.cast::<u8>(),
                    save.object.len as usize,
                ),
            };
            (CStr::from_ptr(save.fname).to_str().unwrap(), object)
        };
        if save.file_type == file_type::DIREND {
            assert_eq!(save.link, save.fname);
        }
        let mut saved = Saved {
            name: name.to_owned(),
            file_type: save.file_type,
            flags: save.flags,
            delta_seq: save.delta_seq,
            inode: save.stat.st_ino,
            size: save.stat.st_size,
            mode: save.stat.st_mode,
            object: object.to_vec(),
            records: Vec::new(),
        };
        if save.no_read == 0 {
            let opened = self.io(io::OPEN, &mut [], 0);
            assert!(opened.status == 0 || self.canceled());
            let mut buf = vec![0; room];
            loop {
                let read = self.io(io::READ, &mut buf, 0);
                assert_eq!((read.lerror, read.win32), (0, 0));
                match usize::try_from(read.status) {
                    Ok(0) => break,
                    Ok(n) => saved.records.push((read.offset, buf[..n].to_vec())),
                    Err(_) => {
                        assert_eq!(read.io_errno, libc::EIO);
                        break;
                    }
                }
            }
            self.io(io::CLOSE, &mut [], 0);
        }
        saved
    }

    pub(super) fn canceled(&self) -> bool {
        self.job.canceled.load(Ordering::SeqCst)
    }

    pub(super) fn fatal(&self) -> Vec<String> {
        self.said(message::FATAL)
    }

    /// What was kept in the restore tree.
    pub(super) fn kept(&self) -> Vec<String> {
        self.job.kept.lock().unwrap().clone()
    }

    pub(super) fn said(&self, class: c_int) -> Vec<String> {
        let messages = self.job.messages.lock().unwrap();
        let of_class = messages.iter().filter(|(of, _)| *of == class);
        of_class.map(|(_, text)| text.clone()).collect()
    }

    /// Exactly one fatal message, which names the VM and says `words`.
    pub(super) fn assert_failed(&self, words: &str) {
        let fatal = self.fatal();
        assert!(
            matches!(&fatal[..], [one] if one.starts_with("web01: ") && one.contains(words)),
            "{fatal:?} should be one line with {words:?}"
        );
    }
}

impl Drop for Bacula {
    fn drop(&mut self) {
        let (handed, freed) = (&self.job.handed, &self.job.freed);
        assert_eq!(handed.load(Ordering::SeqCst), freed.load(Ordering::SeqCst));
        // SAFETY: the last call with this context.
        assert_eq!(unsafe { (self.funcs.free_plugin)(self.context()) }, rc::OK);
        assert!(self.context.plugin.is_null());
    }
}
