//! The worker's end of the conversation with the plugin.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use relay::frame::{self, Header, Kind, Reader, Writer};
use relay::message::{Ask, Class, End, Fail, FileHead, Go, Hello, Known, Log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::alive;

/// Longest silence towards the plugin; it gives up after a multiple of this.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// How long a job may go on after the plugin left: reading stops at once, but libvirt's job and files
/// must be cleared up.
const LINGER: Duration = Duration::from_secs(90);

/// Bytes on their way to the plugin. Less than a few records costs a change of process for each.
const QUEUE: usize = 1 << 20;

/// What may be said while others speak too: log lines, and proof of life.
#[derive(Debug)]
pub struct Line {
    state: Mutex<State>,
    gone: AtomicBool,
    /// What must be done until when.
    due: Mutex<Option<(Instant, String)>>,
}

/// Work with a time limit, until this is dropped: see [`Line::within`].
#[derive(Debug)]
#[must_use = "the limit is for as long as this lives"]
pub struct Within<'a>(&'a Line);

impl Drop for Within<'_> {
    fn drop(&mut self) {
        *self.0.due() = None;
    }
}

#[derive(Debug)]
struct State {
    writer: Writer<UnixStream>,
    last: Instant,
    bytes: u64,
    files: u64,
}

impl Line {
    fn with<T>(
        &self,
        send: impl FnOnce(&mut State) -> Result<T, frame::Error>,
    ) -> Result<T, frame::Error> {
        // A panic elsewhere leaves a whole frame behind, never half a one: writes do not panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = send(&mut state);
        state.last = Instant::now();
        if result.is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Writes a line to the job log. A plugin that is gone hears nothing; the next frame tells.
    pub fn log(&self, class: Class, text: impl Into<String>) {
        let text = text.into();
        eprintln!("{class:?}: {text}");
        let _ = self.with(|state| state.writer.json(Kind::Log, &Log { class, text }));
    }

    /// An ordinary line of the job log.
    pub fn info(&self, text: impl Into<String>) {
        self.log(Class::Info, text);
    }

    /// A line about something that was healed, skipped or late.
    pub fn warn(&self, text: impl Into<String>) {
        self.log(Class::Warning, text);
    }

    /// Did the plugin close the connection?
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Sends bytes of the current file.
    pub fn data(&self, offset: u64, bytes: &[u8]) -> Result<(), frame::Error> {
        self.with(|state| {
            state.bytes += bytes.len() as u64;
            state.writer.data(offset, bytes)
        })
    }

    /// Shows the plugin that we are there; [`Self::is_gone`] tells then whether it is.
    pub fn alive(&self) {
        let _ = self.with(|state| state.writer.empty(Kind::Alive));
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the work that begins now a time limit; `what` follows "cannot".
    ///
    /// A call into libvirt or into a dead file system cannot be taken back, so what happens at the limit
    /// is the end of this process: the job fails with a message, and its unit repairs what it left.
    pub fn within(&self, limit: Duration, what: impl Into<String>) -> Within<'_> {
        *self.due() = Some((Instant::now() + limit, what.into()));
        Within(self)
    }

    /// Why this process must end now, if it must.
    fn overdue(&self, left: Option<Instant>) -> Option<String> {
        if left.is_some_and(|at| at.elapsed() > LINGER) {
            return Some("the plugin left, and this job did not come to its end".into());
        }
        match &*self.due() {
            Some((until, what)) if Instant::now() > *until => Some(format!(
                "cannot {what}: it takes too long; the job is given up"
            )),
            _ => None,
        }
    }

    fn tick(&self) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody is sending at this moment: that is proof enough.
            Err(TryLockError::WouldBlock) => return,
        };
        if state.last.elapsed() >= ALIVE_EVERY {
            state.last = Instant::now();
            if state.writer.empty(Kind::Alive).is_err() {
                self.gone.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// The conversation.
#[derive(Debug)]
pub struct Session {
    reader: Reader<io::BufReader<UnixStream>>,
    line: Arc<Line>,
}

impl Session {
    /// Takes over a connection and keeps it alive until the session is dropped.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        roomy(&socket);
        let writer = Writer::new(socket.try_clone()?);
        let line = Arc::new(Line {
            state: Mutex::new(State {
                writer,
                last: Instant::now(),
                bytes: 0,
                files: 0,
            }),
            gone: AtomicBool::new(false),
            due: Mutex::default(),
        });
        let ticking = Arc::downgrade(&line);
        let far = socket.try_clone()?;
        std::thread::Builder::new()
            .name("alive".into())
            .spawn(move || attend(&ticking, &far))?;
        Ok(Self {
            reader: Reader::new(io::BufReader::with_capacity(64 << 10, socket)),
            line,
        })
    }

    /// What may be used from other threads.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Reads the first frame.
    pub fn hello(&mut self) -> Result<Hello, frame::Error> {
        let header = self.next("HELLO")?;
        if header.kind != Kind::Hello {
            return Err(frame::Error::Unexpected {
                got: header.kind,
                due: "HELLO",
            });
        }
        self.reader.json(header)
    }

    /// Reads the next header; a closed connection is an error that names what was `due`.
    pub fn next(&mut self, due: &'static str) -> Result<Header, frame::Error> {
        self.reader.header()?.ok_or_else(|| {
            frame::Error::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the plugin closed the connection where {due} was due"),
            ))
        })
    }

    /// The reader, for payloads.
    pub fn reader(&mut self) -> &mut Reader<io::BufReader<UnixStream>> {
        &mut self.reader
    }

    /// Begins a file.
    pub fn file(&self, head: &FileHead) -> Result<(), frame::Error> {
        self.line.with(|state| {
            state.files += 1;
            state.writer.json(Kind::File, head)
        })
    }

    /// Ends the current file.
    pub fn file_end(&self) -> Result<(), frame::Error> {
        self.line.with(|state| state.writer.empty(Kind::FileEnd))
    }

    /// Sends a small file whole.
    pub fn small_file(&self, head: &FileHead, bytes: &[u8]) -> Result<(), frame::Error> {
        self.file(head)?;
        let mut offset = 0;
        for piece in bytes.chunks(frame::MAX_DATA as usize) {
            self.line.data(offset, piece)?;
            offset += piece.len() as u64;
        }
        self.file_end()
    }

    /// Asks what the Director knows of a path; `keep`: it stays in the restore tree, although this job
    /// does not send it.
    pub fn ask(&mut self, path: String, keep: bool) -> Result<Known, frame::Error> {
        self.line
            .with(|state| state.writer.json(Kind::Ask, &Ask { path, keep }))?;
        let header = self.next("KNOWN")?;
        if header.kind != Kind::Known {
            return Err(frame::Error::Unexpected {
                got: header.kind,
                due: "KNOWN",
            });
        }
        self.reader.json(header)
    }

    /// Answers a PART.
    pub fn go(&self, go: Go) -> Result<(), frame::Error> {
        self.line.with(|state| state.writer.json(Kind::Go, &go))
    }

    /// Files and bytes of DATA sent so far.
    pub fn sent(&self) -> End {
        let state = self
            .line
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        End {
            files: state.files,
            bytes: state.bytes,
        }
    }

    /// The last frame of a success.
    pub fn end(&self, end: End) -> Result<(), frame::Error> {
        self.line.with(|state| state.writer.json(Kind::End, &end))
    }

    /// The last frame of a failure.
    pub fn fail(&self, text: String) {
        eprintln!("failed: {text}");
        let _ = self
            .line
            .with(|state| state.writer.json(Kind::Fail, &Fail { text }));
    }
}

/// Shows plugin and systemd that we are there, looks whether the plugin is, and ends what takes too long.
fn attend(line: &Weak<Line>, plugin: &UnixStream) {
    let mut left = None;
    while let Some(line) = line.upgrade() {
        alive::notify("WATCHDOG=1");
        // A plugin that does not listen is not told: this thread may not wait.
        if ready(plugin, PollFlags::OUT) {
            line.tick();
        }
        if left.is_none() && ready(plugin, PollFlags::RDHUP) {
            line.gone.store(true, Ordering::Relaxed);
            left = Some(Instant::now());
        }
        if let Some(why) = line.overdue(left) {
            eprintln!("failed: {why}");
            // The thread that hangs may be the one that sends, and the plugin may not listen.
            if let Ok(mut state) = line.state.try_lock()
                && ready(plugin, PollFlags::OUT)
            {
                let _ = state.writer.json(Kind::Fail, &Fail { text: why });
            }
            std::process::exit(1);
        }
        drop(line);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Is the socket ready for this now?
fn ready(socket: &UnixStream, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(socket, what)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|_| fds.iter().any(|fd| fd.revents().intersects(what)))
}

/// Makes room for [`QUEUE`], past the system's limit where we may.
fn roomy(socket: &UnixStream) {
    use rustix::net::sockopt;
    if sockopt::set_socket_send_buffer_size_force(socket, QUEUE).is_err() {
        // Slower, not wrong.
        let _ = sockopt::set_socket_send_buffer_size(socket, QUEUE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> (Line, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let line = Line {
            state: Mutex::new(State {
                writer: Writer::new(near),
                last: Instant::now(),
                bytes: 0,
                files: 0,
            }),
            gone: AtomicBool::new(false),
            due: Mutex::default(),
        };
        (line, far)
    }

    #[test]
    fn a_step_is_overdue_only_while_it_lasts() {
        let (line, _far) = line();
        assert_eq!(line.overdue(None), None);
        let step = line.within(Duration::ZERO, "begin the backup of web01");
        std::thread::sleep(Duration::from_millis(1));
        let why = line.overdue(None).unwrap();
        assert!(why.starts_with("cannot begin the backup of web01"), "{why}");
        drop(step);
        assert_eq!(line.overdue(None), None);
        let _step = line.within(Duration::from_secs(60), "wait");
        assert_eq!(line.overdue(None), None);
    }

    #[test]
    fn a_job_may_clear_up_for_a_while_after_the_plugin_left() {
        let (line, far) = line();
        assert_eq!(line.overdue(Some(Instant::now())), None);
        let long_ago = Instant::now().checked_sub(LINGER + Duration::from_secs(1));
        assert!(line.overdue(long_ago).is_some());
        let (near, other) = UnixStream::pair().unwrap();
        assert!(!ready(&near, PollFlags::RDHUP));
        drop((far, other));
        assert!(ready(&near, PollFlags::RDHUP));
    }
}
