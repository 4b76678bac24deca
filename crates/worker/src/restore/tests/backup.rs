//! A backup of two jobs in memory, and a plugin that gives it back.

use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::path::Path;

use blockmap::Key;
use relay::frame::{Reader, Writer};
use relay::message::{Fail, Hello, Log, Op};
use relay::options::{self, Options};
use relay::policy::Policy;

use super::super::*;
use super::SIZE;
use crate::manifest::tests::sample;
use crate::paths::Places;

/// A part as Bacula gives it back.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) file: &'static str,
    pub(super) size: usize,
    /// Id and sequence number.
    pub(super) id: (u64, u32),
    pub(super) records: Vec<(u64, Vec<u8>)>,
}

/// Two jobs of a VM with one disk, and how they come back.
pub(super) struct Backup {
    pub(super) dir: tempfile::TempDir,
    pub(super) manifests: Vec<Manifest>,
    pub(super) parts: Vec<Part>,
    pub(super) disk: Vec<u8>,
}

impl Backup {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::random().unwrap();
        let mut disk = vec![0; SIZE - 4096];
        disk[..8192].fill(1);
        let root = |disk: &[u8]| {
            let path = dir.path().join("disk");
            std::fs::write(&path, disk).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let root = blockmap::root_of(&file, disk.len() as u64, &key, NonZeroUsize::MIN);
            std::fs::remove_file(path).unwrap();
            root.unwrap().to_string()
        };
        let manifest = |job_id: u32, disk: &[u8]| {
            let mut manifest = sample();
            manifest.key = key.to_hex();
            manifest.job = format!("web01.{job_id}");
            manifest.job_id = job_id;
            manifest.disks[0].size = disk.len() as u64;
            manifest.disks[0].part = u64::from(job_id);
            manifest.disks[0].delta_seq = job_id - 7;
            manifest.disks[0].root = root(disk);
            manifest
        };
        let first = manifest(7, &disk);
        let mut parts = vec![Part {
            file: "vda.raw",
            size: disk.len(),
            id: (7, 0),
            records: vec![(0, vec![1; 8192])],
        }];
        disk.resize(SIZE, 0);
        disk[16_384..].fill(2);
        let second = manifest(8, &disk);
        parts.push(Part {
            file: "vda.raw",
            size: disk.len(),
            id: (8, 1),
            records: vec![(16_384, vec![2; SIZE - 16_384])],
        });
        parts.push(small("domain.xml", b"abc"));
        parts.push(small("manifest.json", &second.to_json()));
        Self {
            dir,
            manifests: vec![first, second],
            parts,
            disk,
        }
    }

    pub(super) fn part(&mut self, file: &str, seq: u32) -> &mut Part {
        let mut parts = self.parts.iter_mut();
        parts.find(|p| p.file == file && p.id.1 == seq).unwrap()
    }

    pub(super) fn without(mut self, file: &str) -> Self {
        self.parts.retain(|part| part.file != file);
        self
    }

    pub(super) fn places(&self) -> Places {
        Places {
            run: self.dir.path().join("run"),
            state: self.dir.path().join("state"),
        }
    }

    /// Restores; what became of it, and the job log.
    pub(super) fn restore(&self, job: &str, place: &str) -> (Result<End, String>, Vec<Log>) {
        let job = Job {
            hello: Hello {
                version: relay::VERSION,
                op: Op::Restore,
                job_id: 9,
                job: format!("{job}.2026-01-31_22.00.00_05"),
                level: None,
                prev_job: String::new(),
                line: " vm=web01".into(),
                accurate: false,
                where_: Some(place.into()),
                regex_where: None,
            },
            policy: Policy {
                version: 1,
                scratch_dir: self.dir.path().into(),
                restore_dirs: vec![self.dir.path().join("out")],
                restart_libvirt: true,
                vms: BTreeMap::new(),
            },
            places: self.places(),
        };
        std::fs::create_dir_all(self.dir.path().join("out")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut session = Session::new(ours).unwrap();
        std::thread::scope(|scope| {
            let plugin = scope.spawn(|| self.play(theirs));
            let outcome = run(&mut session, &job).map_err(|e| format!("{e:#}"));
            match &outcome {
                Ok(end) => session.end(*end).unwrap(),
                Err(text) => session.fail(text.clone()),
            }
            (outcome, plugin.join().unwrap())
        })
    }

    pub(super) fn verify(&self, disks: Option<&[&str]>) -> (Result<End, String>, Vec<Log>) {
        let options = Options {
            v: 1,
            verify: true,
            disks: disks.map(|disks| disks.iter().map(|&disk| disk.to_owned()).collect()),
            ..Options::default()
        };
        let result = self.restore("lab-backup-verify", &options::encode(&options));
        let left: Vec<_> = walk(self.dir.path())
            .into_iter()
            .filter(|path| {
                !path.starts_with(self.places().run)
                    && !path.starts_with(self.places().maps("web01"))
            })
            .collect();
        assert!(left.is_empty(), "a proof leaves {left:?}");
        result
    }

    /// Plays the plugin; what it heard for the job log.
    fn play(&self, socket: UnixStream) -> Vec<Log> {
        let mut reader = Reader::new(socket.try_clone().unwrap());
        let mut writer = Writer::new(socket);
        let mut log = Vec::new();
        if self.give(&mut reader, &mut writer, &mut log).unwrap() {
            assert!(matches!(hear(&mut reader, &mut log).unwrap(), Heard::End));
        }
        log
    }

    /// Gives everything; false if the worker ended before that.
    fn give(
        &self,
        reader: &mut Reader<UnixStream>,
        writer: &mut Writer<UnixStream>,
        log: &mut Vec<Log>,
    ) -> Result<bool> {
        for manifest in &self.manifests {
            writer.bytes(Kind::Object, &manifest.to_json())?;
        }
        for part in &self.parts {
            let head = PartHead {
                path: paths::catalog("web01", part.file),
                kind: FileKind::Regular,
                size: part.size as u64,
                mtime: 0,
                mode: 0o600,
                part: part.id.0,
                delta_seq: part.id.1,
            };
            writer.json(Kind::Part, &head)?;
            match hear(reader, log)? {
                Heard::Go(Go::Write) => {}
                Heard::Go(_) => continue,
                Heard::End => return Ok(false),
            }
            for (offset, bytes) in &part.records {
                writer.data(*offset, bytes)?;
            }
            writer.empty(Kind::FileEnd)?;
        }
        writer.empty(Kind::Finish)?;
        Ok(true)
    }
}

enum Heard {
    Go(Go),
    End,
}

fn hear(reader: &mut Reader<UnixStream>, log: &mut Vec<Log>) -> Result<Heard> {
    loop {
        let header = reader.header()?.context("closed")?;
        match header.kind {
            Kind::Alive => {}
            Kind::Log => log.push(reader.json(header)?),
            Kind::Go => return Ok(Heard::Go(reader.json(header)?)),
            Kind::Fail => {
                reader.json::<Fail>(header)?;
                return Ok(Heard::End);
            }
            _ => return Ok(Heard::End),
        }
    }
}

fn small(file: &'static str, content: &[u8]) -> Part {
    Part {
        file,
        size: content.len(),
        id: (0, 0),
        records: vec![(0, content.to_vec())],
    }
}

/// Every file below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => walk(&path),
            false => vec![path],
        })
        .collect()
}
