//! Measures the hot path: fingerprints of 4 KiB blocks, one core, GB/s (10^9 bytes).
//!
//! `cargo run --release -p blockmap --example throughput`

use std::hint::black_box;
use std::time::{Duration, Instant};

use blockmap::{BLOCK, Key, fingerprints, runs};

fn main() -> Result<(), blockmap::Error> {
    let key = Key::random()?;
    println!(
        "{:>8}  {:>8}  {:>8}  {:>8}  {:>8}",
        "KiB", "random", "zero", "1/8 data", "runs"
    );
    for kib in [64, 256, 512, 1024, 16 << 10] {
        let random = noise(kib << 10);
        let zero = vec![0; kib << 10];
        let mut mixed = zero.clone();
        for (to, from) in mixed.chunks_mut(BLOCK).zip(random.chunks(BLOCK)).step_by(8) {
            to.copy_from_slice(from);
        }
        let mut out = Vec::new();
        let mut hash = |buffer: &[u8]| {
            rate(buffer.len(), || {
                fingerprints(&key, black_box(buffer), black_box(&mut out))
            })
        };
        let (random_rate, zero_rate, mixed_rate) = (hash(&random), hash(&zero), hash(&mixed));
        let mut now = Vec::new();
        fingerprints(&key, &random, &mut now);
        let base: Vec<u64> = now
            .iter()
            .enumerate()
            .map(|(i, f)| f ^ u64::from(i % 3 == 0))
            .collect();
        let runs_rate = rate(random.len(), || {
            black_box(runs(0, random.len(), black_box(&now), Some(&base)).count());
        });
        println!(
            "{kib:>8}  {random_rate:>8.2}  {zero_rate:>8.1}  {mixed_rate:>8.1}  {runs_rate:>8.0}"
        );
    }
    Ok(())
}

/// The best of five rounds of 0.2 s.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let round = |work: &mut dyn FnMut()| {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(200) {
            work();
            done += bytes;
        }
        done as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| round(&mut work)).fold(0.0, f64::max)
}

/// Bytes without a pattern, the same on every run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}
