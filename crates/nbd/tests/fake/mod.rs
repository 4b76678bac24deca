//! A scripted NBD server: it negotiates properly, then does whatever the test says.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use nbd::{Client, Error};

pub(crate) const BASE: &str = "base:allocation";
pub(crate) const SIZE: u64 = 1 << 20;

pub(crate) const DONE: u16 = 1;
pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const STATUS: u16 = 5;
pub(crate) const ERROR: u16 = 0x8001;

/// What a client asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// The server's end of the socket.
pub(crate) struct Peer(pub(crate) UnixStream);

impl Peer {
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The client may have left already; the test looks at the client's side.
        let _ = self.0.write_all(bytes);
    }

    pub(crate) fn get<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(crate) fn request(&mut self) -> Option<Asked> {
        let b = self.get::<28>()?;
        assert_eq!(b[..4], [0x25, 0x60, 0x95, 0x13], "request magic");
        Some(Asked {
            command: u16::from_be_bytes(b[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(b[8..16].try_into().unwrap()),
            offset: u64::from_be_bytes(b[16..24].try_into().unwrap()),
            len: u32::from_be_bytes(b[24..].try_into().unwrap()),
        })
    }

    /// `n` requests that are on their way.
    pub(crate) fn requests(&mut self, n: usize) -> Vec<Asked> {
        (0..n).map(|_| self.request().expect("a request")).collect()
    }

    pub(crate) fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, payload: &[u8]) {
        let head = chunk_head(flags, kind, cookie, payload.len() as u32);
        self.raw(&[&head[..], payload].concat());
    }

    pub(crate) fn data(&mut self, flags: u16, cookie: u64, offset: u64, bytes: &[u8]) {
        self.chunk(
            flags,
            DATA,
            cookie,
            &[&offset.to_be_bytes()[..], bytes].concat(),
        );
    }

    pub(crate) fn hole(&mut self, flags: u16, cookie: u64, offset: u64, len: u32) {
        let payload = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
        self.chunk(flags, HOLE, cookie, &payload);
    }

    pub(crate) fn error(&mut self, cookie: u64, errno: u32, text: &str) {
        let len = text.len() as u16;
        let payload = [
            &errno.to_be_bytes()[..],
            &len.to_be_bytes(),
            text.as_bytes(),
        ]
        .concat();
        self.chunk(DONE, ERROR, cookie, &payload);
    }

    pub(crate) fn status(&mut self, flags: u16, cookie: u64, context: u32, pairs: &[(u32, u32)]) {
        let mut payload = context.to_be_bytes().to_vec();
        for (len, state) in pairs {
            payload.extend_from_slice(&len.to_be_bytes());
            payload.extend_from_slice(&state.to_be_bytes());
        }
        self.chunk(flags, STATUS, cookie, &payload);
    }

    pub(crate) fn simple(&mut self, error: u32, cookie: u64) {
        let head = [0x67, 0x44, 0x66, 0x98];
        self.raw(&[&head[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat());
    }

    /// Answers a read in full with [`byte_at`].
    pub(crate) fn serve(&mut self, asked: &Asked) {
        assert_eq!(asked.command, 0, "a read");
        let bytes = pattern(asked.offset, asked.len as usize);
        self.data(DONE, asked.cookie, asked.offset, &bytes);
    }

    pub(crate) fn option_reply(&mut self, option: u32, kind: u32, payload: &[u8]) {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let len = (payload.len() as u32).to_be_bytes();
        self.raw(
            &[
                &magic[..],
                &option.to_be_bytes(),
                &kind.to_be_bytes(),
                &len,
                payload,
            ]
            .concat(),
        );
    }

    /// The server's half of a handshake with contexts `names` under ids 1, 2 …
    pub(crate) fn negotiate(
        &mut self,
        names: &[&str],
        size: u64,
        blocks: Option<[u32; 3]>,
    ) -> Option<()> {
        self.raw(b"NBDMAGICIHAVEOPT\0\x03");
        self.get::<4>()?;
        loop {
            let head = self.get::<16>()?;
            assert_eq!(&head[..8], b"IHAVEOPT");
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let len = u32::from_be_bytes(head[12..].try_into().unwrap());
            let mut payload = vec![0; len as usize];
            self.0.read_exact(&mut payload).ok()?;
            match option {
                8 => self.option_reply(8, 1, &[]),
                10 => {
                    for (at, name) in names.iter().enumerate() {
                        let id = (at as u32 + 1).to_be_bytes();
                        self.option_reply(10, 4, &[&id[..], name.as_bytes()].concat());
                    }
                    self.option_reply(10, 1, &[]);
                }
                7 => {
                    // Has flags, flush, trim, write-zeroes, no DF.
                    let flags = (1_u16 | 1 << 2 | 1 << 5 | 1 << 6).to_be_bytes();
                    self.option_reply(7, 3, &[&[0, 0][..], &size.to_be_bytes(), &flags].concat());
                    if let Some(sizes) = blocks {
                        let sizes: Vec<u8> = sizes.iter().flat_map(|s| s.to_be_bytes()).collect();
                        self.option_reply(7, 3, &[&[0, 3][..], &sizes].concat());
                    }
                    self.option_reply(7, 1, &[]);
                    return Some(());
                }
                other => panic!("option {other}"),
            }
        }
    }
}

pub(crate) fn chunk_head(flags: u16, kind: u16, cookie: u64, len: u32) -> Vec<u8> {
    let mut head = vec![0x66, 0x8e, 0x33, 0xef];
    head.extend_from_slice(&flags.to_be_bytes());
    head.extend_from_slice(&kind.to_be_bytes());
    head.extend_from_slice(&cookie.to_be_bytes());
    head.extend_from_slice(&len.to_be_bytes());
    head
}

/// The byte that the fake disk holds at `at`; no two 4 KiB blocks are equal.
pub(crate) fn byte_at(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8 | 1
}

pub(crate) fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte_at).collect()
}

/// A client of a server that negotiates, then runs `script`.
pub(crate) fn serve(script: impl FnOnce(&mut Peer) + Send + 'static) -> (Client, JoinHandle<()>) {
    serve_as(&[BASE], SIZE, Some([1, 4096, 32 << 20]), script)
}

pub(crate) fn serve_as(
    names: &'static [&'static str],
    size: u64,
    blocks: Option<[u32; 3]>,
    script: impl FnOnce(&mut Peer) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut peer = Peer(theirs);
        peer.negotiate(names, size, blocks).expect("a handshake");
        script(&mut peer);
    });
    let mut client = Client::from_socket(ours, "disk", names, Duration::from_secs(5)).unwrap();
    // No test may hang for ever.
    client.set_timeout(Some(Duration::from_secs(10))).unwrap();
    (client, server)
}

/// A client whose server answers the handshake with `bytes`, whatever is asked.
pub(crate) fn greeted_with(bytes: Vec<u8>) -> Result<Client, Error> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut peer = Peer(theirs);
        peer.raw(&bytes);
        // No end of file before the client has read everything and gives up by itself.
        let _ = peer.0.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = peer.0.read_to_end(&mut rest);
    });
    let client = Client::from_socket(ours, "disk", &[BASE], Duration::from_secs(5));
    if client.is_err() {
        server.join().unwrap();
    }
    client
}
