//! Bacula's packets, read and filled.

use std::ffi::c_char;

use relay::message::{FileKind, PartHead};

use crate::abi::{IoPacket, ObjectPacket, Packet, RestorePacket, SavePacket, file_type, option};
use crate::backup::Current;
use crate::daemon;
use crate::restore::Object;
use crate::trouble::Trouble;

/// A packet, if it has the size this plugin was built for.
///
/// # Safety
///
/// `pointer` is null or points to a packet of Bacula's that outlives the callback.
pub(crate) unsafe fn packet<'p, P: Packet>(pointer: *mut P) -> Result<&'p mut P, Trouble> {
    let size = i32::try_from(size_of::<P>()).unwrap_or(i32::MAX);
    let wrong = || Trouble::daemon("passed a packet of another size than this plugin knows");
    // SAFETY: not null, and every packet begins with its size (`Packet`'s promise); the rest is
    // only looked at when that size is right.
    if pointer.is_null() || unsafe { pointer.cast::<i32>().read() } != size {
        return Err(wrong());
    }
    // SAFETY: the size is that of P, whose fields are valid for any bytes.
    let packet = unsafe { &mut *pointer };
    if packet.end() == size {
        Ok(packet)
    } else {
        Err(wrong())
    }
}

/// A text that must be there.
///
/// # Safety
///
/// As for [`daemon::text`].
pub(crate) unsafe fn text(pointer: *const c_char) -> Result<String, Trouble> {
    // SAFETY: the caller's promise.
    unsafe { daemon::text(pointer) }?.ok_or_else(|| Trouble::daemon("passed no text"))
}

/// Copies a restore object.
///
/// # Safety
///
/// `pointer` is null or points to Bacula's packet.
pub(crate) unsafe fn object(pointer: *mut ObjectPacket) -> Result<Object, Trouble> {
    // SAFETY: the caller's promise.
    let packet = unsafe { packet(pointer) }?;
    let len = usize::try_from(packet.len).unwrap_or(0);
    let bytes = match packet.bytes.is_null() {
        true => &[],
        // SAFETY: Bacula holds `len` bytes there until the event returns.
        false => unsafe { std::slice::from_raw_parts(packet.bytes.cast::<u8>(), len) },
    };
    Ok(Object {
        // SAFETY: a string of the packet; null for objects of no plugin.
        plugin: unsafe { daemon::text(packet.plugin) }?.unwrap_or_default(),
        bytes: bytes.to_vec(),
    })
}

/// What a packet says of a part to restore, and the job's `where` and `regexwhere`.
///
/// # Safety
///
/// The packet is Bacula's: each of its strings is null or ends in a zero byte.
pub(crate) unsafe fn part(
    file: &RestorePacket,
) -> Result<(PartHead, Option<String>, Option<String>), Trouble> {
    let kind = match file.file_type {
        file_type::DIREND => FileKind::Directory,
        file_type::REG => FileKind::Regular,
        other => return Err(Trouble::daemon(format!("restores a file of type {other}"))),
    };
    let head = PartHead {
        // SAFETY: the caller's promise.
        path: unsafe { text(file.ofname) }?,
        kind,
        size: u64::try_from(file.stat.st_size).unwrap_or(0),
        mtime: file.stat.st_mtime,
        mode: file.stat.st_mode & 0o7777,
        part: file.stat.st_ino,
        delta_seq: file.delta_seq,
    };
    // SAFETY: the caller's promise.
    let (where_, regex_where) =
        unsafe { (daemon::text(file.where_)?, daemon::text(file.regex_where)?) };
    Ok((head, where_, regex_where))
}

/// Describes a file to Bacula. The pointers hold until the next file is asked for.
pub(crate) fn fill(save: &mut SavePacket, file: &Current) {
    let head = &file.head;
    let name = file.name.as_ptr().cast_mut();
    // An object gets a name too: Bacula's estimate looks every file up by it.
    save.fname = name;
    let (file_type, mode) = match head.kind {
        FileKind::Regular => (file_type::REG, libc::S_IFREG),
        FileKind::Directory => (file_type::DIREND, libc::S_IFDIR),
        FileKind::Object => (file_type::RESTORE_FIRST, libc::S_IFREG),
    };
    save.file_type = file_type;
    save.no_read = u8::from(head.kind != FileKind::Regular);
    save.stat.st_mode = mode | (head.mode & 0o7777);
    save.stat.st_nlink = 1;
    save.stat.st_ino = head.part;
    save.stat.st_size = i64::try_from(head.size).unwrap_or(i64::MAX);
    save.stat.st_blksize = 4096;
    save.stat.st_blocks = i64::try_from(head.size.div_ceil(512)).unwrap_or(i64::MAX);
    save.stat.st_mtime = head.mtime;
    save.stat.st_ctime = head.mtime;
    save.stat.st_atime = head.mtime;
    match head.kind {
        // Bacula stores a directory under its link name.
        FileKind::Directory => save.link = name,
        FileKind::Object => {
            save.object.name = name;
            save.object.bytes = file.object.as_ptr().cast_mut().cast();
            // One zero byte follows the content; 4 MiB is the most there is.
            save.object.len = i32::try_from(file.object.len().saturating_sub(1)).unwrap_or(0);
        }
        FileKind::Regular => {}
    }
    if head.offsets {
        save.flags |= option::OFFSETS;
    }
    if let Some(base) = head.delta_on {
        save.flags |= option::DELTA;
        // Bacula adds one.
        save.delta_seq = base;
    }
}

/// The buffer of an operation.
///
/// # Safety
///
/// `io` is Bacula's packet; its buffer holds `count` bytes while the callback runs.
pub(crate) unsafe fn buffer<'b>(io: &IoPacket) -> Result<&'b mut [u8], Trouble> {
    let len = usize::try_from(io.count).unwrap_or(0);
    if io.buf.is_null() || len == 0 {
        return Err(Trouble::daemon("passed no buffer"));
    }
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(io.buf.cast::<u8>(), len) })
}
