//! Reads a disk from an NBD socket and throws it away: what the reader alone costs.
//!
//! `read_null SOCKET [EXPORT] [--request BYTES] [--in-flight N] [--behind N] [--holes] [--blind]
//! [--connections N]`; `--blind` reads everything without asking what is allocated.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd::{BASE_ALLOCATION, Client, Error, Extent, Kind, Piece, ReadOptions, extent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = ReadOptions::default();
    let (mut names, mut behind, mut blind, mut connections) = (Vec::new(), 4, false, 1);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().unwrap_or_default().parse::<usize>();
        match arg.as_str() {
            "--request" => options.request = u32::try_from(number()?)?,
            "--in-flight" => options.in_flight = number()?,
            "--behind" => behind = number()?,
            "--connections" => connections = number()?.max(1),
            "--holes" => options.holes = true,
            "--blind" => blind = true,
            _ => names.push(arg),
        }
    }
    let path = PathBuf::from(names.first().ok_or("usage: read_null SOCKET [EXPORT]")?);
    let export = names.get(1).cloned().unwrap_or_default();
    let start = Instant::now();
    let connect = || Client::connect(&path, &export, &[BASE_ALLOCATION], Duration::from_secs(10));
    let mut planner = connect()?;
    let size = planner.size();
    let plan: Vec<Extent> = if blind {
        vec![Extent::data(0, size)]
    } else {
        let base = planner.extents(BASE_ALLOCATION, 0, size)?;
        extent::allocation(base).collect::<Result<_, _>>()?
    };
    let planned = start.elapsed();
    // Shares of equal size, in order: what a second connection could bring.
    let share = size.div_ceil(connections as u64).next_multiple_of(1 << 20);
    let (mut data, mut zero) = (0, 0);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..connections as u64 {
            let (from, to) = (number * share, ((number + 1) * share).min(size));
            let mut client = connect()?;
            let plan = &plan;
            threads.push(scope.spawn(move || {
                let (mut data, mut zero) = (0, 0);
                let cut = plan.iter().filter_map(|extent| {
                    let (start, end) = (extent.offset.max(from), extent.end().min(to));
                    let (offset, len) = (start, end.checked_sub(start)?);
                    let kind = if len == 0 { return None } else { extent.kind };
                    Some(Ok::<_, Error>(Extent { offset, len, kind }))
                });
                client.read(cut, &options, &options.pool(behind), |piece| {
                    match piece {
                        Piece::Data { bytes, .. } => data += bytes.len() as u64,
                        Piece::Zero { len, .. } => zero += len,
                    }
                    Ok(())
                })?;
                Ok::<_, Error>((data, zero))
            }));
        }
        for thread in threads {
            let (d, z) = thread.join().map_err(|_| "a thread panicked")??;
            data += d;
            zero += z;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    let took = start.elapsed();
    let wanted = plan.iter().filter(|e| e.kind == Kind::Data).count();
    println!(
        "{} MiB read, {} MiB zero, {wanted} data extents, plan {:.1} ms, all {:.1} ms, {:.0} MiB/s",
        data >> 20,
        zero >> 20,
        planned.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e3,
        data as f64 / f64::from(1 << 20) / took.as_secs_f64(),
    );
    Ok(())
}
