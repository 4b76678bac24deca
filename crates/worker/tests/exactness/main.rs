//! Exactness of the increment pipeline: whatever happens to a disk between jobs, what comes back is what was
//! there, compared with a copy that no code of ours made.
//!
//! ```text
//! guest, hazards -> disk -> NBD -> worker's pipeline -> parts -> Director's choice -> plain applier
//!                     |                                                                    |
//!                     +------------------- copy at the instant -------- compared ----------+
//! ```
//!
//! A sequence follows from its seed alone. `EXACTNESS_SEED` is the seed of the first one, the others
//! follow it; `EXACTNESS_SEQUENCES` says how many. Seeds that once failed are in `regressions.txt` and run
//! first.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod chain;
mod director;
mod disk;
mod examine;
mod hazard;
mod image;
mod job;
mod model;
mod qemu;
mod report;
mod rng;
mod run;
#[path = "../serve/mod.rs"]
mod serve;

/// What a debug build does in some 20 s.
const SEQUENCES: u64 = 60;
/// Likewise, in some 30 s.
const QEMU_SEQUENCES: u64 = 20;

#[test]
fn what_is_restored_of_a_modelled_disk_is_what_was_there() {
    let count = run::number("EXACTNESS_SEQUENCES").unwrap_or(SEQUENCES);
    run::sequences("model", count, model::sequence);
}

#[test]
fn what_is_restored_of_a_qemu_image_is_what_was_there() {
    let count = run::number("EXACTNESS_QEMU_SEQUENCES").unwrap_or(QEMU_SEQUENCES);
    run::sequences("qemu", count, qemu::sequence);
}
