//! The reader alone: reads an NBD export as a backup does, fingerprints it, keeps nothing.
//!
//! ```text
//! read_null SOCKET EXPORT    prints the seconds it took
//! ```

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use blockmap::{Header, Key};
use worker::backup::{Export, Reading, Step};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().context("usage: read_null SOCKET EXPORT")?;
    let export = args.next().context("usage: read_null SOCKET EXPORT")?;
    let start = Instant::now();
    let mut disk = Export::connect(Path::new(&socket), &export, None, |_| {})?;
    let dir = tempfile::tempdir()?;
    let key = Key::random()?;
    let header = Header {
        job: "read_null".into(),
        full_read: "read_null".into(),
        trusting: 0,
        part_id: 1,
        delta_seq: 0,
        identity: export,
        size: disk.size(),
    };
    let mut bytes = 0;
    let mut reading = Reading {
        export: &mut disk,
        key: &key,
        path: &dir.path().join("map"),
        wanted: &|| true,
        cluster: 64 << 10,
        limit: None,
    };
    let (mut map, _) = reading.full(header, None, |step| {
        if let Step::Data { bytes: read, .. } = step {
            bytes += read.len();
        }
        Ok(())
    })?;
    disk.close()?;
    let root = map.root()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.3}");
    eprintln!(
        "{bytes} bytes, {} blocks not zero, root {root}",
        map.nonzero_blocks()
    );
    Ok(())
}
