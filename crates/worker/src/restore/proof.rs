//! The proof: every disk has the root that its job recorded, every small file its SHA-256.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use blockmap::Root;
use relay::proof::{Disk, Whole};

use super::image::{Image, Taken};
use super::sink::Output;
use super::target::{Goal, Plan};
use super::{check, differences};
use crate::session::Line;

/// What a restore brought, compared with what was recorded.
pub(super) struct Compared<'a> {
    /// Disks by target.
    pub(super) disks: BTreeMap<String, Taken>,
    /// Disks of which no manifest came.
    unproven: usize,
    /// Small files by name.
    pub(super) small: check::Small<'a>,
}

/// Compares everything that came. Fails at the first thing that is not what was backed up.
pub(super) fn compare<'a>(
    line: &Line,
    plan: &Plan,
    images: &mut BTreeMap<String, Image>,
    files: &'a BTreeMap<String, Vec<u8>>,
) -> Result<Compared<'a>> {
    let vm = plan.vm();
    let mut compared = Compared {
        disks: BTreeMap::new(),
        unproven: 0,
        small: BTreeMap::new(),
    };
    for (target, image) in std::mem::take(images) {
        let mut taken = image.finish().with_context(|| format!("{vm}/{target}"))?;
        if !disk(line, plan, &target, &mut taken)? {
            compared.unproven += 1;
        }
        compared.disks.insert(target, taken);
    }
    compared.small = check::prove(line, vm, plan.newest_manifest(), files)?;
    Ok(compared)
}

/// Compares the root of what came with the one that the job recorded; false if no manifest is at hand.
fn disk(line: &Line, plan: &Plan, target: &str, taken: &mut Taken) -> Result<bool> {
    let (vm, part, found) = (plan.vm(), taken.part, taken.root);
    let Some(record) = plan.record_of(target, part) else {
        if matches!(plan.goal, Goal::Machine(_)) {
            bail!(
                "{vm}/{target}: no manifest of the job that wrote this part; it cannot be proven"
            );
        }
        ensure!(
            plan.newest(target).is_none(),
            "{vm}/{target}: the manifest that came names another part of this disk; it cannot be proven"
        );
        line.warn(format!(
            "{vm}/{target}: unverified: no manifest came with it"
        ));
        return Ok(false);
    };
    // A chain whose last part did not come is another instant than the rest of the machine.
    if let Some(newest) = plan.newest(target) {
        ensure!(
            newest.part == part,
            "{vm}/{target}: the newest part that the manifests name did not come with this restore"
        );
    }
    let recorded: Root = record
        .root
        .parse()
        .context("the manifest's root is damaged")?;
    if found != recorded {
        let size = taken.map.header().size;
        let what = if size == record.size {
            differences::describe(
                &plan.maps_of_jobs(),
                plan.key(),
                part,
                recorded,
                &mut taken.map,
            )
        } else {
            Some(format!("it has {size} bytes, recorded {}", record.size))
        };
        let what = what.map_or(String::new(), |what| format!("; {what}"));
        bail!(
            "{vm}/{target}: the disk that came is not what was backed up: root {found}, recorded {recorded}{what}"
        );
    }
    let root = &found.to_string();
    line.info(Disk { vm, target, root }.to_string());
    Ok(true)
}

impl Compared<'_> {
    /// Where images lie, and their names to be.
    pub(super) fn moves(&self) -> Vec<(PathBuf, PathBuf)> {
        let places = self.disks.values().filter_map(|disk| match &disk.output {
            Output::Image(place) => Some((place.temp.clone(), place.path.clone())),
            Output::Nothing => None,
        });
        places.collect()
    }

    /// Ends a restore that is for the proof alone: did all come that was to be proven?
    pub(super) fn conclude(
        &self,
        line: &Line,
        plan: &Plan,
        chosen: Option<&[String]>,
    ) -> Result<()> {
        let vm = plan.vm();
        let recorded = plan.newest_manifest();
        let mut due: Vec<&str> = Vec::new();
        match (chosen, recorded) {
            // Of chosen disks nobody needs the files.
            (Some(chosen), _) => due.extend(chosen.iter().map(String::as_str)),
            (None, Some(manifest)) => {
                due.extend(manifest.disks.iter().map(|disk| disk.target.as_str()));
                due.extend(manifest.files.iter().map(|file| file.name.as_str()));
                due.push("manifest.json");
            }
            (None, None) => {}
        }
        due.retain(|name| !self.disks.contains_key(*name) && !self.small.contains_key(name));
        ensure!(
            due.is_empty(),
            "{vm}: {} did not come with this job, so that the backup is not proven; select whole jobs, or \
             name the disks to prove",
            due.join(", ")
        );
        if recorded.is_none() || self.unproven > 0 {
            line.warn(format!(
                "{vm}: unverified: no manifest came with what is called unverified above"
            ));
            return Ok(());
        }
        let (disks, files) = (self.disks.len(), self.small.len());
        line.info(Whole { vm, disks, files }.to_string());
        Ok(())
    }
}
