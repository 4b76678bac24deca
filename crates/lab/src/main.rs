//! `lab-backup`: the engineers' verbs, and the arrow from `lab.toml` to a running stack.
//!
//! ```text
//! inventory -> init -> lab.toml
//!
//! lab.toml -> config -> model -> render -> desired -+
//!                                                   +-> plan -> apply
//!                       this host -> observe -> state+
//!
//! uninstall goes back, from what is there.
//! ```

mod applied;
mod apply;
mod bconsole;
mod cli;
mod config;
mod desired;
mod diff;
mod exit;
mod follow;
mod forecast;
mod host;
mod init;
mod inventory;
mod kit;
mod made;
#[cfg(test)]
mod memory;
mod model;
mod observe;
mod plan;
mod problem;
mod process;
mod render;
mod schedule;
mod show;
mod uninstall;
mod verb;

use std::process::ExitCode;

use exit::Exit;
use problem::Problems;

fn main() -> ExitCode {
    let result = cli::run();
    let exit = result.unwrap_or_else(|error| {
        eprintln!("lab-backup: {error:#}");
        if error.is::<Problems>() || error.is::<cli::Usage>() {
            Exit::Usage
        } else {
            Exit::Failed
        }
    });
    exit.into()
}
