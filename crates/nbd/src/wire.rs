//! The bytes of the protocol: constants, encoding, and decoding that cannot panic.

use std::fmt;

pub(crate) const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(crate) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERROR: u32 = 1 << 31;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

pub(crate) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(crate) const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub(crate) const FLAG_SEND_TRIM: u16 = 1 << 5;
pub(crate) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const FLAG_SEND_DF: u16 = 1 << 7;
pub(crate) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

pub(crate) const CMD_FLAG_DF: u16 = 1 << 2;

pub(crate) const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15;

pub(crate) const REQUEST_LEN: usize = 28;
pub(crate) const SIMPLE_LEN: usize = 16;
pub(crate) const CHUNK_LEN: usize = 20;

/// Largest payload of an error chunk that is read: the protocol caps its text at 4096 bytes.
pub(crate) const MAX_ERROR: u32 = 4 + 2 + 4096 + 8;
/// Largest block status payload that is read. QEMU sends at most 1 MiB.
pub(crate) const MAX_STATUS: u32 = 4 << 20;

/// What is asked of a server once the handshake is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Command {
    /// Bytes of the disk.
    Read = 0,
    /// New bytes for the disk.
    Write = 1,
    /// The end of the connection; never answered.
    Disconnect = 2,
    /// Make completed writes durable.
    Flush = 3,
    /// The content of a range no longer matters.
    Trim = 4,
    /// A range shall read as zero.
    WriteZeroes = 6,
    /// Flags of ranges, in every context that was granted.
    BlockStatus = 7,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Read => "read",
            Command::Write => "write",
            Command::Disconnect => "disconnect",
            Command::Flush => "flush",
            Command::Trim => "trim",
            Command::WriteZeroes => "write-zeroes",
            Command::BlockStatus => "block-status",
        })
    }
}

/// A request before it is encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    pub(crate) fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// An option of the handshake, with its payload.
pub(crate) fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&len32(payload).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Appends a string behind its length.
pub(crate) fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&len32(text.as_bytes()).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Callers cap what they send at a few KiB; a longer one would be refused by the server.
fn len32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing follows but, for a successful read, the bytes.
    Simple { error: u32, cookie: u64 },
    /// A chunk with `len` bytes of payload.
    Chunk {
        done: bool,
        kind: Chunk,
        cookie: u64,
        len: u32,
    },
}

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    None,
    Data,
    Hole,
    BlockStatus,
    Error,
    Unknown,
}

/// How many bytes the head of a reply takes, from its first four; `None` for no reply at all.
pub(crate) fn reply_len(magic: [u8; 4]) -> Option<usize> {
    match u32::from_be_bytes(magic) {
        SIMPLE_MAGIC => Some(SIMPLE_LEN),
        CHUNK_MAGIC => Some(CHUNK_LEN),
        _ => None,
    }
}

/// Decodes the head of a reply; `None` if it is none or too short.
pub(crate) fn decode_reply(bytes: &[u8]) -> Option<Reply> {
    let mut cursor = Cursor(bytes);
    match cursor.u32()? {
        SIMPLE_MAGIC => Some(Reply::Simple {
            error: cursor.u32()?,
            cookie: cursor.u64()?,
        }),
        CHUNK_MAGIC => {
            let flags = cursor.u16()?;
            let kind = match cursor.u16()? {
                CHUNK_NONE => Chunk::None,
                CHUNK_OFFSET_DATA => Chunk::Data,
                CHUNK_OFFSET_HOLE => Chunk::Hole,
                CHUNK_BLOCK_STATUS => Chunk::BlockStatus,
                kind if kind & CHUNK_ERROR != 0 => Chunk::Error,
                _ => Chunk::Unknown,
            };
            Some(Reply::Chunk {
                done: flags & CHUNK_DONE != 0,
                kind,
                cookie: cursor.u64()?,
                len: cursor.u32()?,
            })
        }
        _ => None,
    }
}

/// Decodes the payload of an error chunk: error number and text.
pub(crate) fn decode_error(payload: &[u8]) -> Option<(u32, String)> {
    let mut cursor = Cursor(payload);
    let errno = cursor.u32()?;
    let len = cursor.u16()?;
    let text = cursor.bytes(usize::from(len))?;
    Some((errno, clean(text)))
}

/// A server's words, made fit for one line of a log.
pub(crate) fn clean(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Takes big-endian values off the front of a byte string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_a_request_are_those_of_the_protocol() {
        let request = Request {
            flags: CMD_FLAG_DF,
            command: Command::BlockStatus,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
            len: 0x2122_2324,
        };
        assert_eq!(
            request.encode(),
            [
                0x25, 0x60, 0x95, 0x13, 0, 4, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14,
                0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24
            ]
        );
    }

    #[test]
    fn the_bytes_of_an_option_are_those_of_the_protocol() {
        let mut name = Vec::new();
        put_string(&mut name, "vda");
        let mut due = b"IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x03vda".to_vec();
        assert_eq!(encode_option(OPT_GO, &name), due);
        due.truncate(16);
        due[15] = 0;
        assert_eq!(encode_option(OPT_GO, &[]), due);
    }

    #[test]
    fn replies_decode() {
        let simple = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(
            decode_reply(&simple),
            Some(Reply::Simple {
                error: 5,
                cookie: 9
            })
        );
        let chunk = [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, 0,
        ];
        assert_eq!(
            decode_reply(&chunk),
            Some(Reply::Chunk {
                done: true,
                kind: Chunk::Error,
                cookie: 9,
                len: 256
            })
        );
        assert_eq!(decode_reply(&chunk[..19]), None);
    }

    #[test]
    fn a_hostile_text_becomes_one_short_line() {
        let text = clean(&[&b"a\nb\x1b[31m\xff"[..], &[b'x'; 5000]].concat());
        assert!(text.chars().count() <= 200 && !text.contains(['\n', '\x1b']));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_reply(&bytes);
            let _ = decode_error(&bytes);
            for magic in [SIMPLE_MAGIC, CHUNK_MAGIC] {
                let framed = [&magic.to_be_bytes()[..], &bytes].concat();
                let due = reply_len(magic.to_be_bytes()).unwrap();
                prop_assert_eq!(decode_reply(&framed).is_some(), framed.len() >= due);
            }
        }

        #[test]
        fn an_error_text_is_never_longer_than_its_payload(errno: u32, len: u16, text in ".{0,40}") {
            let payload = [&errno.to_be_bytes()[..], &len.to_be_bytes(), text.as_bytes()].concat();
            match decode_error(&payload) {
                Some((got, _)) => {
                    prop_assert_eq!(got, errno);
                    prop_assert!(usize::from(len) <= text.len());
                }
                None => prop_assert!(usize::from(len) > text.len()),
            }
        }
    }
}
