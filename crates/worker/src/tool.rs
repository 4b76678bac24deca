//! Running the few external programs: argv only, no shell, no inherited environment.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A command from the system's directories with an empty environment.
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(format!("/usr/bin/{name}"));
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs to the end; a failure carries what the program said.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// Most bytes of output that [`run_within`] takes.
const MAX_OUTPUT: u64 = 8 << 20;

/// The same with a limit on time: a program that waits for a dead file system is given up.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let status = match wait(&mut child, Instant::now() + limit)? {
        Some(status) => status,
        None => {
            // One in uninterruptible sleep dies when it wakes up; nobody waits for it.
            child.kill()?;
            bail!("{name} did not end within {} s", limit.as_secs());
        }
    };
    let read = |thread: std::thread::JoinHandle<Vec<u8>>| {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("reading from {name} panicked"))
    };
    let (output, errors) = (read(output)?, read(errors)?);
    ensure!(
        status.success(),
        "{name} failed ({status}): {}",
        String::from_utf8_lossy(&errors).trim()
    );
    ensure!(
        (output.len() as u64) < MAX_OUTPUT,
        "{name} said more than {} MiB",
        MAX_OUTPUT >> 20
    );
    Ok(output)
}

/// Reads a pipe to its end, and keeps the beginning.
fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // What cannot be read is missing from the output, which is then no JSON.
            let _ = pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        kept
    })
}

fn wait(child: &mut Child, until: Instant) -> Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_its_time_and_no_more() {
        let limit = Duration::from_secs(20);
        assert_eq!(
            run_within(command("printf").arg("a b"), limit).unwrap(),
            b"a b"
        );
        let failed = run_within(command("ls").arg("/nowhere"), limit).unwrap_err();
        assert!(failed.to_string().contains("/nowhere"), "{failed}");
        let begun = Instant::now();
        let late = run_within(command("sleep").arg("60"), Duration::from_millis(100));
        assert!(late.is_err() && begun.elapsed() < limit);
        let flood = run_within(command("head").args(["-c", "9M", "/dev/zero"]), limit);
        assert!(flood.is_err());
    }
}
