//! Backup and estimate: the worker's files become Bacula's.

use std::ffi::CString;

use relay::frame::{Header, Kind, MAX_CONTROL};
use relay::message::{Ask, End, FileHead, FileKind, Op};

use crate::daemon::Daemon;
use crate::link::{Link, unexpected};
use crate::trouble::Trouble;

/// Records of a disk begin on this boundary, and end on it or at the end of the disk.
const BLOCK: u64 = 4096;

/// Longest path in bytes.
const MAX_PATH: usize = 4096;

/// A backup, or an estimate, of one plugin line.
#[derive(Debug)]
pub(crate) struct Backup {
    link: Link,
    op: Op,
    next: Option<FileHead>,
    current: Option<Current>,
    files: u64,
    bytes: u64,
    ended: bool,
}

/// The file that the File Daemon is saving. Bacula keeps pointers into it until the next one.
#[derive(Debug)]
pub(crate) struct Current {
    /// What the worker said of it.
    pub(crate) head: FileHead,
    /// Path for Bacula; a directory's ends in a slash.
    pub(crate) name: CString,
    /// Content of a restore object, and a zero byte that is not part of it.
    pub(crate) object: Vec<u8>,
    /// Bytes of the current DATA frame that were not read yet, and where they belong.
    left: u32,
    at: u64,
    received: u64,
    complete: bool,
}

impl Backup {
    /// A conversation that has just said HELLO.
    pub(crate) fn new(link: Link, op: Op) -> Self {
        Self {
            link,
            op,
            next: None,
            current: None,
            files: 0,
            bytes: 0,
            ended: false,
        }
    }

    /// Has the worker closed with END?
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The file that is under way, for messages.
    pub(crate) fn path(&self) -> Option<&str> {
        let current = self.current.as_ref().filter(|current| !current.complete);
        current.map(|current| current.head.path.as_str())
    }

    /// Begins the next file; `None` when there is no other.
    pub(crate) fn start(&mut self, daemon: &Daemon) -> Result<Option<&Current>, Trouble> {
        self.current = None;
        if self.next.is_none() && !self.ended {
            self.advance(daemon)?;
        }
        let Some(head) = self.next.take() else {
            return Ok(None);
        };
        let current = self.current.insert(Current::new(head)?);
        if let (Op::Backup, Some(base)) = (self.op, current.head.delta_on) {
            // A delta that sits on nothing, or on something else, restores wrong bytes.
            let known = daemon.known(&current.name)?;
            if !known.found || known.delta_seq != base {
                return Err(Trouble::protocol(format!(
                    "a delta on part {base}, where the Director has {known:?}"
                )));
            }
        }
        if self.op == Op::Estimate {
            current.complete = true;
            self.files += 1;
        } else if current.head.kind != FileKind::Regular {
            self.read_whole(daemon)?;
        }
        Ok(self.current.as_ref())
    }

    /// Ends the file at hand; is there another?
    pub(crate) fn end(&mut self, daemon: &Daemon) -> Result<bool, Trouble> {
        if !self
            .current
            .as_ref()
            .is_some_and(|current| current.complete)
        {
            return Err(match daemon.cancelled() {
                true => Trouble::Cancelled,
                false => Trouble::daemon("did not read the file to its end"),
            });
        }
        self.advance(daemon)?;
        Ok(!self.ended)
    }

    /// Reads data of the file at hand: how many bytes, and where they belong. Zero is the end.
    ///
    /// One call never crosses a frame, and its length is a multiple of 4 KiB except at the end of
    /// a frame, so that records in the volume are the extents that the worker chose.
    pub(crate) fn read(
        &mut self,
        daemon: &Daemon,
        buf: &mut [u8],
    ) -> Result<(usize, u64), Trouble> {
        let link = &self.link;
        let current = self
            .current
            .as_mut()
            .ok_or_else(|| Trouble::daemon("reads before it asked for a file"))?;
        if current.left == 0 {
            if current.complete {
                return Ok((0, 0));
            }
            let header = content(link, daemon)?;
            match header.kind {
                Kind::Data => current.take(header)?,
                Kind::FileEnd => {
                    current.finish()?;
                    self.files += 1;
                    return Ok((0, 0));
                }
                _ => return Err(unexpected(header, "DATA or FILE-END")),
            }
        }
        let n = record_len(current.left as usize, buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        link.reader(daemon).payload(part)?;
        let at = current.at;
        current.at += n as u64;
        current.left -= u32::try_from(n).unwrap_or(current.left);
        self.bytes += n as u64;
        Ok((n, at))
    }

    /// Reads what Bacula wants at once: the bytes of a restore object, nothing of a directory.
    fn read_whole(&mut self, daemon: &Daemon) -> Result<(), Trouble> {
        let mut object = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            let (n, _) = self.read(daemon, &mut piece)?;
            if n == 0 {
                break;
            }
            if object.len() + n > MAX_CONTROL as usize {
                return Err(Trouble::protocol("a restore object is over 4 MiB"));
            }
            object.extend_from_slice(piece.get(..n).unwrap_or_default());
        }
        if let Some(current) = &mut self.current {
            object.push(0);
            current.object = object;
        }
        Ok(())
    }

    /// Goes on to the next FILE or to END.
    fn advance(&mut self, daemon: &Daemon) -> Result<(), Trouble> {
        loop {
            let header = content(&self.link, daemon)?;
            let mut reader = self.link.reader(daemon);
            match header.kind {
                Kind::File => {
                    self.next = Some(reader.json(header)?);
                    return Ok(());
                }
                Kind::End => {
                    let end: End = reader.json(header)?;
                    return self.close(end);
                }
                // An estimate may end its files or not: there is nothing between.
                Kind::FileEnd if self.op == Op::Estimate => {}
                _ => return Err(unexpected(header, "FILE or END")),
            }
        }
    }

    fn close(&mut self, end: End) -> Result<(), Trouble> {
        let (files, bytes) = (self.files, self.bytes);
        if (end.files, end.bytes) != (files, bytes) {
            return Err(Trouble::protocol(format!(
                "it sent {files} files with {bytes} bytes and counts {} with {}",
                end.files, end.bytes
            )));
        }
        if files == 0 && self.op == Op::Backup {
            return Err(Trouble::protocol("it sent no file"));
        }
        self.ended = true;
        Ok(())
    }
}

impl Current {
    fn new(head: FileHead) -> Result<Self, Trouble> {
        let path = &head.path;
        let clean =
            path.starts_with('/') && path.len() <= MAX_PATH && !path.chars().any(char::is_control);
        if !clean {
            let path: String = path.chars().take(120).collect();
            return Err(Trouble::protocol(format!("{path:?} is no path")));
        }
        if head.kind == FileKind::Regular && path.ends_with('/') {
            return Err(Trouble::protocol("a file's path ends in a slash"));
        }
        let fits = i64::try_from(head.size).is_ok() && i64::try_from(head.part).is_ok();
        if !fits || (head.kind != FileKind::Regular && (head.offsets || head.delta_on.is_some())) {
            return Err(Trouble::protocol(format!(
                "{path} has impossible attributes"
            )));
        }
        let slash = match head.kind {
            FileKind::Directory if !path.ends_with('/') => "/",
            _ => "",
        };
        let name = CString::new(format!("{path}{slash}"))
            .map_err(|_| Trouble::protocol("a path holds a zero byte"))?;
        Ok(Self {
            head,
            name,
            object: Vec::new(),
            left: 0,
            at: 0,
            received: 0,
            complete: false,
        })
    }

    /// A DATA frame begins.
    fn take(&mut self, header: Header) -> Result<(), Trouble> {
        let (len, size) = (u64::from(header.len), self.head.size);
        let end = header.offset.checked_add(len).filter(|end| *end <= size);
        let Some(end) = end.filter(|_| len > 0 && self.head.kind != FileKind::Directory) else {
            return Err(Trouble::protocol(format!(
                "{len} bytes at {} in a file of {size}",
                header.offset
            )));
        };
        let fits = match self.head.offsets {
            true => {
                header.offset.is_multiple_of(BLOCK) && (len.is_multiple_of(BLOCK) || end == size)
            }
            false => header.offset == self.received,
        };
        if !fits {
            return Err(Trouble::protocol(format!(
                "{len} bytes at {} are out of step",
                header.offset
            )));
        }
        self.left = header.len;
        self.at = header.offset;
        self.received += len;
        Ok(())
    }

    /// FILE-END came.
    fn finish(&mut self) -> Result<(), Trouble> {
        let whole = self.head.offsets
            || self.head.kind == FileKind::Directory
            || self.received == self.head.size;
        if !whole {
            return Err(Trouble::protocol(format!(
                "{} bytes of a file of {}",
                self.received, self.head.size
            )));
        }
        self.complete = true;
        Ok(())
    }
}

/// The next frame of the stream proper; questions about the catalog are answered on the way.
fn content(link: &Link, daemon: &Daemon) -> Result<Header, Trouble> {
    loop {
        let header = link.next(daemon)?;
        match header.kind {
            Kind::Ask => {
                let ask: Ask = link.reader(daemon).json(header)?;
                let path = CString::new(ask.path)
                    .map_err(|_| Trouble::protocol("a path holds a zero byte"))?;
                let known = daemon.known(&path)?;
                if ask.keep && known.found {
                    daemon.keep(&path)?;
                }
                link.writer(daemon).json(Kind::Known, &known)?;
            }
            Kind::File | Kind::Data | Kind::FileEnd | Kind::End => return Ok(header),
            _ => return Err(unexpected(header, "a file")),
        }
    }
}

/// How much of a frame goes into one record.
fn record_len(left: usize, room: usize) -> usize {
    if left <= room {
        return left;
    }
    match room & !(BLOCK as usize - 1) {
        0 => room,
        whole => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::record_len;

    #[test]
    fn records_are_whole_blocks_until_the_frame_ends() {
        assert_eq!(record_len(1 << 20, 65536), 65536);
        assert_eq!(record_len(1 << 20, 65528), 61440);
        assert_eq!(record_len(100, 65536), 100);
        assert_eq!(record_len(65536, 65536), 65536);
        assert_eq!(record_len(8192, 100), 100);
    }
}
