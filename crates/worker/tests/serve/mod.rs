//! An NBD server over a modelled disk: it keeps the protocol, and uses every freedom that it leaves.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(crate) const HOLE: u32 = 1;
pub(crate) const ZERO: u32 = 2;
pub(crate) const DIRTY: u32 = 1;

/// Most ranges in one reply.
const RANGES: usize = 1 << 16;

/// What is served: one instant of a disk.
pub(crate) trait Image: Send + Sync {
    fn size(&self) -> u64;

    fn read(&self, offset: u64, to: &mut [u8]);

    /// Where the range of `base:allocation` ends that `at` lies in, and its flags.
    fn allocation(&self, at: u64) -> (u64, u32);

    /// The name of the bitmap that is offered.
    fn bitmap(&self) -> Option<&str>;

    /// Where the range of the bitmap ends that `at` lies in, and its flags.
    fn dirty(&self, at: u64) -> (u64, u32);

    /// Something random that makes replies short, unmerged and out of order; 0 for a plain server.
    fn whim(&self) -> u64 {
        0
    }
}

/// A server on a socket; it ends with its owner.
pub(crate) struct Server {
    socket: PathBuf,
    image: Arc<Mutex<Option<Arc<dyn Image>>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(dir: &Path) -> Self {
        let socket = dir.join("nbd");
        let listener = UnixListener::bind(&socket).unwrap();
        let image: Arc<Mutex<Option<Arc<dyn Image>>>> = Arc::default();
        let ending: Arc<AtomicBool> = Arc::default();
        let (shown, end) = (Arc::clone(&image), Arc::clone(&ending));
        let thread = std::thread::spawn(move || {
            for (number, peer) in listener.incoming().enumerate() {
                if end.load(Ordering::Acquire) {
                    break;
                }
                let (peer, image) = (peer.unwrap(), shown.lock().unwrap().clone().unwrap());
                let whim = match image.whim() {
                    0 => 0,
                    whim => whim.wrapping_add(number as u64) | 1,
                };
                // It fails when the client leaves in the middle.
                std::thread::spawn(move || drop(Peer { peer, image, whim }.serve()));
            }
        });
        Self {
            socket,
            image,
            ending,
            thread: Some(thread),
        }
    }

    /// From now on connections get this image.
    pub(crate) fn show(&self, image: Arc<dyn Image>) {
        *self.image.lock().unwrap() = Some(image);
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // Wakes it.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

struct Peer {
    peer: UnixStream,
    image: Arc<dyn Image>,
    whim: u64,
}

impl Peer {
    fn get<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.peer.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn serve(mut self) -> io::Result<()> {
        let contexts = self.negotiate()?;
        loop {
            let b = self.get::<28>()?;
            assert_eq!(b[..4], [0x25, 0x60, 0x95, 0x13], "request magic");
            let cookie = &b[8..16];
            let offset = u64::from_be_bytes(b[16..24].try_into().unwrap());
            let len = u32::from_be_bytes(b[24..].try_into().unwrap());
            assert!(len > 0 || b[7] == 2, "an empty request");
            assert!(
                offset + u64::from(len) <= self.image.size(),
                "beyond the end"
            );
            match b[7] {
                0 => self.read(cookie, offset, len)?,
                2 => return Ok(()),
                7 => self.status(cookie, offset, len, &contexts)?,
                other => panic!("command {other}"),
            }
        }
    }

    /// The contexts that were granted, under ids 1, 2 …
    fn negotiate(&mut self) -> io::Result<Vec<String>> {
        self.peer.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.get::<4>()?;
        let mut granted = Vec::new();
        loop {
            let head = self.get::<16>()?;
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let len = u32::from_be_bytes(head[12..].try_into().unwrap());
            let mut payload = vec![0; len as usize];
            self.peer.read_exact(&mut payload)?;
            match option {
                8 => self.option(8, 1, &[])?,
                10 => {
                    granted = self.grant(&payload);
                    for (at, name) in granted.iter().enumerate() {
                        let id = (at as u32 + 1).to_be_bytes();
                        self.option(10, 4, &[&id[..], name.as_bytes()].concat())?;
                    }
                    self.option(10, 1, &[])?;
                }
                7 => {
                    // Has flags, read only, can multi conn.
                    let flags = (1_u16 | 1 << 1 | 1 << 8).to_be_bytes();
                    let size = self.image.size().to_be_bytes();
                    self.option(7, 3, &[&[0, 0][..], &size, &flags].concat())?;
                    self.option(7, 1, &[])?;
                    return Ok(granted);
                }
                other => panic!("option {other}"),
            }
        }
    }

    fn grant(&self, payload: &[u8]) -> Vec<String> {
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap()) as usize;
        let mut at = 4 + word(0);
        let count = word(at);
        at += 4;
        let mut granted = Vec::new();
        for _ in 0..count {
            let name = String::from_utf8(payload[at + 4..at + 4 + word(at)].to_vec()).unwrap();
            at += 4 + word(at);
            let bitmap = name.strip_prefix("qemu:dirty-bitmap:");
            if name == "base:allocation" || bitmap.is_some() && bitmap == self.image.bitmap() {
                granted.push(name);
            }
        }
        granted
    }

    fn option(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let numbers = [option, kind, payload.len() as u32].map(u32::to_be_bytes);
        let reply = [&magic[..], &numbers.concat(), payload].concat();
        self.peer.write_all(&reply)
    }

    /// One in `n`, if the server has whims.
    fn now_and_then(&mut self, n: u64) -> bool {
        self.whim != 0 && self.random(n) == 0
    }

    fn random(&mut self, below: u64) -> u64 {
        self.whim ^= self.whim << 13;
        self.whim ^= self.whim >> 7;
        self.whim ^= self.whim << 17;
        self.whim % below
    }

    fn read(&mut self, cookie: &[u8], offset: u64, len: u32) -> io::Result<()> {
        let mut bytes = vec![0; len as usize];
        self.image.read(offset, &mut bytes);
        let mut pieces = vec![(0, bytes.len())];
        if len >= 1024 && self.now_and_then(4) {
            let cut = (self.random(u64::from(len) / 512 - 1) as usize + 1) * 512;
            pieces = vec![(cut, bytes.len()), (0, cut)];
        }
        let last = pieces.len() - 1;
        let mut reply = Vec::with_capacity(bytes.len() + 64);
        for (at, (from, to)) in pieces.into_iter().enumerate() {
            let (begin, part) = (offset + from as u64, &bytes[from..to]);
            let zero = self.whim != 0 && part.iter().all(|byte| *byte == 0);
            let (kind, size) = match zero {
                true => (2_u16, 12),
                false => (1, part.len() as u32 + 8),
            };
            chunk(&mut reply, at == last, kind, cookie, size);
            reply.extend_from_slice(&begin.to_be_bytes());
            match zero {
                true => reply.extend_from_slice(&(part.len() as u32).to_be_bytes()),
                false => reply.extend_from_slice(part),
            }
        }
        self.peer.write_all(&reply)
    }

    fn status(&mut self, cookie: &[u8], offset: u64, len: u32, names: &[String]) -> io::Result<()> {
        let mut reply = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let ranges = self.ranges(name == "base:allocation", offset, len);
            let last = at + 1 == names.len();
            chunk(&mut reply, last, 5, cookie, ranges.len() as u32 * 8 + 4);
            reply.extend_from_slice(&(at as u32 + 1).to_be_bytes());
            for (len, flags) in ranges {
                reply.extend_from_slice(&len.to_be_bytes());
                reply.extend_from_slice(&flags.to_be_bytes());
            }
        }
        self.peer.write_all(&reply)
    }

    fn ranges(&mut self, allocation: bool, offset: u64, len: u32) -> Vec<(u32, u32)> {
        let end = offset + u64::from(len);
        let most = match self.now_and_then(4) {
            true => 1 + self.random(3) as usize,
            false => RANGES,
        };
        let mut at = offset;
        let mut ranges = Vec::new();
        while at < end && ranges.len() < most {
            let (mut until, flags) = match allocation {
                true => self.image.allocation(at),
                false => self.image.dirty(at),
            };
            // The last range may reach beyond what was asked for.
            if !self.now_and_then(2) {
                until = until.min(end);
            }
            let sectors = (until - at) / 512;
            if sectors > 1 && self.now_and_then(8) {
                until = at + 512 * (1 + self.random(sectors - 1));
            }
            let len = (until - at).min(u64::from(u32::MAX) / 4096 * 4096);
            ranges.push((len as u32, flags));
            at += len;
        }
        ranges
    }
}

fn chunk(reply: &mut Vec<u8>, done: bool, kind: u16, cookie: &[u8], len: u32) {
    reply.extend_from_slice(&[0x66, 0x8e, 0x33, 0xef]);
    reply.extend_from_slice(&u16::from(done).to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(cookie);
    reply.extend_from_slice(&len.to_be_bytes());
}
