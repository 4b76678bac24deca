//! Runs a program to its end, with its input, its output and a deadline.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Most that is kept of each output stream; the rest is read and dropped.
const MAX_OUTPUT: u64 = 64 << 20;

/// What a program is fed.
#[derive(Debug)]
pub(crate) enum Input {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file.
    File(File),
}

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// Exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained about.
    pub(crate) stderr: String,
}

impl Output {
    /// Did it exit with 0?
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs `command`; a program that outlives `limit` is killed and reported as timed out.
pub(crate) fn run(command: &mut Command, input: Input, limit: Duration) -> io::Result<Output> {
    let stdin = match &input {
        Input::None => Stdio::null(),
        Input::Bytes(_) => Stdio::piped(),
        Input::File(file) => file.try_clone()?.into(),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let writer = match (input, child.stdin.take()) {
        (Input::Bytes(bytes), Some(mut pipe)) => Some(thread::spawn(move || {
            // A program that ends before it has read everything has said why.
            let _ = pipe.write_all(&bytes);
        })),
        _ => None,
    };
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, limit)?;
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    Ok(Output {
        code: status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = (&mut pipe).take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<i32>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            let text = format!("gave no result within {} s", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn input_output_and_code_come_through() {
        let input = Input::Bytes(vec![b'x'; 1 << 20]);
        let run = run(
            &mut sh("wc -c; echo oops >&2; exit 7"),
            input,
            Duration::from_secs(20),
        );
        let output = run.unwrap();
        assert_eq!(output.code, Some(7));
        assert_eq!(output.stdout.trim(), "1048576");
        assert_eq!(output.stderr, "oops\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let start = Instant::now();
        let error = run(
            &mut sh("exec sleep 60"),
            Input::None,
            Duration::from_millis(200),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
