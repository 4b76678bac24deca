//! A worker that does what a script says, for the contract scenarios in `tests/contract-*`.
//!
//! systemd starts it like the real one: the plugin's connection is its standard input and output.
//! What a backup of a VM sends stands in `script/<vm>` below the home directory, how a restore
//! goes wrong in `script/<vm>.restore`. It keeps the disks it invents in `disk/<vm>/`, a copy of
//! each as of a job in `expect/<jobid>/`, what it restores in `restored/<jobid>/`, and a line of JSON
//! for all it hears in `record/<jobid>`.
//!
//! ```text
//! dir PATH                        a directory
//! text PATH WORDS…                a sequential file
//! object PATH WORDS…              a restore object
//! disk PATH SIZE [whole]          an addressed file: a delta if the Director knows its base
//! write OFFSET LENGTH SEED        data of that disk, which is complete when another file begins
//! ask PATH                        what does the Director know of it?
//! log info|warning|error WORDS…   a line for the job log
//! wait SECONDS                    busy, with signs of life
//! hang                            busy for ever, without
//! die                             gone, without a word
//! fail WORDS…                     gone, with one
//! raw HEX                         bytes that may be no frame
//! end FILES BYTES                 END with these counts instead of the right ones
//! restores: skip | die-after BYTES | hang-after BYTES | fail-after BYTES WORDS… | fail-at-finish WORDS… | die-at-finish
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use relay::frame::{Kind, MAX_DATA, Reader, Writer};
use relay::message::{
    Ask, Class, End, Fail, FileHead, FileKind, Go, Hello, Known, Level, Log, Op, PartHead,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const HOME: &str = "/var/lib/contract";

type Wrong = Box<dyn std::error::Error>;

fn main() -> Result<(), Wrong> {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut reader = Reader::new(stream.try_clone()?);
    let header = reader.header()?.ok_or("no HELLO")?;
    let hello: Hello = reader.json(header)?;
    let vm = hello
        .line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("vm="));
    let mut worker = Worker {
        vm: vm.unwrap_or("nobody").to_owned(),
        writer: Writer::new(stream),
        reader,
        end: End::default(),
        hello,
    };
    worker.record("hello", &worker.hello)?;
    match worker.hello.op {
        Op::Backup | Op::Estimate => worker.backup(),
        Op::Restore => worker.restore(),
        Op::Query => worker.query(),
    }
}

struct Worker {
    vm: String,
    hello: Hello,
    reader: Reader<UnixStream>,
    writer: Writer<UnixStream>,
    end: End,
}

impl Worker {
    fn record(&self, what: &str, value: &impl serde::Serialize) -> Result<(), Wrong> {
        let path = Path::new(HOME).join("record").join(self.key());
        let line = serde_json::json!({ what: value, "pid": std::process::id() });
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(writeln!(file, "{line}")?)
    }

    /// Bacula's JobId; questions from the console have none.
    fn key(&self) -> String {
        match self.hello.job_id {
            0 => self.hello.job.clone(),
            id => id.to_string(),
        }
    }

    fn script(&self, name: &str) -> String {
        fs::read_to_string(Path::new(HOME).join("script").join(name)).unwrap_or_default()
    }

    fn fail(&mut self, text: &str) -> Result<(), Wrong> {
        let text = text.to_owned();
        Ok(self.writer.json(Kind::Fail, &Fail { text })?)
    }

    // ---- backup

    fn backup(&mut self) -> Result<(), Wrong> {
        let mut disk = None;
        for line in self.script(&self.vm).lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            let words: Vec<&str> = rest.split(' ').collect();
            if matches!(verb, "dir" | "text" | "object" | "disk") && disk.take().is_some() {
                self.close_file()?;
            }
            match (verb, words.as_slice()) {
                ("dir", [path]) => self.whole_file(path, FileKind::Directory, "")?,
                ("text", [path, ..]) => self.whole_file(path, FileKind::Regular, rest)?,
                ("object", [path, ..]) => self.whole_file(path, FileKind::Object, rest)?,
                ("disk", [path, size, whole @ ..]) => {
                    disk = Some(self.open_disk(path, size.parse()?, !whole.is_empty())?);
                }
                ("write", [offset, length, seed]) => {
                    let disk = disk.as_ref().ok_or("write without disk")?;
                    self.write(disk, offset.parse()?, length.parse()?, seed.parse()?)?;
                }
                ("ask", [path]) => drop(self.ask(path)?),
                ("log", [class, text @ ..]) => {
                    let class: Class = serde_json::from_value((*class).into())?;
                    let text = text.join(" ");
                    self.writer.json(Kind::Log, &Log { class, text })?;
                }
                ("wait", [seconds]) => self.wait(Some(seconds.parse()?))?,
                ("hang", _) => self.wait(None)?,
                ("die", _) => std::process::exit(7),
                ("fail", _) => return self.fail(rest),
                ("raw", [hex]) => {
                    let bytes: Result<Vec<u8>, _> = (0..hex.len() / 2)
                        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16))
                        .collect();
                    self.writer.get_ref().write_all(&bytes?)?;
                }
                ("end", [files, bytes]) => {
                    self.end = End {
                        files: files.parse()?,
                        bytes: bytes.parse()?,
                    };
                }
                ("" | "#", _) => {}
                _ => return self.fail(&format!("the script says {line:?}")),
            }
        }
        if disk.is_some() {
            self.close_file()?;
        }
        Ok(self.writer.json(Kind::End, &self.end)?)
    }

    fn head(&self, path: &str, kind: FileKind, size: u64) -> FileHead {
        FileHead {
            path: path.to_owned(),
            kind,
            size,
            mtime: 1_700_000_000,
            mode: 0o640,
            part: 0,
            offsets: false,
            delta_on: None,
        }
    }

    fn open_file(&mut self, head: &FileHead) -> Result<(), Wrong> {
        self.record("file", head)?;
        self.end.files += 1;
        Ok(self.writer.json(Kind::File, head)?)
    }

    fn close_file(&mut self) -> Result<(), Wrong> {
        match self.hello.op {
            Op::Estimate => Ok(()),
            _ => Ok(self.writer.empty(Kind::FileEnd)?),
        }
    }

    fn whole_file(&mut self, path: &str, kind: FileKind, text: &str) -> Result<(), Wrong> {
        self.open_file(&self.head(path, kind, text.len() as u64))?;
        if self.hello.op == Op::Backup && !text.is_empty() {
            self.writer.data(0, text.as_bytes())?;
            self.end.bytes += text.len() as u64;
            let name = Path::new(path).file_name().unwrap_or_default();
            fs::write(self.expected()?.join(name), text)?;
        }
        self.close_file()
    }

    fn expected(&self) -> Result<PathBuf, Wrong> {
        let directory = Path::new(HOME).join("expect").join(self.key());
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    fn open_disk(&mut self, path: &str, size: u64, whole: bool) -> Result<Disk, Wrong> {
        let mut head = self.head(path, FileKind::Regular, size);
        head.offsets = true;
        let name = PathBuf::from(Path::new(path).file_name().unwrap_or_default());
        let image = Path::new(HOME).join("disk").join(&self.vm).join(&name);
        let send = self.hello.op == Op::Backup;
        if send {
            head.part = random()?;
            let known = self.ask(path)?;
            if known.found && !whole && self.hello.level != Some(Level::Full) {
                head.delta_on = Some(known.delta_seq);
            }
            fs::create_dir_all(image.parent().ok_or("no parent")?)?;
            if head.delta_on.is_none() {
                File::create(&image)?.set_len(size)?;
            }
        }
        self.open_file(&head)?;
        let expected = self.expected()?.join(name);
        if send {
            fs::copy(&image, &expected)?;
        }
        Ok(Disk {
            image,
            expected,
            send,
        })
    }

    fn write(&mut self, disk: &Disk, offset: u64, length: usize, seed: u64) -> Result<(), Wrong> {
        if disk.send {
            let data = noise(offset, length, seed);
            let image = OpenOptions::new().write(true).open(&disk.image)?;
            image.write_all_at(&data, offset)?;
            fs::copy(&disk.image, &disk.expected)?;
            let mut at = offset;
            for piece in data.chunks(MAX_DATA as usize) {
                self.writer.data(at, piece)?;
                at += piece.len() as u64;
            }
            self.end.bytes += length as u64;
        }
        Ok(())
    }

    fn ask(&mut self, path: &str) -> Result<Known, Wrong> {
        let path = path.to_owned();
        self.writer.json(Kind::Ask, &Ask { path, keep: false })?;
        let header = self.reader.header()?.ok_or("no KNOWN")?;
        let known: Known = self.reader.json(header)?;
        self.record("known", &known)?;
        Ok(known)
    }

    /// Waits for an end of time, or of the plugin; for ever means without signs of life.
    fn wait(&mut self, seconds: Option<u64>) -> Result<(), Wrong> {
        self.record("waiting", &seconds)?;
        let start = Instant::now();
        let stream = self.reader.get_ref().try_clone()?;
        let tick = Timespec::try_from(Duration::from_millis(200))?;
        while seconds.is_none_or(|seconds| start.elapsed().as_secs() < seconds) {
            // Asked for nothing, told of the end only: what the plugin sends stays where it is.
            let mut fds = [PollFd::new(&stream, PollFlags::empty())];
            poll(&mut fds, Some(&tick))?;
            if fds[0].revents().contains(PollFlags::HUP) {
                self.record("eof", &start.elapsed().as_millis())?;
                std::process::exit(8);
            }
            if seconds.is_some() {
                self.writer.empty(Kind::Alive)?;
            }
        }
        Ok(())
    }

    // ---- restore

    fn restore(&mut self) -> Result<(), Wrong> {
        let script = self.script(&format!("{}.restore", self.vm));
        let (verb, rest) = script
            .trim_end()
            .split_once(' ')
            .unwrap_or((script.trim_end(), ""));
        let (limit, words) = rest.split_once(' ').unwrap_or((rest, ""));
        let limit = limit.parse::<u64>().unwrap_or(u64::MAX);
        let directory = Path::new(HOME)
            .join("restored")
            .join(self.hello.job_id.to_string());
        fs::create_dir_all(&directory)?;
        let mut last = std::collections::BTreeMap::new();
        let mut image = None;
        loop {
            let Some(header) = self.reader.header()? else {
                return self.record("eof", &self.end);
            };
            match header.kind {
                Kind::Object => {
                    let object = String::from_utf8(self.reader.bytes(header)?)?;
                    self.record("object", &object)?;
                }
                Kind::Part => {
                    let part: PartHead = self.reader.json(header)?;
                    self.record("part", &part)?;
                    let go = match part.kind {
                        FileKind::Directory => Go::Done,
                        _ if verb == "skip" => Go::Skip,
                        _ => Go::Write,
                    };
                    if go == Go::Write {
                        let due = last.get(&part.path).map_or(0, |seq| seq + 1);
                        if part.delta_seq != 0 && part.delta_seq != due {
                            return self.fail(&format!("{} came before part {due}", part.path));
                        }
                        let name = Path::new(&part.path).file_name().unwrap_or_default();
                        let mut options = OpenOptions::new();
                        options
                            .write(true)
                            .create(true)
                            .truncate(part.delta_seq == 0);
                        let file = options.open(directory.join(name))?;
                        file.set_len(part.size)?;
                        last.insert(part.path, part.delta_seq);
                        image = Some(file);
                        self.end.files += 1;
                    }
                    self.writer.json(Kind::Go, &go)?;
                }
                Kind::Data => {
                    let data = self.reader.bytes(header)?;
                    image
                        .as_ref()
                        .ok_or("no part")?
                        .write_all_at(&data, header.offset)?;
                    self.end.bytes += data.len() as u64;
                    match verb {
                        "die-after" if self.end.bytes > limit => std::process::exit(7),
                        "hang-after" if self.end.bytes > limit => self.wait(None)?,
                        "fail-after" if self.end.bytes > limit => return self.fail(words),
                        _ => {}
                    }
                }
                Kind::FileEnd => image = None,
                Kind::Finish => {
                    self.record("finish", &self.end)?;
                    match verb {
                        "fail-at-finish" => return self.fail(rest),
                        "die-at-finish" => std::process::exit(7),
                        _ => return Ok(self.writer.json(Kind::End, &self.end)?),
                    }
                }
                kind => return self.fail(&format!("{kind:?} has no place in a restore")),
            }
        }
    }

    // ---- query

    fn query(&mut self) -> Result<(), Wrong> {
        let text = match self.hello.line.as_str() {
            "nothing" => String::new(),
            "failure" => return self.fail("nobody knows"),
            "death" => std::process::exit(7),
            "long" => format!("{}\n", "0123456789".repeat(30_000)),
            line => format!("you asked for: {line}\njob: {}\n", self.hello.job),
        };
        for (i, piece) in text.as_bytes().chunks(1000).enumerate() {
            self.writer.data(i as u64 * 1000, piece)?;
            self.end.bytes += piece.len() as u64;
        }
        Ok(self.writer.json(Kind::End, &self.end)?)
    }
}

struct Disk {
    image: PathBuf,
    expected: PathBuf,
    send: bool,
}

fn random() -> Result<u64, Wrong> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) >> 1)
}

/// Data that depends on its place, so that misplaced data is wrong data. Seed 0 is zeros.
fn noise(offset: u64, length: usize, seed: u64) -> Vec<u8> {
    let word = |i: u64| match seed {
        0 => 0,
        _ => {
            (i ^ (seed << 40))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                ^ seed
        }
    };
    let words = offset / 8..(offset + length as u64).div_ceil(8);
    let mut data: Vec<u8> = words.flat_map(|i| word(i).to_le_bytes()).collect();
    data.truncate(length);
    data
}
