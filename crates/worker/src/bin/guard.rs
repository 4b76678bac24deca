//! `lab-backup-guard`: the resident watchdog that thaws what a worker left frozen.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A thread that panics may be the one that thaws. The next guard does: leases outlive this one.
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "lab-backup-guard: {panic}");
        std::process::abort();
    }));
    match worker::guard::serve(&worker::paths::Places::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab-backup-guard: {e:#}");
            ExitCode::FAILURE
        }
    }
}
