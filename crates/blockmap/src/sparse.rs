//! Holes in files: finding them, making them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

/// The next range at or after `from` and before `end` that is not a hole.
///
/// Where the file system cannot tell, everything is data. Moves the file's position.
pub(crate) fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) if start >= end => return Ok(None),
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => return Ok(Some(from..end)),
        Err(e) => return Err(e.into()),
    };
    let stop = match seek(file, SeekFrom::Hole(start)) {
        Ok(stop) => stop.min(end),
        // The file shrank between the two calls; what is gone shows when it is read.
        Err(Errno::NXIO) => end,
        Err(e) => return Err(e.into()),
    };
    Ok(Some(start..stop))
}

/// Makes a range read as zeros, as a hole where the file system can.
pub(crate) fn zero(file: &File, at: u64, len: u64) -> io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, mode, at, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        other => return Ok(other?),
    }
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = at;
    let end = at + len;
    while at < end {
        let zeros = ZEROS.get(..(end - at).min(4096) as usize).unwrap_or(&ZEROS);
        file.write_all_at(zeros, at)?;
        at += zeros.len() as u64;
    }
    Ok(())
}

/// Makes `to`, an empty file, a copy of `from`: shared blocks where the file system can, else the
/// data of `from` and its holes.
pub(crate) fn clone(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    copy(from, to)
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    let end = from.metadata()?.len();
    to.set_len(end)?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while let Some(data) = next_data(from, at, end)? {
        at = data.start;
        while at < data.end {
            let len = (data.end - at).min(buffer.len() as u64) as usize;
            let chunk = buffer.get_mut(..len).unwrap_or_default();
            from.read_exact_at(chunk, at)?;
            to.write_all_at(chunk, at)?;
            at += len as u64;
        }
    }
    Ok(())
}
