//! The functions that Bacula calls. Nothing unwinds beyond this file, and every failure has been
//! reported as a fatal job message when a callback returns.

use std::ffi::{c_char, c_int, c_void};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use relay::message::{Go, Op};

use crate::abi::{
    BaculaFuncs, BaculaInfo, Event, INTERFACE, IoPacket, PluginContext, PluginFuncs, PluginInfo,
    QueryPacket, RestorePacket, SavePacket, create, event, io, rc,
};
use crate::daemon::{self, Daemon};
use crate::job::{Context, Job, Settings};
use crate::packets::{self, buffer, fill, object, packet, text};
use crate::query::Next;
use crate::trouble::Trouble;

/// Tables that Bacula reads and never writes.
struct Table<T>(T);

// SAFETY: the tables hold constants only; the strings they point to are static.
unsafe impl<T> Sync for Table<T> {}

static INFO: Table<PluginInfo> = Table(PluginInfo {
    size: size_of::<PluginInfo>() as u32,
    version: INTERFACE,
    magic: c"*FDPluginData*".as_ptr(),
    license: c"AGPLv3".as_ptr(),
    author: c"lab-backup".as_ptr(),
    date: c"".as_ptr(),
    plugin_version: concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast(),
    description: c"libvirt/KVM virtual machines".as_ptr(),
});

static FUNCS: Table<PluginFuncs> = Table(PluginFuncs {
    size: size_of::<PluginFuncs>() as u32,
    version: INTERFACE,
    new_plugin,
    free_plugin,
    get_plugin_value: no_value,
    set_plugin_value: no_value,
    handle_event,
    start_backup_file,
    end_backup_file,
    start_restore_file,
    end_restore_file,
    plugin_io,
    create_file,
    set_file_attributes,
    check_file,
    handle_xacl: ptr::null(),
    restore_file_list: ptr::null(),
    check_stream: ptr::null(),
    query_parameter,
    metadata_restore: ptr::null(),
    start_verify_file: ptr::null(),
    end_verify_file: ptr::null(),
});

/// Bacula loads the plugin: exchange of tables.
///
/// # Safety
///
/// Called by Bacula with pointers to its static tables and to two places for ours.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) unsafe extern "C" fn loadPlugin(
    info: *mut c_void,
    funcs: *mut c_void,
    our_info: *mut *mut c_void,
    our_funcs: *mut *mut c_void,
) -> c_int {
    let loaded = catch_unwind(|| {
        // SAFETY: the caller's promise; `adopt` checks for null and for the version first.
        unsafe { daemon::adopt(info.cast::<BaculaInfo>(), funcs.cast::<BaculaFuncs>()) }?;
        Settings::load();
        Ok::<(), String>(())
    });
    match loaded {
        Ok(Ok(())) if !our_info.is_null() && !our_funcs.is_null() => {
            // SAFETY: both places are Bacula's and not null.
            unsafe {
                *our_info = (&raw const INFO.0).cast_mut().cast();
                *our_funcs = (&raw const FUNCS.0).cast_mut().cast();
            }
            rc::OK
        }
        Ok(Err(why)) => {
            // Bacula says nothing about a plugin that declines, and its own message functions may
            // be numbered differently here. The daemon's stderr goes to the journal.
            let _ = writeln!(std::io::stderr(), "{why}");
            rc::ERROR
        }
        _ => rc::ERROR,
    }
}

/// Bacula unloads the plugin.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn unloadPlugin() -> c_int {
    rc::OK
}

/// Runs one callback of a job: finds the job, stops panics, reports failures.
///
/// # Safety
///
/// `context` is null or what Bacula passed to the running callback.
unsafe fn enter(
    context: *mut PluginContext,
    call: impl FnOnce(&mut Job, &Daemon) -> Result<c_int, Trouble>,
) -> c_int {
    // SAFETY: `new_plugin` put the context there and `free_plugin` takes it away last; until then
    // it is only shared, its mutable half being behind a lock.
    let ours = unsafe {
        context
            .as_ref()
            .and_then(|c| c.plugin.cast::<Context>().as_ref())
    };
    let Some(ours) = ours else { return rc::ERROR };
    // SAFETY: the caller's promise.
    let Some(daemon) = (unsafe { Daemon::new(context, &ours.cancel) }) else {
        return rc::ERROR;
    };
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut job = ours.job.lock().unwrap_or_else(PoisonError::into_inner);
        if job.failed() {
            return rc::ERROR;
        }
        #[cfg(test)]
        crate::tests::panic_if_asked();
        call(&mut job, &daemon).unwrap_or_else(|trouble| {
            job.fail(&daemon, &trouble);
            rc::ERROR
        })
    }));
    run.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        let report = AssertUnwindSafe(|| {
            let mut job = ours.job.lock().unwrap_or_else(PoisonError::into_inner);
            job.fail_after_panic(&daemon, what);
        });
        // Whatever is thrown now has been thrown before; nothing more can be said.
        let _ = catch_unwind(report);
        rc::ERROR
    })
}

unsafe extern "C" fn new_plugin(context: *mut PluginContext) -> c_int {
    let made = catch_unwind(|| Box::into_raw(Box::new(Context::new())));
    // SAFETY: Bacula's context of the new job, or null.
    match (made, unsafe { context.as_mut() }) {
        (Ok(ours), Some(context)) => {
            context.plugin = ours.cast();
            rc::OK
        }
        _ => rc::ERROR,
    }
}

unsafe extern "C" fn free_plugin(context: *mut PluginContext) -> c_int {
    // SAFETY: Bacula's context of the ending job, or null.
    if let Some(context) = unsafe { context.as_mut() } {
        let ours = std::mem::replace(&mut context.plugin, ptr::null_mut()).cast::<Context>();
        if !ours.is_null() {
            // SAFETY: `new_plugin` made it with `Box::into_raw`; it is taken away once.
            let ours = unsafe { Box::from_raw(ours) };
            let _ = catch_unwind(AssertUnwindSafe(|| drop(ours)));
        }
    }
    rc::OK
}

unsafe extern "C" fn no_value(_: *mut PluginContext, _: c_int, _: *mut c_void) -> c_int {
    rc::OK
}

unsafe extern "C" fn handle_event(
    context: *mut PluginContext,
    event: *mut Event,
    value: *mut c_void,
) -> c_int {
    // SAFETY: Bacula's event, or null.
    let kind = unsafe { event.as_ref() }.map_or(0, |event| event.kind);
    if kind == event::CANCEL_COMMAND {
        // From another thread: only the flag may be touched.
        // SAFETY: the job's context outlives the event, which holds a reference to the job.
        let ours = unsafe {
            context
                .as_ref()
                .and_then(|c| c.plugin.cast::<Context>().as_ref())
        };
        if let Some(Context { cancel, .. }) = ours {
            AtomicBool::store(cancel, true, Ordering::Release);
        }
        return rc::OK;
    }
    let call = |job: &mut Job, daemon: &Daemon| {
        match kind {
            event::BACKUP_COMMAND | event::ESTIMATE_COMMAND => {
                let op = match kind {
                    event::BACKUP_COMMAND => Op::Backup,
                    _ => Op::Estimate,
                };
                // SAFETY: these events carry the plugin line.
                job.begin(daemon, op, &unsafe { text(value.cast()) }?)?;
            }
            event::RESTORE_COMMAND => {
                // SAFETY: this event carries the plugin line.
                job.restore_line(&unsafe { text(value.cast()) }?)?;
            }
            // The last one carries nothing.
            event::RESTORE_OBJECT if !value.is_null() => {
                // SAFETY: this event carries a packet.
                job.keep(unsafe { object(value.cast()) }?)?;
            }
            event::END_BACKUP_JOB => job.end_backup(daemon)?,
            event::END_RESTORE_JOB => job.end_restore(daemon)?,
            event::JOB_END => job.close(),
            _ => {}
        }
        Ok(rc::OK)
    };
    // SAFETY: the context is Bacula's.
    unsafe { enter(context, call) }
}

unsafe extern "C" fn start_backup_file(
    context: *mut PluginContext,
    save: *mut SavePacket,
) -> c_int {
    let call = |job: &mut Job, daemon: &Daemon| {
        // SAFETY: Bacula's packet.
        let save = unsafe { packet(save) }?;
        match job.backup()?.start(daemon)? {
            Some(file) => {
                fill(save, file);
                Ok(rc::OK)
            }
            None => Ok(rc::STOP),
        }
    };
    // SAFETY: the context is Bacula's.
    unsafe { enter(context, call) }
}

unsafe extern "C" fn end_backup_file(context: *mut PluginContext) -> c_int {
    let call = |job: &mut Job, daemon: &Daemon| match job.backup()?.end(daemon)? {
        true => Ok(rc::MORE),
        false => Ok(rc::OK),
    };
    // SAFETY: the context is Bacula's.
    unsafe { enter(context, call) }
}

unsafe extern "C" fn start_restore_file(_: *mut PluginContext, _: *const c_char) -> c_int {
    // The command came with the event just before.
    rc::OK
}

unsafe extern "C" fn end_restore_file(_: *mut PluginContext) -> c_int {
    rc::OK
}

unsafe extern "C" fn create_file(context: *mut PluginContext, file: *mut RestorePacket) -> c_int {
    let call = |job: &mut Job, daemon: &Daemon| {
        // SAFETY: Bacula's packet.
        let file = unsafe { packet(file) }?;
        file.create_status = create::ERROR;
        // SAFETY: the packet's strings live as long as it.
        let (head, where_, regex_where) = unsafe { packets::part(file) }?;
        let restore = job.restore(daemon, where_, regex_where)?;
        file.create_status = match restore.offer(daemon, &head)? {
            Go::Write => create::EXTRACT,
            Go::Done => create::CREATED,
            Go::Skip => create::SKIP,
        };
        Ok(rc::OK)
    };
    // SAFETY: the context is Bacula's.
    unsafe { enter(context, call) }
}

unsafe extern "C" fn set_file_attributes(_: *mut PluginContext, _: *mut RestorePacket) -> c_int {
    // The worker owns the files and their attributes.
    rc::OK
}

unsafe extern "C" fn check_file(_: *mut PluginContext, _: *mut c_char) -> c_int {
    // A file that a job did not send is gone: a detached disk must leave the restore tree.
    rc::OK
}

unsafe extern "C" fn plugin_io(context: *mut PluginContext, io: *mut IoPacket) -> c_int {
    let call = |job: &mut Job, daemon: &Daemon| {
        // SAFETY: Bacula's packet.
        let io = unsafe { packet(io) }?;
        io.io_errno = libc::EIO;
        io.status = -1;
        io.lerror = 0;
        io.win32 = 0;
        io.status = match io.func {
            io::READ => {
                // SAFETY: Bacula's buffer, which it has until the callback returns.
                let buf = unsafe { buffer(io) }?;
                let (n, at) = job.backup()?.read(daemon, buf)?;
                io.offset = i64::try_from(at).unwrap_or(i64::MAX);
                i32::try_from(n).unwrap_or(i32::MAX)
            }
            io::WRITE => {
                // SAFETY: as above.
                let buf = unsafe { buffer(io) }?;
                job.restoring()?.write(daemon, buf)?;
                io.count
            }
            io::SEEK => {
                let offset = std::mem::replace(&mut io.offset, -1);
                job.restoring()?.seek(offset, io.whence)?;
                io.offset = offset;
                0
            }
            io::CLOSE => {
                if let Ok(restore) = job.restoring() {
                    restore.end_part(daemon)?;
                }
                0
            }
            io::OPEN => 0,
            other => return Err(Trouble::daemon(format!("asks for operation {other}"))),
        };
        io.io_errno = 0;
        Ok(rc::OK)
    };
    // SAFETY: the context is Bacula's.
    let answer = unsafe { enter(context, call) };
    if answer == rc::ERROR {
        // SAFETY: the same packet; a failed job never came as far as looking at it.
        if let Ok(io) = unsafe { packet(io) } {
            io.io_errno = libc::EIO;
            io.status = -1;
            io.offset = if io.func == io::SEEK { -1 } else { io.offset };
        }
    }
    answer
}

unsafe extern "C" fn query_parameter(
    context: *mut PluginContext,
    query: *mut QueryPacket,
) -> c_int {
    let call = |job: &mut Job, daemon: &Daemon| {
        // SAFETY: Bacula's packet and its string.
        let query = unsafe { packet(query) }?;
        // SAFETY: a string of the packet.
        let parameter = unsafe { text(query.parameter) }?;
        let answer = job.answer(daemon, &parameter);
        let (piece, answer) = match answer.next() {
            Next::More(piece) => (piece, rc::MORE),
            Next::Last(piece) => (piece, rc::OK),
            Next::Failed => return Ok(rc::ERROR),
        };
        query.result = piece.as_ptr().cast_mut();
        Ok(answer)
    };
    // SAFETY: the context is Bacula's.
    unsafe { enter(context, call) }
}
