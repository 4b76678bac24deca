//! The same jobs on images of QEMU: it writes them, keeps their bitmaps, and crashes; its own programs say what
//! is on them.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nbd::{QemuNbd, QemuNbdOptions};
use tempfile::TempDir;

use crate::chain::{Chain, Meeting};
use crate::hazard::{Fate, key};
use crate::image::{Image, run, text};
use crate::report::Tally;
use crate::rng::Rng;

const SOON: Duration = Duration::from_secs(30);
const LARGEST: u64 = 6 << 20;

struct Vm<'a> {
    rng: Rng,
    chain: Chain,
    image: Image,
    /// Copies, and of which image.
    copies: Vec<(PathBuf, PathBuf)>,
    size: u64,
    log: &'a mut Vec<String>,
    dir: TempDir,
}

/// One sequence. What it did is in `log`.
pub(crate) fn sequence(seed: u64, room: &Path, log: &mut Vec<String>) -> Result<Tally> {
    let mut vm = Vm::new(seed, room, log)?;
    for _ in 0..vm.rng.between(4, 9) {
        vm.between()?;
        vm.job()?;
    }
    for number in 0..vm.chain.points.len() {
        let restored = vm.chain.restore(number);
        restored.with_context(|| format!("restore of job {number}"))?;
    }
    vm.chain.tally.sequences = 1;
    Ok(std::mem::take(&mut vm.chain.tally))
}

impl<'a> Vm<'a> {
    fn new(seed: u64, room: &Path, log: &'a mut Vec<String>) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let dir = tempfile::tempdir_in(room)?;
        let maps = dir.path().join("maps");
        std::fs::create_dir(&maps)?;
        let size = rng.between(512, 8192) * 512;
        let (image, what) = Image::create(&mut rng, dir.path(), size)?;
        log.push(what);
        // A disk that holds something: most changes are less than that.
        if !rng.one_in(4) {
            let (offset, len) = (rng.below(size / 1024) * 512, size / 2 / 512 * 512);
            image.guest(&[format!("write -P 170 {offset} {len}")])?;
        }
        Ok(Self {
            chain: Chain::new(maps, key(&mut rng), rng.one_in(2)),
            rng,
            image,
            copies: Vec::new(),
            size,
            log,
            dir,
        })
    }

    fn between(&mut self) -> Result<()> {
        for _ in 0..self.rng.below(3) {
            self.guest(false)?;
        }
        for _ in 0..self.rng.below(4).saturating_sub(1) {
            self.hazard()?;
        }
        Ok(())
    }

    fn guest(&mut self, crash: bool) -> Result<()> {
        let mut script = Image::script(&mut self.rng, self.size, 6);
        if crash && self.rng.one_in(2) {
            script.push("flush".into());
        }
        self.log.push(format!(
            "{}{}",
            script.join("; "),
            if crash { "; CRASH" } else { "" }
        ));
        match crash {
            true => self.image.crash(&script),
            false => self.image.guest(&script),
        }
    }

    fn hazard(&mut self) -> Result<()> {
        let rng = &mut self.rng;
        let what = match rng.below(20) {
            0..3 => {
                self.guest(true)?;
                // Whoever looks after a host mends what a crash left.
                if self.rng.one_in(2) && self.image.format == "qcow2" {
                    let path = text(&self.image.path);
                    let args = ["check", "-q", "-f", "qcow2", "-r", "all", path];
                    run("qemu-img", &args)?;
                }
                return Ok(());
            }
            3 | 4 => {
                let size = (self.size + rng.between(1, 1024) * 512).min(LARGEST);
                self.resize(size)?
            }
            5 | 6 => {
                let size = rng.between(1, self.size / 512) * 512;
                self.resize(size)?
            }
            7 | 8 => {
                let (before, size) = (self.size, rng.between(1, self.size / 512) * 512);
                let mut what = self.resize(size)?;
                if self.rng.one_in(2) {
                    self.guest(false)?;
                }
                what += &self.resize(before)?;
                what
            }
            9 => {
                self.image.convert(rng)?;
                "another image with the same content".into()
            }
            10 | 11 => {
                self.image.snapshot()?;
                "a snapshot".into()
            }
            12 => match self.usable()? && self.image.commit()? {
                true => {
                    self.size = self.image.content()?.len() as u64;
                    "the snapshot is committed".into()
                }
                false => return Ok(()),
            },
            13 => match self.usable()? && self.image.rebase()? {
                true => "what lies below becomes a part of it".into(),
                false => return Ok(()),
            },
            14 => {
                if let Some(copy) = self.image.copy()? {
                    self.copies.push((copy, self.image.path.clone()));
                }
                return Ok(());
            }
            15 => {
                let path = &self.image.path;
                let copy = self.copies.iter().rfind(|(_, of)| of == path);
                let Some((copy, _)) = copy.filter(|_| self.image.is_alone()) else {
                    return Ok(());
                };
                self.image.roll_back(copy)?;
                self.size = self.image.content()?.len() as u64;
                "it is rolled back".into()
            }
            16 => {
                for (name, _) in self.image.bitmaps()? {
                    self.image.bitmap("--remove", &name)?;
                }
                "its bitmaps are lost".into()
            }
            _ => {
                self.log.extend(self.chain.hazard(rng)?);
                return Ok(());
            }
        };
        self.log.push(what);
        Ok(())
    }

    /// Are all its bitmaps whole? QEMU refuses a lot to an image of which one is not.
    fn usable(&self) -> Result<bool> {
        Ok(self.image.bitmaps()?.iter().all(|(_, usable)| *usable))
    }

    fn resize(&mut self, size: u64) -> Result<String> {
        if !self.usable()? {
            for (name, _) in self.image.bitmaps()?.iter().filter(|(_, usable)| !usable) {
                self.image.bitmap("--remove", name)?;
            }
        }
        self.image.resize(size)?;
        self.size = size;
        Ok(format!("it has {size} bytes;"))
    }

    fn job(&mut self) -> Result<()> {
        let plan = self.chain.plan(&mut self.rng, false);
        self.log.push(plan.to_string());
        let fate = plan.fate;
        let base = self.chain.base(plan.level).unwrap_or_default().to_owned();
        let had = self.image.bitmaps()?;
        let bitmap = match had.iter().find(|(name, _)| *name == base) {
            Some((_, true)) => Ok(base),
            Some(_) => Err("it is broken".to_owned()),
            None => Err("it is missing".into()),
        };
        self.log.push(format!("    {bitmap:?}"));
        let truth = self.image.content()?;
        let mut options = QemuNbdOptions::read(&self.image.path, self.image.format);
        options.bitmap = bitmap.clone().ok();
        let server = QemuNbd::spawn(&options, self.dir.path(), SOON)?;
        let meeting = Meeting {
            plan,
            truth,
            identity: self.image.identity()?,
            cluster: self.image.info()?["cluster-size"].as_u64().unwrap_or(4096),
            socket: server.socket(),
            export: "",
            bitmap: bitmap.clone(),
        };
        let name = self.chain.next_name();
        // Asked of QEMU only where an audit found a change.
        let (dirty, dir) = (OnceCell::new(), self.dir.path());
        let marked = |offset, len| {
            let bitmap = bitmap.as_deref().unwrap_or_default();
            let dirty = dirty.get_or_init(|| ask(&options, bitmap, dir).expect("nbdinfo answers"));
            let ends = |(from, to): &(u64, u64)| *from <= offset && offset + len <= *to;
            dirty.iter().any(ends)
        };
        let outcome = self.chain.job(meeting, &marked)?;
        server.stop(SOON)?;
        let made = self.image.format == "qcow2"
            && match fate {
                Fate::Good | Fate::Failed => !self.rng.one_in(20),
                Fate::Cancelled(_) | Fate::Killed => self.rng.one_in(2),
            };
        if made {
            self.image.bitmap("--add", &name)?;
        }
        if let Some(keep) = outcome.keep {
            for (name, _) in had.iter().filter(|(name, _)| !keep.contains(name)) {
                self.image.bitmap("--remove", name)?;
            }
        }
        Ok(())
    }
}

/// The ranges that a bitmap marks, neighbours joined.
fn ask(options: &QemuNbdOptions, bitmap: &str, dir: &Path) -> Result<Vec<(u64, u64)>> {
    let server = QemuNbd::spawn(options, dir, SOON)?;
    let socket = server.socket();
    let uri = format!("nbd+unix:///?socket={}", text(&socket));
    let said = run(
        "nbdinfo",
        &[&format!("--map=qemu:dirty-bitmap:{bitmap}"), &uri],
    )?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for line in said.lines() {
        let fields = line.split_whitespace().take(3).map(str::parse);
        let fields: Vec<u64> = fields.collect::<Result<_, _>>()?;
        ensure!(fields.len() == 3, "{line}");
        let (from, to) = (fields[0], fields[0] + fields[1]);
        match ranges.last_mut() {
            _ if fields[2] == 0 => {}
            Some(last) if last.1 == from => last.1 = to,
            _ => ranges.push((from, to)),
        }
    }
    Ok(ranges)
}
