//! Runs sequences, a few at a time, and says how to repeat one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};

use crate::report::Tally;

const REGRESSIONS: &str = include_str!("regressions.txt");

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// A directory for maps: an fsync per job costs more than all the rest of it.
fn room() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.into(),
        false => std::env::temp_dir(),
    }
}

/// Runs `count` sequences of `kind`, and its regressions before them.
pub(crate) fn sequences(
    kind: &str,
    count: u64,
    one: fn(u64, &Path, &mut Vec<String>) -> Result<Tally>,
) {
    let asked = number("EXACTNESS_SEED");
    let first = asked.unwrap_or(1);
    let lines = REGRESSIONS.lines().filter_map(|line| {
        let line = line.split('#').next()?;
        line.trim().strip_prefix(kind)?.trim().parse().ok()
    });
    // A seed that is asked for is to be repeated alone.
    let seeds: Vec<u64> = lines
        .filter(|_| asked.is_none())
        .chain(first..first + count)
        .collect();
    let room = tempfile::Builder::new()
        .prefix("exactness")
        .tempdir_in(room())
        .unwrap();
    let (next, total) = (Mutex::new(seeds.into_iter()), Mutex::new(Tally::default()));
    let failed = AtomicBool::new(false);
    let hands = number("EXACTNESS_THREADS").unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
    });
    std::thread::scope(|scope| {
        for _ in 0..hands {
            scope.spawn(|| {
                loop {
                    let seed = next.lock().unwrap().next();
                    let Some(seed) = seed.filter(|_| !failed.load(Ordering::Relaxed)) else {
                        return;
                    };
                    let mut log = Vec::new();
                    let ran = catch_unwind(AssertUnwindSafe(|| one(seed, room.path(), &mut log)));
                    match ran.unwrap_or_else(|e| Err(anyhow!("panic: {}", said(&*e)))) {
                        Ok(tally) => total.lock().unwrap().join(&tally),
                        Err(e) => {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!("{kind} {seed}: {}", log.join("\n    "));
                            eprintln!("{kind} {seed} FAILED: {e:#}");
                            eprintln!(
                                "to repeat: EXACTNESS_SEED={seed} EXACTNESS_{}SEQUENCES=1 cargo test -p \
                                 worker --test exactness {kind}",
                                if kind == "qemu" { "QEMU_" } else { "" }
                            );
                        }
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner(), "{kind}: a sequence failed, see above");
    total.into_inner().unwrap().print(kind);
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("?")
}
