//! Where the bytes of a disk go: a second thread writes them behind the one that takes them.
//!
//! Raw images are files, qcow2 images are written through a `qemu-nbd` child, so that QEMU alone knows
//! that format.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nbd::{Client, QemuNbd, QemuNbdOptions};

use crate::tool;

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

impl Kind {
    /// QEMU's name for it.
    pub(super) fn format(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// An image on its way to its name.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its name until it is proven.
    pub(super) temp: PathBuf,
    /// Its name from then on.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// Directory for the socket of `qemu-nbd`.
    pub(super) run: PathBuf,
}

/// What becomes of the bytes of a disk.
#[derive(Clone, Debug)]
pub(super) enum Output {
    /// They make an image.
    Image(Place),
    /// Nothing: a proof needs only their fingerprints.
    Nothing,
}

/// Bytes that are being written.
pub(super) enum Writing {
    To(Thread),
    Nowhere,
}

impl Writing {
    /// Begins an all-zero image of `size` bytes, which must not exist.
    pub(super) fn create(output: &Output, size: u64) -> Result<Self> {
        Self::start(output, size, Place::create)
    }

    /// Makes an image that was closed larger, and goes on with it. The new bytes are zero.
    pub(super) fn grow(output: &Output, size: u64) -> Result<Self> {
        Self::start(output, size, Place::grow)
    }

    fn start(output: &Output, size: u64, make: fn(&Place, u64) -> Result<()>) -> Result<Self> {
        let Output::Image(place) = output else {
            return Ok(Self::Nowhere);
        };
        let thread = make(place, size)
            .and_then(|()| Thread::start(Sink::open(place, size)?, place.temp.clone()))
            .with_context(|| format!("cannot make {} of {size} bytes", place.temp.display()))?;
        Ok(Self::To(thread))
    }

    /// Writes bytes; returns a buffer for the next ones. Nothing means that writing failed, and that
    /// [`Self::close`] says why.
    pub(super) fn write(&self, offset: u64, bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::To(thread) => thread.write(Order { offset, bytes }),
            Self::Nowhere => Some(bytes),
        }
    }

    /// Waits until everything is written and on the disk.
    pub(super) fn close(self) -> Result<()> {
        match self {
            Self::To(mut thread) => thread.close(),
            Self::Nowhere => Ok(()),
        }
    }
}

/// The writing thread. What is given up is closed, too, before anybody removes it.
pub(super) struct Thread {
    path: PathBuf,
    orders: Option<SyncSender<Order>>,
    empty: Receiver<Vec<u8>>,
    hand: Option<JoinHandle<Result<()>>>,
}

struct Order {
    offset: u64,
    bytes: Vec<u8>,
}

impl Thread {
    fn start(mut sink: Sink, path: PathBuf) -> Result<Self> {
        let (orders, todo) = mpsc::sync_channel(BEHIND);
        let (done, empty) = mpsc::channel();
        let hand = std::thread::Builder::new()
            .name("image".into())
            .spawn(move || {
                sink.write_all(todo, &done)?;
                sink.close()
            })?;
        Ok(Self {
            path,
            orders: Some(orders),
            empty,
            hand: Some(hand),
        })
    }

    fn write(&self, order: Order) -> Option<Vec<u8>> {
        // The thread ends early when it fails.
        self.orders.as_ref()?.send(order).ok()?;
        Some(self.empty.try_recv().unwrap_or_default())
    }

    fn close(&mut self) -> Result<()> {
        drop(self.orders.take());
        let Some(hand) = self.hand.take() else {
            return Ok(());
        };
        // Its message is in the journal already; a second panic, in a drop, would end the worker.
        hand.join()
            .unwrap_or_else(|_| Err(anyhow!("the thread that writes panicked")))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            eprintln!("an image that was given up: {e:#}");
        }
    }
}

impl Place {
    fn create(&self, size: u64) -> Result<()> {
        // Made here first, so that it is ours alone whatever umask qemu-img has.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.temp)?;
        match self.kind {
            Kind::Raw => Ok(file.set_len(size)?),
            Kind::Qcow2 => {
                let mut command = tool::command("qemu-img");
                command.args(["create", "-q", "-f", "qcow2", "-o", "extended_l2=on"]);
                command.arg(&self.temp).arg(size.to_string());
                tool::run(&mut command).map(drop)
            }
        }
    }

    fn grow(&self, size: u64) -> Result<()> {
        match self.kind {
            Kind::Raw => Ok(open_raw(&self.temp)?.set_len(size)?),
            Kind::Qcow2 => {
                let mut command = tool::command("qemu-img");
                command.args(["resize", "-q", "-f", "qcow2"]);
                command.arg(&self.temp).arg(size.to_string());
                tool::run(&mut command).map(drop)
            }
        }
    }

    /// Removes the image; it must be closed.
    pub(super) fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.temp)
            .with_context(|| format!("cannot remove {}", self.temp.display()))
    }
}

fn open_raw(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// An open image.
enum Sink {
    Raw(File),
    Qcow2(Box<(QemuNbd, Client)>),
}

impl Sink {
    fn open(place: &Place, size: u64) -> Result<Self> {
        let (sink, found) = match place.kind {
            Kind::Raw => {
                let file = open_raw(&place.temp)?;
                let len = file.metadata()?.len();
                (Self::Raw(file), len)
            }
            Kind::Qcow2 => {
                let options = QemuNbdOptions::write(&place.temp, place.kind.format());
                let server = QemuNbd::spawn(&options, &place.run, PATIENCE)?;
                let client = Client::connect(&server.socket(), "", &[], PATIENCE)?;
                let len = client.size();
                (Self::Qcow2(Box::new((server, client))), len)
            }
        };
        ensure!(
            found == size,
            "the image has {found} bytes instead of {size}"
        );
        Ok(sink)
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
