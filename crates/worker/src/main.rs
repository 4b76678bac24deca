//! `lab-backup-worker`: one backup or restore of one VM, and what goes with it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use worker::paths::Places;
use worker::{inventory, repair, root, serve};

/// Backs up and restores VMs on this hypervisor for the File Daemon plugin.
#[derive(Parser)]
#[command(name = "lab-backup-worker", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve the connection on standard input (started by lab-backup-worker.socket).
    Serve,
    /// Clear up what jobs that died left behind.
    Repair,
    /// Prove a raw image: compute its root and compare it with a manifest's.
    Root {
        /// The raw image.
        image: PathBuf,
        /// manifest.json of the backup.
        #[arg(long)]
        manifest: PathBuf,
        /// Target of the disk, such as vda; needed if the file name does not tell.
        #[arg(long)]
        disk: Option<String>,
    },
    /// Print what this hypervisor has.
    Inventory {
        /// As JSON, the only form there is.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("lab-backup-worker: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if all is well.
fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Serve => {
            let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
            serve::serve(UnixStream::from(socket), Places::default())
        }
        Verb::Repair => {
            let left = repair::all(&Places::default(), |text| println!("{text}"))
                .context("repair did not finish")?;
            Ok(left == 0)
        }
        Verb::Root {
            image,
            manifest,
            disk,
        } => {
            let proof = root::prove(&image, &manifest, disk.as_deref())?;
            if proof.found == proof.recorded {
                println!("{}: proven, root {}", proof.target, proof.found);
                Ok(true)
            } else {
                println!(
                    "{}: NOT the disk that was backed up: root {}, recorded {}",
                    proof.target, proof.found, proof.recorded
                );
                Ok(false)
            }
        }
        Verb::Inventory { .. } => {
            println!("{}", inventory::collect()?.to_json());
            Ok(true)
        }
    }
}
