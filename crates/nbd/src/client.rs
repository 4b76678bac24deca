//! A connection to one export: what it is, and single requests.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::conn::{Conn, Shared, dial};
use crate::error::{Error, ServerError, Step};
use crate::handshake::{Agreed, BlockSizes, Context, list, negotiate};
use crate::wire::{self, Chunk, Command, Reply, Request};

/// How long a server may be silent before a request fails, unless
/// [`Client::set_timeout`] says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// A connection to one export of an NBD server.
///
/// Methods block. One thread uses it; another may end it through [`Client::shutdown_handle`].
/// Dropping it closes the socket at once; [`Client::close`] says goodbye first.
#[derive(Debug)]
pub struct Client {
    pub(crate) conn: Conn,
    pub(crate) agreed: Agreed,
    pub(crate) next_cookie: u64,
}

/// Ends a [`Client`] from another thread, or after the client is gone without effect.
#[derive(Clone, Debug)]
pub struct ShutdownHandle {
    shared: Arc<Shared>,
}

impl ShutdownHandle {
    /// Shuts the socket down. A blocked call of the client returns [`Error::Stopped`], and so
    /// does every later one. The socket itself closes when client and handles are dropped.
    pub fn shutdown(&self) {
        self.shared.stop();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Handles keep the socket open, and a server waits for a client with replies to come.
        self.conn.shared.stop();
    }
}

impl Client {
    /// Connects to the socket `path` and selects `export` (`""` is the server's default).
    ///
    /// `contexts` are asked for together; those that the server lacks are left out of
    /// [`Client::contexts`] without an error. Every context that was granted makes every
    /// [`Client::extents`] dearer, so ask for one per connection if both are walked.
    /// Connecting and the handshake take at most `deadline` together.
    pub fn connect(
        path: &Path,
        export: &str,
        contexts: &[&str],
        deadline: Duration,
    ) -> Result<Self, Error> {
        let end = Instant::now() + deadline;
        let socket = dial(path, deadline)?;
        Self::handshake(socket, export, contexts, end)
    }

    /// Like [`Client::connect`] on a socket that is connected already.
    pub fn from_socket(
        socket: UnixStream,
        export: &str,
        contexts: &[&str],
        deadline: Duration,
    ) -> Result<Self, Error> {
        Self::handshake(socket, export, contexts, Instant::now() + deadline)
    }

    fn handshake(
        socket: UnixStream,
        export: &str,
        contexts: &[&str],
        end: Instant,
    ) -> Result<Self, Error> {
        let mut conn = Conn::new(socket, export, end);
        let agreed = negotiate(&mut conn, contexts)?;
        conn.set_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(Self {
            conn,
            agreed,
            next_cookie: 1,
        })
    }

    /// Name of the export.
    pub fn export(&self) -> &str {
        &self.conn.export
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// Does the server refuse to write?
    pub fn read_only(&self) -> bool {
        self.offers(wire::FLAG_READ_ONLY)
    }

    /// May several connections be used together, a flush on one covering all?
    pub fn can_multi_conn(&self) -> bool {
        self.offers(wire::FLAG_CAN_MULTI_CONN)
    }

    /// The export's transmission flags as the server sent them.
    pub fn flags(&self) -> u16 {
        self.agreed.flags
    }

    /// Request sizes that suit the server.
    pub fn block_sizes(&self) -> BlockSizes {
        self.agreed.blocks
    }

    /// The contexts that were granted.
    pub fn contexts(&self) -> &[Context] {
        &self.agreed.contexts
    }

    /// Was this context granted?
    pub fn has_context(&self, name: &str) -> bool {
        self.agreed.contexts.iter().any(|c| c.name == name)
    }

    /// How long the server may be silent while an answer is due; `None` waits for ever.
    /// Ten minutes unless set. Running out makes the connection unusable.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.conn.set_timeout(timeout)
    }

    /// A handle that ends this connection from another thread.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle {
            shared: Arc::clone(&self.conn.shared),
        }
    }

    /// Says goodbye and closes the connection. Nothing is flushed.
    pub fn close(mut self) -> Result<(), Error> {
        self.conn.check()?;
        let request = self.request(Command::Disconnect, 0, 0, 0);
        self.conn.send(&request.encode(), &[])
    }

    pub(crate) fn offers(&self, flag: u16) -> bool {
        self.agreed.flags & flag != 0
    }

    /// A request with the next free cookie, and blame for what goes wrong from here on.
    pub(crate) fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
    ) -> Request {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.conn.step = Step::Request { command, offset };
        Request {
            flags,
            command,
            cookie,
            offset,
            len,
        }
    }

    /// Checks that a range lies on the disk.
    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        match offset.checked_add(len) {
            Some(end) if end <= self.agreed.size => Ok(()),
            _ => Err(self.bad_range(offset, len, "reach beyond the end of the disk")),
        }
    }

    pub(crate) fn bad_range(&self, offset: u64, len: u64, reason: &'static str) -> Error {
        Error::BadRange {
            export: self.conn.export.clone(),
            offset,
            len,
            reason,
        }
    }

    /// Reads the head of the next reply.
    pub(crate) fn recv_reply(&mut self) -> Result<Reply, Error> {
        let mut head = [0; wire::CHUNK_LEN];
        let have = self.conn.recv_some(&mut head, wire::SIMPLE_LEN)?;
        let due = head.first_chunk().and_then(|magic| wire::reply_len(*magic));
        match (due, head.get_mut(have..)) {
            // A simple reply is shorter than what was read: the rest belongs to the next one.
            (Some(due), _) if due < have => self.conn.unread(head.get(due..have)),
            (Some(wire::CHUNK_LEN), Some(rest)) => self.conn.recv(rest)?,
            (Some(_), _) => {}
            (None, _) => return Err(self.conn.protocol("a reply is garbled")),
        }
        wire::decode_reply(&head).ok_or_else(|| self.conn.protocol("a reply is garbled"))
    }

    /// Reads the payload of an error chunk.
    pub(crate) fn recv_error(&mut self, len: u32) -> Result<(ServerError, String), Error> {
        if len > wire::MAX_ERROR {
            return Err(self.conn.protocol("an error is too long"));
        }
        let mut payload = vec![0; len as usize];
        self.conn.recv(&mut payload)?;
        match wire::decode_error(&payload) {
            Some((0, _)) | None => Err(self.conn.protocol("an error does not parse")),
            Some((errno, text)) => Ok((ServerError::from_errno(errno), text)),
        }
    }

    /// Reads one reply, or one chunk of it, to a request that is answered without bytes.
    pub(crate) fn recv_ack(&mut self) -> Result<Ack, Error> {
        match self.recv_reply()? {
            Reply::Simple { error, cookie } => Ok(Ack {
                cookie,
                done: true,
                error: (error != 0).then(|| (ServerError::from_errno(error), String::new())),
            }),
            Reply::Chunk {
                done,
                kind: Chunk::Error,
                cookie,
                len,
            } => Ok(Ack {
                cookie,
                done,
                error: Some(self.recv_error(len)?),
            }),
            Reply::Chunk {
                done: true,
                kind: Chunk::None,
                cookie,
                len: 0,
            } => Ok(Ack {
                cookie,
                done: true,
                error: None,
            }),
            Reply::Chunk { .. } => Err(self.conn.protocol("a reply does not fit its request")),
        }
    }
}

/// A reply without bytes.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) cookie: u64,
    pub(crate) done: bool,
    pub(crate) error: Option<(ServerError, String)>,
}

/// Lists the contexts of an export that match `queries`, such as `qemu:` for every bitmap.
pub fn list_contexts(
    path: &Path,
    export: &str,
    queries: &[&str],
    deadline: Duration,
) -> Result<Vec<String>, Error> {
    let end = Instant::now() + deadline;
    let socket = dial(path, deadline)?;
    list(&mut Conn::new(socket, export, end), queries)
}
