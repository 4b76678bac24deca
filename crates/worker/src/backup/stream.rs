//! One disk on its way to the plugin: NBD export -> part -> session.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use blockmap::{BLOCK, Key};
use nbd::ShutdownHandle;
use relay::message::FileHead;

use super::chain::{self, Start};
use super::choose::Chosen;
use super::export::Export;
use super::image::Image;
use super::look::{Where, identity};
use super::part::{self, Part, Records};
use super::pass::{Look, Reading, show};
use super::prepare::Ready;
use super::record::map_path;
use super::request::BITMAP;
use crate::manifest::{Basis, Disk};
use crate::session::Session;

/// The largest cluster that an image can have, in bytes.
const LARGEST_CLUSTER: u64 = 2 << 20;

/// How a disk is read and sent.
pub(super) struct Plan<'a> {
    pub(super) disk: &'a Chosen,
    pub(super) image: &'a Image,
    pub(super) start: Start,
    /// For a delta.
    pub(super) look: Option<Where>,
    pub(super) socket: PathBuf,
    pub(super) export: &'a str,
}

/// Sends one disk and seals its map. `guards` is told every reader.
pub(super) fn disk(
    session: &mut Session,
    ready: &Ready<'_>,
    plan: Plan<'_>,
    key: &Key,
    guards: &dyn Fn(ShutdownHandle),
) -> Result<Disk> {
    let line = session.line().clone();
    let Plan {
        disk, image, start, ..
    } = plan;
    let target = &disk.target;
    let look = plan.look.as_ref().map(|(look, _)| *look);
    let bitmap = matches!(look, Some(Look::Bitmap | Look::Audit)).then_some(BITMAP);
    let mut export = Export::connect(&plan.socket, plan.export, bitmap, guards)?;
    let size = export.size();
    ensure!(size > 0, "the disk has no bytes");
    let part = random_part()?;
    let base = start.base().cloned();
    let header = part::header(
        &ready.job.hello.job,
        identity(disk)?,
        part,
        size,
        base.as_ref(),
        look,
    );
    let path = map_path(&ready.maps, &ready.job.hello.job, target);
    let mut reading = Reading {
        export: &mut export,
        key,
        path: &path,
        wanted: &|| !line.is_gone(),
        cluster: image.cluster.unwrap_or(LARGEST_CLUSTER),
        limit: None,
    };
    let asked = chain::asked(ready, key);
    let (sits, over_file) = asked.files(ready.vm, &ready.job.hello.job, target, base.as_ref());
    let mut sending = Sending {
        session: &*session,
        vm: ready.vm,
        sits: &sits,
        over: &over_file,
        part,
        size,
    };
    let Part {
        map,
        report,
        sent_bytes,
        over,
    } = part::send(&mut reading, header, start, look, &mut sending)?;
    export.close()?;
    session.file_end()?;
    let nonzero_bytes = map.nonzero_blocks() * BLOCK as u64;
    let header = map.header().clone();
    let root = map.seal()?;
    if !report.missed.is_none() {
        line.warn(format!(
            "{}/{target}: THE BITMAP WAS WRONG: what changed outside of it is in this backup, and missing in \
             those since job {}: {}",
            ready.vm,
            base.map_or_else(String::new, |base| base.full_read),
            report.missed
        ));
    }
    let how = match (&over, &plan.look) {
        (Some(Some(why)), _) => format!(" (starts over: {why})"),
        (Some(None), _) => String::new(),
        (None, _) if report.doubted => {
            " (read whole: its bitmap calls clean what changed, as after a disk shrank and grew back)".into()
        }
        (None, Some((_, Some(why)))) => format!(" (read whole: {why})"),
        (None, _) => " (bitmap)".into(),
    };
    line.info(format!(
        "{}/{target}: {} sent, {} read of {}{how}, root {root}",
        ready.vm,
        show(sent_bytes),
        show(report.read_bytes),
        show(size)
    ));
    Ok(Disk {
        target: target.clone(),
        file: if over.is_some() { over_file } else { sits },
        size,
        format: disk.format.clone(),
        source: disk.source.clone(),
        block: disk.block,
        chain: image.chain.clone(),
        data_file: image.data_file.clone(),
        internal_snapshots: image.snapshots.clone(),
        image_unknown: image.unknown.clone(),
        part,
        delta_seq: header.delta_seq,
        root: root.to_string(),
        basis: match header.trusting {
            0 => Basis::FullRead,
            _ => Basis::Bitmap,
        },
        full_read: header.full_read,
        nonzero_bytes,
        sent_bytes,
    })
}

/// The side of a disk that speaks to the plugin.
struct Sending<'a> {
    session: &'a Session,
    vm: &'a str,
    /// The file if it sits on its base, and if it starts over.
    sits: &'a str,
    over: &'a str,
    part: u64,
    size: u64,
}

impl Records for Sending<'_> {
    fn begin(&mut self, delta_on: Option<u32>) -> Result<()> {
        self.session.file(&FileHead {
            part: self.part,
            offsets: true,
            delta_on,
            ..super::head(
                self.vm,
                if delta_on.is_some() {
                    self.sits
                } else {
                    self.over
                },
                self.size,
            )
        })?;
        self.check()
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.session.line().data(offset, bytes)?;
        self.check()
    }
}

impl Sending<'_> {
    fn check(&self) -> Result<()> {
        ensure!(
            !self.session.line().is_gone(),
            "the plugin closed the connection"
        );
        Ok(())
    }
}

/// A random id of 63 bits, never 0.
fn random_part() -> Result<u64> {
    let random = getrandom::u64().map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    Ok((random >> 1).max(1))
}
