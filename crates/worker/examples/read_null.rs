//! The reader alone: reads an NBD export as a backup does, fingerprints it, keeps nothing.
//!
//! ```text
//! read_null SOCKET EXPORT    prints the seconds it took
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blockmap::{Header, Key, MapWriter};
use nbd::{BASE_ALLOCATION, Client};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().context("usage: read_null SOCKET EXPORT")?;
    let export = args.next().context("usage: read_null SOCKET EXPORT")?;
    let limit = Duration::from_secs(10);
    let start = Instant::now();
    let layout = Client::connect(Path::new(&socket), &export, &[BASE_ALLOCATION], limit)?;
    let data = Client::connect(Path::new(&socket), &export, &[], limit)?;
    let dir = tempfile::tempdir()?;
    let key = Key::random()?;
    let header = Header {
        job: "read_null".into(),
        full_read: "read_null".into(),
        part_id: 1,
        delta_seq: 0,
        identity: export,
        size: data.size(),
    };
    let mut map = MapWriter::create(&dir.path().join("map"), &key, header)?;
    let mut bytes = 0;
    worker::backup::scan(
        layout,
        data,
        &key,
        &mut map,
        || true,
        |block| {
            bytes += block.bytes.len();
            Ok(())
        },
    )?;
    let root = map.root()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.3}");
    eprintln!(
        "{bytes} bytes, {} blocks not zero, root {root}",
        map.nonzero_blocks()
    );
    Ok(())
}
