//! Frames: a fixed header of 16 bytes, then a payload.
//!
//! ```text
//! byte 0      kind
//! byte 1..4   zero
//! byte 4..8   payload length, little endian
//! byte 8..16  offset in the file (DATA only, else zero), little endian
//! ```
//!
//! Lengths are checked against the kind's limit before anything is allocated.

use std::io::{self, IoSlice, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 16;
/// Largest payload of a DATA frame in bytes.
pub const MAX_DATA: u32 = 1 << 20;
/// Largest payload of every other frame in bytes.
pub const MAX_CONTROL: u32 = 4 << 20;

/// What a frame means. The numbers are part of the protocol and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Plugin to worker, first frame: [`crate::message::Hello`].
    Hello = 1,
    /// Worker to plugin: a file begins, [`crate::message::FileHead`].
    File = 2,
    /// Either way: bytes of the current file at `offset`.
    Data = 3,
    /// Either way: the current file is complete. No payload.
    FileEnd = 4,
    /// Worker to plugin: what does the Director know of a path? [`crate::message::Ask`].
    Ask = 5,
    /// Plugin to worker: answer to ASK, [`crate::message::Known`].
    Known = 6,
    /// Worker to plugin: a line for the job log, [`crate::message::Log`].
    Log = 7,
    /// Worker to plugin: still at work, nothing to say. No payload.
    Alive = 8,
    /// Worker to plugin, last frame of a success: [`crate::message::End`].
    End = 9,
    /// Worker to plugin, last frame of a failure: [`crate::message::Fail`].
    Fail = 10,
    /// Plugin to worker: a part to restore begins, [`crate::message::PartHead`].
    Part = 11,
    /// Worker to plugin: answer to PART, [`crate::message::Go`].
    Go = 12,
    /// Plugin to worker: bytes of a restore object (the manifest of one job).
    Object = 13,
    /// Plugin to worker: every part was delivered, put things in place. No payload.
    Finish = 14,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [
            Hello, File, Data, FileEnd, Ask, Known, Log, Alive, End, Fail, Part, Go, Object, Finish,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Largest payload this kind may carry, in bytes.
    pub fn limit(self) -> u32 {
        match self {
            Kind::Data => MAX_DATA,
            Kind::FileEnd | Kind::Alive | Kind::Finish => 0,
            _ => MAX_CONTROL,
        }
    }
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame means.
    pub kind: Kind,
    /// Payload length in bytes, within [`Kind::limit`].
    pub len: u32,
    /// Position in the file for DATA, zero otherwise.
    pub offset: u64,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The connection closed inside a frame.
    #[error("the connection closed in the middle of a frame")]
    Truncated,
    /// The header is not one of this protocol.
    #[error("a frame header is malformed (kind {kind})")]
    BadHeader {
        /// The kind byte that was read.
        kind: u8,
    },
    /// The payload is longer than its kind allows.
    #[error("a {kind:?} frame of {len} bytes is over the limit")]
    TooLong {
        /// Kind of the frame.
        kind: Kind,
        /// Announced length in bytes.
        len: u32,
    },
    /// The payload is not the message that the kind promises.
    #[error("a {kind:?} frame does not parse")]
    BadPayload {
        /// Kind of the frame.
        kind: Kind,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Another frame was due.
    #[error("a {got:?} frame came where {due} was due")]
    Unexpected {
        /// Kind of the frame that came.
        got: Kind,
        /// What was due, in words.
        due: &'static str,
    },
}

/// Encodes a header.
pub fn encode(header: Header) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = header.kind as u8;
    bytes[4..8].copy_from_slice(&header.len.to_le_bytes());
    bytes[8..16].copy_from_slice(&header.offset.to_le_bytes());
    bytes
}

/// Decodes and checks a header.
pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, Error> {
    let [k, z1, z2, z3, l0, l1, l2, l3, offset @ ..] = *bytes;
    let kind = Kind::from_byte(k).ok_or(Error::BadHeader { kind: k })?;
    let offset = u64::from_le_bytes(offset);
    if (z1, z2, z3) != (0, 0, 0) || (kind != Kind::Data && offset != 0) {
        return Err(Error::BadHeader { kind: k });
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    if len > kind.limit() {
        return Err(Error::TooLong { kind, len });
    }
    Ok(Header { kind, len, offset })
}

/// Writes frames.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Wraps a connection. Frames are written at once: give it no buffer.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// The connection.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Writes a frame without payload.
    pub fn empty(&mut self, kind: Kind) -> Result<(), Error> {
        self.bytes(kind, &[])
    }

    /// Writes a message as JSON.
    pub fn json<T: Serialize>(&mut self, kind: Kind, message: &T) -> Result<(), Error> {
        let text =
            serde_json::to_vec(message).map_err(|source| Error::BadPayload { kind, source })?;
        self.bytes(kind, &text)
    }

    /// Writes raw bytes under a kind other than DATA.
    pub fn bytes(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        self.write(kind, 0, payload)
    }

    /// Writes bytes of the current file that belong at `offset`; at most [`MAX_DATA`] of them.
    pub fn data(&mut self, offset: u64, payload: &[u8]) -> Result<(), Error> {
        self.write(Kind::Data, offset, payload)
    }

    fn write(&mut self, kind: Kind, offset: u64, payload: &[u8]) -> Result<(), Error> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if len > kind.limit() {
            return Err(Error::TooLong { kind, len });
        }
        let head = encode(Header { kind, len, offset });
        // One system call for header and payload; the rare short write falls back to write_all.
        let sent = loop {
            match self
                .inner
                .write_vectored(&[IoSlice::new(&head), IoSlice::new(payload)])
            {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if sent == 0 {
            return Err(Error::Io(io::ErrorKind::WriteZero.into()));
        }
        if let Some(rest) = head.get(sent..) {
            self.inner.write_all(rest)?;
            self.inner.write_all(payload)?;
        } else if let Some(rest) = payload.get(sent - HEADER_LEN..) {
            self.inner.write_all(rest)?;
        }
        Ok(())
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
}

impl<R: Read> Reader<R> {
    /// Wraps a connection.
    pub fn new(inner: R) -> Self {
        Self { inner }
    }

    /// The connection.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Reads the next header; `None` when the connection closed between two frames.
    pub fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut bytes = [0; HEADER_LEN];
        let mut have = 0;
        while let Some(space) = bytes.get_mut(have..).filter(|space| !space.is_empty()) {
            match self.inner.read(space) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(Error::Truncated),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        decode(&bytes).map(Some)
    }

    /// Reads exactly `buf` of the current payload.
    ///
    /// The caller keeps count: the sum must be the header's length before the next header is read.
    pub fn payload(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Io(e),
        })
    }

    /// Reads a whole payload.
    pub fn bytes(&mut self, header: Header) -> Result<Vec<u8>, Error> {
        let mut buf = vec![0; header.len as usize];
        self.payload(&mut buf)?;
        Ok(buf)
    }

    /// Reads a whole payload as a JSON message.
    pub fn json<T: DeserializeOwned>(&mut self, header: Header) -> Result<T, Error> {
        let text = self.bytes(header)?;
        serde_json::from_slice(&text).map_err(|source| Error::BadPayload {
            kind: header.kind,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Class, Log};

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let header = Header {
            kind: Kind::Data,
            len: 0x1234,
            offset: 0x0102_0304_0506_0708,
        };
        let bytes = [3, 0, 0, 0, 0x34, 0x12, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(encode(header), bytes);
        assert_eq!(decode(&bytes).unwrap(), header);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_anything_is_allocated() {
        for (kind, len) in [
            (3, MAX_DATA + 1),
            (1, MAX_CONTROL + 1),
            (4, 1),
            (1, u32::MAX),
        ] {
            let mut bytes = [0; HEADER_LEN];
            bytes[0] = kind;
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            assert!(
                matches!(decode(&bytes), Err(Error::TooLong { .. })),
                "{kind} {len}"
            );
        }
    }

    #[test]
    fn end_between_frames_is_none_and_inside_a_frame_is_an_error() {
        let mut wire = Vec::new();
        let log = Log {
            class: Class::Info,
            text: "hello".into(),
        };
        Writer::new(&mut wire).json(Kind::Log, &log).unwrap();
        for cut in 0..=wire.len() {
            let mut reader = Reader::new(&wire[..cut]);
            let read = reader.header().and_then(|header| match header {
                None => Ok(None),
                Some(header) => reader.json::<Log>(header).map(Some),
            });
            match cut {
                0 => assert_eq!(read.unwrap(), None),
                n if n == wire.len() => assert_eq!(read.unwrap(), Some(log.clone())),
                _ => assert!(matches!(read, Err(Error::Truncated)), "cut at {cut}"),
            }
        }
    }

    /// A writer that takes a few bytes at a time, as a full socket does.
    struct Dribble(Vec<u8>, usize);

    impl Write for Dribble {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(self.1);
            self.0.extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn short_writes_lose_nothing(
            step in 1_usize..40,
            offset: u64,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut writer = Writer::new(Dribble(Vec::new(), step));
            writer.data(offset, &payload).unwrap();
            let wire = &writer.get_ref().0;
            let mut reader = Reader::new(&wire[..]);
            let header = reader.header().unwrap().unwrap();
            prop_assert_eq!(header.offset, offset);
            prop_assert_eq!(reader.bytes(header).unwrap(), payload);
            prop_assert!(reader.header().unwrap().is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&wire[..]);
            while let Ok(Some(header)) = reader.header() {
                if reader.bytes(header).is_err() { break }
            }
        }
    }
}
