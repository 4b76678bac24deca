//! Where an increment of a disk looks for changes, and why not where the bitmap says.
//!
//! A bitmap is trusted only while it is proven that it was kept since the base, on this very image: after
//! swapping the targets of two disks, or a resize, libvirt reports blocks clean that are not.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use blockmap::Header;
use libvirt::Kind;

use super::chain::Start;
use super::checkpoint::{self, State};
use super::choose::Chosen;
use super::pass::Look;
use super::prepare::Ready;
use crate::session::Line;

/// Where to look, and why everywhere.
pub type Where = (Look, Option<String>);

/// Decides for every disk; none for one that starts over.
pub(super) fn decide(
    line: &Line,
    ready: &Ready<'_>,
    starts: &[Start],
) -> Result<Vec<Option<Where>>> {
    // Nearly always one job.
    let mut states: BTreeMap<&str, State> = BTreeMap::new();
    for base in starts.iter().filter_map(Start::base) {
        if !states.contains_key(base.job.as_str()) {
            let state = checkpoint::state(&ready.domain, &base.job);
            states.insert(&base.job, state.or_else(|e| doubt(line, ready, e))?);
        }
    }
    let disks = ready.disks.iter().zip(&ready.images).zip(&ready.sizes);
    disks
        .zip(starts)
        .map(|(((disk, image), size), start)| {
            let Some(base) = start.base() else {
                return Ok(None);
            };
            let bitmap = match image.can_have_bitmap(disk) {
                false => Err("its image cannot have a bitmap".to_owned()),
                true => states
                    .get(base.job.as_str())
                    .unwrap_or(&State::Missing)
                    .of(&disk.target, &base.job),
            };
            let (identity, audit_every) = (identity(disk)?, ready.policy.audit_every);
            let found = where_to_look(base, &identity, *size, bitmap, audit_every);
            Ok(Some(found))
        })
        .collect()
}

/// Decides for one disk: `bitmap` says why there is none that was kept since the base, or that there is.
pub fn where_to_look(
    base: &Header,
    identity: &str,
    size: u64,
    bitmap: std::result::Result<(), String>,
    audit_every: u32,
) -> Where {
    let trusted = if identity != base.identity {
        Err(format!(
            "its image is another one than in job {}, or has another target",
            base.job
        ))
    } else if size != base.size {
        Err(format!("it grew from {} to {size} bytes", base.size))
    } else {
        bitmap
    };
    match trusted {
        Err(why) => (Look::Everything, Some(why)),
        Ok(()) if base.trusting.saturating_add(1) >= audit_every => {
            let why = format!(
                "audit of the bitmap, the last whole reading was job {}",
                base.full_read
            );
            (Look::Audit, Some(why))
        }
        Ok(()) => (Look::Bitmap, None),
    }
}

/// What cannot be asked is not trusted; a connection that is gone is another matter.
fn doubt(line: &Line, ready: &Ready<'_>, error: anyhow::Error) -> Result<State> {
    let kind = error.downcast_ref::<libvirt::Error>().map(|e| e.kind);
    if matches!(kind, Some(Kind::ConnectionLost | Kind::Timeout)) {
        return Err(error);
    }
    line.warn(format!(
        "{}: its bitmaps cannot be checked and are not used: {error:#}",
        ready.vm
    ));
    Ok(State::Missing)
}

/// What makes a disk this disk: its image's device and inode (or device number), format, target.
pub(super) fn identity(disk: &Chosen) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(&disk.source)
        .with_context(|| format!("cannot look at {}", disk.source.display()))?;
    let place = if disk.block {
        format!("block {}", facts.rdev())
    } else {
        format!("file {}:{}", facts.dev(), facts.ino())
    };
    Ok(format!("{place} {} {}", disk.format, disk.target))
}
