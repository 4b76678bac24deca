//! One job of the worker, by the worker's own code, with a tape instead of Bacula.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use blockmap::{BLOCK, Key};
use relay::message::{Known, Level};
use worker::backup::part::{self, Records};
use worker::backup::{Asked, Export, Look, Reading, Start, map_path, where_to_look};

use crate::director::Part;

pub(crate) const VM: &str = "m";
pub(crate) const TARGET: &str = "vda";

/// What a job is given.
pub(crate) struct Order<'a> {
    pub(crate) name: &'a str,
    pub(crate) level: Level,
    /// Name of the job to build on.
    pub(crate) base: &'a str,
    pub(crate) accurate: bool,
    /// What the Director knows of a file, and whether it has a job.
    pub(crate) known: &'a dyn Fn(&str) -> Known,
    pub(crate) is_there: &'a dyn Fn(&str) -> bool,
    pub(crate) part_id: u64,
    pub(crate) maps: &'a Path,
    pub(crate) key: &'a Key,
    /// Where the instant is served.
    pub(crate) socket: &'a Path,
    pub(crate) export: &'a str,
    /// The name of the base's bitmap in the export, or why there is none.
    pub(crate) bitmap: Result<String, String>,
    pub(crate) identity: &'a str,
    pub(crate) size: u64,
    /// Bytes of a cluster of the image.
    pub(crate) cluster: u64,
    pub(crate) audit_every: u32,
    /// The tape breaks after so many bytes.
    pub(crate) breaks_at: Option<u64>,
}

/// How it went.
pub(crate) struct Done {
    pub(crate) part: Part,
    /// The job whose map it was compared with.
    pub(crate) base: Option<String>,
    /// The jobs below that its part rests on.
    pub(crate) rests_on: Vec<String>,
    /// As in [`worker::backup::part::Part::over`].
    pub(crate) over: Option<Option<String>>,
    /// Where a delta was to look for changes.
    pub(crate) look: Option<Look>,
    /// Does the map say that all of the disk was read?
    pub(crate) read_whole: bool,
    pub(crate) read_bytes: u64,
    /// Did an audit find something?
    pub(crate) missed: bool,
    pub(crate) map: PathBuf,
}

impl Done {
    pub(crate) fn sent_bytes(&self) -> u64 {
        let lens = self.part.records.iter().map(|(_, bytes)| bytes.len());
        lens.sum::<usize>() as u64
    }
}

/// Takes records as a volume does.
struct Tape {
    begun: bool,
    delta_on: Option<u32>,
    records: Vec<(u64, Vec<u8>)>,
    left: Option<u64>,
}

impl Records for Tape {
    fn begin(&mut self, delta_on: Option<u32>) -> Result<()> {
        assert!(!self.begun, "a part begins twice");
        (self.begun, self.delta_on) = (true, delta_on);
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert!(self.begun && !bytes.is_empty());
        let end = self
            .records
            .last()
            .map_or(0, |(at, bytes)| at + bytes.len() as u64);
        assert!(offset >= end, "a record at {offset} after one up to {end}");
        assert!(offset.is_multiple_of(BLOCK as u64), "a record at {offset}");
        if let Some(left) = &mut self.left {
            match left.checked_sub(bytes.len() as u64) {
                Some(rest) => *left = rest,
                None => bail!("the tape broke"),
            }
        }
        self.records.push((offset, bytes.to_vec()));
        Ok(())
    }
}

pub(crate) fn run(order: &Order<'_>) -> Result<Done> {
    let asked = Asked {
        level: order.level,
        base: order.base,
        accurate: order.accurate,
        maps: order.maps,
        key: order.key,
    };
    let mut start = asked.start(TARGET, order.size, &mut |file| Ok((order.known)(file)))?;
    let mut rests_on = Vec::new();
    if let Some(base) = start.base() {
        match asked.rests_on(&base.job, &mut |job| Ok((order.is_there)(job)))? {
            Ok(chain) => rests_on = chain,
            Err(why) => start = Start::Over(Some(why)),
        }
    }
    let look = start.base().map(|base| {
        let bitmap = match base.job == order.base {
            true => order.bitmap.as_ref().map(|_| ()).map_err(String::clone),
            // The bitmap at hand is since another job.
            false => Err("the base is an older job".into()),
        };
        where_to_look(base, order.identity, order.size, bitmap, order.audit_every).0
    });
    let bitmap = match look {
        Some(Look::Bitmap | Look::Audit) => order.bitmap.as_deref().ok(),
        _ => None,
    };
    let mut export = Export::connect(order.socket, order.export, bitmap, |_| {})?;
    assert_eq!(export.size(), order.size);
    let base = start.base().cloned();
    let header = part::header(
        order.name,
        order.identity.into(),
        order.part_id,
        order.size,
        base.as_ref(),
        look,
    );
    let path = map_path(order.maps, order.name, TARGET);
    let mut reading = Reading {
        export: &mut export,
        key: order.key,
        path: &path,
        wanted: &|| true,
        cluster: order.cluster,
        limit: None,
    };
    let mut tape = Tape {
        begun: false,
        delta_on: None,
        records: Vec::new(),
        left: order.breaks_at,
    };
    let sent = part::send(&mut reading, header, start, look, &mut tape)?;
    export.close()?;
    let header = sent.map.header().clone();
    let (sits, over) = asked.files(VM, order.name, TARGET, base.as_ref());
    // As the plugin and Bacula count.
    let delta_seq = tape.delta_on.map_or(0, |base| base + 1);
    assert_eq!(header.delta_seq, delta_seq, "the map says another sequence");
    assert_eq!(tape.delta_on.is_none(), sent.over.is_some());
    sent.map.seal()?;
    let done = Done {
        part: Part {
            id: order.part_id,
            file: if delta_seq == 0 { over } else { sits },
            delta_seq,
            size: order.size,
            records: tape.records,
        },
        base: base.map(|base| base.job),
        rests_on: if delta_seq == 0 { Vec::new() } else { rests_on },
        look,
        over: sent.over,
        read_whole: header.trusting == 0,
        read_bytes: sent.report.read_bytes,
        missed: !sent.report.missed.is_none(),
        map: path,
    };
    assert_eq!(done.sent_bytes(), sent.sent_bytes);
    Ok(done)
}
