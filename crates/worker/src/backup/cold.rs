//! The cold method: a VM that is off is read from its images.
//!
//! The reader takes no lock: a plain `qemu-nbd --read-only` holds one that makes the start of the VM fail,
//! and a backup must never be why a VM does not start. So the VM may start at any moment; that is noticed
//! ([`super::still`]), the reader is stopped and the job fails. The next one finds the VM running.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blockmap::Key;
use jiff::Timestamp;
use libvirt::ShutOffReason;
use nbd::{QemuNbd, QemuNbdOptions};

use super::chain::Start;
use super::pass::Look;
use super::prepare::Ready;
use super::still::Still;
use super::stream::{self, Plan};
use super::{Taken, metadata};
use crate::manifest::{Consistency, Disk, Instant};
use crate::paths;
use crate::session::Session;

/// How long `qemu-nbd` may take to open an image, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads and sends everything; there is nothing that must be cleared up if it is cut off.
pub(super) fn read(
    session: &mut Session,
    ready: &Ready<'_>,
    reason: ShutOffReason,
    key: &Key,
    starts: Vec<Start>,
) -> Result<Taken> {
    let vm = ready.vm;
    let line = session.line().clone();
    let still = Still::begin(ready)?;
    let consistency = match reason {
        ShutOffReason::Saved => {
            line.warn(format!(
                "{vm}: its memory is saved on this host and not in the backup: what is restored boots as after \
                 a power cut"
            ));
            Consistency::Crash
        }
        _ => Consistency::PoweredOff,
    };
    let instant = Instant {
        at: Timestamp::now().to_string(),
        consistency,
        frozen_ms: None,
        held_ms: None,
    };
    let metadata = metadata::send(session, ready)?;
    let mut disks = Vec::new();
    let what = ready.disks.iter().zip(&ready.images).zip(&ready.sizes);
    for (((disk, image), size), start) in what.zip(starts) {
        let one = || -> Result<Disk> {
            let mut options = QemuNbdOptions::read(&disk.source, &disk.format);
            options.force_share = true;
            let server = QemuNbd::spawn(&options, Path::new(paths::RUN), PATIENCE)?;
            let look = matches!(start, Start::Delta(_))
                .then(|| (Look::Everything, Some("the machine is off".into())));
            let plan = Plan {
                disk,
                image,
                start,
                look,
                socket: server.socket(),
                export: "",
            };
            let sent = stream::disk(session, ready, plan, key, &|reader| still.guards(reader))?;
            server.stop(PATIENCE)?;
            ensure!(
                sent.size == *size,
                "it has {} bytes, libvirt says {size}",
                sent.size
            );
            Ok(sent)
        };
        let sent = one()
            // Why a reader was closed, or read nonsense, matters more than that it did.
            .map_err(|e| still.check().err().unwrap_or(e))
            .with_context(|| format!("{vm}/{}", disk.target))?;
        disks.push(sent);
    }
    still.check()?;
    Ok(Taken {
        instant,
        metadata,
        disks,
    })
}
