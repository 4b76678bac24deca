//! Questions from the console: `.query client= plugin=lab-backup: parameter=…`.
//!
//! Bacula hands each answer to the console as it is, so an answer is a piece of text with its own
//! line ends; a failure is a line `error=…`, as the Director itself writes it.

use std::collections::VecDeque;
use std::ffi::CString;

use relay::frame::Kind;
use relay::message::End;

use crate::daemon::Daemon;
use crate::link::{Link, unexpected};
use crate::trouble::Trouble;

/// Longest answer in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Bacula's sockets refuse messages of a million bytes; longer lines travel in pieces.
const MAX_PIECE: usize = 60_000;

/// An answer, handed out piece by piece. Bacula keeps a pointer to the last one.
#[derive(Debug)]
pub(crate) struct Answer {
    pieces: VecDeque<CString>,
    last: CString,
    failed: bool,
}

/// What to tell the File Daemon.
pub(crate) enum Next<'a> {
    /// Here is a piece, ask again.
    More(&'a CString),
    /// Here is the last piece.
    Last(&'a CString),
    /// The failure was told.
    Failed,
}

impl Answer {
    /// Reads the worker's answer to a HELLO that asked.
    pub(crate) fn ask(link: &Link, daemon: &Daemon) -> Result<Self, Trouble> {
        let mut text = Vec::new();
        loop {
            let header = link.next(daemon)?;
            let mut reader = link.reader(daemon);
            match header.kind {
                Kind::Data if header.offset == text.len() as u64 => {
                    if text.len() + header.len as usize > MAX_ANSWER {
                        return Err(Trouble::protocol("its answer is over 16 MiB"));
                    }
                    text.extend(reader.bytes(header)?);
                }
                Kind::End => {
                    let end: End = reader.json(header)?;
                    if end.bytes != text.len() as u64 {
                        return Err(Trouble::protocol("its answer is not whole"));
                    }
                    return Ok(Self::new(pieces(&text), false));
                }
                _ => return Err(unexpected(header, "DATA or END")),
            }
        }
    }

    /// The answer that says what went wrong.
    pub(crate) fn failed(trouble: &Trouble) -> Self {
        let line = format!("error={}\n", trouble.line().replace(['\n', '\r'], " "));
        Self::new(pieces(line.as_bytes()), true)
    }

    /// The next piece.
    pub(crate) fn next(&mut self) -> Next<'_> {
        match self.pieces.pop_front() {
            Some(piece) => self.last = piece,
            None if self.failed => return Next::Failed,
            None => self.last = CString::default(),
        }
        match self.pieces.is_empty() && !self.failed {
            true => Next::Last(&self.last),
            false => Next::More(&self.last),
        }
    }

    fn new(pieces: VecDeque<CString>, failed: bool) -> Self {
        Self {
            pieces,
            last: CString::default(),
            failed,
        }
    }
}

/// Cuts text after its line ends and into lengths that Bacula can carry.
fn pieces(text: &[u8]) -> VecDeque<CString> {
    let clean: Vec<u8> = text.iter().copied().filter(|byte| *byte != 0).collect();
    clean
        .split_inclusive(|byte| *byte == b'\n')
        .flat_map(|line| line.chunks(MAX_PIECE))
        .filter_map(|piece| CString::new(piece).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_line_by_line_and_whole() {
        let long = "x".repeat(MAX_PIECE + 1);
        let text = format!("a\n\0b\n{long}");
        let pieces: Vec<_> = pieces(text.as_bytes()).into();
        let lengths: Vec<_> = pieces.iter().map(|piece| piece.count_bytes()).collect();
        assert_eq!(lengths, [2, 2, MAX_PIECE, 1]);
    }

    #[test]
    fn an_empty_answer_is_one_empty_piece() {
        let mut answer = Answer::new(VecDeque::new(), false);
        assert!(matches!(answer.next(), Next::Last(piece) if piece.is_empty()));
    }

    #[test]
    fn a_failure_is_told_before_it_is_reported() {
        let mut answer = Answer::failed(&Trouble::Ended);
        let Next::More(line) = answer.next() else {
            panic!("the line comes first");
        };
        assert_eq!(
            line.to_str().unwrap(),
            "error=the worker ended without END\n"
        );
        assert!(matches!(answer.next(), Next::Failed));
    }
}
