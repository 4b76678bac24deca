//! Lines of JSON over a Unix socket, read with a time limit that loses nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line either side accepts, in bytes: a watch names every disk.
const MAX_LINE: usize = 64 << 10;
/// How long a line may take to be sent.
const SEND: Duration = Duration::from_secs(5);

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Lines {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(SEND))?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
        })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// The next line, or nothing if none came within `limit`. What came of one is kept.
    pub(super) fn next<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<Option<T>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ErrorKind::InvalidData.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self
                    .buffer
                    .extend_from_slice(piece.get(..n).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The next line, which must come within `limit`.
    pub(super) fn expect<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<T> {
        self.next(limit)?
            .ok_or_else(|| io::Error::new(ErrorKind::TimedOut, "no answer in time"))
    }

    pub(super) fn say<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.socket.write_all(&line)
    }

    /// Ends both directions, also for a thread that reads at this moment.
    pub(super) fn hang_up(socket: &UnixStream) {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_in_pieces_is_not_lost_by_a_time_limit() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(near).unwrap();
        let soon = Duration::from_millis(20);
        far.write_all(b"{\"a\"").unwrap();
        assert_eq!(lines.next::<serde_json::Value>(soon).unwrap(), None);
        far.write_all(b":1}\n[2]\n").unwrap();
        assert_eq!(
            lines.next::<serde_json::Value>(soon).unwrap().unwrap()["a"],
            1
        );
        let second: Vec<u8> = lines.expect(soon).unwrap();
        assert_eq!(second, [2]);
        drop(far);
        assert!(lines.next::<Vec<u8>>(soon).is_err());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(near).unwrap();
        let writer = std::thread::spawn(move || {
            let _ = far.write_all(&vec![b'x'; 2 * MAX_LINE]);
        });
        let error = lines
            .next::<serde_json::Value>(Duration::from_secs(5))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(lines);
        writer.join().unwrap();
    }
}
