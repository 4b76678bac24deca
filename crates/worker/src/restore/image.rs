//! One disk image on its way back.
//!
//! This thread takes the records and keeps the map of what is written; a second one writes. Raw
//! images are files, qcow2 images are written through a `qemu-nbd` child, so that QEMU alone knows
//! that format.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use blockmap::{BLOCK, Header, Key, MapWriter, Root, fingerprints};
use nbd::{Client, QemuNbd, QemuNbdOptions};
use relay::message::PartHead;

use crate::{paths, tool};

/// Buffers between receiving and writing.
const BEHIND: usize = 32;
/// Requests under way to `qemu-nbd`.
const IN_FLIGHT: usize = 16;
/// How long `qemu-nbd` may take to start, and to close an image.
const PATIENCE: Duration = Duration::from_secs(120);

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes as the guest saw them.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// An image that is being written under a temporary name.
pub(super) struct Image {
    target: String,
    size: u64,
    temp: PathBuf,
    path: PathBuf,
    key: Key,
    map: MapWriter,
    prints: Vec<u64>,
    /// Id and sequence number of the last part that began.
    last: Option<(u64, u32)>,
    writer: Option<Writing>,
}

/// The writing thread. What is given up is closed, too, before anybody removes it.
struct Writing {
    orders: Option<SyncSender<Order>>,
    empty: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writing {
    fn close(&mut self) -> Result<()> {
        drop(self.orders.take());
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        // Its message is in the journal already; a second panic, in a drop, would end the worker.
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread that writes panicked")))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            eprintln!("an image that was given up: {e:#}");
        }
    }
}

struct Order {
    offset: u64,
    bytes: Vec<u8>,
}

/// A complete image.
pub(super) struct Written {
    pub(super) temp: PathBuf,
    pub(super) path: PathBuf,
    pub(super) part: u64,
    pub(super) root: Root,
}

impl Image {
    /// Makes an all-zero image of `size` bytes at `temp`, which must not exist.
    pub(super) fn create(
        target: &str,
        size: u64,
        temp: PathBuf,
        path: PathBuf,
        kind: Kind,
        map: &Path,
        key: &Key,
    ) -> Result<Self> {
        let header = Header {
            job: "restore".into(),
            full_read: "restore".into(),
            trusting: 0,
            part_id: 0,
            delta_seq: 0,
            identity: target.into(),
            size,
        };
        let map = MapWriter::create(map, key, header)?;
        let writer = Writing::start(&temp, kind, size)?;
        Ok(Self {
            target: target.into(),
            size,
            temp,
            path,
            key: key.clone(),
            map,
            prints: Vec::new(),
            last: None,
            writer: Some(writer),
        })
    }

    /// A part begins: 0 starts the image, any other must follow the last one.
    pub(super) fn begin_part(&mut self, head: &PartHead) -> Result<()> {
        ensure!(
            head.size == self.size,
            "disk {} has {} bytes in one part and {} in another",
            self.target,
            self.size,
            head.size
        );
        match (self.last, head.delta_seq) {
            (None, 0) => {}
            (None, seq) => bail!(
                "part {seq} of disk {} came first: the part that starts it is missing from this restore",
                self.target
            ),
            (Some((_, last)), seq) if last.checked_add(1) == Some(seq) => {}
            (Some(_), 0) => self.start_over()?,
            (Some((_, last)), seq) => bail!(
                "part {seq} of disk {} came after part {last}: one is missing or out of order",
                self.target
            ),
        }
        self.last = Some((head.part, head.delta_seq));
        Ok(())
    }

    /// The image is all zero again.
    fn start_over(&mut self) -> Result<()> {
        // Zeros over what was written are enough, and leave holes where the format can.
        let blocks = blockmap::blocks_of(self.size);
        self.map.set_zero(0, blocks)?;
        let mut offset = 0;
        while offset < self.size {
            let len = (self.size - offset).min(relay::frame::MAX_DATA.into());
            self.order(offset, vec![0; len as usize])?;
            offset += len;
        }
        Ok(())
    }

    /// Writes bytes; returns a buffer for the next ones.
    pub(super) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let len = bytes.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let aligned = |at: u64| at.is_multiple_of(BLOCK as u64);
        let fits = aligned(offset) && end.is_some_and(|end| aligned(end) || end == self.size);
        ensure!(
            fits && len > 0,
            "a record of {len} bytes at {offset} does not fit disk {} of {} bytes",
            self.target,
            self.size
        );
        fingerprints(&self.key, &bytes, &mut self.prints);
        self.map.set(offset / BLOCK as u64, &self.prints)?;
        self.order(offset, bytes)
    }

    fn order(&mut self, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let writer = self.writer.as_ref().context("the image is closed")?;
        let sent = writer
            .orders
            .as_ref()
            .is_some_and(|orders| orders.send(Order { offset, bytes }).is_ok());
        if !sent {
            // The thread ended early: it says why.
            self.close()?;
            bail!("the image was closed early");
        }
        Ok(writer.empty.try_recv().unwrap_or_default())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        writer
            .close()
            .with_context(|| format!("cannot write {}", self.temp.display()))
    }

    /// Flushes and closes the image; computes the root of what was written.
    pub(super) fn finish(mut self) -> Result<Written> {
        self.close()?;
        let (part, _) = self.last.context("no part of the disk came")?;
        Ok(Written {
            part,
            root: self.map.root()?,
            temp: self.temp,
            path: self.path,
        })
    }
}

impl Writing {
    fn start(temp: &Path, kind: Kind, size: u64) -> Result<Self> {
        let (orders, todo) = mpsc::sync_channel(BEHIND);
        let (done, empty) = mpsc::channel();
        let mut sink = Sink::open(temp, kind, size)?;
        let thread = std::thread::Builder::new()
            .name("image".into())
            .spawn(move || {
                sink.write_all(todo, &done)?;
                sink.close()
            })?;
        Ok(Self {
            orders: Some(orders),
            empty,
            thread: Some(thread),
        })
    }
}

/// Where bytes go.
enum Sink {
    Raw(File),
    Qcow2(Box<(QemuNbd, Client)>),
}

impl Sink {
    fn open(temp: &Path, kind: Kind, size: u64) -> Result<Self> {
        match kind {
            Kind::Raw => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(temp)?;
                file.set_len(size)?;
                Ok(Self::Raw(file))
            }
            Kind::Qcow2 => {
                // Made here first, so that it is ours alone whatever umask qemu-img has.
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(temp)?;
                let mut command = tool::command("qemu-img");
                command.args(["create", "-q", "-f", "qcow2", "-o", "extended_l2=on"]);
                command.arg(temp).arg(size.to_string());
                tool::run(&mut command)?;
                let options = QemuNbdOptions::write(temp, "qcow2");
                let server = QemuNbd::spawn(&options, Path::new(paths::RUN), PATIENCE)?;
                let client = Client::connect(&server.socket(), "", &[], PATIENCE)?;
                ensure!(
                    client.size() == size,
                    "the image has {} bytes instead of {size}",
                    client.size()
                );
                Ok(Self::Qcow2(Box::new((server, client))))
            }
        }
    }

    fn write_all(&mut self, todo: Receiver<Order>, done: &mpsc::Sender<Vec<u8>>) -> Result<()> {
        match self {
            Self::Raw(file) => {
                for Order { offset, bytes } in todo {
                    file.write_all_at(&bytes, offset)?;
                    // Nobody listens any more at the end: the buffer just goes.
                    let _ = done.send(bytes);
                }
                file.sync_all()?;
            }
            Self::Qcow2(open) => {
                let (_, client) = &mut **open;
                let mut writer = client.writer(IN_FLIGHT);
                for Order { offset, bytes } in todo {
                    writer.write(offset, &bytes)?;
                    let _ = done.send(bytes);
                }
                writer.flush()?;
            }
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(open) => {
                let (server, client) = *open;
                client.close()?;
                Ok(server.stop(PATIENCE)?)
            }
        }
    }
}
