//! Writes a raw file into an NBD export and flushes: what the writer of a restore costs.
//!
//! `write_file FILE SOCKET [--in-flight N] [--record BYTES]`; records that are all zero
//! are left out, as on a target that is new.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut names, mut in_flight, mut record) = (Vec::new(), 8, 256 << 10);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().unwrap_or_default().parse::<usize>();
        match arg.as_str() {
            "--in-flight" => in_flight = number()?,
            "--record" => record = number()?.max(4096),
            _ => names.push(PathBuf::from(arg)),
        }
    }
    let [file, socket] = &names[..] else {
        return Err("usage: write_file FILE SOCKET".into());
    };
    let start = Instant::now();
    let file = File::open(file)?;
    let size = file.metadata()?.len();
    let mut client = Client::connect(socket, "", &[], Duration::from_secs(10))?;
    let mut writer = client.writer(in_flight);
    let (mut buffer, zeros) = (vec![0; record], vec![0; record]);
    let (mut at, mut written) = (0, 0);
    while at < size {
        let len = (record as u64).min(size - at) as usize;
        let bytes = &mut buffer[..len];
        file.read_exact_at(bytes, at)?;
        if bytes != &zeros[..len] {
            writer.write(at, bytes)?;
            written += len as u64;
        }
        at += len as u64;
    }
    writer.flush()?;
    drop(writer);
    client.close()?;
    let took = start.elapsed();
    println!(
        "{} MiB written in {:.1} ms, {:.0} MiB/s",
        written >> 20,
        took.as_secs_f64() * 1e3,
        written as f64 / f64::from(1 << 20) / took.as_secs_f64(),
    );
    Ok(())
}
