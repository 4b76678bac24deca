//! Real programs for the tests. One that is missing fails the test.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd::{BASE_ALLOCATION, Client, Error, Extent, Piece, QemuNbd, QemuNbdOptions, ReadOptions};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Runs a program to its end and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs qemu-io commands on an image.
pub(crate) fn qemu_io(format: &str, image: &Path, commands: &[&str]) {
    let image = text(image);
    let mut args = vec!["-f", format, "-d", "unmap"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image);
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed"), "{said}");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The content of an image, as QEMU sees it without us.
pub(crate) fn content(format: &str, image: &Path) -> Vec<u8> {
    let flat = image.with_extension("flat");
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            text(image),
            text(&flat),
        ],
    );
    let bytes = std::fs::read(&flat).unwrap();
    std::fs::remove_file(&flat).unwrap();
    bytes
}

pub(crate) fn serve(options: &QemuNbdOptions, dir: &Path) -> QemuNbd {
    QemuNbd::spawn(options, dir, SOON).unwrap()
}

pub(crate) fn connect(socket: &Path, contexts: &[&str]) -> Client {
    let mut client = Client::connect(socket, "", contexts, SOON).unwrap();
    client.set_timeout(Some(SOON)).unwrap();
    client
}

/// Reads a plan into `disk`. Returns how many bytes were data.
pub(crate) fn read_into(
    client: &mut Client,
    plan: impl IntoIterator<Item = Result<Extent, Error>>,
    options: &ReadOptions,
    disk: &mut Vec<u8>,
) -> u64 {
    let size = client.size();
    disk.resize(size as usize, 0);
    let (mut data, mut done) = (0, 0);
    let read = client.read(plan, options, &options.pool(2), |piece| {
        let (offset, end) = (piece.offset(), piece.offset() + piece.len());
        assert!(offset >= done && !piece.is_empty(), "in order");
        assert!(offset % 4096 == 0 && (end % 4096 == 0 || end == size));
        done = end;
        match piece {
            Piece::Data { offset, bytes } => {
                data += bytes.len() as u64;
                disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            Piece::Zero { .. } => disk[offset as usize..end as usize].fill(0),
        }
        Ok(())
    });
    read.unwrap();
    data
}

/// Reads a whole disk by its allocation, over two connections.
pub(crate) fn read_all(socket: &Path, options: &ReadOptions) -> (Vec<u8>, u64) {
    let mut base = connect(socket, &[BASE_ALLOCATION]);
    let mut client = connect(socket, &[]);
    let size = base.size();
    // What the plan does not name must show up as wrong.
    let mut disk = vec![0xee; size as usize];
    let plan = nbd::extent::allocation(base.extents(BASE_ALLOCATION, 0, size).unwrap());
    let data = read_into(&mut client, plan, options, &mut disk);
    (disk, data)
}

/// A running nbdkit; ends with its owner.
pub(crate) struct Nbdkit {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Nbdkit {
    pub(crate) fn spawn(dir: &Path, args: &[&str]) -> Self {
        let (socket, pid) = (dir.join("kit"), dir.join("kit.pid"));
        let mut child = Command::new("nbdkit")
            .args([
                "--foreground",
                "--exit-with-parent",
                "--unix",
                text(&socket),
            ])
            .args(["--pidfile", text(&pid)])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("nbdkit: {e}"));
        let end = Instant::now() + SOON;
        while std::fs::metadata(&pid).map_or(true, |meta| meta.len() == 0) {
            if child.try_wait().unwrap().is_some() || Instant::now() > end {
                let _ = child.kill();
                let mut said = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut said)
                    .unwrap();
                panic!("nbdkit {args:?}: {said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, socket }
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
