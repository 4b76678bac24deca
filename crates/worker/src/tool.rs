//! Running the few external programs: argv only, no shell, no inherited environment.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

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
