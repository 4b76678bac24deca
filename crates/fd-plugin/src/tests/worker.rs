//! The other end of the socket.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use relay::frame::{Kind, Reader, Writer};
use relay::message::{Class, End, FileHead, FileKind, Hello, Log};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) const DISK: &str = "/#LabBackup/web01/web01/vda.raw";

/// A worker that has heard HELLO.
pub(super) struct Worker {
    pub(super) hello: Hello,
    pub(super) stream: UnixStream,
    pub(super) reader: Reader<UnixStream>,
    pub(super) writer: Writer<UnixStream>,
}

/// Waits for one plugin and does `work` with it.
pub(super) fn serve<T: Send + 'static>(
    listener: UnixListener,
    work: impl FnOnce(Worker) -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = Reader::new(stream.try_clone().unwrap());
        let header = reader.header().unwrap().unwrap();
        assert_eq!(header.kind, Kind::Hello);
        work(Worker {
            hello: reader.json(header).unwrap(),
            writer: Writer::new(stream.try_clone().unwrap()),
            stream,
            reader,
        })
    })
}

impl Worker {
    pub(super) fn say(&mut self, kind: Kind, message: &impl Serialize) {
        self.writer.json(kind, message).unwrap();
    }

    pub(super) fn hear<T: DeserializeOwned>(&mut self, kind: Kind) -> T {
        let header = self.reader.header().unwrap().unwrap();
        assert_eq!(header.kind, kind);
        self.reader.json(header).unwrap()
    }

    /// Every whole frame's kind that still comes, until the plugin closes.
    pub(super) fn rest(&mut self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        while let Ok(Some(header)) = self.reader.header() {
            if self.reader.bytes(header).is_err() {
                break;
            }
            kinds.push(header.kind);
        }
        kinds
    }

    /// Blocks until the plugin has gone.
    pub(super) fn until_closed(mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }
}

pub(super) fn head(path: &str, kind: FileKind, size: u64) -> FileHead {
    FileHead {
        path: path.into(),
        kind,
        size,
        mtime: 1_700_000_000,
        mode: 0o640,
        part: 0,
        offsets: false,
        delta_on: None,
    }
}

pub(super) fn disk(size: u64) -> FileHead {
    FileHead {
        part: 77,
        offsets: true,
        delta_on: Some(3),
        ..head(DISK, FileKind::Regular, size)
    }
}

/// A good backup of a little of everything, as frames.
pub(super) fn conversation() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut frame = |write: &dyn Fn(&mut Writer<&mut Vec<u8>>)| {
        let mut bytes = Vec::new();
        write(&mut Writer::new(&mut bytes));
        frames.push(bytes);
    };
    let log = Log {
        class: Class::Info,
        text: "2 disks".into(),
    };
    let directory = head("/#LabBackup/web01/web01/tpm", FileKind::Directory, 0);
    let xml = head("/#LabBackup/web01/web01/domain.xml", FileKind::Regular, 5);
    let manifest = head("/#LabBackup/web01/web01/manifest.json", FileKind::Object, 2);
    let ask = relay::message::Ask {
        path: DISK.into(),
        keep: true,
    };
    let end = End {
        files: 4,
        bytes: 5 + 131_072 + 4096 + 62_116 + 2,
    };
    frame(&|w| w.json(Kind::Log, &log).unwrap());
    frame(&|w| w.json(Kind::File, &directory).unwrap());
    frame(&|w| w.empty(Kind::FileEnd).unwrap());
    frame(&|w| w.json(Kind::File, &xml).unwrap());
    frame(&|w| w.data(0, b"<dom").unwrap());
    frame(&|w| w.empty(Kind::Alive).unwrap());
    frame(&|w| w.data(4, b">").unwrap());
    frame(&|w| w.empty(Kind::FileEnd).unwrap());
    frame(&|w| w.json(Kind::Ask, &ask).unwrap());
    frame(&|w| w.json(Kind::File, &disk(1_000_100)).unwrap());
    frame(&|w| w.data(8192, &[1; 131_072]).unwrap());
    frame(&|w| w.data(0, &[2; 4096]).unwrap());
    frame(&|w| w.data(937_984, &[3; 61_440 + 676]).unwrap());
    frame(&|w| w.empty(Kind::FileEnd).unwrap());
    frame(&|w| w.json(Kind::File, &manifest).unwrap());
    frame(&|w| w.data(0, b"{}").unwrap());
    frame(&|w| w.empty(Kind::FileEnd).unwrap());
    frame(&|w| w.json(Kind::End, &end).unwrap());
    frames
}
