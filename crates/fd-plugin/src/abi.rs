//! Bacula's File Daemon plugin interface, number 23 (Bacula 15.0), as C sees it.
//!
//! Only what this plugin touches is named; the rest keeps its place. C's `bool` is a byte here,
//! because the File Daemon does not initialise every field and a Rust `bool` must not hold noise.

use std::ffi::{c_char, c_int, c_void};

/// The interface this plugin speaks. The numbers below are unguarded by Bacula, so any other
/// interface is refused.
pub(crate) const INTERFACE: u32 = 23;

/// Answers of a callback (`bRC`).
pub(crate) mod rc {
    use super::c_int;

    pub(crate) const OK: c_int = 0;
    pub(crate) const STOP: c_int = 1;
    pub(crate) const ERROR: c_int = 2;
    pub(crate) const MORE: c_int = 3;
    pub(crate) const SEEN: c_int = 5;
}

/// Events that this plugin acts on.
pub(crate) mod event {
    pub(crate) const JOB_END: u32 = 2;
    pub(crate) const END_BACKUP_JOB: u32 = 4;
    pub(crate) const END_RESTORE_JOB: u32 = 6;
    pub(crate) const BACKUP_COMMAND: u32 = 9;
    pub(crate) const RESTORE_COMMAND: u32 = 10;
    pub(crate) const ESTIMATE_COMMAND: u32 = 11;
    pub(crate) const CANCEL_COMMAND: u32 = 14;
    pub(crate) const RESTORE_OBJECT: u32 = 18;
}

/// Variables that this plugin reads.
pub(crate) mod var {
    use super::c_int;

    pub(crate) const JOB_ID: c_int = 1;
    pub(crate) const LEVEL: c_int = 3;
    pub(crate) const JOB_NAME: c_int = 6;
    pub(crate) const ACCURATE: c_int = 9;
    /// Only to be written: a path that an accurate job has seen.
    pub(crate) const FILE_SEEN: c_int = 10;
    pub(crate) const PREV_JOB_NAME: c_int = 20;
    pub(crate) const IS_CANCELED: c_int = 27;
}

/// Classes of job messages. Interfaces below 22 number them differently.
pub(crate) mod message {
    use super::c_int;

    pub(crate) const FATAL: c_int = 4;
    pub(crate) const ERROR: c_int = 5;
    pub(crate) const WARNING: c_int = 6;
    pub(crate) const INFO: c_int = 7;
}

/// File types.
pub(crate) mod file_type {
    pub(crate) const REG: i32 = 3;
    pub(crate) const DIREND: i32 = 5;
    pub(crate) const RESTORE_FIRST: i32 = 25;
}

/// File options.
pub(crate) mod option {
    pub(crate) const DELTA: u64 = 1 << 28;
    pub(crate) const OFFSETS: u64 = 1 << 30;
}

/// What `createFile` decided.
pub(crate) mod create {
    use super::c_int;

    pub(crate) const SKIP: c_int = 1;
    pub(crate) const ERROR: c_int = 2;
    pub(crate) const EXTRACT: c_int = 3;
    pub(crate) const CREATED: c_int = 4;
}

/// Functions of `pluginIO`.
pub(crate) mod io {
    pub(crate) const OPEN: i32 = 1;
    pub(crate) const READ: i32 = 2;
    pub(crate) const WRITE: i32 = 3;
    pub(crate) const CLOSE: i32 = 4;
    pub(crate) const SEEK: i32 = 5;
}

/// What the File Daemon says about itself at load.
#[repr(C)]
pub(crate) struct BaculaInfo {
    pub(crate) size: u32,
    pub(crate) version: u32,
}

/// What the plugin says about itself.
#[repr(C)]
pub(crate) struct PluginInfo {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) magic: *const c_char,
    pub(crate) license: *const c_char,
    pub(crate) author: *const c_char,
    pub(crate) date: *const c_char,
    pub(crate) plugin_version: *const c_char,
    pub(crate) description: *const c_char,
}

/// One job's pair of private pointers.
#[repr(C)]
pub(crate) struct PluginContext {
    pub(crate) bacula: *mut c_void,
    pub(crate) plugin: *mut c_void,
}

/// `getBaculaValue`.
pub(crate) type GetValue = unsafe extern "C" fn(*mut PluginContext, c_int, *mut c_void) -> c_int;
/// `setBaculaValue`.
pub(crate) type SetValue = unsafe extern "C" fn(*mut PluginContext, c_int, *mut c_void) -> c_int;
/// `JobMessage`: context, file, line, class, time, format, arguments.
pub(crate) type JobMessage = unsafe extern "C" fn(
    *mut PluginContext,
    *const c_char,
    c_int,
    c_int,
    i64,
    *const c_char,
    ...
) -> c_int;
/// `baculaFree`: context, file, line, memory.
pub(crate) type Free = unsafe extern "C" fn(*mut PluginContext, *const c_char, c_int, *mut c_void);
/// `getAccurateAttribs`.
pub(crate) type GetAccurate =
    unsafe extern "C" fn(*mut PluginContext, *mut AccuratePacket) -> c_int;

/// What the File Daemon offers.
#[repr(C)]
pub(crate) struct BaculaFuncs {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) register_events: *const c_void,
    pub(crate) get_value: Option<GetValue>,
    pub(crate) set_value: Option<SetValue>,
    pub(crate) job_message: Option<JobMessage>,
    pub(crate) debug_message: *const c_void,
    pub(crate) malloc: *const c_void,
    pub(crate) free: Option<Free>,
    pub(crate) file_set: [*const c_void; 8],
    pub(crate) check_changes: *const c_void,
    pub(crate) accept_file: *const c_void,
    pub(crate) get_accurate: Option<GetAccurate>,
    pub(crate) add_plugin: *const c_void,
    pub(crate) add_file_event: *const c_void,
}

type Plain = unsafe extern "C" fn(*mut PluginContext) -> c_int;
type Value = unsafe extern "C" fn(*mut PluginContext, c_int, *mut c_void) -> c_int;
type Restoring = unsafe extern "C" fn(*mut PluginContext, *mut RestorePacket) -> c_int;

/// What the plugin offers.
#[repr(C)]
pub(crate) struct PluginFuncs {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) new_plugin: Plain,
    pub(crate) free_plugin: Plain,
    pub(crate) get_plugin_value: Value,
    pub(crate) set_plugin_value: Value,
    pub(crate) handle_event:
        unsafe extern "C" fn(*mut PluginContext, *mut Event, *mut c_void) -> c_int,
    pub(crate) start_backup_file:
        unsafe extern "C" fn(*mut PluginContext, *mut SavePacket) -> c_int,
    pub(crate) end_backup_file: Plain,
    pub(crate) start_restore_file: unsafe extern "C" fn(*mut PluginContext, *const c_char) -> c_int,
    pub(crate) end_restore_file: Plain,
    pub(crate) plugin_io: unsafe extern "C" fn(*mut PluginContext, *mut IoPacket) -> c_int,
    pub(crate) create_file: Restoring,
    pub(crate) set_file_attributes: Restoring,
    pub(crate) check_file: unsafe extern "C" fn(*mut PluginContext, *mut c_char) -> c_int,
    /// Access lists; null: the worker owns every attribute.
    pub(crate) handle_xacl: *const c_void,
    pub(crate) restore_file_list: *const c_void,
    pub(crate) check_stream: *const c_void,
    pub(crate) query_parameter: unsafe extern "C" fn(*mut PluginContext, *mut QueryPacket) -> c_int,
    pub(crate) metadata_restore: *const c_void,
    pub(crate) start_verify_file: *const c_void,
    pub(crate) end_verify_file: *const c_void,
}

/// An event.
#[repr(C)]
pub(crate) struct Event {
    pub(crate) kind: u32,
}

/// A restore object within [`SavePacket`].
#[repr(C)]
pub(crate) struct SaveObject {
    pub(crate) name: *mut c_char,
    pub(crate) bytes: *mut c_char,
    pub(crate) len: i32,
    pub(crate) index: i32,
    pub(crate) compression: i32,
}

/// A catalog object within [`SavePacket`], unused.
#[repr(C)]
pub(crate) struct CatalogObject {
    pub(crate) texts: [*mut c_char; 7],
    pub(crate) size: u64,
    pub(crate) status: i32,
    pub(crate) count: u32,
}

/// `save_pkt`: the plugin describes a file to save.
#[repr(C)]
pub(crate) struct SavePacket {
    pub(crate) pkt_size: i32,
    pub(crate) fname: *mut c_char,
    pub(crate) snap_fname: *mut c_char,
    pub(crate) plugin_mode: i32,
    pub(crate) link: *mut c_char,
    pub(crate) stat: libc::stat,
    pub(crate) file_type: i32,
    pub(crate) flags: u64,
    pub(crate) no_read: u8,
    pub(crate) portable: u8,
    pub(crate) accurate_found: u8,
    pub(crate) do_dedup: u8,
    pub(crate) stat_update: u8,
    pub(crate) cmd: *mut c_char,
    pub(crate) object: SaveObject,
    pub(crate) catalog_object: CatalogObject,
    pub(crate) metadata: *const c_void,
    pub(crate) delta_seq: u32,
    pub(crate) link_fi: i32,
    pub(crate) pkt_end: i32,
}

/// `restore_pkt`: the File Daemon describes a file to restore.
#[repr(C)]
pub(crate) struct RestorePacket {
    pub(crate) pkt_size: i32,
    pub(crate) plugin_mode: i32,
    pub(crate) stream: i32,
    pub(crate) data_stream: i32,
    pub(crate) file_type: i32,
    pub(crate) file_index: i32,
    pub(crate) link_fi: i32,
    pub(crate) uid: u32,
    pub(crate) stat: libc::stat,
    pub(crate) attr_ex: *const c_char,
    pub(crate) ofname: *const c_char,
    pub(crate) olname: *const c_char,
    pub(crate) where_: *const c_char,
    pub(crate) regex_where: *const c_char,
    pub(crate) replace: c_int,
    pub(crate) create_status: c_int,
    pub(crate) delta_seq: u32,
    pub(crate) pkt_end: i32,
}

/// `io_pkt`: one input or output operation.
#[repr(C)]
pub(crate) struct IoPacket {
    pub(crate) pkt_size: i32,
    pub(crate) func: i32,
    pub(crate) count: i32,
    pub(crate) flags: i32,
    pub(crate) mode: u32,
    pub(crate) buf: *mut c_char,
    pub(crate) fname: *const c_char,
    pub(crate) status: i32,
    pub(crate) io_errno: i32,
    pub(crate) lerror: i32,
    pub(crate) whence: i32,
    pub(crate) offset: i64,
    pub(crate) win32: u8,
    pub(crate) pkt_end: i32,
}

/// `restore_object_pkt`: a restore object comes back.
#[repr(C)]
pub(crate) struct ObjectPacket {
    pub(crate) pkt_size: i32,
    pub(crate) name: *mut c_char,
    pub(crate) bytes: *mut c_char,
    pub(crate) plugin: *mut c_char,
    pub(crate) object_type: i32,
    pub(crate) len: i32,
    pub(crate) full_len: i32,
    pub(crate) index: i32,
    pub(crate) compression: i32,
    pub(crate) stream: i32,
    pub(crate) job_id: u32,
    pub(crate) pkt_end: i32,
}

/// `accurate_attribs_pkt`: what the Director knows of a file. The only packet without sizes.
#[repr(C)]
pub(crate) struct AccuratePacket {
    pub(crate) fname: *mut c_char,
    pub(crate) stat: libc::stat,
    pub(crate) checksum: *mut c_char,
    pub(crate) delta_seq: i32,
    pub(crate) seen: u8,
}

/// `query_pkt`: a question from the console.
#[repr(C)]
pub(crate) struct QueryPacket {
    pub(crate) pkt_size: i32,
    pub(crate) parameter: *mut c_char,
    pub(crate) command: *mut c_char,
    pub(crate) api_opts: *mut c_char,
    pub(crate) result: *mut c_char,
    pub(crate) pkt_end: i32,
}

/// A packet that carries its own size twice, at both ends.
///
/// # Safety
///
/// The implementing type is `repr(C)` and begins with an `i32` size.
pub(crate) unsafe trait Packet: Sized {
    /// The size at the end.
    fn end(&self) -> i32;
}

macro_rules! packets {
    ($($name:ident)*) => {$(
        // SAFETY: the type is `repr(C)` and its first field is `pkt_size: i32`.
        unsafe impl Packet for $name {
            fn end(&self) -> i32 {
                self.pkt_end
            }
        }
    )*};
}

packets!(SavePacket RestorePacket IoPacket ObjectPacket QueryPacket);

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    macro_rules! layout {
        ($name:ident = $size:literal: $($field:ident @ $at:literal)*) => {
            assert_eq!(size_of::<$name>(), $size, stringify!($name));
            $(assert_eq!(
                offset_of!($name, $field),
                $at,
                concat!(stringify!($name), ".", stringify!($field))
            );)*
        };
    }

    /// The numbers are what a C++ compiler says of the headers of Debian's 15.0.3 on x86-64.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn layouts_are_those_of_the_headers() {
        layout!(BaculaInfo = 8: size @ 0 version @ 4);
        layout!(PluginInfo = 56: magic @ 8 description @ 48);
        layout!(PluginContext = 16: bacula @ 0 plugin @ 8);
        layout!(BaculaFuncs = 168: register_events @ 8 get_value @ 16 job_message @ 32
            debug_message @ 40 free @ 56 check_changes @ 128 get_accurate @ 144
            add_file_event @ 160);
        layout!(PluginFuncs = 168: new_plugin @ 8 handle_event @ 40 start_backup_file @ 48
            plugin_io @ 80 create_file @ 88 check_file @ 104 query_parameter @ 136
            end_verify_file @ 160);
        layout!(SaveObject = 32: name @ 0 bytes @ 8 len @ 16 index @ 20 compression @ 24);
        layout!(CatalogObject = 72: size @ 56 status @ 64 count @ 68);
        layout!(SavePacket = 344: fname @ 8 snap_fname @ 16 plugin_mode @ 24 link @ 32 stat @ 40
            file_type @ 184 flags @ 192 no_read @ 200 portable @ 201 accurate_found @ 202
            do_dedup @ 203 stat_update @ 204 cmd @ 208 object @ 216 catalog_object @ 248
            metadata @ 320 delta_seq @ 328 link_fi @ 332 pkt_end @ 336);
        layout!(RestorePacket = 232: plugin_mode @ 4 stream @ 8 data_stream @ 12 file_type @ 16
            file_index @ 20 link_fi @ 24 uid @ 28 stat @ 32 attr_ex @ 176 ofname @ 184
            olname @ 192 where_ @ 200 regex_where @ 208 replace @ 216 create_status @ 220
            delta_seq @ 224 pkt_end @ 228);
        layout!(IoPacket = 72: func @ 4 count @ 8 flags @ 12 mode @ 16 buf @ 24 fname @ 32
            status @ 40 io_errno @ 44 lerror @ 48 whence @ 52 offset @ 56 win32 @ 64 pkt_end @ 68);
        layout!(ObjectPacket = 64: name @ 8 bytes @ 16 plugin @ 24 object_type @ 32 len @ 36
            full_len @ 40 index @ 44 compression @ 48 stream @ 52 job_id @ 56 pkt_end @ 60);
        layout!(AccuratePacket = 168: fname @ 0 stat @ 8 checksum @ 152 delta_seq @ 160
            seen @ 164);
        layout!(QueryPacket = 48: parameter @ 8 command @ 16 api_opts @ 24 result @ 32
            pkt_end @ 40);
    }
}
