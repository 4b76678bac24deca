//! Restore: Bacula's parts become the worker's.

use relay::frame::{Kind, MAX_DATA};
use relay::message::{End, FileKind, Go, PartHead};

use crate::daemon::Daemon;
use crate::link::{Link, unexpected};
use crate::trouble::Trouble;

/// A restore object as the catalog gives it back.
#[derive(Debug)]
pub(crate) struct Object {
    /// Plugin line of the job that made it.
    pub(crate) plugin: String,
    /// Its content.
    pub(crate) bytes: Vec<u8>,
}

/// A restore of one VM.
#[derive(Debug)]
pub(crate) struct Restore {
    link: Link,
    part: Option<Part>,
    files: u64,
    bytes: u64,
}

/// The part that is being written.
#[derive(Debug)]
struct Part {
    path: String,
    at: u64,
}

impl Restore {
    /// A conversation that has just said HELLO; hands over the objects.
    pub(crate) fn new<'o>(
        link: Link,
        daemon: &Daemon,
        objects: impl Iterator<Item = &'o Object>,
    ) -> Result<Self, Trouble> {
        for object in objects {
            link.listen(daemon)?;
            link.writer(daemon).bytes(Kind::Object, &object.bytes)?;
        }
        Ok(Self {
            link,
            part: None,
            files: 0,
            bytes: 0,
        })
    }

    /// The part at hand, for messages.
    pub(crate) fn path(&self) -> Option<&str> {
        self.part.as_ref().map(|part| part.path.as_str())
    }

    /// Offers a part to the worker.
    pub(crate) fn offer(&mut self, daemon: &Daemon, head: &PartHead) -> Result<Go, Trouble> {
        if let Some(part) = &self.part {
            return Err(Trouble::daemon(format!(
                "begins {} inside {}",
                head.path, part.path
            )));
        }
        self.link.listen(daemon)?;
        self.link.writer(daemon).json(Kind::Part, head)?;
        let header = self.link.next(daemon)?;
        if header.kind != Kind::Go {
            return Err(unexpected(header, "GO"));
        }
        let go: Go = self.link.reader(daemon).json(header)?;
        match (go, head.kind) {
            (Go::Write, FileKind::Regular) => {
                self.part = Some(Part {
                    path: head.path.clone(),
                    at: 0,
                });
            }
            (Go::Write, _) => {
                return Err(Trouble::protocol(format!("it wants data of {}", head.path)));
            }
            (Go::Done | Go::Skip, _) => {}
        }
        Ok(go)
    }

    /// The next write goes to `offset`.
    pub(crate) fn seek(&mut self, offset: i64, whence: i32) -> Result<(), Trouble> {
        let part = open(&mut self.part)?;
        part.at = u64::try_from(offset)
            .ok()
            .filter(|_| whence == libc::SEEK_SET)
            .ok_or_else(|| Trouble::daemon(format!("seeks to {offset} from {whence}")))?;
        Ok(())
    }

    /// Hands data over.
    pub(crate) fn write(&mut self, daemon: &Daemon, data: &[u8]) -> Result<(), Trouble> {
        let part = open(&mut self.part)?;
        for piece in data.chunks(MAX_DATA as usize) {
            let len = piece.len() as u64;
            let end = part.at.checked_add(len);
            let end = end.ok_or_else(|| Trouble::daemon("writes beyond any file's end"))?;
            if daemon.cancelled() {
                return Err(Trouble::Cancelled);
            }
            self.link.listen(daemon)?;
            self.link.writer(daemon).data(part.at, piece)?;
            part.at = end;
            self.bytes += len;
        }
        Ok(())
    }

    /// The part is complete; without one there is nothing to do.
    pub(crate) fn end_part(&mut self, daemon: &Daemon) -> Result<(), Trouble> {
        if self.part.is_some() {
            // A cancelled job closes its file too, in the middle.
            if daemon.cancelled() {
                return Err(Trouble::Cancelled);
            }
            self.link.listen(daemon)?;
            self.link.writer(daemon).empty(Kind::FileEnd)?;
            self.part = None;
            self.files += 1;
        }
        Ok(())
    }

    /// Every part was delivered: waits until the worker has put things in place.
    pub(crate) fn finish(self, daemon: &Daemon) -> Result<(), Trouble> {
        if let Some(part) = &self.part {
            return Err(Trouble::daemon(format!("left {} unfinished", part.path)));
        }
        self.link.listen(daemon)?;
        self.link.writer(daemon).empty(Kind::Finish)?;
        let header = self.link.next(daemon)?;
        if header.kind != Kind::End {
            return Err(unexpected(header, "END"));
        }
        let end: End = self.link.reader(daemon).json(header)?;
        if (end.files, end.bytes) != (self.files, self.bytes) {
            return Err(Trouble::protocol(format!(
                "it was given {} files with {} bytes and counts {} with {}",
                self.files, self.bytes, end.files, end.bytes
            )));
        }
        Ok(())
    }
}

fn open(part: &mut Option<Part>) -> Result<&mut Part, Trouble> {
    part.as_mut()
        .ok_or_else(|| Trouble::daemon("writes to a part that is not open"))
}
