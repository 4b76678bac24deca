//! Measures maps of a 10 TiB disk with a million blocks spread over it: the worst case, as each of
//! them needs a page of its own.
//!
//! `cargo run --release -p blockmap --example large DIRECTORY` (needs 8 GiB there)

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use blockmap::{BLOCK, Header, Key, Map, MapWriter, blocks_of, root_of};

const SIZE: u64 = 10 << 40;
const TOUCHED: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("which directory?")?;
    let dir = PathBuf::from(dir);
    let (first, second) = (dir.join("large-1.map"), dir.join("large-2.map"));
    let key = Key::random()?;
    let header = |job: &str| Header {
        job: job.into(),
        full_read: job.into(),
        trusting: 0,
        part_id: 1,
        delta_seq: 0,
        identity: "measured".into(),
        size: SIZE,
    };
    let block = |i: u64| i * (blocks_of(SIZE) / TOUCHED) + i % 511;

    println!("{:>10}  {:>10}", "wall", "processor");
    let mut writer = MapWriter::create(&first, &key, header("first"))?;
    timed("set 10^6 blocks, ascending", || {
        (0..TOUCHED).try_for_each(|i| writer.set(block(i), &[i + 1]))
    })?;
    timed("root", || writer.root().map(drop))?;
    timed("seal", || writer.seal().map(drop))?;

    let mut base = Map::open(&first, &key)?;
    let mut out = [0; 1];
    timed("read 10^6 blocks, ascending", || {
        (0..TOUCHED).try_for_each(|i| base.read(block(i), &mut out))
    })?;
    let mut clone = None;
    timed("clone", || {
        clone = Some(MapWriter::clone_from(&base, &second, header("second"))?);
        Ok(())
    })?;
    let mut writer = clone.ok_or("no clone")?;
    timed("set 10^5 of them, in no order", || {
        (0..100_000).try_for_each(|i| writer.set(block(i * 7_919 % TOUCHED), &[i + 7]))
    })?;
    timed("seal", || writer.seal().map(drop))?;
    let mut next = Map::open(&second, &key)?;
    let mut blocks = 0;
    timed("diff of the two", || {
        let mut from = 0;
        while let Some(range) = base.next_difference(&mut next, from)? {
            blocks += range.end - range.start;
            from = range.end;
        }
        Ok(())
    })?;
    println!("{blocks} blocks differ");
    timed("verify", || next.verify())?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap_or_default()
    );
    std::fs::remove_file(&first)?;
    std::fs::remove_file(&second)?;

    let path = dir.join("large.image");
    let image = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let chunk: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    (0..2048).try_for_each(|i| image.write_all_at(&chunk, i << 20))?;
    image.set_len(SIZE)?;
    for threads in [1, 2] {
        let threads = NonZeroUsize::new(threads).ok_or("no thread")?;
        let what = format!("root of a 10 TiB image with 2 GiB of data, threads: {threads}");
        timed(&what, || root_of(&image, SIZE, &key, threads).map(drop))?;
    }
    std::fs::remove_file(&path)?;
    println!("a block is {BLOCK} bytes");
    Ok(())
}

fn timed(
    what: &str,
    work: impl FnOnce() -> Result<(), blockmap::Error>,
) -> Result<(), blockmap::Error> {
    let (start, busy) = (Instant::now(), cpu());
    work()?;
    let (wall, busy) = (start.elapsed().as_secs_f64(), cpu() - busy);
    println!("{wall:>8.2} s  {busy:>8.2} s  {what}");
    Ok(())
}

/// Processor time of this thread so far, in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split(' ')
        .next()
        .and_then(|nanos| nanos.parse::<u64>().ok());
    nanos.unwrap_or(0) as f64 / 1e9
}
