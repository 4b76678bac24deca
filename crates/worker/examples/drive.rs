//! Drives a worker without Bacula: it plays the plugin over the worker's socket.
//!
//! ```text
//! drive backup VM null            reads everything, keeps nothing (for measuring)
//! drive backup VM DIR             keeps the files in DIR
//! drive restore VM DIR WHERE      gives the files of DIR back
//! drive query WHAT
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use relay::frame::{Kind, MAX_DATA, Reader, Writer};
use relay::message::{End, Fail, FileHead, FileKind, Go, Hello, Level, Log, Op, PartHead};

type Wire = (Reader<UnixStream>, Writer<UnixStream>);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["backup", vm, out] => backup(vm, (*out != "null").then_some(Path::new(out))),
        ["restore", vm, dir, target] => restore(vm, Path::new(dir), target),
        ["query", what] => query(what),
        _ => bail!("usage: drive backup VM null|DIR | restore VM DIR WHERE | query WHAT"),
    }
}

fn connect(op: Op, line: &str, target: Option<&str>) -> Result<Wire> {
    let path = std::env::var_os("LAB_BACKUP_WORKER_SOCKET")
        .map_or_else(|| PathBuf::from(relay::WORKER_SOCKET), PathBuf::from);
    let socket = UnixStream::connect(&path)
        .with_context(|| format!("cannot connect to {}", path.display()))?;
    let now = jiff::Zoned::now().strftime("%Y-%m-%d_%H.%M.%S").to_string();
    let hello = Hello {
        version: relay::VERSION,
        op,
        job_id: std::process::id(),
        // As the Director names the jobs of a VM.
        job: format!(
            "{}.{now}_{:02}",
            line.trim().trim_start_matches("vm="),
            std::process::id() % 100
        ),
        level: Some(Level::Full),
        prev_job: String::new(),
        line: line.into(),
        accurate: true,
        where_: target.map(str::to_owned),
        regex_where: None,
    };
    let mut writer = Writer::new(socket.try_clone()?);
    writer.json(Kind::Hello, &hello)?;
    Ok((Reader::new(socket), writer))
}

/// The next frame that is not small talk.
fn next(reader: &mut Reader<UnixStream>) -> Result<relay::frame::Header> {
    loop {
        let header = reader.header()?.context("the worker left without END")?;
        match header.kind {
            Kind::Alive => {}
            Kind::Log => {
                let log: Log = reader.json(header)?;
                println!("{:?}: {}", log.class, log.text);
            }
            Kind::Fail => bail!("worker: {}", reader.json::<Fail>(header)?.text),
            _ => return Ok(header),
        }
    }
}

fn backup(vm: &str, out: Option<&Path>) -> Result<()> {
    let start = Instant::now();
    let (mut reader, _writer) = connect(Op::Backup, &format!(" vm={vm}"), None)?;
    let mut buffer = Vec::new();
    let mut file: Option<File> = None;
    let mut total = 0;
    let mut first = None;
    loop {
        let header = next(&mut reader)?;
        match header.kind {
            Kind::File => {
                let head: FileHead = reader.json(header)?;
                let name = head.path.rsplit('/').next().unwrap_or_default();
                file = match out {
                    Some(dir) => {
                        let file = File::create(dir.join(name))?;
                        file.set_len(head.size)?;
                        std::fs::write(
                            dir.join(format!("{name}.head")),
                            serde_json::to_vec(&head)?,
                        )?;
                        Some(file)
                    }
                    None => None,
                };
            }
            Kind::Data => {
                first.get_or_insert_with(Instant::now);
                buffer.resize(header.len as usize, 0);
                reader.payload(&mut buffer)?;
                total += buffer.len();
                if let Some(file) = &file {
                    file.write_all_at(&buffer, header.offset)?;
                }
            }
            Kind::FileEnd => file = None,
            Kind::End => {
                let end: End = reader.json(header)?;
                let seconds = first.unwrap_or(start).elapsed().as_secs_f64();
                println!(
                    "END files={} bytes={} seconds={:.3} stream_seconds={seconds:.3} mib_per_s={:.0}",
                    end.files,
                    end.bytes,
                    start.elapsed().as_secs_f64(),
                    total as f64 / seconds / f64::from(1 << 20)
                );
                return Ok(());
            }
            other => bail!("unexpected {other:?}"),
        }
    }
}

fn restore(vm: &str, dir: &Path, target: &str) -> Result<()> {
    let (mut reader, mut writer) = connect(Op::Restore, &format!(" vm={vm}"), Some(target))?;
    writer.bytes(Kind::Object, &std::fs::read(dir.join("manifest.json"))?)?;
    let mut heads = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "head") {
            heads.insert(
                path.with_extension(""),
                serde_json::from_slice(&std::fs::read(&path)?)?,
            );
        }
    }
    for (path, head) in heads {
        let head: FileHead = head;
        if head.kind == FileKind::Object {
            continue;
        }
        let part = PartHead {
            path: format!("{target}{}", head.path),
            kind: head.kind,
            size: head.size,
            mtime: head.mtime,
            mode: head.mode,
            part: head.part,
            delta_seq: 0,
        };
        writer.json(Kind::Part, &part)?;
        let header = next(&mut reader)?;
        if header.kind != Kind::Go || reader.json::<Go>(header)? != Go::Write {
            continue;
        }
        send(&mut writer, &File::open(path)?, head.size)?;
        writer.empty(Kind::FileEnd)?;
    }
    writer.empty(Kind::Finish)?;
    let header = next(&mut reader)?;
    println!("{:?}", header.kind);
    Ok(())
}

fn send(writer: &mut Writer<UnixStream>, file: &File, size: u64) -> Result<()> {
    let mut buffer = vec![0; MAX_DATA as usize];
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(MAX_DATA.into()) as usize;
        let bytes = buffer.get_mut(..len).context("a buffer is too short")?;
        file.read_exact_at(bytes, offset)?;
        if bytes.iter().any(|b| *b != 0) {
            writer.data(offset, bytes)?;
        }
        offset += len as u64;
    }
    Ok(())
}

fn query(what: &str) -> Result<()> {
    let (mut reader, _writer) = connect(Op::Query, what, None)?;
    loop {
        let header = next(&mut reader)?;
        if header.kind == Kind::End {
            return Ok(());
        }
        print!("{}", String::from_utf8_lossy(&reader.bytes(header)?));
    }
}
