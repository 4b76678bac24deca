//! The checkpoints that jobs leave in a domain: what the next increment may trust, and what may go.
//!
//! A checkpoint is named after its job, so that no name is ever used twice and whose it is can be seen.
//! Dirty bitmaps are an accelerator only: whatever is wrong with one, the disk is read whole instead.

use std::collections::BTreeSet;

use anyhow::Result;
use libvirt::xml::{CheckpointDisk, CheckpointView, checkpoint_again_xml, checkpoint_xml};
use libvirt::{Domain, Kind};

use super::prepare::Ready;
use crate::session::Line;

/// Begins the names of ours.
const PREFIX: &str = "lab-backup-";

/// The name of a job's checkpoint, and of its bitmaps.
pub(crate) fn name(job: &str) -> String {
    format!("{PREFIX}{job}")
}

/// The XML of the checkpoint that this job makes; none if no disk can have a bitmap.
pub(super) fn xml(ready: &Ready<'_>, others: &[String]) -> Result<Option<String>> {
    let name = name(&ready.job.hello.job);
    let disks = ready.disks.iter().zip(&ready.images);
    let mut disks: Vec<CheckpointDisk<'_>> = disks
        .map(|(disk, image)| CheckpointDisk {
            target: &disk.target,
            bitmap: image.can_have_bitmap(disk).then_some(name.as_str()),
        })
        .collect();
    if disks.iter().all(|disk| disk.bitmap.is_none()) {
        return Ok(None);
    }
    disks.extend(others.iter().map(|target| CheckpointDisk {
        target,
        bitmap: None,
    }));
    Ok(Some(checkpoint_xml(&name, &disks)?))
}

/// What libvirt has of the checkpoint of a job.
pub(super) enum State {
    /// Nothing.
    Missing,
    /// Whole bitmaps of these disks.
    Of(BTreeSet<String>),
}

impl State {
    /// Has the disk a bitmap since then? If not, why.
    pub(super) fn of(&self, target: &str, job: &str) -> Result<(), String> {
        match self {
            State::Missing => Err(format!("libvirt has no checkpoint of job {job}")),
            State::Of(disks) if disks.contains(target) => Ok(()),
            State::Of(_) => Err(format!("its bitmap of job {job} is missing or broken")),
        }
    }
}

/// Asks which bitmaps of a job's checkpoint are whole: libvirt and QEMU compare what they have.
pub(super) fn state(domain: &Domain, job: &str) -> Result<State> {
    let Some(checkpoint) = domain.checkpoint(&name(job))? else {
        return Ok(State::Missing);
    };
    let xml = checkpoint.xml()?;
    let view = CheckpointView::parse(&xml)?;
    let has: Vec<&str> = view
        .disks
        .iter()
        .filter(|disk| disk.bitmap.as_deref() == Some(&view.name))
        .map(|disk| disk.target.as_str())
        .collect();
    // To define it once more has them checked; it is what it was afterwards.
    let whole = |disks: &[&str]| -> Result<bool> {
        match domain.checkpoint_redefine(&checkpoint_again_xml(&view, disks)?) {
            Ok(_) => Ok(true),
            Err(e) if e.kind == Kind::CheckpointBroken => Ok(false),
            Err(e) => Err(e.into()),
        }
    };
    if has.is_empty() || whole(&has)? {
        return Ok(State::Of(has.into_iter().map(str::to_owned).collect()));
    }
    let mut good = Vec::new();
    for target in has {
        if whole(&[target])? {
            good.push(target);
        }
    }
    if !good.is_empty() {
        whole(&good)?;
    }
    Ok(State::Of(good.into_iter().map(str::to_owned).collect()))
}

/// Removes the checkpoints of this VM's jobs that are not among `keep`. None of the rest is touched.
pub(super) fn remove(line: &Line, vm: &str, domain: &Domain, keep: &BTreeSet<String>) {
    let checkpoints = match domain.checkpoints() {
        Ok(checkpoints) => checkpoints,
        Err(e) => return line.warn(format!("{vm}: old checkpoints stay: {e}")),
    };
    for checkpoint in checkpoints {
        let ours = job_of(checkpoint.name(), vm);
        if ours.is_some_and(|job| !keep.contains(job))
            && let Err(e) = drop_one(domain, checkpoint.name())
        {
            line.warn(format!("{vm}: an old checkpoint stays: {e}"));
        }
    }
}

/// The job that left a checkpoint, if it was one of this VM.
fn job_of<'a>(checkpoint: &'a str, vm: &str) -> Option<&'a str> {
    let job = checkpoint.strip_prefix(PREFIX)?;
    // Bacula's unique names: web01.2026-01-31_22.00.00_05
    let time = job.strip_prefix(vm)?.strip_prefix('.')?;
    let digits = |b: u8| b.is_ascii_digit() || b"-_.".contains(&b);
    (time.len() >= 19 && time.bytes().all(digits)).then_some(job)
}

/// Removes a checkpoint with its bitmaps; if they are broken, what libvirt knows of it.
pub(crate) fn drop_one(domain: &Domain, name: &str) -> libvirt::Result<()> {
    let Some(checkpoint) = domain.checkpoint(name)? else {
        return Ok(());
    };
    match checkpoint.delete() {
        // In a domain that is off nothing can be removed from an image; the next job that runs does.
        Err(e)
            if matches!(
                e.kind,
                Kind::InvalidState | Kind::Busy | Kind::ConnectionLost
            ) =>
        {
            Err(e)
        }
        Err(_) if domain.is_active()? => checkpoint.forget(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checkpoints_of_this_vms_jobs_are_ours() {
        let job = "web01.2026-01-31_22.00.00_05";
        assert_eq!(job_of(&name(job), "web01"), Some(job));
        for (other, vm) in [
            (job, "web01"),
            ("lab-backup-web01.2026-01-31_22.00.00_05", "web0"),
            ("lab-backup-web01.mine", "web01"),
            ("lab-backup-web01", "web01"),
            ("lab-backup-web01.x.2026-01-31_22.00.00_05", "web01"),
        ] {
            assert_eq!(job_of(other, vm), None, "{other}");
        }
        let dotted = "web01.x.2026-01-31_22.00.00_05";
        assert_eq!(job_of(&name(dotted), "web01.x"), Some(dotted));
    }
}
