//! `lab-backup-guard`: the resident watchdog that thaws what a worker left frozen.

use std::process::ExitCode;

fn main() -> ExitCode {
    match worker::guard::serve(&worker::paths::Places::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab-backup-guard: {e:#}");
            ExitCode::FAILURE
        }
    }
}
