//! A VM with two modelled disks, of which the first is backed up while all kinds of things happen to it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::chain::{Chain, Meeting};
use crate::disk::{Disk, Instant};
use crate::hazard::key;
use crate::report::Tally;
use crate::rng::Rng;
use crate::serve::Server;

/// Name of the bitmap in an export, as libvirt's.
const BITMAP: &str = "lab-backup";
const LARGEST: u64 = 4 << 20;

struct Vm<'a> {
    rng: Rng,
    chain: Chain,
    server: Server,
    /// Which of them is the disk that is backed up can change.
    images: [Disk; 2],
    current: usize,
    copies: Vec<Disk>,
    /// Can the disks have bitmaps at all? Raw ones cannot.
    bitmaps: bool,
    /// A bitmap lied, and nothing was audited since.
    lied: bool,
    log: &'a mut Vec<String>,
    _dir: TempDir,
}

/// One sequence. What it did is in `log`.
pub(crate) fn sequence(seed: u64, room: &Path, log: &mut Vec<String>) -> Result<Tally> {
    let mut vm = Vm::new(seed, room, log)?;
    let jobs = vm.rng.between(3, 14);
    for _ in 0..jobs {
        vm.between()?;
        vm.job(false)?;
        if vm.rng.one_in(6) {
            let number = vm.rng.below(vm.chain.points.len() as u64);
            vm.restore(number as usize)?;
        }
    }
    if vm.lied {
        vm.heal()?;
    }
    let count = vm.chain.points.len();
    vm.restore(count - 1)?;
    for number in 0..count - 1 {
        if vm.rng.one_in(2) {
            vm.restore(number)?;
        }
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
        let size = size(&mut rng);
        let images = ["file 8:1 qcow2 vda", "file 8:2 qcow2 vda"];
        let images = images.map(|identity| Disk::new(&mut rng, identity, size));
        let (differentials, bitmaps) = (rng.one_in(2), !rng.one_in(10));
        log.push(format!(
            "a disk of {size} bytes, differentials {differentials}, bitmaps {bitmaps}"
        ));
        Ok(Self {
            chain: Chain::new(maps, key(&mut rng), differentials),
            rng,
            server: Server::start(dir.path()),
            images,
            current: 0,
            copies: Vec::new(),
            bitmaps,
            lied: false,
            log,
            _dir: dir,
        })
    }

    fn disk(&mut self) -> &mut Disk {
        &mut self.images[self.current]
    }

    fn say(&mut self, text: impl Into<String>) {
        self.log.push(text.into());
    }

    /// What happens between two jobs.
    fn between(&mut self) -> Result<()> {
        for _ in 0..self.rng.below(7) {
            self.images[self.current].guest(&mut self.rng);
            if self.rng.one_in(4) {
                self.images[1 - self.current].guest(&mut self.rng);
            }
        }
        for _ in 0..self.rng.below(5).saturating_sub(2) {
            self.hazard()?;
            if self.rng.one_in(2) {
                self.images[self.current].guest(&mut self.rng);
            }
        }
        Ok(())
    }

    fn hazard(&mut self) -> Result<()> {
        let now = self.disk().size();
        match self.rng.below(32) {
            0..3 => {
                let size = (now + size(&mut self.rng) / 4 + 512).min(LARGEST).max(now);
                self.say(format!("it grows to {size}"));
                self.disk().resize(size);
            }
            3 => {
                let size = self.rng.between(1, now.div_ceil(512)) * 512;
                let size = size.min(now);
                self.say(format!("it shrinks to {size}"));
                self.disk().resize(size);
            }
            4 | 5 => {
                let less = match self.rng.one_in(2) {
                    true => self.rng.below(now),
                    false => self.rng.below(now.min(131_072)),
                };
                let size = (now - less).next_multiple_of(512).min(now);
                self.say(format!("it shrinks to {size} and grows back"));
                // What is written last is forgotten first.
                self.images[self.current].touch(&mut self.rng, size);
                self.disk().resize(size);
                if self.rng.one_in(2) {
                    self.images[self.current].guest(&mut self.rng);
                }
                self.disk().resize(now);
            }
            6 | 7 => {
                self.say("the targets are swapped");
                self.current = 1 - self.current;
            }
            8 | 9 => {
                self.say("the bitmaps are lost");
                let which = self.rng.below(3);
                self.disk()
                    .keep_bitmaps(|name| which == 0 && !name.ends_with(['0', '2', '4', '6', '8']));
            }
            10..13 => {
                let copy = self.disk().clone();
                self.copies.push(copy);
            }
            13..15 => {
                let identity = self.disk().identity.clone();
                let mut older = self.copies.iter().filter(|copy| copy.identity == identity);
                let count = older.clone().count() as u64;
                if count > 0 {
                    let number = self.rng.below(count) as usize;
                    let copy = older.nth(number).cloned().context("a copy")?;
                    self.say("it is rolled back");
                    *self.disk() = copy;
                }
            }
            15 => {
                self.say("it changes and no bitmap sees it");
                self.images[self.current].lie(&mut self.rng);
                self.chain.lies += 1;
                self.lied = true;
            }
            16..27 => self.log.extend(self.chain.hazard(&mut self.rng)?),
            _ => {}
        }
        Ok(())
    }

    fn job(&mut self, audit: bool) -> Result<bool> {
        let plan = self.chain.plan(&mut self.rng, audit);
        self.log.push(plan.to_string());
        let rng = &mut self.rng;
        let (cold, refused) = (rng.one_in(24), !self.bitmaps || rng.one_in(40));
        let disk = &mut self.images[self.current];
        let bitmap = match self.chain.base(plan.level) {
            _ if cold || refused => Err("not now".to_owned()),
            Some(base) if disk.has_bitmap(base) => Ok(base.to_owned()),
            _ => Err("it is missing".into()),
        };
        self.log.push(format!("    {bitmap:?}"));
        let instant = Arc::new(Instant {
            disk: disk.clone(),
            bitmap: bitmap.clone().ok().map(|base| (BITMAP.into(), base)),
            whim: if rng.one_in(3) { 0 } else { rng.word() },
        });
        let name = self.chain.next_name();
        if !cold && !refused {
            self.images.iter_mut().for_each(|i| i.add_bitmap(&name));
        }
        let meeting = Meeting {
            plan,
            truth: instant.disk.data.clone(),
            identity: instant.disk.identity.clone(),
            cluster: instant.disk.cluster,
            socket: self.server.socket().to_path_buf(),
            export: "vda",
            bitmap: bitmap.clone().map(|_| BITMAP.into()),
        };
        self.server.show(Arc::<Instant>::clone(&instant));
        // The guest goes on meanwhile.
        if rng.one_in(2) {
            self.images[self.current].guest(rng);
        }
        let marked = |offset, len| {
            let name = bitmap.as_ref().map_or("", String::as_str);
            instant.disk.is_marked(name, offset, len)
        };
        let outcome = self.chain.job(meeting, &marked)?;
        let gone = self.rng.one_in(2);
        for image in &mut self.images {
            match &outcome.keep {
                _ if cold => {}
                Some(keep) => image.keep_bitmaps(|name| keep.contains(name)),
                None => image.keep_bitmaps(|kept| !gone || kept != name),
            }
        }
        self.lied &= !outcome.healed;
        Ok(outcome.healed)
    }

    /// After a bitmap that lied: an audit that must find it.
    fn heal(&mut self) -> Result<()> {
        let healed = self.job(true)?;
        ensure!(healed, "an audit did not heal what a bitmap lied about");
        Ok(())
    }

    fn restore(&mut self, number: usize) -> Result<()> {
        let restored = self.chain.restore(number);
        restored.with_context(|| format!("restore of job {number}"))
    }
}

/// Sizes of disks, small ones more often, and some that end anywhere.
pub(crate) fn size(rng: &mut Rng) -> u64 {
    let size = (256 << 10) << rng.below(5);
    let size = rng.between(size / 2, size).max(128 << 10);
    match rng.below(8) {
        0 => size,
        1..4 => size / 512 * 512,
        _ => size / 65536 * 65536,
    }
}
