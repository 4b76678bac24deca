//! A `qemu-nbd` child that serves one image on a private socket.
//!
//! QEMU owns the image format: a qcow2 target is written, and a powered-off qcow2 source with its
//! bitmaps is read, through this child.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a wait looks at the child.
const LOOK: Duration = Duration::from_millis(5);
/// How much of the child's complaints is kept, in bytes.
const KEEP: usize = 4096;

/// How the server uses the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Through the page cache, durable when the client flushes. Fastest where memory is free.
    #[default]
    Writeback,
    /// Past the page cache, durable when the client flushes: leaves the memory to the guests.
    /// Not every file system can.
    None,
    /// Flushes are ignored. Only for images that nobody needs after a crash.
    Unsafe,
}

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct QemuNbdOptions {
    /// The program; never searched for, because the environment is empty.
    pub program: PathBuf,
    /// The image, an absolute path.
    pub image: PathBuf,
    /// Its format, never guessed: a guest could write a qcow2 header into a raw disk.
    pub format: String,
    /// Refuse writes?
    pub read_only: bool,
    /// Read it without a lock that keeps others from writing it, such as a VM that starts? Then what is
    /// read counts only if nobody did.
    pub force_share: bool,
    /// A persistent bitmap of the image to offer as `qemu:dirty-bitmap:NAME`.
    pub bitmap: Option<String>,
    /// Most connections at once.
    pub shared: u32,
    /// Go on after the last connection closed? If not, the server ends by itself when its client
    /// dies, and leaves nothing behind.
    pub persistent: bool,
    /// Use of the page cache.
    pub cache: Cache,
}

impl QemuNbdOptions {
    /// Serves `image` for reading, up to four connections, until the last one closes.
    pub fn read(image: impl Into<PathBuf>, format: impl Into<String>) -> Self {
        Self {
            program: "/usr/bin/qemu-nbd".into(),
            image: image.into(),
            format: format.into(),
            read_only: true,
            force_share: false,
            bitmap: None,
            shared: 4,
            persistent: false,
            cache: Cache::Writeback,
        }
    }

    /// Serves `image` as the target of a restore: trims and zeros free space in the image.
    pub fn write(image: impl Into<PathBuf>, format: impl Into<String>) -> Self {
        Self {
            read_only: false,
            ..Self::read(image, format)
        }
    }

    fn arguments(&self, socket: &Path, pid_file: &Path) -> Vec<OsString> {
        let join = |key: &str, value: &std::ffi::OsStr| {
            let mut argument = OsString::from(key);
            argument.push(value);
            argument
        };
        let cache = match self.cache {
            Cache::Writeback => "writeback",
            Cache::None => "none",
            Cache::Unsafe => "unsafe",
        };
        let mut arguments = vec![
            join("--socket=", socket.as_os_str()),
            join("--pid-file=", pid_file.as_os_str()),
            join("--shared=", self.shared.max(1).to_string().as_ref()),
            join("--cache=", cache.as_ref()),
            "--discard=unmap".into(),
        ];
        if self.read_only {
            arguments.push("--read-only".into());
        }
        if self.persistent {
            arguments.push("--persistent".into());
        }
        if let Some(bitmap) = &self.bitmap {
            arguments.push(join("--bitmap=", bitmap.as_ref()));
        }
        if self.force_share {
            arguments.extend(["--image-opts".into(), "--".into(), self.shared_image()]);
        } else {
            arguments.push(join("--format=", self.format.as_ref()));
            arguments.push("--".into());
            arguments.push(self.image.as_os_str().to_owned());
        }
        arguments
    }

    /// The image in the form of `--image-opts`, in which a comma is written twice: qemu-nbd(8).
    fn shared_image(&self) -> OsString {
        let device =
            fs::metadata(&self.image).is_ok_and(|facts| facts.file_type().is_block_device());
        let driver = if device { "host_device" } else { "file" };
        let format = self.format.replace(',', ",,");
        let mut text =
            format!("driver={format},force-share=on,file.driver={driver},file.filename=")
                .into_bytes();
        for byte in self.image.as_os_str().as_bytes() {
            text.push(*byte);
            if *byte == b',' {
                text.push(b',');
            }
        }
        OsString::from_vec(text)
    }
}

/// Why a server could not be started or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerFailure {
    /// The image's path could be taken for something else.
    #[error("image {image:?} is not an absolute path")]
    NotAbsolute {
        /// The path.
        image: PathBuf,
    },
    /// The private directory could not be made.
    #[error("cannot make a private directory in {path:?}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program could not be started or watched.
    #[error("cannot run {program:?}")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it served, or with a failure.
    #[error("qemu-nbd of {image:?} ended with {status}: {complaint}")]
    Exited {
        /// The image.
        image: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to its standard error, in one line.
        complaint: String,
    },
    /// It did not serve, or did not end, in time, and was killed.
    #[error("qemu-nbd of {image:?} did not {what} within {} ms: {complaint}", .after.as_millis())]
    Late {
        /// The image.
        image: PathBuf,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        after: Duration,
        /// The end of what it wrote to its standard error, in one line.
        complaint: String,
    },
}

/// A running `qemu-nbd`. Dropping it kills the server: end with [`QemuNbd::stop`].
#[derive(Debug)]
pub struct QemuNbd {
    child: Child,
    complaint: Option<JoinHandle<Vec<u8>>>,
    image: PathBuf,
    /// Holds the socket; removed with everything in it.
    room: Room,
}

impl QemuNbd {
    /// Starts a server and waits until it listens.
    ///
    /// The socket lies in a new directory of mode 0700 inside `parent`, which must exist. The
    /// whole path of a socket is at most 107 bytes long, so `parent` should be short.
    pub fn spawn(
        options: &QemuNbdOptions,
        parent: &Path,
        deadline: Duration,
    ) -> Result<Self, ServerFailure> {
        let image = options.image.clone();
        if !image.is_absolute() {
            return Err(ServerFailure::NotAbsolute { image });
        }
        let room = Room::new(parent)?;
        let pid_file = room.path.join("pid");
        let run = |source| ServerFailure::Run {
            program: options.program.clone(),
            source,
        };
        let mut child = Command::new(&options.program)
            .args(options.arguments(&room.socket(), &pid_file))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(run)?;
        let complaint = child.stderr.take().map(keep_the_end);
        let mut server = Self {
            child,
            complaint,
            image,
            room,
        };
        // The process id is written when the image is open and the socket listens; trying to
        // connect instead would use up the only connection of a server that is not persistent.
        let end = Instant::now() + deadline;
        loop {
            if fs::metadata(&pid_file).is_ok_and(|meta| meta.len() > 0) {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait().map_err(run)? {
                return Err(server.exited(status));
            }
            if Instant::now() >= end {
                return Err(server.late("listen", deadline));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The socket to connect to. The export's name is empty.
    pub fn socket(&self) -> PathBuf {
        self.room.socket()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server and waits until it closed its image.
    ///
    /// Close the clients first: what they have not flushed may be lost. A server that takes
    /// longer than `deadline` is killed and reported as late.
    pub fn stop(mut self, deadline: Duration) -> Result<(), ServerFailure> {
        let run = |source| ServerFailure::Run {
            program: "qemu-nbd".into(),
            source,
        };
        let end = Instant::now() + deadline;
        let mut asked = false;
        loop {
            if let Some(status) = self.child.try_wait().map_err(run)? {
                if status.success() {
                    return Ok(());
                }
                return Err(self.exited(status));
            }
            if Instant::now() >= end {
                return Err(self.late("end", deadline));
            }
            if !asked {
                // Not waited for yet, so the number cannot belong to another process. A server
                // that is ending by itself at this moment takes no harm.
                let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
                asked = true;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn exited(&mut self, status: ExitStatus) -> ServerFailure {
        ServerFailure::Exited {
            image: self.image.clone(),
            status,
            complaint: self.take_complaint(),
        }
    }

    fn late(&mut self, what: &'static str, after: Duration) -> ServerFailure {
        self.kill();
        ServerFailure::Late {
            image: self.image.clone(),
            what,
            after,
            complaint: self.take_complaint(),
        }
    }

    /// Call it once the child has ended: the pipe closes with it.
    fn take_complaint(&mut self) -> String {
        let bytes = self.complaint.take().and_then(|reader| reader.join().ok());
        let text = crate::wire::clean(&bytes.unwrap_or_default());
        if text.is_empty() {
            "it gave no reason".into()
        } else {
            text
        }
    }

    fn kill(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.kill();
        if let Some(reader) = self.complaint.take() {
            let _ = reader.join();
        }
    }
}

/// Keeps the child's pipe empty and the end of what came through it.
fn keep_the_end(mut pipe: ChildStderr) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut part = [0; 1024];
        while let Ok(n) = pipe.read(&mut part) {
            if n == 0 {
                break;
            }
            kept.extend_from_slice(part.get(..n).unwrap_or_default());
            let excess = kept.len().saturating_sub(KEEP);
            kept.drain(..excess);
        }
        kept
    })
}

/// A private directory that goes away with its owner.
#[derive(Debug)]
struct Room {
    path: PathBuf,
}

impl Room {
    fn new(parent: &Path) -> Result<Self, ServerFailure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Left by an earlier process of the same number: never reused, it may be watched.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(ServerFailure::Directory { path, source }),
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.path.join("nbd")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Known names only, never a whole tree; what is left makes the last step fail harmlessly.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_file(self.path.join("pid"));
        let _ = fs::remove_dir(&self.path);
    }
}
